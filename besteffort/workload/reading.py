"""Reads a log: recognises its format by its content, and returns its requests as `Records`, or what draws them.

Everything that takes requests from a file comes here: `--trace`, `simulate` and `profile fit` alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from besteffort.errors import InputError
from besteffort.validation import did_you_mean
from besteffort.workload import clocks, records
from besteffort.workload.cells import missing
from besteffort.workload.columns import gather, getter
from besteffort.workload.doubtful import without_backwards
from besteffort.workload.fields import DURATIONS, FIELDS, PER_SECOND, TIMES, Field, Unit, found
from besteffort.workload.opening import open_source
from besteffort.workload.readers import READERS, Reader, any_log
from besteffort.workload.readers.types import Draw, require_newline
from besteffort.workload.records import Records, few
from besteffort.workload.sources import Source, listed, shown


@dataclasses.dataclass(frozen=True)
class Reading:
    """What to read of a file, and how; by default all, as its content says.

    Attributes:
      columns: `field=column` or `field=column:unit`, where a field is one of `besteffort.workload.fields.FIELDS` and a
        unit `s`, `ms`, `us` or `ns`. Of a file of a known format they replace single columns; a file of no known format
        they describe in full.
      limit: only the first so many rows.
      start_s, end_s: only requests that arrive so many seconds after the first, or later; and before these.
    """

    columns: tuple[str, ...] = ()
    limit: int | None = None
    start_s: float | None = None
    end_s: float | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"`--limit` is {self.limit}; give at least 1.")
        start_s, end_s = self.start_s or 0.0, np.inf if self.end_s is None else self.end_s
        if not 0 <= start_s < end_s:
            raise InputError(
                f"`--from` is {start_s:g} s and `--to` {end_s:g} s; give seconds after the first arrival, the smaller "
                "number first."
            )


ALL = Reading()

_WANTED = {
    "arrival": "the arrivals (`arrival_s`)",
    "prompt": "the prompt lengths (`prompt_tokens`)",
    "output": "the output lengths (`output_tokens`)",
}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A file whose requests are drawn by seed, because it holds counts or rates.

    Attributes:
      path: the file.
      kind: its format.
      draw: draws its requests.
      notes: what was done to it, a sentence each.
    """

    path: Path
    kind: str
    draw: Draw
    notes: tuple[str, ...] = ()


def read(
    path: str | Path,
    reading: Reading = ALL,
    *,
    kind: str | None = None,
    tasks: int = 1,
    options: Mapping[str, Any] | None = None,
) -> Records | Drawing:
    """Reads a file of any known format.

    Args:
      path: CSV, JSON lines or JSON, plain or gzip-compressed.
      reading: what to read of it.
      kind: the format, a key of `READERS`; None to recognise it.
      tasks: over how many tasks to spread the counts of a file that holds counts.
      options: options of formats that hold counts or rates, by their name.

    Raises:
      InputError: on a damaged file, an unknown format, or one that holds no request.
    """
    with open_source(path) as source:
        name, reader = _reader(source, reading, kind)
        if reader.draw is not None:
            if reading != ALL:
                raise InputError(
                    f"{path}: a file of {reader.title} holds no single requests, so `--limit`, `--from`, `--to` and "
                    "`--columns` have nothing to choose from; leave them out."
                )
            return Drawing(
                source.path, name, reader.draw(source, tasks, (options or {}).get(name)), tuple(source.notes)
            )
        return _records(source, name, reader, reading)


def _records(source: Source, name: str, reader: Reader, reading: Reading) -> Records:
    if reader.unfold is not None:
        source.unfold(reader.unfold(source))
        if not source.sample:
            raise InputError(f"{source.path}: the file ({reader.title}) holds no request; give one with at least one.")
    if reading.columns:
        reader = _with_columns(source, reader, reading.columns)
    _require_arrivals(source, reader)
    gathered = gather(source, reader.fields, source.rows(), reading.limit)
    if reading.limit is None and reader.cut_shows and len(gathered):
        require_newline(source, int(gathered.rows[-1]))
    if not len(gathered):
        raise InputError(f"{source.path}: the file holds no request; give a file with at least one.")
    timed = clocks.in_seconds(source.path, gathered.columns)
    requests = records.from_gathered(
        gathered, path=source.path, kind=name, layout=source.layout, seconds=timed.seconds, units=timed.said
    )
    model_columns = _model_columns(source, reader)
    counted = (f"{count:,} {what}" for what, count in source.counted.items())
    notes = (*source.notes, *counted, *_other_arrivals(source, reader))
    requests = dataclasses.replace(requests, notes=notes, model_columns=model_columns)
    requests = _without_gaps(source, requests, reader)
    requests = without_backwards(requests, strict=reader.ordered)
    requests = records.without_duplicates(requests)
    requests = records.with_coarseness(records.in_order(requests, strict=reader.ordered, naive=timed.naive))
    return _between(requests, reading)


