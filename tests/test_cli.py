"""The command line as its user meets it: help, and one sentence for every mistake."""

from __future__ import annotations

import csv
import dataclasses
import errno
import functools
import gzip
import importlib.util
import itertools
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from besteffort import cli, listing
from besteffort.cli import COMMANDS, GROUPS, main
from besteffort.diagnosis.diagnose import Diagnosis
from besteffort.diagnosis.findings import Finding
from besteffort.evaluation import results as evaluation_results
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.statistics import mean_interval
from besteffort.observation import default_features
from besteffort.policy import Policy, save_policy
from besteffort.profile import save_profile
from besteffort.routers import ROUTERS
from besteffort.runs import quickstart
from besteffort.runs.config import load_situation, parse_changes
from besteffort.runs.experiment import TrainingConfig, load_run
from besteffort.runs.training import TrainedSeeds, example_policy, make_training_problem
from besteffort.runs.untrained import default_policy
from besteffort.situation import Origin, Situation, Tenant
from besteffort.sweep.leaderboard import Entry, Leaderboard
from besteffort.sweep.plan import load_sweep
from besteffort.version import __version__

REQUESTS = "arrival_s,task,prompt_tokens,output_tokens\n0,piqa,100,10\n0.1,lambada,100,20\n0.2,piqa,50,3\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.1,10,5\n2023-11-16 18:00:00.2,10,5\n"
CONFIG = "profile: opt-a100\ntasks: [{name: piqa}]\n"


@pytest.fixture(scope="module")
def situation() -> Situation:
    return load_situation("paper")


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return written(tmp_path / "requests.csv", REQUESTS)


