"""Mixed hardware: a fleet of six pools on three kinds of GPUs at two sites, and requests from near both.

    python -m experiments.mixed_hardware [--fast]

Three sizes of OPT: the largest on A100s at one site and on an H100 at the other, the middle one on an A100 and on L4s,
the smallest on L4s. Every site is near the origin of its name and farther from the other. Under bursts and at steady
loads (1 = what both pools of the largest model sustain together), for each setting: `search`, a rule that is searched
on draws of the setting's load, `dqn`, networks that learn what to add to it at all rates, and `untrained`, the rule
as it comes. Every seed has its own policies and its own lists, and they are held against the best rival and the best
static pool in hindsight; rivals are tuned as in `rivals`. Settings that are done are not done again after an
interruption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from besteffort.evaluation import plots
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.judging import burst_set
from besteffort.evaluation.report import Column, Table
from besteffort.learning.config import SearchConfig
from besteffort.pools import OriginDelay, Pool
from besteffort.profile import load_profile
from besteffort.runs.config import load_situation
from besteffort.situation import Cluster, Origin, Situation
from experiments import methods, rivals
from experiments.lab import Claim, Findings, Lab, main, status_of

NEAR_S, FAR_S = 0.005, 0.045
LOADS = (0.5, 1.5, 4.0)
INDICATIVE = ("bursts",)
# Less than elsewhere, because every setting has its own searches and networks.
_SEARCH = SearchConfig(population=12, requests=6_000)
_NETWORKS = {"decisions": 131_072, "ensemble_size": 1}
_HARDWARE = ("opt-h100", "opt-l4")
# Site, model, hardware, replicas; hardware None is that of the situation's profile, A100s.
_FLEET = (
    ("east", "opt-6.7b", None, 2),
    ("west", "opt-6.7b", "opt-h100", 1),
    ("east", "opt-1.3b", None, 1),
    ("west", "opt-1.3b", "opt-l4", 3),
    ("east", "opt-125m", "opt-l4", 2),
    ("west", "opt-125m", "opt-l4", 1),
)
_ORIGINS = (Origin("east", 3.0), Origin("west", 2.0))


def run(lab: Lab) -> Findings:
    """Learns, tunes and judges in all settings."""
    judging, training = rivals.judging(lab), lab.training(variant=True, config=_NETWORKS)
    searching = dataclasses.replace(_SEARCH, requests=min(_SEARCH.requests, lab.scale.tuning_requests))
    data: dict[str, Any] = {}
    for name, setting in lab.selected(settings(fleet(), judging), fast=INDICATIVE).items():
        lab.log(name)
        made, title = setting.make(), f"mixed hardware, {name}"
        learned = methods.judged(lab, title, setting, made, training, searching)
        data[name] = learned | rivals.judged(lab, title, made, judging)
    return findings_of(data)


def findings_of(data: Mapping[str, Mapping[str, Any]]) -> Findings:
    """What the performances of all routers on each list say, setting by setting.

    Args:
      data: by setting `learned` and `performance`, the performance of policies and other routers on each list, and
        `bound`, that of each list.
    """
    rows = {name: methods.compared(dict(found)) for name, found in data.items()}
    order = sorted(rows, key=lambda name: min(float(rows[name][f"{one}, ahead"].mean) for one in methods.METHODS))
    table = Table(
        title="A fleet of six pools on three kinds of GPUs at two sites",
        head="Setting",
        columns=(
            Column("Best rival (%)", digits=2, brief=True),
            *(Column(f"{method}, ahead (points)", "points", 2, brief=True) for method in methods.METHODS),
            Column("Best static pool (%)", digits=2),
            *(Column(f"{method}, ahead of it (points)", "points", 2) for method in methods.METHODS),
            Column("Bound (%)", digits=2, brief=True),
        ),
        rows=tuple(
            (
                name,
                (
                    rows[name]["rival"],
                    *(rows[name][f"{method}, ahead"] for method in methods.METHODS),
                    rows[name]["static"],
                    *(rows[name][f"{method}, ahead of static"] for method in methods.METHODS),
                    float(np.mean(data[name]["bound"])),
                ),
            )
            for name in order
        ),
        note="Mean ± half the 95% interval, paired over policies and lists; where one of the three is worst comes "
        "first. The best rival and the best static pool are the best in hindsight on the same requests.",
    )
    shown = [
        plots.Setting(
            group=method,
            name=name,
            learned=rows[name][method],
            static=float(rows[name]["static"].mean),
            heuristic=float(rows[name]["rival"].mean),
            bound=float(np.mean(data[name]["bound"])),
            ahead=rows[name][f"{method}, ahead"],
        )
        for method in methods.METHODS
        for name in rows
    ]
    figure = plots.plot_settings(shown, title="Three kinds of GPUs at two sites, method by method")
    claims = [claim_of(method, rows) for method in methods.METHODS]
    return Findings({"settings": data, "compared": rows}, claims, [table], {"": figure})


def fleet() -> Situation:
    """The paper's tasks on six pools."""
    pools = tuple(
        Pool(
            name=f"{model} {site}",
            model=model,
            hardware=hardware,
            replicas=replicas,
            network_delay_s=FAR_S,
            delays=(OriginDelay(site, NEAR_S),),
        )
        for site, model, hardware, replicas in _FLEET
    )
    devices = tuple(load_profile(name) for name in _HARDWARE)
    paper = load_situation("paper")
    return dataclasses.replace(paper, cluster=Cluster(), pools=pools, hardware=devices, origins=_ORIGINS)


def settings(situation: Situation, how: EvaluationConfig) -> dict[str, rivals.Setting]:
    """Bursts, and steady loads, all with networks."""
    bursts = rivals.Setting(situation, partial(burst_set, situation, how), how.burst, networks=True)
    return {"bursts": bursts} | {
        f"steady, load {load:g}": rivals.constant(situation, how, load, networks=True) for load in LOADS
    }


def claim_of(method: str, rows: dict[str, Any]) -> Claim:
    """Whether a method is not behind the best rival and ahead of the best static pool in all settings."""
    ahead = methods.claim(method, rows)
    static = [row[f"{method}, ahead of static"] for row in rows.values()]
    held = [
        row[f"{method}, ahead"].low >= methods.NOT_BEHIND and row[f"{method}, ahead of static"].low > 0
        for row in rows.values()
    ]
    return dataclasses.replace(
        ahead,
        claim=f"Six pools on three kinds of GPUs at two sites: `{method}` not behind the best rival, ahead of the best "
        "static pool",
        static=f"ahead beyond the interval in {sum(one.low > 0 for one in static)} of {len(static)} settings",
        status=status_of(sum(held), len(held)),
    )


if __name__ == "__main__":
    main(run, __file__)
