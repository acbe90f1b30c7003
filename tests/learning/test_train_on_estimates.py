"""Training on estimates: it resumes, and its policy decides alike in the simulator, the reference and a gateway."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.evaluation.rollouts import play_routers
from besteffort.learning import DQNConfig, DQNHyperparams, Progress, Trained, train
from besteffort.observation import IN_FLIGHT
from besteffort.policy import Policy, load_policy, save_policy
from besteffort.routers.learned import learned_router
from besteffort.runs.config import load_situation
from besteffort.runs.experiment import TrainingConfig
from besteffort.runs.training import TrainingProblem, make_policy, make_training_problem
from besteffort.simulator.build import build, make_env
from besteffort.simulator.environment import ServingEnvironment
from besteffort.simulator.simulate import simulate
from besteffort.situation import Cluster, Reward, Situation
from besteffort.workload.arrivals import Poisson
from besteffort.workload.sample import sample_requests
from tests.estimates.lists import decided_live

FEATURES = ("task", *IN_FLIGHT, "smallest_batch")
CONFIG = DQNConfig(
    hidden_sizes=(16,),
    num_envs=8,
    rollout_length=16,
    updates_per_rollout=8,
    batch_size=64,
    buffer_length=64,
    n_step=4,
    decisions=1_024,
    log_interval=2,
    ensemble_size=1,
)
HYPER = DQNHyperparams.for_decisions(CONFIG.decisions, learning_rate=1e-2)


@pytest.fixture(scope="module")
def situation() -> Situation:
    paper = load_situation("paper")
    return dataclasses.replace(
        paper,
        cluster=Cluster(replicas=2, max_batch=4, queue_capacity=4),
        reward=Reward(miss_penalty=0.3),
        view=dataclasses.replace(paper.view, features=FEATURES, slowdown_tau_s=2.0),
    )


@pytest.fixture(scope="module")
def problem(situation: Situation) -> TrainingProblem:
    return make_training_problem(situation, TrainingConfig())


def trained(problem: TrainingProblem, **options: Any) -> Trained:
    shape, params = build(problem.situation, problem.workload, history=1_024, rule=problem.rule)
    keys = jax.random.split(jax.random.key(0), 1)
    return train(ServingEnvironment(shape), params, problem.features, CONFIG, HYPER, keys, **options)


@pytest.fixture(scope="module")
def straight(problem: TrainingProblem) -> Trained:
    return trained(problem)


@pytest.fixture(scope="module")
def policy(problem: TrainingProblem, straight: Trained, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """As read from its file."""
    path = tmp_path_factory.mktemp("policy") / "policy.safetensors"
    save_policy(make_policy(problem, straight.weights[0], {}), path)
    return load_policy(path, problem.situation)


def test_it_learns_and_a_killed_training_ends_with_the_same_weights(
    problem: TrainingProblem, straight: Trained, tmp_path: Path
) -> None:
    file = tmp_path / "checkpoint.npz"

    def stop(latest: Progress) -> None:
        if latest.point == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(problem, checkpoint_path=file, checkpoint_every=1, progress=stop)
    resumed = trained(problem, checkpoint_path=file)
    assert len(straight.metrics["loss"]) == CONFIG.log_points > 2
    assert np.isfinite(straight.metrics["loss"]).all()
    for one, other in zip(straight.weights[0], resumed.weights[0], strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize(
    ("estimates", "message"),
    [
        (False, "`own` needs the requests in flight, which this observation does not show"),
        (True, "`value` needs a rule, which these parameters lack"),
    ],
)
def test_an_environment_without_estimates_or_a_rule_is_refused(
    problem: TrainingProblem, estimates: bool, message: str
) -> None:
    env, params = make_env(problem.situation, problem.workload, estimates=estimates)
    with pytest.raises(InputError, match=message):
        train(env, params, problem.features, CONFIG, HYPER, jax.random.split(jax.random.key(0), 1))


@pytest.mark.parametrize("streamed", [True, False])
def test_it_decides_alike_everywhere(policy: Policy, streamed: bool) -> None:
    view = dataclasses.replace(policy.situation.view, streamed=streamed)
    situation = dataclasses.replace(policy.situation, view=view)
    policy = dataclasses.replace(policy, situation=situation)
    requests = sample_requests(situation, Poisson(150.0), 300, seed=0)
    router = learned_router(policy)
    assert router.estimates
    compiled = simulate(requests, situation, router).model
    assert len(np.unique(compiled)) > 1
    np.testing.assert_array_equal(simulate(requests, situation, router, backend="reference").model, compiled)
    np.testing.assert_array_equal(decided_live(requests, situation, policy), compiled)
    if streamed:
        np.testing.assert_array_equal(play_routers(situation, [requests], {"it": [router]})["it"].model[0], compiled)
