"""Several routers in one compiled program: every rollout carries all of them and follows one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from besteffort.observation import Observation
from besteffort.simulator.types import EnvParams, Router, reads_in_flight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SwitchRouter:
    """Follows one of its members. Routers are cheap compared to the simulator; compilations are not.

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
        choices = [jnp.asarray(member.route(observation, params, key), jnp.int32) for member in self.members]
        return jnp.stack(choices)[self.chosen]
