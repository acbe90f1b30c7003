"""Claim 8, a cheap router: what a decision takes on one CPU core, and what the size of the network does.

    python -m experiments.cheap_router [--fast]

The paper's network of 2 x 256 units decides on a CPU. Here single networks of one to three layers with 16 to 512 units
in all, trained alike (half the usual batch, so that the largest ends in reasonable time), and the default policy, an
ensemble whose training is longer, too; judged under the same bursty arrivals. With `--fast` only the sizes in
`INDICATIVE`. A decision is `Policy.decide`, from names and numbers to the name of a model, in one thread; its time
depends on the machine.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from besteffort.evaluation import plots
from besteffort.evaluation.formats import percent, points, with_name
from besteffort.evaluation.judging import LEARNED, burst_set
from besteffort.evaluation.ranking import ranking
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.statistics import Interval, mean_interval
from besteffort.policy import Policy
from besteffort.runs.config import load_situation
from experiments.lab import Claim, Findings, Lab, main

UNITS = (16, 64, 256, 512)
SIZES = tuple((units,) * layers for layers in (1, 2, 3) for units in UNITS if layers * units <= 512)
PAPER, DEFAULT = (256, 256), (64, 64)
INDICATIVE = ("2 x 64", "2 x 256")


def run(lab: Lab) -> Findings:
    """Trains all sizes, judges them on the same lists, times their decisions."""
    situation = load_situation("paper")
    policies = {}
    sizes = tuple(lab.selected({_name(hidden): hidden for hidden in SIZES}, fast=INDICATIVE).values())
    for hidden in sizes:
        config = {
            "hidden_sizes": hidden,
            "batch_size": 256,
            "ensemble_size": 1,
            "decisions": lab.scale.variant_decisions,
        }
        policies[hidden] = lab.train(situation, lab.training(config=config), name=_name(hidden))
    usual = lab.train(situation, lab.training(), name="paper")
    evaluation = lab.judge(
        burst_set(situation, lab.evaluation),
        {f"{LEARNED}: {_name(hidden)}": each for hidden, each in policies.items()} | {LEARNED: usual},
    )
    performance = {hidden: ranking(evaluation, learned=f"{LEARNED}: {_name(hidden)}").learned for hidden in sizes}
    as_usual, usual_us = ranking(evaluation).learned, microseconds(usual[0])
    micros = {hidden: microseconds(each[0]) for hidden, each in policies.items()}
    one = ranking(evaluation, learned=f"{LEARNED}: {_name(DEFAULT)}")
    gap = mean_interval(performance[PAPER] - performance[DEFAULT])
    claim = Claim(
        "A router that is cheap on a CPU: time of a decision, 2 x 256 units",
        "runs on a CPU",
        f"{micros[PAPER]:.1f} microseconds; 2 x 64 units: {micros[DEFAULT]:.1f}, and performance is "
        f"{points(gap, 2)} points with 2 x 256 "
        f"({percent(performance[PAPER], 2)}); the default ensemble: {usual_us:.1f}, {percent(as_usual, 2)}",
        static=with_name(one.static),
        heuristic=with_name(one.heuristic),
        bound=percent(float(evaluation.bounds[0].performance)),
    )
    table = Table(
        title="Size of the network",
        head="Hidden units",
        columns=(
            Column("Performance (%)", digits=2, brief=True),
            Column("Decision (microseconds)", "number", 1, brief=True),
            Column("Weights", "number", 0, brief=True),
        ),
        rows=(
            *(
                (_name(hidden), (mean_interval(performance[hidden]), micros[hidden], _weights(policies[hidden][0])))
                for hidden in sizes
            ),
            ("the default ensemble, trained longer", (mean_interval(as_usual), usual_us, _weights(usual[0]))),
        ),
        note="Mean ± half the 95% interval over policies and lists. Decisions: best median of five rounds, one thread.",
    )

    def by_units(layers: int) -> Interval:
        missing = np.full(lab.scale.seeds, np.nan)
        return mean_interval(np.stack([performance.get((units,) * layers, missing) for units in UNITS]))

    depths = sorted({len(hidden) for hidden in sizes})
    panels = [
        plots.Panel(
            title="Performance under bursts",
            x=np.array(UNITS, float),
            curves={f"{layers} layer{'s' * (layers > 1)}": by_units(layers) for layers in depths},
            x_label="Units per layer",
            y_label="Performance (mean reward)",
            log=True,
            bars=True,
        ),
        plots.Panel(
            title="Time of a decision",
            x=np.array(UNITS, float),
            curves={
                f"{layers} layer{'s' * (layers > 1)}": Interval(
                    np.array([micros.get((units,) * layers, np.nan) for units in UNITS]),
                    np.full(len(UNITS), np.inf),
                    lab.scale.seeds,
                )
                for layers in depths
            },
            x_label="Units per layer",
            y_label="Decision (microseconds)",
            log=True,
            share=False,
        ),
    ]
    data = {
        _name(hidden): {"performance": mean_interval(performance[hidden]), "microseconds": micros[hidden]}
        for hidden in sizes
    }
    data["default"] = {"performance": mean_interval(as_usual), "microseconds": usual_us}
    return Findings(data, [claim], [table], {"": plots.plot_panels(panels)})


def microseconds(policy: Policy, rounds: int = 5, decisions: int = 2_000) -> float:
    """Smallest of some rounds' median time of a decision."""
    generator = np.random.default_rng(0)
    states: list[dict[str, Any]] = [
        {
            "task": policy.tasks[generator.integers(len(policy.tasks))],
            "batch_sizes": dict(
                zip(policy.models, generator.integers(0, 64, len(policy.models)).tolist(), strict=True)
            ),
            "arrival_rate": float(generator.uniform(1, 2_000)),
        }
        for _ in range(decisions)
    ]
    medians = []
    for _ in range(rounds):
        taken = []
        for state in states:
            started = time.perf_counter()
            policy.decide(**state)
            taken.append(time.perf_counter() - started)
        medians.append(float(np.median(taken)))
    return round(1e6 * min(medians), 2)


def _weights(policy: Policy) -> float:
    """Their number, without the zeros between the networks of an ensemble."""
    return float(sum(np.count_nonzero(kernel) + bias.size for kernel, bias in policy.weights))


def _name(hidden: tuple[int, ...]) -> str:
    return f"{len(hidden)} x {hidden[0]}"


if __name__ == "__main__":
    main(run, __file__)
