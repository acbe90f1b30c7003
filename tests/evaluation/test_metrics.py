from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from besteffort.errors import InputError
from besteffort.evaluation import metrics
from besteffort.pools import Fleet, Pool, ReplicaEvent
from besteffort.simulator.result import Result
from tests.simulator.cases import make_profile

PEAK = np.array([1.0, 1.0])


def test_rejected_and_late_requests_count_as_arrivals(make_result):
    result = make_result(
        [0.0, 1.0, 2.0, 3.0], latency_s=[0.5, 2.0, 0.5, 0.5], rejected=[False, False, True, False], model=[0, 1, 1, 1]
    )
    assert metrics.performance(result) == 0.5
    assert metrics.slo_attainment(result) == 0.5
    assert metrics.rejection_rate(result) == 0.25
    assert metrics.performance_per_gpu(result, 4) == 0.125
    # Right answers in time: 0.4 of model 0 and 0.8 of model 1, over four arrivals.
    assert metrics.effective_accuracy(result, np.array([[0.4, 0.8]])) == pytest.approx(0.3)


def test_tenants_weigh_the_mean_and_the_worst_of_them_counts(make_result):
    result = make_result(
        [[0.0, 1.0, 2.0, 3.0]] * 2, reward=[[1.0, 0.5, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]], tenant=[[0, 0, 1, 1]] * 2
    )
    weights = np.array([1.5, 0.5, 7.0])
    found = metrics.weighted_performance(result, weights)
    np.testing.assert_allclose(found, [(1.5 + 0.75 + 0.5) / 4, (3.0 + 0.5) / 4])
    np.testing.assert_allclose(
        metrics.weighted_performance(result, weights, warm_up_s=0.5), [(0.75 + 0.5) / 2.5, (1.5 + 0.5) / 2.5]
    )
    np.testing.assert_array_equal(metrics.weighted_performance(result, None), metrics.performance(result))
    np.testing.assert_allclose(metrics.performance(result), [0.625, 0.75])
    # A tenant without requests is not the worst one.
    np.testing.assert_allclose(metrics.worst_tenant(result, 3, 2 * PEAK), [0.25, 0.25])
    without = dataclasses.replace(result, tenant=None)
    np.testing.assert_array_equal(metrics.weighted_performance(without, weights), metrics.performance(result))
    assert np.isnan(metrics.worst_tenant(without, 3, PEAK)).all()


def test_routing_mix_counts_rejections_apart(make_result):
    result = make_result([0.0, 1.0, 2.0, 3.0], model=[0, 1, 1, 1], rejected=[False, False, True, False])
    np.testing.assert_allclose(metrics.routing_mix(result, 3), [0.25, 0.5, 0.0, 0.25])


def test_contributions_of_the_models_add_up(make_result):
    result = make_result([0.0, 1.0, 2.0, 3.0], model=[0, 1, 1, 1], reward=[0.5, 1.0, 0.0, 1.0])
    np.testing.assert_allclose(metrics.performance_by_model(result, 2), [0.125, 0.5])
    assert metrics.performance_by_model(result, 2).sum() == metrics.performance(result)


def test_warm_up_is_cut_after_the_first_arrival_of_each_lane(make_result):
    arrival_s = np.array([[100.0, 105.0, 110.0], [0.0, 1.0, 2.0]])
    result = make_result(arrival_s, reward=[[0.0, 1.0, 0.5], [0.0, 1.0, 0.5]])
    np.testing.assert_allclose(metrics.performance(result, warm_up_s=5.0), [0.75, np.nan])


def test_windows_without_arrivals_are_left_out_and_the_last_one_counts(make_result):
    # Windows of 10 s from 3 s on: [3, 13) all well, [13, 23) empty, [23, 33) half lost, [33, 34] well though cut short.
    result = make_result([3.0, 12.9, 23.0, 32.0, 33.0], reward=[1.0, 1.0, 1.0, 0.0, 1.0])
    assert metrics.windows_at_peak(result, PEAK, width_s=10.0, fraction=0.96) == pytest.approx(2 / 3)
    assert metrics.windows_at_peak(result, PEAK, width_s=10.0, fraction=0.5) == 1.0
    assert metrics.windows_at_peak(result, PEAK, width_s=1e9, fraction=0.8) == 1.0
    assert metrics.windows_at_peak(result, PEAK, width_s=1e-9, fraction=1.0) == pytest.approx(0.8)


