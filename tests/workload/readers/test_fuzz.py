"""Damaged files of every format are read or refused in one sentence: no traceback, no warning, no gigabyte.

In the suite each format is damaged fifty times. `python -m tests.fuzz` damages it for minutes, led by what it reaches.
"""

from __future__ import annotations

import gzip
import json
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.errors import InputError
from besteffort.profiling.server_log import log_of
from besteffort.workload.reading import Drawing, Reading, read
from besteffort.workload.traces import Trace
from tests.damage import HOSTILE, change_somewhere, refused
from tests.workload.readers.written import FORMATS, csv, rows, vllm_bench

SERVEGEN = "0,1.25,3.5,Gamma,0.0816,9.8\n600,0,0,,0,0\n1200,0.05,2.0,Weibull,0.54,1.15\n1800,0.25,1.0,Gamma,1.0,4.0\n"
TEXTS = {name: text for name, (_, text, _) in FORMATS.items()} | {
    "SGLang": vllm_bench(False),
    "ServeGen": SERVEGEN,
    "Functions 2019": csv(rows(lambda i: {"HashFunction": f"f{i}", **{str(m): (i * m) % 3 for m in range(1, 9)}})),
    "Functions 2021": csv(rows(lambda i: {"app": "a", "func": "f", "end_timestamp": i + 0.5, "duration": 0.25})),
    "genai-perf": json.dumps(
        {
            "experiments": [
                {"requests": rows(lambda i: {"timestamp": 10**18 + i, "response_timestamps": [10**18 + 2 * i]})}
            ]
        }
    ),
    "sessions": "".join(
        json.dumps({"session_id": i % 3, ("timestamp" if i < 3 else "delay"): i, "input_length": 1, "output_length": 2})
        + "\n"
        for i in range(20)
    ),
}
TABLE = "a,b,c,d\n" + "".join(f"{i},{i + 1},7,x\n" for i in range(20))
MARKS = (
    "",
    "\n",
    "\r",
    ",",
    '"',
    "{",
    "}",
    "[",
    "]",
    ":",
    "\x00",
    "\ufeff",
    "-",
    "e9",
    "9" * 30,
    "\t",
    ";",
    "nan",
    "é",
)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The text with a few changes, of characters, lines, cells or values."""
    text = content.decode("utf-8", "replace")
    for _ in range(chance.choice((1, 1, 2, 5))):
        kind = chance.randrange(7)
        if kind == 0:
            at = chance.randrange(len(text) + 1)
            text = text[:at] + chance.choice(MARKS) + text[at + chance.choice((0, 1, 1, 3, 40)) :]
        elif kind == 1:
            lines = text.splitlines(keepends=True)
            chosen = [chance.randrange(len(lines)) for _ in range(2)] if lines else []
            if lines and chance.random() < 0.5:
                lines[chosen[0]], lines[chosen[1]] = lines[chosen[1]], lines[chosen[0]]
            elif lines:
                lines.insert(chosen[0], lines[chosen[1]])
            text = "".join(lines)
        elif kind == 2:
            text = text[: chance.randrange(len(text) + 1)]
        elif kind in (3, 4) and text.lstrip()[:1] not in ("{", "["):
            lines = text.split("\n")
            at = chance.randrange(len(lines))
            cells = lines[at].split(",")
            cells[chance.randrange(len(cells))] = str(chance.choice(HOSTILE))
            lines[at] = ",".join(cells)
            text = "\n".join(lines)
        else:
            text = _changed_json(text, chance)
    content = text.encode("utf-8", "replace")
    if chance.random() < 0.1:
        content = gzip.compress(content)[: chance.choice((None, -1, 30))]
    return content


def _changed_json(text: str, chance: random.Random) -> str:
    """JSON, or one line of it, with one value in it replaced, removed or repeated."""
    lines = text.split("\n")
    at = chance.randrange(len(lines))
    try:
        value = json.loads(text)
        whole = True
    except (ValueError, RecursionError):
        try:
            value, whole = json.loads(lines[at]), False
        except (ValueError, RecursionError):
            return text
    change_somewhere(value, chance)
    changed = json.dumps(value)
    if whole:
        return changed
    lines[at] = changed
    return "\n".join(lines)


@pytest.fixture(scope="module", autouse=True)
def _no_gigabyte() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes


def check_reader(content: bytes, path: Path, situation: Any) -> bool:
    """Whether a file is read as a log; what is not must be refused as it should be."""
    path.write_bytes(content)
    try:
        found = read(path, tasks=2)
        requests, info = Trace(found).requests(situation)
    except InputError as error:
        refused(error, path)
        return False
    assert "\n" not in str(info)
    assert np.isfinite(requests.arrival_s).all()
    assert info.requests == len(requests)
    if isinstance(found, Drawing):
        return True
    try:
        log = log_of(found)
    except InputError as error:
        refused(error, path)
        return True
    assert "\n" not in str(log) + "".join(log.notes)
    assert (log.last_token_s >= log.arrival_s - 1e-9).all()
    assert log.prompt_tokens.min() >= 1 <= log.output_tokens.min()
    return True


def check_columns(content: bytes, path: Path) -> bool:
    """Whether a file is read as a table by `--columns`."""
    path.write_bytes(content)
    try:
        found = read(path, Reading(("arrival=a:ms,prompt=b,output=c,task=d",), limit=10, start_s=0.002))
        Trace(found)
    except InputError as error:
        refused(error, path)
        return False
    return True


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", TEXTS)
@given(seed=st.integers(0, 2**62))
def test_damaged_files(name: str, seed: int, tmp_path_factory: pytest.TempPathFactory, situation: Any) -> None:
    content = damaged(TEXTS[name].encode(), random.Random(seed))
    check_reader(content, tmp_path_factory.getbasetemp() / "damaged.txt", situation)


@pytest.mark.filterwarnings("error")
@given(seed=st.integers(0, 2**62))
def test_columns_of_damaged_files(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    check_columns(damaged(TABLE.encode(), random.Random(seed)), tmp_path_factory.getbasetemp() / "damaged.csv")
