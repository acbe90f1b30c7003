"""Settings of every test: checks that JAX can make are on, randomness is fixed, nothing opens a window."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Nearly all that the tests wait for is compilation. Level 2 is what our own processes ask for; XLA's code generator
# from before fusion emitters takes a third less time again, and one thread per program a tenth, since there is a test
# on every core. Without LLVM's optimisations it is less than half of that, see `pytest_runtest_setup`. Set XLA_FLAGS to
# test with other flags, and with all optimisations of theirs.
FLAGS = (
    "--xla_backend_optimization_level=2 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
COMPILES_FAST = os.environ.setdefault("XLA_FLAGS", FLAGS) == FLAGS  # also in the processes that the tests start

CHECKOUT = Path(__file__).resolve().parent.parent
HAS_CHECKOUT = (CHECKOUT / "experiments").is_dir() and (CHECKOUT / "benchmarks").is_dir()

LONGEST = (
    "estimates/test_agreement.py",
    "simulator/test_environment.py",
    "simulator/test_exactness.py",
    "workload/test_arrivals.py",
    "learning/test_probes.py",
    "learning/test_train.py",
    "sweep/test_run.py",
    "benchmarks/test_simulator_speed.py",
    "evaluation/test_rollouts.py",
    "simulator/test_queueing.py",
    "opt/test_generation.py",
    "experiments/test_lab.py",
    "diagnosis/test_diagnose.py",
    "runs/test_quickstart.py",
    "laptop/test_models.py",
    "opt/test_engine.py",
    "profiling/test_measure.py",
    "docs/test_examples.py",
    "runs/test_training.py",
    "runs/test_own_logs.py",
    "workload/readers/test_fuzz.py",
    "sweep/test_plan.py",
    "profiling/test_fit.py",
    "evaluation/test_judging.py",
    "routers/test_backends.py",
    "evaluation/test_search.py",
    "estimates/test_encoding.py",
    "benchmarks/test_estimates_benchmark.py",
)
"""Modules that take longer than ten seconds of a core, the longest first: so no worker is left with one at the end."""

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
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if HAS_CHECKOUT:
        sys.path.append(str(CHECKOUT))
    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist, which would begin with the most numerous tests
        config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Compiles without LLVM's optimisations, here and in processes that are started, unless a test says `optimised`."""
    import jax

    fast = COMPILES_FAST and item.get_closest_marker("optimised") is None
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(fast))
    jax.config.update("jax_disable_most_optimizations", fast)


@pytest.fixture(autouse=True, scope="module")
def _programs_end_in_time() -> Iterator[None]:
    """Lets go of compiled programs: each holds some memory maps, and Linux allows a process 65,530 of them.

    No module adds more than 5,000, and 20,000 are four gigabytes. What is left is found by the modules after it, which
    share many a small program; and to let go of thousands of programs takes seconds.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") < 15_000:
        return
    import jax

    jax.clear_caches()
    gc.collect()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest modules first, and skips what needs a checkout where there is none."""
    place = {Path(__file__).parent / name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    if HAS_CHECKOUT:
        return
    for item in items:
        if item.get_closest_marker("checkout"):
            item.add_marker(pytest.mark.skip(reason="needs the checkout's experiments/ and benchmarks/"))


SMALL = """
profile: opt-a100
cluster: {replicas: 2, max_batch: 8, queue_capacity: 8}
tasks: [{name: piqa}, {name: arc_easy}]
training:
  config:
    decisions: 8192
    num_envs: 32
    rollout_length: 32
    buffer_length: 256
    batch_size: 64
    updates_per_rollout: 4
    log_interval: 2
    hidden_sizes: [8]
    ensemble_size: 2
  hyper: {target_interval: 256}
  history: 256
  search: {generations: 2, population: 4, lists: 1, requests: 60}
  selection_requests: 200
evaluation:
  loads: [0.5, 2.0]
  trace_loads: [1.0, 2.0]
  seeds: 2
  requests: 200
  tuning_seeds: 1
  tuning_requests: 100
  tuning_generations: 2
  tuning_population: 4
  warm_up_s: 0.1
"""


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration's file."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def made_once(name: str, make: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of a run share; the first one that needs it makes it, others wait."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path, made = base / f"shared-{name}", base / f"shared-{name}.made"
    with (base / f"shared-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(path, ignore_errors=True)  # of a worker that failed
            make(path)
            made.touch()
    return path


@pytest.fixture(scope="session")
def trained(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a training with two seeds; to be read only."""
    from besteffort.cli import main

    def train(out: Path) -> None:
        assert main(["train", str(small), "--seeds", "2", "--out", str(out)]) == 0

    return made_once("trained", train, tmp_path_factory)


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short trace in the schema of the Azure LLM traces: times, lengths, no tasks."""
    import numpy as np

    rng = np.random.default_rng(0)
    seconds = np.cumsum(rng.exponential(0.3, 120))
    rows = [
        f"2023-11-16 18:{int(second // 60):02d}:{second % 60:010.7f},{prompt},{output}"
        for second, prompt, output in zip(seconds, rng.integers(20, 400, 120), rng.integers(1, 40, 120), strict=True)
    ]
    path = tmp_path_factory.mktemp("trace") / "log.csv"
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n", encoding="utf-8")
    return path
