"""OpenTelemetry spans with the GenAI conventions: OTLP as JSON, or one span per line.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/ for `gen_ai.usage.input_tokens` and `output_tokens`;
https://github.com/vllm-project/vllm, vllm/tracing.py, for `gen_ai.latency.time_to_first_token`, `e2e` and
`time_in_queue` (s) and the former names `prompt_tokens` and `completion_tokens`. The file exporter of the collector
writes `resourceSpans[].scopeSpans[].spans[]`, with `startTimeUnixNano`. Spans without tokens are other work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader
from besteffort.workload.sources import Row, Source

_USAGE = ("gen_ai.usage.prompt_tokens", "gen_ai.usage.input_tokens")


def _spans(cells: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The spans of one JSON object: itself, or those that lie in it."""
    for outer, inner in (("resourceSpans", "scopeSpans"), ("scopeSpans", "spans")):
        groups = cells.get(outer)
        if isinstance(groups, list):
            for group in groups:
                if isinstance(group, dict):
                    yield from _spans({inner: group.get(inner)})
            return
    spans = cells.get("spans")
    if isinstance(spans, list):
        yield from (span for span in spans if isinstance(span, dict))
    elif "attributes" in cells:
        yield cells


def _plain(attributes: Any) -> dict[str, Any]:
    """Attributes by name, without the names of their types."""
    if isinstance(attributes, dict):
        return attributes
    plain = {}
    for each in attributes if isinstance(attributes, list) else []:
        if isinstance(each, dict) and isinstance(each.get("key"), str):
            value = each.get("value")
            plain[each["key"]] = next(iter(value.values()), None) if isinstance(value, dict) else value
    return plain


def _unfold(source: Source) -> Iterator[Row]:
    others = 0
    for row in source.rows():
        for span in _spans(row.cells):
            attributes = _plain(span.get("attributes"))
            prompt = next((attributes[name] for name in _USAGE if name in attributes), None)
            if prompt is None:
                others += 1
                continue
            status = span.get("status")
            code = status.get("code", status.get("status_code")) if isinstance(status, dict) else status
            yield Row(
                row.number,
                {
                    "start": span.get("startTimeUnixNano", span.get("start_time")),
                    "end": span.get("endTimeUnixNano", span.get("end_time")),
                    "time_to_first_token": attributes.get(
                        "gen_ai.latency.time_to_first_token", attributes.get("gen_ai.response.time_to_first_chunk")
                    ),
                    "time_in_queue": attributes.get("gen_ai.latency.time_in_queue"),
                    "prompt_tokens": prompt,
                    "completion_tokens": attributes.get(
                        "gen_ai.usage.completion_tokens", attributes.get("gen_ai.usage.output_tokens")
                    ),
                    "max_tokens": attributes.get("gen_ai.request.max_tokens"),
                    "id": attributes.get("gen_ai.request.id", span.get("spanId", span.get("span_id"))),
                    "model": attributes.get("gen_ai.response.model", attributes.get("gen_ai.request.model")),
                    "failed": str(code) in ("2", "STATUS_CODE_ERROR", "ERROR"),
                },
            )
    if others:
        source.notes.append(f"{others:,} spans without tokens are left out")


def _fits(source: Source) -> bool:
    if source.has("resourceSpans") or source.has("scopeSpans"):
        return True
    some = [span for row in source.sample[:20] if isinstance(row.cells, dict) for span in _spans(row.cells)]
    return any(name in _plain(span.get("attributes")) for span in some for name in _USAGE)


READER = Reader(
    title="OpenTelemetry GenAI spans",
    source="https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/",
    fits=_fits,
    fields={
        "id": Field(("id",)),
        "arrival": Field(("start",)),
        "wait": Field(("time_in_queue",), "s"),
        "ttft": Field(("time_to_first_token",), "s"),
        "last": Field(("end",)),
        "prompt": Field(("prompt_tokens",)),
        "output": Field(("completion_tokens",)),
        "limit": Field(("max_tokens",)),
        "model": Field(("model",)),
        "failed": Field(("failed",)),
    },
    unfold=_unfold,
)
