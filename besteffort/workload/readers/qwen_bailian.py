"""Qwen traces of Alibaba's Bailian: arrival in seconds and two lengths per request, as JSON lines.

https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon: `chat_id`, `parent_chat_id`, `timestamp` (s),
`input_length`, `output_length`, `type` (text, search, image, file), `turn`, `hash_ids`. Mooncake's have the same names
but milliseconds, and neither chats nor turns.
"""

from __future__ import annotations

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader

READER = Reader(
    title="Qwen Bailian",
    source="https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon",
    fits=lambda source: (
        source.has("timestamp", "input_length", "output_length")
        and (source.has("chat_id") or source.has("turn", "type", "hash_ids"))
    ),
    fields={
        "arrival": Field(("timestamp",), "s"),
        "prompt": Field(("input_length",)),
        "output": Field(("output_length",)),
    },
)
