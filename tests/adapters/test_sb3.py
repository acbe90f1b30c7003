"""Stable-Baselines3: the environment, the joined outcomes, and a trained network as a policy of ours."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from besteffort.adapters.routers import HostRouter, predicting
from besteffort.adapters.wrapped import WrappedEnv, wrap_env
from besteffort.errors import InputError
from besteffort.evaluation.rollouts import play_routers
from besteffort.policy import load_policy, save_policy
from besteffort.routers.learned import learned_router
from besteffort.runs.experiment import TrainingConfig
from besteffort.runs.training import TrainingProblem, make_training_problem
from besteffort.situation import Situation
from besteffort.workload.arrivals import Poisson
from besteffort.workload.sample import sample_workload
from besteffort.workload.synthetic_workload import synthetic

pytest.importorskip("stable_baselines3")

import torch
from stable_baselines3 import DQN
from torch import nn

from besteffort.adapters.stable_baselines3 import (
    ServingReplayBuffer,
    ServingVecEnv,
    dqn_policy,
    dqn_weights,
)

HORIZON = 40  # of the shared problem
HORIZON_S = 0.25


@pytest.fixture(scope="module")
def own(problem: WrappedEnv) -> WrappedEnv:
    return dataclasses.replace(problem, credit="own")


def filled(
    problem: WrappedEnv, steps: int, size: int = 400, **arguments: Any
) -> tuple[ServingReplayBuffer, np.ndarray]:
    """A buffer after `steps` random steps of two environments, and the actions."""
    env = ServingVecEnv(2, problem, outcomes_every=8)
    buffer = ServingReplayBuffer(size, env.observation_space, env.action_space, n_envs=2, **arguments)
    env.seed(0)
    seen = env.reset()
    actions = np.random.default_rng(1).integers(0, 3, (steps, 2))
    for action in actions:
        new, reward, done, infos = env.step(action)
        after = new.copy()
        for i in np.flatnonzero(done):
            after[i] = infos[i]["terminal_observation"]
        buffer.add(seen, after, action, reward, done, infos)
        seen = new
    return buffer, actions


def test_own_credit_is_what_each_decisions_request_earned(own: WrappedEnv) -> None:
    """Over two episodes; the second environment's share of rewards equals the environment's, which come late."""
    buffer, _ = filled(own, 2 * HORIZON + 10)
    resolved = buffer.resolved[: buffer.pos]
    # The last outcomes were read at the end of the second episode; what was open at an end stays open.
    assert resolved[: HORIZON // 4].all()
    assert resolved[HORIZON : HORIZON + HORIZON // 4].all()
    for end in (HORIZON, 2 * HORIZON):
        assert not resolved[end - 1].any()
    assert not resolved[2 * HORIZON + 8 :].any()
    # Of requests whose model is known, what is earned is that model's quality on one of the tasks, or nothing.
    quality = np.asarray(own.params.quality)
    for row in np.flatnonzero(resolved.all(axis=1)):
        for lane in range(2):
            model = buffer.actions[row, lane, 0]
            task = int(buffer.observations[row, lane, :4].argmax())
            assert buffer.rewards[row, lane] in (0.0, pytest.approx(quality[task, model], rel=1e-5))


def test_a_small_ring_is_joined_like_a_large_one(own: WrappedEnv) -> None:
    """Rows that were overwritten and episodes that ended do not mix up what is left."""
    large, _ = filled(own, 2 * HORIZON + 9)
    small, _ = filled(own, 2 * HORIZON + 9, size=2 * 30)
    assert small.full
    newest = np.arange(large.pos - 30, large.pos)
    rows = newest % 30
    np.testing.assert_array_equal(small.actions[rows], large.actions[newest])
    np.testing.assert_array_equal(small.resolved[rows], large.resolved[newest])
    np.testing.assert_array_equal(small.rewards[rows], large.rewards[newest])
    assert small.resolved.any()


def test_samples_are_settled_and_discounted_by_time(own: WrappedEnv) -> None:
    """Three-step returns by hand, over every start that is sampled."""
    buffer, _ = filled(own, HORIZON + 20, horizon_s=HORIZON_S, gamma=0.9, n_steps=3)
    buffer.observations[..., 0] = np.arange(buffer.observations[..., 0].size).reshape(-1, 2)  # to know them again
    np.random.seed(0)  # noqa: NPY002 (the generator that the library seeds)
    batch = buffer.sample(512)
    expected = {}
    for row in range(buffer.pos - 2):
        for lane in range(2):
            rewards, discount, known, last = 0.0, 1.0, True, row
            for k in range(3):
                last = row + k
                known &= bool(buffer.resolved[last, lane])
                rewards += discount * buffer.rewards[last, lane]
                discount *= buffer.discounts[last, lane]
                if buffer.dones[last, lane]:
                    break
            if known:
                following = buffer.next_observations[last, lane]
                expected[2 * row + lane] = (rewards, discount, following, buffer.actions[row, lane, 0])
    assert (buffer.discounts[: buffer.pos] < 0.9).all()
    assert batch.discounts is not None
    assert not batch.dones.any()
    starts = batch.observations[:, 0].numpy().astype(int).tolist()
    assert set(starts) == set(expected)
    assert len(expected) > 40
    for i, start in enumerate(starts):
        rewards, discount, following, action = expected[start]
        assert float(batch.rewards[i, 0]) == pytest.approx(rewards, rel=1e-5)
        assert float(batch.discounts[i, 0]) == pytest.approx(discount, rel=1e-5)
        np.testing.assert_array_equal(batch.next_observations[i].numpy(), following)
        assert int(batch.actions[i, 0]) == action


def test_without_own_credit_the_reward_of_the_step_stays(problem: WrappedEnv) -> None:
    buffer, _ = filled(problem, 12, own=False)
    assert buffer.resolved[:12].all()
    assert (buffer.rewards[:12] > 0).all()
    with pytest.raises(InputError, match=r"hardly any can be learned from.*make the environment with `credit='own'`"):
        filled(problem, 12)[0].sample(4)


@pytest.mark.parametrize("arguments", [{"n_steps": 0}, {"gamma": 1.5}, {"horizon_s": 0.0}, {"n_steps": 200}])
def test_numbers_out_of_range(problem: WrappedEnv, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="`n_steps` is"):
        filled(problem, 0, **arguments)


def problem_of(situation: Situation) -> TrainingProblem:
    """A problem under a light load, so that requests settle within a few decisions."""
    problem = make_training_problem(situation, TrainingConfig())
    return dataclasses.replace(problem, workload=synthetic(situation, Poisson(20.0)))


@pytest.fixture(scope="module")
def trained(situation: Situation) -> tuple[DQN, TrainingProblem]:
    problem = problem_of(situation)
    env = ServingVecEnv(2, wrap_env(problem, credit="own", horizon=HORIZON, history=256), outcomes_every=8)
    model = DQN(
        "MlpPolicy",
        env,
        learning_starts=100,
        train_freq=4,
        batch_size=16,
        replay_buffer_class=ServingReplayBuffer,
        replay_buffer_kwargs={"horizon_s": HORIZON_S},
        policy_kwargs={"net_arch": [16, 8]},
        seed=0,
        device="cpu",
    )
    return model.learn(400), problem


def test_a_trained_network_is_exactly_our_policy(trained: tuple[DQN, TrainingProblem], tmp_path: Any) -> None:
    """Same Q-values on its observations, and after the way through a file."""
    model, problem = trained
    save_policy(dqn_policy(model, problem, {"steps": 400}), tmp_path / "dqn.safetensors")
    policy = load_policy(tmp_path / "dqn.safetensors")
    assert policy.training == {"library": "stable-baselines3", "steps": 400}
    buffer = model.replay_buffer
    assert buffer is not None
    inputs = buffer.observations[:100, 0]
    theirs = model.policy.q_net(buffer.to_torch(inputs)).detach().numpy()
    hidden = inputs
    for i, (kernel, bias) in enumerate(policy.weights):
        hidden = hidden @ kernel + bias
        hidden = np.maximum(hidden, 0) if i < len(policy.weights) - 1 else hidden
    np.testing.assert_allclose(hidden, theirs, rtol=1e-5, atol=1e-5)


def test_a_model_plays_as_its_policy_does(trained: tuple[DQN, TrainingProblem]) -> None:
    """The model asked at every decision, and its weights in our router, on the same lists in one compiled program."""
    model, problem = trained
    torch.manual_seed(0)
    for parameter in model.policy.q_net.parameters():  # so that choices differ more than after a few steps of training
        (nn.init.normal_ if parameter.ndim > 1 else nn.init.zeros_)(parameter)
    situation = problem.situation
    lists = [sample_workload(problem.workload, situation.task_names, 200, seed) for seed in range(2)]
    asked = HostRouter(predicting(model, problem.features))
    ours = learned_router(dqn_policy(model, problem))
    played = play_routers(situation, lists, {"asked": [asked] * 2, "ours": [ours] * 2})
    np.testing.assert_array_equal(played["asked"].model, played["ours"].model)
    np.testing.assert_array_equal(played["asked"].reward, played["ours"].reward)
    assert len(np.unique(played["asked"].model)) > 1


def test_other_networks_are_refused(situation: Situation, problem: WrappedEnv) -> None:
    env = ServingVecEnv(2, problem)
    tanh = DQN("MlpPolicy", env, policy_kwargs={"activation_fn": nn.Tanh}, device="cpu", buffer_size=10)
    with pytest.raises(InputError, match="train `DQN"):
        dqn_weights(tanh)
