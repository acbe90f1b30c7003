"""Files as rows: what a reader sees of one, whatever it is written in."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from besteffort.errors import InputError

_SAMPLE = 100
_DEEPEST = 5

Layout = Literal["csv", "json lines", "json"]


class Row(NamedTuple):
    """One row.

    Attributes:
      number: line on which it begins, or its place in a JSON document, counted from 1.
      cells: cells in the order of the header, or a JSON object.
    """

    number: int
    cells: Any


class Source:
    """A file whose rows are read once.

    Attributes:
      path: the file.
      layout: what it is written in.
      header: names of the columns, or of the fields of the first 100 objects; those of nested objects are dotted.
      document: the object that a JSON document is, where it is not a list of rows.
      sample: the first rows.
      repeated: names that stand twice in one JSON object, and where.
      notes: what a reader has to say of it.
      counted: what a reader has to say of some of the rows read so far, and of how many.
    """

    def __init__(self, path: Path, layout: Layout, rows: Iterable[Row], header: tuple[str, ...] = ()) -> None:
        self.path, self.layout = path, layout
        self.repeated: dict[str, int] = {}
        self.notes: list[str] = []
        self.counted: collections.Counter[str] = collections.Counter()
        self.ends_with_newline = True
        self.document: dict[str, Any] | None = None
        self._rows = iter(rows)
        self.sample = tuple(itertools.islice(self._rows, _SAMPLE))
        self.header = header or tuple(dict.fromkeys(name for row in self.sample for name in _names(row.cells)))

    def rows(self) -> Iterator[Row]:
        """All rows, once."""
        return itertools.chain(self.sample, self._rows)

    def objects(self) -> Iterator[Row]:
        """All rows, once, as objects: those of a table by their columns."""
        header = self.header
        for row in self.rows():
            yield Row(row.number, dict(zip(header, row.cells, strict=True))) if isinstance(row.cells, list) else row

    def replace_rest(self, change: Callable[[Iterator[Row]], Iterator[Row]]) -> None:
        """Puts what `change` makes of the rows after the sample in their place."""
        self._rows = change(self._rows)

    def unfold(self, rows: Iterator[Row]) -> None:
        """Puts rows of objects, made of the present ones, in their place."""
        self.sample = tuple(itertools.islice(rows, _SAMPLE))
        self._rows = rows
        self.header = tuple(dict.fromkeys(name for row in self.sample for name in _names(row.cells)))

    def has(self, *names: str) -> bool:
        """Whether the header has all these names."""
        return set(names) <= set(self.header)

    def place(self, number: int) -> str:
        """The file and a row of it, for messages."""
        return f"{self.path}, {'entry' if self.layout == 'json' else 'line'} {number}"

    def refuse(self, number: int, name: str, value: Any, why: str) -> NoReturn:
        """Raises `InputError` about a cell."""
        raise InputError(f"{self.place(number)}: `{name}` is `{shown(value)}`, {why}; mend or remove the line.")


def shown(value: Any, width: int = 80) -> str:
    """A value from a file in one line of a message, without control characters."""
    text = str(value)
    text = text if len(text) <= width else f"{text[:width]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def listed(names: Iterable[str], count: int = 12) -> str:
    """Names from a file in one line of a message."""
    names = list(names)
    text = ", ".join(f"`{shown(name, 40)}`" for name in names[:count])
    return f"{text} and {len(names) - count} more" if len(names) > count else text


def _names(cells: Any, depth: int = 1) -> Iterator[str]:
    """Names of an object's fields, dotted where they are nested."""
    for name, value in cells.items():
        yield name
        if isinstance(value, dict) and depth < _DEEPEST:
            yield from (f"{name}.{inner}" for inner in _names(value, depth + 1))
