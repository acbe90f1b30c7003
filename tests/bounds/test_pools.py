"""Bounds of pools: no assignment of requests exceeds them, and splitting a pool changes nothing."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from besteffort.bounds.clairvoyant import clairvoyant_bound
from besteffort.bounds.fluid import fluid_bound, throughput
from besteffort.estimates.tables import Tables
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Situation
from besteffort.workload.requests import Requests
from tests.simulator.cases import simulate_by_reference as play
from tests.simulator.pool_cases import draw_pool_case, draw_pool_kinds

KINDS = draw_pool_kinds(6)


def squeezed(requests: Requests, count: int, factor: float) -> Requests:
    """The first requests of a list, closer together."""
    columns = {name: values[:count] for name, values in requests.columns.items()}
    columns["arrival_s"] = factor * columns["arrival_s"]
    return Requests(requests.tasks, **columns, origins=requests.origins)


@pytest.mark.parametrize("seed", range(6))
def test_no_assignment_exceeds_the_clairvoyant_bound(seed: int) -> None:
    case = draw_pool_case(KINDS[3], seed, 40)  # three pools
    situation = dataclasses.replace(case.situation, view=dataclasses.replace(case.situation.view, rate_lag=0))
    requests = squeezed(case.requests, 5, 0.3)
    bound = clairvoyant_bound(situation, requests)
    tables = Tables.of(situation.fleet, int(requests.prompt_tokens.max()))
    for pools in itertools.product(range(3), repeat=len(requests)):
        result = simulate_by_reference(requests, situation, lambda index, _, pools=pools: pools[index], tables)
        assert result.reward.mean() <= bound.performance + 1e-9
        assert result.met.mean() <= bound.slo_attainment + 1e-9


@pytest.mark.parametrize("index", range(6))
def test_no_router_exceeds_the_clairvoyant_bound(index: int) -> None:
    for seed in range(4):
        case = draw_pool_case(KINDS[index], 50 + seed, 120)
        result = play(case)
        bound = clairvoyant_bound(case.situation, case.requests)
        assert result.reward.mean() <= bound.performance + 1e-9
        assert result.met.mean() <= bound.slo_attainment + 1e-9


def split(situation: Situation) -> Situation:
    """The first pool, which has an even number of replicas, as two of half its size."""
    first, *others = situation.pools
    half = dataclasses.replace(first, replicas=first.replicas // 2)
    return dataclasses.replace(situation, pools=(half, *others, dataclasses.replace(half, name="half")))


def test_two_halves_of_a_pool_have_the_bounds_of_the_whole() -> None:
    case = draw_pool_case(KINDS[0], 7, 100)
    whole = case.situation
    assert whole.pools[0].replicas == 2
    halves = split(whole)
    assert halves.capacity()[[0, -1]].sum() == pytest.approx(whole.capacity()[0])
    assert throughput(halves)[[0, -1]].sum() == pytest.approx(throughput(whole)[0])
    rates = whole.unit_load * np.array([0.5, 2.0, 8.0])
    for name in ("performance", "slo_attainment"):
        np.testing.assert_allclose(
            getattr(fluid_bound(halves, rates), name), getattr(fluid_bound(whole, rates), name), atol=1e-9
        )
    one, two = (clairvoyant_bound(each, case.requests) for each in (whole, halves))
    np.testing.assert_allclose(two.performance, one.performance, rtol=1e-3)


def test_a_pool_that_is_too_far_for_every_deadline_is_worth_nothing() -> None:
    case = draw_pool_case(KINDS[0], 8, 50)
    first, *others = case.situation.pools
    far = dataclasses.replace(case.situation, pools=(dataclasses.replace(first, network_delay_s=1e6), *others))
    without = dataclasses.replace(case.situation, pools=tuple(others))
    rates = case.situation.unit_load * np.array([0.5, 4.0])
    found, expected = fluid_bound(far, rates), fluid_bound(without, rates)
    np.testing.assert_allclose(found.performance, expected.performance, atol=1e-9)
    assert (found.routing[..., 0] == 0).all()
    np.testing.assert_allclose(
        clairvoyant_bound(far, case.requests).performance,
        clairvoyant_bound(without, case.requests).performance,
        atol=1e-6,
    )
