"""Life of replicas: which of them take requests, and when they lose those that they have.

Instances do not depend on each other here, so what happens to one between two arrivals is made up for at the next.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from besteffort.autoscaler import Scaling
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
      up_s, up_rounded_s: (instances,) seconds since the start when it is up, or was, and what they lack.
      look_s, look_rounded_s: (pools,) the same of when the autoscaler looks next; None unless `EnvShape.looks`.
      looks: (pools,) how often it has looked; None likewise.
      wanted: (pools, looks) replicas that it wanted, that of look `k` in slot `k % looks`; None likewise.
    """

    clock_s: Array
    rounded_s: Array
    number: Array
    takes: Array
    ready_s: Array
    up_s: Array
    up_rounded_s: Array
    look_s: Array | None = None
    look_rounded_s: Array | None = None
    looks: Array | None = None
    wanted: Array | None = None


def empty(shape: EnvShape) -> LifeState:
    """Before the first arrival, when `begun` says who is up."""
    zero, each = jnp.zeros(()), jnp.zeros(shape.instances)
    state = LifeState(zero, zero, jnp.int32(0), jnp.zeros(shape.instances, bool), each, each, each)
    if not shape.looks:
        return state
    return state._replace(
        look_s=jnp.zeros(shape.pools),
        look_rounded_s=jnp.zeros(shape.pools),
        looks=jnp.zeros(shape.pools, jnp.int32),
        wanted=jnp.zeros((shape.pools, shape.looks), jnp.int32),
    )


def begun(life: Life, state: LifeState, first: Array) -> LifeState:
    """The state at an arrival; at the `first` of all, replicas are as they are at the start."""
    state = state._replace(takes=jnp.where(first, life.up_first.reshape(-1), state.takes))
    if life.scaling is None or state.look_s is None:
        return state
    return state._replace(look_s=jnp.where(first, life.scaling.interval_s, state.look_s))


def among(state: LifeState, grid: tuple[int, ...]) -> Array:
    """(rows, pools) between which replicas the load balancer chooses, see `besteffort.pools.taking`."""
    return jnp.asarray(taking(state.takes.reshape(grid), state.ready_s.reshape(grid), jnp))


def shown(state: LifeState, sizes: Array, placed: Array) -> tuple[Array, Array]:
    """(pools,) the row of the replica that stands for each pool, and the seconds until it is up."""
    rows = least_loaded(sizes, shown_among(among(state, placed.shape), placed, jnp), jnp)
    return rows, state.ready_s.reshape(placed.shape)[rows, jnp.arange(placed.shape[1])]


class _Now(NamedTuple):
    """A moment between two arrivals.

    Attributes:
      number, takes, up_s, up_rounded_s, look_s, look_rounded_s, looks, wanted: as in `LifeState`.
      busy_s: (instances,) seconds from the first arrival until the last request of an instance would leave it.
      fails_s: (instances,) likewise until the instance fails; infinite if it does not.
    """

    number: Array
    takes: Array
    up_s: Array
    up_rounded_s: Array
    busy_s: Array
    fails_s: Array
    look_s: Any
    look_rounded_s: Any
    looks: Any
    wanted: Any


