"""Clients' limits on output tokens: lists and generators carry them, and the simulator serves requests as without."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.evaluation.rollouts import play_routers
from besteffort.laptop.requests import with_cases
from besteffort.routers.heuristics import DeadlineRouter
from besteffort.runs.config import load_situation
from besteffort.simulator.simulate import simulate
from besteffort.workload.arrivals import Poisson
from besteffort.workload.requests import NO_LIMIT, Requests
from besteffort.workload.resample import halves, resample
from besteffort.workload.sample import sample_lists, sample_workload
from besteffort.workload.synthetic_workload import synthetic
from besteffort.workload.trace_workload import replay, replay_at_rates
from besteffort.workload.traces import read_trace

N = 60


@pytest.fixture(scope="module")
def plain(situation) -> Requests:
    return sample_workload(synthetic(situation, Poisson(50.0)), situation.task_names, N, seed=1)


@pytest.fixture(scope="module")
def limited(plain) -> Requests:
    """Every limit is the output and as many tokens as the request has requests before it."""
    return dataclasses.replace(plain, output_limit=plain.output_tokens + np.arange(N))


def test_generators_state_none(plain) -> None:
    assert plain.output_limit is None
    np.testing.assert_array_equal(plain.output_limits, NO_LIMIT)


def test_lists_keep_their_limits(situation, limited) -> None:
    assert limited.output_limit.dtype == np.int32
    again = sample_workload(replay(limited, "first"), situation.task_names, N + 9, seed=0)
    np.testing.assert_array_equal(again.output_limit, np.resize(limited.output_limit, N + 9))
    first, second = halves(limited)
    np.testing.assert_array_equal(np.concatenate([first.output_limit, second.output_limit]), limited.output_limit)


def test_limits_stay_with_their_requests(situation) -> None:
    rows = np.arange(40)  # in the prompts, so that a drawn request tells which row it came from
    listed = Requests(
        situation.task_names, rows, rows * 0, 1 + rows, rows * 0 + 5, rows * 0 + 0.25, output_limit=5 + 3 * rows
    )
    for workload in (resample(listed, Poisson(20.0)), replay_at_rates(listed, 5.0, 50.0, 9.0)):
        (drawn,) = sample_lists([workload], situation.task_names, 200, [3])
        np.testing.assert_array_equal(drawn.output_limit, 5 + 3 * (drawn.prompt_tokens - 1))


@pytest.mark.parametrize("backend", ["jax", "reference"])
def test_requests_are_served_as_without(situation, plain, limited, backend) -> None:
    served = [simulate(one, situation, DeadlineRouter(0.0), backend=backend) for one in (plain, limited)]
    for field in dataclasses.fields(served[0]):
        np.testing.assert_array_equal(*(getattr(one, field.name) for one in served))


def test_lists_with_and_without_limits_play_together(situation, plain, limited) -> None:
    played = play_routers(situation, [plain, limited], {"deadline": [DeadlineRouter(0.0)] * 2})["deadline"]
    np.testing.assert_array_equal(played.model[0], played.model[1])
    np.testing.assert_array_equal(played.reward[0], played.reward[1])


def test_other_lengths_have_no_limits() -> None:
    situation = load_situation("laptop")
    times = sample_workload(synthetic(situation, Poisson(50.0)), situation.task_names, 20, seed=1)
    times = dataclasses.replace(times, output_limit=times.output_tokens)
    assert with_cases(times, situation, seed=0).requests.output_limit is None


def test_limits_beyond_any_length_are_no_limits(plain) -> None:
    assert set(dataclasses.replace(plain, output_limit=np.full(N, 2**40)).output_limits.tolist()) == {NO_LIMIT}


@pytest.mark.parametrize("limit", [0.0, -1.0, np.nan, None])
def test_limits_below_the_output_are_refused(plain, limited, limit) -> None:
    limits = limited.output_limit.astype(float)
    limits[7] = plain.output_tokens[7] - 1 if limit is None else limit
    message = rf"`output_limit` of request 7 is {limits[7]}, but its output has {plain.output_tokens[7]} tokens; .*\.$"
    with pytest.raises(InputError, match=message):
        dataclasses.replace(plain, output_limit=limits)


def test_every_request_has_one(plain) -> None:
    with pytest.raises(InputError, match=r"`output_limit` has shape \(3,\); give one limit per request\.$"):
        dataclasses.replace(plain, output_limit=np.full(3, 99))


OWN = """arrival_s,task,prompt_tokens,output_tokens,output_limit
0.5,lambada,100,20,20
0.7,piqa,10,0,
0.8,piqa,9,2000,4096
"""


def test_a_trace_may_have_them(write, situation) -> None:
    requests, _ = read_trace(write("own.csv", OWN), situation)
    assert requests.output_limit.tolist() == [20, NO_LIMIT, 4096]
    assert requests.output_tokens.tolist() == [20, 1, 1024]
    lines = '{"arrival_s": 0, "task": "piqa", "prompt_tokens": 9, "output_tokens": 3, "output_limit": 5}\n'
    lines += lines.replace(', "output_limit": 5', "")
    requests, _ = read_trace(write("own.jsonl", lines), situation)
    assert requests.output_limit.tolist() == [5, NO_LIMIT]


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("19", "`output_limit` is `19`, which is below its `output_tokens`"),
        ("0", "`output_limit` is `0`, which is below 1"),
        ("many", "`output_limit` is `many`, which is not a number"),
    ],
)
def test_a_trace_with_impossible_ones_is_refused(write, situation, cell: str, why: str) -> None:
    path: Path = write("own.csv", OWN.replace("20,20", f"20,{cell}"))
    with pytest.raises(InputError) as error:
        read_trace(path, situation)
    assert str(error.value) == f"{path}, line 2: {why}; mend or remove the line."
