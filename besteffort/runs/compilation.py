"""How our own processes compile: quickly, and for later ones, too."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

_SHORTEST_S = 0.1  # programs that compile faster are not worth a file
_LEVEL = "--xla_backend_optimization_level"


def set_up_compilation() -> None:
    """Lets XLA optimise less, and JAX keep compiled programs in the user's cache; what the environment says goes.

    A cache that cannot be written is left alone.

    On processors, level 2 of 3 compiles in about a quarter less time, and what it compiles is no slower and gives the
    same training, bit for bit. At level 1 LLVM gives up on some of our programs (`Cannot select`, jaxlib 0.10.2). Where
    JAX has a plugin for an accelerator, the level stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _LEVEL not in flags and not entry_points(group="jax_plugins"):
        os.environ["XLA_FLAGS"] = f"{flags} {_LEVEL}=2".strip()
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "besteffort" / "jax"
        there = next(each for each in (cache, *cache.absolute().parents) if each.exists())
    except (OSError, RuntimeError, StopIteration):  # no home
        return
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        return  # it only saves time, and JAX would complain of every program
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(_SHORTEST_S))
    if "jax" in sys.modules:  # it has read the environment already
        import jax

        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_S)
