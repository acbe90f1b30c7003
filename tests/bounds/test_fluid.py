from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from besteffort.bounds import fluid
from besteffort.bounds.fluid import fluid_bound, seconds_per_answer, throughput
from besteffort.errors import InputError
from besteffort.estimates.tables import Tables
from besteffort.simulator import reference
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Cluster, Deadline, Reward, View
from besteffort.workload.requests import Requests
from tests.bounds.windows import fluid_bound_windows

CONSTANT = ((1, 1.0),)  # a decode takes 1 s whatever the batch
AFFINE = ((1, 1.0), (4, 2.5))  # 0.5 s + 0.5 s x batch


def listed(situation, arrival_s, prompt_tokens=1, output_tokens=1, task=0):
    n = len(arrival_s)
    task, output_tokens = np.broadcast_to(task, n), np.broadcast_to(output_tokens, n)
    deadline_s = situation.deadlines(task, output_tokens)
    return Requests(situation.task_names, arrival_s, task, np.broadcast_to(prompt_tokens, n), output_tokens, deadline_s)


def test_one_model_serves_its_capacity_and_no_more(make_situation):
    situation = make_situation([CONSTANT], [0.5], [(80.0,)], cluster=Cluster(replicas=3, max_batch=4))
    rates = np.array([1.0, 6.0, 12.0, 60.0])
    bound = fluid_bound(situation, rates)
    np.testing.assert_allclose(throughput(situation), [6.0])
    np.testing.assert_allclose(bound.performance, np.minimum(1.0, 6.0 / rates))
    np.testing.assert_allclose(bound.slo_attainment, np.minimum(1.0, 6.0 / rates))
    np.testing.assert_allclose(bound.routing[:, 0, 0], np.minimum(1.0, 6.0 / rates))


@pytest.mark.parametrize("means", [{}, {"mean_output_tokens": 4.0, "mean_prompt_tokens": 1.5}])
def test_with_patience_it_is_the_capacity_of_the_situation(make_situation, means):
    task = {"prompt_tokens": (1, 5), "output_tokens": (3, 9), **means}
    situation = make_situation([AFFINE, CONSTANT], [0.5, 2.0], [(50.0, 60.0)], tasks=[task])
    np.testing.assert_allclose(throughput(situation), situation.capacity())


def test_two_models_fill_like_a_knapsack(make_situation):
    # 1 request/s on the large model, 4 on the small one.
    situation = make_situation([CONSTANT, CONSTANT], [0.25, 1.0], [(40.0, 80.0)])
    rates = np.array([0.5, 2.0, 5.0, 10.0])
    expected = [1.0, (1.0 + 0.5) / 2, (1.0 + 4 * 0.5) / 5, (1.0 + 4 * 0.5) / 10]
    np.testing.assert_allclose(fluid_bound(situation, rates).performance, expected)
    np.testing.assert_allclose(fluid_bound(situation, rates).slo_attainment, [1.0, 1.0, 1.0, 0.5])


def test_prices_are_what_a_further_second_would_earn(make_situation):
    qualities, tasks = [(40.0, 80.0), (70.0, 80.0)], [{"share": 2.0, "weight": 3.0}, {"prompt_tokens": (1, 9)}]
    rates = np.array([0.5, 3.0, 8.0, 40.0])
    for replicas in (1, 3):
        at = [
            fluid_bound(
                make_situation(
                    [CONSTANT, AFFINE], [0.25, 1.0], qualities, tasks=tasks, cluster=Cluster(replicas=each, max_batch=4)
                ),
                replicas * rates,
            )
            for each in (replicas, replicas + 1)
        ]
        gained = (at[1].performance - at[0].performance) * replicas * rates
        # A whole instance of every model more earns at most what its first second does, and at least what its last.
        assert (gained <= at[0].prices.sum(axis=1) + 1e-9).all()
        assert (gained >= at[1].prices.sum(axis=1) - 1e-9).all()
        assert not at[0].prices[0].any()
        assert (at[0].prices[-1] > 0).all()


