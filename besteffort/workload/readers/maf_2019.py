"""Microsoft Azure Functions 2019: invocations per function and minute, from which arrivals are drawn.

https://github.com/Azure/AzurePublicDataset, AzureFunctionsDataset2019.md: `HashOwner`, `HashApp`, `HashFunction`,
`Trigger`, and the minutes `1` to `1440` of a day. Samples (https://github.com/vhive-serverless/invitro) have fewer rows
or minutes, and other columns before them, and may end without a line break.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from besteffort.errors import InputError
from besteffort.ranges import Positive
from besteffort.workload.readers.types import MOST_REQUESTS, Draw, Drawn, Reader, some, some_gaps
from besteffort.workload.sources import Source

MINUTE_S = 60.0
_CHUNK = 1_000


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


def _minutes(header: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in header if name.isascii() and name.isdecimal())


def _fits(source: Source) -> bool:
    """One column named like a minute may stand in any log."""
    return len(_minutes(source.header)) > 1 or (source.has("HashFunction") and bool(_minutes(source.header)))


def _draw(source: Source, tasks: int, options: Any) -> Draw:
    """Draws arrivals from rows that hold a function's invocations in minute `1`, `2`, ... of a day.

    Follows AlpaServe (OSDI'23): function `i` goes to task `i mod tasks`; the counts are summed per task and
    minute; the rate is `count / 60 x rate_scale`; inside each minute arrivals are a Gamma renewal process with that
    rate and a given coefficient of variation. AlpaServe starts every minute with a full gap, which adds about
    `(cv^2 - 1) / 2` requests to each minute and task; here the process starts in its stationary distribution, which
    keeps the counts on average.

    Raises:
      InputError: on a damaged file, or options that leave no request.
    """
    own: MafOptions = options or MafOptions()
    columns = _minutes(source.header)
    start = int(columns[0]) if columns else 0
    if (
        source.layout != "csv"
        or columns != tuple(str(minute) for minute in range(start, start + len(columns)))
        or source.header[-len(columns) :] != columns
    ):
        raise InputError(
            f"{source.path}: the minutes in the header must be 1, 2, 3, ... and stand last; copy the file again."
        )
    first, end = own.minutes or (0, len(columns))
    if not 0 <= first < end <= len(columns):
        raise InputError(
            f"{source.path}: `minutes` is [{first}, {end}], but the file has 0 to {len(columns)}; choose among these."
        )
    before = len(source.header) - len(columns)
    counts = np.zeros((tasks, len(columns)))
    rows = source.rows()
    function = 0
    while chunk := list(itertools.islice(rows, _CHUNK)):
        values = _counts(source, [row.cells[before:] for row in chunk], [row.number for row in chunk], columns)
        np.add.at(counts, (function + np.arange(len(chunk))) % tasks, values)
        function += len(chunk)
    source.notes.append(f"{counts[:, first:end].sum():,.0f} invocations in {end - first:,} minutes")
    mean_count = counts[:, first:end].ravel() * own.rate_scale
    if mean_count.sum() > MOST_REQUESTS:
        raise InputError(
            f"{source.path}: its {mean_count.sum():,.0f} invocations are more than {MOST_REQUESTS:,}; choose fewer "
            "`minutes` or a smaller `rate_scale`."
        )
    shape = np.full_like(mean_count, own.cv**-2)

    def draw(rng: np.random.Generator) -> Drawn:
        window, offset_s = some_gaps(source, rng, "Gamma", mean_count, shape, MINUTE_S)
        task, minute = np.divmod(window, end - first)
        arrival_s = some(source, minute * MINUTE_S + offset_s)
        order = np.argsort(arrival_s, kind="stable")
        return Drawn(arrival_s[order], task[order].astype(np.int32))

    return draw


def _counts(source: Source, cells: list[list[str]], lines: list[int], columns: tuple[str, ...]) -> np.ndarray:
    """(rows, minutes) the counts of some rows."""
    try:
        values = np.array(cells, np.float64)
    except ValueError:
        values = None
    if values is not None and np.isfinite(values).all() and values.min() >= 0:
        return values
    for line, row in zip(lines, cells, strict=True):
        for name, cell in zip(columns, row, strict=True):
            try:
                value = float(cell)
            except ValueError:
                value = np.nan
            if not np.isfinite(value):
                source.refuse(line, name, cell, "which is not a number")
            if value < 0:
                source.refuse(line, name, cell, "which is below 0")
    return np.array(cells, np.float64)


READER = Reader(
    title="Azure Functions 2019",
    source="https://github.com/Azure/AzurePublicDataset",
    fits=_fits,
    draw=_draw,
)
