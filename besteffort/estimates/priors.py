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
      decode_work_s: (tasks, pools) instance-seconds of an answer after its prefill, see `decode_work`.
      follower_s: (pools,) seconds of prefill of the mean prompt, per token of the mean output: what a place in the
        batch adds to an iteration if each who leaves it is followed by another. Means over the tasks, since a router
        does not know their mix.
      held_each: () tokens that a request holds on average.
      capacity: (pools,) requests per second that this pool and all of models as large or larger sustain together, each
        serving alone.
      alone: (pools,) requests per second that each pool sustains; None where pools are uniform.
      gap: () reward between the best and the worst pool, mean over the tasks.
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
    alone: Any = None

    @property
    def longest_law(self) -> int:
        """Tokens that the tables of laws end with."""
        return int(self.survival.shape[-1] - 1)

    @classmethod
    def of(cls, situation: Situation, longest_output: int | None = None, *, uniform: bool | None = None) -> Priors:
        """Priors of a situation, whose laws end with `longest_output` tokens, or the tasks' longest output.

        `uniform` is whether pools are taken to be so; by default if they are.
        """
        laws = LengthLaws.of(situation.tasks, longest_output)
        prompt, output = float(situation.mean_prompt_tokens.mean()), float(situation.mean_output_tokens.mean())
        quality = situation.quality
        prefill = situation.fleet.prefill_table(max(task.prompt_tokens[1] for task in situation.tasks))
        fleet, alone = situation.fleet, situation.capacity()
        uniform = fleet.uniform if uniform is None else uniform
        at_least = fleet.model[None] >= fleet.model[:, None]
        return cls(
            survival=laws.survival,
            remainder=laws.remainder,
            longest=laws.longest,
            length_quantiles=laws.length_quantiles,
            decode_work_s=decode_work(situation),
            follower_s=prefill[:, round(prompt)] / output,
            held_each=np.asarray(prompt + output / 2),
            capacity=np.cumsum(alone[::-1])[::-1] if uniform else np.where(at_least, alone, 0.0).sum(axis=1),
            gap=np.asarray(np.mean(situation.weights * np.ptp(quality, axis=1))),
            alone=None if uniform else alone,
        )


@lru_cache(maxsize=64)
def decode_work(situation: Situation) -> Float[np.ndarray, "tasks pools"]:
    """Mean instance-seconds that an answer takes beyond its prefill, by the charges that bounds are made of.

    That is the least that an answer within its deadline takes, and where it cannot be in time, the least of a late one.
    """
    work = typical_work(situation)
    seconds = np.zeros((len(situation.tasks), work.tables.pools))
    for pool in range(work.tables.pools):
        late, in_time = work.charges(pool, np.ones(1))
        charge = np.where(np.isfinite(in_time[:, 0]), in_time[:, 0], np.maximum(late, work.own_s[pool]))
        seconds[:, pool] = np.bincount(work.task, work.count * (charge - work.own_s[pool]), len(situation.tasks))
    return seconds
