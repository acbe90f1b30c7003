"""Profile exports of genai-perf, one JSON document.

https://github.com/triton-inference-server/perf_analyzer, genai-perf: `experiments[].requests[]` with `timestamp` and
`response_timestamps` (ns), one a token where answers are streamed. It has no prompt lengths.
"""

from __future__ import annotations

from collections.abc import Iterator

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader
from besteffort.workload.sources import Row, Source


def _unfold(source: Source) -> Iterator[Row]:
    number = 0
    experiments = (source.document or {}).get("experiments")
    for experiment in experiments if isinstance(experiments, list) else []:
        requests = experiment.get("requests") if isinstance(experiment, dict) else None
        for request in requests if isinstance(requests, list) else []:
            number += 1
            if not isinstance(request, dict):
                continue
            stamps = request.get("response_timestamps")
            stamps = stamps if isinstance(stamps, list) else []
            yield Row(
                number,
                {
                    "timestamp": request.get("timestamp"),
                    "first": stamps[0] if stamps else None,
                    "last": stamps[-1] if stamps else None,
                    "responses": len(stamps),
                    "failed": not stamps,
                },
            )


READER = Reader(
    title="genai-perf",
    source="https://github.com/triton-inference-server/perf_analyzer",
    fits=lambda source: source.has("experiments") and source.document is not None,
    fields={
        "arrival": Field(("timestamp",), "ns"),
        "first": Field(("first",), "ns"),
        "last": Field(("last",), "ns"),
        "output": Field(("responses",)),
        "failed": Field(("failed",)),
    },
    unfold=_unfold,
)
