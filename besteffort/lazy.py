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

    `__getattr__` raises ImportError for a name whose module is not installed: the wheel `besteffort-gateway` has only a
    part of the modules.
    """
    names = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(modules[name])
        except ModuleNotFoundError as error:
            if not f"{modules[name]}.".startswith(f"{error.name}."):
                raise
            # No AttributeError: `from besteffort import simulate` would drop its sentence.
            raise ImportError(
                f"`{name}` needs the full package: `pip uninstall besteffort-gateway`, then `pip install .` in a "
                "checkout of besteffort.",
                name=modules[name],
            ) from None
        names[name] = getattr(module, name)
        return names[name]

    def list_names() -> list[str]:
        return sorted(set(names) | set(modules))

    return get, list_names
