"""Rivals: how good routers are that nobody trains, with and without what a gateway knows, each tuned where it is.

    python -m experiments.rivals [--fast] [--data DIR]

Every rival is tuned by the same search, with the same budget, on the same lists, and judged on others: under bursts, at
steady loads, on the counts of Azure Functions 2019, on the second halves of the public traces, in the sixteen settings
of `where_it_pays`, with the six catalogues of `more_models`, and with other deadlines. Rivals that predict latency come
in two forms: from what the paper's router sees, and from the request's own prompt and what is ahead of it in flight.
Next to them is `marginal`, which also knows the harm to those in flight and has nothing to tune; it does not count as a
rival. No policy is trained here. Settings that are done are not done again after an interruption.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from besteffort.evaluation import metrics
from besteffort.evaluation.config import EvaluationConfig
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
from besteffort.evaluation.tuning import heuristic_routers, tune
from besteffort.files import write_text
from besteffort.runs.config import load_situation
from besteffort.situation import Situation
from besteffort.workload.config import Poisson, Synthetic
from besteffort.workload.requests import Requests
from experiments import more_models, soft_deadlines, task_deadlines, unpredictable_load, where_it_pays
from experiments.estimate_quality import TRACES
from experiments.lab import Claim, Findings, Lab, main

SEEING = ("deadline-ahead", "deadline-reserve-ahead", "priced-ahead", "slackfit", "routebalance", "latency-based")
"""Rivals that know the request's prompt and what is ahead of it; the others know what the paper's router sees."""
RULES = ("marginal",)
STEADY_WITH_NETWORKS = (1.0, 4.0, 12.0)
TRACE_LOADS = {"code": (1.0, 4.0), "conversations": (1.0, 2.0, 4.0), "Mooncake": (1.0, 4.0)}
COUNT_LOADS = (1.0, 2.0)
INDICATIVE = ("bursts", "steady, load 4", "code, load 1", "conversations, load 1")
_REQUESTS, _TUNING_REQUESTS = 15_000, 10_000
_GENERATIONS, _POPULATION = 8, 12
_DRAWN, _DRAWN_REQUESTS = 2, 12_000  # lists of counts that policies learn on


class Setting(NamedTuple):
    """Where routers are judged, and what there is to learn from.

    Attributes:
      situation: what is served, before a trace's lengths are known.
      make: draws the lists.
      workload: what the lists are drawn from; None for those of a trace or of counts.
      networks: networks are trained here.
      lengths: first half of a trace.
      tuning: lists to learn on: those of a trace at all of its loads, or of counts.
    """

    situation: Situation
    make: Callable[[], EvaluationSet]
    workload: Synthetic | None = None
    networks: bool = False
    lengths: Requests | None = None
    tuning: tuple[Requests, ...] = ()


def run(lab: Lab) -> Findings:
    """Tunes and judges all rivals in all settings."""
    how = judging(lab)
    data = {name: judged(lab, name, setting.make(), how) for name, setting in settings(lab, how).items()}
    rows = {name: _compared(found) for name, found in data.items()}
    seen = [row["seeing, ahead of the paper's inputs"] for row in rows.values()]
    ahead = [row["marginal, ahead of the best of both"] for row in rows.values()]
    claim = Claim(
        "Rivals that see the request's prompt and what is ahead of it, against those on the paper's inputs",
        "",
        f"ahead beyond the interval in {sum(one.low > 0 for one in seen)} of {len(seen)} settings, behind in "
        f"{sum(one.high < 0 for one in seen)}; `marginal`, with nothing to tune, against the best of both: ahead in "
        f"{sum(one.low > 0 for one in ahead)}, behind in {sum(one.high < 0 for one in ahead)}",
    )
    table = Table(
        title="Rivals on the paper's inputs, rivals that see what is ahead, and a rule that knows the harm",
        head="Setting",
        columns=(
            Column("Best on the paper's inputs (%)", digits=2),
            Column("Best that sees (%)", digits=2),
            Column("it is ahead (points)", "points", 2),
            Column("marginal, ahead of both (points)", "points", 2),
            Column("Bound (%)", digits=2),
        ),
        rows=tuple((name, _cells(row, data[name])) for name, row in rows.items()),
        note="Mean ± half the 95% interval, paired over lists. Settings are tuned on other lists.",
    )
    return Findings({"settings": data, "compared": rows}, [claim], [table])


def judging(lab: Lab) -> EvaluationConfig:
    """How rivals are tuned and judged."""
    return dataclasses.replace(
        lab.evaluation,
        requests=min(_REQUESTS, lab.scale.requests),
        tuning_requests=min(_TUNING_REQUESTS, lab.scale.tuning_requests),
        tuning_generations=_GENERATIONS,
        tuning_population=_POPULATION,
    )


def settings(lab: Lab, how: EvaluationConfig) -> dict[str, Setting]:
    """All settings by name, or at the fast scale a few, without those of traces that are not at hand.

    Lists are drawn when they are asked for.
    """
    every = dict(_settings(lab, how))
    return lab.selected(every, fast=[name for name in INDICATIVE if name in every])


def _settings(lab: Lab, how: EvaluationConfig) -> Iterator[tuple[str, Setting]]:
    situation = load_situation("paper")
    # Two seconds hold as many requests here as the usual warm-up does at lower loads.
    steady = dataclasses.replace(how, warm_up_s=min(2.0, how.warm_up_s))
    yield "bursts", Setting(situation, partial(burst_set, situation, how), how.burst, networks=True)
    for load in how.loads:
        yield f"steady, load {load:g}", constant(situation, steady, load, networks=load in STEADY_WITH_NETWORKS)
    yield from _on_counts(lab, situation, how)
    for name, loads in TRACE_LOADS.items():
        yield from on_trace(lab, situation, how, name, loads)
    yield from _with_deadlines(situation, how)
    for variant in where_it_pays.variants(situation):
        if variant.name:
            burst = how.burst if variant.burst is None else variant.burst
            yield f"{variant.group}: {variant.name}", _bursty(variant.situation, how, burst)
    for name, catalogue in more_models.catalogues(situation).items():
        yield f"catalogue: {name}", _bursty(catalogue, how, more_models.bursts(catalogue))


def _bursty(situation: Situation, how: EvaluationConfig, burst: Synthetic) -> Setting:
    # Where models are fast, so many requests come within seconds.
    per_s = mean_load(burst, situation) * situation.unit_load
    warm_up_s = min(how.warm_up_s, how.tuning_requests / per_s / 5)
    changed = dataclasses.replace(how, burst=burst, warm_up_s=warm_up_s)
    return Setting(situation, partial(burst_set, situation, changed), burst)


def _with_deadlines(situation: Situation, how: EvaluationConfig) -> Iterator[tuple[str, Setting]]:
    """Deadlines that differ by task, change during the run, or are soft."""
    several = task_deadlines.with_deadlines_of_their_own(situation)
    soft = dataclasses.replace(situation, reward=soft_deadlines.SOFT)
    for name, changed in (("one per task", several), ("soft", soft)):
        yield f"other deadlines: {name}", _bursty(changed, how, how.burst)
    peaks = task_deadlines.PEAKS
    yield "other deadlines: stricter at peak hours", _bursty(situation, how, peaks)


def constant(situation: Situation, how: EvaluationConfig, load: float, *, networks: bool = False) -> Setting:
    """Poisson arrivals at one load."""
    arrivals = Poisson(load=load)
    title = f"Poisson arrivals, load {load:g}"
    make = partial(synthetic_set, "steady", title, situation, how, (load,), [arrivals])
    return Setting(situation, make, arrivals, networks)


def _on_counts(lab: Lab, situation: Situation, how: EvaluationConfig) -> Iterator[tuple[str, Setting]]:
    """The counts of Azure Functions: rivals are tuned on sample A and judged on sample B.

    Policies learn on sample A at all loads.
    """
    samples = unpredictable_load.maf_samples(lab)
    if samples is None:
        return
    own = range(how.unjudged_seeds.stop, how.unjudged_seeds.stop + _DRAWN)
    learning = cut_alike(
        [
            each
            for load in COUNT_LOADS
            for each in unpredictable_load.maf_lists(
                samples[0], situation, own, load * situation.unit_load, _DRAWN_REQUESTS
            )
        ]
    )
    for load in COUNT_LOADS:
        made = unpredictable_load.maf_set(samples, situation, load, how)
        yield f"Azure Functions, load {load:g}", Setting(situation, _as_is(made), networks=True, tuning=learning)


def cut_alike(lists: Sequence[Requests]) -> tuple[Requests, ...]:
    """The beginnings of lists, all as long as the shortest."""
    shortest = min(map(len, lists), default=0)
    return tuple(each.part(slice(shortest), 0.0) for each in lists)


def _as_is(made: EvaluationSet) -> Callable[[], EvaluationSet]:
    return lambda: made


def on_trace(
    lab: Lab, situation: Situation, how: EvaluationConfig, name: str, loads: tuple[float, ...]
) -> Iterator[tuple[str, Setting]]:
    """A public trace at each of its loads; policies learn on its first half at all of them."""
    path = lab.trace(TRACES[name])
    if path is None:
        return
    (trace,) = read_halves([path], situation, how.judging_seeds)
    tuning = trace_set(trace, situation, dataclasses.replace(how, trace_loads=loads)).tuning
    for load in loads:
        make = partial(trace_set, trace, situation, dataclasses.replace(how, trace_loads=(load,)))
        yield (
            f"{name}, load {load:g}",
            Setting(situation, make, networks=True, lengths=trace.first[0], tuning=tuning),
        )


def judged(lab: Lab, name: str, made: EvaluationSet, how: EvaluationConfig) -> dict[str, Any]:
    """Performance of every router on each list of a setting, found again where it was done before."""
    place = lab.kept("rivals", name, made)
    if place.exists():
        found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        return found
    lab.log(f"tuning and judging: {name}")
    situation, lists = made.situation, list(made.judged[0])
    (tuned,) = tune(situation, [made.tuning], how, warm_up_s=made.warm_up_s)
    played = play_routers(situation, lists, heuristic_routers(situation, tuned, len(lists)))
    found = {
        "performance": {
            router: metrics.performance(result, warm_up_s=made.warm_up_s).tolist() for router, result in played.items()
        },
        "tuned": tuned,
        "bound": [float(bound.performance) for bound in list_bounds(made, lists)],
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(place, json.dumps(found))
    return found


def best_rivals(performance: Mapping[str, np.ndarray]) -> tuple[str, str]:
    """The best rival on the paper's inputs, and the best of all, in hindsight."""
    names = [name for name in performance if name not in RULES and not name.startswith("always ")]
    return best_mean(performance, [name for name in names if name not in SEEING]), best_mean(performance, names)


def _compared(found: dict[str, Any]) -> dict[str, Interval]:
    """The best rival of either form, and paired differences."""
    performance = {name: np.array(values) for name, values in found["performance"].items()}
    paper, both = best_rivals(performance)
    seeing = best_mean(performance, SEEING)
    return {
        "paper": mean_interval(performance[paper]),
        "seeing": mean_interval(performance[seeing]),
        "seeing, ahead of the paper's inputs": paired_difference(performance[seeing], performance[paper]),
        "marginal, ahead of the best of both": paired_difference(performance["marginal"], performance[both]),
    }


def _cells(row: dict[str, Interval], found: dict[str, Any]) -> tuple[Any, ...]:
    return (
        row["paper"],
        row["seeing"],
        row["seeing, ahead of the paper's inputs"],
        row["marginal, ahead of the best of both"],
        float(np.mean(found["bound"])),
    )


if __name__ == "__main__":
    main(run, __file__)
