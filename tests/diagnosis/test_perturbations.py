from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from besteffort.diagnosis.perturbations import (
    LAGS,
    REFRESHES_S,
    SHARES,
    Perturbation,
    as_known,
    avoidable_misses,
    judge_perturbations,
    standard_perturbations,
)
from besteffort.diagnosis.wrong_profiles import perturb_latency
from besteffort.evaluation import metrics
from besteffort.evaluation.rollouts import play_routers
from besteffort.observation import Observation
from besteffort.routers import StaticRouter
from besteffort.runs.config import load_situation
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Cluster, Deadline, Situation
from besteffort.workload.arrivals import Poisson
from besteffort.workload.requests import Requests
from besteffort.workload.sample import sample_lists
from besteffort.workload.synthetic_workload import synthetic


@pytest.fixture(scope="module")
def situation() -> Situation:
    return load_situation("paper")


@pytest.fixture(scope="module")
def lists(situation: Situation) -> list[Requests]:
    return sample_lists([synthetic(situation, Poisson(300.0))], situation.task_names, 300, [5, 6])


def test_batch_sizes_are_those_that_were_seen(situation, lists) -> None:
    rng = np.random.default_rng(0)
    seen = []

    def route(index: int, observation: Observation) -> int:
        seen.append(observation.instance_batch_sizes)
        return int(rng.integers(3))

    small = dataclasses.replace(situation, cluster=Cluster(replicas=2, max_batch=2, queue_capacity=2))
    result = simulate_by_reference(lists[0], small, route)
    assert 0 < result.rejected.mean() < 1
    np.testing.assert_array_equal(metrics.batch_sizes_found(result, small.fleet.layout), seen)


def test_a_miss_is_on_too_large_a_model_where_a_smaller_one_had_time_to_spare(make_situation, make_result) -> None:
    # The small model is predicted to take 1 s where it is idle and 4 s where one request is ahead; the deadline is 2 s.
    situation = make_situation(
        [((1, 1.0),)] * 2,
        [1.0, 4.0],
        [(30.0, 60.0)],
        tasks=[{"deadline": Deadline(2.0, 0.0)}],
        cluster=Cluster(1, 1, 9),
    )
    result = make_result(
        #     at once  small idle  small busy  small: nothing smaller  in time  rejected
        [0.0, 10.0, 20.0, 20.1, 30.0, 40.0],
        model=[0, 1, 0, 1, 1, 1],
        latency_s=[3.0, 4.0, 1.0, 4.0, 1.5, 0.0],
        rejected=[False, False, False, False, False, True],
        deadline_s=2.0,
    )
    found = avoidable_misses(result, situation, np.ones(6))
    assert found.tolist() == [False, True, False, False, False, True]
    # With half the deadline the idle small model has no time to spare; with much more, the busy one has.
    assert not avoidable_misses(result, situation, np.full(6, 0.5)).any()
    assert avoidable_misses(result, situation, np.full(6, 5.0)).tolist() == [False, True, False, True, False, True]


def test_perturbations_change_one_thing_at_a_time(situation, lists) -> None:
    perturbations = standard_perturbations(situation, lists, seed=7)
    assert (
        len({perturbation.name for perturbation in perturbations})
        == len(perturbations)
        == 4 * len(SHARES) + len(LAGS) + len(REFRESHES_S)
    )
    for perturbation in perturbations:
        assert perturbation.lists == tuple(lists)
        assert len(perturbation.actual_situations) == len(lists)
        for actual in perturbation.actual_situations:
            changed = {
                f.name for f in dataclasses.fields(Situation) if getattr(actual, f.name) != getattr(situation, f.name)
            }
            assert changed == ({"view"} if perturbation.family in ("rate estimate", "batch sizes") else {"profile"})
    of = {
        family: [perturbation for perturbation in perturbations if perturbation.family == family]
        for family in {t.family for t in perturbations}
    }
    assert [perturbation.actual_situations[0].view.rate_lag for perturbation in of["rate estimate"]] == list(LAGS)
    assert [perturbation.actual_situations[0].view.batch_refresh_s for perturbation in of["batch sizes"]] == list(
        REFRESHES_S
    )
    assert of["slower models"][-1].actual_situations[0].profile == perturb_latency(situation.profile, 0.3, "slower")
    # Chance falls anew for each list, and the same way again for the same seed.
    first, second = of["quality table"][0].actual_situations
    assert first.profile != second.profile
    assert standard_perturbations(situation, lists, seed=7)[0].actual_situations == (first, second)
    assert standard_perturbations(situation, lists, seed=8)[0].actual_situations == (
        second,
        standard_perturbations(situation, lists, seed=8)[0].actual_situations[1],
    )


def test_trials_are_judged_as_their_lists_are_played(situation, lists) -> None:
    short = [requests.part(slice(None, 100), 0.0) for requests in lists[:1]]
    fast = dataclasses.replace(situation, profile=perturb_latency(situation.profile, 0.3, "faster"))
    perturbations = [
        as_known(situation, lists),
        Perturbation("faster models", "fast", 0.3, tuple(lists), (fast, situation)),
        Perturbation("load", "short", 1.0, tuple(short), (situation,)),
    ]
    routers = {"small": [StaticRouter(0)], "mixed": [StaticRouter(2), StaticRouter(1)]}
    outcomes = judge_perturbations(
        situation,
        perturbations,
        [routers] * 3,
        inspect=["mixed"],
        warm_up_s=0.1,
    )
    assert [outcome.perturbation for outcome in outcomes] == perturbations
    for outcome, each, actual_situations in zip(
        outcomes, [lists, lists, short], [None, [fast, situation], None], strict=True
    ):
        played = play_routers(
            situation,
            each,
            {name: (routers[name] * 2)[: len(each)] for name in outcome.performance},
            actual_situations=actual_situations,
        )
        for name, result in played.items():
            np.testing.assert_allclose(outcome.performance[name], metrics.performance(result, warm_up_s=0.1), rtol=1e-5)
            np.testing.assert_allclose(
                outcome.slo_attainment[name], metrics.slo_attainment(result, warm_up_s=0.1), rtol=1e-5
            )
    known, faster, last = outcomes
    assert last.performance["mixed"].shape == (1,)  # of two routers, the first takes the one list
    assert set(known.avoidable_misses) == {"mixed"}
    missed = 1 - known.slo_attainment["mixed"]
    assert 0 < known.avoidable_misses["mixed"][0] <= missed[0]
    assert faster.performance["mixed"][0] > known.performance["mixed"][0]
    assert faster.performance["mixed"][1] == known.performance["mixed"][1]
