"""When it breaks: wrong tables, views that are late, requests that are not as in training.

    python -m experiments.robustness [--fast]

The perturbations of `besteffort diagnose`, for all policies of the default situation: qualities and latencies that are
wrong by 5 to 30%, a rate estimate that lags by 1 to 100 arrivals, batch sizes that are up to 5 s old, loads below and
beyond those of the training, other arrivals, single tasks. Heuristics assume the same wrong tables and see the same
late views; policy `i` plays list `i`.
"""

from __future__ import annotations

import dataclasses

from besteffort.diagnosis.diagnose import (
    REQUESTS,
    bounds_of,
    perturbations_figure,
    perturbations_table,
    synthetic_suite,
    trained_loads,
    try_out,
)
from besteffort.diagnosis.findings import compare
from besteffort.evaluation.formats import points
from besteffort.evaluation.judging import LEARNED
from besteffort.evaluation.statistics import mean_interval
from besteffort.routers.learned import learned_router
from besteffort.runs.config import load_situation
from experiments.lab import Claim, Findings, Lab, main


def run(lab: Lab) -> Findings:
    """Tries the default situation's policies out."""
    situation = load_situation("paper")
    policies = lab.train(situation, lab.training(), name="paper")
    judging = lab.evaluation
    config = dataclasses.replace(
        judging,
        requests=min(judging.requests, REQUESTS),
        tuning_requests=min(judging.tuning_requests, REQUESTS),
        warm_up_s=min(judging.warm_up_s, 1.0),
    )
    loads = trained_loads(policies[0])
    assert loads is not None, "the default training names its loads"
    suite = synthetic_suite(situation, config, loads)
    lab.log("trying out")
    outcomes, _ = try_out({LEARNED: [learned_router(policy) for policy in policies]}, suite, config)
    compared = [compare(outcome, LEARNED) for outcome in outcomes]
    bounds = bounds_of(suite.evaluation_set, outcomes)
    views = ("rate estimate", "batch sizes")
    groups = {
        "wrong tables (5 to 30%)": [
            one
            for one in compared
            if "table" in one.outcome.perturbation.family or "models" in one.outcome.perturbation.family
        ],
        "late views": [one for one in compared if one.outcome.perturbation.family in views],
        "other requests": [
            one for one in compared if one.outcome.perturbation.family in ("load", "arrivals", "task mix")
        ],
    }
    claims = []
    for name, members in groups.items():
        behind = [one for one in members if one.ahead.high < 0]
        ahead = [one for one in members if one.ahead.low > 0]
        worst = min(members, key=lambda one: float(one.ahead.mean))
        claims.append(
            Claim(
                f"When it breaks: {name}",
                "",
                f"ahead of the best heuristic beyond the interval in {len(ahead)} of {len(members)} "
                "perturbations, behind in "
                f"{len(behind)}; at worst {points(float(worst.ahead.mean))} points "
                f"(with {worst.outcome.perturbation.name})",
            )
        )
    data = [
        {
            "family": one.outcome.perturbation.family,
            "perturbation": one.outcome.perturbation.name,
            "size": one.outcome.perturbation.size,
            "learned": mean_interval(one.outcome.performance[LEARNED]),
            "best_rule": [one.rule, mean_interval(one.outcome.performance[one.rule])],
            "ahead": one.ahead,
            "avoidable_misses": one.avoidable_misses,
            "bound": bound,
        }
        for one, bound in zip(compared, bounds, strict=True)
    ]
    figure = perturbations_figure(compared, bounds, situation)
    return Findings(data, claims, [perturbations_table(compared, bounds)], {"": figure})


if __name__ == "__main__":
    main(run, __file__)
