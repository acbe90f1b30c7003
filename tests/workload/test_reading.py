"""What is made of a file's rows: columns that the user names, duplicates, order, parts; and logs of any gateway."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.profiling.server_log import read_log
from besteffort.workload.reading import Reading, read
from besteffort.workload.records import Records
from besteffort.workload.traces import read_trace
from tests.workload.served import DECODE_S, jsonl, same, served

Write = Callable[[str, str], Path]
HEAD = "arrival_s,task,prompt_tokens,output_tokens"
TIMES = ("arrival_time", "first_token_ts", "last_token_ts")


def scaled(
    table: list[dict[str, Any]], factor: float, start: float, names: tuple[str, ...] = TIMES
) -> list[dict[str, Any]]:
    return [{k: factor * (v + start) if k in names else v for k, v in row.items()} for row in table]


@pytest.mark.parametrize(
    ("factor", "start"), [(1e3, 1.78e9), (1e6, 1.78e9), (1.0, 1.78e9), (1e3, 0.0), (1.0, 27_536.0)]
)
def test_a_server_in_other_units_is_the_same_server(write: Write, factor: float, start: float) -> None:
    truth = read_log(write("a.jsonl", jsonl(served())))
    same(read_log(write("b.jsonl", jsonl(scaled(served(), factor, start)))), truth)
    per_token_s = np.median((truth.last_token_s - truth.first_token_s) / (truth.output_tokens - 1))
    assert per_token_s == pytest.approx(DECODE_S[0])


def test_arrivals_of_a_gateway_in_milliseconds_and_tokens_of_a_monotonic_clock(write: Write) -> None:
    table = scaled(scaled(served(), 1e3, 1.78e9, TIMES[:1]), 1.0, 27_536.0, TIMES[1:])
    truth, log = read_log(write("a.jsonl", jsonl(served()))), read_log(write("b.jsonl", jsonl(table)))
    np.testing.assert_allclose(log.arrival_s, truth.arrival_s, atol=1e-5)
    np.testing.assert_allclose(log.latency_s, truth.latency_s - truth.ttft_s.min() + DECODE_S[0], atol=1e-5)
    assert "another clock" in log.notes[0]


def test_clocks_that_no_offset_reconciles_are_refused(write: Write) -> None:
    # Arrivals say seconds but count milliseconds, so that they last a thousand times as long as the answers.
    table = [
        {"arrival_s": 1e3 * row["arrival_time"], "first_s": 1e7 + row["first_token_ts"], **row} for row in served()
    ]
    for row in table:
        row["last_token_s"] = 1e7 + row.pop("last_token_ts")
        row["first_token_s"] = row.pop("first_s")
        del row["arrival_time"], row["first_token_ts"]
    with pytest.raises(InputError, match=r"`arrival_s` spans .* and `first_token_s` .* no offset reconciles"):
        read_log(write("a.jsonl", jsonl(table)))


@pytest.mark.parametrize("ids", [True, False])
def test_rows_that_stand_twice_are_left_out_and_counted(write: Write, ids: bool) -> None:
    table = [row if ids else {k: v for k, v in row.items() if k != "request_id"} for row in served()]
    twice = [row for row in table for _ in range(2)]
    truth, log = read_log(write("a.jsonl", jsonl(table))), read_log(write("b.jsonl", jsonl(twice)))
    same(log, truth)
    assert ("have the id of" if ids else "equal") + " an earlier row and are left out" in " ".join(log.notes)
    assert "120 of 240 rows" in " ".join(log.notes)
    assert truth.notes == ()


def test_a_coarse_clock_cannot_tell_requests_apart(write: Write, situation: Any) -> None:
    _, info = read_trace(write("a.csv", f"{HEAD}\n" + "0,piqa,5,5\n" * 3 + "1,piqa,5,5\n" * 3), situation)
    assert info.requests == 6
    assert "4 of 6 rows equal another and are kept" in str(info)
    _, info = read_trace(write("a.csv", f"{HEAD}\n" + "0.12345,piqa,5,5\n" * 3 + "1.54321,piqa,5,5\n" * 3), situation)
    assert info.requests == 2


def test_what_is_no_id_leaves_nothing_out(write: Write) -> None:
    table = [{**row, "request_id": "same"} for row in served()]
    assert len(read_log(write("a.jsonl", jsonl(table)))) == 120


@pytest.mark.parametrize("name", ["TIMESTAMP", "timestamp", "created_at"])
def test_integers_are_no_years(write: Write, situation: Any, name: str) -> None:
    for start in (0, 1_715_299_200):
        rows = "".join(f"{start + 10 * i},857,{214 + i}\n" for i in range(60))
        _, info = read_trace(write("a.csv", f"{name},ContextTokens,GeneratedTokens\n{rows}"), situation)
        assert (info.requests, info.span_s) == (60, 590.0)
        assert info.units == ("seconds" if start else "seconds, assumed")


def test_dates_of_any_zone_without_a_warning(write: Write, situation: Any) -> None:
    stamps = [f"2024-10-27 02:59:{30 + i}.000+02:00" for i in range(30)]
    stamps += [f"2024-10-27T02:00:{i:02d}+0100" for i in range(30)]
    rows = "".join(f"{stamp},857,{214 + i}\n" for i, stamp in enumerate(stamps))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, info = read_trace(write("a.csv", f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}"), situation)
    assert (info.requests, info.span_s) == (60, 59.0)


@pytest.mark.parametrize("name", ["TIMESTAMP", "start_time"])
def test_local_times_when_clocks_are_set_back(write: Write, situation: Any, name: str) -> None:
    stamps = [f"2024-10-27 02:59:{30 + i}" for i in range(30)] + [f"2024-10-27 02:00:{i:02d}" for i in range(30)]
    rows = "".join(f"{stamp},857,214\n" for stamp in stamps)
    path = write("a.csv", f"{name},ContextTokens,GeneratedTokens\n{rows}")
    with pytest.raises(InputError, match=r"line 32: .* clocks are set back; sorting would mix two hours, .* UTC"):
        read_trace(path, situation)


@pytest.mark.parametrize("newest_first", [True, False])
def test_local_times_in_which_no_clock_was_set_back(write: Write, situation: Any, newest_first: bool) -> None:
    """A quiet night in a log that begins with its newest row, and a request that took an hour."""
    stamps = [f"2024-10-27 {2 + 3 * (i >= 30)}:{i:02d}:00".replace(" ", " 0") for i in range(60)]
    if newest_first:
        stamps.reverse()
    else:
        stamps[50] = "2024-10-27 02:00:30"
    rows = "".join(f"{stamp},857,{9 + i}\n" for i, stamp in enumerate(stamps))
    requests, info = read_trace(write("a.csv", f"start_time,ContextTokens,GeneratedTokens\n{rows}"), situation)
    assert len(requests) == 60
    assert "rows stood after a later arrival and are sorted" in str(info)


def test_a_clock_that_was_set_back_in_a_log_of_newest_rows_first(write: Write, situation: Any) -> None:
    stamps = [f"2024-10-27 02:59:{30 + i}" for i in range(30)] + [f"2024-10-27 02:00:{i:02d}" for i in range(30)]
    rows = "".join(f"{stamp},857,214\n" for stamp in reversed(stamps))
    path = write("a.csv", f"start_time,ContextTokens,GeneratedTokens\n{rows}")
    with pytest.raises(InputError, match=r"line 31: `start_time` goes back in time by 3,599 s .* clocks are set back"):
        read_trace(path, situation)


def test_logs_in_order_of_the_answers_are_sorted_and_that_is_said(write: Write, situation: Any) -> None:
    table = sorted(served(), key=lambda row: row["output_tokens"])
    requests, info = read_trace(write("a.jsonl", jsonl(table)), situation)
    np.testing.assert_allclose(requests.arrival_s, [r["arrival_time"] - served()[0]["arrival_time"] for r in served()])
    assert "rows stood after a later arrival and are sorted" in str(info)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD},prompt_tokens\n0,piqa,1,2,3\n", "the column `prompt_tokens` stands twice in the header"),
        (
            '{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 2, "output_tokens": 3}\n',
            "`output_tokens` stands twice",
        ),
        (f"{HEAD}\n0,piqa,1_000,5\n", "`prompt_tokens` is `1_000`, which is not a number"),
        (
            f"{HEAD}\n".replace(",", ";") + "0,25;piqa;1;5\n",
            "`arrival_s` is `0,25`, which is not a number: decimals need a point",
        ),
        (f'{HEAD}\n0,piqa,"1,865",5\n', "`prompt_tokens` is `1,865`, which .* and thousands no comma; mend"),
        (f"{HEAD}\n0,piqa,12.5,5\n", "`prompt_tokens` is `12.5`, which is no whole number of tokens"),
        (f"{HEAD}\n0,piqa,3000000000,5\n", "which is above 10,000,000 tokens"),
        (f"{HEAD}\n1.5e308,piqa,1,5\n", "`arrival_s` is `1.5e308`, which is above 1e[+]20, and no time in any unit"),
        (f"{HEAD}\n0,piqa,inf,5\n", "`prompt_tokens` is `inf`, which is not a number"),
        ('{"arrival_s": 0, "prompt_tokens": true, "output_tokens": 2}\n', "`prompt_tokens` is `True`, which is not a"),
        ('{"arrival_s": 0, "prompt_tokens": NaN, "output_tokens": 2}\n', "`prompt_tokens` is ``, but an answered"),
        (f"{HEAD}\n0,{'x' * 300},1,5\n", "`task` has a name of 300 characters"),
        (f"{HEAD}\n" + "".join(f"{i},t{i},1,5\n" for i in range(1001)), "more than 1,000 names"),
        (
            "ts,prompt_tokens\n2024-05-10 00:00:00,4\n2024-05-10 00:00:01Z,4\n",
            "differ in whether they name a time zone",
        ),
        ("ts,prompt_tokens\n2024-05-10 00:00:00,4\n7,4\n", "`ts` is `7`, which is not a date"),
        ("ts,prompt_tokens\n7,4\n2024-05-10 00:00:00,4\n", "`ts` is `2024-05-10 00:00:00`, which is not a"),
        ("ts,prompt_tokens\n10/05/2024 00:00:00,4\n", "not a number, nor a date like 2024-05-10T00:00:00Z"),
        ("ts,prompt_tokens\n2024-13-10 00:00:00,4\n", "`ts` is `2024-13-10 00:00:00`, which is not a date"),
        (
            "when,prompt_tokens,n\n1,2,3\n",
            "no column has the arrivals .*which of `when`, `prompt_tokens`, `n` is which",
        ),
        ("ts,prompt_tokens,output_tokens,error\n1,2,,x\n2,2,,y\n", "every request failed or has no lengths"),
    ],
)
def test_doubtful_cells_are_refused(write: Write, situation: Any, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_trace(write("log.txt", text), situation)
    assert "\n" not in str(caught.value)


def test_columns_that_do_not_matter_may_stand_twice(write: Write, situation: Any) -> None:
    assert len(read_trace(write("a.csv", f"{HEAD},x,x\n0,piqa,1,2,3,4\n"), situation)[0]) == 1


ODD = "when,n_in,n_out,t1,t2,kind\n" + "".join(
    f"{500 * i},10,{5 + i},{40},{40 + 12 * (4 + i)},piqa\n" for i in range(9)
)


def test_columns_that_the_user_names(write: Write, situation: Any) -> None:
    path = write("odd.csv", ODD)
    columns = ("arrival=when:ms,prompt=n_in,output=n_out", "ttft=t1:ms", "latency=t2:ms,task=kind")
    requests, info = read_trace(path, situation, Reading(columns))
    np.testing.assert_allclose(requests.arrival_s, 0.5 * np.arange(9))
    np.testing.assert_array_equal(requests.output_tokens, 5 + np.arange(9))
    assert (info.kind, info.drawn, info.units) == ("columns", (), "milliseconds")
    log = read_log(path, Reading(columns))
    np.testing.assert_allclose(log.ttft_s, 0.04)
    np.testing.assert_allclose(log.latency_s, 0.04 + 0.012 * (4 + np.arange(9)))
    assert log.tasks == ("piqa",)


def test_a_column_that_the_user_names_stands_for_another_of_the_same(write: Write, situation: Any) -> None:
    """Of a known format the rest stays: here the client's first token in place of the server's."""
    table = [{**row, "client_ttft": row["first_token_ts"] - row["arrival_time"] + 0.001} for row in served()]
    path = write("a.jsonl", jsonl(table))
    log, moved = read_log(path), read_log(path, Reading(("ttft=client_ttft",)))
    assert (log.kind, moved.kind) == ("log", "log")
    np.testing.assert_allclose(moved.ttft_s, log.ttft_s + 0.001)
    np.testing.assert_array_equal(moved.last_token_s, log.last_token_s)
    _, info = read_trace(path, situation, Reading(("output=input_tokens",)))
    assert info.kind == "log"
    assert "as `--columns` says, output is `input_tokens`" in str(info)


def test_a_time_stamp_may_be_that_of_the_end(write: Write, situation: Any) -> None:
    """Many gateways write their line, and its time, when an answer is complete."""
    table = [
        {
            "timestamp": 1.76e9 + row["last_token_ts"],
            "latency_ms": 1e3 * (row["last_token_ts"] - row["arrival_time"]),
            "prompt_tokens": row["input_tokens"],
            "completion_tokens": row["output_tokens"],
        }
        for row in served()
    ]
    path, columns = write("a.jsonl", jsonl(table)), Reading(("last=timestamp,latency=latency_ms",))
    log, truth = read_log(path, columns), read_log(write("b.jsonl", jsonl(served())))
    for name in ("arrival_s", "latency_s"):
        np.testing.assert_allclose(getattr(log, name), getattr(truth, name), rtol=0, atol=1e-5)
    requests, _ = read_trace(path, situation, columns)
    np.testing.assert_allclose(requests.arrival_s, truth.arrival_s, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="no column has the arrivals, so say which one does"):
        read_log(path, Reading(("last=timestamp",)))


def test_columns_of_objects_deep_inside(write: Write, situation: Any) -> None:
    """Files of batches have whole answers in them."""
    table = [
        {
            "custom_id": f"r{i}",
            "response": {"body": {"created": 1.76e9 + i, "usage": {"prompt_tokens": 9 + i, "completion_tokens": 5}}},
        }
        for i in range(9)
    ]
    body = "response.body"
    columns = f"arrival={body}.created,prompt={body}.usage.prompt_tokens,output={body}.usage.completion_tokens"
    requests, _ = read_trace(write("a.jsonl", jsonl(table)), situation, Reading((columns,)))
    np.testing.assert_array_equal(requests.prompt_tokens, 9 + np.arange(9))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("arrival", "`--columns arrival` names no column"),
        ("arival=when", "`arival` is not a field, did you mean `arrival`"),
        ("arrival=wen", "there is no column `wen`, did you mean `when`.*the file has `when`, `n_in`"),
        ("arrival=when:min", "`min` is no unit; choose from s, ms, us, ns"),
        ("arrival=when,prompt=n_in:ms", "`prompt` has no unit"),
        ("arrival=when,arrival=t1", "names `arrival` twice"),
        ("prompt=n_in,output=n_out", "column `arrival` is missing.*`--columns arrival=NAME`"),
        ("arrival=kind", "`kind` is `piqa`, which is not a number"),
    ],
)
def test_columns_that_do_not_fit(write: Write, situation: Any, columns: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_trace(write("odd.csv", ODD), situation, Reading((columns,)))


def test_parts_of_a_log(write: Write, situation: Any) -> None:
    path = write("a.csv", f"{HEAD}\n" + "".join(f"{5 + 0.5 * i},piqa,{1 + i},5\n" for i in range(100)))
    whole, _ = read_trace(path, situation)
    first, _ = read_trace(path, situation, Reading(limit=10))
    np.testing.assert_array_equal(first.prompt_tokens, whole.prompt_tokens[:10])
    part, info = read_trace(path, situation, Reading(start_s=10.0, end_s=20.0))
    np.testing.assert_array_equal(part.arrival_s, 15 + 0.5 * np.arange(20))
    assert "80 of 100 requests arrive before `--from` or after `--to`" in str(info)
    with pytest.raises(InputError, match=r"no request arrives from 100 to inf s after the first"):
        read_trace(path, situation, Reading(start_s=100.0))
    for bad in ({"limit": 0}, {"start_s": 5.0, "end_s": 5.0}, {"start_s": -1.0}, {"end_s": float("nan")}):
        with pytest.raises(InputError):
            Reading(**bad)  # type: ignore[arg-type]


def test_the_limit_of_a_damaged_file_is_read_up_to_there(write: Write, situation: Any) -> None:
    path = write("a.csv", f"{HEAD}\n" + "0,piqa,1,5\n" * 150 + "damage\n")
    assert len(read_trace(path, situation, Reading(limit=5))[0]) == 5


def test_lengths_are_clipped_by_the_profiles_context_alone(write: Write, situation: Any) -> None:
    import dataclasses

    path = write("a.csv", f"{HEAD}\n0,piqa,6000,3000\n")
    for context, expected in ((None, (6000, 3000)), (2048, (1024, 1024)), (8000, (5000, 3000))):
        profile = dataclasses.replace(situation.profile, context_tokens=context)
        requests, info = read_trace(path, dataclasses.replace(situation, profile=profile))
        assert (requests.prompt_tokens[0], requests.output_tokens[0]) == expected
        assert ("clipped" in str(info)) == (context is not None)


@pytest.mark.parametrize(("gap", "doubtful"), [(1e-4, True), (0.5, False), (400.0, True)])
def test_an_unusual_rate_is_remarked_on(write: Write, situation: Any, gap: float, doubtful: bool) -> None:
    path = write("a.csv", f"{HEAD}\n" + "".join(f"{gap * i},piqa,{1 + i},5\n" for i in range(30)))
    assert ("unusual rate" in str(read_trace(path, situation)[1])) == doubtful


def test_one_line_says_what_was_read(write: Write, situation: Any) -> None:
    path = write("a.csv", f"{HEAD}\n" + "".join(f"{0.5 * i},piqa,{1 + i},{5 + i % 3}\n" for i in range(101)))
    _, info = read_trace(path, situation)
    assert str(info).startswith(
        "a.csv (csv): 101 requests over 50 s, 2/s; prompts of 1 to 101 (median 51) and outputs of 5 to 7 (median 6) "
        "tokens; times are seconds; clipped: 0.00% of outputs, 0.00% of prompts, to the models' 2,048 tokens"
    )
    assert "\n" not in str(info)
    log = read_log(write("b.jsonl", jsonl(served())))
    assert str(log).startswith("b.jsonl (log): 120 answered requests over ")


BIG = """
import resource, sys
from besteffort.workload.reading import read
found = read(sys.argv[1])
print(len(found), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.parametrize("layout", ["csv", "jsonl"])
def test_a_million_rows_need_less_than_a_gibibyte(tmp_path: Path, layout: str) -> None:
    prompt = "x" * 400

    def read_megabytes(n: int) -> int:
        path = tmp_path / f"{n}.{layout}"
        with path.open("w", encoding="utf-8") as file:
            file.write(f"{HEAD},text\n" if layout == "csv" else "")
            for i in range(n):
                lengths = f'"prompt_tokens": {i % 900}, "output_tokens": 7'
                line = f'{{"arrival_s": {0.01 * i:.2f}, "task": "piqa", {lengths}, "text": "{prompt}"}}\n'
                file.write(f"{0.01 * i:.2f},piqa,{i % 900},7,{prompt}\n" if layout == "csv" else line)
        done = subprocess.run([sys.executable, "-c", BIG, str(path)], capture_output=True, text=True, check=True)
        rows, megabytes = map(int, done.stdout.split())
        assert rows == n
        return megabytes

    # 120,000 rows, in proportion; texts alone would be 48 MB.
    assert read_megabytes(120_000) - read_megabytes(10) < 0.12 * 1024 / 3


def test_records_keep_their_places(write: Write) -> None:
    found = read(write("a.csv", f'{HEAD},text\n0,piqa,1,2,"a\nb"\n1,piqa,1,2,c\n'))
    assert isinstance(found, Records)
    assert [found.place(i).rpartition(", ")[2] for i in range(2)] == ["line 2", "line 4"]
