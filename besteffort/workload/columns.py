"""Gathers the columns that a reader wants from the rows of a file, as arrays, in bounded memory.

A million requests of five columns take about 50 MB, whatever else stands in the rows: cells become numbers, codes of
names or hashes of ids after every twenty thousand rows, and text is let go of.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from besteffort.errors import InputError
from besteffort.workload.cells import NO_DATE, CellError, dates, denies, is_date, missing, numbers, says_failed
from besteffort.workload.fields import (
    COUNTS,
    DURATIONS,
    LABELS,
    LATEST_S,
    OUTCOMES,
    PER_SECOND,
    TIMES,
    Field,
    Unit,
    found,
    unit_in_name,
)
from besteffort.workload.sources import Row, Source, listed, shown

MOST_TOKENS = 10_000_000
MOST_TIME = LATEST_S * max(PER_SECOND.values())
MOST_ROWS = 10_000_000
_CHUNK = 20_000
_UNSET = -1  # stands for no length, no limit and no duration in many programs
_MOST_NAMES, _LONGEST_NAME = 1_000, 200


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of numbers or dates.

    Attributes:
      name: what the file calls it.
      values: (n,) float64, nan where the cell is empty; of dates, int64 nanoseconds, NaT as the smallest.
      unit: its unit, as the format or its name says; None if neither does.
      dated: whether cells are dates.
      zoned: whether the dates say their time zone.
    """

    name: str
    values: np.ndarray
    unit: Unit | None = None
    dated: bool = False
    zoned: bool = False


@dataclasses.dataclass(frozen=True)
class Labels:
    """A column of names: `names`, and per row an index into them; -1 where the cell is empty."""

    name: str
    names: tuple[str, ...]
    index: np.ndarray


@dataclasses.dataclass(frozen=True)
class Gathered:
    """The columns of a file, by field.

    Attributes:
      columns: times, durations and counts.
      labels: names.
      ids: (n,) int64 hashes of the requests' ids; None where the file has none.
      failed: (n,) whether a request failed, as the file says; None where it does not.
      rows: (n,) int64 place of each request in the file, see `Source.place`.
    """

    columns: dict[str, Column]
    labels: dict[str, Labels]
    ids: np.ndarray | None
    failed: np.ndarray | None
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def gather(source: Source, fields: Mapping[str, Field], rows: Iterable[Row], limit: int | None = None) -> Gathered:
    """The columns of the fields that the file has.

    Args:
      source: the file.
      fields: where to find what.
      rows: its rows, or rows made of these.
      limit: how many rows to read, at most.

    Raises:
      InputError: naming the line of the first cell that is no number, no date, below 0 or too large; if a name that is
        read stands twice; if there are too many rows.
    """
    table = _Table(source, fields)
    for row in itertools.islice(rows, limit):
        table.add(row)
    return table.gathered()


