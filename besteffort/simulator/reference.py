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

from besteffort.errors import InputError
from besteffort.estimates import scalars
from besteffort.estimates.correction import Comparison, compared, fixed_s, observed_slowdown, steps_s
from besteffort.estimates.params import ServingParams
from besteffort.estimates.reward import reward as reward_of
from besteffort.estimates.tables import Tables
from besteffort.estimates.view import InFlightView, Terms
from besteffort.observation import Observation, next_rate
from besteffort.simulator.gateways import gateway_of, unseen
from besteffort.simulator.result import Result
from besteffort.situation import Cluster, Reward, View
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
        max_tokens: int | None = None,
        deadline_s: float | None = None,
        at: float | None = None,
    ) -> None: ...

    def sent(self, request: Any, model: int | str, replica: int = 0, *, at: float | None = None) -> None: ...

    def tokens(self, request: Any, count: int = 1, *, at: float | None = None) -> None: ...

    def done(self, request: Any, *, output_tokens: int | None = None, at: float | None = None) -> None: ...

    def failed(self, request: Any, *, at: float | None = None) -> None: ...


def simulate_reference(
    requests: Requests,
    tables: Tables,
    cluster: Cluster,
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
) -> Result:
    """Serves a list of requests until the last answer, in float64.

    At one instant all iterations that are due end first; then the next ones start, in order of (replica, model); then
    requests arrive in list order, each one seeing those before it.

    Args:
      requests: the requests that arrive; their clock starts at time 0.
      tables: durations of iterations; `prefill` covers the longest prompt of the list.
      cluster: replicas, batch size and queue capacity.
      route: the router: `route(index of the request, observation)` returns the index of a model.
      quality: (tasks, models) quality, 1 = best model of the task.
      weight: (tasks,) factor on the rewards of a task.
      visible_deadline_s: (tasks,) the part of a request's deadline that the router sees, before the factor in force.
      reward: parameters of the reward.
      view: what the router observes.
      terms: observations show the requests in flight, for estimates with these terms; None: they do not.
      by_tables: what observed times are compared with, if `terms` are given; None: they are not compared.
      listener: hears every event that a gateway sees, as it happens.

    Returns:
      One entry per request, arrays of shape (n,).

    Raises:
      InputError: if the tables do not cover the largest batch or the longest prompt, or the router returns no valid
        index.
    """
    _check_cover(requests, tables, cluster)
    claims = requests.prompt_tokens + np.ceil(tables.cache_output_share * requests.output_tokens)
    columns = (requests.prompt_tokens, requests.output_tokens, claims)
    served = [_Request(i, *row) for i, row in enumerate(zip(*(column.tolist() for column in columns), strict=True))]
    factors, limits = requests.deadline_factors, requests.output_limit
    gateway = gateway_of(np.arange(len(requests)), view.gateways).tolist()
    replicas = _Replicas(tables, cluster, listener, by_tables, streamed=terms is None or terms.streamed)
    comparison = Comparison(np.zeros(tables.models), np.zeros(tables.models))
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
        )
        limit = None if limits is None else int(limits[index])
        factor = None if requests.deadline_factor is None else float(factors[index])
        if terms is not None:
            observation = observation._replace(
                prompt_tokens=request.prompt_tokens,
                output_limit=limit,
                deadline_factor=factor,
                in_flight=dataclasses.replace(
                    _in_flight(requests, replicas, now, terms) if seen is None else _late(requests, seen, now, terms),
                    batch_sizes=known_sizes.sum(axis=0),
                    observed_slowdown=slowdown,
                ),
            )
        if listener is not None:
            listener.arrived(
                index,
                task=requests.tasks[task],
                prompt_tokens=request.prompt_tokens,
                max_tokens=limit,
                deadline_s=None if factor is None else observation.deadline_s,
                at=now,
            )
        request.model = int(route(index, observation))
        if not 0 <= request.model < tables.models:
            raise InputError(
                f"The router chose model {request.model} for request {index}; "
                f"it must return an index from 0 to {tables.models - 1}."
            )
        replicas.place(request, now)
    replicas.advance(math.inf)

    model = np.array([request.model for request in served])
    completion_s = np.array([request.completion_s for request in served])
    replica = np.array([request.replica for request in served])
    latency_s = np.where(replica < 0, np.inf, completion_s - requests.arrival_s + cluster.network_delay_s)
    return Result.of(
        requests.columns,
        model=model,
        replica=replica,
        admission_s=np.array([request.admission_s for request in served]),
        first_token_s=np.array([request.first_token_s for request in served]),
        completion_s=completion_s,
        latency_s=latency_s,
        reward=reward_of(
            quality[requests.task, model],
            weight[requests.task],
            latency_s,
            requests.deadline_s,
            reward.soft_span,
            reward.miss_penalty,
        ),
    )


