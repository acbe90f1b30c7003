"""Traces that other simulators of LLM serving read: Vidur, BLIS, splitwise-sim and LLMServingSim.

https://github.com/microsoft/vidur: `arrived_at` (s), `num_prefill_tokens`, `num_decode_tokens`.
https://github.com/inference-sim/inference-sim (BLIS), sim/workload/tracev2.go: `arrival_time_us`, `send_time_us`,
`first_chunk_time_us`, `last_chunk_time_us`, of which 0 means unknown, `input_tokens`, `output_tokens`, `status`.
https://github.com/Mutinifni/splitwise-sim: `arrival_timestamp` (s), `prompt_size`, `token_size`.
https://github.com/casys-kaist/LLMServingSim: `arrival_time_ns`, `input_toks`, `output_toks`, formerly tab-separated.
"""

from __future__ import annotations

from typing import Any

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader


def _or_unknown(cell: Any) -> Any:
    return None if cell in ("0", 0) else cell


VIDUR = Reader(
    title="Vidur",
    source="https://github.com/microsoft/vidur",
    fits=lambda source: source.has("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    fields={
        "arrival": Field(("arrived_at",), "s"),
        "prompt": Field(("num_prefill_tokens",)),
        "output": Field(("num_decode_tokens",)),
    },
    ordered=True,
)

BLIS = Reader(
    title="BLIS trace v2",
    source="https://github.com/inference-sim/inference-sim",
    fits=lambda source: source.has("arrival_time_us", "first_chunk_time_us", "last_chunk_time_us", "input_tokens"),
    fields={
        "id": Field(("request_id",)),
        "arrival": Field(("arrival_time_us",), "us"),
        "first": Field(("first_chunk_time_us",), "us", means=_or_unknown),
        "last": Field(("last_chunk_time_us",), "us", means=_or_unknown),
        "prompt": Field(("input_tokens",)),
        "output": Field(("output_tokens",)),
        "model": Field(("model",)),
        "failed": Field(("status",)),
    },
)

SPLITWISE = Reader(
    title="splitwise-sim",
    source="https://github.com/Mutinifni/splitwise-sim",
    fits=lambda source: source.has("arrival_timestamp", "prompt_size", "token_size"),
    fields={
        "id": Field(("request_id",)),
        "arrival": Field(("arrival_timestamp",), "s"),
        "prompt": Field(("prompt_size",)),
        "output": Field(("token_size",)),
    },
)

LLM_SERVING_SIM = Reader(
    title="LLMServingSim",
    source="https://github.com/casys-kaist/LLMServingSim",
    fits=lambda source: source.has("arrival_time_ns", "input_toks", "output_toks"),
    fields={
        "id": Field(("request_id",)),
        "arrival": Field(("arrival_time_ns",), "ns"),
        "prompt": Field(("input_toks",)),
        "output": Field(("output_toks",)),
    },
)