def test_windows_begin_where_the_warm_up_ends(make_result):
    result = make_result([0.0, 4.0, 5.0, 14.0, 15.0], reward=[0.0, 0.0, 1.0, 1.0, 0.0])
    share = metrics.windows_at_peak(result, PEAK, width_s=10.0, fraction=1.0, warm_up_s=5.0)
    assert share == 0.5


def test_a_window_that_reaches_the_threshold_exactly_counts(make_result):
    result = make_result(np.zeros(25), reward=np.r_[np.ones(24), 0.0])
    assert metrics.windows_at_peak(result, PEAK, width_s=1.0, fraction=0.96) == 1.0
    rounded = make_result(np.zeros(3), reward=np.full(3, np.float32(0.96)))
    assert metrics.windows_at_peak(rounded, PEAK, width_s=1.0, fraction=0.96) == 1.0


def test_peak_of_a_window_follows_its_own_tasks(make_result, make_situation):
    situation = make_situation(
        [((1, 1.0),)] * 2, [1.0, 1.0], [(20.0, 100.0), (100.0, 50.0)], tasks=[{"weight": 2.0}, {"weight": 1.0}]
    )
    peak = situation.peak_rewards
    np.testing.assert_allclose(peak, [2.0, 0.5])
    result = make_result([0.0, 1.0], task=[0, 1], reward=[1.0, 0.5])
    assert metrics.windows_at_peak(result, peak, width_s=0.5, fraction=0.96) == 0.5
    assert metrics.peak_performance(result, peak) == 1.25


