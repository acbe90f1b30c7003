from __future__ import annotations

import jax
import jax.numpy as jnp
from cluster import observe, params

from besteffort.routers import LadderRouter, RandomRouter, StaticRouter
from besteffort.routers.switch import SwitchRouter
from besteffort.simulator.types import reads_in_flight
from tests.made_up import FewestPromptTokens


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


def test_routers_around_others_read_what_those_read() -> None:
    plain, reading = StaticRouter(2), FewestPromptTokens()
    assert not reads_in_flight(plain)
    assert reads_in_flight(reading)
    for router, reads in ((plain, False), (reading, True)):
        assert reads_in_flight(SwitchRouter((plain, router), 0)) == reads
