"""The buffer against a plain list of decisions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.learning import replay_buffer
from besteffort.learning.replay_buffer import ReplayBuffer, Rows
from besteffort.simulator.types import Outcomes

ENVS, CHUNK, LENGTH = 3, 4, 12


def rows_at(start: int) -> Rows:
    """Rows whose features say when and where: `[time, env]`."""
    time, env = np.meshgrid(np.arange(start, start + CHUNK), np.arange(ENVS), indexing="ij")
    return Rows(
        features=jnp.asarray(np.stack([time, env], -1), float),
        action=jnp.asarray(time % 2, jnp.int32),
        discount=jnp.ones((CHUNK, ENVS)),
        explored=jnp.zeros((CHUNK, ENVS), bool),
        baseline=jnp.zeros((CHUNK, ENVS)),
        valid=jnp.asarray(time % 5 != 4),
    )


def filled(chunks: int, history: int = 64, delay: int = 0) -> ReplayBuffer:
    """A buffer after some chunks; decision `d` of env `e` earns `10 d + e`, known once `delay` more are made."""
    buffer = replay_buffer.empty(LENGTH, rows_at(0), jnp.float32)
    for start in range(0, chunks * CHUNK, CHUNK):
        buffer = replay_buffer.append(buffer, jnp.int32(start), rows_at(start))
        pending = start + CHUNK
        age = (pending - 1 - np.arange(history)) % history + 1
        decision = pending - age
        resolved = (decision >= 0) & (age > delay)
        reward = np.where(resolved, 10 * decision, 0)[None] + np.where(resolved, np.arange(ENVS)[:, None], 0)
        outcomes = Outcomes(jnp.asarray(reward, float), jnp.asarray(np.tile(resolved, (ENVS, 1))))
        buffer = replay_buffer.join(buffer, jnp.int32(pending), outcomes, jnp.full(ENVS, pending))
    return buffer


@pytest.mark.parametrize("chunks", [1, 2, 3, 7])
@pytest.mark.parametrize("history", [8, 9, 64])
@pytest.mark.parametrize("delay", [0, 3])
def test_every_row_gets_the_reward_of_its_own_decision(chunks: int, history: int, delay: int) -> None:
    buffer = jax.tree.map(np.asarray, filled(chunks, history, delay))
    made = chunks * CHUNK
    for slot in range(LENGTH):
        decision = max((d for d in range(made) if d % LENGTH == slot), default=None)
        for env in range(ENVS):
            if decision is None or made - decision <= delay:
                assert not buffer.resolved[slot, env]
            else:
                assert buffer.resolved[slot, env]
                assert buffer.reward[slot, env] == 10 * decision + env


def test_outcomes_that_left_the_history_stay_unknown() -> None:
    buffer = filled(3, history=8, delay=7)
    assert not buffer.resolved.any()


def test_an_episode_does_not_touch_the_rows_of_the_one_before() -> None:
    buffer = filled(2)._replace(resolved=jnp.zeros((LENGTH, ENVS), bool))
    known = Outcomes(jnp.full((ENVS, 64), 7.0), jnp.ones((ENVS, 64), bool))
    buffer = replay_buffer.join(buffer, jnp.int32(8), known, jnp.array([0, 2, 8]))
    np.testing.assert_array_equal(buffer.resolved[:8].sum(0), [0, 2, 8])
    assert buffer.resolved[6:8, 1].all()


@pytest.mark.parametrize("chunks", [1, 2, 3, 8])
@pytest.mark.parametrize("min_age", [0, 3])
def test_samples_are_uniform_over_what_has_a_successor(chunks: int, min_age: int) -> None:
    made = chunks * CHUNK
    batch = replay_buffer.sample(filled(chunks), jnp.int32(made), jax.random.key(0), (20_000,), min_age=min_age)
    time, env = np.asarray(batch.features).T
    oldest, newest = max(0, made - LENGTH), made - 1 - max(1, min_age)
    if newest < oldest:
        assert not batch.weight.any()
        return
    known = np.asarray(batch.weight) > 0
    assert set(zip(time[known], env[known], strict=True)) == {
        (t, e) for t in range(oldest, newest + 1) for e in range(ENVS) if t % 5 != 4
    }
    np.testing.assert_array_equal(known, time % 5 != 4)
    np.testing.assert_array_equal(batch.next_features[known], np.stack([time + 1, env], -1)[known])
    np.testing.assert_array_equal(batch.reward, 10 * time + env)
    np.testing.assert_array_equal(batch.action, time % 2)
    counts = np.bincount(((time - oldest) * ENVS + env).astype(int), minlength=(newest - oldest + 1) * ENVS)
    expected = 20_000 / len(counts)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_runs_stop_at_random_choices_ends_and_their_length() -> None:
    random = np.random.default_rng(0)
    buffer = filled(3)
    rows = buffer.rows._replace(
        explored=jnp.asarray(random.random((LENGTH, ENVS)) < 0.3),
        discount=jnp.asarray(np.where(random.random((LENGTH, ENVS)) < 0.2, 0.0, 0.9), jnp.float32),
        baseline=jnp.asarray(random.normal(size=(LENGTH, ENVS)), jnp.float32),
        valid=jnp.asarray(random.random((LENGTH, ENVS)) < 0.9),
    )
    buffer = buffer._replace(rows=rows)
    batch = replay_buffer.sample(buffer, jnp.int32(LENGTH), jax.random.key(0), (500,), discount=0.8, length=4)
    rows, batch = jax.tree.map(np.asarray, (rows, batch))
    seen = set()
    for i, (time, env) in enumerate(batch.features.astype(int)):
        returns, left, known, end = 0.0, 1.0, True, time
        while True:
            returns += left * (10 * end + env - float(rows.baseline[end, env]))
            left *= 0.8 * float(rows.discount[end, env])
            known &= bool(rows.valid[end, env])
            end += 1
            if left == 0 or end - time == 4 or rows.explored[end, env]:
                break
        np.testing.assert_allclose(batch.returns[i], returns, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(batch.discount[i], left, rtol=1e-5)
        assert bool(batch.weight[i]) == known
        assert batch.next_features[i].tolist() == [end, env]
        seen.add(end - time)
    assert seen == {1, 2, 3, 4}


def test_lost_counts_what_is_overwritten_unresolved() -> None:
    assert replay_buffer.lost(filled(2), jnp.int32(8), CHUNK) == 0
    assert replay_buffer.lost(filled(3, delay=20), jnp.int32(12), CHUNK) == 1
    assert replay_buffer.lost(filled(3), jnp.int32(12), CHUNK) == 0
