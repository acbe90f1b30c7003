"""Judging: evaluation sets of request lists, and all routers in each.

An evaluation set is a family of loads whose heuristics share one setting, tuned on lists that no router is judged on:
the grid of Poisson loads, the bursty load, or a trace at several mean loads. Of a trace, heuristics are tuned on the
first half in its own order, and all routers know the mean lengths of that half; they are judged on the second half.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from besteffort import interrupts
from besteffort.bounds.clairvoyant import clairvoyant_bound
from besteffort.bounds.prices import Bound
from besteffort.errors import InputError
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.metrics import after_warm_up
from besteffort.evaluation.rollouts import play_routers
from besteffort.evaluation.tuning import RouterKind, heuristic_routers, router_kinds, tune
from besteffort.routers.registry import Settings
from besteffort.simulator.result import Result
from besteffort.simulator.types import Router
from besteffort.situation import Situation
from besteffort.workload import rescale
from besteffort.workload.config import Poisson, Synthetic
from besteffort.workload.config import build as build_workload
from besteffort.workload.reading import ALL, Reading
from besteffort.workload.requests import Requests
from besteffort.workload.resample import halves, with_lengths_of
from besteffort.workload.sample import sample_lists
from besteffort.workload.traces import Trace, TraceInfo, open_trace

LEARNED = "learned"
"""Name of the router that the others are compared with."""

_LONGEST_WORD = 12
_LONGEST_NAME = 60


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """Lists to judge on, load by load, and lists to tune on.

    Attributes:
      name: short, for headings and files.
      title: what is served.
      situation: what is served, on what, and what routers know.
      loads: mean load of each group of lists.
      judged: per load one list for each seed, all of one length.
      tuning: other lists, all of one length.
      capacity_per_s: requests per second at load 1.
      warm_up_s: seconds from the first arrival of each list that do not count.
    """

    name: str
    title: str
    situation: Situation
    loads: tuple[float, ...]
    judged: tuple[tuple[Requests, ...], ...]
    tuning: tuple[Requests, ...]
    capacity_per_s: float
    warm_up_s: float


class TraceHalves(NamedTuple):
    """A trace: its first halves are to learn from, its second halves to judge.

    One of each per seed of what had to be drawn (tasks, lengths, arrivals), a single one where nothing had to. Where
    arrivals are drawn the halves of all seeds are cut to the length of the shortest.
    """

    name: str
    info: TraceInfo
    first: tuple[Requests, ...]
    second: tuple[Requests, ...]


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """The results of all routers on the lists of an evaluation set.

    Attributes:
      set: the lists.
      kinds: the kind of each router.
      tuned: settings of the tuned heuristics.
      results: per load and router a result of shape (seeds, n).
      list_bounds: per load the upper bounds of its lists, each of shape ().
    """

    set: EvaluationSet
    kinds: dict[str, RouterKind]
    tuned: dict[str, Settings]
    results: tuple[dict[str, Result], ...]
    list_bounds: tuple[list[Bound], ...]

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """Per load the upper bound, mean over the seeds, of shape ()."""
        return tuple(map(mean_bound, self.list_bounds))

    @property
    def routers(self) -> tuple[str, ...]:
        return tuple(self.results[0])

    @property
    def learned(self) -> tuple[str, ...]:
        """Routers that learned."""
        return self._of_kind("learned")

    @property
    def static(self) -> tuple[str, ...]:
        """Routers that send everything to one model."""
        return self._of_kind("static")

    @property
    def heuristics(self) -> tuple[str, ...]:
        """Routers that neither learn nor send everything to one model."""
        return self._of_kind("heuristic")

    def _of_kind(self, kind: RouterKind) -> tuple[str, ...]:
        return tuple(name for name in self.routers if self.kinds[name] == kind)

    def measure(self, measure: Callable[..., np.ndarray], index: int, router: str) -> np.ndarray:
        """(seeds, ...) a function of `besteffort.evaluation.metrics` of what a router did at the load `index`."""
        return measure(self.results[index][router], warm_up_s=self.set.warm_up_s)

    def over_loads(self, measure: Callable[..., np.ndarray], router: str) -> np.ndarray:
        """(loads, seeds, ...) the same at all loads."""
        return np.stack([self.measure(measure, index, router) for index in range(len(self.results))])


def grid_set(situation: Situation, config: EvaluationConfig) -> EvaluationSet:
    """Poisson arrivals at every load of the grid."""
    return synthetic_set(
        "grid", "Poisson arrivals", situation, config, config.loads, [Poisson(load=x) for x in config.loads]
    )


def burst_set(situation: Situation, config: EvaluationConfig) -> EvaluationSet:
    """The bursty load."""
    load = mean_load(config.burst, situation)
    title = f"Bursty arrivals, mean load {load:.2g}"
    return synthetic_set("bursts", title, situation, config, (load,), [config.burst])


def mean_load(workload: Synthetic, situation: Situation) -> float:
    """Mean rate of a synthetic workload, in multiples of the largest model's capacity."""
    capacity = situation.unit_load
    return float(workload.process(capacity).mean_rate()) / capacity


