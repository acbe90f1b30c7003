"""Routers that weigh what a request is expected to earn against what it costs others."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from besteffort.estimates.encoding import appraise
from besteffort.estimates.rule import Rule, time_price
from besteffort.observation import Observation
from besteffort.routers.baselines import best
from besteffort.simulator.types import EnvParams


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MarginalRouter:
    """Sends each request to the model with the largest marginal value, `own - harm - price x work`.

    `own`, `harm` and `work` are those of `besteffort.estimates.estimates.Estimates`. The price of an instance-second of
    a model stands for the requests to come, as harm stands for those in flight.

    Attributes:
      rates, prices: (rates,) and (rates, pools), see `besteffort.estimates.rule.price_at`.
    """

    estimates: ClassVar[bool] = True

    rates: Any
    prices: Any

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        found = appraise(observation, dataclasses.replace(params, rule=None), jnp)
        price = time_price(
            self.rates, self.prices, observation.arrival_rate, params, jnp, observed_slowdown=found.observed_slowdown
        )
        return best(observation, found.own - found.harm - price * found.work)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ValueRouter:
    """Sends each request to the model with the largest value by a rule, see `besteffort.estimates.rule`.

    Attributes:
      rule: its numbers.
    """

    estimates: ClassVar[bool] = True

    rule: Rule

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        found = appraise(observation, dataclasses.replace(params, rule=self.rule), jnp)
        return best(observation, cast(Array, found.value))
