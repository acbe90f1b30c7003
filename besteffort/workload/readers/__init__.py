"""Readers of logs and traces, one module per format, recognised by their content. No data are in this package.

A reader says how its format is recognised and where it states what; `besteffort.workload.reading` reads the file.
A new format needs a `Reader` in a module and a line in `READERS`.
"""

from besteffort.workload.readers import (
    aiperf,
    anthropic,
    any_log,
    azure_llm,
    blis,
    burstgpt,
    genai_perf,
    guidellm,
    inference_perf,
    langfuse,
    litellm,
    llm_serving_sim,
    maf_2019,
    maf_2021,
    mooncake,
    otel,
    own,
    qwen_bailian,
    servegen,
    serving_bench,
    splitwise,
    vidur,
    vllm_requests,
)
from besteffort.workload.readers.maf_2019 import MafOptions
from besteffort.workload.readers.servegen import ServeGenOptions
from besteffort.workload.readers.types import Drawn, Reader

__all__ = ["READERS", "Drawn", "MafOptions", "Reader", "ServeGenOptions"]

READERS: dict[str, Reader] = {
    "csv": own.READER,
    "azure_llm": azure_llm.READER,
    "mooncake_sessions": mooncake.SESSIONS,
    "qwen_bailian": qwen_bailian.READER,
    "mooncake": mooncake.READER,
    "burstgpt": burstgpt.READER,
    "maf_2021": maf_2021.READER,
    "servegen": servegen.READER,
    "vllm_requests": vllm_requests.READER,
    "vllm_bench": serving_bench.VLLM,
    "sglang_bench": serving_bench.SGLANG,
    "guidellm": guidellm.READER,
    "aiperf": aiperf.READER,
    "genai_perf": genai_perf.READER,
    "inference_perf": inference_perf.READER,
    "litellm": litellm.READER,
    "langfuse": langfuse.READER,
    "otel": otel.READER,
    "vidur": vidur.READER,
    "blis": blis.READER,
    "splitwise": splitwise.READER,
    "llm_serving_sim": llm_serving_sim.READER,
    "anthropic": anthropic.READER,
    "log": any_log.READER,
    "maf": maf_2019.READER,
}
"""Formats by name, in the order in which they are tried."""
