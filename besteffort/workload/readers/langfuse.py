"""Generations that Langfuse exports: CSV or JSON from its table, JSON lines from its blob storage or its API.

https://langfuse.com/docs/api-and-data-platform/features: blob-storage-export-fields and observations-api. Dates in UTC,
`startTime`, `completionStartTime`, `endTime` (or with underscores), and the tokens as `promptTokens`, `usage.input`,
`usageDetails.input` or `usage_details.input`. Observations of another `type` than GENERATION are left out, and those
of `level` ERROR failed.

Usage details count every kind of token once: `input` has no tokens of `input_cached_tokens` (or
`cache_read_input_tokens`), `output` none of `output_reasoning_tokens`, so a prompt is the sum of its kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from besteffort.workload.cells import json_in_text, missing, number
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
_DETAILS = _OBJECTS[1:]


def _fits(source: Source) -> bool:
    dated = source.has("startTime", "endTime") or source.has("start_time", "end_time")
    known = source.has("traceId") or source.has("trace_id") or source.has("completionStartTime")
    return dated and known and any(source.has(name) or source.has(name.partition(".")[0]) for name in _PROMPT)


def _sum(details: dict[str, Any], *words: str) -> float | None:
    """The sum of the kinds of tokens that have a word in their name; None where there is none."""
    counts = [number(count) for kind, count in details.items() if any(word in kind for word in words)]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _lengths(cells: dict[str, Any]) -> dict[str, Any]:
    """The columns of tokens, of which sums over kinds of details come first."""
    details = next((each for name in _DETAILS if isinstance(each := cells.get(name), dict) and each), {})
    prompt, output, total = _sum(details, "input"), _sum(details, "output"), number(details.get("total"))
    if prompt is None or output is None or (total is not None and prompt + output > total):
        return {}
    cached = _sum(details, "cached", "cache_read", "cache_hit")
    return {_PROMPT[0]: prompt, _OUTPUT[0]: output, "cached_tokens": cached}


def _stated(cells: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The first of these columns that is not empty; those of nested objects are dotted."""
    for name in names:
        outer, _, inner = name.partition(".")
        value = cells.get(outer)
        if inner:
            value = value.get(inner) if isinstance(value, dict) else None
        if not missing(value):
            return value
    return None


def _unfold(source: Source) -> Iterator[Row]:
    for row in source.objects():
        cells = row.cells
        if cells.get("type") not in (None, "", "GENERATION"):
            source.counted["observations are no generations and are left out"] += 1
            continue
        # Exports to CSV have objects as text.
        cells = {**cells, **{name: json_in_text(cells[name]) for name in _OBJECTS if name in cells}}
        lengths = {_PROMPT[0]: _stated(cells, _PROMPT), _OUTPUT[0]: _stated(cells, _OUTPUT)}
        yield Row(row.number, {**cells, **lengths, **_lengths(cells)})


READER = Reader(
    title="Langfuse",
    source="https://langfuse.com/docs/api-and-data-platform/features/blob-storage-export-fields",
    fits=_fits,
    fields={
        "id": Field(("id",)),
        "arrival": Field(("startTime", "start_time")),
        "first": Field(("completionStartTime", "completion_start_time")),
        "last": Field(("endTime", "end_time")),
        "prompt": Field(_PROMPT[:1]),
        "output": Field(_OUTPUT[:1]),
        "cached": Field(("cached_tokens",)),
        "failed": Field(("level",), means=lambda cell: str(cell).upper() == "ERROR"),
        "model": Field(("model", "providedModelName", "provided_model_name")),
    },
    unfold=_unfold,
)
