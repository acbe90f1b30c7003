"""Logs and profiles of people who do not know this package's words: log in, policy out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from besteffort.cli import main
from besteffort.errors import InputError
from besteffort.policy import load_policy
from besteffort.profile import load_profile, save_profile
from besteffort.runs.config import load_situation
from besteffort.runs.experiment import RunConfig, load_run
from besteffort.runs.own_logs import load_quickstart, with_deadlines, with_tasks_of
from besteffort.runs.quickstart import QuickstartPlan, make_plan
from besteffort.runs.untrained import default_policy
from besteffort.situation import Deadline
from besteffort.workload.traces import Trace, open_trace

LOG = "arrival_s,task,prompt_tokens,output_tokens\n" + "".join(
    f"{0.2 * i:.1f},{'code' if i % 4 == 0 else 'chat'},{50 + i},{5 + i % 30}\n" for i in range(80)
)
SITUATION = """
profile: {profile}
tasks: [{{name: chat, deadline: {{base_s: 0.7, per_token_s: 0.03}}}}, {{name: code}}]
cluster: {{replicas: 1, max_batch: 16}}
"""


def server_log(models: int = 2, n: int = 64) -> str:
    """Lone requests of a server of known costs: 0.1 s + 1 ms a prompt token to the first token, then 20 ms a token."""
    lines = []
    for i in range(n):
        prompt, output = 20 + 13 * (i % 7), 3 + i % 5
        first = 10.0 * i + (1 + i % models) * (0.1 + 0.001 * prompt)
        last = first + (1 + i % models) * 0.02 * (output - 1)
        row = {"arrival_s": 10.0 * i, "first_token_s": first, "last_token_s": last, "prompt_tokens": prompt}
        row |= {"output_tokens": output, "model": ("small", "large")[i % models], "task": ("chat", "code")[i // 2 % 2]}
        lines.append(json.dumps(row))
    return "\n".join(lines) + "\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "my_log.csv"
    path.write_text(LOG, encoding="utf-8")
    return path


@pytest.fixture
def own_profile(tmp_path: Path) -> Path:
    """A profile of two models whose tasks are `chat` and `code`."""
    text = json.dumps(
        {
            "format": 1,
            "name": "mine",
            "device": "a card",
            "models": [
                {"name": m, "decode": [[1, s]], "prefill": [[1, s]]} for m, s in (("small", 0.01), ("large", 0.03))
            ],
            "tasks": [
                {"name": t, "metric": "m", "source": "s", "quality_percent": q}
                for t, q in (("chat", [50.0, 75.0]), ("code", [20.0, 60.0]))
            ],
            "provenance": {
                part: {"kind": "measured", "source": "x"} for part in ("decode", "prefill", "slowdown", "quality")
            },
        }
    )
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="utf-8")
    return path


def opened(log: Path) -> Trace:
    return open_trace(log, load_situation("paper"))


def test_tasks_of_a_log_that_names_others(log: Path) -> None:
    taken = with_tasks_of(load_quickstart(None, None), [opened(log)])
    assert taken.situation.task_names == ("code", "chat")
    np.testing.assert_allclose(taken.situation.shares, [0.25, 0.75])
    code, chat = taken.situation.tasks
    assert (code.prompt_tokens, chat.prompt_tokens) == ((50, 126), (51, 129))
    assert code.deadline == Deadline(0.1, 0.015)
    known = load_profile("opt-a100").tasks
    mean = np.mean([task.quality_percent for task in known], axis=0)
    np.testing.assert_allclose(taken.situation.profile.tasks[-1].quality_percent, mean, atol=1e-4)
    assert taken.situation.profile.tasks[: len(known)] == known
    assert taken.config.tasks == taken.situation.tasks
    said = " ".join(taken.notes)
    for words in ("Tasks are the log's: code, chat.", "is assumed", "Deadlines are guesses, 0.1 s + 15 ms per token"):
        assert words in said


@pytest.mark.parametrize(
    "text", [LOG.replace("chat", "piqa").replace("code", "lambada"), LOG.replace(",task,", ",kind,")]
)
def test_known_tasks_or_none_change_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    given = load_quickstart(None, None)
    assert with_tasks_of(given, [opened(tmp_path / "log.csv")]) is given


def test_deadlines_that_are_asked_for(log: Path) -> None:
    taken = with_tasks_of(load_quickstart(None, None), [opened(log)])
    one = with_deadlines(taken, ["chat=0.5+0.02"])
    assert [task.deadline for task in one.situation.tasks] == [Deadline(0.1, 0.015), Deadline(0.5, 0.02)]
    assert any(note.startswith("Deadlines are guesses") for note in one.notes)
    all_of_them = with_deadlines(taken, ["2", "chat=0.5+0.02"])
    assert [task.deadline for task in all_of_them.situation.tasks] == [Deadline(2.0, 0.0), Deadline(0.5, 0.02)]
    assert not any(note.startswith("Deadlines are guesses") for note in all_of_them.notes)
    assert with_deadlines(taken, []) is taken


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("soon", "is no deadline; give seconds"),
        ("0", "is no deadline"),
        ("chat=-1", "is no deadline"),
        ("1e9", "is no deadline"),
        ("chat=1e+-", "is no deadline"),
        ("chart=1", "there is no task `chart`, did you mean `chat`?"),
    ],
)
def test_other_deadlines_are_refused(log: Path, text: str, words: str) -> None:
    taken = with_tasks_of(load_quickstart(None, None), [opened(log)])
    with pytest.raises(InputError) as caught:
        with_deadlines(taken, [text])
    assert words in str(caught.value)


def test_a_profile_serves_the_situation_beside_it(own_profile: Path) -> None:
    quick, _ = load_run("quickstart")
    alone = load_quickstart(None, str(own_profile))
    assert alone.situation.task_names == ("chat", "code")
    assert "Tasks are the profile's, chat, code" in alone.notes[0]
    beside = own_profile.with_suffix(".yaml")
    beside.write_text(SITUATION.format(profile=own_profile), encoding="utf-8")
    found = load_quickstart(None, str(own_profile))
    assert found.situation.tasks[0].deadline == Deadline(0.7, 0.03)
    assert found.situation.cluster.replicas == 1
    assert str(beside) in found.notes[0]
    for taken in (found, load_quickstart(str(beside), None)):
        assert (taken.config.training, taken.config.evaluation) == (quick.training, quick.evaluation)
        assert taken.situation.view == quick.view
    changed = load_quickstart(str(beside), None, changes={"cluster.replicas": 3}, changes_from="`--set`")
    assert changed.situation.cluster.replicas == 3


def test_a_file_with_a_training_of_its_own_keeps_it(small: Path) -> None:
    assert load_quickstart(str(small), None).config == load_run(small)[0]
    assert isinstance(load_quickstart("paper", None).config, RunConfig)
    assert load_quickstart(None, "laptop").config == load_run("laptop", profile="laptop")[0]


@pytest.mark.slow
def test_quickstart_takes_the_tasks_of_a_log(
    small: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "first"
    arguments = ["quickstart", "--config", str(small), "--trace", str(log), "--no-training", "--out", str(out)]
    assert main([*arguments, "--deadline", "chat=0.4+0.02"]) == 0
    told = capsys.readouterr().out
    assert "Tasks are the log's: code, chat." in told
    assert f"`--config {out / 'situation.yaml'} --trace {log}`" in told
    for name in ("policy", "policy-my_log"):
        policy = load_policy(out / f"{name}.safetensors")
        assert policy.tasks == ("code", "chat")
        assert policy.situation.tasks[1].deadline == Deadline(0.4, 0.02)
    again = load_situation(out / "situation.yaml")
    assert again.task_names == ("code", "chat")
    assert again.tasks[1].deadline == Deadline(0.4, 0.02)
    # What was written serves the other commands, with the same log.
    simulate = ["simulate", str(log), "--config", str(out / "situation.yaml"), "--out", str(tmp_path / "replay")]
    assert main([*simulate, "--router", str(out / "policy-my_log.safetensors")]) == 0


def test_a_server_log_becomes_a_plan_in_one_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, out = tmp_path / "served.jsonl", tmp_path / "mine"
    log.write_text(server_log(), encoding="utf-8")
    plans = []

    def planned(*arguments: Any, **options: Any) -> QuickstartPlan:
        plans.append(make_plan(*arguments, **options))
        raise InputError("This far.")

    monkeypatch.setattr("besteffort.runs.quickstart.make_plan", planned)
    quality = ["--quality", "chat=small:50,large:75", "--quality", "code=small:20,large:60"]
    changes = ["--set", "evaluation.requests=500", "--set", "evaluation.tuning_requests=500"]
    assert main(["quickstart", "--fit", str(log), *quality, *changes, "--deadline", "1+0.1", "--out", str(out)]) == 2
    told = capsys.readouterr().out
    assert "served.jsonl (log): 64 answered requests" in told
    assert f"Situation: {out / 'server.yaml'}" in told
    (plan,) = plans
    situation = plan.situation
    assert (situation.profile.model_names, situation.task_names) == (("small", "large"), ("chat", "code"))
    assert situation.profile.models[0].decode[0][1] == pytest.approx(0.02, rel=0.05)
    assert situation.profile.context_tokens is None
    assert situation.tasks[0].deadline == Deadline(1.0, 0.1)
    assert f"those of {out / 'server.yaml'}" in plan.taken[0]
    # What was asked for stands where it is read again, so no other file has to say it.
    assert load_situation(out / "server.yaml").tasks == situation.tasks
    assert not plan.own
    assert [stage.suffix for stage in plan.stages] == ["", "-served"]
    assert plan.stages[1].problems.keys() == {"dqn", "search"}
    assert load_situation(out / "server.yaml").task_names == ("chat", "code")
    assert default_policy(situation).models == ("small", "large")
    again = ["quickstart", "--fit", str(log), *changes, "--deadline", "1+0.1", "--out", str(out), "--resume"]
    assert main([*again, *quality]) == 2
    assert plans[1].situation == situation
    capsys.readouterr()
    quality[1] = "chat=small:55,large:75"
    assert main([*again, *quality]) == 2
    assert f"{out / 'server.json'}: the profile that was fitted here has other qualities" in capsys.readouterr().err
    assert len(plans) == 2


def test_counts_are_spread_over_the_tasks_of_a_log_beside_them(small: Path, log: Path, tmp_path: Path) -> None:
    counts = tmp_path / "counts.csv"
    counts.write_text("HashFunction,1,2\n" + "".join(f"f{i},{40 * (i % 2)},30\n" for i in range(4)), encoding="utf-8")
    plan = make_plan(load_quickstart(str(small), None), [counts, log], training=False)
    assert plan.situation.task_names == ("code", "chat")
    (halves, *_), *_ = plan.stages[1].evaluation_set.judged
    assert halves.tasks == ("code", "chat")
    assert set(halves.task.tolist()) == {0, 1}


def test_one_model_has_nothing_to_route(own_profile: Path) -> None:
    lone = load_profile(own_profile).select(["small"])
    save_profile(lone, own_profile)
    changes = {"evaluation.requests": 500, "evaluation.tuning_requests": 500, "evaluation.warm_up_s": 0.0}
    given = load_quickstart(None, str(own_profile), changes=changes, changes_from="`--set`")
    assert "nothing to route" in make_plan(given, training=False).taken[-1]


def test_fit_and_what_contradicts_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out = tmp_path / "served.jsonl", tmp_path / "mine"
    log.write_text(server_log(), encoding="utf-8")
    for arguments, words in (
        (["--fit", str(log), "--profile", "laptop"], "leave `--profile` and `--config` out"),
        (["--quality", "chat=70"], "`--quality` is of the models of `--fit`"),
        (["--name", "m"], "`--name` is of the models of `--fit`"),
        (["--fit", str(log), "--name", "m"], "the log names its models (large, small)"),
        (["--fit", str(log), "--quality", "chat=smal:50,large:75"], "the models are large, small"),
        (["--fit", str(log), "--quality", "chat=small:50"], "add `--quality chat=small:50,large:PERCENT`"),
        (["--fit", str(log), "--fit", str(log)], "the model `large` is in"),
        (["--fit", str(log)], "says nothing of their quality"),
        (["--fit", str(log), "--set", "evaluation.seeds=0"], "`evaluation.seeds` is 0"),
        (["--trace", str(log), "--limit", "0"], "`--limit` is 0"),
        (["--trace", str(log), "--columns", "arival=arrival_s"], "did you mean `arrival`"),
        (["--trace", str(log), "--deadline", "never"], "is no deadline"),
        (["--trace", str(log), "--from", "9", "--to", "8"], "the smaller number first"),
    ):
        assert main(["quickstart", *arguments, "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
        assert not out.exists()


def test_profile_fit_names_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "served.jsonl"
    log.write_text(server_log(), encoding="utf-8")
    out = tmp_path / "server.json"
    quality = ["--quality", "chat=small:50,large:75", "--quality", "code=small:20,large:60"]
    assert main(["profile", "fit", str(log), "--out", str(out), "--limit", "40", *quality]) == 0
    told = capsys.readouterr().out
    assert "served.jsonl (log): 40 answered requests" in told
    assert "models are `large`, `small`, by the column `model`" in told
    following = f"--config {tmp_path / 'server.yaml'} --trace {log} --limit 40 --out first-run"
    assert f"`besteffort quickstart {following}`" in told


def test_one_model_is_said_to_leave_nothing_to_route_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "served.jsonl"
    log.write_text(server_log(models=1), encoding="utf-8")
    assert main(["quickstart", "--fit", str(log), "--out", str(tmp_path / "mine")]) == 2
    said = capsys.readouterr().err
    assert "the log has one model, `small`, so there is nothing to route" in said
    assert f"`--fit {log} --fit OTHER_LOG`" in said
    assert not (tmp_path / "mine").exists()
    assert main(["profile", "fit", str(log), "--out", str(tmp_path / "server.json")]) == 0
    told = capsys.readouterr().out
    assert told.index("One model leaves nothing to route") < told.index("The second half of the log")
    assert "Next:" not in told


def test_options_on_reading_reach_simulate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("when,a,b\n" + "".join(f"{1000 * i},{50},{10}\n" for i in range(30)), encoding="utf-8")
    arguments = ["simulate", str(path), "--router", "deadline", "--columns", "arrival=when:ms,prompt=a,output=b"]
    arguments += ["--from", "5", "--to", "25", "--limit", "20", "--backend", "reference"]
    assert main([*arguments, "--out", str(tmp_path / "replay")]) == 0
    told = capsys.readouterr().out
    assert "odd.csv (columns): 15 requests over 14 s, 1/s" in told
    assert (tmp_path / "replay" / "requests.csv").read_text(encoding="utf-8").count("\n") == 16