def test_capacity_goes_to_the_task_that_gains_most_from_it(make_situation):
    # Two tasks in equal shares; only the second gains from the large model, which serves 1 request/s.
    situation = make_situation([CONSTANT, CONSTANT], [0.1, 1.0], [(80.0, 80.0), (40.0, 80.0)])
    bound = fluid_bound(situation, 4.0)
    assert bound.performance == pytest.approx((2 * 1.0 + 1 * 1.0 + 1 * 0.5) / 4)
    np.testing.assert_allclose(bound.routing[1], [0.5, 0.5])
    doubled = dataclasses.replace(situation, tasks=tuple(dataclasses.replace(t, weight=2.0) for t in situation.tasks))
    assert fluid_bound(doubled, 4.0).performance == pytest.approx(2 * float(bound.performance))


def test_a_tight_deadline_needs_small_batches(make_situation):
    # Three decodes within 6 s, with hardly any prefill: batches of almost three, between those of two and of three.
    task = {"output_tokens": (4, 4), "deadline": Deadline(6.0, 0.0)}
    situation = make_situation([AFFINE], [0.001], [(80.0,)], tasks=[task])
    per_decode = (6.0 - 0.001) / 3
    for beside in (0.0, 0.001 / 3):
        pace = [0.5 + 0.5 * b + beside * (b - 1) for b in (2, 3)]
        part = (per_decode - pace[0]) / (pace[1] - pace[0])
        expected = 0.001 + 3 * ((1 - part) * 1.5 / 2 + part * 2.0 / 3)
        np.testing.assert_allclose(seconds_per_answer(situation, even_prefills=beside > 0), [[expected]])
    assert throughput(situation, even_prefills=True) < throughput(situation) < situation.capacity()


def test_a_deadline_that_nobody_can_meet(make_situation):
    task = {"output_tokens": (4, 4), "deadline": Deadline(3.0, 0.0)}
    situation = make_situation([AFFINE, CONSTANT], [0.001, 1.0], [(80.0, 80.0)], tasks=[task])
    assert np.isinf(seconds_per_answer(situation)[0, 1])
    assert throughput(situation)[1] == 0.0
    hopeless = dataclasses.replace(
        situation, tasks=(dataclasses.replace(situation.tasks[0], deadline=Deadline(2.9, 0.0)),)
    )
    bound = fluid_bound(hopeless, 1.0)
    assert bound.performance == 0.0
    assert bound.slo_attainment == 0.0


def test_lengths_that_cannot_be_in_time_still_cost(make_situation):
    # One token takes 1 s and is in time; two or three take at least one decode of 1 s more and are not.
    task = {"output_tokens": (1, 3), "deadline": Deadline(1.5, 0.0)}
    situation = make_situation([CONSTANT], [1.0], [(80.0,)], tasks=[task])
    late = (1.0 + 1 * 0.25) + (1.0 + 2 * 0.25)  # of two and of three tokens, in batches of four
    np.testing.assert_allclose(seconds_per_answer(situation), [[1.0 + late]])


@pytest.mark.parametrize("deadline_s", [0.9, 1.2])
def test_short_prompts_are_in_time_where_the_mean_prompt_is_late(make_situation, deadline_s):
    # Reading takes 10 ms per token: prompts of up to 90 or 120 tokens can be in time, and the mean has 100.
    task = {"prompt_tokens": (1, 199), "deadline": Deadline(deadline_s, 0.0)}
    made = make_situation([CONSTANT], [0.01], [(80.0,)], tasks=[task])
    models = tuple(dataclasses.replace(model, prefill=((1, 0.01), (200, 2.0))) for model in made.profile.models)
    situation = dataclasses.replace(made, profile=dataclasses.replace(made.profile, models=models))
    rates = np.array([0.05, 0.5, 2.0])
    bound = fluid_bound(situation, rates)
    rng = np.random.default_rng(0)
    for rate, performance in zip(rates, bound.performance, strict=True):
        requests = listed(situation, np.cumsum(rng.exponential(1 / rate, 2_000)), rng.integers(1, 200, 2_000))
        assert simulate_by_reference(requests, situation, lambda index, _: 0).reward.mean() <= performance
    # All are read, 1 s each in the mean; of those in groups of six or seven up to the one that begins by the deadline.
    in_time = sum(1 for begin in 1 + 199 * np.arange(32) / 32 if begin <= 100 * deadline_s) / 32
    np.testing.assert_allclose(seconds_per_answer(situation), [[1.0 / in_time]], rtol=0.05)
    # Plans take the mean prompt for all.
    expected = 1.0 if deadline_s > 1 else np.inf
    np.testing.assert_allclose(seconds_per_answer(situation, even_prefills=True), [[expected]])


