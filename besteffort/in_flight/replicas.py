"""The replicas of all pools: how many requests each has, whether it is up, and where the next request would go."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from besteffort.errors import InputError
from besteffort.pools import Fleet, least_loaded, shown_among, taking


class Where(NamedTuple):
    """Where requests may go, and where they would.

    Attributes:
      takes: (rows, pools) between which replicas the load balancer chooses; None where that is all of a full array.
      pools: (pools,) which pools have a replica that takes requests; None where all have.
      picked: (pools,) the instances that the load balancer would pick, or else stand for their pools.
    """

    takes: np.ndarray | None
    pools: np.ndarray | None
    picked: np.ndarray


class Replicas:
    """Arrays of shape (rows, pools), as `Layout` of `besteffort.pools` has them; an instance is a place in them.

    Attributes:
      batch_sizes: requests on each.
      alive: which are up, or are to be; None as long as nothing happens to any of them.
      ready_s: when those that are to be up are.
      placed: where there are any.
      names: of the pools.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.names = fleet.names
        self.placed = fleet.layout.placed
        self.batch_sizes = np.zeros(self.placed.shape, np.int64)
        self.ready_s = np.full(self.placed.shape, -math.inf)
        self.alive = fleet.life((0, 0, 0)).up_first if fleet.alive else None
        self._rows = fleet.layout.rows
        self._index = {name: index for index, name in enumerate(self.names)}
        self._number = np.arange(len(self.names))
        self._full = bool(self.placed.all())
        self._available: np.ndarray | None = None  # where requests may be sent; None where everywhere
        self._given: np.ndarray | None = None  # as `use_only` was told last

    def place_of(self, pool: str | int, replica: int, there: str = "There") -> tuple[int, int]:
        """Row and pool of a replica; `there` is how a message begins.

        Raises:
          InputError: if there is none.
        """
        index = self._index.get(pool, -1) if isinstance(pool, str) else int(pool)
        if not (0 <= index < len(self.names) and 0 <= replica < len(self._rows[index])):
            known = (f"{name} ({len(rows)})" for name, rows in zip(self.names, self._rows, strict=True))
            raise InputError(
                f"{there} is no replica {replica} of `{pool}`; there are, with how many replicas, {', '.join(known)}."
            )
        return self._rows[index][replica], index

    def replica_at(self, instance: int) -> tuple[str, int]:
        """The pool of an instance, by its name, and its replica there."""
        row, pool = divmod(instance, len(self.names))
        return self.names[pool], self._rows[pool].index(row)

    def life(self) -> np.ndarray:
        """`alive`, from now on an array."""
        if self.alive is None:
            self.alive = self.placed.copy()
        return self.alive

    def use_only(self, available: np.ndarray) -> bool:
        """Says where requests may be sent, see `InFlight.use_only`; returns whether that is news.

        Raises:
          InputError: if the shape is another.
        """
        if available is self._given:
            return False
        if available.shape != self.batch_sizes.shape:
            raise InputError(f"`available` has the shape {available.shape}; give {self.batch_sizes.shape}.")
        self._given = available
        self._available = None if (available | ~self.placed).all() else available
        return True

    def where(self, now: float) -> Where:
        """Where requests may go and would go."""
        takes = among = self._takes(now)
        pools: np.ndarray | None = None
        if takes is not None and (self.alive is not None or self._available is not None):
            pools = np.asarray(takes.any(axis=0))
            # A pool that takes none is looked at as if all of it did, so that what is seen of it is finite.
            among = shown_among(takes, self.placed)
        return Where(takes, pools, least_loaded(self.batch_sizes, among) * len(self.names) + self._number)

    def until_up(self, instances: np.ndarray, now: float) -> np.ndarray | None:
        """Seconds until instances are up; None where nothing happens to replicas."""
        return None if self.alive is None else np.maximum(self.ready_s.reshape(-1)[instances] - now, 0.0)

    def _takes(self, now: float) -> np.ndarray | None:
        available = self._available
        if self.alive is not None:
            alive = self.alive if available is None else self.alive & available
            return np.asarray(taking(alive, self.ready_s - now))
        if available is not None:
            return self.placed & available
        return None if self._full else self.placed
