"""A number of a router that tuning sets: where a search for it starts, how far it looks, and what is allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

_DIGITS = 4
_SCALES: Mapping[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "linear": (np.asarray, np.asarray),
    "log": (np.log, np.exp),
}


@dataclasses.dataclass(frozen=True)
class TunedNumber:
    """A number, or several that share a name, as functions of steps: any real numbers, 0 at the start.

    Attributes:
      name: what `make_router` calls it.
      start: where a search starts; a tuple for a list of numbers.
      spread: what a step does: it is added on a `linear` scale, and multiplies on a `log` scale.
      low: smallest value; steps that lead below it stop there.
      high: largest value.
      scale: `linear`, or `log` for positive numbers that may differ in their order of magnitude.
    """

    name: str
    start: float | tuple[float, ...]
    spread: float
    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"

    @property
    def count(self) -> int:
        return np.size(self.start)

    def value(self, steps: Float[np.ndarray, " count"]) -> float | list[float]:
        """The number, or the list, that lies so many steps from the start, to four digits."""
        to, back = _SCALES[self.scale]
        moved = to(np.atleast_1d(self.start)) + to(self.spread) * steps
        reached = back(np.clip(moved, to(self.low), to(self.high)))
        values = [float(f"{value:.{_DIGITS}g}") for value in reached.tolist()]
        return values if isinstance(self.start, tuple) else values[0]

    def steps(self, value: float | list[float]) -> Float[np.ndarray, " count"]:
        """How many steps lie between the start and a value; of one outside the range, those to its end."""
        to, _ = _SCALES[self.scale]
        reached = np.clip(np.atleast_1d(value), self.low, self.high)
        return (to(reached) - to(np.atleast_1d(self.start))) / to(self.spread)
