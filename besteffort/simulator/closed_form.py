"""Closed-form dynamics of independent instances: an arrival costs one insertion, and no event queue is needed.

Between two admissions an instance only decodes, so its future is known. Each iteration gives every running request one
token; with a clock that counts iterations, a request that is admitted at clock 0 and wants `n` tokens leaves at clock
`n`, whichever requests run with it. Keep the running requests sorted by that clock, flush right: then `max_batch - j`
of them still run while the j-th is the next to leave, and all departure times are one prefix sum,

    done[j] = admission + sum over i <= j of (finish[i] - finish[i - 1]) * decode[max_batch - i],

where `admission` is the length of the iteration that admitted the last ones. Queues are first come, first served, and
no request is preempted, so a request's admission does not depend on later arrivals. Its time is known at once: the
next iteration boundary if there is room, else the first planned departure that makes room. So the plan always covers
all requests, including those that will wait, and a batch size is a count of departures still to come.

Times and clocks of an instance are relative to its *boundary*: the start of the iteration that admits the last of its
requests, which may lie in the future. Thus float32 keeps its precision however long an episode lasts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from besteffort.estimates.correction import Answers
from besteffort.estimates.view import InFlightView
from besteffort.pools import least_loaded
from besteffort.simulator import ledger as ledgers
from besteffort.simulator.batching import batched_over_vmap
from besteffort.simulator.gateways import gateway_of, unseen
from besteffort.simulator.ledger import Ledger, Timing
from besteffort.simulator.life import LifeState, shown
from besteffort.simulator.request import (
    Request,
    answers_by_tables,
    compares_answers,
    compares_iterations,
    earned,
    of_pools,
    read_s,
    refused,
    slots,
    takers,
)
from besteffort.simulator.rows import count, count_and_total, largest, least, once, pick, seat
from besteffort.simulator.types import EnvParams, EnvShape
from besteffort.workload.types import Arrival

Array = jax.Array
_NEVER = jnp.iinfo(jnp.int32).max
_LONG_AGO = 2**30
_SMALL = 2**8  # as many tasks have numbers of one byte: the state has to fit a core's cache


class Seats(NamedTuple):
    """Requests of an instance, sorted by departure, flush right; fields of shape (..., `EnvShape.seats`).

    The last `max_batch` seats hold the requests that run from the boundary on; where pools differ, no more of them than
    the pool runs at once. To their left are those that leave
    before it or have left already; these keep their seat until another request needs it.

    Attributes:
      index: number of the decision; -1 where the seat was never taken.
      task: index of the task.
      finish: iterations from the boundary to the departure; 0 if it leaves at the boundary or before, unless
        `EnvShape.estimates`: then negative if it leaves before.
      done_s: time of departure.
      arrival_s: time of arrival.
      deadline_s: deadline on the end-to-end latency.
      value: reward if it departs as planned.
      admitted: iterations from the boundary to its admission, 0 or less; None unless needed.
      prompt_tokens: None unless `EnvShape.context_cost` or `EnvShape.estimates`.
      cache_tokens: None unless `EnvShape.cache_limit`.
      admission_s, first_token_s: None unless `EnvShape.record` or `EnvShape.estimates`.
      eligible: iterations from the boundary to the first that might admit it; None unless estimates infer admissions.
      output_limit, deadline_factor: None unless `EnvShape.estimates`, and where requests have none.
      done_excess_s, admission_excess_s, first_token_excess_s: what has passed by then since the boundary, idle or not,
        less what would have by the assumed tables; None unless iterations are compared.
      fixed_s: see `besteffort.estimates.correction.Answers`; None unless answers are compared.
      delay_s: network delay; None where requests have no origin.
      read_s: seconds of reading what was not found of its prompt, by the assumed tables; None unless
        `EnvShape.estimates`.
      lost: whether it left without an answer, since the instance failed; None unless `EnvShape.life`.
      tenant_weight: factor on its rewards; None where all count the same.
    """

    index: Array  # type: ignore[assignment]
    task: Array
    finish: Array
    done_s: Array
    arrival_s: Array
    deadline_s: Array
    value: Array
    admitted: Array | None
    prompt_tokens: Array | None
    cache_tokens: Array | None
    admission_s: Array | None
    first_token_s: Array | None
    eligible: Array | None
    output_limit: Array | None
    deadline_factor: Array | None
    done_excess_s: Any = None
    admission_excess_s: Any = None
    first_token_excess_s: Any = None
    fixed_s: Any = None
    delay_s: Any = None
    read_s: Any = None
    lost: Any = None
    tenant_weight: Any = None


class DeparturePlan(NamedTuple):
    """Progress of an instance; one scalar per instance, times relative to the boundary.

    Attributes:
      age_s: the current time; negative while the boundary lies ahead.
      admission_s: length of the iteration that starts at the boundary.
      prefill_s: the part of it that is prefill.
      joined: requests admitted at the boundary.
      mark_s, mark: start of an iteration, and iterations from the boundary to it: that in progress when a request last
        came; None unless `EnvShape.estimates`. Departures since then have their seats still.
      counted_s: start of the iteration in progress at the last decision, up to which iterations have been compared with
        the tables; where whole answers are, the time of that decision. None unless times are compared.
      admission_excess_s, prefill_excess_s, mark_excess_s, counted_excess_s: what `admission_s` and the like are beyond
        the assumed tables; None unless iterations are compared.
    """

    age_s: Array
    admission_s: Array
    prefill_s: Array
    joined: Array
    mark_s: Array | None
    mark: Array | None
    counted_s: Any = None
    admission_excess_s: Any = None
    prefill_excess_s: Any = None
    mark_excess_s: Any = None
    counted_excess_s: Any = None


class Progress(NamedTuple):
    """How far an instance has come; scalars.

    Attributes:
      start_s: start of the iteration in progress, of no meaning where nothing runs.
      clock: iterations from the boundary to it.
      idle: whether no request is there.
      excess_s: what `start_s` is beyond the assumed tables; None unless iterations are compared.
    """

    start_s: Array
    clock: Array
    idle: Array
    excess_s: Any


class Boundary(NamedTuple):
    """When an iteration starts; scalars.

    Attributes:
      at_s: the time.
      clock: iterations from the instance's boundary to it.
      excess_s: what the time is beyond the assumed tables; None unless iterations are compared.
    """

    at_s: Array
    clock: Array
    excess_s: Any


class Instances(NamedTuple):
    """All instances of a cluster.

    Attributes:
      seats: fields of shape (instances, `EnvShape.seats`).
      plan: fields of shape (instances,).
    """

    seats: Seats
    plan: DeparturePlan


def empty(shape: EnvShape, like: Arrival | None = None) -> Instances:
    """Idle instances, for requests that state what `like` states: origins, limits, factors; none by default."""
    one = (shape.instances,)
    estimates = shape.estimates is not None
    infers = shape.estimates is not None and shape.estimates.infers_admissions
    all_seats = (shape.instances, shape.seats)
    whole, real = jnp.zeros(all_seats, jnp.int32), jnp.zeros(all_seats)
    seats = Seats(
        index=whole - 1,
        task=whole.astype(jnp.uint8) if shape.tasks <= _SMALL else whole,
        finish=whole,
        done_s=real - jnp.inf,
        arrival_s=real,
        deadline_s=real,
        value=real,
        admitted=whole if shape.context_cost or shape.record or estimates else None,
        prompt_tokens=whole if shape.context_cost or estimates else None,
        cache_tokens=real if shape.cache_limit else None,
        admission_s=real if shape.record or estimates else None,
        first_token_s=real if shape.record or estimates else None,
        eligible=whole if infers else None,
        output_limit=whole if estimates and like and like.output_limit is not None else None,
        deadline_factor=real if estimates and like and like.deadline_factor is not None else None,
        delay_s=real if like and like.origin is not None else None,
        read_s=real if estimates else None,
        lost=jnp.zeros(all_seats, bool) if shape.life else None,
        tenant_weight=real if like and like.tenant is not None else None,
    )
    zero, none = jnp.zeros(one), jnp.zeros(one, jnp.int32)
    mark = (zero, none) if estimates else (None, None)
    plan = DeparturePlan(zero, zero, zero, none, *mark)
    if shape.compare_times:
        plan = plan._replace(counted_s=zero)
    if compares_iterations(shape):
        seats = seats._replace(done_excess_s=real, admission_excess_s=real, first_token_excess_s=real)
        plan = plan._replace(admission_excess_s=zero, prefill_excess_s=zero, mark_excess_s=zero, counted_excess_s=zero)
    if compares_answers(shape):
        seats = seats._replace(fixed_s=real)
    return Instances(seats, plan)


def seen_sizes(shape: EnvShape, params: EnvParams, instances: Instances, index: Array) -> Array:
    """(rows, pools) batch sizes as the gateway of decision `index` sees them."""
    seats, plan = instances
    seen_s = plan.age_s[:, None] - _late_s(params, seats, index)
    present = (seats.arrival_s <= seen_s) & (seats.done_s > seen_s)
    return count(present).reshape(shape.replicas, shape.pools)


def _late_s(params: EnvParams, seats: Any, index: Array) -> Array:
    """How late the gateway of decision `index` sees each request."""
    own = gateway_of(seats.index, params.gateways, jnp) == gateway_of(index, params.gateways, jnp)
    return jnp.where(own, 0.0, params.gateway_delay_s)


def last_departure_s(instances: Instances) -> Array:
    """() seconds since the last departure that still has a seat; inf if there is none."""
    age_s, done_s = instances.plan.age_s[:, None], instances.seats.done_s
    return jnp.min(jnp.where(done_s <= age_s, age_s - done_s, jnp.inf))


def leave_s(instances: Instances) -> Array:
    """(instances, seats) seconds until each request leaves, 0 or less where it has or none is."""
    return instances.seats.done_s - instances.plan.age_s[:, None]


def lose(shape: EnvShape, params: EnvParams, instances: Instances, fails_s: Array) -> Instances:
    """Instances that fail in so many seconds, if that is finite, lose whoever is there then."""
    seats, plan = instances
    at_s = (plan.age_s + fails_s)[:, None]
    lost = seats.done_s > at_s
    value = jnp.where(lost, refused(shape, params, seats.task, seats.deadline_s, seats.tenant_weight), seats.value)
    done_s = jnp.where(lost, at_s, seats.done_s)
    return Instances(seats._replace(done_s=done_s, value=value, lost=seats.lost | lost), plan)


def advance(
    shape: EnvShape, params: EnvParams, instances: Instances, ledger: Ledger, newest: Array, gap_s: Array
) -> tuple[Instances, Ledger, Array, Array]:
    """Advances time by `gap_s`.

    The third result is the summed reward of the requests that departed meanwhile, the last are the (rows, pools) batch
    sizes then: running plus waiting requests.
    """
    del params, newest  # The ledger is written later: when a seat is needed, or by `flush`.
    seats, plan = instances
    age_s = plan.age_s + gap_s
    present = seats.done_s > age_s[:, None]
    departed = (seats.done_s > plan.age_s[:, None]) & ~present
    sizes, reward = count_and_total(present, jnp.where(departed, seats.value, 0.0))
    instances = Instances(seats, plan._replace(age_s=age_s))
    return instances, ledger, reward, sizes.reshape(shape.replicas, shape.pools)


def submit(
    shape: EnvShape,
    params: EnvParams,
    instances: Instances,
    ledger: Ledger,
    instance: Array,
    request: Request,
    accept: Array,
) -> tuple[Instances, Ledger, Array, Array]:
    """Gives `request`, which arrives now, to `instance`, which has a seat for it; a no-op unless `accept`.

    The third result is the change in what all requests present earn if no other request arrives: what `request` is now
    planned to earn, less the loss of the requests that it delays beyond their deadlines. The last is what `request` has
    earned already: its reward if it takes no time, and so has left before anyone sees it there; else 0.
    """
    pool = instance % shape.pools
    seats, plan = jax.tree.map(lambda field: pick(field, instance), instances)
    first: Seats = jax.tree.map(lambda x: x[0], seats)
    timing = _timing(shape, first)
    ledger = ledgers.write(ledger, first.index, accept & (first.index >= 0), request.index, first.value, timing)

    boundary = jax.tree.map(once, _admission(shape, params, pool, seats, plan, request))
    at_s, clock = boundary.at_s, boundary.clock
    eligible = None
    marked, others = plan, seats
    if shape.estimates is not None:
        progress = _in_progress(shape, params, pool, seats, plan)
        idle = progress.idle
        marked = plan._replace(
            mark_s=jnp.where(idle, at_s, progress.start_s), mark=jnp.where(idle, clock, progress.clock)
        )
        eligible = progress.clock + 1 - clock
        if request.ready_s is not None:
            # The first iteration may admit all who come before the instance is up.
            eligible = eligible - (request.ready_s > 0)
        eligible = jnp.where(idle, 0, eligible)
        if progress.excess_s is not None:
            # Idle time is not compared.
            marked = marked._replace(
                mark_excess_s=jnp.where(idle, boundary.excess_s, progress.excess_s),
                counted_s=jnp.where(idle, at_s, plan.counted_s),
            )
    assumed_s = None
    if seats.read_s is not None:
        assumed_s = read_s(params.believed, pool, request.prompt_tokens, request.cached_tokens)
    if seats.fixed_s is not None:
        # Its prefill comes in between for those that are there.
        others = seats._replace(fixed_s=seats.fixed_s + assumed_s)
    place = count(others.finish - clock <= request.output_tokens) - 1
    moved = _move(shape, _make_place(others, place), marked, boundary)
    new = _admit(shape, params, pool, *moved, clock == 0, request, place, eligible, assumed_s)
    credit = _planned(*new, place) - _planned(seats, plan)
    # Only one that finds nobody there takes no time, so nothing else is in its credit.
    first_token_s = new[1].admission_s
    at_once = jnp.where((request.output_tokens == 1) & (first_token_s <= new[1].age_s), credit, 0.0)
    nowhere = shape.instances
    instances = Instances(*_put(tuple(instances), jnp.where(accept, instance, nowhere), new))
    return instances, ledger, jnp.where(accept, credit, 0.0), jnp.where(accept, at_once, 0.0)


def compare(shape: EnvShape, params: EnvParams, instances: Instances, sizes: Array) -> tuple[Instances, Array, Array]:
    """Takes stock of what ended since the last decision.

    Args:
      shape: of the environment.
      params: numbers of the environment.
      instances: all instances.
      sizes: (rows, pools) batch sizes of now.

    Returns:
      The instances, and per pool the seconds observed beyond the assumed tables, and those by these tables.
    """
    seats, plan = instances
    if seats.fixed_s is not None:
        assert plan.counted_s is not None
        done_s, since_s = seats.done_s, plan.counted_s[:, None]
        ended = (done_s > since_s) & (done_s <= plan.age_s[:, None]) & jnp.isfinite(seats.fixed_s)
        assert seats.admitted is not None
        answers = Answers(
            observed_s=jnp.sum(jnp.where(ended, done_s - seats.arrival_s, 0.0), axis=1),
            fixed_s=jnp.sum(jnp.where(ended, seats.fixed_s, 0.0), axis=1),
            steps=jnp.sum(jnp.where(ended, seats.finish - seats.admitted - 1, 0), axis=1),
        )
        excess_s, assumed_s = answers_by_tables(shape, params.believed, answers, sizes.reshape(-1))
        return Instances(seats, plan._replace(counted_s=plan.age_s)), excess_s, assumed_s
    each = jax.vmap(_in_progress, in_axes=(None, None, 0, 0, 0))
    progress = each(shape, params, _pool_of_each(shape), seats, plan)
    excess_s = progress.excess_s - plan.counted_excess_s
    observed_s = progress.start_s - plan.counted_s
    counted = plan._replace(counted_s=progress.start_s, counted_excess_s=progress.excess_s)
    return Instances(seats, counted), of_pools(shape, excess_s), of_pools(shape, observed_s - excess_s)


def flush(shape: EnvShape, params: EnvParams, instances: Instances, ledger: Ledger, newest: Array) -> Ledger:
    """Writes every request that has departed by now into the ledger."""
    del params
    seats, plan = instances
    left = (seats.done_s <= plan.age_s[:, None]) & (seats.index >= 0)
    return ledgers.write(ledger, seats.index, left, newest, seats.value, _timing(shape, seats))


def _pool_of_each(shape: EnvShape) -> Array:
    """(instances,) pool of each instance."""
    return jnp.arange(shape.instances) % shape.pools


def _planned(seats: Seats, plan: DeparturePlan, place: Array | None = None) -> Array:
    """() summed reward of the requests at an instance if they depart as planned: who is there, and who came now.

    The latter has the seat `place`, and may have left already.
    """
    counts = seats.done_s > plan.age_s
    if place is not None:
        counts |= jnp.arange(counts.shape[0]) == place
    return jnp.sum(jnp.where(counts, seats.value, 0.0))


def _timing(shape: EnvShape, seats: Seats) -> Timing | None:
    if not shape.record or seats.admission_s is None or seats.first_token_s is None:
        return None
    timing = Timing(
        *(moment_s - seats.arrival_s for moment_s in (seats.admission_s, seats.first_token_s, seats.done_s))
    )
    if seats.lost is None:
        return timing
    # What was planned for later never came.
    return Timing(
        wait_s=jnp.where(seats.lost & (seats.admission_s > seats.done_s), jnp.nan, timing.wait_s),
        first_token_s=jnp.where(seats.lost & (seats.first_token_s > seats.done_s), jnp.nan, timing.first_token_s),
        service_s=jnp.where(seats.lost, jnp.nan, timing.service_s),
    )


def in_flight(
    shape: EnvShape, params: EnvParams, instances: Instances, sizes: Array, index: Array, life: LifeState | None
) -> InFlightView:
    """What can be counted of the requests on the instance of each pool that gets the next request.

    `sizes` are the batch sizes that the gateway of decision `index` sees, (rows, pools). Planned times decide
    nothing here but which of them are past.
    """
    terms = shape.estimates
    assert terms is not None
    pools = jnp.arange(shape.pools)
    there = takers(params, life)
    ready_s = takes = None
    if life is None or there is None or params.pools is None:
        picked_rows = least_loaded(sizes, there, jnp)
    else:
        picked_rows, ready_s = shown(life, sizes, params.pools.placed)
        takes = there.any(axis=0)
    rows = picked_rows * shape.pools + pools
    infers = terms.infers_admissions
    needless: dict[str, Any] = {"deadline_s": None, "cache_tokens": None} | (
        {} if infers else {"eligible": None} if shape.late_others else {"index": None, "eligible": None}
    )
    wanted = Instances(instances.seats._replace(**needless), instances.plan)
    picked = jax.tree.map(lambda field: pick(field, rows), wanted)
    # Asks for rows that are read once, not anew for everything that is made of them. XLA drops barriers before it fuses
    # for CPUs, so there the program is the same without.
    seats: Any
    seats, plan = jax.lax.optimization_barrier(picked)
    each = jax.vmap(_in_progress, in_axes=(None, None, 0, 0, 0))
    progress = each(shape, params, pools, seats, plan)
    age_s = seen_s = plan.age_s[:, None]
    late_s = not_seen = None
    clock, elapsed_s = progress.clock[:, None], plan.age_s - progress.start_s
    if shape.late_others:
        late_s = _late_s(params, seats, index)
        seen_s = age_s - late_s
        present = (seats.arrival_s <= seen_s) & (seats.done_s > seen_s)
        then = each(shape, params, pools, seats, _as_it_was(plan, params.gateway_delay_s))
        # The iteration in progress shows on own requests; else it is that of then, if there was one.
        shows = (present & (seats.admission_s <= seen_s) & (late_s == 0)).any(axis=1)
        then_s = plan.age_s - params.gateway_delay_s
        ran = ((seats.admission_s <= then_s[:, None]) & (seats.done_s > then_s[:, None])).any(axis=1)
        elapsed_s = jnp.where(shows, elapsed_s, jnp.where(ran, then_s - then.start_s, 0.0))
        clock = jnp.where(late_s == 0, clock, then.clock[:, None])
        not_seen = _unseen(shape, params, instances, index)
    else:
        present = seats.done_s > seen_s
    started = present & (seats.first_token_s <= seen_s)
    return InFlightView(
        present=present,
        running=None if infers else present & (seats.admission_s <= seen_s),
        tokens=jnp.where(started, clock - seats.admitted, 0) * terms.streamed,
        task=seats.task.astype(jnp.int32),
        prompt_tokens=seats.prompt_tokens,
        read_s=seats.read_s,
        age_s=age_s - seats.arrival_s,
        elapsed_s=elapsed_s,
        eligible=seats.eligible <= clock if infers else None,
        order=seats.index if infers else None,
        output_limit=seats.output_limit,
        deadline_factor=seats.deadline_factor,
        delay_s=seats.delay_s,
        tenant_weight=seats.tenant_weight,
        seen_s=late_s,
        unseen=not_seen,
        ready_s=ready_s,
        takes=takes,
        terms=terms,
    )


def _unseen(shape: EnvShape, params: EnvParams, instances: Instances, index: Array) -> Array:
    """(pools,) requests of others on an instance that the gateway of decision `index` does not see yet."""
    seats, plan = instances
    age_s = plan.age_s[:, None]
    own = _late_s(params, seats, index) == 0
    recent = own & (seats.done_s > age_s) & (seats.arrival_s > age_s - params.gateway_delay_s)
    number = of_pools(shape, jnp.sum(recent, axis=1).astype(age_s.dtype))
    there = takers(params, None)
    return unseen(number, params.gateways, shape.replicas if there is None else there.sum(0), jnp)


def _as_it_was(plan: DeparturePlan, ago_s: Array) -> DeparturePlan:
    """The plan with which `_in_progress` tells how far instances had come some time ago, as far as seats remember."""
    age_s = plan.age_s - ago_s
    assert plan.mark_s is not None
    assert plan.mark is not None
    known = plan.mark_s <= age_s
    return plan._replace(
        age_s=age_s,
        mark_s=jnp.where(known, plan.mark_s, -float(_LONG_AGO)),
        mark=jnp.where(known, plan.mark, -_LONG_AGO),
        mark_excess_s=None,
    )


def _in_progress(shape: EnvShape, params: EnvParams, pool: Array, seats: Any, plan: Any) -> Progress:
    """How far an instance has come.

    Iterations have been equal since the last event: a first token, a departure, or the mark.
    """
    now_s = plan.age_s
    present = seats.done_s > now_s
    started = present & (seats.first_token_s <= now_s)
    joining = present & (seats.admission_s <= now_s) & ~started

    # The last event: a departure, a first token, or the start of an iteration that admits, which nothing follows yet.
    events_s = jnp.where(present, jnp.where(started, seats.first_token_s, seats.admission_s), seats.done_s)
    events = jnp.where(present, seats.admitted + started, seats.finish)
    past = ~present | started | joining
    last_s = jnp.maximum(jnp.max(jnp.where(past, events_s, -jnp.inf)), plan.mark_s)
    last = jnp.maximum(largest(jnp.where(past, events, -_LONG_AGO)), plan.mark)
    number = count(started)
    first_s = jnp.where(number > 0, params.decode[pool, jnp.minimum(number, shape.max_batch)], 1.0)
    growth_s = jnp.zeros_like(first_s)
    if shape.context_cost:
        cost_s = params.context_cost_s[pool]
        origin = jnp.sum(jnp.where(started, seats.prompt_tokens - seats.admitted, 0))
        first_s = first_s + cost_s * (origin + number * last)
        growth_s = cost_s * number
    # The next departure, unless a request joins, which ends the run of equal iterations at once.
    nearest = least(jnp.where(started, seats.finish, jnp.where(joining, -_NEVER, _NEVER)))
    equal = (nearest > -_NEVER) & (number > 0)
    most = jnp.where(equal, nearest - last - 1, 0)
    whole = jnp.clip(_ended(shape, last_s, first_s, growth_s, now_s, most), 0, most)
    excess_s = None
    if plan.mark_excess_s is not None:
        events_excess_s = jnp.where(
            present, jnp.where(started, seats.first_token_excess_s, seats.admission_excess_s), seats.done_excess_s
        )
        last_excess_s = jnp.maximum(
            jnp.max(jnp.where(past & (events == last), events_excess_s, -jnp.inf)),
            jnp.where(plan.mark == last, plan.mark_excess_s, -jnp.inf),
        )
        first_excess_s = _decode_excess_s(params, pool)[jnp.minimum(number, shape.max_batch)]
        growth_excess_s = jnp.zeros_like(first_excess_s)
        if shape.context_cost:
            cost_excess_s = cost_s - params.believed.context_cost_s[pool]
            first_excess_s = first_excess_s + cost_excess_s * (origin + number * last)
            growth_excess_s = cost_excess_s * number
        excess_s = _after(last_excess_s, first_excess_s, growth_excess_s, whole)
    return Progress(_after(last_s, first_s, growth_s, whole), last + whole, count(present) == 0, excess_s)


def _decode_excess_s(params: EnvParams, pool: Array) -> Array:
    """(max_batch + 1,) what a decode takes beyond the assumed tables, by batch size."""
    return params.decode[pool] - params.believed.decode[pool]


@batched_over_vmap
def _put(tree: Any, instance: Array, row: Any) -> Any:
    """Writes `row` over row `instance` of every array, if there is such a row; all have a leading batch axis."""
    size = instance.shape[0]

    def put(array: Array, new: Array) -> Array:
        if size > 1:
            return array.at[jnp.arange(size), instance].set(new, mode="drop")
        # For a batch of one, XLA for CPUs (jaxlib 0.10.2) would turn the line above into an update in place, fused with
        # the computation of `new`, which then reads elements of the old row that it has already overwritten.
        mine = (jnp.arange(array.shape[1])[None] == instance[:, None]).reshape(1, -1, *(1,) * (array.ndim - 2))
        return jnp.where(mine, new[:, None], array)

    return jax.tree.map(put, tree, row)


def _admission(
    shape: EnvShape, params: EnvParams, pool: Array, seats: Seats, plan: DeparturePlan, request: Request
) -> Boundary:
    """The iteration boundary at which `request`, which arrives now, is admitted."""
    boundary = _next_boundary(shape, params, pool, seats, plan, request.ready_s)
    runs = seats.finish > boundary.clock
    number = count(runs)
    room = number < slots(shape, params, pool)
    makes_room = runs
    # Of several that leave together the last frees the most. Their times are equal, so the first has that time.
    first = runs.shape[0] - number
    if seats.cache_tokens is not None and request.cache_tokens is not None:
        limit = params.cache_tokens[pool] - request.cache_tokens
        claimed = jnp.where(runs, seats.cache_tokens, 0.0)
        room &= jnp.sum(claimed) <= limit
        makes_room &= jnp.cumsum(claimed[::-1])[::-1] - claimed <= limit
        first = jnp.argmax(makes_room)
    departure_s, departure = seat(seats.done_s, first), seat(seats.finish, first)
    excess_s = boundary.excess_s
    if excess_s is not None:
        excess_s = jnp.where(room, excess_s, _excess_at(seats, makes_room & (seats.finish == departure)))
    return Boundary(jnp.where(room, boundary.at_s, departure_s), jnp.where(room, boundary.clock, departure), excess_s)


def _excess_at(seats: Seats, which: Array) -> Array:
    """The excess at the departures of those seats, which is the same for all of them; -inf if there are none."""
    return jnp.max(jnp.where(which, seats.done_excess_s, -jnp.inf))


def _next_boundary(
    shape: EnvShape, params: EnvParams, pool: Array, seats: Seats, plan: DeparturePlan, ready_s: Any = None
) -> Boundary:
    """When the next iteration can start: now, if the instance is idle, or when it is up.

    While the boundary lies ahead, it is the boundary: no request is admitted before earlier arrivals.
    """
    left = seats.done_s <= plan.age_s
    gone = count(left)
    batch = left.shape[0] - gone
    # The current run of equal iterations began with the last departure, or after the admission.
    start_s = jnp.maximum(plan.admission_s, jnp.where(gone > 0, seat(seats.done_s, gone - 1), -jnp.inf))
    start = jnp.maximum(1, jnp.where(gone > 0, seat(seats.finish, gone - 1), 0))
    # More than `max_batch` only while the boundary lies ahead; the result is then not used.
    number = jnp.minimum(batch, shape.max_batch)
    first_s = jnp.where(batch > 0, params.decode[pool, number], 1.0)
    growth_s = jnp.zeros_like(first_s)
    if shape.context_cost and seats.prompt_tokens is not None and seats.admitted is not None:
        cost_s = params.context_cost_s[pool]
        origin = jnp.sum(jnp.where(left, 0, seats.prompt_tokens - seats.admitted))
        first_s = first_s + cost_s * (origin + batch * start)
        growth_s = cost_s * batch

    until_departure = jnp.where(batch > 0, seat(seats.finish, gone), _NEVER) - start
    whole = _ended(shape, start_s, first_s, growth_s, plan.age_s, until_departure - 1)
    iterations = jnp.clip(whole + 1, 1, until_departure)
    departure_s = jnp.where(batch > 0, seat(seats.done_s, gone), jnp.inf)
    ends_s = _after(start_s, first_s, growth_s, iterations)
    decoding_s = jnp.where(iterations == until_departure, departure_s, ends_s)

    ahead, admitting, idle = plan.age_s < 0, plan.age_s < plan.admission_s, batch == 0
    next_s = plan.age_s
    if ready_s is not None:
        # An instance that fails may leave a boundary ahead that nobody reaches.
        ahead, next_s = ahead & ~idle, next_s + ready_s
    clock = jnp.where(ahead, 0, jnp.where(idle, start, jnp.where(admitting, 1, start + iterations)))
    busy_s = jnp.where(admitting, plan.admission_s, decoding_s)
    excess_s = None
    if plan.admission_excess_s is not None:
        start_excess_s = jnp.maximum(
            _excess_at(seats, left & (seats.finish == start)), jnp.where(start == 1, plan.admission_excess_s, -jnp.inf)
        )
        first_excess_s = _decode_excess_s(params, pool)[number]
        growth_excess_s = jnp.zeros_like(first_excess_s)
        if shape.context_cost:
            cost_excess_s = cost_s - params.believed.context_cost_s[pool]
            first_excess_s = first_excess_s + cost_excess_s * (origin + batch * start)
            growth_excess_s = cost_excess_s * batch
        decoding_excess_s = _after(start_excess_s, first_excess_s, growth_excess_s, iterations)
        busy_excess_s = jnp.where(admitting, plan.admission_excess_s, decoding_excess_s)
        excess_s = jnp.where(ahead, 0.0, jnp.where(idle, start_excess_s, busy_excess_s))
    return Boundary(jnp.where(ahead, 0.0, jnp.where(idle, next_s, busy_s)), clock, excess_s)


def _after(start_s: Array, first_s: Array, growth_s: Array, iterations: Array) -> Array:
    """End of so many iterations that begin at `start_s`, the first of which lasts `first_s`, each further one more."""
    passed = iterations.astype(first_s.dtype)
    return start_s + passed * first_s + growth_s * (passed * (passed - 1) / 2)


def _ended(shape: EnvShape, start_s: Array, first_s: Array, growth_s: Array, now_s: Array, most: Array) -> Array:
    """How many of the iterations of `_after` have ended by `now_s`; about `most` at most."""
    elapsed_s = jnp.maximum(now_s - start_s, 0.0)
    quotient = elapsed_s / first_s
    if shape.context_cost:
        half_s = first_s - growth_s / 2
        quotient = 2 * elapsed_s / (half_s + jnp.sqrt(half_s * half_s + 2 * growth_s * elapsed_s))
    # Rounding may put the quotient on the wrong side of an iteration's end; compare with the ends themselves.
    whole = jnp.clip(quotient, 0, most).astype(jnp.int32)
    whole = whole - (_after(start_s, first_s, growth_s, whole) > now_s)
    return whole + (_after(start_s, first_s, growth_s, whole + 1) <= now_s)


def _make_place(seats: Seats, place: Array) -> Seats:
    """The same requests, those up to `place` one seat further left; the first is forgotten, and `place` is free."""
    left = jnp.arange(seats.finish.shape[0]) < place

    def shift(array: Array) -> Array:
        return once(jnp.where(left, jax.lax.pad(array, jnp.zeros((), array.dtype), [(-1, 1, 0)]), array))

    return jax.tree.map(shift, seats)


def _move(shape: EnvShape, seats: Seats, plan: DeparturePlan, boundary: Boundary) -> tuple[Seats, DeparturePlan]:
    """The same instance with times and clocks relative to a later boundary."""
    boundary_s, clock = boundary.at_s, boundary.clock

    def earlier(time: Array | None) -> Any:
        return None if time is None else time - boundary_s

    def less(excess_s: Array | None) -> Any:
        return None if excess_s is None else excess_s - boundary.excess_s

    def before(clocks: Array | None) -> Any:
        return None if clocks is None else clocks - clock

    # A seat that no one takes any more would count down for ever.
    lowest = 0 if shape.estimates is None else -_LONG_AGO
    seats = seats._replace(
        finish=jnp.maximum(seats.finish - clock, lowest),
        done_s=earlier(seats.done_s),
        arrival_s=earlier(seats.arrival_s),
        admitted=before(seats.admitted),
        admission_s=earlier(seats.admission_s),
        first_token_s=earlier(seats.first_token_s),
        eligible=before(seats.eligible),
        done_excess_s=less(seats.done_excess_s),
        admission_excess_s=less(seats.admission_excess_s),
        first_token_excess_s=less(seats.first_token_excess_s),
    )
    plan = plan._replace(
        age_s=plan.age_s - boundary_s,
        mark_s=earlier(plan.mark_s),
        mark=before(plan.mark),
        counted_s=earlier(plan.counted_s),
        mark_excess_s=less(plan.mark_excess_s),
        counted_excess_s=less(plan.counted_excess_s),
    )
    return seats, plan


def _admit(
    shape: EnvShape,
    params: EnvParams,
    pool: Array,
    seats: Seats,
    plan: DeparturePlan,
    join: Array,
    request: Request,
    place: Array,
    eligible: Array | None,
    assumed_s: Array | None,
) -> tuple[Seats, DeparturePlan]:
    """Seats `request` at the boundary, in the seat `place`, and recomputes all departures after it.

    `join` means that the boundary is the one planned before, so its admissions add up.
    """
    new = jnp.arange(seats.finish.shape[0]) == place

    def insert(array: Array | None, value: Any) -> Any:
        return None if array is None else jnp.where(new, jnp.asarray(value, array.dtype), array)

    seats = Seats(
        index=insert(seats.index, request.index),
        task=insert(seats.task, request.task),
        finish=insert(seats.finish, request.output_tokens),
        done_s=insert(seats.done_s, jnp.inf),
        arrival_s=insert(seats.arrival_s, plan.age_s),
        deadline_s=insert(seats.deadline_s, request.deadline_s),
        value=insert(seats.value, 0.0),
        admitted=insert(seats.admitted, 0),
        prompt_tokens=insert(seats.prompt_tokens, request.prompt_tokens),
        cache_tokens=insert(seats.cache_tokens, request.cache_tokens),
        admission_s=insert(seats.admission_s, 0.0),
        first_token_s=insert(seats.first_token_s, 0.0),
        eligible=insert(seats.eligible, eligible),
        output_limit=insert(seats.output_limit, request.output_limit),
        deadline_factor=insert(seats.deadline_factor, request.deadline_factor),
        done_excess_s=insert(seats.done_excess_s, 0.0),
        admission_excess_s=insert(seats.admission_excess_s, 0.0),
        first_token_excess_s=insert(seats.first_token_excess_s, 0.0),
        fixed_s=insert(seats.fixed_s, request.fixed_s),
        delay_s=insert(seats.delay_s, request.delay_s),
        read_s=insert(seats.read_s, assumed_s),
        lost=insert(seats.lost, False),
        tenant_weight=insert(seats.tenant_weight, request.tenant_weight),
    )
    runs = seats.finish > 0
    number = count(runs)
    joined = jnp.where(join, plan.joined, 0) + 1
    prefill_s = jnp.where(join, plan.prefill_s, 0.0) + request.prefill_s
    decode_s = params.decode[pool]
    admission_s = prefill_s + decode_s[number - joined]

    # The same beyond the assumed tables, term by term, so that nothing remains where these are the tables.
    excess = plan.prefill_excess_s is not None and request.prefill_excess_s is not None
    prefill_excess_s: Any = None
    admission_excess_s: Any = None
    duration_excess_s: Any = None
    if excess:
        prefill_excess_s = jnp.where(join, plan.prefill_excess_s, 0.0) + request.prefill_excess_s
        decode_excess_s = _decode_excess_s(params, pool)
        admission_excess_s = prefill_excess_s + decode_excess_s[number - joined]

    # After the admission the clock shows 1; from then on `still[j]` requests run until the j-th leaves.
    still = shape.max_batch - jnp.arange(shape.max_batch)
    clock = jnp.maximum(seats.finish[-shape.max_batch :], 1)
    before = jnp.maximum(jnp.pad(seats.finish, (1, 0))[-shape.max_batch - 1 : -1], 1)
    steps = clock - before
    duration_s = steps * decode_s[:0:-1]
    if excess:
        duration_excess_s = steps * decode_excess_s[:0:-1]
    if shape.context_cost and seats.prompt_tokens is not None and seats.admitted is not None:
        cost_s = params.context_cost_s[pool]
        origin = jnp.where(runs, seats.prompt_tokens - seats.admitted, 0)
        begun = jnp.sum(jnp.where(seats.admitted < 0, origin, 0))
        admission_s = admission_s + cost_s * begun
        others = jnp.cumsum(origin[: -shape.max_batch - 1 : -1])[::-1]
        # Tokens held, summed over iterations, may exceed 32 bits: floats.
        passed = steps.astype(cost_s.dtype)
        held = passed * (others + still * before) + still * (passed * (passed - 1) / 2)
        duration_s = duration_s + cost_s * held
        if excess:
            cost_excess_s = cost_s - params.believed.context_cost_s[pool]
            admission_excess_s = admission_excess_s + cost_excess_s * begun
            duration_excess_s = duration_excess_s + cost_excess_s * held
    # Those further left leave before the boundary: their columns are 0.
    upto = jnp.triu(jnp.ones((shape.max_batch, runs.shape[0]), duration_s.dtype), runs.shape[0] - shape.max_batch)

    def summed(durations_s: Array) -> Array:
        return jnp.matmul(durations_s, upto, precision=jax.lax.Precision.HIGHEST)

    planned_s = admission_s + summed(duration_s)
    latency_s = planned_s - seats.arrival_s
    weight = seats.tenant_weight
    value = earned(shape, params, pool, seats.task, latency_s, seats.deadline_s, seats.delay_s, weight)
    seats = seats._replace(done_s=jnp.where(runs, planned_s, seats.done_s), value=jnp.where(runs, value, seats.value))
    if excess:
        planned_excess_s = admission_excess_s + summed(duration_excess_s)
        first = runs & (seats.admitted == 0)
        seats = seats._replace(
            done_excess_s=jnp.where(runs, planned_excess_s, seats.done_excess_s),
            first_token_excess_s=jnp.where(first, admission_excess_s, seats.first_token_excess_s),
        )
        plan = plan._replace(admission_excess_s=admission_excess_s, prefill_excess_s=prefill_excess_s)
    if seats.first_token_s is not None:
        seats = seats._replace(first_token_s=jnp.where(runs & (seats.admitted == 0), admission_s, seats.first_token_s))
    return seats, plan._replace(admission_s=admission_s, prefill_s=prefill_s, joined=joined)
