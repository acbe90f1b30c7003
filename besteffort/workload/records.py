"""Requests as a file states them, whatever its format: the one thing that traces and server logs are made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from besteffort.errors import InputError
from besteffort.workload.columns import Gathered, Labels
from besteffort.workload.fields import COUNTS
from besteffort.workload.sources import Layout

ROUNDING_S = 1e-3
"""Times may lie so much before an earlier one."""
_CLOCK_CHANGE_S = 1800.0
_COARSE_S = 1e-3
_HANDFUL = 5
_FEW = 20  # requests, of which fewer say nothing of a clock


def few(count: int, total: int) -> bool:
    """Whether so many rows may be left out: one in a hundred or, of a short log, a handful and at most a quarter."""
    return count <= max(total // 100, min(_HANDFUL, total // 4))


@dataclasses.dataclass(frozen=True)
class Records:
    """Requests in the order of the file. Arrays of shape (n,).

    Attributes:
      path: the file.
      kind: its format, a key of `besteffort.workload.readers.READERS`.
      seconds: float64 times and durations by field of `besteffort.workload.fields.FIELDS`, nan where there is none.
      counts: float64 `prompt`, `output`, `limit` and `cached` in tokens, nan where there is none.
      labels: those of `besteffort.workload.fields.LABELS` that there are, by name.
      failed: whether the file says that a request failed.
      names: what the file calls each field.
      model_columns: further columns that name models in another sense.
      rows: place of each request in the file.
      ids: int64 hashes of the requests' ids, 0 where there is none; None where the file has none.
      layout: what the file is written in.
      units: how times were read.
      notes: what was left out, and why, a sentence each.
      doubt: why no times but arrivals can be used, as more than a few requests run backwards; empty if they can.
    """

    path: Path
    kind: str
    seconds: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]
    labels: dict[str, Labels]
    failed: np.ndarray
    names: dict[str, str]
    rows: np.ndarray
    layout: Layout
    ids: np.ndarray | None = None
    units: str = ""
    notes: tuple[str, ...] = ()
    doubt: str = ""
    model_columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def answered(self) -> np.ndarray:
        """(n,) whether a request has all that the file tells of answers, and did not fail."""
        told = [values for values in (self.counts.get("output"), self.seconds.get("last")) if values is not None]
        return ~self.failed & np.all([np.isfinite(values) for values in told], axis=0)

    def place(self, index: int) -> str:
        """The file and a request's place in it, for messages."""
        return f"{self.path}, {self.spot(index)}"

    def spot(self, index: int) -> str:
        """A request's place in the file."""
        return f"{'entry' if self.layout == 'json' else 'line'} {self.rows[index]}"

    def time(self, field: str) -> np.ndarray:
        """(n,) seconds of a field; nan where the file has none."""
        return self.seconds.get(field, np.full(len(self), np.nan))

    def part(self, chosen: np.ndarray, *notes: str) -> Records:
        """The requests that an index or (n,) of bool chooses, with further notes."""
        return dataclasses.replace(
            self,
            seconds={field: values[chosen] for field, values in self.seconds.items()},
            counts={field: values[chosen] for field, values in self.counts.items()},
            labels={f: dataclasses.replace(each, index=each.index[chosen]) for f, each in self.labels.items()},
            failed=self.failed[chosen],
            rows=self.rows[chosen],
            ids=None if self.ids is None else self.ids[chosen],
            notes=(*self.notes, *notes),
        )


def with_derived_times(seconds: dict[str, np.ndarray], output: np.ndarray | None) -> dict[str, np.ndarray]:
    """Adds times that follow from others: tokens from durations, an arrival from an end and a duration.

    Args:
      seconds: (n,) by field.
      output: (n,) output tokens, where the file has them.
    """
    made = dict(seconds)
    if "arrival" not in made and {"last", "latency"} <= made.keys():
        made["arrival"] = made["last"] - made["latency"]
    if "arrival" not in made and "queued" in made:
        made["arrival"] = made["queued"]
    if "arrival" in made and "wait" in made:
        made["scheduled"] = _or(made.get("scheduled"), made["arrival"] + made["wait"])
    if "arrival" in made and "ttft" in made:
        # Where an answer is not streamed, many tools write 0.
        ttft = np.where((made["ttft"] > 0) | (made["ttft"] < -ROUNDING_S), made["ttft"], np.nan)
        made["first"] = _or(made.get("first"), made["arrival"] + ttft)
    if "arrival" in made and "latency" in made:
        made["last"] = _or(made.get("last"), made["arrival"] + made["latency"])
    if "first" in made and "decode" in made:
        made["last"] = _or(made.get("last"), made["first"] + made["decode"])
    if "first" in made and "tpot" in made and output is not None:
        made["last"] = _or(made.get("last"), made["first"] + made["tpot"] * np.maximum(output - 1, 0))
    return made


def _or(stated: np.ndarray | None, derived: np.ndarray) -> np.ndarray:
    return derived if stated is None else np.where(np.isnan(stated), derived, stated)


