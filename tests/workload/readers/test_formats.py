"""Every format, written from one list of requests as its tool writes it, gives that list back."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.profiling.server_log import read_log
from besteffort.workload.readers import READERS
from besteffort.workload.reading import Drawing, read
from besteffort.workload.traces import read_trace

N = 40
_RNG = np.random.default_rng(5)
ARRIVAL = np.round(np.cumsum(_RNG.exponential(0.4, N)), 6)
PROMPT, OUTPUT = _RNG.integers(20, 900, N), _RNG.integers(2, 90, N)
FIRST = np.round(ARRIVAL + 0.02 + 0.0001 * PROMPT, 6)
LAST = np.round(FIRST + 0.012 * (OUTPUT - 1), 6)
EPOCH_S = 1_760_000_000
MONOTONIC_S = 27_536.5

Row = dict[str, Any]


def rows(make: Callable[[int], Row]) -> list[Row]:
    return [make(i) for i in range(N)]


def csv(table: list[Row], header: bool = True, separator: str = ",") -> str:
    lines = [separator.join("" if v is None else str(v) for v in row.values()) for row in table]
    return "\n".join(([separator.join(table[0])] if header else []) + lines) + "\n"


def jsonl(table: list[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in table)


def date(seconds: float, text: str = "%Y-%m-%d %H:%M:%S.%f") -> str:
    return (datetime.datetime.fromtimestamp(EPOCH_S, datetime.UTC) + datetime.timedelta(seconds=seconds)).strftime(text)


def itls(i: int) -> list[float]:
    n = int(OUTPUT[i]) - 1
    return [float(LAST[i] - FIRST[i]) / n] * n


def lens(i: int, prompt: str, output: str) -> Row:
    return {prompt: int(PROMPT[i]), output: int(OUTPUT[i])}


def attributes(values: Row) -> list[Row]:
    kinds = {int: "intValue", float: "doubleValue", str: "stringValue"}
    text = {int: str, float: float, str: str}
    return [{"key": key, "value": {kinds[type(v)]: text[type(v)](v)}} for key, v in values.items()]


def azure(stamp: Callable[[float], str]) -> str:
    return csv(rows(lambda i: {"TIMESTAMP": stamp(ARRIVAL[i]), **lens(i, "ContextTokens", "GeneratedTokens")}))


def vllm_bench(starts: bool) -> str:
    lists: Row = {
        "input_lens": PROMPT.tolist(),
        "output_lens": OUTPUT.tolist(),
        "ttfts": (FIRST - ARRIVAL).tolist(),
        "itls": [itls(i) for i in range(N)],
        "generated_texts": [""] * N,
        "errors": [""] * N,
    }
    if starts:
        lists["start_times"] = (MONOTONIC_S + ARRIVAL).tolist()
    return json.dumps({"backend": "any", "request_rate": 2.5, "duration": float(LAST.max()), **lists})


def guidellm(indent: int | None) -> str:
    def request(i: int) -> Row:
        times = {"request_start": EPOCH_S + ARRIVAL[i], "first_token_iteration": EPOCH_S + FIRST[i]}
        times["last_token_iteration"] = EPOCH_S + LAST[i]
        if indent is None:
            return {"request_id": f"r{i}", **lens(i, "prompt_tokens", "output_tokens"), "info": {"timings": times}}
        old = dict(zip(("request_start_time", "first_token_time", "last_token_time"), times.values(), strict=True))
        return {"request_id": f"r{i}", **lens(i, "prompt_tokens", "output_tokens"), **old}

    broken = {"request_id": "x", "prompt_tokens": 9, "output_tokens": None, "request_start_time": EPOCH_S + 1.0}
    groups = {"successful": rows(request), "errored": [broken], "incomplete": []}
    return json.dumps({"metadata": {}, "benchmarks": [{"requests": groups}]}, indent=indent)


def aiperf(i: int) -> Row:
    return {
        "metadata": {
            "x_request_id": f"r{i}",
            "request_start_ns": EPOCH_S * 10**9 + round(ARRIVAL[i] * 1e9),
            "request_end_ns": EPOCH_S * 10**9 + round(LAST[i] * 1e9),
            "benchmark_phase": "profiling",
            "was_cancelled": False,
        },
        "metrics": {
            "input_sequence_length": {"value": int(PROMPT[i]), "unit": "tokens"},
            "output_sequence_length": {"value": int(OUTPUT[i]), "unit": "tokens"},
            "time_to_first_token": {"value": 1e3 * float(FIRST[i] - ARRIVAL[i]), "unit": "ms"},
        },
        "error": None,
    }


def inference_perf(i: int, later: bool) -> Row:
    times = (MONOTONIC_S + FIRST[i] + 0.012 * np.arange(OUTPUT[i])).tolist()
    info: Row = {**lens(i, "input_tokens", "output_tokens"), "output_token_times": times}
    if later:
        answer = {"output_tokens": int(OUTPUT[i]), "output_token_times": times}
        info = {"request_metrics": {"text": {"input_tokens": int(PROMPT[i])}}, "response_metrics": answer}
    return {"start_time": MONOTONIC_S + ARRIVAL[i], "end_time": times[-1], "request": "{}", "info": info, "error": None}


def litellm(i: int, text: str) -> Row:
    return {
        "request_id": f"r{i}",
        "spend": 0.1,
        **lens(i, "prompt_tokens", "completion_tokens"),
        "startTime": date(ARRIVAL[i], text),
        "endTime": date(LAST[i], text),
        "completionStartTime": date(FIRST[i], text),
        "model": "m",
        "status": "success",
    }


def langfuse(i: int, usage: str) -> Row:
    tokens: Any = {"input": int(PROMPT[i]), "output": int(OUTPUT[i])}
    row = {
        "id": f"o{i}",
        "traceId": f"t{i}",
        "type": "GENERATION",
        "startTime": date(ARRIVAL[i], "%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    row |= {"endTime": date(LAST[i], "%Y-%m-%dT%H:%M:%S.%fZ"), "model": "m"}
    row["completionStartTime"] = date(FIRST[i], "%Y-%m-%dT%H:%M:%S.%fZ")
    if usage == "flat":
        return {**row, **lens(i, "promptTokens", "completionTokens")}
    return {**row, usage: tokens}


def otel(i: int) -> Row:
    span = {
        "spanId": f"s{i}",
        "startTimeUnixNano": str(EPOCH_S * 10**9 + round(ARRIVAL[i] * 1e9)),
        "endTimeUnixNano": str(EPOCH_S * 10**9 + round(LAST[i] * 1e9)),
        "attributes": attributes(
            {
                "gen_ai.latency.time_to_first_token": float(FIRST[i] - ARRIVAL[i]),
                **lens(i, "gen_ai.usage.prompt_tokens", "gen_ai.usage.completion_tokens"),
                "gen_ai.request.max_tokens": 512,
            }
        ),
        "status": {},
    }
    other = {"spanId": f"h{i}", "startTimeUnixNano": "1", "endTimeUnixNano": "2", "attributes": []}
    return {"resourceSpans": [{"scopeSpans": [{"spans": [other, span]}]}]}


def span_line(i: int) -> Row:
    return {
        "name": "chat m",
        "start_time": date(ARRIVAL[i], "%Y-%m-%dT%H:%M:%S.%fZ"),
        "end_time": date(LAST[i], "%Y-%m-%dT%H:%M:%S.%fZ"),
        "attributes": {
            **lens(i, "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"),
            "gen_ai.response.time_to_first_chunk": float(FIRST[i] - ARRIVAL[i]),
        },
        "status": {"status_code": "UNSET"},
    }


def vllm_request(i: int) -> Row:
    return {
        "request_id": f"r{i}",
        **lens(i, "input_toks", "output_toks"),
        "arrival_time": EPOCH_S + ARRIVAL[i],
        "queued_ts": MONOTONIC_S + ARRIVAL[i],
        "scheduled_ts": MONOTONIC_S + ARRIVAL[i],
        "first_token_ts": MONOTONIC_S + FIRST[i],
        "last_token_ts": MONOTONIC_S + LAST[i],
    }


def blis(i: int) -> Row:
    us = {
        name: round(v * 1e6)
        for name, v in (("arrival", ARRIVAL[i]), ("first_chunk", FIRST[i]), ("last_chunk", LAST[i]))
    }
    return {
        "request_id": i,
        "client_id": "",
        **lens(i, "input_tokens", "output_tokens"),
        "model": "",
        "deadline_us": 0,
        **{f"{name}_time_us": value for name, value in us.items()},
        "status": "ok",
        "error_message": "",
    }


def own(i: int) -> Row:
    return {"arrival_s": ARRIVAL[i], "task": "piqa", **lens(i, "prompt_tokens", "output_tokens")}


def mooncake(i: int) -> Row:
    return {"timestamp": round(1e3 * ARRIVAL[i]), **lens(i, "input_length", "output_length"), "hash_ids": [0, i]}


def bailian(i: int) -> Row:
    return {"chat_id": i, "parent_chat_id": -1, "timestamp": ARRIVAL[i], **lens(i, "input_length", "output_length")}


def burst(i: int, second: bool) -> Row:
    middle = {"Session ID": i, "Elapsed time": LAST[i] - ARRIVAL[i]} if second else {}
    return {"Timestamp": ARRIVAL[i], **middle, "Model": "GPT-4", **lens(i, "Request tokens", "Response tokens")}


def vidur(i: int) -> Row:
    return {"arrived_at": ARRIVAL[i], **lens(i, "num_prefill_tokens", "num_decode_tokens")}


def splitwise(i: int) -> Row:
    kind = {"request_id": i, "request_type": 2, "application_id": 0, "arrival_timestamp": ARRIVAL[i], "batch_size": 1}
    return {**kind, **lens(i, "prompt_size", "token_size")}


def serving_sim(i: int) -> Row:
    return {**lens(i, "input_toks", "output_toks"), "arrival_time_ns": round(1e9 * ARRIVAL[i])}


def gateway(i: int) -> Row:
    return {
        "created_at": date(ARRIVAL[i], "%Y-%m-%dT%H:%M:%S.%f+00:00"),
        "usage": lens(i, "prompt_tokens", "completion_tokens"),
        "ttft_ms": 1e3 * (FIRST[i] - ARRIVAL[i]),
        "latency_ms": 1e3 * (LAST[i] - ARRIVAL[i]),
    }


# Format, text, and what it holds besides arrivals and lengths: the last token, and the first.
FORMATS: dict[str, tuple[str, str, str]] = {
    "own": ("csv", csv(rows(own)), ""),
    "own, JSON lines": ("csv", jsonl(rows(own)), ""),
    "own, a JSON list": ("csv", json.dumps(rows(own), indent=1), ""),
    "own, semicolons": ("csv", csv(rows(own), separator=";"), ""),
    "Azure 2023": ("azure_llm", azure(date)[:-1], ""),
    "Azure 2024": ("azure_llm", azure(lambda s: date(s) + "+00:00"), ""),
    "Azure 2025": (
        "azure_llm",
        csv(
            rows(
                lambda i: {
                    "TIMESTAMP": date(ARRIVAL[i]) + "Z",
                    "NumImages": 1,
                    **lens(i, "ContextTokens", "GeneratedTokens"),
                }
            )
        ),
        "",
    ),
    "Azure, seconds": ("azure_llm", azure(lambda s: f"{s:.6f}"), ""),
    "Azure, seconds since 1970": ("azure_llm", azure(lambda s: f"{EPOCH_S + s:.6f}"), ""),
    "Azure, another zone": ("azure_llm", azure(lambda s: date(s + 7200) + "+02:00"), ""),
    "Mooncake": ("mooncake", jsonl(rows(mooncake)), "ms"),
    "Bailian": ("qwen_bailian", jsonl(rows(bailian)), ""),
    "BurstGPT 1": ("burstgpt", csv(rows(lambda i: burst(i, False))), ""),
    "BurstGPT 2": ("burstgpt", csv(rows(lambda i: burst(i, True))), "last"),
    "vLLM's requests": ("vllm_requests", jsonl(rows(vllm_request)), "first"),
    "vllm bench serve": ("vllm_bench", vllm_bench(True), "first"),
    "guidellm": ("guidellm", guidellm(None), "first"),
    "guidellm, earlier": ("guidellm", guidellm(2), "first"),
    "aiperf": ("aiperf", jsonl(rows(aiperf)), "first"),
    "inference-perf": ("inference_perf", json.dumps(rows(lambda i: inference_perf(i, False)), indent=2), "first"),
    "inference-perf, later": ("inference_perf", json.dumps(rows(lambda i: inference_perf(i, True))), "first"),
    "LiteLLM, CSV": ("litellm", csv(rows(lambda i: litellm(i, "%Y-%m-%d %H:%M:%S.%f"))), "first"),
    "LiteLLM, JSON": ("litellm", json.dumps(rows(lambda i: litellm(i, "%Y-%m-%dT%H:%M:%S.%f+00:00"))), "first"),
    "Langfuse, flat": ("langfuse", jsonl(rows(lambda i: langfuse(i, "flat"))), "first"),
    "Langfuse, API": (
        "langfuse",
        json.dumps({"data": rows(lambda i: langfuse(i, "usageDetails")), "meta": {}}),
        "first",
    ),
    "Langfuse, blobs": ("langfuse", jsonl(rows(lambda i: langfuse(i, "usage_details"))), "first"),
    "OTLP": ("otel", jsonl(rows(otel)), "first"),
    "spans by line": ("otel", jsonl(rows(span_line)), "first"),
    "Vidur": ("vidur", csv(rows(vidur)), ""),
    "BLIS": ("blis", csv(rows(blis)), "first"),
    "splitwise-sim": ("splitwise", csv(rows(splitwise)), ""),
    "LLMServingSim": ("llm_serving_sim", jsonl(rows(serving_sim)), ""),
    "LLMServingSim, tabs": ("llm_serving_sim", csv(rows(serving_sim), separator="\t"), ""),
    "any gateway": ("log", jsonl(rows(gateway)), "first"),
}


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "log.txt"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", FORMATS)
def test_the_requests_come_back(name: str, file: Callable[[str], Path], situation: Any) -> None:
    kind, text, holds = FORMATS[name]
    path = file(text)
    requests, info = read_trace(path, situation)
    assert info.kind == kind
    tolerance = 1e-3 if holds == "ms" else 2e-6
    expected = ARRIVAL if name.startswith("own") else ARRIVAL - ARRIVAL[0]
    np.testing.assert_allclose(requests.arrival_s, expected, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(requests.prompt_tokens, PROMPT)
    np.testing.assert_array_equal(requests.output_tokens, OUTPUT)
    assert ("tasks" in info.drawn) == (not name.startswith("own"))
    if holds not in ("first", "last"):
        with pytest.raises(InputError, match="no column has the last token"):
            read_log(path)
        return
    log = read_log(path)
    np.testing.assert_allclose(log.arrival_s, ARRIVAL - ARRIVAL[0], rtol=0, atol=tolerance)
    np.testing.assert_allclose(log.latency_s, LAST - ARRIVAL, rtol=0, atol=tolerance)
    if holds == "first":
        np.testing.assert_allclose(log.ttft_s, FIRST - ARRIVAL, rtol=0, atol=tolerance)
    else:
        assert np.isnan(log.ttft_s).all()
    np.testing.assert_array_equal(log.prompt_tokens, PROMPT)
    np.testing.assert_array_equal(log.output_tokens, OUTPUT)


def test_every_format_is_here() -> None:
    elsewhere = {"mooncake_sessions", "maf_2021", "servegen", "maf", "sglang_bench", "genai_perf"}
    assert {kind for kind, _, _ in FORMATS.values()} | elsewhere == READERS.keys()


def test_what_failed_is_left_out_and_counted(file: Callable[[str], Path], situation: Any) -> None:
    # One request of guidellm's is in `errored`.
    _, info = read_trace(file(guidellm(None)), situation)
    assert "1 of 41 requests failed or were not answered and are left out" in str(info)
    table = rows(lambda i: {**burst(i, False), "Response tokens": 0 if i % 4 == 0 else int(OUTPUT[i])})
    _, info = read_trace(file(csv(table)), situation)
    assert (info.requests, "10 of 40 requests failed" in str(info)) == (30, True)
    table = rows(lambda i: {**litellm(i, "%Y-%m-%d %H:%M:%S.%f"), "status": "failure" if i < 2 else "success"})
    assert len(read_log(file(csv(table)))) == 38
    bench = json.loads(vllm_bench(True))
    bench["errors"][3], bench["output_lens"][3] = "timeout", 0
    assert len(read_log(file(json.dumps(bench)))) == 39
    table = rows(lambda i: {**aiperf(i), "error": {"code": 500} if i == 0 else None})
    table[1]["metadata"]["benchmark_phase"] = "warmup"
    _, info = read_trace(file(jsonl(table)), situation)
    assert info.requests == 38
    assert "1 requests of the warm-up are left out" in str(info)


def test_litellm_without_streaming_has_no_first_tokens(file: Callable[[str], Path]) -> None:
    table = rows(lambda i: litellm(i, "%Y-%m-%d %H:%M:%S.%f"))
    for row in table[:20]:
        row["completionStartTime"] = row["endTime"]
    log = read_log(file(csv(table)))
    assert np.isnan(log.first_token_s).sum() == 20
    assert "20 first tokens are stated at the end of their answers" in " ".join(log.notes)


def test_sglang_has_no_arrivals(file: Callable[[str], Path], situation: Any) -> None:
    path = file(vllm_bench(False) + "\n" + vllm_bench(False) + "\n")
    requests, info = read_trace(path, situation, seed=1)
    assert info.drawn[0] == "arrivals"
    np.testing.assert_array_equal(requests.prompt_tokens, np.tile(PROMPT, 2))
    assert info.mean_rate == pytest.approx(2.5, rel=0.4)
    with pytest.raises(InputError, match="holds no times of single requests"):
        read_log(path)
    slow = json.loads(vllm_bench(False)) | {"request_rate": "inf", "duration": 400.0}
    rates = [read_trace(file(json.dumps(slow)), situation, seed=seed)[1].mean_rate for seed in range(30)]
    assert np.mean(rates) == pytest.approx(0.1, rel=0.15)
    brief = {name: value for name, value in slow.items() if name not in ("input_lens", "ttfts")}
    with pytest.raises(InputError, match="fits no known trace format"):
        read_trace(file(json.dumps(brief)), situation)


def test_genai_perf_has_no_prompts(file: Callable[[str], Path], situation: Any) -> None:
    requests = rows(
        lambda i: {
            "timestamp": EPOCH_S * 10**9 + round(ARRIVAL[i] * 1e9),
            "response_timestamps": [EPOCH_S * 10**9 + round(t * 1e9) for t in (FIRST[i], LAST[i])],
        }
    )
    path = file(json.dumps({"experiments": [{"experiment": {}, "requests": requests}], "version": "1"}))
    read_requests, info = read_trace(path, situation)
    np.testing.assert_allclose(read_requests.arrival_s, ARRIVAL - ARRIVAL[0], atol=1e-6)
    assert (info.kind, info.drawn) == ("genai_perf", ("tasks", "lengths"))


def test_functions_of_2021_arrive_before_they_end(file: Callable[[str], Path], situation: Any) -> None:
    table = rows(lambda i: {"app": "a", "func": "f", "end_timestamp": LAST[i], "duration": LAST[i] - ARRIVAL[i]})
    requests, info = read_trace(file(csv(table)), situation)
    np.testing.assert_allclose(requests.arrival_s, ARRIVAL - ARRIVAL[0], atol=1e-9)
    assert (info.kind, info.drawn) == ("maf_2021", ("tasks", "lengths"))


def test_later_turns_of_sessions(file: Callable[[str], Path], situation: Any) -> None:
    lines = [
        {"session_id": "a", "timestamp": 1000, "input_length": 10, "output_length": 5},
        {"session_id": "a", "delay": 250, "input_length": 20, "output_length": 6},
        {"session_id": "b", "timestamp": 1100, "input_length": 30, "output_length": 7},
        {"session_id": "a", "delay": 500, "input_length": 40, "output_length": 8},
    ]
    requests, info = read_trace(file(jsonl(lines)), situation)
    np.testing.assert_allclose(requests.arrival_s, [0.0, 0.1, 0.25, 0.75])
    np.testing.assert_array_equal(requests.prompt_tokens, [10, 30, 20, 40])
    assert "2 later turns of sessions" in str(info)


def test_chunks_of_servegen_have_no_header(file: Callable[[str], Path], situation: Any) -> None:
    path = file(
        "0,1.25,3.5,Gamma,0.0816,9.8\n600,0,0,,0,0\n1200,0.5,2.0,Weibull,0.54,1.15\n1800,0.25,1.0,Gamma,1.0,4.0\n"
    )
    drawn = read(path)
    assert isinstance(drawn, Drawing)
    counts = np.zeros((60, 4))
    for seed in range(60):
        arrival_s = drawn.draw(np.random.default_rng(seed)).arrival_s
        counts[seed] = np.bincount((arrival_s // 600).astype(int), minlength=4)
    error = counts.std(axis=0, ddof=1) / np.sqrt(60)
    assert (np.abs(counts.mean(axis=0) - [750, 0, 300, 150]) <= 4 * error).all()
    assert read_trace(path, situation)[1].kind == "servegen"


def test_minutes_may_begin_later_and_the_file_end_without_a_line_break(
    file: Callable[[str], Path], situation: Any
) -> None:
    header = ",".join(["HashOwner", "HashApp", "HashFunction", "Trigger", *map(str, range(540, 690))])
    text = f"{header}\no,a,f,http," + ",".join(["20"] * 150)
    _, info = read_trace(file(text), situation)
    assert info.kind == "maf"
    assert info.requests == pytest.approx(3000, rel=0.2)
    assert info.span_s == pytest.approx(150 * 60, rel=0.05)
    assert "3,000 invocations in 150 minutes" in str(info)


def test_one_column_named_like_a_minute_is_no_count(file: Callable[[str], Path], situation: Any) -> None:
    _, info = read_trace(file(csv(rows(lambda i: {**own(i), "1": 3}))), situation)
    assert (info.kind, info.requests) == ("csv", N)
