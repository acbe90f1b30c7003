"""Any profile: random situations that nothing was found on, the untrained rule and a short search against all rivals.

    python -m experiments.any_profile [--fast]

Forty situations, drawn by `random_situations` from a seed of their own: 2 to 12 models on 1 to 16 replicas, with
costs, qualities, deadlines, lengths and loads from one end to the other; in a quarter of them tables are wrong by up to
40%, in a quarter counts are seen up to a second late. Rivals and the rule are tuned with the same budget on the same
list, in the situation as it is believed to be, and all are judged on other lists in the actual one. The best rival
counts in hindsight. In the first situation of each group networks learn what to add to the rule that was found, too.
Overload, where even the fluid bound of the actual situation answers less than 99% in time at the
mean rate, is reported apart: which requests are given up decides there.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from besteffort.bounds.fluid import fluid_bound
from besteffort.evaluation import metrics, plots
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.formats import points
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.rollouts import play_routers
from besteffort.evaluation.statistics import Interval
from besteffort.evaluation.tuning import TUNED_RIVALS, heuristic_routers, maker, tune
from besteffort.files import write_text
from besteffort.routers.learned import learned_router
from besteffort.runs.untrained import default_policy, rule_for, rule_policy
from besteffort.simulator.types import Router
from besteffort.workload import config as workloads
from besteffort.workload.requests import Requests
from besteffort.workload.sample import sample_lists
from experiments.lab import Claim, Findings, Lab, main
from experiments.methods import seeing
from experiments.random_situations import Draw, draw_group

SEED = 2_027
GROUPS, SIZE = 8, 5
REQUESTS, LISTS = 4_500, 2
GENERATIONS, POPULATION = 6, 12
WARM_UP = 0.2  # share of a list that does not count
IN_TIME = 0.99
METHODS = ("untrained", "searched")
NETWORKS = "dqn"
_HOW = EvaluationConfig(tuning_generations=GENERATIONS, tuning_population=POPULATION)
_DECISIONS = 131_072


def run(lab: Lab) -> Findings:
    """Tunes and judges in all situations."""
    fast = lab.scale.name == "fast"
    groups = (2, 2) if fast else (GROUPS, SIZE)
    found = [one for group in range(groups[0]) for one in _group(lab, group, groups[1])]
    normal = [one for one in found if not one["overload"]]
    table = Table(
        title="Random situations: points ahead of the best rival in hindsight",
        head="Situations",
        columns=(
            Column("Number", "number"),
            *(
                Column(f"{method}, {what}", "points", 2)
                for method in METHODS
                for what in ("median", "10th percentile", "worst")
            ),
        ),
        rows=tuple(
            (name, (len(some), *(figure for method in METHODS for figure in _summary(some, method))))
            for name, some in (("not in overload", normal), ("in overload", [one for one in found if one["overload"]]))
            if some
        ),
    )
    claims = [
        Claim(
            f"Random situations, the {method} rule against the best rival in hindsight",
            "",
            "median {} points, 10th percentile {}, worst {}".format(
                *(points(value, 2) for value in _summary(normal, method))
            )
            + f"; {len(normal)} situations, {len(found) - len(normal)} more in overload",
        )
        for method in METHODS
    ]
    added = np.array([_added(lab, group, groups[1]) for group in range(groups[0])])
    claims.append(
        Claim(
            "Random situations, what networks add to the rule that was found",
            "",
            f"median {points(float(np.median(added)), 2)}, from {points(float(added.min()), 2)} to "
            f"{points(float(added.max()), 2)} points; {len(added)} situations",
        )
    )
    order = sorted(normal, key=lambda one: one["searched"])
    panel = plots.Panel(
        title="Ahead of the best rival in hindsight",
        x=np.arange(len(order), dtype=float) + 1,
        curves={
            method: Interval(100 * np.array([one[method] for one in order]), np.zeros(len(order)), 1)
            for method in METHODS
        },
        x_label="Situation, where the search is worst first",
        y_label="Points",
        zero=True,
        bars=True,
        share=False,
    )
    each = Table(
        title="Random situations, one by one",
        head="Situation",
        columns=(
            Column("Best rival", "text"),
            *(Column(f"{method}, ahead (points)", "points", 2) for method in METHODS),
        ),
        rows=tuple(
            (
                f"{one['name']}{', in overload' if one['overload'] else ''}",
                (one["best"], *(one[method] for method in METHODS)),
            )
            for one in sorted(found, key=lambda one: one["searched"])
        ),
    )
    data = {"situations": found, "added_by_networks": added.tolist()}
    return Findings(data, claims, [table, each], {"": plots.plot_panels([panel], columns=1)})


def _group(lab: Lab, group: int, size: int) -> list[dict[str, Any]]:
    """Points ahead in each situation of a group, found again where they were found before."""
    place = _place(lab, f"{group}-{size}")
    if place.exists():
        known: list[dict[str, Any]] = json.loads(place.read_text(encoding="utf-8"))
        return known
    draws = draw_group(SEED, group, size)
    lab.log(f"group {group}: {draws[0].name}, and {size - 1} more")
    started = time.process_time()
    lists = [_lists(lab, draw, size * group + index) for index, draw in enumerate(draws)]
    warm_up_s = [WARM_UP * min(float(one.arrival_s[-1]) for one in each) for each in lists]
    tuned = tune(
        draws[0].situation,
        [each[:1] for each in lists],
        _HOW,
        warm_up_s=min(warm_up_s),
        names=(*TUNED_RIVALS, "value"),
        situations=[draw.situation for draw in draws],
    )
    tuned_s = time.process_time() - started
    found = []
    for draw, each, settings, skipped_s in zip(draws, lists, tuned, warm_up_s, strict=True):
        judged = each[1:]
        routers: dict[str, list[Router]] = heuristic_routers(draw.situation, settings, len(judged))
        routers["searched"] = [maker(draw.situation)("value", **settings["value"])] * len(judged)
        routers["untrained"] = [learned_router(default_policy(draw.situation))] * len(judged)
        played = play_routers(draw.situation, judged, routers, actual_situations=[draw.actual] * len(judged))
        means = {
            name: float(metrics.performance(result, warm_up_s=skipped_s).mean()) for name, result in played.items()
        }
        rivals = {name: mean for name, mean in means.items() if name not in (*METHODS, "marginal")}
        best = max(rivals, key=rivals.__getitem__)
        peak = float(draw.situation.shares @ draw.situation.peak_rewards)
        found.append(
            {
                "name": draw.name,
                "overload": _in_overload(draw),
                "best": best,
                "means": means,
                **{method: (means[method] - rivals[best]) / peak for method in METHODS},
                "tuning_seconds": tuned_s / size,
            }
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(place, json.dumps(found))
    return found


def _added(lab: Lab, group: int, size: int) -> float:
    """What networks add to the rule that is found in a group's first situation, as a share of the peak."""
    place = _place(lab, f"{group}-{size}-{NETWORKS}")
    if place.exists():
        return float(json.loads(place.read_text(encoding="utf-8")))
    draw = draw_group(SEED, group, size)[0]
    tuning, *judged = _lists(lab, draw, size * group)
    warm_up_s = WARM_UP * min(float(one.arrival_s[-1]) for one in (tuning, *judged))
    (found,) = tune(draw.situation, [[tuning]], _HOW, warm_up_s=warm_up_s, names=("value",))
    rule = rule_policy(draw.situation, rule_for(draw.situation, found["value"]), {"method": "search"})
    training = lab.training(config={"decisions": _DECISIONS, "ensemble_size": 1})
    # Lists that the rule was not found on: there it hardly can be improved.
    (selection,) = sample_lists(
        [workloads.build(draw.workload, draw.situation)],
        draw.situation.task_names,
        REQUESTS,
        [_first_seed(lab, size * group) + 1 + LISTS],
    )
    (networks,) = lab.train(
        seeing(draw.situation),
        dataclasses.replace(training, seeds=1),
        name=draw.name,
        workload=workloads.build(draw.workload, draw.situation),
        start=[rule],
        selection=(selection,),
    )
    routers = {name: [learned_router(each)] * len(judged) for name, each in (("rule", rule), (NETWORKS, networks))}
    played = play_routers(draw.situation, judged, routers, actual_situations=[draw.actual] * len(judged))
    means = {name: float(metrics.performance(result, warm_up_s=warm_up_s).mean()) for name, result in played.items()}
    added = (means[NETWORKS] - means["rule"]) / float(draw.situation.shares @ draw.situation.peak_rewards)
    write_text(place, json.dumps(added))
    return added


def _place(lab: Lab, what: str) -> Path:
    """The file that keeps what was found."""
    return lab.work / "any_profile" / f"{lab.amount}-{SEED}-{what}.json"


def _first_seed(lab: Lab, number: int) -> int:
    """Of the lists of a situation by its number; other ones with another seed of the scale."""
    return 10 * (GROUPS * SIZE * lab.scale.seed + number)


def _lists(lab: Lab, draw: Draw, number: int) -> list[Requests]:
    """A list to tune on, then those to be judged on."""
    workload = workloads.build(draw.workload, draw.situation)
    seed = _first_seed(lab, number)
    return sample_lists([workload], draw.situation.task_names, REQUESTS, range(seed, seed + 1 + LISTS))


def _in_overload(draw: Draw) -> bool:
    rate = float(draw.workload.process(draw.situation.unit_load).mean_rate())
    return bool(fluid_bound(draw.actual, rate).slo_attainment < IN_TIME)


def _summary(found: list[dict[str, Any]], method: str) -> tuple[float, float, float]:
    """Median, 10th percentile and worst."""
    values = np.array([one[method] for one in found])
    return float(np.median(values)), float(np.quantile(values, 0.1)), float(values.min())


if __name__ == "__main__":
    main(run, __file__)
