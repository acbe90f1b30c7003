"""Claim 3, hardware utility: four replicas with the router against eight that serve the large model.

    python -m experiments.hardware_utility [--fast]

The paper: 3.94 times the performance per GPU. Both clusters meet the same bursty requests, at several mean loads; load
1 is what the large model sustains on *four* replicas, so that eight of them are full at load 2.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from besteffort.evaluation import metrics, plots
from besteffort.evaluation.formats import times
from besteffort.evaluation.judging import LEARNED, synthetic_set
from besteffort.evaluation.ranking import ranking
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.rollouts import play_routers
from besteffort.evaluation.statistics import mean_interval, ratio_interval
from besteffort.routers.registry import make_router
from besteffort.runs.config import load_situation
from besteffort.simulator.build import build
from besteffort.workload.config import Markov
from experiments.lab import Claim, Findings, Lab, main, status_of_ratio

LOADS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # mean loads
CLAIMED_LOAD, CLAIMED = 2.0, 3.94
CALM, BURST, DWELL_S = 0.3, 2.4, (4.0, 2.0)  # of the mean load; mean (4 x 0.3 + 2 x 2.4) / 6 = 1


def run(lab: Lab) -> Findings:
    """Judges the default situation's policies against eight replicas of the large model."""
    situation = load_situation("paper")
    double = dataclasses.replace(
        situation, cluster=dataclasses.replace(situation.cluster, replicas=2 * situation.cluster.replicas)
    )
    policies = lab.train(situation, lab.training(), name="paper")
    workloads = [Markov(loads=(CALM * load, BURST * load), dwell_s=DWELL_S) for load in LOADS]
    evaluation_set = synthetic_set("bursts", "Bursty arrivals", situation, lab.evaluation, LOADS, workloads)
    evaluation = lab.judge(evaluation_set, policies)
    lists = [requests for group in evaluation_set.judged for requests in group]
    largest = make_router("static", build(double, None, history=1)[0], model=len(double.profile.model_names) - 1)
    played = play_routers(double, lists, {"large": [largest] * len(lists)})["large"]
    shape = (len(LOADS), -1)
    eight = metrics.performance(played, warm_up_s=evaluation_set.warm_up_s).reshape(shape)
    learned = evaluation.over_loads(metrics.performance, LEARNED)
    replicas = situation.cluster.replicas
    ratios = [
        ratio_interval(ours / replicas, theirs / (2 * replicas)) for ours, theirs in zip(learned, eight, strict=True)
    ]
    middle = LOADS.index(CLAIMED_LOAD)
    one = ranking(evaluation, middle)
    claim = Claim(
        f"Performance per GPU, 4 with the router over 8 with the large model, bursts of mean load {CLAIMED_LOAD:g}",
        f"{CLAIMED:g}x",
        times(ratios[middle], 2),
        static=f"{times(2 * float(one.static[1].mean()) / float(eight[middle].mean()), 2)} ({one.static[0]})",
        heuristic=f"{times(2 * float(one.heuristic[1].mean()) / float(eight[middle].mean()), 2)} ({one.heuristic[0]})",
        bound=times(2 * float(evaluation.bounds[middle].performance) / float(eight[middle].mean()), 2),
        status=status_of_ratio(ratios[middle], reached=bool(ratios[middle].low >= CLAIMED)),
    )
    table = Table(
        title="Performance per GPU: four replicas with the learned router, eight with the large model",
        head="Mean load",
        columns=(
            Column("Learned, 4 GPUs (%)", digits=2, brief=True),
            Column("Large model, 8 GPUs (%)", digits=2, brief=True),
            Column("Per GPU (times)", "number", 2, brief=True),
        ),
        rows=tuple(
            (f"{load:g}", (mean_interval(learned[i]), mean_interval(eight[i]), ratios[i]))
            for i, load in enumerate(LOADS)
        ),
        note="Load 1 is what the large model sustains on four replicas. Mean ± half the 95% interval over policies and "
        "lists.",
    )
    panel = plots.Panel(
        title="Performance under bursts",
        x=np.array(LOADS),
        curves={
            "learned, 4 replicas": mean_interval(learned),
            "large model, 8 replicas": mean_interval(eight),
            f"{one.heuristic[0]}, 4 replicas": mean_interval(
                evaluation.over_loads(metrics.performance, one.heuristic[0])
            ),
            "large model, 4 replicas": mean_interval(evaluation.over_loads(metrics.performance, evaluation.static[-1])),
        },
        x_label="Mean load (1 = the large model's capacity on 4 replicas)",
        y_label="Performance (mean reward)",
        log=True,
        bound=np.array([float(bound.performance) for bound in evaluation.bounds]),
    )
    data = {
        "loads": LOADS,
        "learned": mean_interval(learned),
        "large_on_eight": mean_interval(eight),
        "per_gpu": ratios,
        "tuned": evaluation.tuned,
    }
    return Findings(data, [claim], [table], {"": plots.plot_panels([panel], focus="learned, 4 replicas")})


if __name__ == "__main__":
    main(run, __file__)
