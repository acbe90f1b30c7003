from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

INIT = """
from besteffort.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "here": f"{__name__}.present",
        "gone": f"{__name__}.absent",
        "deep": f"{__name__}.no.such",
        "broken": f"{__name__}.broken",
    },
)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """A package of which some modules are not installed; every test has one of its own name."""
    folder = tmp_path / request.node.name
    folder.mkdir()
    (folder / "__init__.py").write_text(INIT)
    (folder / "present.py").write_text("here = 1\n")
    (folder / "broken.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(folder.name)


def test_name_is_loaded_when_first_used(package: ModuleType) -> None:
    assert "here" not in vars(package)
    assert package.here == 1
    assert vars(package)["here"] == 1


def test_name_of_a_missing_module_says_which_package_has_it(package: ModuleType) -> None:
    for name in ("gone", "deep"):
        with pytest.raises(
            ImportError, match=f"^`{name}` needs the full package: .*`pip install .` in a checkout of besteffort.$"
        ) as error:
            getattr(package, name)
        assert type(error.value) is ImportError
        assert error.value.__suppress_context__


def test_sentence_survives_an_import_statement(package: ModuleType) -> None:
    with pytest.raises(ImportError, match="`gone` needs the full package"):
        exec(f"from {package.__name__} import gone")


def test_missing_library_is_named_as_it_is(package: ModuleType) -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_library'"):
        _ = package.broken
