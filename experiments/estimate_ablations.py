"""What each estimate is worth: rules searched and networks trained without one of them.

    python -m experiments.estimate_ablations [--fast] [--data DIR]

A rule is searched with a part of it left out: the harm to those in flight, one price or all prices, the reserve, giving
up on answers that will be late. Networks learn from the paper's inputs and estimates, from random weights and without
the rule, and with one estimate missing. Each is judged where the whole rule, or the network with all estimates, is
judged, on the same lists. Networks are single ones, trained at all rates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from besteffort.evaluation import plots
from besteffort.evaluation.formats import points
from besteffort.evaluation.judging import EvaluationSet
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.statistics import Interval, mean_interval, paired_difference
from besteffort.learning.config import RuleTerm, SearchConfig
from besteffort.observation import VALUE
from experiments import methods, rivals
from experiments.lab import Claim, Findings, Lab, main

WHOLE = "nothing left out"
PRICES: tuple[RuleTerm, ...] = ("latency_price", "occupancy_price", "time_price")
TERMS: Mapping[str, tuple[RuleTerm, ...]] = {
    WHOLE: (),
    "harm": ("harm_weight",),
    "price of latency": ("latency_price",),
    "price of occupancy": ("occupancy_price",),
    "price of instance-time": ("time_price",),
    "all prices": PRICES,
    "reserve": ("reserve", "reserve_slope"),
    "giving up": ("giving_up",),
    "harm and all prices": ("harm_weight", *PRICES),
}
SETTINGS = ("bursts", "steady, load 4", "code, load 1", "conversations, load 4")
OF_NETWORKS = SETTINGS[:2]
INDICATIVE = (WHOLE, "harm", "all prices")
Performances = dict[str, dict[str, np.ndarray]]
"""By setting and variant (seeds,) the performance."""


def run(lab: Lab) -> Findings:
    """Searches, trains and judges all variants."""
    every = rivals.settings(lab, rivals.judging(lab))
    settings = {name: every[name] for name in SETTINGS if name in every}
    judged = {name: setting.make() for name, setting in settings.items()}
    rules = {name: _rules(lab, name, setting, judged[name]) for name, setting in settings.items()}
    networks = _networks(lab, {name: judged[name] for name in OF_NETWORKS if name in judged})
    tables = [
        _table("Searched rules with a part left out: difference to the whole rule", "Left out", rules),
        _table("Networks that see one estimate less: difference to those that see all", "Not seen", networks),
    ]
    harm = _differences(rules)["harm"]
    claim = Claim(
        "A searched rule that does not see the harm to those in flight",
        "",
        "; ".join(f"{setting} {points(difference, 2)} points" for setting, difference in harm.items()),
    )
    data = {
        kind: {
            "performance": {
                setting: {variant: mean_interval(values) for variant, values in row.items()}
                for setting, row in found.items()
            },
            "difference": _differences(found),
        }
        for kind, found in (("rules", rules), ("networks", networks))
    }
    changes = _differences(rules)
    figure = plots.plot_matrix(
        np.array([[float(one.mean) for one in row.values()] for row in changes.values()]),
        list(changes),
        list(rules),
        title="Points gained or lost against the whole rule",
        row_label="left out",
        column_label="judged on",
    )
    return Findings(data, [claim], tables, {"": figure})


def _rules(lab: Lab, name: str, setting: rivals.Setting, judged: EvaluationSet) -> dict[str, np.ndarray]:
    terms = lab.selected(TERMS, fast=INDICATIVE)
    found = {
        without: methods.search(lab, f"{name}, without {without}", setting, judged, SearchConfig(without=left_out))
        for without, left_out in terms.items()
    }
    return methods.performances(judged.situation, judged, found)


def _networks(lab: Lab, judged: Mapping[str, EvaluationSet]) -> Performances:
    situation = methods.seeing(next(iter(judged.values())).situation)
    every = tuple(name for name in situation.view.features if name != VALUE)
    estimates = [name for name in every if name not in ("task", "batch_sizes", "arrival_rate")]
    variants = {WHOLE: every} | {each: tuple(name for name in every if name != each) for each in estimates}
    variants["any estimate"] = tuple(name for name in every if name not in estimates)
    training = lab.training(variant=True, config={"ensemble_size": 1})
    found: Performances = {name: {} for name in judged}
    for without, features in lab.selected(variants, fast=(WHOLE, "harm", "any estimate")).items():
        seen = dataclasses.replace(situation, view=dataclasses.replace(situation.view, features=features))
        policies = lab.train(seen, training, name=f"networks without {without}")
        for name, each in judged.items():
            found[name] |= methods.performances(seen, each, {without: policies})
    return found


def _differences(found: Performances) -> dict[str, dict[str, Interval]]:
    """By variant and setting the difference to the whole."""
    variants = [name for name in next(iter(found.values())) if name != WHOLE]
    return {
        variant: {setting: paired_difference(row[variant], row[WHOLE]) for setting, row in found.items()}
        for variant in variants
    }


def _table(title: str, head: str, found: Performances) -> Table:
    return Table(
        title=title,
        head=head,
        columns=tuple(Column(f"{setting} (points)", "points", 2, brief=True) for setting in found),
        rows=tuple((variant, tuple(row.values())) for variant, row in _differences(found).items()),
        note="Mean ± half the 95% interval over policies and lists, paired.",
    )


if __name__ == "__main__":
    main(run, __file__)
