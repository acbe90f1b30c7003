"""Tokens found in a prefix cache: lists and generators carry them, and logs that have them are read."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.evaluation.rollouts import play_routers
from besteffort.profiling.server_log import read_log
from besteffort.routers import DeadlineRouter
from besteffort.runs.config import load_situation
from besteffort.simulator.simulate import simulate
from besteffort.situation import Situation
from besteffort.workload.arrivals import Poisson
from besteffort.workload.reading import Reading
from besteffort.workload.requests import Requests
from besteffort.workload.resample import resample
from besteffort.workload.sample import sample_requests, sample_workload
from besteffort.workload.trace_workload import replay
from besteffort.workload.traces import read_trace

N = 20


@pytest.fixture
def situation() -> Situation:
    return load_situation("paper")


@pytest.fixture
def plain(situation: Situation) -> Requests:
    return sample_requests(situation, Poisson(50.0), N)


@pytest.fixture
def found(plain: Requests) -> Requests:
    """Half of every prompt was found."""
    return dataclasses.replace(plain, cached_tokens=plain.prompt_tokens // 2)


def test_lists_and_generators_keep_them(situation: Situation, plain: Requests, found: Requests) -> None:
    assert plain.cached_tokens is None
    assert found.cached_tokens is not None
    again = sample_workload(replay(found, "first"), situation.task_names, N + 9, seed=0)
    np.testing.assert_array_equal(again.cached_tokens, np.resize(found.cached_tokens, N + 9))
    np.testing.assert_array_equal(found.part(slice(5, 9), 0.0).cached_tokens, found.cached_tokens[5:9])
    drawn = sample_workload(resample(found, Poisson(9.0)), situation.task_names, 50, seed=1)
    np.testing.assert_array_equal(drawn.cached_tokens, drawn.prompt_tokens // 2)


def test_lists_with_and_without_them_play_together(situation: Situation, plain: Requests, found: Requests) -> None:
    played = play_routers(situation, [plain, found], {"deadline": [DeadlineRouter(0.0)] * 2})["deadline"]
    for list_of, requests in enumerate((plain, found)):
        alone = simulate(requests, situation, DeadlineRouter(0.0))
        np.testing.assert_array_equal(played.model[list_of], alone.model)
        np.testing.assert_allclose(played.reward[list_of], alone.reward, rtol=1e-4)


def test_one_token_of_a_prompt_is_read(plain: Requests) -> None:
    whole = dataclasses.replace(plain, cached_tokens=plain.prompt_tokens)
    np.testing.assert_array_equal(whole.cached_tokens, plain.prompt_tokens - 1)


@pytest.mark.parametrize("tokens", [-1.0, np.nan, None])
def test_numbers_out_of_range_are_refused(plain: Requests, tokens: float | None) -> None:
    cached = np.zeros(N)
    cached[7] = plain.prompt_tokens[7] + 1 if tokens is None else tokens
    message = rf"`cached_tokens` of request 7 is {cached[7]}, its prompt has {plain.prompt_tokens[7]} tokens; .*\.$"
    with pytest.raises(InputError, match=message):
        dataclasses.replace(plain, cached_tokens=cached)
    with pytest.raises(InputError, match=r"`cached_tokens` has shape \(3,\); give one number per request\.$"):
        dataclasses.replace(plain, cached_tokens=np.zeros(3))


OWN = """arrival_s,task,prompt_tokens,output_tokens,cached_tokens
0.5,lambada,100,20,64
0.7,piqa,10,5,
0.8,piqa,9,2,9
"""


def test_a_trace_may_have_them(write, situation: Situation) -> None:
    requests, info = read_trace(write("own.csv", OWN), situation)
    assert requests.cached_tokens is not None
    assert requests.cached_tokens.tolist() == [64, 0, 8]
    assert "61% of the prompts' tokens were found in a prefix cache" in str(info)
    none, _ = read_trace(write("none.csv", OWN.replace(",64", ",0").replace(",2,9", ",2,0")), situation)
    assert none.cached_tokens is None
    with pytest.raises(InputError, match=r"line 2: `cached_tokens` is .*101.*, which is above its `prompt_tokens`"):
        read_trace(write("high.csv", OWN.replace(",64", ",101")), situation)


def test_columns_name_them(write, situation: Situation) -> None:
    path = write("odd.csv", "when,n_in,n_out,hit\n0,100,5,40\n1,50,5,60\n")
    requests, info = read_trace(path, situation, Reading(("arrival=when:s,prompt=n_in,output=n_out,cached=hit",)))
    assert requests.cached_tokens is not None
    assert requests.cached_tokens.tolist() == [40, 49]
    note = "1 prompts have more tokens in the prefix cache than they have, which counts as all"
    assert note in str(info)
    path = write("odd.csv", "when,took,n_in,n_out,hit\n0,1,100,5,40\n1,1,50,5,6000\n")
    columns = Reading(("arrival=when:s,latency=took:s,prompt=n_in,output=n_out,cached=hit",))
    assert "60% of the prompts' tokens were found in a prefix cache" in str(read_trace(path, situation, columns)[1])
    assert f"{note}." in read_log(path, columns).notes
    write("odd.csv", "when,took,n_in,n_out,hit\n0,1,100,5,40\n1,,,,\n")
    with warnings.catch_warnings(action="error"):
        assert len(read_log(path, columns)) == 1


OPENAI = {"prompt_tokens": 100, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 64}}
LOGS = {
    "usual names": [{"timestamp": 1.0 + k, "usage": OPENAI} for k in range(2)],
    "vLLM": [
        {"request_id": str(k), "arrival_time": 1.5e9 + k, "input_toks": 100, "output_toks": 7, "num_cached_tokens": 64}
        | {"queued_ts": 9.0 + k, "scheduled_ts": 9.1 + k, "first_token_ts": 9.2 + k, "last_token_ts": 9.9 + k}
        for k in range(2)
    ],
    "LiteLLM": [
        {"request_id": str(k), "startTime": f"2025-01-01T00:00:0{k}Z", "endTime": f"2025-01-01T00:00:0{k + 1}Z"}
        | {"prompt_tokens": 100, "completion_tokens": 7, "model": "m", "metadata": {"usage_object": OPENAI}}
        for k in range(2)
    ],
    "LiteLLM's text": [],
    "OpenTelemetry": [
        {
            "spanId": str(k),
            "startTimeUnixNano": str(10**18 + k * 10**9),
            "endTimeUnixNano": str(10**18 + (k + 1) * 10**9),
            "attributes": {
                "gen_ai.usage.input_tokens": 100,
                "gen_ai.usage.output_tokens": 7,
                "gen_ai.usage.cache_read_input_tokens": 64,
            },
        }
        for k in range(2)
    ],
}


LOGS["LiteLLM's text"] = [row | {"metadata": json.dumps(row["metadata"])} for row in LOGS["LiteLLM"]]


@pytest.mark.parametrize("name", LOGS)
def test_logs_that_have_them_are_read(write, situation: Situation, name: str) -> None:
    path = write("log.jsonl", "".join(json.dumps(row) + "\n" for row in LOGS[name]))
    requests, info = read_trace(path, situation)
    assert requests.cached_tokens is not None, str(info)
    assert requests.cached_tokens.tolist() == [64, 64]
