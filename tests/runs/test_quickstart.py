from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from besteffort.cli import main
from besteffort.errors import InputError
from besteffort.policy import load_policy
from besteffort.runs import quickstart
from besteffort.runs.own_logs import load_quickstart
from besteffort.runs.training import TrainedSeeds, TrainingProblem
from besteffort.runs.untrained import default_policy


@pytest.mark.slow
def test_quickstart_with_a_trace(small: Path, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "first"
    assert main(["quickstart", "--config", str(small), "--trace", str(trace), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "log.csv (azure_llm): 120 requests" in told
    assert "clipped: 0.00% of outputs" in told
    assert "upper bound" in told
    assert "Learned is" in told
    policies = [out / "policy.safetensors", out / "policy-log.safetensors"]
    assert [load_policy(path).tasks for path in policies] == [("piqa", "arc_easy")] * 2
    for name in ("dqn", "search", "dqn-log", "search-log"):
        trained = load_policy(out / name / "policy.safetensors")
        assert (trained.rule is not None) == name.startswith("search")
    for path in (out / "quickstart.png", out / "report.md", *policies):
        assert path.is_file()
        assert str(path) in told
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "mean load 2" in report
    assert "Trace log" in report
    assert "Exported (log)" in report


@pytest.mark.slow
def test_without_training_it_judges_the_policy_that_needs_none(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "untrained"
    assert main(["quickstart", "--config", str(small), "--no-training", "--out", str(out)]) == 0
    assert "Learned is untrained" in capsys.readouterr().out
    policy = load_policy(out / "policy.safetensors")
    assert policy.training == {"method": "none"}
    assert not [path for path in out.iterdir() if path.is_dir()]


@pytest.mark.slow
def test_what_is_left_is_judged_where_networks_diverge(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was searched and tuned until then is not lost, and the reader is told."""
    out = tmp_path / "first"
    rates = [f"--set=training.hyper.{name}=1e30" for name in ("learning_rate", "learning_rate_end")]
    assert main(["quickstart", "--config", str(small), *rates, "--out", str(out)]) == 0
    said = f"{out / 'dqn'} has no policy to judge. Training diverged: seed 0 has lost its finite weights by 2,048"
    assert said in capsys.readouterr().out
    assert said in (out / "report.md").read_text(encoding="utf-8")
    assert load_policy(out / "policy.safetensors").rule is not None
    assert not list((out / "dqn").glob("policy*"))


def fail(
    small: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    tuned: Callable[..., dict[str, object]],
    training: Callable[[], None],
) -> None:
    """A quickstart with another tuning and with a training of networks that fails."""

    def train(_: object, problem: TrainingProblem, *__: object, **___: object) -> TrainedSeeds:
        if problem.training.method == "dqn":
            training()
        return TrainedSeeds({0: default_policy(problem.situation)})

    monkeypatch.setattr(quickstart, "tune_on", tuned)
    monkeypatch.setattr(quickstart, "run_training", train)
    monkeypatch.setattr(quickstart, "compile_training", lambda _: None)
    plan = quickstart.make_plan(load_quickstart(str(small), None))
    with pytest.raises(InputError, match="It failed"):
        quickstart.quickstart(plan, out, progress=lambda _, __: lambda _: None)


def test_tuning_ends_where_a_training_fails(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rivals are tuned beside the trainings; nobody waits for them to end once there is nothing to hold them to."""
    begun, failed, generations = threading.Event(), threading.Event(), []

    def tuned(*_: object, check: Callable[[], None], **__: object) -> dict[str, object]:
        begun.set()
        assert failed.wait(60)
        for generation in range(10**9):
            check()
            generations.append(generation)
            time.sleep(0.01)
        return {}

    def training() -> None:
        assert begun.wait(60)
        failed.set()
        raise InputError("It failed.")

    fail(small, tmp_path, monkeypatch, tuned, training)
    assert len(generations) < 1_000


def test_nobody_waits_for_the_tuning_where_a_training_fails(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even for the generation that it is at."""
    begun, released = threading.Event(), threading.Event()

    def tuned(*_: object, **__: object) -> dict[str, object]:
        begun.set()
        released.wait(60)
        return {}

    def training() -> None:
        assert begun.wait(60)
        raise InputError("It failed.")

    fail(small, tmp_path, monkeypatch, tuned, training)
    assert not released.is_set()
    released.set()
