"""Live book-keeping: what a gateway knows of its requests, from events alone. NumPy only.

    flight = InFlight(situation)
    flight.arrived("a", task="piqa", prompt_tokens=120)
    estimates = flight.estimates("a")
    flight.sent("a", "opt-125m", replica=0)
    flight.tokens("a")          # the first, and every further one; not where answers are not streamed
    flight.done("a")            # with the last token; or `failed`, or `cancelled`

The simulator and this see the same, so estimates are the same: iterations begin when tokens come, and admit those who
wait in order of arrival.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from besteffort.errors import InputError
from besteffort.estimates.estimates import DEFAULT_SOFTNESS, Estimates, Newcomer, Softness, estimate
from besteffort.estimates.params import ServingParams
from besteffort.estimates.view import InFlightView, Terms
from besteffort.observation import Observation, next_rate
from besteffort.situation import Situation, deadline_s


@dataclasses.dataclass(slots=True)
class _Request:
    """A request that has arrived and is not done; `instance` is -1 until it is sent."""

    task: int
    prompt_tokens: int
    max_tokens: int | None
    deadline_factor: float
    arrival_s: float
    instance: int = -1
    seat: int = -1


class InFlight:
    """The requests of a gateway, and what follows from them for the next one.

    Times are seconds of one clock, `clock` unless an event says when it was (`at`). A time before that of an event
    already told counts as that time: clocks that step back do no harm. Not safe for threads; an event costs about a
    microsecond.
    """

    def __init__(
        self,
        situation: Situation,
        *,
        clock: Callable[[], float] = time.monotonic,
        softness: Softness = DEFAULT_SOFTNESS,
    ) -> None:
        """Nothing in flight.

        Args:
          situation: the models and where they run, their tables and qualities, the tasks and their deadlines.
          clock: tells the time in seconds where events do not.
          softness: how uncertain predictions are.
        """
        cluster = situation.cluster
        self.situation = situation
        self._clock = clock
        self._softness = softness
        self._terms = Terms.of(situation)
        self._params = ServingParams.of(situation)
        self._models = {name: index for index, name in enumerate(situation.profile.model_names)}
        self._tasks = {name: index for index, name in enumerate(situation.task_names)}
        self._slows_down = bool((self._params.slowdown != 1).any())
        self._requests: dict[Hashable, _Request] = {}
        self._now_s = -math.inf
        # The rate at each of the last arrivals; routers may have been trained to see it late.
        self._rates: deque[float] = deque(maxlen=situation.view.rate_lag + 1)
        self._last_arrival_s = -math.inf
        self._changed_s = -math.inf
        self._sent = 0
        self._replicas = cluster.replicas
        instances = cluster.replicas * len(self._models)
        self.batch_sizes = np.zeros((cluster.replicas, len(self._models)), np.int64)
        self._begun_s = np.zeros(instances)
        self._boundary = [False] * instances  # an iteration has begun whose admissions are not settled
        seats = (instances, self._terms.capacity)
        self._present, self._running, self._eligible = (np.zeros(seats, bool) for _ in range(3))
        self._task, self._prompt, self._tokens, self._order = (np.zeros(seats, np.int64) for _ in range(4))
        self._limit = np.zeros(seats, np.int64)
        self._arrival_s, self._factor = np.zeros(seats), np.ones(seats)
        # Terms that no request has asked for so far cost nothing.
        self._limits = self._factors = False

    def arrived(
        self,
        request: Hashable,
        *,
        task: str,
        prompt_tokens: int,
        max_tokens: int | None = None,
        deadline_s: float | None = None,
        at: float | None = None,
    ) -> None:
        """A request has come.

        Args:
          request: names it in later events.
          task: its task.
          prompt_tokens: length of its prompt.
          max_tokens: the client's limit on its output, if it states one.
          deadline_s: its deadline on the latency, in seconds, if it is not the task's: that of an answer of the task's
            mean length. Longer and shorter answers have proportionally more and less.
          at: when it came; now, by default.

        Raises:
          InputError: if the name is taken, the task unknown, or a number out of range.
        """
        if request in self._requests:
            raise InputError(f"Request {request!r} has arrived already; give every request a name of its own.")
        if task not in self._tasks:
            raise InputError(f"Request {request!r}: unknown task `{task}`; choose from {', '.join(self._tasks)}.")
        _at_least_one(request, "prompt_tokens", prompt_tokens)
        if max_tokens is not None:
            _at_least_one(request, "max_tokens", max_tokens)
            self._limits = True
        index = self._tasks[task]
        factor = 1.0
        if deadline_s is not None:
            if not (math.isfinite(deadline_s) and deadline_s > 0):
                raise InputError(
                    f"Request {request!r}: `deadline_s` is {deadline_s}; give a positive number of seconds."
                )
            factor = deadline_s / float(self._visible_deadline_s(index))
            self._factors = True
        now = self._advance(at)
        gap_s, tau_s = now - self._last_arrival_s, self.situation.view.rate_tau_s
        self._rates.append(float(next_rate(self._rates[-1], gap_s, tau_s)) if self._rates else 0.0)
        self._last_arrival_s = now
        if prompt_tokens >= self._params.prefill.shape[1]:
            self._params = ServingParams.of(self.situation, prompt_tokens + prompt_tokens // 2)
        self._requests[request] = _Request(index, prompt_tokens, max_tokens, factor, now)

    def sent(self, request: Hashable, model: str | int, replica: int = 0, *, at: float | None = None) -> None:
        """A request goes to a model, given by its name or index, on a replica.

        Raises:
          InputError: if it has not arrived or was sent already, or there is no such model or replica.
        """
        known = self._known(request)
        if known.instance >= 0:
            raise InputError(f"Request {request!r} was sent already; send it once.")
        index = self._models.get(model, -1) if isinstance(model, str) else int(model)
        if not (0 <= index < len(self._models) and 0 <= replica < self._replicas):
            raise InputError(
                f"Request {request!r}: there is no replica {replica} of model `{model}`; the models are "
                f"{', '.join(self._models)} on {self._replicas} replica(s)."
            )
        now = self._advance(at)
        instance = replica * len(self._models) + index
        self._settle(instance)
        present = self._present[instance]
        seat = int(present.argmin())
        if present[seat]:
            self._widen()
            present = self._present[instance]
            seat = int(present.argmin())
        idle = self.batch_sizes[replica, index] == 0
        if idle:
            self._begun_s[instance] = now
        known.instance, known.seat = instance, seat
        self._sent += 1
        self.batch_sizes[replica, index] += 1
        self._changed_s = now
        at_seat = (instance, seat)
        self._present[at_seat], self._running[at_seat], self._eligible[at_seat] = True, idle, idle
        self._task[at_seat], self._prompt[at_seat], self._tokens[at_seat] = known.task, known.prompt_tokens, 0
        self._order[at_seat], self._arrival_s[at_seat] = self._sent, known.arrival_s
        self._factor[at_seat] = known.deadline_factor
        self._limit[at_seat] = np.iinfo(np.int64).max if known.max_tokens is None else known.max_tokens

    def first_token(self, request: Hashable, *, at: float | None = None) -> None:
        """The first token has come.

        Raises:
          InputError: if it came before, or the request is not in flight.
        """
        known = self._sent_one(request)
        if self._tokens[known.instance, known.seat]:
            raise InputError(f"Request {request!r}: its first token has come already; tell further ones by `tokens`.")
        self.tokens(request, at=at)

    def tokens(self, request: Hashable, count: int = 1, *, at: float | None = None) -> None:
        """So many tokens have come; the first, too. Has no effect where `view.streamed` of the situation is off.

        Raises:
          InputError: if the request is not in flight, or the count is below 1.
        """
        known = self._sent_one(request)
        _at_least_one(request, "count", count)
        if not self._terms.streamed:
            self._advance(at)
            return
        self._begin(known.instance, self._advance(at))
        self._tokens[known.instance, known.seat] += count
        self._running[known.instance, known.seat] = True

    def done(self, request: Hashable, *, at: float | None = None) -> None:
        """The last token has come.

        Raises:
          InputError: if the request is not in flight.
        """
        known = self._sent_one(request)
        self._begin(known.instance, self._advance(at))
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

    def observation(self, request: Hashable, *, at: float | None = None) -> Observation:
        """What a router sees of a request that has arrived.

        Raises:
          InputError: if it has not arrived.
        """
        known = self._known(request)
        now = self._advance(at)
        visible_s = float(self._visible_deadline_s(known.task)) * known.deadline_factor
        return Observation(
            task=known.task,
            batch_sizes=self.batch_sizes.sum(0),
            arrival_rate=self._rates[0] if len(self._rates) == self._rates.maxlen else 0.0,
            instance_batch_sizes=self.batch_sizes,
            deadline_s=visible_s,
            since_change_s=now - self._changed_s if math.isfinite(self._changed_s) else 0.0,
            prompt_tokens=known.prompt_tokens,
            output_limit=known.max_tokens,
            deadline_factor=known.deadline_factor if self._factors else None,
            in_flight=self._view(now),
        )

    def estimates(self, request: Hashable, *, at: float | None = None) -> Estimates:
        """What is to be expected of each model for a request that has arrived; arrays of shape (models,).

        Raises:
          InputError: if it has not arrived.
        """
        seen = self.observation(request, at=at)
        newcomer = Newcomer.of(seen)
        return estimate(newcomer, seen.in_flight, self._params, self._softness)

    def _view(self, now: float) -> InFlightView:
        replicas = self.batch_sizes.argmin(axis=0)
        models = np.arange(len(self._models))
        view = self._rows(replicas * len(self._models) + models, now)
        if self._slows_down:
            view = dataclasses.replace(view, beside=self._rows(replicas[:, None] * len(self._models) + models, now))
        return view

    def _rows(self, instances: np.ndarray, now: float) -> InFlightView:
        for instance in instances.flat:
            self._settle(int(instance))
        terms = self._terms
        infers = terms.infers_admissions
        return InFlightView(
            present=self._present[instances],
            running=None if infers else self._running[instances],
            tokens=self._tokens[instances],
            task=self._task[instances],
            prompt_tokens=self._prompt[instances],
            age_s=now - self._arrival_s[instances],
            elapsed_s=now - self._begun_s[instances],
            eligible=self._eligible[instances] if infers else None,
            order=self._order[instances] if infers else None,
            output_limit=self._limit[instances] if self._limits else None,
            deadline_factor=self._factor[instances] if self._factors else None,
            terms=terms,
        )

    def _begin(self, instance: int, now: float) -> None:
        """A token came: an iteration has ended, and the next one begins."""
        if now > self._begun_s[instance]:
            self._settle(instance)
            self._begun_s[instance] = now
            self._boundary[instance] = True

    def _settle(self, instance: int) -> None:
        """Admits those who wait to the iteration that has begun, once all that ended with the last one is told."""
        if not self._boundary[instance]:
            return
        self._boundary[instance] = False
        present, running = self._present[instance], self._running[instance]
        self._eligible[instance] = present
        places = self.situation.cluster.max_batch - int((present & running).sum())
        waiting = np.flatnonzero(present & ~running)
        if places > 0 and waiting.size:
            first = waiting[np.argsort(self._order[instance, waiting])[:places]]
            running[first] = True

    def _leave(self, request: Hashable, known: _Request) -> None:
        del self._requests[request]
        if known.instance < 0:
            return
        self._present[known.instance, known.seat] = False
        replica, model = divmod(known.instance, len(self._models))
        self.batch_sizes[replica, model] -= 1
        self._changed_s = self._now_s
        if self.batch_sizes[replica, model] == 0:
            self._boundary[known.instance] = False

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
        return self._now_s

    def _widen(self) -> None:
        """Twice as many seats: servers may hold more than the situation says."""
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray) and value.shape == self._present.shape and name != "_present":
                setattr(self, name, np.concatenate([value, np.zeros_like(value)], axis=1))
        self._present = np.concatenate([self._present, np.zeros_like(self._present)], axis=1)

    def _visible_deadline_s(self, task: int) -> Any:
        params = self._params
        return deadline_s(
            params.deadline_base_s[task], params.deadline_per_token_s[task], params.mean_output_tokens[task]
        )


def _at_least_one(request: Hashable, name: str, value: int) -> None:
    if not value >= 1:
        raise InputError(f"Request {request!r}: `{name}` is {value}; give at least 1.")
