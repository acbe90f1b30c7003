"""Untrained: finds the numbers of the rule that `besteffort.default_policy` decides by, on random situations.

    python -m experiments.untrained [--fast]

An evolution strategy plays its candidates in 72 random situations at once, see `random_situations`. What counts is the
regret to the best candidate of each situation so far, up to three points, so that no single situation decides; those
in overload do not count. The outcome is the mean of the best candidates, since single ones are best by chance, too.
Print it, round it, and put it into `besteffort/estimates/rule.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from besteffort.estimates.rule import NUMBERS
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.rollouts import Rollout, mean_rewards
from besteffort.evaluation.tuning import maker
from besteffort.learning.evolution import Evolution
from besteffort.routers.registry import settings_at, steps_to
from besteffort.simulator.build import build
from besteffort.simulator.types import EnvShape
from besteffort.workload import config as workloads
from besteffort.workload.requests import Requests
from besteffort.workload.sample import sample_lists
from experiments.lab import Findings, Lab, main
from experiments.random_situations import Draw, draw_group

SEED = 11
GROUPS, SIZE, REQUESTS = 9, 8, 3_000
GENERATIONS, POPULATION, BEST = 11, 16, 12
MOST = 0.03  # regret that counts
START = {
    "reserve": 0.03,
    "reserve_slope": 0.03,
    "width": 0.03,
    "in_flight_width": 0.45,
    "harm_weight": 1.0,
    "harm_floor": 0.2,
    "latency_price": 0.05,
    "latency_exponent": 0.1,
    "occupancy_price": 0.06,
    "occupancy_exponent": 0.4,
    "time_price": 0.45,
    "head_room": 1.2,
    "giving_up": 0.9,
}
"""What a coarse search by hand gave."""


class Group(NamedTuple):
    """Situations that one program simulates, and a list for each."""

    draws: list[Draw]
    lists: list[Requests]


def run(lab: Lab) -> Findings:
    """Searches, and tells the numbers."""
    fast = lab.scale.name == "fast"
    groups = [_group(index, SIZE // 4 if fast else SIZE) for index in range(3 if fast else GROUPS)]
    counted = np.array([not draw.overload for group in groups for draw in group.draws])
    shape, _ = build(groups[0].draws[0].situation, None, history=1)
    start = steps_to("value", shape, START)
    search = Evolution(start, np.full(start.size, 0.5), POPULATION)
    played: list[np.ndarray] = []
    for generation in range(3 if fast else GENERATIONS):
        played.append(np.concatenate([_play(group, shape, search.ask()) for group in groups], axis=1))
        regret = np.max(np.concatenate(played), axis=0) - played[-1]
        search.tell(-np.minimum(regret, MOST)[:, counted].mean(axis=1))
        lab.log(f"generation {generation + 1}: mean regret {100 * regret[0, counted].mean():.2f} points")
    every = np.concatenate(played)
    score = -np.minimum(every.max(axis=0) - every, MOST)[:, counted].mean(axis=1)
    candidates = np.concatenate([generation.candidates for generation in search.generations])
    numbers = settings_at("value", shape, candidates[np.argsort(-score)[:BEST]].mean(axis=0))
    table = Table(
        title="Numbers of the untrained rule",
        head="Number",
        columns=(Column("Start", "number", 3), Column("Found", "number", 3)),
        rows=tuple((name, (START[name], numbers[name])) for name in NUMBERS),
    )
    return Findings({"numbers": numbers, "start": START, "situations": int(counted.sum())}, [], [table], {})


def _group(index: int, size: int) -> Group:
    draws = draw_group(SEED, index, size)
    lists = []
    for number, draw in enumerate(draws):
        workload = workloads.build(draw.workload, draw.situation)
        lists += sample_lists([workload], draw.situation.task_names, REQUESTS, [100 * index + 10 * number + 1])
    return Group(draws, lists)


def _play(group: Group, shape: EnvShape, candidates: np.ndarray) -> Float[np.ndarray, "candidates lists"]:
    """Performance of every candidate in every situation of a group."""
    makers = [maker(draw.situation) for draw in group.draws]
    rollouts = [
        Rollout("value", row, make("value", **settings_at("value", shape, steps)), draw.actual, draw.situation)
        for steps in candidates
        for row, (make, draw) in enumerate(zip(makers, group.draws, strict=True))
    ]
    return mean_rewards(group.draws[0].situation, group.lists, rollouts).reshape(len(candidates), -1)


if __name__ == "__main__":
    main(run, __file__)
