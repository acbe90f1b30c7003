"""The gymnax environment: its contract, and that it is the environment it wraps."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.adapters.wrapped import WrappedEnv, read

pytest.importorskip("gymnax")

from gymnax.wrappers.purerl import FlattenObservationWrapper, LogWrapper

from besteffort.adapters.gymnax import ServingGymnax

HORIZON = 40  # of the shared problem


def rollout(env: Any, key: jax.Array, steps: int, params: Any = None) -> dict[str, Any]:
    """What a compiled loop over random actions sees, with leading axis (steps,)."""
    params = env.default_params if params is None else params
    reset_key, loop_key = jax.random.split(key)

    @jax.jit
    def play(params: Any) -> dict[str, Any]:
        def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], dict[str, Any]]:
            observation, state = carry
            action_key, step_key = jax.random.split(key)
            action = jax.random.randint(action_key, (), 0, env.num_actions)
            observation, state, reward, terminated, truncated, info = env.step(step_key, state, action, params)
            seen = {"observation": observation, "reward": reward, "action": action, **info}
            return (observation, state), seen | {"terminated": terminated, "truncated": truncated}

        return jax.lax.scan(step, env.reset(reset_key, params), jax.random.split(loop_key, steps))[1]

    return jax.tree.map(np.asarray, play(params))


def test_a_purejaxrl_loop_with_its_wrappers(problem: WrappedEnv) -> None:
    env = LogWrapper(FlattenObservationWrapper(ServingGymnax(problem)))
    seen = rollout(env, jax.random.key(0), 2 * HORIZON + 5)
    assert not seen["terminated"].any()
    assert np.flatnonzero(seen["truncated"]).tolist() == [HORIZON - 1, 2 * HORIZON - 1]
    np.testing.assert_array_equal(seen["discount"], 1.0)
    # The observation after an end is the next episode's first, that of an empty cluster; the last one is told aside.
    after = seen["observation"][HORIZON - 1]
    assert not np.allclose(after, seen["final_observation"][HORIZON - 1])
    assert after[-1] == 0.0
    assert (after[4:7] == 0).all()
    others = np.ones(len(seen["truncated"]), bool)
    others[[HORIZON - 1, 2 * HORIZON - 1]] = False
    np.testing.assert_array_equal(seen["observation"][others], seen["final_observation"][others])
    assert seen["returned_episode_lengths"][-1] == HORIZON
    assert seen["returned_episode_returns"][HORIZON - 1] == pytest.approx(seen["reward"][:HORIZON].sum(), rel=1e-5)


def test_it_is_the_environment_that_it_wraps(problem: WrappedEnv) -> None:
    """Step by step, with the keys that gymnax's own `step` derives."""
    env = ServingGymnax(problem)
    params = env.default_params
    wrapped = problem.env
    observation, state = env.reset(jax.random.key(3), params)
    inner, timestep = jax.jit(wrapped.reset)(jax.random.key(3), problem.params)
    for k in range(8):
        np.testing.assert_allclose(observation, read(timestep.observation, problem.features, problem.params), rtol=1e-6)
        assert env.observation_space(params).contains(observation)
        action = jnp.int32(k % 3)
        observation, state, reward, _, _, info = env.step(jax.random.key(k), state, action, params)
        step_key, _ = jax.random.split(jax.random.key(k))
        inner, timestep = jax.jit(wrapped.step)(step_key, inner, action, problem.params)
        assert float(reward) == pytest.approx(float(timestep.credit))
        assert float(info["gap_s"]) == pytest.approx(float(timestep.gap_s))
        assert float(info["earned"]) == pytest.approx(float(timestep.reward))
        assert int(state.time) == k + 1
    outcomes = env.outcomes(state, params)
    assert outcomes.resolved.shape == (wrapped.shape.history,)
    assert env.action_space(params).n == env.num_actions == 3


def test_estimates_stay_within_their_bounds(seeing: WrappedEnv) -> None:
    env = ServingGymnax(seeing)
    seen = rollout(env, jax.random.key(1), 2 * HORIZON)["observation"]
    space = env.observation_space()
    assert (np.asarray(space.low) <= seen).all()
    assert (seen <= np.asarray(space.high)).all()
    assert len(np.unique(seen[:, -4])) > HORIZON  # prompts of many lengths; two origins and a weight follow


def test_numbers_are_vmapped(problem: WrappedEnv) -> None:
    """Quality of the largest model halved: the same actions earn less."""
    env = ServingGymnax(problem)
    params = env.default_params
    worse = dataclasses.replace(problem.params, quality=problem.params.quality.at[:, -1].mul(0.5))
    both = jax.tree.map(lambda a, b: jnp.stack([jnp.asarray(a), jnp.asarray(b)]), problem.params, worse)
    params = params.replace(serving=both, max_steps_in_episode=jnp.array([HORIZON, 8]))

    @jax.jit
    @jax.vmap
    def play(params: Any) -> tuple[jax.Array, jax.Array]:
        def step(state: Any, key: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            _, state, reward, _, truncated, _ = env.step(key, state, jnp.int32(2), params)
            return state, (reward, truncated)

        _, state = env.reset(jax.random.key(0), params)
        return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 10))[1]

    reward, truncated = play(params)
    np.testing.assert_allclose(reward[0, :8], 2 * reward[1, :8], rtol=1e-5)
    assert np.flatnonzero(truncated[1]).tolist() == [7]
    assert not truncated[0].any()


def test_an_endless_problem_never_ends(problem: WrappedEnv) -> None:
    endless = dataclasses.replace(problem.env, shape=dataclasses.replace(problem.env.shape, horizon=0))
    env = ServingGymnax(dataclasses.replace(problem, env=endless))
    seen = rollout(env, jax.random.key(0), 2 * HORIZON, env.default_params.replace(max_steps_in_episode=3))
    assert not seen["truncated"].any()
    np.testing.assert_array_equal(seen["observation"], seen["final_observation"])
