"""Reads a server log: for each request its arrival, the times of its first and last token, and its lengths.

CSV or JSON lines, plain or gzip-compressed; times in seconds, lengths in tokens. The log has one column of each row:

| what | columns | |
|---|---|---|
| arrival | `arrival_s`, `arrival_time` | or one of the next row |
| entry into the server's queue | `queued_s`, `queued_ts` | optional |
| start of the iteration that admitted it | `scheduled_s`, `scheduled_ts`, `admission_s` | optional |
| first token | `first_token_s`, `first_token_ts` | optional; may be empty |
| last token | `last_token_s`, `last_token_ts`, `completion_s` | empty if the request was aborted |
| prompt | `prompt_tokens`, `input_tokens`, `input_toks` | |
| output | `output_tokens`, `output_toks` | |
| model, task, replica | `model`, `task`, `replica` | optional |

So the per-request files of vLLM benchmarks and the `requests.csv` of `besteffort simulate` need no conversion.
Rows may be in any order. This module does not import JAX.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from besteffort.errors import InputError
from besteffort.workload.table import Table, read_table

_COLUMNS = {
    "arrival": ("arrival_s", "arrival_time"),
    "queued": ("queued_s", "queued_ts"),
    "scheduled": ("scheduled_s", "scheduled_ts", "admission_s"),
    "first token": ("first_token_s", "first_token_ts"),
    "last token": ("last_token_s", "last_token_ts", "completion_s"),
    "prompt length": ("prompt_tokens", "input_tokens", "input_toks"),
    "output length": ("output_tokens", "output_toks"),
}
_ROUNDING_S = 1e-3
_OTHER_CLOCK_S = 86_400.0  # arrivals this far from all other times are from another clock
_JUMP_S = 1.0
_SLOWEST_TOKEN_S, _FASTEST_TOKEN_S = 10.0, 1e-6


@dataclasses.dataclass(frozen=True)
class RequestLog:
    """Answered requests in order of arrival. Arrays of shape (n,); times in seconds since the first arrival.

    Attributes:
      path: the file.
      arrival_s: arrival.
      scheduled_s: start of the iteration that admitted it; nan where the log lacks it.
      first_token_s: first token; nan where the log lacks it.
      last_token_s: last token.
      prompt_tokens, output_tokens: lengths, at least 1.
      model, task, replica: indices into the names.
      models, tasks, replicas: names; a single `""` where the log has no such column.
      notes: rows left out and values corrected, a sentence each.
    """

    path: Path
    arrival_s: np.ndarray
    scheduled_s: np.ndarray
    first_token_s: np.ndarray
    last_token_s: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    model: np.ndarray
    task: np.ndarray
    replica: np.ndarray
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    replicas: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def latency_s(self) -> np.ndarray:
        """(n,) end-to-end latency."""
        return self.last_token_s - self.arrival_s

    @property
    def ttft_s(self) -> np.ndarray:
        """(n,) time to first token; nan where the log lacks it."""
        return self.first_token_s - self.arrival_s

    def of_model(self, model: int) -> RequestLog:
        """The requests of one model; times stay relative to the whole log's first arrival."""
        rows = self.model == model
        arrays = {name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return dataclasses.replace(self, **arrays)


def read_log(path: str | Path) -> RequestLog:
    """Reads a server log, see the table above.

    Arrivals from another clock than the server's own time stamps (wall clock and monotonic clock) are shifted to the
    server's clock: by the smallest difference to the entry into the queue, so that no request enters before it arrives.

    Raises:
      InputError: if the file is damaged, lacks a column, no request was answered, or clocks run backwards.
    """
    table = read_table(path)
    table.require_newline()
    prompt, output = (
        _numbers(table, what, gaps=what == "output length") for what in ("prompt length", "output length")
    )
    last = _numbers(table, "last token", gaps=True)
    first, scheduled, queued, arrival = (
        _optional(table, what) for what in ("first token", "scheduled", "queued", "arrival")
    )
    answered = np.isfinite(last) & (output >= 1)
    if not answered.any():
        raise InputError(
            f"{table.path}: no request has a last token and an output of at least one token; "
            "give a log in which requests were answered."
        )
    notes = []
    if not answered.all():
        notes.append(
            f"{(~answered).sum():,} of {len(table):,} requests were aborted or unfinished and are left out; "
            "the server's work for them is missing."
        )
    arrival, arrival_name = _arrivals(table, arrival, queued, scheduled, first, answered, notes)
    first = np.where(np.isnan(first) & (output == 1), last, first)
    if np.isnan(first[answered]).any():
        missing = int(np.isnan(first[answered]).sum())
        notes.append(f"{missing:,} of {int(answered.sum()):,} answered requests have no time of their first token.")
    times = [
        (_name(table, what), values)
        for what, values in (("scheduled", scheduled), ("first token", first), ("last token", last))
    ]
    earliest, earlier_name = arrival, arrival_name
    for index, (name, values) in enumerate(times):
        cause = "a clock ran backwards or the columns are from different clocks"
        _refuse_backwards(table, answered, (name, values), (earlier_name, earliest), cause)
        times[index] = (name, np.fmax(values, earliest) + 0.0 * values)
        earliest, earlier_name = np.fmax(earliest, values), name if np.isfinite(values).any() else earlier_name
    scheduled, first, last = (values for _, values in times)
    per_token_s = float(np.median((last - np.fmax(first, arrival))[answered] / output[answered]))
    if not _FASTEST_TOKEN_S < per_token_s < _SLOWEST_TOKEN_S:
        raise InputError(
            f"{table.path}: a token takes {per_token_s:.3g} s in the median, so times are not in seconds; convert them."
        )
    order = np.flatnonzero(answered)
    order = order[np.argsort(arrival[order], kind="stable")]
    start = arrival[order[0]]
    (models, model), (tasks, task), (replicas, replica) = (
        _labels(table, what, order) for what in ("model", "task", "replica")
    )
    return RequestLog(
        path=table.path,
        arrival_s=arrival[order] - start,
        scheduled_s=scheduled[order] - start,
        first_token_s=first[order] - start,
        last_token_s=last[order] - start,
        prompt_tokens=np.maximum(prompt[order], 1).astype(np.int32),
        output_tokens=output[order].astype(np.int32),
        model=model,
        task=task,
        replica=replica,
        models=models,
        tasks=tasks,
        replicas=replicas,
        notes=tuple(notes),
    )


def _arrivals(
    table: Table,
    arrival: np.ndarray,
    queued: np.ndarray,
    scheduled: np.ndarray,
    first: np.ndarray,
    answered: np.ndarray,
    notes: list[str],
) -> tuple[np.ndarray, str]:
    """(rows,) arrivals on the clock of the other times, and the column that they come from."""
    if not np.isfinite(queued).any():
        if not np.isfinite(arrival).any():
            columns = "`, `".join(_COLUMNS["arrival"] + _COLUMNS["queued"])
            raise InputError(f"{table.path}: no column has the arrivals; name one of `{columns}`.")
        table.refuse(answered & np.isnan(arrival), _name(table, "arrival"), "which is not a number")
        name = _name(table, "arrival")
        for what, other in (("scheduled", scheduled), ("first token", first)):
            waits = (other - arrival)[answered & np.isfinite(other)]
            if len(waits) and abs(np.median(waits)) > _OTHER_CLOCK_S:
                notes.append(
                    f"`{name}` is on another clock than `{_name(table, what)}`; the shortest time between them is "
                    "assumed to be zero, so the part common to all waits stays unknown."
                )
                return arrival + waits.min(), name
        return arrival, name
    name = _name(table, "queued")
    table.refuse(answered & np.isnan(queued), name, "which is not a number")
    waits = (queued - arrival)[answered]
    if not np.isfinite(waits).all():
        return queued, name
    if np.quantile(waits, 0.95) - waits.min() > _JUMP_S:
        notes.append(f"`{_name(table, 'arrival')}` jumps against `{name}` and is not used.")
        return queued, name
    if abs(np.median(waits)) > _OTHER_CLOCK_S:
        return arrival + waits.min(), name
    arrival_name = _name(table, "arrival")
    _refuse_backwards(table, answered, (name, queued), (arrival_name, arrival), "a clock ran backwards")
    return arrival, arrival_name


def _refuse_backwards(
    table: Table, answered: np.ndarray, later: tuple[str, np.ndarray], earlier: tuple[str, np.ndarray], cause: str
) -> None:
    """Raises InputError on an answered request whose later time lies before its earlier one, by more than rounding."""
    (name, values), (earlier_name, earliest) = later, earlier
    backwards = answered & (values < earliest - _ROUNDING_S)
    if backwards.any():
        row = int(np.argmax(backwards))
        raise InputError(
            f"{table.path}, line {row + table.first_line}: `{name}` lies {earliest[row] - values[row]:.3g} s before "
            f"`{earlier_name}`, so {cause}; mend or remove the line."
        )


def _name(table: Table, what: str) -> str:
    """The column of the table that holds `what`, or its expected name."""
    return next((name for name in _COLUMNS[what] if name in table.header), _COLUMNS[what][0])


def _numbers(table: Table, what: str, *, gaps: bool) -> np.ndarray:
    if not set(_COLUMNS[what]) & set(table.header):
        raise InputError(
            f"{table.path}: no column has the {what}; name one of `{'`, `'.join(_COLUMNS[what])}` "
            f"(the file has `{'`, `'.join(table.header)[:120]}`)."
        )
    return table.numbers(_name(table, what), gaps=gaps)


def _optional(table: Table, what: str) -> np.ndarray:
    if _name(table, what) not in table.header:
        return np.full(len(table), np.nan)
    return table.numbers(_name(table, what), gaps=True)


def _labels(table: Table, what: str, rows: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Names in alphabetical order, and each row's index into them."""
    if what not in table.header:
        return ("",), np.zeros(len(rows), np.int32)
    names, index = np.unique(np.array(table.column(what))[rows], return_inverse=True)
    return tuple(map(str, names)), index.astype(np.int32)
