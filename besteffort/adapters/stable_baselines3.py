"""Stable-Baselines3 on the serving environment: a `VecEnv`, and a replay buffer that credits decisions with outcomes.

    env = ServingVecEnv(64, "paper", credit="own")
    model = DQN("MlpPolicy", env, replay_buffer_class=ServingReplayBuffer, replay_buffer_kwargs={"horizon_s": 0.25})
    model.learn(1_000_000)
    policy = dqn_policy(model, problem)

Here `problem` is a `besteffort.runs.training.TrainingProblem`, which may replace the configuration's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from besteffort.adapters.wrapped import Credit, WrappedEnv
from besteffort.errors import InputError
from besteffort.policy import Policy
from besteffort.runs.training import TrainingProblem, make_policy
from besteffort.weights import Weights

try:
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.type_aliases import ReplayBufferSamples
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise InputError("Stable-Baselines3 is not installed; run `pip install 'stable-baselines3>=2.7'`.") from error

from besteffort.adapters.gymnasium import ServingVectorEnv

_OUTCOMES = ("outcome_reward", "outcome_resolved", "outcome_index")
_ROUNDS = 100


class ServingVecEnv(VecEnv):
    """Many serving environments with the interface of Stable-Baselines3.

    `infos[i]` has `gap_s` and, where a `ServingReplayBuffer` needs them, the outcomes of environment `i`. The arguments
    are those of `besteffort.adapters.gymnasium.ServingVectorEnv`.

    Raises:
      InputError: as `ServingVectorEnv`.
    """

    def __init__(
        self,
        num_envs: int = 64,
        problem: WrappedEnv | TrainingProblem | str | Path = "paper",
        *,
        credit: Credit = "marginal",
        horizon: int = 16_384,
        history: int = 4_096,
        outcomes_every: int = 256,
    ) -> None:
        self.envs = ServingVectorEnv(
            num_envs,
            problem,
            credit=credit,
            horizon=horizon,
            history=history,
            autoreset_mode="SameStep",
            outcomes_every=outcomes_every,
        )
        self.wrapped = self.envs.wrapped
        self.render_mode = None
        self._actions = np.zeros(num_envs, np.int64)
        super().__init__(num_envs, self.envs.single_observation_space, self.envs.single_action_space)

    def reset(self) -> np.ndarray:
        seeds = [seed for seed in self._seeds if seed is not None] or None
        observations, _ = self.envs.reset(seed=seeds)
        self.reset_infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, _, truncated, extra = self.envs.step(self._actions)
        gaps_s = extra["gap_s"]
        if truncated.any():
            gaps_s = np.where(truncated, extra["final_info"]["gap_s"], gaps_s)
        infos: list[dict[str, Any]] = [{"gap_s": gap_s} for gap_s in gaps_s.tolist()]
        for i in np.flatnonzero(truncated).tolist():
            infos[i] |= {"TimeLimit.truncated": True, "terminal_observation": extra["final_obs"][i]}
        if "outcome_index" in extra:
            for i, info in enumerate(infos):
                info |= {name: extra[name][i] for name in _OUTCOMES}
        return observations, rewards, truncated, infos

    def close(self) -> None:
        self.envs.close()

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        value = getattr(self.envs, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        raise InputError(f"`{attr_name}` cannot be set in compiled environments; make new ones.")

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        raise InputError(f"`{method_name}` cannot be called in single environments of a vector; call it on `envs`.")

    def env_is_wrapped(self, wrapper_class: type, indices: int | Iterable[int] | None = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


class ServingReplayBuffer(ReplayBuffer):
    """A replay buffer for serving, with own-request credit and discounting by time.

    With `own` a decision is credited with the reward of its own request, joined by decision index from the outcomes
    that the environment returns (`credit="own"`). A decision is not sampled before that; if it is overwritten or its
    episode ends first, it never is. This class is the counterpart of `besteffort.learning.replay_buffer`.

    Args:
      buffer_size, observation_space, action_space, device, n_envs: as in Stable-Baselines3; `buffer_size` counts
        decisions of all environments.
      own: join outcomes; otherwise decisions keep the reward of their step.
      horizon_s: time constant of discounting: value t seconds later counts `exp(-t / horizon_s)`, as in
        `besteffort.learning.config.DQNHyperparams`; None for no discount by time.
      gamma: discount of the next decision's value, in addition to that. The learner's own `gamma` has no effect.
      n_steps: decisions of a multi-step return.

    Raises:
      InputError: if a number is out of range, or, when sampling, if too few decisions can be learned from.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: Any,
        action_space: Any,
        device: Any = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        own: bool = True,
        horizon_s: float | None = None,
        gamma: float = 1.0,
        n_steps: int = 1,
    ) -> None:
        if optimize_memory_usage or not handle_timeout_termination:
            raise InputError("Serving episodes truncate; leave `optimize_memory_usage` and its like at their defaults.")
        super().__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        if not (0 < n_steps < self.buffer_size and 0 <= gamma <= 1 and (horizon_s is None or horizon_s > 0)):
            raise InputError(
                f"`n_steps` is {n_steps}, `gamma` is {gamma}, `horizon_s` is {horizon_s}; give at least one step and "
                f"fewer than the {self.buffer_size} that are kept per environment, a share, and a positive time."
            )
        self.own = own
        self.horizon_s = horizon_s
        self.gamma = gamma
        self.n_steps = n_steps
        self.resolved = np.zeros((self.buffer_size, n_envs), bool)
        self.discounts = np.zeros((self.buffer_size, n_envs), np.float32)

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        row = self.pos
        super().add(obs, next_obs, action, np.zeros_like(reward) if self.own else reward, done, infos)
        self.resolved[row] = not self.own
        self.discounts[row] = self.gamma
        if self.horizon_s is not None:
            self.discounts[row] *= np.exp(-np.array([info["gap_s"] for info in infos]) / self.horizon_s)
        if self.own and "outcome_index" in infos[0]:
            self._join(*(np.array([info[name] for info in infos]) for name in _OUTCOMES))

    def _join(self, reward: np.ndarray, resolved: np.ndarray, index: np.ndarray) -> None:
        """Fills in the rewards known by now, as `besteffort.learning.replay_buffer.join`.

        Outcomes are (envs, history), decision `d` in slot `d % history`; `index`, (envs,), is the pending decision,
        which follows the newest row.
        """
        history = resolved.shape[1]
        age = np.arange(min(history, self.buffer_size + 1) - 1, 0, -1)[:, None]
        row = (self.pos - age[:, 0]) % self.buffer_size
        decision = index[None, :] - age
        slot = decision % history
        known = (decision >= 0) & np.take_along_axis(resolved.T, slot, axis=0)
        self.rewards[row] = np.where(known, np.take_along_axis(reward.T, slot, axis=0), self.rewards[row])
        self.resolved[row] |= known

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """Samples uniformly, with replacement, from decisions for which all rewards of their `n_steps` are known."""
        filled = self.buffer_size if self.full else self.pos
        rows = np.zeros(0, np.int64)
        columns = np.zeros(0, np.int64)
        for _ in range(_ROUNDS if filled >= self.n_steps else 0):
            # The library seeds this generator.
            age = np.random.randint(self.n_steps, filled + 1, batch_size)  # noqa: NPY002
            column = np.random.randint(0, self.n_envs, batch_size)  # noqa: NPY002
            row = (self.pos - age) % self.buffer_size
            at, inside = self._run(row, column)
            known = (self.resolved[at, column[:, None]] | ~inside).all(axis=1)
            rows, columns = np.concatenate([rows, row[known]]), np.concatenate([columns, column[known]])
            if len(rows) >= batch_size:
                return self._samples_at(rows[:batch_size], columns[:batch_size], env)
        raise InputError(
            f"Of {filled * self.n_envs:,} decisions in the buffer hardly any can be learned from, because their "
            "requests are not resolved; make the environment with `credit='own'`, or the buffer with `own=False`; or "
            "give a larger `learning_starts`, `buffer_size` or `history`, or a smaller `outcomes_every`."
        )

    def _run(self, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(batch, n_steps) rows of the runs that begin at `row`, and whether each lies within its episode."""
        at = (row[:, None] + np.arange(self.n_steps)) % self.buffer_size
        before = self.dones[at, column[:, None]][:, :-1].cumsum(axis=1)
        return at, np.concatenate([np.ones((len(row), 1), bool), before == 0], axis=1)

    def _samples_at(self, row: np.ndarray, column: np.ndarray, env: Any) -> ReplayBufferSamples:
        at, inside = self._run(row, column)
        columns = column[:, None]
        after = np.where(inside, self.discounts[at, columns], 1.0).cumprod(axis=1)
        before = np.concatenate([np.ones((len(row), 1)), after[:, :-1]], axis=1)
        earned = self._normalize_reward(self.rewards[at, columns], env) * inside * before
        last = at[np.arange(len(row)), inside.sum(axis=1) - 1]
        arrays = (
            self._normalize_obs(self.observations[row, column], env),
            self.actions[row, column],
            self._normalize_obs(self.next_observations[last, column], env),
            np.zeros((len(row), 1), np.float32),  # serving never terminates
            earned.sum(axis=1, keepdims=True).astype(np.float32),
            after[:, -1:].astype(np.float32),
        )
        return ReplayBufferSamples(*map(self.to_torch, arrays))


def dqn_policy(model: Any, problem: TrainingProblem, training: Mapping[str, Any] | None = None) -> Policy:
    """Turns the network of a trained `DQN` into a policy, with the same Q-values and without these libraries.

    Args:
      model: a model trained on an environment of `problem`.
      problem: the training problem, which defines the network's input and output.
      training: plain JSON values to keep in the policy file.

    Raises:
      InputError: if the network is not a plain one with ReLU on the features of the problem.
    """
    return make_policy(problem, dqn_weights(model), {"library": "stable-baselines3", **(training or {})})


def dqn_weights(model: Any) -> Weights:
    """Weights of a `DQN`'s network in the layout of a policy file.

    Raises:
      InputError: if it is not a plain network with ReLU.
    """
    from torch import nn

    network = model.policy.q_net
    layers: Sequence[Any] = list(network.q_net)
    linear, between = layers[::2], layers[1::2]
    plain = all(isinstance(layer, nn.Linear) for layer in linear) and all(isinstance(x, nn.ReLU) for x in between)
    if not plain or network.features_dim != layers[0].in_features or len(layers) % 2 == 0:
        raise InputError(
            "A policy file holds a plain network with ReLU between its layers, this model's is "
            f"{[type(layer).__name__ for layer in layers]}; train `DQN('MlpPolicy', ...)` with its default activation."
        )
    return tuple(
        (layer.weight.detach().cpu().numpy().T.copy(), layer.bias.detach().cpu().numpy().copy()) for layer in linear
    )