def test_network_delay_context_cost_and_cache_only_lower_the_bound(make_situation):
    task = {"prompt_tokens": (2, 6), "output_tokens": (4, 8), "deadline": Deadline(4.0, 2.0)}
    make = lambda **more: throughput(make_situation([AFFINE], [0.3], [(80.0,)], tasks=[task], **more))  # noqa: E731
    plain = make()
    assert make(cluster=Cluster(replicas=1, max_batch=4, network_delay_s=4.0)) < plain
    assert make(context_cost_s=0.01) < plain
    assert make(cache_tokens=14) < plain


def test_context_cost_is_that_of_the_tokens_held(make_situation):
    task = {"prompt_tokens": (10, 10), "output_tokens": (3, 3)}
    situation = make_situation([CONSTANT], [1.0], [(80.0,)], tasks=[task], context_cost_s=0.1)
    expected = 1.0 + 2 * 0.25 + 0.1 * (11 + 12)
    np.testing.assert_allclose(seconds_per_answer(situation), [[expected]])


def test_a_penalty_shifts_the_bound_by_the_misses(make_situation):
    arguments = ([CONSTANT], [1.0], [(80.0,)])
    with_penalty = make_situation(*arguments, reward=Reward(miss_penalty=0.5))
    # 1 of 4 requests is answered: 0.25 x 1 - 0.75 x 0.5.
    assert fluid_bound(with_penalty, 4.0).performance == pytest.approx(-0.125)


def test_soft_deadlines_are_worth_at_least_hard_ones(make_situation):
    task = {"output_tokens": (2, 6), "deadline": Deadline(1.0, 1.3)}
    arguments = ([AFFINE], [0.5], [(80.0,)])
    rates = np.array([0.1, 0.5, 1.0, 4.0])
    hard = fluid_bound(make_situation(*arguments, tasks=[task]), rates)
    soft = fluid_bound(make_situation(*arguments, tasks=[task], reward=Reward(soft_span=1.0)), rates)
    patient = {**task, "deadline": Deadline(100.0, 0.0)}
    free = fluid_bound(make_situation(*arguments, tasks=[patient]), rates)
    assert (soft.performance >= hard.performance - 1e-12).all()
    assert (soft.performance[2:] > hard.performance[2:]).all()
    assert (soft.performance <= free.performance + 1e-12).all()
    np.testing.assert_allclose(soft.slo_attainment, hard.slo_attainment)


@given(
    prefill=st.tuples(st.floats(0.01, 2), st.floats(0.01, 2)),
    slope=st.tuples(st.floats(0, 2), st.floats(0, 2)),
    base=st.floats(0.5, 30),
    per_token=st.floats(0, 4),
)
def test_falls_with_the_rate_and_with_all_that_makes_answers_dearer(make_situation, prefill, slope, base, per_token):
    task = {"prompt_tokens": (1, 3), "output_tokens": (1, 6), "deadline": Deadline(base, per_token)}
    decode = [((1, 0.3), (4, 0.3 + slope[0])), ((1, 1.0), (4, 1.0 + slope[1]))]
    situation = make_situation(decode, prefill, [(40.0, 80.0)], tasks=[task])
    rates = np.geomspace(0.01, 100, 12)
    bound, even = fluid_bound(situation, rates), fluid_bound(situation, rates, even_prefills=True)
    patient = make_situation(decode, prefill, [(40.0, 80.0)], tasks=[{**task, "deadline": Deadline(1e4, 0.0)}])
    assert (np.diff(bound.performance) <= 1e-9).all()
    assert (np.diff(bound.slo_attainment) <= 1e-9).all()
    assert (even.performance <= bound.performance + 1e-9).all()
    assert (bound.performance <= fluid_bound(patient, rates).performance + 1e-9).all()
    assert (bound.performance <= bound.slo_attainment + 1e-9).all()
    assert (bound.routing.sum(axis=-1) <= 1 + 1e-9).all()


