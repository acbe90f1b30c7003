"""The real engine against the simulator, both in virtual time: the same lists, static choices and policies.

    python -m experiments.virtual_vs_simulated [--fast]

The laptop tier computes every token behind the gateway's core, its clock goes by the processor time that iterations
take (`besteffort.opt.virtual`), and the simulator plays the same lists. Its tables were measured beforehand, kind by
kind, and then corrected by what iterations took in service, on lists of other seeds (`in_service` of
`experiments/live.py`): an iteration that reads several prompts takes less than prompts alone add up to.
Every list is played several times, in random order, because a machine that others use does not even agree with itself:
the repetition error stands next to the simulator's. What its pace was, iterations of known length in between tell; the
clock is corrected for it, and it is reported. With the lengths of the tables in place of measured ones, engine and core
have to give the very times of the simulator. In wall time: `experiments/measured_vs_simulated.py`.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np

from besteffort.demo.fleet import paces
from besteffort.evaluation import metrics, plots
from besteffort.evaluation.report import Column, Table
from besteffort.laptop import MODELS
from besteffort.laptop.requests import CaseList
from besteffort.opt.virtual import VirtualEngine
from besteffort.runs.untrained import default_policy
from besteffort.simulator.result import Result
from besteffort.situation import Situation
from besteffort.workload.config import Poisson
from experiments import live
from experiments.lab import Claim, Findings, Lab, main, status_of
from experiments.live import Contender

LOADS = (0.5, 0.8, 1.0, 1.2)
AIMS = {"end to end P50": 0.05, "end to end P95": 0.10}
_REQUESTS, _FAST_REQUESTS = 600, 100
_REPEATS, _FAST_REPEATS = 4, 2
_WARM_UP_S = 0.2
_LOOK = 4  # iterations of each kind, before and after
PICTURED = (0.8, 1.2)


class Row(NamedTuple):
    """A list and a contender.

    Attributes:
      measured: figures of each time that it was played.
      simulated: those of the simulator.
      simulated_wrong: relative error of the simulator against the mean of all times, by figure.
      repetition: mean difference between two times, relative to the mean of all, by figure.
      alike: share of requests that went to the same model as in the simulator.
      pace: by model the mean, least and largest factor by which the machine was slower than when it was measured.
    """

    measured: list[dict[str, float]]
    simulated: dict[str, float]
    simulated_wrong: dict[str, float]
    repetition: dict[str, float]
    alike: list[float]
    pace: list[dict[str, list[float]]]


def run(lab: Lab) -> Findings:
    """Plays and simulates all lists."""
    full = lab.scale.name == "full"
    requests, repeats = (_REQUESTS, _REPEATS) if full else (_FAST_REQUESTS, _FAST_REPEATS)
    engine, sampler, situation = live.prepare(lab, every=2)
    static = live.static_contenders(situation)
    contenders = {name: static[name] for name in (f"always {MODELS[-1]}", f"always {MODELS[-2]}")}
    contenders |= {"untrained": Contender(default_policy(situation)), "search": live.searched(lab, situation)}
    lists = {load: live.listed(Poisson(load=load), situation, requests, lab.scale.seed) for load in LOADS}
    cells = list(itertools.product(LOADS, contenders))
    rng = np.random.default_rng(lab.scale.seed)
    before = live.raw_pace(sampler, _LOOK)
    played: dict[tuple[float, str], list[dict[str, Any]]] = {cell: [] for cell in cells}
    for repeat in range(repeats):
        lab.log(f"playing, {repeat + 1} of {repeats}")
        for index in rng.permutation(len(cells)).tolist():
            load, name = cells[index]
            contender, listed = contenders[name], lists[load]

            def play(contender: Contender = contender, listed: CaseList = listed) -> dict[str, Any]:
                result = live.play(engine, contender, listed, situation, exact=True).result
                times = {key: getattr(result, key).tolist() for key in ("first_token_s", "latency_s", "model")}
                return times | {"pace": live.pace(sampler)}

            about = {"profile": situation.profile.digest(), "repeat": repeat}
            played[load, name].append(live.keep(lab, f"{load:g} {name}", contender, listed, play, **about))
    after = live.raw_pace(sampler, _LOOK)
    lab.log("simulating")
    simulated = {(load, name): live.simulated(contenders[name], lists[load], situation) for load, name in cells}
    rows = {f"load {load:g}, {name}": _row(played[load, name], simulated[load, name]) for load, name in cells}
    lab.log("playing with the lengths of the tables")
    schedule = _schedule(engine, contenders, lists, situation, simulated)
    pictured = {}
    for load, name in itertools.product(PICTURED, contenders):
        model = simulated[load, name]
        result = _again(played[load, name][0], model)
        if name != "untrained":
            answered = ~_rejected(result, model)
            pictured[f"load {load:g}, {name}", "end to end"] = (result.latency_s[answered], model.latency_s[answered])
    return Findings(
        {
            "rows": {name: row._asdict() for name, row in rows.items()},
            "schedule": schedule,
            "pace_before": before,
            "pace_after": after,
            "capacity_per_s": dict(zip(MODELS, situation.capacity().tolist(), strict=True)),
            "tables": [
                {"name": model.name, "decode": model.decode, "prefill": model.prefill}
                for model in situation.profile.models
            ],
        },
        _claims(rows, schedule),
        [_table(rows)],
        {"": plots.plot_prediction(pictured)},
    )


def _figures(result: Result) -> dict[str, float]:
    """Figures of a list; times in seconds."""
    counted = metrics.after_warm_up(result.arrival_s, _WARM_UP_S) & ~result.rejected
    times_s = {
        "first token": (result.first_token_s - result.arrival_s)[counted],
        "end to end": result.latency_s[counted],
    }
    found = {f"{what} P{p}": float(np.percentile(each, p)) for what, each in times_s.items() for p in (50, 95, 99)}
    found["in time"] = float(metrics.slo_attainment(result, warm_up_s=_WARM_UP_S))
    found["rejected"] = float(metrics.rejection_rate(result, warm_up_s=_WARM_UP_S))
    return found


def _again(kept: dict[str, Any], model: Result) -> Result:
    """The result of a list that was kept; what the list itself says is as in the simulation of it."""
    times = {key: np.array(kept[key], dtype=np.float64) for key in ("first_token_s", "latency_s")}
    latency_s = np.where(np.isnan(times["first_token_s"]), np.inf, times["latency_s"])
    replica = np.where(np.isfinite(latency_s), 0, -1)
    return dataclasses.replace(
        model,
        model=np.array(kept["model"]),
        replica=replica,
        first_token_s=times["first_token_s"],
        latency_s=latency_s,
        completion_s=model.arrival_s + latency_s,
        met=latency_s <= model.deadline_s,
    )


def _row(kept: list[dict[str, Any]], model: Result) -> Row:
    results = [_again(each, model) for each in kept]
    measured = [_figures(result) for result in results]
    simulated = _figures(model)
    wrong, repetition = {}, {}
    for name, value in simulated.items():
        values = np.array([each[name] for each in measured])
        scale = values.mean() if _is_time(name) else 1.0
        wrong[name] = float((value - values.mean()) / scale)
        pairs = [abs(one - other) for one, other in itertools.combinations(values.tolist(), 2)]
        repetition[name] = float(np.mean(pairs) / scale)
    alike = [float(np.mean((result.model == model.model)[~_rejected(result, model)])) for result in results]
    return Row(measured, simulated, wrong, repetition, alike, [each["pace"] for each in kept])


def _rejected(one: Result, other: Result) -> np.ndarray:
    """Requests that one of two results has no answer for."""
    return one.rejected | other.rejected


def _is_time(name: str) -> bool:
    return name.startswith(("first token", "end to end"))


def _schedule(
    engine: VirtualEngine,
    contenders: dict[str, Contender],
    lists: dict[float, Any],
    situation: Situation,
    simulated: dict[Any, Result],
) -> dict[str, dict[str, float]]:
    """Engine and core with the lengths of the tables: how far times and choices are from the simulator's."""
    engine.follow(paces(situation))
    found = {}
    for name, contender in contenders.items():
        alike, apart_s = [], []
        for load, listed in lists.items():
            result, model = live.play(engine, contender, listed, situation, exact=True).result, simulated[load, name]
            both = ~_rejected(result, model)
            alike.append(float(np.mean((result.model == model.model)[both])))
            apart_s.append(float(np.max(np.abs(result.latency_s[both] - model.latency_s[both]), initial=0.0)))
        found[name] = {"routed_alike": float(np.mean(alike)), "largest_difference_s": max(apart_s)}
    engine.follow(None)
    return found


