"""Judging: arenas of request lists, all routers in each, and what is written about it.

An arena is a family of loads whose heuristics share one setting, tuned on lists that nobody is judged on: the grid of
Poisson loads, the bursty load, or a trace at several mean loads. Of a trace, heuristics are tuned on the first half in
its own order, and all routers know the mean lengths of that half; they are judged on the second half.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from besteffort.bounds.clairvoyant import clairvoyant_bound
from besteffort.bounds.prices import Bound
from besteffort.errors import InputError
from besteffort.evaluation import metrics, plots
from besteffort.evaluation.report import Cell, Column, Picture, Report, Table, comparison_table, write_report
from besteffort.evaluation.rollouts import play_routers, sample_lists
from besteffort.evaluation.statistics import Interval, mean_interval
from besteffort.evaluation.tuning import ALWAYS, best_settings, heuristic_routers, score_candidates
from besteffort.files import write_json
from besteffort.policy import Policy
from besteffort.routers.learned import learned_router
from besteffort.routers.registry import Settings
from besteffort.runs.experiment import EvaluationConfig
from besteffort.simulator.result import Result
from besteffort.simulator.types import Router
from besteffort.situation import Situation
from besteffort.version import __version__
from besteffort.workload import rescale
from besteffort.workload.config import Poisson, Synthetic
from besteffort.workload.config import build as build_workload
from besteffort.workload.requests import Requests
from besteffort.workload.resample import halves, with_lengths_of
from besteffort.workload.table import read_table
from besteffort.workload.traces import TraceInfo, interpret

LEARNED = "learned"
"""Name of the router that the others are compared with; those of further learned ones begin with it."""

_LONGEST_WORD = 12
_ON_TIMELINE = ("priced", "deadline")
_BURST_SHARE = 0.9  # the time line shows the surroundings of the window at this quantile of the arrivals


@dataclasses.dataclass(frozen=True)
class Arena:
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
class Verdict:
    """What became of an arena's lists.

    Attributes:
      arena: the arena.
      tuned: settings of the tuned heuristics.
      results: per load and router a result of shape (seeds, n).
      list_bounds: per load the upper bounds of its lists, each of shape ().
    """

    arena: Arena
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
        return tuple(name for name in self.routers if name.startswith(LEARNED))

    @property
    def static(self) -> tuple[str, ...]:
        """Routers that send everything to one model."""
        return tuple(name for name in self.routers if name.startswith(ALWAYS))

    @property
    def heuristics(self) -> tuple[str, ...]:
        """Routers that neither learn nor send everything to one model."""
        return tuple(name for name in self.routers if not name.startswith((LEARNED, ALWAYS)))

    def measure(self, measure: Callable[..., np.ndarray], index: int, router: str) -> np.ndarray:
        """(seeds, ...) a function of `besteffort.evaluation.metrics` of what a router did at the load `index`."""
        return measure(self.results[index][router], warm_up_s=self.arena.warm_up_s)

    def over_loads(self, measure: Callable[..., np.ndarray], router: str) -> np.ndarray:
        """(loads, seeds, ...) the same at all loads."""
        return np.stack([self.measure(measure, index, router) for index in range(len(self.results))])


def grid_arena(situation: Situation, config: EvaluationConfig) -> Arena:
    """Poisson arrivals at every load of the grid."""
    return synthetic_arena(
        "grid", "Poisson arrivals", situation, config, config.loads, [Poisson(load=x) for x in config.loads]
    )


def burst_arena(situation: Situation, config: EvaluationConfig) -> Arena:
    """The bursty load."""
    capacity = float(situation.capacity()[-1])
    load = float(config.burst.process(capacity).mean_rate()) / capacity
    title = f"Bursty arrivals, mean load {load:.2g}"
    return synthetic_arena("bursts", title, situation, config, (load,), [config.burst])


def synthetic_arena(
    name: str,
    title: str,
    situation: Situation,
    config: EvaluationConfig,
    loads: tuple[float, ...],
    workloads: Sequence[Synthetic],
) -> Arena:
    """Lists drawn from synthetic workloads of one kind, one for each of `loads`, their mean loads.

    Raises:
      InputError: if a workload does not fit the situation, or a list would end within the warm-up.
    """
    judged = draw_lists(situation, workloads, config.requests, config.judging_seeds)
    tuning = sum(draw_lists(situation, workloads, config.tuning_requests, config.unjudged_seeds), ())
    shortest_s = min(float(requests.arrival_s[-1]) for requests in (*sum(judged, ()), *tuning))
    if shortest_s <= config.warm_up_s:
        raise InputError(
            f"The shortest list of the {name} lasts {shortest_s:.3g} s, all of it in `evaluation.warm_up_s`, "
            f"{config.warm_up_s:g} s; raise `evaluation.requests` and `evaluation.tuning_requests`, or lower "
            "`evaluation.warm_up_s` or the loads."
        )
    capacity = float(situation.capacity()[-1])
    return Arena(name, title, situation, loads, judged, tuning, capacity, config.warm_up_s)


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


def read_halves(paths: Sequence[Path], situation: Situation, seeds: Iterable[int]) -> list[TraceHalves]:
    """Reads traces, and draws what they leave out once for every seed.

    Raises:
      InputError: as `read_trace`, if a trace has fewer than four requests, or if two have the same name.
    """
    seeds = list(seeds)
    traces = []
    for path, name in zip(paths, _short_names(paths), strict=True):
        table = read_table(path)
        read = [interpret(table, situation, seed=seeds[0])]
        if read[0][1].drawn:
            read += [interpret(table, situation, seed=seed) for seed in seeds[1:]]
        shortest = min(len(requests) for requests, _ in read)
        try:
            first, second = zip(*(halves(requests, shortest) for requests, _ in read), strict=True)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        traces.append(TraceHalves(name, read[0][1], first, second))
    return traces


def trace_arena(trace: TraceHalves, situation: Situation, config: EvaluationConfig) -> Arena:
    """The second half of a trace at every load, with each list's own capacity as load 1."""
    situation = with_lengths_of(situation, trace.first[0])
    judged = tuple(
        tuple(rescale.to_load(half, situation, load) for half in trace.second) for load in config.trace_loads
    )
    shortest_s = min(float(requests.arrival_s[-1]) for group in judged for requests in group)
    return Arena(
        name=trace.name,
        title=f"Second half of {trace.info.source}",
        situation=situation,
        loads=config.trace_loads,
        judged=judged,
        tuning=tuple(rescale.to_load(trace.first[0], situation, load) for load in config.trace_loads),
        capacity_per_s=float(rescale.capacity(trace.second[0], situation)[-1]),
        warm_up_s=min(config.warm_up_s, shortest_s / 10),
    )