def test_many_programmes_at_once_equal_each_alone(make_situation):
    situation = make_situation([CONSTANT] * 3, [0.1, 0.3, 1.0], [(30.0, 50.0, 80.0), (50.0, 70.0, 75.0)])
    rates = np.geomspace(0.1, 50, 2 * fluid._PROGRAMMES_AT_ONCE + 3)
    together = fluid_bound(situation, rates)
    seconds = seconds_per_answer(situation)
    quality = situation.profile.quality_table(situation.task_names)
    for index in (0, 100, 300, len(rates) - 1):
        alone = optimize.linprog(
            -(0.5 * quality).ravel(),
            A_ub=np.concatenate(
                [np.kron([[0.5, 0.5]], np.eye(3)) * seconds.ravel() * rates[index], np.kron(np.eye(2), np.ones(3))]
            ),
            b_ub=np.ones(5),
        )
        assert together.performance[index] == pytest.approx(-alone.fun, abs=1e-9)


def test_even_load_in_windows_is_the_stationary_bound_with_its_tail(make_situation):
    # 400 requests over 99.75 s at 4 requests/s, each 1 s on the large or 0.2 s on the small model, deadline 1 s.
    task = {"deadline": Deadline(1.0, 0.0)}
    situation = make_situation([CONSTANT, CONSTANT], [0.2, 1.0], [(40.0, 80.0)], tasks=[task])
    requests = listed(situation, np.arange(400) / 4)
    bound = fluid_bound_windows(situation, requests, window_s=100.0)
    assert bound.performance == pytest.approx((101 * 1.0 + 299 * 0.5) / 400)
    assert bound.performance >= fluid_bound(situation, 4.0).performance


def test_short_windows_see_a_burst_that_the_mean_hides(make_situation):
    # 20 requests at once, then 20 over 80 s; the model serves 1 request/s.
    task = {"deadline": Deadline(2.0, 0.0)}
    situation = make_situation([CONSTANT], [1.0], [(80.0,)], tasks=[task])
    requests = listed(situation, np.concatenate([np.zeros(20), np.arange(1, 21) * 4.0]))
    assert fluid_bound_windows(situation, requests, window_s=100.0).performance == 1.0
    # A window of 2 s has room for 2 + 2 of the 20.
    assert fluid_bound_windows(situation, requests, window_s=2.0).performance == pytest.approx(24 / 40)


def test_windows_use_the_lengths_of_their_own_requests(make_situation):
    task = {"output_tokens": (1, 9), "deadline": Deadline(1.0, 0.0)}
    situation = make_situation([CONSTANT], [0.1], [(80.0,)], tasks=[task], cluster=Cluster(replicas=1, max_batch=1))
    short = listed(situation, np.zeros(10), output_tokens=1)
    # Window of 1 s and a tail of 1 s for ten answers of 0.1 s; two tokens take 1.1 s and are late.
    assert fluid_bound_windows(situation, short, window_s=1.0).performance == 1.0
    long = listed(situation, np.zeros(10), output_tokens=2)
    assert fluid_bound_windows(situation, long, window_s=1.0).performance == 0.0


def test_even_prefills_are_an_estimate_that_the_patient_first_beat_and_the_bound_is_not(make_situation):
    """Twelve patient requests, then four urgent ones, one per iteration; when all have left, again."""
    decode, prefill, output = ((1, 0.010), (16, 0.013)), 0.06, 80
    whole = prefill + (output - 1) * 0.013
    tasks = [
        {"output_tokens": (output, output), "deadline": Deadline(whole + others * prefill, 0.0)} for others in (15, 4)
    ]
    cluster = Cluster(replicas=1, max_batch=16, queue_capacity=0)
    situation = make_situation([decode], [prefill], [(80.0,), (80.0,)], tasks=tasks, cluster=cluster)
    table = Tables.of(situation.fleet, 1)
    gaps_s = np.append(0.0, prefill + table.decode[0, :15])  # each arrives when the iteration before it ends
    requests = listed(situation, np.cumsum(gaps_s) - 1e-9 * (gaps_s > 0), output_tokens=output, task=[0] * 12 + [1] * 4)
    result = simulate_by_reference(requests, situation, lambda index, observation: 0)
    assert result.met.all()
    busy_s = float(result.completion_s.max())  # never idle; the next sixteen may follow at once
    served = np.array([12, 4])
    assert served @ seconds_per_answer(situation)[:, 0] < busy_s
    assert served @ seconds_per_answer(situation, even_prefills=True)[:, 0] > 1.03 * busy_s


