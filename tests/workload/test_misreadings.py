"""Files that could be read as something else without a word: what they say is read, or the line says what was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.profiling.server_log import read_log
from besteffort.workload.reading import Reading
from besteffort.workload.requests import NO_LIMIT
from besteffort.workload.traces import read_trace
from tests.workload.served import jsonl, same, served

Write = Callable[[str, str], Path]
HEAD = "arrival_s,task,prompt_tokens,output_tokens"


def test_how_long_a_request_took_is_no_arrival(write: Write, situation: Any) -> None:
    """Web servers call the time that a request takes `request_time`."""
    rows = [{"request_time": 0.9 - 0.1 * i, "prompt_tokens": 5, "output_tokens": 5 + i} for i in range(6)]
    stamped = [{**row, "timestamp": 1.76e9 + i} for i, row in enumerate(rows)]
    requests, _ = read_trace(write("a.jsonl", jsonl(stamped)), situation)
    np.testing.assert_array_equal(requests.arrival_s, np.arange(6))
    np.testing.assert_array_equal(requests.output_tokens, 5 + np.arange(6))
    with pytest.raises(InputError, match="fits no known trace format"):
        read_trace(write("a.jsonl", jsonl(rows)), situation)
    dated = [{**row, "request_time": 1.76e9 + i} for i, row in enumerate(rows)]
    requests, _ = read_trace(write("a.jsonl", jsonl(dated)), situation)
    np.testing.assert_array_equal(requests.arrival_s, np.arange(6))


def test_dates_of_which_some_name_a_zone_are_refused(write: Write) -> None:
    rows = [
        {"created_at": f"2025-01-01T10:00:{i:02d}Z", "end_time": f"2025-01-01T11:00:{i + 9:02d}"}
        | {"prompt_tokens": 9, "output_tokens": 900}
        for i in range(9)
    ]
    with pytest.raises(InputError, match="`end_time` names no time zone and `created_at` does"):
        read_log(write("a.jsonl", jsonl(rows)))


def test_the_answered_try_of_an_id_counts(write: Write, situation: Any) -> None:
    """A request that fails and is sent again under its id is the one that was answered."""
    table = []
    for row in served():
        if row["request_id"].endswith("3"):
            failed = {"arrival_time": row["arrival_time"] - 0.01, "output_tokens": None, "error": "timeout"}
            table.append({**row, **failed, "first_token_ts": None, "last_token_ts": None})
        table.append({**row, "error": None})
    path = write("a.jsonl", jsonl(table))
    same(read_log(path), read_log(write("b.jsonl", jsonl(served()))))
    requests, info = read_trace(path, situation)
    assert len(requests) == 120
    assert "12 of 132 requests failed or were not answered" in str(info)


def test_ids_that_every_worker_counts_from_0_are_of_several_requests(write: Write) -> None:
    table = [{**row, "request_id": i % 60} for i, row in enumerate(served())]
    log = read_log(write("a.jsonl", jsonl(table)))
    same(log, read_log(write("b.jsonl", jsonl(served()))))
    assert "60 of 120 rows have the id of another but are no copy of it and stay." in log.notes


def test_a_request_that_two_hops_log_is_one(write: Write) -> None:
    table = served()
    inner = [{**row, "arrival_time": row["arrival_time"] + 0.002} for row in table]
    log = read_log(write("a.jsonl", jsonl(table + inner)))
    same(log, read_log(write("b.jsonl", jsonl(table))))
    assert "120 of 240 rows have the id of an earlier row and are left out." in log.notes


def test_hops_are_told_by_their_ids_where_a_row_has_no_arrival(write: Write) -> None:
    table = served()
    inner = [{**row, "arrival_time": row["arrival_time"] + 0.002} for row in table]
    lost = {**table[0], "request_id": "lost", "arrival_time": None, "last_token_ts": None, "output_tokens": None}
    log = read_log(write("a.jsonl", jsonl([*table, *inner, lost])))
    same(log, read_log(write("b.jsonl", jsonl(table))))
    assert "120 of 240 rows have the id of an earlier row and are left out." in log.notes


def test_whole_seconds_of_a_benchmark_cannot_tell_requests_apart(write: Write) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 20}
    rows = [{"created": 1_760_000_000 + i // 4, "duration_s": 3, "usage": usage} for i in range(40)]
    log = read_log(write("a.jsonl", jsonl(rows)))
    assert len(log) == 40
    assert "30 of 40 rows equal another and are kept" in log.notes[0]


@pytest.mark.parametrize(
    "outcome",
    [
        lambda bad: {"error": None, "status": "cancelled" if bad else "ok"},
        lambda bad: {"error": "timeout" if bad else None, "status": "FINISHED_STOPPED"},
        lambda bad: {"success": not bad},
        lambda bad: {"status": not bad},
        lambda bad: {"status_code": 499 if bad else 200},
        lambda bad: {"finish_reason": "abort" if bad else "length"},
        lambda bad: {"success": str(not bad), "error_message": ""},
    ],
)
@pytest.mark.parametrize("layout", ["csv", "jsonl"])
def test_any_column_may_say_that_a_request_failed(write: Write, outcome: Callable[[bool], Any], layout: str) -> None:
    table = [{**row, **outcome(i % 5 == 0)} for i, row in enumerate(served())]
    lines = [",".join("" if v is None else str(v) for v in row.values()) for row in table]
    text = jsonl(table) if layout == "jsonl" else "\n".join([",".join(table[0]), *lines, ""])
    log = read_log(write("a.log", text))
    assert len(log) == 96
    assert "24 of 120 requests were aborted or unfinished" in log.notes[0]


def test_fields_that_first_stand_in_a_later_row(write: Write, situation: Any) -> None:
    """Many tools leave out what is empty: errors, tokens of a cache, first tokens of what is not streamed."""
    table = served(300)
    for i, row in enumerate(table):
        if i < 150:
            del row["first_token_ts"]
        if i == 200:
            row["error"] = "cancelled"
        if i >= 220:
            row["usage"] = {"prompt_tokens_details": {"cached_tokens": 8}}
    log = read_log(write("a.jsonl", jsonl(table)))
    assert len(log) == 299
    assert np.isfinite(log.ttft_s).sum() == 149
    assert log.cached_tokens is not None
    assert ((log.cached_tokens > 0).sum(), log.cached_tokens.max()) == (80, 8)
    for row in table[150:]:
        row["task"] = "piqa"
    with pytest.raises(InputError, match="`task` is empty for 150 requests"):
        read_trace(write("b.jsonl", jsonl(table)), situation)


def test_no_first_token_comes_at_once(write: Write) -> None:
    """Where an answer is not streamed, tools write a time to the first token of 0, or of the whole answer."""
    table = served()
    for i, row in enumerate(table):
        ttft = row.pop("first_token_ts") - row["arrival_time"]
        row["ttft_s"] = ttft if i % 3 else 0.0
    log, truth = read_log(write("a.jsonl", jsonl(table))), read_log(write("b.jsonl", jsonl(served())))
    np.testing.assert_allclose(log.ttft_s, np.where(np.arange(120) % 3, truth.ttft_s, np.nan))
    assert "40 of 120 answered requests have no time of their first token." in log.notes
    table = served()
    table[7]["first_token_ts"] = table[7]["last_token_ts"]
    log = read_log(write("a.jsonl", jsonl(table)))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(log.ttft_s)), [7])


def test_what_stands_for_nothing(write: Write, situation: Any) -> None:
    """Programs write -1 for no limit and no tokens in the cache, 0 or the year 1 for no date, and NaN for no number."""
    table = served()
    for i, row in enumerate(table):
        row |= {"max_tokens": -1, "num_cached_tokens": -1, "error": "nan"}
        for name in ("arrival_time", "first_token_ts", "last_token_ts"):
            row[name] += 1.76e9
        if i < 9:
            row["first_token_ts"] = (0, float("nan"), "NaN")[i % 3]
    table[50]["last_token_ts"], table[60]["error"] = 0, "timeout"
    path = write("a.jsonl", jsonl(table))
    log = read_log(path)
    assert (len(log), np.isnan(log.first_token_s).sum(), log.cached_tokens) == (118, 9, None)
    requests, info = read_trace(path, situation)
    assert len(requests) == 119
    assert requests.output_limit is not None
    assert (requests.output_limit == NO_LIMIT).all()
    assert "limits on the output" not in str(info)


def test_of_several_arrivals_the_line_says_which_was_read(write: Write, situation: Any) -> None:
    rows = [
        {"created_at": 1.76e9 + i, "start_time": 1.76e9 + i + 0.2, "prompt_tokens": 5, "output_tokens": 5}
        for i in range(9)
    ]
    path = write("a.jsonl", jsonl(rows))
    note = "arrivals are `start_time`, not `created_at`, which `--columns arrival=created_at` would take"
    assert note in str(read_trace(path, situation)[1])
    assert "would take" not in str(read_trace(path, situation, Reading(("arrival=created_at",)))[1])


def test_arrivals_since_1970_count_from_the_first(write: Write, situation: Any) -> None:
    """Also of this package's own format: a replay would begin with a gap of half a century."""
    rows = "".join(f"{1_760_000_000.25 + i},piqa,5,5\n" for i in range(5))
    requests, _ = read_trace(write("a.csv", f"{HEAD}\n{rows}"), situation)
    np.testing.assert_array_equal(requests.arrival_s, np.arange(5))


