"""The process without known lengths: policies that know none anyway earn in it what they earn in the other one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("experiments", reason="needs a checkout")

from besteffort.situation import Situation
from experiments.optimal import TICK_S, small_situation
from experiments.small_instance import best_by_sizes, make_instance, solve
from experiments.unknown_lengths import best_reward

pytestmark = pytest.mark.checkout


def with_outputs(low: int, high: int, **cluster: int) -> Situation:
    situation = small_situation()
    tasks = tuple(dataclasses.replace(task, output_tokens=(low, high)) for task in situation.tasks)
    return dataclasses.replace(situation, tasks=tasks, cluster=dataclasses.replace(situation.cluster, **cluster))


@pytest.mark.parametrize(
    ("outputs", "changes"), [((1, 2), {}), ((1, 2), {"max_batch": 1, "queue_capacity": 2}), ((1, 3), {"max_batch": 1})]
)
def test_a_policy_by_batch_sizes_earns_the_same(outputs: tuple[int, int], changes: dict[str, int]) -> None:
    situation = with_outputs(*outputs, **changes)
    instance = make_instance(situation, TICK_S, 0.6)
    cluster, models = situation.cluster, len(situation.profile.model_names)
    sizes = (cluster.max_batch + cluster.queue_capacity + 1,) * models
    chance = np.random.default_rng(0).random((len(situation.tasks), models, *sizes))
    chance /= chance.sum(axis=1, keepdims=True)
    known = solve(instance, chance[:, :, *instance.sizes.T]).reward
    assert 0.3 < known < 0.9
    assert best_reward(instance, chance) == pytest.approx(known, abs=4e-6)


def test_where_all_lengths_are_alike_there_is_nothing_to_know() -> None:
    instance = make_instance(with_outputs(2, 2), TICK_S, 0.5)
    assert best_reward(instance) == pytest.approx(solve(instance).reward, abs=4e-6)


def test_to_know_lengths_helps_and_so_does_more_than_sizes() -> None:
    instance = make_instance(small_situation(), TICK_S, 0.5)
    assert best_by_sizes(instance, rounds=5).reward + 1e-4 < best_reward(instance) < solve(instance).reward - 1e-4
