"""Traces of Vidur.

https://github.com/microsoft/vidur, data/processed_traces: `arrived_at` (s), `num_prefill_tokens`, `num_decode_tokens`.
"""

from __future__ import annotations

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader

READER = Reader(
    title="Vidur",
    source="https://github.com/microsoft/vidur",
    fits=lambda source: source.has("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    fields={
        "arrival": Field(("arrived_at",), "s"),
        "prompt": Field(("num_prefill_tokens",)),
        "output": Field(("num_decode_tokens",)),
    },
    ordered=True,
)
