"""The serving environment with the interface of gymnax 1.0, for training loops that are compiled as a whole.

    env = ServingGymnax("paper")
    params = env.default_params
    observation, state = env.reset(key, params)
    observation, state, reward, terminated, truncated, info = env.step(key, state, action, params)

`params.serving` are the numbers of the situation; any of them may be vmapped over.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces
from jaxtyping import Array

from besteffort.adapters.wrapped import Credit, WrappedEnv, read, wrap_env
from besteffort.runs.training import TrainingProblem
from besteffort.simulator.types import Outcomes, TimeStep

_NEVER = 2**31 - 1


@struct.dataclass
class ServingState(environment.EnvState):
    """State between two decisions.

    Attributes:
      time: number of the pending decision.
      serving: the environment's own state.
      observation: (features,) input of the network before the pending decision.
    """

    time: Any
    serving: Any
    observation: Any


@struct.dataclass
class ServingParams(environment.EnvParams):
    """Numbers, which support `vmap`.

    Attributes:
      max_steps_in_episode: decisions after which an episode truncates.
      serving: a `besteffort.simulator.types.EnvParams`.
    """

    max_steps_in_episode: Any = _NEVER
    serving: Any = None


class ServingGymnax(environment.Environment):
    """One decision per step; an episode never terminates, it truncates.

    `info` holds `discount` (always 1), `gap_s` (seconds since the last decision) and `earned` (rewards of the requests
    resolved meanwhile). For own-request credit, `outcomes` returns the rewards of the last decisions.

    Args:
      problem: the training problem, see `wrap_env`, which takes the other arguments. With `horizon` 0 no episode ends,
        whatever the params are, and a step does not compute a reset.

    Raises:
      InputError: as `wrap_env`.
    """

    def __init__(
        self,
        problem: WrappedEnv | TrainingProblem | str | Path = "paper",
        *,
        credit: Credit = "marginal",
        horizon: int = 16_384,
        history: int = 4_096,
    ) -> None:
        super().__init__()
        self.wrapped = wrap_env(problem, credit=credit, horizon=horizon, history=history)

    @property
    def default_params(self) -> ServingParams:
        return ServingParams(max_steps_in_episode=self.wrapped.env.shape.horizon or _NEVER, serving=self.wrapped.params)

    @partial(jax.jit, static_argnames="self")
    def step(
        self, key: Array, state: ServingState, action: Any, params: ServingParams | None = None
    ) -> tuple[Array, ServingState, Array, Array, Array, dict[str, Array]]:
        """Observation, state, reward, terminated, truncated, info; those of the next episode after the end of one."""
        if self.wrapped.env.shape.horizon:
            return super().step(key, state, action, params)
        observation, state, reward, terminated, info = self.step_env(key, state, action, params or self.default_params)
        truncated = jnp.zeros((), bool)
        ends = {"terminated": terminated, "truncated": truncated, "final_observation": observation}
        return observation, state, reward, terminated, truncated, info | ends

    def step_env(
        self, key: Array, state: ServingState, action: Any, params: ServingParams
    ) -> tuple[Array, ServingState, Array, Array, dict[str, Array]]:
        serving, timestep = self.wrapped.env.step(key, state.serving, jnp.asarray(action), params.serving)
        state = self._state(serving, timestep, params)
        info = {
            "discount": jnp.ones(()),
            "gap_s": jnp.zeros(()) if timestep.gap_s is None else timestep.gap_s,
            "earned": timestep.reward,
        }
        paid = timestep.credit if self.wrapped.credit == "marginal" else timestep.reward
        return state.observation, state, jnp.asarray(paid), timestep.terminated, info

    def reset_env(self, key: Array, params: ServingParams) -> tuple[Array, ServingState]:
        state = self._state(*self.wrapped.env.reset(key, params.serving), params)
        return state.observation, state

    def get_obs(self, state: ServingState, params: ServingParams | None = None, key: Array | None = None) -> Array:
        return state.observation

    def is_terminated(self, state: ServingState, params: ServingParams) -> Array:
        return jnp.zeros((), bool)

    def outcomes(self, state: ServingState, params: ServingParams) -> Outcomes:
        """Own-request rewards by decision, see `besteffort.simulator.environment.ServingEnvironment.outcomes`."""
        return self.wrapped.env.outcomes(state.serving, params.serving)

    @property
    def name(self) -> str:
        return "besteffort-Serving-v1"

    @property
    def num_actions(self) -> int:
        return self.wrapped.env.shape.pools

    def action_space(self, params: ServingParams | None = None) -> spaces.Discrete:
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: ServingParams | None = None) -> spaces.Box:
        """Bounds for the default parameters; qualities, weights and tables that are vmapped over may exceed them."""
        low, high = map(jnp.asarray, self.wrapped.bounds)
        return spaces.Box(low, high, high.shape, jnp.float32)

    def _state(self, serving: Any, timestep: TimeStep, params: ServingParams) -> ServingState:
        observation = read(timestep.observation, self.wrapped.features, params.serving)
        return ServingState(time=timestep.index, serving=serving, observation=observation)
