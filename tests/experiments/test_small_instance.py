"""The computed optimum: in a case that is solved by hand, and against the simulator, request by request."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("experiments", reason="needs a checkout")

from besteffort.errors import InputError
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Cluster, Deadline, Situation, Task
from besteffort.workload.sample import sample_lists
from besteffort.workload.synthetic_workload import synthetic
from experiments.optimal import TICK_S, play, small_situation
from experiments.small_instance import TickArrivals, best_by_sizes, follow, make_instance, solve, visits

pytestmark = pytest.mark.checkout


def blocking(prefills, qualities, deadline=2):
    """Models that hold one request at a time, answers of one token."""
    source = Source("modelled", "by hand")
    names = [f"model{m}" for m in range(len(prefills))]
    profile = Profile(
        1,
        "by hand",
        "none",
        tuple(
            ModelProfile(name, ((1, TICK_S),), ((1, TICK_S * ticks),))
            for name, ticks in zip(names, prefills, strict=True)
        ),
        (TaskQuality("task", "none", "none", qualities),),
        Provenance(source, source, source, source),
    )
    task = Task("task", prompt_tokens=(1, 1), output_tokens=(1, 1), deadline=Deadline(deadline * TICK_S, 0.0))
    return Situation(profile, Cluster(replicas=1, max_batch=1, queue_capacity=0), (task,))


@pytest.mark.parametrize("probability", [0.2, 0.5, 0.9])
def test_one_model_that_blocks(probability):
    # An answer keeps the next tick's request out: gaps of 1 + 1 / p ticks between answers, 1 / p between requests.
    instance = make_instance(blocking([2], (80.0,)), TICK_S, probability)
    found = solve(instance)
    assert found.reward == pytest.approx(1 / (1 + probability), abs=2e-6)
    assert visits(instance, found.policy)[0] == pytest.approx(1 / (1 + probability), abs=1e-4)


def test_the_large_model_while_it_is_idle_and_the_small_one_that_never_is_busy():
    probability = 0.5
    instance = make_instance(blocking([1, 2], (40.0, 80.0)), TICK_S, probability)
    expected = (1 + 0.5 * probability) / (1 + probability)
    best = solve(instance)
    assert best.reward == pytest.approx(expected, abs=2e-6)
    assert best_by_sizes(instance).reward == pytest.approx(expected, abs=1e-3)
    for model, reward in enumerate((0.5, 1 / (1 + probability))):
        always = np.zeros_like(best.policy)
        always[:, model] = 1.0
        assert solve(instance, always).reward == pytest.approx(reward, abs=2e-6)


def test_to_be_late_is_worth_nothing():
    instance = make_instance(blocking([1, 2], (40.0, 80.0), deadline=1), TICK_S, 0.5)
    assert solve(instance).reward == pytest.approx(0.5, abs=2e-6)


@pytest.mark.parametrize("changes", [{}, {"max_batch": 3, "queue_capacity": 0}, {"max_batch": 1, "queue_capacity": 2}])
def test_the_process_is_the_simulators_request_by_request(changes):
    """Some policy that has no reason, through many states: the same batch sizes all along, and the same sum."""
    situation = small_situation()
    situation = dataclasses.replace(situation, cluster=dataclasses.replace(situation.cluster, **changes))
    instance = make_instance(situation, TICK_S, 0.6)
    tasks, models, _, states = instance.served.shape
    policy = np.eye(models)[np.random.default_rng(0).integers(0, models, (tasks, states))].swapaxes(1, 2)
    workload = synthetic(situation, TickArrivals(TICK_S, 0.6))
    (requests,) = sample_lists([workload], situation.task_names, 2_000, [0])
    assert np.ptp(np.diff(requests.arrival_s)) > 0
    route = follow(instance, policy, requests)
    result = simulate_by_reference(requests, situation, route)
    ticks = np.round(requests.arrival_s / TICK_S).astype(int)
    state, earned, now = 0, 0.0, 0
    for index, tick in enumerate(ticks.tolist()):
        while now < tick:
            earned, state, now = earned + instance.quiet_gain[state], instance.quiet[state], now + 1
        move = (requests.task[index], result.model[index], requests.output_tokens[index] - 1, state)
        earned, state, now = earned + instance.served_gain[move], instance.served[move], now + 1
    while state:
        earned, state = earned + instance.quiet_gain[state], instance.quiet[state]
    assert 0.3 < result.met.mean() < 0.99
    assert earned == pytest.approx(float(result.reward.sum()), abs=1e-6)


def test_the_optimal_policy_earns_in_the_simulator_what_was_computed():
    situation, probability = small_situation(), 0.5
    instance = make_instance(situation, TICK_S, probability)
    best = solve(instance)
    seeing_less = best_by_sizes(instance, rounds=5)
    assert best.reward - 0.02 < seeing_less.reward < best.reward
    lists = sample_lists(
        [synthetic(situation, TickArrivals(TICK_S, probability))], situation.task_names, 2_000, list(range(5))
    )
    earned = [play(instance, best, requests, warm_up_s=0.5) for requests in lists]
    assert np.mean(earned) == pytest.approx(best.reward, abs=4 * np.std(earned) / 5**0.5)
    assert np.std(earned) < 0.01


def test_what_is_not_modelled_is_refused():
    situation = small_situation()
    with pytest.raises(InputError, match="replicas"):
        make_instance(dataclasses.replace(situation, cluster=Cluster(replicas=2, max_batch=2)), TICK_S, 0.5)
    with pytest.raises(InputError, match="whole number of ticks"):
        make_instance(situation, 1.5 * TICK_S, 0.5)
