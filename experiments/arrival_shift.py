"""Claim 5, arrival shift: trained on one arrival process, judged on every other one.

    python -m experiments.arrival_shift [--fast] [--data DIR]

The paper: robust when the arrivals shift. Every policy serves the same tasks; what differs is when requests come: at
rates spread widely (the default training load), the same without bursts, as Gamma renewals, in Markov-modulated bursts,
as a square wave, and at the times of the Azure traces of 2023 (first halves to train on, second halves to judge on).
The first is the default policy; the others are ensembles of two and trained shorter, on a single process. The matrix
shows how far each is ahead of the best heuristic, which is tuned on the very process that it is judged on. With
`--fast` only the processes in `INDICATIVE`, and the traces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from besteffort.evaluation import plots
from besteffort.evaluation.formats import points
from besteffort.evaluation.judging import LEARNED, EvaluationSet, synthetic_set
from besteffort.evaluation.ranking import ranking
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.statistics import mean_interval
from besteffort.runs.config import load_situation
from besteffort.situation import Situation
from besteffort.workload import rescale
from besteffort.workload.config import Gamma, Markov, RandomRates, Square, Synthetic
from besteffort.workload.requests import Requests
from besteffort.workload.resample import halves
from besteffort.workload.sample import sample_workload
from besteffort.workload.synthetic_workload import synthetic
from besteffort.workload.trace_workload import replay
from besteffort.workload.traces import read_trace
from experiments.lab import Claim, Findings, Lab, main, status_of

MEAN_LOAD = 1.5
ENSEMBLE_SIZE = 2
PROCESSES: Mapping[str, Synthetic] = {
    "wide, with bursts (default)": RandomRates(),
    "wide, without bursts": RandomRates(burst_probability=0.0),
    "Gamma, CV 4": Gamma(load=MEAN_LOAD, cv=4.0),
    "Markov bursts": Markov(loads=(0.5, 3.5), dwell_s=(4.0, 2.0)),
    "square wave": Square(low=0.5, high=2.5, period_s=8.0, random_start=True),
}
INDICATIVE = ("wide, with bursts (default)", "Gamma, CV 4", "Markov bursts")
TRACES = {
    "Azure conversations": "AzureLLMInferenceTrace_conv_2023.csv.gz",
    "Azure code": "AzureLLMInferenceTrace_code_2023.csv.gz",
}


def run(lab: Lab) -> Findings:
    """Trains a policy per process and seed, and judges each on all processes."""
    situation = load_situation("paper")
    judging = lab.evaluation
    policies, evaluation_sets = {}, {}
    amount = {"ensemble_size": min(ENSEMBLE_SIZE, lab.scale.ensemble_size)}
    for name, process in lab.selected(PROCESSES, fast=INDICATIVE).items():
        usual = process == RandomRates()
        training = lab.training() if usual else lab.training(variant=True, workload=process, config=amount)
        policies[name] = lab.train(situation, training, name=name)
        # The wide rates would take minutes to come round; they are what was trained on, not a load to be judged on.
        if not isinstance(process, RandomRates):
            evaluation_sets[name] = synthetic_set(name, name, situation, judging, (MEAN_LOAD,), [process])
    for name, file in TRACES.items():
        path = lab.trace(file)
        if path is None:
            continue
        evaluation_sets[name] = _trace_set(name, read_trace(path, situation)[0], situation, lab)
        workload = replay(evaluation_sets[name].tuning[0])
        policies[name] = lab.train(situation, lab.training(variant=True, config=amount), name=name, workload=workload)
    evaluations = {
        name: lab.judge(evaluation_set, {f"{LEARNED}: {source}": each for source, each in policies.items()})
        for name, evaluation_set in evaluation_sets.items()
    }
    ahead = {
        source: {
            name: ranking(evaluation, learned=f"{LEARNED}: {source}").ahead_of_heuristic
            for name, evaluation in evaluations.items()
        }
        for source in policies
    }
    default = next(iter(policies))
    behind = [name for name, value in ahead[default].items() if value.high < 0]
    losses = {
        source: min(float(value.mean) for name, value in row.items() if name != source)
        for source, row in ahead.items()
        if source != default
    }
    worst = min(losses, key=losses.__getitem__)
    by_default = {
        name: ranking(evaluation, learned=f"{LEARNED}: {default}") for name, evaluation in evaluations.items()
    }
    statics = [float(one.ahead_of_static.mean) for one in by_default.values()]
    claim = Claim(
        "Robust when the arrival process shifts",
        "robust",
        f"trained on wide rates: behind the best heuristic beyond the interval on {len(behind)} of {len(evaluations)} "
        f"processes, at worst {points(min(float(v.mean) for v in ahead[default].values()), 2)} points; "
        f"trained, for less long, on one other process alone: at worst {points(losses[worst], 2)} ({worst})",
        static=f"ahead by {100 * min(statics):.1f} points or more",
        status=status_of(len(evaluations) - len(behind), len(evaluations)),
    )
    values = np.array([[float(cell.mean) for cell in row.values()] for row in ahead.values()])
    table = Table(
        title="How far ahead of the best heuristic, by training and by judging arrivals",
        head="Trained on",
        columns=tuple(Column(f"{name} (points)", "points", 2, brief=True) for name in evaluations),
        rows=tuple((source, tuple(row.values())) for source, row in ahead.items()),
        note="The heuristics are tuned on other draws of the arrivals that they are judged on. Mean ± half the 95% "
        "interval over policies and lists, paired.",
    )
    figure = plots.plot_matrix(
        values,
        list(ahead),
        list(evaluations),
        title="Points ahead of the best heuristic",
        row_label="trained on",
        column_label="judged on",
    )
    data: dict[str, Any] = {
        "ahead_of_heuristic": ahead,
        "best_heuristic": {
            name: [one.heuristic[0], mean_interval(one.heuristic[1])] for name, one in by_default.items()
        },
        "bound": {name: float(evaluation.bounds[0].performance) for name, evaluation in evaluations.items()},
    }
    return Findings(data, [claim], [table], {"": figure})


def _trace_set(name: str, times: Requests, situation: Situation, lab: Lab) -> EvaluationSet:
    """The trace's arrival times with tasks and lengths of the situation, one drawing of these per seed."""
    judging = lab.evaluation
    capacity = situation.unit_load
    first, second = halves(times)

    def drawn(half: Requests, seeds: range) -> tuple[Requests, ...]:
        length = min(len(half), judging.requests)
        scaled = rescale.to_mean_rate(half.part(slice(0, length), float(half.arrival_s[0])), MEAN_LOAD * capacity)
        workload = synthetic(situation, PROCESSES["Gamma, CV 4"].process(capacity))
        like = [sample_workload(workload, situation.task_names, length, seed) for seed in seeds]
        return tuple(dataclasses.replace(requests, arrival_s=scaled.arrival_s) for requests in like)

    judged = drawn(second, judging.judging_seeds)
    return EvaluationSet(
        name=name,
        title=f"{name}, second half",
        situation=situation,
        loads=(MEAN_LOAD,),
        judged=(judged,),
        tuning=drawn(first, judging.unjudged_seeds),
        capacity_per_s=capacity,
        warm_up_s=min(judging.warm_up_s, float(judged[0].arrival_s[-1]) / 10),
    )


if __name__ == "__main__":
    main(run, __file__)
