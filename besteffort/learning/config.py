"""Training settings: `DQNConfig` is static, `DQNHyperparams` holds numbers that may differ between runs."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

import jax
import numpy as np
from annotated_types import Interval, Len

from besteffort.errors import InputError, brief
from besteffort.learning.evolution import SMALLEST_POPULATION
from besteffort.ranges import Count, Few, Length, Number, Positive


@dataclasses.dataclass(frozen=True)
class DQNConfig:
    """Static settings, hashable; the same for all runs of one call of `train`.

    Attributes:
      hidden_sizes: width of each hidden layer of the Q-network.
      num_envs: environments that step together.
      rollout_length: decisions per environment between two rounds of updates.
      updates_per_rollout: gradient steps per round.
      batch_size: decisions per gradient step.
      buffer_length: decisions per environment that the replay buffer holds; a multiple of `rollout_length`.
      min_age: decisions per environment that pass before a decision is sampled. For environments where bad outcomes
        resolve later than good ones: sampling too early would see too few of the bad.
      decisions: decisions to train a network on, over all environments; rounded up to a whole number of log points.
      log_interval: rollouts between two log points; everything between them is one compiled program.
      n_step: longest multi-step return, in decisions; see `besteffort.learning.replay_buffer.sample`.
      baseline: subtract the average reward of decisions in the same circumstances from returns; see `double_dqn.loss`.
      credit: the reward of a decision. `own`: reward of its own request, joined once it is final. `marginal`: change
        that the decision made in the rewards of all requests (`TimeStep.credit`), known at once.
      ensemble_size: networks that a run trains independently, each from its own key on its own decisions; the policy
        uses their mean Q-values, in which the chance errors of single networks average out.
      double: the online network chooses the next action and the target network values it; else the target network
        does both, as in plain DQN.
      loss: loss of the temporal-difference error, `l2` (half its square) or `huber` (see
        `DQNHyperparams.huber_delta`). Returns are skewed, and for errors beyond its delta the Huber loss learns the
        median instead of the mean.

    Raises:
      InputError: if `buffer_length` is not a multiple of `rollout_length`, or too short for `min_age` or `n_step`.
    """

    hidden_sizes: Annotated[tuple[Few, ...], Len(1, 64)] = (64, 64)
    num_envs: Few = 128
    rollout_length: Count = 128
    updates_per_rollout: Count = 128
    batch_size: Count = 512
    buffer_length: Count = 1024
    min_age: Number = 0
    decisions: Count = 2_097_152
    log_interval: Count = 8
    loss: Literal["huber", "l2"] = "l2"
    n_step: Count = 16
    baseline: bool = True
    credit: Literal["own", "marginal"] = "marginal"
    double: bool = True
    ensemble_size: Few = 4

    def __post_init__(self) -> None:
        if self.buffer_length % self.rollout_length:
            raise InputError(
                f"Training: `buffer_length` is {self.buffer_length}; give a multiple of `rollout_length`, "
                f"which is {self.rollout_length}."
            )
        if self.buffer_length <= max(self.min_age, self.n_step):
            raise InputError(
                f"Training: `buffer_length` is {self.buffer_length}; give more than `min_age` and `n_step`, "
                f"which are {self.min_age} and {self.n_step}."
            )

    @property
    def decisions_per_rollout(self) -> int:
        return self.rollout_length * self.num_envs

    @property
    def decisions_per_log_point(self) -> int:
        return self.decisions_per_rollout * self.log_interval

    @property
    def log_points(self) -> int:
        """Number of log points of the whole training; the last is at its end."""
        return math.ceil(self.decisions / self.decisions_per_log_point)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DQNHyperparams:
    """Numbers of a training run. Schedules count decisions over all environments.

    Attributes:
      learning_rate: Adam's learning rate at the start.
      learning_rate_end: learning rate after its decay.
      learning_rate_decay: decisions over which the learning rate falls, linearly.
      epsilon_start: share of random decisions at the start.
      epsilon_end: share of random decisions after the decay.
      epsilon_decay: decisions over which epsilon falls, linearly.
      epsilon_spread: how much environments differ in epsilon, in [0, 1], see `schedules.spread`; 0 means not at all.
      discount: factor on the next decision's value, in addition to that of `horizon_s`.
      horizon_s: time constant of discounting: value t seconds later counts `exp(-t / horizon_s)`. Congestion lasts for
        tenths of a second, however many decisions are made in that time.
      target_interval: decisions between two updates of the target network.
      tau: share of the online network in such an update; 1 copies it.
      average_power: the exported policy is the average of the target networks after each round of updates, in which
        round t has weight `t**average_power`; 0 is the plain mean, large numbers leave the last one.
      huber_delta: error from which the Huber loss grows linearly.
      max_grad_norm: largest norm of the gradient; larger gradients are scaled down to it.
    """

    learning_rate: Any = 2e-3
    learning_rate_end: Any = 1e-5
    learning_rate_decay: Any = 2_097_152
    epsilon_start: Any = 1.0
    epsilon_end: Any = 0.02
    epsilon_decay: Any = 262_144
    epsilon_spread: Any = 0.75
    discount: Any = 1.0
    horizon_s: Any = 0.25
    target_interval: Any = 128
    tau: Any = 0.002
    average_power: Any = 3.0
    huber_delta: Any = 1.0
    max_grad_norm: Any = 10.0

    @classmethod
    def for_decisions(cls, decisions: int, **changes: Any) -> DQNHyperparams:
        """Defaults whose schedules fit a training of `decisions`: epsilon falls over its first eighth."""
        return dataclasses.replace(cls(learning_rate_decay=decisions, epsilon_decay=max(1, decisions // 8)), **changes)


_LISTS = 10_000  # seeds of lists from one seed of a search to the next
_END = 2**31  # of these seeds: those from there on are of lists to choose on, and from 2^32 on there are none

ObjectiveName = Literal["reward", "near_peak", "worst_task", "alpha_fair", "slo"]
RuleTerm = Literal[
    "reserve", "reserve_slope", "harm_weight", "latency_price", "occupancy_price", "time_price", "giving_up"
]
"""Numbers of a rule that may be 0, which leaves out what they weigh."""


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How to search for the numbers of a rule.

    Attributes:
      generations: how often candidates are played.
      population: candidates of a generation.
      lists: draws of the training load that every candidate plays; of one whose rates are spread at random, four times
        as many, which are half as long.
      requests: length of each; long enough for lines to fill, where they do.
      spread: how far from the start the search looks at first; 1 covers what was best in far situations.
      objective: what to look for. `reward`: the mean reward. `near_peak`: the share of windows near the peak.
        `worst_task`: the utility of the task that fares worst. `alpha_fair`: an alpha-fair sum over tasks. `slo`: the
        mean reward of what reaches an SLO attainment. See `besteffort.evaluation.objectives`.
      window_s, peak_share: width of the windows in seconds, and share of the peak, of `near_peak`.
      alpha: of `alpha_fair`.
      attainment: SLO attainment that `slo` asks for.
      without: numbers of the rule that are 0 throughout, so that a part of it is left out.
    """

    generations: Few = 8
    population: Annotated[int, Interval(ge=SMALLEST_POPULATION, le=2**16)] = 16
    lists: Few = 2
    requests: Length = 12_000
    spread: Positive = 1.0
    objective: ObjectiveName = "reward"
    window_s: Positive = 1.0
    peak_share: Annotated[float, Interval(gt=0, le=1)] = 0.96
    alpha: Annotated[float, Interval(ge=0, le=100)] = 1.0
    attainment: Annotated[float, Interval(ge=0, lt=1)] = 0.95
    without: tuple[RuleTerm, ...] = ()

    def drawn_seeds(self, seed: int) -> range:
        """Seeds of the lists that a search of one seed draws, where rates are not spread: half of them for its end."""
        first = _LISTS * (seed + 1) % (_END - _LISTS)
        return range(first, first + 2 * self.lists)


