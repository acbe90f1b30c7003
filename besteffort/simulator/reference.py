"""The serving model in plain Python, one request and one iteration at a time, written to be read: the authority.

The JAX simulator must return what `simulate_reference` returns. Where its closed forms and this file differ, this file
is right.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, no_type_check, runtime_checkable

import numpy as np

from besteffort.autoscaler import Looks
from besteffort.errors import InputError
from besteffort.estimates import scalars
from besteffort.estimates.correction import Comparison, compared, fixed_s, observed_slowdown, steps_s
from besteffort.estimates.params import ServingParams
from besteffort.estimates.reward import reward as reward_of
from besteffort.estimates.tables import Tables
from besteffort.estimates.view import InFlightView, Terms
from besteffort.observation import Observation, next_rate
from besteffort.pools import Layout, Pool
from besteffort.simulator.gateways import gateway_of, unseen
from besteffort.simulator.result import Result
from besteffort.situation import Reward, View
from besteffort.workload.requests import Requests


@runtime_checkable
class Listener(Protocol):
    """Hears what a gateway sees of its requests; `besteffort.in_flight.InFlight` is one."""

    def arrived(
        self,
        request: Any,
        *,
        task: str,
        prompt_tokens: int,
        cached_tokens: int = 0,
        max_tokens: int | None = None,
        deadline_s: float | None = None,
        origin: str | None = None,
        tenant: str | None = None,
        at: float | None = None,
    ) -> None: ...

    def sent(self, request: Any, pool: int | str, replica: int = 0, *, at: float | None = None) -> None: ...

    def tokens(self, request: Any, count: int = 1, *, at: float | None = None) -> None: ...

    def done(self, request: Any, *, output_tokens: int | None = None, at: float | None = None) -> None: ...

    def failed(self, request: Any, *, at: float | None = None) -> None: ...

    def started(
        self, pool: int | str, replica: int = 0, *, up_in_s: float | None = None, at: float | None = None
    ) -> None: ...

    def drained(self, pool: int | str, replica: int = 0, *, at: float | None = None) -> None: ...

    def failed_replica(self, pool: int | str, replica: int = 0, *, at: float | None = None) -> Any: ...


def simulate_reference(
    requests: Requests,
    tables: Tables,
    pools: Sequence[Pool],
    route: Callable[[int, Observation], int],
    *,
    quality: np.ndarray,
    weight: np.ndarray,
    visible_deadline_s: np.ndarray,
    reward: Reward,
    view: View,
    terms: Terms | None = None,
    by_tables: ServingParams | None = None,
    listener: Listener | None = None,
    tenant_weight: np.ndarray | None = None,
) -> Result:
    """Serves a list of requests until the last answer, in float64.

    At one instant all iterations that are due end first; then the next ones start, in order of (GPU, pool); then
    replicas start, drain and fail, in order of (pool, list), and autoscalers look; then requests arrive in list order,
    each one seeing those before it.

    Args:
      requests: the requests that arrive; their clock starts at time 0.
      tables: durations of iterations; `prefill` covers the longest prompt of the list.
      pools: what serves, each with a `start_s`; their models are not read.
      route: the router: `route(index of the request, observation)` returns the index of a pool.
      quality: (tasks, pools) quality, 1 = best model of the task.
      weight: (tasks,) factor on the rewards of a task.
      visible_deadline_s: (tasks,) the part of a request's deadline that the router sees, before the factor in force.
      reward: parameters of the reward.
      view: what the router observes.
      terms: observations show the requests in flight, for estimates with these terms; None: they do not.
      by_tables: what observed times are compared with, if `terms` are given; None: they are not compared.
      listener: hears every event that a gateway sees, as it happens.
      tenant_weight: (n,) factor on the rewards of each request that routers reckon with; None where all count the same.
        The rewards of the result are without it.

    Returns:
      One entry per request, arrays of shape (n,).

    Raises:
      InputError: if the tables do not cover the largest batch or the longest prompt, or the router returns no valid
        index.
    """
    _check_cover(requests, tables, pools)
    claims = requests.prompt_tokens + np.ceil(tables.cache_output_share * requests.output_tokens)
    columns = (requests.prompt_tokens, requests.output_tokens, claims, requests.found_tokens)
    served = [_Request(i, *row) for i, row in enumerate(zip(*(column.tolist() for column in columns), strict=True))]
    factors, limits = requests.deadline_factors, requests.output_limit
    gateway = gateway_of(np.arange(len(requests)), view.gateways).tolist()
    replicas = _Replicas(tables, pools, listener, by_tables, streamed=terms is None or terms.streamed)
    comparison = Comparison(np.zeros(tables.pools), np.zeros(tables.pools))
    rates: list[float] = []  # the estimate at each arrival
    seen_sizes, seen_s = replicas.batch_sizes.copy(), -math.inf  # batch sizes as last read, and the time of that read
    previous_s = 0.0
    for index, request in enumerate(served):
        now, task = float(requests.arrival_s[index]), int(requests.task[index])
        replicas.advance(now)
        rates.append(float(next_rate(rates[-1], now - previous_s, view.rate_tau_s)) if rates else 0.0)
        slowdown = None
        if by_tables is not None:
            comparison = compared(comparison, now - previous_s, *replicas.compare(), view.slowdown_tau_s)
            slowdown = observed_slowdown(comparison, view.slowdown_tau_s)
        previous_s = now
        seen = replicas.seen_by(index, now, view, gateway) if view.others_are_late else None
        known_sizes = (replicas if seen is None else seen).batch_sizes.copy()
        if now - seen_s >= view.batch_refresh_s:
            seen_sizes, seen_s = known_sizes, now
        observation = Observation(
            task=task,
            batch_sizes=seen_sizes.sum(axis=0),
            arrival_rate=rates[index - view.rate_lag] if index >= view.rate_lag else 0.0,
            instance_batch_sizes=seen_sizes.copy(),
            deadline_s=visible_deadline_s[task] * factors[index],
            since_change_s=now - replicas.last_change_s,
            origin=None if requests.origin is None else int(requests.origin[index]),
            tenant_weight=None if tenant_weight is None else float(tenant_weight[index]),
            takes=replicas.takes(now),
            ready_s=replicas.ready_s(now),
        )
        limit = None if limits is None else int(limits[index])
        factor = None if requests.deadline_factor is None else float(factors[index])
        if terms is not None:
            observation = observation._replace(
                prompt_tokens=request.prompt_tokens,
                cached_tokens=None if requests.cached_tokens is None else request.cached_tokens,
                output_limit=limit,
                deadline_factor=factor,
                in_flight=dataclasses.replace(
                    _in_flight(requests, replicas, now, terms, tenant_weight)
                    if seen is None
                    else _late(requests, seen, now, terms, tenant_weight),
                    batch_sizes=known_sizes.sum(axis=0),
                    observed_slowdown=slowdown,
                ),
            )
        if listener is not None:
            listener.arrived(
                index,
                task=requests.tasks[task],
                prompt_tokens=request.prompt_tokens,
                cached_tokens=request.cached_tokens,
                max_tokens=limit,
                deadline_s=None if factor is None else observation.deadline_s,
                origin=None if requests.origin is None else requests.origins[requests.origin[index]],
                tenant=None if requests.tenant is None else requests.tenants[requests.tenant[index]],
                at=now,
            )
        request.pool = int(route(index, observation))
        if not 0 <= request.pool < tables.pools:
            raise InputError(
                f"The router chose pool {request.pool} for request {index}; "
                f"it must return an index from 0 to {tables.pools - 1}."
            )
        request.delay_s = _delay_s(requests, index, pools[request.pool])
        replicas.place(request, now)
    replicas.advance(math.inf)

    pool = np.array([request.pool for request in served])
    completion_s = np.array([request.completion_s for request in served])
    replica = np.array([request.replica for request in served])
    delay_s = np.array([request.delay_s for request in served])
    latency_s = np.where(np.isnan(completion_s), np.inf, completion_s - requests.arrival_s + delay_s)
    return Result.of(
        requests.columns,
        model=pool,
        replica=replica,
        admission_s=np.array([request.admission_s for request in served]),
        first_token_s=np.array([request.first_token_s for request in served]),
        completion_s=completion_s,
        latency_s=latency_s,
        reward=reward_of(
            quality[requests.task, pool],
            weight[requests.task],
            latency_s,
            requests.deadline_s,
            reward.soft_span,
            reward.miss_penalty,
        ),
    )


def _delay_s(requests: Requests, index: int, pool: Pool) -> float:
    """Network delay of a pool's answer to a request."""
    if requests.origin is not None:
        origin = requests.origins[requests.origin[index]]
        for delay in pool.delays:
            if delay.origin == origin:
                return delay.network_delay_s
    return pool.network_delay_s


