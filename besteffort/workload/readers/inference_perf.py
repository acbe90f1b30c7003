"""Per-request reports of inference-perf: one JSON list, times in seconds of a monotonic clock.

https://github.com/kubernetes-sigs/inference-perf, docs/reports.md: `start_time`, `end_time`, `info.input_tokens`,
`info.output_tokens`, `info.output_token_times`, `error`; later versions have `info.request_metrics` and
`info.response_metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader
from besteffort.workload.sources import Row, Source


def _unfold(source: Source) -> Iterator[Row]:
    for row in source.rows():
        info = _object(row.cells.get("info"))
        asked, answered = _object(info.get("request_metrics")), _object(info.get("response_metrics"))
        times = answered.get("output_token_times", info.get("output_token_times"))
        times = times if isinstance(times, list) else []
        yield Row(
            row.number,
            {
                "start_time": row.cells.get("start_time"),
                "end_time": times[-1] if times else row.cells.get("end_time"),
                "output_token_times": times[0] if times else None,
                "input_tokens": _object(asked.get("text")).get("input_tokens", info.get("input_tokens")),
                "output_tokens": answered.get("output_tokens", info.get("output_tokens")),
                "error": row.cells.get("error"),
            },
        )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


READER = Reader(
    title="inference-perf",
    source="https://github.com/kubernetes-sigs/inference-perf",
    fits=lambda source: (
        source.has("start_time", "end_time", "info.output_token_times")
        or source.has("start_time", "end_time", "info.response_metrics")
        or source.has("start_time", "end_time", "info.input_tokens")
    ),
    fields={
        "arrival": Field(("start_time",), "s"),
        "first": Field(("output_token_times",), "s"),
        "last": Field(("end_time",), "s"),
        "prompt": Field(("input_tokens",)),
        "output": Field(("output_tokens",)),
        "failed": Field(("error",)),
    },
    unfold=_unfold,
)
