"""Logs of usual names with the usage of Anthropic's interface, which counts cached tokens beside the prompt.

https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching: `input_tokens` are those after the last cached one,
and a prompt has these, `cache_read_input_tokens` and `cache_creation_input_tokens`. Others that use the second name,
such as LiteLLM, call the whole prompt `prompt_tokens`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from besteffort.workload.cells import missing, number
from besteffort.workload.readers import any_log
from besteffort.workload.sources import Row, Source

_PROMPT, _READ, _WRITTEN = "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"


def _fits(source: Source) -> bool:
    whole = source.has("prompt_tokens") or source.has("usage.prompt_tokens")
    has = any(source.has(f"{outer}{_PROMPT}", f"{outer}{_READ}") for outer in ("", "usage."))
    return has and not whole and any_log.READER.fits(source)


def _unfold(source: Source) -> Iterator[Row]:
    source.notes.append(f"prompts are `{_PROMPT}`, `{_READ}` and `{_WRITTEN}` together, as Anthropic counts them")
    for row in source.objects():
        cells = row.cells
        yield Row(row.number, {**cells, **_counts(cells)})


def _counts(cells: dict[str, Any]) -> dict[str, Any]:
    """The whole prompt and its cached part, where a row has both as numbers."""
    usage = cells.get("usage")
    counts = cells if _PROMPT in cells or not isinstance(usage, dict) else usage
    given = [counts.get(name) for name in (_PROMPT, _READ, _WRITTEN)]
    parts = [0.0 if missing(cell) else number(cell) for cell in given]
    if missing(given[0]) or None in parts:
        return {_PROMPT: given[0], "cached_tokens": given[1]}
    return {_PROMPT: sum(part for part in parts if part is not None), "cached_tokens": given[1]}


READER = dataclasses.replace(
    any_log.READER,
    title="Anthropic's usage",
    source="https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching",
    fits=_fits,
    unfold=_unfold,
)
