"""Claim 1, stable load: performance and SLO attainment against the arrival rate, policy by policy.

    python -m experiments.stable_load [--fast]

The paper: available at more than ten times the rate of the large model. A router that sends everything to the small
model would pass that, so it is also asked whether the learned one performs at least as well as every static choice at
each rate. Network `i` plays list `i` of every load, so that intervals span training and arrivals alike; all routers
play the same lists. Heuristics have one setting for the whole grid, tuned on other lists.
"""

from __future__ import annotations

import numpy as np

from besteffort.evaluation import metrics
from besteffort.evaluation.formats import percent, points, times
from besteffort.evaluation.judging import LEARNED, EvaluationResult, grid_set
from besteffort.evaluation.ranking import ranking
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.results import load_figure, mix_figure, performance_table, sustained_table
from besteffort.evaluation.statistics import mean_interval, ratio_interval
from besteffort.runs.config import load_situation
from experiments.lab import Claim, Findings, Lab, main, status_of, status_of_ratio

ATTAINMENT = 0.99


def run(lab: Lab) -> Findings:
    """Trains the default situation's policies and judges them on the grid of loads."""
    situation = load_situation("paper")
    policies = lab.train(situation, lab.training(), name="paper")
    evaluation = lab.judge(grid_set(situation, lab.evaluation), policies)
    loads = np.array(evaluation.set.loads)
    largest, smallest = evaluation.static[-1], evaluation.static[0]
    sustained = {
        name: metrics.sustained_rate(loads, evaluation.over_loads(metrics.slo_attainment, name).T, ATTAINMENT)
        for name in evaluation.routers
    }
    rate = ratio_interval(sustained[LEARNED], sustained[largest])
    of_smallest = ratio_interval(sustained[smallest], sustained[largest])
    by_load = [ranking(evaluation, index) for index in range(len(loads))]
    behind = [float(load) for load, one in zip(loads, by_load, strict=True) if one.ahead_of_static.high < 0]
    worst = min(float(one.ahead_of_static.mean) for one in by_load)
    behind_heuristic = [
        float(load) for load, one in zip(loads, by_load, strict=True) if one.ahead_of_heuristic.high < 0
    ]
    middle = int(np.argmin(np.abs(loads - 4.0)))
    claims = (
        Claim(
            f"Available ({ATTAINMENT:.0%} in time) at a multiple of the large model's rate",
            "more than 10x",
            times(rate),
            static=f"{times(of_smallest)} (always the smallest)",
            status=status_of_ratio(rate, reached=bool(rate.low > 10)),
        ),
        Claim(
            "At each rate no worse than any static choice",
            "no rate below",
            f"{len(behind)} of {len(loads)} rates below beyond the interval; worst {points(worst)} points",
            status=status_of(len(loads) - len(behind), len(loads)),
        ),
        Claim(
            f"Performance at load {loads[middle]:g}",
            "",
            percent(by_load[middle].learned),
            static=f"{percent(by_load[middle].static[1])} ({by_load[middle].static[0]})",
            heuristic=f"{percent(by_load[middle].heuristic[1])} ({by_load[middle].heuristic[0]})",
            bound=percent(float(evaluation.bounds[middle].performance)),
        ),
        Claim(
            "At each rate no worse than the best tuned heuristic",
            "",
            f"{len(behind_heuristic)} of {len(loads)} rates below beyond the interval"
            + (f" (load {', '.join(f'{load:g}' for load in behind_heuristic)})" if behind_heuristic else ""),
            status=status_of(len(loads) - len(behind_heuristic), len(loads)),
        ),
    )
    data = {
        "tuned": evaluation.tuned,
        "distinct_networks": len({policy.weights[0][0].tobytes() for policy in policies}),
        "sustained_load": {name: mean_interval(values) for name, values in sustained.items()},
        "loads": [
            {
                "load": load,
                "performance": {
                    name: mean_interval(evaluation.measure(metrics.performance, index, name))
                    for name in evaluation.routers
                },
                "bound": float(evaluation.bounds[index].performance),
            }
            for index, load in enumerate(loads)
        ],
    }
    return Findings(
        data,
        claims,
        (
            grid_table(evaluation),
            sustained_table(evaluation),
            performance_table([evaluation], lab.evaluation, intervals=True),
        ),
        {"": load_figure(evaluation), "mix": mix_figure(evaluation)},
    )


def grid_table(evaluation: EvaluationResult) -> Table:
    """The learned router and the best of all others, load by load."""
    rows = []
    for index, load in enumerate(evaluation.set.loads):
        one = ranking(evaluation, index)
        name, values = max(one.static, one.heuristic, key=lambda best: float(best[1].mean()))
        bound = float(evaluation.bounds[index].performance)
        rows.append(
            (
                f"{load:g} ({name})",
                (
                    mean_interval(one.learned),
                    float(one.learned.min()),
                    mean_interval(values),
                    mean_interval(one.learned - values),
                    bound,
                    mean_interval(one.learned / bound),
                ),
            )
        )
    return Table(
        title="Learned router against the best other router, by load",
        head="Load",
        columns=(
            Column("Learned (%)", digits=2, brief=True),
            Column("Worst seed (%)", digits=2, brief=True),
            Column("Best other (%)", digits=2, brief=True),
            Column("Difference (points)", "points", 2, brief=True),
            Column("Bound (%)", digits=2, brief=True),
            Column("Share of bound (%)", digits=1, brief=True),
        ),
        rows=tuple(rows),
        note="In brackets the best other router, the best in hindsight at each load, static models included. "
        "Mean ± half the 95% interval over policies and lists; differences are paired.",
    )


if __name__ == "__main__":
    main(run, __file__)
