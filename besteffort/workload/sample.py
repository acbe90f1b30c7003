"""Samples a generator into an explicit list of requests."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PRNGKeyArray

from besteffort.keys import straight
from besteffort.pytrees import node_types
from besteffort.situation import Situation
from besteffort.workload.arrivals import Arrivals
from besteffort.workload.requests import PARTIES, Requests
from besteffort.workload.synthetic_workload import synthetic
from besteffort.workload.types import Arrival

_LANES, _PART = 8, 4096  # lists and arrivals that are drawn by one call, so that one program serves lists of any length


def draw(workload: Any, key: PRNGKeyArray, n: int) -> Arrival:
    """The first `n` arrivals, each field an (n,) array.

    The key is split: `init` gets the first part, and call `i` of `next` the second, folded with `i`.
    """
    return _draw(node_types(workload), workload, key, n)


@functools.partial(jax.jit, static_argnames=("kinds", "n"))
def _draw(kinds: tuple[Any, ...], workload: Any, key: PRNGKeyArray, n: int) -> Arrival:
    init_key, next_key = jax.random.split(key)
    return _arrivals(workload, next_key, workload.init(init_key), jnp.arange(n))[1]


def sample_lists(workloads: Sequence[Any], task_names: tuple[str, ...], n: int, seeds: Sequence[int]) -> list[Requests]:
    """The first `n` requests of each workload for each seed, workload by workload.

    Args:
      workloads: of the same kind and static fields, so that their numbers stack.
      task_names: names of the tasks.
      n: requests per list.
      seeds: each workload is drawn with each; lists of different workloads with the same seed share their draws.
    """
    lists: list[Requests] = []
    for workload in workloads:
        for begin in range(0, len(seeds), _LANES):
            group = seeds[begin : begin + _LANES]
            filled = [*group, *[group[-1]] * (_LANES - len(group))]
            arrivals = _draw_together(workload, jax.vmap(jax.random.key)(jnp.asarray(filled, jnp.uint32)), n)
            lists += [
                as_requests(jax.tree.map(lambda field, at=at: field[at], arrivals), task_names, **parties_of(workload))
                for at in range(len(group))
            ]
    return lists


def _draw_together(workload: Any, keys: Key[Array, " keys"], n: int) -> Arrival:
    """What `draw` gives for each of some keys, part by part, as arrays of NumPy of shape (keys, n)."""
    kinds = node_types(workload)
    # An axis of its own, of one entry: without it XLA would round otherwise what it divides by a rate, and lists would
    # not be those of earlier versions to the last digit.
    workload = jax.tree.map(_alone, workload)
    states, keys = _begin(kinds, workload, keys)
    parts = []
    for first in range(0, n, _PART):
        states, part = _go_on(kinds, workload, keys, states, jnp.int32(first))
        parts.append(jax.device_get(part))
    return Arrival(*jax.tree.map(lambda *fields: np.concatenate(fields, axis=2)[0, :, :n], *parts))


def _alone(leaf: Any) -> Array:
    """A leaf with leading axis (1,), of JAX's own type of float if it is one."""
    return jnp.asarray(leaf, float if np.issubdtype(np.asarray(leaf).dtype, np.floating) else None)[None]


@functools.partial(jax.jit, static_argnames="kinds")
def _begin(kinds: tuple[Any, ...], workload: Any, keys: Key[Array, " keys"]) -> tuple[Any, Key[Array, " keys"]]:
    """States before the first arrivals, of shape (1, keys), and the keys of these, of shape (keys,)."""
    init_keys, next_keys = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)

    def of_workload(workload: Any) -> Any:
        return jax.vmap(workload.init)(init_keys)

    return jax.vmap(of_workload)(workload), next_keys


@functools.partial(jax.jit, static_argnames="kinds")
def _go_on(
    kinds: tuple[Any, ...], workload: Any, keys: Key[Array, " keys"], states: Any, first: Int[Array, ""]
) -> tuple[Any, Arrival]:
    """The next states, and arrivals from the `first` on, with axes (1, keys)."""
    indices = first + jnp.arange(_PART)

    def of_workload(workload: Any, states: Any) -> tuple[Any, Arrival]:
        return jax.vmap(lambda key, state: _arrivals(workload, key, state, indices))(straight(keys), states)

    return jax.vmap(of_workload)(workload, states)


def _arrivals(workload: Any, key: PRNGKeyArray, state: Any, indices: Int[Array, " n"]) -> tuple[Any, Arrival]:
    """The state after arrivals, and these."""

    def step(state: Any, index: Array) -> tuple[Any, Arrival]:
        arrival, state = workload.next(jax.random.fold_in(key, index), state)
        return state, arrival

    return jax.lax.scan(step, state, indices)


def sample_workload(workload: Any, task_names: tuple[str, ...], n: int, seed: int) -> Requests:
    """The first `n` requests of a workload, a pytree with `init` and `next`, as a list.

    The draws have the default float type of JAX; arrival times are summed in float64. A seed yields the same list every
    time, but a different list under `jax.enable_x64`.
    """
    return as_requests(jax.device_get(draw(workload, jax.random.key(seed), n)), task_names, **parties_of(workload))


def parties_of(workload: Any) -> dict[str, tuple[str, ...]]:
    """Names of the `origins` and `tenants` of a workload's requests; none where they have none."""
    return {f"{name}s": getattr(workload, f"{name}s", ()) for name in PARTIES}


def as_requests(
    arrivals: Arrival, task_names: tuple[str, ...], origins: tuple[str, ...] = (), tenants: tuple[str, ...] = ()
) -> Requests:
    """Arrivals, each field an (n,) array of NumPy, as a list."""
    columns = arrivals._asdict()
    arrival_s = np.cumsum(columns.pop("gap_s"), dtype=np.float64)
    return Requests(tasks=task_names, arrival_s=arrival_s, **columns, origins=origins, tenants=tenants)


def sample_requests(situation: Situation, process: Arrivals, n: int, seed: int = 0) -> Requests:
    """`n` requests of a situation's tasks, in their own mix and lengths, at the times of an arrival process.

    Args:
      situation: the source of the tasks.
      process: one of `besteffort.workload.arrivals`, or any pytree with their methods.
      n: number of requests.
      seed: seed of the draws; the same seed yields the same list.
    """
    return sample_workload(synthetic(situation, process), situation.task_names, n, seed)
