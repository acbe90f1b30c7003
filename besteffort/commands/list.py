"""`besteffort list`."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

from besteffort.commands.options import SharedOutput, optional
from besteffort.console import Answer, Output

Kind = Literal["configurations", "profiles", "routers", "experiments", "sweeps"]


def list_names(
    kinds: tyro.conf.Positional[Annotated[tuple[Kind, ...], optional("[KIND ...]")]] = (),
    output: SharedOutput = Output(),
) -> Answer:
    """List configurations, profiles, routers, experiments and sweeps by name.

    Args:
      kinds: what to list: `configurations`, `profiles`, `routers`, `experiments` (in a checkout) or `sweeps`; all by
        default. With `--quiet` only the names are printed.
      output: options on what is printed.
    """
    from besteffort.listing import entries

    answer = Answer("list", output)
    found = entries(kinds)
    for kind, rows in found.items():
        answer.rows(rows, heading=kind.capitalize() if len(found) > 1 else "")
    answer.data(**{kind: [{"name": name, "description": text} for name, text in rows] for kind, rows in found.items()})
    return answer
