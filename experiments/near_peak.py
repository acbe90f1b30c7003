"""Near-peak windows searched for: how often a router is near the peak that looks for nothing else.

    python -m experiments.near_peak [--fast] [--data DIR]

The loads of `unpredictable_load`. For 96% and for 98% of peak performance each, rules are searched and rivals are tuned
for the share of the windows of 1 s that come so near, with as many candidates each, on lists of 300 windows in all; all
are judged on lists of more than 300 windows, drawn apart. The ratio to static serving has a ceiling, where every window
is near the peak: 1 over the share of the best static model.

With lines of 128 nothing is searched: what was found with lines of 32 is judged there. One rule serves both loads of
Azure Functions. The halves of the trace are as long as they are. What is found is not looked for again after an
interruption.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from besteffort.evaluation import metrics, plots
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.formats import percent, times
from besteffort.evaluation.judging import EvaluationSet, burst_set, mean_load
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.rollouts import play_routers
from besteffort.evaluation.statistics import best_mean, mean_interval, paired_difference, ratio_interval
from besteffort.evaluation.tuning import heuristic_routers, tune
from besteffort.learning.config import SearchConfig
from besteffort.routers.learned import learned_router
from besteffort.runs.config import load_situation
from besteffort.simulator.result import Result
from besteffort.workload.requests import Requests
from experiments import methods, rivals
from experiments.lab import Claim, ClaimStatus, Findings, Lab, main, status_of_ratio
from experiments.rivals import Setting
from experiments.unpredictable_load import CLAIMED_S, CLAIMS, LONG_LINE, MEAN_LOAD, maf_samples, maf_set

WINDOWS = 300
"""Windows of a list to judge on at least, and of the lists to learn or tune on together."""
BURSTS = "bursts"
SEARCHED = "searched"
_SPARE = 1.15  # how much longer lists are than so many windows at the mean rate: bursts come when they come
_LISTS = 2  # to learn or tune on
_GENERATIONS, _POPULATION = 8, 12


class Case(NamedTuple):
    """A load to judge on, and where settings and rules are found for it.

    Attributes:
      made: the lists to judge on.
      tuned_on: the set whose lists rivals are tuned on.
      learned_on: what rules are searched on.
    """

    made: EvaluationSet
    tuned_on: EvaluationSet
    learned_on: Setting


def run(lab: Lab) -> Findings:
    """Searches, tunes and judges for each share of the peak."""
    how = _judging(lab)
    cases = dict(_cases(lab, how))
    rows = {
        (name, fraction): _compared(_judged(lab, name, case, how, fraction), case.made, fraction)
        for name, case in lab.selected(cases, fast=(BURSTS,)).items()
        for fraction in CLAIMS
    }
    shown = ("windows", "light", "searched", "rule", "ahead", "static", "ratio", "ceiling", "performance")
    table = Table(
        title=f"Windows of {CLAIMED_S:g} s near the peak: a rule searched for them, rivals tuned for them",
        head="Setting",
        columns=(
            Column("Windows of a list", "number", 0),
            Column("Light windows (%)", brief=True),
            Column("Searched (%)", brief=True),
            Column("Best rule (%)", brief=True),
            Column("searched ahead (points)", "points", brief=True),
            Column("Best static (%)", brief=True),
            Column("searched / static", "number"),
            Column("ceiling", "number"),
            Column("Performance of searched (%)", digits=2),
        ),
        rows=tuple(
            (_label(name, fraction), tuple(row[each] for each in shown)) for (name, fraction), row in rows.items()
        ),
        note=(
            "Mean ± half the 95% interval over policies and lists, paired. The best rule and the best static model are "
            "those with most such windows in hindsight. A window is light if no more requests arrive in it than the "
            "largest model carries alone."
        ),
    )
    figure = plots.plot_settings(
        [
            plots.Setting(
                group=name,
                name=f"at {fraction:.0%} of peak",
                learned=row["searched"],
                static=float(row["static"].mean),
                heuristic=float(row["rule"].mean),
                bound=1.0,
                ahead=row["ahead"],
            )
            for (name, fraction), row in rows.items()
        ],
        title="Windows near the peak, searched for",
        label=f"Share of the windows of {CLAIMED_S:g} s",
    )
    data = {_label(name, fraction): row for (name, fraction), row in rows.items()}
    claims = [_claim(name, fraction, row) for (name, fraction), row in rows.items()]
    return Findings(data, claims, [table], {"": figure})


def _judging(lab: Lab) -> EvaluationConfig:
    """How rivals are tuned: with as many candidates as rules are searched with."""
    return dataclasses.replace(
        lab.evaluation, tuning_generations=_GENERATIONS, tuning_population=_POPULATION, tuning_seeds=_LISTS
    )


def _cases(lab: Lab, how: EvaluationConfig) -> Iterator[tuple[str, Case]]:
    """The cases by name, without those of traces that are not at hand."""
    situation = load_situation("paper")
    windows = WINDOWS if lab.scale.name == "full" else WINDOWS // 10

    def lasting(load: float) -> EvaluationConfig:
        """Lists that last for so many windows at a mean load."""
        per_s = load * situation.unit_load
        return dataclasses.replace(
            how,
            requests=math.ceil(per_s * (_SPARE * windows * CLAIMED_S + how.warm_up_s)),
            tuning_requests=math.ceil(per_s * windows * CLAIMED_S / _LISTS),
        )

    bursty = lasting(mean_load(how.burst, situation))
    made = burst_set(situation, bursty)
    drawn = Setting(situation, lambda: made, how.burst)
    yield BURSTS, Case(made, made, drawn)
    patient = dataclasses.replace(situation, cluster=dataclasses.replace(situation.cluster, queue_capacity=LONG_LINE))
    yield f"{BURSTS}, lines of {LONG_LINE}", Case(burst_set(patient, bursty), made, drawn)

    samples = maf_samples(lab)
    if samples is not None:
        counts = {load: maf_set(samples, situation, load, lasting(load)) for load in rivals.COUNT_LOADS}
        lists = [each for one in counts.values() for each in one.tuning]
        learned_on = Setting(situation, lambda: made, tuning=rivals.cut_alike(lists))
        for load, one in counts.items():
            yield f"Azure Functions, load {load:g}", Case(one, one, learned_on)
    for name, setting in rivals.on_trace(lab, situation, how, "code", (MEAN_LOAD,)):
        half = setting.make()
        yield name, Case(half, half, setting)


def _judged(lab: Lab, name: str, case: Case, how: EvaluationConfig, fraction: float) -> dict[str, Result]:
    """What every router does on the lists of a case, by name."""
    learned_on = case.learned_on.tuning or case.tuned_on.tuning
    looked_for = SearchConfig(
        generations=_GENERATIONS,
        population=_POPULATION,
        lists=_LISTS,
        requests=len(learned_on[0]),
        objective="near_peak",
        window_s=CLAIMED_S,
        peak_share=fraction,
    )
    policies = methods.search(lab, _label(name, fraction), case.learned_on, case.tuned_on, looked_for)
    lab.log(f"tuning: {_label(name, fraction)}")
    tuned_on = case.tuned_on
    (tuned,) = tune(
        tuned_on.situation,
        [tuned_on.tuning],
        how,
        warm_up_s=tuned_on.warm_up_s,
        objective=looked_for,
        kept=lab.work / "near_peak_tuned.json",
    )
    lab.log(f"judging: {_label(name, fraction)}")
    situation, lists = case.made.situation, list(case.made.judged[0])
    routers = heuristic_routers(situation, tuned, len(lists))
    return play_routers(
        situation, lists, routers | {SEARCHED: [learned_router(policy) for policy in policies[: len(lists)]]}
    )


def _compared(played: dict[str, Result], made: EvaluationSet, fraction: float) -> dict[str, Any]:
    """Shares of windows, the best of each kind in hindsight, and what was ahead."""
    peak, warm_up_s = made.situation.peak_rewards, made.warm_up_s
    shares = {
        name: metrics.windows_at_peak(result, peak, width_s=CLAIMED_S, fraction=fraction, warm_up_s=warm_up_s)
        for name, result in played.items()
    }
    static = best_mean(shares, [name for name in shares if name.startswith("always ")])
    _, rule = rivals.best_rivals({name: share for name, share in shares.items() if name != SEARCHED})
    searched = shares[SEARCHED]
    arrivals = [_arrivals(requests, warm_up_s) for requests in made.judged[0]]
    any_share = float(shares[static].mean()) > 0
    return {
        "windows": min(map(len, arrivals)),
        "light": mean_interval(np.array([(each <= made.capacity_per_s * CLAIMED_S).mean() for each in arrivals])),
        "searched": mean_interval(searched),
        "rule": mean_interval(shares[rule]),
        "static": mean_interval(shares[static]),
        "ahead": paired_difference(searched, shares[rule]),
        "ratio": ratio_interval(searched, shares[static]) if any_share else None,
        "ceiling": 1 / float(shares[static].mean()) if any_share else None,
        "performance": mean_interval(metrics.performance(played[SEARCHED], warm_up_s=warm_up_s)),
        "best": {"rule": rule, "static": static},
        "shares": {name: mean_interval(share) for name, share in shares.items()},
    }


def _arrivals(requests: Requests, warm_up_s: float) -> np.ndarray:
    """(windows,) how many requests arrive in each window after the warm-up; windows without any are left out."""
    elapsed = requests.arrival_s - requests.arrival_s[0] - warm_up_s
    return np.unique(np.floor(elapsed[elapsed >= 0] / CLAIMED_S), return_counts=True)[1]


def _claim(name: str, fraction: float, row: dict[str, Any]) -> Claim:
    wanted, ratio, best = CLAIMS[fraction], row["ratio"], row["best"]
    status: ClaimStatus = "no claim"
    if ratio is not None and row["ceiling"] >= wanted:
        status = status_of_ratio(ratio, reached=bool(ratio.low >= wanted))
    return Claim(
        f"{_label(name, fraction)} performance, how often compared with static serving, when searched for",
        f"{wanted:g}x",
        f"{'no static model ever is' if ratio is None else times(ratio)} ({percent(row['searched'])} of windows)",
        static=f"{percent(row['static'])} ({best['static']})",
        heuristic=f"{percent(row['rule'])} ({best['rule']})",
        bound="" if ratio is None else f"{times(row['ceiling'])} (every window)",
        status=status,
    )


def _label(name: str, fraction: float) -> str:
    return f"{name}: {fraction:.0%} of peak"


if __name__ == "__main__":
    main(run, __file__)
