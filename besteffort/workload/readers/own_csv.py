"""This package's own format: per request its arrival in seconds, task name, lengths and perhaps its client's limit."""

from __future__ import annotations

import numpy as np

from besteffort.workload.readers.types import Drawing, Trace
from besteffort.workload.table import Table

COLUMNS = frozenset({"arrival_s", "task", "prompt_tokens", "output_tokens"})


def read(table: Table, drawing: Drawing) -> Trace:
    """`arrival_s`, `task` (a name), `prompt_tokens`, `output_tokens`; times are not shifted.

    A further column `output_limit` may hold the limits on the output tokens, empty where a client states none.

    Raises:
      InputError: on a damaged file.
    """
    table.require_newline()
    arrival_s = table.numbers("arrival_s")
    table.require_order("arrival_s", arrival_s)
    cells = table.column("task")
    names = tuple(dict.fromkeys(cells))
    index = {name: i for i, name in enumerate(names)}
    output_tokens = table.numbers("output_tokens")
    output_limit = None
    if "output_limit" in table.header:
        output_limit = table.numbers("output_limit", minimum=1.0, gaps=True)
        table.refuse(output_limit < output_tokens, "output_limit", "which is below its `output_tokens`")
    return Trace(
        path=table.path,
        kind="csv",
        arrival_s=arrival_s,
        prompt_tokens=table.numbers("prompt_tokens"),
        output_tokens=output_tokens,
        task=np.array([index[name] for name in cells], np.int32),
        task_names=names,
        output_limit=output_limit,
    )
