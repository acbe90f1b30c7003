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
      follower_s: (models,) seconds of prefill of the mean prompt, per token of the mean output: what a place in the
        batch adds to an iteration if each who leaves it is followed by another. Means over the tasks, since a router
        does not know their mix.
      held_each: () tokens that a request holds on average.
      capacity: (models,) requests per second that this model and all larger ones sustain together, each serving alone.
      gap: () reward between the best and the worst model, mean over the tasks.
    """

    survival: Any
    remainder: Any
    longest: Any
    length_quantiles: Any
    decode_work_s: Any
    follower_s: Any
    held_each: Any
    capacity: Any
    gap: Any

    @classmethod
    def of(cls, situation: Situation, longest_output: int | None = None) -> Priors:
        """Priors of a situation, whose laws end with `longest_output` tokens, or the tasks' longest output."""
        laws = LengthLaws.of(situation.tasks, longest_output)
        prompt, output = float(situation.mean_prompt_tokens.mean()), float(situation.mean_output_tokens.mean())
        quality = situation.profile.quality_table(situation.task_names)
        prefill = situation.profile.prefill_table(max(task.prompt_tokens[1] for task in situation.tasks))
        return cls(
            survival=laws.survival,
            remainder=laws.remainder,
            longest=laws.longest,
            length_quantiles=laws.length_quantiles,
            decode_work_s=decode_work(situation),
            follower_s=prefill[:, round(prompt)] / output,
            held_each=np.asarray(prompt + output / 2),
            capacity=np.cumsum(situation.capacity()[::-1])[::-1],
            gap=np.asarray(np.mean(situation.weights * np.ptp(quality, axis=1))),
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
