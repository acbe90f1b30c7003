"""Types of the trace readers: their results and their options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from besteffort.errors import InputError
from besteffort.workload.table import Table


@dataclasses.dataclass(frozen=True)
class Trace:
    """Requests as a file states them.

    Attributes:
      path: the file.
      kind: its format, a key of `besteffort.workload.readers.READERS`.
      arrival_s: (n,) float64 arrival times in seconds, sorted.
      prompt_tokens, output_tokens: (n,) float64 lengths, at least 0; None where the file has none.
      task: (n,) indices into `task_names`, or of unnamed tasks where these are None; None where the file has no tasks.
      task_names: names of the tasks; None where the file has none.
      output_limit: (n,) float64 limits on the output tokens that clients state, at least 1 and `output_tokens`; nan
        where a client states none; None where the file has none.
    """

    path: Path
    kind: str
    arrival_s: np.ndarray
    prompt_tokens: np.ndarray | None = None
    output_tokens: np.ndarray | None = None
    task: np.ndarray | None = None
    task_names: tuple[str, ...] | None = None
    output_limit: np.ndarray | None = None


class Drawing(NamedTuple):
    """Options of readers that draw arrivals, because a file holds counts or rates.

    Attributes:
      tasks: number of tasks of the situation.
      seed: seed of the draws.
      options: the format's own options; None for its defaults.
    """

    tasks: int = 1
    seed: int = 0
    options: Any = None


class Reader(NamedTuple):
    """A file format.

    Attributes:
      columns: columns by which a file of this format is recognised.
      read: returns the `Trace` that a table holds; raises `InputError` on a damaged file.
      draws: whether arrivals are drawn because the file holds none.
    """

    columns: frozenset[str]
    read: Callable[[Table, Drawing], Trace]
    draws: bool = False


def drawn_trace(table: Table, kind: str, arrival_s: np.ndarray, task: np.ndarray | None) -> Trace:
    """The trace of a file whose arrivals were drawn.

    Raises:
      InputError: if there is none.
    """
    if not len(arrival_s):
        raise InputError(f"{table.path}: no request was drawn; choose a longer window or a larger `rate_scale`.")
    return Trace(path=table.path, kind=kind, arrival_s=arrival_s, task=task)
