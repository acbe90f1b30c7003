"""Reads tables, CSV or JSON lines, plain or gzip-compressed; errors name the file, the line and a remedy."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from besteffort.errors import InputError
from besteffort.files import parse_jsonl

GZIP_MAGIC = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with a header, whose cells are text. Row `i` is on line `i + first_line`.

    Attributes:
      path: the file.
      header: names of the columns.
      rows: the cells; every row has as many as the header has names.
      ends_with_newline: whether the last line is known to be complete.
      first_line: line of the first row.
    """

    path: Path
    header: tuple[str, ...]
    rows: list[list[str]]
    ends_with_newline: bool
    first_line: int = 2

    def __len__(self) -> int:
        return len(self.rows)

    def require_newline(self) -> None:
        """Raises `InputError` if the file stops in the middle of its last line, which may have lost digits."""
        if not self.ends_with_newline:
            raise InputError(
                f"{self.path}, line {len(self) + 1}: the file ends without a line break, so it may be cut short; "
                "copy it again, or end it with a line break if it is complete."
            )

    def column(self, name: str) -> list[str]:
        """Cells of a column.

        Raises:
          InputError: if the table lacks it.
        """
        if name not in self.header:
            raise InputError(f"{self.path}: column `{name}` is missing; the header has {_names(self.header)}.")
        index = self.header.index(name)
        return [row[index] for row in self.rows]

    def numbers(self, name: str, minimum: float = 0.0, *, gaps: bool = False) -> np.ndarray:
        """(rows,) a column as float64; with `gaps`, cells may be empty and become nan.

        Raises:
          InputError: naming the line of the first cell that is not a finite number of at least `minimum`.
        """
        cells = self.column(name)
        values = _parse(cells, "float64", "nan")
        bad = ~np.isfinite(values)
        if gaps:
            empty = np.array([not cell.strip() for cell in cells])
            values[empty] = np.nan
            bad &= ~empty
        self.refuse(bad, name, "which is not a number")
        self.refuse(values < minimum, name, f"which is below {minimum:g}")
        return values

    def matrix(self, names: Sequence[str], minimum: float = 0.0) -> np.ndarray:
        """(rows, names) several adjacent columns as float64.

        Raises:
          InputError: as `numbers`.
        """
        first = self.header.index(names[0])
        cells = [row[first : first + len(names)] for row in self.rows]
        try:
            values = np.array(cells, np.float64)
        except ValueError:
            values = None
        if values is not None and np.isfinite(values).all() and values.min() >= minimum:
            return values
        return np.stack([self.numbers(name, minimum) for name in names], axis=1)

    def times(self, name: str) -> np.ndarray:
        """(rows,) a column of UTC dates, such as `2023-11-16 18:17:03.9799600`, as float64 seconds since the first.

        Raises:
          InputError: naming the line of the first cell that is not a date.
        """
        cells = [cell.removesuffix("+00:00") for cell in self.column(name)]
        stamps = _parse(cells, "datetime64[ns]", "NaT")
        self.refuse(np.isnat(stamps), name, "which is not a date")
        return (stamps - stamps[0]) / np.timedelta64(1, "s")

    def refuse(self, bad: np.ndarray, name: str, why: str) -> None:
        """Raises `InputError` about column `name` at the first row where `bad`, (rows,) of bool, is true."""
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(
                f"{self.path}, line {row + self.first_line}: `{name}` is `{self.column(name)[row]}`, {why}; "
                "mend or remove the line."
            )

    def require_order(self, name: str, times: np.ndarray) -> None:
        """Raises `InputError` if `times`, (rows,) read from column `name`, decrease anywhere."""
        back = np.diff(times) < 0
        if back.any():
            row = int(np.argmax(back)) + 1
            raise InputError(
                f"{self.path}, line {row + self.first_line}: `{name}` goes back in time; sort the file by `{name}`."
            )


def read_table(path: str | Path) -> Table:
    """Reads a file of CSV or of JSON lines, one object per line.

    The names of the objects' fields are the header; fields that are null or missing become empty cells.

    Raises:
      InputError: if it is missing, unreadable, not text, empty, a damaged or cut gzip file, or its lines differ in
        length or are no objects.
    """
    path = Path(path)
    text = _text(path)
    if text.lstrip().startswith("{"):
        return _json_lines(path, text)
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise InputError(f"{path}: the file is not a CSV table ({error}); copy it again.") from None
    while rows and not rows[-1]:
        rows.pop()
    if len(rows) < 2:
        raise InputError(f"{path}: the file has no rows below its header; give a file with at least one request.")
    header, *body = rows
    for index, row in enumerate(body):
        if len(row) != len(header):
            cut = (
                "; it is the last one, so the file may be cut short: copy it again"
                if index == len(body) - 1
                else "; mend or remove it"
            )
            raise InputError(
                f"{path}, line {index + 2}: the line has {len(row)} fields but the header has {len(header)}{cut}."
            )
    return Table(path, tuple(name.strip() for name in header), body, text.endswith("\n"))


def _json_lines(path: Path, text: str) -> Table:
    records = parse_jsonl(path, text.splitlines())
    header = tuple(dict.fromkeys(name for record in records for name in record))
    rows = [["" if record.get(name) is None else str(record[name]) for name in header] for record in records]
    return Table(path, header, rows, text.endswith("\n"), first_line=1)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the path.") from None
    except OSError as error:
        raise InputError(
            f"{path}: the file cannot be read ({error.strerror}); check the path and its permissions."
        ) from None
    if content.startswith(GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except EOFError:
            raise InputError(f"{path}: the gzip stream ends early, so the file is cut short; copy it again.") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path}: the gzip stream is damaged ({error}); copy the file again.") from None
    elif path.suffix == ".gz" and content:
        raise InputError(f"{path}: the file is named `.gz` but is not gzip-compressed; rename it, or copy it again.")
    if not content.strip():
        raise InputError(f"{path}: the file is empty; give a file with a header and at least one request.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: the file is not UTF-8 text; give a CSV file or JSON lines, plain or gzip-compressed."
        ) from None


def _parse(cells: list[str], dtype: str, gap: str) -> np.ndarray:
    """The cells as one array. If that fails, bisects them until each unreadable cell is alone and becomes `gap`."""
    try:
        return np.array(cells, dtype)
    except ValueError:
        if len(cells) == 1:
            return np.array([gap], dtype)
    half = len(cells) // 2
    return np.concatenate([_parse(cells[:half], dtype, gap), _parse(cells[half:], dtype, gap)])


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
