"""BurstGPT, both releases: arrival in seconds, model and two lengths per request, and in the second the time it took.

https://github.com/HPMLL/BurstGPT: `Timestamp` (s from the start), `Session ID`, `Elapsed time` (s), `Model`,
`Request tokens`, `Response tokens`, `Total tokens`, `Log Type`. A response of 0 tokens is a failure.
"""

from __future__ import annotations

from typing import Any

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader


def _empty(cell: Any) -> bool:
    return str(cell).strip() in ("0", "0.0", "")


READER = Reader(
    title="BurstGPT",
    source="https://github.com/HPMLL/BurstGPT",
    fits=lambda source: source.has("Timestamp", "Request tokens", "Response tokens"),
    fields={
        "arrival": Field(("Timestamp",), "s"),
        "latency": Field(("Elapsed time",), "s"),
        "prompt": Field(("Request tokens",)),
        "output": Field(("Response tokens",)),
        "model": Field(("Model",)),
        "failed": Field(("Response tokens",), means=_empty),
    },
)