def _reader(source: Source, reading: Reading, kind: str | None) -> tuple[str, Reader]:
    if kind is not None:
        if kind not in READERS:
            raise InputError(f"{source.path}: unknown trace format `{kind}`; choose from {', '.join(READERS)}.")
        return kind, READERS[kind]
    for name, reader in READERS.items():
        if reader.fits(source) and not (reading.columns and reader.draw):
            return name, reader
    if reading.columns:
        return "columns", Reader("columns", "", lambda _: True)
    known = found(any_log.READER.fields, source.header)
    missing = [what for field, what in _WANTED.items() if field not in known]
    lacks = f"; no column has {' or '.join(missing)}" if known and missing else ""
    raise InputError(
        f"{source.path}: the file fits no known trace format{lacks}; name the columns "
        "arrival_s,task,prompt_tokens,output_tokens, or say with `--columns arrival=...,prompt=...,output=...` which "
        f"of {listed(source.header)} is which."
    )


_SAME = (("scheduled", "wait"), ("first", "ttft"), ("last", "latency", "decode", "tpot"))
"""Fields that state the same time, each in its own way."""


def _with_columns(source: Source, reader: Reader, texts: Sequence[str]) -> Reader:
    """The reader with columns that the user names in place of its own for the same."""
    named = _named(source, texts)
    same = {other for group in _SAME if named.keys() & set(group) for other in group}
    if reader.fields:
        said = ", ".join(f"{field} is `{each.names[0]}`" for field, each in named.items())
        source.notes.append(f"as `--columns` says, {said}")
    kept = {field: each for field, each in reader.fields.items() if field not in same}
    if "arrival" in kept:  # A column that the user calls the end is no arrival, which then follows from the latency.
        ends = {each.names[0] for field, each in named.items() if field in TIMES}
        names = tuple(name for name in kept["arrival"].names if name not in ends)
        arrival = kept.pop("arrival")
        kept |= {"arrival": dataclasses.replace(arrival, names=names)} if names else {}
    return dataclasses.replace(reader, fields={**kept, **named})


def _model_columns(source: Source, reader: Reader) -> tuple[str, ...]:
    """Columns that are not read but name models in another sense, as far as the first rows show."""
    used = found(reader.fields, source.header).get("model")
    others = [name for name in reader.model_columns if name != used and source.has(name)]
    if not others:
        return ()
    columns = zip(*map(getter(source, others), source.sample), strict=True)
    return tuple(name for name, cells in zip(others, columns, strict=False) if not all(map(missing, cells)))


def _other_arrivals(source: Source, reader: Reader) -> tuple[str, ...]:
    """Says which of several columns that may tell arrivals was read."""
    names = reader.fields["arrival"].names if "arrival" in reader.fields else ()
    used, *others = [name for name in names if source.has(name)] or [""]
    if not others:
        return ()
    return (f"arrivals are `{used}`, not {listed(others, 3)}, which `--columns arrival={others[0]}` would take",)


def _named(source: Source, texts: Sequence[str]) -> dict[str, Field]:
    """The fields whose columns the user names."""
    fields: dict[str, Field] = {}
    for text in (part for each in texts for part in each.split(",")):
        field, _, column = (part.strip() for part in text.partition("="))
        if not column:
            raise InputError(
                f"`--columns {text}` names no column; write it like `--columns arrival=ts:ms,prompt=n_in`."
            )
        if field not in FIELDS:
            raise InputError(
                f"`--columns {text}`: `{field}` is not a field{did_you_mean(field, FIELDS)}; "
                f"choose from {', '.join(FIELDS)}."
            )
        if field in fields:
            raise InputError(f"`--columns` names `{field}` twice; name it once.")
        stem, colon, unit = column.rpartition(":")
        stated: Unit | None = None
        if colon and column not in source.header:
            stated = next((known for known in PER_SECOND if known == unit), None)
            if stated is None:
                raise InputError(f"`--columns {text}`: `{unit}` is no unit; choose from {', '.join(PER_SECOND)}.")
            column = stem
            if field not in (*TIMES, *DURATIONS):
                raise InputError(f"`--columns {text}`: `{field}` has no unit; leave `:{unit}` out.")
        if column not in source.header:
            raise InputError(
                f"{source.path}: there is no column `{shown(column)}`{did_you_mean(column, source.header)}; "
                f"the file has {listed(source.header)}."
            )
        fields[field] = Field((column,), stated)
    return fields


