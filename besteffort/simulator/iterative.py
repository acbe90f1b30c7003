"""Instances advanced iteration by iteration, where what one lasts is not known beforehand.

That is so where models on one GPU slow each other down, and where prompts are read in chunks: then whom an iteration
works on depends on those who come later. The same interface as `closed_form`; its cost grows with the iterations that
end between two arrivals.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from besteffort.estimates.correction import Answers
from besteffort.estimates.view import InFlightView
from besteffort.pools import least_loaded
from besteffort.simulator import ledger as ledgers
from besteffort.simulator.ledger import Ledger, Timing
from besteffort.simulator.life import LifeState
from besteffort.simulator.request import (
    Request,
    answers_by_tables,
    compares_answers,
    compares_iterations,
    earned,
    needs_prompts,
    of_pools,
    read_s,
    slots,
    takers,
)
from besteffort.simulator.types import EnvParams, EnvShape
from besteffort.workload.types import Arrival

Array = jax.Array


class Running(NamedTuple):
    """Requests admitted to instances, in no order; fields of shape (instances, max_batch).

    Attributes:
      request: the requests; `index` is -1 where a place is free. Arrivals are relative to now.
      tokens: tokens generated before the current iteration; 0 for requests that it admits.
      admission_s, first_token_s: relative to now.
      read: tokens of the prompt that are read by the end of the current iteration, or were found; None unless
        `EnvShape.chunks`.
    """

    request: Request
    tokens: Array
    admission_s: Array
    first_token_s: Array
    read: Array | None = None


class Instances(NamedTuple):
    """All instances of a cluster.

    Attributes:
      running: requests admitted, see `Running`.
      end_s: (instances,) end of the iteration in progress, relative to now; inf if idle.
      begun_s: (instances,) its start, relative to now, or that of the first of several that give no one a token; None
        unless `EnvShape.estimates`.
      passed_over: (instances,) requests that it left waiting; None unless `EnvShape.estimates`.
      line: the queues, ring buffers with fields of shape (instances, places).
      head, waiting: (instances,) place of the first request in the queue, and the queue's length.
      departure_s: () the last departure, relative to now; -inf before the first.
      excess_s: (instances,) what the iteration in progress, or the several since `begun_s`, take beyond the assumed
        tables; None unless iterations are compared with them.
      observed_s, observed_excess_s: (instances,) of the iterations that ended since the last decision, seconds, and
        those beyond the assumed tables; None unless iterations are compared.
      answers: those that ended since the last decision; None unless answers are compared.
      shows: (instances,) whether the last iteration gave someone a token; None unless `EnvShape.chunks` and
        `EnvShape.estimates`.
    """

    running: Running
    end_s: Array
    begun_s: Array | None
    passed_over: Array | None
    line: Request
    head: Array
    waiting: Array
    departure_s: Array
    excess_s: Any = None
    observed_s: Any = None
    observed_excess_s: Any = None
    answers: Answers | None = None
    shows: Array | None = None


def empty(shape: EnvShape, like: Arrival) -> Instances:
    """Idle instances, for requests that state what `like` states."""
    batch = (shape.instances, shape.max_batch)
    places = (shape.instances, shape.max_batch + shape.queue_capacity)
    one = (shape.instances,)
    estimates = shape.estimates is not None

    def vacant(size: tuple[int, int]) -> Request:
        whole, real = jnp.zeros(size, jnp.int32), jnp.zeros(size)
        return Request(
            index=jnp.full(size, -1, jnp.int32),
            task=whole,
            output_tokens=whole,
            prefill_s=real,
            arrival_s=real,
            deadline_s=real,
            prompt_tokens=whole if needs_prompts(shape) else None,
            cache_tokens=real if shape.cache_limit else None,
            prefill_excess_s=real if compares_iterations(shape) else None,
            fixed_s=real if compares_answers(shape) else None,
            output_limit=whole if estimates and like.output_limit is not None else None,
            deadline_factor=real if estimates and like.deadline_factor is not None else None,
            delay_s=real if like.origin is not None else None,
            cached_tokens=whole if (shape.chunks or estimates) and like.cached_tokens is not None else None,
            tenant_weight=real if like.tenant is not None else None,
        )

    none = jnp.zeros(one)
    seconds = (none, none, none) if compares_iterations(shape) else (None, None, None)
    read = jnp.zeros(batch, jnp.int32) if shape.chunks else None
    return Instances(
        running=Running(vacant(batch), jnp.zeros(batch, jnp.int32), jnp.zeros(batch), jnp.zeros(batch), read),
        end_s=jnp.full(one, jnp.inf),
        begun_s=jnp.zeros(one) if estimates else None,
        passed_over=jnp.zeros(one, jnp.int32) if estimates else None,
        line=vacant(places),
        head=jnp.zeros(one, jnp.int32),
        waiting=jnp.zeros(one, jnp.int32),
        departure_s=jnp.asarray(-jnp.inf),
        excess_s=seconds[0],
        observed_s=seconds[1],
        observed_excess_s=seconds[2],
        answers=Answers(none, none, none) if compares_answers(shape) else None,
        shows=jnp.ones(one, bool) if shape.chunks and estimates else None,
    )


def _batch_sizes(shape: EnvShape, instances: Instances) -> Array:
    """(rows, pools) running plus waiting requests."""
    running = jnp.sum(instances.running.request.index >= 0, axis=1, dtype=jnp.int32)
    return (running + instances.waiting).reshape(shape.replicas, shape.pools)


def last_departure_s(instances: Instances) -> Array:
    """() seconds since the last departure; inf if there was none."""
    return -instances.departure_s


def advance(
    shape: EnvShape, params: EnvParams, instances: Instances, ledger: Ledger, newest: Array, gap_s: Array
) -> tuple[Instances, Ledger, Array, Array]:
    """Advances time by `gap_s`; results as those of `closed_form.advance`."""

    def pending(carry: tuple[Instances, Ledger, Array]) -> Array:
        end_s = jnp.min(carry[0].end_s)
        return (end_s <= gap_s) & jnp.isfinite(end_s)

    def turn(carry: tuple[Instances, Ledger, Array]) -> tuple[Instances, Ledger, Array]:
        instances, ledger, reward = carry
        now_s = jnp.min(instances.end_s)
        ended = instances.end_s == now_s
        instances, ledger, earned_now = _end(shape, params, instances, ledger, newest, now_s, ended)
        return _start(shape, params, instances, now_s, ended), ledger, reward + earned_now

    instances, ledger, reward = jax.lax.while_loop(pending, turn, (instances, ledger, jnp.zeros_like(gap_s)))
    instances = _later(instances, jnp.where(jnp.isfinite(gap_s), gap_s, 0.0))
    return instances, ledger, reward, _batch_sizes(shape, instances)


def submit(
    shape: EnvShape,
    params: EnvParams,
    instances: Instances,
    ledger: Ledger,
    instance: Array,
    request: Request,
    accept: Array,
) -> tuple[Instances, Ledger, None, Array]:
    """Gives `request`, which arrives now, to `instance` if `accept`; results as those of `closed_form.submit`.

    Departures are not planned, so the credit is None, and one that takes no time is seen to leave: nothing is earned
    already.
    """
    if instances.answers is not None:
        # Its prefill comes in between for those that are there.
        pool = instance % shape.pools
        prefill_s = read_s(params.believed, pool, request.prompt_tokens, request.cached_tokens)
        added_s = jnp.where(accept, prefill_s, 0.0)
        running, line = instances.running, instances.line
        held = running.request._replace(fixed_s=running.request.fixed_s.at[instance].add(added_s))
        instances = instances._replace(
            running=running._replace(request=held),
            line=line._replace(fixed_s=line.fixed_s.at[instance].add(added_s)),
        )
    places = instances.line.index.shape[-1]
    place = jnp.where(accept, (instances.head[instance] + instances.waiting[instance]) % places, places)
    line = jax.tree.map(lambda ring, value: ring.at[instance, place].set(value, mode="drop"), instances.line, request)
    here = (jnp.arange(shape.instances) == instance) & accept
    instances = instances._replace(line=line, waiting=instances.waiting + here.astype(jnp.int32))
    idle = here & jnp.isinf(instances.end_s)
    nothing = jnp.zeros_like(request.arrival_s)
    return _start(shape, params, instances, nothing, idle), ledger, None, nothing


def compare(shape: EnvShape, params: EnvParams, instances: Instances, sizes: Array) -> tuple[Instances, Array, Array]:
    """Takes stock of what ended since the last decision, see `closed_form.compare`."""
    if instances.answers is not None:
        excess_s, assumed_s = answers_by_tables(shape, params.believed, instances.answers, sizes.reshape(-1))
        fresh = instances._replace(answers=jax.tree.map(jnp.zeros_like, instances.answers))
        return fresh, excess_s, assumed_s
    observed_s, excess_s = instances.observed_s, instances.observed_excess_s
    assert observed_s is not None
    assert excess_s is not None
    none = jnp.zeros_like(observed_s)
    fresh = instances._replace(observed_s=none, observed_excess_s=none)
    return fresh, of_pools(shape, excess_s), of_pools(shape, observed_s - excess_s)


def flush(shape: EnvShape, params: EnvParams, instances: Instances, ledger: Ledger, newest: Array) -> Ledger:
    """Does nothing: departures are written as they happen."""
    del shape, params, instances, newest
    return ledger


def in_flight(
    shape: EnvShape, params: EnvParams, instances: Instances, sizes: Array, index: Array, life: LifeState | None
) -> InFlightView:
    """What can be counted of the requests on the instance of each pool that gets the next request.

    `sizes` are the batch sizes, (rows, pools).
    """
    del index
    pools = jnp.arange(shape.pools)
    picked = least_loaded(sizes, takers(params, life), jnp)
    rows = picked * shape.pools + pools
    everything = _counted(shape, instances)
    own: InFlightView = jax.tree.map(lambda field: field[rows], everything)
    if not shape.slowdown:
        return own
    beside = picked[:, None] * shape.pools + pools[None]
    return dataclasses.replace(own, beside=jax.tree.map(lambda field: field[beside], everything))


def _counted(shape: EnvShape, instances: Instances) -> InFlightView:
    """The same of all instances."""
    terms, running = shape.estimates, instances.running
    assert terms is not None
    assert instances.begun_s is not None
    assert instances.passed_over is not None
    places = instances.line.index.shape[-1]
    # What runs lies left of what waits, in the order of the line.
    position = (instances.head[:, None] + jnp.arange(places)[None]) % places
    line = jax.tree.map(lambda ring: jnp.take_along_axis(ring, position, axis=1), instances.line)
    waits = jnp.arange(places)[None] < instances.waiting[:, None]
    passed_over = jnp.arange(places)[None] < instances.passed_over[:, None]
    runs = running.request.index >= 0
    request: Request = jax.tree.map(
        lambda first, second: jnp.concatenate([first, second], axis=1), running.request, line
    )
    present = jnp.concatenate([runs, waits], axis=1)
    is_running = jnp.concatenate([runs, jnp.zeros_like(waits)], axis=1)
    tokens = jnp.concatenate([running.tokens, jnp.zeros_like(line.task)], axis=1) * is_running
    infers = terms.infers_admissions
    return InFlightView(
        present=present,
        running=None if infers else is_running,
        tokens=tokens * terms.streamed,
        task=request.task,
        prompt_tokens=request.prompt_tokens,
        cached_tokens=request.cached_tokens,
        age_s=-request.arrival_s,
        elapsed_s=-instances.begun_s,
        eligible=jnp.concatenate([runs, passed_over], axis=1) if infers else None,
        order=request.index if infers else None,
        output_limit=request.output_limit,
        deadline_factor=request.deadline_factor,
        delay_s=request.delay_s,
        tenant_weight=request.tenant_weight,
        terms=terms,
    )


def _later(instances: Instances, gap_s: Array) -> Instances:
    """Shifts all times to a current time that is `gap_s` later."""
    running = instances.running
    return instances._replace(
        running=running._replace(
            request=running.request._replace(arrival_s=running.request.arrival_s - gap_s),
            admission_s=running.admission_s - gap_s,
            first_token_s=running.first_token_s - gap_s,
        ),
        end_s=instances.end_s - gap_s,
        begun_s=None if instances.begun_s is None else instances.begun_s - gap_s,
        line=instances.line._replace(arrival_s=instances.line.arrival_s - gap_s),
        departure_s=instances.departure_s - gap_s,
    )


def _end(
    shape: EnvShape, params: EnvParams, instances: Instances, ledger: Ledger, newest: Array, now_s: Array, ended: Array
) -> tuple[Instances, Ledger, Array]:
    """Ends iterations: running requests whose prompts are read get a token; those with all their tokens leave."""
    running, request = instances.running, instances.running.request
    served = ended[:, None] & _decoding(running)
    told = ended
    if instances.shows is not None:
        told = jnp.any(served, axis=1)
        instances = instances._replace(shows=jnp.where(ended, told, instances.shows))
    tokens = running.tokens + served.astype(jnp.int32)
    first_token_s = jnp.where(served & (tokens == 1), now_s, running.first_token_s)
    departs = served & (tokens >= request.output_tokens)
    pool = (jnp.arange(shape.instances) % shape.pools)[:, None]
    service_s = now_s - request.arrival_s
    value = earned(
        shape, params, pool, request.task, service_s, request.deadline_s, request.delay_s, request.tenant_weight
    )
    timing = None
    if shape.record:
        timing = Timing(running.admission_s - request.arrival_s, first_token_s - request.arrival_s, service_s)
    ledger = ledgers.write(ledger, request.index, departs, newest, value, timing)
    if instances.observed_s is not None:
        assert instances.begun_s is not None
        assert instances.observed_excess_s is not None
        assert instances.excess_s is not None
        instances = instances._replace(
            observed_s=instances.observed_s + jnp.where(told, now_s - instances.begun_s, 0.0),
            observed_excess_s=instances.observed_excess_s + jnp.where(told, instances.excess_s, 0.0),
        )
    if instances.answers is not None:
        known = departs & jnp.isfinite(request.fixed_s)
        heard = Answers(service_s, request.fixed_s, request.output_tokens - 1)
        added = Answers(*(jnp.sum(jnp.where(known, value, 0), axis=1) for value in heard))
        instances = instances._replace(answers=jax.tree.map(jnp.add, instances.answers, added))
    request = request._replace(index=jnp.where(departs, -1, request.index))
    instances = instances._replace(
        running=running._replace(request=request, tokens=tokens, first_token_s=first_token_s),
        end_s=jnp.where(ended, jnp.inf, instances.end_s),
        departure_s=jnp.where(jnp.any(departs), now_s, instances.departure_s),
    )
    return instances, ledger, jnp.sum(jnp.where(departs, value, 0.0))


def _decoding(running: Running) -> Array:
    """(instances, max_batch) where there is a request whose prompt is read by the end of the current iteration."""
    runs = running.request.index >= 0
    if running.read is None or running.request.prompt_tokens is None:
        return runs
    return runs & (running.read >= running.request.prompt_tokens)


def _start(shape: EnvShape, params: EnvParams, instances: Instances, now_s: Array, starts: Array) -> Instances:
    """Starts the next iteration of those instances `starts` that hold requests, in order of (replica, pool)."""
    running, request = instances.running, instances.running.request
    pool = jnp.arange(shape.instances) % shape.pools
    runs = request.index >= 0
    there = ran_before = jnp.sum(runs, axis=1, dtype=jnp.int32)
    decoding = runs
    if shape.chunks:
        decoding = _decoding(running)
        ran_before = jnp.sum(decoding, axis=1, dtype=jnp.int32)
    duration_s = params.decode[pool, ran_before]
    if shape.context_cost and request.prompt_tokens is not None:
        held = jnp.sum(jnp.where(decoding, request.prompt_tokens + running.tokens, 0), axis=1)
        duration_s = duration_s + params.context_cost_s[pool] * held
    # The same beyond the assumed tables, term by term, so that nothing remains where these are the tables.
    excess_s, believed = None, params.believed
    if instances.excess_s is not None:
        excess_s = (params.decode - believed.decode)[pool, ran_before]
        if shape.context_cost and request.prompt_tokens is not None:
            excess_s = excess_s + (params.context_cost_s - believed.context_cost_s)[pool] * held

    # The queue in order; its first `admitted` requests are admitted to the free places, left to right.
    places = instances.line.index.shape[-1]
    position = jnp.arange(places)[None]
    order = (instances.head[:, None] + position) % places
    line = jax.tree.map(lambda ring: jnp.take_along_axis(ring, order, axis=1), instances.line)
    may = starts[:, None] & (position < jnp.minimum(instances.waiting, slots(shape, params, pool) - there)[:, None])
    if shape.cache_limit and request.cache_tokens is not None:
        used = jnp.sum(jnp.where(runs, request.cache_tokens, 0.0), axis=1)
        claimed = jnp.cumsum(jnp.where(position < instances.waiting[:, None], line.cache_tokens, 0.0), axis=1)
        may &= used[:, None] + claimed <= params.cache_tokens[pool][:, None]
    reading = None
    if shape.chunks:
        reading = _read(params, running, line, may, decoding, starts, pool)
        may = reading.may
    admitted = jnp.sum(may, axis=1, dtype=jnp.int32)
    prefill_s = jnp.sum(jnp.where(may, line.prefill_s, 0.0), axis=1) if reading is None else reading.seconds
    duration_s = duration_s + prefill_s
    if excess_s is not None:
        reads_s = jnp.sum(jnp.where(may, line.prefill_excess_s, 0.0), axis=1) if reading is None else reading.excess_s
        excess_s = excess_s + reads_s
    rank = jnp.cumsum(~runs, axis=1) - 1
    joins = ~runs & (rank < admitted[:, None])
    rank = jnp.clip(rank, 0, places - 1)
    newcomers = jax.tree.map(lambda queued: jnp.take_along_axis(queued, rank, axis=1), line)
    request = jax.tree.map(lambda new, old: jnp.where(joins, new, old), newcomers, request)

    works = starts & (there + admitted > 0)
    grid = (shape.replicas, shape.pools)
    end_s, works_grid, duration_grid = instances.end_s.reshape(grid), works.reshape(grid), duration_s.reshape(grid)
    excess_grid = None if excess_s is None else excess_s.reshape(grid)
    for m in range(shape.pools):
        busy = jnp.isfinite(end_s) & (jnp.arange(shape.pools) != m)[None]
        factor = jnp.prod(jnp.where(busy, params.slowdown[m][None], 1.0), axis=1)
        end_s = end_s.at[:, m].set(jnp.where(works_grid[:, m], now_s + duration_grid[:, m] * factor, end_s[:, m]))
        if excess_grid is not None:
            by_tables = jnp.prod(jnp.where(busy, believed.slowdown[m][None], 1.0), axis=1)
            beyond = excess_grid[:, m] * by_tables + duration_grid[:, m] * (factor - by_tables)
            excess_grid = excess_grid.at[:, m].set(beyond)
    begins = works if instances.shows is None else works & instances.shows
    if excess_grid is not None:
        # Of iterations that give no one a token, nothing is seen but that the next token comes later.
        sum_s = excess_grid.reshape(-1) + jnp.where(begins, 0.0, instances.excess_s)
        instances = instances._replace(excess_s=jnp.where(works, sum_s, instances.excess_s))
    read = None
    if reading is not None:
        read = jnp.where(joins, jnp.take_along_axis(reading.line, rank, axis=1), reading.running)
    return instances._replace(
        running=Running(
            request=request,
            tokens=jnp.where(joins, 0, running.tokens),
            admission_s=jnp.where(joins, now_s, running.admission_s),
            first_token_s=running.first_token_s,
            read=read,
        ),
        end_s=end_s.reshape(-1),
        begun_s=None if instances.begun_s is None else jnp.where(begins, now_s, instances.begun_s),
        passed_over=None
        if instances.passed_over is None
        else jnp.where(works, instances.waiting - admitted, instances.passed_over),
        head=(instances.head + admitted) % places,
        waiting=instances.waiting - admitted,
    )


class Reading(NamedTuple):
    """What the next iteration of each instance reads.

    Attributes:
      may: (instances, places) which waiting requests it admits.
      running, line: (instances, max_batch) and (instances, places) tokens of each prompt that are read by its end.
      seconds: (instances,) how long that takes.
      excess_s: (instances,) what that is beyond the assumed tables, by which a prompt costs nothing until its first
        token comes, since no one outside sees more.
    """

    may: Array
    running: Array
    line: Array
    seconds: Array
    excess_s: Array


def _read(
    params: EnvParams,
    running: Running,
    line: Request,
    may: Array,
    decoding: Array,
    starts: Array,
    pool: Array,
) -> Reading:
    """What is read of prompts: first of those that are read in part, then in order of arrival, up to the budget.

    Args:
      params: numbers of the environment.
      running: the requests that are there.
      line: those that wait, in order.
      may: (instances, places) which of these the batch and the cache have room for.
      decoding: (instances, max_batch) which of those that are there decode.
      starts: (instances,) whether the instance starts an iteration now.
      pool: (instances,) of each instance.
    """
    before, prompt_tokens = running.read, running.request.prompt_tokens
    assert before is not None
    assert prompt_tokens is not None
    assert line.prompt_tokens is not None
    found = jnp.zeros_like(line.prompt_tokens) if line.cached_tokens is None else line.cached_tokens
    room = params.chunk_tokens[pool] - jnp.sum(decoding, axis=1)
    runs = running.request.index >= 0
    # One prompt at most is read in part.
    begun = runs & ~decoding & starts[:, None]
    rest = jnp.where(begun, prompt_tokens - before, 0)
    more = jnp.clip(room[:, None], 0, rest)
    room = room - jnp.sum(more, axis=1)
    need = line.prompt_tokens - found
    left = room[:, None] - (jnp.cumsum(need, axis=1) - need)
    may &= left > 0
    after = before + more.astype(before.dtype)
    reached = found + jnp.where(may, jnp.clip(left, 0, need), 0).astype(found.dtype)
    pool = pool[:, None]

    def between(table: Array, first: Array, last: Array) -> Array:
        return table[pool, last] - table[pool, first]

    parts = (begun, before, after, running.request), (may, found, reached, line)
    seconds = [jnp.where(which, between(params.prefill, first, last), 0.0) for which, first, last, _ in parts]
    terms = [
        jnp.where(
            which & (last == request.prompt_tokens),
            read_s(params.believed, pool, request.prompt_tokens, request.cached_tokens),
            0.0,
        )
        for which, _, last, request in parts
    ]
    excess_s = jnp.sum(seconds[0] - terms[0], axis=1) + jnp.sum(seconds[1] - terms[1], axis=1)
    return Reading(may, after, reached, jnp.sum(seconds[0], axis=1) + jnp.sum(seconds[1], axis=1), excess_s)
