"""Routers that predict from the requests themselves: the same rules, which see prompts and what is ahead."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from in_flight import LONGEST, PROMPT, built, choose, observe

from besteffort.estimates.estimates import Newcomer, estimate
from besteffort.observation import Observation
from besteffort.routers import make_router
from besteffort.routers.prediction import predict_latency, predict_latency_ahead
from besteffort.simulator.types import reads_in_flight

PARAMS = built()[1]
BUSY = [(0, 0, 50), (0, 1, 300), (1, 0, 700), (1, 1, 20), (1, 0, 400), (2, 0, 100), (2, 1, 900), (2, 1, 60), (2, 0, 10)]
NUMBERS: dict[str, dict[str, Any]] = {
    "deadline": {},
    "deadline-reserve": {"reserve": 0.1},
    "priced": {"price": 0.02, "reserve": 0.1, "width": 0.02},
}


def ahead(observation: Observation) -> np.ndarray:
    return np.asarray(jax.jit(predict_latency_ahead)(observation, PARAMS))


@pytest.mark.parametrize("sent", [[], BUSY[:3], BUSY], ids=len)
def test_latency_is_that_of_the_estimates(sent: Any) -> None:
    observation = observe(sent, prompt=321, after_s=0.003)
    found = jax.jit(lambda seen: estimate(Newcomer.of(seen), seen.in_flight, PARAMS, xp=jnp))(observation)
    np.testing.assert_array_equal(ahead(observation), found.completion_s)


def test_an_idle_cluster_is_predicted_alike() -> None:
    observation = observe()
    np.testing.assert_allclose(ahead(observation), predict_latency(observation, PARAMS), rtol=1e-6)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_typical_request_alone_goes_where_it_went(name: str) -> None:
    plain, seeing = (make_router(each, built()[0], **NUMBERS[name]) for each in (name, f"{name}-ahead"))
    assert not reads_in_flight(plain)
    assert reads_in_flight(seeing)
    chosen = [
        [choose(router, observe(deadline_s=deadline_s)) for deadline_s in np.geomspace(0.02, 2, 25)]
        for router in (plain, seeing)
    ]
    assert chosen[0] == chosen[1]
    assert set(chosen[0]) == {0, 1, 2}


@pytest.mark.parametrize("name", NUMBERS)
def test_its_own_prompt_and_those_that_wait_count(name: str) -> None:
    plain, seeing = (make_router(each, built()[0], **NUMBERS[name]) for each in (name, f"{name}-ahead"))
    deadline_s = 1.6 * ahead(observe())[2]
    short, long = ([(2, replica, tokens) for replica in (0, 0, 1, 1)] for tokens in (10, LONGEST))
    observations = [
        observe(deadline_s=deadline_s),
        observe(prompt=LONGEST, deadline_s=deadline_s),
        observe(short, deadline_s=deadline_s),
        observe(long, deadline_s=deadline_s),
    ]
    chosen = [choose(seeing, each) for each in observations]
    assert chosen[0] == 2 > chosen[1]
    assert chosen[2] > chosen[3]
    blind = [choose(plain, each) for each in observations]
    assert blind[0] == blind[1]
    assert blind[2] == blind[3]


def test_ages_of_others_do_not_count() -> None:
    observation = observe(BUSY, prompt=PROMPT)
    view = observation.in_flight
    older = observation._replace(in_flight=dataclasses.replace(view, age_s=view.age_s + 100.0))
    np.testing.assert_array_equal(ahead(older), ahead(observation))