def _claims(rows: dict[str, Row], schedule: dict[str, dict[str, float]]) -> list[Claim]:
    parts = []
    for name, aim in AIMS.items():
        errors = np.array([abs(row.simulated_wrong[name]) for row in rows.values()])
        again = np.array([row.repetition[name] for row in rows.values()])
        parts.append(
            f"{name}: within {aim:.0%} in {(errors <= aim).sum()} of {len(rows)}, median {np.median(errors):.1%}, "
            f"largest {errors.max():.0%} (the engine against itself: median {np.median(again):.1%}, largest "
            f"{again.max():.0%})"
        )
    held = [all(abs(row.simulated_wrong[name]) <= aim for name, aim in AIMS.items()) for row in rows.values()]
    static_s = max(found["largest_difference_s"] for name, found in schedule.items() if name.startswith("always"))
    alike = min(found["routed_alike"] for found in schedule.values())
    return [
        Claim(
            "The simulator against the real engine in virtual time",
            "",
            "; ".join(parts),
            status=status_of(sum(held), len(held)),
        ),
        Claim(
            "The same engine and gateway's core with the lengths of the tables, against the simulator",
            "",
            f"static choices: times differ by {static_s:.1g} s at most; policies: {alike:.1%} of requests or more are "
            "routed alike",
        ),
    ]


def _table(rows: dict[str, Row]) -> Table:
    shown = ("end to end P50", "end to end P95", "first token P50", "first token P95", "in time")

    def cell(row: Row, name: str) -> str:
        return f"{100 * row.simulated_wrong[name]:+.1f} ({100 * row.repetition[name]:.1f})"

    return Table(
        "Simulated against measured in virtual time; in brackets the engine against itself",
        "list and router",
        tuple(Column(f"{name}, {'%' if _is_time(name) else 'points'}", "text", brief=name in AIMS) for name in shown),
        tuple((name, tuple(cell(row, figure) for figure in shown)) for name, row in rows.items()),
        note="The simulator's figure against the mean of all times that the list was played; in brackets the mean "
        f"difference between two of these times. Times relative, shares in points; the first {_WARM_UP_S:g} s of a "
        "list do not count.",
    )


if __name__ == "__main__":
    main(run, __file__)
