"""The numbers that estimates need of a situation, as NumPy arrays: for gateways and for the reference."""

from __future__ import annotations

import dataclasses

import numpy as np

from besteffort.estimates.priors import Priors
from besteffort.estimates.rule import Rule
from besteffort.estimates.tables import Tables
from besteffort.pools import PoolNumbers
from besteffort.situation import Situation


@dataclasses.dataclass(frozen=True)
class ServingParams:
    """The NumPy counterpart of the fields of the same names in `besteffort.simulator.types.EnvParams`."""

    decode: np.ndarray
    prefill: np.ndarray
    slowdown: np.ndarray
    context_cost_s: np.ndarray
    cache_tokens: np.ndarray
    cache_output_share: float
    quality: np.ndarray
    weight: np.ndarray
    mean_prompt_tokens: np.ndarray
    mean_output_tokens: np.ndarray
    deadline_base_s: np.ndarray
    deadline_per_token_s: np.ndarray
    soft_span: float
    miss_penalty: float
    network_delay_s: np.ndarray
    priors: Priors
    rule: Rule | None = None
    pools: PoolNumbers | None = None
    origin_delay_s: np.ndarray | None = None
    chunk_tokens: np.ndarray | None = None

    @classmethod
    def of(cls, situation: Situation, longest_prompt: int | None = None, *, rule: Rule | None = None) -> ServingParams:
        """The numbers of a situation, for prompts of up to `longest_prompt` tokens, or its tasks' longest."""
        longest = max([longest_prompt or 1, *(task.prompt_tokens[1] for task in situation.tasks)])
        fleet = situation.fleet
        tables = Tables.of(fleet, longest)
        return cls(
            decode=tables.decode,
            prefill=tables.prefill,
            slowdown=tables.slowdown,
            context_cost_s=tables.context_cost_s,
            cache_tokens=tables.cache_tokens,
            cache_output_share=tables.cache_output_share,
            quality=situation.quality,
            weight=situation.weights,
            mean_prompt_tokens=situation.mean_prompt_tokens,
            mean_output_tokens=situation.mean_output_tokens,
            deadline_base_s=np.array([task.deadline.base_s for task in situation.tasks]),
            deadline_per_token_s=np.array([task.deadline.per_token_s for task in situation.tasks]),
            soft_span=situation.reward.soft_span,
            miss_penalty=situation.reward.miss_penalty,
            network_delay_s=np.asarray(fleet.network_delay_s[0]) if fleet.uniform else fleet.network_delay_s,
            priors=Priors.of(situation),
            rule=rule,
            pools=None if fleet.uniform else fleet.numbers,
            origin_delay_s=situation.origin_delay_s,
            chunk_tokens=tables.chunk_tokens,
        )
