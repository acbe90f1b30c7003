"""The package as a newcomer meets it: cheap to import, typed, whole when installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import subprocess
import sys

import pytest

import besteffort

HEAVY = ("jax", "jaxtyping", "matplotlib", "pydantic", "flax", "scipy", "tensorboardX")


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import besteffort; besteffort.InputError; besteffort.__version__; dir(besteffort)",
        "import besteffort; besteffort.load_policy; besteffort.load_profile",
        "import besteffort.observation",
        "import besteffort.situation",
        "import besteffort.workload.requests",
        "import besteffort.files",
        "import besteffort.runs.trackers",
        "import besteffort.routers.names",
    ],
)
def test_import_is_light(statement: str) -> None:
    assert not modules_after(statement) & set(HEAVY)


def test_public_names_resolve() -> None:
    for name in besteffort.__all__:
        assert getattr(besteffort, name) is not None
        assert name in dir(besteffort)
    from besteffort.simulator.simulate import simulate

    assert besteffort.simulate is simulate


def test_the_names_of_a_package_are_what_it_says_whatever_was_imported_before() -> None:
    importlib.import_module("besteffort.workload.synthetic_workload")
    from besteffort.workload import Poisson, synthetic

    assert callable(synthetic)
    assert Poisson(1.0).mean_rate() == 1.0


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_polcy'"):
        _ = besteffort.load_polcy


def test_version_is_the_installed_one() -> None:
    try:
        installed = importlib.metadata.version("besteffort")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("besteffort is not installed here")
    assert installed == besteffort.__version__


def test_package_is_whole() -> None:
    root = importlib.resources.files("besteffort")
    assert root.joinpath("py.typed").is_file()
    assert root.joinpath("profile", "builtin", "opt-a100.json").is_file()
