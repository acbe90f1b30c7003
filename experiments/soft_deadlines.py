"""Claim 6, soft deadlines: fine-tuning from the hard-deadline policy against training from scratch.

    python -m experiments.soft_deadlines [--fast]

After its deadline an answer loses its worth linearly, to nothing at twice the deadline. Both ways are trained for
several numbers of decisions and judged under the same bursty arrivals.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from besteffort.evaluation import plots
from besteffort.evaluation.formats import percent, points, with_name
from besteffort.evaluation.judging import LEARNED, burst_set
from besteffort.evaluation.ranking import ranking
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.statistics import mean_interval, paired_difference
from besteffort.runs.config import load_situation
from besteffort.situation import Reward
from experiments.lab import FINE_TUNING, Claim, Findings, Lab, main

STEPS = 4
SOFT = Reward(soft_span=1.0)


def run(lab: Lab) -> Findings:
    """Trains both ways and judges them."""
    hard = load_situation("paper")
    soft = dataclasses.replace(hard, reward=SOFT)
    base = lab.train(hard, lab.training(), name="hard deadlines")
    unit = lab.scale.variant_decisions // 2**STEPS
    lengths = [unit * 2**step for step in range(STEPS)]
    ways: dict[str, list] = {"fine-tuned": [], "from scratch": []}
    for decisions in lengths:
        config = {"decisions": decisions, "log_interval": 2}
        scratch = lab.training(config=config)
        ways["from scratch"].append(lab.train(soft, scratch, name=f"from scratch, {decisions:,} decisions"))
        fine = lab.training(config=config, hyper=FINE_TUNING)
        ways["fine-tuned"].append(lab.train(soft, fine, name=f"fine-tuning, {decisions:,} decisions", start=base))
    policies = {
        f"{LEARNED}: {way}, {decisions}": each
        for way, by_length in ways.items()
        for decisions, each in zip(lengths, by_length, strict=True)
    }
    evaluation = lab.judge(burst_set(soft, lab.evaluation), {f"{LEARNED}: hard": base, **policies})
    performance = {
        way: np.stack([ranking(evaluation, learned=f"{LEARNED}: {way}, {decisions}").learned for decisions in lengths])
        for way in ways
    }
    untouched = ranking(evaluation, learned=f"{LEARNED}: hard")
    final = performance["from scratch"][-1]
    enough = next(
        (
            decisions
            for decisions, values in zip(lengths, performance["fine-tuned"], strict=True)
            if float(values.mean()) >= float(final.mean())
        ),
        None,
    )
    gain = paired_difference(performance["fine-tuned"][-1], untouched.learned)
    if untouched.learned.mean() >= final.mean():
        fewer = f"the hard-deadline policy is better than that without any ({percent(untouched.learned, 2)})"
    elif enough is None:
        fewer = "not reached"
    else:
        fewer = f"{'at least ' * (enough == lengths[0])}{lengths[-1] / enough:.3g} times fewer"
    sooner = [paired_difference(fine, scratch) for fine, scratch in zip(*performance.values(), strict=True)]
    claim = Claim(
        "Soft deadlines: fine-tuning needs fewer iterations than training from scratch",
        "fewer",
        f"from scratch {percent(final, 2)} after {lengths[-1]:,} decisions: {fewer}; fine-tuned as long "
        f"{points(gain, 2)} points to the policy that it starts from",
        static=with_name(untouched.static),
        heuristic=with_name(untouched.heuristic),
        bound=percent(float(evaluation.bounds[0].performance)),
        status="does not hold" if not enough else "holds" if gain.low > 0 else "holds in part",
    )
    table = Table(
        title="Soft deadlines: performance by decisions of training",
        head="Decisions",
        columns=(
            Column("Fine-tuned (%)", digits=2, brief=True),
            Column("From scratch (%)", digits=2, brief=True),
            Column("Difference (points)", "points", 2, brief=True),
        ),
        rows=(
            ("0", (mean_interval(untouched.learned), None, None)),
            *(
                (f"{decisions:,}", (mean_interval(fine), mean_interval(scratch), difference))
                for decisions, fine, scratch, difference in zip(lengths, *performance.values(), sooner, strict=True)
            ),
        ),
        note=f"0 is the hard-deadline policy as it is; the best heuristic, {untouched.heuristic[0]}, reaches "
        f"{percent(untouched.heuristic[1], 2)}. Mean ± half the 95% interval over policies and lists.",
    )
    level = {
        "hard-deadline policy as it is": untouched.learned,
        untouched.heuristic[0]: untouched.heuristic[1],
    }
    panel = plots.Panel(
        title="Bursty arrivals, soft deadlines",
        x=np.array(lengths, float),
        curves={
            **{way: mean_interval(values) for way, values in performance.items()},
            **{name: mean_interval(np.stack([values] * len(lengths))) for name, values in level.items()},
        },
        x_label="Decisions of training",
        y_label="Performance (mean reward)",
        log=True,
    )
    data = {
        "decisions": lengths,
        **{way: mean_interval(values) for way, values in performance.items()},
        "hard_policy": mean_interval(untouched.learned),
        "best_heuristic": [untouched.heuristic[0], mean_interval(untouched.heuristic[1])],
        "bound": float(evaluation.bounds[0].performance),
    }
    return Findings(data, [claim], [table], {"": plots.plot_panels([panel], focus="fine-tuned")})


if __name__ == "__main__":
    main(run, __file__)