@pytest.mark.parametrize("stamp", ["2025-01-01 10:0{0}", "1.76000{0}E+12", "176000000{0}"])
def test_rounded_arrivals_are_remarked_on(write: Write, situation: Any, stamp: str) -> None:
    """Spreadsheets leave the seconds of dates out, and most digits of large numbers."""
    rows = "".join(f"{stamp.format(i // 9)},5,{5 + i}\n" for i in range(60))
    _, info = read_trace(write("a.csv", f"timestamp,prompt_tokens,output_tokens\n{rows}"), situation)
    assert "only 7 of 60 arrivals differ, so the clock of `timestamp` is coarse or was rounded" in str(info)


@pytest.mark.parametrize("name", ["completion_time", "completion_ms"])
def test_durations_by_the_name_of_a_time_are_refused(write: Write, name: str) -> None:
    """A short log is no longer than a wait may be; still its durations do not grow with its arrivals."""
    table = served(40)
    for row in table:
        took = row.pop("last_token_ts") - row["arrival_time"]
        row |= {"arrival_time": 1.76e9 + row["arrival_time"], name: 1e3 * took if name.endswith("ms") else took}
        del row["first_token_ts"]
    path = write("a.jsonl", jsonl(table))
    with pytest.raises(InputError, match=f"or, if `{name}` is how long it took, `--columns latency={name}`"):
        read_log(path)
    log = read_log(path, Reading((f"latency={name}",)))
    np.testing.assert_allclose(log.latency_s, read_log(write("b.jsonl", jsonl(served(40)))).latency_s, atol=1e-6)


def test_arrivals_have_no_unit_of_durations(write: Write, situation: Any) -> None:
    table = [
        {"timestamp": 10.0 * i, "first_token_ms": 350, "prompt_tokens": 5, "completion_tokens": 5 + i} for i in range(9)
    ]
    requests, info = read_trace(write("a.jsonl", jsonl(table)), situation)
    np.testing.assert_allclose(requests.arrival_s, 10.0 * np.arange(9))
    assert "seconds (`timestamp`), assumed" in info.units


def test_a_log_of_answers_of_one_token_is_read(write: Write) -> None:
    rows = [
        {"timestamp": 1.76e9 + i, "latency": 0.7 + 0.1 * (i % 4), "prompt_tokens": 900 + i, "output_tokens": 1}
        for i in range(20)
    ]
    log = read_log(write("a.jsonl", jsonl(rows)))
    np.testing.assert_allclose(log.latency_s, 0.7 + 0.1 * (np.arange(20) % 4), atol=1e-6)
