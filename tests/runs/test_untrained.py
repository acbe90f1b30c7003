"""The policy that needs no training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from besteffort.observation import VALUE
from besteffort.policy import load_policy, save_policy
from besteffort.routers.learned import learned_router
from besteffort.runs.config import load_situation
from besteffort.runs.untrained import default_policy, rule_for
from besteffort.simulator.simulate import simulate
from besteffort.situation import Cluster, Deadline, Reward, Situation, Task
from besteffort.weights import with_bypass
from besteffort.workload.arrivals import Poisson
from besteffort.workload.sample import sample_requests
from tests.estimates.lists import decided_live
from tests.simulator.cases import make_profile


def situation_of(models: int) -> Situation:
    """Models that are each a little slower and better than the one before, on two replicas."""
    cost = np.geomspace(1.0, 6.0, models)[:, None]
    profile = make_profile(
        cost * (0.004 + 0.0003 * np.arange(1, 9)),
        cost * (0.002 + 0.0002 * np.arange(1, 65)),
        quality_percent=np.stack([np.linspace(40.0, 80.0, models), np.linspace(70.0, 80.0, models)]),
    )
    tasks = (
        Task("task0", 2.0, (1, 64), (1, 20), Deadline(0.2, 0.01)),
        Task("task1", 1.0, (1, 64), (5, 40), Deadline(0.1, 0.02), weight=2.0),
    )
    return Situation(profile, Cluster(replicas=2, max_batch=8, queue_capacity=4), tasks, Reward(miss_penalty=0.2))


def test_it_keeps_its_numbers_in_a_file(tmp_path: Path) -> None:
    situation = load_situation("paper")
    policy = default_policy(situation)
    assert policy.is_rule
    assert policy.situation.view.features == (VALUE,)
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy", situation)
    rule = rule_for(situation)
    for name, value in vars(rule).items():
        np.testing.assert_array_equal(getattr(loaded.rule, name), value)
    save_policy(default_policy(situation), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "policy").read_bytes()


@pytest.mark.parametrize("models", [2, 12])
def test_it_decides_alike_everywhere(models: int) -> None:
    situation = situation_of(models)
    policy = default_policy(situation)
    policy.check_fits(situation)
    requests = sample_requests(situation, Poisson(1.5 * situation.unit_load), 150, seed=0)
    router = learned_router(policy)
    played = simulate(requests, situation, router)
    assert len(np.unique(played.model)) >= min(models, 5)
    np.testing.assert_array_equal(simulate(requests, situation, router, backend="reference").model, played.model)
    np.testing.assert_array_equal(decided_live(requests, situation, policy), played.model)


def test_a_network_that_adds_to_values_is_no_rule() -> None:
    policy = default_policy(load_situation("paper"))
    hidden = (np.ones((3, 4), np.float32), np.zeros(4, np.float32))
    last = (np.ones((4, 3), np.float32), np.array([0.0, 1.0, 0.0], np.float32))
    assert not dataclasses.replace(policy, weights=with_bypass((hidden, last), 0)).is_rule
