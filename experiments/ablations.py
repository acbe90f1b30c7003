"""Why it works: what the network sees and how it learns, one thing taken away at a time; and what a policy does.

    python -m experiments.ablations [--fast]

All variants are single networks, so that no average hides what a part does, trained for equally many decisions and
judged on the same lists, under bursts and on Poisson arrivals at loads 1 and 4; an ensemble of such networks is one of
the variants. With `--fast` only the variants in `INDICATIVE`, and no batch sizes. The second figure shows the choices
of one policy of the default situation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from besteffort.evaluation import metrics, plots
from besteffort.evaluation.formats import points
from besteffort.evaluation.judging import LEARNED, burst_set, grid_set
from besteffort.evaluation.ranking import ranking
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.statistics import mean_interval, paired_difference
from besteffort.policy import Policy
from besteffort.runs.config import load_situation
from besteffort.runs.experiment import TrainingConfig
from besteffort.workload.config import RandomRates
from experiments.lab import Claim, Findings, Lab, main

LOADS = (1.0, 4.0)
ENSEMBLE_SIZE = 4
FEATURES: Mapping[str, tuple[str, ...]] = {
    "no batch sizes": ("task", "arrival_rate"),
    "no arrival rate": ("task", "batch_sizes"),
    "no task": ("batch_sizes", "arrival_rate"),
}
LEARNING: Mapping[str, dict[str, Any]] = {
    "default": {},
    f"an ensemble of {ENSEMBLE_SIZE}": {"config": {"ensemble_size": ENSEMBLE_SIZE}},
    "own-request credit": {"config": {"credit": "own"}},
    "plain DQN": {"config": {"double": False}},
    "one-step returns": {"config": {"n_step": 1}},
    "last network, not the average": {"hyper": {"average_power": 1e9}},
    "horizon 2 s": {"hyper": {"horizon_s": 2.0}},
    "trained on loads 0.5 to 4": {"workload": RandomRates(low=0.5, high=4.0)},
}
INDICATIVE = ("default", "own-request credit", "last network, not the average", "horizon 2 s")


def run(lab: Lab) -> Findings:
    """Trains and judges every variant."""
    situation = load_situation("paper")
    judging = dataclasses.replace(lab.evaluation, loads=LOADS)
    names: dict[str, np.ndarray] = {}
    evaluation_sets = (burst_set(situation, judging), grid_set(situation, judging))

    decisions = lab.scale.variant_decisions

    def training(config: Mapping[str, Any] = MappingProxyType({}), **changes: Any) -> TrainingConfig:
        return lab.training(config={"ensemble_size": 1, "decisions": decisions, **config}, **changes)

    learning = lab.selected(LEARNING, fast=INDICATIVE)
    policies = {name: lab.train(situation, training(**changes), name=name) for name, changes in learning.items()}
    evaluations = [
        lab.judge(evaluation_set, {f"{LEARNED}: {name}": each for name, each in policies.items()})
        for evaluation_set in evaluation_sets
    ]
    for name in policies:
        names[name] = _performance(evaluations, f"{LEARNED}: {name}")
    rivals = np.concatenate(
        [
            [
                ranking(evaluation, i, learned=f"{LEARNED}: default").heuristic[1]
                for i in range(len(evaluation.set.loads))
            ]
            for evaluation in evaluations
        ]
    )
    for name, features in lab.selected(FEATURES, fast=("no batch sizes",)).items():
        view = dataclasses.replace(situation.view, features=features)
        other = dataclasses.replace(situation, view=view)
        trained = lab.train(other, training(), name=name)
        judged = [
            lab.judge(dataclasses.replace(evaluation_set, situation=other), trained, evaluation.tuned)
            for evaluation_set, evaluation in zip(evaluation_sets, evaluations, strict=True)
        ]
        names[name] = _performance(judged, LEARNED)
    default = names["default"]
    changes = {name: paired_difference(values, default) for name, values in names.items()}
    columns = ["bursts", *(f"load {load:g}" for load in LOADS)]
    cost = {name: float(change.mean.mean()) for name, change in changes.items() if name != "default"}
    dear = sorted(cost, key=cost.__getitem__)[:3]
    claim = Claim(
        "Why it works: what matters most (mean over bursts and loads 1 and 4)",
        "",
        "; ".join(f"{name} {points(cost[name])} points" for name in dear),
    )
    table = Table(
        title="What each part is worth: difference to the default training",
        head="Variant",
        columns=tuple(Column(f"{column} (points)", "points", 2, brief=True) for column in columns),
        rows=(
            *(
                (name, tuple(change[i] for i in range(len(columns))))
                for name, change in changes.items()
                if name != "default"
            ),
            ("best heuristic", tuple(paired_difference(rivals, default)[i] for i in range(len(columns)))),
        ),
        note=f"Single networks, trained for {decisions:,} decisions where nothing else is said. Mean ± half the 95% "
        "interval over policies and lists, paired.",
    )
    policy = lab.train(situation, lab.training(), name="paper")[0]
    figures = {
        "": plots.plot_matrix(
            np.array([change.mean for name, change in changes.items() if name != "default"]),
            [name for name in changes if name != "default"],
            columns,
            title="Points gained or lost against the default training",
            row_label="what is changed",
            column_label="judged on",
        ),
        "policy": choices_figure(policy),
    }
    data = {
        "judged_on": columns,
        "performance": {name: mean_interval(values) for name, values in names.items()},
        "difference": changes,
        "best_heuristic": mean_interval(rivals),
    }
    return Findings(data, [claim], [table], figures)


def choices_figure(policy: Policy) -> Any:
    """What a policy chooses for each task, over the arrival rate and the batch size of its largest model."""
    rates = np.geomspace(20.0, 3_000.0, 60)
    sizes = np.arange(0, 129, 4)
    choices = {}
    for task in policy.tasks:
        chosen = [
            [
                policy.models.index(
                    policy.decide(task=task, batch_sizes=_sizes(policy, int(size)), arrival_rate=float(rate))
                )
                for rate in rates
            ]
            for size in sizes
        ]
        choices[task] = np.array(chosen)
    return plots.plot_choices(
        choices,
        policy.models,
        rates=rates,
        sizes=sizes.astype(float),
        x_label="Arrival rate (requests/s)",
        y_label=f"Batch size of {policy.models[-1]}\n(the others idle)",
    )


def _sizes(policy: Policy, largest: int) -> dict[str, int]:
    return {model: largest if model == policy.models[-1] else 0 for model in policy.models}


def _performance(evaluations: list, learned: str) -> np.ndarray:
    """(bursts and loads, seeds)."""
    return np.concatenate([evaluation.over_loads(metrics.performance, learned) for evaluation in evaluations])


if __name__ == "__main__":
    main(run, __file__)
