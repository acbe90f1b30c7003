"""Claim 7, deadlines: different ones per task, and ones that change during the run.

    python -m experiments.task_deadlines [--fast]

In the first setting the tasks' deadlines are 0.6, 1, 2 and 4 times the default. In the second all deadlines are 0.7
times the default at peak hours, which come every 20 s and bring six times as many requests, and 1.5 times between them.
There, three policies: one that sees the deadline, that of the default situation, which has never met another deadline,
and the same fine-tuned to the changes, which it does not see. Heuristics see the deadline.
"""

from __future__ import annotations

import dataclasses

from besteffort.evaluation import plots
from besteffort.evaluation.formats import percent, points, with_name
from besteffort.evaluation.judging import LEARNED, burst_set, synthetic_set
from besteffort.evaluation.ranking import as_setting, ranking, settings_table
from besteffort.evaluation.statistics import mean_interval, paired_difference
from besteffort.runs.config import load_situation
from besteffort.situation import Deadline, Situation, View
from besteffort.workload.config import DeadlinesConfig, RandomRates, Square
from experiments.lab import FINE_TUNING, Claim, Findings, Lab, main

FACTORS = (0.6, 1.0, 2.0, 4.0)
PERIOD_S = 20.0
CHANGING = DeadlinesConfig((0.7, 1.5), (0.0, PERIOD_S / 2), PERIOD_S)
PEAKS = Square(high=3.0, low=0.5, period_s=PERIOD_S, deadlines=CHANGING)


def run(lab: Lab) -> Findings:
    """Trains for both settings and judges."""
    situation = load_situation("paper")
    base = lab.train(situation, lab.training(), name="paper")
    several = with_deadlines_of_their_own(situation)
    own = lab.train(several, lab.training(), name="a deadline per task")
    per_task = lab.judge(burst_set(several, lab.evaluation), {LEARNED: own, f"{LEARNED}: default": base})

    rates = RandomRates(deadlines=dataclasses.replace(CHANGING, random_start=True))
    seeing = dataclasses.replace(situation, view=View(features=("task", "batch_sizes", "arrival_rate", "deadline_s")))
    sighted = lab.train(seeing, lab.training(workload=rates), name="changing deadlines, seen")
    fine = lab.training(variant=True, hyper=FINE_TUNING, workload=rates)
    blind = lab.train(situation, fine, name="changing deadlines, not seen", start=base)
    load = (PEAKS.high + PEAKS.low) / 2
    evaluation_set = synthetic_set("peaks", "peak hours", seeing, lab.evaluation, (load,), [PEAKS])
    names = {LEARNED: sighted, f"{LEARNED}: not seen": blind, f"{LEARNED}: default": base}
    over_time = lab.judge(evaluation_set, names)

    settings = [
        as_setting("a deadline per task", "trained for them", per_task),
        as_setting("a deadline per task", "default policy", per_task, learned=f"{LEARNED}: default"),
        as_setting("stricter at peak hours", "deadline seen", over_time),
        as_setting("stricter at peak hours", "fine-tuned, not seen", over_time, learned=f"{LEARNED}: not seen"),
        as_setting("stricter at peak hours", "default policy", over_time, learned=f"{LEARNED}: default"),
    ]
    claims = []
    for evaluation, name in (
        (per_task, "Different deadlines per task"),
        (over_time, "Deadlines stricter at peak hours"),
    ):
        one = ranking(evaluation)
        default = ranking(evaluation, learned=f"{LEARNED}: default").learned
        gain = paired_difference(one.learned, default)
        ahead = one.ahead_of_heuristic
        claims.append(
            Claim(
                name,
                "handled",
                f"{percent(one.learned)}; {points(ahead, 2)} points "
                f"to the best heuristic, {points(float(gain.mean), 2)} to the policy of the default deadlines",
                static=with_name(one.static),
                heuristic=with_name(one.heuristic),
                bound=percent(float(evaluation.bounds[0].performance)),
                status="holds" if ahead.high >= 0 else "holds in part" if gain.low > 0 else "does not hold",
            )
        )
    data = {
        evaluation.set.name: {
            "performance": {
                name: mean_interval(ranking(evaluation, learned=name).learned) for name in evaluation.learned
            },
            "best_heuristic": [ranking(evaluation).heuristic[0], mean_interval(ranking(evaluation).heuristic[1])],
            "best_static": [ranking(evaluation).static[0], mean_interval(ranking(evaluation).static[1])],
            "bound": float(evaluation.bounds[0].performance),
        }
        for evaluation in (per_task, over_time)
    }
    title = "Other deadlines"
    return Findings(
        data, claims, [settings_table(title, "Setting", settings)], {"": plots.plot_settings(settings, title=title)}
    )


def with_deadlines_of_their_own(situation: Situation) -> Situation:
    """The situation with another deadline for every task."""
    tasks = tuple(
        dataclasses.replace(task, deadline=Deadline(factor * task.deadline.base_s, factor * task.deadline.per_token_s))
        for task, factor in zip(situation.tasks, FACTORS, strict=True)
    )
    return dataclasses.replace(situation, tasks=tasks)


if __name__ == "__main__":
    main(run, __file__)