def synthetic_set(
    name: str,
    title: str,
    situation: Situation,
    config: EvaluationConfig,
    loads: tuple[float, ...],
    workloads: Sequence[Synthetic],
) -> EvaluationSet:
    """Lists drawn from synthetic workloads of one kind, one for each of `loads`, their mean loads.

    Raises:
      InputError: if a workload does not fit the situation, or a list would end within the warm-up.
    """
    judged = draw_lists(situation, workloads, config.requests, config.judging_seeds)
    tuning = sum(draw_lists(situation, workloads, config.tuning_requests, config.unjudged_seeds), ())
    check_outlast((*sum(judged, ()), *tuning), config.warm_up_s, name)
    capacity = situation.unit_load
    return EvaluationSet(name, title, situation, loads, judged, tuning, capacity, config.warm_up_s)


def check_outlast(lists: Sequence[Requests], warm_up_s: float, name: str) -> None:
    """Checks that something counts of every one of some lists, which a `name` stands for.

    Raises:
      InputError: if one ends within the warm-up.
    """
    if not all(after_warm_up(requests.arrival_s, warm_up_s).any() for requests in lists):
        shortest_s = min(float(requests.arrival_s[-1] - requests.arrival_s[0]) for requests in lists)
        raise InputError(
            f"The shortest list of the {name} lasts {shortest_s:.3g} s, all of it in `evaluation.warm_up_s`, "
            f"{warm_up_s:g} s; raise `evaluation.requests` and `evaluation.tuning_requests`, or lower "
            "`evaluation.warm_up_s` or the loads."
        )


def draw_lists(
    situation: Situation, workloads: Sequence[Synthetic], requests: int, seeds: Sequence[int]
) -> tuple[tuple[Requests, ...], ...]:
    """Lists of so many requests: for each workload, all of one kind, one list per seed.

    Raises:
      InputError: if a workload does not fit the situation.
    """
    built = [build_workload(workload, situation) for workload in workloads]
    lists = sample_lists(built, situation.task_names, requests, seeds)
    return tuple(tuple(lists[i : i + len(seeds)]) for i in range(0, len(lists), len(seeds)))


def read_halves(
    paths: Sequence[Path], situation: Situation, seeds: Iterable[int], reading: Reading = ALL
) -> list[TraceHalves]:
    """Reads traces, or the parts of them that `reading` says, and draws what they leave out once for every seed.

    Raises:
      InputError: as `read_trace`, if a trace has fewer than four requests, or if two have the same name.
    """
    return halves_of(paths, [open_trace(path, situation, reading) for path in paths], situation, seeds)


def halves_of(
    paths: Sequence[Path], opened: Sequence[Trace], situation: Situation, seeds: Iterable[int]
) -> list[TraceHalves]:
    """The halves of traces that were read from `paths`, see `read_halves`.

    Raises:
      InputError: if a trace has fewer than four requests, or if two have the same name.
    """
    seeds = list(seeds)
    traces = []
    for path, name, trace in zip(paths, _short_names(paths), opened, strict=True):
        read = [trace.requests(situation, seeds[0])]
        if read[0][1].drawn:
            read += [trace.requests(situation, seed) for seed in seeds[1:]]
        shortest = min(len(requests) for requests, _ in read)
        try:
            first, second = zip(*(halves(requests, shortest) for requests, _ in read), strict=True)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        traces.append(TraceHalves(name, read[0][1], first, second))
    return traces


def trace_set(trace: TraceHalves, situation: Situation, config: EvaluationConfig) -> EvaluationSet:
    """The second half of a trace at every load, with each list's own capacity as load 1."""
    situation = with_lengths_of(situation, trace.first[0])
    judged = tuple(
        tuple(rescale.to_load(half, situation, load) for half in trace.second) for load in config.trace_loads
    )
    shortest_s = min(float(requests.arrival_s[-1]) for group in judged for requests in group)
    return EvaluationSet(
        name=trace.name,
        title=f"Second half of {trace.info.source}",
        situation=situation,
        loads=config.trace_loads,
        judged=judged,
        tuning=tuple(rescale.to_load(trace.first[0], situation, load) for load in config.trace_loads),
        capacity_per_s=rescale.unit_load(trace.second[0], situation),
        warm_up_s=min(config.warm_up_s, shortest_s / 10),
    )


