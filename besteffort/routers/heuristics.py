"""Routers that weigh predicted latency against quality."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from besteffort.observation import Observation
from besteffort.routers.baselines import best, largest_where, least
from besteffort.routers.prediction import BY_BATCH_SIZE, Predictor, predicted_value
from besteffort.simulator.types import EnvParams


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeadlineRouter:
    """Sends each request to the largest model predicted to meet the deadline, else to the one predicted fastest.

    Attributes:
      reserve: () share of the deadline kept as a margin for errors of the prediction, in [0, 1).
      predictor: predicts latency; static.
    """

    reserve: Any = 0.0
    predictor: Predictor = dataclasses.field(default=BY_BATCH_SIZE, metadata={"static": True})

    @property
    def estimates(self) -> bool:
        """Whether it reads the requests in flight."""
        return self.predictor.estimates

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        latency = self.predictor.predict(observation, params)
        in_time = latency <= (1.0 - self.reserve) * observation.deadline_s
        if observation.open is not None:
            in_time = in_time & observation.open
        found = in_time.any(), largest_where(in_time, params, latency), least(observation, latency)
        return jnp.where(*found).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PricedRouter:
    """Sends each request to the model with the largest `quality x expected timeliness - price x latency / deadline`.

    Latency is the predicted one, and counts in deadlines, so one price serves tasks with different deadlines. The
    timeliness is in the first term because a late answer earns nothing (or less, where deadlines are soft): without
    it, a price low enough for light load would send requests to models that are known to miss. Where all models are
    predicted to miss, the price makes the router choose the fastest. At a small price and no width this is
    `DeadlineRouter` with the same reserve, as long as larger models are better.

    Attributes:
      price: () quality given up per deadline of predicted latency.
      reserve: () share of the deadline kept as a margin, as in `DeadlineRouter`.
      width: () scale of the error that the prediction is taken to have, as a share of the deadline, at least 0: with a
        hard deadline the timeliness is `sigmoid((1 - reserve - latency / deadline) / width)`, a step where it is 0.
      predictor: predicts latency; static.
    """

    price: Any
    reserve: Any = 0.0
    width: Any = 0.0
    predictor: Predictor = dataclasses.field(default=BY_BATCH_SIZE, metadata={"static": True})

    @property
    def estimates(self) -> bool:
        """Whether it reads the requests in flight."""
        return self.predictor.estimates

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        latency = self.predictor.predict(observation, params)
        deadline = (1.0 - self.reserve) * observation.deadline_s
        value = predicted_value(observation, params, latency, deadline, self.width * observation.deadline_s)
        return best(observation, value - self.price * latency / observation.deadline_s)
