"""JSON reports of guidellm: every request of every benchmark, with its own times.

https://github.com/vllm-project/guidellm, docs/guides/outputs.md: `benchmarks[].requests.successful[]`, and `errored`
and `incomplete` beside it. Times are seconds since 1970, in later versions inside `info.timings`.
"""

from __future__ import annotations

from collections.abc import Iterator

from besteffort.workload.columns import Field
from besteffort.workload.readers.types import Reader
from besteffort.workload.sources import Row, Source


def _unfold(source: Source) -> Iterator[Row]:
    number = 0
    benchmarks = (source.document or {}).get("benchmarks")
    for benchmark in benchmarks if isinstance(benchmarks, list) else []:
        groups = benchmark.get("requests") if isinstance(benchmark, dict) else None
        for group in ("successful", "errored", "incomplete"):
            requests = groups.get(group) if isinstance(groups, dict) else None
            for request in requests if isinstance(requests, list) else []:
                number += 1
                yield Row(number, {**request, "failed": group != "successful"} if isinstance(request, dict) else {})


READER = Reader(
    title="guidellm",
    source="https://github.com/vllm-project/guidellm",
    fits=lambda source: source.has("benchmarks") and source.document is not None,
    fields={
        "id": Field(("request_id",)),
        "arrival": Field(("request_start_time", "info.timings.request_start", "start_time"), "s"),
        "first": Field(("first_token_time", "info.timings.first_token_iteration", "info.timings.first_iteration"), "s"),
        "last": Field(("last_token_time", "info.timings.last_token_iteration", "info.timings.last_iteration"), "s"),
        "prompt": Field(("prompt_tokens", "input_tokens")),
        "output": Field(("output_tokens",)),
        "failed": Field(("failed",)),
    },
    unfold=_unfold,
)
