"""The compiled simulator against queueing theory: many independent lanes, means within three standard errors.

Fixed seeds. Service times are in units of the mean service; a token of the longer answers takes a thousandth of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from besteffort.profile import Profile
from besteffort.routers import StaticRouter
from besteffort.situation import Cluster, Situation, Task
from besteffort.workload.requests import Requests
from tests.simulator.cases import Case, make_profile, play_compiled
from tests.simulator.queueing import (
    Estimate,
    erlang_b,
    fcfs_waits,
    mg1_mean_wait,
    mmc_mean_wait,
    ps_mean_response,
    ps_responses,
)

pytestmark = pytest.mark.optimised  # hundreds of thousands of requests

TOKENS = 1000
"""Mean output length, and so iterations per request, where service is made of iterations."""
TOKEN_S = 1 / TOKENS

Draw = Callable[[np.random.Generator, int], np.ndarray]


def exponential(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.geometric(1 / TOKENS, n)


def constant(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.full(n, TOKENS)


def spread(rng: np.random.Generator, n: int) -> np.ndarray:
    """Hyperexponential: short and long answers, nine to one in mean length."""
    return np.where(rng.random(n) < 0.5, rng.geometric(5 / TOKENS, n), rng.geometric(5 / (9 * TOKENS), n))


def draw_lists(rate: float, outputs: Draw, lanes: int, n: int, prompts: Sequence[int] = (1,)) -> list[Requests]:
    """Poisson arrivals; prompts uniform on `prompts`."""
    lists = []
    for lane in range(lanes):
        rng = np.random.default_rng(lane)
        arrival_s = np.cumsum(rng.exponential(1 / rate, n))
        lists.append(Requests(("task0",), arrival_s, np.zeros(n), rng.choice(prompts, n), outputs(rng, n), np.ones(n)))
    return lists


def play(lists: Sequence[Requests], profile: Profile, max_batch: int, queue_capacity: int) -> list[np.ndarray]:
    """(lanes, n) arrays: whether rejected, wait and end-to-end latency of requests to one instance, in float64."""
    cluster = Cluster(replicas=1, max_batch=max_batch, queue_capacity=queue_capacity)
    situation = Situation(profile, cluster, (Task("task0"),))
    played = play_compiled([Case(requests, situation, StaticRouter(0), seed=0) for requests in lists])
    return [np.stack(rows) for rows in zip(*((x.replica < 0, x.wait_s, x.service_s) for x in played), strict=True)]


def across(lanes: np.ndarray, warm_up: float = 0.2) -> Estimate:
    """Mean over independent (lanes, n) series, which started empty, without their first `warm_up` share."""
    means = lanes[:, int(warm_up * lanes.shape[1]) :].mean(axis=1)
    return Estimate(float(means.mean()), float(means.std(ddof=1)) / math.sqrt(len(means)))


@pytest.mark.parametrize("longest", [1, 4], ids=["M/D/1", "M/G/1"])
def test_one_slot_and_one_token_is_a_queue_in_order_of_arrival(longest: int) -> None:
    # One request at a time, whose only iteration is its prefill: 1/4 s per token of a prompt of 1 to `longest`.
    lengths = np.arange(1, longest + 1)
    service_s = lengths / 4
    rate = 0.8 / service_s.mean()
    lists = draw_lists(rate, lambda rng, n: np.ones(n, int), lanes=48, n=4000, prompts=lengths)
    profile = make_profile(decode=np.ones((1, 1)), prefill=service_s[None])
    rejected, wait_s, _ = play(lists, profile, max_batch=1, queue_capacity=160)
    assert not rejected.any()
    for requests, waits in zip(lists, wait_s, strict=True):
        np.testing.assert_allclose(waits, fcfs_waits(requests.arrival_s, requests.prompt_tokens / 4), atol=1e-9)
    estimate = across(wait_s)
    assert estimate.error < 0.05 * estimate.mean
    assert estimate.within(mg1_mean_wait(rate, service_s.mean(), (service_s**2).mean()))


@pytest.mark.parametrize("outputs", [exponential, constant, spread])
def test_a_constant_token_rate_is_processor_sharing(outputs: Draw) -> None:
    # Decode proportional to the batch size: all present share a constant rate of tokens, and the mean response depends
    # on the mean service alone (M/M/1-PS and M/G/1-PS). Bias: shares are handed out in whole iterations, 1,000
    # and more per mean request, and who arrives waits for the next one; the mean moves, also against exact processor
    # sharing of the same lists, by less than a mean iteration, which has E[N] = load / (1 - load) tokens.
    load, most = 0.7, 80
    bias_s = TOKEN_S * load / (1 - load)
    lists = draw_lists(load, outputs, lanes=48, n=2500)
    profile = make_profile(decode=TOKEN_S * np.arange(1, most + 1)[None], prefill=np.full((1, 1), TOKEN_S))
    rejected, _, response_s = play(lists, profile, max_batch=most, queue_capacity=0)
    assert not rejected.any()
    exact_s = np.stack([ps_responses(requests.arrival_s, TOKEN_S * requests.output_tokens) for requests in lists])
    assert abs((response_s - exact_s).mean()) < bias_s
    estimate, answer = across(response_s), ps_mean_response(load, 1.0)
    assert estimate.error < 0.05 * answer
    assert estimate.within(answer - bias_s, answer + bias_s)


SERVERS, OFFERED = 4, 3.0
SHORTER, LONGER = 1 - TOKEN_S, 1 + TOKEN_S
"""Bias of servers made of slots: a request starts and ends with iterations, so it holds its slot for up to one of 1,000
iterations less (the first token of one that finds the instance idle is almost free) or more (if it joins late)."""


def servers() -> Profile:
    """Constant decode makes each slot a server of one token per iteration; prefills take next to nothing."""
    return make_profile(decode=np.full((1, SERVERS), TOKEN_S), prefill=np.full((1, 1), TOKEN_S / 1000))


@pytest.mark.parametrize("outputs", [exponential, constant, spread])
def test_no_waiting_line_is_erlang_b(outputs: Draw) -> None:
    # Loss does not depend on the distribution of the service time.
    rejected, _, _ = play(draw_lists(OFFERED, outputs, lanes=48, n=4000), servers(), SERVERS, queue_capacity=0)
    estimate = across(rejected)
    assert estimate.error < 0.02
    assert estimate.within(erlang_b(SERVERS, OFFERED * SHORTER), erlang_b(SERVERS, OFFERED * LONGER))


def test_a_long_waiting_line_is_erlang_c() -> None:
    lists = draw_lists(OFFERED, exponential, lanes=48, n=4000)
    rejected, wait_s, _ = play(lists, servers(), SERVERS, queue_capacity=156)
    assert not rejected.any()
    estimate = across(wait_s)
    late = TOKEN_S  # a request that finds a free slot still waits for the iteration in progress
    assert estimate.error < 0.1 * estimate.mean
    assert estimate.within(mmc_mean_wait(SERVERS, OFFERED, SHORTER), mmc_mean_wait(SERVERS, OFFERED, LONGER) + late)
