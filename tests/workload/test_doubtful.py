"""Rows that cannot be: a few are left out, counted and named, many are refused where their times are needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.profiling.server_log import read_log
from besteffort.workload.reading import Reading
from besteffort.workload.records import few
from besteffort.workload.traces import read_trace
from tests.workload.served import jsonl, same, served

Write = Callable[[str, str], Path]
HEAD = "arrival_s,task,prompt_tokens,output_tokens"


def timed() -> list[dict[str, Any]]:
    """Durations in place of times."""
    table = served()
    for row in table:
        row["ttft_ms"] = 1e3 * (row.pop("first_token_ts") - row["arrival_time"])
        row["latency_ms"] = 1e3 * (row.pop("last_token_ts") - row["arrival_time"])
    return table


def changed(table: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    table[7] |= values
    return table


@pytest.mark.parametrize(
    ("table", "example"),
    [
        (changed(served(), last_token_ts=1.0), "`last_token_ts` lies 4.39 s before `first_token_ts`"),
        (changed(served(), arrival_time=9e3), "`first_token_ts` lies 8.99e+03 s before `arrival_time`"),
        (changed(timed(), latency_ms=-12.5, ttft_ms=None), "the end of `latency_ms` lies 0.0125 s before"),
        (changed(timed(), ttft_ms=-2000), "the end of `ttft_ms` lies 2 s before `arrival_time`"),
    ],
)
def test_a_request_that_runs_backwards_is_left_out(
    write: Write, situation: Any, table: list[dict[str, Any]], example: str
) -> None:
    others = [row for i, row in enumerate(served()) if i != 7]
    path, rest = write("a.jsonl", jsonl(table)), write("b.jsonl", jsonl(others))
    note = f"1 of 120 answered requests run backwards and are left out, the first in line 8, where {example}"
    log, truth = read_log(path), read_log(rest)
    same(log, truth)
    assert log.notes[0].startswith(note)
    requests, info = read_trace(path, situation)
    np.testing.assert_allclose(requests.arrival_s, truth.arrival_s, rtol=0, atol=1e-5)
    assert note in str(info)


def test_columns_that_the_user_names_may_run_backwards(write: Write, situation: Any) -> None:
    rows = [f"{i},10,{5 + i},{i + 0.1},{i + 0.5 if i != 12 else 3}" for i in range(30)]
    path = write("odd.csv", "\n".join(["a,b,c,d,e", *rows, ""]))
    columns = Reading(("arrival=a:s,prompt=b,output=c,first=d:s,last=e:s",))
    assert len(read_log(path, columns)) == len(read_trace(path, situation, columns)[0]) == 29
    assert "the first in line 14, where `e` lies 9.1 s before `d`" in str(read_trace(path, situation, columns)[1])


@pytest.mark.parametrize("end", ["before", "swapped"])
def test_many_that_run_backwards_are_misread(write: Write, situation: Any, end: str) -> None:
    """Their arrivals may still be right, so a trace is read of them, with a word."""
    table = served()
    for row in table[20 : 26 if end == "before" else 120]:
        start, last = row["arrival_time"], row["last_token_ts"]
        row |= {"last_token_ts": start - 1} if end == "before" else {"arrival_time": last, "last_token_ts": start}
    path = write("a.jsonl", jsonl(table))
    others = 5 if end == "before" else 99
    with pytest.raises(InputError, match=f"in line 21, and so in {others} more of 120 answered requests, so units are"):
        read_log(path)
    requests, info = read_trace(path, situation)
    assert len(requests) == 120
    assert "so of its times only arrivals are used" in str(info)


def test_what_was_not_answered_may_have_any_times(write: Write) -> None:
    table = served()
    for row in table[:40]:
        row |= {"output_tokens": 0, "first_token_ts": 0.0, "last_token_ts": 0.0}
    log = read_log(write("a.jsonl", jsonl(table)))
    assert len(log) == 80
    assert "40 of 120 requests were aborted or unfinished" in log.notes[0]


def test_an_entry_into_the_queue_before_the_arrival(write: Write) -> None:
    """Two hosts' clocks differ: arrivals are moved, so that no request enters the queue before it."""
    table = [{**row, "queued_ts": row["arrival_time"] - 0.005 + 0.001 * (i % 3)} for i, row in enumerate(served())]
    same(read_log(write("a.jsonl", jsonl(table))), read_log(write("b.jsonl", jsonl(served()))), atol=6e-3)
    table[7]["queued_ts"] -= 0.9
    for row in table[:7] + table[8:]:
        row["queued_ts"] = row["arrival_time"]
    log = read_log(write("a.jsonl", jsonl(table)))
    assert len(log) == 119
    assert "where `queued_ts` lies 0.904 s before `arrival_time`." in log.notes[0]


@pytest.mark.parametrize("name", ["arrival_time", "input_tokens"])
def test_what_an_answered_request_lacks(write: Write, situation: Any, name: str) -> None:
    for count in (5, 6):
        table = served()
        for row in table[10 : 10 + count]:
            row[name] = None
        path = write("a.jsonl", jsonl(table))
        if count == 5:
            note = f"5 of 120 answered requests state no `{name}` and are left out, the first in line 11"
            assert read_log(path).notes == (f"{note}.",)
            requests, info = read_trace(path, situation)
            assert (len(requests), note in str(info)) == (115, True)
        else:
            with pytest.raises(InputError, match=f"line 11: `{name}` is ``, but .* state it .5 more lack it.; mend"):
                read_trace(path, situation)


def test_in_order_damage_is_refused(write: Write, situation: Any) -> None:
    rows = [f"{i},piqa,{'' if i == 9 else 10},5,{-3 if i == 5 else 2}" for i in range(30)]
    path = write("a.csv", "\n".join([f"{HEAD},took", *rows, ""]))
    with pytest.raises(InputError, match="line 11: `prompt_tokens` is ``"):
        read_trace(path, situation)
    rows[9] = rows[9].replace("piqa,", "piqa,10")
    path = write("a.csv", "\n".join([f"{HEAD},took", *rows, ""]))
    assert len(read_trace(path, situation)[0]) == 30
    with pytest.raises(InputError, match="line 7: the end of `took` lies 3 s before `arrival_s`, so a clock ran"):
        read_trace(path, situation, Reading(("latency=took:s",)))


def test_few() -> None:
    assert [max(k for k in range(99) if few(k, n)) for n in (3, 4, 19, 20, 500, 599, 600, 2_000)] == [
        *(0, 1, 4, 5),
        *(5, 5, 6, 20),
    ]
