"""Routers without predictions: one model for all, a random model, the shortest queue, a ladder of thresholds."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from besteffort.observation import Observation
from besteffort.routers.prediction import least_loaded
from besteffort.simulator.types import EnvParams


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StaticRouter:
    """Sends every request to one model.

    Attributes:
      model: () index of the model.
    """

    model: Any

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        return jnp.asarray(self.model, jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RandomRouter:
    """Sends each request to a model drawn uniformly."""

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        # Without a type the draws of the same key would differ between float32 and float64.
        return jax.random.randint(key, (), 0, observation.instance_batch_sizes.shape[-1], jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShortestQueueRouter:
    """Sends each request to the model whose least-loaded instance has the smallest batch; the larger model on a tie."""

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        _, batch = least_loaded(observation)
        return largest_where(batch == batch.min())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LadderRouter:
    """Sends each request to the largest model whose least-loaded instance holds fewer requests than its threshold.

    Attributes:
      thresholds: (models - 1,) batch sizes of all models but the smallest, which takes the remaining requests.
    """

    thresholds: Any

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        _, batch = least_loaded(observation)
        return largest_where(jnp.concatenate([jnp.array([True]), batch[1:] < self.thresholds]))


def largest_where(allowed: Array) -> Int[Array, ""]:
    """() index of the largest `allowed` model; `allowed`, (models,), must hold at least one True."""
    models = allowed.shape[-1]
    return jnp.asarray(models - 1 - jnp.argmax(allowed[::-1]), jnp.int32)
