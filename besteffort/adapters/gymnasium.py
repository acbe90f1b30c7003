"""The serving environment for gymnasium: many environments in one compiled call, and a single one.

    import besteffort.adapters.gymnasium
    envs = gymnasium.make_vec("besteffort/Serving-v1", num_envs=64, problem="paper", credit="marginal")

Episodes never terminate, they truncate. Environment `i` of a vector environment with seed `s` is identical to a single
environment with seed `s + i`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from jaxtyping import Array

from besteffort.adapters.wrapped import Credit, WrappedEnv, read, wrap_env
from besteffort.errors import InputError, brief
from besteffort.observation import Feature
from besteffort.runs.training import TrainingProblem
from besteffort.simulator.types import Environment, Outcomes, TimeStep

ID = "besteffort/Serving-v1"
"""Name under which both are registered."""

_NOT_BEGUN = "The environment has not begun; call `reset` before `step`."


class View(NamedTuple):
    """A learner's view of the environments; fields have the leading axis (envs,).

    Attributes:
      observation: (envs, features) float32.
      reward: sum of the rewards of the requests resolved since the last decision.
      credit: credit of the last decision, see `TimeStep`; 0 where the environment does not return it.
      truncated: whether the episode has ended.
      index: number of the pending decision.
      gap_s: seconds since the last decision.
    """

    observation: Any
    reward: Any
    credit: Any
    truncated: Any
    index: Any
    gap_s: Any


class _Lane(NamedTuple):
    """An environment between two decisions: the data of its key, its state, and its last time step.

    It holds key data and not a key, because where an environment either steps or resets, both are computed from it.
    """

    key: Array
    state: Any
    timestep: TimeStep


class Lanes:
    """A batch of environments on the device, each with its own random numbers; NumPy in and out."""

    def __init__(self, problem: WrappedEnv, count: int) -> None:
        self.wrapped = problem
        self.count = count
        self._static = (problem.env, problem.features)
        self._lanes: _Lane | None = None

    def begin(self, seeds: Sequence[int | None]) -> View:
        """Begins new episodes in all environments; where the seed, of 64 bits, is None, random numbers continue."""
        keeps = np.array([seed is None for seed in seeds])
        wide = np.array([seed or 0 for seed in seeds], np.uint64)
        keys = _keys(wide.astype(np.uint32), (wide >> np.uint64(32)).astype(np.uint32))
        if keeps.any():
            keys = _choose(keeps, self._running.key, keys)
        self._lanes, view = _begin(self._static, self.wrapped.params, keys)
        return _to_numpy(view)

    def step(self, actions: np.ndarray) -> View:
        """Makes one decision in every environment.

        Raises:
          InputError: if an action is not the index of a model.
        """
        lanes = self._running
        self._lanes, view = _step(self._static, self.wrapped.params, lanes, self._checked(actions))
        return _to_numpy(view)

    def step_or_begin(self, actions: np.ndarray, begin: np.ndarray) -> View:
        """Begins a new episode in the environments where `begin`; makes one decision in all others."""
        lanes = self._running
        fresh = _begin(self._static, self.wrapped.params, lanes.key)
        stepped = _step(self._static, self.wrapped.params, lanes, self._checked(actions, begin))
        self._lanes, view = _choose(begin, fresh, stepped)
        return _to_numpy(view)

    def begin_where(self, begin: np.ndarray, view: View) -> View:
        """Begins a new episode in the environments where `begin`; `view` is the result of the last step."""
        lanes = self._running
        fresh = _begin(self._static, self.wrapped.params, lanes.key)
        self._lanes, view = _choose(begin, fresh, (lanes, view))
        return _to_numpy(view)

    def outcomes(self) -> Outcomes:
        """(envs, history) rewards of the last decisions, see `ServingEnvironment.outcomes`."""
        lanes = self._running
        return _to_numpy(_outcomes(self.wrapped.env, self.wrapped.params, lanes.state))

    @property
    def _running(self) -> _Lane:
        if self._lanes is None:
            raise gymnasium.error.ResetNeeded(_NOT_BEGUN)
        return self._lanes

    def _checked(self, actions: Any, ignored: np.ndarray | bool = False) -> np.ndarray:
        given = np.asarray(actions)
        models = self.wrapped.env.shape.pools
        fits = given.shape == (self.count,) and np.issubdtype(given.dtype, np.integer)
        if not fits or not (((given >= 0) & (given < models)) | ignored).all():
            raise InputError(
                f"The actions are {brief(given.tolist())}; give {self.count} whole numbers, indices from 0 to "
                f"{models - 1}."
            )
        return np.where(ignored, 0, given).astype(np.int32)


class ServingVectorEnv(gymnasium.vector.VectorEnv):
    """Many serving environments that step in one compiled call.

    `infos` hold per environment `index` (number of the pending decision), `gap_s` (seconds since the last one) and
    `earned` (rewards of the requests resolved meanwhile). If `credit` is `own`, they also hold `outcome_reward` and
    `outcome_resolved`, (num_envs, history), after every `outcomes_every` steps and at the end of an episode: the reward
    of each of the last decisions' own requests, decision `d` in slot `d % history`, when `outcome_index` was pending.

    Args:
      num_envs: number of environments.
      problem: the training problem, see `wrap_env`, which takes `credit`, `horizon` and `history`.
      autoreset_mode: `NEXT_STEP`, in which the step after the end of an episode begins a new one and ignores its
        action, or `SAME_STEP`, in which the step that ends an episode begins the next one and returns `final_obs` and
        `final_info`.
      outcomes_every: steps between two readings of the outcomes, each of which costs about as much as ten steps.

    Raises:
      InputError: if a number is out of range.
    """

    def __init__(
        self,
        num_envs: int = 1,
        problem: WrappedEnv | TrainingProblem | str | Path = "paper",
        *,
        credit: Credit = "marginal",
        horizon: int = 16_384,
        history: int = 4_096,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        outcomes_every: int = 256,
        render_mode: None = None,
    ) -> None:
        if num_envs < 1 or outcomes_every < 1:
            raise InputError(
                f"`num_envs` is {num_envs} and `outcomes_every` {outcomes_every}; give at least 1 of each."
            )
        mode = AutoresetMode(autoreset_mode)
        if mode is AutoresetMode.DISABLED:
            raise InputError("`autoreset_mode` is Disabled; choose NextStep or SameStep.")
        self.wrapped = wrap_env(problem, credit=credit, horizon=horizon, history=history)
        self.metadata = {"autoreset_mode": mode, "render_modes": []}
        self.render_mode = render_mode
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = spaces(self.wrapped)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._lanes = Lanes(self.wrapped, num_envs)
        self._outcomes_every = outcomes_every
        self._steps = 0
        self._seeded = False
        self._ended = np.zeros(num_envs, bool)

    def reset(
        self,
        *,
        seed: int | np.integer | Sequence[int | None] | np.ndarray | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins new episodes in all environments. There are no options.

        The random numbers of an environment without a seed continue; at the first reset they begin anywhere.

        Raises:
          InputError: on a seed that is no whole number from 0 to 2**64 - 1, a wrong number of seeds, or `reset_mask`
            among the options.
        """
        if options and "reset_mask" in options:
            raise InputError(
                "`options` has `reset_mask`, but all environments begin anew together; leave it out, since each also "
                "begins anew where its episode ends."
            )
        seeds = _seeds(seed, self.num_envs)
        super().reset(seed=None if np.ndim(seed) else seeds[0])  # type: ignore[arg-type]
        if not self._seeded and None in seeds:
            drawn = self.np_random.integers(2**32, size=self.num_envs).tolist()
            seeds = [other if one is None else one for one, other in zip(seeds, drawn, strict=True)]
        self._seeded = True
        self._ended = np.zeros(self.num_envs, bool)
        view = self._lanes.begin(seeds)
        return view.observation, _infos(view)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self._steps += 1
        if self._ended.any() and self.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
            view = self._lanes.step_or_begin(actions, self._ended)
        else:
            view = self._lanes.step(actions)
        self._ended = view.truncated.copy()  # callers may write into theirs
        reward = view.credit if self.wrapped.credit == "marginal" else view.reward
        terminated, ended = np.zeros(self.num_envs, bool), view.truncated
        extra: dict[str, Any] = {}
        if self.wrapped.credit == "own" and (self._steps % self._outcomes_every == 0 or ended.any()):
            reward_of, resolved = self._lanes.outcomes()
            extra = {"outcome_reward": reward_of, "outcome_resolved": resolved, "outcome_index": view.index}
        if ended.any() and self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            final = np.full(self.num_envs, None, dtype=object)
            for i in np.flatnonzero(ended):
                final[i] = view.observation[i]
            extra |= {"final_obs": final, "_final_obs": ended, "final_info": _infos(view, ended), "_final_info": ended}
            view = self._lanes.begin_where(ended, view)
        return view.observation, reward, terminated, ended, _infos(view) | extra


