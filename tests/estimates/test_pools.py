"""Estimates of pools: the compiled simulator, the reference and live book-keeping agree at every decision."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from besteffort.estimates.params import ServingParams
from tests.estimates.lists import compiled, draw_rule, reference
from tests.estimates.test_agreement import check_agreement, check_simulators
from tests.simulator.cases import Case
from tests.simulator.pool_cases import PoolKind, draw_pool_case, draw_pool_kinds

KINDS = draw_pool_kinds(6)
LISTS = 10
LENGTH = 80


def draw_pool_list(kind: PoolKind, seed: int, **changes: object) -> Case:
    """A list on random pools, with changes to the view."""
    case = draw_pool_case(kind, seed, LENGTH)
    view = dataclasses.replace(case.situation.view, **changes)
    return dataclasses.replace(case, situation=dataclasses.replace(case.situation, view=view))


def marks(kind: PoolKind) -> list[pytest.MarkDecorator]:
    """Models that slow each other down are played iteration by iteration, which takes longer than to compile."""
    return [pytest.mark.optimised] if "slowdown" in kind.kind.extras else []


@pytest.mark.parametrize("index", [pytest.param(i, marks=marks(KINDS[i]), id=str(KINDS[i])) for i in (0, 2, 3, 4)])
def test_all_three_agree_at_every_decision(index: int) -> None:
    changes = {"streamed": index != 2, "slowdown_tau_s": 2.0 * (index in (0, 2))}
    cases = [draw_pool_list(KINDS[index], 10 * index + k, **changes) for k in range(LISTS)]
    rules = [draw_rule(case, rates=2) for case in cases]
    seen = [reference(case, live=True, rule=rule) for case, rule in zip(cases, rules, strict=True)]
    check_agreement(seen, *compiled(cases, rules))


def test_what_a_gateway_sees_late_agrees_too() -> None:
    """Live book-keeping is of one gateway, so this compares the compiled simulator with the reference."""
    cases = [draw_pool_list(KINDS[0], k, gateways=3, gateway_delay_s=0.25) for k in range(LISTS)]
    check_simulators([reference(case) for case in cases], *compiled(cases))


def test_the_delay_of_a_pool_counts_in_own_and_in_no_other_time() -> None:
    case = draw_pool_list(KINDS[0], 3, streamed=True)
    near = dataclasses.replace(
        case.situation, pools=tuple(dataclasses.replace(pool, network_delay_s=0.0) for pool in case.situation.pools)
    )
    far = dataclasses.replace(
        near,
        pools=(dataclasses.replace(near.pools[0], network_delay_s=0.25), *near.pools[1:]),
    )
    assert ServingParams.of(far).network_delay_s.tolist() == [0.25, 0.0, 0.0, 0.0, 0.0]
    first, second = (
        reference(dataclasses.replace(case, situation=situation, router=_always(case, 1))).estimates
        for situation in (near, far)
    )
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(second.completion_s[:, 0], first.completion_s[:, 0] + 0.25)
    np.testing.assert_array_equal(second.completion_s[:, 1:], first.completion_s[:, 1:])
    np.testing.assert_array_equal(second.first_token_s, first.first_token_s)
    np.testing.assert_array_equal(second.own[:, 1:], first.own[:, 1:])
    assert (second.own[:, 0] < first.own[:, 0]).any()
    assert (second.own[:, 0] <= first.own[:, 0]).all()


def _always(case: Case, pool: int) -> object:
    """The router of a case, with a taste for one pool."""
    taste = np.zeros_like(case.router.taste)
    taste[:, pool] = 1e9
    return dataclasses.replace(case.router, taste=taste)
