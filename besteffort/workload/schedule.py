"""Deterministic timetables in time relative to now, so that float32 still resolves a gap after days."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from besteffort.errors import InputError

Numbers = Sequence[int | float] | np.ndarray

FOREVER_S = 86_400.0
"""Length of the last segment of a timetable that does not repeat. It follows itself, so the value does not matter."""


class Clock(NamedTuple):
    """Position in a sequence of segments; every field is a scalar.

    Attributes:
      segment: index of the current segment.
      left_s: seconds until it ends.
      residue_s: rounding error of `left_s` (Kahan summation). Without it, gaps below half a unit in the last
        place of a long segment would never shorten it: in float32 a day at 1,000 requests/s would not end.
    """

    segment: Array
    left_s: Array
    residue_s: Array

    def remaining_s(self) -> Float[Array, ""]:
        """Seconds until the segment ends, never negative."""
        return jnp.maximum(self.left_s - self.residue_s, 0)

    def spend(self, seconds: Float[Array, ""]) -> Clock:
        """The clock `seconds` later, within the same segment."""
        step = -seconds - self.residue_s
        left = self.left_s + step
        return self._replace(left_s=left, residue_s=(left - self.left_s) - step)


def begin(segment: Any, length_s: Any) -> Clock:
    """The clock at the start of a segment that lasts `length_s` seconds."""
    left = jnp.asarray(length_s, float)
    return Clock(jnp.asarray(segment, jnp.int32), left, jnp.zeros_like(left))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """A sequence of time segments.

    Attributes:
      lengths_s: (segments,) length of each segment in seconds.
      cyclic: after the last segment the first one follows; otherwise the last one lasts for ever. Static.
      random_start: `start` draws a time uniform over one cycle; otherwise it is the start of the first segment. Static.
    """

    lengths_s: Any
    cyclic: bool = dataclasses.field(default=False, metadata={"static": True})
    random_start: bool = dataclasses.field(default=False, metadata={"static": True})

    def start(self, key: PRNGKeyArray) -> Clock:
        lengths = jnp.asarray(self.lengths_s, float)
        if not self.random_start:
            return begin(0, lengths[0])
        ends = jnp.cumsum(lengths)
        moment = jax.random.uniform(key) * ends[-1]
        segment = jnp.sum(moment >= ends[:-1])
        return begin(segment, ends[segment] - moment)

    def following(self, clock: Clock) -> Clock:
        """The clock at the start of the next segment."""
        lengths = jnp.asarray(self.lengths_s, float)
        after = clock.segment + 1
        segment = after % len(lengths) if self.cyclic else jnp.minimum(after, len(lengths) - 1)
        return begin(segment, lengths[segment])

    def wait(self, clock: Clock, seconds: Float[Array, ""]) -> Clock:
        """The clock `seconds` later, across any number of segments."""

        def spans(carry: tuple[Clock, Array]) -> Array:
            clock, seconds = carry
            return seconds >= clock.remaining_s()

        def cross(carry: tuple[Clock, Array]) -> tuple[Clock, Array]:
            clock, seconds = carry
            return self.following(clock), seconds - clock.remaining_s()

        clock, seconds = jax.lax.while_loop(spans, cross, (clock, jnp.asarray(seconds, float)))
        return clock.spend(seconds)


def schedule(starts_s: Numbers, period_s: float | None = None, random_start: bool = False) -> Schedule:
    """Builds a timetable from the starts of its segments.

    Args:
      starts_s: start of each segment in seconds; increasing from 0.
      period_s: length of a cycle in seconds; None if the last segment lasts for ever.
      random_start: begin at a random time of the cycle.

    Raises:
      InputError: if the starts do not grow from 0, the period ends before the last start, or a random start lacks a
        period.
    """
    starts = np.asarray(starts_s, np.float64)
    if (
        starts.ndim != 1
        or not len(starts)
        or starts[0] != 0
        or not (np.diff(starts) > 0).all()
        or not np.isfinite(starts).all()
    ):
        raise InputError(f"`starts_s` is {starts.tolist()}; let it start with 0 and grow.")
    if period_s is None:
        if random_start:
            raise InputError("`random_start` needs a schedule that repeats; give `period_s`.")
        end = starts[-1] + FOREVER_S
    elif period_s > starts[-1]:
        end = period_s
    else:
        raise InputError(
            f"`period_s` is {period_s} but the last segment starts at {starts[-1]} s; let the period end later."
        )
    return Schedule(np.diff(starts, append=end), cyclic=period_s is not None, random_start=random_start)
