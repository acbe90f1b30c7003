"""Microsoft Azure Functions 2021: when each invocation ended, and how long it took.

https://github.com/Azure/AzurePublicDataset, AzureFunctionsInvocationTrace2021.md: `app`, `func`, `end_timestamp` (s),
`duration` (s). An invocation arrives at `end_timestamp - duration`. Functions have no tokens, so lengths are drawn.
"""

from __future__ import annotations

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader

READER = Reader(
    title="Azure Functions 2021",
    source="https://github.com/Azure/AzurePublicDataset",
    fits=lambda source: source.has("app", "func", "end_timestamp", "duration"),
    fields={"last": Field(("end_timestamp",), "s"), "latency": Field(("duration",), "s")},
)
