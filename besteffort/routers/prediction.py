"""Predicts a request's latency on each model from the information that a router has at its arrival.

There are two predictors, neither of which knows an output length. One goes by batch sizes: a fluid estimate, which
assumes that the current load of an instance lasts. It uses the tables of `EnvParams`, the mean lengths of the tasks and
the batch size of every instance. The other goes by the requests themselves: the prompt of the new one, and those in
flight ahead of it, as `besteffort.estimates` has them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from besteffort.estimates.estimates import (
    Course,
    Newcomer,
    brought_up,
    completion_s,
    count,
    follow,
    own_delay_s,
    settled,
    slots,
)
from besteffort.estimates.reward import timeliness
from besteffort.observation import Observation
from besteffort.pools import least_loaded, smallest
from besteffort.simulator.types import EnvParams


def picked(observation: Observation) -> tuple[Int[Array, " pools"], Int[Array, " pools"]]:
    """The row of the replica that the load balancer would pick for each pool, and its batch size."""
    batch = jnp.asarray(observation.instance_batch_sizes)
    return least_loaded(batch, observation.takes, jnp), smallest(batch, observation.takes, jnp)


def predict_latency(observation: Observation, params: EnvParams) -> Float[Array, " pools"]:
    """Predicted end-to-end latency in seconds on the least-loaded instance of each model.

    With `b` the batch size of that instance, `slots` the requests it can run at once, `n` and `p` the mean lengths
    of the request's task, `N` and `P` their means over all tasks (a router does not know the mix), and
    `T(k) = decode(k) + k / N x prefill(P)` an iteration that serves k requests, of which one in N has just been
    admitted:

    1. residual: the iteration in progress is half done on average, `T(min(b, slots)) / 2`, or 0 if the instance is
       idle;
    2. waiting: `max(0, b + 1 - slots)` requests must leave first, and `slots / N` leave per iteration of `T(slots)`;
    3. first token: `prefill(p) + decode(k)` with `k = min(b, slots - 1)` other requests;
    4. further tokens: `n - 1` iterations of `decode(k + 1) + k / N x prefill(P)`.

    Every iteration is stretched by the slow-down from models that are busy on the same replica, and by the cost of the
    tokens held, `P + N / 2` per request. `slots` is `max_batch`, or the number of mean requests that fit the key-value
    cache. The network delay is added, and the time until the replica is up.
    """
    row, batch = picked(observation)
    prompt, output = params.mean_prompt_tokens.mean(), params.mean_output_tokens.mean()
    most = _slots(params, prompt, output)
    neighbours = jnp.minimum(batch, most - 1)
    admission_s = _prefill(params, prompt) / output

    def decode(running: Int[Array, " pools"]) -> Float[Array, " pools"]:
        table = jnp.take_along_axis(params.decode, running[:, None], axis=1)[:, 0]
        return table + params.context_cost_s * running * (prompt + output / 2)

    def iteration(served: Int[Array, " pools"]) -> Float[Array, " pools"]:
        return decode(served) + served * admission_s

    own_prompt, own_output = params.mean_prompt_tokens[observation.task], params.mean_output_tokens[observation.task]
    residual = iteration(jnp.minimum(batch, most)) / 2
    waiting = jnp.maximum(batch + 1 - most, 0) * output / most * iteration(most)
    first = _prefill(params, own_prompt) + decode(neighbours)
    further = (own_output - 1) * (decode(neighbours + 1) + neighbours * admission_s)
    latency = (residual + waiting + first + further) * _stretch(observation, params, row) + own_delay_s(
        observation.origin, params
    )
    return latency if observation.ready_s is None else latency + observation.ready_s


def course_ahead(observation: Observation, params: EnvParams) -> Course:
    """How the request would fare behind those in flight, see `besteffort.estimates.estimates.Course`."""
    newcomer = Newcomer.of(observation)
    view = brought_up(settled(observation.in_flight, params, jnp), params, jnp)
    return follow(newcomer, count(view, params, jnp), view, params, jnp)


def predict_latency_ahead(observation: Observation, params: EnvParams) -> Float[Array, " pools"]:
    """As `predict_latency`, from the prompts of the request and of those that wait, and who is about to leave.

    Needs an observation with the requests in flight. What the request would do to the others is not worked out.
    """
    return completion_s(Newcomer.of(observation), course_ahead(observation, params), params, jnp)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A way to predict latency; a static field of the routers that use one.

    Attributes:
      predict: (pools,) seconds, from the observation and `EnvParams`.
      estimates: whether it reads the requests in flight.
    """

    predict: Callable[[Observation, EnvParams], Float[Array, " pools"]]
    estimates: bool


BY_BATCH_SIZE = Predictor(predict_latency, estimates=False)
AHEAD = Predictor(predict_latency_ahead, estimates=True)


def _slots(params: EnvParams, prompt: Float[Array, ""], output: Float[Array, ""]) -> Int[Array, " pools"]:
    """Requests of mean length that run at once on an instance of each model."""
    fit = jnp.floor(params.cache_tokens / (prompt + params.cache_output_share * output))
    return jnp.clip(fit, 1, slots(params)).astype(jnp.int32)


def _prefill(params: EnvParams, prompt: Float[Array, ""]) -> Float[Array, " pools"]:
    return params.prefill[:, jnp.round(prompt).astype(jnp.int32)]


def _stretch(observation: Observation, params: EnvParams, row: Int[Array, " pools"]) -> Float[Array, " pools"]:
    """Slow-down of each model's iterations by the others that are busy on its GPU, in that `row`."""
    busy = jnp.asarray(observation.instance_batch_sizes)[row] > 0
    others = ~jnp.eye(busy.shape[0], dtype=bool)
    return jnp.prod(jnp.where(busy & others, params.slowdown, 1.0), axis=1)


def predicted_value(
    observation: Observation,
    params: EnvParams,
    latency_s: Float[Array, " pools"],
    deadline_s: Float[Array, ""],
    width_s: Float[Array, ""] | float = 0.0,
) -> Float[Array, " pools"]:
    """Quality times expected timeliness of each model's answer if it is predicted to take `latency_s`.

    The latency is taken to be `latency_s` plus an error with a logistic distribution of scale `width_s` seconds:
    against a hard deadline the timeliness is `sigmoid((deadline_s - latency_s) / width_s)`. Without a width it is that
    of `latency_s` itself. The task's weight is left out.
    """
    sharp = timeliness(latency_s, deadline_s, params.soft_span, jnp)
    positive = jnp.asarray(width_s > 0)
    # Where a branch is not taken its divisors are 1, so that it is finite.
    scale = jnp.where(positive, width_s, 1.0)
    hard = params.soft_span <= 0
    span_s = jnp.where(hard, 1.0, params.soft_span * deadline_s)
    slack = (deadline_s - latency_s) / scale
    # A soft deadline is the mean of the hard ones between `deadline_s` and `deadline_s + span_s`.
    smooth = (jax.nn.softplus(slack + span_s / scale) - jax.nn.softplus(slack)) * scale / span_s
    expected = jnp.where(positive, jnp.where(hard, jax.nn.sigmoid(slack), smooth), sharp)
    return params.quality[observation.task] * expected