def tune_on(
    evaluation_set: EvaluationSet,
    config: EvaluationConfig,
    *,
    kept: Path | None = None,
    check: Callable[[], None] = interrupts.check,
    panel: Sequence[Router] = (),
) -> dict[str, Settings]:
    """Settings of the heuristics that do best on the tuning lists of a set; others as of `tune`."""
    situation, warm_up_s = evaluation_set.situation, evaluation_set.warm_up_s
    (tuned,) = tune(
        situation, [evaluation_set.tuning], config, warm_up_s=warm_up_s, kept=kept, check=check, panel=panel
    )
    return tuned


def judge(
    evaluation_set: EvaluationSet,
    learned: Mapping[str, Sequence[Router]],
    config: EvaluationConfig,
    tuned: Mapping[str, Settings] | None = None,
    panel: Sequence[Router] = (),
    bounds: Sequence[list[Bound]] | None = None,
) -> EvaluationResult:
    """Tunes the heuristics and plays every router on every list.

    Args:
      evaluation_set: the lists.
      learned: learned routers by name, listed first: one for all lists, or one for each seed of the evaluation set, so
        that intervals span policies and arrivals alike.
      config: generations and population of the tuning.
      tuned: settings of the heuristics, if they are not to be tuned on the evaluation set's own lists.
      panel: as of `besteffort.evaluation.rollouts.play_routers`.
      bounds: as from `bounds_of`, if they are known already.
    """
    if tuned is None:
        tuned = tune_on(evaluation_set, config, panel=panel)
    lists = [requests for group in evaluation_set.judged for requests in group]
    routers = {name: [*each] * (len(lists) // len(each)) for name, each in learned.items()}
    routers |= heuristic_routers(evaluation_set.situation, tuned, len(lists))
    played = play_routers(evaluation_set.situation, lists, routers, panel=panel)
    seeds = len(evaluation_set.judged[0])
    return EvaluationResult(
        set=evaluation_set,
        kinds=router_kinds(evaluation_set.situation, played, learned),
        tuned=dict(tuned),
        results=tuple(
            {name: result.lanes(slice(start, start + seeds)) for name, result in played.items()}
            for start in range(0, len(lists), seeds)
        ),
        list_bounds=tuple(bounds_of(evaluation_set) if bounds is None else bounds),
    )


def bounds_of(evaluation_set: EvaluationSet) -> list[list[Bound]]:
    """Per load the upper bounds of the lists to judge on."""
    return [list_bounds(evaluation_set, group) for group in evaluation_set.judged]


def list_bounds(evaluation_set: EvaluationSet, lists: Sequence[Requests]) -> list[Bound]:
    """Upper bound on what counts of each of some of an evaluation set's lists, whatever a router knows of them.

    Raises:
      InputError: if a list ends within the warm-up.
    """
    check_outlast(lists, evaluation_set.warm_up_s, evaluation_set.name)
    found = []
    for requests in lists:
        counted = after_warm_up(requests.arrival_s, evaluation_set.warm_up_s)
        # Times stay as they are: replicas start, drain and fail by the same clock.
        later = requests.part(slice(int((~counted).sum()), None), 0.0)
        found.append(clairvoyant_bound(evaluation_set.situation, later))
    return found


def mean_bound(each: Sequence[Bound]) -> Bound:
    """Mean of bounds."""
    return Bound(*(np.asarray(np.mean([getattr(b, f.name) for b in each], axis=0)) for f in dataclasses.fields(Bound)))


def _short_names(paths: Sequence[Path]) -> list[str]:
    """What tells files apart: the parts of their names that not all share, without long words where others are left."""
    for path in paths:
        if [other.absolute() for other in paths].count(path.absolute()) > 1:
            raise InputError(f"The trace {path} is given twice; give each once.")
    parts = [_stem(path).split("_") for path in paths]
    shared = set(parts[0]).intersection(*parts[1:]) if len(parts) > 1 else set()
    names = []
    for own in parts:
        telling = [part for part in own if part not in shared] or own
        names.append("_".join([part for part in telling if len(part) <= _LONGEST_WORD] or telling))
    if len(set(names)) < len(names):
        names = [f"{name}-{number}" for number, name in enumerate(names, start=1)]
    return names


def _stem(path: Path) -> str:
    """A file's name without what says its format, in characters that any other name of a file may have, too."""
    name = re.sub(r"(\.(csv|json|jsonl|ndjson|txt|log|gz))+$", "", path.name, flags=re.IGNORECASE)
    return re.sub(r"[^\w-]+", "-", name).strip("-")[:_LONGEST_NAME] or "trace"
