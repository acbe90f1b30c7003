"""A request inside the compiled simulator, and its reward."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from besteffort.estimates.correction import Answers, steps_s
from besteffort.simulator.life import LifeState, among
from besteffort.simulator.types import EnvParams, EnvShape
from besteffort.workload.types import Arrival

Array = jax.Array


class Request(NamedTuple):
    """A request on its way to an instance; scalars, or arrays of equal shape when several are held together.

    Attributes:
      index: number of its decision; -1 for an empty place.
      task: index of its task.
      output_tokens: tokens that it will generate.
      prefill_s: duration of its prefill on the instance.
      arrival_s: time of arrival, relative to the clock of the instance that holds it.
      deadline_s: deadline on the end-to-end latency.
      prompt_tokens: prompt length; None unless `needs_prompts`.
      cache_tokens: tokens that it claims of the key-value cache; None unless `EnvShape.cache_limit`.
      prefill_excess_s: what its prefill takes beyond the assumed tables; None unless iterations are compared.
      fixed_s: see `besteffort.estimates.correction.fixed_s`; None unless whole answers are compared.
      delay_s: network delay of its answer; None where requests have no origin: then it is that of the pool.
      output_limit, deadline_factor: as in `Arrival`; None unless `EnvShape.estimates`, and where requests have none.
      cached_tokens: as in `Arrival`; None unless `EnvShape.chunks` or `EnvShape.estimates`, and where requests state
        none.
      ready_s: seconds until its instance is up; None unless `EnvShape.life`.
      tenant_weight: factor on its rewards; None where all count the same.
    """

    index: Array  # type: ignore[assignment]
    task: Array
    output_tokens: Array
    prefill_s: Array
    arrival_s: Array
    deadline_s: Array
    prompt_tokens: Array | None
    cache_tokens: Array | None
    prefill_excess_s: Any = None
    fixed_s: Any = None
    output_limit: Array | None = None
    deadline_factor: Array | None = None
    delay_s: Any = None
    cached_tokens: Array | None = None
    ready_s: Any = None
    tenant_weight: Any = None


def needs_prompts(shape: EnvShape) -> bool:
    """Whether the lengths of prompts count after their requests were placed."""
    return shape.context_cost or shape.chunks or shape.estimates is not None


def read_s(params: EnvParams, pool: Array, prompt_tokens: Any, cached_tokens: Any) -> Array:
    """Seconds of reading what was not found of prompts; arguments broadcast."""
    whole_s = params.prefill[pool, prompt_tokens]
    return whole_s if cached_tokens is None else whole_s - params.prefill[pool, cached_tokens]


def compares_iterations(shape: EnvShape) -> bool:
    """Whether iterations are compared with the tables, which can be seen where answers are streamed."""
    return shape.compare_times and shape.estimates is not None and shape.estimates.streamed


def compares_answers(shape: EnvShape) -> bool:
    """Whether whole answers are compared with the tables, where answers are not streamed."""
    return shape.compare_times and not compares_iterations(shape)


def mean_decode_s(shape: EnvShape, believed: EnvParams, pool: Array, number: Array) -> Array:
    """Assumed seconds of a decode of so many requests of mean length; arguments broadcast."""
    seconds = believed.decode[pool, number]
    if shape.context_cost and believed.priors is not None:
        seconds = seconds + believed.context_cost_s[pool] * believed.priors.held_each * number
    return seconds


def answers_by_tables(shape: EnvShape, believed: EnvParams, answers: Answers, sizes: Array) -> tuple[Array, Array]:
    """(pools,) observed beyond the assumed tables, and by these: seconds of answers that have ended.

    Args:
      shape: of the environment.
      believed: the assumed parameters.
      answers: fields of shape (instances,).
      sizes: (instances,) batch sizes of now.
    """
    pool = jnp.arange(shape.instances) % shape.pools

    def decode(number: Array) -> Array:
        return mean_decode_s(shape, believed, pool, number)

    assumed_s = answers.fixed_s + steps_s(answers.steps, sizes, decode, slots(shape, believed, pool), jnp)
    return of_pools(shape, answers.observed_s - assumed_s), of_pools(shape, assumed_s)


def of_pools(shape: EnvShape, of_instances: Array) -> Array:
    """(pools,) sums over the replicas of (instances,) values."""
    return of_instances.reshape(shape.replicas, shape.pools).sum(0)


def delay_s(shape: EnvShape, params: EnvParams, pool: Array) -> Array:
    """Network delay of the answers of a pool."""
    return params.network_delay_s[pool] if shape.uneven else params.network_delay_s


def slots(shape: EnvShape, params: EnvParams, pool: Array) -> Any:
    """Requests that run at once on an instance of a pool."""
    return shape.max_batch if params.pools is None else params.pools.max_batch[pool]


def takers(params: EnvParams, life: LifeState | None) -> Array | None:
    """(rows, pools) between which replicas the load balancer chooses; None where that is all of a full array."""
    if params.pools is None or life is None:
        return None if params.pools is None else params.pools.placed
    return among(life, params.pools.placed.shape)


def earned(
    shape: EnvShape,
    params: EnvParams,
    pool: Array,
    task: Array,
    service_s: Array,
    deadline_s: Array,
    own_delay_s: Array | None = None,
    tenant_weight: Array | None = None,
) -> Array:
    """Reward of answers by `pool` that took `service_s` plus the network delay; arguments broadcast.

    The delay is `own_delay_s`, or where that is None the pool's. Rewards count `tenant_weight` times.
    """
    value = shape.reward_fn(
        _of_task(params.quality[:, pool], task),
        _of_task(params.weight, task),
        service_s + (delay_s(shape, params, pool) if own_delay_s is None else own_delay_s),
        deadline_s,
        params.soft_span,
        params.miss_penalty,
        xp=jnp,
    )
    return value if tenant_weight is None else tenant_weight * value


def refused(
    shape: EnvShape, params: EnvParams, task: Array, deadline_s: Array, tenant_weight: Array | None = None
) -> Array:
    """Reward of a rejected request: its latency is infinite."""
    never_s = jnp.full_like(deadline_s, jnp.inf)
    return earned(shape, params, jnp.zeros_like(task), task, never_s, deadline_s, tenant_weight=tenant_weight)


def tenant_weight_of(params: EnvParams, arrival: Arrival) -> Array | None:
    """Factor on the rewards of a request by its tenant; None where all count the same."""
    return None if params.tenant_weight is None or arrival.tenant is None else params.tenant_weight[arrival.tenant]


def _of_task(table: Array, task: Array) -> Array:
    """`table[task]`, whose further axes broadcast with `task`.

    Uses selection, which runs in vector registers; on a CPU a gather works element by element.
    """
    value = table[0]
    for k in range(1, table.shape[0]):
        value = jnp.where(task == k, table[k], value)
    return value