def live(
    shape: EnvShape, life: Life, placed: Array, state: LifeState, leave_s: Array, gap_s: Array
) -> tuple[LifeState, Array]:
    """What happens within `gap_s` seconds from now on.

    Args:
      shape: of the environment.
      life: what happens, and when.
      placed: (rows, pools) where there are replicas.
      state: of now.
      leave_s: (instances, seats) seconds from now until each request leaves its instance; 0 or less where none is.
      gap_s: () how far to go; if that is without end, autoscalers do not look any more.

    Returns:
      The state after that, and (instances,) the seconds from now until an instance fails; infinite if it does not.
    """
    own_start_s = life.start_s[jnp.arange(shape.instances) % shape.pools]
    events = life.time_s.shape[0]
    # In float64 what is due at the instant of an arrival comes before it, so times are rounded as by the reference.
    double = gap_s.dtype == jnp.float64

    def until(time_s: Array, rounded_s: Array, clock_s: Array, clock_rounded_s: Array) -> Array:
        seconds = time_s - clock_s
        return seconds if double else seconds + (rounded_s - clock_rounded_s)

    def event_s(now: _Now) -> Array:
        if not events:
            return jnp.full_like(gap_s, jnp.inf)
        number = now.number
        at_s = until(life.time_s[number], life.rounded_s[number], state.clock_s, state.rounded_s)
        return jnp.where(now.number < events, at_s, jnp.inf)

    def looks_s(now: _Now) -> Array:
        return until(now.look_s, now.look_rounded_s, state.clock_s, state.rounded_s)

    def look_s(now: _Now) -> Array:
        if now.look_s is None:
            return jnp.full_like(gap_s, jnp.inf)
        return jnp.where(jnp.isfinite(gap_s), jnp.min(looks_s(now)), jnp.inf)

    def due(now: _Now) -> Array:
        at_s = jnp.minimum(event_s(now), look_s(now))
        return jnp.isfinite(at_s) & (at_s <= gap_s)

    def change(now: _Now, at_s: Array, time_s: Array, rounded_s: Array, starts: Array, stops: Array) -> _Now:
        # One that has requests still drains, or was to: it need not start anew.
        anew = starts & ~now.takes & (now.busy_s <= at_s)
        takes = (now.takes | starts) & ~stops
        up_s, up_rounded_s = _plus(time_s, jnp.zeros_like(rounded_s) if double else rounded_s, own_start_s)
        return now._replace(
            takes=takes,
            up_s=jnp.where(anew, up_s, now.up_s),
            up_rounded_s=jnp.where(anew, up_rounded_s, now.up_rounded_s),
        )

    def happen(now: _Now) -> _Now:
        at_s, what = event_s(now), life.what[now.number]
        mine = jnp.arange(shape.instances) == life.instance[now.number]
        time_s, rounded_s = life.time_s[now.number], life.rounded_s[now.number]
        now = change(now, at_s, time_s, rounded_s, mine & (what == START), mine & (what != START))
        fails = mine & (what == FAIL)
        return now._replace(
            number=now.number + 1,
            busy_s=jnp.where(fails, jnp.minimum(now.busy_s, at_s), now.busy_s),
            fails_s=jnp.where(fails, jnp.minimum(now.fails_s, at_s), now.fails_s),
        )

    def look(now: _Now) -> _Now:
        assert life.scaling is not None
        pool = jnp.argmin(looks_s(now))
        at_s = looks_s(now)[pool]
        sizes = jnp.sum(leave_s > at_s, axis=1, dtype=jnp.int32).reshape(placed.shape)[:, pool]
        takes = now.takes.reshape(placed.shape)[:, pool]
        own: Scaling = jax.tree.map(lambda field: field[pool], life.scaling)
        looks = now.looks[pool] + 1
        wanted = now.wanted[pool].at[looks % shape.looks].set(_wanted(own, looks, takes, sizes))
        number = _settled(own, looks, wanted, takes)
        starts, drains = _orders(number, takes, placed[:, pool], sizes)
        column = jnp.arange(shape.pools) == pool
        here = [(each[:, None] & column[None]).reshape(-1) for each in (starts, drains)]
        next_s, next_rounded_s = _plus(now.look_s, now.look_rounded_s, life.scaling.interval_s)
        return change(now, at_s, now.look_s[pool], now.look_rounded_s[pool], *here)._replace(
            look_s=jnp.where(column, next_s, now.look_s),
            look_rounded_s=jnp.where(column, next_rounded_s, now.look_rounded_s),
            looks=jnp.where(column, looks, now.looks),
            wanted=jnp.where(column[:, None], wanted[None], now.wanted),
        )

    def follow(now: _Now) -> _Now:
        if life.scaling is None:
            return happen(now)
        if not events:
            return look(now)
        return cast(_Now, jax.lax.cond(event_s(now) <= look_s(now), happen, look, now))

    busy_s = jnp.max(leave_s, axis=1)
    none_s = jnp.full_like(busy_s, jnp.inf)
    now = _Now(
        number=state.number,
        takes=state.takes,
        up_s=state.up_s,
        up_rounded_s=state.up_rounded_s,
        busy_s=busy_s,
        fails_s=none_s,
        look_s=state.look_s,
        look_rounded_s=state.look_rounded_s,
        looks=state.looks,
        wanted=state.wanted,
    )
    now = jax.lax.while_loop(due, follow, now)
    # A sum in two parts, so that little gaps count after a long time, too.
    more_s = gap_s + state.rounded_s
    clock_s = state.clock_s + more_s
    rounded_s = jnp.where(jnp.isfinite(clock_s), more_s - (clock_s - state.clock_s), 0.0)
    state = LifeState(
        clock_s=clock_s,
        rounded_s=rounded_s,
        number=now.number,
        takes=now.takes,
        ready_s=jnp.maximum(until(now.up_s, now.up_rounded_s, clock_s, rounded_s), 0.0),
        up_s=now.up_s,
        up_rounded_s=now.up_rounded_s,
        look_s=now.look_s,
        look_rounded_s=now.look_rounded_s,
        looks=now.looks,
        wanted=now.wanted,
    )
    return state, now.fails_s


