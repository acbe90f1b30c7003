"""Heuristics get the best settings that a search on lists of their own finds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from besteffort import interrupts
from besteffort.bounds.gears import gear_plan, price_plan
from besteffort.digests import array_digest
from besteffort.errors import InputError
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.objectives import score_rollouts
from besteffort.evaluation.rollouts import Rollout
from besteffort.files import jsonable, read_json, write_json
from besteffort.learning.config import SearchConfig
from besteffort.learning.evolution import Evolution
from besteffort.routers.names import RIVALS
from besteffort.routers.registry import TUNED, Settings, dimensions, make_router, settings_at
from besteffort.simulator.build import build
from besteffort.simulator.environment import ServingEnvironment
from besteffort.simulator.types import Router
from besteffort.situation import Situation
from besteffort.workload.requests import Requests

RouterKind = Literal["static", "heuristic", "learned"]
"""What kind of router a name stands for: one that sends everything to one model, a rule, or a learned one."""

TUNED_RIVALS: tuple[str, ...] = tuple(name for name in RIVALS if name in TUNED)
"""Routers that learned ones are held against and that have numbers to tune."""


def static_name(pool: str) -> str:
    """Name of the router that sends everything to one pool, which in a cluster has the name of its model."""
    return f"always {pool}"


def router_kinds(situation: Situation, names: Iterable[str], learned: Container[str]) -> dict[str, RouterKind]:
    """The kind of each router by name; those that learned are named, static ones have the names of `static_name`."""
    static = {static_name(pool) for pool in situation.fleet.names}
    return {name: "learned" if name in learned else "static" if name in static else "heuristic" for name in names}


def maker(situation: Situation) -> Callable[..., Router]:
    """`make_router` for a situation, which adds the plans that some routers take to name and settings."""
    shape, _ = build(situation, None, history=1)
    prices = price_plan(situation)
    given = {"gear": gear_plan(situation), "marginal": prices, "value": prices}

    def make(name: str, /, **settings: Any) -> Router:
        return make_router(name, shape, **(given.get(name, {}) | settings))

    return make


def tune(
    situation: Situation,
    groups: Sequence[Sequence[Requests]],
    config: EvaluationConfig,
    *,
    warm_up_s: float,
    names: Collection[str] = TUNED_RIVALS,
    situations: Sequence[Situation] | None = None,
    objective: SearchConfig | None = None,
    kept: Path | None = None,
    check: Callable[[], None] = interrupts.check,
    panel: Sequence[Router] = (),
) -> list[dict[str, Settings]]:
    """For each group of lists, the settings of every tuned heuristic that do best on them on average.

    All routers are searched with the same budget on the same lists. The candidates of a generation, of all routers and
    groups, are played together, and the generations share their programs. What a search starts at is its first
    candidate, so nothing that is found performs worse on the lists.

    Args:
      situation: what is served, on what.
      groups: lists of one length that the routers are not judged on; each group gets settings of its own.
      config: generations and population.
      warm_up_s: seconds from the first arrival that do not count.
      names: keys of `besteffort.routers.TUNED`; by default those of the rivals of learned routers.
      situations: of each group, where they differ; in numbers only.
      objective: names what to look for, and its numbers, as in a search; by default the mean reward.
      kept: file that keeps what is found by what it depends on, so that nothing is tuned twice.
      check: is called before each generation, and raises if nobody waits for the outcome any more.
      panel: as of `besteffort.evaluation.rollouts.play_routers`.

    Returns:
      Per group, the settings by the name of the router, keyword arguments of what `maker` gives.

    Raises:
      InputError: if the lists differ in length, or the situations in more than numbers, or the file is damaged.
    """
    if kept is not None:
        return _kept(kept, situation, groups, config, warm_up_s, names, situations, objective, check, panel)
    shape, _ = build(situation, None, history=1)
    served = [situation] * len(groups) if situations is None else situations
    makers = {id(one): maker(one) for one in served}
    lists = list(itertools.chain.from_iterable(groups))
    ends = itertools.accumulate(map(len, groups))
    rows = [range(end - len(group), end) for group, end in zip(groups, ends, strict=True)]
    searches = {
        (name, group): Evolution(np.zeros(count), np.ones(count), config.tuning_population)
        for name in names
        if (count := dimensions(name, shape))
        for group in range(len(groups))
    }
    for _ in range(config.tuning_generations):
        check()
        rollouts: list[Rollout] = []
        parts = []
        for (name, group), search in searches.items():
            own = served[group]
            routers = [makers[id(own)](name, **settings_at(name, shape, steps)) for steps in search.ask()]
            begin = len(rollouts)
            rollouts += [Rollout(name, row, router, own, own) for router in routers for row in rows[group]]
            parts.append(slice(begin, len(rollouts)))
        scored = score_rollouts(
            situation, lists, rollouts, objective or SearchConfig(), warm_up_s=warm_up_s, panel=panel
        )
        for search, part in zip(searches.values(), parts, strict=True):
            search.tell(scored[part].reshape(config.tuning_population, -1).mean(axis=1))

    def found(name: str, group: int) -> Settings:
        search = searches.get((name, group))
        return settings_at(name, shape, np.zeros(0) if search is None else search.best.values)

    return [{name: found(name, group) for name in names} for group in range(len(groups))]


def _kept(
    path: Path,
    situation: Situation,
    groups: Sequence[Sequence[Requests]],
    config: EvaluationConfig,
    warm_up_s: float,
    names: Collection[str],
    situations: Sequence[Situation] | None,
    objective: SearchConfig | None,
    check: Callable[[], None],
    panel: Sequence[Router],
) -> list[dict[str, Settings]]:
    """What `tune` finds, from the file or into it; plain JSON values either way."""
    numbers = (config.tuning_generations, config.tuning_population, warm_up_s, sorted(names))
    about = repr((situation, situations, numbers, objective, list(map(len, groups)), ServingEnvironment.version))
    depends_on = array_digest(
        [(name, values) for group in groups for requests in group for name, values in requests.columns.items()],
        start=about,
    )
    known: dict[str, Any] = read_json(path) if path.exists() else {}
    if not isinstance(known, dict):
        raise InputError(f"{path}: it holds no settings by what they depend on; remove it, and they are tuned again.")
    if depends_on not in known:
        found = tune(
            situation,
            groups,
            config,
            warm_up_s=warm_up_s,
            names=names,
            situations=situations,
            objective=objective,
            check=check,
            panel=panel,
        )
        known[depends_on] = jsonable(found)
        write_json(path, known)
    kept = known[depends_on]
    if not (isinstance(kept, list) and len(kept) == len(groups) and all(isinstance(one, dict) for one in kept)):
        raise InputError(f"{path}: its settings are damaged; remove it, and they are tuned again.")
    return kept


def heuristic_routers(situation: Situation, tuned: Mapping[str, Settings], lists: int) -> dict[str, list[Router]]:
    """Every rival of learned routers, by name, one for each of `lists` lists; static ones are named by their model.

    `tuned` has the settings of the tuned ones, as from `tune`.
    """
    make = maker(situation)
    routers = {static_name(pool): make("static", model=index) for index, pool in enumerate(situation.fleet.names)}
    routers |= {name: make(name, **tuned.get(name, {})) for name in RIVALS if name != "static"}
    return {name: [router] * lists for name, router in routers.items()}


def untuned_routers(situation: Situation) -> list[Router]:
    """One router of each rival, with the settings that tuning starts at."""
    shape, _ = build(situation, None, history=1)
    start = {name: settings_at(name, shape, np.zeros(dimensions(name, shape))) for name in TUNED_RIVALS}
    return [each for (each,) in heuristic_routers(situation, start, 1).values()]
