from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.evaluation.rollouts import play_routers, sample_lists
from besteffort.routers import DeadlineRouter, StaticRouter
from besteffort.runs.config import load_situation
from besteffort.simulator.simulate import simulate
from besteffort.situation import Situation
from besteffort.workload.arrivals import Poisson
from besteffort.workload.requests import Requests
from besteffort.workload.sample import sample_requests
from besteffort.workload.synthetic import synthetic

N = 300


@pytest.fixture(scope="module")
def situation() -> Situation:
    return load_situation("paper")


@pytest.fixture(scope="module")
def lists(situation: Situation) -> list[Requests]:
    workloads = [synthetic(situation, Poisson(rate)) for rate in (100.0, 400.0)]
    return sample_lists(workloads, situation.task_names, N, [5, 6])


def test_lists_are_the_generators_own(situation: Situation, lists: list[Requests]) -> None:
    assert len(lists) == 4
    alone = sample_requests(synthetic(situation, Poisson(400.0)), situation.task_names, N, 6)
    for field in dataclasses.fields(Requests):
        if field.name != "tasks":
            np.testing.assert_allclose(getattr(lists[3], field.name), getattr(alone, field.name), rtol=1e-6)


def test_lists_of_a_seed_share_their_draws(lists: list[Requests]) -> None:
    slow, fast = lists[0], lists[2]
    np.testing.assert_array_equal(slow.output_tokens, fast.output_tokens)
    np.testing.assert_allclose(slow.arrival_s, 4 * fast.arrival_s, rtol=1e-5)
    assert (lists[0].output_tokens != lists[1].output_tokens).any()


def test_together_as_alone(situation: Situation, lists: list[Requests]) -> None:
    """Against the reference, one router and one list at a time: what is planned in float32 differs by rounding only."""
    routers = {"small": StaticRouter(0), "deadline": DeadlineRouter(0.0)}
    played = play_routers(situation, lists, {name: [router] * len(lists) for name, router in routers.items()})
    for name, router in routers.items():
        for index in (0, 3):
            alone = simulate(
                lists[index],
                situation.cluster,
                situation.profile,
                router,
                tasks=situation.tasks,
                backend="reference" if index else "jax",
            )
            assert np.mean(played[name].model[index] == alone.model) > 0.98
            if (played[name].model[index] == alone.model).all():
                np.testing.assert_allclose(played[name].latency_s[index], alone.latency_s, rtol=1e-4, atol=1e-5)
                np.testing.assert_array_equal(played[name].replica[index], alone.replica)
                assert played[name].reward[index].mean() == pytest.approx(alone.reward.mean(), abs=1e-3)


def test_each_list_has_its_own_router(situation: Situation, lists: list[Requests]) -> None:
    played = play_routers(situation, lists, {"mixed": [StaticRouter(index % 3) for index in range(4)]})["mixed"]
    assert [set(row.tolist()) for row in played.model] == [{0}, {1}, {2}, {0}]
    assert played.reward.shape == (4, N)


def test_lists_of_different_length_are_refused(situation: Situation, lists: list[Requests]) -> None:
    short = sample_requests(synthetic(situation, Poisson(1.0)), situation.task_names, 7, 0)
    with pytest.raises(InputError, match=r"\[7, 300\] requests; give lists of one length"):
        play_routers(situation, [lists[0], short], {"small": [StaticRouter(0)] * 2})