def without_duplicates(records: Records) -> Records:
    """Leaves out requests that stand in the file twice.

    Those are answered requests of one id and equal lengths, the later of which arrives before the earlier one ends.
    Others of one id are a further try, or of another worker that counts its own. Where the file has no ids they are
    rows that agree in all that is read, unless the clock is too coarse to tell requests apart, a millisecond or more,
    or a second where durations are known, too; such rows are kept and counted.
    """
    n, ids = len(records), records.ids
    if n < 2:
        return records
    if ids is not None and (ids != 0).any():
        known = np.flatnonzero((ids != 0) & records.answered)
        distinct = n - len(known) + len(np.unique(ids[known]))
        if distinct == n:
            return records
        if distinct >= n / 3:
            again = _seen_again(records, ids, known)
            others = n - distinct - len(again)
            notes = []
            if len(again):
                notes.append(f"{len(again):,} of {n:,} rows have the id of an earlier row and are left out")
            if others:
                notes.append(f"{others:,} of {n:,} rows have the id of another but are no copy of it and stay")
            return records.part(np.delete(np.arange(n), again), *notes)
    keys = [*records.seconds.values(), *records.counts.values()]
    keys += [each.index.astype(np.float64) for each in records.labels.values()]
    table = np.ascontiguousarray(np.nan_to_num(np.stack(keys, axis=1), nan=-1.0))
    _, first = np.unique(table.view([("", table.dtype)] * table.shape[1]).ravel(), return_index=True)
    twice = n - len(first)
    if not twice:
        return records
    if _coarse(records):
        note = f"{twice:,} of {n:,} rows equal another and are kept, since the clock is too coarse to tell them apart"
        return dataclasses.replace(records, notes=(*records.notes, note)) if twice > n / 4 else records
    return records.part(np.sort(first), f"{twice:,} of {n:,} rows equal an earlier row and are left out")


def _seen_again(records: Records, ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Rows, of those `known` by their id, that state a request of an earlier row."""
    arrival, last = records.seconds["arrival"], records.time("last")
    order = known[np.lexsort((known, arrival[known], ids[known]))]
    row, before = order[1:], order[:-1]
    again = (ids[row] == ids[before]) & ~((arrival[row] >= last[before]) & (arrival[row] > arrival[before]))
    for values in records.counts.values():
        again &= (values[row] == values[before]) | np.isnan(values[row]) | np.isnan(values[before])
    return row[again]


def _coarse(records: Records) -> bool:
    """Whether all times are whole seconds or, where arrivals are all that is known, whole milliseconds."""
    step_s = 1.0 if len(records.seconds) > 1 else _COARSE_S
    times = [values[np.isfinite(values)] for values in records.seconds.values()]
    return all(np.allclose(values / step_s, np.rint(values / step_s), rtol=0, atol=1e-3) for values in times)


def with_coarseness(records: Records) -> Records:
    """Says where most requests share their time of arrival, as where a spreadsheet has rounded it."""
    n, distinct = len(records), len(np.unique(records.seconds["arrival"]))
    if n < _FEW or distinct >= n / 2:
        return records
    name = records.names.get("arrival", "arrival")
    note = f"only {distinct:,} of {n:,} arrivals differ, so the clock of `{name}` is coarse or was rounded"
    return dataclasses.replace(records, notes=(*records.notes, note))


def in_order(records: Records, *, strict: bool, naive: tuple[str, ...]) -> Records:
    """The requests in order of arrival.

    Args:
      records: the requests, all with an arrival.
      strict: refuse what is out of order, as in files that are written in order, where it is damage.
      naive: names of date columns without a time zone, which may go back when clocks are set back.

    Raises:
      InputError: if an order is required and there is none, or a clock was set back.
    """
    arrival, name = records.seconds["arrival"], records.names.get("arrival", "arrival")
    back = np.flatnonzero(np.diff(arrival) < 0)
    if not len(back):
        return records
    if name in naive:
        _refuse_clock_change(records, name)
    if strict:
        raise InputError(
            f"{records.place(int(back[0]) + 1)}: `{name}` goes back in time; sort the file by `{name}`, or, if a clock "
            "was set back, write its times in UTC."
        )
    moved = int((np.maximum.accumulate(arrival) > arrival).sum())
    note = f"{moved:,} of {len(arrival):,} rows stood after a later arrival and are sorted"
    return records.part(np.argsort(arrival, kind="stable"), note)


def _refuse_clock_change(records: Records, name: str) -> None:
    """Refuses local times in which a clock was set back, from which on many rows lie before an earlier one.

    Raises:
      InputError: if one was.
    """
    arrival, n = records.seconds["arrival"], len(records)
    lag = max(n // 10, 1)  # rows that are near each other may stand in any order
    newest_first = np.median(arrival[lag:] - arrival[:-lag]) < 0
    in_time = arrival[::-1] if newest_first else arrival
    jumps = -np.diff(in_time)
    behind = np.maximum.accumulate(in_time) - in_time >= _CLOCK_CHANGE_S
    if 1 <= (jumps >= _CLOCK_CHANGE_S).sum() <= 2 and not few(int(behind.sum()), n):
        at = int(np.argmax(jumps)) + 1
        raise InputError(
            f"{records.place(n - 1 - at if newest_first else at)}: `{name}` goes back in time by {jumps.max():,.0f} s "
            "and names no time zone, as when clocks are set back; sorting would mix two hours, so write the times in "
            "UTC."
        )


def from_gathered(
    gathered: Gathered, *, path: Path, kind: str, layout: Layout, seconds: dict[str, np.ndarray], units: str
) -> Records:
    """The requests of gathered columns, whose times are in `seconds`."""
    counts = {field: column.values for field, column in gathered.columns.items() if field in COUNTS}
    return Records(
        path=path,
        kind=kind,
        seconds=with_derived_times(seconds, counts.get("output")),
        counts=counts,
        labels=gathered.labels,
        failed=np.zeros(len(gathered), bool) if gathered.failed is None else gathered.failed,
        names={
            **({"arrival": gathered.columns["queued"].name} if "queued" in gathered.columns else {}),
            **{field: column.name for field, column in gathered.columns.items()},
            **{field: each.name for field, each in gathered.labels.items()},
        },
        rows=gathered.rows,
        layout=layout,
        ids=gathered.ids,
        units=units,
    )
