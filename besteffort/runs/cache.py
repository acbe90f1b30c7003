"""Compiled programs that outlive a process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_SHORTEST_S = 0.5  # programs that compile faster are not worth a file


def keep_compilations() -> None:
    """Lets JAX keep compiled programs in the user's cache, unless the environment names another place."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "besteffort" / "jax"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(_SHORTEST_S))
    if "jax" in sys.modules:  # it has read the environment already
        import jax

        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_S)