def _require_arrivals(source: Source, reader: Reader) -> None:
    """Refuses a file that lacks the times of the format, or of the columns, that were named for it.

    Raises:
      InputError: if it has no times of arrival.
    """
    names = found(reader.fields, source.header)
    if not ({"arrival", "queued"} & names.keys() or {"last", "latency"} <= names.keys()):
        field = reader.fields.get("arrival") or reader.fields.get("last")
        raise InputError(
            f"{source.path}: column `{field.names[0] if field else 'arrival'}` is missing; the header has "
            f"{listed(source.header)}; no column has the arrivals, so say which one does, `--columns arrival=NAME`."
        )


def _without_gaps(source: Source, requests: Records, reader: Reader) -> Records:
    """The requests that have an arrival and, if answered, a prompt; many answered ones without are refused."""
    output, last = requests.counts.get("output"), requests.seconds.get("last")
    unfinished = requests.failed.copy()
    if not reader.ordered:
        unfinished |= False if output is None else np.isnan(output)
        unfinished |= False if last is None else np.isnan(last)
    needed = {"arrival": requests.seconds["arrival"], "prompt": requests.counts.get("prompt")}
    if reader.ordered:
        needed["output"] = output
    kept, notes = np.ones(len(requests), bool), []
    total = int((~unfinished).sum())
    for field, values in needed.items():
        gaps = np.zeros(0, int) if values is None else np.flatnonzero(np.isnan(values) & ~unfinished & kept)
        if len(gaps) and few(len(gaps), total) and not reader.ordered:
            said = f"{len(gaps):,} of {total:,} answered requests state no `{requests.names.get(field, field)}` and are"
            notes.append(f"{said} left out, the first in {requests.spot(int(gaps[0]))}")
            kept[gaps] = False
        elif len(gaps):
            more = f" ({len(gaps) - 1:,} more lack it)" if len(gaps) > 1 else ""
            why = f"but an answered request has to state it{more}"
            source.refuse(int(requests.rows[gaps[0]]), requests.names.get(field, field), "", why)
    limit = requests.counts.get("limit")
    if reader.ordered and limit is not None:
        _refuse_limits(source, requests, requests.names["limit"], limit, output)
    cached, prompt = requests.counts.get("cached"), requests.counts.get("prompt")
    if cached is not None and prompt is not None and (high := cached > prompt).any():
        if reader.ordered:
            row, why = int(np.argmax(high)), "which is above its `prompt_tokens`"
            source.refuse(int(requests.rows[row]), requests.names["cached"], f"{cached[row]:g}", why)
        note = f"{high.sum():,} prompts have more tokens in the prefix cache than they have, which counts as all"
        requests = dataclasses.replace(requests, notes=(*requests.notes, note))
    lost = kept & np.isnan(requests.seconds["arrival"])
    if lost.all():
        raise InputError(
            f"{source.path}: no request has a time of arrival; give a log in which requests were answered."
        )
    if lost.any():
        notes.append(f"{lost.sum():,} of {len(lost):,} rows have no time of arrival and are left out")
    return requests.part(kept & ~lost, *notes) if notes else requests


def _refuse_limits(source: Source, requests: Records, name: str, limit: np.ndarray, output: np.ndarray | None) -> None:
    for low, why in (
        (limit < 1, "which is below 1"),
        (np.zeros(len(limit), bool) if output is None else limit < output, "which is below its `output_tokens`"),
    ):
        if low.any():
            row = int(np.argmax(low))
            source.refuse(int(requests.rows[row]), name, f"{limit[row]:g}", why)


def _between(requests: Records, reading: Reading) -> Records:
    """The requests that arrive in the part that is asked for."""
    if reading.start_s is None and reading.end_s is None:
        return requests
    since = requests.seconds["arrival"] - requests.seconds["arrival"][0]
    start_s, end_s = reading.start_s or 0.0, np.inf if reading.end_s is None else reading.end_s
    chosen = (since >= start_s) & (since < end_s)
    if not chosen.any():
        raise InputError(
            f"{requests.path}: no request arrives from {start_s:g} to {end_s:g} s after the first; the last one does "
            f"after {since[-1]:g} s."
        )
    return requests.part(
        chosen, f"{(~chosen).sum():,} of {len(chosen):,} requests arrive before `--from` or after `--to`"
    )