class ServingEnv(gymnasium.Env):
    """A single serving environment, with the arguments and `info` of `ServingVectorEnv`, which is far faster."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (as gymnasium has it)

    def __init__(
        self,
        problem: WrappedEnv | TrainingProblem | str | Path = "paper",
        *,
        credit: Credit = "marginal",
        horizon: int = 16_384,
        history: int = 4_096,
        outcomes_every: int = 256,
        render_mode: None = None,
    ) -> None:
        self._env = ServingVectorEnv(
            1, problem, credit=credit, horizon=horizon, history=history, outcomes_every=outcomes_every
        )
        self.wrapped = self._env.wrapped
        self.render_mode = render_mode
        self.observation_space = self._env.single_observation_space
        self.action_space = self._env.single_action_space

    def reset(
        self, *, seed: int | np.integer | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins a new episode. There are no options."""
        (own,) = _seeds(seed, 1)
        super().reset(seed=own)
        observation, infos = self._env.reset(seed=own)
        return observation[0], _only(infos)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, infos = self._env.step(np.asarray(action)[None])
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _only(infos)


def spaces(problem: WrappedEnv) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Discrete]:
    """Observation and action space of a single environment: a network's input, the index of a model."""
    return (
        gymnasium.spaces.Box(*problem.bounds, dtype=np.float32),
        gymnasium.spaces.Discrete(problem.env.shape.pools),
    )