def _plus(time_s: Array, rounded_s: Array, more_s: Array) -> tuple[Array, Array]:
    """A time and what it lacks because it was rounded, so many seconds later (Knuth's sum in two parts)."""
    first_s = time_s + more_s
    added_s = first_s - time_s
    lacking_s = rounded_s + (time_s - (first_s - added_s)) + (more_s - added_s)
    sum_s = first_s + lacking_s
    return sum_s, jnp.where(jnp.isfinite(sum_s), lacking_s - (sum_s - first_s), 0.0)


def _wanted(own: Scaling, looks: Array, takes: Array, sizes: Array) -> Array:
    """() replicas that the autoscaler of a pool wants at a look, see `besteffort.autoscaler`."""
    count = jnp.sum(takes, dtype=jnp.int32)
    counted = jnp.sum(jnp.where(takes, jnp.maximum(sizes - own.beyond, 0), 0)).astype(own.target.dtype)
    target = jnp.where(own.target > 0, own.target, 1.0)
    near = jnp.abs(counted / (target * jnp.maximum(count, 1)) - 1.0) <= own.tolerance
    number = jnp.where((count > 0) & near, count, jnp.ceil(counted / target).astype(jnp.int32))
    if own.step.shape[0]:
        steps = jnp.sum(own.step_s <= looks * own.interval_s)
        by_schedule = jnp.where(steps > 0, own.step[jnp.maximum(steps - 1, 0)], 0)
        number = jnp.where(own.target > 0, number, by_schedule)
    return jnp.clip(number, own.least, own.most)


def _settled(own: Scaling, looks: Array, wanted: Array, takes: Array) -> Array:
    """() replicas that there are to be after what was wanted within the windows."""
    count = jnp.sum(takes, dtype=jnp.int32)
    slots = wanted.shape[0]
    age = (looks - jnp.arange(slots)) % slots
    seen = age < looks
    least = jnp.min(jnp.where(seen & (age * own.interval_s <= own.up_window_s), wanted, own.most))
    most = jnp.max(jnp.where(seen & (age * own.interval_s <= own.down_window_s), wanted, own.least))
    return jnp.where(count < least, least, jnp.minimum(count, most))


def _orders(number: Array, takes: Array, placed: Array, sizes: Array) -> tuple[Array, Array]:
    """(rows,) replicas of a pool to be started, and to be drained, so that so many take requests."""
    count = jnp.sum(takes, dtype=jnp.int32)
    idle = placed & ~takes
    starts = idle & (jnp.cumsum(idle) <= number - count)
    row = jnp.arange(takes.shape[0])
    emptier = (sizes[None] < sizes[:, None]) | ((sizes[None] == sizes[:, None]) & (row[None] > row[:, None]))
    drains = takes & (jnp.sum(emptier & takes[None], axis=1) < count - number)
    return starts, drains
