"""Simulates a server log with many candidates for the server's terms and limits at a time.

The requests of a log name their replica, are served in order of arrival and never rejected. Between two of {an
arrival, the end of a prompt, a departure} all iterations of a replica are equal, or grow by a fixed step with the
tokens held, so that a turn of the loop takes them together: it admits one request, or goes on to the next such moment.
Who is waiting needs no room, so the cost of a list does not depend on its queue lengths.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from besteffort.profiling.evidence import Curve
from besteffort.profiling.server_log import RequestLog

Array = jax.Array

UNLIMITED = 2**30
"""Tokens or requests of a limit that never holds anyone back."""

_NEVER = jnp.iinfo(jnp.int32).max
_PADDED = 128  # requests
_TURNS = 256  # between two looks whether all requests are answered


class Candidates(NamedTuple):
    """Candidate terms and limits; the leading axis counts candidates.

    Attributes:
      decode: (candidates, seats + 1) seconds of a decode iteration by batch size; entry 0 is 0.
      prefill: (candidates, curve.size) coefficients of the prefill curve.
      context_cost_s: (candidates,) seconds per token held.
      max_batch: (candidates,) the largest batch, at most the seats.
      chunk_tokens: (candidates,) tokens of an iteration, `UNLIMITED` where prompts are read whole.
      cache_tokens: (candidates,) tokens that fit the cache, infinite where unlimited; at least what the largest request
        claims.
      output_share: (candidates,) share of outputs that admission claims of the cache.
    """

    decode: Any
    prefill: Any
    context_cost_s: Any
    max_batch: Any
    chunk_tokens: Any
    cache_tokens: Any
    output_share: Any


class Player:
    """Simulates the requests of a log in float32, with times relative to their arrivals."""

    def __init__(self, log: RequestLog, seats: int, curve: Curve) -> None:
        """`seats` is the largest batch of any candidate, `curve` has the knots of the prefill."""
        self._seats = seats
        self._rows = [np.flatnonzero(log.replica == index) for index in range(len(log.replicas))]
        self._rows = [rows for rows in self._rows if len(rows)]
        self._arrival_s = [log.arrival_s[rows] for rows in self._rows]
        # One program for lists of about as many requests, since most of a short fit is compilation.
        longest = -(-(max(map(len, self._rows)) + 1) // _PADDED) * _PADDED

        def padded(values: np.ndarray, dtype: Any) -> Array:
            each = [np.pad(values[rows], (0, longest - len(rows)), mode="edge") for rows in self._rows]
            return jnp.asarray(np.stack(each), dtype)

        gaps = np.zeros(len(log))
        for rows, arrival_s in zip(self._rows, self._arrival_s, strict=True):
            gaps[rows] = np.diff(arrival_s, append=arrival_s[-1])
        cached = np.zeros(len(log)) if log.cached_tokens is None else log.cached_tokens
        self._list = _List(
            number=jnp.asarray([len(rows) for rows in self._rows], jnp.int32),
            gap_s=padded(gaps, jnp.float32),
            prompt=padded(log.prompt_tokens, jnp.int32),
            output=padded(log.output_tokens, jnp.int32),
            cached=padded(cached, jnp.int32),
        )
        self._starts = jnp.asarray(np.append(curve.knots[:-1], 0.0)[: curve.size - 1], jnp.float32)
        self._ends = jnp.asarray(np.append(curve.knots[1:-1], np.inf)[: curve.size - 1], jnp.float32)
        self._outputs = [log.output_tokens[rows] for rows in self._rows]
        self._size = len(log)

    def play(self, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """(candidates, n) seconds from each arrival to the first and to the last token."""
        lanes = len(candidates.decode)
        types = (jnp.float32,) * 3 + (jnp.int32,) * 2 + (jnp.float32,) * 2
        # A lane is a candidate on one replica: those of a candidate follow each other.
        arrays = Candidates(
            *(
                jnp.repeat(jnp.asarray(values, dtype), len(self._rows), axis=0)
                for values, dtype in zip(candidates, types, strict=True)
            )
        )
        turns = [np.asarray(part) for part in _serve(self._seats, self._list, (self._starts, self._ends), arrays)]
        first_s, last_s = np.zeros((2, lanes, self._size))
        for lane in range(lanes):
            for replica, (rows, arrival_s) in enumerate(zip(self._rows, self._arrival_s, strict=True)):
                each = lane * len(self._rows) + replica
                clock, now, head, begins = (part[:, each] for part in turns)
                now_s = arrival_s[np.minimum(head, len(rows) - 1)] + now.astype(np.float64)
                first = begins[begins > 0]  # first tokens come in order of arrival
                last = first + self._outputs[replica] - 1
                # Turns that only admit have the clock of the iteration before them, which stands before them.
                for times, at in ((first_s, first), (last_s, last)):
                    times[lane, rows] = now_s[np.searchsorted(clock, at)] - arrival_s
        return first_s, last_s


class _List(NamedTuple):
    """The requests of each replica in order of arrival: (replicas, size), those from `number` on are none."""

    number: Array  # (replicas,)
    gap_s: Array  # to the next one
    prompt: Array
    output: Array
    cached: Array


class _State(NamedTuple):
    """The replicas at the start of an iteration, which is being put together; (lanes,) unless stated.

    Attributes:
      head: the next request to be admitted.
      now_s: time since its arrival, negative before it.
      clock: iterations that ended.
      running, held, claimed: requests that decode in the iteration and the tokens that they hold; cache claimed by all.
      read, left: tokens of the prompt that is partly read, and those that are not; `left` is 0 if there is none.
      room: tokens that the iteration can still take.
      cost_s: time of what it reads.
      joining, joining_held: requests that get their first token at its end, and tokens that they hold then.
      leave: (lanes, seats) clock at which requests leave, `_NEVER` where a seat is free.
      tokens, claim: (lanes, seats) tokens that they hold then, and that they claim of the cache.
    """

    head: Array
    now_s: Array
    clock: Array
    running: Array
    held: Array
    claimed: Array
    read: Array
    left: Array
    room: Array
    cost_s: Array
    joining: Array
    joining_held: Array
    leave: Array
    tokens: Array
    claim: Array


@partial(jax.jit, static_argnums=0)
def _serve(seats: int, requests: _List, knots: tuple[Array, Array], lanes: Candidates) -> tuple[Array, ...]:
    """(turns, lanes) clock, time since the arrival of the head, head, and the clock at a first token that is due."""
    count = len(lanes.context_cost_s)
    replica = jnp.arange(count) % len(requests.number)
    zero, nothing = jnp.zeros(count, jnp.int32), jnp.zeros(count, jnp.float32)
    blank = jnp.zeros((count, seats), jnp.float32)
    state = _State(
        zero,
        nothing,
        zero,
        zero,
        nothing,
        nothing,
        zero,
        zero,
        lanes.chunk_tokens,
        nothing,
        zero,
        nothing,
        jnp.full((count, seats), _NEVER),
        blank,
        blank,
    )
    most = 4 * requests.prompt.shape[1] // _TURNS + 2
    size = (most * _TURNS, count)
    turns: tuple[Array, ...] = (
        jnp.full(size, _NEVER),
        jnp.zeros(size),
        jnp.zeros(size, jnp.int32),
        jnp.zeros(size, jnp.int32),
    )

    def more(carry: tuple[Array, _State, tuple[Array, ...]]) -> Array:
        number, state, _ = carry
        undone = (state.head < requests.number[replica]) | (state.left > 0) | (state.running > 0)
        return (number < most) & undone.any()

    def go_on(carry: tuple[Array, _State, tuple[Array, ...]]) -> tuple[Array, _State, tuple[Array, ...]]:
        number, state, turns = carry
        state, found = jax.lax.scan(lambda s, _: _turn(requests, replica, knots, lanes, s), state, length=_TURNS)
        written = (
            jax.lax.dynamic_update_slice(whole, part, (number * _TURNS, 0))
            for whole, part in zip(turns, found, strict=True)
        )
        return number + 1, state, tuple(written)

    return jax.lax.while_loop(more, go_on, (jnp.int32(0), state, turns))[2]


def _turn(
    requests: _List, replica: Array, knots: tuple[Array, Array], lanes: Candidates, s: _State
) -> tuple[_State, tuple[Array, ...]]:
    """Reads of one prompt, as much as there is room for; if no other can be read with it, iterations go by."""
    starts, ends = (each[None] for each in knots)

    def reading_s(tokens: Array) -> Array:
        """Time to read so many tokens of a prompt from its beginning."""
        x = tokens.astype(jnp.float32)[:, None]
        parts = (lanes.prefill[:, 1:] * (jnp.clip(x, starts, ends) - starts)).sum(axis=1)
        return jnp.where(tokens > 0, lanes.prefill[:, 0] + parts, 0.0)

    def of(values: Array, index: Array) -> Array:
        return values[replica, index]

    def admissible(head: Array, now_s: Array, running: Array, claimed: Array, room: Array, idle: Array) -> Array:
        """Whether the next request can be admitted to the iteration; `now_s` is since its arrival."""
        comes = (head < requests.number[replica]) & ((now_s > 0) | idle)
        fits = (claimed + claims(head) <= lanes.cache_tokens) | (running == 0)
        return comes & fits & (running < lanes.max_batch) & (room > 0)

    def claims(head: Array) -> Array:
        return of(requests.prompt, head) + jnp.ceil(lanes.output_share * of(requests.output, head))

    # An idle replica waits for the next request and starts with it alone.
    idle = (s.running + s.joining == 0) & (s.left == 0)
    now_s = jnp.where(idle & (s.head < requests.number[replica]), jnp.maximum(s.now_s, 0.0), s.now_s)
    fresh = (s.left == 0) & admissible(s.head, now_s, s.running + s.joining, s.claimed, s.room, idle)
    whole = of(requests.prompt, s.head)
    found = of(requests.cached, s.head)
    read, left = jnp.where(fresh, found, s.read), jnp.where(fresh, whole - found, s.left)
    current = jnp.where(fresh, s.head, jnp.maximum(s.head - 1, 0))
    claimed = s.claimed + jnp.where(fresh, claims(s.head), 0.0)
    head = s.head + fresh
    now_s = now_s - jnp.where(fresh, of(requests.gap_s, s.head), 0.0)
    take = jnp.clip(jnp.minimum(left, s.room), 0)
    before_s, after_s = reading_s(read), reading_s(read + take)
    cost_s = s.cost_s + after_s - before_s
    read, left, room = read + take, left - take, s.room - take
    ended = (take > 0) & (left == 0)
    prompt, output = of(requests.prompt, current), of(requests.output, current)
    seat = ended[:, None] & (jnp.arange(s.leave.shape[1])[None] == jnp.argmax(s.leave == _NEVER, axis=1)[:, None])
    leave = jnp.where(seat, (s.clock + output)[:, None], s.leave)
    tokens = jnp.where(seat, (prompt + output)[:, None].astype(jnp.float32), s.tokens)
    claim = jnp.where(seat, (prompt + jnp.ceil(lanes.output_share * output))[:, None], s.claim)
    joining = s.joining + ended
    joining_held = s.joining_held + jnp.where(ended, prompt + 1.0, 0.0)

    # Others can join while nobody is partly read; an idle replica started with one request, at its arrival.
    present = s.running + joining + (left > 0)
    fits = (head < requests.number[replica]) & (present < lanes.max_batch) & (room > 0)
    fits &= (left == 0) & ((claimed + claims(head) <= lanes.cache_tokens) | (present == 0))
    runs = (present > 0) & ~(fits & (now_s > 0))
    until = jnp.min(leave, axis=1) - s.clock
    # A long prompt takes all that decoding leaves.
    per_turn = lanes.chunk_tokens - s.running
    in_parts = jnp.where(per_turn > 0, 1 + (left - 1) // jnp.maximum(per_turn, 1), _NEVER)
    step_s = lanes.decode[jnp.arange(len(s.head)), s.running] + lanes.context_cost_s * s.held
    grows_s = lanes.context_cost_s * s.running

    def lasts_s(iterations: Array) -> Array:
        k = iterations.astype(jnp.float32)
        return k * step_s + 0.5 * grows_s * k * (k - 1)

    linear_s = step_s - 0.5 * grows_s
    root_s = jnp.sqrt(linear_s**2 + 2 * grows_s * jnp.maximum(-now_s, 0.0))
    to_arrival = jnp.minimum(2 * jnp.maximum(-now_s, 0.0) / (linear_s + root_s), 1e9).astype(jnp.int32) + 1
    to_arrival = jnp.where(fits, to_arrival, _NEVER)
    many = jnp.where(joining > 0, 1, jnp.where(left > 0, jnp.minimum(until, in_parts), jnp.minimum(until, to_arrival)))
    many = jnp.where(runs, jnp.maximum(many, 1), 0)
    further = jnp.where((left > 0) & (per_turn > 0), jnp.maximum(many - 1, 0) * per_turn, 0)
    cost_s = cost_s + jnp.where(further > 0, reading_s(read + further) - after_s, 0.0)
    read, left = read + further, left - further
    clock = s.clock + many
    leaves = leave == jnp.where(runs, clock, -1)[:, None]
    running = jnp.where(runs, s.running + joining - leaves.sum(axis=1), s.running)
    held = s.held + many * s.running + joining_held - jnp.where(leaves, tokens, 0.0).sum(axis=1)
    after = _State(
        head=head,
        now_s=now_s + jnp.where(runs, lasts_s(many) + cost_s, 0.0),
        clock=clock,
        running=running,
        held=jnp.where(runs, held, s.held),
        claimed=claimed - jnp.where(leaves, claim, 0.0).sum(axis=1),
        read=read,
        left=left,
        room=jnp.where(runs, lanes.chunk_tokens - running, room),
        cost_s=jnp.where(runs, 0.0, cost_s),
        joining=jnp.where(runs, 0, joining),
        joining_held=jnp.where(runs, 0.0, joining_held),
        leave=jnp.where(leaves, _NEVER, leave),
        tokens=tokens,
        claim=claim,
    )
    return after, (after.clock, after.now_s, after.head, jnp.where(ended, s.clock + 1, 0))
