"""Learned Q-values equal those that follow from a few lines of algebra."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from probes import CONFIG, HYPER, probe, q_values

from besteffort.learning import DQNConfig, DQNHyperparams, train

END = [True, True]
TURNS = [1, 0]
CREDIT = [[1.0, 0.0], [-2.0, 0.5]]
# V0 = 1 + V1 / 2 and V1 = 1/2 + V0 / 2, so V0 = 5/3 and V1 = 4/3; Q = own reward + half the value of the other state.
CREDIT_Q = [[1 + 2 / 3, 2 / 3], [-2 + 5 / 6, 1 / 2 + 5 / 6]]

CASES: dict[str, tuple[dict[str, Any], list[list[float]]]] = {
    "constant reward, one step": (
        {"reward": [[1.0, 1.0], [1.0, 1.0]], "terminal": END},
        [[1.0, 1.0], [1.0, 1.0]],
    ),
    "two actions, one step": (
        {"reward": [[-1.0, 1.0], [-1.0, 1.0]], "terminal": END},
        [[-1.0, 1.0], [-1.0, 1.0]],
    ),
    "reward depends on the observation": (
        {"reward": [[1.0, 0.0], [-2.0, 0.5]], "terminal": END},
        [[1.0, 0.0], [-2.0, 0.5]],
    ),
    "the second step's reward reaches the first, discounted": (
        {"reward": [[0.0, 0.0], [1.0, -1.0]], "follows": TURNS, "terminal": [False, True]},
        [[0.5, 0.5], [1.0, -1.0]],
    ),
    "the first step's own reward adds to the discounted best of the second": (
        {"reward": [[0.25, -0.25], [1.0, -1.0]], "follows": TURNS, "terminal": [False, True]},
        [[0.75, 0.25], [1.0, -1.0]],
    ),
    "no end": ({"reward": CREDIT, "follows": TURNS}, CREDIT_Q),
    "rewards five decisions late belong to their own request": (
        {"reward": CREDIT, "follows": TURNS, "delay": 5},
        CREDIT_Q,
    ),
    "rewards later than a chunk": ({"reward": CREDIT, "follows": TURNS, "delay": 21}, CREDIT_Q),
    "history shorter than the ring": ({"reward": CREDIT, "follows": TURNS, "delay": 5, "history": 24}, CREDIT_Q),
    "truncation within a chunk is not the end": ({"reward": CREDIT, "follows": TURNS, "horizon": 5}, CREDIT_Q),
    "truncation with a chunk, rewards late": (
        {"reward": CREDIT, "follows": TURNS, "horizon": 16, "delay": 5},
        CREDIT_Q,
    ),
    "termination is the end": (
        {"reward": CREDIT, "follows": TURNS, "terminal": [False, True]},
        [[1 + 1 / 4, 1 / 4], [-2.0, 1 / 2]],
    ),
}


def learn(config: DQNConfig, hyper: DQNHyperparams, runs: int = 2, **arguments: Any) -> list[np.ndarray]:
    """Q-values, (states, actions), of each run on a probe; probes of one size and history share a compiled program."""
    env, table, features = probe(**arguments)
    trained = train(env, table, features, config, hyper, jax.random.split(jax.random.key(0), runs))
    return [q_values(weights, features[0].size) for weights in trained.weights]


@pytest.mark.parametrize("name", CASES)
def test_learned_q_values_equal_the_known_ones(name: str) -> None:
    arguments, known = CASES[name]
    for values in learn(CONFIG, HYPER, **arguments):
        np.testing.assert_allclose(values, known, atol=5e-3)


def test_random_next_state_gives_the_mean_of_its_values() -> None:
    config = dataclasses.replace(CONFIG, buffer_length=512, decisions=32_768)
    # V = mean of the best rewards, 3/4, over 1 - discount; what is left is the noise of the states drawn.
    np.testing.assert_allclose(
        learn(config, HYPER, runs=1, reward=CREDIT, history=512)[0], [[1.75, 0.75], [-1.25, 1.25]], atol=2e-2
    )


def test_huber_loss_has_the_same_fixed_point() -> None:
    config = dataclasses.replace(CONFIG, loss="huber")
    np.testing.assert_allclose(learn(config, HYPER, reward=CREDIT, follows=TURNS)[0], CREDIT_Q, atol=5e-3)


def test_soft_target_updates_have_the_same_fixed_point() -> None:
    hyper = dataclasses.replace(HYPER, tau=0.5, target_interval=32)
    np.testing.assert_allclose(learn(CONFIG, hyper, reward=CREDIT, follows=TURNS)[0], CREDIT_Q, atol=5e-3)


@pytest.mark.parametrize("name", CASES)
def test_runs_of_several_decisions_have_the_same_fixed_point(name: str) -> None:
    arguments, known = CASES[name]
    config = dataclasses.replace(CONFIG, n_step=4)
    np.testing.assert_allclose(learn(config, HYPER, **arguments)[0], known, atol=5e-3)


def test_marginal_credit_is_known_at_once() -> None:
    config = dataclasses.replace(CONFIG, credit="marginal")
    # Own rewards resolve too late to be seen by the ring; credit here is the same number.
    values = learn(config, HYPER, reward=CREDIT, follows=TURNS, delay=64)
    np.testing.assert_allclose(values[0], CREDIT_Q, atol=5e-3)


@pytest.mark.parametrize("run", [1, 4])
def test_time_discounts_the_future(run: int) -> None:
    # Gaps of ln 2 horizons halve the value.
    config = dataclasses.replace(CONFIG, n_step=run)
    hyper = dataclasses.replace(HYPER, discount=1.0, horizon_s=0.1)
    values = learn(config, hyper, reward=CREDIT, follows=TURNS, gap_s=0.1 * np.log(2.0))
    np.testing.assert_allclose(values[0], CREDIT_Q, atol=5e-3)


@pytest.mark.parametrize("run", [1, 4])
def test_a_baseline_moves_all_actions_alike(run: int) -> None:
    config = dataclasses.replace(CONFIG, baseline=True, n_step=run, batch_size=256, decisions=65_536)
    # The baseline moves while it learns, so that both take longer to settle.
    hyper = dataclasses.replace(HYPER, learning_rate_decay=config.decisions)
    values = learn(config, hyper, runs=1, reward=CREDIT, follows=TURNS)[0]
    # Less tight: the ring holds baselines of when the decisions were made.
    np.testing.assert_allclose(values[:, 0] - values[:, 1], np.subtract(*np.transpose(CREDIT_Q)), atol=3e-2)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("run", [1, 4])
def test_the_future_is_worth_what_a_policy_may_choose(run: int, *, double: bool) -> None:
    config = dataclasses.replace(CONFIG, n_step=run, double=double)
    # In the first state the better action is closed, so V0 = V1 / 2 and V1 = 1/2 + V0 / 2: V0 = 1/3 and V1 = 2/3.
    closed = [[False, True], [True, True]]
    values = learn(config, HYPER, runs=1, reward=CREDIT, follows=TURNS, takes=closed)[0]
    np.testing.assert_allclose(values, [[1 + 1 / 3, 1 / 3], [-2 + 1 / 6, 1 / 2 + 1 / 6]], atol=5e-3)


def test_discount_may_differ_between_runs_that_train_together() -> None:
    # The same in both states, so that the value is the sum of a geometric series.
    for discounts in ((0.0, 0.25), (0.25, 0.5)):
        hyper = dataclasses.replace(HYPER, discount=np.array(discounts))
        values = learn(CONFIG, hyper, reward=[[1.0, 1.0]] * 2)
        np.testing.assert_allclose([q[0, 0] for q in values], 1 / (1 - np.array(discounts)), atol=5e-3)
