from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.errors import InputError
from besteffort.files import (
    append_jsonl,
    begin_run,
    check_run_directory,
    create_run_directory,
    leave_runs,
    read_jsonl,
    write_bytes,
    write_json,
    write_jsonl,
    write_text,
)


def one_sentence(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_creates_parents_and_accepts_an_empty_directory(tmp_path: Path) -> None:
    path = create_run_directory(tmp_path / "a" / "b")
    assert path.is_dir()
    assert create_run_directory(str(path)) == path


def test_refuses_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_text(tmp_path / "run" / "policy", "precious")
    with pytest.raises(InputError) as error:
        create_run_directory(tmp_path / "run")
    assert "not empty" in one_sentence(error)
    assert (tmp_path / "run" / "policy").read_text() == "precious"
    with pytest.raises(InputError) as error:
        create_run_directory(tmp_path / "run" / "policy")
    assert "is a file" in one_sentence(error)
    with pytest.raises(InputError) as error:
        create_run_directory(tmp_path / "run" / "policy" / "deeper")
    one_sentence(error)


def test_resume_needs_a_run(tmp_path: Path) -> None:
    write_text(tmp_path / "metrics.jsonl", "")
    assert create_run_directory(tmp_path, resume=True) == tmp_path
    with pytest.raises(InputError) as error:
        create_run_directory(tmp_path / "none", resume=True)
    assert "no run to resume" in one_sentence(error)


def test_writes_replace_and_leave_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "größer")
    write_text(tmp_path / "a.txt", "≥")
    write_bytes(tmp_path / "b.bin", b"\0\xff")
    write_json(tmp_path / "c.json", {"x": [1, 2.5]})
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "≥"
    assert (tmp_path / "b.bin").read_bytes() == b"\0\xff"
    assert json.loads((tmp_path / "c.json").read_text()) == {"x": [1, 2.5]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.bin", "c.json"]


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "")
    (tmp_path / "usual").touch()
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_json_must_be_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", float("nan"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_failing_disk_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, code: int
) -> None:
    target = tmp_path / "policy"
    write_text(target, "precious")

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "open" if failing == "write" else "replace", fail)
    with pytest.raises(InputError) as error:
        write_text(target, "new")
    monkeypatch.undo()
    text = one_sentence(error)
    assert str(target) in text
    assert os.strerror(code).lower() in text
    assert target.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_append_to_a_full_disk_is_one_sentence() -> None:
    with pytest.raises(InputError) as error:
        append_jsonl("/dev/full", {"step": 1})
    assert "free some space" in one_sentence(error)


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_fd: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "x", "new")
    assert not list(tmp_path.iterdir())


records = st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3), max_size=6)


@given(before=records, cut=st.integers(1, 40), after=records)
def test_lines_survive_a_cut_at_any_place(
    tmp_path_factory: pytest.TempPathFactory, before: list[dict], cut: int, after: list[dict]
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    for record in before:
        append_jsonl(path, record)
    whole = path.read_bytes() if path.exists() else b""
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    kept = read_jsonl(path)
    assert kept == before[: len(kept)]
    assert len(kept) == path.read_bytes().count(b"\n")
    for record in after:
        append_jsonl(path, record)
    assert read_jsonl(path) == kept + after
    write_jsonl(path, after)
    assert read_jsonl(path) == after


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_jsonl(path) == []
    for line in ("{not json", "[1]"):
        path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
        with pytest.raises(InputError) as error:
            read_jsonl(path)
        assert "line 2" in one_sentence(error)


OTHER = """
import sys, time
from besteffort.files import begin_run
begin_run(sys.argv[1], "train", resume=True)
print("begun", flush=True)
time.sleep(60)
"""


def test_a_run_is_for_one_process(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    other = subprocess.Popen([sys.executable, "-c", OTHER, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "begun\n"
        with pytest.raises(InputError) as error:
            begin_run(out, "train", resume=True)
        assert "another process is at work in this directory; wait for its end" in one_sentence(error)
    finally:
        other.kill()
        other.communicate()
    assert begin_run(out, "train", resume=True) == out
    assert begin_run(out, "train", resume=True) == out  # this one is in it already
    leave_runs()


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({}, None),
        ({"run.json": '{"command": "train"}'}, None),
        ({"run.json": '{"command": "train"}', "config.yaml": "x"}, None),
        ({"run.json": '{"command": "sweep"}'}, "what is there is of `sweep`"),
        ({"summary.json": "{}"}, "what is there is no such run"),
        ({"run.json": "[]"}, "what is there is no such run"),
        ({"run.json": '{"command": 3}'}, "what is there is of `3`"),
        ({"run.json": "{"}, "run.json: not valid JSON"),
        ({"run.json": "\\x1b"}, "run.json: not valid JSON"),
    ],
)
def test_only_the_same_kind_of_run_is_resumed(there: dict[str, str], words: str | None, tmp_path: Path) -> None:
    for name, text in there.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    if words is None:
        begin_run(tmp_path, "train", resume=True)
        assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["command"] == "train"
        leave_runs()
        return
    with pytest.raises(InputError) as error:
        begin_run(tmp_path, "train", resume=True)
    assert words in one_sentence(error)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == there


def test_what_killed_writes_left_is_removed(tmp_path: Path) -> None:
    begin_run(tmp_path, "train", resume=True)
    (tmp_path / "seed").mkdir()
    for name in (".checkpoint.npz.123.tmp", "seed/.policy.safetensors.9.tmp"):
        (tmp_path / name).touch()
    for name in ("mine.tmp", ".mine.tmp"):
        (tmp_path / name).touch()
    begin_run(tmp_path, "train", resume=True)
    leave_runs()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        ".mine.tmp",
        "mine.tmp",
        "run.json",
        "seed",
    ]


def test_checks_write_nothing(tmp_path: Path) -> None:
    check_run_directory(tmp_path / "a" / "b", "train")
    assert not list(tmp_path.iterdir())
    for path, words in ((tmp_path / ("x" * 300), "file name too long; choose a shorter name"),):
        with pytest.raises(InputError) as error:
            check_run_directory(path, "train")
        assert words in one_sentence(error)