@pytest.fixture
def policy(tmp_path: Path, situation: Situation) -> Path:
    """A policy file with random weights."""
    path = tmp_path / "policy.safetensors"
    save_policy(random_policy(situation), path)
    return path


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command with `--out` a new directory; the sentence with which it is refused before anything is written."""

    def run(*arguments: str | Path) -> str:
        out = tmp_path / "out"
        assert main([*map(str, arguments), "--out", str(out)]) == 2
        assert not out.exists()
        return sentence(capsys)

    return run


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    assert said.err.startswith("besteffort: ")
    assert said.err.count("\n") == 1
    assert said.err.endswith(".\n")
    assert "Traceback" not in said.err + said.out
    return said.err


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def random_policy(situation: Situation, names: tuple[str, ...] = ("task", "batch_sizes", "arrival_rate")) -> Policy:
    rng = np.random.default_rng(0)
    situation = dataclasses.replace(situation, view=dataclasses.replace(situation.view, features=names))
    features = default_features(len(situation.tasks), 3, 4, 32, 200.0, names)
    sizes = [sum(feature.size for feature in features), 8, 3]
    return Policy(
        situation=situation,
        features=features,
        weights=tuple((rng.normal(size=(n, m)), rng.normal(size=m)) for n, m in itertools.pairwise(sizes)),
    )


@pytest.mark.parametrize("command", [[], ["quickstart"], ["train"], ["evaluate"], ["simulate"], ["policy"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([*command, "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert "besteffort" in text
    if command in (["quickstart"], ["train"], ["evaluate"], ["simulate"]):
        assert "--out" in text


def test_help_is_fast_because_nothing_heavy_is_imported() -> None:
    code = "import sys, besteffort.cli; print(*{'jax', 'matplotlib', 'pydantic'}.intersection(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_module_exits_with_the_status(tmp_path: Path) -> None:
    """Through the interpreter, as the console script does."""
    arguments = ["-m", "besteffort.cli", "policy", "show", str(tmp_path / "none.safetensors")]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    pattern = r"besteffort: .*none\.safetensors: there is no such policy file; check the path\.\n"
    assert re.fullmatch(pattern, done.stderr)


@pytest.mark.skipif(
    any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)), reason="CUDA may be there"
)
def test_a_platform_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    """Through the interpreter, since JAX is in use here."""
    requests = tmp_path / "own.csv"
    requests.write_text("arrival_s,task,prompt_tokens,output_tokens\n0.1,piqa,100,20\n0.2,piqa,100,20\n")
    arguments = ["-m", "besteffort", "simulate", str(requests), "--router", "deadline", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("besteffort: JAX finds no device of the platform `cuda`")
    assert "Traceback" not in done.stderr


def test_an_interrupt_as_the_process_ends_does_not_change_its_status() -> None:
    ends = "signal.raise_signal(signal.SIGINT); print('whole')"
    code = f"import signal, sys; from besteffort.__main__ import main; sys.argv[1:] = ['list']; main(); {ends}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "whole"), ended.stderr


def test_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("besteffort.policy.load_policy", interrupt)
    assert main(["policy", "show", "x.safetensors"]) == 130
    assert capsys.readouterr().err == "besteffort: interrupted; what was written stays.\n"


def test_policy_show(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", str(policy)]) == 0
    text = capsys.readouterr().out
    for word in ("opt-125m, opt-1.3b, opt-6.7b", "lambada", "batch_sizes (3, linear", "8 x 8 x 3", "opt-a100"):
        assert word in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("profile: opt-a100\ntasks: [{name: piqa, shar: 2.0}]\n", ["shar", "did you mean `share`?"]),
        ("tasks: [{name: piqa}]\n", ["`profile` is missing", "add it"]),
        ("profile: opt-a100\ntasks: [{name: sums}]\n", ["sums", "piqa"]),
        (CONFIG + "cluster: {replicas: 0}\n", ["`cluster.replicas` is 0", "greater than or equal to 1"]),
        (CONFIG + "training: {sed: 1}\n", ["`training.sed`", "did you mean `seed"]),
        (CONFIG + "training: {hyper: {tau: 1.5}}\n", ["`tau` is 1.5", "from 0 to 1"]),
        (CONFIG + "training: {hyper: {tua: 0.5}}\n", ["`training.hyper.tua`", "did you mean `tau`?"]),
        (
            CONFIG + "training: {config: {buffer_length: 100}}\n",
            ["`buffer_length` is 100", "multiple of `rollout_length`"],
        ),
        (CONFIG + "evaluation: {loads: [2.0, 1.0]}\n", ["`loads` is [2.0, 1.0]", "smallest first"]),
        (CONFIG + "evaluation: {seeds: many}\n", ["`evaluation.seeds`", "many", "integer"]),
        ("profile: [\n", ["line", "mend the YAML"]),
    ],
)
def test_configuration(refused: Callable[..., str], tmp_path: Path, text: str, words: list[str]) -> None:
    path = written(tmp_path / "bad.yaml", text)
    said = refused("train", path)
    assert str(path) in said
    assert all(word in said for word in words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data["models"][0]["decode"].__setitem__(1, [2, -0.001]), ["decode", "opt-125m"]),
        (lambda data: data["models"][0]["decode"].__setitem__(-1, [9999, 1e-9]), ["decode", "opt-125m"]),
        (lambda data: data["tasks"][0]["quality_percent"].__setitem__(0, 140.0), ["quality_percent", "140"]),
        (lambda data: data["models"][0].pop("prefill"), ["prefill", "missing"]),
        (lambda data: data.__setitem__("colour", "red"), ["colour", "is not a known field"]),
    ],
)
def test_profile(
    refused: Callable[..., str],
    tmp_path: Path,
    situation: Situation,
    change: Callable[[dict[str, Any]], object],
    words: list[str],
) -> None:
    path = tmp_path / "profile.json"
    save_profile(situation.profile, path)
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    said = refused("quickstart", "--profile", path)
    assert str(path) in said
    assert all(word in said for word in words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (REQUESTS.replace("0.2,piqa", "0.05,piqa"), ["line 4", "`arrival_s` goes back in time", "sort"]),
        ("", ["the file is empty"]),
        ("arrival_s,task,prompt_tokens,output_tokens\n", ["no rows below its header"]),
        (REQUESTS[:-4], ["cut short"]),
        (REQUESTS.replace(",20\n", ",many\n"), ["line 3", "`output_tokens` is `many`"]),
        ("a,b\n1,2\n", ["fits no known trace format"]),
    ],
)
def test_trace(refused: Callable[..., str], tmp_path: Path, policy: Path, text: str, words: list[str]) -> None:
    path = written(tmp_path / "trace.csv", text)
    for command in (
        ["simulate", path, "--router", "deadline"],
        ["quickstart", "--trace", path],
        ["train", "paper", "--trace", path],
        ["evaluate", policy, "--trace", path],
    ):
        said = refused(*command)
        assert str(path) in said
        assert all(word in said for word in words)


def test_tasks_that_the_situation_lacks(refused: Callable[..., str], tmp_path: Path, policy: Path) -> None:
    # A quickstart takes them, see tests/runs/test_own_logs.py.
    path = written(tmp_path / "trace.csv", REQUESTS.replace("lambada", "sums"))
    for command in (
        ["simulate", path, "--router", "deadline"],
        ["train", "paper", "--trace", path],
        ["evaluate", policy, "--trace", path],
    ):
        said = refused(*command)
        assert all(word in said for word in (str(path), "task `sums`", "rename it", "quickstart --trace"))


def test_truncated_gzip_trace(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(AZURE.encode())[:-9])
    said = refused("quickstart", "--trace", path)
    assert f"{path}: the gzip stream ends early" in said


def test_trace_too_short_to_halve(refused: Callable[..., str], tmp_path: Path) -> None:
    path = written(tmp_path / "trace.csv", AZURE)
    assert "at least four" in refused("quickstart", "--trace", path)


def renamed(parts: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    """Models or tasks, the first under another name."""
    return (dataclasses.replace(parts[0], name=name), *parts[1:])


@pytest.mark.parametrize("others", [("models", "opt-30b"), ("tasks", "sums")])
def test_policy_for_others(
    refused: Callable[..., str], tmp_path: Path, requests: Path, situation: Situation, others: tuple[str, str]
) -> None:
    field, name = others
    profile = dataclasses.replace(situation.profile, **{field: renamed(getattr(situation.profile, field), name)})
    tasks = renamed(situation.tasks, name) if field == "tasks" else situation.tasks
    path = tmp_path / "other.safetensors"
    save_policy(random_policy(dataclasses.replace(situation, profile=profile, tasks=tasks)), path)
    for command in (
        ["evaluate", path],
        ["simulate", requests, "--router", path],
        ["train", "paper", "--from", path],
    ):
        said = refused(*command)
        assert str(path) in said
        assert f"trained for the {field} {name}" in said


def test_policy_with_other_features_routes(
    tmp_path: Path, requests: Path, situation: Situation, capsys: pytest.CaptureFixture[str]
) -> None:
    """`view.features` is what would be trained. That tables are left is said."""
    path = tmp_path / "other.safetensors"
    save_policy(random_policy(situation, ("task", "batch_sizes", "deadline_s")), path)
    out = tmp_path / "out"
    beyond = ["--set", "cluster.max_batch=65"]
    play = ["simulate", str(requests), "--router", str(path), "--backend", "reference", "--out", str(out)]
    assert main([*play, *beyond]) == 0
    assert "decode table of opt-125m ends at 64 requests, batches at 65" in capsys.readouterr().out.replace("\n", " ")
    assert len((out / "requests.csv").read_text(encoding="utf-8").splitlines()) == 4


def test_policy_cut_short_or_edited(
    refused: Callable[..., str], policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = policy.read_bytes()
    policy.write_bytes(whole[:-5])
    assert f"{policy}: not a whole policy file" in refused("evaluate", policy)
    edited = bytearray(whole)
    edited[-3] ^= 1
    policy.write_bytes(bytes(edited))
    assert f"{policy}: weights or metadata were changed" in refused("evaluate", policy)
    assert main(["policy", "show", str(policy)]) == 2
    assert "export the policy again" in sentence(capsys)


def test_directory_that_exists(
    tmp_path: Path, policy: Path, requests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before anything is computed, and what is there stays."""
    out = tmp_path / "taken"
    out.mkdir()
    kept = written(out / "thesis.tex", "three years")
    for command in (
        ["quickstart"],
        ["train", "paper"],
        ["evaluate", str(policy)],
        ["simulate", str(requests), "--router", "deadline"],
    ):
        assert main([*command, "--out", str(out)]) == 2
        assert f"{out}: the directory exists and is not empty; name another one or remove it first" in sentence(capsys)
    assert kept.read_text(encoding="utf-8") == "three years"
    assert list(out.iterdir()) == [kept]


