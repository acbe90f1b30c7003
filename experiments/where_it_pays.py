"""Where it pays: one thing of the default situation varied at a time, policies trained for each.

    python -m experiments.where_it_pays [--fast]

The paper's settings are not public, so none is picked that flatters: deadline slack, output length, replicas, the
models' cost ratio and quality gap, burstiness, and the price of a miss. Each setting has its own tuned heuristics, its
own bound, and policies of its own; where only bursts or waiting lines differ, those of the default situation are judged
as they are. Bursts go between load 0.5 and 4 (1 = the largest model's capacity in the setting). With `--fast` only the
settings in `INDICATIVE`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from besteffort.evaluation import plots
from besteffort.evaluation.formats import points
from besteffort.evaluation.judging import burst_set
from besteffort.evaluation.ranking import as_setting, ranking, settings_table
from besteffort.profile import ModelProfile, Profile, TaskQuality
from besteffort.runs.config import load_situation
from besteffort.situation import Deadline, Reward, Situation
from besteffort.workload.config import Markov
from experiments.lab import Claim, Findings, Lab, main

INDICATIVE = (
    "default: ",
    "deadlines: 0.6 x",
    "replicas: 1",
    "quality gaps: 0.3 x",
    "bursts: load 0.2 to 4.6",
    "penalty for a miss: 1",
)


class Variant(NamedTuple):
    """A setting: what is varied, its value, the situation, and the load to judge on if it is not the usual one."""

    group: str
    name: str
    situation: Situation
    burst: Markov | None = None


def run(lab: Lab) -> Findings:
    """Trains and judges every variant."""
    paper = load_situation("paper")
    default = lab.train(paper, lab.training(), name="paper")
    training = lab.training(config={"decisions": min(lab.scale.decisions, 2 * lab.scale.variant_decisions)})
    settings, data = [], {}
    every = {f"{variant.group}: {variant.name}": variant for variant in variants(paper)}
    for name, variant in lab.selected(every, fast=INDICATIVE).items():
        lines = dataclasses.replace(paper.cluster, queue_capacity=variant.situation.cluster.queue_capacity)
        known = variant.situation == dataclasses.replace(paper, cluster=lines)
        policies = default if known else lab.train(variant.situation, training, name=name)
        judging = lab.evaluation
        if variant.burst is not None:
            judging = dataclasses.replace(judging, burst=variant.burst)
        evaluation = lab.judge(burst_set(variant.situation, judging), policies)
        one = ranking(evaluation)
        settings.append(as_setting(variant.group, variant.name, evaluation))
        data[name] = {
            "learned": settings[-1].learned,
            "ahead_of_heuristic": settings[-1].ahead,
            "ahead_of_static": one.ahead_of_static,
            "best_heuristic": [one.heuristic[0], settings[-1].heuristic],
            "best_static": [one.static[0], settings[-1].static],
            "bound": settings[-1].bound,
        }
    ahead = [row for row in settings if row.ahead.low > 0]
    behind = [row for row in settings if row.ahead.high < 0]
    best = max(settings, key=lambda row: float(row.ahead.mean))
    worst = min(settings, key=lambda row: float(row.ahead.mean))
    beaten = [row for row in settings if float(row.learned.mean) > row.static]
    claim = Claim(
        "Where it pays",
        "",
        f"ahead of the best heuristic beyond the interval in {len(ahead)} of {len(settings)} settings, behind in "
        f"{len(behind)}; from {points(float(worst.ahead.mean))} ({worst.group}: {worst.name}) to "
        f"{points(float(best.ahead.mean))} points ({best.group}: {best.name})",
        static=f"ahead in {len(beaten)} of {len(settings)} settings",
    )
    title = "Where learning pays: bursty load, one thing varied at a time"
    return Findings(
        data, [claim], [settings_table(title, "Setting", settings)], {"": plots.plot_settings(settings, title=title)}
    )


def variants(paper: Situation) -> Iterator[Variant]:
    """The default situation, and all that differ from it in one thing."""
    yield Variant("default", "", paper)
    for factor in (0.6, 4.0):
        yield Variant("deadlines", f"{factor:g} x", _with_tasks(paper, deadline=factor))
    for least, most in ((3, 7), (100, 300)):
        yield Variant("output tokens", f"{least} to {most}", _with_tasks(paper, output=(least, most)))
    for replicas in (1, 8):
        cluster = dataclasses.replace(paper.cluster, replicas=replicas)
        yield Variant("replicas", f"{replicas}", dataclasses.replace(paper, cluster=cluster))
    cluster = dataclasses.replace(paper.cluster, queue_capacity=256)
    yield Variant("waiting lines", "of 256", dataclasses.replace(paper, cluster=cluster))
    for power in (0.5, 1.5):
        profile = with_costs(paper.profile, power)
        ratio = profile.decode_table(1)[-1, 1] / profile.decode_table(1)[0, 1]
        name = f"{ratio:.1f} x the smallest"
        yield Variant("largest model's cost", name, dataclasses.replace(paper, profile=profile))
    for gap in (0.3, 2.0):
        profile = with_quality_gap(paper.profile, gap)
        yield Variant("quality gaps", f"{gap:g} x", dataclasses.replace(paper, profile=profile))
    for loads in ((1.5, 2.0), (0.2, 4.6), (0.2, 9.2)):
        name = f"load {loads[0]:g} to {loads[1]:g}"
        yield Variant("bursts", name, paper, Markov(loads=loads, dwell_s=(4.0, 2.0)))
    yield Variant("penalty for a miss", "1", dataclasses.replace(paper, reward=Reward(0.0, 1.0)))


def with_costs(profile: Profile, power: float) -> Profile:
    """Latencies of all models spread out around the smallest: `smallest x (own / smallest) ** power`."""
    smallest = profile.models[0]

    def table(model: ModelProfile, field: str) -> tuple[tuple[int, float], ...]:
        pairs = zip(getattr(model, field), getattr(smallest, field), strict=True)
        return tuple((x, least * (own / least) ** power) for (x, own), (_, least) in pairs)

    models = tuple(
        dataclasses.replace(model, decode=table(model, "decode"), prefill=table(model, "prefill"))
        for model in profile.models
    )
    return dataclasses.replace(profile, name=f"{profile.name}, costs to the power {power:g}", models=models)


def with_quality_gap(profile: Profile, factor: float) -> Profile:
    """Qualities whose distance to the task's best is multiplied, and at least 0."""

    def spread(task: TaskQuality) -> TaskQuality:
        best = max(task.quality_percent)
        quality = tuple(max(0.0, best - factor * (best - value)) for value in task.quality_percent)
        return dataclasses.replace(task, quality_percent=quality)

    tasks = tuple(map(spread, profile.tasks))
    return dataclasses.replace(profile, name=f"{profile.name}, quality gaps x {factor:g}", tasks=tasks)


def _with_tasks(situation: Situation, deadline: float = 1.0, output: tuple[int, int] | None = None) -> Situation:
    tasks = tuple(
        dataclasses.replace(
            task,
            deadline=Deadline(deadline * task.deadline.base_s, deadline * task.deadline.per_token_s),
            output_tokens=output or task.output_tokens,
        )
        for task in situation.tasks
    )
    return dataclasses.replace(situation, tasks=tasks)


if __name__ == "__main__":
    main(run, __file__)
