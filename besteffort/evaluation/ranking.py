"""Who is best: the learned router next to the best static model and the best heuristic, in hindsight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from besteffort.evaluation import metrics, plots
from besteffort.evaluation.judging import LEARNED, EvaluationResult
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.statistics import Interval, best_mean, mean_interval, paired_difference


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Who is best at one load, by one measure; values of shape (seeds,).

    Attributes:
      learned: the learned router's.
      static, heuristic: name and values of the best static model and of the best other router, in hindsight.
    """

    learned: np.ndarray
    static: tuple[str, np.ndarray]
    heuristic: tuple[str, np.ndarray]

    @property
    def ahead_of_static(self) -> Interval:
        return paired_difference(self.learned, self.static[1])

    @property
    def ahead_of_heuristic(self) -> Interval:
        return paired_difference(self.learned, self.heuristic[1])


def ranking(
    evaluation: EvaluationResult,
    index: int = 0,
    measure: Callable[..., np.ndarray] = metrics.performance,
    learned: str = LEARNED,
) -> Ranking:
    """The learned router next to the best static model and the best heuristic at one load."""
    values = {name: np.asarray(evaluation.measure(measure, index, name)) for name in evaluation.routers}

    def best(names: Sequence[str]) -> tuple[str, np.ndarray]:
        name = best_mean(values, names)
        return name, values[name]

    return Ranking(values[learned], best(evaluation.static), best(evaluation.heuristics))


def as_setting(group: str, name: str, evaluation: EvaluationResult, learned: str = LEARNED) -> plots.Setting:
    """The first load of an evaluation as a row of `plots.plot_settings`."""
    situation = evaluation.set.situation
    peak = evaluation.measure(partial(metrics.peak_performance, peak_reward=situation.peak_rewards), 0, learned)
    one = ranking(evaluation, learned=learned)
    return plots.Setting(
        group=group,
        name=name,
        static=float((one.static[1] / peak).mean()),
        heuristic=float((one.heuristic[1] / peak).mean()),
        learned=mean_interval(one.learned / peak),
        ahead=paired_difference(one.learned / peak, one.heuristic[1] / peak),
        bound=float(evaluation.bounds[0].performance / peak.mean()),
    )


def settings_table(title: str, head: str, settings: Sequence[plots.Setting]) -> Table:
    """What `plots.plot_settings` shows, in figures."""
    return Table(
        title=title,
        head=head,
        columns=(
            Column("Learned (%)", digits=2, brief=True),
            Column("Best heuristic (%)", digits=2, brief=True),
            Column("Ahead of it (points)", "points", 2, brief=True),
            Column("Best static (%)", digits=2, brief=True),
            Column("Bound (%)", digits=2, brief=True),
        ),
        rows=tuple(
            (f"{row.group}: {row.name}", (row.learned, row.heuristic, row.ahead, row.static, row.bound))
            for row in settings
        ),
        note="Performance in percent of peak quality; the best static model and the best heuristic are the best in "
        "hindsight. Mean ± half the 95% interval over policies and lists; differences are paired.",
    )
