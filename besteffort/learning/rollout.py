"""Acting: all environments make a rollout of decisions with an epsilon-greedy network."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from besteffort.estimates.encoding import network_input
from besteffort.keys import straight
from besteffort.learning.config import DQNConfig
from besteffort.learning.network import Networks, Variables, q_values
from besteffort.learning.replay_buffer import Rows
from besteffort.observation import Feature, Observation
from besteffort.simulator.types import Environment, TimeStep, believed


class Actors(NamedTuple):
    """Environments between two rollouts.

    Attributes:
      env_state: states, with leading axis (envs,).
      timestep: last time step of each, with leading axis (envs,).
    """

    env_state: Any
    timestep: TimeStep


class Tally(NamedTuple):
    """Statistics of a rollout.

    Attributes:
      reward: () mean over decisions of their marginal credit, or where the environment has none of the reward resolved
        in the rollout; over a long time either is the performance.
      actions: (pools,) share of decisions for each pool.
    """

    reward: Array
    actions: Array


def reset(env: Environment, env_params: Any, envs: int, key: Key[Array, ""]) -> Actors:
    """Environments at their first decisions."""
    return Actors(*jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(key, envs), env_params))


def read(observation: Observation, features: tuple[Feature, ...], env_params: Any) -> Float[Array, "envs features"]:
    """Network inputs of observations with leading axis (envs,); estimates among them follow what is believed.

    Raises:
      InputError: if a feature needs the requests in flight, and the environment does not show them.
    """
    return jax.vmap(lambda one: network_input(one, features, believed(env_params), jnp))(observation)


def collect(
    env: Environment,
    env_params: Any,
    features: tuple[Feature, ...],
    networks: Networks,
    config: DQNConfig,
    variables: Variables,
    actors: Actors,
    horizon_s: Float[Array, ""],
    epsilon: Float[Array, "chunk envs"],
    key: Key[Array, ""],
) -> tuple[Actors, Rows, Array | None, Bool[Array, " envs"], Tally]:
    """Makes a rollout of decisions in every environment; each is random with its probability `epsilon`.

    An environment whose episode ends continues to the end of the rollout, so that the outcomes of the episode can be
    read there, but those decisions are not valid and not counted. `restart` then begins a new episode. A horizon that
    is a multiple of the rollout's length wastes no decisions.

    Returns:
      The environments after the rollout, its decisions, their marginal credit where the environment returns it, which
      episodes have ended, and statistics.
    """
    network, baseline = networks
    shape = (config.rollout_length, config.num_envs)
    explore_key, action_key, step_key = jax.random.split(straight(key), 3)
    explore = jax.random.uniform(explore_key, shape) < epsilon
    random_action = jax.random.randint(action_key, shape, 0, env.shape.pools)

    def decide(
        carry: tuple[Actors, Array, Array], draws: tuple[Array, Array]
    ) -> tuple[tuple[Actors, Array, Array], Any]:
        (env_state, timestep), alive, key = carry
        explore, random_action = draws
        keys = jax.random.split(key, config.num_envs + 1)
        x = read(timestep.observation, features, env_params)
        values = q_values(network, variables.q, x)
        there = timestep.observation.open
        greedy = jnp.argmax(values if there is None else jnp.where(there, values, -jnp.inf), axis=-1)
        action = jnp.where(explore, random_action, greedy.astype(random_action.dtype))
        env_state, timestep = jax.vmap(env.step, in_axes=(0, 0, 0, None))(keys[1:], env_state, action, env_params)
        terminated = timestep.terminated
        rows = Rows(
            features=x,
            action=action,
            discount=_left(timestep, horizon_s, x.dtype),
            explored=action != greedy,
            baseline=cast(Array, baseline.apply(variables.baseline, x)) if config.baseline else jnp.zeros_like(x[:, 0]),
            valid=alive & (terminated | ~timestep.truncated),
            open=there,
        )
        # Credits come to the same, and are there without looking at every request in flight.
        reward = jnp.where(alive, timestep.reward if timestep.credit is None else timestep.credit, 0.0)
        alive_after = alive & ~terminated & ~timestep.truncated
        return (Actors(env_state, timestep), alive_after, keys[0]), (rows, timestep.credit, reward, alive)

    alive = jnp.ones(config.num_envs, bool)
    (actors, alive, _), (rows, credit, reward, lived) = jax.lax.scan(
        decide, (actors, alive, step_key), (explore, random_action)
    )
    pools = jnp.arange(env.shape.pools)
    chosen = lived[..., None] & (rows.action[..., None] == pools[None, None, :])
    return actors, rows, credit, ~alive, Tally(reward.sum() / lived.sum(), chosen.sum((0, 1)) / lived.sum())


def _left(timestep: TimeStep, horizon_s: Float[Array, ""], dtype: Any) -> Float[Array, " envs"]:
    """Discount of the value after `timestep`, for the time that the step to it took."""
    passed = 1.0 if timestep.gap_s is None else jnp.exp(-timestep.gap_s / horizon_s)
    return jnp.where(timestep.terminated, 0.0, passed).astype(dtype)


def restart(
    env: Environment, env_params: Any, actors: Actors, ended: Bool[Array, " envs"], key: Key[Array, ""]
) -> Actors:
    """Begins new episodes in the environments whose last episode has `ended`, (envs,)."""
    fresh = reset(env, env_params, ended.shape[0], key)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(ended.reshape(ended.shape + (1,) * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, fresh, actors)