@dataclasses.dataclass(slots=True)
class _Request:
    """A request and its progress so far; times in seconds."""

    index: int
    prompt_tokens: int
    output_tokens: int
    cache_claim: float  # tokens for which the cache must have room at admission
    generated: int = 0
    sent_s: float = math.nan
    first_iteration: int = 0  # number of the first iteration of its instance that might admit it
    token_s: list[float] = dataclasses.field(default_factory=list)
    fixed_s: float = math.inf  # see `besteffort.estimates.correction.fixed_s`
    model: int = -1
    replica: int = -1
    admission_s: float = math.nan
    first_token_s: float = math.nan
    completion_s: float = math.nan


@dataclasses.dataclass(slots=True)
class _Instance:
    """One model on one replica. It is busy while any request runs: iterations follow each other without a gap."""

    waiting: deque[_Request] = dataclasses.field(default_factory=deque)
    running: list[_Request] = dataclasses.field(default_factory=list)
    busy: bool = False
    begun_s: float = 0.0
    passed_over: int = 0  # requests that the iteration in progress left waiting
    sent: list[_Request] = dataclasses.field(default_factory=list)  # all that ever were
    begins_s: list[float] = dataclasses.field(default_factory=list)  # of all iterations
    assumed_s: float = 0.0  # what the iteration in progress takes by the tables that observed times are compared with


