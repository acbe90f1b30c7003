"""The task mix: shares of the tasks, which may shift in time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from besteffort.errors import InputError
from besteffort.workload.schedule import Clock, Numbers, Schedule, schedule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TaskMix:
    """Shares of the tasks, period by period; `task_mix` builds one.

    Attributes:
      cumulative: (periods, tasks) running sum of each period's shares, ending in 1.
      schedule: start and end of each period.
    """

    cumulative: Any
    schedule: Schedule

    def init(self, key: PRNGKeyArray) -> Clock:
        return self.schedule.start(key)

    def next(self, uniform: Float[Array, ""], gap_s: Float[Array, ""], clock: Clock) -> tuple[Int[Array, ""], Clock]:
        """Task of the request that arrives `gap_s` after the last one, from a uniform draw, and the new clock."""
        cumulative = jnp.asarray(self.cumulative, float)
        if cumulative.shape[0] > 1:
            clock = self.schedule.wait(clock, gap_s)
        return jnp.sum(uniform >= cumulative[clock.segment, :-1], dtype=jnp.int32), clock


def task_mix(
    shares: Sequence[Sequence[int | float]] | np.ndarray,
    starts_s: Numbers = (0.0,),
    period_s: float | None = None,
    random_start: bool = False,
) -> TaskMix:
    """Builds a task mix from (periods, tasks) shares, each row with any positive sum, and the starts of the periods.

    See `besteffort.workload.schedule.schedule` for the times. A start at which two very different rows meet is an
    abrupt flip.

    Raises:
      InputError: if rows do not match the starts, a share is negative or a row sums to zero.
    """
    table = np.asarray(shares, np.float64)
    timetable = schedule(starts_s, period_s, random_start)
    if table.ndim != 2 or len(table) != len(timetable.lengths_s):
        raise InputError(
            f"`shares` has shape {table.shape}; give one row for each of {len(timetable.lengths_s)} starts."
        )
    if not np.isfinite(table).all() or table.min() < 0 or (table.sum(axis=1) <= 0).any():
        raise InputError("`shares` must not be negative, and every row needs a positive share.")
    cumulative = np.cumsum(table, axis=1)
    return TaskMix(cumulative / cumulative[:, -1:], timetable)
