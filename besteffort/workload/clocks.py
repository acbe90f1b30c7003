"""Units and clocks of logged times: what the format or a column's name says, else what the data say.

Numbers that are all 1e9 or more are times since 1970, whose size tells the unit. Others count from some start; where
first and last tokens are known, the time per token tells their unit, since no server takes less than half a millisecond
or more than half a second for it, and otherwise they are taken for seconds. Whatever was decided is said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from besteffort.errors import InputError
from besteffort.workload.columns import Column
from besteffort.workload.fields import EARLIEST, LATEST_S, PER_SECOND, TIMES, Unit

_LONGEST_PACE_S = 0.5
_PROMPT_IN_TOKENS = 10  # reading a prompt may take as long as so many tokens
_SHORTEST_S = 1e-3  # no first token comes sooner
_LONGEST_SPAN_S = 20 * 366 * 86_400.0
_WORDS: dict[Unit, str] = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_UNITS: tuple[Unit, ...] = ("s", "ms", "us", "ns")


@dataclasses.dataclass(frozen=True)
class Clocks:
    """Times and durations in seconds.

    Attributes:
      seconds: (n,) float64 by field, nan where the file has none; dates count from the first of the file, other times
        from the start of their own clock.
      said: how times were read, in a few words.
      naive: names of date columns without a time zone.
    """

    seconds: dict[str, np.ndarray]
    said: str
    naive: tuple[str, ...]


def in_seconds(path: Path, columns: Mapping[str, Column]) -> Clocks:
    """Reads times and durations as seconds.

    Raises:
      InputError: if a column mixes units, its values cannot be of the unit that its name states, or some dates name a
        time zone and others do not.
    """
    times = {field: _without_unset(columns[field]) for field in TIMES if field in columns}
    columns = {**columns, **times}
    seconds, words = _dates(path, times)
    numbers = {field: column for field, column in times.items() if not column.dated}
    units: dict[str, Unit] = {}
    # Counts of nanoseconds from some start are as large as times since 1970, but begin with smaller ones.
    counting = max((_median(column.values) for column in numbers.values() if _least(column) < EARLIEST), default=0.0)
    for field, column in numbers.items():
        unit = _stated_or_epoch(path, column, counting)
        if unit is not None:
            units[field] = unit
    undecided = [field for field in numbers if field not in units]
    known = _relative_unit(undecided, columns, units)
    units |= dict.fromkeys(undecided, known or "s")
    for field, column in numbers.items():
        seconds[field] = column.values / PER_SECOND[units[field]]
    words += _words(numbers, units, () if known else undecided)
    durations, lasting = _durations(columns, seconds)
    seconds |= durations
    if lasting and (set(lasting.values()) != set(units.values()) or len(numbers) < len(times)):
        apart = _words({field: columns[field] for field in lasting}, lasting, ())
        words.append(f"durations {' and '.join(apart)}" if words else " and ".join(apart))
    for field in times:
        values = seconds[field][np.isfinite(seconds[field])]
        if len(values) and values.max() - values.min() > _LONGEST_SPAN_S:
            raise InputError(
                f"{path}: `{times[field].name}` spans {(values.max() - values.min()) / 86_400 / 365.25:,.0f} years; "
                "mend it, or state its unit, as in `--columns arrival=NAME:ms`."
            )
    naive = tuple(column.name for column in times.values() if column.dated and not column.zoned)
    return Clocks(seconds, ", ".join(dict.fromkeys(words)), naive)


def _without_unset(column: Column) -> Column:
    """The column, in which 0 among times since 1970 is none."""
    if column.dated or not EARLIEST <= _median(column.values) < np.inf:
        return column
    return dataclasses.replace(column, values=np.where(column.values == 0, np.nan, column.values))


def _dates(path: Path, times: Mapping[str, Column]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Seconds since the first date of all; exact to the nanosecond near it.

    Raises:
      InputError: if some columns name a time zone and others do not.
    """
    zones = {column.zoned: column.name for column in times.values() if column.dated}
    if len(zones) > 1:
        raise InputError(
            f"{path}: `{zones[False]}` names no time zone and `{zones[True]}` does, so they may be hours apart; write "
            "both in UTC."
        )
    missing = np.iinfo(np.int64).min
    dated = {field: column.values for field, column in times.items() if column.dated}
    firsts = [values[values != missing].min() for values in dated.values() if (values != missing).any()]
    if not firsts:
        return {field: np.full(len(values), np.nan) for field, values in dated.items()}, []
    origin = min(firsts)
    # A file may have dates and times since 1970: then dates are such times, too.
    mixed = any(not column.dated and np.nanmax(column.values, initial=0) >= EARLIEST for column in times.values())
    seconds = {}
    for field, values in dated.items():
        apart = np.where(values == missing, 0, values - origin) / 1e9 + (origin / 1e9 if mixed else 0.0)
        seconds[field] = np.where(values == missing, np.nan, apart)
    zoned = all(times[field].zoned for field in dated)
    return seconds, ["dates" if zoned else "dates without a time zone"]


