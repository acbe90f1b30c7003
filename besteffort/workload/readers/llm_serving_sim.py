"""Traces of LLMServingSim, JSON lines, formerly tab-separated.

https://github.com/casys-kaist/LLMServingSim: `input_toks`, `output_toks`, `arrival_time_ns`.
"""

from __future__ import annotations

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader

READER = Reader(
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
