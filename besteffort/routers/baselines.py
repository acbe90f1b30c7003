"""Routers without predictions: one pool for all, a random pool, the shortest queue, a ladder of thresholds."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from besteffort.keys import straight
from besteffort.observation import Observation
from besteffort.routers.prediction import picked
from besteffort.simulator.types import EnvParams


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StaticRouter:
    """Sends every request to one pool.

    Attributes:
      model: () index of the pool.
    """

    model: Any

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        return jnp.asarray(self.model, jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RandomRouter:
    """Sends each request to a pool drawn uniformly."""

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        # Without a type the draws of the same key would differ between float32 and float64.
        return jax.random.randint(straight(key), (), 0, observation.instance_batch_sizes.shape[-1], jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShortestQueueRouter:
    """Sends each request to the pool whose least-loaded replica has the smallest batch; the larger model on a tie."""

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        _, batch = picked(observation)
        return largest_where(batch == batch.min(), params, batch)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LadderRouter:
    """Sends each request to the largest model whose least-loaded replica holds fewer requests than its threshold.

    Attributes:
      thresholds: (pools - 1,) batch sizes of all pools in order of size but the smallest, which takes what remains.
    """

    thresholds: Any

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        _, batch = picked(observation)
        if params.pools is None:
            return largest_where(jnp.concatenate([jnp.array([True]), batch[1:] < self.thresholds]), params, batch)
        upwards = jnp.argsort(params.pools.size)
        below = jnp.concatenate([jnp.array([True]), batch[upwards[1:]] < self.thresholds])
        return largest_where(open_among(observation, jnp.zeros_like(below).at[upwards].set(below)), params, batch)


def open_among(observation: Observation, wanted: Array) -> Array:
    """(pools,) the pools of those `wanted` that take requests; if there is none, all that take any."""
    there = observation.open
    if there is None:
        return wanted
    return jnp.where((wanted & there).any(), wanted & there, there)


def best(observation: Observation, score: Array) -> Int[Array, ""]:
    """() index of the pool with the largest (pools,) score, the first on a tie, of those that take requests.

    A pool whose replicas are all down holds no request, so rules that look at loads would send everything there.
    """
    there = observation.open
    return jnp.argmax(score if there is None else jnp.where(there, score, -jnp.inf)).astype(jnp.int32)


def least(observation: Observation, cost: Array) -> Int[Array, ""]:
    """() index of the pool with the least (pools,) cost, see `best`."""
    there = observation.open
    return jnp.argmin(cost if there is None else jnp.where(there, cost, jnp.inf))


def largest_of(observation: Observation, values: Array) -> Array:
    """() the largest of (pools,) values, each at least 0, of pools that take requests."""
    there = observation.open
    return (values if there is None else jnp.where(there, values, 0.0)).max()


def largest_where(allowed: Array, params: EnvParams, cost: Array) -> Int[Array, ""]:
    """() index of the `allowed` pool with the largest model; of several the one with the least cost, then the first.

    `allowed` and `cost` have the shape (pools,); at least one is allowed.
    """
    if params.pools is None:
        pools = allowed.shape[-1]
        return jnp.asarray(pools - 1 - jnp.argmax(allowed[::-1]), jnp.int32)
    size = jnp.where(allowed, params.pools.size, -1)
    return jnp.argmin(jnp.where(size == size.max(), cost * 1.0, jnp.inf)).astype(jnp.int32)
