"""What a file may say of a request, and where a format says it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Unit = Literal["s", "ms", "us", "ns"]
PER_SECOND: dict[Unit, float] = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}

EARLIEST = 1e9
"""Numbers from there on are times since 1970, whatever their unit."""
LATEST_S = 1e11
"""No time since 1970 is later, in seconds."""

TIMES = ("arrival", "queued", "scheduled", "first", "last")
DURATIONS = ("wait", "ttft", "latency", "decode", "tpot")
COUNTS = ("prompt", "output", "limit", "cached")
LABELS = ("task", "origin", "tenant", "model", "replica")
FIELDS = (*TIMES, *DURATIONS, *COUNTS, *LABELS, "id", "failed", "succeeded")
"""All that a file may say of a request; `wait` is until it is scheduled, `decode` from the first token to the last,
`tpot` from one token to the next; `cached` is how much of the prompt was found in a prefix cache."""
OUTCOMES = ("failed", "succeeded")
"""Of these every column of a file counts, for some state errors and others what became of a request."""

_UNIT_SUFFIXES: dict[str, Unit] = {
    **dict.fromkeys(("s", "sec", "secs", "seconds"), "s"),
    **dict.fromkeys(("ms", "msec", "millis", "milliseconds"), "ms"),
    **dict.fromkeys(("us", "usec", "micros", "microseconds"), "us"),
    **dict.fromkeys(("ns", "nsec", "nanos", "nanoseconds", "nano"), "ns"),
}


@dataclasses.dataclass(frozen=True)
class Field:
    """Where a format states something.

    Attributes:
      names: columns, of which the first that the file has counts, of `OUTCOMES` each; those of nested objects are
        dotted.
      unit: unit of times; None where the column's name says it (`_ms`), or the data decide.
      means: turns a cell into the field's value; for `OUTCOMES`, whether it means that the request failed.
    """

    names: tuple[str, ...]
    unit: Unit | None = None
    means: Callable[[Any], Any] | None = None


def unit_in_name(name: str) -> Unit | None:
    """The unit that a column's name ends in, such as `arrival_ms`, `startTimeUnixNano` or `latency (s)`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    last = re.split(r"[^a-z]+", words.rstrip(")]} "))[-1]
    return _UNIT_SUFFIXES.get(last) if last != words else None


def found(fields: Mapping[str, Field], header: Sequence[str]) -> dict[str, str]:
    """The file's own name of each field that it has."""
    present = set(header)
    named = ((field, next((n for n in each.names if n in present), None)) for field, each in fields.items())
    return {field: name for field, name in named if name is not None}
