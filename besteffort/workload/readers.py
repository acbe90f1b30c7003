"""Readers of public trace files, one per format. The data are not part of this package.

Each returns a `Trace`: what the file says, and no more. `besteffort.workload.traces.read_trace` adds what it leaves
out. Times are in seconds from 0. A file whose lines are out of order is refused: sorting it here would hide damage.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from besteffort.errors import InputError
from besteffort.situation import Positive
from besteffort.workload.renewal import renewal_times
from besteffort.workload.table import Table, read_table

MINUTE_S = 60.0
SERVEGEN_WINDOW_S = 600.0


@dataclasses.dataclass(frozen=True)
class Trace:
    """Requests as a file has them.

    Attributes:
      path: the file.
      kind: its format, a key of `besteffort.workload.traces.KINDS`.
      arrival_s: (n,) float64 arrival times in seconds, sorted.
      prompt_tokens, output_tokens: (n,) float64 lengths, at least 0; None where the file has none.
      task: (n,) indices into `task_names`, or, where these are None, of tasks yet unnamed; None where the file has no
        tasks.
      task_names: names of the tasks; None where the file has none.
    """

    path: Path
    kind: str
    arrival_s: np.ndarray
    prompt_tokens: np.ndarray | None = None
    output_tokens: np.ndarray | None = None
    task: np.ndarray | None = None
    task_names: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class MafOptions:
    """How counts per minute become arrivals.

    Attributes:
      cv: coefficient of variation of the gaps inside a minute (AlpaServe: 4, swept from 1 to 8).
      rate_scale: factor on all rates.
      minutes: first minute, counted from 0, and the one after the last; None for the whole file.
    """

    cv: Positive = 4.0
    rate_scale: Positive = 1.0
    minutes: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class ServeGenOptions:
    """Which part of a ServeGen table becomes arrivals.

    Attributes:
      window_s: start and end in seconds, rounded outwards to whole windows of 600 s; None for the whole file.
      rate_scale: factor on all rates.
    """

    window_s: tuple[float, float] | None = (0.0, 3600.0)
    rate_scale: Positive = 1.0


def read_azure_llm(path: str | Path) -> Trace:
    """Azure LLM inference traces: `TIMESTAMP` (a date with up to 9 decimals), `ContextTokens`, `GeneratedTokens`.

    The published files end without a line break, so a last number that lost digits cannot be told; lost columns can.

    Raises:
      InputError: on a damaged file.
    """
    return azure_llm(read_table(path))


def azure_llm(table: Table) -> Trace:
    """`read_azure_llm` of a table already read."""
    arrival_s = table.times("TIMESTAMP")
    table.require_order("TIMESTAMP", arrival_s)
    return Trace(
        path=table.path,
        kind="azure_llm",
        arrival_s=arrival_s,
        prompt_tokens=table.numbers("ContextTokens"),
        output_tokens=table.numbers("GeneratedTokens"),
    )


def read_mooncake(path: str | Path) -> Trace:
    """Mooncake traces as CSV: `timestamp_ms`, `input_length`, `output_length`; further columns are ignored.

    Raises:
      InputError: on a damaged file.
    """
    return mooncake(read_table(path))


def mooncake(table: Table) -> Trace:
    """`read_mooncake` of a table already read."""
    table.require_newline()
    stamps = table.numbers("timestamp_ms")
    table.require_order("timestamp_ms", stamps)
    return Trace(
        path=table.path,
        kind="mooncake",
        arrival_s=(stamps - stamps[0]) / 1000,
        prompt_tokens=table.numbers("input_length"),
        output_tokens=table.numbers("output_length"),
    )


def read_csv(path: str | Path) -> Trace:
    """This package's own format: `arrival_s`, `task` (a name), `prompt_tokens`, `output_tokens`; times stay.

    Raises:
      InputError: on a damaged file.
    """
    return own_csv(read_table(path))


def own_csv(table: Table) -> Trace:
    """`read_csv` of a table already read."""
    table.require_newline()
    arrival_s = table.numbers("arrival_s")
    table.require_order("arrival_s", arrival_s)
    cells = table.column("task")
    names = tuple(dict.fromkeys(cells))
    index = {name: i for i, name in enumerate(names)}
    return Trace(
        path=table.path,
        kind="csv",
        arrival_s=arrival_s,
        prompt_tokens=table.numbers("prompt_tokens"),
        output_tokens=table.numbers("output_tokens"),
        task=np.array([index[name] for name in cells], np.int32),
        task_names=names,
    )


def read_maf(path: str | Path, tasks: int, options: MafOptions = MafOptions(), seed: int = 0) -> Trace:
    """Microsoft Azure Functions 2019: a row per function, with its invocations in minute `1`, `2`, ... of a day.

    The recipe of AlpaServe (OSDI'23): function `i` goes to task `i mod tasks`; the counts are summed per task and
    minute; the rate is `count / 60 x rate_scale`; inside each minute arrivals are a Gamma renewal process with that
    rate and a set coefficient of variation. AlpaServe starts every minute with a full gap, which adds about
    `(cv^2 - 1) / 2` requests to each minute and task; here the process starts in its stationary law, so that the
    counts are kept on average.

    Raises:
      InputError: on a damaged file, or options that leave no request.
    """
    return maf(read_table(path), tasks, options, seed)


def maf(table: Table, tasks: int, options: MafOptions, seed: int) -> Trace:
    """`read_maf` of a table already read."""
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
    first, end = options.minutes or (0, len(columns))
    if not 0 <= first < end <= len(columns):
        raise InputError(
            f"{table.path}: `minutes` is [{first}, {end}], but the file has 0 to {len(columns)}; choose among these."
        )
    invocations = table.matrix(columns)[:, first:end]
    counts = np.stack([invocations[task::tasks].sum(axis=0) for task in range(tasks)])
    mean_count = counts.ravel() * options.rate_scale
    shape = np.full_like(mean_count, options.cv**-2)
    window, offset_s = renewal_times(np.random.default_rng(seed), "Gamma", mean_count, shape, MINUTE_S)
    task, minute = np.divmod(window, end - first)
    arrival_s = minute * MINUTE_S + offset_s
    order = np.argsort(arrival_s, kind="stable")
    return _drawn(table, "maf", arrival_s[order], task[order].astype(np.int32))


def read_servegen(path: str | Path, options: ServeGenOptions = ServeGenOptions(), seed: int = 0) -> Trace:
    """ServeGen client windows: `client_id`, `window_start_s` (600 s), `rate_per_s`, `cv`, `pattern`, `arg1`, `arg2`.

    Each client is a renewal process inside each of its windows; clients are superposed; windows without a row are
    silent. `pattern` is the law of the gaps, `Gamma` or `Weibull`, `arg1` its shape and `arg2` its scale in seconds.
    In the published table of the large model a Gamma's `arg1` is `1 / cv^2` to six digits, and `arg1 x arg2` is the
    mean gap while the client is active, which is `1 / rate_per_s` within 3% for most windows but not where the client
    fell silent; a Weibull's moments agree with neither column (it was fitted, not matched). So the shape is taken
    from `arg1`, and the scale is set so that the expected number of requests of every window is `rate_per_s x 600`.

    Raises:
      InputError: on a damaged file, or options that leave no request.
    """
    return servegen(read_table(path), options, seed)


def servegen(table: Table, options: ServeGenOptions, seed: int) -> Trace:
    """`read_servegen` of a table already read."""
    table.require_newline()
    start_s = table.numbers("window_start_s")
    rate = table.numbers("rate_per_s")
    shape = table.numbers("arg1")
    table.refuse(shape <= 0, "arg1", "which is no shape")
    patterns = np.array(table.column("pattern"))
    table.refuse(~np.isin(patterns, ("Gamma", "Weibull")), "pattern", "but known are Gamma and Weibull")
    low, high = options.window_s or (0.0, np.inf)
    chosen = (start_s + SERVEGEN_WINDOW_S > low) & (start_s < high)
    if not chosen.any():
        raise InputError(
            f"{table.path}: no window lies in `window_s` [{low:g}, {high:g}]; "
            f"the file ends at {start_s.max() + SERVEGEN_WINDOW_S:g} s."
        )
    start_s, rate, shape, patterns = start_s[chosen], rate[chosen], shape[chosen], patterns[chosen]
    rng = np.random.default_rng(seed)
    mean_count = rate * options.rate_scale * SERVEGEN_WINDOW_S
    parts = []
    for law in ("Gamma", "Weibull"):
        window, offset_s = renewal_times(rng, law, np.where(patterns == law, mean_count, 0), shape, SERVEGEN_WINDOW_S)
        parts.append(start_s[window] + offset_s)
    return _drawn(table, "servegen", np.sort(np.concatenate(parts) - start_s.min()), None)


def _drawn(table: Table, kind: str, arrival_s: np.ndarray, task: np.ndarray | None) -> Trace:
    if not len(arrival_s):
        raise InputError(f"{table.path}: no request was drawn; choose a longer window or a larger `rate_scale`.")
    return Trace(path=table.path, kind=kind, arrival_s=arrival_s, task=task)
