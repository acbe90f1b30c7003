"""Every format, written from one list of requests as its tool writes it, gives that list back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.profiling.server_log import RequestLog, read_log, read_logs
from besteffort.workload.readers import READERS
from besteffort.workload.reading import Drawing, Reading, read
from besteffort.workload.traces import read_trace
from tests.workload.readers.written import (
    ARRIVAL,
    EPOCH_S,
    FIRST,
    FORMATS,
    LAST,
    OUTPUT,
    PROMPT,
    N,
    Row,
    aiperf,
    attributes,
    bailian,
    burst,
    csv,
    guidellm,
    jsonl,
    langfuse,
    litellm,
    otel,
    own,
    rows,
    span_line,
    vllm_bench,
    vllm_request,
)


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


@pytest.mark.checkout
def test_the_page_names_every_source() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "logs.md").read_text("utf-8")
    for reader in READERS.values():
        assert reader.source in page or reader.source == "this package"
        assert reader.title


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


@pytest.mark.parametrize("whole", [2, 20])
def test_litellm_without_streaming_has_no_first_tokens(file: Callable[[str], Path], whole: int) -> None:
    table = rows(lambda i: litellm(i, "%Y-%m-%d %H:%M:%S.%f"))
    for row in table[:whole]:
        row["completionStartTime"] = row["endTime"]
    log = read_log(file(csv(table)))
    assert np.isnan(log.first_token_s).sum() == whole
    assert f"{whole} first tokens are stated at the end of their answers" in " ".join(log.notes)


@pytest.mark.parametrize("layout", ["csv", "jsonl"])
def test_litellm_logs_what_no_server_answered(file: Callable[[str], Path], situation: Any, layout: str) -> None:
    table = rows(lambda i: {**litellm(i, "%Y-%m-%d %H:%M:%S.%f"), "call_type": "acompletion", "cache_hit": "False"})
    for row in table[:4]:
        row |= {"cache_hit": "True", "endTime": row["startTime"], "completionStartTime": row["startTime"]}
    for row in table[4:10]:
        row |= {"call_type": "aembedding", "completion_tokens": 0}
    path = file(csv(table) if layout == "csv" else jsonl(table))
    requests, info = read_trace(path, situation)
    np.testing.assert_array_equal(requests.prompt_tokens, PROMPT[10:])
    assert "4 requests were answered from LiteLLM's own cache and are left out" in str(info)
    assert "6 calls generated no text (`call_type`) and are left out" in str(info)
    np.testing.assert_allclose(read_log(path).latency_s, (LAST - ARRIVAL)[10:], atol=2e-6)
    _, info = read_trace(path, situation, Reading(limit=12))
    assert info.requests == 12
    assert "4 requests were answered from LiteLLM's own cache and are left out" in str(info)


def test_litellm_with_another_end(file: Callable[[str], Path]) -> None:
    path = file(csv(rows(lambda i: litellm(i, "%Y-%m-%d %H:%M:%S.%f"))))
    with pytest.raises(InputError, match="no column has the arrivals, so say which one does"):
        read_log(path, Reading(("last=startTime",)))


def test_litellm_had_its_status_in_the_metadata(file: Callable[[str], Path], situation: Any) -> None:
    table = rows(lambda i: {**litellm(i, "%Y-%m-%d %H:%M:%S.%f"), "metadata": {"status": "failure" if i < 5 else None}})
    for row in table:
        del row["status"]
    table[0]["completion_tokens"] = 0
    assert read_trace(file(jsonl(table)), situation)[1].requests == 35


@pytest.mark.parametrize("layout", ["csv", "jsonl"])
@pytest.mark.parametrize("name", ["usageDetails", "usage_details"])
def test_langfuse_counts_each_token_once(file: Callable[[str], Path], situation: Any, name: str, layout: str) -> None:
    """Cached tokens are no part of `input`, nor reasoning of `output`, unless the total says so."""
    table = rows(lambda i: langfuse(i, name))
    for i, row in enumerate(table):
        row |= {"level": "ERROR" if i == 7 else "DEFAULT", "promptTokens": None}
        details = {"input": int(PROMPT[i]) - 12, "input_cached_tokens": 12, "output": int(OUTPUT[i]) - 1}
        details |= {"output_reasoning_tokens": 1, "total": int(PROMPT[i] + OUTPUT[i])}
        if i == 8:
            details |= {"input": int(PROMPT[i]), "output": int(OUTPUT[i])}
        if i == 9:
            details = {"input": 3, "cache_read_input_tokens": int(PROMPT[i]) - 3, "output": int(OUTPUT[i])}
        row[name] = details if layout == "jsonl" else '"' + json.dumps(details).replace('"', '""') + '"'
    path = file(jsonl(table) if layout == "jsonl" else csv(table))
    requests, _ = read_trace(path, situation)
    kept = np.arange(N) != 7
    np.testing.assert_array_equal(requests.prompt_tokens, PROMPT[kept])
    np.testing.assert_array_equal(requests.output_tokens, OUTPUT[kept])
    assert requests.cached_tokens is not None
    assert requests.cached_tokens[:9].tolist() == [12] * 7 + [0] + [PROMPT[9] - 3]


def test_anthropic_counts_cached_tokens_beside_the_prompt(file: Callable[[str], Path], situation: Any) -> None:
    requests, info = read_trace(file(FORMATS["Anthropic"][1]), situation)
    assert requests.cached_tokens is not None
    np.testing.assert_array_equal(requests.cached_tokens, PROMPT // 2)
    assert "as Anthropic counts them" in str(info)
    # LiteLLM has the same name for a part of the whole prompt.
    usage = {"prompt_tokens": 90, "completion_tokens": 5, "input_tokens": 90, "cache_read_input_tokens": 60}
    table = rows(lambda i: {"created_at": EPOCH_S + ARRIVAL[i], "usage": usage})
    requests, info = read_trace(file(jsonl(table)), situation)
    assert requests.cached_tokens is not None
    assert (info.kind, requests.prompt_tokens[0], requests.cached_tokens[0]) == ("log", 90, 60)


def test_guidellm_without_streaming_has_the_ends_of_requests(file: Callable[[str], Path]) -> None:
    document = json.loads(guidellm(None))
    for i, request in enumerate(document["benchmarks"][0]["requests"]["successful"]):
        request["info"]["timings"] |= {"request_end": EPOCH_S + LAST[i] + 1e-3}
        if i % 2:
            request["info"]["timings"] |= {"first_token_iteration": None, "last_token_iteration": None}
    log = read_log(file(json.dumps(document)))
    odd = np.arange(N) % 2
    np.testing.assert_allclose(log.latency_s, LAST - ARRIVAL + 1e-3 * odd, atol=2e-6)
    assert np.isnan(log.ttft_s).sum() == N / 2


def test_bailian_has_turns_where_chats_are_left_out(file: Callable[[str], Path], situation: Any) -> None:
    table = [{**bailian(i), "type": "text", "turn": 1, "hash_ids": [i]} for i in range(N)]
    for row in table:
        del row["chat_id"], row["parent_chat_id"]
    requests, info = read_trace(file(jsonl(table)), situation)
    assert info.kind == "qwen_bailian"
    np.testing.assert_allclose(requests.arrival_s, ARRIVAL - ARRIVAL[0], atol=2e-6)


def named(path: Path, *columns: str, names: tuple[str, ...] = ()) -> RequestLog:
    (log,) = read_logs([path], Reading(columns), names)
    return log


def test_litellm_names_models_by_deployment_or_group(file: Callable[[str], Path]) -> None:
    deployment = {"status": "success", "model_group": "chat"}
    table = rows(lambda i: {**litellm(i, "%Y-%m-%d %H:%M:%S.%f"), "model": f"azure/{'ab'[i % 2]}", **deployment})
    path = file(csv(table))
    log = named(path)
    assert (log.kind, log.models) == ("litellm", ("azure/a", "azure/b"))
    assert "by the column `model` (others name them, too: `--columns model=model_group`)" in str(log)
    by_group = named(path, "model=model_group")
    # One column is another; the rest is as the format has it, arrivals and failures among them.
    assert (by_group.kind, by_group.models) == ("litellm", ("chat",))
    assert "by the column `model_group` (others name them, too: `--columns model=model`)" not in str(by_group)
    assert "as `--columns` says, model is `model_group`." in by_group.notes
    np.testing.assert_array_equal(by_group.last_token_s, log.last_token_s)
    np.testing.assert_array_equal(by_group.first_token_s, log.first_token_s)


def test_a_model_without_a_name_is_called_after_its_file(file: Callable[[str], Path]) -> None:
    path = file(jsonl(rows(vllm_request)))
    log = named(path)
    assert log.models == ("log.txt",)
    assert "called after the file, `log.txt`; `--name NAME`, or `--columns model=COLUMN`, names it otherwise" in str(
        log
    )
    log = named(path, names=("mine",))
    assert log.models == ("mine",)
    assert "the model is `mine`, as `--name` says" in str(log)


def test_spans_name_their_service_and_their_attributes(file: Callable[[str], Path]) -> None:
    def with_service(i: int) -> Row:
        row = otel(i)
        row["resourceSpans"][0]["resource"] = {"attributes": attributes({"service.name": f"vllm-{'ab'[i % 2]}"})}
        return row

    path = file(jsonl(rows(with_service)))
    log = named(path)
    assert log.units == "nanoseconds, durations seconds"
    assert "called after the file, `log.txt`; `--columns model=service.name` or `--name NAME` names it" in str(log)
    assert named(path, "model=service.name").models == ("vllm-a", "vllm-b")
    assert named(path, "task=service.name").tasks == ("vllm-a", "vllm-b")
    # Some spans name the model that answered, others only the one that was asked for.
    table = rows(otel)
    for i, row in enumerate(table):
        names = {"gen_ai.request.model": "m", **({"gen_ai.response.model": "m-1"} if i > 4 else {})}
        row["resourceSpans"][0]["scopeSpans"][0]["spans"][1]["attributes"] += attributes(names)
    log = named(file(jsonl(table)))
    assert (log.models, log.model_column) == (("m", "m-1"), "gen_ai.response.model")
    assert "`--columns model=gen_ai.request.model`" in str(log)


def test_spans_of_agents_sum_up_others(file: Callable[[str], Path], situation: Any) -> None:
    table = rows(span_line)
    for row in table:
        row["attributes"]["gen_ai.operation.name"] = "chat"
    agents = rows(span_line)
    for row in agents:
        row["attributes"]["gen_ai.operation.name"] = "invoke_agent"
    requests, info = read_trace(file(jsonl(agents + table)), situation)
    np.testing.assert_array_equal(requests.prompt_tokens, PROMPT)
    assert "40 spans without tokens of their own are left out" in str(info)


def test_guidellm_names_the_model_that_it_was_told(file: Callable[[str], Path]) -> None:
    document = json.loads(guidellm(None))
    document["benchmarks"][0]["config"] = {"backend": {"model": "llama"}}
    assert named(file(json.dumps(document))).models == ("llama",)
    document["benchmarks"][0]["config"]["backend"]["model"] = None
    assert "called after the file" in str(named(file(json.dumps(document))))
    document["args"] = {"model": "llama-2"}
    assert named(file(json.dumps(document))).models == ("llama-2",)


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


def test_integers_beyond_floats_are_no_times(file: Callable[[str], Path], situation: Any) -> None:
    table = rows(aiperf)
    table[3]["metrics"]["time_to_first_token"]["value"] = 10**400
    assert np.isnan(read_log(file(jsonl(table))).first_token_s).sum() == 1
    bench = json.loads(vllm_bench(False)) | {"request_rate": 10**400}
    assert read_trace(file(json.dumps(bench)), situation)[1].drawn[0] == "arrivals"


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


@pytest.mark.parametrize(
    ("stamps", "kind", "span_s"),
    [
        ((0, 500, 2000), "mooncake", 2.0),
        ((0.0, 0.5, 2.25), "log", 2.25),
        ((EPOCH_S, EPOCH_S + 5, EPOCH_S + 20), "log", 20.0),
    ],
)
def test_without_hashes_only_whole_numbers_from_a_start_are_milliseconds(
    file: Callable[[str], Path], situation: Any, stamps: tuple[float, ...], kind: str, span_s: float
) -> None:
    table = [{"timestamp": stamp, "input_length": 10, "output_length": 5 + i} for i, stamp in enumerate(stamps)]
    for text in (jsonl(table), csv(table)):
        _, info = read_trace(file(text), situation)
        assert (info.kind, info.span_s) == (kind, span_s)


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
