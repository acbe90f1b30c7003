"""A router that follows a plan made beforehand: which share of each task goes to which model at which arrival rate."""

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
    """Draws the model with the shares that the plan has for the task at the estimated arrival rate times `head_room`.

    That is the first gear that is fast enough, or the last one. What happens in the cluster does not matter to it.

    Attributes:
      rates: (gears,) arrival rates in requests per second, ascending.
      shares: (gears, tasks, models) share of a task's requests that each model gets; they sum to one over the models.
      head_room: () by how much more than the estimate the plan is prepared for.
    """

    rates: Any
    shares: Any
    head_room: Any = 1.0

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        rates, shares = jnp.asarray(self.rates), jnp.asarray(self.shares)
        slower = (rates < self.head_room * observation.arrival_rate).sum()
        of_models = shares[jnp.minimum(slower, rates.shape[0] - 1), observation.task]
        # A stream of its own, so that a panel may hold it beside other routers that draw; typed, so that the draws of
        # a key do not differ between float32 and float64.
        uniform = jax.random.uniform(jax.random.fold_in(key, 1), (), jnp.float32)
        return (uniform >= jnp.cumsum(of_models)[:-1]).sum().astype(jnp.int32)
