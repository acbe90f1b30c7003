"""What is known of requests before they come: laws of output lengths, work per answer, capacities. NumPy only."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from besteffort.estimates.charges import typical_work
from besteffort.estimates.lengths import LengthLaws
from besteffort.situation import Situation


@dataclasses.dataclass(frozen=True)
class Priors:
    """Tables that estimates need beyond those of the serving model; leaves may carry batch axes under `vmap`.

    Attributes:
      survival, remainder, longest, length_quantiles: see `besteffort.estimates.lengths.LengthLaws`.
      decode_work_s: (tasks, models) instance-seconds of an answer after its prefill, see `decode_work`.
      capacity: (models,) requests per second that this model and all larger ones sustain together, each serving alone.
    """

    survival: Any
    remainder: Any
    longest: Any
    length_quantiles: Any
    decode_work_s: Any
    capacity: Any

    @classmethod
    def of(cls, situation: Situation, longest_output: int | None = None) -> Priors:
        """Priors of a situation, whose laws end with `longest_output` tokens, or the tasks' longest output."""
        laws = LengthLaws.of(situation.tasks, longest_output)
        return cls(
            survival=laws.survival,
            remainder=laws.remainder,
            longest=laws.longest,
            length_quantiles=laws.length_quantiles,
            decode_work_s=decode_work(situation),
            capacity=np.cumsum(situation.capacity()[::-1])[::-1],
        )


@lru_cache(maxsize=64)
def decode_work(situation: Situation) -> Float[np.ndarray, "tasks models"]:
    """Mean instance-seconds that an answer takes beyond its prefill, by the charges that bounds are made of.

    That is the least that an answer within its deadline takes, and where it cannot be in time, the least of a late one.
    """
    work = typical_work(situation)
    seconds = np.zeros((len(situation.tasks), work.tables.models))
    for model in range(work.tables.models):
        late, in_time = work.charges(model, np.ones(1))
        charge = np.where(np.isfinite(in_time[:, 0]), in_time[:, 0], np.maximum(late, work.own_s[model]))
        seconds[:, model] = np.bincount(work.task, work.count * (charge - work.own_s[model]), len(situation.tasks))
    return seconds
