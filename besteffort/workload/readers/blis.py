"""Traces of BLIS, version 2, as it makes or observes them.

https://github.com/inference-sim/inference-sim, sim/workload/tracev2.go: `arrival_time_us`, `send_time_us`,
`first_chunk_time_us`, `last_chunk_time_us`, of which 0 means unknown, `input_tokens`, `output_tokens`, `status`.
"""

from __future__ import annotations

from typing import Any

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader


def _or_unknown(cell: Any) -> Any:
    return None if cell in ("0", 0) else cell


READER = Reader(
    title="BLIS trace v2",
    source="https://github.com/inference-sim/inference-sim",
    fits=lambda source: source.has("arrival_time_us", "first_chunk_time_us", "last_chunk_time_us", "input_tokens"),
    fields={
        "id": Field(("request_id",)),
        "arrival": Field(("arrival_time_us",), "us"),
        "first": Field(("first_chunk_time_us",), "us", means=_or_unknown),
        "last": Field(("last_chunk_time_us",), "us", means=_or_unknown),
        "prompt": Field(("input_tokens",)),
        "output": Field(("output_tokens",)),
        "model": Field(("model",)),
        "failed": Field(("status",)),
    },
)
