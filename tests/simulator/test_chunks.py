"""Prompts read in chunks and found in a prefix cache: the compiled simulator against the reference, on random lists."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest

from besteffort.simulator.result import Result
from tests.simulator.cases import (
    BUDGETS,
    Case,
    Kind,
    Played,
    agree,
    draw_case,
    horizon_s,
    play_compiled,
    simulate_by_reference,
    with_budgets,
)

KINDS = [
    Kind(1, 1, 1, max_batch=4, queue_capacity=5, dyadic=True, extras=frozenset({"chunks"})),
    Kind(3, 2, 2, max_batch=2, queue_capacity=0, dyadic=False, extras=frozenset({"chunks", "context", "found"})),
    Kind(2, 3, 1, max_batch=8, queue_capacity=16, dyadic=True, extras=frozenset({"chunks", "cache", "found"})),
    Kind(2, 2, 3, 16, 5, dyadic=False, extras=frozenset({"chunks", "context", "cache", "factors", "delay", "found"})),
    Kind(
        3,
        2,
        1,
        3,
        2,
        dyadic=True,
        extras=frozenset({"chunks", "slowdown", "context", "cache", "lag", "stale", "found"}),
    ),
    Kind(1, 1, 2, max_batch=1, queue_capacity=16, dyadic=False, extras=frozenset({"chunks"})),
]
LENGTH = 80
LISTS = 50


def draw_part(index: int, seed: int, length: int = LENGTH) -> Case:
    """The beginning of a list of a kind."""
    case = draw_case(KINDS[index], seed)
    return dataclasses.replace(case, requests=case.requests.part(slice(0, length), 0.0))


@cache
def lists(index: int) -> tuple[tuple[Case, Result], ...]:
    cases = (draw_part(index, 1000 * index + k) for k in range(LISTS))
    return tuple((case, simulate_by_reference(case)) for case in cases)


# They are played iteration by iteration, which takes longer than to compile.
@pytest.mark.optimised
@pytest.mark.parametrize("index", range(len(KINDS)), ids=lambda index: str(KINDS[index]))
def test_random_lists_are_played_as_by_the_reference(index: int) -> None:
    cases, truths = zip(*lists(index), strict=True)
    agree(cases, truths)


def test_the_lists_are_as_nasty_as_they_should_be() -> None:
    assert len(KINDS) * LISTS >= 300
    played = [(kind, case, truth) for index, kind in enumerate(KINDS) for case, truth in lists(index)]
    budgets = [model.chunk_tokens for _, case, _ in played for model in case.situation.profile.models]
    assert set(budgets) == set(BUDGETS)
    assert np.mean([truth.rejected.any() for _, _, truth in played]) > 0.3
    assert np.mean([(truth.admission_s > truth.arrival_s + 1e-9).any() for _, _, truth in played]) > 0.8
    assert np.mean([ended_together(case, truth) for _, case, truth in played]) > 0.2
    assert np.mean([read_in_parts(case, truth) for _, case, truth in played]) > 0.5


def ended_together(case: Case, truth: Result) -> bool:
    """Whether several prompts end in one iteration of an instance with a budget."""
    budget = case.situation.fleet.chunk_tokens[truth.model]
    firsts = np.stack([truth.model, truth.replica, truth.first_token_s])[:, ~truth.rejected & np.isfinite(budget)]
    return len(np.unique(firsts, axis=1).T) < firsts.shape[1]


def read_in_parts(case: Case, truth: Result) -> bool:
    """Whether a prompt takes longer than all that is not the reading of others: it is read in several iterations."""
    budget = case.situation.fleet.chunk_tokens[truth.model]
    return bool((~truth.rejected & (case.requests.prompt_tokens - case.requests.found_tokens > budget)).any())


@pytest.mark.optimised
@pytest.mark.parametrize("index", [0, 3])
def test_an_unlimited_budget_changes_no_digit(index: int) -> None:
    """Of what the reference plays; the compiled programs, which are others, round otherwise."""
    for seed in range(5):
        case = draw_part(index, seed)
        plain, unlimited = (
            dataclasses.replace(case, situation=with_budgets(case.situation, [tokens] * KINDS[index].models))
            for tokens in (None, 10**9)
        )
        wanted = simulate_by_reference(plain)
        found = Played.of(simulate_by_reference(unlimited))
        for one, other in zip(found, Played.of(wanted), strict=True):
            np.testing.assert_array_equal(one, other)
        if index == 0:
            for one, other in zip(play_compiled([unlimited])[0], play_compiled([plain])[0], strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * max(1.0, horizon_s(wanted)))
