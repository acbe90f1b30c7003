"""Loss and gradient step against the same written in NumPy."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from besteffort.learning import double_dqn
from besteffort.learning.config import DQNConfig, DQNHyperparams
from besteffort.learning.network import Baseline, Networks, QNetwork, Variables, from_weights, to_weights
from besteffort.learning.replay_buffer import Batch

NETWORKS = Networks(QNetwork((), 2), Baseline((True, True)))
PLAIN = DQNConfig(loss="l2", baseline=False)
HYPER = DQNHyperparams(discount=0.5, huber_delta=1.0)


def linear_network(matrix: list[list[float]]) -> Variables:
    """Variables of a network without hidden layers: one-hot features pick a row of Q-values."""
    baseline = NETWORKS.baseline.init(jax.random.key(0), jnp.zeros((1, 2)))
    return Variables(from_weights(((np.array(matrix, np.float32), np.zeros(2, np.float32)),), 2, NETWORKS.q), baseline)


ONLINE = linear_network([[1.0, 2.0], [5.0, 4.0]])
TARGET = linear_network([[0.0, 0.0], [10.0, 20.0]])
BATCH = Batch(
    features=jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
    next_features=jnp.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]),
    action=jnp.array([0, 1, 1]),
    reward=jnp.array([0.5, 0.5, -1.0]),
    baseline=jnp.zeros(3),
    returns=jnp.array([0.5, 0.5, -1.0]),
    discount=jnp.array([0.5, 0.0, 0.5]),
    weight=jnp.array([1.0, 1.0, 0.0]),
)
# Online picks action 0 in state 1, target values it at 10: 0.5 + 0.5 x 10 - 1 = 4.5; terminated: 0.5 - 2 = -1.5.
ERRORS = np.array([4.5, -1.5])


@pytest.mark.parametrize(
    ("kind", "costs"), [("l2", 0.5 * ERRORS**2), ("huber", np.abs(ERRORS) - 0.5)], ids=["l2", "huber"]
)
def test_loss_is_the_mean_over_what_counts(kind: Any, costs: np.ndarray) -> None:
    cost, taken = double_dqn.loss(ONLINE, TARGET, BATCH, NETWORKS, dataclasses.replace(PLAIN, loss=kind), HYPER)
    np.testing.assert_allclose(cost, costs.mean(), rtol=1e-6)
    np.testing.assert_allclose(taken, (1.0 + 2.0) / 2, rtol=1e-6)


def test_gradient_reaches_the_chosen_action_only() -> None:
    gradient = jax.grad(lambda online: double_dqn.loss(online, TARGET, BATCH, NETWORKS, PLAIN, HYPER)[0])
    layer = gradient(ONLINE).q["params"]["Dense_0"]
    # By Q-value: -4.5 / 2 and 1.5 / 2. Of the value their sum, of the advantages what differs from their mean.
    expected = [-1.5, -1.5, 1.5]
    np.testing.assert_allclose(layer["kernel"], [expected, [0.0, 0.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(layer["bias"], expected, rtol=1e-6)


def test_baseline_regresses_on_the_reward() -> None:
    config = dataclasses.replace(PLAIN, baseline=True)
    plain, _ = double_dqn.loss(ONLINE, TARGET, BATCH, NETWORKS, PLAIN, HYPER)
    cost, _ = double_dqn.loss(ONLINE, TARGET, BATCH, NETWORKS, config, HYPER)
    error = np.array([0.5, 0.5]) - np.asarray(NETWORKS.baseline.apply(ONLINE.baseline, BATCH.features))[:2]
    np.testing.assert_allclose(cost - plain, (0.5 * error**2).mean(), rtol=1e-5)


def test_nothing_that_counts_gives_no_gradient() -> None:
    batch = BATCH._replace(weight=jnp.zeros(3))
    learner = double_dqn.start(ONLINE, HYPER)
    after, (cost, _) = double_dqn.step(learner, batch, jnp.array(0.1), jnp.array(True), NETWORKS, PLAIN, HYPER)
    assert cost == 0
    np.testing.assert_array_equal(to_weights(after.online.q)[0][0], to_weights(ONLINE.q)[0][0])


@pytest.mark.parametrize(("sync", "tau", "share"), [(False, 1.0, 0.0), (True, 1.0, 1.0), (True, 0.25, 0.25)])
def test_step_is_adam_and_then_the_target(sync: bool, tau: float, share: float) -> None:
    hyper = DQNHyperparams(discount=0.5, tau=tau, max_grad_norm=1.0)
    learner = double_dqn.Learner(ONLINE, TARGET, double_dqn.optimiser(hyper).init(ONLINE))
    after, _ = double_dqn.step(learner, BATCH, jnp.array(0.1), jnp.array(sync), NETWORKS, PLAIN, hyper)
    gradient = jax.grad(lambda online: double_dqn.loss(online, TARGET, BATCH, NETWORKS, PLAIN, hyper)[0])
    ours = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    update, _ = ours.update(gradient(ONLINE), ours.init(ONLINE))
    expected = to_weights(optax.apply_updates(ONLINE, update).q)[0][0]
    np.testing.assert_allclose(to_weights(after.online.q)[0][0], expected, rtol=1e-6)
    old = to_weights(TARGET.q)[0][0]
    np.testing.assert_allclose(to_weights(after.target.q)[0][0], old + share * (expected - old), rtol=1e-6)


@pytest.mark.parametrize("power", [0.0, 3.0])
def test_average_weighs_the_t_th_by_a_power_of_t(power: float) -> None:
    values = np.array([5.0, -1.0, 2.0, 7.0])
    average = jnp.array(100.0)  # What was there before the first does not count.
    for count, value in enumerate(values, start=1):
        average = double_dqn.averaged(average, jnp.array(value), jnp.array(count), jnp.array(power))
    # (t + power - 1 choose power), the discrete counterpart of t**power.
    weights = {0.0: np.ones(4), 3.0: np.array([1.0, 4.0, 10.0, 20.0])}[power]
    np.testing.assert_allclose(average, (weights * values).sum() / weights.sum(), rtol=1e-6)


def test_a_large_power_keeps_the_latest() -> None:
    average = double_dqn.averaged(jnp.array(1.0), jnp.array(3.0), jnp.array(50), jnp.array(1e9))
    np.testing.assert_allclose(average, 3.0, rtol=1e-6)
