"""Mooncake traces: arrival in milliseconds and two lengths per request, as JSON lines or CSV.

https://github.com/kvcache-ai/Mooncake, FAST25-release/traces: `timestamp` (ms), `input_length`, `output_length`,
`hash_ids`. Tools that replay them add sessions: later turns have a `session_id` and a `delay` (ms) after the answer
before them in place of a timestamp (https://github.com/ai-dynamo/aiperf, docs/benchmark-modes/trace-replay.md). How
long an answer takes is what is simulated, so such a turn arrives `delay` after the turn before it, at the earliest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

from besteffort.workload.cells import number
from besteffort.workload.fields import EARLIEST, Field
from besteffort.workload.readers.types import Reader
from besteffort.workload.sources import Row, Source

_TURNS = "later turns of sessions arrive their `delay` after the turn before them, its answer not counted"


def _is_time(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and abs(value) < 2**63


def _unfold(source: Source) -> Iterator[Row]:
    """The rows, later turns with a timestamp of their own."""
    latest: dict[str, float] = {}
    for row in source.rows():
        cells = row.cells
        if isinstance(cells, dict) and cells.get("session_id") is not None:
            session = str(cells["session_id"])
            stamp, delay = cells.get("timestamp"), cells.get("delay")
            if stamp is None and session in latest and _is_time(delay):
                stamp = latest[session] + delay
                cells = {**cells, "timestamp": stamp}
                source.counted[_TURNS] += 1
            if _is_time(stamp):
                latest[session] = stamp
        yield Row(row.number, cells)


def _fits(source: Source) -> bool:
    """Without hashes, only whole numbers from a start are milliseconds: others have the same names in other units."""
    if not source.has("input_length", "output_length") or source.has("session_id"):
        return False
    if source.has("timestamp_ms") or (source.has("timestamp") and source.has("hash_ids")):
        return True
    at = source.header.index("timestamp") if source.has("timestamp") else None
    if at is None:
        return False
    cells = [row.cells[at] if isinstance(row.cells, list) else row.cells.get("timestamp") for row in source.sample]
    whole = all(isinstance(cell, int) or (isinstance(cell, str) and cell.strip().isdecimal()) for cell in cells)
    return whole and all((number(cell) or 0.0) < EARLIEST for cell in cells)


READER = Reader(
    title="Mooncake",
    source="https://github.com/kvcache-ai/Mooncake",
    fits=_fits,
    fields={
        "arrival": Field(("timestamp_ms", "timestamp"), "ms"),
        "prompt": Field(("input_length",)),
        "output": Field(("output_length",)),
    },
    ordered=True,
)

SESSIONS = Reader(
    title="Mooncake with sessions",
    source="https://github.com/ai-dynamo/aiperf",
    fits=lambda source: source.has("session_id", "timestamp", "input_length", "output_length"),
    fields=READER.fields,
    unfold=_unfold,
)
