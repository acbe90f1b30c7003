"""The sweep benchmark: what it compares, which single runs it takes, and that what is scaled is said to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

pytestmark = pytest.mark.checkout


def write(out: Path, performance: dict[str, list[float]]) -> Path:
    out.mkdir()
    trials = [{"trial": name, "performance": values} for name, values in performance.items()]
    (out / "results.json").write_text(json.dumps({"trials": trials}), encoding="utf-8")
    return out


def test_single_runs_are_held_against_the_interval_of_their_trial(tmp_path: Path) -> None:
    from benchmarks.sweep import judged

    together = write(tmp_path / "together", {"0000": [0.7, 0.8, 0.9], "0001": [0.5, 0.5, 0.5], "0002": [0.1, 0.2, 0.3]})
    single = write(tmp_path / "single", {"0000": [0.75, 0.85, 0.9], "0001": [0.5, 0.5, 0.6]})
    found = judged(together, single)
    assert (found["trials"], found["single_run_within_the_trials_interval"], found["outside"]) == (2, 1, ["0001"])
    assert found["single_less_together_mean"] == pytest.approx(np.mean([0.1 / 3, 0.1 / 3]))


def test_trials_and_the_single_runs_among_them() -> None:
    from benchmarks.sweep import Size, spread
    from besteffort.sweep.plan import make_plan

    plan = make_plan(Size().sweep())
    assert len(plan.trials) == 64
    assert len(plan.programs) == 1
    assert len({json.dumps([trial.values, trial.config.training.seed]) for trial in plan.trials}) == 64
    few = spread(plan, 3)
    assert [trial.number for trial in few.trials] == [0, 32, 63]
    assert few.programs == ((0,), (32,), (63,))
    assert spread(plan, 64).trials == plan.trials


@pytest.mark.parametrize("measured", [64, 16])
def test_what_is_scaled_is_said_to_be(measured: int) -> None:
    from benchmarks.sweep import ONE, SINGLE, rows, table_of

    result: dict[str, Any] = {
        "trials": 64,
        "size": {"decisions": 1000},
        "seconds": {ONE: {"wall": 100.0, "processors": 150.0}, SINGLE: {"wall": 400.0, "processors": 750.0}},
        "single_runs": {"measured": measured, "scaled": measured < 64},
        "ratios": {"wall": 4.0, "processors": 5.0},
        "first_updates": {"updates": 128, "largest_difference": 2e-6},
        "judged": {"single_run_within_the_trials_interval": 63, "trials": 64},
    }
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table_of(result))
    assert ("single runs, 16 measured" in capture.get()) == (measured == 16)
    assert [(row.theirs, row.ratio) for row in rows(result)] == [
        (f"{seconds} s (single runs{', scaled' if measured == 16 else ''})", ratio)
        for seconds, ratio in ((400, 4.0), (750, 5.0))
    ]
