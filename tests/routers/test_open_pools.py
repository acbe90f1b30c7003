"""Where replicas start, drain and fail: routers by rules keep off pools that take nobody, alike in both backends."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import besteffort
from besteffort.evaluation.tuning import maker
from besteffort.observation import Feature, Observation, encode
from besteffort.pools import Pool, ReplicaEvent
from besteffort.profile import load_profile
from besteffort.routers import ROUTERS, TUNED, settings_at
from besteffort.routers.baselines import best, largest_of, least, open_among
from besteffort.routers.learned import learned_router
from besteffort.routers.registry import dimensions
from besteffort.routers.switch import SwitchRouter
from besteffort.runs.untrained import default_policy
from besteffort.simulator.build import build
from besteffort.simulator.result import Result
from besteffort.simulator.types import Router
from besteffort.situation import Cluster, Deadline, Reward, Situation, Task
from besteffort.workload.requests import Requests

# The large pool is down from 0.4 s on and up again at 0.9 s, waited for from 0.6 s on; the middle one is full now and
# then; the small one is down at first and fails at 1 s.
SITUATION = Situation(
    load_profile("opt-a100"),
    Cluster(),
    (Task("piqa", prompt_tokens=(16, 400), output_tokens=(1, 30), deadline=Deadline(0.1, 0.015)),),
    Reward(0.5, 0.25),
    pools=(
        Pool(
            "large",
            "opt-6.7b",
            max_batch=4,
            queue_capacity=3,
            start_s=0.3,
            events=(ReplicaEvent(0.4, 0, "fail"), ReplicaEvent(0.6, 0, "start")),
        ),
        Pool("middle", "opt-1.3b", replicas=2, max_batch=4, queue_capacity=3),
        Pool(
            "small",
            "opt-125m",
            max_batch=4,
            queue_capacity=3,
            events=(ReplicaEvent(0.2, 0, "start"), ReplicaEvent(1.0, 0, "fail")),
        ),
    ),
)
BLIND = {"random", "gear"}  # and `static`: they look at no state
NAMES = [name for name in ROUTERS if name != "static"]


def requests(n: int = 200) -> Requests:
    rng = np.random.default_rng(0)
    outputs = rng.integers(1, 30, n)
    arrival_s = np.cumsum(rng.exponential(1 / 150, n))
    prompts = rng.integers(16, 400, n)
    return Requests(SITUATION.task_names, arrival_s, np.zeros(n, int), prompts, outputs, 0.1 + 0.015 * outputs)


@cache
def members() -> tuple[Router, ...]:
    """Every router by name, with the numbers that tuning starts from, and a policy."""
    shape, _ = build(SITUATION, None, history=1)
    make = maker(SITUATION)
    by_name = (
        make(name, **settings_at(name, shape, np.zeros(dimensions(name, shape))) if name in TUNED else {})
        for name in NAMES
    )
    return (*by_name, learned_router(default_policy(SITUATION)))


@pytest.mark.parametrize("name", [*NAMES, "policy"])
def test_no_rule_sends_to_a_pool_that_takes_nobody(name: str) -> None:
    # One program for all of them; which is followed is a number.
    router = SwitchRouter(members(), np.int32([*NAMES, "policy"].index(name)))
    found, other = (
        besteffort.simulate(requests(), SITUATION, router, backend=each, seed=3) for each in ("jax", "reference")
    )
    np.testing.assert_array_equal(found.model, other.model)
    for field in dataclasses.fields(Result):
        one, another = getattr(found, field.name), getattr(other, field.name)
        assert (one is None) == (another is None)
        if one is not None:
            np.testing.assert_allclose(one, another, rtol=0, atol=1e-9)
    now = found.arrival_s
    large_is_down, small_is_down = (now >= 0.4) & (now < 0.6), (now < 0.2) | (now >= 1.0)
    to_closed = (large_is_down & (found.model == 0)) | (small_is_down & (found.model == 2))
    assert to_closed.any() == (name in BLIND)
    assert (found.replica[to_closed] == -1).all()


def test_one_pool_with_all_requests_lost_is_seen_in_the_outcome() -> None:
    router = besteffort.routers.StaticRouter(jnp.int32(0))
    result = besteffort.simulate(requests(), SITUATION, router)
    assert result.lost.any()
    assert result.rejected[(result.arrival_s >= 0.4) & (result.arrival_s < 0.6)].all()
    assert (result.reward[result.lost] == -0.25).all()


def observation(takes: Any, sizes: Any = ((0, 3, 2), (0, 4, 0))) -> Observation:
    sizes = jnp.asarray(sizes)
    return Observation(0, sizes.sum(0), 1.0, sizes, 1.0, 0.0, takes=jnp.asarray(takes), ready_s=jnp.zeros(3))


def test_choices_are_among_open_pools() -> None:
    one = observation([[False, True, False], [False, False, True]])
    assert one.open.tolist() == [False, True, True]
    score = jnp.array([9.0, 1.0, 2.0])
    assert (int(best(one, score)), int(least(one, -score))) == (2, 2)
    assert float(largest_of(one, score)) == 2.0
    assert open_among(one, jnp.array([True, False, True])).tolist() == [False, False, True]
    assert open_among(one, jnp.array([True, False, False])).tolist() == [False, True, True]
    assert int(best(observation(np.zeros((2, 3), bool)), score)) == 0


def test_a_closed_pool_shows_no_batch() -> None:
    feature = (Feature("smallest_batch", 3, "linear", 1.0),)
    one = observation([[False, True, False], [False, False, True]])
    assert encode(one, feature, jnp).tolist() == [0.0, 3.0, 0.0]
    closed = jax.tree.map(np.asarray, observation([[False, True, False], [False, True, False]]))
    assert encode(closed, feature).tolist() == [0.0, 3.0, 0.0]
