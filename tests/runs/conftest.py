"""A run that takes a few seconds, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from besteffort.cli import main

SMALL = """
profile: opt-a100
cluster: {replicas: 2, max_batch: 8, queue_capacity: 8}
tasks: [{name: piqa}, {name: arc_easy}]
training:
  config:
    {decisions: 8192, envs: 32, chunk: 32, ring: 256, batch: 64, updates: 4, log_chunks: 2, hidden: [8], committee: 2}
  hyper: {target_interval: 256}
  history: 256
  selection_requests: 200
evaluation:
  loads: [0.5, 2.0]
  trace_loads: [1.0, 2.0]
  seeds: 2
  requests: 200
  tuning_seeds: 1
  tuning_requests: 100
  warm_up_s: 0.1
"""


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration's file."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a training with two seeds."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    assert main(["train", str(small), "--seeds", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short request log in the schema of the Azure LLM traces: times, lengths, no tasks."""
    rng = np.random.default_rng(0)
    seconds = np.cumsum(rng.exponential(0.3, 120))
    rows = [
        f"2023-11-16 18:{int(second // 60):02d}:{second % 60:010.7f},{prompt},{output}"
        for second, prompt, output in zip(seconds, rng.integers(20, 400, 120), rng.integers(1, 40, 120), strict=True)
    ]
    path = tmp_path_factory.mktemp("trace") / "log.csv"
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n", encoding="utf-8")
    return path
