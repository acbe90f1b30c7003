"""The speed benchmark: turns are taken fairly, rivals do the same work, ratios compare what they say they do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

pytestmark = pytest.mark.checkout

CHECKOUT = Path(__file__).resolve().parents[2]


def test_cases_take_turns_and_speed_is_work_over_time() -> None:
    from benchmarks import timing

    clock, ran = [0.0], []

    def case(column: str, seconds: tuple[float, ...]) -> timing.Case:
        def run(number: int) -> None:
            ran.append((number, column))
            clock[0] += seconds[number]

        return timing.Case("row", column, 12, run, compile_s=0.5 if column == "a" else None)

    cases = [case("a", (1.0, 2.0, 4.0)), case("b", (3.0, 3.0, 3.0))]
    speeds = timing.measure(cases, 3, Console(quiet=True), clock=lambda: clock[0])
    assert ran == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
    assert speeds["row"]["a"] == timing.Speed(median=6.0, slowest=3.0, fastest=12.0, compile_s=0.5)
    assert speeds["row"]["b"] == timing.Speed(median=4.0, slowest=4.0, fastest=4.0)


def test_ratios_take_the_best_count_and_variants_share_rivals() -> None:
    from benchmarks.rivals import columns
    from benchmarks.simulator_speed import ratios
    from benchmarks.timing import Speed, Speeds

    def speed(rate: float) -> Speed:
        return Speed(rate, rate, rate)

    rivals = {name: speed(10.0 * (i + 1)) for i, name in enumerate(columns())}
    speeds: Speeds = {
        "load 1, random": {"64": speed(200.0), "256": speed(400.0), **rivals},
        "load 1, random; variant": {"64": speed(800.0)},
        "load 1, deadline": {"64": speed(100.0)},
    }
    expected = {name: 40.0 / (i + 1) for i, name in enumerate(columns())}
    found = ratios(speeds)
    assert set(found) == {"load 1, random", "load 1, random; variant"}
    assert found["load 1, random"] == pytest.approx(expected)
    assert found["load 1, random; variant"] == pytest.approx({name: 2 * ratio for name, ratio in expected.items()})


def test_rivals_serve_the_same_lists_alike() -> None:
    from benchmarks.compiled import scenarios
    from benchmarks.rivals import by_reference, by_simpy
    from benchmarks.simulator_speed import Size, jobs

    for name, lists in jobs(Size(requests=300), scenarios((0.9, 10.0))).items():
        for job in lists:
            reference, simpy = by_reference(job), by_simpy(job)
            assert reference.model.tolist() == simpy.model.tolist() == list(job.models), name
            assert reference.replica.tolist() == simpy.replica.tolist(), name
            np.testing.assert_allclose(reference.completion_s, simpy.completion_s, rtol=1e-12)


def test_rollouts_make_the_decisions_that_they_count() -> None:
    from benchmarks.compiled import Rollouts, scenarios

    scenario = scenarios((0.9,))[0]
    rollouts = Rollouts(decisions=1024, warm_steps=8)
    for router, environments in (("random", 64), ("deadline", 128)):
        case = rollouts.case(scenario, router, environments)
        assert (case.row, case.column, case.work) == (f"load 0.9, {router}", str(environments), 1024)
        state, models, reward = case.run(0)
        # 8 while warming up, then as many per environment as two runs hold: one to part the copies, one asked for.
        np.testing.assert_array_equal(state.index, 8 + 2 * 1024 // environments)
        assert len(np.unique(state.rate)) == environments
        assert np.asarray(reward).max() > 0
        assert models.shape == (environments,)


@pytest.mark.slow
def test_it_runs_and_writes(tmp_path: Path) -> None:
    pytest.importorskip("gymnax")
    out = tmp_path / "speed.json"
    command = [sys.executable, "-m", "benchmarks.simulator_speed", "--fast", "--out", str(out)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Headline, load 0.9, random router" in done.stdout
    result = json.loads(out.read_text())
    assert result["per_second"]["load 0.9, random"].keys() >= {"64", "reference", "SimPy"}
    assert result["per_second"]["gymnax CartPole"]["64"]["median"] > 0
    assert all(value > 0 for value in result["parts_ns"].values())
    limits = result["limits"]
    assert limits["bytes_per_decision"] > limits["state_bytes"] > 0  # each decision reads every seat
    assert 0 < limits["share_of_arithmetic"] < 1
    assert 0 < limits["share_of_bandwidth"] < 1
    assert 0 < limits["step_of_one_us"] < limits["step_us"]
    assert result["machine"]["packages"]["jax"]
