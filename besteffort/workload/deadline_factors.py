"""Deadlines that change with time: stricter at peak hours, for instance."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from besteffort.errors import InputError
from besteffort.workload.schedule import Clock, Numbers, Schedule, schedule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeadlineFactors:
    """A factor on all deadlines, period by period; `deadline_factors` builds one.

    Attributes:
      factors: (periods,) factor in force.
      schedule: start and end of each period.
    """

    factors: Any
    schedule: Schedule

    def init(self, key: PRNGKeyArray) -> Clock:
        return self.schedule.start(key)

    def next(self, gap_s: Float[Array, ""], clock: Clock) -> tuple[Float[Array, ""], Clock]:
        """Factor on the deadline of the request that arrives `gap_s` after the last one, and the clock at that time."""
        clock = self.schedule.wait(clock, gap_s)
        return jnp.asarray(self.factors, float)[clock.segment], clock


def deadline_factors(
    factors: Numbers, starts_s: Numbers = (0.0,), period_s: float | None = None, random_start: bool = False
) -> DeadlineFactors:
    """A factor for each of the periods that begin at `starts_s`; see `besteffort.workload.schedule.schedule`.

    Raises:
      InputError: if there is not one factor per start, or a factor is not positive and finite.
    """
    values = np.asarray(factors, np.float64)
    timetable = schedule(starts_s, period_s, random_start)
    if values.shape != timetable.lengths_s.shape:
        raise InputError(f"`factors` has {values.size} values; give one for each of {len(timetable.lengths_s)} starts.")
    if not (np.isfinite(values).all() and values.min() > 0):
        raise InputError(f"`factors` is {values.tolist()}; give positive factors on the deadlines.")
    return DeadlineFactors(values, timetable)
