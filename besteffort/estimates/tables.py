"""Durations of iterations as NumPy tables: a profile evaluated for one cluster and one longest prompt."""

from __future__ import annotations

import dataclasses

import numpy as np

from besteffort.profile import Profile


@dataclasses.dataclass(frozen=True)
class Tables:
    """Costs of every model; the NumPy counterpart of the fields of the same names in `EnvParams`.

    A prefill and a decode of at least one request last a positive time; the profile ensures that.

    Attributes:
      decode: (models, max_batch + 1) duration in seconds of a decode iteration by batch size; entry 0 is 0.
      prefill: (models, longest prompt + 1) duration in seconds of a prefill by prompt length; entry 0 is unused.
      slowdown: (models, models) factor on an iteration of the row's model while the column's has one in progress.
      context_cost_s: (models,) seconds per token held by the requests that ran before.
      cache_tokens: (models,) tokens that fit an instance's key-value cache; infinite where unlimited.
      cache_output_share: share of a request's output counted against the cache at admission.
    """

    decode: np.ndarray
    prefill: np.ndarray
    slowdown: np.ndarray
    context_cost_s: np.ndarray
    cache_tokens: np.ndarray
    cache_output_share: float = 1.0

    @classmethod
    def of(cls, profile: Profile, max_batch: int, max_tokens: int) -> Tables:
        """Tables of `profile` for batches of up to `max_batch` requests and prompts of up to `max_tokens` tokens."""
        return cls(
            decode=profile.decode_table(max_batch),
            prefill=profile.prefill_table(max_tokens),
            slowdown=profile.slowdown,
            context_cost_s=profile.context_cost_s,
            cache_tokens=profile.cache_tokens,
            cache_output_share=profile.cache_output_share,
        )

    @property
    def models(self) -> int:
        return len(self.decode)
