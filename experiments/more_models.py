"""Claim 9, more models: the paper's open question, from two models to twelve.

    python -m experiments.more_models [--fast]

OPT sizes with published qualities and modelled latencies, a replica being four A100s with tensor parallelism so that
the largest fits, and a made-up catalogue of twelve, evenly spaced between the smallest and the largest OPT. Deadlines
grow with the largest model's decode time, so that it has as much room everywhere as OPT-6.7B has in the default
situation. Bursts go from load 0.5 (1 = the largest model's capacity) to 0.6 of what the smallest model sustains.
Policies are ensembles of two, trained shorter than the default. With `--fast` only the smallest and the largest
catalogue.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from besteffort.evaluation import plots
from besteffort.evaluation.formats import percent
from besteffort.evaluation.judging import burst_set
from besteffort.evaluation.ranking import as_setting, ranking
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.statistics import mean_interval
from besteffort.profile import ModelProfile, Profile, load_profile
from besteffort.profile.roofline import A100, GRAPH_ENGINE, OPT, Roofline
from besteffort.runs.config import load_situation
from besteffort.situation import Deadline, Situation
from besteffort.workload.config import Markov
from experiments.cheap_router import microseconds
from experiments.lab import Claim, Findings, Lab, main, status_of

CATALOGUES = {
    "2 models": ("opt-125m", "opt-6.7b"),
    "3 models": ("opt-125m", "opt-1.3b", "opt-6.7b"),
    "5 models": ("opt-125m", "opt-350m", "opt-1.3b", "opt-2.7b", "opt-6.7b"),
    "7 models": ("opt-125m", "opt-350m", "opt-1.3b", "opt-2.7b", "opt-6.7b", "opt-13b", "opt-30b"),
    "8 models": ("opt-125m", "opt-350m", "opt-1.3b", "opt-2.7b", "opt-6.7b", "opt-13b", "opt-30b", "opt-66b"),
}
MADE_UP = 12
ENSEMBLE_SIZE = 2
CALM, BURST = 0.5, 0.6
DEVICES = 4
CONTEXT = 138  # tokens per request, as in the built-in profiles
# Zero-shot accuracies (%) of the tasks of `opt-a100-all`, in its order and from its source.
LARGER = {"opt-30b": (77.58, 69.99, 68.19, 71.45), "opt-66b": (78.78, 71.68, 68.75, 73.90)}


def run(lab: Lab) -> Findings:
    """Trains and judges every catalogue."""
    every = catalogues(load_situation("paper"))
    settings, rows = [], []
    data: dict[str, dict[str, Any]] = {}
    names = list(every)
    for name, own in lab.selected(every, fast=(names[0], names[-1])).items():
        training = lab.training(variant=True, config={"ensemble_size": min(ENSEMBLE_SIZE, lab.scale.ensemble_size)})
        policies = lab.train(own, training, name=name)
        evaluation = lab.judge(burst_set(own, dataclasses.replace(lab.evaluation, burst=bursts(own))), policies)
        one = ranking(evaluation)
        bound = float(evaluation.bounds[0].performance)
        seconds = lab.seconds(own, training)
        micros = microseconds(policies[0])
        settings.append(as_setting("catalogue", name, evaluation))
        share = mean_interval(one.learned / bound)
        cells = (mean_interval(one.learned), one.ahead_of_heuristic, share, seconds, micros)
        rows.append((f"{name} ({one.heuristic[0]})", cells))
        data[name] = {
            "models": own.profile.model_names,
            "learned": mean_interval(one.learned),
            "ahead_of_heuristic": one.ahead_of_heuristic,
            "ahead_of_static": one.ahead_of_static,
            "best_heuristic": [one.heuristic[0], mean_interval(one.heuristic[1])],
            "best_static": [one.static[0], mean_interval(one.static[1])],
            "bound": bound,
            "share_of_bound": share,
            "training_seconds_per_policy": seconds,
            "decision_microseconds": micros,
        }
    behind = [row.name for row in settings if row.ahead.high < 0]
    lowest = min(data.values(), key=lambda entry: float(entry["share_of_bound"].mean))["share_of_bound"]
    most = list(data.values())[-1]
    over_static = min(float(entry["ahead_of_static"].mean) for entry in data.values())
    claim = Claim(
        "More models: does it scale (the paper leaves it open)?",
        "open",
        f"2 to {MADE_UP} models: {percent(lowest)} of the bound or more; behind the best heuristic beyond the "
        f"interval in {len(behind)} of {len(settings)} catalogues; {MADE_UP} models train in "
        f"{most['training_seconds_per_policy']:.0f} s per policy and decide in {most['decision_microseconds']:.0f} "
        "microseconds",
        static=f"ahead by {100 * over_static:.1f} points or more",
        status=status_of(len(settings) - len(behind), len(settings)),
    )
    table = Table(
        title="Catalogues of two to twelve models under bursts",
        head="Catalogue (best heuristic)",
        columns=(
            Column("Learned (%)", digits=2, brief=True),
            Column("Ahead of best heuristic (points)", "points", 2, brief=True),
            Column("Share of bound (%)", digits=1, brief=True),
            Column("Training per policy (s)", "number", 0, brief=True),
            Column("Decision (microseconds)", "number", 1, brief=True),
        ),
        rows=tuple(rows),
        note="Training time includes compilation and depends on what else the machine does. Mean ± half the 95% "
        "interval over policies and lists; differences are paired.",
    )
    return Findings(data, [claim], [table], {"": plots.plot_settings(settings, title="From two models to twelve")})


def catalogues(situation: Situation) -> dict[str, Situation]:
    """The situation with every catalogue, from the smallest to the largest."""
    everything = all_sizes()
    profiles = {name: everything.select(models) for name, models in CATALOGUES.items()}
    profiles[f"{MADE_UP} models (made up)"] = made_up(everything, MADE_UP)
    return {name: with_profile(situation, profile) for name, profile in profiles.items()}


def bursts(situation: Situation) -> Markov:
    """Bursts up to a share of what the smallest model sustains."""
    capacity = situation.capacity()
    return Markov(loads=(CALM, BURST * float(capacity[0] / capacity[-1])), dwell_s=(4.0, 2.0))


def all_sizes() -> Profile:
    """All eight OPT sizes on replicas of four A100s: latencies by the calibrated roofline, qualities as published."""
    known = load_profile("opt-a100-all")
    roofline = Roofline(A100, GRAPH_ENGINE)
    batches = [batch for batch, _ in known.models[0].decode]
    prompts = [tokens for tokens, _ in known.models[0].prefill]
    models = tuple(
        ModelProfile(
            name,
            tuple((batch, roofline.decode_s(size, batch, CONTEXT, DEVICES)) for batch in batches),
            tuple((tokens, roofline.prefill_s(size, tokens, devices=DEVICES)) for tokens in prompts),
        )
        for name, size in OPT.items()
    )
    tasks = tuple(
        dataclasses.replace(task, quality_percent=(*task.quality_percent, *(row[index] for row in LARGER.values())))
        for index, task in enumerate(known.tasks)
    )
    return dataclasses.replace(
        known, name="opt-4xa100", device=f"{DEVICES} x {known.device}", models=models, tasks=tasks
    )


def with_profile(situation: Situation, profile: Profile) -> Situation:
    """The situation with other models, and deadlines in proportion to the largest one's decode time."""
    factor = float(profile.decode_table(1)[-1, 1] / situation.profile.decode_table(1)[-1, 1])
    tasks = tuple(
        dataclasses.replace(task, deadline=Deadline(factor * task.deadline.base_s, factor * task.deadline.per_token_s))
        for task in situation.tasks
    )
    return dataclasses.replace(situation, profile=profile, tasks=tasks)


