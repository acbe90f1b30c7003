"""What a policy decides for the requests of a gateway, and what it decides by.

The simulator and this see the same, so estimates are the same.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from besteffort.errors import InputError
from besteffort.estimates import scalars
from besteffort.estimates.estimates import (
    DEFAULT_SOFTNESS,
    Course,
    Estimates,
    Line,
    Newcomer,
    Softness,
    Stakes,
    burden,
    capacity,
    completion_s,
    count,
    course_of,
    follow,
    harm,
    loss_of_each,
    own_reading,
    own_value,
    own_value_of_one,
    prospect,
    settled,
    work_s,
)
from besteffort.estimates.rule import Rule, rule_softness, rule_value, time_price
from besteffort.estimates.view import InFlightView
from besteffort.in_flight.books import Books
from besteffort.in_flight.entries import Entry
from besteffort.in_flight.replicas import Where
from besteffort.observation import ORIGIN, TENANT_WEIGHT, VALUE, Observation
from besteffort.policy import Policy
from besteffort.pools import smallest
from besteffort.situation import Situation

_FEW = 12  # requests on the instances looked at, up to which plain numbers are faster than arrays


class Decision(NamedTuple):
    """Where a request shall go: a pool's name, and its replica with the smallest batch, the first on a tie.

    Where the situation has a cluster, pools are named by their models.
    """

    model: str
    replica: int


class _Appraised(NamedTuple):
    """The latest estimates, and as of how many events they hold."""

    events: int
    request: Hashable
    now: float
    found: list[Estimates]


class InFlight(Books):
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
        super().__init__(policy.situation if isinstance(policy, Policy) else policy, clock=clock)
        self._rule = None if self.policy is None or self.policy.rule is None else self.policy.rule.plain()
        self._softness = softness
        self._features = frozenset(feature.name for feature in self.policy.features) if self.policy else frozenset()
        self._estimated = [name for name in Estimates._fields if name in self._features]
        self._needs_harm = not self._features.isdisjoint({"harm", VALUE})
        # Where admissions are inferred, or models slow each other down, sums do not follow from single events.
        self._incremental = not (self._terms.infers_admissions or self._fast.slows_down)
        self._nothing, self._no_stretch = [0.0] * self._pools, [None] * self._pools
        self._appraised: _Appraised | None = None
        self._known_where: tuple[int, Where] | None = None

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
        return Decision(*self._replicas.replica_at(int(self._where.picked[pool])))

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
            given["deadline_s"] = self._fast.visible_deadline_s[known.task] * known.deadline_factor
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

    def observation(self, request: Hashable, *, at: float | None = None) -> Observation:
        """What a router sees of a request that has arrived.

        Raises:
          InputError: if it has not arrived.
        """
        known = self._known(request)
        now = self._advance(at)
        ready_s = self._replicas.until_up(self._where.picked, now)
        if ready_s is None and self._where.pools is not None:
            ready_s = np.zeros(self._pools)  # so that routers look at which pools take requests
        return Observation(
            task=known.task,
            batch_sizes=self.batch_sizes.sum(0),
            arrival_rate=self._rate(),
            instance_batch_sizes=self.batch_sizes.copy(),
            deadline_s=self._fast.visible_deadline_s[known.task] * known.deadline_factor,
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
        latest, events = self._appraised, self._events
        now = self._advance(at)
        if latest is not None and latest[:3] == (events, request, now):
            found = latest.found
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
            how = rule_softness(rule, rate, self._fast.params, observed_slowdown=self.observed_slowdown)
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
        self._appraised = _Appraised(self._events, request, now, found)
        return found if rule is None or not with_harm else self._valued(rule, found, known, rate)

    def _all_at_once(
        self, newcomer: Newcomer, picked: np.ndarray, now: float, how: Softness, *, with_harm: bool
    ) -> list[Estimates]:
        """Estimates worked out as arrays, where what an instance does follows from several of its requests."""
        params, slowdown = self._fast.params, self.observed_slowdown
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
        fast, slowdown = self._fast, self.observed_slowdown
        length, ahead = fast.ahead(newcomer, how)
        takes = None if self._replicas.alive is None or self._where.pools is None else self._where.pools.tolist()
        task, rate, weight, found = newcomer.task, newcomer.arrival_rate, newcomer.tenant_weight, []
        together = fast.capacity if slowdown is None else capacity(slowdown, fast.params).tolist()
        for pool, (line, course, params, lost) in enumerate(zip(lines, courses, fast.pools, harms, strict=True)):
            first_s, step_s = course.first_token_s, course.step_s
            delay_s = fast.delay_s(newcomer.origin, pool)
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

    def _valued(self, rule: Rule, found: list[Estimates], known: Entry, rate: float) -> list[Estimates]:
        """Estimates with the value of each pool by a rule."""
        prices = time_price(
            rule.rates, rule.prices, rate * rule.head_room, self._fast.params, observed_slowdown=self.observed_slowdown
        ).tolist()
        visible_s = self._fast.visible_deadline_s[known.task] * known.deadline_factor
        sizes = self.batch_sizes.sum(axis=0).tolist()
        weight = self._weight_told(known)
        valued = []
        for one, params, price, size in zip(found, self._fast.pools, prices, sizes, strict=True):
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
            lost = harm(newcomer, self._stakes(picked), line, course, view, self._fast.params, how).tolist()
            return list(lost)
        length, losses = self._fast.ahead(newcomer, how)[0], []
        for pool, requests in enumerate(present):
            # The delay is each one's own where there are origins, else that of all.
            delay_s = 0.0 if self._origins else self._fast.delay_s(None, pool)
            own = burden(lines[pool], courses[pool], delay_s, scalars)
            params, lost = self._fast.pools[pool], 0.0
            for one in requests.values():
                age_s = now - one.arrival_s + (one.delay_s if self._origins else 0.0)
                seen = (one.stakes, one.tokens, one.running, age_s)
                lost += loss_of_each(*seen, own, length, params, how, self._terms, scalars)
            losses.append(lost)
        return losses

    def _follow(self, newcomer: Newcomer, picked: np.ndarray, now: float) -> tuple[list[Line], list[Course]]:
        """How the new request would fare, pool by pool in plain numbers, and the counts that this follows from."""
        lines, courses = [], []
        own_prefill, own_tokens = own_reading(newcomer, self._fast.params)
        until_up_s = self._replicas.until_up(picked, now)
        ready_s = self._nothing if until_up_s is None else until_up_s.tolist()
        slowdown = self.observed_slowdown
        stretches = self._no_stretch if slowdown is None else slowdown.tolist()
        for own_prefill_s, costs, number, stretch, up_s in zip(
            own_prefill.tolist(), self._fast.costs, picked.tolist(), stretches, ready_s, strict=True
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
    def _where(self) -> Where:
        """Where requests may go and would go, worked out once until something happens or time passes."""
        if self._known_where is None or self._known_where[0] != self._events:
            self._known_where = (self._events, self._replicas.where(self._now_s))
        return self._known_where[1]

    def _view(self, picked: np.ndarray, now: float) -> InFlightView:
        view = self._rows(picked, now)
        if self._fast.slows_down:
            every = np.arange(self._pools)
            beside = (picked - every)[:, None] + every
            view = dataclasses.replace(view, beside=self._rows(beside, now))
        if self._replicas.alive is not None:
            until_up_s = self._replicas.until_up(picked, now)
            view = dataclasses.replace(view, ready_s=until_up_s, takes=self._where.pools)
        sizes = self.batch_sizes.sum(axis=0)
        return dataclasses.replace(view, batch_sizes=sizes, observed_slowdown=self.observed_slowdown)

    def _brief_view(self, rows: np.ndarray, now: float) -> InFlightView:
        """A view of what harm needs besides what is at stake; all instances are settled."""
        seats = self._seats
        return InFlightView(
            present=None,
            running=seats.running[rows],
            tokens=seats.tokens[rows],
            task=None,
            prompt_tokens=None,
            age_s=now - seats.arrival_s[rows],
            elapsed_s=None,
            delay_s=seats.delay_s[rows] if self._origins else None,
            terms=self._terms,
        )

    def _rows(self, rows: np.ndarray, now: float) -> InFlightView:
        for number in rows.flat:
            if self._instances[number].boundary:
                self._settle(int(number))
        seats, infers = self._seats, self._terms.infers_admissions
        return InFlightView(
            present=seats.present[rows],
            running=None if infers else seats.running[rows],
            tokens=seats.tokens[rows],
            task=seats.task[rows],
            prompt_tokens=seats.prompt_tokens[rows],
            cached_tokens=seats.cached_tokens[rows] if self._founds else None,
            age_s=now - seats.arrival_s[rows],
            elapsed_s=now - np.array([self._instances[number].begun_s for number in rows.flat]).reshape(rows.shape),
            eligible=seats.eligible[rows] if infers else None,
            order=seats.order[rows] if infers else None,
            output_limit=seats.limit[rows] if self._limits else None,
            deadline_factor=seats.deadline_factor[rows] if self._factors else None,
            delay_s=seats.delay_s[rows] if self._origins else None,
            tenant_weight=None if self._tenant_weights is None else seats.tenant_weight[rows],
            terms=self._terms,
        )

    def _stakes(self, rows: np.ndarray) -> Stakes:
        return self._seats.stakes(rows, self._fast.params.priors.survival.shape[1] - 1, limits=self._limits)

    def _weight_told(self, known: Entry) -> float | None:
        """Factor on the rewards of a request by its tenant; None where all count the same."""
        return None if self._tenant_weights is None else self._weight_of(known)