class _Table:
    """The columns that are wanted of the rows so far; of objects also those that first stand in a later row."""

    def __init__(self, source: Source, fields: Mapping[str, Field]) -> None:
        self.source, self.fields = source, fields
        self.builders: list[tuple[str, str, _Numbers | _Names | _Mapped]] = []
        self.places: list[np.ndarray] = []
        self.total = 0
        # Only the wanted cells are kept, because others hold whole prompts.
        self.chunk: list[tuple[Any, ...]] = []
        for field, name in self._present(source.header):
            self._want(field, name)
        self._begin()

    def _present(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Fields and the columns, of these, that state them."""
        one = [(field, name) for field, name in found(self.fields, names).items() if field not in OUTCOMES]
        known = set(names)
        stated = [(field, self.fields[field].names) for field in OUTCOMES if field in self.fields]
        return one + [(field, name) for field, each in stated for name in each if name in known]

    def _want(self, field: str, name: str) -> None:
        if self.source.layout == "csv" and self.source.header.count(name) > 1:
            raise InputError(
                f"{self.source.path}: the column `{name}` stands twice in the header; rename or remove one."
            )
        builder = _builder(field, name, self.fields[field])
        if self.total:
            builder.pad(self.total)
        self.builders.append((field, name, builder))

    def _begin(self) -> None:
        """Prepares for rows with the present columns."""
        names = [name for _, name, _ in self.builders]
        self.take = getter(self.source, names)
        stated = {field for field, _, _ in self.builders if field not in OUTCOMES}
        self.later: dict[str, list[tuple[str, str]]] = {}
        for field, each in self.fields.items():
            for name in set(each.names) - set(names) if field not in stated else ():
                beginning, _, rest = name.partition(".")
                self.later.setdefault(name, []).append((name, ""))
                if rest:
                    self.later.setdefault(beginning, []).append((name, rest.partition(".")[0]))

    def add(self, row: Row) -> None:
        if isinstance(row.cells, dict) and not self.later.keys().isdisjoint(row.cells):
            self._widen(row.cells)
        self.chunk.append((row.number, *self.take(row)))
        if len(self.chunk) == _CHUNK:
            self._flush()

    def _widen(self, cells: dict[str, Any]) -> None:
        """Adds columns that stand in a row for the first time."""
        names = []
        for beginning in self.later.keys() & cells.keys():
            cell = cells[beginning]
            for name, inner in self.later[beginning]:
                value = cell if not inner else None
                if inner and isinstance(cell, dict) and inner in cell:
                    value = _nested(cells, name.split("."))
                if not missing(value):
                    names.append(name)
        if not names:
            return
        self._flush()
        stated = {field for field, _, _ in self.builders if field not in OUTCOMES}
        for field, name in self._present(names):
            if field not in stated:
                self._want(field, name)
        self._begin()

    def _flush(self) -> None:
        if not self.chunk:
            return
        numbers, *cells_of = zip(*self.chunk, strict=True)
        at = np.array(numbers, np.int64)
        for (_, _, builder), cells in zip(self.builders, cells_of, strict=True):
            builder.add(self.source, at, cells)
        self.places.append(at)
        self.total += len(at)
        self.chunk = []
        _refuse_repeated(self.source, [name for _, name, _ in self.builders])
        if self.total > MOST_ROWS:
            raise InputError(
                f"{self.source.path}: the file has more than {MOST_ROWS:,} requests; read a part of it with `--limit`."
            )

    def gathered(self) -> Gathered:
        self._flush()
        columns = {field: each.column() for field, _, each in self.builders if isinstance(each, _Numbers)}
        labels = {field: each.labels() for field, _, each in self.builders if isinstance(each, _Names)}
        plain = [(field, each.array()) for field, _, each in self.builders if isinstance(each, _Mapped)]
        ids = next((values for field, values in plain if field == "id"), None)
        failed = _any_failed([values for field, values in plain if field in OUTCOMES])
        where = np.concatenate(self.places) if self.places else np.zeros(0, np.int64)
        return Gathered(columns, labels, ids, failed, where)


def _any_failed(said: list[np.ndarray]) -> np.ndarray | None:
    """(n,) whether any column says that a request failed; one that alone says it of all is in other words."""
    if not said:
        return None
    some = [each for each in said if not each.all()]
    return np.logical_or.reduce(some or said)


def _refuse_repeated(source: Source, names: Iterable[str]) -> None:
    for name in names:
        for part in {name, name.rpartition(".")[2]}:
            if part in source.repeated:
                raise InputError(
                    f"{source.place(source.repeated[part])}: the name `{part}` stands twice in one object; "
                    "rename or remove one."
                )


def getter(source: Source, names: Sequence[str]) -> Callable[[Row], tuple[Any, ...]]:
    """Takes the cells of these names from a row."""
    if source.sample and isinstance(source.sample[0].cells, list):
        places = [source.header.index(name) for name in names]
        pick = operator.itemgetter(*places) if len(places) > 1 else lambda cells: (cells[places[0]],)
        return lambda row: pick(row.cells)
    nested = [tuple(name.split(".")) if "." in name else None for name in names]

    def get(row: Row) -> tuple[Any, ...]:
        cells = row.cells
        return tuple(
            cells.get(name) if path is None or name in cells else _nested(cells, path)
            for name, path in zip(names, nested, strict=True)
        )

    return get


def _nested(cells: Any, path: Sequence[str]) -> Any:
    """A field of nested objects."""
    for name in path:
        if not isinstance(cells, dict):
            return None
        cells = cells.get(name)
    return cells


class _Numbers:
    """Numbers; of times also dates, which the first cell that is not empty decides."""

    def __init__(self, field: str, name: str, each: Field) -> None:
        self.field, self.name, self.means = field, name, each.means
        self.unit = each.unit or unit_in_name(name)
        self.dated: bool | None = None if field in TIMES else False
        self.zoned: bool | None = None
        self.parts: list[np.ndarray] = []

    def add(self, source: Source, at: np.ndarray, cells: Sequence[Any]) -> None:
        if self.means is not None:
            cells = [self.means(cell) for cell in cells]
        if self.dated is None:
            first = next((cell for cell in cells if not missing(cell)), None)
            if first is None:
                self.parts.append(np.full(len(cells), np.nan))
                return
            self.dated = is_date(first)
            if self.dated:
                self.parts = [np.full(len(part), NO_DATE) for part in self.parts]
        try:
            self.parts.append(self._values(cells))
        except CellError as error:
            hint = ", nor a date like 2024-05-10T00:00:00Z" if self.field in TIMES and not self.dated else ""
            hint = hint if error.why.endswith("a number") else ""
            source.refuse(int(at[error.row]), self.name, cells[error.row], error.why + hint)

    def pad(self, count: int) -> None:
        """Adds empty cells in front."""
        self.parts.append(np.full(count, np.nan))

    def column(self) -> Column:
        values = np.concatenate(self.parts) if self.parts else np.zeros(0)
        return Column(self.name, values, self.unit, bool(self.dated), bool(self.zoned))

    def _values(self, cells: Sequence[Any]) -> np.ndarray:
        if self.dated:
            values, self.zoned = dates(cells, self.zoned)
            return values
        values = numbers(cells)
        if self.field in (*COUNTS, *DURATIONS):
            values = np.where(values == _UNSET, np.nan, values)
        bad = {}
        if self.field not in DURATIONS:  # which a clock that was set makes negative
            bad["which is below 0"] = values < 0
        if self.field in COUNTS:
            bad[f"which is above {MOST_TOKENS:,} tokens"] = values > MOST_TOKENS
            bad["which is no whole number of tokens"] = (values != np.rint(values)) & ~np.isnan(values)
        if self.field in (*TIMES, *DURATIONS):
            bad[f"which is above {MOST_TIME:g}, and no time in any unit"] = np.abs(values) > MOST_TIME
        for why, rows in bad.items():
            if rows.any():
                raise CellError(int(np.argmax(rows)), why)
        return values


class _Names:
    """Names, as codes."""

    def __init__(self, field: str, name: str, each: Field) -> None:
        self.field, self.name, self.means = field, name, each.means
        self.codes: dict[str, int] = {}
        self.parts: list[np.ndarray] = []

    def add(self, source: Source, at: np.ndarray, cells: Sequence[Any]) -> None:
        del at
        index = np.full(len(cells), -1, np.int32)
        for row, cell in enumerate(cells):
            value = cell if self.means is None else self.means(cell)
            if missing(value):
                continue
            text = str(value)
            if len(text) > _LONGEST_NAME:
                raise InputError(
                    f"{source.path}: `{self.name}` has a name of {len(text):,} characters, `{shown(text, 40)}`; "
                    f"give {self.field}s short names, or none."
                )
            index[row] = self.codes.setdefault(text, len(self.codes))
        if len(self.codes) > _MOST_NAMES:
            raise InputError(
                f"{source.path}: `{self.name}` has more than {_MOST_NAMES:,} names, {listed(self.codes, 3)}, so it is "
                f"no column of {self.field}s; rename or remove it."
            )
        self.parts.append(index)

    def pad(self, count: int) -> None:
        self.parts.append(np.full(count, -1, np.int32))

    def labels(self) -> Labels:
        return Labels(self.name, tuple(self.codes), np.concatenate(self.parts) if self.parts else np.zeros(0, np.int32))


class _Mapped:
    """One whole number per cell, such as a hash or a truth."""

    def __init__(self, value: Callable[[Any], int], dtype: Any) -> None:
        self.value, self.dtype = value, dtype
        self.parts: list[np.ndarray] = []

    def add(self, source: Source, at: np.ndarray, cells: Sequence[Any]) -> None:
        del source, at
        self.parts.append(np.fromiter(map(self.value, cells), self.dtype, len(cells)))

    def pad(self, count: int) -> None:
        self.parts.append(np.zeros(count, self.dtype))

    def array(self) -> np.ndarray:
        return np.concatenate(self.parts) if self.parts else np.zeros(0, self.dtype)


def _builder(field: str, name: str, each: Field) -> _Numbers | _Names | _Mapped:
    if field == "id":
        return _Mapped(lambda cell: 0 if missing(cell) else hash(str(cell)), np.int64)
    if field in OUTCOMES:
        if name == "status" and each.means is None:  # a truth there is one of success
            return _Mapped(lambda cell: denies(cell) if _is_truth(cell) else says_failed(cell), np.bool_)
        return _Mapped(each.means or (says_failed if field == "failed" else denies), np.bool_)
    return (_Names if field in LABELS else _Numbers)(field, name, each)


def _is_truth(cell: Any) -> bool:
    return str(cell).strip().lower() in ("true", "false")
