"""Whole sweeps on local processes: what they leave behind, killed and resumed, and trials that fail among others."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from besteffort.cli import main
from besteffort.errors import InputError
from besteffort.files import read_jsonl
from besteffort.learning.train import per_run, train
from besteffort.policy import load_policy
from besteffort.profile import load_profile, save_profile
from besteffort.runs.backends import Local
from besteffort.runs.processes import Job
from besteffort.runs.training import make_training_problem, run_keys
from besteffort.simulator.build import build
from besteffort.simulator.environment import ServingEnvironment
from besteffort.sweep.leaderboard import Leaderboard
from besteffort.sweep.plan import Axis, SweepConfig, SweepPlan, load_sweep, make_plan
from besteffort.sweep.run import ProgramProgress, run_sweep
from besteffort.weights import Weights

LR, REPLICAS = "training.hyper.learning_rate", "cluster.replicas"
DECISIONS = "training.config.decisions"

# Two programs that work, with more replicas than the base, the second of which finds what the first compiled, and two
# whose lists to judge on end within the warm-up (a load is relative to the replicas); with a learning rate that works
# and one that does not.
FILE = """
base: {base}
changes: {{training.config.ensemble_size: 1, evaluation.requests: 300}}
axes:
  cluster.replicas: [3, 90]
  training.config.decisions: [4096, 6144]
  training.hyper.learning_rate: [1.0e-3, 1.0e+30]
"""
FINISHED, FAILED, DIVERGED = ("0000", "0002"), ("0004", "0005", "0006", "0007"), ("0001", "0003")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of the programs: they find what they compiled in an earlier run of the tests."""
    directory = jax.config.jax_compilation_cache_dir or tmp_path_factory.mktemp("jax")
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(directory)}


