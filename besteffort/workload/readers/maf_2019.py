"""Microsoft Azure Functions 2019: invocations per function and minute, from which arrivals are drawn."""

from __future__ import annotations

import dataclasses

import numpy as np

from besteffort.errors import InputError
from besteffort.ranges import Positive
from besteffort.workload.readers.types import Drawing, Trace, drawn_trace
from besteffort.workload.renewal import renewal_times
from besteffort.workload.table import Table

COLUMNS = frozenset({"1"})
MINUTE_S = 60.0


@dataclasses.dataclass(frozen=True)
class MafOptions:
    """Options for drawing arrivals from counts per minute.

    Attributes:
      cv: coefficient of variation of the gaps inside a minute (AlpaServe: 4, swept from 1 to 8).
      rate_scale: factor on all rates.
      minutes: first minute, counted from 0, and the minute after the last; None for the whole file.
    """

    cv: Positive = 4.0
    rate_scale: Positive = 1.0
    minutes: tuple[int, int] | None = None


def read(table: Table, drawing: Drawing) -> Trace:
    """Draws arrivals from rows that hold a function's invocations in minute `1`, `2`, ... of a day.

    Follows AlpaServe (OSDI'23): function `i` goes to task `i mod tasks`; the counts are summed per task and
    minute; the rate is `count / 60 x rate_scale`; inside each minute arrivals are a Gamma renewal process with that
    rate and a given coefficient of variation. AlpaServe starts every minute with a full gap, which adds about
    `(cv^2 - 1) / 2` requests to each minute and task; here the process starts in its stationary distribution, which
    keeps the counts on average.

    Raises:
      InputError: on a damaged file, or options that leave no request.
    """
    own = drawing.options or MafOptions()
    table.require_newline()
    columns = [name for name in table.header if name.isdecimal()]
    if (
        not columns
        or columns != [str(minute) for minute in range(1, len(columns) + 1)]
        or table.header[-len(columns) :] != tuple(columns)
    ):
        raise InputError(
            f"{table.path}: the minutes in the header must be 1, 2, 3, ... and stand last; copy the file again."
        )
    first, end = own.minutes or (0, len(columns))
    if not 0 <= first < end <= len(columns):
        raise InputError(
            f"{table.path}: `minutes` is [{first}, {end}], but the file has 0 to {len(columns)}; choose among these."
        )
    invocations = table.matrix(columns)[:, first:end]
    counts = np.stack([invocations[task :: drawing.tasks].sum(axis=0) for task in range(drawing.tasks)])
    mean_count = counts.ravel() * own.rate_scale
    shape = np.full_like(mean_count, own.cv**-2)
    window, offset_s = renewal_times(np.random.default_rng(drawing.seed), "Gamma", mean_count, shape, MINUTE_S)
    task, minute = np.divmod(window, end - first)
    arrival_s = minute * MINUTE_S + offset_s
    order = np.argsort(arrival_s, kind="stable")
    return drawn_trace(table, "maf", arrival_s[order], task[order].astype(np.int32))
