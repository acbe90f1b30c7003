"""OpenTelemetry spans with the GenAI conventions: OTLP as JSON, or one span per line.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/ for `gen_ai.usage.input_tokens`, `output_tokens` and
`cache_read.input_tokens`, which the first includes;
https://github.com/vllm-project/vllm, vllm/tracing.py, for `gen_ai.latency.time_to_first_token`, `e2e` and
`time_in_queue` (s) and the former names `prompt_tokens` and `completion_tokens`. The file exporter of the collector
writes `resourceSpans[].scopeSpans[].spans[]`, with `startTimeUnixNano`. Spans without tokens are other work, and so are
those of agents and tools, which sum up the tokens of the spans in them, and of embeddings (`gen_ai.operation.name`).

A span becomes a row of its own attributes, those of its resource (`service.name`) and its times. Where spans state a
thing by several names, the row has it under one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader
from besteffort.workload.sources import Row, Source

_USAGE = ("gen_ai.usage.prompt_tokens", "gen_ai.usage.input_tokens")
_TIMES = ("startTimeUnixNano", "start_time", "endTimeUnixNano", "end_time")
_OTHER_WORK = ("create_agent", "invoke_agent", "invoke_workflow", "execute_tool", "embeddings", "retrieval")
_IDS = ("spanId", "span_id")
FIELDS = {
    "id": Field(("gen_ai.request.id", *_IDS)),
    "arrival": Field(_TIMES[:2]),
    "wait": Field(("gen_ai.latency.time_in_queue",), "s"),
    "ttft": Field(("gen_ai.latency.time_to_first_token", "gen_ai.response.time_to_first_chunk"), "s"),
    "last": Field(_TIMES[2:]),
    "prompt": Field(_USAGE),
    "output": Field(("gen_ai.usage.completion_tokens", "gen_ai.usage.output_tokens")),
    "cached": Field(("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens")),
    "limit": Field(("gen_ai.request.max_tokens",)),
    "model": Field(("gen_ai.response.model", "gen_ai.request.model")),
    "failed": Field(("failed",)),
}


def _spans(cells: dict[str, Any], resource: Any = None) -> Iterator[tuple[dict[str, Any], Any]]:
    """The spans of one JSON object, itself or those that lie in it, and the attributes of the resource of each."""
    for outer, inner in (("resourceSpans", "scopeSpans"), ("scopeSpans", "spans")):
        groups = cells.get(outer)
        if isinstance(groups, list):
            for group in groups:
                if isinstance(group, dict):
                    of = group.get("resource")
                    yield from _spans(
                        {inner: group.get(inner)}, of.get("attributes") if isinstance(of, dict) else resource
                    )
            return
    spans = cells.get("spans")
    if isinstance(spans, list):
        yield from ((span, resource) for span in spans if isinstance(span, dict))
    elif "attributes" in cells:
        yield cells, resource


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


def _cells(span: dict[str, Any], resource: Any) -> dict[str, Any] | None:
    """What a span states; None of one without tokens of its own."""
    attributes = _plain(span.get("attributes"))
    if all(attributes.get(name) is None for name in _USAGE) or attributes.get("gen_ai.operation.name") in _OTHER_WORK:
        return None
    status = span.get("status")
    code = status.get("code", status.get("status_code")) if isinstance(status, dict) else status
    return {
        **_plain(resource),
        **attributes,
        **{name: span[name] for name in (*_TIMES, *_IDS) if name in span},
        "failed": str(code) in ("2", "STATUS_CODE_ERROR", "ERROR"),
    }


def _unfold(source: Source) -> Iterator[Row]:
    some = [cells for row in source.sample for each in _spans(row.cells) if (cells := _cells(*each)) is not None]
    usual = {
        field: next((name for name in each.names if any(cells.get(name) is not None for cells in some)), each.names[0])
        for field, each in FIELDS.items()
    }
    for row in source.rows():
        for span, resource in _spans(row.cells):
            cells = _cells(span, resource)
            if cells is None:
                source.counted["spans without tokens of their own are left out"] += 1
                continue
            for field, each in FIELDS.items():
                value = next((cells[name] for name in each.names if cells.get(name) is not None), None)
                for name in each.names[: each.names.index(usual[field])]:  # would hide the usual one
                    cells.pop(name, None)
                cells[usual[field]] = value
            yield Row(row.number, cells)


def _fits(source: Source) -> bool:
    if source.has("resourceSpans") or source.has("scopeSpans"):
        return True
    some = [span for row in source.sample[:20] if isinstance(row.cells, dict) for span, _ in _spans(row.cells)]
    return any(name in _plain(span.get("attributes")) for span in some for name in _USAGE)


READER = Reader(
    title="OpenTelemetry GenAI spans",
    source="https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/",
    fits=_fits,
    fields=FIELDS,
    model_columns=("gen_ai.request.model", "service.name"),
    unfold=_unfold,
)
