"""A DQN as the loops of purejaxrl have it, on any gymnax 1.0 environment: one scan, from acting to learning.

Written after `purejaxrl/dqn.py` (Lu et al.), whose released form does not run on gymnax 1.0, and kept as plain as that:
a flat replay buffer, one transition per environment and step, one update per step, epsilon-greedy with one linear
schedule, a target network that follows. Mended are what would be unfair to it: a time limit is not an end, and the
environments' random numbers differ from the network's. What it takes from serving is the discount by time.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings, named as in purejaxrl where it has them; hashable.

    Attributes:
      hidden: width of each hidden layer.
      num_envs: environments that step together.
      buffer_size: transitions that are kept.
      batch_size: transitions per update.
      total_timesteps: decisions over all environments.
      learning_starts: decisions before the first update.
      epsilon_start, epsilon_finish: share of random decisions at the start and at the end of its fall.
      epsilon_anneal_time: decisions over which it falls, linearly.
      lr: learning rate of Adam; falls linearly to 0 over `total_timesteps`.
      tau: share of the network that the target takes over at each update.
      horizon_s: the value of what comes t seconds later counts `exp(-t / horizon_s)`.
    """

    hidden: tuple[int, ...] = (64, 64)
    num_envs: int = 128
    buffer_size: int = 131_072
    batch_size: int = 512
    total_timesteps: int = 4_000_000
    learning_starts: int = 16_384
    epsilon_start: float = 1.0
    epsilon_finish: float = 0.05
    epsilon_anneal_time: int = 500_000
    lr: float = 1e-3
    tau: float = 0.005
    horizon_s: float = 0.25


class QNetwork(nn.Module):
    """Multi-layer perceptron with ReLU between layers."""

    hidden: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.action_dim)(x)


class Transition(NamedTuple):
    """One decision; fields have the leading axis (buffer_size,)."""

    observation: Any
    action: Any
    reward: Any
    next_observation: Any
    discount: Any


class Runner(NamedTuple):
    """Everything that the loop carries; `steps` counts decisions of one environment."""

    params: Any
    target: Any
    optimiser: Any
    env_state: Any
    observation: Array
    buffer: Transition
    steps: Array
    key: Array


def optimiser(settings: Settings) -> optax.GradientTransformation:
    """Adam with a falling learning rate."""
    updates = settings.total_timesteps // settings.num_envs
    return optax.adam(optax.linear_schedule(settings.lr, 0.0, updates))


@partial(jax.jit, static_argnames=("env", "settings"))
def start(env: Any, env_params: Any, settings: Settings, key: Array) -> Runner:
    """The loop before its first decision."""
    key, network_key, env_key = jax.random.split(key, 3)
    keys = jax.random.split(env_key, settings.num_envs)
    observation, env_state = jax.vmap(env.reset, in_axes=(0, None))(keys, env_params)
    params = QNetwork(settings.hidden, env.num_actions).init(network_key, observation[0])
    size = settings.buffer_size
    wide = jnp.zeros((size, *observation.shape[1:]))
    buffer = Transition(wide, jnp.zeros(size, jnp.int32), jnp.zeros(size), wide, jnp.zeros(size))
    return Runner(params, params, optimiser(settings).init(params), env_state, observation, buffer, jnp.int32(0), key)


@partial(jax.jit, static_argnames=("env", "settings", "steps"), donate_argnames="runner")
def proceed(env: Any, env_params: Any, settings: Settings, steps: int, runner: Runner) -> tuple[Runner, Array]:
    """`steps` decisions of every environment, with an update after each; also the mean of what they paid."""
    network = QNetwork(settings.hidden, env.num_actions)
    rate = optimiser(settings)

    def values(params: Any, observation: Array) -> Array:
        return jnp.asarray(network.apply(params, observation))

    def update(params: Any, target: Any, state: Any, batch: Transition) -> tuple[Any, Any, Any]:
        def loss(params: Any) -> Array:
            q = jnp.take_along_axis(values(params, batch.observation), batch.action[:, None], axis=1)[:, 0]
            best = values(target, batch.next_observation).max(axis=1)
            return jnp.mean((q - jax.lax.stop_gradient(batch.reward + batch.discount * best)) ** 2)

        updates, state = rate.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return params, optax.incremental_update(params, target, settings.tau), state

    def step(runner: Runner, _: None) -> tuple[Runner, Array]:
        key, explore_key, action_key, step_key, sample_key = jax.random.split(runner.key, 5)
        envs = settings.num_envs
        decided = runner.steps * envs
        progress = jnp.clip(decided / settings.epsilon_anneal_time, 0.0, 1.0)
        epsilon = settings.epsilon_start + progress * (settings.epsilon_finish - settings.epsilon_start)
        explore = jax.random.uniform(explore_key, (envs,)) < epsilon
        random = jax.random.randint(action_key, (envs,), 0, env.num_actions)
        greedy = values(runner.params, runner.observation).argmax(axis=1)
        action = jnp.where(explore, random, greedy.astype(random.dtype))
        keys = jax.random.split(step_key, envs)
        observation, env_state, reward, terminated, _, info = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
            keys, runner.env_state, action, env_params
        )
        left = jnp.where(terminated, 0.0, jnp.exp(-info["gap_s"] / settings.horizon_s))
        seen = Transition(runner.observation, action, reward, info["final_observation"], left)
        at = decided % settings.buffer_size
        buffer = jax.tree.map(
            lambda kept, new: jax.lax.dynamic_update_slice_in_dim(kept, new, at, axis=0), runner.buffer, seen
        )
        filled = jnp.minimum(decided + envs, settings.buffer_size)
        rows = jax.random.randint(sample_key, (settings.batch_size,), 0, filled)
        old = (runner.params, runner.target, runner.optimiser)
        params, target, optimiser_state = jax.lax.cond(
            decided >= settings.learning_starts,
            lambda: update(*old, jax.tree.map(lambda kept: kept[rows], buffer)),
            lambda: old,
        )
        steps = runner.steps + 1
        return Runner(params, target, optimiser_state, env_state, observation, buffer, steps, key), reward.mean()

    runner, paid = jax.lax.scan(step, runner, None, steps)
    return runner, paid.mean()


def weights_of(params: Any) -> tuple[tuple[Any, Any], ...]:
    """Per layer matrix and bias, as a policy of ours holds them."""
    layers = params["params"]
    return tuple((layers[f"Dense_{i}"]["kernel"], layers[f"Dense_{i}"]["bias"]) for i in range(len(layers)))
