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
from besteffort.evaluation.formats import percent, times
from besteffort.evaluation.judging import LEARNED, Verdict, grid_arena
from besteffort.evaluation.ranking import ranking
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.results import load_figure, mix_figure, performance_table, sustained_table
from besteffort.evaluation.statistics import mean_interval, ratio_interval
from besteffort.runs.config import load_situation
from experiments.lab import Claim, Findings, Lab, main, standing_of, standing_of_ratio

ATTAINMENT = 0.99


def run(lab: Lab) -> Findings:
    """Trains the default situation's policies and judges them on the grid of loads."""
    situation = load_situation("paper")
    policies = lab.train(situation, lab.training(), name="paper")
    verdict = lab.judge(grid_arena(situation, lab.evaluation), policies)
    loads = np.array(verdict.arena.loads)
    largest, smallest = verdict.static[-1], verdict.static[0]
    sustained = {
        name: metrics.sustained_rate(loads, verdict.over_loads(metrics.slo_attainment, name).T, ATTAINMENT)
        for name in verdict.routers
    }
    rate = ratio_interval(sustained[LEARNED], sustained[largest])
    of_smallest = ratio_interval(sustained[smallest], sustained[largest])
    by_load = [ranking(verdict, index) for index in range(len(loads))]
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
            standing=standing_of_ratio(rate, reached=bool(rate.low > 10)),
        ),
        Claim(
            "At each rate no worse than any static choice",
            "no rate below",
            f"{len(behind)} of {len(loads)} rates below beyond the interval; worst {100 * worst:+.1f} points",
            standing=standing_of(len(loads) - len(behind), len(loads)),
        ),
        Claim(
            f"Performance at load {loads[middle]:g}",
            "",
            percent(by_load[middle].learned),
            static=f"{percent(by_load[middle].static[1])} ({by_load[middle].static[0]})",
            heuristic=f"{percent(by_load[middle].heuristic[1])} ({by_load[middle].heuristic[0]})",
            bound=percent(float(verdict.bounds[middle].performance)),
        ),
        Claim(
            "At each rate no worse than the best tuned heuristic",
            "",
            f"{len(behind_heuristic)} of {len(loads)} rates below beyond the interval"
            + (f" (load {', '.join(f'{load:g}' for load in behind_heuristic)})" if behind_heuristic else ""),
            standing=standing_of(len(loads) - len(behind_heuristic), len(loads)),
        ),
    )
    data = {
        "tuned": verdict.tuned,
        "distinct_networks": len({policy.weights[0][0].tobytes() for policy in policies}),
        "sustained_load": {name: mean_interval(values) for name, values in sustained.items()},
        "loads": [
            {
                "load": load,
                "performance": {
                    name: mean_interval(verdict.measure(metrics.performance, index, name)) for name in verdict.routers
                },
                "bound": float(verdict.bounds[index].performance),
            }
            for index, load in enumerate(loads)
        ],
    }
    return Findings(
        data,
        claims,
        (grid_table(verdict), sustained_table(verdict), performance_table([verdict], lab.evaluation, intervals=True)),
        {"": load_figure(verdict), "mix": mix_figure(verdict)},
    )


def grid_table(verdict: Verdict) -> Table:
    """The learned router beside the best of all others, load by load."""
    rows = []
    for index, load in enumerate(verdict.arena.loads):
        one = ranking(verdict, index)
        name, values = max(one.static, one.heuristic, key=lambda best: float(best[1].mean()))
        bound = float(verdict.bounds[index].performance)
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
