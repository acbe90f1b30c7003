"""Every mistake is one sentence that names file, field and remedy; nothing is written, and nothing is lost.

`mistakes.py` makes the bad input, some 1,600 of them; here most are met, and those of the command line are added.
"""

from __future__ import annotations

import contextlib
import io
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from annotated_types import Interval

from besteffort.cli import COMMANDS, main
from tests.mistakes import CONFIG, GROUPS, SWEEP, complaint

EACH = {"configurations": 4}  # one in so many, to save time; `python -m tests.mistakes` meets all
LEAST = {
    "configurations": 800,
    "pools": 200,
    "profiles": 100,
    "policies": 250,
    "sweeps": 60,
    "run directories": 18,
    "paths": 15,
}


def contents(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }


@pytest.mark.parametrize("group", GROUPS)
def test_every_mistake_in_a_file_is_one_sentence(group: str, tmp_path: Path) -> None:
    wrong = []
    count = 0
    for count, mistake in enumerate(GROUPS[group](tmp_path), start=1):
        if count % EACH.get(group, 1):
            continue
        said, what = complaint(mistake)
        if what:
            wrong.append(f"{mistake.kind}, `{mistake.field}`: {what}: {said[:300]}")
    assert not wrong, "\n".join(wrong[:20])
    assert count >= LEAST[group]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a configuration, a sweep and a list of requests, which nothing may change."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(CONFIG, encoding="utf-8")
    Path("sweep.yaml").write_text(SWEEP.format(base="config.yaml"), encoding="utf-8")
    Path("requests.csv").write_text("arrival_s,task,prompt_tokens,output_tokens\n0,piqa,9,9\n", encoding="utf-8")
    Path("file").write_text("precious", encoding="utf-8")
    Path("taken").mkdir()
    Path("taken/thesis.tex").write_text("three years", encoding="utf-8")
    return tmp_path


CALLS = {
    "quickstart": ["quickstart", "--config", "config.yaml"],
    "train": ["train", "config.yaml"],
    "sweep": ["sweep", "sweep.yaml"],
    "evaluate": ["evaluate", "none.safetensors"],
    "diagnose": ["diagnose", "none.safetensors"],
    "simulate": ["simulate", "requests.csv", "--router", "deadline", "--config", "config.yaml"],
    "profile measure": ["profile", "measure", "opt-125m"],
    "profile quality": ["profile", "quality", "opt-125m", "--task", "piqa"],
    "profile fit": ["profile", "fit", "requests.csv"],
}


def numbers() -> Iterator[tuple[str, str, Interval]]:
    """Every option of every command that takes a number, and its interval."""
    for name in CALLS:
        for option, hint in typing.get_type_hints(COMMANDS[name].call, include_extras=True).items():
            for interval in getattr(hint, "__metadata__", ()):
                if isinstance(interval, Interval):
                    yield name, f"--{option.replace('_', '-')}", interval


def refused(arguments: list[str], *named: str) -> None:
    """Runs a command, which says one sentence on standard error that names these, and changes nothing."""
    before = contents(Path())
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    said = err.getvalue()
    assert (status, out.getvalue()) == (2, ""), said
    assert said.startswith("besteffort: ")
    assert said.endswith(".\n")
    assert said[:-1].isprintable()
    assert ";" in said or "should be" in said
    assert all(name in said for name in named), said
    assert contents(Path()) == before


@pytest.mark.parametrize(("name", "option", "interval"), [*numbers()])
def test_every_number_of_an_option_is_bounded(name: str, option: str, interval: Interval, place: Path) -> None:
    whole = isinstance(interval.le, int)
    for bad in ("many", "1.5" if whole else "nan", "-1", "9" * 23 if whole else "1e300"):
        refused([*CALLS[name], option, bad, "--out", "out"], f"`{option}` is ")


@pytest.mark.parametrize("name", CALLS)
def test_every_place_to_write_to_is_checked_first(name: str, place: Path) -> None:
    file = name.startswith("profile")
    for out in ("file", "taken", "file/deeper", "x" * 300, f"{'y' * 300}/out"):
        refused([*CALLS[name], "--out", out], out[:200])
    if not file and name != "simulate":
        for out in ("file", "none", "taken"):
            refused([*CALLS[name], "--out", out, "--resume"], out)
    with contextlib.suppress(FileNotFoundError):
        Path("out").unlink()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["simulate", "requests.csv", "--router", "priced"], ["--settings", "price=X reserve=X width=X"]),
        (["simulate", "requests.csv", "--router", "priced", "--settings", "price=1", "price=2"], ["`price` twice"]),
        (
            ["simulate", "requests.csv", "--router", "priced", "--settings", "price=inf"],
            ["`price=inf` is out of range"],
        ),
        (
            ["simulate", "requests.csv", "--router", "priced", "--settings", "price=nan"],
            ["`price=nan` is out of range"],
        ),
        (["simulate", "requests.csv", "--router", "x" * 300], ["file name too long"]),
        (["simulate", "requests.csv", "--router", "deadline", "--config", "y" * 300], ["yyy"]),
        (["simulate", "requests.csv", "--router", "deadline", "--set", "view.features=[tsk]"], ["`tsk`", "--set"]),
        (["simulate", "requests.csv", "--router", "deadline", "--set", "cluster.replicas=1:30"], ["replicas", "1:30"]),
        (["simulate", "requests.csv", "--router", "deadline", "--set", "cluster.replicas=1_0"], ["without `_`"]),
        (["simulate", "requests.csv", "--router", "deadline", "--set", "cluster.replicas=1099511627776"], ["replicas"]),
        (["simulate", "requests.csv", "--router", "deadline", "--set", "tasks.*.weight=.inf"], ["weight", "Infinity"]),
        (["train", "config.yaml", "--set", "training.config.ensemble_size=60000"], ["GB of memory"]),
        (["train", "config.yaml", "--set", "cluster.replicas=60000"], ["places for"]),
        (["train", "config.yaml", "--track", "nothing"], ["--track"]),
        (["evaluate", "taken"], ["taken", "is a directory"]),
        (["diagnose", "requests.csv"], ["requests.csv", "not a whole policy file"]),
        (["policy", "show", "file"], ["file"]),
        (["policy", "show", "x" * 300], ["file name too long"]),
    ],
)
def test_other_mistakes(arguments: list[str], named: list[str], place: Path) -> None:
    refused([*arguments, *(["--out", "out"] if arguments[0] != "policy" else [])], *named)
