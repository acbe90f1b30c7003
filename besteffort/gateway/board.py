"""What the workers of a host tell each other, in memory that they share. No locks: each writes its own part only.

    head | worker 0: header, versions, requests | worker 1: ... | ...

A request has a slot. Its version is odd while it is written, and grows with every change, so that a reader tells what
has changed, and reads what was half written again. A worker that has not written for `LEASE_S`, or whose process is
gone, has nothing in flight.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from besteffort.gateway.peers import HELD, Held, Peers, Rate

LEASE_S = 2.0
"""Seconds without a sign of life after which a worker's requests count no more."""

BEAT_S = 0.25
"""Seconds between two signs of life."""

_HEAD = struct.Struct("<8sqq")  # magic, workers, slots
_MAGIC = b"befboard"
_HEADER = struct.Struct("<qqdddd3q")
_HEADER_BYTES = 128
_LOOK_S = 0.1  # between two looks at a process


class Totals(NamedTuple):
    """Figures of all workers together, those that have ended included where they only grow.

    Attributes:
      open_requests: arrived and not ended.
      retries: times that requests were sent again.
      expired: leases that ended.
    """

    open_requests: int
    retries: int
    expired: int


_NOTHING = Totals(0, 0, 0)


def make_board(path: Path, workers: int, slots: int) -> None:
    """Makes an empty file for so many workers with so many requests each."""
    with path.open("wb") as file:
        file.write(_HEAD.pack(_MAGIC, workers, slots))
        file.truncate(_HEADER_BYTES + workers * _part_bytes(slots))


class Board:
    """The memory as one worker has it.

    Attributes:
      worker: its number.
      slots: requests that it can show.
      group: names the workers that share it.
    """

    def __init__(self, path: Path, worker: int, clock: Callable[[], float] = time.monotonic) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        magic, self._workers, self.slots = _HEAD.unpack_from(self._map)
        if magic != _MAGIC:
            raise RuntimeError(f"{path} is no board.")
        self.worker, self._clock = worker, clock
        self.group = str(path)
        self._starts = [_HEADER_BYTES + number * _part_bytes(self.slots) for number in range(self._workers)]
        self._versions = [
            np.frombuffer(self._map, np.uint64, self.slots, start + _HEADER_BYTES) for start in self._starts
        ]
        self._rows = [start + _HEADER_BYTES + 8 * self.slots for start in self._starts]
        self._seen = [np.zeros(self.slots, np.uint64) for _ in self._starts]
        self._changes = [-1] * self._workers
        self._looked_s = [-np.inf] * self._workers
        self._here = [False] * self._workers
        self._free = list(range(self.slots))[::-1]
        self._slots: dict[str, int] = {}
        self._rate = Rate(0.0, -np.inf, 1.0)
        self._own_changes, _, _, _, _, _, _, self._retries, self._expired = _HEADER.unpack_from(
            self._map, self._starts[worker]
        )
        self._counts = Totals(0, 0, 0)
        # What an earlier process of this number had in flight is gone.
        for slot in range(self.slots):
            self._write(slot, None)
        self.beat()

    def put(self, name: str, held: Held) -> None:
        """Shows a request, or what has changed of it."""
        slot = self._slots.get(name)
        if slot is None:
            slot = self._slots[name] = self._free.pop()
        self._write(slot, held)
        self._write_header()

    def drop(self, name: str) -> None:
        """Shows a request no more."""
        slot = self._slots.pop(name, None)
        if slot is not None:
            self._write(slot, None)
            self._free.append(slot)
            self._write_header()

    def tell_rate(self, rate: Rate) -> None:
        self._rate = rate
        self._own_changes += 1
        self._write_header()

    def beat(self, counts: Totals = _NOTHING) -> None:
        """Gives a sign of life, and figures of this process."""
        self._counts = counts
        self._write_header()

    def sync(self, peers: Peers) -> None:
        """Tells what has changed of the other workers since last time."""
        now = self._clock()
        for worker, start in enumerate(self._starts):
            if worker == self.worker:
                continue
            changes, pid, beat_s, *rate, _, _, _ = _HEADER.unpack_from(self._map, start)
            name = f"worker {worker}"
            if not self._alive(worker, pid, beat_s, now):
                if self._changes[worker] >= 0:
                    peers.forget(name)
                    self._seen[worker][:] = 0
                    self._changes[worker] = -1
                continue
            if changes == self._changes[worker]:
                continue
            self._changes[worker] = changes
            peers.tell_rate(name, Rate(*rate) if rate[0] or np.isfinite(rate[1]) else None)
            versions, seen = self._versions[worker], self._seen[worker]
            for slot in np.flatnonzero(versions != seen).tolist():
                version = int(versions[slot])
                held = Held(*HELD.unpack_from(self._map, self._rows[worker] + slot * HELD.size))
                if version % 2 or int(versions[slot]) != version:
                    self._changes[worker] = 0  # is being written: once more next time
                    continue
                seen[slot] = version
                if held.number:
                    peers.put(name, slot, held)
                else:
                    peers.drop(name, slot)

    def totals(self) -> Totals:
        """Figures of all workers."""
        now, opened, retries, expired = self._clock(), 0, 0, 0
        for worker, start in enumerate(self._starts):
            _, pid, beat_s, _, _, _, its_open, its_retries, its_expired = _HEADER.unpack_from(self._map, start)
            if worker == self.worker or self._alive(worker, pid, beat_s, now):
                opened += its_open
            retries, expired = retries + its_retries, expired + its_expired
        return Totals(opened, retries, expired)

    def _alive(self, worker: int, pid: int, beat_s: float, now: float) -> bool:
        if not pid or now - beat_s > LEASE_S:
            return False
        if now - self._looked_s[worker] >= _LOOK_S:
            self._looked_s[worker] = now
            try:
                os.kill(pid, 0)
                self._here[worker] = True
            except ProcessLookupError:
                self._here[worker] = False
            except PermissionError:
                self._here[worker] = True
        return self._here[worker]

    def _write(self, slot: int, held: Held | None) -> None:
        versions = self._versions[self.worker]
        begun = int(versions[slot]) | 1
        versions[slot] = begun
        HELD.pack_into(self._map, self._rows[self.worker] + slot * HELD.size, *(_NONE if held is None else held))
        versions[slot] = begun + 1
        self._own_changes += 1

    def _write_header(self) -> None:
        opened, retries, expired = self._counts
        _HEADER.pack_into(
            self._map,
            self._starts[self.worker],
            self._own_changes,
            os.getpid(),
            self._clock(),
            *self._rate,
            opened,
            self._retries + retries,
            self._expired + expired,
        )


_NONE = Held(*[0] * 6, *[0.0] * 4)


def _part_bytes(slots: int) -> int:
    return _HEADER_BYTES + 8 * slots + -(-HELD.size * slots // 128) * 128
