"""Autoscalers: known answers, and the compiled simulator against the reference."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from besteffort.autoscaler import Autoscaler, Looks, Step
from besteffort.bounds.clairvoyant import clairvoyant_bound
from besteffort.errors import InputError
from besteffort.evaluation.metrics import gpu_seconds
from besteffort.policy import load_policy, save_policy
from besteffort.pools import Fleet, Pool, ReplicaEvent
from besteffort.routers import StaticRouter
from besteffort.runs.config import load_situation
from besteffort.runs.untrained import default_policy
from besteffort.simulator.reference import simulate_reference
from besteffort.simulator.result import Result
from besteffort.simulator.simulate import simulate, simulate_by_reference
from besteffort.situation import Cluster, Reward, Situation, Task, View
from tests.simulator.cases import Case, agree, make_profile
from tests.simulator.pool_cases import draw_scaled_kinds, judged_cases
from tests.simulator.test_reference import make_requests, make_tables

KINDS = draw_scaled_kinds(4)
LISTS = 60
LENGTH = 200


def numbers(looks: Looks, *seen: Sequence[int], replicas: int = 5, up: int = 1) -> list[int]:
    """Replicas after each look, where those that are up have so many requests each."""
    takes, found = [replica < up for replica in range(replicas)], []
    for sizes in seen:
        starts, drains = looks.look(takes, [*sizes, *[0] * replicas][:replicas])
        for replica in starts:
            assert not takes[replica]
            takes[replica] = True
        for replica in drains:
            assert takes[replica]
            takes[replica] = False
        found.append(sum(takes))
    return found


class TestLooks:
    def test_there_are_as_many_as_the_target_says(self) -> None:
        looks = Looks(Autoscaler(in_flight=2.0, down_window_s=0.0), 5, 4)
        assert numbers(looks, [3], [3, 4], [3, 4, 4, 2], [0, 0, 0, 0, 0]) == [2, 4, 5, 1]

    def test_nothing_happens_near_the_target(self) -> None:
        # 20 on 2 replicas are 10 each; 21 and 18 are within a tenth of that, 23 and 10 are not.
        looks = Looks(Autoscaler(in_flight=10.0, down_window_s=0.0), 5, 40)
        assert numbers(looks, [11, 10], [12, 11], up=2) == [2, 3]
        assert numbers(Looks(Autoscaler(in_flight=10.0, down_window_s=0.0), 5, 40), [9, 9], [1, 9], up=2) == [2, 1]

    def test_replicas_stay_for_the_window_of_scaling_down(self) -> None:
        looks = Looks(Autoscaler(interval_s=10.0, in_flight=1.0, down_window_s=20.0), 5, 4)
        # The four that were wanted at the first look count for two more.
        assert numbers(looks, [4], [0], [0], [0], [2]) == [4, 4, 4, 1, 2]

    def test_replicas_start_when_they_were_wanted_all_the_window(self) -> None:
        looks = Looks(Autoscaler(interval_s=10.0, in_flight=1.0, up_window_s=10.0, down_window_s=0.0), 5, 4)
        # At its first look there is no other.
        assert numbers(looks, [1], [4], [3], [5]) == [1, 1, 3, 3]

    def test_only_those_that_wait_count_for_a_queue(self) -> None:
        looks = Looks(Autoscaler(waiting=2.0, down_window_s=0.0), 5, 4)
        assert numbers(looks, [4], [7], [7, 5]) == [1, 2, 2]

    def test_a_schedule_is_followed_within_its_limits(self) -> None:
        scaler = Autoscaler(
            interval_s=10.0,
            min_replicas=2,
            max_replicas=4,
            schedule=(Step(15.0, 3), Step(30.0, 9), Step(45.0, 1)),
            down_window_s=0.0,
        )
        assert numbers(Looks(scaler, 5, 4), *[[0]] * 5, up=2) == [2, 3, 4, 4, 2]

    def test_who_is_started_and_who_is_drained(self) -> None:
        looks = Looks(Autoscaler(in_flight=1.0, down_window_s=0.0), 5, 9)
        assert looks.look([False, True, False, True, False], [3, 2, 0, 1, 0]) == ([0], [])
        assert looks.look([True, True, False, True, True], [1, 0, 7, 0, 1]) == ([], [3, 1])

    def test_it_looks_at_multiples_of_its_interval(self) -> None:
        looks = Looks(Autoscaler(interval_s=0.1, in_flight=1.0, down_window_s=1.0), 5, 4)
        for number in range(1, 40):
            assert looks.next_s == number * 0.1
            looks.look([True], [1])


def play(arrival_s: Sequence[float], pool: Pool) -> Result:
    requests = make_requests(arrival_s, np.full(len(arrival_s), 4), np.full(len(arrival_s), 3), 100.0)
    return simulate_reference(
        requests,
        make_tables(largest=32),
        (pool,),
        lambda index, observation: 0,
        quality=np.ones((1, 1)),
        weight=np.array([1.0]),
        visible_deadline_s=np.array([3.0]),
        reward=Reward(),
        view=View(),
    )


def test_looks_that_were_missed_are_made_up_for_with_what_was_there_then() -> None:
    # A is read until 1 s, B and C until 4 s; A leaves at 6 s, B and C at 7.5 s. The look at 2 s sees three, starts two
    # replicas, up at 7 s; that at 6 s sees two and takes back the last.
    scaler = Autoscaler(interval_s=2.0, in_flight=1.0, down_window_s=0.0)
    pool = Pool("a", "model0", replicas=3, start_s=5.0, autoscaler=scaler)
    result = play([0.0, 0.0, 0.0, 7.0, 7.0], pool)
    assert result.completion_s[:3].tolist() == [6.0, 7.5, 7.5]
    assert result.replica.tolist() == [0, 0, 0, 1, 1]
    assert result.admission_s[3] == 7.0
    # The look at 8 s was after the last arrival that counts.
    fleet = Fleet((pool,), make_profile(np.ones((1, 32)), np.ones((1, 8))))
    np.testing.assert_allclose(gpu_seconds(result, fleet), [7.0 + 5.0 + 4.0])
    # Nobody comes before 20 s, when all but the first are drained again; the request of 3 s waits for nobody.
    later = play([0.0, 0.0, 0.0, 3.0, 20.0], pool)
    assert later.replica.tolist() == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "given",
    [
        {"autoscaler": Autoscaler(interval_s=1.0, in_flight=1.0)},
        {"events": (ReplicaEvent(0.0, 1, "start"),), "start_s": 1.0},
    ],
    ids=["a look", "a start"],
)
def test_what_is_due_as_a_request_comes_is_done_before(given: dict[str, Any]) -> None:
    # Less one gap after the other, the second until the last arrival is a little more than the last gap.
    arrival_s = [0.303, 0.33, 0.453, 0.788, 1.0]
    left_s = 1.0 - 0.303
    for one, following in itertools.pairwise(arrival_s[:-1]):
        left_s -= following - one
    assert left_s > arrival_s[-1] - arrival_s[-2]
    profile = make_profile(np.full((1, 32), 3.0), np.ones((1, 8)))
    pool = Pool("a", "model0", replicas=2, **given)
    situation = Situation(profile, Cluster(), (Task("task0"),), pools=(pool,))
    requests = make_requests(arrival_s, np.full(5, 4), np.full(5, 3), 100.0)
    requests = dataclasses.replace(requests, tasks=situation.task_names)
    truth = simulate_by_reference(requests, situation, lambda index, observation: 0)
    assert truth.replica.tolist() == [0, 0, 0, 0, 1]
    result = simulate(requests, situation, StaticRouter(0))
    assert result.replica.tolist() == truth.replica.tolist()
    np.testing.assert_allclose(result.completion_s, truth.completion_s, rtol=1e-12)


def lists(index: int) -> tuple[tuple[Case, Result], ...]:
    """The lists of a kind, each with what the reference makes of it."""
    return judged_cases(KINDS[index], 1000 * index, LISTS, LENGTH)


@pytest.mark.parametrize("index", range(len(KINDS)), ids=map(str, KINDS))
def test_random_lists_are_played_as_by_the_reference(index: int) -> None:
    cases, truths = zip(*lists(index), strict=True)
    agree(cases, truths)


def test_the_lists_are_as_nasty_as_they_should_be() -> None:
    assert len(KINDS) * LISTS >= 200
    found = [(case, truth) for index in range(len(KINDS)) for case, truth in lists(index)]
    scalers = [pool.autoscaler for case, _ in found for pool in case.situation.pools if pool.autoscaler is not None]
    assert len(scalers) >= 400
    for name in ("in_flight", "waiting", "schedule"):
        assert np.mean([bool(getattr(each, name)) for each in scalers]) > 0.2
    moved = 0
    for case, truth in found:
        fleet = case.situation.fleet
        lasted_s = truth.arrival_s[-1] - truth.arrival_s[0]
        share = gpu_seconds(truth, fleet) / (lasted_s * fleet.replicas)
        moved += any(
            pool.autoscaler is not None and pool.autoscaler.min_replicas < pool.replicas and 0.01 < part < 0.99
            for pool, part in zip(fleet.pools, share, strict=True)
        )
        assert (share <= 1 + 1e-9).all()
    assert moved > 0.8 * len(found)
    assert np.mean([truth.rejected.any() for _, truth in found]) > 0.4


def test_no_router_exceeds_the_bound() -> None:
    for index in range(len(KINDS)):
        case, truth = lists(index)[3]
        bound = clairvoyant_bound(case.situation, case.requests)
        assert truth.reward.mean() <= bound.performance + 1e-9
        assert truth.met.mean() <= bound.slo_attainment + 1e-9


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "`autoscaler` states 0 of `in_flight`, `waiting` and `schedule`; state one of them"),
        ({"in_flight": 1.0, "waiting": 1.0}, "`autoscaler` states 2 of"),
        ({"in_flight": 0.0}, "`autoscaler`: `in_flight` is 0; give a number above 0"),
        ({"waiting": 1.0, "interval_s": -1.0}, "`autoscaler`: `interval_s` is -1; give a number above 0"),
        ({"waiting": 1.0, "tolerance": -0.1}, "`autoscaler`: `tolerance` is -0.1; give at least 0"),
        (
            {"waiting": 1.0, "min_replicas": 3, "max_replicas": 2},
            "`autoscaler`: `min_replicas` is 3 and `max_replicas` 2; give no more than the most",
        ),
        ({"waiting": 1.0, "min_replicas": 0}, "`autoscaler`: `min_replicas` is 0; give at least 1"),
        (
            {"waiting": 1.0, "min_replicas": -2, "max_replicas": 2},
            "`autoscaler`: `min_replicas` is -2; give at least 1",
        ),
        ({"schedule": (Step(5.0, 1), Step(5.0, 2))}, "`autoscaler`: `schedule` goes from 5 s to 5 s; sort its steps"),
        ({"waiting": 1.0, "down_window_s": 1e6}, "a window of 1e\\+06 s has 66,667 looks; give one of at most 1,000"),
    ],
)
def test_a_mistake_in_an_autoscaler_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        Autoscaler(**given)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"events": (ReplicaEvent(1.0, 0, "fail"),)}, "Pool `a` states both `events` and `autoscaler`; state one"),
        ({"replicas": 2}, "Pool `a`: `autoscaler` has `min_replicas` 3, and there are 2; raise `replicas`"),
        ({"replicas": 3}, "Pool `a`: `autoscaler` has `max_replicas` 4, and there are 3; raise `replicas`"),
    ],
)
def test_a_mistake_in_its_pool_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    scaler = Autoscaler(in_flight=1.0, min_replicas=3, max_replicas=4)
    Pool("a", "model0", replicas=4, autoscaler=scaler)
    with pytest.raises(InputError, match=sentence):
        Pool("a", "model0", **{"replicas": 4, "autoscaler": scaler, **given})


def test_all_that_an_autoscaler_may_start_has_to_fit() -> None:
    profile = make_profile(np.ones((2, 32)), np.ones((2, 8)))
    models = tuple(dataclasses.replace(model, weights_gb=8.0) for model in profile.models)
    heavy = dataclasses.replace(profile, models=models, memory_gb=12.0)
    pools = (
        Pool("a", "model0", gpus=(0,)),
        Pool("b", "model1", replicas=2, gpus=(0, 1), autoscaler=Autoscaler(in_flight=1.0)),
    )
    with pytest.raises(InputError, match="Pools `a`, `b` share a GPU, and their weights take 16 of 12 GB"):
        Fleet(pools, heavy)
    Fleet((dataclasses.replace(pools[0], gpus=(2,)), pools[1]), heavy)


def test_a_file_and_a_policy_state_an_autoscaler(tmp_path: Path) -> None:
    path = tmp_path / "scaled.yaml"
    path.write_text(
        "profile: opt-a100\ntasks: [{name: piqa}]\npools:\n- {name: a, model: opt-1.3b, replicas: 3, start_s: 9, "
        "autoscaler: {interval_s: 5, min_replicas: 2, schedule: [{time_s: 60, replicas: 3}]}}\n",
        encoding="utf-8",
    )
    situation = load_situation(path)
    scaler = Autoscaler(interval_s=5.0, min_replicas=2, schedule=(Step(60.0, 3),))
    assert situation.pools[0].autoscaler == scaler
    save_policy(default_policy(situation), tmp_path / "policy.safetensors")
    assert load_policy(tmp_path / "policy.safetensors").situation.pools == situation.pools
