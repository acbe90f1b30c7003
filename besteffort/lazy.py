"""Names of a package that are loaded when they are first used, so that importing it stays cheap (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names live in the given modules.

    Args:
      package: the package's `__name__`.
      modules: per name the module that defines it.
    """
    names = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        names[name] = getattr(importlib.import_module(modules[name]), name)
        return names[name]

    def list_names() -> list[str]:
        return sorted(set(names) | set(modules))

    return get, list_names