def _infos(view: View, where: np.ndarray | None = None) -> dict[str, Any]:
    """Infos in gymnasium's format: arrays by name, and under `_name` whether each environment has the entry."""
    named = {"index": view.index, "gap_s": view.gap_s, "earned": view.reward}
    where = np.ones(len(view.index), bool) if where is None else where
    return named | {f"_{name}": where for name in named}


def _only(infos: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the first environment, without the masks."""
    return {name: values[0] for name, values in infos.items() if not name.startswith("_")}


def _to_numpy(tree: Any) -> Any:
    """Copies to NumPy: the next step may overwrite the device's arrays, and users may write into theirs."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).copy(), tree)


def _seeds(seed: Any, count: int) -> list[int | None]:
    """One seed, or None, for each environment: those given, or the one given and those after it.

    Raises:
      InputError: as `ServingVectorEnv.reset`.
    """
    listed = isinstance(seed, Sequence | np.ndarray) and np.ndim(seed) == 1
    given: list[Any] = list(seed) if listed else [seed]
    for one in given:
        if one is not None and (not isinstance(one, int | np.integer) or isinstance(one, bool)):
            raise InputError(f"The seed is {brief(one)}; give a whole number, or one for each environment.")
    several = [None if one is None else int(one) for one in given]
    if not listed:
        (first,) = several
        several = [None if first is None else first + i for i in range(count)]
    if len(several) != count:
        raise InputError(f"There are {len(several)} seeds for {count} environments; give one for each, or one for all.")
    if not all(one is None or 0 <= one < 2**64 for one in several):
        raise InputError(f"The seed is {brief(seed)}; give a whole number from 0 to 2**64 - 1.")
    return several


@jax.jit
def _keys(low: Array, high: Array) -> Array:
    """(envs, ...) key data of seeds in two words, uint32 each; the higher one, where it is 0, changes nothing."""

    def one(low: Array, high: Array) -> Array:
        short, long = jax.random.key(low), jax.random.fold_in(jax.random.clone(jax.random.key(low)), high)
        return jnp.where(high == 0, jax.random.key_data(short), jax.random.key_data(long))

    return jax.vmap(one)(low, high)


Static = tuple[Environment, tuple[Feature, ...]]


@partial(jax.jit, static_argnames="static")
def _begin(static: Static, params: Any, keys: Array) -> tuple[_Lane, View]:
    """First decisions of new episodes."""

    def one(data: Array) -> tuple[_Lane, View]:
        key, reset_key = jax.random.split(jax.random.wrap_key_data(data))
        state, timestep = static[0].reset(reset_key, params)
        return _Lane(jax.random.key_data(key), state, timestep), _view(static[1], params, timestep)

    return jax.vmap(one)(keys)


@partial(jax.jit, static_argnames="static", donate_argnames="lanes")
def _step(static: Static, params: Any, lanes: _Lane, actions: Array) -> tuple[_Lane, View]:
    def one(lane: _Lane, action: Array) -> tuple[_Lane, View]:
        key, step_key = jax.random.split(jax.random.wrap_key_data(lane.key))
        state, timestep = static[0].step(step_key, lane.state, action, params)
        return _Lane(jax.random.key_data(key), state, timestep), _view(static[1], params, timestep)

    return jax.vmap(one)(lanes, actions)


def _view(features: tuple[Feature, ...], params: Any, timestep: TimeStep) -> View:
    nothing = jnp.zeros(())
    return View(
        read(timestep.observation, features, params),
        timestep.reward,
        nothing if timestep.credit is None else timestep.credit,
        timestep.truncated,
        timestep.index,
        nothing if timestep.gap_s is None else timestep.gap_s,
    )


@jax.jit
def _choose(where: Array, yes: Any, no: Any) -> Any:
    """Selects `yes` or `no` for each environment."""

    def pick(one: Array, other: Array) -> Array:
        return jnp.where(where.reshape(where.shape + (1,) * (jnp.ndim(one) - 1)), one, other)

    return jax.tree.map(pick, yes, no)


@partial(jax.jit, static_argnames="env")
def _outcomes(env: Environment, params: Any, states: Any) -> Outcomes:
    return jax.vmap(env.outcomes, in_axes=(0, None))(states, params)


if ID not in gymnasium.registry:
    gymnasium.register(
        ID,
        entry_point="besteffort.adapters.gymnasium:ServingEnv",
        vector_entry_point="besteffort.adapters.gymnasium:ServingVectorEnv",
    )
