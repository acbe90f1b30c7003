"""What a search may look for: one figure per list, the higher the better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from besteffort.evaluation import metrics
from besteffort.evaluation.rollouts import Rollout, mean_rewards, play_rollouts
from besteffort.learning.config import ObjectiveName, SearchConfig
from besteffort.simulator.result import Result
from besteffort.simulator.types import Router
from besteffort.situation import Situation
from besteffort.workload.requests import Requests

_TIE = 1e-3  # what the mean reward adds to other objectives, to tell apart what they hold for equal
_LEAST = 0.01  # utility of a task below which an alpha-fair sum does not fall, since it has no bound there
_MARGIN = 1.0  # standard errors by which attainment has to exceed what is asked for


def scores(
    result: Result, situation: Situation, config: SearchConfig, *, warm_up_s: float = 0.0
) -> Float[np.ndarray, "*lanes"]:
    """The figure that a search with this configuration looks for; where it ties, the mean reward decides.

    Each request counts in the mean reward as much as its tenant, see `Situation.tenant_weights`.

    Args:
      result: what happened, of shape (*lanes, n).
      situation: what was served.
      config: names the objective and its numbers.
      warm_up_s: seconds from the first arrival that do not count.
    """
    reward = metrics.weighted_performance(result, situation.tenant_weights, warm_up_s=warm_up_s)
    if config.objective == "reward":
        return reward
    return np.asarray(OBJECTIVES[config.objective](result, situation, config, warm_up_s) + _TIE * reward)


def score_rollouts(
    situation: Situation,
    lists: Sequence[Requests],
    rollouts: Sequence[Rollout],
    config: SearchConfig,
    *,
    warm_up_s: float = 0.0,
    panel: Sequence[Router] = (),
) -> Float[np.ndarray, " rollouts"]:
    """`scores` of rollouts.

    Args:
      situation: what is served; its peak rewards count for all rollouts.
      lists: lists of equal length.
      rollouts: what to play, and how.
      config: names the objective and its numbers.
      warm_up_s: seconds from the first arrival that do not count.
      panel: as of `besteffort.evaluation.rollouts.play_routers`.

    Raises:
      InputError: as `besteffort.evaluation.rollouts.play_rollouts`.
    """
    if config.objective == "reward":
        return mean_rewards(situation, lists, rollouts, warm_up_s=warm_up_s, panel=panel)
    found = np.empty(len(rollouts))
    for indices, result in play_rollouts(situation, lists, rollouts, panel=panel):
        found[indices] = scores(result, situation, config, warm_up_s=warm_up_s)
    return found


def near_peak(result: Result, situation: Situation, config: SearchConfig, warm_up_s: float) -> np.ndarray:
    """Share of the windows whose reward comes within `config.peak_share` of the peak."""
    return metrics.windows_at_peak(
        result, situation.peak_rewards, width_s=config.window_s, fraction=config.peak_share, warm_up_s=warm_up_s
    )


def worst_task(result: Result, situation: Situation, config: SearchConfig, warm_up_s: float) -> np.ndarray:
    """Utility of the task that fares worst."""
    return np.asarray(np.nanmin(utilities(result, situation, warm_up_s), axis=-1))


def alpha_fair(result: Result, situation: Situation, config: SearchConfig, warm_up_s: float) -> np.ndarray:
    """Mean over tasks of `u^(1 - alpha) / (1 - alpha)` of their utilities `u`; of `log u` where alpha is 1.

    0 adds utilities up, 1 is proportional fairness, and large numbers look at the worst task (Mo and Walrand, IEEE/ACM
    Transactions on Networking 2000).
    """
    utility = np.maximum(utilities(result, situation, warm_up_s), _LEAST)
    fair = np.log(utility) if config.alpha == 1 else utility ** (1 - config.alpha) / (1 - config.alpha)
    return np.asarray(np.nanmean(fair, axis=-1))


def slo(result: Result, situation: Situation, config: SearchConfig, warm_up_s: float) -> np.ndarray:
    """The mean reward where SLO attainment is at least `config.attainment` and a standard error; else below any."""
    attained = metrics.slo_attainment(result, warm_up_s=warm_up_s)
    counted = metrics.after_warm_up(result.arrival_s, warm_up_s).sum(axis=-1)
    margin = _MARGIN * np.sqrt(attained * (1 - attained) / np.maximum(counted, 1))
    lacking = np.maximum(config.attainment + margin - attained, 0.0)
    least = -float(situation.weights.max()) * (1 + situation.reward.miss_penalty)
    reward = metrics.weighted_performance(result, situation.tenant_weights, warm_up_s=warm_up_s)
    return np.asarray(np.where(lacking > 0, least - lacking, reward))


def utilities(result: Result, situation: Situation, warm_up_s: float) -> Float[np.ndarray, "*lanes tasks"]:
    """Reward of each task's requests over its peak; nan where a task has none."""
    counted = metrics.after_warm_up(result.arrival_s, warm_up_s)
    of_task = [
        metrics.mean_over(result.reward, counted & (result.task == task)) for task in range(len(situation.tasks))
    ]
    return np.stack(of_task, axis=-1) / situation.peak_rewards


OBJECTIVES: Mapping[ObjectiveName, Callable[[Result, Situation, SearchConfig, float], np.ndarray]] = {
    "near_peak": near_peak,
    "worst_task": worst_task,
    "alpha_fair": alpha_fair,
    "slo": slo,
}
"""Objectives other than the mean reward, by name."""
