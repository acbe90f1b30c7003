"""Nothing beats the clairvoyant bound, and where time is plainly divisible it is what can be had."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from besteffort.bounds import prices
from besteffort.bounds.clairvoyant import clairvoyant_bound
from besteffort.bounds.prices import Offers
from besteffort.errors import InputError
from besteffort.estimates.tables import Tables
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Cluster, Deadline, Reward
from besteffort.workload.requests import Requests
from tests.bounds.windows import fluid_bound_windows
from tests.simulator.cases import Kind, draw_case

FLAT = ((1, 1.0),)
EXTRAS = st.frozensets(st.sampled_from(["slowdown", "context", "cache", "delay", "factors", "chunks", "found"]))


@st.composite
def kinds(draw):
    extras = draw(EXTRAS)
    return Kind(
        models=draw(st.integers(2 if "slowdown" in extras else 1, 3)),
        replicas=draw(st.integers(1, 2)),
        tasks=draw(st.integers(1, 2)),
        max_batch=draw(st.integers(1, 4)),
        queue_capacity=draw(st.integers(0, 2)),
        dyadic=draw(st.booleans()),
        extras=extras,
    )


def few(kind, seed, squeeze):
    """The first requests of a case, at most 243 ways to route, with gaps shorter by `squeeze`."""
    case = draw_case(kind, seed)
    columns = {name: values[: 7 if kind.models < 3 else 5] for name, values in case.requests.columns.items()}
    columns["arrival_s"] = squeeze * columns["arrival_s"]
    return case.situation, Requests(case.requests.tasks, **columns)


def best_of_all(situation, requests):
    """Highest performance and SLO attainment of any assignment of models to requests."""
    tables = Tables.of(situation.fleet, int(requests.prompt_tokens.max()))
    performance, attainment = -np.inf, 0.0
    for models in itertools.product(range(tables.pools), repeat=len(requests)):
        result = simulate_by_reference(requests, situation, lambda index, _, models=models: models[index], tables)
        performance = max(performance, float(result.reward.mean()))
        attainment = max(attainment, float(result.met.mean()))
    return performance, attainment


@settings(max_examples=25)
@given(kinds(), st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_no_assignment_beats_it(kind, seed, squeeze):
    situation, requests = few(kind, seed, squeeze)
    performance, attainment = best_of_all(situation, requests)
    bounds = [clairvoyant_bound(situation, requests)]
    bounds += [clairvoyant_bound(situation, requests, bin_s=width) for width in (0.01, 0.3)]
    bounds += [fluid_bound_windows(situation, requests, window_s=width) for width in (0.02, 0.2)]
    for bound in bounds:
        assert bound.performance >= performance - 1e-9
        assert bound.slo_attainment >= attainment - 1e-9


@settings(max_examples=10)
@given(kinds(), st.integers(0, 10**6), st.lists(st.floats(0, 30), min_size=9, max_size=9))
def test_any_prices_bound(kind, seed, some):
    situation, requests = few(kind, seed, 0.1)
    performance, _ = best_of_all(situation, requests)
    offers = Offers.of(situation, requests)
    start_s, width_s = requests.arrival_s[0], 0.05
    first = np.floor((requests.arrival_s - start_s) / width_s).astype(np.int64)
    last = np.floor((offers.until_s - start_s) / width_s).astype(np.int64)
    price = np.resize(some, (int(last.max()) + 1, kind.models))
    room_s = width_s * kind.replicas
    most = prices.value(price, offers.gain, offers.charge_s, first, last, room_s) - offers.forgone
    assert most >= performance * len(requests) - 1e-9


def listed(situation, arrival_s, output_tokens=1, task=0):
    n = len(arrival_s)
    output_tokens, task = np.broadcast_to(output_tokens, n), np.broadcast_to(task, n)
    deadline_s = situation.deadlines(task, output_tokens)
    return Requests(situation.task_names, arrival_s, task, np.ones(n, int), output_tokens, deadline_s)


def test_a_burst_gets_what_fits_before_its_deadline(make_situation):
    # 1 s per request; 20 at once have 2 s, twice: quiet time in between is of no use to them.
    situation = make_situation([FLAT], [1.0], [(80.0,)], tasks=[{"deadline": Deadline(2.0, 0.0)}])
    requests = listed(situation, np.repeat([0.0, 50.0], 20))
    bound = clairvoyant_bound(situation, requests, bin_s=0.1)
    assert bound.performance == pytest.approx(2 * 2.1 / 40)  # the bin in which the deadline falls counts whole
    assert bound.slo_attainment == pytest.approx(2 * 2.1 / 40)
    # Windows count the longest deadline on top of their width.
    assert fluid_bound_windows(situation, requests, window_s=1.0).performance == pytest.approx(2 * 3 / 40)


def test_it_knows_who_is_short(make_situation):
    # In batches of one, one token takes 0.1 s and eleven take 10.1 s; there are 10 s for ten of each.
    cluster = Cluster(replicas=1, max_batch=1)
    task = {"output_tokens": (1, 11), "deadline": Deadline(10.0, 0.02)}
    situation = make_situation([FLAT], [0.1], [(80.0,)], tasks=[task], cluster=cluster)
    requests = listed(situation, np.zeros(20), output_tokens=np.tile([1, 11], 10))
    bound = clairvoyant_bound(situation, requests, bin_s=0.05)
    assert bound.slo_attainment == pytest.approx((10 + 9.3 / 10.1) / 20, abs=0.003)


def test_late_answers_need_no_time_before_the_deadline(make_situation):
    # One request is answered at once, the other needs 100 s; both have 2 s, and a router that cannot tell them apart
    # may serve both: what is left to do after the deadline takes nothing from the answer in time.
    task = {"output_tokens": (1, 101), "deadline": Deadline(2.0, 0.0)}
    situation = make_situation([FLAT], [0.5], [(80.0,)], tasks=[task])
    requests = listed(situation, np.zeros(2), output_tokens=np.array([1, 101]))
    result = simulate_by_reference(requests, situation, lambda index, observation: 0)
    assert result.reward.mean() == 0.5
    for bound in (clairvoyant_bound(situation, requests), fluid_bound_windows(situation, requests, window_s=0.1)):
        assert float(bound.performance) == pytest.approx(0.5)


def test_soft_deadlines_and_penalties(make_situation):
    # Alone, the answer takes 1.5 s of 1 s: half a deadline late, worth half. Early ends of steps count: 9/16.
    task = {"deadline": Deadline(1.0, 0.0), "weight": 2.0}
    reward = Reward(soft_span=1.0, miss_penalty=0.25)
    situation = make_situation([FLAT], [1.5], [(80.0,)], tasks=[task], reward=reward)
    bound = clairvoyant_bound(situation, listed(situation, np.zeros(1)))
    assert bound.performance == pytest.approx(2 * (9 / 16 - 0.25))
    assert bound.slo_attainment == 0.0
    truth = simulate_by_reference(listed(situation, np.zeros(1)), situation, lambda index, observation: 0)
    assert truth.reward[0] == pytest.approx(2 * (0.5 - 0.25))


def test_blocks_of_a_long_list_lose_little(make_situation, monkeypatch):
    tasks = [{"output_tokens": (1, 8), "deadline": Deadline(1.0, 0.5)} for _ in range(2)]
    situation = make_situation([FLAT, FLAT], [0.1, 0.5], [(40.0, 80.0), (70.0, 80.0)], tasks=tasks)
    rng = np.random.default_rng(0)
    arrival_s = np.cumsum(rng.exponential(np.where(rng.random(1500) < 0.5, 0.02, 0.6)))
    requests = listed(situation, arrival_s, rng.integers(1, 9, 1500), rng.integers(0, 2, 1500))
    blocks = clairvoyant_bound(situation, requests)
    monkeypatch.setattr(prices, "_BLOCK", 10**6)
    at_once = clairvoyant_bound(situation, requests)
    assert 0.3 < at_once.performance < 0.95
    assert blocks.performance == pytest.approx(float(at_once.performance), abs=2e-3)
    assert blocks.performance <= fluid_bound_windows(situation, requests, window_s=1.0).performance + 1e-3


def test_empty_time_costs_nothing(make_situation):
    situation = make_situation([FLAT], [1.0], [(80.0,)])
    bound = clairvoyant_bound(situation, listed(situation, np.array([0.0, 5e4])), bin_s=5.0)
    assert bound.performance == 1.0


def test_bins_must_have_a_width(make_situation):
    situation = make_situation([FLAT], [1.0], [(80.0,)])
    with pytest.raises(InputError, match="bin_s"):
        clairvoyant_bound(situation, listed(situation, np.zeros(1)), bin_s=0.0)


@pytest.mark.parametrize(("seed", "gap_s"), [(2, 0.4), (2, 0.5), (3, 0.45), (6, 0.4)])
def test_it_never_exceeds_what_all_answers_in_time_earn(make_situation, seed, gap_s):
    """Prices are found for classes of requests; where these differ much and nearly all fit, none are better."""
    tasks = [
        {"prompt_tokens": (60, 3000), "output_tokens": (5, 199), "deadline": Deadline(*deadline)}
        for deadline in ((0.32, 0.07), (0.3, 0.053))
    ]
    decode = [((1, 0.012), (8, 0.013)), ((1, 0.03), (8, 0.031))]
    cluster = Cluster(replicas=1, max_batch=16, queue_capacity=1024)
    situation = make_situation(decode, [1.0, 1.0], [(60.0, 80.0), (40.0, 70.0)], tasks=tasks, cluster=cluster)
    prefills = [((1, 0.0005), (3000, 0.12)), ((1, 0.003), (3000, 0.6))]
    models = tuple(
        dataclasses.replace(model, prefill=points)
        for model, points in zip(situation.profile.models, prefills, strict=True)
    )
    situation = dataclasses.replace(situation, profile=dataclasses.replace(situation.profile, models=models))
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(gap_s, 100))
    output_tokens, task = rng.integers(5, 200, 100), (rng.random(100) < 0.3).astype(int)
    deadline_s = situation.deadlines(task, output_tokens)
    prompts = rng.integers(60, 3000, 100)
    bound = clairvoyant_bound(
        situation, Requests(situation.task_names, arrival_s, task, prompts, output_tokens, deadline_s)
    )
    assert 0.9 < bound.performance <= 1.0
    assert 0.9 < bound.slo_attainment <= 1.0
