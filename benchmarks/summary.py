"""One table of what all benchmarks found: ours and what people would use instead, with the ratio."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table; both sides were measured in one run on one machine.

    Attributes:
      what: what was done.
      ours, theirs: what it took us and them, in words.
      ratio: how many times better ours is; None where one of the two did not get there.
      target: the ratio that is wanted, None if none is.
    """

    what: str
    ours: str
    theirs: str
    ratio: float | None
    target: float | None = None


def summary_table(rows: Sequence[Row]) -> Table:
    """All lines."""
    table = Table(title="Ours and what one would use instead, each line from one run")
    for heading in ("what", "ours", "theirs"):
        table.add_column(heading)
    for heading in ("ratio", "target"):
        table.add_column(heading, justify="right")
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.3g}"
        table.add_row(row.what, row.ours, row.theirs, ratio, "" if row.target is None else f"{row.target:g}")
    return table
