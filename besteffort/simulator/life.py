"""Life of replicas: which of them take requests, and when they lose those that they have.

Instances do not depend on each other here, so what happens to one between two arrivals is made up for at the next.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from besteffort.pools import FAIL, START, Life, least_loaded, shown_among, taking
from besteffort.simulator.types import EnvShape

Array = jax.Array


class LifeState(NamedTuple):
    """Where the lives of replicas stand.

    Attributes:
      clock_s, rounded_s: () seconds since the start, and what they lack because they were rounded.
      number: () of the next event.
      takes: (instances,) whether it takes requests: it is up, or starting.
      ready_s: (instances,) seconds until it is up, 0 if it is or was.
    """

    clock_s: Array
    rounded_s: Array
    number: Array
    takes: Array
    ready_s: Array


def empty(shape: EnvShape) -> LifeState:
    """Before the first arrival, when `begun` says who is up."""
    zero = jnp.zeros(())
    return LifeState(zero, zero, jnp.int32(0), jnp.zeros(shape.instances, bool), jnp.zeros(shape.instances))


def begun(life: Life, state: LifeState, first: Array) -> LifeState:
    """The state at an arrival; at the `first` of all, replicas are as they are at the start."""
    return state._replace(takes=jnp.where(first, life.up_first.reshape(-1), state.takes))


def among(state: LifeState, grid: tuple[int, ...]) -> Array:
    """(rows, pools) between which replicas the load balancer chooses, see `besteffort.pools.taking`."""
    return jnp.asarray(taking(state.takes.reshape(grid), state.ready_s.reshape(grid), jnp))


def shown(state: LifeState, sizes: Array, placed: Array) -> tuple[Array, Array]:
    """(pools,) the row of the replica that stands for each pool, and the seconds until it is up."""
    rows = least_loaded(sizes, shown_among(among(state, placed.shape), placed, jnp), jnp)
    return rows, state.ready_s.reshape(placed.shape)[rows, jnp.arange(placed.shape[1])]


def live(shape: EnvShape, life: Life, state: LifeState, busy_s: Array, gap_s: Array) -> tuple[LifeState, Array]:
    """What happens within `gap_s` seconds from now on.

    Args:
      shape: of the environment.
      life: what happens, and when.
      state: of now.
      busy_s: (instances,) seconds from now until the last request that an instance has would leave it.
      gap_s: () how far to go.

    Returns:
      The state after that, and (instances,) the seconds from now until an instance fails; infinite if it does not.
    """
    own_start_s = life.start_s[jnp.arange(shape.instances) % shape.pools]

    def when(number: Array) -> Array:
        at_s = life.time_s[number] - state.clock_s + (life.rounded_s[number] - state.rounded_s)
        return jnp.where(number < life.time_s.shape[0], at_s, jnp.inf)

    def due(carry: Any) -> Array:
        at_s = when(carry[0])
        return jnp.isfinite(at_s) & (at_s <= gap_s)

    def happen(carry: Any) -> Any:
        number, takes, ready_s, busy_s, fails_s = carry
        at_s, what = when(number), life.what[number]
        mine = jnp.arange(shape.instances) == life.instance[number]
        # One that has requests still drains, or was to: it need not start anew.
        anew = mine & (what == START) & ~takes & (busy_s <= at_s)
        fails = mine & (what == FAIL)
        return (
            number + 1,
            jnp.where(mine, what == START, takes),
            jnp.where(anew, at_s + own_start_s, ready_s),
            jnp.where(fails, jnp.minimum(busy_s, at_s), busy_s),
            jnp.where(fails, jnp.minimum(fails_s, at_s), fails_s),
        )

    never_s = jnp.full_like(busy_s, jnp.inf)
    number, takes, ready_s, _, fails_s = jax.lax.while_loop(
        due, happen, (state.number, state.takes, state.ready_s, busy_s, never_s)
    )
    # A sum in two parts, so that little gaps count after a long time, too.
    more_s = gap_s + state.rounded_s
    clock_s = state.clock_s + more_s
    rounded_s = jnp.where(jnp.isfinite(clock_s), more_s - (clock_s - state.clock_s), 0.0)
    return LifeState(clock_s, rounded_s, number, takes, jnp.maximum(ready_s - gap_s, 0.0)), fails_s
