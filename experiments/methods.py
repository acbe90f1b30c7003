"""Methods: what knows what a gateway knows and learns, against all rivals, in the settings of `rivals`.

    python -m experiments.methods [--fast] [--data DIR]

Three policies: `search`, a rule of thirteen numbers found by an evolution strategy on draws of its own; `dqn`, networks
that learn by Double DQN what to add to that rule; and `untrained`, the rule with numbers found once on random
situations. Every seed has its own policy and its own lists. A trace has one policy for all loads, learned on its
first half. Networks are trained for the default situation and the traces only; elsewhere the table leaves them out.
Rivals are those of `rivals`, in hindsight the best of each form. Settings that are done are not done again after an
interruption.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from besteffort.evaluation import metrics, plots
from besteffort.evaluation.formats import points
from besteffort.evaluation.judging import EvaluationSet
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.rollouts import play_routers
from besteffort.evaluation.statistics import Interval, mean_interval, paired_difference
from besteffort.files import write_text
from besteffort.learning.config import SearchConfig
from besteffort.policy import Policy
from besteffort.routers.learned import learned_router
from besteffort.runs.config import load_situation
from besteffort.runs.experiment import TrainingConfig
from besteffort.runs.untrained import default_policy
from besteffort.situation import Situation
from besteffort.workload.config import RandomRates
from besteffort.workload.requests import Requests
from experiments import rivals
from experiments.lab import Claim, Findings, Lab, main

METHODS = ("search", "dqn", "untrained")
NOT_BEHIND = -0.002
"""The lower end of an interval from which on a policy counts as not behind."""


def run(lab: Lab) -> Findings:
    """Learns and judges in all settings."""
    judging = rivals.judging(lab)
    data: dict[str, Any] = {}
    for name, setting in rivals.settings(lab, judging).items():
        lab.log(name)
        made = setting.make()
        training = lab.training(variant=True)
        data[name] = judged(lab, name, setting, made, training) | rivals.judged(lab, name, made, judging)
    rows = {name: compared(found) for name, found in data.items()}
    claims = [claim(method, rows) for method in METHODS]
    table = Table(
        title="Learned on what a gateway knows, against the best rival in hindsight",
        head="Setting",
        columns=(
            Column("Best rival (%)", digits=2),
            *(Column(f"{method}, ahead (points)", "points", 2) for method in METHODS),
            *(Column(f"{method}, ahead of the paper's inputs (points)", "points", 2) for method in METHODS[:2]),
            Column("Bound (%)", digits=2),
            Column("search, share of it (%)", digits=1),
        ),
        rows=tuple((name, _cells(rows[name], data[name])) for name in sorted(rows, key=lambda one: _worst(rows[one]))),
        note=(
            "Mean ± half the 95% interval, paired over lists; where `search` is worst comes first. Rivals are the "
            "best of both forms, or of those on the paper's inputs, tuned on other lists."
        ),
    )
    shown = [
        plots.Setting(
            group=_labels(name)[0],
            name=_labels(name)[1],
            learned=row["search"],
            static=float(row["static"].mean),
            heuristic=float(row["rival"].mean),
            bound=float(np.mean(data[name]["bound"])),
            ahead=row["search, ahead"],
        )
        for name, row in rows.items()
    ]
    figure = plots.plot_settings(shown, title="A searched rule against the best rival, setting by setting")
    return Findings({"settings": data, "compared": rows}, claims, [table], {"": figure})


def judged(
    lab: Lab,
    name: str,
    setting: rivals.Setting,
    made: EvaluationSet,
    training: TrainingConfig,
    searching: SearchConfig | None = None,
) -> dict[str, Any]:
    """Performance of the policies on each list of a setting, found again where it was done before.

    `training` is that of the networks, where the setting has them, `searching` how rules are found.
    """
    place = lab.kept("methods", name, made)
    if place.exists():
        found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        return found
    searched = search(lab, name, setting, made, searching)
    policies = {"search": searched, "untrained": [default_policy(made.situation)]}
    if setting.networks:
        policies["dqn"] = _trained(lab, name, setting, made, searched, training)
    found = {
        "learned": {name: values.tolist() for name, values in performances(made.situation, made, policies).items()}
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(place, json.dumps(found))
    return found


def performances(
    situation: Situation, judged: EvaluationSet, policies: Mapping[str, Sequence[Policy]]
) -> dict[str, np.ndarray]:
    """By name (lists,) the performance of policies on the lists of a set: policy `i` plays list `i`.

    Each name is played by itself, in the `situation` whose features its policies read.
    """
    lists = list(judged.judged[0])
    found = {}
    for name, each in policies.items():
        routers = [learned_router(each[index % len(each)]) for index in range(len(lists))]
        played = play_routers(situation, lists, {name: routers})[name]
        found[name] = metrics.performance(played, warm_up_s=judged.warm_up_s)
    return found


def search(
    lab: Lab, name: str, setting: rivals.Setting, judged: EvaluationSet, config: SearchConfig | None = None
) -> list[Policy]:
    """A rule for each seed, found on draws of the load that is judged, or on pieces of a trace's first half."""
    lists: tuple[Requests, ...] | None = None if setting.workload is not None else setting.tuning
    training = TrainingConfig(
        method="search",
        seed=lab.scale.seed * lab.scale.seeds,
        seeds=lab.scale.seeds,
        workload=setting.workload or RandomRates(),
        search=config or SearchConfig(),
    )
    return lab.train(judged.situation, training, name=name, lists=lists)


