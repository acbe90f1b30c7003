"""Routers that weigh what a request is expected to earn against what it costs others."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from besteffort.estimates.estimates import Newcomer, Softness, estimate
from besteffort.estimates.priors import Priors
from besteffort.observation import Observation
from besteffort.simulator.types import EnvParams

_LOADS = (0.08, 12.0)  # prices stay what they are beyond; a rate of 0 has no logarithm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MarginalRouter:
    """Sends each request to the model with the largest marginal value, `own - harm - price x work`.

    `own`, `harm` and `work` are those of `besteffort.estimates.estimates.Estimates`. The price of an instance-second of
    a model at the estimated arrival rate is what the best other use of it would earn, from the dual of the fluid
    programme (`besteffort.bounds.gears`): it stands for the requests to come, as harm stands for those in flight.

    Attributes:
      rates: (gears,) arrival rates in requests per second, ascending; prices in between are interpolated in the
        logarithm of the rate, and those beyond are the last.
      prices: (gears, models) reward per instance-second.
    """

    estimates: ClassVar[bool] = True

    rates: Any
    prices: Any

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        newcomer, rates = Newcomer.of(observation), jnp.asarray(self.rates)
        found = estimate(newcomer, observation.in_flight, params, xp=jnp)
        at = jnp.log(jnp.maximum(newcomer.arrival_rate, rates[0]))
        price = jax.vmap(lambda of_model: jnp.interp(at, jnp.log(rates), of_model))(jnp.asarray(self.prices).T)
        return jnp.argmax(found.own - found.harm - price * found.work).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ValueRouter:
    """Sends each request to the model with the largest value to all requests.

        value = own - harm_weight x harm
                - latency_price x load^latency_exponent x latency / deadline
                - occupancy_price x load^occupancy_exponent x occupancy

    `own`, `harm`, `load` and the latency are those of `besteffort.estimates.estimates.Estimates`; the occupancy of a
    model is the mean batch size of its instances over `max_batch`. Harm is what can be foreseen of the costs to others:
    those in flight. The prices stand for the rest, the requests to come, so they grow with the load.

    Attributes:
      reserve: () share of the deadline that is kept back at load 1 of all models together, see `Softness`.
      reserve_slope: () what the reserve gains when the load grows e-fold.
      width: () scale of the error that the predicted latency is taken to have, in deadlines, above 0.
      in_flight_width: () the same for requests in flight, in remaining times, above 0.
      harm_weight: () reward given up to spare the requests in flight the loss of 1.
      latency_price: () reward given up per deadline of latency, at load 1.
      latency_exponent: () how that grows with the load.
      occupancy_price: () reward given up to take a place of a full model rather than one of an empty one, at load 1.
      occupancy_exponent: () how that grows with the load.
    """

    estimates: ClassVar[bool] = True

    reserve: Any
    reserve_slope: Any
    width: Any
    in_flight_width: Any
    harm_weight: Any
    latency_price: Any
    latency_exponent: Any
    occupancy_price: Any
    occupancy_exponent: Any

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        newcomer, priors = Newcomer.of(observation), cast(Priors, params.priors)
        load = jnp.clip(newcomer.arrival_rate / priors.capacity, *_LOADS)
        reserve = self.reserve + self.reserve_slope * jnp.log(load[0])
        softness = Softness(reserve, self.width, self.in_flight_width)
        found = estimate(newcomer, observation.in_flight, params, softness, xp=jnp)
        occupancy = jnp.asarray(observation.instance_batch_sizes).mean(0) / (params.decode.shape[-1] - 1)
        price = (
            self.latency_price * load**self.latency_exponent * found.completion_s / observation.deadline_s
            + self.occupancy_price * load**self.occupancy_exponent * occupancy
        )
        return jnp.argmax(found.own - self.harm_weight * found.harm - price).astype(jnp.int32)