_RANGES = {
    "learning_rate": (0.0, 1e30),
    "learning_rate_end": (0.0, 1e30),
    "learning_rate_decay": (1, 2**31 - 1),
    "epsilon_start": (0.0, 1.0),
    "epsilon_end": (0.0, 1.0),
    "epsilon_decay": (1, 2**31 - 1),
    "epsilon_spread": (0.0, 1.0),
    "discount": (0.0, 1.0),
    "horizon_s": (1e-9, 1e9),
    "target_interval": (1, 2**31 - 1),
    "tau": (0.0, 1.0),
    "average_power": (0.0, 1e9),
    "huber_delta": (1e-12, 1e9),
    "max_grad_norm": (1e-12, 1e9),
}


def check(config: DQNConfig, hyper: DQNHyperparams, history: int) -> None:
    """Checks numbers against each other and against an environment that keeps `history` decisions.

    Raises:
      InputError: on a number out of range, a target interval shorter than the decisions per update (updates would then
        depend on the number of environments), more decisions than an int32 counts, or a history that is not longer
        than a rollout.
    """
    for name, (low, high) in _RANGES.items():
        values = np.asarray(getattr(hyper, name), dtype=float)
        if not (np.isfinite(values) & (low <= values) & (values <= high)).all():
            raise InputError(
                f"Training: `{name}` is {brief(getattr(hyper, name))}; give numbers from {low:g} to {high:g}."
            )
    per_update = config.decisions_per_rollout / config.updates_per_rollout
    if np.min(hyper.target_interval) < per_update:
        raise InputError(
            f"Training: `target_interval` is {np.min(hyper.target_interval)} decisions, but an update comes every "
            f"{per_update:g}; raise `target_interval` or `updates_per_rollout`, or use fewer `num_envs`."
        )
    total = config.log_points * config.decisions_per_log_point
    if total > 2**31 - 1:
        raise InputError(f"Training: `decisions` comes to {total}; stay below 2,147,483,648.")
    if history <= config.rollout_length:
        raise InputError(
            f"Training: the environment remembers {history} decisions; give it a `history` above `rollout_length`, "
            f"which is {config.rollout_length}."
        )
