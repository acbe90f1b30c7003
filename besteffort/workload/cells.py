"""Cells of a file as numbers, dates and words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

_MISSING = frozenset({"", "-", "null", "NULL", "None", "N/A", "n/a", "nan", "NaN", "NaT", "<NA>", "\\N"})
_NEVER = frozenset({("0001", "01", "01"), ("1970", "01", "01")})  # at midnight: what a program has that sets no date
_DATE = re.compile(r"(\d{4})[-/](\d\d)[-/](\d\d)[ T](\d\d:\d\d(?::\d\d(?:[.,]\d*)?)?)\s*(Z|UTC|[+-]\d\d(?::?\d\d)?)?$")
_DONE = frozenset(
    [
        "ok",
        "success",
        "successful",
        "succeeded",
        "complete",
        "completed",
        "done",
        "finished",
        "passed",
        "stop",
        "length",
        "false",
        "0",
        "0.0",
        "unset",
    ]
)
_DENIALS = frozenset(["false", "no", "0", "0.0", "abort", "aborted", "cancelled", "canceled", "error", "timeout"])
NO_DATE = int(np.iinfo(np.int64).min)
"""Stands for a missing date, as in NumPy."""


class CellError(Exception):
    """Raised at a cell that cannot be read: its place among the others, and why."""

    def __init__(self, row: int, why: str) -> None:
        super().__init__(why)
        self.row, self.why = row, why


def missing(cell: Any) -> bool:
    """Whether a cell is empty, or says that there is nothing."""
    return cell is None or (isinstance(cell, str) and cell.strip() in _MISSING)


def is_date(cell: Any) -> bool:
    """Whether a cell is a date with a time of day."""
    return isinstance(cell, str) and _DATE.match(cell.strip()) is not None


def number(cell: Any) -> float | None:
    """A finite number; None for other things, `1_000` and truths among them."""
    if isinstance(cell, bool) or not isinstance(cell, str | int | float) or (isinstance(cell, str) and "_" in cell):
        return None
    try:
        value = float(cell)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def plain_numbers(cells: Sequence[Any]) -> np.ndarray | None:
    """(n,) the cells if all are plain numbers, else None."""
    kinds = set(map(type, cells))
    if not (kinds <= {int, float} or kinds == {str}):
        return None
    if kinds == {str} and "_" in "".join(cells):
        return None
    try:
        values = np.array(cells, np.float64)
    except (ValueError, OverflowError):
        return None
    return values if np.isfinite(values).all() else None


def numbers(cells: Sequence[Any]) -> np.ndarray:
    """(n,) float64, nan where a cell is missing.

    Raises:
      CellError: at the first that is no finite number.
    """
    plain = plain_numbers(cells)
    if plain is not None:
        return plain
    values = np.empty(len(cells))
    for row, cell in enumerate(cells):
        value = math.nan if missing(cell) else number(cell)
        if value is None:
            raise CellError(row, "which is not a date" if is_date(cell) else _no_number(cell))
        values[row] = value
    return values


def _no_number(cell: Any) -> str:
    """Why a cell is no number."""
    marked = isinstance(cell, str) and "," in cell and number(cell.replace(",", "")) is not None
    return "which is not a number" + (": decimals need a point, and thousands no comma" if marked else "")


def dates(cells: Sequence[Any], zoned: bool | None) -> tuple[np.ndarray, bool | None]:
    """(n,) int64 nanoseconds since 1970, `NO_DATE` where a cell is missing or unset, of UTC where cells say their zone.

    Args:
      cells: the cells.
      zoned: whether cells before them say it; None if there were none.

    Returns:
      The nanoseconds, and whether cells say their zone.

    Raises:
      CellError: at the first that is no date, or differs in whether it says its zone.
    """
    texts, offsets = ["NaT"] * len(cells), np.zeros(len(cells), np.int64)
    for row, cell in enumerate(cells):
        if missing(cell):
            continue
        match = _DATE.match(cell.strip()) if isinstance(cell, str) else None
        if match is None:
            raise CellError(row, "which is not a date")
        year, month, day, time, zone = match.groups()
        if (year, month, day) in _NEVER and not time.strip("0:.,"):
            continue
        if not "1970" <= year < "2200":
            raise CellError(row, "which is not a date")
        if zoned is not None and zoned != (zone is not None):
            raise CellError(row, "but other dates differ in whether they name a time zone")
        zoned = zone is not None
        if zoned and zone not in ("Z", "UTC", "+00:00"):
            digits = zone[1:].replace(":", "").ljust(4, "0")
            minutes = 60 * int(digits[:2]) + int(digits[2:])
            offsets[row] = (-1 if zone[0] == "-" else 1) * minutes * 60 * 10**9
        texts[row] = f"{year}-{month}-{day}T{time.replace(',', '.')[:18].rstrip('.')}"
    try:
        stamps = np.array(texts, "datetime64[ns]")
    except ValueError:
        raise CellError(
            next(row for row, text in enumerate(texts) if not _exists(text)), "which is not a date"
        ) from None
    values = stamps.astype(np.int64)
    return np.where(np.isnat(stamps), values, values - offsets), zoned


def _exists(text: str) -> bool:
    """Whether there is such a date."""
    try:
        np.datetime64(text, "ns")
    except ValueError:
        return False
    return True


def says_failed(cell: Any) -> bool:
    """Whether a column of errors or of states says that a request failed."""
    if isinstance(cell, dict):
        return any(cell.values())
    if cell in (None, False, 0) or missing(cell):
        return False
    text = str(cell).strip().lower()
    if re.fullmatch(r"2\d\d(\.0+)?(\s.*)?", text):  # of HTTP, perhaps as a float or with its words
        return False
    return text not in _DONE


def json_in_text(cell: Any) -> Any:
    """What a cell holds, where tables have it as JSON in text; None if that is damaged."""
    try:
        return json.loads(cell) if isinstance(cell, str) else cell
    except (ValueError, RecursionError):
        return None


def denies(cell: Any) -> bool:
    """Whether a column of successes, or of reasons to finish, says that there was none."""
    return not missing(cell) and str(cell).strip().lower() in _DENIALS
