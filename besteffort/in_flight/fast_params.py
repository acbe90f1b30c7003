"""`ServingParams` in the forms in which single numbers are read fast: plain numbers, lists and closures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from besteffort.estimates.estimates import (
    Costs,
    Newcomer,
    Prospect,
    Softness,
    Stakes,
    expected_length,
    prospect,
    slots,
    steepness_of,
)
from besteffort.estimates.params import ServingParams
from besteffort.estimates.view import Terms
from besteffort.situation import deadline_s

_MOST_PROSPECTS = 1024


class _PlainLaws(NamedTuple):
    """Of `Priors` what rules and harm read, as plain numbers and flat lists."""

    survival: list[float]
    remainder: list[float]
    longest_law: int
    gap: float


class _PoolParams(NamedTuple):
    """Of `ServingParams` what is read of one pool, as plain numbers and lists over tasks; `slots` of all replicas."""

    priors: _PlainLaws
    quality: list[float]
    weight: list[float]
    deadline_base_s: list[float]
    deadline_per_token_s: list[float]
    decode_work_s: list[float]
    soft_span: float
    miss_penalty: float
    places: int
    slots: float


class FastParams:
    """What estimates need of a situation, for prompts up to a length.

    Attributes:
      params: all of it, as arrays.
      slows_down: whether models on a GPU slow each other down.
      pools: pool by pool what is read most, in plain numbers.
      costs: pool by pool what iterations cost.
      slots: pool by pool requests that an instance runs at once.
      capacity: pool by pool requests per second that it and all of models as large or larger sustain together.
      visible_deadline_s: task by task the deadline of an answer of mean length.
    """

    def __init__(self, params: ServingParams, terms: Terms, replicas: np.ndarray) -> None:
        """Converts `params`; `replicas` has the shape (pools,)."""
        pools = len(replicas)
        self.params = params
        self.slows_down = bool((params.slowdown != 1).any())
        self.slots: list[int] = np.broadcast_to(slots(params), pools).tolist()
        self.costs = _costs(params, self.slots)
        self.pools = _plain(params, terms, replicas.tolist(), self.slots)
        self.capacity: list[float] = params.priors.capacity.tolist()
        self.visible_deadline_s: list[float] = deadline_s(
            params.deadline_base_s, params.deadline_per_token_s, params.mean_output_tokens
        ).tolist()
        self._remainder: list[list[float]] = params.priors.remainder.tolist()
        self._delays: list[float] = np.broadcast_to(params.network_delay_s, pools).tolist()
        self._origin_delays = [] if params.origin_delay_s is None else params.origin_delay_s.tolist()
        # Per task, limit and factor the mean length, likely lengths and their deadlines.
        self._prospects: dict[tuple[int, int | None, float | None], tuple[float, list[int], list[float]]] = {}

    @property
    def prompts_below(self) -> int:
        """Tables have the prefills of prompts that have fewer tokens than this."""
        return int(self.params.prefill.shape[1])

    def prefill_s(self, pool: int, prompt_tokens: int, cached_tokens: int) -> float:
        """Seconds that reading a prompt takes a pool, but for what is cached."""
        prefill = self.params.prefill[pool]
        return float(prefill[prompt_tokens] - prefill[cached_tokens])

    def delay_s(self, origin: int | None, pool: int) -> float:
        """Network delay of a pool to an origin, or to none."""
        return float(self._delays[pool] if origin is None else self._origin_delays[origin][pool])

    def leaving(self, task: int, tokens: int, max_tokens: int | None) -> float:
        """One over the tokens that a request is expected to go on for which has so many."""
        law = self._remainder[task]
        tokens = min(tokens, len(law) - 1)
        if max_tokens is None:
            return 1.0 / law[tokens]
        survival = self.params.priors.survival[task]
        limit = min(max_tokens, len(law) - 1)
        return 1.0 / max(law[tokens] - float(survival[limit] / survival[tokens]) * law[limit], 1.0)

    def stakes(
        self, pool: int, task: int, max_tokens: int | None, deadline_factor: float, tenant_weight: float
    ) -> Stakes:
        """What a request has to lose that is sent to a pool, in plain numbers."""
        params = self.pools[pool]
        longest = params.priors.longest_law
        law, weight = task * (longest + 1), params.weight[task] * tenant_weight
        return Stakes(
            law=law,
            limit=None if max_tokens is None else law + min(max_tokens, longest),
            deadline_base_s=params.deadline_base_s[task] * deadline_factor,
            deadline_per_token_s=params.deadline_per_token_s[task] * deadline_factor,
            quality=weight * params.quality[task],
            penalty=weight * params.miss_penalty,
        )

    def ahead(self, newcomer: Newcomer, how: Softness) -> tuple[float, Prospect]:
        """Mean length of the answer, and its `Prospect` as lists."""
        key = (newcomer.task, newcomer.output_limit, newcomer.deadline_factor)
        known = self._prospects.get(key)
        if known is None:
            if len(self._prospects) >= _MOST_PROSPECTS:
                self._prospects.clear()
            whole = prospect(newcomer, self.params, Softness(0.0, 0.0, 0.0))
            length = float(expected_length(newcomer, self.params))
            known = self._prospects[key] = (length, whole.length.tolist(), whole.deadline_s.tolist())
        length, lengths, deadlines_s = known
        kept, width = 1.0 - how.reserve, how.width
        due_s = [kept * deadline_s for deadline_s in deadlines_s]
        return length, Prospect(lengths, due_s, [steepness_of(width, one_s) for one_s in due_s])


def mean_decode(costs: Costs) -> Callable[[Any], Any]:
    """Seconds of a decode of so many requests of mean length."""
    return lambda number: costs.decode(number) + costs.held_s * number


def _costs(params: ServingParams, slots_of: list[int]) -> list[Costs]:
    chunks = np.full(len(slots_of), np.inf) if params.chunk_tokens is None else params.chunk_tokens
    held_s = (params.context_cost_s * params.priors.held_each).tolist()
    return [
        Costs(_interpolation(row), most, follower_s, of_held_s, of_context_s, math.inf, chunk_tokens)
        for row, most, follower_s, of_held_s, of_context_s, chunk_tokens in zip(
            params.decode.tolist(),
            slots_of,
            params.priors.follower_s.tolist(),
            held_s,
            params.context_cost_s.tolist(),
            chunks.tolist(),
            strict=True,
        )
    ]


def _plain(params: ServingParams, terms: Terms, replicas: list[int], slots_of: list[int]) -> list[_PoolParams]:
    priors, pools = params.priors, len(slots_of)
    survival, remainder = (table.reshape(-1).tolist() for table in (priors.survival, priors.remainder))
    laws = _PlainLaws(survival, remainder, priors.longest_law, float(priors.gap))
    places = terms.capacity if params.pools is None else params.pools.places
    places = np.broadcast_to(places, pools).tolist()
    return [
        _PoolParams(
            laws,
            params.quality[:, pool].tolist(),
            params.weight.tolist(),
            params.deadline_base_s.tolist(),
            params.deadline_per_token_s.tolist(),
            priors.decode_work_s[:, pool].tolist(),
            float(params.soft_span),
            float(params.miss_penalty),
            places[pool],
            float(slots_of[pool] * replicas[pool]),
        )
        for pool in range(pools)
    ]


def _interpolation(row: list[float]) -> Callable[[Any], Any]:
    """Values of a table at fractional columns."""
    last = len(row) - 2

    def at(number: Any) -> Any:
        low = min(int(number), last)
        return row[low] + (number - low) * (row[low + 1] - row[low])

    return at