def _stated_or_epoch(path: Path, column: Column, counting: float) -> Unit | None:
    """The stated unit of a column of numbers, or that of times since 1970; None of others.

    Args:
      path: the file.
      column: the column.
      counting: the middle of the largest column that counts from some start.
    """
    values = column.values[np.isfinite(column.values)]
    if not len(values):
        return column.unit or "s"
    middle = float(np.median(values))
    if column.unit is not None:
        if middle >= LATEST_S * PER_SECOND[column.unit]:
            raise InputError(
                f"{path}: `{column.name}` is {middle:.4g} in the middle, which cannot be {_WORDS[column.unit]}; "
                f"rename it, or state its unit, as in `--columns arrival={column.name}:ms`."
            )
        return column.unit
    if values.min() < EARLIEST:
        return None
    if values.max() > 10 * values.min():
        if middle < 10 * counting:
            return None
        raise InputError(
            f"{path}: `{column.name}` goes from {values.min():.4g} to {values.max():.4g}, so it mixes units or clocks; "
            "write all of it in one unit."
        )
    return next((unit for unit in _UNITS if middle < LATEST_S * PER_SECOND[unit]), "ns")


def _relative_unit(undecided: Sequence[str], columns: Mapping[str, Column], units: Mapping[str, Unit]) -> Unit | None:
    """The unit of times that count from some start, which others of the clock or a token's time tell; None if not."""
    alike = {units[field] for field in units if not _is_epoch(columns[field], units[field])}
    if len(alike) == 1 and _follow(columns, undecided, next(iter(alike))):
        return alike.pop()
    start = next((field for field in ("first", "scheduled", "queued", "arrival") if field in undecided), None)
    if start is None or not {"last"} <= set(undecided) or "output" not in columns:
        return None
    read = 0 if start == "first" else _PROMPT_IN_TOKENS
    return _by_pace(columns["last"].values - columns[start].values, columns["output"].values + read)


def _follow(columns: Mapping[str, Column], undecided: Sequence[str], unit: Unit) -> bool:
    """Whether stated times lie after arrivals read in a unit and grow with them, as durations do not.

    Args:
      columns: the columns, by field.
      undecided: fields of no known unit.
      unit: the unit of the others.
    """
    if "arrival" not in undecided:
        return True
    arrival_s = columns["arrival"].values / PER_SECOND[unit]
    stated = [columns[field] for field in TIMES if field in columns and field not in undecided]
    later = [column.values / PER_SECOND[column.unit] for column in stated if column.unit and not column.dated]
    return all(
        _median(values - arrival_s) >= 0 and _span(values[np.isfinite(arrival_s)]) >= 0.5 * _span(arrival_s)
        for values in later
    )


def _by_pace(durations: np.ndarray, tokens: np.ndarray) -> Unit | None:
    """The unit in which a token takes a plausible time; None where none was timed."""
    with np.errstate(invalid="ignore", divide="ignore"):
        pace = durations / tokens
    pace = pace[np.isfinite(pace) & (pace > 0)]
    if not len(pace):
        return None
    middle = float(np.median(pace))
    return next((unit for unit in _UNITS if middle < _LONGEST_PACE_S * PER_SECOND[unit]), "s")


def _is_epoch(column: Column, unit: Unit) -> bool:
    values = column.values[np.isfinite(column.values)]
    return bool(len(values)) and float(np.median(values)) >= EARLIEST * PER_SECOND[unit]


def _words(numbers: Mapping[str, Column], units: Mapping[str, Unit], assumed: Sequence[str]) -> list[str]:
    """Units in words, with the columns that have them where they differ."""
    words = []
    for unit in _UNITS:
        group = [field for field in numbers if units[field] == unit]
        if not group:
            continue
        apart = f" (`{'`, `'.join(numbers[field].name for field in group)}`)" if len(group) < len(numbers) else ""
        guessed = ", assumed" if set(group) & set(assumed) else ""
        words.append(f"{_WORDS[unit]}{apart}{guessed}")
    return words


def _durations(
    columns: Mapping[str, Column], seconds: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Unit]]:
    """Durations in seconds, and the units they had; where none is stated, a token's time or the others decide."""
    found: dict[str, np.ndarray] = {}
    units: dict[str, Unit] = {}
    for field in ("latency", "decode", "tpot", "ttft", "wait"):
        if field not in columns:
            continue
        column = columns[field]
        unit = column.unit
        if unit is None and field in ("latency", "decode") and "output" in columns:
            read = 0 if field == "decode" else _PROMPT_IN_TOKENS
            unit = _by_pace(column.values, columns["output"].values + read)
        elif unit is None and field == "tpot":
            unit = _by_pace(column.values, np.ones(len(column.values)))
        elif unit is None:
            whole = found.get("latency", np.array([np.inf]))
            if "latency" not in found and {"arrival", "last"} <= seconds.keys():
                whole = seconds["last"] - seconds["arrival"]
            unit = _within(_median(column.values), 1.01 * _median(whole), units.values())
        units[field] = unit or "s"
        found[field] = column.values / PER_SECOND[units[field]]
    return found, units


def _within(middle: float, longest_s: float, others: Iterable[Unit]) -> Unit:
    """The unit in which a duration is part of a longer one: that of the log's other durations, if it may be."""
    choices = [unit for unit in dict.fromkeys((*others, *_UNITS)) if middle <= longest_s * PER_SECOND[unit]]
    return next((unit for unit in choices if middle >= _SHORTEST_S * PER_SECOND[unit]), (*choices, "s")[0])


def _least(column: Column) -> float:
    return float(np.nanmin(column.values, initial=np.inf))


def _span(values: np.ndarray) -> float:
    return float(np.nanmax(values, initial=-np.inf) - np.nanmin(values, initial=np.inf))


def _median(values: np.ndarray) -> float:
    finite = values[~np.isnan(values)]
    return float(np.median(finite)) if len(finite) else np.inf