@no_type_check  # at run time: the checks that tests enable would cost ten times the work of an iteration
class _Replicas:
    """All instances, the iterations in progress, and their state as the router and the load balancer see it.

    Attributes:
      batch_sizes: (replicas, models) running plus waiting requests.
      last_change_s: time of the last change of any of them, seconds; 0 before the first change.
    """

    def __init__(
        self,
        tables: Tables,
        cluster: Cluster,
        listener: Listener | None,
        by_tables: ServingParams | None,
        *,
        streamed: bool,
    ) -> None:
        self._listener = listener
        self._by_tables = by_tables
        self._streamed = streamed
        self._seconds = np.zeros((2, tables.models))  # observed and assumed, of iterations since the last `compare`
        self._answers = np.zeros((cluster.replicas, tables.models, 3))  # `Answers` since then
        self._decode = tables.decode.tolist()
        self._prefill = tables.prefill.tolist()
        self._slowdown = tables.slowdown.tolist()
        self.slows_down = bool((tables.slowdown != 1).any())
        self._context_cost_s = tables.context_cost_s.tolist()
        self._cache_tokens = tables.cache_tokens.tolist()
        self._cluster = cluster
        self.instances = [[_Instance() for _ in range(tables.models)] for _ in range(cluster.replicas)]
        self._ends: list[tuple[float, int, int]] = []  # heap of (end, replica, model) of the iterations in progress
        self.batch_sizes = np.zeros((cluster.replicas, tables.models), dtype=np.int64)
        self.last_change_s = 0.0

    def seen_by(self, index: int, now: float, view: View, gateway: Sequence[int]) -> _Seen:
        """What the gateway of a request sees: own requests as they are, those of others as they were."""
        mine, then = gateway[index], now - view.gateway_delay_s

        def there(instance: _Instance) -> list[tuple[_Request, float]]:
            moments = ((one, now if gateway[one.index] == mine else then) for one in instance.sent)
            return [(one, at) for one, at in moments if one.sent_s <= at and not one.completion_s <= at]

        rows = [[there(instance) for instance in row] for row in self.instances]
        sizes = np.array([[len(each) for each in row] for row in rows])
        picked = sizes.argmin(axis=0).tolist()
        instances = [self.instances[replica][model] for model, replica in enumerate(picked)]
        recent = [[sum(at == now and one.sent_s > then for one, at in held) for held in row] for row in rows]
        return _Seen(
            batch_sizes=sizes,
            rows=[rows[replica][model] for model, replica in enumerate(picked)],
            begins_s=[np.array(instance.begins_s) for instance in instances],
            ran=[
                any(one.admission_s <= then and not one.completion_s <= then for one in instance.sent)
                for instance in instances
            ],
            others_s=then,
            unseen=unseen(np.sum(recent, axis=0), view.gateways, len(rows)),
        )

    def compare(self) -> tuple[np.ndarray, np.ndarray]:
        """(models,) seconds observed beyond the tables since the last call, and by the tables."""
        observed_s, assumed_s = self._seconds
        if not self._streamed:
            for (replica, model), size in np.ndenumerate(self.batch_sizes):
                told_s, fixed, steps = self._answers[replica, model]
                by_tables_s = fixed + steps_s(steps, size, self._decode_of(model), self._cluster.max_batch, scalars)
                assumed_s[model] += by_tables_s
                observed_s[model] += told_s
        self._seconds, self._answers = np.zeros_like(self._seconds), np.zeros_like(self._answers)
        return observed_s - assumed_s, assumed_s

    def _decode_of(self, model: int) -> Callable[[int], float]:
        """Assumed seconds of a decode of so many requests of mean length."""
        known = self._by_tables
        assert known is not None
        held_s = known.context_cost_s[model] * known.priors.held_each
        return lambda number: known.decode[model, number] + held_s * number

    def advance(self, until: float) -> None:
        """Ends every iteration that is due up to and including time `until`, and starts those that follow."""
        while self._ends and self._ends[0][0] <= until:
            now = self._ends[0][0]
            ended = []
            while self._ends and self._ends[0][0] == now:
                _, replica, model = heapq.heappop(self._ends)
                self._end_iteration(replica, model, now)
                ended.append((replica, model))  # in order of (replica, model), as the heap yields them
            for replica, model in ended:
                self._start_iteration(replica, model, now)

    def place(self, request: _Request, now: float) -> None:
        """Hands a request to the least loaded instance of its model, or rejects it."""
        model = request.model
        replica = int(self.batch_sizes[:, model].argmin())
        full = self.batch_sizes[replica, model] >= self._cluster.max_batch + self._cluster.queue_capacity
        if full or request.cache_claim > self._cache_tokens[model]:
            if self._listener is not None:
                self._listener.failed(request.index, at=now)
            return
        request.replica = replica
        request.sent_s = now
        if self._listener is not None:
            self._listener.sent(request.index, model, replica, at=now)
        instance = self.instances[replica][model]
        instance.waiting.append(request)
        instance.sent.append(request)
        request.first_iteration = len(instance.begins_s)
        self.batch_sizes[replica, model] += 1
        if self._by_tables is not None:
            prefill_s = self._by_tables.prefill[model, request.prompt_tokens]
            for other in (*instance.running, *instance.waiting):
                other.fixed_s += prefill_s  # it comes in between
            number, decode = int(self.batch_sizes[replica, model]), self._decode_of(model)
            request.fixed_s = fixed_s(
                prefill_s, request.output_tokens, number, decode, self._cluster.max_batch, scalars
            )
        self.last_change_s = now
        if not instance.busy:
            self._start_iteration(replica, model, now)

    def _end_iteration(self, replica: int, model: int, now: float) -> None:
        """Gives every running request one more token; requests with all their tokens leave."""
        instance = self.instances[replica][model]
        instance.busy = False
        if self._streamed:
            self._seconds[:, model] += now - instance.begun_s, instance.assumed_s
        staying = []
        for request in instance.running:
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
                    self._answers[replica, model] += now - request.sent_s, request.fixed_s, request.output_tokens - 1
                request.completion_s = now
                self.batch_sizes[replica, model] -= 1
                self.last_change_s = now
        instance.running = staying

    def _start_iteration(self, replica: int, model: int, now: float) -> None:
        """Admits waiting requests and puts the iteration's end on the heap; without requests the instance is idle."""
        instance = self.instances[replica][model]
        tokens_held = sum(request.prompt_tokens + request.generated for request in instance.running)
        duration = self._decode[model][len(instance.running)] + self._context_cost_s[model] * tokens_held
        known = self._by_tables
        if known is not None:
            instance.assumed_s = known.decode[model, len(instance.running)] + known.context_cost_s[model] * tokens_held
        for request in self._admit(instance, model):
            request.admission_s = now
            duration += self._prefill[model][request.prompt_tokens]
            if known is not None:
                instance.assumed_s += known.prefill[model, request.prompt_tokens]
        if not instance.running:
            return
        for other, factor in enumerate(self._slowdown[model]):
            if other != model and self.instances[replica][other].busy:
                duration *= factor
                if known is not None:
                    instance.assumed_s *= known.slowdown[model, other]
        instance.begins_s.append(now)
        instance.busy, instance.begun_s, instance.passed_over = True, now, len(instance.waiting)
        heapq.heappush(self._ends, (now + duration, replica, model))

    def _admit(self, instance: _Instance, model: int) -> list[_Request]:
        """Moves waiting requests to the running ones, in order of arrival, until the batch or the cache is full."""
        admitted = []
        claimed = sum(request.cache_claim for request in instance.running)
        while instance.waiting and len(instance.running) < self._cluster.max_batch:
            claimed += instance.waiting[0].cache_claim
            if claimed > self._cache_tokens[model]:
                break
            admitted.append(instance.waiting.popleft())
            instance.running.append(admitted[-1])
        return admitted


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What a gateway sees.

    Attributes:
      batch_sizes: (replicas, models) requests that it believes to be there.
      rows: for each model those on the instance that it believes to get the next one, each with the moment as of which
        it is known.
      begins_s: for each model when the iterations of that instance began.
      ran: for each model whether that instance was at work at `others_s`.
      others_s: the moment as of which requests of others are known.
      unseen: (models,) see `besteffort.simulator.gateways.unseen`.
    """

    batch_sizes: np.ndarray
    rows: list[list[tuple[_Request, float]]]
    begins_s: list[np.ndarray]
    ran: list[bool]
    others_s: float
    unseen: np.ndarray


def _late(requests: Requests, seen: _Seen, now: float, terms: Terms) -> InFlightView:
    """What can be counted of the requests on the instances that may get the next one, as a gateway sees them."""
    size = (len(seen.rows), max(1, *map(len, seen.rows)))
    present, running, eligible = (np.zeros(size, bool) for _ in range(3))
    tokens, index = np.zeros(size, np.int64), np.zeros(size, np.int64)
    elapsed_s, seen_s = np.zeros(len(seen.rows)), np.zeros(size)
    for row, (held, begins_s, ran) in enumerate(zip(seen.rows, seen.begins_s, seen.ran, strict=True)):
        shows = False
        for seat, (request, at) in enumerate(held):
            present[row, seat] = True
            running[row, seat] = request.admission_s <= at
            eligible[row, seat] = request.first_iteration < np.searchsorted(begins_s, at, side="right")
            tokens[row, seat] = sum(moment <= at for moment in request.token_s)
            index[row, seat] = request.index
            seen_s[row, seat] = 0.0 if at == now else now - seen.others_s
            shows |= bool(running[row, seat]) and at == now
        at = now if shows else seen.others_s
        if shows or ran:
            elapsed_s[row] = at - begins_s[begins_s <= at][-1]
    view = _view(requests, present, running, eligible, tokens, index, elapsed_s, now, terms)
    return dataclasses.replace(view, seen_s=seen_s, unseen=seen.unseen)


def _in_flight(requests: Requests, replicas: _Replicas, now: float, terms: Terms) -> InFlightView:
    """What can be counted of the requests on the instances that may get the next one."""
    picked = replicas.batch_sizes.argmin(axis=0).tolist()
    own = [replicas.instances[replica][model] for model, replica in enumerate(picked)]
    view = _rows(requests, own, now, terms)
    if replicas.slows_down:
        beside = _rows(
            requests, [instance for replica in picked for instance in replicas.instances[replica]], now, terms
        )
        models = len(picked)
        grid: dict[str, Any] = {
            field.name: value.reshape(models, models, *value.shape[1:])
            for field in dataclasses.fields(beside)
            if isinstance(value := getattr(beside, field.name), np.ndarray)
        }
        view = dataclasses.replace(view, beside=dataclasses.replace(beside, **grid))
    return view


def _rows(requests: Requests, instances: Sequence[_Instance], now: float, terms: Terms) -> InFlightView:
    """The same, one row per instance."""
    size = (len(instances), terms.capacity)
    present, running, eligible = (np.zeros(size, bool) for _ in range(3))
    tokens, index = np.zeros(size, np.int64), np.zeros(size, np.int64)
    elapsed_s = np.zeros(len(instances))
    for row, instance in enumerate(instances):
        held = [*instance.running, *instance.waiting]
        present[row, : len(held)] = True
        running[row, : len(instance.running)] = True
        eligible[row, : len(instance.running) + instance.passed_over] = True
        tokens[row, : len(instance.running)] = [request.generated for request in instance.running]
        index[row, : len(held)] = [request.index for request in held]
        elapsed_s[row] = now - instance.begun_s
    return _view(requests, present, running, eligible, tokens, index, elapsed_s, now, terms)


def _view(
    requests: Requests,
    present: np.ndarray,
    running: np.ndarray,
    eligible: np.ndarray,
    tokens: np.ndarray,
    index: np.ndarray,
    elapsed_s: np.ndarray,
    now: float,
    terms: Terms,
) -> InFlightView:
    """A view of (models, seats) arrays."""
    infers = terms.infers_admissions
    return InFlightView(
        present=present,
        running=None if infers else running,
        tokens=tokens * terms.streamed,
        task=requests.task[index],
        prompt_tokens=requests.prompt_tokens[index],
        age_s=now - requests.arrival_s[index],
        elapsed_s=elapsed_s,
        eligible=eligible if infers else None,
        order=index if infers else None,
        output_limit=None if requests.output_limit is None else requests.output_limit[index],
        deadline_factor=None if requests.deadline_factor is None else requests.deadline_factor[index],
        terms=terms,
    )


def _check_cover(requests: Requests, tables: Tables, cluster: Cluster) -> None:
    """Raises `InputError` if a table is too short for the cluster's largest batch or the longest prompt."""
    largest_batch = tables.decode.shape[1] - 1
    if largest_batch < cluster.max_batch:
        raise InputError(
            f"`decode` ends at batch size {largest_batch}, `max_batch` is {cluster.max_batch}; make the table longer."
        )
    longest = int(requests.prompt_tokens.max())
    longest_covered = tables.prefill.shape[1] - 1
    if longest_covered < longest:
        raise InputError(
            f"`prefill` ends at {longest_covered} tokens, the longest prompt has {longest}; make the table longer."
        )
