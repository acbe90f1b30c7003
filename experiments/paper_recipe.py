"""Claim 10, the paper's own recipe: 1.2 million iterations, 2 x 256 units, hard deadlines, equal shares of the tasks.

    python -m experiments.paper_recipe [--fast]

What of it is public is followed; the rest is textbook Double DQN (van Hasselt et al., AAAI 2016; Mnih et al., Nature
2015): an iteration is one decision, every fourth brings an update on 32 remembered decisions, each credited with what
its own request earned, one-step returns, a discount per decision, a target network copied every 10,000 decisions. Its
memory holds 65,536 decisions, as ours does, where Mnih et al. keep a million. Our default is asked after how many
decisions of each of its networks it does as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from besteffort.evaluation import plots
from besteffort.evaluation.formats import percent, points, with_name
from besteffort.evaluation.judging import LEARNED, burst_set
from besteffort.evaluation.ranking import ranking
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.statistics import mean_interval, paired_difference
from besteffort.runs.config import load_situation
from experiments.lab import Claim, Findings, Lab, main

ITERATIONS = 1_200_000
RECIPE: dict[str, Any] = {
    "ensemble_size": 1,
    "hidden_sizes": (256, 256),
    "num_envs": 16,
    "rollout_length": 64,
    "updates_per_rollout": 256,  # of 16 x 64 decisions
    "batch_size": 32,
    "buffer_length": 4096,
    "log_interval": 100,
    "n_step": 1,
    "baseline": False,
    "credit": "own",
    "loss": "huber",
}
NUMBERS = {
    "learning_rate": 2.5e-4,
    "learning_rate_end": 2.5e-4,
    "epsilon_spread": 0.0,
    "discount": 0.97,
    "horizon_s": 1e6,
    "target_interval": 10_000,
    "tau": 1.0,
    "average_power": 1e9,
}
SHARES = (1 / 16, 1 / 4, 1.0)  # of the default's decisions


def run(lab: Lab) -> Findings:
    """Trains both and judges them under the same bursty arrivals."""
    situation = load_situation("paper")
    fast = lab.scale.name == "fast"
    decisions = min(ITERATIONS, lab.scale.variant_decisions // 4) if fast else ITERATIONS
    recipe = lab.training(config={**RECIPE, "decisions": decisions}, hyper=NUMBERS)
    theirs = lab.train(situation, recipe, name="the paper's recipe")
    ours, seconds = {}, {}
    for share in SHARES:
        training = lab.training(config={"decisions": max(32_768, int(share * lab.scale.decisions)), "log_interval": 2})
        training = training if share < 1 else lab.training()
        ours[training.config.decisions] = lab.train(situation, training, name=f"default, {share:g} of its decisions")
        seconds[training.config.decisions] = lab.seconds(situation, training)
    recipe_s = lab.seconds(situation, recipe)
    evaluation = lab.judge(
        burst_set(situation, lab.evaluation),
        {f"{LEARNED}: recipe": theirs, **{f"{LEARNED}: {count}": each for count, each in ours.items()}},
    )
    reached = ranking(evaluation, learned=f"{LEARNED}: recipe").learned
    values = {count: ranking(evaluation, learned=f"{LEARNED}: {count}").learned for count in ours}
    one = ranking(evaluation, learned=f"{LEARNED}: {max(ours)}")
    enough = next((count for count in sorted(ours) if values[count].mean() >= reached.mean()), None)
    gain = paired_difference(values[max(ours)], reached)
    claim = Claim(
        f"The paper's recipe ({decisions:,} iterations, 2 x 256 units)",
        "1.2 million iterations",
        f"{percent(reached)} in {recipe_s:.0f} s per policy; our default reaches that in "
        + (f"{seconds[enough]:.0f} s ({lab.scale.ensemble_size} x {enough:,} decisions)" if enough else "no less time")
        + f" and {percent(values[max(ours)])} in {seconds[max(ours)]:.0f} s ({points(float(gain.mean), 2)} points)",
        static=with_name(one.static),
        heuristic=with_name(one.heuristic),
        bound=percent(float(evaluation.bounds[0].performance)),
    )
    table = Table(
        title="The paper's recipe and our default, under bursts",
        head="Training",
        columns=(
            Column("Decisions of a network", "number", 0, brief=True),
            Column("Seconds per policy", "number", 0, brief=True),
            Column("Performance (%)", digits=2, brief=True),
        ),
        rows=(
            ("the paper's recipe", (float(decisions), recipe_s, mean_interval(reached))),
            *(("our default", (float(count), seconds[count], mean_interval(values[count]))) for count in sorted(ours)),
        ),
        note="Seconds include compilation, and depend on what else the machine does. Mean ± half the 95% interval over "
        "policies and lists.",
    )
    counts = np.array(sorted(ours), float)
    levels = {"the paper's recipe, at its end": reached, one.heuristic[0]: one.heuristic[1]}
    panel = plots.Panel(
        title="Performance under bursts",
        x=counts,
        curves={
            "our default": mean_interval(np.stack([values[int(count)] for count in counts])),
            **{name: mean_interval(np.stack([level] * len(counts))) for name, level in levels.items()},
        },
        x_label="Decisions of each of our networks",
        y_label="Performance (mean reward)",
        log=True,
    )
    data = {
        "recipe": {"decisions": decisions, "seconds": recipe_s, "performance": mean_interval(reached)},
        "default": {
            str(count): {"seconds": seconds[count], "performance": mean_interval(values[count])} for count in ours
        },
        "best_heuristic": [one.heuristic[0], mean_interval(one.heuristic[1])],
        "bound": float(evaluation.bounds[0].performance),
    }
    return Findings(data, [claim], [table], {"": plots.plot_panels([panel], focus="our default")})


if __name__ == "__main__":
    main(run, __file__)