@dataclasses.dataclass(slots=True)
class _Request:
    """A request and its progress so far; times in seconds."""

    index: int
    prompt_tokens: int
    output_tokens: int
    cache_claim: float  # tokens for which the cache must have room at admission
    cached_tokens: int  # of the prompt, found in the prefix cache
    read: int = 0  # tokens of the prompt that are read by the end of the iteration in progress, or were found
    generated: int = 0
    sent_s: float = math.nan
    first_iteration: int = 0  # number of the first iteration of its instance that might admit it
    token_s: list[float] = dataclasses.field(default_factory=list)
    fixed_s: float = math.inf  # see `besteffort.estimates.correction.fixed_s`
    pool: int = -1
    delay_s: float = 0.0
    replica: int = -1
    admission_s: float = math.nan
    first_token_s: float = math.nan
    completion_s: float = math.nan

    @property
    def is_read(self) -> bool:
        """Whether the whole prompt is read by the end of the iteration in progress."""
        return self.read == self.prompt_tokens


@dataclasses.dataclass(slots=True)
class _Instance:
    """A replica of a pool. It is busy while any request runs: iterations follow each other without a gap."""

    gpu: int = 0
    waiting: deque[_Request] = dataclasses.field(default_factory=deque)
    running: list[_Request] = dataclasses.field(default_factory=list)
    busy: bool = False
    begun_s: float = 0.0  # of the iteration in progress, or of the first of several that give no one a token
    passed_over: int = 0  # requests that the iteration in progress left waiting
    takes: bool = True  # new requests: it is up, or starting
    ready_s: float = 0.0  # when it is up, or was
    sent: list[_Request] = dataclasses.field(default_factory=list)  # all that ever were
    begins_s: list[float] = dataclasses.field(default_factory=list)  # of all iterations
    shows: bool = True  # the last iteration gave someone a token, or the instance was idle
    assumed_s: float = 0.0  # what the iteration in progress takes by the tables that observed times are compared with


