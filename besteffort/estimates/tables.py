"""Durations of iterations as NumPy tables: profiles evaluated for the pools that serve and one longest prompt."""

from __future__ import annotations

import dataclasses

import numpy as np

from besteffort.pools import Fleet


@dataclasses.dataclass(frozen=True)
class Tables:
    """Costs of every pool; the NumPy counterpart of the fields of the same names in `EnvParams`.

    A prefill and a decode of at least one request last a positive time; the profile ensures that.

    Attributes:
      decode: (pools, largest max_batch + 1) duration in seconds of a decode iteration by batch size; entry 0 is 0.
      prefill: (pools, longest prompt + 1) duration in seconds of a prefill by prompt length; entry 0 is made 0.
      slowdown: (pools, pools) factor on an iteration of the row's pool while the column's has one in progress on its
        GPU.
      context_cost_s: (pools,) seconds per token held by the requests that ran before.
      cache_tokens: (pools,) tokens that fit a replica's key-value cache; infinite where unlimited.
      cache_output_share: share of a request's output counted against the cache at admission.
      chunk_tokens: (pools,) tokens that an iteration works on at most, infinite where prompts are read whole; None if
        they are everywhere.
    """

    decode: np.ndarray
    prefill: np.ndarray
    slowdown: np.ndarray
    context_cost_s: np.ndarray
    cache_tokens: np.ndarray
    cache_output_share: float = 1.0
    chunk_tokens: np.ndarray | None = None

    def __post_init__(self) -> None:
        # So that to read on costs a difference of entries.
        nothing = np.zeros((len(self.prefill), 1))
        object.__setattr__(self, "prefill", np.concatenate([nothing, self.prefill[:, 1:]], axis=1))

    @classmethod
    def of(cls, fleet: Fleet, max_tokens: int) -> Tables:
        """Tables of pools for prompts of up to `max_tokens` tokens."""
        chunks = fleet.chunk_tokens
        return cls(
            decode=fleet.decode_table(),
            prefill=fleet.prefill_table(max_tokens),
            slowdown=fleet.slowdown,
            context_cost_s=fleet.context_cost_s,
            cache_tokens=fleet.cache_tokens,
            cache_output_share=fleet.cache_output_share,
            chunk_tokens=chunks if np.isfinite(chunks).any() else None,
        )

    @property
    def pools(self) -> int:
        """How many pools there are."""
        return len(self.decode)
