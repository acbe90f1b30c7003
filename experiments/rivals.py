"""Rivals: how good routers are that nobody trains, with and without what a gateway knows, each tuned where it is.

    python -m experiments.rivals [--fast] [--data DIR]

Every rival is tuned by the same search, with the same budget, on the same lists, and judged on others: under bursts, at
steady loads, on the counts of Azure Functions 2019, on the second halves of the public traces, and in the sixteen
settings of `where_it_pays`. Rivals that predict latency come in two forms: from what the paper's router sees, and from
the request's own prompt and what is ahead of it in flight. Next to them are `marginal`, which also knows the harm to
those in flight and has nothing to tune, and `value`, the rule of nine numbers that weighs earnings, harm and prices;
neither counts as a rival. No policy is trained here. Settings that are done are not done again after an interruption.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from besteffort.evaluation import metrics, plots
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.formats import points
from besteffort.evaluation.judging import (
    EvaluationSet,
    burst_set,
    list_bounds,
    mean_load,
    read_halves,
    synthetic_set,
    trace_set,
)
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.rollouts import play_routers
from besteffort.evaluation.statistics import Interval, best_mean, mean_interval, paired_difference
from besteffort.evaluation.tuning import TUNED_RIVALS, heuristic_routers, maker, tune
from besteffort.files import write_text
from besteffort.runs.config import load_situation
from besteffort.situation import Situation
from besteffort.workload.config import Poisson
from experiments import unpredictable_load, where_it_pays
from experiments.estimate_quality import TRACES
from experiments.lab import Claim, Findings, Lab, main

SEEING = ("deadline-ahead", "deadline-reserve-ahead", "priced-ahead", "slackfit", "routebalance", "latency-based")
"""Rivals that know the request's prompt and what is ahead of it; the others know what the paper's router sees."""
RULES = ("marginal", "value")
STEADY = (1.0, 4.0, 12.0)
TRACE_LOADS = {"code": (1.0, 4.0), "conversations": (1.0, 4.0), "Mooncake": (4.0,)}
INDICATIVE = ("bursts", "steady, load 4", "code, load 1", "conversations, load 1")
_REQUESTS, _TUNING_REQUESTS = 15_000, 10_000
_GENERATIONS, _POPULATION = 8, 12


def run(lab: Lab) -> Findings:
    """Tunes and judges all rivals in all settings."""
    judging = dataclasses.replace(
        lab.evaluation,
        requests=min(_REQUESTS, lab.scale.requests),
        tuning_requests=min(_TUNING_REQUESTS, lab.scale.tuning_requests),
        tuning_generations=_GENERATIONS,
        tuning_population=_POPULATION,
    )
    settings = lab.selected(dict(_sets(lab, judging)), fast=INDICATIVE)
    data = {name: _judged(lab, name, make, judging) for name, make in settings.items()}
    rows = {name: _compared(found) for name, found in data.items()}
    ahead = {rule: sum(row[f"{rule}, ahead of the best of both"].low > 0 for row in rows.values()) for rule in RULES}
    behind = {rule: sum(row[f"{rule}, ahead of the best of both"].high < 0 for row in rows.values()) for rule in RULES}
    worst = min(rows, key=lambda name: float(rows[name]["value, ahead of the best of both"].mean))
    claim = Claim(
        "A rule of nine numbers on what a gateway knows, found by search, against the best of all rivals",
        "",
        f"ahead beyond the interval in {ahead['value']} of {len(rows)} settings, behind in {behind['value']}, worst "
        f"{points(float(rows[worst]['value, ahead of the best of both'].mean), 2)} points ({worst}); `marginal`, with "
        f"nothing to tune: ahead in {ahead['marginal']}, behind in {behind['marginal']}",
    )
    table = Table(
        title="Rivals on the paper's inputs, rivals that see what is ahead, and rules that know the harm",
        head="Setting",
        columns=(
            Column("Best on the paper's inputs (%)", digits=2),
            Column("Best that sees (%)", digits=2),
            Column("it is ahead (points)", "points", 2),
            Column("marginal, ahead of both (points)", "points", 2),
            Column("value, ahead of both (points)", "points", 2),
            Column("Bound (%)", digits=2),
        ),
        rows=tuple((name, _cells(row, data[name])) for name, row in rows.items()),
        note="Mean ± half the 95% interval, paired over lists. Settings are tuned on other lists.",
    )
    names = list(rows)
    panel = plots.Panel(
        title="Ahead of rivals on the paper's inputs",
        x=np.arange(len(names), dtype=float) + 1,
        curves={
            title: _stacked([rows[name][key] for name in names])
            for title, key in (
                ("best rival that sees what is ahead", "seeing, ahead of the paper's inputs"),
                ("marginal", "marginal, ahead of the paper's inputs"),
                ("value", "value, ahead of the paper's inputs"),
            )
        },
        x_label="Setting, in the order of the table",
        y_label="Performance, points",
        zero=True,
        bars=True,
        share=False,
    )
    return Findings({"settings": data, "compared": rows}, [claim], [table], {"": plots.plot_panels([panel], columns=1)})


def _sets(lab: Lab, judging: EvaluationConfig) -> Iterator[tuple[str, Callable[[], EvaluationSet | None]]]:
    """All settings by name; lists are drawn when they are asked for."""
    situation = load_situation("paper")
    # Two seconds hold as many requests here as the usual warm-up does at lower loads.
    steady = dataclasses.replace(judging, warm_up_s=min(2.0, judging.warm_up_s))
    yield "bursts", partial(burst_set, situation, judging)
    for load in STEADY:
        yield f"steady, load {load:g}", partial(_steady_set, situation, steady, load)
    yield "Azure Functions, load 1", partial(_counts_set, lab, situation, judging, 1.0)
    for name, loads in TRACE_LOADS.items():
        for load in loads:
            yield f"{name}, load {load:g}", partial(_trace_set, lab, judging, name, load)
    for variant in where_it_pays.variants(situation):
        if variant.name:
            changed = judging if variant.burst is None else dataclasses.replace(judging, burst=variant.burst)
            # Where models are fast, so many requests come within seconds.
            per_s = mean_load(changed.burst, variant.situation) * float(variant.situation.capacity()[-1])
            warm_up_s = min(judging.warm_up_s, judging.tuning_requests / per_s / 5)
            changed = dataclasses.replace(changed, warm_up_s=warm_up_s)
            yield f"{variant.group}: {variant.name}", partial(burst_set, variant.situation, changed)


def _steady_set(situation: Situation, judging: EvaluationConfig, load: float) -> EvaluationSet:
    title = f"Poisson arrivals, load {load:g}"
    return synthetic_set("steady", title, situation, judging, (load,), [Poisson(load=load)])


def _counts_set(lab: Lab, situation: Situation, judging: EvaluationConfig, load: float) -> EvaluationSet | None:
    """The counts of Azure Functions: rivals are tuned on sample A and judged on sample B."""
    paths = [path for name in unpredictable_load.SAMPLES if (path := lab.trace(name)) is not None]
    if len(paths) < len(unpredictable_load.SAMPLES):
        return None
    capacity = float(situation.capacity()[-1])
    drawn = ((judging.unjudged_seeds, judging.tuning_requests), (judging.judging_seeds, judging.requests))
    tuning, judged = (
        unpredictable_load.maf_lists(path, situation, seeds, load * capacity, requests)
        for path, (seeds, requests) in zip(paths, drawn, strict=True)
    )
    title = f"Azure Functions 2019, sample B, mean load {load:g}"
    return EvaluationSet("counts", title, situation, (load,), (judged,), tuning, capacity, judging.warm_up_s)


def _trace_set(lab: Lab, judging: EvaluationConfig, name: str, load: float) -> EvaluationSet | None:
    path = lab.trace(TRACES[name])
    if path is None:
        return None
    situation = load_situation("paper")
    (trace,) = read_halves([path], situation, judging.judging_seeds)
    return trace_set(trace, situation, dataclasses.replace(judging, trace_loads=(load,)))


def _judged(lab: Lab, name: str, make: Callable[[], EvaluationSet | None], judging: EvaluationConfig) -> dict[str, Any]:
    """Performance of every router on each list of a setting, found again where it was done before."""
    place = lab.work / "rivals" / f"{lab.scale.name}-{lab.scale.seed}-{re.sub(r'[^a-z0-9.]+', '-', name.lower())}.json"
    if place.exists():
        found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        return found
    lab.log(f"tuning and judging: {name}")
    judged = make()
    if judged is None:
        return {}
    situation, lists = judged.situation, list(judged.judged[0])
    (tuned,) = tune(situation, [judged.tuning], judging, warm_up_s=judged.warm_up_s, names=(*TUNED_RIVALS, "value"))
    routers = heuristic_routers(situation, tuned, len(lists))
    routers["value"] = [maker(situation)("value", **tuned["value"])] * len(lists)
    played = play_routers(situation, lists, routers)
    found = {
        "performance": {
            router: metrics.performance(result, warm_up_s=judged.warm_up_s).tolist()
            for router, result in played.items()
        },
        "tuned": tuned,
        "bound": [float(bound.performance) for bound in list_bounds(judged, lists)],
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(place, json.dumps(found))
    return found


def _compared(found: dict[str, Any]) -> dict[str, Interval]:
    """The best rival of either form, and paired differences."""
    performance = {name: np.array(values) for name, values in found["performance"].items()}
    rivals = [name for name in performance if name not in RULES and not name.startswith("always ")]
    paper = best_mean(performance, [name for name in rivals if name not in SEEING])
    seeing = best_mean(performance, [name for name in rivals if name in SEEING])
    both = best_mean(performance, [paper, seeing])
    compared = {
        "paper": mean_interval(performance[paper]),
        "seeing": mean_interval(performance[seeing]),
        "seeing, ahead of the paper's inputs": paired_difference(performance[seeing], performance[paper]),
    }
    for rule in RULES:
        compared[f"{rule}, ahead of the paper's inputs"] = paired_difference(performance[rule], performance[paper])
        compared[f"{rule}, ahead of the best of both"] = paired_difference(performance[rule], performance[both])
    return compared


def _cells(row: dict[str, Interval], found: dict[str, Any]) -> tuple[Any, ...]:
    return (
        row["paper"],
        row["seeing"],
        row["seeing, ahead of the paper's inputs"],
        row["marginal, ahead of the best of both"],
        row["value, ahead of the best of both"],
        float(np.mean(found["bound"])),
    )


def _stacked(intervals: list[Interval]) -> Interval:
    """Points of several settings."""
    return Interval(
        100 * np.array([float(one.mean) for one in intervals]),
        100 * np.array([float(one.half_width) for one in intervals]),
        intervals[0].seeds,
    )


if __name__ == "__main__":
    main(run, __file__)
