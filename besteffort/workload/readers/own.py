"""This package's own format: per request its arrival in seconds, its lengths, perhaps its task and a limit.

Columns `arrival_s`, `prompt_tokens`, `output_tokens`, and if you like `task`, `origin` and `tenant` (names),
`output_limit`, the most tokens that the client wants, empty where it states none, and `cached_tokens`, how much of the
prompt was in the server's prefix cache. CSV or JSON lines; rows in order of arrival.
"""

from __future__ import annotations

from besteffort.workload.fields import Field, found
from besteffort.workload.readers import any_log
from besteffort.workload.readers.types import Reader
from besteffort.workload.sources import Source

FIELDS = {
    "arrival": Field(("arrival_s",), "s"),
    "prompt": Field(("prompt_tokens",)),
    "output": Field(("output_tokens",)),
    "limit": Field(("output_limit",)),
    "cached": Field(("cached_tokens",)),
    "task": Field(("task",)),
    "origin": Field(("origin",)),
    "tenant": Field(("tenant",)),
}


def _fits(source: Source) -> bool:
    """Without what a server log adds, which comes in the order of the answers, and has gaps where there were none."""
    others = found(any_log.READER.fields, source.header).keys() - FIELDS.keys() - {"id", "model"}
    return source.has("arrival_s", "prompt_tokens", "output_tokens") and not others


READER = Reader(
    title="besteffort's own",
    source="this package",
    fits=_fits,
    fields={**FIELDS, "id": any_log.READER.fields["id"]},
    ordered=True,
)
