"""JSON reports of guidellm: every request of every benchmark, with its own times.

https://github.com/vllm-project/guidellm, docs/guides/outputs.md: `benchmarks[].requests.successful[]`, and `errored`
and `incomplete` beside it. Times are seconds since 1970, in later versions inside `info.timings`. The model is that of
`config.backend` of a benchmark or of `args`, where `--model` named one. What is not streamed has no tokens' times, but
the end of the request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader
from besteffort.workload.sources import Row, Source

_TIMES = {
    "start": ("request_start_time", "request_start", "start_time"),
    "first": ("first_token_time", "first_token_iteration", "first_iteration"),
    "last": ("last_token_time", "last_token_iteration", "last_iteration", "request_end_time", "request_end"),
}


def _unfold(source: Source) -> Iterator[Row]:
    number = 0
    document = source.document or {}
    benchmarks = document.get("benchmarks")
    for benchmark in benchmarks if isinstance(benchmarks, list) else []:
        groups = benchmark.get("requests") if isinstance(benchmark, dict) else None
        model = _text(benchmark, "config", "backend", "model") or _text(document, "args", "model")
        for group in ("successful", "errored", "incomplete"):
            requests = groups.get(group) if isinstance(groups, dict) else None
            for request in requests if isinstance(requests, list) else []:
                number += 1
                if isinstance(request, dict):
                    yield Row(number, _request(request, model, failed=group != "successful"))


def _text(outer: Any, *path: str) -> str | None:
    """A text in nested objects; None where there is none."""
    for name in path:
        outer = outer.get(name) if isinstance(outer, dict) else None
    return outer if isinstance(outer, str) else None


def _request(request: dict[str, Any], model: str | None, *, failed: bool) -> dict[str, Any]:
    """A request's times and lengths, wherever its version has them."""
    info = request.get("info")
    timings = info.get("timings") if isinstance(info, dict) else None
    places = (request, timings if isinstance(timings, dict) else {})
    times = {
        field: next((place[name] for name in names for place in places if place.get(name) is not None), None)
        for field, names in _TIMES.items()
    }
    prompt = request.get("prompt_tokens", request.get("input_tokens"))
    return {
        **request,
        **times,
        "model": _text(request, "model") or model,
        "request_id": request.get("request_id"),
        "prompt_tokens": prompt,
        "output_tokens": request.get("output_tokens"),
        "failed": failed,
    }


READER = Reader(
    title="guidellm",
    source="https://github.com/vllm-project/guidellm",
    fits=lambda source: source.has("benchmarks") and source.document is not None,
    fields={
        "id": Field(("request_id",)),
        "arrival": Field(("start",), "s"),
        "first": Field(("first",), "s"),
        "last": Field(("last",), "s"),
        "prompt": Field(("prompt_tokens",)),
        "output": Field(("output_tokens",)),
        "model": Field(("model",)),
        "failed": Field(("failed",)),
    },
    unfold=_unfold,
)
