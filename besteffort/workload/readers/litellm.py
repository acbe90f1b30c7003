"""LiteLLM's spend logs: the table `LiteLLM_SpendLogs` as CSV, or the answer of `/spend/logs` as JSON.

https://github.com/BerriAI/litellm, schema.prisma: `startTime`, `completionStartTime` and `endTime` are dates in UTC,
`prompt_tokens`, `completion_tokens`, `model`, `model_group`, `status`. Where an answer was not streamed
`completionStartTime` is empty, or the end. `model` is the deployment that answered, whose times the log has;
`model_group` the public name that was asked for, behind which there may be several deployments.
"""

from __future__ import annotations

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader

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
        "model": Field(("model",)),
        "failed": Field(("status",)),
    },
    model_columns=("model_group", "model_id"),
)
