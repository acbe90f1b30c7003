"""Azure LLM inference traces of 2023 and 2024, and the multimodal one of 2025: a date and two lengths per request.

https://github.com/Azure/AzurePublicDataset: AzureLLMInferenceDataset2023.md, AzureLLMInferenceDataset2024.md,
AzureLMMInferenceDataset2025.md.
Dates have up to 9 decimals; those of 2024 end in `+00:00`, those of 2025 in `Z`. People also write seconds from the
start into `TIMESTAMP`. The published files end without a line break.
"""

from __future__ import annotations

from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Reader

READER = Reader(
    title="Azure LLM inference 2023, 2024, multimodal 2025",
    source="https://github.com/Azure/AzurePublicDataset",
    fits=lambda source: source.has("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    fields={
        "arrival": Field(("TIMESTAMP",)),
        "prompt": Field(("ContextTokens",)),
        "output": Field(("GeneratedTokens",)),
    },
    ordered=True,
    cut_shows=False,
)
