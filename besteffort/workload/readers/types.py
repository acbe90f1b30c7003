"""Types of the readers: how a format is recognised, and where it states what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from besteffort.errors import InputError
from besteffort.workload.fields import Field
from besteffort.workload.renewal import renewal_times
from besteffort.workload.sources import Row, Source

MOST_REQUESTS = 3_000_000
"""The most requests that are drawn of a file, in less than half a gigabyte: a small file may state any number."""
_BY_CHANCE = 1.2  # times as many that may be drawn where so many are expected


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Requests of a file that holds counts or rates, drawn by seed.

    Attributes:
      arrival_s: (n,) float64 arrival times in seconds, sorted.
      task: (n,) index of each request's task; None where the file tells no tasks apart.
      prompt_tokens, output_tokens: (n,) lengths; None where the file has none.
    """

    arrival_s: np.ndarray
    task: np.ndarray | None = None
    prompt_tokens: np.ndarray | None = None
    output_tokens: np.ndarray | None = None


Draw = Callable[[np.random.Generator], Drawn]


@dataclasses.dataclass(frozen=True)
class Reader:
    """A file format; a new one needs one of these in a module, and a line in `READERS`.

    Attributes:
      title: what people call it.
      source: where the format is published.
      fits: whether a file is of this format.
      fields: where a row states what, see `besteffort.workload.fields`; none for formats without rows per request.
      model_columns: further columns that name models in another sense, which `--columns model=` may choose.
      unfold: makes rows of a file that holds requests otherwise, such as one JSON document of lists.
      ordered: rows are written in order of arrival and without gaps, so anything else is damage and refused; in other
        files rows without a length or an arrival are left out and counted, if those that were answered are few.
      cut_shows: a last line without a line break may have lost digits, and is refused.
      draw: reads counts or rates, given the number of tasks and the format's own options, and returns what draws
        requests from them; for formats without rows per request.
    """

    title: str
    source: str
    fits: Callable[[Source], bool]
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)
    model_columns: tuple[str, ...] = ()
    unfold: Callable[[Source], Iterator[Row]] | None = None
    ordered: bool = False
    cut_shows: bool = True
    draw: Callable[[Source, int, Any], Draw] | None = None


def require_newline(source: Source, last: int) -> None:
    """Refuses a file that stops in the middle of its last line, `last`, which may have lost digits.

    Raises:
      InputError: if it does.
    """
    if source.layout == "csv" and not source.ends_with_newline:
        raise InputError(
            f"{source.place(last)}: the file ends without a line break, so it may be cut short; "
            "copy it again, or end it with a line break if it is complete."
        )


def some_gaps(
    source: Source,
    rng: np.random.Generator,
    law: Literal["Gamma", "Weibull"],
    mean_count: np.ndarray,
    shape: np.ndarray,
    length_s: float,
) -> tuple[np.ndarray, np.ndarray]:
    """`besteffort.workload.renewal.renewal_times` of a file.

    Raises:
      InputError: if far more arrivals are drawn than are expected, as gaps of a small shape may.
    """
    try:
        return renewal_times(rng, law, mean_count, shape, length_s, most=round(_BY_CHANCE * MOST_REQUESTS))
    except OverflowError as error:
        raise InputError(
            f"{source.path}: its gaps are so uneven that {error} were drawn; choose another seed, a shorter part or a "
            "smaller `rate_scale`."
        ) from None


def some(source: Source, arrival_s: np.ndarray) -> np.ndarray:
    """The arrivals that were drawn.

    Raises:
      InputError: if there is none.
    """
    if not len(arrival_s):
        raise InputError(f"{source.path}: no request was drawn; choose a longer window or a larger `rate_scale`.")
    return arrival_s
