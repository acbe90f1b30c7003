from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.profiling.server_log import RequestLog, read_log

WALL_S = 1_787_267_980.0
Rows = list[dict[str, Any]]


def rows(n: int = 20) -> Rows:
    """A request per second, alone on the server: 0.2 s to its first token, 0.05 s for each further one."""
    return [
        {
            "arrival_s": float(i),
            "first_token_s": i + 0.2,
            "last_token_s": i + 0.2 + 0.05 * (i % 5),
            "prompt_tokens": 10 + i,
            "output_tokens": 1 + i % 5,
        }
        for i in range(n)
    ]


def vllm(n: int = 20) -> Rows:
    """The same with vLLM's names, arrivals by the wall clock and everything else by a monotonic one."""
    return [
        {
            "request_id": f"bench-{i}",
            "input_toks": row["prompt_tokens"],
            "output_toks": row["output_tokens"],
            "arrival_time": WALL_S + row["arrival_s"],
            "queued_ts": 27_536.0 + row["arrival_s"] + 0.001 * (i % 3),
            "scheduled_ts": 27_536.0 + row["arrival_s"] + 0.01,
            "first_token_ts": 27_536.0 + row["first_token_s"],
            "last_token_ts": 27_536.0 + row["last_token_s"],
        }
        for i, row in enumerate(rows(n))
    ]


def csv(table: Rows) -> str:
    cells = [[("" if value is None else str(value)) for value in row.values()] for row in table]
    return "\n".join(",".join(line) for line in [list(table[0]), *cells]) + "\n"


def jsonl(table: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in table)


def read(tmp_path: Path, text: str, name: str = "log.csv") -> RequestLog:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_log(path)


def same(one: RequestLog, other: RequestLog) -> None:
    for name, value in vars(one).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(value, getattr(other, name), atol=1e-6, err_msg=name)


def test_csv_and_json_lines_plain_and_compressed_say_the_same(tmp_path: Path) -> None:
    log = read(tmp_path, csv(rows()))
    assert len(log) == 20
    np.testing.assert_allclose(log.ttft_s, 0.2, atol=1e-9)
    np.testing.assert_allclose(log.latency_s, 0.2 + 0.05 * (np.arange(20) % 5), atol=1e-9)
    assert np.isnan(log.scheduled_s).all()
    assert (log.models, log.tasks, log.replicas, log.notes) == (("",), ("",), ("",), ())
    same(log, read(tmp_path, jsonl(rows()), "log.jsonl"))
    for text, name in ((csv(rows()), "log.csv.gz"), (jsonl(rows()), "log.jsonl.gz")):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
        same(log, read_log(tmp_path / name))


def test_the_order_of_the_lines_does_not_matter(tmp_path: Path) -> None:
    shuffled = [rows()[i] for i in np.random.default_rng(0).permutation(20)]
    same(read(tmp_path, csv(rows())), read(tmp_path, csv(shuffled)))


def test_arrivals_are_moved_to_the_servers_clock(tmp_path: Path) -> None:
    log = read(tmp_path, jsonl(vllm()))
    np.testing.assert_allclose(log.arrival_s, np.arange(20.0), atol=1e-6)
    np.testing.assert_allclose(log.ttft_s, 0.2, atol=1e-6)
    np.testing.assert_allclose(log.scheduled_s - log.arrival_s, 0.01, atol=1e-6)
    assert log.notes == ()


def test_a_wall_clock_that_was_set_is_not_used(tmp_path: Path) -> None:
    table = vllm()
    for row in table[7:]:
        row["arrival_time"] += 3600.0
    log = read(tmp_path, jsonl(table))
    np.testing.assert_allclose(log.ttft_s, 0.2 - 0.001 * (np.arange(20) % 3), atol=1e-6)
    assert "`arrival_time` jumps against `queued_ts`" in log.notes[0]


def test_another_clock_without_an_entry_into_the_queue(tmp_path: Path) -> None:
    table = [{k: v for k, v in row.items() if k not in ("queued_ts", "scheduled_ts")} for row in vllm()]
    log = read(tmp_path, jsonl(table))
    # The first token of an idle server takes as long as a further one, at the least.
    assert log.ttft_s.min() == pytest.approx(0.05, abs=1e-6)
    assert "another clock" in log.notes[0]


def test_first_tokens_may_be_missing(tmp_path: Path) -> None:
    table = rows()
    table[3]["first_token_s"] = None
    log = read(tmp_path, csv(table))
    assert np.flatnonzero(np.isnan(log.first_token_s)).tolist() == [3]
    assert "1 of 20 answered requests have no time of their first token" in log.notes[0]
    none = [{k: v for k, v in row.items() if k != "first_token_s"} for row in rows()]
    # The first token of an answer of one token is the last.
    assert np.isfinite(read(tmp_path, jsonl(none)).first_token_s).tolist() == [i % 5 == 0 for i in range(20)]


