"""The layout is a contract: a module imports from its own layer or from those above, and no files form a circle."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.resources import files
from pathlib import Path

import pytest

# From the ground up: a module may import from its own line and from the lines above it.
LAYERS = """
errors ranges version lazy digests files documents validation device interrupts pytrees keys
profile
autoscaler pools situation observation weights
estimates
policy in_flight
workload
simulator
routers
learning
bounds
evaluation
runs
diagnosis
sweep
opt laptop
profiling
adapters
gateway
engine load plugins
demo
console listing
commands
cli __main__
"""
LAYER = {name: depth for depth, line in enumerate(LAYERS.split("\n")) for name in line.split()}

Imports = Mapping[str, frozenset[str]]


def sources() -> dict[str, str]:
    """Source text of every module of the package, by its dotted name below `besteffort`."""
    root = Path(str(files("besteffort")))
    modules = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return modules


def imports_of(modules: Mapping[str, str]) -> Imports:
    """What each module imports of the package, wherever in its text; names of a package count as the package."""

    def found(text: str) -> set[str]:
        names = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        return {name.partition(".")[2] for name in names if name.split(".")[0] == "besteffort"}

    def module_of(name: str) -> str:
        return name if name in modules else name.rpartition(".")[0]

    return {name: frozenset(map(module_of, found(text))) - {name} for name, text in modules.items()}


def upward(imports: Imports) -> list[str]:
    """Imports from a layer below; the face of the package, which loads everything lazily, stands outside."""
    pairs = ((name, other) for name in sorted(imports) for other in sorted(imports[name]) if name and other)
    return [
        f"{name} imports {other}" for name, other in pairs if LAYER[other.split(".")[0]] > LAYER[name.split(".")[0]]
    ]


def test_every_module_has_its_layer() -> None:
    assert {name.split(".")[0] for name in sources() if name} - {"configs"} <= LAYER.keys()


def test_imports_go_one_way() -> None:
    assert upward(imports_of(sources())) == []


def test_no_files_import_in_a_circle() -> None:
    TopologicalSorter(imports_of(sources())).prepare()


def test_the_contract_would_fail() -> None:
    modules = sources()
    assert len(modules) > 100
    modules["estimates.tables"] += "\n\ndef late():\n    from besteffort.evaluation import metrics\n"
    assert upward(imports_of(modules)) == ["estimates.tables imports evaluation.metrics"]
    modules = sources()
    modules["simulator.types"] += "\nfrom besteffort.simulator.build import build\n"
    with pytest.raises(CycleError, match=r"simulator\.build"):
        TopologicalSorter(imports_of(modules)).prepare()
