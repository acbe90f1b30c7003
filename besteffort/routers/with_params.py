"""A router that is wrong about the world."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Int, Key

from besteffort.observation import Observation
from besteffort.simulator.types import EnvParams, Router


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterWithParams:
    """Routes by tables, qualities, lengths and deadlines of its own, whatever those of the world are.

    Attributes:
      router: who routes.
      assumed_params: what it takes for the numbers of the environment, from `besteffort.simulator.build`.
    """

    router: Router
    assumed_params: Any

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        return self.router.route(observation, self.assumed_params, key)