def test_aborted_requests_are_left_out_and_counted(tmp_path: Path) -> None:
    table = rows()
    table[2]["last_token_s"] = table[2]["output_tokens"] = None
    table[5]["output_tokens"] = 0
    log = read(tmp_path, csv(table))
    assert len(log) == 18
    assert "2 of 20 requests were aborted or unfinished" in log.notes[0]


def test_names_of_models_tasks_and_replicas(tmp_path: Path) -> None:
    table = [{**row, "model": "ba"[i % 2], "task": "chat", "replica": i % 3} for i, row in enumerate(rows())]
    log = read(tmp_path, csv(table))
    assert (log.models, log.tasks, log.replicas) == (("a", "b"), ("chat",), ("0", "1", "2"))
    part = log.of_model(0)
    assert len(part) == 10
    np.testing.assert_array_equal(part.arrival_s, np.arange(1.0, 20.0, 2.0))


def test_rounding_is_no_clock_that_runs_backwards(tmp_path: Path) -> None:
    table = rows()
    table[4]["first_token_s"] = table[4]["last_token_s"] + 0.0005
    log = read(tmp_path, csv(table))
    assert np.all(log.last_token_s >= log.first_token_s)


def without(name: str) -> Rows:
    return [{k: v for k, v in row.items() if k != name} for row in rows()]


def lacking(name: str) -> Rows:
    """Every second row without a cell."""
    return [{**row, name: None} if i % 2 else row for i, row in enumerate(rows())]


def changed(row: int, table: Callable[[], Rows] = rows, **values: Any) -> Rows:
    made = table()
    made[row].update(values)
    return made


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["the file is empty"]),
        (csv(rows())[:30] + "\n", ["no rows below its header"]),
        (csv(rows())[:-3], ["cut short"]),
        (csv(without("arrival_s")), ["no column has the arrivals", "`arrival_s`"]),
        (csv(without("last_token_s")), ["no column has the last token", "`last_token_s` or `latency_s`"]),
        (csv(without("prompt_tokens")), ["no column has the prompt length", "`prompt_tokens`"]),
        (csv(without("output_tokens")), ["no column has the output length", "`output_tokens`"]),
        (csv(changed(3, prompt_tokens="many")), ["line 5", "`prompt_tokens` is `many`", "not a number"]),
        (csv(lacking("prompt_tokens")), ["line 3", "`prompt_tokens` is ``", "(9 more lack it)"]),
        (jsonl(lacking("prompt_tokens")), ["line 2", "`prompt_tokens` is ``", "(9 more lack it)"]),
        (csv(lacking("arrival_s")), ["line 3", "`arrival_s` is ``"]),
        (csv(changed(3, output_tokens=-4)), ["line 5", "`output_tokens` is `-4`", "below 0"]),
        (
            csv([{**row, "first_token_s": row["last_token_s"] + 1} if row["arrival_s"] < 6 else row for row in rows()]),
            ["`last_token_s` lies 1 s before `first_token_s` in line 2, and so in 5 more of 20 answered requests"],
        ),
        (
            csv([{**row, "last_token_s": 0.01 * row["last_token_s"]} for row in rows()]),
            ["line 2", "so in 19 more of 20 answered requests, so units", "`--columns ttft=NAME:ms,latency=NAME:s`"],
        ),
        (
            jsonl([{**row, "scheduled_ts": 27_500.0} for row in vllm()]),
            ["`scheduled_ts` lies 36 s before `queued_ts` in line 1"],
        ),
        (jsonl(rows()) + "7\n", ["line 21", "not a JSON object"]),
        (
            csv([{k: 1000 * v if k.endswith("_s") else v for k, v in row.items()} for row in rows()]),
            ["a token takes", "times are not in seconds"],
        ),
        (csv([{**row, "last_token_s": None} for row in rows()]), ["no request has a last token"]),
    ],
)
def test_bad_logs(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    said = str(caught.value)
    assert said.startswith(str(tmp_path / "log.csv"))
    assert said.endswith(".")
    assert "\n" not in said
    for word in words:
        assert word in said


def test_tokens_that_a_prefix_cache_had_are_read(tmp_path: Path) -> None:
    table = vllm()
    none = read(tmp_path, jsonl(table), "none.jsonl")
    assert none.cached_tokens is None
    for index, row in enumerate(table):
        row["num_cached_tokens"] = row["input_toks"] if index == 0 else index % 3
    log = read(tmp_path, jsonl(table))
    assert log.cached_tokens is not None
    assert (log.cached_tokens < log.prompt_tokens).all()
    assert sorted(log.cached_tokens.tolist()) == sorted(
        [int(table[0]["input_toks"]) - 1, *(k % 3 for k in range(1, 20))]
    )
    assert any("were in the prefix cache, as the log says, and cost no prefill." in note for note in log.notes)
