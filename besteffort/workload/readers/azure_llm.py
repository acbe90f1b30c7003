"""Azure LLM inference traces (2023): a date, a prompt length and an output length per request."""

from __future__ import annotations

from besteffort.workload.readers.types import Drawing, Trace
from besteffort.workload.table import Table

COLUMNS = frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"})


def read(table: Table, drawing: Drawing) -> Trace:
    """Azure LLM inference traces: `TIMESTAMP` (a date with up to 9 decimals), `ContextTokens`, `GeneratedTokens`.

    The published files end without a line break, so lost digits of the last number cannot be detected; lost columns
    can.

    Raises:
      InputError: on a damaged file.
    """
    arrival_s = table.times("TIMESTAMP")
    table.require_order("TIMESTAMP", arrival_s)
    return Trace(
        path=table.path,
        kind="azure_llm",
        arrival_s=arrival_s,
        prompt_tokens=table.numbers("ContextTokens"),
        output_tokens=table.numbers("GeneratedTokens"),
    )
