from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cluster import SHAPE, observe, params

from besteffort.routers import GearRouter, RandomRouter, make_router
from besteffort.routers.switch import SwitchRouter

RATES = [1.0, 10.0, 100.0]
ONE_EACH = np.eye(3)[[[2, 1], [1, 0], [0, 0]]]  # (gears, tasks, models): who serves a task in a gear


def chosen(router, rate, task=0, key=0):
    observation = observe(np.zeros((2, 3)), task=task)._replace(arrival_rate=jnp.asarray(rate))
    return int(router.route(observation, params(), jax.random.key(key)))


@pytest.mark.parametrize(
    ("rate", "head_room", "task", "model"),
    [
        (0.0, 1.0, 0, 2),
        (1.0, 1.0, 0, 2),
        (1.01, 1.0, 0, 1),
        (1.01, 1.0, 1, 0),
        (0.6, 2.0, 0, 1),
        (11.0, 0.9, 0, 1),
        (99.0, 1.0, 0, 0),
        (1e6, 1.0, 0, 0),
    ],
)
def test_takes_the_first_gear_that_is_fast_enough(rate, head_room, task, model):
    router = make_router("gear", SHAPE, rates=RATES, shares=ONE_EACH, head_room=head_room)
    assert chosen(router, rate, task) == model


def test_draws_models_with_their_shares():
    shares = np.array([[[0.2, 0.5, 0.3], [0.0, 0.0, 1.0]]])
    router = GearRouter(jnp.array([1.0]), jnp.array(shares))
    keys = jax.random.split(jax.random.key(0), 5_000)
    for task in (0, 1):
        drawn = jax.vmap(lambda key, task=task: router.route(observe(np.zeros((2, 3)), task=task), params(), key))(keys)
        np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 5_000, shares[0, task], atol=0.025)


def test_draws_beside_another_that_draws():
    gear = GearRouter(jnp.array([1.0]), jnp.full((1, 2, 3), 1 / 3))
    observation = observe(np.zeros((2, 3)))

    def choose(which, key):
        return SwitchRouter((RandomRouter(), gear), which).route(observation, params(), key)

    drawn = jax.vmap(jax.vmap(choose, in_axes=(0, None)), in_axes=(None, 0))(
        jnp.arange(2), jax.random.split(jax.random.key(1), 2_000)
    )
    agreeing = float((drawn[:, 0] == drawn[:, 1]).mean())
    assert agreeing == pytest.approx(1 / 3, abs=0.04)
