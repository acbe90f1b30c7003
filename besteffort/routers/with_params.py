"""A router with assumed parameters that may differ from the actual ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Int, Key

from besteffort.observation import Observation
from besteffort.simulator.types import EnvParams, Router, reads_in_flight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterWithParams:
    """Routes by assumed tables, qualities, lengths and deadlines instead of those of the actual environment.

    Attributes:
      router: the router that decides.
      assumed_params: parameters of the environment that it assumes, from `besteffort.simulator.build`; built with
        `estimates` if the router reads the requests in flight.
    """

    router: Router
    assumed_params: Any

    @property
    def estimates(self) -> bool:
        """Whether the router that decides reads the requests in flight."""
        return reads_in_flight(self.router)

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        return self.router.route(observation, self.assumed_params, key)
