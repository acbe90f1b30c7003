"""A request inside the compiled simulator, and its reward."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from besteffort.simulator.types import EnvParams, EnvShape

Array = jax.Array


class Request(NamedTuple):
    """A request on its way to an instance; scalars, or arrays of equal shape when several are held together.

    Attributes:
      index: number of its decision; -1 for an empty place.
      task: index of its task.
      output_tokens: tokens that it will generate.
      prefill_s: duration of its prefill on the instance's model.
      arrival_s: time of arrival, relative to the clock of the instance that holds it.
      deadline_s: deadline on the end-to-end latency.
      prompt_tokens: prompt length; None unless `EnvShape.context_cost` or `EnvShape.estimates`.
      cache_tokens: tokens that it claims of the key-value cache; None unless `EnvShape.cache_limit`.
      output_limit, deadline_factor: as in `Arrival`; None unless `EnvShape.estimates`, and where requests have none.
    """

    index: Array  # type: ignore[assignment]
    task: Array
    output_tokens: Array
    prefill_s: Array
    arrival_s: Array
    deadline_s: Array
    prompt_tokens: Array | None
    cache_tokens: Array | None
    output_limit: Array | None = None
    deadline_factor: Array | None = None


def earned(shape: EnvShape, params: EnvParams, model: Array, task: Array, service_s: Array, deadline_s: Array) -> Array:
    """Reward of answers by `model` that took `service_s` plus the network delay; arguments broadcast."""
    return shape.reward_fn(
        _of_task(params.quality[:, model], task),
        _of_task(params.weight, task),
        service_s + params.network_delay_s,
        deadline_s,
        params.soft_span,
        params.miss_penalty,
        xp=jnp,
    )


def refused(shape: EnvShape, params: EnvParams, task: Array, deadline_s: Array) -> Array:
    """Reward of a rejected request: its latency is infinite."""
    return earned(shape, params, jnp.zeros_like(task), task, jnp.full_like(deadline_s, jnp.inf), deadline_s)


def _of_task(table: Array, task: Array) -> Array:
    """`table[task]`, whose further axes broadcast with `task`.

    Uses selection, which runs in vector registers; on a CPU a gather works element by element.
    """
    value = table[0]
    for k in range(1, table.shape[0]):
        value = jnp.where(task == k, table[k], value)
    return value
