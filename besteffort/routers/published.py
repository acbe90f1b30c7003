"""Rules of other systems, as far as they choose a model; each says what is taken over and what is ours."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from besteffort.estimates.estimates import Newcomer, completion_s, work_s
from besteffort.observation import Observation
from besteffort.routers.baselines import best, largest_of, least
from besteffort.routers.prediction import course_ahead, predict_latency_ahead
from besteffort.simulator.types import EnvParams


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlackFitRouter:
    """Sends each request to the best of the slowest models that fit its slack: SlackFit of SuperServe.

    SlackFit (arXiv:2312.16733) divides the range of latencies into buckets of equal width and takes an option from the
    bucket nearest below the slack. It is to spend the slack, as what is slower is better. Of the options in a bucket
    the one with the best quality is taken; where none fits, the fastest. Taken over are the buckets and the choice.
    Ours: the options are models, not batch sizes and subnetworks; their latencies are predicted for this request behind
    those in flight, not profiled once; and a share of the deadline may be kept back.

    Attributes:
      reserve: () share of the deadline that is not slack, in [0, 1).
      buckets: () buckets between the fastest and the slowest model, at least 1; the last one may be narrower. With
        one, the best model that fits is taken, with very many the slowest.
    """

    estimates: ClassVar[bool] = True

    reserve: Any
    buckets: Any

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        latency = predict_latency_ahead(observation, params)
        fits = latency <= (1.0 - self.reserve) * observation.deadline_s
        if observation.open is not None:
            fits = fits & observation.open
        fastest = latency.min() if observation.open is None else latency[least(observation, latency)]
        span = jnp.maximum(largest_of(observation, latency) - fastest, jnp.finfo(latency.dtype).tiny)
        # The slowest one ends the last bucket and begins none.
        bucket = jnp.minimum(jnp.floor((latency - fastest) / span * self.buckets), jnp.ceil(self.buckets) - 1.0)
        nearest = fits & (bucket == jnp.where(fits, bucket, -1.0).max())
        of_bucket = jnp.argmax(jnp.where(nearest, params.quality[observation.task], -jnp.inf))
        return jnp.where(fits.any(), of_bucket, least(observation, latency)).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouteBalanceRouter:
    """Sends each request to the model with the largest weighted score of quality, latency and cost: RouteBalance.

        score = quality - latency_weight x latency / largest latency - cost_weight x cost / largest cost

    RouteBalance (arXiv:2606.17949, github.com/AKafakA/route-balance) scores concrete instances whose state it reckons
    from what it sent there. Taken over are the score, with latencies and costs divided by the largest among the
    candidates, and that latencies follow from the requests on the instance. Ours: quality has weight 1, since only
    ratios of weights matter; qualities are the profile's per task and latencies those of the estimates, where
    RouteBalance learns both from prompts; the cost is the instance time of an answer, where it is a price per token;
    requests come one by one, not in batches, and the load balancer picks the replica, so its term for balance is gone.

    Attributes:
      latency_weight: () quality given up for the largest latency rather than none.
      cost_weight: () quality given up for the largest cost rather than none.
    """

    estimates: ClassVar[bool] = True

    latency_weight: Any
    cost_weight: Any

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        newcomer, course = Newcomer.of(observation), course_ahead(observation, params)
        latency = completion_s(newcomer, course, params, jnp)
        cost = work_s(newcomer, course, observation.in_flight.observed_slowdown, params)
        score = (
            params.quality[observation.task]
            - self.latency_weight * latency / largest_of(observation, latency)
            - self.cost_weight * cost / largest_of(observation, cost)
        )
        return best(observation, score)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LeastBusyRouter:
    """Sends each request to the model with the fewest requests in flight; the first on a tie: LiteLLM's `least-busy`.

    LiteLLM counts per deployment, which here is a model with all its replicas.
    """

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        return least(observation, observation.batch_sizes).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LatencyBasedRouter:
    """Draws one of the models whose latency is within a buffer of the lowest: LiteLLM's `latency-based-routing`.

    LiteLLM compares means of the latencies that it measured last. Here it is given what is predicted for this request
    behind those in flight, which is more current.

    Attributes:
      buffer: () how much slower than the fastest a model may be, as a share: LiteLLM's `lowest_latency_buffer`.
    """

    estimates: ClassVar[bool] = True

    buffer: Any

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        latency = predict_latency_ahead(observation, params)
        if observation.open is not None:
            latency = jnp.where(observation.open, latency, jnp.inf)
        near = jnp.cumsum(latency <= (1.0 + self.buffer) * latency.min())
        # A key of its own, and typed, for the reasons that `GearRouter` has.
        uniform = jax.random.uniform(jax.random.fold_in(key, 2), (), jnp.float32)
        return (near <= jnp.floor(uniform * near[-1])).sum().astype(jnp.int32)
