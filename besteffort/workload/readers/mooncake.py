"""Mooncake traces as CSV: arrival in milliseconds and lengths per request."""

from __future__ import annotations

from besteffort.workload.readers.types import Drawing, Trace
from besteffort.workload.table import Table

COLUMNS = frozenset({"timestamp_ms", "input_length", "output_length"})


def read(table: Table, drawing: Drawing) -> Trace:
    """Mooncake traces as CSV: `timestamp_ms`, `input_length`, `output_length`; further columns are ignored.

    Raises:
      InputError: on a damaged file.
    """
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
