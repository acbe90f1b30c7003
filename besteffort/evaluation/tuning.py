"""Heuristics get the best settings that training draws can give them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from besteffort.bounds.gears import gear_plan
from besteffort.evaluation.rollouts import Rollout, mean_rewards
from besteffort.routers.names import ROUTER_NAMES
from besteffort.routers.registry import TUNABLE, Settings, candidates, make_router
from besteffort.simulator.build import build
from besteffort.simulator.types import Router
from besteffort.situation import Situation
from besteffort.workload.requests import Requests

RouterKind = Literal["static", "heuristic", "learned"]
"""What kind of router a name stands for: one that sends everything to one model, a rule, or a learned one."""


def static_name(model: str) -> str:
    """Name of the router that sends everything to one model."""
    return f"always {model}"


def router_kinds(situation: Situation, names: Iterable[str], learned: Container[str]) -> dict[str, RouterKind]:
    """The kind of each router by name; those that learned are named, static ones have the names of `static_name`."""
    static = {static_name(model) for model in situation.profile.model_names}
    return {name: "learned" if name in learned else "static" if name in static else "heuristic" for name in names}


def maker(situation: Situation) -> Callable[..., Router]:
    """`make_router` for a situation: called with a name and settings, it adds the plan that `gear` takes."""
    shape, _ = build(situation, None, history=1)
    given = {"gear": gear_plan(situation)}

    def make(name: str, /, **settings: Any) -> Router:
        return make_router(name, shape, **(given.get(name, {}) | settings))

    return make


def score_candidates(
    situation: Situation, lists: Sequence[Requests], *, warm_up_s: float = 0.0
) -> dict[str, np.ndarray]:
    """Per tunable heuristic the performance, (candidates, lists), of all its candidate settings.

    Args:
      situation: what is served, on what.
      lists: the training draws, of equal length, not the lists that the routers are judged on.
      warm_up_s: seconds from the first arrival that do not count.
    """
    shape, _ = build(situation, None, history=1)
    make = maker(situation)
    rollouts = [
        Rollout(name, row, make(name, **option))
        for name in TUNABLE
        for option in candidates(name, shape)
        for row in range(len(lists))
    ]
    performance = mean_rewards(situation, lists, rollouts, warm_up_s=warm_up_s)
    kinds = np.array([rollout.kind for rollout in rollouts])
    return {name: performance[kinds == name].reshape(-1, len(lists)) for name in TUNABLE}


def best_settings(situation: Situation, scores: dict[str, np.ndarray], groups: int = 1) -> dict[str, list[Settings]]:
    """For every tunable heuristic the settings with the highest mean performance.

    Args:
      situation: what is served, on what.
      scores: what `score_candidates` found.
      groups: the lists come in this many groups of equal size; each group gets its own settings. One group gives one
        setting for all lists.

    Returns:
      Per name of a router the settings of each group, keyword arguments of what `maker` gives.
    """
    shape, _ = build(situation, None, history=1)
    best: dict[str, list[Settings]] = {}
    for name, values in scores.items():
        of_groups = values.reshape(len(values), groups, -1).mean(axis=2)
        best[name] = [candidates(name, shape)[index] for index in of_groups.argmax(axis=0)]
    return best


def heuristic_routers(situation: Situation, tuned: dict[str, list[Settings]], lists: int) -> dict[str, list[Router]]:
    """Every router that does not learn, by name, one for each of `lists` lists; static ones are named by their model.

    `tuned` comes from `best_settings`; its groups divide the lists evenly.
    """
    make = maker(situation)

    def repeated(settings: Sequence[Settings], name: str) -> list[Router]:
        each = lists // len(settings)
        routers = [make(name, **one) for one in settings]
        return list(itertools.chain.from_iterable([router] * each for router in routers))

    models = situation.profile.model_names
    routers = {static_name(model): repeated([{"model": index}], "static") for index, model in enumerate(models)}
    return routers | {name: repeated(tuned.get(name, [{}]), name) for name in ROUTER_NAMES if name != "static"}