@no_type_check  # at run time: the checks that tests enable would cost ten times the work of an iteration
class _Replicas:
    """All instances, the iterations in progress, and their state as the router and the load balancer see it.

    Attributes:
      instances: of each pool those of its replicas.
      beside: the instances on each GPU, by pool.
      batch_sizes: (rows, pools) running plus waiting requests, see `besteffort.pools.Layout`.
      last_change_s: time of the last change of any of them, seconds; 0 before the first change.
    """

    def __init__(
        self,
        tables: Tables,
        pools: Sequence[Pool],
        listener: Listener | None,
        by_tables: ServingParams | None,
        *,
        streamed: bool,
    ) -> None:
        self._listener = listener
        self._by_tables = by_tables
        self._streamed = streamed
        layout = Layout.of(pools, tables.slowdown)
        self._row = [np.array(rows) for rows in layout.rows]
        self._placed = layout.placed
        self._alive = any(pool.events or pool.autoscaler for pool in pools)
        self._seconds = np.zeros((2, tables.pools))  # observed and assumed, of iterations since the last `compare`
        self._answers = np.zeros((*layout.placed.shape, 3))  # `Answers` since then
        self._decode = tables.decode.tolist()
        self._prefill = tables.prefill.tolist()
        unlimited = np.full(tables.pools, math.inf)
        self._chunk_tokens = (unlimited if tables.chunk_tokens is None else tables.chunk_tokens).tolist()
        self._slowdown = tables.slowdown.tolist()
        self.slows_down = bool((tables.slowdown != 1).any())
        self._context_cost_s = tables.context_cost_s.tolist()
        self._cache_tokens = tables.cache_tokens.tolist()
        self._pools = pools
        self.instances = [[_Instance(gpu) for gpu in gpus] for gpus in layout.gpus]
        self.beside: dict[int, dict[int, _Instance]] = {}
        for pool, replicas in enumerate(self.instances):
            for instance in replicas:
                self.beside.setdefault(instance.gpu, {})[pool] = instance
        # Heap of (end, GPU, pool, replica) of the iterations in progress; a GPU has one replica of a pool at most.
        self._ends: list[tuple[float, int, int, int]] = []
        # Heap of (time, pool, place in its list, replica, what) of the lives of replicas.
        self._life: list[tuple[float, int, int, int, str]] = []
        for pool, one in enumerate(pools):
            for place, event in enumerate(one.events):
                heapq.heappush(self._life, (event.time_s, pool, place, event.replica, event.what))
            for instance, up in zip(self.instances[pool], one.up_first, strict=True):
                instance.takes = up
        self._looks = {
            pool: Looks(one.autoscaler, one.replicas, one.max_batch)
            for pool, one in enumerate(pools)
            if one.autoscaler is not None
        }
        for pool, looks in self._looks.items():
            heapq.heappush(self._life, (looks.next_s, pool, 0, 0, "look"))
        self.batch_sizes = np.zeros(layout.placed.shape, dtype=np.int64)
        self.last_change_s = 0.0

    def seen_by(self, index: int, now: float, view: View, gateway: Sequence[int]) -> _Seen:
        """What the gateway of a request sees: own requests as they are, those of others as they were."""
        mine, then = gateway[index], now - view.gateway_delay_s

        def there(instance: _Instance) -> list[tuple[_Request, float]]:
            moments = ((one, now if gateway[one.index] == mine else then) for one in instance.sent)
            return [(one, at) for one, at in moments if one.sent_s <= at and not one.completion_s <= at]

        held = [[there(instance) for instance in replicas] for replicas in self.instances]
        picked = [min(range(len(each)), key=lambda replica: len(each[replica])) for each in held]
        instances = [self.instances[pool][replica] for pool, replica in enumerate(picked)]
        recent = [sum(at == now and one.sent_s > then for some in each for one, at in some) for each in held]
        sizes = np.zeros_like(self.batch_sizes)
        for pool, each in enumerate(held):
            sizes[self._row[pool], pool] = [len(some) for some in each]
        return _Seen(
            batch_sizes=sizes,
            rows=[held[pool][replica] for pool, replica in enumerate(picked)],
            begins_s=[np.array(instance.begins_s) for instance in instances],
            ran=[
                any(one.admission_s <= then and not one.completion_s <= then for one in instance.sent)
                for instance in instances
            ],
            others_s=then,
            unseen=unseen(np.array(recent), view.gateways, np.array([len(each) for each in held])),
        )

    def compare(self) -> tuple[np.ndarray, np.ndarray]:
        """(pools,) seconds observed beyond the tables since the last call, and by the tables."""
        observed_s, assumed_s = self._seconds
        if not self._streamed:
            for (row, pool), size in np.ndenumerate(self.batch_sizes):
                told_s, fixed, steps = self._answers[row, pool]
                slots = self._pools[pool].max_batch
                assumed_s[pool] += fixed + steps_s(steps, size, self._decode_of(pool), slots, scalars)
                observed_s[pool] += told_s
        self._seconds, self._answers = np.zeros_like(self._seconds), np.zeros_like(self._answers)
        return observed_s - assumed_s, assumed_s

    def _decode_of(self, pool: int) -> Callable[[int], float]:
        """Assumed seconds of a decode of so many requests of mean length."""
        known = self._by_tables
        assert known is not None
        held_s = known.context_cost_s[pool] * known.priors.held_each
        return lambda number: known.decode[pool, number] + held_s * number

    def _assumed_prefill_s(self, pool: int, request: _Request) -> float:
        """Assumed seconds of reading what was not found of a prompt."""
        assert self._by_tables is not None
        table = self._by_tables.prefill[pool]
        return float(table[request.prompt_tokens] - table[request.cached_tokens])

    def advance(self, until: float) -> None:
        """All that happens up to and including time `until`: iterations end and start; replicas start, drain, fail."""
        while self._ends or self._life:
            end_s = self._ends[0][0] if self._ends else math.inf
            life_s = self._life[0][0] if self._life else math.inf
            now = min(end_s, life_s)
            if now > until:
                return
            if life_s < end_s:
                self._live(now, last=math.isinf(until))
                continue
            ended = []
            while self._ends and self._ends[0][0] == now:
                _, _, pool, replica = heapq.heappop(self._ends)
                self._end_iteration(pool, replica, now)
                ended.append((pool, replica))  # in order of (GPU, pool), as the heap yields them
            for pool, replica in ended:
                self._start_iteration(pool, replica, now)

    def _live(self, now: float, *, last: bool) -> None:
        """What happens next to a replica; after the last arrival no autoscaler looks any more."""
        _, pool, place, replica, what = heapq.heappop(self._life)
        if what == "look":
            if not last:
                self._look(pool, now)
        else:
            self._happen(pool, place, replica, what, now)

    def _look(self, pool: int, now: float) -> None:
        """The autoscaler of a pool looks at it."""
        each, looks = self.instances[pool], self._looks[pool]
        sizes = [len(instance.running) + len(instance.waiting) for instance in each]
        starts, drains = looks.look([instance.takes for instance in each], sizes)
        for what, replicas in (("start", starts), ("drain", drains)):
            for replica in replicas:
                self._happen(pool, 0, replica, what, now)
        heapq.heappush(self._life, (looks.next_s, pool, 0, 0, "look"))

    def _happen(self, pool: int, place: int, replica: int, what: str, now: float) -> None:
        """What happens to a replica."""
        instance = self.instances[pool][replica]
        if what == "ready":
            # Unless it has failed, and waits for a later start.
            if instance.ready_s == now and instance.waiting and not instance.busy:
                self._start_iteration(pool, replica, now)
        elif what == "drain":
            instance.takes = False
            if self._listener is not None:
                self._listener.drained(pool, replica, at=now)
        elif what == "fail":
            instance.takes = False
            self._lose(pool, replica, now)
            if self._listener is not None:
                self._listener.failed_replica(pool, replica, at=now)
        elif not instance.takes:
            if self._listener is not None:
                self._listener.started(pool, replica, at=now)
            instance.takes = True
            if not (instance.running or instance.waiting):  # else it still drains
                instance.ready_s = now + (self._pools[pool].start_s or 0.0)
                heapq.heappush(self._life, (instance.ready_s, pool, place, replica, "ready"))

    def _lose(self, pool: int, replica: int, now: float) -> None:
        """A replica fails: the requests that it has get no answer."""
        instance = self.instances[pool][replica]
        lost = [*instance.running, *instance.waiting]
        instance.running, instance.busy = [], False
        instance.waiting.clear()
        self._ends = [end for end in self._ends if end[2:] != (pool, replica)]
        heapq.heapify(self._ends)
        self.batch_sizes[self._row[pool][replica], pool] -= len(lost)
        if lost:
            self.last_change_s = now

    def place(self, request: _Request, now: float) -> None:
        """Hands a request to a replica of its pool, or rejects it."""
        pool, replica = request.pool, self.picked(request.pool, now)
        row = -1 if replica is None else self._row[pool][replica]
        full = replica is None or self.batch_sizes[row, pool] >= self._pools[pool].places
        if replica is None or full or request.cache_claim > self._cache_tokens[pool]:
            if self._listener is not None:
                self._listener.failed(request.index, at=now)
            return
        request.replica = replica
        request.sent_s = now
        if self._listener is not None:
            self._listener.sent(request.index, pool, replica, at=now)
        instance = self.instances[pool][replica]
        instance.waiting.append(request)
        instance.sent.append(request)
        request.first_iteration = len(instance.begins_s)
        self.batch_sizes[row, pool] += 1
        if self._by_tables is not None:
            prefill_s = self._assumed_prefill_s(pool, request)
            for other in (*instance.running, *instance.waiting):
                other.fixed_s += prefill_s  # it comes in between
            number, slots = int(self.batch_sizes[row, pool]), self._pools[pool].max_batch
            decode = self._decode_of(pool)
            request.fixed_s = fixed_s(prefill_s, request.output_tokens, number, decode, slots, scalars)
        self.last_change_s = now
        if not instance.busy and instance.ready_s <= now:
            self._start_iteration(pool, replica, now)

    def takes(self, now: float) -> np.ndarray | None:
        """(rows, pools) between which replicas the load balancer chooses; None where that is all of a full array."""
        if self._placed.all() and not self._alive:
            return None
        takes = np.zeros_like(self._placed)
        for pool, rows in enumerate(self._row):
            takes[rows[self._candidates(pool, now)], pool] = True
        return takes

    def shown(self, now: float) -> list[int]:
        """For each pool the replica that stands for it: that which gets the next request, or else any has least."""
        each = enumerate(self._row)
        return [
            min(
                self._candidates(pool, now) or range(len(rows)),
                key=lambda replica, pool=pool, rows=rows: self.batch_sizes[rows[replica], pool],
            )
            for pool, rows in each
        ]

    def ready_s(self, now: float) -> np.ndarray | None:
        """(pools,) seconds until that replica is up; None where nothing happens to replicas."""
        if not self._alive:
            return None
        shown = (each[replica] for each, replica in zip(self.instances, self.shown(now), strict=True))
        return np.array([max(instance.ready_s - now, 0.0) for instance in shown])

    def picked(self, pool: int, now: float) -> int | None:
        """The replica of a pool that gets the next request: that with the smallest batch, the first on a tie."""
        rows = self._row[pool]
        candidates = self._candidates(pool, now)
        return min(candidates, key=lambda replica: self.batch_sizes[rows[replica], pool], default=None)

    def _candidates(self, pool: int, now: float) -> list[int]:
        """The replicas that are up, or else the one that is up first, or none."""
        coming = [replica for replica, instance in enumerate(self.instances[pool]) if instance.takes]
        up = [replica for replica in coming if self.instances[pool][replica].ready_s <= now]
        return up or sorted(coming, key=lambda replica: self.instances[pool][replica].ready_s)[:1]

    def _end_iteration(self, pool: int, replica: int, now: float) -> None:
        """Gives every running request whose prompt is read one more token; those with all their tokens leave."""
        instance, row = self.instances[pool][replica], self._row[pool][replica]
        instance.busy = False
        instance.shows = any(request.is_read for request in instance.running)
        if self._streamed and instance.shows:
            self._seconds[:, pool] += now - instance.begun_s, instance.assumed_s
        staying = []
        for request in instance.running:
            if not request.is_read:
                staying.append(request)
                continue
            request.generated += 1
            request.token_s.append(now)
            if request.generated == 1:
                request.first_token_s = now
            if request.generated < request.output_tokens:
                staying.append(request)
                if self._listener is not None:
                    self._listener.tokens(request.index, 1, at=now)
            else:
                if self._listener is not None:
                    self._listener.done(request.index, output_tokens=request.output_tokens, at=now)
                if not self._streamed and math.isfinite(request.fixed_s):
                    self._answers[row, pool] += now - request.sent_s, request.fixed_s, request.output_tokens - 1
                request.completion_s = now
                self.batch_sizes[row, pool] -= 1
                self.last_change_s = now
        instance.running = staying

    def _start_iteration(self, pool: int, replica: int, now: float) -> None:
        """Admits waiting requests and puts the iteration's end on the heap; without requests the instance is idle."""
        instance = self.instances[pool][replica]
        instance.shows |= not instance.running
        decoding = [request for request in instance.running if request.is_read]
        tokens_held = sum(request.prompt_tokens + request.generated for request in decoding)
        duration = self._decode[pool][len(decoding)] + self._context_cost_s[pool] * tokens_held
        known = self._by_tables
        if known is not None:
            instance.assumed_s = known.decode[pool, len(decoding)] + known.context_cost_s[pool] * tokens_held
        for request, tokens in self._read(instance, pool, self._chunk_tokens[pool] - len(decoding), now):
            duration += self._prefill[pool][request.read + tokens] - self._prefill[pool][request.read]
            request.read += tokens
            if known is not None and request.is_read:
                # From outside, reading shows by the first token alone.
                instance.assumed_s += self._assumed_prefill_s(pool, request)
        if not instance.running:
            return
        for other, neighbour in self.beside[instance.gpu].items():
            if other != pool and neighbour.busy:
                duration *= self._slowdown[pool][other]
                if known is not None:
                    instance.assumed_s *= known.slowdown[pool, other]
        instance.begins_s.append(now)
        instance.busy, instance.passed_over = True, len(instance.waiting)
        if instance.shows:
            instance.begun_s = now
        heapq.heappush(self._ends, (now + duration, instance.gpu, pool, replica))

    def _read(self, instance: _Instance, pool: int, room: float, now: float) -> list[tuple[_Request, int]]:
        """Prompts that the next iteration reads, in order of arrival, each with how many of its tokens.

        While there is room for tokens, reading goes on where the last iteration left it, then waiting requests are
        admitted until the batch or the cache is full.
        """
        reads = []
        claimed = sum(request.cache_claim for request in instance.running)
        begun = [request for request in instance.running if not request.is_read]  # one at most
        while room > 0:
            if begun:
                request = begun.pop()
            elif instance.waiting and len(instance.running) < self._pools[pool].max_batch:
                claimed += instance.waiting[0].cache_claim
                if claimed > self._cache_tokens[pool]:
                    break
                request = instance.waiting.popleft()
                request.admission_s, request.read = now, request.cached_tokens
                instance.running.append(request)
            else:
                break
            tokens = int(min(request.prompt_tokens - request.read, room))
            reads.append((request, tokens))
            room -= tokens
        return reads


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What a gateway sees.

    Attributes:
      batch_sizes: (rows, pools) requests that it believes to be there.
      rows: for each pool those on the instance that it believes to get the next one, each with the moment as of which
        it is known.
      begins_s: for each pool when the iterations of that instance began.
      ran: for each pool whether that instance was at work at `others_s`.
      others_s: the moment as of which requests of others are known.
      unseen: (pools,) see `besteffort.simulator.gateways.unseen`.
    """

    batch_sizes: np.ndarray
    rows: list[list[tuple[_Request, float]]]
    begins_s: list[np.ndarray]
    ran: list[bool]
    others_s: float
    unseen: np.ndarray


def _late(requests: Requests, seen: _Seen, now: float, terms: Terms, tenant_weight: np.ndarray | None) -> InFlightView:
    """What can be counted of the requests on the instances that may get the next one, as a gateway sees them."""
    size = (len(seen.rows), max(1, *map(len, seen.rows)))
    present, running, eligible = (np.zeros(size, bool) for _ in range(3))
    tokens, index = np.zeros(size, np.int64), np.zeros(size, np.int64)
    elapsed_s, seen_s, delay_s = np.zeros(len(seen.rows)), np.zeros(size), np.zeros(size)
    for row, (held, begins_s, ran) in enumerate(zip(seen.rows, seen.begins_s, seen.ran, strict=True)):
        shows = False
        for seat, (request, at) in enumerate(held):
            present[row, seat] = True
            running[row, seat] = request.admission_s <= at
            eligible[row, seat] = request.first_iteration < np.searchsorted(begins_s, at, side="right")
            tokens[row, seat] = sum(moment <= at for moment in request.token_s)
            index[row, seat] = request.index
            delay_s[row, seat] = request.delay_s
            seen_s[row, seat] = 0.0 if at == now else now - seen.others_s
            shows |= bool(running[row, seat]) and at == now
        at = now if shows else seen.others_s
        if shows or ran:
            elapsed_s[row] = at - begins_s[begins_s <= at][-1]
    view = _view(requests, present, running, eligible, tokens, index, delay_s, elapsed_s, now, terms, tenant_weight)
    return dataclasses.replace(view, seen_s=seen_s, unseen=seen.unseen)


def _in_flight(
    requests: Requests, replicas: _Replicas, now: float, terms: Terms, tenant_weight: np.ndarray | None
) -> InFlightView:
    """What can be counted of the requests on the instances that may get the next one."""
    own = [each[replica] for each, replica in zip(replicas.instances, replicas.shown(now), strict=True)]
    view = _rows(requests, own, now, terms, tenant_weight)
    ready_s, takes = replicas.ready_s(now), replicas.takes(now)
    if ready_s is not None and takes is not None:
        view = dataclasses.replace(view, ready_s=ready_s, takes=takes.any(axis=0))
    if replicas.slows_down:
        pools, nothing = range(len(own)), _Instance()
        together = [replicas.beside[instance.gpu] for instance in own]
        others = [here.get(pool, nothing) for here in together for pool in pools]
        beside = _rows(requests, others, now, terms, tenant_weight)
        grid: dict[str, Any] = {
            field.name: value.reshape(len(pools), len(pools), *value.shape[1:])
            for field in dataclasses.fields(beside)
            if isinstance(value := getattr(beside, field.name), np.ndarray)
        }
        view = dataclasses.replace(view, beside=dataclasses.replace(beside, **grid))
    return view


def _rows(
    requests: Requests, instances: Sequence[_Instance], now: float, terms: Terms, tenant_weight: np.ndarray | None
) -> InFlightView:
    """The same, one row per instance."""
    size = (len(instances), terms.capacity)
    present, running, eligible = (np.zeros(size, bool) for _ in range(3))
    tokens, index = np.zeros(size, np.int64), np.zeros(size, np.int64)
    elapsed_s, delay_s = np.zeros(len(instances)), np.zeros(size)
    for row, instance in enumerate(instances):
        held = [*instance.running, *instance.waiting]
        present[row, : len(held)] = True
        running[row, : len(instance.running)] = True
        eligible[row, : len(instance.running) + instance.passed_over] = True
        tokens[row, : len(instance.running)] = [request.generated for request in instance.running]
        index[row, : len(held)] = [request.index for request in held]
        delay_s[row, : len(held)] = [request.delay_s for request in held]
        elapsed_s[row] = now - instance.begun_s
    return _view(requests, present, running, eligible, tokens, index, delay_s, elapsed_s, now, terms, tenant_weight)


def _view(
    requests: Requests,
    present: np.ndarray,
    running: np.ndarray,
    eligible: np.ndarray,
    tokens: np.ndarray,
    index: np.ndarray,
    delay_s: np.ndarray,
    elapsed_s: np.ndarray,
    now: float,
    terms: Terms,
    tenant_weight: np.ndarray | None,
) -> InFlightView:
    """A view of (pools, seats) arrays."""
    infers = terms.infers_admissions
    return InFlightView(
        present=present,
        running=None if infers else running,
        tokens=tokens * terms.streamed,
        task=requests.task[index],
        prompt_tokens=requests.prompt_tokens[index],
        cached_tokens=None if requests.cached_tokens is None else requests.cached_tokens[index],
        age_s=now - requests.arrival_s[index],
        elapsed_s=elapsed_s,
        eligible=eligible if infers else None,
        order=index if infers else None,
        output_limit=None if requests.output_limit is None else requests.output_limit[index],
        deadline_factor=None if requests.deadline_factor is None else requests.deadline_factor[index],
        delay_s=None if requests.origin is None else delay_s,
        tenant_weight=None if tenant_weight is None else tenant_weight[index],
        terms=terms,
    )


def _check_cover(requests: Requests, tables: Tables, pools: Sequence[Pool]) -> None:
    """Raises `InputError` if a table is too short for the largest batch or the longest prompt."""
    largest_batch = tables.decode.shape[1] - 1
    most = max(pool.max_batch for pool in pools)
    if largest_batch < most:
        raise InputError(f"`decode` ends at batch size {largest_batch}, `max_batch` is {most}; make the table longer.")
    longest = int(requests.prompt_tokens.max())
    longest_covered = tables.prefill.shape[1] - 1
    if longest_covered < longest:
        raise InputError(
            f"`prefill` ends at {longest_covered} tokens, the longest prompt has {longest}; make the table longer."
        )