def test_what_the_cache_rejects_costs_nothing(make_situation):
    # Of prompts of 1 to 100 tokens, 100 in sum with the output, the cache holds the shorter half only.
    task = {"prompt_tokens": (1, 99), "output_tokens": (1, 1)}
    situation = make_situation([CONSTANT], [1.0], [(80.0,)], tasks=[task], cache_tokens=50)
    rising = dataclasses.replace(situation.profile.models[0], prefill=((1, 1.0), (99, 99.0)))
    situation = dataclasses.replace(situation, profile=dataclasses.replace(situation.profile, models=(rising,)))
    assert seconds_per_answer(situation)[0, 0] <= 25.0  # the mean of those that are answered, of 1 to 49 s


@pytest.mark.parametrize("rate", [0.0, -1.0, np.nan])
def test_rates_must_be_positive(make_situation, rate):
    with pytest.raises(InputError, match="positive"):
        fluid_bound(make_situation([CONSTANT], [1.0], [(80.0,)]), rate)


def test_windows_must_have_a_width(make_situation):
    situation = make_situation([CONSTANT], [1.0], [(80.0,)])
    with pytest.raises(InputError, match="window_s"):
        fluid_bound_windows(situation, listed(situation, np.zeros(1)), window_s=0.0)


@pytest.mark.parametrize(
    ("decode", "prefill_s", "output_tokens", "deadline"),
    [
        (((1, 0.009), (16, 0.011)), 0.010, (10, 30), Deadline(0.1, 0.015)),  # prefill and decode weigh alike
        (((1, 0.005), (16, 0.030)), 0.0005, (10, 60), Deadline(0.05, 0.012)),  # decode alone counts
        (((1, 0.005), (16, 0.030)), 0.0005, (10, 60), Deadline(0.6, 0.0)),  # long answers are the tight ones
        (((1, 0.002), (16, 0.003)), 0.020, (2, 10), Deadline(0.15, 0.015)),  # prefill alone counts
        (((1, 0.005), (8, 0.020), (16, 0.021)), 0.0005, (20, 60), Deadline(0.1, 0.012)),  # concave
    ],
)
def test_no_threshold_and_no_gang_gets_more_answers_in_time(make_situation, decode, prefill_s, output_tokens, deadline):
    """An admission rule per threshold, steady or filling and draining in turn, against the bound on one instance."""
    task = {"output_tokens": output_tokens, "deadline": deadline}
    cluster = Cluster(replicas=1, max_batch=16)
    situation = make_situation([((1, 1e-9),), decode], [1e-9, prefill_s], [(1.0, 100.0)], tasks=[task], cluster=cluster)
    rng = np.random.default_rng(0)
    count = 1000
    output = rng.integers(output_tokens[0], output_tokens[1] + 1, count)
    arrival_s = np.cumsum(rng.exponential(1 / (3 * situation.capacity()[1]), count))
    requests = listed(situation, arrival_s, output_tokens=output)
    best = 0.0
    for threshold in (2, 4, 6, 8, 12, 16):
        for refill_at in (threshold - 1, threshold // 2):
            filling = True

            def route(index, observation, threshold=threshold, refill_at=refill_at):
                nonlocal filling
                batch = observation.batch_sizes[1]
                filling = batch < threshold and (filling or batch <= refill_at)
                return int(filling)

            result = reference.simulate_reference(
                requests,
                Tables.of(situation.fleet, 1),
                situation.fleet.pools,
                route,
                quality=np.array([[0.0, 1.0]]),
                weight=np.ones(1),
                visible_deadline_s=situation.visible_deadlines,
                reward=Reward(),
                view=View(),
            )
            best = max(best, float(result.reward.sum() / np.nanmax(result.completion_s)))
    steady = throughput(situation, even_prefills=True)[1]
    assert 0.6 * steady < best <= steady <= throughput(situation)[1]