@given(data=st.data())
def test_windows_agree_with_a_plain_loop(data):
    gaps = data.draw(npst.arrays(np.int64, (2, 30), elements=st.integers(0, 5)))
    arrival_s = np.cumsum(gaps, axis=-1).astype(np.float64)
    reward = data.draw(npst.arrays(np.int64, (2, 30), elements=st.integers(0, 1))).astype(np.float64)
    width, warm_up = data.draw(st.integers(1, 20)), data.draw(st.integers(0, 20))
    nothing = np.zeros((2, 30))
    used = {"arrival_s", "task", "model", "replica", "reward"}
    unused = [field.name for field in dataclasses.fields(Result) if field.name not in used]
    result = Result(
        arrival_s=arrival_s,
        task=nothing.astype(int),
        model=nothing.astype(int),
        replica=nothing.astype(int),
        reward=reward,
        **dict.fromkeys(unused, nothing),
    )
    share = metrics.windows_at_peak(result, PEAK, width_s=float(width), fraction=0.75, warm_up_s=float(warm_up))
    for lane in range(2):
        windows: dict[int, list[float]] = {}
        for at, value in zip(arrival_s[lane] - arrival_s[lane, 0] - warm_up, reward[lane], strict=True):
            if at >= 0:
                windows.setdefault(int(at // width), []).append(value)
        expected = np.mean([np.mean(values) >= 0.75 for values in windows.values()]) if windows else np.nan
        np.testing.assert_allclose(share[lane], expected)


def test_window_width_must_be_positive(make_result):
    with pytest.raises(InputError, match="width_s"):
        metrics.windows_at_peak(make_result([0.0]), PEAK, width_s=0.0, fraction=0.9)


def test_percentiles_are_numpys_over_the_answered_requests_of_each_lane(make_result):
    rng = np.random.default_rng(0)
    latency_s = rng.exponential(size=(3, 50))
    rejected = rng.random((3, 50)) < [[0.0], [0.3], [1.1]]
    result = make_result(np.zeros((3, 50)), latency_s=latency_s, rejected=rejected)
    found = metrics.latency_percentiles(result, (0.0, 50.0, 99.0, 100.0))
    for lane in range(2):
        np.testing.assert_allclose(
            found[lane], np.percentile(latency_s[lane][~rejected[lane]], (0.0, 50.0, 99.0, 100.0))
        )
    assert np.isnan(found[2]).all()


def test_first_token_includes_the_network(make_result):
    result = make_result(
        [0.0, 0.0],
        first_token_s=[0.2, 0.2],
        completion_s=[0.5, 0.2],
        latency_s=[0.6, 0.3],  # a network delay of 0.1 s
        output_tokens=[4, 1],
    )
    np.testing.assert_allclose(metrics.ttft_percentiles(result, (0.0, 100.0)), [0.3, 0.3])


def test_sustained_rate_is_interpolated_in_the_logarithm_of_the_rate():
    rates = np.array([1.0, 10.0, 100.0])
    attainment = np.array([[1.0, 1.0, 0.98], [1.0, 0.9, 0.99], [0.5, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.99, 0.0]])
    found = metrics.sustained_rate(rates, attainment, 0.99)
    np.testing.assert_allclose(found, [10**1.5, 10**0.1, 0.0, 100.0, 10.0])


def test_sustained_rate_of_a_single_point_and_bad_grids():
    assert metrics.sustained_rate(np.array([3.0]), np.array([1.0]), 0.99) == 3.0
    assert metrics.sustained_rate(np.array([3.0]), np.array([0.9]), 0.99) == 0.0
    for rates in ([2.0, 1.0], [0.0, 1.0], [1.0, 1.0]):
        with pytest.raises(InputError, match="increasing"):
            metrics.sustained_rate(np.array(rates), np.array([1.0, 1.0]), 0.99)


def test_binned_counts_and_averages_arrivals(make_result):
    result = make_result([0.0, 0.9, 1.0, 3.0, 7.0], reward=[1.0, 0.0, 1.0, 0.5, 1.0])
    count, mean = metrics.binned(result, result.reward, width_s=1.0, bins=4)
    np.testing.assert_array_equal(count, [2, 1, 0, 1])
    np.testing.assert_allclose(mean, [0.5, 1.0, np.nan, 0.5])


def test_accuracy_is_raw(make_situation):
    situation = make_situation([((1, 1.0),)] * 2, [1.0, 1.0], [(30.0, 60.0)])
    np.testing.assert_allclose(metrics.accuracy_table(situation.fleet, situation.task_names), [[0.3, 0.6]])


def test_lost_requests_have_no_latency_and_are_no_rejections(make_result):
    result = make_result([0.0, 1.0, 2.0, 3.0], latency_s=[0.5, np.inf, 9.0, 0.7], rejected=[False, False, True, False])
    completion_s = np.array(result.completion_s)
    completion_s[1] = np.nan
    result = dataclasses.replace(result, completion_s=completion_s)
    assert result.lost.tolist() == [False, True, False, False]
    assert metrics.loss_rate(result) == metrics.rejection_rate(result) == 0.25
    assert metrics.latency_percentiles(result, (100.0,)) == 0.7


def test_gpu_seconds_run_from_the_start_until_a_replica_is_down(make_result):
    def events(*each):
        return tuple(ReplicaEvent(*one) for one in each)

    pools = (
        Pool("up", "model0", replicas=3),
        Pool("a", "model0", replicas=2, start_s=3.0, events=events((2.0, 0, "start"), (4.0, 1, "fail"))),
        Pool("b", "model0", replicas=2, events=events((4.0, 0, "drain"), (5.0, 1, "drain"), (5.5, 1, "start"))),
        Pool("c", "model0", events=events((1.0, 0, "drain"), (8.0, 0, "start"), (9.0, 0, "fail"))),
    )
    fleet = Fleet(pools, make_profile(np.ones((1, 32)), np.ones((1, 8))))
    # Ten seconds. Replica 0 of b drains until 7 s; replica 1, which has a request until 6 s, is up again at 5.5 s.
    result = make_result(
        [0.0, 1.0, 3.0, 10.0],
        model=[0, 2, 2, 0],
        replica=[0, 0, 1, 0],
        latency_s=[0.5, 6.0, 3.0, 0.5],
    )
    np.testing.assert_allclose(metrics.gpu_seconds(result, fleet), [30.0, 8.0 + 4.0, 7.0 + 10.0, 1.0 + 1.0])
    np.testing.assert_allclose(metrics.gpu_seconds(result, fleet, warm_up_s=3.0), [21.0, 7.0 + 1.0, 4.0 + 7.0, 1.0])
    lanes = Result(**{field.name: np.stack([getattr(result, field.name)] * 2) for field in dataclasses.fields(Result)})
    assert metrics.gpu_seconds(lanes, fleet).shape == (2, 4)
