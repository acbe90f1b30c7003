"""What the page at `/` shows: the last minutes second by second, and how things stand now."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from typing import Any

from besteffort.gateway.core import Core, Record

_SECONDS = 300  # that are kept
_LATEST = 20  # requests that are kept

_STATES = {"closed": "in use", "half-open": "tried again", "open": "left out"}


@dataclasses.dataclass(slots=True)
class Second:
    """What ended within a second.

    Attributes:
      at: the second, since 1970.
      answered: answers per model.
      in_time: answers by their deadline.
      quality: of these, summed.
      failed: requests that failed, were refused or lost.
      left: requests whose clients left, or that were wrong.
    """

    at: int
    answered: dict[str, int] = dataclasses.field(default_factory=dict)
    in_time: int = 0
    quality: float = 0.0
    failed: int = 0
    left: int = 0


class Live:
    """The last minutes of a gateway, from the records of its requests."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._seconds: deque[Second] = deque(maxlen=_SECONDS)
        self._latest: deque[dict[str, Any]] = deque(maxlen=_LATEST)
        self._snapshot = (core.snapshot.number, time.time())  # and since when
        self._ended = 0

    def record(self, record: Record) -> None:
        """Takes notice of a request that has ended."""
        now = record.arrival_s + record.latency_s
        second = self._second(int(now))
        self._ended += 1
        if record.outcome == "answered":
            second.answered[record.model] = second.answered.get(record.model, 0) + 1
            second.in_time += record.in_time
            second.quality += record.quality * record.in_time
        elif record.outcome in ("cancelled", "invalid"):
            second.left += 1
        else:
            second.failed += 1
        self._latest.append(
            {
                "number": self._ended,
                "task": record.task,
                "model": record.model,
                "outcome": record.outcome if record.outcome != "answered" else "in time" if record.in_time else "late",
                "latency_s": round(record.latency_s, 4),
                "deadline_s": round(record.deadline_s, 4),
                "attempts": record.attempts,
            }
        )

    def seconds(self, after: int, before: float) -> list[dict[str, Any]]:
        """Seconds later than one, and over at a time; those in which nothing ended are left out."""
        return [dataclasses.asdict(each) for each in self._seconds if after < each.at < int(before)]

    def state(self, at: float) -> dict[str, Any]:
        """How things stand, at a time since 1970."""
        core = self._core
        snapshot, now = core.snapshot, core.now()
        if self._snapshot[0] != snapshot.number:
            self._snapshot = (snapshot.number, at)
        situation = snapshot.policy.situation
        rate = core.arrival_rate()
        return {
            "at": at,
            "draining": core.draining,
            "open": core.open_requests,
            "rate": round(rate, 3),
            "load": round(rate / situation.unit_load, 4),
            "retries": core.retries,
            "policy": str(snapshot.policy.training.get("method", "trained")),
            "snapshot": snapshot.number,
            "since": self._snapshot[1],
            "models": [name for name in situation.profile.model_names if name in {p.model for p in snapshot.places}],
            "pools": [
                {
                    "name": places[0].pool.name,
                    "model": places[0].model,
                    "replicas": [
                        {
                            "in_flight": place.state.in_flight,
                            "limit": place.limit,
                            "state": _STATES[place.state.breaker.state(now)],
                        }
                        for place in places
                    ],
                }
                for places in snapshot.places.by_pool
                if places
            ],
            "latest": list(self._latest)[::-1],
        }

    def _second(self, at: int) -> Second:
        # Clocks that step back do not: what ends then counts to the last second.
        if not self._seconds or self._seconds[-1].at < at:
            self._seconds.append(Second(at))
        return self._seconds[-1]
