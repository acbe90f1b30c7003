"""Samples a generator into an explicit list of requests."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from besteffort.pytrees import node_types
from besteffort.situation import Situation
from besteffort.workload.arrivals import Arrivals
from besteffort.workload.requests import Requests
from besteffort.workload.synthetic_workload import synthetic
from besteffort.workload.types import Arrival


def draw(workload: Any, key: PRNGKeyArray, n: int) -> Arrival:
    """The first `n` arrivals, each field an (n,) array.

    The key is split: `init` gets the first part, and call `i` of `next` the second, folded with `i`.
    """
    return _draw(node_types(workload), workload, key, n)


@functools.partial(jax.jit, static_argnames=("kinds", "n"))
def _draw(kinds: tuple[Any, ...], workload: Any, key: PRNGKeyArray, n: int) -> Arrival:
    init_key, next_key = jax.random.split(key)

    def step(state: Any, index: Array) -> tuple[Any, Arrival]:
        arrival, state = workload.next(jax.random.fold_in(next_key, index), state)
        return state, arrival

    _, arrivals = jax.lax.scan(step, workload.init(init_key), jnp.arange(n))
    return arrivals


def sample_workload(workload: Any, task_names: tuple[str, ...], n: int, seed: int) -> Requests:
    """The first `n` requests of a workload, a pytree with `init` and `next`, as a list.

    The draws have the default float type of JAX; arrival times are summed in float64. A seed yields the same list every
    time, but a different list under `jax.enable_x64`.
    """
    return as_requests(jax.device_get(draw(workload, jax.random.key(seed), n)), task_names, origins_of(workload))


def origins_of(workload: Any) -> tuple[str, ...]:
    """Names of the origins of a workload's requests; of those without origins none."""
    names: tuple[str, ...] = getattr(workload, "origins", ())
    return names


def as_requests(arrivals: Arrival, task_names: tuple[str, ...], origins: tuple[str, ...] = ()) -> Requests:
    """Arrivals, each field an (n,) array of NumPy, as a list."""
    columns = arrivals._asdict()
    gap_s = columns.pop("gap_s")
    return Requests(tasks=task_names, arrival_s=np.cumsum(gap_s, dtype=np.float64), **columns, origins=origins)


def sample_requests(situation: Situation, process: Arrivals, n: int, seed: int = 0) -> Requests:
    """`n` requests of a situation's tasks, in their own mix and lengths, at the times of an arrival process.

    Args:
      situation: the source of the tasks.
      process: one of `besteffort.workload.arrivals`, or any pytree with their methods.
      n: number of requests.
      seed: seed of the draws; the same seed yields the same list.
    """
    return sample_workload(synthetic(situation, process), situation.task_names, n, seed)