def made_up(profile: Profile, count: int) -> Profile:
    """`count` models between a profile's smallest and largest: log latencies and qualities linear in between."""
    names = profile.model_names
    cost = np.log(profile.decode_table(1)[:, 1])
    at = np.linspace(cost[0], cost[-1], count)

    def between(values: list[float]) -> list[float]:
        return np.interp(at, cost, values).tolist()

    def table(field: str) -> list[tuple[tuple[int, float], ...]]:
        positions = [x for x, _ in getattr(profile.models[0], field)]
        logs = [
            between([math.log(getattr(model, field)[i][1]) for model in profile.models]) for i in range(len(positions))
        ]
        return [tuple((x, math.exp(logs[i][k])) for i, x in enumerate(positions)) for k in range(count)]

    decode, prefill = table("decode"), table("prefill")
    models = tuple(ModelProfile(f"made-up-{k + 1}", decode[k], prefill[k]) for k in range(count))
    tasks = tuple(
        dataclasses.replace(task, quality_percent=tuple(between([task.quality_percent[i] for i in range(len(names))])))
        for task in profile.tasks
    )
    modelled = dataclasses.replace(profile.provenance.quality, kind="modelled", method="interpolated between OPT sizes")
    provenance = dataclasses.replace(profile.provenance, quality=modelled)
    return dataclasses.replace(profile, name=f"made-up-{count}", models=models, tasks=tasks, provenance=provenance)


if __name__ == "__main__":
    main(run, __file__)
