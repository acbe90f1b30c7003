"""Traces of splitwise-sim.

https://github.com/Mutinifni/splitwise-sim, generate_trace.py: `request_id`, `request_type`, `application_id`,
`arrival_timestamp` (s), `batch_size`, `prompt_size`, `token_size`.
"""

from __future__ import annotations

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader

READER = Reader(
    title="splitwise-sim",
    source="https://github.com/Mutinifni/splitwise-sim",
    fits=lambda source: source.has("arrival_timestamp", "prompt_size", "token_size"),
    fields={
        "id": Field(("request_id",)),
        "arrival": Field(("arrival_timestamp",), "s"),
        "prompt": Field(("prompt_size",)),
        "output": Field(("token_size",)),
    },
)