def judge(
    arena: Arena,
    learned: Mapping[str, Sequence[Router]],
    config: EvaluationConfig,
    tuned: Mapping[str, Settings] | None = None,
) -> Verdict:
    """Tunes the heuristics and plays every router on every list.

    Args:
      arena: the lists.
      learned: learned routers by name, listed first: one for all lists, or one for each seed of the arena, so that
        intervals span policies and arrivals alike.
      config: width of windows.
      tuned: settings of the heuristics, if they are not to be tuned on the arena's own lists.
    """
    if tuned is None:
        scores = score_candidates(arena.situation, arena.tuning, warm_up_s=arena.warm_up_s)
        tuned = {name: settings[0] for name, settings in best_settings(arena.situation, scores).items()}
    lists = [requests for group in arena.judged for requests in group]
    routers = {name: [*each] * (len(lists) // len(each)) for name, each in learned.items()}
    routers |= heuristic_routers(arena.situation, {name: [one] for name, one in tuned.items()}, len(lists))
    played = play_routers(arena.situation, lists, routers)
    seeds = len(arena.judged[0])
    return Verdict(
        arena=arena,
        tuned=dict(tuned),
        results=tuple(
            {name: result.lanes(slice(start, start + seeds)) for name, result in played.items()}
            for start in range(0, len(lists), seeds)
        ),
        list_bounds=tuple(list_bounds(arena, group) for group in arena.judged),
    )


def list_bounds(arena: Arena, lists: Sequence[Requests]) -> list[Bound]:
    """Upper bound on what counts of each of some of an arena's lists, whatever a router knows of them."""
    counted = [rescale.window(requests, arena.warm_up_s + requests.arrival_s[0], np.inf) for requests in lists]
    return [clairvoyant_bound(arena.situation, requests) for requests in counted]


def mean_bound(each: Sequence[Bound]) -> Bound:
    """Mean of bounds."""
    return Bound(*(np.asarray(np.mean([getattr(b, f.name) for b in each], axis=0)) for f in dataclasses.fields(Bound)))


def evaluate(
    policy: Policy, situation: Situation, config: EvaluationConfig, traces: Sequence[TraceHalves], out: Path
) -> Table:
    """Judges a policy on the traces, or on the grid and the bursts if there are none, and writes everything to `out`.

    Raises:
      InputError: if a file cannot be written.
    """
    arenas = [trace_arena(trace, situation, config) for trace in traces]
    arenas = arenas or [grid_arena(situation, config), burst_arena(situation, config)]
    verdicts = [judge(arena, {LEARNED: [learned_router(policy)]}, config) for arena in arenas]
    pictures = []
    for verdict in verdicts:
        name = verdict.arena.name
        if len(verdict.arena.loads) > 1:
            pictures.append(draw_against_load(verdict, out / f"{name}-load"))
            pictures.append(draw_routing_mix(verdict, out / f"{name}-mix"))
        else:
            pictures.append(draw_comparison(verdict, 0, out / name))
            pictures.append(draw_timeline(verdict, out / f"{name}-timeline"))
    settings = {f"Trace {trace.name}": str(trace.info) for trace in traces}
    write_outcome(out, "Evaluation", verdicts, config, pictures, settings)
    return performance_table(verdicts, config, intervals=False)


def full_table(verdict: Verdict, index: int, config: EvaluationConfig) -> Table:
    """All measures of all routers at one load of an arena."""
    arena = verdict.arena
    title = arena.title if len(arena.loads) == 1 else f"{arena.title}, mean load {arena.loads[index]:g}"
    return comparison_table(
        title,
        verdict.results[index],
        arena.situation,
        width_s=config.window_s,
        warm_up_s=arena.warm_up_s,
        bound=verdict.bounds[index],
        focus=LEARNED,
    )


def performance_table(verdicts: Sequence[Verdict], config: EvaluationConfig, *, intervals: bool) -> Table:
    """Performance of all routers at all loads of several arenas: one row per router, one column per load."""
    names = verdicts[0].routers
    columns: list[Column] = []
    rows: dict[str, list[Interval | float]] = {name: [] for name in names}
    limits: list[float] = []
    for verdict in verdicts:
        for index, load in enumerate(verdict.arena.loads):
            columns.append(Column(f"{verdict.arena.name.replace('_', ' ')} {load:.2g}", digits=1, brief=True))
            for name in names:
                cell = mean_interval(verdict.measure(metrics.performance, index, name))
                rows[name].append(cell if intervals else float(cell.mean))
            limits.append(float(verdict.bounds[index].performance))
    return Table(
        title="Performance (%) by load, in multiples of the largest model's capacity",
        head="Router",
        columns=tuple(columns),
        rows=(*((name, tuple(cells)) for name, cells in rows.items()), ("upper bound", tuple(limits))),
        focus=LEARNED,
        note="Mean ± half the 95% Student t interval over the lists." if intervals and config.seeds > 1 else "",
    )


def sustained_table(verdict: Verdict) -> Table:
    """Highest load up to which each router answers enough requests in time; `verdict` is of several loads."""
    loads = np.array(verdict.arena.loads)
    targets = (0.99, 0.95)

    def sustained(name: str) -> tuple[Interval, ...]:
        attained = verdict.over_loads(metrics.slo_attainment, name).T
        return tuple(mean_interval(metrics.sustained_rate(loads, attained, target)) for target in targets)

    return Table(
        title=f"Sustained load ({verdict.arena.name})",
        head="Router",
        columns=tuple(Column(f"At {target:.0%} SLO attainment", "number", 2) for target in targets),
        rows=tuple((name, sustained(name)) for name in verdict.routers),
        focus=LEARNED,
        note=f"In multiples of the largest model's capacity, {verdict.arena.capacity_per_s:.0f} requests/s; "
        f"interpolated between the loads judged, 0 where the lowest is too much, at most {loads[-1]:g}.",
    )


def load_figure(verdict: Verdict) -> Figure:
    """Performance and SLO attainment of all routers against load."""

    def curves(measure: Callable[..., np.ndarray]) -> dict[str, Interval]:
        return {name: mean_interval(verdict.over_loads(measure, name)) for name in verdict.routers}

    return plots.plot_against_rate(
        np.array(verdict.arena.loads),
        curves(metrics.performance),
        curves(metrics.slo_attainment),
        bound=_stacked(verdict.bounds),
        requests_per_s=verdict.arena.capacity_per_s,
        focus=LEARNED,
    )


def draw_against_load(verdict: Verdict, path: Path) -> Picture:
    """`load_figure`, as files."""
    plots.save_figure(load_figure(verdict), path)
    return Picture(path.with_suffix(".png"), f"{verdict.arena.title}: performance and SLO attainment against load.")


def mix_figure(verdict: Verdict) -> Figure:
    """Which model serves which share, against load, for the routers that choose by load."""
    models = verdict.arena.situation.profile.model_names
    mix = partial(metrics.routing_mix, models=len(models))
    chosen = [LEARNED, "priced", "deadline-reserve", "ladder"]
    mixes = {name: verdict.over_loads(mix, name).mean(axis=1) for name in chosen}
    return plots.plot_routing_mix(
        np.array(verdict.arena.loads), mixes, models, requests_per_s=verdict.arena.capacity_per_s
    )


def draw_routing_mix(verdict: Verdict, path: Path) -> Picture:
    """`mix_figure`, as files."""
    plots.save_figure(mix_figure(verdict), path)
    return Picture(path.with_suffix(".png"), f"{verdict.arena.title}: which model serves which share of the requests.")


def draw_timeline(verdict: Verdict, path: Path) -> Picture:
    """Through a burst of the first seed's list at the last load, beside the heuristics and the largest model alone."""
    results = verdict.results[-1]
    largest = f"{ALWAYS}{verdict.arena.situation.profile.model_names[-1]}"
    first = {name: results[name].lanes(0) for name in (LEARNED, *_ON_TIMELINE, largest)}
    arrival_s = first[LEARNED].arrival_s
    width_s = 0.25
    bins = max(1, math.ceil(float(arrival_s[-1]) / width_s))
    counts, _ = np.histogram(arrival_s, bins=bins, range=(0.0, bins * width_s))
    busy = np.flatnonzero(counts >= np.quantile(counts, _BURST_SHARE))
    middle_s = width_s * float(busy[len(busy) // 2])
    start_s = min(max(0.0, middle_s - 6.0), max(0.0, float(arrival_s[-1]) - 12.0))
    figure = plots.plot_timeline(
        first,
        verdict.arena.situation.profile.model_names,
        start_s=start_s,
        end_s=start_s + 12.0,
        width_s=width_s,
        focus=LEARNED,
        capacity_per_s=verdict.arena.capacity_per_s,
    )
    plots.save_figure(figure, path)
    return Picture(path.with_suffix(".png"), f"{verdict.arena.title}: a stretch of the first seed's list.")


def draw_comparison(verdict: Verdict, index: int, path: Path) -> Picture:
    """One bar per router."""
    arena = verdict.arena
    models = arena.situation.profile.model_names
    peak = arena.situation.peak_rewards
    by_model = partial(metrics.performance_by_model, models=len(models))
    bars = [
        plots.Bar(
            name,
            mean_interval(verdict.measure(metrics.performance, index, name)),
            verdict.measure(by_model, index, name).mean(0),
            mean_interval(verdict.measure(metrics.slo_attainment, index, name)),
        )
        for name in verdict.routers
    ]
    peaks = verdict.measure(partial(metrics.peak_performance, peak_reward=peak), index, LEARNED)
    figure = plots.plot_comparison(
        bars,
        models,
        title=f"{arena.title}: quality delivered in time",
        peak=float(peaks.mean()),
        bound=float(verdict.bounds[index].performance),
        focus=LEARNED,
    )
    plots.save_figure(figure, path)
    return Picture(path.with_suffix(".png"), f"{arena.title}: one bar per router.")


def figures_of(verdict: Verdict, config: EvaluationConfig) -> dict[str, Any]:
    """Every figure of a verdict as plain JSON values; null where a table has none."""
    arena = verdict.arena
    groups = []
    for index, load in enumerate(arena.loads):
        table = full_table(verdict, index, config)
        titles = [column.title for column in table.columns]
        groups.append(
            {
                "load": load,
                "requests_per_s": load * arena.capacity_per_s,
                "rows": {
                    name: {title: _plain(cell) for title, cell in zip(titles, cells, strict=True)}
                    for name, cells in table.rows
                },
            }
        )
    return {
        "arena": arena.name,
        "title": arena.title,
        "seeds": len(arena.judged[0]),
        "requests": len(arena.judged[0][0]),
        "tuned": verdict.tuned,
        "loads": groups,
    }


def write_outcome(
    out: Path,
    title: str,
    verdicts: Sequence[Verdict],
    config: EvaluationConfig,
    pictures: Sequence[Picture],
    settings: Mapping[str, str],
) -> None:
    """Writes `results.json` and `report.md`; `verdicts` has at least one.

    Raises:
      InputError: if a file cannot be written.
    """
    write_json(out / "results.json", [figures_of(verdict, config) for verdict in verdicts])
    tuned = {
        f"Tuned on other lists ({verdict.arena.name})": "; ".join(
            f"{name}: {', '.join(f'{key} {value}' for key, value in chosen.items())}"
            for name, chosen in verdict.tuned.items()
        )
        for verdict in verdicts
    }
    report = Report(
        title=title,
        summary=_summary(verdicts),
        situation=verdicts[0].arena.situation,
        settings={
            **settings,
            "Judged on": "; ".join(
                f"{v.arena.name}: {len(v.arena.judged[0])} list(s) per load, the first {v.arena.warm_up_s:.3g} s of "
                "each do not count"
                for v in verdicts
            ),
            **tuned,
            "Version": f"besteffort {__version__}",
        },
        tables=(
            performance_table(verdicts, config, intervals=True),
            *(sustained_table(verdict) for verdict in verdicts if len(verdict.arena.loads) > 1),
            *(full_table(verdict, i, config) for verdict in verdicts for i in range(len(verdict.arena.loads))),
        ),
        pictures=tuple(pictures),
    )
    write_report(report, out / "report.md")


def _summary(verdicts: Sequence[Verdict]) -> str:
    sentences = []
    for verdict in verdicts:
        for index, (load, bound) in enumerate(zip(verdict.arena.loads, verdict.bounds, strict=True)):
            mean = {name: float(verdict.measure(metrics.performance, index, name).mean()) for name in verdict.routers}
            rival = max((*verdict.static, *verdict.heuristics), key=mean.__getitem__)
            sentences.append(
                f"- {verdict.arena.name} at load {load:.2g}: learned {mean[LEARNED]:.1%}, best other ({rival}) "
                f"{mean[rival]:.1%}, bound {float(bound.performance):.1%}."
            )
    return "Performance (mean of quality in time over all requests):\n\n" + "\n".join(sentences)


def _short_names(paths: Sequence[Path]) -> list[str]:
    """What tells files apart: the parts of their names that not all share, without long words where others are left."""
    parts = [path.name.split(".")[0].split("_") for path in paths]
    shared = set(parts[0]).intersection(*parts[1:]) if len(parts) > 1 else set()
    names = []
    for own in parts:
        telling = [part for part in own if part not in shared] or own
        names.append("_".join([part for part in telling if len(part) <= _LONGEST_WORD] or telling))
    if len(set(names)) < len(names):
        raise InputError(f"The traces {', '.join(map(str, paths))} have the same name; give each once, or rename one.")
    return names


def _stacked(bounds: Sequence[Bound]) -> Bound:
    return Bound(*(np.stack([getattr(b, f.name) for b in bounds]) for f in dataclasses.fields(Bound)))


def _plain(cell: Cell) -> Any:
    if not isinstance(cell, Interval):
        return cell
    mean, half_width = float(cell.mean), float(cell.half_width)
    return {
        "mean": mean if math.isfinite(mean) else None,
        "half_width": half_width if math.isfinite(half_width) else None,
    }
