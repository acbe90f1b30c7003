"""Sweeps on a local Ray cluster of two workers, one of which is killed midway, beside the same on local processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from besteffort.errors import InputError
from besteffort.runs.backends import EarlyStopping, Local, Ray
from besteffort.sweep.plan import Axis, SweepConfig, SweepPlan, make_plan
from besteffort.sweep.run import ProgramProgress, _conclude_stopped, _entry, run_sweep
from tests import clusters

pytest.importorskip("ray")

pytestmark = clusters.WARNINGS


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    with clusters.head_alone(monkeypatch, tmp_path) as started:
        yield started


@pytest.fixture(scope="module")
def plan(small: Path) -> SweepPlan:
    """Two programs of two trials each."""
    axes = {
        "training.hyper.learning_rate": Axis(values=(1e-3, 1e-2)),
        "training.config.hidden_sizes": Axis(values=([16], [8])),
    }
    changes = {
        "training.config.ensemble_size": 1,
        "training.config.decisions": 16_384,
        "training.config.log_interval": 1,
    }
    return make_plan(SweepConfig(str(small), axes, changes))


def test_a_killed_worker_costs_nothing_but_time(plan: SweepPlan, cluster: Any, tmp_path: Path) -> None:
    workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    killed: list[str] = []

    def progress(latest: ProgramProgress) -> None:
        if latest.point >= 2 and not killed:
            killed.append(latest.program)
            cluster.remove_node(workers[0], allow_graceful=False)

    there = run_sweep(plan, tmp_path / "ray", on=Ray(address=cluster.address), progress=progress)
    assert len(killed) == 1
    assert not there.unfinished
    here = run_sweep(plan, tmp_path / "local", on=Local(2))
    for name in ("results.json", "trials.csv", "report.md"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert there.table == here.table


def test_early_stopping_compares_like_with_like(small: Path, tmp_path: Path) -> None:
    plan = make_plan(SweepConfig(str(small), {"reward.miss_penalty": Axis(values=(0.0, 0.5))}))
    with pytest.raises(InputError, match=r"`reward\.miss_penalty` changes by itself"):
        run_sweep(plan, tmp_path / "out", on=Ray(early=EarlyStopping()))
    assert not (tmp_path / "out").exists()


def test_a_stopped_trial_is_an_entry_that_says_why(plan: SweepPlan, tmp_path: Path) -> None:
    trial = plan.trials[0]
    (tmp_path / "trials" / trial.name).mkdir(parents=True)
    _conclude_stopped(tmp_path, [trial.name], ProgramProgress("000", 2, 5))
    entry = _entry(tmp_path, trial, {})
    assert (entry.status, entry.reason) == ("stopped", "it lagged behind after 2 of 5 log points")
