"""One list of requests, written as the tools of every format write it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any

import numpy as np

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


def anthropic(i: int, *, nested: bool) -> Row:
    cached = int(PROMPT[i]) // 2
    usage = {"input_tokens": int(PROMPT[i]) - cached - 7, "cache_read_input_tokens": cached}
    usage |= {"cache_creation_input_tokens": 7, "output_tokens": int(OUTPUT[i])}
    times = {"created_at": EPOCH_S + ARRIVAL[i], "ttft_s": FIRST[i] - ARRIVAL[i], "latency_s": LAST[i] - ARRIVAL[i]}
    return {**times, "usage": usage} if nested else {**times, **usage}


def per_token(i: int) -> Row:
    return {
        "timestamp_ms": 1e3 * (EPOCH_S + ARRIVAL[i]),
        **lens(i, "num_prompt_tokens", "num_generated_tokens"),
        "time_to_first_token": FIRST[i] - ARRIVAL[i],
        "tpot": 12.0,
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
    "Anthropic, CSV": ("anthropic", csv(rows(lambda i: anthropic(i, nested=False))), "first"),
    "Anthropic": ("anthropic", jsonl(rows(lambda i: anthropic(i, nested=True))), "first"),
    "any benchmark": ("log", csv(rows(per_token)), "first"),
    "any gateway": ("log", jsonl(rows(gateway)), "first"),
}
