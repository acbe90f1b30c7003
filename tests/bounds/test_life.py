"""Bounds where replicas start, drain and fail: nothing exceeds them, and they see what is missing."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from besteffort.bounds.clairvoyant import _room_s, clairvoyant_bound
from besteffort.bounds.fluid import fluid_bound
from besteffort.estimates.tables import Tables
from besteffort.pools import Pool, ReplicaEvent, What
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Cluster, Deadline, Situation, Task
from tests.bounds.test_pools import squeezed
from tests.simulator.cases import Case, make_profile
from tests.simulator.cases import simulate_by_reference as play
from tests.simulator.pool_cases import draw_life_kinds, draw_pool_case

KINDS = draw_life_kinds(6)


def without(situation: Situation) -> Situation:
    """The situation with all replicas up all the time."""
    return dataclasses.replace(situation, pools=tuple(dataclasses.replace(pool, events=()) for pool in situation.pools))


def sooner(case: Case, factor: float) -> Situation:
    """The situation of a case with all events earlier."""
    pools = tuple(
        dataclasses.replace(
            pool,
            start_s=factor * pool.start_s,
            events=tuple(dataclasses.replace(event, time_s=factor * event.time_s) for event in pool.events),
        )
        for pool in case.situation.pools
    )
    return dataclasses.replace(case.situation, pools=pools, view=dataclasses.replace(case.situation.view, rate_lag=0))


@pytest.mark.parametrize("seed", range(8))
def test_no_assignment_exceeds_the_clairvoyant_bound(seed: int) -> None:
    case = draw_pool_case(next(kind for kind in KINDS if kind.pools == 3), seed, 40)
    requests = squeezed(case.requests, 5, 0.3)
    situation = sooner(case, 0.3 * case.requests.arrival_s[4] / case.requests.arrival_s[-1])
    bounds = [clairvoyant_bound(situation, requests), clairvoyant_bound(situation, requests, bin_s=0.02)]
    tables = Tables.of(situation.fleet, int(requests.prompt_tokens.max()))
    for pools in itertools.product(range(len(situation.pools)), repeat=len(requests)):
        result = simulate_by_reference(requests, situation, lambda index, _, pools=pools: pools[index], tables)
        for bound in bounds:
            assert result.reward.mean() <= bound.performance + 1e-9
            assert result.met.mean() <= bound.slo_attainment + 1e-9


def test_no_router_exceeds_it_and_it_is_below_that_without_events() -> None:
    lower = []
    for index, seed in itertools.product(range(len(KINDS)), range(2)):
        case = draw_pool_case(KINDS[index], 70 + seed, 120)
        result, bound = play(case), clairvoyant_bound(case.situation, case.requests)
        assert result.reward.mean() <= bound.performance + 1e-9
        assert result.met.mean() <= bound.slo_attainment + 1e-9
        all_up = clairvoyant_bound(without(case.situation), case.requests)
        # Prices are good, not best.
        assert bound.performance <= all_up.performance + 0.01
        lower.append(bool(bound.performance < all_up.performance - 0.01))
    assert np.mean(lower) > 0.3


def pool(*events: tuple[float, int, What], replicas: int = 1, start_s: float = 0.0) -> Pool:
    return Pool(
        "a", "model0", replicas=replicas, start_s=start_s, events=tuple(ReplicaEvent(*event) for event in events)
    )


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (pool(replicas=3), [3.0, 3.0, 3.0, 3.0]),
        (pool((1.5, 0, "fail")), [1.0, 0.5, 0.0, 0.0]),
        (pool((0.5, 0, "start"), start_s=1.0), [0.0, 0.5, 1.0, 1.0]),
        (pool((0.5, 0, "fail"), (1.0, 0, "start"), start_s=0.5), [0.5, 0.5, 1.0, 1.0]),
        # Who came before 1 s can earn something until 2.5 s; nobody came before 0 s.
        (pool((1.0, 0, "drain")), [1.0, 1.0, 0.5, 0.0]),
        (pool((1.0, 0, "drain"), (2.25, 0, "fail")), [1.0, 1.0, 0.25, 0.0]),
        (pool((0.0, 0, "drain")), [0.0, 0.0, 0.0, 0.0]),
        # It may be up at once.
        (pool((1.0, 0, "drain"), (3.0, 0, "start"), start_s=9.0), [1.0, 1.0, 0.5, 1.0]),
        (pool((1.0, 0, "drain"), (2.0, 0, "start"), start_s=9.0), [1.0, 1.0, 1.0, 1.0]),
        (pool((0.5, 0, "start"), (1.0, 0, "drain"), start_s=1.25), [0.0, 0.25, 0.5, 0.0]),
    ],
)
def test_the_time_that_replicas_have(one: Pool, expected: list[float]) -> None:
    arrival_s, until_s = np.array([0.0, 0.5, 2.0]), np.array([2.5, 1.0, 4.0])
    np.testing.assert_allclose(_room_s((one,), arrival_s, until_s, np.arange(5.0))[:, 0], expected)


def test_a_replica_that_comes_late_answers_what_is_left() -> None:
    # A request takes 1 s, and 20 come at once, due in 4 s; the replica is up after 2 s.
    profile = make_profile(np.ones((1, 1)), np.ones((1, 1)))
    task = Task("task0", prompt_tokens=(1, 1), output_tokens=(1, 1), deadline=Deadline(4.0, 0.0))
    one = dataclasses.replace(pool((0.0, 0, "start"), start_s=2.0), max_batch=1)
    situation = Situation(profile, Cluster(), (task,), pools=(one,))
    n = 20
    requests = squeezed(draw_pool_case(KINDS[0], 0, n).requests, n, 0.0)
    requests = dataclasses.replace(
        requests,
        tasks=("task0",),
        task=np.zeros(n, int),
        prompt_tokens=np.ones(n, int),
        output_tokens=np.ones(n, int),
        deadline_s=np.full(n, 4.0),
    )
    bound = clairvoyant_bound(situation, requests, bin_s=0.1)
    assert float(bound.slo_attainment) == pytest.approx(2.1 / n)  # the bin in which the deadline falls counts whole
    assert simulate_by_reference(requests, situation, lambda index, _: 0).met.mean() == 2 / n


def test_the_fluid_bound_counts_all_as_up() -> None:
    situation = draw_pool_case(KINDS[0], 1, 20).situation
    rates = situation.unit_load * np.array([0.5, 2.0])
    found, expected = fluid_bound(situation, rates), fluid_bound(without(situation), rates)
    np.testing.assert_array_equal(found.performance, expected.performance)
