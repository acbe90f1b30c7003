"""Several routers in one compiled program: every rollout carries all of them and follows one."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from besteffort.observation import Observation
from besteffort.simulator.types import EnvParams, Router, reads_in_flight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SwitchRouter:
    """Follows one of its members; where `jax.vmap` maps over `chosen`, all of them decide, and one counts.

    Attributes:
      members: the routers.
      chosen: () index of the member that decides.
    """

    members: tuple[Router, ...]
    chosen: Any

    @property
    def estimates(self) -> bool:
        """Whether any member reads the requests in flight."""
        return any(map(reads_in_flight, self.members))

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        # As numbers, since where all members decide, several may draw with it.
        number, kind = jax.random.key_data(key), jax.random.key_impl(key)

        def decided_by(member: Router) -> Array:
            own = jax.random.wrap_key_data(number, impl=kind)
            return jnp.asarray(member.route(observation, params, own), jnp.int32)

        choices = [partial(decided_by, member) for member in self.members]
        return cast(Array, jax.lax.switch(jnp.asarray(self.chosen), choices))
