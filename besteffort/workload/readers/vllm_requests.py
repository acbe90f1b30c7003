"""Per-request logs of vLLM: arrivals by the wall clock, the rest by a monotonic one, in seconds, as JSON lines.

As https://github.com/casys-kaist/LLMServingSim (bench/examples) writes them from vLLM's `RequestStateStats`
(https://github.com/vllm-project/vllm, vllm/v1/metrics/stats.py): `request_id`, `input_toks`, `output_toks`,
`arrival_time`, `queued_ts`, `scheduled_ts`, `first_token_ts`, `last_token_ts`.
"""

from __future__ import annotations

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader

READER = Reader(
    title="vLLM requests",
    source="https://github.com/vllm-project/vllm",
    fits=lambda source: source.has("arrival_time", "queued_ts", "first_token_ts", "last_token_ts"),
    fields={
        "id": Field(("request_id",)),
        "arrival": Field(("arrival_time",)),
        "queued": Field(("queued_ts",)),
        "scheduled": Field(("scheduled_ts",)),
        "first": Field(("first_token_ts",)),
        "last": Field(("last_token_ts",)),
        "prompt": Field(("input_toks", "num_prompt_tokens", "prompt_tokens", "input_tokens")),
        "output": Field(("output_toks", "num_generation_tokens", "output_tokens", "completion_tokens")),
        "cached": Field(("num_cached_tokens", "cached_tokens", "usage.prompt_tokens_details.cached_tokens")),
        "limit": Field(("max_tokens", "max_tokens_param", "output_limit")),
        "model": Field(("model", "model_name")),
        "task": Field(("task",)),
        "replica": Field(("replica",)),
    },
)
