"""Live book-keeping: what a gateway knows of its requests, from events alone. NumPy only.

    flight = InFlight(policy)
    flight.arrived("a", task="piqa", prompt_tokens=120)
    model, replica = flight.decide("a")
    flight.sent("a", model, replica)
    flight.tokens("a")          # the first, and every further one; not where answers are not streamed
    flight.done("a")            # with the last token; or `failed`, or `cancelled`

Where `view.slowdown_tau_s` of the situation is set, it also compares observed times with the tables, see
`besteffort.estimates.correction`. An iteration ends with the first token that one of its requests gets; the tokens of
the others count to it whenever they come, so it does no harm if they come one by one.

The simulator and this see the same, so estimates are the same: iterations begin when tokens come, and admit those who
wait in order of arrival. Sums over the requests of an instance are kept up to date event by event, so that a decision
does not pay for them.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np

from besteffort.errors import InputError
from besteffort.estimates import scalars
from besteffort.estimates.correction import (
    Answers,
    Comparison,
    compared,
    fixed_s,
    observed_slowdown,
    steps_s,
)
from besteffort.estimates.estimates import (
    DEFAULT_SOFTNESS,
    Costs,
    Course,
    Estimates,
    Line,
    Newcomer,
    Prospect,
    Softness,
    Stakes,
    burden,
    capacity,
    completion_s,
    count,
    course_of,
    expected_length,
    follow,
    harm,
    loss_of_each,
    own_reading,
    own_value,
    own_value_of_one,
    prospect,
    settled,
    slots,
    steepness_of,
    work_s,
)
from besteffort.estimates.params import ServingParams
from besteffort.estimates.rule import Rule, rule_softness, rule_value, time_price
from besteffort.estimates.view import InFlightView, Terms
from besteffort.observation import ORIGIN, TENANT_WEIGHT, VALUE, Observation, next_rate
from besteffort.policy import Policy
from besteffort.pools import least_loaded, shown_among, smallest, taking
from besteffort.situation import Situation, deadline_s

_MOST_PROSPECTS = 1024
_FEW = 12  # requests on the instances looked at, up to which plain numbers are faster than arrays
_NO_LIMIT = np.iinfo(np.int64).max
_SEATED = (
    *("_present", "_running", "_eligible", "_task", "_prompt", "_tokens", "_order", "_law", "_limit", "_arrival_s"),
    *("_factor", "_added_s", "_delay_s", "_tenant_weight", "_cached", "_base_s", "_per_token_s", "_quality"),
    "_penalty",
)
"""Arrays of `InFlight` of shape (instances, seats); others may have the same shape by chance."""


class Decision(NamedTuple):
    """Where a request shall go: a pool's name, and its replica with the smallest batch, the first on a tie.

    Where the situation has a cluster, pools are named by their models.
    """

    model: str
    replica: int


@dataclasses.dataclass(slots=True)
class _Request:
    """A request that has arrived and is not done; `instance` is -1 until it is sent."""

    task: int
    prompt_tokens: int
    max_tokens: int | None
    deadline_factor: float
    arrival_s: float
    origin: int | None = None
    cached_tokens: int = 0
    tenant: int | None = None
    instance: int = -1
    seat: int = -1
    tokens: int = 0
    prefill_s: float = 0.0
    leaving: float = 0.0  # expected departures per iteration that it stands for, while it runs
    running: bool = False
    iteration: int = 0  # iterations that its instance had ended when its last token came, or it was admitted
    sent_s: float = 0.0
    found: int = 0  # requests on its instance when it was sent, itself included
    stakes: Stakes | None = None  # once it is sent
    delay_s: float = 0.0


@dataclasses.dataclass(slots=True)
class _Instance:
    """Sums over the requests of an instance, as in `Line`, and those that wait, in order of arrival."""

    decoding: int = 0
    running: int = 0
    joining_s: float = 0.0
    waiting_s: float = 0.0
    waiting_tokens: int = 0
    waiting_leaving: float = 0.0
    leaving: float = 0.0
    held: int = 0
    begun_s: float = 0.0
    boundary: bool = False  # an iteration has begun whose admissions are not settled
    iterations: int = 0  # that have ended
    ended_s: float = 0.0  # when the last one did, or the instance got to work; nan where no one saw it
    compared: bool = True  # whether what came with the last one is compared with the tables
    decoded: int = 0  # requests that it gave a token beyond their first
    stretch: float = 1.0  # what it took as many times as long for other models on the replica
    waiting: dict[Hashable, _Request] = dataclasses.field(default_factory=dict)
    present: dict[Hashable, _Request] = dataclasses.field(default_factory=dict)  # that wait or run
    free: list[int] = dataclasses.field(default_factory=list)


class _Where(NamedTuple):
    """Where requests may go, and where they would.

    Attributes:
      takes: (rows, pools) between which replicas the load balancer chooses; None where that is all of a full array.
      pools: (pools,) which pools have a replica that takes requests; None where all have.
      picked: (pools,) the instances that the load balancer would pick, or else stand for their pools.
    """

    takes: Any
    pools: np.ndarray | None
    picked: np.ndarray


class InFlight:
    """The requests of a gateway, and what follows from them for the next one.

    Times are seconds of one clock, `clock` unless an event says when it was (`at`). A time before that of an event
    already told counts as that time: clocks that step back do no harm. Not safe for threads; an event costs a few
    microseconds.
    """

    def __init__(
        self,
        policy: Policy | Situation,
        *,
        clock: Callable[[], float] = time.monotonic,
        softness: Softness = DEFAULT_SOFTNESS,
    ) -> None:
        """Nothing in flight.

        Args:
          policy: decides, and carries what estimates need: models and where they run, their tables and qualities, the
            tasks and their deadlines. A situation does for estimates without decisions.
          clock: tells the time in seconds where events do not.
          softness: how uncertain predictions are; a policy's rule has its own.
        """
        self.policy = policy if isinstance(policy, Policy) else None
        self.situation = situation = policy.situation if isinstance(policy, Policy) else policy
        fleet = situation.fleet
        self._clock = clock
        self._softness = softness
        self._rule = None if self.policy is None or self.policy.rule is None else self.policy.rule.plain()
        self._features = frozenset(feature.name for feature in self.policy.features) if self.policy else frozenset()
        self._estimated = [name for name in Estimates._fields if name in self._features]
        self._needs_harm = not self._features.isdisjoint({"harm", VALUE})
        self._terms = Terms.of(situation)
        self._pools = {name: index for index, name in enumerate(fleet.names)}
        self._names = tuple(self._pools)
        self._row = fleet.layout.rows
        self._placed = fleet.layout.placed
        self._full = bool(self._placed.all())
        up_first = fleet.life((0, 0, 0)).up_first
        # Which replicas are up, or are to be, and when; None as long as nothing happens to any of them.
        self._alive = up_first if fleet.alive else None
        # Where requests may be sent, see `use_only`; None where everywhere.
        self._available: np.ndarray | None = None
        self._given: np.ndarray | None = None  # as `use_only` was told last
        self._ready_s = np.full(self._placed.shape, -math.inf)
        self._starting: dict[int, float] = {}  # instances that have requests, and are up then
        self._replicas = fleet.replicas
        self._origins = {name: index for index, name in enumerate(situation.origin_names)}
        self._tenants = {name: index for index, name in enumerate(situation.tenant_names)}
        weights = situation.tenant_weights
        # Of a request whose tenant is not stated the weight is 1; None where all count the same.
        self._tenant_weights = None if weights is None else {None: 1.0} | dict(enumerate(weights.tolist()))
        self._tasks = {name: index for index, name in enumerate(situation.task_names)}
        self._number = np.arange(len(self._pools))
        self._know(ServingParams.of(situation, rule=self._rule))
        self._slows_down = bool((self._params.slowdown != 1).any())
        # Where admissions are inferred, or models slow each other down, sums do not follow from single events.
        self._incremental = not (self._terms.infers_admissions or self._slows_down)
        # Nobody sees which prompts are being read in chunks.
        budgets = fleet.chunk_tokens if self._terms.streamed else np.full(len(self._pools), np.inf)
        self._in_chunks = np.isfinite(budgets).tolist()
        self._requests: dict[Hashable, _Request] = {}
        self._now_s = self._last_arrival_s = self._changed_s = -math.inf
        self._tau_s = situation.view.slowdown_tau_s
        self._comparison = Comparison(*np.zeros((2, len(self._pools))))
        self._slowdown = np.ones(len(self._pools)) if self._tau_s else None
        self._observed_s, self._assumed_s = np.zeros((2, len(self._pools)))  # since the last arrival
        # The rate at each of the last arrivals; routers may have been trained to see it late.
        self._rates: deque[float] = deque(maxlen=situation.view.rate_lag + 1)
        self._sent = 0
        instances = self._placed.size
        seats = (instances, self._terms.capacity)
        self._instances = [_Instance(free=list(range(seats[1]))[::-1]) for _ in range(instances)]
        self.batch_sizes = np.zeros(self._placed.shape, np.int64)
        self._present, self._running, self._eligible = (np.zeros(seats, bool) for _ in range(3))
        self._task, self._prompt, self._tokens, self._order = (np.zeros(seats, np.int64) for _ in range(4))
        self._law = np.zeros(seats, np.int64)
        self._limit = np.full(seats, _NO_LIMIT)
        self._arrival_s, self._factor, self._added_s = np.zeros(seats), np.ones(seats), np.zeros(seats)
        self._delay_s = np.zeros(seats)
        self._tenant_weight = np.ones(seats)
        self._cached = np.zeros(seats, np.int64)
        self._answers = np.zeros((instances, len(Answers._fields)))  # since the last arrival, not streamed
        self._base_s, self._per_token_s, self._quality, self._penalty = (np.zeros(seats) for _ in range(4))
        # Terms that no request has asked for so far cost nothing.
        self._limits = self._factors = self._founds = False
        self._latest: tuple[Hashable, float, list[Estimates]] | None = None  # until something happens
        self._known_where: _Where | None = None  # likewise
        self.others: Callable[[float], float] | None = None
        """Of a time the rate of the requests that come to other gateways, which is added to the own one."""
        self._seen_rates: deque[float] = deque(maxlen=situation.view.rate_lag + 1)  # with those of others

    @property
    def observed_slowdown(self) -> np.ndarray | None:
        """(pools,) factor on the times of the tables that was observed; None where times are not compared."""
        return self._slowdown

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
        if self._tau_s:
            self._compare(gap_s)
        self._last_arrival_s = now
        self._limits |= max_tokens is not None
        self._factors |= deadline_s is not None
        self._founds |= cached_tokens > 0
        self._know_prompt(prompt_tokens)
        self._requests[request] = _Request(
            index, prompt_tokens, max_tokens, factor, now, place, min(cached_tokens, prompt_tokens - 1), whose
        )

    def sent(self, request: Hashable, pool: str | int, replica: int = 0, *, at: float | None = None) -> None:
        """A request goes to a pool, given by its name or index, and a replica of it.

        Raises:
          InputError: if it has not arrived or was sent already, or there is no such pool or replica.
        """
        known = self._known(request)
        if known.instance >= 0:
            raise InputError(f"Request {request!r} was sent already; send it once.")
        row, index = self._place_of(pool, replica, f"Request {request!r}: there")
        now = self._advance(at)
        number = row * len(self._pools) + index
        instance = self._instances[number]
        if instance.boundary:
            self._settle(number)
        if not instance.free:
            self._widen()
        seat = instance.free.pop()
        up_s = float(self._ready_s[row, index])
        idle = not (instance.running or instance.waiting) and up_s <= now
        if up_s > now:
            self._starting[number] = up_s
        known.instance, known.seat = number, seat
        prefill = self._params.prefill[index]
        known.prefill_s = float(prefill[known.prompt_tokens] - prefill[known.cached_tokens])
        known.sent_s = now
        self._sent += 1
        self.batch_sizes[row, index] += 1
        self._changed_s = now
        known.found = int(self.batch_sizes[row, index])
        if not self._terms.streamed:
            self._added_s[number] += known.prefill_s  # comes in between for those that are there
            self._added_s[number, seat] = 0.0
        here, task = (number, seat), known.task
        self._present[here], self._running[here], self._eligible[here] = True, False, idle
        self._task[here], self._prompt[here], self._tokens[here] = task, known.prompt_tokens, 0
        self._cached[here] = known.cached_tokens
        self._order[here], self._arrival_s[here], self._factor[here] = (
            self._sent,
            known.arrival_s,
            known.deadline_factor,
        )
        known.delay_s = self._delay_of(known.origin, index)
        known.stakes = stakes = self._stakes_of(known, index)
        self._delay_s[here] = known.delay_s
        self._tenant_weight[here] = self._weight_of(known)
        self._limit[here] = _NO_LIMIT if known.max_tokens is None else known.max_tokens
        self._law[here] = stakes.law
        self._base_s[here], self._per_token_s[here] = stakes.deadline_base_s, stakes.deadline_per_token_s
        self._quality[here], self._penalty[here] = stakes.quality, stakes.penalty
        instance.present[request] = known
        instance.waiting_s += known.prefill_s
        instance.waiting[request] = known
        if self._terms.chunks:
            known.leaving = self._leaving(known)
            instance.waiting_tokens += known.prompt_tokens - known.cached_tokens
            instance.waiting_leaving += known.leaving
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
        self._limits |= max_tokens is not None
        self._factors |= deadline_s is not None
        self._know_prompt(prompt_tokens)
        self._requests[request] = _Request(index, prompt_tokens, max_tokens, factor, arrived_s)
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
        if self._tau_s:
            self._observe(known, count, now)
        if not known.running:
            self._admit(instance, request)
        if not known.tokens:
            instance.decoding += 1
            instance.joining_s = instance.joining_s - known.prefill_s if instance.decoding < instance.running else 0.0
            instance.held += known.prompt_tokens
        known.tokens += count
        instance.held += count
        self._tokens[known.instance, known.seat] = known.tokens
        leaving = self._leaving(known)
        instance.leaving += leaving - known.leaving
        known.leaving = leaving

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
        if self._tau_s and self._terms.streamed:
            if last_token and (known.tokens or output_tokens == 1):
                self._observe(known, 1, now)
            elif last_token:
                self._pass_over(known)
        elif self._tau_s and output_tokens is not None:
            self._hear_of(known, output_tokens, now)
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
        self._requests[request] = _Request(
            known.task,
            known.prompt_tokens,
            known.max_tokens,
            known.deadline_factor,
            known.arrival_s,
            known.origin,
            known.cached_tokens,
            known.tenant,
        )

    def use_only(self, available: np.ndarray) -> None:
        """Says where requests may be sent from now on; everywhere unless told otherwise.

        Decisions, and estimates with them, take the smallest batch among these. Requests elsewhere stay in the books.

        Args:
          available: (rows, pools) of bool, laid out as `Layout` of `besteffort.pools` has it. The same array again
            changes nothing, so give one that has changed as a new one.

        Raises:
          InputError: if the shape is another.
        """
        if available is self._given:
            return
        if available.shape != self.batch_sizes.shape:
            raise InputError(f"`available` has the shape {available.shape}; give {self.batch_sizes.shape}.")
        self._given = available
        self._available = None if (available | ~self._placed).all() else available
        self._latest = self._known_where = None

    def take_over(self, other: InFlight, where: Mapping[tuple[str, int], tuple[str, int]]) -> dict[Hashable, bool]:
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
        pools, tasks = tuple(other._pools), tuple(other._tasks)
        origins, tenants = tuple(other._origins), tuple(other._tenants)
        taken: dict[Hashable, bool] = {}
        if other._alive is not None:
            alive = self._life()
            for there, here in where.items():
                old, new = other._place_of(*there), self._place_of(*here)
                alive[new], self._ready_s[new] = other._alive[old], other._ready_s[old]
        # In the order of sending, and then those that wait to be sent.
        for request, known in sorted(other._requests.items(), key=lambda item: (item[1].instance < 0, item[1].sent_s)):
            row, pool = divmod(known.instance, len(pools))
            place = where.get((pools[pool], other._row[pool].index(row))) if known.instance >= 0 else None
            if tasks[known.task] not in self._tasks:
                continue
            taken[request] = place is not None
            task, factor = self._tasks[tasks[known.task]], known.deadline_factor
            if factor != 1.0:
                # One of its own stays what it is, whatever those of the tasks are here.
                factor = self._factor_of(task, factor * other._visible_deadline_s[known.task])
            self._know_prompt(known.prompt_tokens)
            self._limits |= known.max_tokens is not None
            self._factors |= factor != 1.0
            self._founds |= known.cached_tokens > 0
            self._requests[request] = _Request(
                task,
                known.prompt_tokens,
                known.max_tokens,
                factor,
                known.arrival_s,
                self._origins.get(origins[known.origin]) if known.origin is not None else None,
                known.cached_tokens,
                self._tenants.get(tenants[known.tenant]) if known.tenant is not None else None,
            )
            if place is not None:
                self.sent(request, *place, at=known.sent_s)
        for request, sent in taken.items():
            if sent and (tokens := other._requests[request].tokens):
                self.tokens(request, tokens, at=other._now_s)
        self._rates.extend(other._rates)
        self._seen_rates.extend(other._seen_rates)
        self._last_arrival_s = other._last_arrival_s
        mine, its = self.situation, other.situation
        if self._tau_s and (self._tau_s, self._pools, mine.profile, mine.hardware) == (
            *(other._tau_s, other._pools, its.profile, its.hardware),
        ):
            self._comparison, self._slowdown = other._comparison, other._slowdown
        # What the events above seem to tell of durations, they do not.
        self._observed_s, self._assumed_s = np.zeros((2, len(self._pools)))
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
        row, index = self._place_of(pool, replica)
        later_s = float(self.situation.fleet.start_s[index]) if up_in_s is None else up_in_s
        if not 0 <= later_s < math.inf:
            raise InputError(f"`up_in_s` is {later_s:g}; give a number of seconds, at least 0.")
        now, alive = self._advance(at), self._life()
        starting = alive[row, index] and self._ready_s[row, index] > now
        if starting or not self.batch_sizes[row, index]:
            self._ready_s[row, index] = now + later_s
            number = row * len(self._pools) + index
            if number in self._starting:
                self._starting[number] = now + later_s
                self._wake(now)
        alive[row, index] = True

    def drained(self, pool: str | int, replica: int = 0, *, at: float | None = None) -> None:
        """A replica takes no new requests from now on; those that it has go on.

        Raises:
          InputError: if there is no such pool or replica.
        """
        row, index = self._place_of(pool, replica)
        self._advance(at)
        self._life()[row, index] = False

    def failed_replica(self, pool: str | int, replica: int = 0, *, at: float | None = None) -> list[Hashable]:
        """A replica is down. Returns the requests that it had, which have ended without an answer.

        Raises:
          InputError: if there is no such pool or replica.
        """
        row, index = self._place_of(pool, replica)
        self._advance(at)
        self._life()[row, index] = False
        number = row * len(self._pools) + index
        lost = [request for request, known in self._requests.items() if known.instance == number]
        for request in lost:
            self._leave(request, self._requests[request])
        self._starting.pop(number, None)
        return lost

    def decide(self, request: Hashable, *, at: float | None = None) -> Decision:
        """Where a request that has arrived shall go. Nothing is booked before it is `sent`.

        Raises:
          InputError: if it has not arrived, there is no policy, or nothing is available.
        """
        worth = self.values(request, at=at)
        if (takes := self._where.pools) is not None:
            if not takes.any():
                raise InputError(f"Request {request!r}: no replica is available; decide when one is.")
            worth = np.where(takes, worth, -math.inf)
        pool = int(worth.argmax())
        row = int(self._where.picked[pool]) // len(self._pools)
        return Decision(self._names[pool], self._row[pool].index(row))

    def values(self, request: Hashable, *, at: float | None = None) -> np.ndarray:
        """(pools,) what the policy thinks each pool is worth for a request that has arrived.

        Raises:
          InputError: if it has not arrived, or there is no policy.
        """
        policy = self.policy
        if policy is None:
            raise InputError("There is no policy to decide; make `InFlight` of a policy instead of a situation.")
        known = self._known(request)
        now = self._advance(at)
        names = self._features
        given: dict[str, Any] = {}
        if self._estimated:
            found = self._appraise(request, now, with_harm=self._needs_harm)
            given = {name: [getattr(one, name) for one in found] for name in self._estimated}
        if "deadline_s" in names:
            given["deadline_s"] = self._visible_deadline_s[known.task] * known.deadline_factor
        if "since_change_s" in names:
            given["since_change_s"] = now - self._changed_s if math.isfinite(self._changed_s) else 0.0
        if "smallest_batch" in names:
            size, takes = smallest(self.batch_sizes, self._where.takes), self._where.pools
            given["smallest_batch"] = size if takes is None else np.where(takes, size, 0)
        if "prompt_tokens" in names:
            given["prompt_tokens"] = known.prompt_tokens
        if TENANT_WEIGHT in names:
            given[TENANT_WEIGHT] = self._weight_of(known)
        if ORIGIN in names:
            given[ORIGIN] = None if known.origin is None else self.situation.origin_names[known.origin]
        return policy.values(
            task=self.situation.tasks[known.task].name,
            batch_sizes=self.batch_sizes.sum(axis=0).tolist(),
            arrival_rate=self._rate(),
            **given,
        )

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

    def observation(self, request: Hashable, *, at: float | None = None) -> Observation:
        """What a router sees of a request that has arrived.

        Raises:
          InputError: if it has not arrived.
        """
        known = self._known(request)
        now = self._advance(at)
        ready_s = self._until_up(self._where.picked)
        if ready_s is None and self._where.pools is not None:
            ready_s = np.zeros(len(self._pools))  # so that routers look at which pools take requests
        return Observation(
            task=known.task,
            batch_sizes=self.batch_sizes.sum(0),
            arrival_rate=self._rate(),
            instance_batch_sizes=self.batch_sizes.copy(),
            deadline_s=self._visible_deadline_s[known.task] * known.deadline_factor,
            since_change_s=now - self._changed_s if math.isfinite(self._changed_s) else 0.0,
            takes=self._where.takes,
            origin=known.origin,
            tenant_weight=self._weight_told(known),
            ready_s=ready_s,
            prompt_tokens=known.prompt_tokens,
            cached_tokens=known.cached_tokens if self._founds else None,
            output_limit=known.max_tokens,
            deadline_factor=known.deadline_factor if self._factors else None,
            in_flight=self._view(self._where.picked, now),
        )

    def estimates(self, request: Hashable, *, at: float | None = None, with_harm: bool = True) -> Estimates:
        """What is to be expected of each model for a request that has arrived; arrays of shape (pools,).

        With a policy that has a rule they have its softness, and with harm they include the value.

        Args:
          request: its name.
          at: when; now, by default.
          with_harm: whether to work out the harm, which takes longest; otherwise it is 0.

        Raises:
          InputError: if it has not arrived.
        """
        columns = zip(*self._appraise(request, at, with_harm=with_harm), strict=True)
        return Estimates(*(None if column[0] is None else np.array(column) for column in columns))

    def completion_s(self, request: Hashable, *, at: float | None = None) -> np.ndarray:
        """(pools,) seconds that an answer of each pool is expected to take; costs nothing after a decision on them.

        Raises:
          InputError: if it has not arrived.
        """
        known = self._latest
        now = self._advance(at)
        if known is not None and known[0] == request and known[1] == now:
            found = known[2]
        else:
            found = self._appraise(request, now, with_harm=False)
        return np.array([one.completion_s for one in found])

    def _appraise(self, request: Hashable, at: float | None, *, with_harm: bool) -> list[Estimates]:
        """What is to be expected of a request that has arrived, pool by pool in plain numbers."""
        known = self._known(request)
        now = self._advance(at)
        rule, rate = self._rule, self._rate()
        how = self._softness
        if rule is not None:
            how = rule_softness(rule, rate, self._params, observed_slowdown=self._slowdown)
        factor = known.deadline_factor if self._factors else None
        cached = known.cached_tokens if self._founds else None
        newcomer = Newcomer(
            known.task,
            known.prompt_tokens,
            rate,
            known.max_tokens,
            factor,
            known.origin,
            cached,
            self._weight_told(known),
        )
        look = self._one_by_one if self._incremental else self._all_at_once
        found = look(newcomer, self._where.picked, now, how, with_harm=with_harm)
        self._latest = (request, now, found)
        return found if rule is None or not with_harm else self._valued(rule, found, known, rate)

    def _all_at_once(
        self, newcomer: Newcomer, picked: np.ndarray, now: float, how: Softness, *, with_harm: bool
    ) -> list[Estimates]:
        """Estimates worked out as arrays, where what an instance does follows from several of its requests."""
        params, slowdown = self._params, self._slowdown
        view = settled(self._view(picked, now), params)
        line = count(view, params)
        course = follow(newcomer, line, view, params)
        lost = np.zeros(len(picked))
        if with_harm:
            lost = harm(newcomer, self._stakes(picked), line, course, view, params, how)
        columns = (
            own_value(newcomer, prospect(newcomer, params, how), line, course, self._terms, params),
            lost,
            work_s(newcomer, course, slowdown, params),
            newcomer.arrival_rate / capacity(slowdown, params),
            course.first_token_s,
            completion_s(newcomer, course, params),
        )
        rows = zip(*(np.broadcast_to(column, len(picked)).tolist() for column in columns), strict=True)
        stretches = self._no_stretch if slowdown is None else slowdown.tolist()
        return [Estimates(*row)._replace(observed_slowdown=each) for row, each in zip(rows, stretches, strict=True)]

    def _one_by_one(
        self, newcomer: Newcomer, picked: np.ndarray, now: float, how: Softness, *, with_harm: bool
    ) -> list[Estimates]:
        """Estimates in plain numbers: for a few pools, dozens of operations on arrays take several times as long."""
        lines, courses = self._follow(newcomer, picked, now)
        harms = self._harm(newcomer, lines, courses, picked, now, how) if with_harm else self._nothing
        length, ahead = self._ahead(newcomer, how)
        takes = None if self._alive is None or self._where.pools is None else self._where.pools.tolist()
        slowdown, task, rate, found = self._slowdown, newcomer.task, newcomer.arrival_rate, []
        weight = newcomer.tenant_weight
        together = self._capacity if slowdown is None else capacity(slowdown, self._params).tolist()
        for pool, (line, course, params, lost) in enumerate(zip(lines, courses, self._plain, harms, strict=True)):
            first_s, step_s = course.first_token_s, course.step_s
            delay_s = self._delay_of(newcomer.origin, pool)
            served = line.running + line.waiting < params.places and (takes is None or takes[pool])
            work = course.own_prefill_s + params.decode_work_s[task]
            found.append(
                Estimates(
                    own_value_of_one(
                        task, ahead, served, delay_s + first_s - step_s, step_s, params, self._terms, weight
                    ),
                    lost,
                    work if line.stretch is None else work * line.stretch,
                    rate / together[pool],
                    first_s,
                    delay_s + first_s + (length - 1.0) * step_s,
                    None,
                    line.stretch,
                )
            )
        return found

    def _ahead(self, newcomer: Newcomer, how: Softness) -> tuple[float, Prospect]:
        """Mean length of the answer, and its `Prospect` as lists."""
        key = (newcomer.task, newcomer.output_limit, newcomer.deadline_factor)
        known = self._prospects.get(key)
        if known is None:
            if len(self._prospects) >= _MOST_PROSPECTS:
                self._prospects.clear()
            whole = prospect(newcomer, self._params, Softness(0.0, 0.0, 0.0))
            length = float(expected_length(newcomer, self._params))
            known = self._prospects[key] = (length, whole.length.tolist(), whole.deadline_s.tolist())
        length, lengths, deadlines_s = known
        kept, width = 1.0 - how.reserve, how.width
        due_s = [kept * deadline_s for deadline_s in deadlines_s]
        return length, Prospect(lengths, due_s, [steepness_of(width, one_s) for one_s in due_s])

    def _valued(self, rule: Rule, found: list[Estimates], known: _Request, rate: float) -> list[Estimates]:
        """Estimates with the value of each pool by a rule."""
        prices = time_price(
            rule.rates, rule.prices, rate * rule.head_room, self._params, observed_slowdown=self._slowdown
        ).tolist()
        visible_s = self._visible_deadline_s[known.task] * known.deadline_factor
        sizes = self.batch_sizes.sum(axis=0).tolist()
        weight = self._weight_told(known)
        valued = []
        for one, params, price, size in zip(found, self._plain, prices, sizes, strict=True):
            value = rule_value(rule, one, known.task, size / params.slots, visible_s, price, params, scalars, weight)
            valued.append(one._replace(value=value))
        return valued

    def _harm(
        self,
        newcomer: Newcomer,
        lines: list[Line],
        courses: list[Course],
        picked: np.ndarray,
        now: float,
        how: Softness,
    ) -> list[float]:
        """Expected loss of those in flight, pool by pool: few of them in plain numbers, more as arrays."""
        present = [self._instances[number].present for number in picked.tolist()]
        most = sum(map(len, present))
        if not most:
            return self._nothing
        if most > _FEW:
            line = Line(*(None if column[0] is None else np.array(column) for column in zip(*lines, strict=True)))
            course = Course(*map(np.array, zip(*courses, strict=True)))
            view = self._brief_view(picked, now)
            lost = harm(newcomer, self._stakes(picked), line, course, view, self._params, how).tolist()
            return list(lost)
        length, losses = self._ahead(newcomer, how)[0], []
        for pool, requests in enumerate(present):
            # The delay is each one's own where there are origins, else that of all.
            delay_s = 0.0 if self._origins else self._delay_of(None, pool)
            own = burden(lines[pool], courses[pool], delay_s, scalars)
            params, lost = self._plain[pool], 0.0
            for one in requests.values():
                age_s = now - one.arrival_s + (one.delay_s if self._origins else 0.0)
                seen = (one.stakes, one.tokens, one.running, age_s)
                lost += loss_of_each(*seen, own, length, params, how, self._terms, scalars)
            losses.append(lost)
        return losses

    def _follow(self, newcomer: Newcomer, picked: np.ndarray, now: float) -> tuple[list[Line], list[Course]]:
        """How the new request would fare, pool by pool in plain numbers, and the counts that this follows from."""
        lines, courses = [], []
        own_prefill, own_tokens = own_reading(newcomer, self._params)
        until_up_s = self._until_up(picked)
        ready_s = self._nothing if until_up_s is None else until_up_s.tolist()
        stretches = self._no_stretch if self._slowdown is None else self._slowdown.tolist()
        for own_prefill_s, costs, number, stretch, up_s in zip(
            own_prefill.tolist(), self._costs, picked.tolist(), stretches, ready_s, strict=True
        ):
            instance = self._instances[number]
            if instance.boundary:
                self._settle(number)
            line = Line(
                instance.decoding,
                instance.running,
                len(instance.waiting),
                instance.joining_s,
                instance.waiting_s,
                instance.leaving,
                instance.held,
                None,
                now - instance.begun_s,
                stretch,
                instance.waiting_tokens,
                instance.waiting_leaving,
                up_s,
            )
            lines.append(line)
            courses.append(course_of(line, own_prefill_s, own_tokens, 0.0, costs, self._terms, scalars))
        return lines, courses

    @property
    def _where(self) -> _Where:
        """Where requests may go and would go, worked out once until something happens or time passes."""
        if self._known_where is None:
            takes, pools = self._takes(), None
            among = takes
            if self._alive is not None or self._available is not None:
                pools = takes.any(axis=0)
                # A pool that takes none is looked at as if all of it did, so that what is seen of it is finite.
                among = shown_among(takes, self._placed)
            picked = least_loaded(self.batch_sizes, among) * len(self._pools) + self._number
            self._known_where = _Where(takes, pools, picked)
        return self._known_where

    def _takes(self) -> Any:
        available = self._available
        if self._alive is not None:
            alive = self._alive if available is None else self._alive & available
            return taking(alive, self._ready_s - self._now_s)
        if available is not None:
            return self._placed & available
        return None if self._full else self._placed

    def _until_up(self, picked: np.ndarray) -> np.ndarray | None:
        """(pools,) seconds until these instances are up; None where nothing happens to replicas."""
        return None if self._alive is None else np.maximum(self._ready_s.reshape(-1)[picked] - self._now_s, 0.0)

    def _life(self) -> np.ndarray:
        """(rows, pools) which replicas are up, or are to be."""
        if self._alive is None:
            self._alive = self._placed.copy()
        return self._alive

    def _wake(self, now: float) -> None:
        """Instances that are up meanwhile have begun with those who waited."""
        for number in [number for number, up_s in self._starting.items() if up_s <= now]:
            instance = self._instances[number]
            instance.begun_s = instance.ended_s = self._starting.pop(number)
            if instance.waiting:
                self._settle(number)

    def _place_of(self, pool: str | int, replica: int, there: str = "There") -> tuple[int, int]:
        """Row and pool of a replica; `there` is how a message begins.

        Raises:
          InputError: if there is none.
        """
        index = self._pools.get(pool, -1) if isinstance(pool, str) else int(pool)
        if not (0 <= index < len(self._pools) and 0 <= replica < len(self._row[index])):
            known = (f"{name} ({len(rows)})" for name, rows in zip(self._pools, self._row, strict=True))
            raise InputError(
                f"{there} is no replica {replica} of `{pool}`; there are, with how many replicas, {', '.join(known)}."
            )
        return self._row[index][replica], index

    def _rate(self) -> float:
        return self._seen_rates[0] if len(self._seen_rates) == self._seen_rates.maxlen else 0.0

    def _view(self, picked: np.ndarray, now: float) -> InFlightView:
        view = self._rows(picked, now)
        if self._slows_down:
            row = picked - self._number
            view = dataclasses.replace(view, beside=self._rows(row[:, None] + self._number, now))
        if self._alive is not None:
            view = dataclasses.replace(view, ready_s=self._until_up(picked), takes=self._where.pools)
        return dataclasses.replace(view, batch_sizes=self.batch_sizes.sum(axis=0), observed_slowdown=self._slowdown)

    def _brief_view(self, rows: np.ndarray, now: float) -> InFlightView:
        """A view of what harm needs besides what is at stake; all instances are settled."""
        return InFlightView(
            present=None,
            running=self._running[rows],
            tokens=self._tokens[rows],
            task=None,
            prompt_tokens=None,
            age_s=now - self._arrival_s[rows],
            elapsed_s=None,
            delay_s=self._delay_s[rows] if self._origins else None,
            terms=self._terms,
        )

    def _rows(self, rows: np.ndarray, now: float) -> InFlightView:
        for number in rows.flat:
            if self._instances[number].boundary:
                self._settle(int(number))
        infers = self._terms.infers_admissions
        return InFlightView(
            present=self._present[rows],
            running=None if infers else self._running[rows],
            tokens=self._tokens[rows],
            task=self._task[rows],
            prompt_tokens=self._prompt[rows],
            cached_tokens=self._cached[rows] if self._founds else None,
            age_s=now - self._arrival_s[rows],
            elapsed_s=now - np.array([self._instances[number].begun_s for number in rows.flat]).reshape(rows.shape),
            eligible=self._eligible[rows] if infers else None,
            order=self._order[rows] if infers else None,
            output_limit=self._limit[rows] if self._limits else None,
            deadline_factor=self._factor[rows] if self._factors else None,
            delay_s=self._delay_s[rows] if self._origins else None,
            tenant_weight=None if self._tenant_weights is None else self._tenant_weight[rows],
            terms=self._terms,
        )

    def _stakes(self, rows: np.ndarray) -> Stakes:
        law = self._law[rows]
        longest = self._params.priors.survival.shape[1] - 1
        return Stakes(
            law=law,
            limit=law + np.minimum(self._limit[rows], longest) if self._limits else None,
            deadline_base_s=self._base_s[rows],
            deadline_per_token_s=self._per_token_s[rows],
            quality=self._quality[rows],
            penalty=self._penalty[rows],
        )

    def _know_prompt(self, prompt_tokens: int) -> None:
        """Extends the tables to a prompt that is longer than all before."""
        if prompt_tokens >= self._params.prefill.shape[1]:
            self._know(ServingParams.of(self.situation, prompt_tokens + prompt_tokens // 2, rule=self._rule))

    def _know(self, params: ServingParams) -> None:
        """Takes over numbers, in the forms in which they are read fast."""
        self._params = params
        held_s = (params.context_cost_s * params.priors.held_each).tolist()
        chunks = np.full(len(self._pools), np.inf) if params.chunk_tokens is None else params.chunk_tokens
        self._slots = slots(params)
        self._slots_of = np.broadcast_to(self._slots, len(self._pools)).tolist()
        self._costs = [
            Costs(_interpolation(row), most, follower_s, of_held_s, of_context_s, math.inf, chunk_tokens)
            for row, most, follower_s, of_held_s, of_context_s, chunk_tokens in zip(
                params.decode.tolist(),
                self._slots_of,
                params.priors.follower_s.tolist(),
                held_s,
                params.context_cost_s.tolist(),
                chunks.tolist(),
                strict=True,
            )
        ]
        self._remainder = params.priors.remainder.tolist()
        self._nothing, self._no_stretch = [0.0] * len(self._pools), [None] * len(self._pools)
        self._plain = _plain(params, self._terms, self._replicas, self._slots_of)
        self._capacity = params.priors.capacity.tolist()
        self._delays = np.broadcast_to(params.network_delay_s, len(self._pools)).tolist()
        self._origin_delays = [] if params.origin_delay_s is None else params.origin_delay_s.tolist()
        # Per task, limit and factor the mean length, likely lengths and their deadlines.
        self._prospects: dict[tuple[int, int | None, float | None], tuple[float, list[int], list[float]]] = {}
        self._visible_deadline_s = deadline_s(
            params.deadline_base_s, params.deadline_per_token_s, params.mean_output_tokens
        ).tolist()

    def _delay_of(self, origin: int | None, pool: int) -> float:
        """Network delay of a pool to an origin, or to none."""
        return self._delays[pool] if origin is None else self._origin_delays[origin][pool]

    def _weight_of(self, known: _Request) -> float:
        """Factor on the rewards of a request by its tenant."""
        return 1.0 if self._tenant_weights is None else self._tenant_weights[known.tenant]

    def _weight_told(self, known: _Request) -> float | None:
        """The same; None where all count the same."""
        return None if self._tenant_weights is None else self._weight_of(known)

    def _stakes_of(self, known: _Request, pool: int) -> Stakes:
        """What a request has to lose that is sent to a pool, in plain numbers."""
        params, task = self._plain[pool], known.task
        longest = params.priors.longest_law
        law, weight = task * (longest + 1), params.weight[task] * self._weight_of(known)
        return Stakes(
            law=law,
            limit=None if known.max_tokens is None else law + min(known.max_tokens, longest),
            deadline_base_s=params.deadline_base_s[task] * known.deadline_factor,
            deadline_per_token_s=params.deadline_per_token_s[task] * known.deadline_factor,
            quality=weight * params.quality[task],
            penalty=weight * params.miss_penalty,
        )

    def _leaving(self, known: _Request) -> float:
        """One over the tokens that a request is expected to go on for."""
        law = self._remainder[known.task]
        tokens = min(known.tokens, len(law) - 1)
        if known.max_tokens is None:
            return 1.0 / law[tokens]
        survival = self._params.priors.survival[known.task]
        limit = min(known.max_tokens, len(law) - 1)
        return 1.0 / max(law[tokens] - float(survival[limit] / survival[tokens]) * law[limit], 1.0)

    def _begin(self, number: int, now: float) -> None:
        """A token came: an iteration has ended, and the next one begins."""
        instance = self._instances[number]
        if now > instance.begun_s:
            if instance.boundary:
                self._settle(number)
            instance.begun_s, instance.boundary = now, True

    def _observe(self, known: _Request, count: int, now: float) -> None:
        """Compares with the tables what so many tokens of a request tell of the iterations of its instance."""
        instance, (row, pool) = self._instances[known.instance], divmod(known.instance, len(self._pools))
        first, costs = not known.tokens, self._costs[pool]
        ahead = known.iteration + count - instance.iterations
        if first and (self._terms.infers_admissions or not known.running):
            # No one saw when it was admitted.
            ahead = int(not now <= instance.ended_s)
        assumed_s = 0.0
        if ahead > 0:
            instance.compared = not math.isnan(instance.ended_s)
            if instance.compared:
                self._observed_s[pool] += now - instance.ended_s
            instance.iterations += ahead
            instance.ended_s, instance.decoded = now, 0
            instance.stretch = self._stretch(row, pool) if self._slows_down else 1.0
            # Of several that are told at once, all but one are as now.
            assumed_s = (ahead - 1) * costs.decode(max(instance.decoding, 1))
        known.iteration = instance.iterations
        if first:
            assumed_s += known.prefill_s
        else:
            assumed_s += costs.decode(instance.decoded + 1) - costs.decode(instance.decoded)
            assumed_s += costs.context_cost_s * (known.prompt_tokens + known.tokens)
            instance.decoded += 1
        if instance.compared:
            self._assumed_s[pool] += assumed_s * instance.stretch

    def _pass_over(self, known: _Request) -> None:
        """An answer that came whole tells of no iteration, only that its prompt was read in one of them."""
        instance = self._instances[known.instance]
        if not instance.decoding:
            instance.ended_s = math.nan
        elif instance.compared:
            # The tokens of others tell how long all took.
            self._assumed_s[known.instance % len(self._pools)] += known.prefill_s * instance.stretch

    def _stretch(self, row: int, pool: int) -> float:
        """Slow-down of an instance by the others on its GPU that hold requests, as far as can be seen."""
        others = (self.batch_sizes[row] > 0) & (self._number != pool)
        return float(np.prod(self._params.slowdown[pool], where=others))

    def _hear_of(self, known: _Request, output_tokens: int, now: float) -> None:
        """An answer that was not streamed has ended, and tells its length."""
        costs = self._costs[known.instance % len(self._pools)]
        prefill_s = known.prefill_s + float(self._added_s[known.instance, known.seat])
        fixed = fixed_s(prefill_s, output_tokens, known.found, _mean_decode(costs), costs.slots, scalars)
        if math.isfinite(fixed):
            self._answers[known.instance] += now - known.sent_s, fixed, output_tokens - 1

    def _compare(self, gap_s: float) -> None:
        """Takes stock, at an arrival, of what ended since the last one."""
        if not self._terms.streamed:
            for number in np.flatnonzero(self._answers.any(axis=1)).tolist():
                row, pool = divmod(number, len(self._pools))
                answers, costs = Answers(*self._answers[number].tolist()), self._costs[pool]
                size = int(self.batch_sizes[row, pool])
                half_s = steps_s(answers.steps, size, _mean_decode(costs), costs.slots, scalars)
                self._observed_s[pool] += answers.observed_s
                self._assumed_s[pool] += answers.fixed_s + half_s
            self._answers[:] = 0.0
        excess_s = self._observed_s - self._assumed_s
        self._comparison = compared(self._comparison, gap_s, excess_s, self._assumed_s, self._tau_s)
        self._slowdown = observed_slowdown(self._comparison, self._tau_s)
        self._observed_s, self._assumed_s = np.zeros((2, len(self._pools)))

    def _settle(self, number: int) -> None:
        """Admits those who wait to the iteration that has begun, once all that ended with the last one is told."""
        instance = self._instances[number]
        instance.boundary = False
        self._eligible[number] = self._present[number]
        pool = number % len(self._pools)
        if self._in_chunks[pool]:
            return
        most = self._slots_of[pool]
        while instance.waiting and instance.running < most:
            self._admit(instance, next(iter(instance.waiting)))

    def _admit(self, instance: _Instance, request: Hashable) -> None:
        known = instance.waiting.pop(request)
        self._forget_waiting(instance, known)
        known.running = True
        known.iteration = instance.iterations
        self._running[known.instance, known.seat] = True
        instance.running += 1
        instance.joining_s += known.prefill_s
        known.leaving = self._leaving(known)
        instance.leaving += known.leaving

    def _forget_waiting(self, instance: _Instance, known: _Request) -> None:
        """Takes a request that waits no longer off the sums over those that do."""
        instance.waiting_s = instance.waiting_s - known.prefill_s if instance.waiting else 0.0
        if self._terms.chunks:
            instance.waiting_tokens -= known.prompt_tokens - known.cached_tokens
            instance.waiting_leaving = instance.waiting_leaving - known.leaving if instance.waiting else 0.0

    def _leave(self, request: Hashable, known: _Request) -> None:
        del self._requests[request]
        if known.instance < 0:
            return
        instance = self._instances[known.instance]
        if known.running:
            instance.running -= 1
            instance.leaving -= known.leaving
            if known.tokens:
                instance.decoding -= 1
                instance.held -= known.prompt_tokens + known.tokens
            joining = instance.decoding < instance.running
            instance.joining_s = instance.joining_s - known.prefill_s * (not known.tokens) if joining else 0.0
        else:
            del instance.waiting[request]
            self._forget_waiting(instance, known)
        if not instance.running:
            # Sums of nothing are nothing, whatever was rounded on the way.
            instance.leaving = 0.0
            instance.boundary = instance.boundary and bool(instance.waiting)
        here = (known.instance, known.seat)
        del instance.present[request]
        self._present[here] = self._running[here] = False
        self._quality[here] = self._penalty[here] = 0.0
        instance.free.append(known.seat)
        self.batch_sizes[divmod(known.instance, len(self._pools))] -= 1
        self._changed_s = self._now_s

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
        return 1.0 if deadline_s is None else deadline_s / self._visible_deadline_s[task]

    def _known(self, request: Hashable) -> _Request:
        known = self._requests.get(request)
        if known is None:
            raise InputError(f"Request {request!r} is not known: it has not arrived, or has ended already.")
        return known

    def _sent_one(self, request: Hashable) -> _Request:
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
        self._latest = self._known_where = None
        return self._now_s

    def _widen(self) -> None:
        """Twice as many seats: servers may hold more than the situation says."""
        seats = self._present.shape[1]
        for name in _SEATED:
            value = getattr(self, name)
            setattr(self, name, np.concatenate([value, np.zeros_like(value)], axis=1))
        for instance in self._instances:
            instance.free += range(2 * seats - 1, seats - 1, -1)


class _PlainLaws(NamedTuple):
    """Of `Priors` what rules and harm read, as plain numbers and flat lists."""

    survival: list[float]
    remainder: list[float]
    longest_law: int
    gap: float


class _PlainParams(NamedTuple):
    """Of `ServingParams` what is read of one pool, as plain numbers and lists over tasks; `slots` of all replicas."""

    priors: _PlainLaws
    quality: list[float]
    weight: list[float]
    deadline_base_s: list[float]
    deadline_per_token_s: list[float]
    decode_work_s: list[float]
    soft_span: float
    miss_penalty: float
    places: int
    slots: float


def _plain(params: ServingParams, terms: Terms, replicas: Any, slots_of: list[int]) -> list[_PlainParams]:
    """Numbers as they are read fast, pool by pool."""
    priors, pools = params.priors, len(slots_of)
    survival, remainder = (table.reshape(-1).tolist() for table in (priors.survival, priors.remainder))
    laws = _PlainLaws(survival, remainder, priors.longest_law, float(priors.gap))
    places = terms.capacity if params.pools is None else params.pools.places
    places, counts = (np.broadcast_to(each, pools).tolist() for each in (places, replicas))
    return [
        _PlainParams(
            laws,
            params.quality[:, pool].tolist(),
            params.weight.tolist(),
            params.deadline_base_s.tolist(),
            params.deadline_per_token_s.tolist(),
            priors.decode_work_s[:, pool].tolist(),
            float(params.soft_span),
            float(params.miss_penalty),
            places[pool],
            float(slots_of[pool] * counts[pool]),
        )
        for pool in range(pools)
    ]


def _interpolation(row: list[float]) -> Callable[[Any], Any]:
    """Values of a table at fractional columns."""
    last = len(row) - 2

    def at(number: Any) -> Any:
        low = min(int(number), last)
        return row[low] + (number - low) * (row[low + 1] - row[low])

    return at


def _mean_decode(costs: Costs) -> Callable[[Any], Any]:
    """Seconds of a decode of so many requests of mean length."""
    return lambda number: costs.decode(number) + costs.held_s * number


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
