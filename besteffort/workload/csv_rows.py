"""Rows of CSV, with commas, tabs or semicolons."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path

from besteffort.errors import InputError
from besteffort.workload.sources import Row, Source
from besteffort.workload.text_lines import LONGEST_LINE, Lines


def csv_source(path: Path, lines: Lines, first: str) -> Source:
    """The rows below a header, the `first` line; further lines are read as rows are.

    Raises:
      InputError: if there are none, or rows differ in length.
    """
    header_line = lines.number
    # Of the usual separators, one that stands in the header; the text of prompts comes later.
    delimiter = next((mark for mark in ",\t;" if mark in first), ",")
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)

    def records() -> Iterator[Row]:
        before = 0
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise InputError(
                    f"{path}, line {header_line + before}: the file is not a CSV table from there on ({error}); "
                    "mend the line, in which perhaps a quote is not closed."
                ) from None
            if cells is None:
                return
            if cells:
                yield Row(header_line + before, cells)
            before = reader.line_num

    rows = records()
    header = tuple(name.strip() for name in next(rows).cells)
    if _is_servegen(header):
        rows = itertools.chain([Row(header_line, list(header))], rows)
        header = ("window_start_s", "rate_per_s", "cv", "pattern", "arg1", "arg2")
    source = Source(path, "csv", _equally_long(path, rows, len(header)), header)
    if not source.sample:
        raise InputError(f"{path}: the file has no rows below its header; give a file with at least one request.")
    return _with_end(source, lines)


def _is_servegen(cells: tuple[str, ...]) -> bool:
    """ServeGen's chunks have no header; the fourth of their six cells names a law, or nothing in silent windows."""
    if len(cells) != 6 or cells[3] not in ("Gamma", "Weibull", ""):
        return False
    try:
        return all(float(cells[place]) >= 0 for place in (0, 1))
    except ValueError:
        return False


def _equally_long(path: Path, rows: Iterator[Row], length: int) -> Iterator[Row]:
    for row in rows:
        if len(row.cells) != length:
            cut = (
                "; it is the last one, so the file may be cut short: copy it again"
                if next(rows, None) is None
                else "; mend or remove it"
            )
            raise InputError(
                f"{path}, line {row.number}: the line has {len(row.cells)} fields but the header has {length}{cut}."
            )
        yield row


def _with_end(source: Source, lines: Lines) -> Source:
    """The source, which at its end knows how the last line ended."""

    def watched(rows: Iterator[Row]) -> Iterator[Row]:
        yield from rows
        source.ends_with_newline = lines.whole

    source.replace_rest(watched)
    return source
