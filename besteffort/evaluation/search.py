"""Search: an evolution strategy finds the numbers of a rule, in place of a network that learns.

All candidates of a generation, of all seeds, play the same draws of the training load, as rollouts of one program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from besteffort import interrupts
from besteffort.digests import array_digest
from besteffort.errors import InputError
from besteffort.estimates.rule import NUMBERS, Rule
from besteffort.evaluation.objectives import score_rollouts
from besteffort.evaluation.rollouts import Rollout, sample_evenly
from besteffort.learning import checkpoint
from besteffort.learning.checkpoint import Metrics
from besteffort.learning.config import SearchConfig
from besteffort.learning.evolution import Evolution, Generation
from besteffort.learning.train import Progress
from besteffort.routers.registry import dimensions, settings_at, steps_to
from besteffort.routers.value import ValueRouter
from besteffort.simulator.build import build
from besteffort.simulator.environment import ServingEnvironment
from besteffort.simulator.types import EnvShape, Router
from besteffort.situation import Situation, as_text
from besteffort.workload.requests import Requests
from besteffort.workload.synthetic_workload import spreads_rates

_ROUTER = "value"
_FINALISTS = 7
_MORE = 4  # times as many lists where rates are spread, each half as long: one list has few rates
# Time constants of the rate estimate that do not count, since it starts at 0. Of three, a search has found numbers that
# jam as long as the estimate is low, and only then: three points lost at a steady load.
_SETTLED = 1.0
_WARM_UP = 0.5  # share of the shortest list that this takes at most


class Searched(NamedTuple):
    """The outcome of a search.

    Attributes:
      rules: the best rule of each seed.
      decisions: decisions that each seed made.
      metrics: (generations, seeds) each: `decisions` so far, `reward` of the best candidate so far, and `mean` and
        `worst` of the generation; of other objectives their scores.
    """

    rules: tuple[Rule, ...]
    decisions: int
    metrics: Metrics


class Lists(NamedTuple):
    """What one seed searches on.

    Attributes:
      search: lists of one length that all candidates play.
      final: others, longer ones where there are, that the best candidates play: some do well only until a line fills.
    """

    search: Sequence[Requests]
    final: Sequence[Requests]


def draws(situation: Situation, workload: Any, config: SearchConfig, seed: int) -> Lists:
    """The lists of one seed, drawn from a `besteffort.workload.types.Workload`.

    Of a load whose rates are spread at random there are more, shorter ones: what is found has to hold at all rates.
    """
    first = config.drawn_seeds(seed).start
    count, length = config.lists, config.requests
    if spreads_rates(workload):
        count, length = _MORE * count, max(2, length * 2 // _MORE)
    names, middle = situation.task_names, first + count
    return Lists(
        search=sample_evenly(workload, names, length, range(first, middle)),
        final=sample_evenly(workload, names, 2 * length, range(middle, middle + count)),
    )


def pieces(lists: Sequence[Requests], config: SearchConfig) -> Lists:
    """Pieces of given lists, equally many of each and evenly spaced, and at the end the lists as they are.

    Pieces are shorter, and fewer, where lists are short; the lists are cut to the length of the shortest.

    Raises:
      InputError: if a list has fewer than two requests.
    """
    shortest = min(map(len, lists))
    if shortest < 2:
        raise InputError(f"A list to search on has {shortest} request(s); give lists of at least two.")
    length = min(config.requests, shortest)
    each = max(1, min(config.lists // len(lists), shortest // length))
    return Lists(
        search=[
            requests.part(slice(begin, begin + length), float(requests.arrival_s[begin]))
            for requests in lists
            for begin in np.linspace(0, len(requests) - length, each).round().astype(int).tolist()
        ],
        final=[requests.part(slice(shortest), float(requests.arrival_s[0])) for requests in lists],
    )


def search(
    situation: Situation,
    lists: Sequence[Lists],
    start: Rule,
    config: SearchConfig,
    seeds: Sequence[int],
    *,
    actual: Situation | None = None,
    panel: Sequence[Router] = (),
    checkpoint_path: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Searched:
    """Searches once per seed, all candidates of a generation at a time.

    Args:
      situation: what is served, on what, as the rules take for granted.
      lists: of each seed, as from `draws` or `pieces`; all seeds have equally many.
      start: the first candidate; its prices are kept.
      config: settings.
      seeds: of the searches.
      actual: what is really simulated, in numbers only; None where it is the situation.
      panel: as of `besteffort.evaluation.rollouts.play_routers`.
      checkpoint_path: file to write what was scored to, and to continue from if it exists. A search that is killed and
        started again finds the same, bit for bit.
      progress: called after each generation.

    Raises:
      InputError: if the checkpoint is damaged, belongs to other settings or cannot be written.
    """
    shape, _ = build(situation, None, history=1)
    count = dimensions(_ROUTER, shape)
    begin = steps_to(_ROUTER, shape, {name: float(getattr(start, name)) for name in NUMBERS})
    every = [requests for of_seed in lists for requests in of_seed.search]
    searches = [Evolution(begin, np.full(count, config.spread), config.population, seed) for seed in seeds]
    identity = _identity(situation, every, start, config, seeds)
    if actual is not None:
        identity["actual situation"] = array_digest([], start=as_text(actual))[:12]
    made: Metrics = {}
    if checkpoint_path is not None and checkpoint.exists(checkpoint_path):
        _, made = checkpoint.load(checkpoint_path, (), identity)
        for index, one in enumerate(searches):
            played = zip(made["candidates"][:, index], made["scores"][:, index], strict=True)
            searches[index] = dataclasses.replace(one, generations=tuple(Generation(*each) for each in played))
    each = config.population * sum(map(len, lists[0].search))
    for generation in range(len(made.get("scores", ())), config.generations):
        found = _score(situation, every, shape, start, [one.ask() for one in searches], config, actual, panel)
        for one, of_seed in zip(searches, found, strict=True):
            one.tell(of_seed)
        latest = {
            "decisions": np.full(len(seeds), (generation + 1) * each),
            "reward": np.array([one.best.score for one in searches]),
            "mean": found.mean(axis=1),
            "worst": found.min(axis=1),
        }
        generations = [one.generations[-1] for one in searches]
        candidates, scored = (np.stack(parts) for parts in zip(*generations, strict=True))
        made = checkpoint.extended(made, latest | {"candidates": candidates, "scores": scored})
        # In this order a kill in between repeats a report; in the other order the report would be lost.
        if progress is not None:
            progress(Progress(generation + 1, config.generations, latest))
        if checkpoint_path is not None:
            checkpoint.save(checkpoint_path, (), made, identity)
        interrupts.check()
    if checkpoint_path is not None:
        checkpoint.end(checkpoint_path)
    finalists = [_finalists(one) for one in searches]
    last = [requests for of_seed in lists for requests in of_seed.final]
    found = _score(situation, last, shape, start, finalists, config, actual, panel)
    rules = tuple(
        _rule(shape, start, of_seed[scored.argmax()], config) for of_seed, scored in zip(finalists, found, strict=True)
    )
    metrics = {name: values for name, values in made.items() if name not in ("candidates", "scores")}
    return Searched(rules, config.generations * each, metrics)


def _score(
    situation: Situation,
    lists: Sequence[Requests],
    shape: EnvShape,
    start: Rule,
    candidates: Sequence[np.ndarray],
    config: SearchConfig,
    actual: Situation | None,
    panel: Sequence[Router],
) -> np.ndarray:
    """(seeds, candidates) mean score of each seed's candidates on its lists."""
    each = len(lists) // len(candidates)
    by_seed = [lists[index * each : (index + 1) * each] for index in range(len(candidates))]
    warm_ups = {_warm_up_s(situation, of_seed) for of_seed in by_seed}
    if len(warm_ups) > 1:
        parts = (
            _score(situation, of_seed, shape, start, [mine], config, actual, panel)
            for of_seed, mine in zip(by_seed, candidates, strict=True)
        )
        return np.concatenate([*parts])
    (warm_up_s,) = warm_ups
    rollouts = []
    for index, of_seed in enumerate(candidates):
        rows = range(index * each, (index + 1) * each)
        routers = [ValueRouter(jax.tree.map(np.asarray, _rule(shape, start, steps, config))) for steps in of_seed]
        rollouts += [Rollout(_ROUTER, row, router, actual) for router in routers for row in rows]
    found = score_rollouts(situation, lists, rollouts, config, warm_up_s=warm_up_s, panel=panel)
    return found.reshape(len(candidates), len(candidates[0]), each).mean(axis=2)


