"""Pools of different sizes, hardware, limits and places: the compiled simulator against the reference."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest

from besteffort.simulator.result import Result
from tests.simulator.cases import TOLERANCE, Case, agree, compare, play_compiled, simulate_by_reference
from tests.simulator.pool_cases import PoolKind, draw_pool_case, draw_pool_kinds

KINDS = draw_pool_kinds(6)
LISTS = 50
LENGTH = 200


def marks(kind: PoolKind) -> list[pytest.MarkDecorator]:
    """Models that slow each other down are played iteration by iteration, which takes longer than to compile."""
    return [pytest.mark.optimised] if "slowdown" in kind.kind.extras else []


EACH = [pytest.param(i, marks=marks(kind), id=str(kind)) for i, kind in enumerate(KINDS)]


@cache
def lists(index: int) -> tuple[tuple[Case, Result], ...]:
    """The lists of a kind, each with what the reference makes of it."""
    cases = (draw_pool_case(KINDS[index], 1000 * index + k, LENGTH) for k in range(LISTS))
    return tuple((case, simulate_by_reference(case)) for case in cases)


@pytest.mark.parametrize("index", EACH)
def test_random_lists_are_played_as_by_the_reference(index: int) -> None:
    cases, truths = zip(*lists(index), strict=True)
    agree(cases, truths)


def test_the_lists_are_as_nasty_as_they_should_be() -> None:
    assert len(KINDS) * LISTS >= 300
    fleets = [case.situation.fleet for index in range(len(KINDS)) for case, _ in lists(index)]
    assert not any(fleet.uniform for fleet in fleets)
    for name in ("replicas", "max_batch", "places", "network_delay_s", "model"):
        assert np.mean([np.ptp(getattr(fleet, name)) > 0 for fleet in fleets]) > 0.4
    assert np.mean([len({pool.hardware for pool in fleet.pools}) > 1 for fleet in fleets]) > 0.8
    assert np.mean([(np.diff(fleet.model) < 0).any() for fleet in fleets]) > 0.4
    origins = [case.requests.origin is not None for index in range(len(KINDS)) for case, _ in lists(index)]
    assert 0.4 < np.mean(origins) < 0.6
    assert np.mean([(fleet.slowdown != 1).any() for fleet in fleets]) > 0.3
    results = [truth for index in range(len(KINDS)) for _, truth in lists(index)]
    assert np.mean([truth.rejected.any() for truth in results]) > 0.4
    assert np.mean([(truth.admission_s > truth.arrival_s).any() for truth in results]) > 0.8


def test_rows_are_packed_where_nothing_slows_down() -> None:
    kind = KINDS[1]
    assert "slowdown" in kind.kind.extras
    for k in range(5):
        fleet = draw_pool_case(kind, k).situation.fleet
        assert len(fleet.layout.placed) <= fleet.replicas.sum()
        assert fleet.layout.placed.sum() == fleet.replicas.sum()


@pytest.mark.parametrize("index", [0, 3])
def test_a_pool_that_nobody_is_sent_to_changes_nothing(index: int) -> None:
    case, truth = lists(index)[2]
    pools = case.situation.pools
    idle = dataclasses.replace(pools[0], name="idle", network_delay_s=0.0)
    wider = dataclasses.replace(case.situation, pools=(*pools, idle))
    router = case.router
    never = {"taste": -1e9, "crowd": 0.0, "places": 0.0, "rate": 0.0, "deadline": 0.0, "calm": 0.0}
    fields = {
        name: np.concatenate([getattr(router, name), np.full((*getattr(router, name).shape[:-1], 1), value)], axis=-1)
        for name, value in never.items()
    }
    quiet = dataclasses.replace(router, **fields, noise=np.asarray(0.0))
    without = dataclasses.replace(case, router=dataclasses.replace(router, noise=np.asarray(0.0)))
    (played,) = play_compiled([dataclasses.replace(case, situation=wider, router=quiet)])
    expected = simulate_by_reference(without)
    difference = compare(played, expected)
    assert difference.outcomes == 0
    assert difference.time <= TOLERANCE
    assert difference.reward <= TOLERANCE
    assert len(truth.model) == LENGTH
