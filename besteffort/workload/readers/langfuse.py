"""Generations that Langfuse exports: CSV or JSON from its table, JSON lines from its blob storage or its API.

https://langfuse.com/docs/api-and-data-platform/features: blob-storage-export-fields and observations-api. Dates in UTC,
`startTime`, `completionStartTime`, `endTime` (or with underscores), and the tokens as `promptTokens`, `usage.input`,
`usageDetails.input` or `usage_details.input`. Observations of another `type` than GENERATION are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader
from besteffort.workload.sources import Row, Source

_PROMPT = (
    *("promptTokens", "inputUsage", "usage.input", "usageDetails.input", "usage_details.input", "inputTokens"),
    *("usage.promptTokens", "prompt_tokens"),
)
_OUTPUT = (
    *("completionTokens", "outputUsage", "usage.output", "usageDetails.output", "usage_details.output", "outputTokens"),
    *("usage.completionTokens", "completion_tokens"),
)

_OBJECTS = ("usage", "usageDetails", "usage_details")


def _fits(source: Source) -> bool:
    dated = source.has("startTime", "endTime") or source.has("start_time", "end_time")
    known = source.has("traceId") or source.has("trace_id") or source.has("completionStartTime")
    return dated and known and any(source.has(name) or source.has(name.partition(".")[0]) for name in _PROMPT)


def _object(cell: Any) -> Any:
    try:
        return json.loads(cell) if isinstance(cell, str) else cell
    except (ValueError, RecursionError):
        return None


def _unfold(source: Source) -> Iterator[Row]:
    others, header = 0, source.header
    for row in source.rows():
        cells = dict(zip(header, row.cells, strict=True)) if isinstance(row.cells, list) else row.cells
        if cells.get("type") not in (None, "", "GENERATION"):
            others += 1
            continue
        # Exports to CSV have objects as text.
        yield Row(row.number, {**cells, **{name: _object(cells[name]) for name in _OBJECTS if name in cells}})
    if others:
        source.notes.append(f"{others:,} observations are no generations and are left out")


READER = Reader(
    title="Langfuse",
    source="https://langfuse.com/docs/api-and-data-platform/features/blob-storage-export-fields",
    fits=_fits,
    fields={
        "id": Field(("id",)),
        "arrival": Field(("startTime", "start_time")),
        "first": Field(("completionStartTime", "completion_start_time")),
        "last": Field(("endTime", "end_time")),
        "prompt": Field(_PROMPT),
        "output": Field(_OUTPUT),
        "model": Field(("model", "providedModelName", "provided_model_name")),
    },
    unfold=_unfold,
)