def test_nothing_to_resume(refused: Callable[..., str]) -> None:
    assert "there is no run to resume here" in refused("train", "paper", "--resume")


@pytest.mark.parametrize("seeds", ["0", "-1"])
def test_seeds_out_of_range(refused: Callable[..., str], seeds: str) -> None:
    assert f"`--seeds` is {seeds}; give a number from 1 to 65,536." in refused("train", "paper", "--seeds", seeds)


def test_full_disk_keeps_what_was_computed(
    tmp_path: Path, requests: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second file does not fit any more: one sentence, and the first is whole."""
    synced = os.fsync
    files = iter(range(100))

    def full(descriptor: int) -> None:
        if next(files) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out"
    assert main(["simulate", str(requests), "--router", "deadline", "--backend", "reference", "--out", str(out)]) == 2
    said = sentence(capsys)
    assert f"{out / 'summary.json'}: cannot write it, no space left on device; free some space" in said
    assert len((out / "requests.csv").read_text(encoding="utf-8").splitlines()) == 4
    assert [path.name for path in out.iterdir()] == ["requests.csv"]


def test_unknown_profile(refused: Callable[..., str]) -> None:
    said = refused("quickstart", "--profile", "opt-tpu")
    assert "opt-tpu" in said
    assert "opt-a100" in said


def interpreter(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "besteffort", *arguments], capture_output=True, text=True, check=False)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"besteffort {__version__}\n"
    done = interpreter("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"besteffort {__version__}\n", "")


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as leaving:
        main([*command.split(), "--help"])
    assert leaving.value.code == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


@pytest.mark.parametrize("command", ["", *GROUPS, *(name for name in COMMANDS if name != "reproduce")])
def test_every_help_fits_80_columns_and_ends_with_an_example(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(command, capsys)
    *lines, heading, example = text.splitlines()
    assert heading == "Example:"
    assert example.startswith(f"  besteffort {command}")
    assert example[2:] in {each.example for each in COMMANDS.values()}
    assert max(map(len, [*lines, example])) <= 80
    assert "\x1b" not in text
    assert "{None}" not in text
    assert not re.search(r"\(default: *\)|None", text)


def test_help_of_columns_names_what_a_log_may_say(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("simulate", capsys)
    for field in ("task", "origin", "tenant", "model", "limit", "cached"):
        assert f"`{field}`" in text


def test_top_level_help_lists_commands_and_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("", capsys)
    for name in COMMANDS:
        assert f"• {name.split()[0]} " in text
    for words in ("README.md", "docs/", "besteffort --version", "besteffort COMMAND --help"):
        assert words in text


@pytest.mark.checkout
def test_help_of_reproduce(capsys: pytest.CaptureFixture[str]) -> None:
    assert help_of("reproduce", capsys).endswith(f"Example:\n  {COMMANDS['reproduce'].example}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_in_the_file_of_its_first_word(name: str) -> None:
    assert COMMANDS[name].call.__module__ == f"besteffort.commands.{name.split()[0]}"


@pytest.mark.parametrize("name", COMMANDS)
def test_example_parses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches the command with options that fit it, and what it names of ours is there."""
    if name == "reproduce":
        pytest.importorskip("experiments.__main__")
        from experiments.__main__ import plan, run_command

        original: Callable[..., Any] = run_command
    else:
        original = COMMANDS[name].call
    called: list[dict[str, Any]] = []

    @functools.wraps(original)
    def stub(*given: Any, **named: Any) -> None:
        assert not given
        called.append(named)

    monkeypatch.setitem(COMMANDS, name, dataclasses.replace(COMMANDS[name], call=stub))
    monkeypatch.setattr(cli, "reproduce_command", lambda: stub)
    program, *arguments = shlex.split(COMMANDS[name].example)
    assert program == "besteffort"
    assert " ".join(arguments).startswith(name)
    assert main(arguments) == 0
    (named,) = called
    if name == "reproduce":
        assert plan(named["names"]) == named["names"]
    elif name == "sweep":
        assert load_sweep(named["file"], changes=parse_changes(named["changes"].set)).changes
    elif "changes" in named:
        load_run(named["config"] or "quickstart", changes=parse_changes(named["changes"].set))


def test_list_names_everything_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for words in (
        "Configurations\n",
        "  paper       The default situation",
        "  priced ",
        "  learning_rate  ",
        "opt-a100",
    ):
        assert words in text
    for kind, find in listing.KINDS.items():
        if kind != "experiments":
            assert all(name and meaning for name, meaning in find())


def test_list_of_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "routers", "--quiet"]) == 0
    assert capsys.readouterr().out.split() == list(ROUTERS)
    assert main(["list", "routers"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("static ")
    assert "Takes price, reserve, width." in text


@pytest.mark.checkout
def test_list_reads_experiments_without_running_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {"stable_load", "fit_vllm"} <= {name for name, meaning in listing.experiments() if meaning}
    assert not {"lab", "__main__"} & {name for name, _ in listing.experiments()}
    (tmp_path / "experiments").mkdir()
    for name in ("__main__", "mine"):
        text = f'"""A question\nin a sentence.\n\n    python -m experiments.{name}\n"""\n1 / 0\n'
        written(tmp_path / "experiments" / f"{name}.py", text)
    monkeypatch.setattr(listing, "CHECKOUT", tmp_path)
    assert main(["list", "experiments", "--json"]) == 0
    assert {"name": "mine", "description": "A question in a sentence."} in json.loads(capsys.readouterr().out)[
        "experiments"
    ]


def test_list_without_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listing, "CHECKOUT", tmp_path)
    assert main(["list", "--json"]) == 0
    assert "experiments" not in json.loads(capsys.readouterr().out)
    assert main(["list", "experiments"]) == 2
    assert "clone it first" in sentence(capsys)


def test_list_needs_no_jax() -> None:
    code = (
        "import sys; from besteffort.cli import main; main(['list', '--quiet']); "
        "print(*{'jax', 'matplotlib', 'scipy'}.intersection(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one JSON document that a command printed, and nothing else."""
    said = capsys.readouterr()
    assert said.err == ""
    found: dict[str, Any] = json.loads(said.out)
    assert found["besteffort"] == __version__
    assert {"command", "tables", "notes", "files"} <= found.keys()
    return found


def test_json_of_simulate(tmp_path: Path, requests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["simulate", str(requests), "--router", "deadline", "--backend", "reference", "--out", str(out), "--json"]
    assert main(command) == 0
    found = document(capsys)
    assert found["command"] == "simulate"
    assert found["files"] == {"per_request": str(out / "requests.csv"), "summary": str(out / "summary.json")}
    assert all(Path(file).is_file() for file in found["files"].values())
    assert len(found["notes"]) == 1
    ((row,),) = (table["rows"] for table in found["tables"])
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert row["name"] == summary["router"] == "deadline"
    assert row["latency_p50_s"] == {"mean": summary["latency_p50_s"], "half_width": None}
    assert row["performance"]["mean"] == summary["performance"]


def test_quiet_prints_the_files_only(tmp_path: Path, requests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["simulate", str(requests), "--router", "deadline", "--backend", "reference", "--out", str(out)]
    assert main([*command, "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out == f"Per request: {out / 'requests.csv'}\nSummary: {out / 'summary.json'}\n"


def test_quiet_ends_with_its_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "sweeps", "--quiet"]) == 0
    with pytest.warns(UserWarning, match="loud"):
        warnings.warn("loud", stacklevel=1)
    assert logging.root.manager.disable < logging.WARNING


def test_text_for_no_terminal_is_neither_coloured_nor_cut(
    tmp_path: Path, requests: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    out = tmp_path / "out"
    assert main(["simulate", str(requests), "--router", "deadline", "--backend", "reference", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "Performance (%)  SLO attainment (%)  1 s windows at 96% of peak (%)" in text
    assert "\x1b" not in text


def test_json_of_policy(policy: Path, situation: Situation, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", str(policy), "--json"]) == 0
    found = document(capsys)
    assert found["command"] == "policy show"
    assert found["models"] == list(situation.profile.model_names)
    assert found["layers"] == [8, 8, 3]
    assert found["deadlines"]["piqa"] == {"base_s": 0.1, "per_token_s": 0.015}
    assert found["cluster"]["replicas"] == 4
    assert found["profile"] == {"name": "opt-a100", "digest": situation.profile.digest()}
    assert "origins" not in found
    assert "tenants" not in found


@pytest.mark.parametrize(
    ("added", "said"),
    [(0.0, "its rule, to which its networks add nothing"), (0.5, "its rule and networks"), (None, "its rule")],
)
def test_a_policy_shows_what_decides(
    situation: Situation, added: float | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network of which no share was kept has the shape of any other."""
    policy, path = default_policy(situation), tmp_path / "policy.safetensors"
    if added is not None:
        view = dataclasses.replace(situation.view, features=("task", "value"))
        problem = make_training_problem(dataclasses.replace(situation, view=view), TrainingConfig())
        policy = dataclasses.replace(example_policy(problem), training={"added": added})
    save_policy(policy, path)
    assert main(["policy", "show", str(path)]) == 0
    assert re.search(rf"^decides by +{said}$", capsys.readouterr().out, re.M)
    save_policy(random_policy(situation), path)
    assert main(["policy", "show", str(path), "--json"]) == 0
    assert document(capsys)["decides_by"] == "its networks"


def test_a_policy_shows_its_origins(situation: Situation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.safetensors"
    save_policy(random_policy(dataclasses.replace(situation, origins=(Origin("near"), Origin("far")))), path)
    assert main(["policy", "show", str(path)]) == 0
    assert re.search(r"^origins +near, far$", capsys.readouterr().out, re.M)
    assert main(["policy", "show", str(path), "--json"]) == 0
    assert document(capsys)["origins"] == ["near", "far"]


def test_a_policy_shows_its_tenants(situation: Situation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.safetensors"
    save_policy(random_policy(dataclasses.replace(situation, tenants=(Tenant("gold", 3.0), Tenant("lead")))), path)
    assert main(["policy", "show", str(path)]) == 0
    assert re.search(r"^tenants +gold \(weight 3\), lead \(weight 1\)$", capsys.readouterr().out, re.M)
    assert main(["policy", "show", str(path), "--json"]) == 0
    assert document(capsys)["tenants"][0] == {"name": "gold", "weight": 3.0, "share": 1.0}


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> Table:
    """Commands that would compute for minutes write nothing, and report this table."""
    cells = (mean_interval(np.array([0.5, 0.7])), float("nan"))
    table = Table(
        "Title", "Router", (Column("Performance (%)"), Column("P99 (ms)", "milliseconds")), (("mine", cells),)
    )
    finding = Finding("worse", "load", "With load 8 it routes worse.", float("inf"), ("load 8",))

    def trained(*given: object, **named: object) -> TrainedSeeds:
        sys.stdout.write("words of a library\n")
        warnings.warn("a warning", stacklevel=1)
        return TrainedSeeds({0: random_policy(load_situation("paper"))})

    results: dict[str, Any] = {
        "besteffort.runs.training.run_training": trained,
        "besteffort.runs.quickstart.quickstart": lambda plan, out, progress, doing: quickstart.Outcome(
            table, table, out / "quickstart.png", (out / "train" / "policy.safetensors",), out / "report.md", ("Note.",)
        ),
        "besteffort.evaluation.results.evaluate": lambda *_: evaluation_results.Outcome(table, table),
        "besteffort.diagnosis.diagnose.diagnose": lambda policy, situation, config, out, **_: Diagnosis(
            (finding,), table, "Checked.", out / "report.md"
        ),
        "besteffort.sweep.run.run_sweep": lambda plan, out, **_: Leaderboard(
            (), table, table, out / "report.md", out / "what-mattered.png"
        ),
    }
    for name, stub in results.items():
        monkeypatch.setattr(name, stub)
    return table


LONG = {
    "quickstart": ("picture", "policies", "report", "results"),
    "train": ("policy", "policies"),
    "evaluate": ("report", "results"),
    "diagnose": ("report", "results"),
    "sweep": ("picture", "report", "results"),
}


def arguments_of(command: str, policy: Path, small: Path, tmp_path: Path) -> list[str]:
    sweep = written(tmp_path / "sweep.yaml", f"base: {small}\naxes: {{training.hyper.tau: [0.9]}}\n")
    positional = {"train": [small], "evaluate": [policy], "diagnose": [policy], "sweep": [sweep], "quickstart": []}
    return [command, *map(str, positional[command]), "--out", str(tmp_path / "out")]


def test_a_sweep_whose_trials_failed_says_so_at_its_end(
    stubbed: Table,
    policy: Path,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One that diverged has an outcome, like any other."""
    entries = tuple(Entry(name, 0, 0, {}, name, "it ended") for name in ("finished", "diverged", "failed"))
    report = tmp_path / "report.md"
    board = Leaderboard(entries, stubbed, stubbed, report, None)
    monkeypatch.setattr("besteffort.sweep.run.run_sweep", lambda plan, out, **_: board)
    arguments = arguments_of("sweep", policy, small, tmp_path)
    assert main([*arguments, "--json", "--quiet"]) == 2
    said = capsys.readouterr()
    assert f"1 of 1 trials failed, {report} says why; the same command with `--resume` tries them again." in said.err
    assert json.loads(said.out)["files"]["report"] == str(report)
    board = dataclasses.replace(board, entries=entries[:2])
    assert main([*arguments, "--resume"]) == 0


@pytest.mark.parametrize("command", LONG)
def test_json_of_long_commands(
    command: str, stubbed: Table, policy: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = arguments_of(command, policy, small, tmp_path)
    assert main([*arguments, "--json", "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.err == ("words of a library\n" if command == "train" else "")
    found = json.loads(said.out)
    assert found["command"] == command
    assert tuple(found["files"]) == LONG[command]
    if command != "train":
        (row,) = found["tables"][0]["rows"]
        assert row["performance"]["mean"] == pytest.approx(0.6)
        assert row["p99_s"] is None
    if command == "diagnose":
        assert found["findings"][0]["sentence"] == "With load 8 it routes worse."
        assert found["findings"][0]["loss"] is None


@pytest.mark.filterwarnings("ignore:a warning")
def test_progress_stays_off_standard_output(
    stubbed: Table, policy: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments_of("train", policy, small, tmp_path), "--json"]) == 0
    said = capsys.readouterr()
    out = tmp_path / "out"
    files = {"policy": str(out / "policy.safetensors"), "policies": [str(out / "policy-0.safetensors")]}
    assert json.loads(said.out)["files"] == files
    assert "Training" in said.err
    assert "words of a library" in said.err


@pytest.mark.parametrize("command", ["quickstart", "train", "evaluate", "diagnose", "simulate", "sweep"])
def test_mistakes_in_set(command: str, refused: Callable[..., str], policy: Path, requests: Path) -> None:
    positional = {
        "quickstart": [],
        "train": ["paper"],
        "simulate": [requests, "--router", "deadline"],
        "sweep": ["learning_rate"],
    }
    for change, words in (
        ("cluster.replcas=2", "`cluster.replcas`: `cluster` has no field `replcas`, did you mean `replicas`?"),
        ("cluster.replicas=0", "`cluster.replicas` is 0, but should be greater than or equal to 1"),
        ("cluster.replicas", "write it like `--set cluster.replicas=2`"),
        ("tasks.sums.weight=2", "`tasks` has no entry `sums`; give `*` for all"),
        ("cluster=[", "mend the YAML"),
    ):
        said = refused(command, *positional.get(command, [policy]), "--set", change)
        assert "`--set" in said
        assert words in said


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("quickstart --columns arrival=ts", "--columns"),
        ("train paper --limit 100", "--limit"),
        ("evaluate policy.safetensors --from 60", "--from"),
        ("diagnose policy.safetensors --to 60", "--to"),
        ("diagnose policy.safetensors --load 2", "--load"),
    ],
)
def test_options_of_a_log_need_one(refused: Callable[..., str], words: str, option: str) -> None:
    said = refused(*words.split())
    assert said.startswith(f"besteffort: `{option}` ")
    assert "name one, `--trace FILE`, or leave it out" in said


def test_set_reaches_the_situation(tmp_path: Path, requests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["simulate", str(requests), "--router", "deadline", "--backend", "reference", "--out", str(out), "--json"]
    changes = ["--set", "tasks.*.weight=2", "--set=cluster.replicas=1", "--set", "tasks.lambada.weight=0.5"]
    assert main([*command, *changes]) == 0
    (row,) = document(capsys)["tables"][0]["rows"]
    assert row["performance_per_gpu"] == row["performance"]
    with (out / "requests.csv").open(encoding="utf-8") as file:
        rewards = [float(line["reward"]) for line in csv.DictReader(file)]
    assert [reward > 1 for reward in rewards] == [True, False, True]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script"
    with pytest.raises(SystemExit) as leaving:
        main(["--tyro-write-completion", shell, str(script)])
    assert not leaving.value.code
    with pytest.raises(SystemExit):
        main(["--tyro-print-completion", shell])
    text = script.read_text(encoding="utf-8")
    assert text.strip() == capsys.readouterr().out.strip()
    for name in COMMANDS:
        assert all(word in text for word in name.split())
    assert "--set" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tyro-print-completion"], "name one of bash, zsh"),
        (["--tyro-print-completion", "bsh"], "name one of bash, zsh"),
        (["--tyro-write-completion", "bash"], "needs one file"),
        (["--tyro-write-completion", "bash", "/none/script"], "/none/script: cannot write it"),
    ],
)
def test_completion_that_cannot_be(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert words in sentence(capsys)


def test_nobody_reads_what_is_printed() -> None:
    """`besteffort list | head -1` ends without a traceback."""
    process = subprocess.Popen(
        [sys.executable, "-m", "besteffort", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert errors == b""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train paper --seeds x --out o", "`--seeds` is 'x', but should be a whole number; `besteffort train --help`"),
        ("train paper --seeds 1.5 --out o", "`--seeds` is '1.5', but should be a whole number"),
        ("simulate x --router a --load y --out o", "`--load` is 'y', but should be a number"),
        ("trian paper", "There is no command `trian`, did you mean `train`?; `besteffort --help` says what there is."),
        ("profile fti x", "There is no command `fti`, did you mean `fit`?; `besteffort profile --help`"),
        (
            "train paper --out o --sed 3",
            "There is no option `--sed`, did you mean `--seeds`?; `besteffort train --help`",
        ),
        ("train paper --out o --colums a=b", "There is no option `--colums`, did you mean `--columns`?"),
        ("evaluate p --out o --form 3", "There is no option `--form`, did you mean `--from`?"),
        ("simulate r --router a --out o --chages x", "There is no option `--chages`; `besteffort simulate"),
        (
            "train",
            "`besteffort train` lacks CONFIG and --out DIR; add it, `besteffort train --help` says what there is.",
        ),
        ("policy", "`besteffort policy` lacks a command of its own; add it"),
        ("profile", "`besteffort profile` lacks a command of its own; add it"),
        ("train paper --out", "Missing value for argument '--out'. Expected 1 values; `besteffort train --help`"),
        ("simulate x --router a --out o --backend y", "invalid choice 'y' for argument '--backend'. Expected one of"),
        ("policy shw x", "There is no command `shw`, did you mean `show`?; `besteffort policy --help`"),
        ("simulate x --router a --out o --seed 99999999999999999999999", "`--seed` is 99999999999999999999999; give a"),
        ("simulate x --router a --out o --seed -1", "`--seed` is -1; give a number from 0 to 2,147,483,647."),
        ("simulate x --router a --out o --load 1e300", "`--load` is 1e+300; give a number from 1e-06 to 1e+06."),
        ("simulate x --router a --out o --load nan", "`--load` is nan; give a number"),
        ("evaluate x --out o --loads 1 -2", "`--loads` is -2.0; give a number"),
        ("sweep x --out o --workers 0", "`--workers` is 0; give a number from 1 to 65,536."),
        ("profile measure opt-125m --out o.json --max-batch 0", "`--max-batch` is 0; give a number from 1 to 65,536."),
        ("profile fit x --out o.json --max-batch -3", "`--max-batch` is -3; give a number from 1 to 65,536."),
        ("list cats", "invalid choice 'cats' for argument 'kinds'"),
    ],
)
def test_words_that_do_not_parse(
    words: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(words)) == 2
    said = sentence(capsys)
    assert expected in said
    assert not list(tmp_path.iterdir())
