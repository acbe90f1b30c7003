"""Settings of every test: checks that JAX can make are on, randomness is fixed, nothing opens a window."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Nearly all that the tests wait for is compilation. Level 2 is what our own processes ask for; XLA's code generator
# from before fusion emitters takes a third less time again. Set XLA_FLAGS to test with another.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=2 --xla_cpu_use_fusion_emitters=false")

CHECKOUT = Path(__file__).resolve().parent.parent
HAS_CHECKOUT = (CHECKOUT / "experiments").is_dir() and (CHECKOUT / "benchmarks").is_dir()

hypothesis.settings.register_profile("besteffort", derandomize=True, deadline=None, database=None, max_examples=50)
hypothesis.settings.load_profile("besteffort")


def pytest_configure(config: pytest.Config) -> None:
    """Turns JAX's own checks on, after the shape and type checks have hooked the imports of `besteffort`."""
    import jax

    jax.config.update("jax_debug_key_reuse", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    cache = getattr(config, "cache", None)
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache.mkdir("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if HAS_CHECKOUT:
        sys.path.append(str(CHECKOUT))


@pytest.fixture(autouse=True, scope="module")
def _programs_end_with_their_module() -> Iterator[None]:
    """Lets go of compiled programs: each holds dozens of memory maps, and Linux allows a process 65,530 of them."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a checkout where there is none."""
    if HAS_CHECKOUT:
        return
    for item in items:
        if item.get_closest_marker("checkout"):
            item.add_marker(pytest.mark.skip(reason="needs the checkout's experiments/ and benchmarks/"))
