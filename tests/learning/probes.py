"""Probe environments: tiny decision processes, written as tables, whose Q-values are known in advance."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from besteffort.learning import DQNConfig, DQNHyperparams
from besteffort.observation import Feature, Observation
from besteffort.simulator.types import EnvShape, Outcomes, TimeStep

RANDOM = -1

ARGUMENTS: dict[str, Any] = {"reward": [[1.0, 0.0], [-2.0, 0.5]], "follows": [1, 0], "delay": 5}
"""A process to train on where any would do: two states in turns, rewards five decisions late."""

CONFIG = DQNConfig(
    hidden_sizes=(16,),
    num_envs=8,
    rollout_length=8,
    updates_per_rollout=8,
    batch_size=64,
    buffer_length=64,
    min_age=0,
    n_step=1,
    decisions=8_192,
    log_interval=32,
    loss="l2",
    baseline=False,
    credit="own",
    ensemble_size=1,
)
LONG = dataclasses.replace(CONFIG, decisions=131_072)
"""Long enough to be killed half-way."""

HYPER = DQNHyperparams.for_decisions(
    CONFIG.decisions,
    learning_rate=2e-2,
    learning_rate_end=1e-4,
    epsilon_decay=2_048,
    epsilon_end=0.3,
    epsilon_spread=0.0,
    discount=0.5,
    horizon_s=1.0,
    target_interval=64,
    tau=1.0,
    average_power=1e9,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Table:
    """A decision process.

    Attributes:
      reward: (states, actions).
      follows: (states,) next state or `RANDOM`.
      terminal: (states,) whether any action ends the episode.
      delay: () decisions until a reward is resolved.
      gap_s: () seconds between decisions; None for no time.
      horizon: () decisions until an episode is truncated; 0 for never. A number here, so that it is not compiled in.
      takes: (states, actions) which actions a policy may choose; None for all.
    """

    reward: Any
    follows: Any
    terminal: Any
    delay: Any
    gap_s: Any
    horizon: Any
    takes: Any = None


class ProbeState(NamedTuple):
    table_state: jax.Array
    index: jax.Array
    rewards: jax.Array


@dataclasses.dataclass(frozen=True)
class Probe:
    """A request's task is the state. A decision's reward is resolved once `delay` more decisions have been made."""

    shape: EnvShape
    version = "1"

    def reset(self, key: jax.Array, params: Table) -> tuple[ProbeState, TimeStep]:
        start = jnp.where(params.follows[0] == RANDOM, jax.random.randint(key, (), 0, self.shape.tasks), 0)
        state = ProbeState(start, jnp.int32(0), jnp.zeros(self.shape.history))
        return state, self._timestep(state, jnp.zeros(()), jnp.zeros((), bool), jnp.zeros(()), params)

    def step(self, key: jax.Array, state: ProbeState, action: jax.Array, params: Table) -> tuple[ProbeState, TimeStep]:
        now, history = state.table_state, self.shape.history
        rewards = state.rewards.at[state.index % history].set(params.reward[now, action])
        drawn = jax.random.randint(key, (), 0, self.shape.tasks)
        follows = jnp.where(params.follows[now] == RANDOM, drawn, params.follows[now])
        resolved_now = jnp.where(state.index >= params.delay, rewards[(state.index - params.delay) % history], 0.0)
        state = ProbeState(follows, state.index + 1, rewards)
        return state, self._timestep(state, resolved_now, params.terminal[now], params.reward[now, action], params)

    def outcomes(self, state: ProbeState, params: Table) -> Outcomes:
        history = self.shape.history
        age = (state.index - 1 - jnp.arange(history)) % history + 1
        resolved = (age <= state.index) & (age > params.delay) & (age < history)
        return Outcomes(jnp.where(resolved, state.rewards, 0.0), resolved)

    def _timestep(
        self, state: ProbeState, reward: jax.Array, terminated: jax.Array, credit: jax.Array, params: Table
    ) -> TimeStep:
        truncated = (params.horizon > 0) & (state.index >= params.horizon)
        zeros = jnp.zeros((1, self.shape.pools), jnp.int32)
        zero = jnp.zeros(())
        observation = Observation(state.table_state, zeros[0], zero, zeros, zero, zero)
        if params.takes is not None:
            observation = observation._replace(takes=params.takes[state.table_state][None], ready_s=zero)
        return TimeStep(observation, reward, terminated, truncated, state.index, credit, params.gap_s)


def probe(
    reward: list[list[float]],
    follows: list[int] | None = None,
    terminal: list[bool] | None = None,
    *,
    delay: int = 0,
    gap_s: float | None = None,
    horizon: int = 0,
    history: int = 64,
    takes: list[list[bool]] | None = None,
) -> tuple[Probe, Table, tuple[Feature, ...]]:
    """Environment, parameters and features; by default the next state is random and no state is terminal."""
    states, actions = len(reward), len(reward[0])
    shape = EnvShape(replicas=1, pools=actions, tasks=states, max_batch=1, queue_capacity=0, history=history)
    table = Table(
        reward=jnp.array(reward),
        follows=jnp.array([RANDOM] * states if follows is None else follows),
        terminal=jnp.array([False] * states if terminal is None else terminal),
        delay=jnp.int32(delay),
        gap_s=None if gap_s is None else jnp.array(gap_s),
        horizon=jnp.int32(horizon),
        takes=None if takes is None else jnp.array(takes),
    )
    return Probe(shape), table, (Feature("task", states, "one_hot"),)


def q_values(weights: Any, states: int) -> np.ndarray:
    """(states, actions) what a network with `weights` says, computed without JAX."""
    x = np.eye(states)
    for matrix, bias in weights[:-1]:
        x = np.maximum(x @ matrix + bias, 0)
    return x @ weights[-1][0] + weights[-1][1]
