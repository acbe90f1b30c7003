"""LiteLLM's spend logs: the table `LiteLLM_SpendLogs` as CSV, or the answer of `/spend/logs` as JSON.

https://github.com/BerriAI/litellm, schema.prisma: `startTime`, `completionStartTime` and `endTime` are dates in UTC,
`prompt_tokens`, `completion_tokens`, `model`, `model_group`, `status`. Where an answer was not streamed
`completionStartTime` is empty, or the end. `model` is the deployment that answered, whose times the log has;
`model_group` the public name that was asked for, behind which there may be several deployments. `metadata`, an object
or its text, has the usage that the server told (`usage_object`), with the tokens that its prefix cache had. The tenant
is the team of the key, `team_id`; `--columns tenant=user` or `tenant=end_user` takes another. Answers from LiteLLM's
own cache (`cache_hit`) reached no server, and calls of some types (`call_type`) generate no text; both are left out.
Earlier versions have the status in the metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from besteffort.workload.cells import json_in_text
from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader
from besteffort.workload.sources import Row, Source

_OTHER_CALLS = ("embedding", "image", "speech", "transcription", "moderation", "rerank")
_CACHED = (("prompt_tokens_details", "cached_tokens"), ("cache_read_input_tokens",))


def _cached(metadata: Any) -> Any:
    """Tokens of the prompt that the prefix cache had, where the metadata of a request say so."""
    for usage in ("usage_object", "additional_usage_values"):
        for path in _CACHED:
            value = metadata
            for name in (usage, *path):
                value = value.get(name) if isinstance(value, dict) else None
            if isinstance(value, int | float):
                return value
    return None


def _unfold(source: Source) -> Iterator[Row]:
    for row in source.objects():
        cells = row.cells
        if str(cells.get("cache_hit")).lower() == "true":
            source.counted["requests were answered from LiteLLM's own cache and are left out"] += 1
            continue
        if any(kind in str(cells.get("call_type")).lower() for kind in _OTHER_CALLS):
            source.counted["calls generated no text (`call_type`) and are left out"] += 1
            continue
        metadata = json_in_text(cells.get("metadata"))
        status = metadata.get("status") if isinstance(metadata, dict) else None
        told = {
            "cached_tokens": cells.get("cached_tokens") or _cached(metadata),
            "status": cells.get("status") or status,
        }
        yield Row(row.number, {**cells, **told})


READER = Reader(
    title="LiteLLM spend logs",
    source="https://github.com/BerriAI/litellm",
    fits=lambda source: source.has("startTime", "endTime", "prompt_tokens", "completion_tokens"),
    fields={
        "id": Field(("request_id",)),
        "arrival": Field(("startTime",)),
        "first": Field(("completionStartTime",)),
        "last": Field(("endTime",)),
        "prompt": Field(("prompt_tokens",)),
        "output": Field(("completion_tokens",)),
        "cached": Field(("cached_tokens",)),
        "tenant": Field(("team_id",)),
        "model": Field(("model",)),
        "failed": Field(("status",)),
    },
    model_columns=("model_group", "model_id"),
    unfold=_unfold,
)
