"""The request log is whole after a kill, and is read as a log of requests."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.gateway.core import Record
from besteffort.gateway.request_log import COLUMNS, RequestLog

RECORD = Record(
    request_id="r0",
    arrival_s=1_764_000_000.25,
    task="piqa",
    task_source="header",
    client="team",
    origin="",
    tenant="",
    model="opt-125m",
    pool="small",
    replica=1,
    prompt_tokens=100,
    output_tokens=20,
    output_limit=None,
    streamed=True,
    deadline_s=0.4,
    ttft_s=0.125,
    latency_s=0.25,
    expected_s=0.2,
    in_time=True,
    quality=0.5,
    attempts=1,
    snapshot=0,
    arm="policy",
    shadow_pool="",
    outcome="answered",
    error="",
)


def records(count: int) -> list[Record]:
    return [
        dataclasses.replace(RECORD, request_id=f"r{i}", arrival_s=RECORD.arrival_s + 0.1 * i, output_tokens=i + 1)
        for i in range(count)
    ]


def test_a_file_is_taken_up_again_without_a_line_that_a_kill_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    log = RequestLog(path)
    for record in records(3):
        log.add(record)
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b"r9,17640000")
    log = RequestLog(path)
    log.add(RECORD)
    log.close()
    lines = path.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert [line.split(",")[0] for line in lines[1:]] == ["r0", "r1", "r2", "r0"]
    assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize(("whole", "more"), [(0, 0), (0, 1), (1, -1), (1, 0), (2, 50)])
def test_a_disk_that_was_full_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int, more: int
) -> None:
    path = tmp_path / "requests.csv"
    log = RequestLog(path)
    log.add(RECORD)
    log.flush()
    line = len(path.read_bytes().splitlines(keepends=True)[1])
    room = whole * line + more
    file = log._file

    class Full:
        """Takes so many bytes more."""

        def __init__(self, room: int) -> None:
            self.room = room

        def write(self, content: bytes) -> int:
            taken = min(len(content), self.room)
            self.room -= taken
            if not taken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return file.write(content[:taken])

        def fileno(self) -> int:
            return file.fileno()

    monkeypatch.setattr(log, "_file", Full(room))
    for _ in range(2):
        for number in range(4):
            log.add(dataclasses.replace(RECORD, request_id=f"f{number}"))
        with pytest.raises(InputError, match="no space left"):
            log.flush()
    monkeypatch.setattr(log, "_file", file)
    log.add(dataclasses.replace(RECORD, request_id="later"))
    log.close()
    lines = path.read_text().splitlines()
    assert {len(line.split(",")) for line in lines} == {len(COLUMNS)}
    assert lines[-1].startswith("later,")
    assert len(lines) == 3 + -(-room // line)


@pytest.mark.parametrize("cut", ["", "request_id,arr"])
def test_a_header_that_a_kill_cut_short_is_written_again(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(cut)
    RequestLog(path).close()
    assert path.read_text() == ",".join(COLUMNS) + "\n"


def ids(path: Path) -> list[str]:
    """Those of a log's requests, below its header."""
    header, *lines = path.read_text().splitlines()
    assert header == ",".join(COLUMNS)
    return [line.split(",")[0] for line in lines]


def test_a_file_that_is_moved_away_is_followed_by_a_new_one(tmp_path: Path) -> None:
    path, moved = tmp_path / "requests.csv", tmp_path / "requests.csv.1"
    logs = [RequestLog(path), *(RequestLog(path, begun=True) for _ in range(2))]
    first, second, third = records(3)
    for log in logs:
        log.add(first)
        log.flush()
    path.rename(moved)
    for log in logs:
        log.add(second)
        log.flush()
    assert ids(moved) == ["r0"] * 3
    assert ids(path) == ["r1"] * 3
    path.unlink()
    path.write_text("a,b\n1,2\n")
    logs[0].add(third)
    with pytest.raises(InputError, match="no request log"):
        logs[0].flush()
    assert path.read_text() == "a,b\n1,2\n"
    path.unlink()
    for log in logs:
        log.add(third)
        log.close()
    assert ids(path) == ["r2"] * 3


@pytest.mark.parametrize("content", ["a,b\n1,2\n", '{"models": []}', "a" * 2**17])
def test_another_file_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(content)
    with pytest.raises(InputError, match="no request log"):
        RequestLog(path)
    assert path.read_text() == content
    with pytest.raises(InputError, match="cannot write"):
        RequestLog(tmp_path / "missing" / "requests.csv")


def test_it_is_a_log_that_this_package_reads(tmp_path: Path) -> None:
    reading = pytest.importorskip("besteffort.workload.reading")
    path = tmp_path / "requests.csv"
    log = RequestLog(path)
    for record in records(5):
        log.add(record)
    late = dataclasses.replace(RECORD, request_id="lost", arrival_s=RECORD.arrival_s + 1)
    log.add(dataclasses.replace(late, outcome="failed", error="reset", output_tokens=0))
    log.close()
    found = reading.read(path)
    assert found.failed.tolist() == [False] * 5 + [True]
    assert np.diff(found.time("arrival")[:5]) == pytest.approx(0.1, abs=1e-5)
    assert found.time("ttft")[:5] == pytest.approx(0.125)
    assert found.time("latency")[:5] == pytest.approx(0.25)
    assert found.counts["output"][:5].tolist() == [1, 2, 3, 4, 5]
    assert found.labels["task"].names == ("piqa",)
