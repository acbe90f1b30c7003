"""Learned best-effort LLM serving: a small router, trained in simulation, picks a language model for every request.

`import besteffort` is cheap: the names below are loaded when they are first used, and only `simulate` needs JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from besteffort.errors import InputError
from besteffort.version import __version__

if TYPE_CHECKING:
    from besteffort.policy import load_policy
    from besteffort.profile import load_profile
    from besteffort.simulator.simulate import simulate

__all__ = ["InputError", "__version__", "load_policy", "load_profile", "simulate"]

_LAZY = {
    "load_policy": "besteffort.policy",
    "load_profile": "besteffort.profile",
    "simulate": "besteffort.simulator.simulate",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
