"""A router that follows a precomputed plan: the share of each task that each model gets, by arrival rate."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from besteffort.observation import Observation
from besteffort.simulator.types import EnvParams


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GearRouter:
    """Draws the model with the plan's shares for the task at the estimated arrival rate times `head_room`.

    It uses the first gear with at least that rate, or the last one, and ignores the state of the cluster.

    Attributes:
      rates: (gears,) arrival rates in requests per second, ascending.
      shares: (gears, tasks, pools) share of a task's requests that each model gets; they sum to one over the models.
      head_room: () factor on the estimated rate before the gear is looked up.
    """

    rates: Any
    shares: Any
    head_room: Any = 1.0

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        rates, shares = jnp.asarray(self.rates), jnp.asarray(self.shares)
        slower = (rates < self.head_room * observation.arrival_rate).sum()
        of_pools = shares[jnp.minimum(slower, rates.shape[0] - 1), observation.task]
        # A key of its own, so that a `SwitchRouter` can combine it with other routers that draw; typed, so that the
        # draws of a key do not differ between float32 and float64.
        uniform = jax.random.uniform(jax.random.fold_in(key, 1), (), jnp.float32)
        return (uniform >= jnp.cumsum(of_pools)[:-1]).sum().astype(jnp.int32)
