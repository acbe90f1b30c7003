"""Requests that other gateways in front of the same servers have in flight: in the books and counts of this one.

Where others say so little that a request cannot be placed, such as one of a task that the policy does not know, it is
left out of the books, and counts on its replica still. Rates add up: with `r` the estimate at a gateway's last arrival
`t`, all of them see the sum of `(r + 1 / tau) exp(-(now - t) / tau)`, and nothing of those without arrivals.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import struct
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

from besteffort.gateway.pools import Place
from besteffort.gateway.snapshot import Arm, Snapshot

_SAME_S = 0.5


class Held(NamedTuple):
    """A request in flight, as gateways tell it each other. Times are on the clock of the reader.

    Attributes:
      number: of the request, among those of its gateway; 0 for none.
      place: `short_hash` of its replica.
      task: `short_hash` of its task.
      prompt_tokens: length of the prompt.
      max_tokens: limit on the output; 0 for none.
      tokens: that came.
      deadline_s: of an answer of the task's mean length.
      arrived_s: when it came.
      sent_s: when it was sent.
      heard_s: when its last token came.
    """

    number: int
    place: int
    task: int
    prompt_tokens: int
    max_tokens: int
    tokens: int
    deadline_s: float
    arrived_s: float
    sent_s: float
    heard_s: float


HELD = struct.Struct("<6q4d")
"""How it is told."""


class Rate(NamedTuple):
    """A gateway's own arrivals.

    Attributes:
      rate: its estimate at the last one, in requests per second.
      at_s: when that was.
      tau_s: time constant of the estimate.
    """

    rate: float
    at_s: float
    tau_s: float


@functools.lru_cache(maxsize=4096)
def short_hash(*words: str) -> int:
    """63 bits that name something in all processes."""
    return int.from_bytes(hashlib.blake2b("\0".join(words).encode(), digest_size=8).digest(), "big") >> 1


def _same(one: Held, other: Held) -> bool:
    """Whether two are of one request; times of another host are known by and large."""
    return one.number == other.number and abs(one.sent_s - other.sent_s) < _SAME_S


@dataclasses.dataclass(slots=True)
class _Known:
    """A request of another gateway, and the arms whose books have it."""

    held: Held
    place: Place | None = None
    arms: tuple[Arm, ...] = ()


class Peers:
    """What other gateways have told."""

    def __init__(self, snapshot: Snapshot, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[str, dict[int, _Known]] = {}
        self._rates: dict[str, Rate] = {}
        self._enter_snapshot(snapshot)

    def put(self, gateway: str, slot: int, held: Held) -> None:
        """A request is in flight, or has more tokens."""
        requests = self._known.setdefault(gateway, {})
        known = requests.get(slot)
        if known is not None and _same(known.held, held):
            came = held.tokens - known.held.tokens
            if came > 0:
                known.held = known.held._replace(tokens=held.tokens, heard_s=held.heard_s)
                for arm in known.arms:
                    arm.flight.tokens((gateway, slot), came, at=min(held.heard_s, self._clock()))
            return
        self.drop(gateway, slot)
        known = requests[slot] = _Known(held)
        self._enter(gateway, slot, known)

    def drop(self, gateway: str, slot: int) -> None:
        """A request has ended."""
        known = self._known.get(gateway, {}).pop(slot, None)
        if known is not None:
            self._leave(gateway, slot, known)

    def replace(self, gateway: str, requests: Mapping[int, Held], rate: Rate | None) -> None:
        """All that a gateway has in flight."""
        for slot in self._known.get(gateway, {}).keys() - requests.keys():
            self.drop(gateway, slot)
        for slot, held in requests.items():
            self.put(gateway, slot, held)
        self.tell_rate(gateway, rate)

    def tell_rate(self, gateway: str, rate: Rate | None) -> None:
        if rate is None:
            self._rates.pop(gateway, None)
        else:
            self._rates[gateway] = rate

    def forget(self, gateway: str) -> None:
        """A gateway is gone, and all that it had in flight."""
        for slot, known in self._known.pop(gateway, {}).items():
            self._leave(gateway, slot, known)
        self._rates.pop(gateway, None)

    def gateways(self) -> frozenset[str]:
        """Those that have told something."""
        return frozenset(self._known) | frozenset(self._rates)

    def rate(self, now: float) -> float:
        """Requests per second that come to the others."""
        return math.fsum(
            (known.rate + 1.0 / known.tau_s) * math.exp(-max(now - known.at_s, 0.0) / known.tau_s)
            for known in self._rates.values()
        )

    def leave(self) -> None:
        """Takes everything out of the books and counts of the snapshot, which is to be replaced."""
        for gateway, requests in self._known.items():
            for slot, known in requests.items():
                self._leave(gateway, slot, known)

    def enter(self, snapshot: Snapshot) -> None:
        """Puts everything into the books and counts of another snapshot."""
        self._enter_snapshot(snapshot)
        for gateway, requests in self._known.items():
            for slot, known in requests.items():
                self._enter(gateway, slot, known)

    def _enter_snapshot(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._places = {short_hash(*place.key): place for place in snapshot.places}
        self._tasks = {short_hash(task): task for task in snapshot.tasks}
        for arm in snapshot.arms:
            arm.flight.others = self.rate

    def _enter(self, gateway: str, slot: int, known: _Known) -> None:
        held = known.held
        place, task = self._places.get(held.place), self._tasks.get(held.task)
        if place is None:
            return
        place.state.elsewhere += 1
        known.place = place
        if task is None:
            return
        arms, name, now = [], (gateway, slot), self._clock()
        for arm in self._snapshot.arms:
            here = arm.places.same(place)
            if here is None:
                continue
            arm.flight.sent_elsewhere(
                name,
                here.index,
                here.replica,
                task=task,
                prompt_tokens=held.prompt_tokens,
                max_tokens=held.max_tokens or None,
                deadline_s=None if arm.visible_deadline_s[task] == held.deadline_s else held.deadline_s,
                arrived_s=min(held.arrived_s, now),
                at=min(held.sent_s, now),
            )
            if held.tokens:
                arm.flight.tokens(name, held.tokens, at=min(held.heard_s, now))
            arms.append(arm)
        known.arms = tuple(arms)

    def _leave(self, gateway: str, slot: int, known: _Known) -> None:
        name: Hashable = (gateway, slot)
        for arm in known.arms:
            arm.flight.cancelled(name, at=self._clock())
        if known.place is not None:
            known.place.state.elsewhere -= 1
        known.place, known.arms = None, ()
