"""Logs with columns of usual names, in any order, of requests and perhaps of what they took.

The names are those of this package (`requests.csv` of `besteffort simulate`), of gateways and of benchmarks. A name's
ending states the unit (`_s`, `_ms`, `_us`, `_ns`); where there is none, the data decide. Of several columns for one
thing, the first of these lists counts.
"""

from __future__ import annotations

from collections.abc import Mapping

from besteffort.workload.cells import is_date, missing, number
from besteffort.workload.columns import getter
from besteffort.workload.fields import EARLIEST, Field, found
from besteffort.workload.readers.types import Reader
from besteffort.workload.sources import Source

_UNITS = ("_s", "_ms", "_us", "_ns")
_STAMPS = ("_ts", "_timestamp", "_at")


def _times(*stems: str, words: tuple[str, ...] = ("", "_time", *_STAMPS)) -> tuple[str, ...]:
    """Names of a time: stems with `_time` and the like and their units, also in camel case."""
    names = [f"{stem}{word}{unit}" for stem in stems for word in words for unit in ("", *_UNITS) if word or unit]
    return (*names, *map(_camel, names))


def _durations(*stems: str) -> tuple[str, ...]:
    names = [f"{stem}{ending}" for stem in stems for ending in (*_UNITS, "_seconds", "")]
    return (*names, *(_camel(name) for name in names if "_" in name))


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)


_AMBIGUOUS = _times("request", words=("", "_time"))
"""Names of an arrival that web servers give to a duration; the last to count."""

FIELDS: Mapping[str, Field] = {
    "id": Field(("request_id", "requestId", "req_id", "x_request_id", "response_id")),
    "arrival": Field(
        (
            *_times("arrival", "arrived", "request_start", "start"),
            *_times("request", words=_STAMPS),
            *_times("received", "send", "sent", "submitted"),
            *("arrival", "created_at", "createdAt", "created", "startTimeUnixNano"),
            *(f"{stem}{unit}" for stem in ("timestamp", "time", "ts") for unit in (*_UNITS, "")),
            *("Timestamp", "TIMESTAMP", "@timestamp", "datetime", "date"),
            *_AMBIGUOUS,
        )
    ),
    "queued": Field(_times("queued", "enqueued", "enqueue")),
    "scheduled": Field(_times("scheduled", "schedule", "admission", "admitted", "dispatched")),
    "first": Field(_times("first_token", "first_chunk", "completion_start", "first_response")),
    "last": Field(
        _times(
            "last_token", "last_chunk", "completion", "end", "request_end", "finish", "finished", "completed", "done"
        )
    ),
    "ttft": Field((*_durations("ttft", "time_to_first_token", "first_token_latency", "TTFT"), "TTFT (ms)", "TTFT (s)")),
    "latency": Field(
        (
            *_durations("latency", "e2e_latency", "e2e", "request_latency", "total_latency", "end_to_end_latency"),
            *_durations("duration", "elapsed", "elapsed_time", "response_time", "total_time", "request_duration"),
        )
    ),
    "tpot": Field(
        (
            *_durations("tpot", "itl", "time_per_output_token", "inter_token_latency", "time_between_tokens"),
            "TPOT (ms)",
        )
    ),
    "wait": Field(_durations("queue_time", "time_in_queue", "queueing_time", "wait_time")),
    "prompt": Field(
        (
            *("prompt_tokens", "input_tokens", "input_toks", "num_prompt_tokens", "num_input_tokens", "prompt_len"),
            *("num_prefill_tokens", "input_len", "input_length", "prompt_length", "prompt_size", "context_tokens"),
            *("promptTokens", "inputTokens", "ContextTokens", "Request tokens", "input_sequence_length", "isl"),
            *("usage.prompt_tokens", "usage.input_tokens", "n_prompt_tokens", "prompt_token_count", "tokens_in"),
        )
    ),
    "output": Field(
        (
            *("output_tokens", "completion_tokens", "output_toks", "num_output_tokens", "num_completion_tokens"),
            *("generated_tokens", "num_generated_tokens", "num_generation_tokens", "num_decode_tokens", "output_len"),
            *("output_length", "decode_length", "completion_length", "response_tokens", "token_size"),
            *(
                "completionTokens",
                "outputTokens",
                "GeneratedTokens",
                "Response tokens",
                "output_sequence_length",
                "osl",
            ),
            *("usage.completion_tokens", "usage.output_tokens", "n_output_tokens", "completion_token_count"),
            "tokens_out",
        )
    ),
    "limit": Field(("output_limit", "max_tokens", "max_completion_tokens", "max_new_tokens", "max_output_tokens")),
    "cached": Field(
        (
            *("cached_tokens", "num_cached_tokens", "cached_prompt_tokens", "cache_read_input_tokens"),
            *("prompt_tokens_details.cached_tokens", "usage.prompt_tokens_details.cached_tokens"),
            *("usage.input_tokens_details.cached_tokens", "usage.cached_tokens", "usage.cache_read_input_tokens"),
        )
    ),
    "task": Field(("task", "task_name", "taskName")),
    "origin": Field(("origin",)),
    "tenant": Field(("tenant", "tenant_id", "tenantId")),
    "model": Field(("model", "model_name", "modelName", "Model")),
    "replica": Field(("replica", "instance")),
    "failed": Field(("error", "status", "failed", "error_message", "status_code", "http_status")),
    "succeeded": Field(("success", "succeeded", "is_success", "finish_reason", "finished_reason")),
}


def _fits(source: Source) -> bool:
    has = found(FIELDS, source.header)
    if has.get("arrival") in _AMBIGUOUS and not _are_times(source, has["arrival"]):
        return False
    return bool(has.keys() & {"arrival", "queued"}) and bool(has.keys() & {"prompt", "output"})


def _are_times(source: Source, name: str) -> bool:
    """Whether the first cells of a column are dates or times since 1970, and no durations."""
    take = getter(source, [name])
    cells = [cell for row in source.sample for cell in take(row) if not missing(cell)]
    return all(is_date(cell) or (number(cell) or 0.0) >= EARLIEST for cell in cells)


READER = Reader(
    title="usual names",
    source="this package",
    fits=_fits,
    fields=FIELDS,
    model_columns=("model_group", "model_id", "deployment", "engine"),
)
