"""Rows that cannot be, as requests that end before they start: few are left out and counted.

Logs of real servers have a few, after a clock was set or a request was sent again. Where many rows are so, the file is
misread: units are wrong, columns are swapped or are of different clocks.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from besteffort.errors import InputError
from besteffort.workload.fields import TIMES
from besteffort.workload.records import ROUNDING_S, Records, few

OTHER_CLOCK_S = 86_400.0
"""Arrivals that are so far from all other times are from another clock."""
_DURATIONS = {"scheduled": ("wait",), "first": ("ttft",), "last": ("latency", "decode", "tpot")}


def without_backwards(records: Records, *, strict: bool) -> Records:
    """Leaves out answered requests of which a time lies before an earlier one, by more than rounding.

    If they are more than a few, all stay, with a doubt: their arrivals may still be right. Arrivals of another clock
    than the other times are not compared with these, nor those that many entries into the queue precede.

    Args:
      records: the requests.
      strict: refuse the first, as in files where it is damage.

    Raises:
      InputError: if one is refused.
    """
    output = records.counts.get("output")
    answered = records.answered if output is None else records.answered & (output >= 1)
    total, backwards = int(answered.sum()), np.zeros(len(records), bool)
    latest, compared = np.full(len(records), np.nan), list[str]()
    for field in TIMES:
        values = records.time(field)
        if not np.isfinite(values[answered]).any():
            continue
        wrong = answered & (values < latest - ROUNDING_S)
        if compared == ["arrival"]:
            waits = (values - latest)[answered]
            waits = waits[np.isfinite(waits)]
            other_clock = len(waits) > 0 and abs(np.median(waits)) > OTHER_CLOCK_S
            if other_clock or (field == "queued" and not few(int(wrong.sum()), total)):
                latest, compared = np.full(len(records), np.nan), []
                wrong = np.zeros(len(records), bool)
        backwards |= wrong
        compared.append(field)
        latest = np.fmax(latest, values)
    count = int(backwards.sum())
    if not count:
        return records
    first = int(np.argmax(backwards))
    example = _example(records, first, compared)
    if strict:
        raise InputError(f"{records.place(first)}: {example}, so a clock ran backwards; mend or remove the line.")
    if not few(count, total):
        doubt = f"{example} in {records.spot(first)}, and so in {count - 1:,} more of {total:,} answered requests"
        return dataclasses.replace(records, doubt=doubt)
    note = f"{count:,} of {total:,} answered requests run backwards and are left out, the first in"
    return records.part(~backwards, f"{note} {records.spot(first)}, where {example}")


def _example(records: Records, row: int, fields: list[str]) -> str:
    """Which time of a row lies before which, and by how much."""
    latest, before = -np.inf, ""
    for field in fields:
        time_s = records.seconds[field][row]
        if time_s < latest - ROUNDING_S:
            return f"{_name(records, field)} lies {latest - time_s:.3g} s before {before}"
        if time_s > latest:
            latest, before = time_s, _name(records, field)
    raise ValueError("the row does not run backwards")


def _name(records: Records, field: str) -> str:
    """What the file calls a time, or the duration that ends there."""
    if field in records.names:
        return f"`{records.names[field]}`"
    duration = next((each for each in _DURATIONS.get(field, ()) if each in records.names), None)
    return f"`{field}`" if duration is None else f"the end of `{records.names[duration]}`"
