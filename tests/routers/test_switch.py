from __future__ import annotations

import jax
import jax.numpy as jnp
from cluster import observe, params

from besteffort.routers import LadderRouter, RandomRouter, StaticRouter
from besteffort.routers.switch import SwitchRouter


def test_every_lane_follows_its_member() -> None:
    members = (StaticRouter(2), LadderRouter(jnp.array([3.0, 1.0])), RandomRouter())
    observation = observe([[0, 2, 1], [5, 4, 1]])

    def key() -> jax.Array:
        return jax.random.key(4)

    def choose(chosen: jax.Array) -> jax.Array:
        return SwitchRouter(members, chosen).route(observation, params(), key())

    together = jax.vmap(choose)(jnp.arange(3))
    alone = [int(member.route(observation, params(), key())) for member in members]
    assert together.tolist() == alone
    assert alone[:2] == [2, 1]