def _warm_up_s(situation: Situation, lists: Sequence[Requests]) -> float:
    shortest_s = min(float(requests.arrival_s[-1] - requests.arrival_s[0]) for requests in lists)
    return min(_SETTLED * situation.view.rate_tau_s, _WARM_UP * shortest_s)


def _finalists(search: Evolution) -> np.ndarray:
    """The best candidates of a search, the best first, and last the one that it started at."""
    candidates, scored = (np.concatenate(parts) for parts in zip(*search.generations, strict=True))
    return np.concatenate([candidates[np.argsort(-scored, kind="stable")[:_FINALISTS]], candidates[:1]])


def _rule(shape: EnvShape, start: Rule, steps: np.ndarray, config: SearchConfig) -> Rule:
    return dataclasses.replace(start, **settings_at(_ROUTER, shape, steps) | dict.fromkeys(config.without, 0.0))


def _identity(
    situation: Situation, lists: Sequence[Requests], start: Rule, config: SearchConfig, seeds: Sequence[int]
) -> dict[str, str]:
    """The settings that a checkpoint must share with a search to be continued, as text."""
    arrays = [(f"{name} {i}", values) for i, each in enumerate(lists) for name, values in each.columns.items()]
    numbers = [(name, np.asarray(value)) for name, value in dataclasses.asdict(start).items()]
    return {
        **{f"`{field.name}`": str(getattr(config, field.name)) for field in dataclasses.fields(config)},
        "situation": array_digest([], start=as_text(situation))[:12],
        "lists": array_digest(arrays)[:12],
        "starting numbers": array_digest(numbers)[:12],
        "seeds": ", ".join(map(str, seeds)),
        "environment": f"version {ServingEnvironment.version}",
    }
