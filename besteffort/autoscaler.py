"""Autoscalers as people run them: how many replicas of a pool there are to be, from time to time. Plain Python.

Kubernetes' HorizontalPodAutoscaler wants `ceil(total / target)` replicas, `total` summed over those that there are, and
leaves their number as it is while the mean is within a tolerance of the target. Of what it wanted within a window it
takes the least before it starts replicas, and the most before it stops some, so that it does not flutter.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Len

from besteffort.errors import InputError
from besteffort.ranges import Few, NonNegative, Positive

_MOST_LOOKS = 1_000
_MOST_STEPS = 2**16
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Step:
    """So many replicas from a time on, in seconds since the start of the list or the episode."""

    time_s: NonNegative
    replicas: Few


@dataclasses.dataclass(frozen=True)
class Autoscaler:
    """Looks at a pool at every multiple of an interval, and starts or drains replicas.

    It starts those with the lowest numbers, and drains those with the fewest requests, of equals those with the highest
    numbers. At first `min_replicas` are up.

    Attributes:
      interval_s: seconds between two looks.
      min_replicas, max_replicas: how many there are at least and at most; by default as many as the pool has.
      in_flight: requests that are to run or wait on a replica, on average over those that are up or starting.
      waiting: requests that are to wait on a replica beyond those that it can run at once, likewise.
      schedule: how many there are to be; before the first step `min_replicas`.
      tolerance: share by which the mean may be off before anything is done.
      up_window_s, down_window_s: of what was wanted within so many seconds, the least counts before replicas are
        started, and the most before they are drained.

    Raises:
      InputError: if not one of the two targets and the schedule is stated, the least is below 1 or exceeds the most,
        steps do not ascend, or a window is of too many looks.
    """

    interval_s: Positive = 15.0
    min_replicas: Few = 1
    max_replicas: Few | None = None
    in_flight: Positive | None = None
    waiting: Positive | None = None
    schedule: Annotated[tuple[Step, ...], Len(0, _MOST_STEPS)] = ()
    tolerance: NonNegative = 0.1
    up_window_s: NonNegative = 0.0
    down_window_s: NonNegative = 300.0

    def __post_init__(self) -> None:
        stated = (self.in_flight is not None) + (self.waiting is not None) + bool(self.schedule)
        if stated != 1:
            raise InputError(
                f"`autoscaler` states {stated} of `in_flight`, `waiting` and `schedule`; state one of them."
            )
        for name in ("interval_s", "in_flight", "waiting"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"`autoscaler`: `{name}` is {value:g}; give a number above 0.")
        for name in ("tolerance", "up_window_s", "down_window_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"`autoscaler`: `{name}` is {getattr(self, name):g}; give at least 0.")
        if self.min_replicas < 1:
            raise InputError(f"`autoscaler`: `min_replicas` is {self.min_replicas}; give at least 1.")
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise InputError(
                f"`autoscaler`: `min_replicas` is {self.min_replicas} and `max_replicas` {self.max_replicas}; give no "
                "more than the most."
            )
        for one, following in itertools.pairwise(self.schedule):
            if not one.time_s < following.time_s:
                raise InputError(
                    f"`autoscaler`: `schedule` goes from {one.time_s:g} s to {following.time_s:g} s; sort its steps."
                )
        if self.window > _MOST_LOOKS:
            raise InputError(
                f"`autoscaler`: a window of {max(self.up_window_s, self.down_window_s):g} s has {self.window:,} looks; "
                f"give one of at most {_MOST_LOOKS:,}, or raise `interval_s`."
            )

    @property
    def window(self) -> int:
        """Looks of the longer window, that of now included; one too many does no harm."""
        return math.floor(max(self.up_window_s, self.down_window_s) / self.interval_s * (1 + _ROUNDING)) + 1


class Looks:
    """An autoscaler at work."""

    def __init__(self, autoscaler: Autoscaler, replicas: int, max_batch: int) -> None:
        """Of a pool with so many replicas, each of which runs so many requests at once."""
        self._scaler = autoscaler
        self._most = min(autoscaler.max_replicas or replicas, replicas)
        self._slots = max_batch
        self._number = 0
        self._wanted: deque[int] = deque(maxlen=autoscaler.window)  # the latest first

    @property
    def next_s(self) -> float:
        """When it looks next."""
        return (self._number + 1) * self._scaler.interval_s

    def look(self, takes: Sequence[bool], sizes: Sequence[int]) -> tuple[list[int], list[int]]:
        """Looks for the next time; returns the replicas to be started, and those to be drained.

        Args:
          takes: by replica whether it is up or starting.
          sizes: by replica the requests that it has.
        """
        scaler, now_s = self._scaler, self.next_s
        self._number += 1
        count = sum(takes)
        self._wanted.appendleft(min(max(self._want(now_s, count, takes, sizes), scaler.min_replicas), self._most))
        recent = list(enumerate(self._wanted))
        least = min(each for age, each in recent if age * scaler.interval_s <= scaler.up_window_s)
        most = max(each for age, each in recent if age * scaler.interval_s <= scaler.down_window_s)
        wanted = least if count < least else min(count, most)
        starts = [replica for replica, each in enumerate(takes) if not each][: max(wanted - count, 0)]
        emptiest = sorted(
            (size, -replica) for replica, (each, size) in enumerate(zip(takes, sizes, strict=True)) if each
        )
        return starts, [-replica for _, replica in emptiest[: max(count - wanted, 0)]]

    def _want(self, now_s: float, count: int, takes: Sequence[bool], sizes: Sequence[int]) -> int:
        scaler = self._scaler
        if scaler.schedule:
            return next((step.replicas for step in reversed(scaler.schedule) if step.time_s <= now_s), 0)
        there = [size for size, each in zip(sizes, takes, strict=True) if each]
        if scaler.waiting is not None:
            target, total = scaler.waiting, sum(max(size - self._slots, 0) for size in there)
        else:
            target, total = scaler.in_flight or math.inf, sum(there)
        if count and abs(total / (target * count) - 1) <= scaler.tolerance:
            return count
        return math.ceil(total / target)


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The autoscalers of all pools as arrays; leaves may carry batch axes under `vmap`.

    Attributes:
      interval_s: (pools,) infinite where there is none.
      least, most: (pools,) replicas.
      target: (pools,) requests per replica, that are in flight or waiting; 0 where there is a schedule.
      beyond: (pools,) requests of a replica that do not count.
      tolerance: (pools,) see `Autoscaler`.
      up_window_s, down_window_s: (pools,) likewise.
      step_s, step: (pools, steps) the schedule; infinite where there is no step.
    """

    interval_s: Any
    least: Any
    most: Any
    target: Any
    beyond: Any
    tolerance: Any
    up_window_s: Any
    down_window_s: Any
    step_s: Any
    step: Any
