"""Per-request records of NVIDIA's aiperf, as JSON lines.

https://github.com/ai-dynamo/aiperf, docs/tutorials/working-with-profile-exports.md: `metadata`, with times in ns, and
`metrics`, values with their units.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from besteffort.workload.cells import number
from besteffort.workload.fields import PER_SECOND, Field
from besteffort.workload.readers.types import Reader
from besteffort.workload.sources import Row, Source


def _unfold(source: Source) -> Iterator[Row]:
    for row in source.rows():
        metadata, metrics = row.cells.get("metadata"), row.cells.get("metrics")
        metadata = metadata if isinstance(metadata, dict) else {}
        metrics = metrics if isinstance(metrics, dict) else {}
        if metadata.get("benchmark_phase") == "warmup":
            source.counted["requests of the warm-up are left out"] += 1
            continue
        yield Row(
            row.number,
            {
                "request_start_ns": metadata.get("request_start_ns"),
                "request_end_ns": metadata.get("request_end_ns"),
                "time_to_first_token": _seconds(metrics.get("time_to_first_token")),
                "input_sequence_length": _value(metrics, "input_sequence_length"),
                "output_sequence_length": _value(metrics, "output_sequence_length", "output_token_count"),
                "x_request_id": metadata.get("x_request_id"),
                "error": bool(row.cells.get("error")) or bool(metadata.get("was_cancelled")),
            },
        )


def _value(metrics: dict[str, Any], *names: str) -> Any:
    found = (metrics[name] for name in names if isinstance(metrics.get(name), dict))
    return next((each.get("value") for each in found), None)


def _seconds(metric: Any) -> float | None:
    """A metric of time in seconds, by its own unit; milliseconds where it states none."""
    value, unit = (metric.get("value"), metric.get("unit")) if isinstance(metric, dict) else (None, None)
    value = number(value)
    if value is None:
        return None
    per_second: dict[Any, float] = {**PER_SECOND, "sec": 1.0}
    return value / per_second.get(unit if isinstance(unit, str) else "ms", 1e3)


READER = Reader(
    title="aiperf",
    source="https://github.com/ai-dynamo/aiperf",
    fits=lambda source: source.has("metadata.request_start_ns", "metrics"),
    fields={
        "id": Field(("x_request_id",)),
        "arrival": Field(("request_start_ns",), "ns"),
        "last": Field(("request_end_ns",), "ns"),
        "ttft": Field(("time_to_first_token",), "s"),
        "prompt": Field(("input_sequence_length",)),
        "output": Field(("output_sequence_length",)),
        "failed": Field(("error",)),
    },
    unfold=_unfold,
)