def _trained(
    lab: Lab,
    name: str,
    setting: rivals.Setting,
    made: EvaluationSet,
    searched: list[Policy],
    training: TrainingConfig,
) -> list[Policy]:
    """An ensemble of networks for each seed, which adds to the rule that was found.

    Networks learn at all rates, with the lengths of a trace's first half. How much of what they add is kept, the lists
    decide that there are to learn on, or else those that rivals are tuned on.
    """
    selection = setting.tuning or tuple(made.tuning)
    return lab.train(
        seeing(setting.situation), training, name=name, start=searched, lengths=setting.lengths, selection=selection
    )


def seeing(situation: Situation) -> Situation:
    """A situation whose networks read estimates, as the configuration `quickstart` has them."""
    features = load_situation("quickstart").view.features
    return dataclasses.replace(situation, view=dataclasses.replace(situation.view, features=features))


def compared(found: dict[str, Any]) -> dict[str, Interval]:
    """The best rival of all, that on the paper's inputs and the best static router, and paired differences to them."""
    performance = {name: np.array(values) for name, values in found["performance"].items()}
    paper, both = rivals.best_rivals(performance)
    static = max((name for name in performance if name.startswith("always ")), key=lambda one: performance[one].mean())
    row = {
        "rival": mean_interval(performance[both]),
        "static": mean_interval(performance[static]),
    }
    for method, values in found["learned"].items():
        row[method] = mean_interval(np.array(values))
        row[f"{method}, ahead"] = paired_difference(np.array(values), performance[both])
        row[f"{method}, ahead of the paper's inputs"] = paired_difference(np.array(values), performance[paper])
        row[f"{method}, ahead of static"] = paired_difference(np.array(values), performance[static])
    return row


def _labels(setting: str) -> tuple[str, str]:
    """Group and name of a setting, of which no two are alike."""
    for between in (": ", ", "):
        group, _, name = setting.partition(between)
        if name:
            return group, name
    return "default", setting


def _worst(row: dict[str, Interval]) -> float:
    return float(row["search, ahead"].mean)


def claim(method: str, rows: dict[str, dict[str, Interval]]) -> Claim:
    """In how many settings a method is ahead of the best rival, or not behind."""
    ahead = {name: row[f"{method}, ahead"] for name, row in rows.items() if method in row}
    worst = min(ahead, key=lambda name: float(ahead[name].mean))
    return Claim(
        f"`{method}`, on what a gateway knows, against the best of all rivals in hindsight",
        "",
        f"ahead beyond the interval in {sum(one.low > 0 for one in ahead.values())} of {len(ahead)} settings, not "
        f"behind (by more than 0.2 points) in {sum(one.low >= NOT_BEHIND for one in ahead.values())}, worst "
        f"{points(float(ahead[worst].mean), 2)} points ({worst})",
    )


def _cells(row: dict[str, Interval], found: dict[str, Any]) -> tuple[Any, ...]:
    return (
        row["rival"],
        *(row.get(f"{method}, ahead") for method in METHODS),
        *(row.get(f"{method}, ahead of the paper's inputs") for method in METHODS[:2]),
        float(np.mean(found["bound"])),
        mean_interval(np.array(found["learned"]["search"]) / np.array(found["bound"])),
    )


if __name__ == "__main__":
    main(run, __file__)
