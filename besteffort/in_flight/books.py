"""The books of a gateway: what happens to its requests, told by events. NumPy only.

An iteration ends with the first token that one of its requests gets; the tokens of the others count to it whenever they
come, so it does no harm if they come one by one. Iterations begin when tokens come, and admit those who wait in order
of arrival, as in the simulator.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping

import numpy as np

from besteffort.errors import InputError
from besteffort.estimates import scalars
from besteffort.estimates.params import ServingParams
from besteffort.estimates.view import Terms
from besteffort.in_flight.entries import Entry, Instance
from besteffort.in_flight.fast_params import FastParams
from besteffort.in_flight.observed_times import ObservedTimes
from besteffort.in_flight.replicas import Replicas
from besteffort.in_flight.seats import NO_LIMIT, Seats
from besteffort.observation import next_rate
from besteffort.situation import Situation


class Books:
    """The requests of a gateway, and where they are.

    Times are seconds of one clock, `clock` unless an event says when it was (`at`). A time before that of an event
    already told counts as that time: clocks that step back do no harm. Not safe for threads; an event costs a few
    microseconds.
    """

    def __init__(self, situation: Situation, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing in flight.

        Args:
          situation: models and where they run, their tables, the tasks and their deadlines.
          clock: tells the time in seconds where events do not.
        """
        self.situation = situation
        fleet = situation.fleet
        self._clock = clock
        self._terms = Terms.of(situation)
        self._replicas = Replicas(fleet)
        self.batch_sizes = self._replicas.batch_sizes
        """(rows, pools) requests on each replica, laid out as `Layout` of `besteffort.pools` has it."""
        self._pools = len(fleet.names)
        self._starting: dict[int, float] = {}  # instances that have requests, and are up then
        self._tasks = {name: index for index, name in enumerate(situation.task_names)}
        self._origins = {name: index for index, name in enumerate(situation.origin_names)}
        self._tenants = {name: index for index, name in enumerate(situation.tenant_names)}
        weights = situation.tenant_weights
        # Of a request whose tenant is not stated the weight is 1; None where all count the same.
        self._tenant_weights = None if weights is None else {None: 1.0} | dict(enumerate(weights.tolist()))
        self._fast = self._know(ServingParams.of(situation))
        # Nobody sees which prompts are being read in chunks.
        budgets = fleet.chunk_tokens if self._terms.streamed else np.full(self._pools, np.inf)
        self._in_chunks = np.isfinite(budgets).tolist()
        self._requests: dict[Hashable, Entry] = {}
        self._now_s = self._last_arrival_s = self._changed_s = -math.inf
        self._events = 0  # that something was told or time passed; what was worked out before may not hold
        tau_s = situation.view.slowdown_tau_s
        self._observed = ObservedTimes(tau_s, self.batch_sizes) if tau_s else None
        # The rate at each of the last arrivals; routers may have been trained to see it late.
        self._rates: deque[float] = deque(maxlen=situation.view.rate_lag + 1)
        self._seen_rates: deque[float] = deque(maxlen=situation.view.rate_lag + 1)  # with those of others
        self.others: Callable[[float], float] | None = None
        """Of a time the rate of the requests that come to other gateways, which is added to the own one."""
        self._sent = 0
        seats = (self.batch_sizes.size, self._terms.capacity)
        self._seats = Seats.empty(*seats)
        self._instances = [
            Instance(chunks=self._terms.chunks, free=list(range(seats[1]))[::-1]) for _ in range(seats[0])
        ]
        # Terms that no request has asked for so far cost nothing.
        self._limits = self._factors = self._founds = False

    @property
    def observed_slowdown(self) -> np.ndarray | None:
        """(pools,) factor on the times of the tables that was observed; None where times are not compared."""
        return self._observed.slowdown if self._observed else None

    def arrived(
        self,
        request: Hashable,
        *,
        task: str,
        prompt_tokens: int,
        cached_tokens: int = 0,
        max_tokens: int | None = None,
        deadline_s: float | None = None,
        origin: str | None = None,
        tenant: str | None = None,
        at: float | None = None,
    ) -> None:
        """A request has come.

        Args:
          request: names it in later events.
          task: its task.
          prompt_tokens: length of its prompt.
          cached_tokens: how much of it, from its beginning, is in the server's prefix cache, if that is known.
          max_tokens: the client's limit on its output, if it states one.
          deadline_s: its deadline on the latency, in seconds, if it is not the task's: that of an answer of the task's
            mean length. Longer and shorter answers have proportionally more and less.
          origin: where it comes from, if the situation has origins.
          tenant: whose it is, if the situation has tenants. One that states none counts as the mean of them.
          at: when it came; now, by default.

        Raises:
          InputError: if the name is taken, the task, the origin or the tenant unknown, or a number out of range.
        """
        index = self._checked(request, task, prompt_tokens, max_tokens, deadline_s, "has arrived already")
        if not (_whole(cached_tokens) and 0 <= cached_tokens <= prompt_tokens):
            raise InputError(
                f"Request {request!r}: `cached_tokens` is {cached_tokens}; give at least 0 and at most its "
                f"`prompt_tokens`, {prompt_tokens}, a whole number."
            )
        place = _index_of(request, "origin", origin, self._origins)
        whose = _index_of(request, "tenant", tenant, self._tenants)
        factor = self._factor_of(index, deadline_s)
        now = self._advance(at)
        gap_s, tau_s = now - self._last_arrival_s, self.situation.view.rate_tau_s
        self._rates.append(next_rate(self._rates[-1], gap_s, tau_s, scalars) if self._rates else 0.0)
        self._seen_rates.append(self._rates[-1] + (self.others(now) if self.others is not None else 0.0))
        if self._observed:
            self._observed.arrival(gap_s, self._fast)
        self._last_arrival_s = now
        cached_tokens = min(cached_tokens, prompt_tokens - 1)
        self._book(request, Entry(index, prompt_tokens, max_tokens, factor, now, place, cached_tokens, whose))

    def sent(self, request: Hashable, pool: str | int, replica: int = 0, *, at: float | None = None) -> None:
        """A request goes to a pool, given by its name or index, and a replica of it.

        Raises:
          InputError: if it has not arrived or was sent already, or there is no such pool or replica.
        """
        known = self._known(request)
        if known.instance >= 0:
            raise InputError(f"Request {request!r} was sent already; send it once.")
        row, index = self._replicas.place_of(pool, replica, f"Request {request!r}: there")
        now = self._advance(at)
        number = row * self._pools + index
        instance = self._instances[number]
        if instance.boundary:
            self._settle(number)
        if not instance.free:
            self._widen()
        up_s = float(self._replicas.ready_s[row, index])
        idle = not (instance.running or instance.waiting) and bool(up_s <= now)
        if up_s > now:
            self._starting[number] = up_s
        known.instance, known.seat = number, instance.free.pop()
        known.prefill_s = self._fast.prefill_s(index, known.prompt_tokens, known.cached_tokens)
        known.sent_s = self._changed_s = now
        self._sent += 1
        self.batch_sizes[row, index] += 1
        known.found = int(self.batch_sizes[row, index])
        if not self._terms.streamed:
            self._seats.added_s[number] += known.prefill_s  # comes in between for those that are there
        weight = self._weight_of(known)
        known.delay_s = self._fast.delay_s(known.origin, index)
        known.stakes = self._fast.stakes(index, known.task, known.max_tokens, known.deadline_factor, weight)
        self._seats.take(known, known.stakes, order=self._sent, eligible=idle, tenant_weight=weight)
        instance.enter(request, known, self._leaving(known) if self._terms.chunks else 0.0)
        if idle:
            instance.begun_s = instance.ended_s = now
            if not self._in_chunks[index]:
                self._admit(instance, request)

    def sent_elsewhere(
        self,
        request: Hashable,
        pool: str | int,
        replica: int,
        *,
        task: str,
        prompt_tokens: int,
        arrived_s: float,
        max_tokens: int | None = None,
        deadline_s: float | None = None,
        at: float | None = None,
    ) -> None:
        """Another gateway has sent a request to a replica of this one's. It is no arrival here, see `others` for these.

        Tell its tokens and its end as of any other. It counts as the mean tenant's request.

        Args:
          request: names it in later events.
          pool: its pool.
          replica: its replica.
          task: its task.
          prompt_tokens: length of its prompt.
          arrived_s: when it came, in seconds of the same clock.
          max_tokens: the client's limit on its output.
          deadline_s: its deadline, if it is not the task's.
          at: when it was sent; now, by default.

        Raises:
          InputError: as from `arrived` and `sent`, or if `arrived_s` is no number of seconds.
        """
        index = self._checked(request, task, prompt_tokens, max_tokens, deadline_s, "is known already")
        if not math.isfinite(arrived_s):
            raise InputError(f"Request {request!r}: `arrived_s` is {arrived_s}; give a finite number of seconds.")
        factor = self._factor_of(index, deadline_s)
        self._book(request, Entry(index, prompt_tokens, max_tokens, factor, arrived_s))
        try:
            self.sent(request, pool, replica, at=at)
        except InputError:
            del self._requests[request]
            raise

    def first_token(self, request: Hashable, *, at: float | None = None) -> None:
        """The first token has come.

        Raises:
          InputError: if it came before, or the request is not in flight.
        """
        if self._sent_one(request).tokens:
            raise InputError(f"Request {request!r}: its first token has come already; tell further ones by `tokens`.")
        self.tokens(request, at=at)

    def tokens(self, request: Hashable, count: int = 1, *, at: float | None = None) -> None:
        """So many tokens have come; the first, too. Has no effect where `view.streamed` of the situation is off.

        Raises:
          InputError: if the request is not in flight, or the count is below 1.
        """
        known = self._sent_one(request)
        _at_least_one(request, "count", count)
        now = self._advance(at)
        if not self._terms.streamed:
            return
        instance = self._instances[known.instance]
        self._begin(known.instance, now)
        if self._observed:
            self._observe(self._observed, known, count, now)
        if not known.running:
            self._admit(instance, request)
        instance.decode(known, count, self._fast.leaving(known.task, known.tokens + count, known.max_tokens))
        self._seats.tokens[known.instance, known.seat] = known.tokens

    def done(
        self,
        request: Hashable,
        *,
        output_tokens: int | None = None,
        last_token: bool = True,
        at: float | None = None,
    ) -> None:
        """The last token has come.

        Args:
          request: its name.
          output_tokens: length of the answer. Needed only to compare times with the tables where answers are not
            streamed; an answer without it is not compared. Where they are, one that showed no token before its end is
            not compared, unless it has one token only.
          last_token: whether it comes with this; not where `tokens` has told it.
          at: when; now, by default.

        Raises:
          InputError: if the request is not in flight, or the length is below 1.
        """
        known = self._sent_one(request)
        if output_tokens is not None:
            _at_least_one(request, "output_tokens", output_tokens)
        now = self._advance(at)
        if last_token:
            self._begin(known.instance, now)
        if self._observed and not self._terms.streamed:
            if output_tokens is not None:
                added_s = float(self._seats.added_s[known.instance, known.seat])
                self._observed.answer(known, output_tokens, added_s, now, self._fast)
        elif self._observed and last_token:
            if known.tokens or output_tokens == 1:
                self._observe(self._observed, known, 1, now)
            else:
                self._observed.came_whole(self._instances[known.instance], known)
        self._leave(request, known)

    def failed(self, request: Hashable, *, at: float | None = None) -> None:
        """The request ended without an answer, or was never sent.

        Raises:
          InputError: if it has not arrived, or has ended already.
        """
        known = self._known(request)
        self._advance(at)
        self._leave(request, known)

    cancelled = failed

    def returned(self, request: Hashable, *, at: float | None = None) -> None:
        """The request left its instance without an answer, and may be sent again. It does not count as an arrival.

        Raises:
          InputError: if the request is not in flight.
        """
        known = self._sent_one(request)
        self._advance(at)
        self._leave(request, known)
        self._requests[request] = known.unsent()

    def use_only(self, available: np.ndarray) -> None:
        """Says where requests may be sent from now on; everywhere unless told otherwise.

        Decisions, and estimates with them, take the smallest batch among these. Requests elsewhere stay in the books.

        Args:
          available: (rows, pools) of bool, laid out as `Layout` of `besteffort.pools` has it. The same array again
            changes nothing, so give one that has changed as a new one.

        Raises:
          InputError: if the shape is another.
        """
        if self._replicas.use_only(available):
            self._events += 1

    def take_over(self, other: Books, where: Mapping[tuple[str, int], tuple[str, int]]) -> dict[Hashable, bool]:
        """Takes over the requests of other books and their rate, where a gateway changes its policy.

        Likewise which replicas are up, starting, draining or down, where the other books were told of any. Where pools
        and tables are the same, how observed times compare with these, too.

        Of its tokens, a request had all when the other books were told of the last event, so what is estimated of it
        is rough until more of them come.

        Args:
          other: books on the same clock. They stay as they are.
          where: of a pool and replica there, those here. Requests elsewhere have arrived here, and were not sent.

        Returns:
          Of the requests that were taken over, which are those of known tasks, whether they were sent.

        Raises:
          InputError: if something has arrived here already.
        """
        if self._requests or self._rates:
            raise InputError("These books have requests already; take over others with new ones.")
        tasks, origins, tenants = tuple(other._tasks), tuple(other._origins), tuple(other._tenants)
        taken: dict[Hashable, bool] = {}
        if other._replicas.alive is not None:
            alive = self._replicas.life()
            for there, here in where.items():
                old, new = other._replicas.place_of(*there), self._replicas.place_of(*here)
                alive[new], self._replicas.ready_s[new] = other._replicas.alive[old], other._replicas.ready_s[old]
        # In the order of sending, and then those that wait to be sent.
        for request, known in sorted(other._requests.items(), key=lambda item: (item[1].instance < 0, item[1].sent_s)):
            place = where.get(other._replicas.replica_at(known.instance)) if known.instance >= 0 else None
            if tasks[known.task] not in self._tasks:
                continue
            taken[request] = place is not None
            task, factor = self._tasks[tasks[known.task]], known.deadline_factor
            if factor != 1.0:
                # One of its own stays what it is, whatever those of the tasks are here.
                factor = self._factor_of(task, factor * other._fast.visible_deadline_s[known.task])
            self._book(
                request,
                Entry(
                    task,
                    known.prompt_tokens,
                    known.max_tokens,
                    factor,
                    known.arrival_s,
                    self._origins.get(origins[known.origin]) if known.origin is not None else None,
                    known.cached_tokens,
                    self._tenants.get(tenants[known.tenant]) if known.tenant is not None else None,
                ),
            )
            if place is not None:
                self.sent(request, *place, at=known.sent_s)
        for request, sent in taken.items():
            if sent and (tokens := other._requests[request].tokens):
                self.tokens(request, tokens, at=other._now_s)
        self._rates.extend(other._rates)
        self._seen_rates.extend(other._seen_rates)
        self._last_arrival_s, self._changed_s = other._last_arrival_s, other._changed_s
        if self._observed:
            # What the events above seem to tell of durations, they do not.
            self._observed.forget()
            if other._observed and self._compares_as(other):
                self._observed.take_over(other._observed)
        return taken

    def started(
        self, pool: str | int, replica: int = 0, *, up_in_s: float | None = None, at: float | None = None
    ) -> None:
        """A replica starts; one that still has requests, since it drains, takes new ones at once.

        Nothing changes for one that is up and has requests. One that is starting is up when the last call says.

        Args:
          pool: its pool, by name or index.
          replica: its number in the pool.
          up_in_s: seconds until it is up; the pool's `start_s` by default.
          at: when; now, by default.

        Raises:
          InputError: if there is no such pool or replica, or the time is no number of seconds.
        """
        row, index = self._replicas.place_of(pool, replica)
        later_s = float(self.situation.fleet.start_s[index]) if up_in_s is None else up_in_s
        if not 0 <= later_s < math.inf:
            raise InputError(f"`up_in_s` is {later_s:g}; give a number of seconds, at least 0.")
        now, alive = self._advance(at), self._replicas.life()
        starting = alive[row, index] and self._replicas.ready_s[row, index] > now
        if starting or not self.batch_sizes[row, index]:
            self._replicas.ready_s[row, index] = now + later_s
            number = row * self._pools + index
            if number in self._starting:
                self._starting[number] = now + later_s
                self._wake(now)
        alive[row, index] = True

    def drained(self, pool: str | int, replica: int = 0, *, at: float | None = None) -> None:
        """A replica takes no new requests from now on; those that it has go on.

        Raises:
          InputError: if there is no such pool or replica.
        """
        row, index = self._replicas.place_of(pool, replica)
        self._advance(at)
        self._replicas.life()[row, index] = False

    def failed_replica(self, pool: str | int, replica: int = 0, *, at: float | None = None) -> list[Hashable]:
        """A replica is down. Returns the requests that it had, which have ended without an answer.

        Raises:
          InputError: if there is no such pool or replica.
        """
        row, index = self._replicas.place_of(pool, replica)
        self._advance(at)
        self._replicas.life()[row, index] = False
        number = row * self._pools + index
        lost = [request for request, known in self._requests.items() if known.instance == number]
        for request in lost:
            self._leave(request, self._requests[request])
        self._starting.pop(number, None)
        return lost

    def arrival_rate(self, *, at: float | None = None) -> float:
        """The estimated rate that a request sees which arrives now, in requests per second."""
        now = self._advance(at)
        others = self.others(now) if self.others is not None else 0.0
        if not self._rates:
            return others
        tau_s = self.situation.view.rate_tau_s
        return others + next_rate(self._rates[-1], now - self._last_arrival_s, tau_s, scalars)

    def own_rate(self) -> tuple[float, float]:
        """The estimate at the last arrival here, and when that was; of these alone. Without one, 0 and minus infinity.

        The rates of several gateways add up, see `besteffort.gateway.peers`.
        """
        return (self._rates[-1] if self._rates else 0.0), self._last_arrival_s

    def _rate(self) -> float:
        return self._seen_rates[0] if len(self._seen_rates) == self._seen_rates.maxlen else 0.0

    def _wake(self, now: float) -> None:
        """Instances that are up meanwhile have begun with those who waited."""
        for number in [number for number, up_s in self._starting.items() if up_s <= now]:
            instance = self._instances[number]
            instance.begun_s = instance.ended_s = self._starting.pop(number)
            if instance.waiting:
                self._settle(number)

    def _know(self, params: ServingParams) -> FastParams:
        return FastParams(params, self._terms, self.situation.fleet.replicas)

    def _book(self, request: Hashable, entry: Entry) -> None:
        """A request is in the books from now on."""
        if entry.max_tokens is not None:
            self._limits = True
            entry.max_tokens = min(entry.max_tokens, NO_LIMIT)  # clients state any number
        self._factors |= entry.deadline_factor != 1.0
        self._founds |= entry.cached_tokens > 0
        prompt_tokens = entry.prompt_tokens
        if prompt_tokens >= self._fast.prompts_below:
            # Longer than all before; the next one may be yet longer.
            longest = prompt_tokens + prompt_tokens // 2
            self._fast = self._know(ServingParams.of(self.situation, longest))
        self._requests[request] = entry

    def _weight_of(self, known: Entry) -> float:
        """Factor on the rewards of a request by its tenant."""
        return 1.0 if self._tenant_weights is None else self._tenant_weights[known.tenant]

    def _leaving(self, known: Entry) -> float:
        return self._fast.leaving(known.task, known.tokens, known.max_tokens)

    def _compares_as(self, other: Books) -> bool:
        """Whether observed times are compared with the same tables here as in other books."""
        mine, its = self.situation, other.situation
        return (mine.view.slowdown_tau_s, mine.fleet.names, mine.profile, mine.hardware) == (
            *(its.view.slowdown_tau_s, its.fleet.names, its.profile, its.hardware),
        )

    def _observe(self, observed: ObservedTimes, known: Entry, count: int, now: float) -> None:
        """Compares with the tables what so many tokens of a request tell."""
        seen = known.running and not self._terms.infers_admissions
        observed.tokens(self._instances[known.instance], known, count, now, self._fast, seen=seen)

    def _begin(self, number: int, now: float) -> None:
        """A token came: an iteration has ended, and the next one begins."""
        instance = self._instances[number]
        if now > instance.begun_s:
            if instance.boundary:
                self._settle(number)
            instance.begun_s, instance.boundary = now, True

    def _settle(self, number: int) -> None:
        """Admits those who wait to the iteration that has begun, once all that ended with the last one is told."""
        instance = self._instances[number]
        instance.boundary = False
        self._seats.eligible[number] = self._seats.present[number]
        pool = number % self._pools
        if self._in_chunks[pool]:
            return
        most = self._fast.slots[pool]
        while instance.waiting and instance.running < most:
            self._admit(instance, next(iter(instance.waiting)))

    def _admit(self, instance: Instance, request: Hashable) -> None:
        known = instance.waiting[request]
        instance.admit(request, self._leaving(known))
        self._seats.running[known.instance, known.seat] = True

    def _leave(self, request: Hashable, known: Entry) -> None:
        del self._requests[request]
        if known.instance < 0:
            return
        self._instances[known.instance].leave(request, known)
        self._seats.leave(known)
        self.batch_sizes[divmod(known.instance, self._pools)] -= 1
        self._changed_s = self._now_s

    def _widen(self) -> None:
        """Twice as many seats: servers may hold more than the situation says."""
        seats = self._seats.present.shape[1]
        self._seats.widen()
        for instance in self._instances:
            instance.free += range(2 * seats - 1, seats - 1, -1)

    def _checked(
        self,
        request: Hashable,
        task: str,
        prompt_tokens: int,
        max_tokens: int | None,
        deadline_s: float | None,
        known: str,
    ) -> int:
        """The index of a new request's task; `known` are words for one that is not new.

        Raises:
          InputError: if the name is taken, the task unknown, the prompt empty, or a limit or deadline out of range.
        """
        if request in self._requests:
            raise InputError(f"Request {request!r} {known}; give every request a name of its own.")
        index = self._tasks.get(task, -1)
        if index < 0:
            raise InputError(f"Request {request!r}: unknown task `{task}`; choose from {', '.join(self._tasks)}.")
        _at_least_one(request, "prompt_tokens", prompt_tokens)
        if max_tokens is not None:
            _at_least_one(request, "max_tokens", max_tokens)
        if deadline_s is not None and not (math.isfinite(deadline_s) and deadline_s > 0):
            raise InputError(f"Request {request!r}: `deadline_s` is {deadline_s}; give a positive number.")
        return index

    def _factor_of(self, task: int, deadline_s: float | None) -> float:
        """A request's deadline over that of its task, at the task's mean length."""
        return 1.0 if deadline_s is None else deadline_s / self._fast.visible_deadline_s[task]

    def _known(self, request: Hashable) -> Entry:
        known = self._requests.get(request)
        if known is None:
            raise InputError(f"Request {request!r} is not known: it has not arrived, or has ended already.")
        return known

    def _sent_one(self, request: Hashable) -> Entry:
        known = self._known(request)
        if known.instance < 0:
            raise InputError(f"Request {request!r} was not sent; tell `sent` before its tokens.")
        return known

    def _advance(self, at: float | None) -> float:
        """The time of an event, never before that of one already told."""
        now = self._clock() if at is None else at
        if not math.isfinite(now):
            raise InputError(f"`at` is {now}; give a finite number of seconds.")
        self._now_s = max(self._now_s, now)
        if self._starting:
            self._wake(self._now_s)
        self._events += 1
        return self._now_s


def _index_of(request: Hashable, kind: str, name: str | None, known: Mapping[str, int]) -> int | None:
    """Index of a name; None for none.

    Raises:
      InputError: if it is unknown.
    """
    if name is not None and name not in known:
        raise InputError(f"Request {request!r}: unknown {kind} `{name}`; choose from {', '.join(known) or 'none'}.")
    return None if name is None else known[name]


def _whole(value: object) -> bool:
    """Whether it can be a place in a table: 10.0 and True cannot."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _at_least_one(request: Hashable, name: str, value: int) -> None:
    if not (_whole(value) and value >= 1):
        raise InputError(f"Request {request!r}: `{name}` is {value}; give at least 1, a whole number.")