@pytest.fixture(scope="module")
def file(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "sweep.yaml"
    path.write_text(FILE.format(base=small), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def killed(file: Path, cache: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose process was killed after its first program; its children end with it."""
    out = tmp_path_factory.mktemp("sweeps") / "out"
    command = [sys.executable, "-m", "besteffort.cli", "sweep", str(file), "--out", str(out), "--workers", "1"]
    process = subprocess.Popen(command, env=cache, stderr=subprocess.PIPE, text=True)
    while not (out / "trials" / "0000" / "outcome.json").exists() and process.poll() is None:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return out


Files = dict[Path, tuple[int, bytes]]


def files_of(out: Path, trials: tuple[str, ...]) -> Files:
    """When each file of the trials was written, and what it holds."""
    paths = [path for trial in trials for path in (out / "trials" / trial).rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@pytest.fixture(scope="module")
def resumed(file: Path, killed: Path, cache: dict[str, str]) -> tuple[Leaderboard, Files, list[ProgramProgress]]:
    """The killed sweep resumed: its outcome, what it found of its first program, and what it told."""
    found, latest = files_of(killed, ("0000", "0001")), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", cache["JAX_COMPILATION_CACHE_DIR"])
        plan = make_plan(load_sweep(file))
        board = run_sweep(plan, killed, resume=True, on=Local(1), progress=latest.append)
    return board, found, latest


def test_finished_trials_are_not_repeated(
    resumed: tuple[Leaderboard, Files, list[ProgramProgress]], killed: Path
) -> None:
    _, found, latest = resumed
    assert {path.name for path in found} >= {"policy.safetensors", "outcome.json", "metrics.csv"}
    assert files_of(killed, ("0000", "0001")) == found
    assert {each.program for each in latest} == {"001", "002", "003"}
    assert {each.program for each in latest if each.ended} == {"001", "002", "003"}
    told = [each for each in latest if each.program == "001" and not each.ended]
    assert [each.point for each in told] == list(range(1, told[0].points + 1))


def test_trials_that_fail_are_reported_and_the_others_go_on(
    resumed: tuple[Leaderboard, Files, list[ProgramProgress]], killed: Path
) -> None:
    board, *_ = resumed
    statuses = {entry.trial: entry.status for entry in board.entries}
    assert statuses == {
        **dict.fromkeys(FINISHED, "finished"),
        **dict.fromkeys(FAILED, "failed"),
        **dict.fromkeys(DIVERGED, "diverged"),
    }
    reasons = {entry.trial: entry.reason for entry in board.unfinished}
    assert "lost its finite weights by" in reasons["0001"]
    assert "all of it in `evaluation.warm_up_s`" in reasons["0004"]
    assert reasons["0004"].endswith(str(killed / "programs" / "002" / "log.txt"))
    report = board.report.read_text(encoding="utf-8")
    assert (
        "- 0001 (replicas 3, decisions 4096, learning_rate 1e+30, seed 0) diverged: lost its finite weights" in report
    )
    assert "- 0005 (replicas 90, decisions 4096, learning_rate 1e+30, seed 0) failed: The shortest list" in report


def test_every_trial_keeps_what_it_was_and_did(
    resumed: tuple[Leaderboard, Files, list[ProgramProgress]], killed: Path, file: Path
) -> None:
    plan = make_plan(load_sweep(file))
    for trial in plan.trials:
        directory = killed / "trials" / trial.name
        assert (directory / "config.yaml").exists()
        if trial.name in FINISHED:
            policy = load_policy(directory / "policy.safetensors")
            assert policy.training["hyper"]["learning_rate"] == trial.values[LR]
            assert policy.situation.cluster.replicas == trial.values[REPLICAS]
            records = read_jsonl(directory / "metrics.jsonl")
            assert records[-1]["decisions"] == policy.training["decisions_made"] == trial.values[DECISIONS]
            assert (directory / "tensorboard" / "seed-0").is_dir()
    assert not list(killed.rglob("checkpoint.npz"))  # of no use once trials are judged


def test_leaderboard_is_of_judged_performance(
    resumed: tuple[Leaderboard, Files, list[ProgramProgress]], killed: Path
) -> None:
    board, *_ = resumed
    outcomes = {
        trial: json.loads((killed / "trials" / trial / "outcome.json").read_text(encoding="utf-8"))
        for trial in FINISHED
    }
    means = {trial: float(np.mean(outcome["performance"])) for trial, outcome in outcomes.items()}
    best = max(means, key=means.__getitem__)
    assert board.table.focus == board.table.rows[0][0] == ("3, 4096, 0.001" if best == "0000" else "3, 6144, 0.001")
    assert 0.1 < means[best] < 1
    assert [len(outcome["performance"]) for outcome in outcomes.values()] == [2, 2]  # lists
    with (killed / "trials.csv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert [row["trial"] for row in rows] == [entry.trial for entry in board.entries]
    assert [row["status"] for row in rows] == [entry.status for entry in board.entries]
    assert {row["trial"]: float(row["performance"]) for row in rows if row["performance"]} == pytest.approx(means)
    assert float(rows[0][REPLICAS]) == 3
    assert board.picture.stat().st_size > 1000
    results = json.loads((killed / "results.json").read_text(encoding="utf-8"))
    assert results["trials"][0]["performance"] == outcomes["0000"]["performance"]


def test_another_sweep_is_not_resumed_here(
    resumed: tuple[Leaderboard, Files, list[ProgramProgress]],
    killed: Path,
    file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = file.with_name("other.yaml")
    other.write_text(file.read_text(encoding="utf-8") + "seed: 1\n", encoding="utf-8")
    assert main(["sweep", str(other), "--out", str(killed), "--resume"]) == 2
    assert "another sweep began here; give the same one to resume it" in capsys.readouterr().err


def test_a_program_that_is_stopped_early_leaves_no_checkpoint(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(on: Local, jobs: Sequence[Job], **_: object) -> dict[str, None]:
        for name in ("checkpoint.npz", "previous-checkpoint.npz", "0-checkpoint.npz"):
            (jobs[0].log.parent / name).touch()
        return {job.name: None for job in jobs}

    monkeypatch.setattr("besteffort.sweep.run.run_on", stop)
    with pytest.raises(InputError, match="no trial finished; the first one stopped"):
        run_sweep(make_plan(SweepConfig(str(small), {LR: Axis(values=(1e-3,))})), tmp_path / "out")
    assert not list(tmp_path.rglob("*checkpoint.npz"))


def test_a_sweep_is_not_resumed_with_another_profile(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trials would be of two profiles. A profile that says the same in other words is the same."""
    monkeypatch.setattr("besteffort.sweep.run.run_on", lambda on, jobs, **_: {job.name: 1 for job in jobs})
    monkeypatch.setattr("besteffort.sweep.run._why", lambda job, status: "it ended")
    profile, mine = load_profile("opt-a100"), tmp_path / "mine.json"
    save_profile(profile, mine)
    (tmp_path / "base.yaml").write_text(
        small.read_text(encoding="utf-8").replace("profile: opt-a100", f"profile: {mine}"), encoding="utf-8"
    )
    sweep = SweepConfig(str(tmp_path / "base.yaml"), {LR: Axis(values=(1e-3,))})
    with pytest.raises(InputError, match="no trial finished"):
        run_sweep(make_plan(sweep), tmp_path / "out")
    mine.write_text(json.dumps(json.loads(mine.read_text(encoding="utf-8"))), encoding="utf-8")
    with pytest.raises(InputError, match="no trial finished"):
        run_sweep(make_plan(sweep), tmp_path / "out", resume=True)
    save_profile(dataclasses.replace(profile, device="another"), mine)
    with pytest.raises(InputError, match=r"mine\.json: this is not what it was when the sweep in .*out began"):
        run_sweep(make_plan(sweep), tmp_path / "out", resume=True)


def test_a_sweep_is_not_resumed_in_another_environment(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trials would be of two."""
    monkeypatch.setattr("besteffort.sweep.run.run_on", lambda on, jobs, **_: {job.name: 1 for job in jobs})
    monkeypatch.setattr("besteffort.sweep.run._why", lambda job, status: "it ended")
    plan = make_plan(SweepConfig(str(small), {LR: Axis(values=(1e-3,))}))
    for resume in (False, True):
        with pytest.raises(InputError, match="no trial finished"):
            run_sweep(plan, tmp_path / "out", resume=resume)
    monkeypatch.setattr(ServingEnvironment, "version", "another")
    with pytest.raises(InputError, match=r"the sweep began with version \S+ of the environment, and this is another"):
        run_sweep(plan, tmp_path / "out", resume=True)


def first_updates(plan: SweepPlan, trials: slice) -> tuple[Weights, ...]:
    """Networks after the first hundred updates, of trials that train side by side."""
    problems = [make_training_problem(each.config.build(), each.config.training) for each in plan.trials[trials]]
    built = [build(each.situation, each.workload, history=each.training.history) for each in problems]
    return train(
        ServingEnvironment(built[0][0]),
        per_run([params for _, params in built]),
        problems[0].features,
        problems[0].training.config,
        jax.tree.map(lambda *each: np.array(each), *(each.training.numbers() for each in problems)),
        run_keys([each.training.seed for each in problems]),
    ).weights


def test_first_updates_equal_those_of_single_runs(small: Path) -> None:
    """The target is the network itself and its average the last one, so that what is compared has moved far."""
    changes = {
        "training.config.ensemble_size": 1,
        "training.config.decisions": 1024,
        "training.config.log_interval": 1,
        "training.config.updates_per_rollout": 100,
        "training.hyper.target_interval": 16,
        "training.hyper.tau": 1.0,
    }
    axes = {
        LR: Axis(values=(1e-3, 5e-3)),
        "training.hyper.discount": Axis(values=(0.9, 1.0)),
        "tasks.piqa.weight": Axis(values=(1.0, 3.0)),
    }
    plan = make_plan(SweepConfig(str(small), axes, changes, seeds=1))
    assert len(plan.trials) == 8
    assert len(plan.programs) == 1
    together = first_updates(plan, slice(None))
    apart: list[Weights] = [first_updates(plan, slice(run, run + 1))[0] for run in range(len(plan.trials))]
    for one, other in zip(together, apart, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), one, other)
    # A setting's neighbours are far away.
    final = np.stack([weights[-1][0] for weights in together])
    distances = np.abs(final[:, None] - final[None]).max(axis=(2, 3))
    assert distances[~np.eye(len(final), dtype=bool)].min() > 1e-3


def test_what_does_not_fit_stops_before_anything_is_compiled(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[str] = []

    def hear(event: str, seconds: float, **about: str | int) -> None:
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(hear)
    for text in (
        "sample: 2\naxes: {training.hyper.discount: [1.0]}",
        "axes: {training.config.batch_size: [many]}",
        "axes: {training.hyper.discount: {uniform: [0.5, 1.5]}}",
        "axes: {tasks.*.weight: [1.0], tasks.piqa.weight: [2.0]}",
    ):
        path = tmp_path / "bad.yaml"
        path.write_text(f"base: {small}\n{text}\n", encoding="utf-8")
        assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    jax.monitoring.unregister_event_duration_listener(hear)
    assert not [event for event in events if "backend_compile" in event]
