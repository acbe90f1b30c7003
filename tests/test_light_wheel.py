"""The wheel `besteffort-gateway`: whole, closed under imports, and without JAX. `.ci/run` also installs it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
GATEWAY = ROOT / "packaging" / "gateway"
IMPORT_NAMES = {"pyyaml": "yaml"}

pytestmark = pytest.mark.checkout


def read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def dependencies(pyproject: Path) -> dict[str, str]:
    """Per import name the requirement that brings it."""
    names = {re.split(r"[^\w-]", text)[0]: text for text in read(pyproject)["project"]["dependencies"]}
    return {IMPORT_NAMES.get(name, name.replace("-", "_")): text for name, text in names.items()}


def content() -> dict[str, Path]:
    """Per file of the wheel its source."""
    wheel = read(GATEWAY / "pyproject.toml")["tool"]["hatch"]["build"]["targets"]["wheel"]
    files = {}
    for source, target in wheel["force-include"].items():
        path = (GATEWAY / source).resolve()
        assert path.exists(), f"{source} is listed, but is not there"
        if path.is_file():
            files[target] = path
            continue
        inner = (file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        files.update({f"{target}/{file.relative_to(path).as_posix()}": file for file in inner})
    return files


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, without what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from running(child)


def imports(path: Path) -> set[str]:
    """Modules that a file imports, in functions too; of `from package import module` both."""
    found = set()
    for node in running(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
            for alias in node.names:
                inner = ROOT / node.module.replace(".", "/") / alias.name
                if inner.is_dir() or inner.with_suffix(".py").is_file():
                    found.add(f"{node.module}.{alias.name}")
    return found


def test_modules_import_listed_modules_and_declared_dependencies_only() -> None:
    modules = {module_name(name): path for name, path in content().items() if name.endswith(".py")}
    used = set()
    for module, path in modules.items():
        assert module.rpartition(".")[0] in {"", *modules}, f"`{module}` is listed without its package's __init__.py"
        for imported in imports(path):
            top = imported.partition(".")[0]
            if top == "besteffort":
                assert imported in modules, f"`{module}` imports `{imported}`, which the wheel lacks"
            elif top not in sys.stdlib_module_names:
                used.add(top)
    extras = read(GATEWAY / "pyproject.toml")["project"]["optional-dependencies"]
    # What an extra brings is called as the extra is, and is imported only where it is asked for.
    assert used == {*dependencies(GATEWAY / "pyproject.toml"), *extras}


def test_settings_are_those_of_the_full_package() -> None:
    light, full = read(GATEWAY / "pyproject.toml"), read(ROOT / "pyproject.toml")
    of_gateways = full["project"]["optional-dependencies"]["gateway"]
    assert set(light["project"]["dependencies"]) <= {*full["project"]["dependencies"], *of_gateways}
    assert set(of_gateways) <= set(light["project"]["dependencies"])
    for name, needed in light["project"]["optional-dependencies"].items():
        assert needed == full["project"]["optional-dependencies"][name]
    for field in ("dynamic", "license", "requires-python"):
        assert light["project"][field] == full["project"][field]
    assert light["build-system"] == full["build-system"]
    version = (GATEWAY / light["tool"]["hatch"]["version"]["path"]).resolve()
    assert version == ROOT / full["tool"]["hatch"]["version"]["path"]
    assert (GATEWAY / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_works_without_the_other_dependencies_and_names_the_full_package(tmp_path: Path) -> None:
    for name, source in content().items():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    light, full = dependencies(GATEWAY / "pyproject.toml"), dependencies(ROOT / "pyproject.toml")
    blocked = set(full) - set(light)
    assert blocked > {"jax", "scipy", "matplotlib", "flax", "optax", "rlax"}
    code = f"""
import runpy, sys
from pathlib import Path

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked | {"jaxlib"}}:
            raise ModuleNotFoundError(f"{{name}} is not in a gateway", name=name)

sys.meta_path.insert(0, Block())
runpy.run_path({str(GATEWAY / "check.py")!r})["use"](Path({str(tmp_path)!r}))
import besteffort
print(besteffort.__file__)
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
