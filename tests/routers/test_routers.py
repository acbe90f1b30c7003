"""What each router chooses, in situations where the choice is plain."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cluster import SHAPE, observe, params

from besteffort.observation import Feature, encode
from besteffort.pytrees import node_types
from besteffort.routers import (
    DeadlineRouter,
    LadderRouter,
    LearnedRouter,
    PricedRouter,
    RandomRouter,
    ShortestQueueRouter,
    StaticRouter,
    make_router,
    predict_latency,
)
from besteffort.simulator.simulate import _route
from besteffort.simulator.types import Router

IDLE = [[0, 0, 0], [0, 0, 0]]


def choose(router: Any, batch: Any, **how: Any) -> int:
    """The model that `router` picks, compiled and not."""
    observation = observe(batch, **how)
    plain = router.route(observation, params(), jax.random.key(0))
    compiled = jax.jit(lambda router, observation: router.route(observation, params(), jax.random.key(0)))
    assert compiled(router, observation) == plain
    assert plain.dtype == jnp.int32
    assert plain.shape == ()
    return int(plain)


@pytest.mark.parametrize(
    "router",
    [
        make_router("static", SHAPE, model=1),
        make_router("random", SHAPE),
        make_router("shortest-queue", SHAPE),
        make_router("gear", SHAPE, rates=[5.0, 20.0], shares=np.full((2, 2, 3), 1 / 3), head_room=1.2),
        make_router("ladder", SHAPE, thresholds=[2, 1]),
        make_router("deadline", SHAPE),
        make_router("deadline-reserve", SHAPE, reserve=0.2),
        make_router("priced", SHAPE, price=0.1, reserve=0.1, width=0.03),
    ],
    ids=lambda router: type(router).__name__,
)
def test_every_router_follows_the_protocol(router: Any) -> None:
    assert isinstance(router, Router)
    assert 0 <= choose(router, [[1, 2, 3], [4, 5, 6]]) < SHAPE.pools


def constant(model: int) -> Any:
    """A router of a class of its own."""

    def route(self: Any, observation: Any, params: Any, key: Any) -> jax.Array:
        return jnp.int32(model)

    return jax.tree_util.register_dataclass(dataclasses.make_dataclass("Constant", [], namespace={"route": route}))()


def test_every_class_has_a_program_of_its_own() -> None:
    """Of so many classes of one name and no fields, JAX alone confuses some in nearly every process."""
    seen, numbers, key = observe(IDLE), params(), jax.random.key(0)
    routers = [constant(model) for model in range(150)]
    chosen = [int(_route(node_types(router), router, seen, numbers, key, jnp.int32(0))) for router in routers]
    assert chosen == list(range(150))


def test_static() -> None:
    assert [choose(StaticRouter(model), IDLE) for model in range(3)] == [0, 1, 2]


def test_random_is_uniform_and_follows_its_key() -> None:
    keys = jax.random.split(jax.random.key(0), 3_000)
    chosen = jax.vmap(lambda key: RandomRouter().route(observe(IDLE), params(), key))(keys)
    assert np.abs(np.bincount(chosen) - 1_000).max() < 130


@pytest.mark.parametrize(
    ("batch", "model"),
    [
        (IDLE, 2),
        ([[1, 0, 1], [1, 3, 1]], 1),
        ([[2, 5, 5], [5, 2, 5]], 1),
        ([[0, 9, 9], [9, 9, 0]], 2),
        ([[9, 9, 1], [0, 9, 1]], 0),
    ],
)
def test_shortest_queue_takes_the_larger_of_the_smallest(batch: Any, model: int) -> None:
    assert choose(ShortestQueueRouter(), batch) == model


@pytest.mark.parametrize(
    ("batch", "model"),
    [
        (IDLE, 2),
        ([[0, 0, 1], [0, 0, 7]], 2),
        ([[0, 0, 2], [0, 0, 2]], 1),
        ([[0, 3, 2], [0, 3, 2]], 1),
        ([[0, 4, 2], [0, 4, 2]], 0),
        ([[8, 4, 2], [8, 4, 2]], 0),
        ([[8, 4, 2], [8, 4, 1]], 2),
    ],
)
def test_ladder_steps_down_at_its_thresholds(batch: Any, model: int) -> None:
    assert choose(LadderRouter(jnp.array([4.0, 2.0])), batch) == model


def test_deadline_takes_the_largest_in_time() -> None:
    small, middle, large = predict_latency(observe(IDLE), params()).tolist()
    assert choose(DeadlineRouter(), IDLE, deadline_s=large * 1.001) == 2
    assert choose(DeadlineRouter(), IDLE, deadline_s=large * 0.999) == 1
    assert choose(DeadlineRouter(), IDLE, deadline_s=middle * 0.999) == 0
    assert choose(DeadlineRouter(), IDLE, deadline_s=small * 0.999) == 0
    assert choose(DeadlineRouter(0.5), IDLE, deadline_s=large * 1.9) == 1
    assert choose(DeadlineRouter(0.5), IDLE, deadline_s=large * 2.1) == 2


def test_deadline_falls_back_to_the_fastest() -> None:
    assert choose(DeadlineRouter(), [[8, 8, 0], [8, 8, 0]], deadline_s=0.01) == 2


def test_priced_is_an_argmax_of_the_predicted_score() -> None:
    batch, deadline_s = [[2, 1, 1], [3, 1, 2]], 1.0
    latency = np.asarray(predict_latency(observe(batch), params()))
    assert (latency < 0.5 * deadline_s).sum() == 2
    for price in (0.0, 0.5, 1.5, 5.0):
        for reserve in (0.0, 0.5):
            in_time = latency <= (1 - reserve) * deadline_s
            score = np.array([0.6, 0.8, 1.0]) * in_time - price * latency / deadline_s
            assert choose(PricedRouter(price, reserve), batch, deadline_s=deadline_s) == score.argmax()


def test_a_width_weighs_how_near_the_deadline_is() -> None:
    batch, deadline_s, width = [[2, 1, 1], [3, 1, 2]], 1.0, 0.2
    latency = np.asarray(predict_latency(observe(batch), params()))
    for price in (0.0, 0.5, 1.5):
        for reserve in (0.0, 0.3):
            in_time = 1 / (1 + np.exp(-(1 - reserve - latency / deadline_s) / width))
            score = np.array([0.6, 0.8, 1.0]) * in_time - price * latency / deadline_s
            assert choose(PricedRouter(price, reserve, width), batch, deadline_s=deadline_s) == score.argmax()


def test_priced_without_a_price_takes_the_best_quality_in_time() -> None:
    # On task 1 the middle model is better than the largest.
    assert choose(PricedRouter(1e-6), IDLE, task=1, deadline_s=10.0) == 1
    assert choose(PricedRouter(1e-6), IDLE, task=0, deadline_s=10.0) == 2
    assert choose(PricedRouter(1e-6), IDLE, task=0, deadline_s=1e-3) == 0


def test_settings_are_leaves_so_that_tuning_is_a_vmap() -> None:
    routers = [make_router("ladder", SHAPE, thresholds=[first, 1]) for first in (1, 3, 5)]
    batch = [[0, 2, 3], [0, 2, 3]]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *routers)
    chosen = jax.vmap(lambda router: router.route(observe(batch), params(), jax.random.key(0)))(stacked)
    assert chosen.tolist() == [choose(router, batch) for router in routers] == [0, 1, 1]


def test_learned_is_the_argmax_of_the_network() -> None:
    features = (Feature("task", 2, "one_hot"), Feature("batch_sizes", 3, "log1p", 2.0))
    random = np.random.default_rng(0)
    sizes = [(5, 8), (8, 7), (7, 3)]
    weights = [
        (random.normal(size=size).astype(np.float32), random.normal(size=size[1]).astype(np.float32)) for size in sizes
    ]
    router = LearnedRouter(jax.tree.map(jnp.asarray, tuple(weights)), features)
    for _ in range(20):
        batch = random.integers(0, 9, (2, 3))
        x = encode(observe(batch, task=1), features, np)
        for matrix, bias in weights[:-1]:
            x = np.maximum(x @ matrix + bias, 0)
        q = x @ weights[-1][0] + weights[-1][1]
        np.testing.assert_allclose(router.q_values(observe(batch, task=1)), q, rtol=1e-4, atol=1e-5)
        assert choose(router, batch, task=1) == q.argmax()


def test_an_ensemble_decides_by_the_mean_of_its_networks() -> None:
    features = (Feature("batch_sizes", 3, "log1p", 2.0),)
    random = np.random.default_rng(1)
    weights = tuple(
        (jnp.asarray(random.normal(size=(4, *size))), jnp.asarray(random.normal(size=(4, size[1]))))
        for size in [(3, 8), (8, 3)]
    )
    seen = observe(random.integers(0, 9, (2, 3)))
    single = [LearnedRouter(jax.tree.map(lambda leaf, i=i: leaf[i], weights), features) for i in range(4)]
    mean = np.mean([router.q_values(seen) for router in single], axis=0)
    np.testing.assert_allclose(LearnedRouter(weights, features).q_values(seen), mean, rtol=1e-5, atol=1e-6)
