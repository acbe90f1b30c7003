"""What is written about an evaluation: tables, figures and the report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from besteffort.bounds.prices import Bound
from besteffort.evaluation import metrics, plots
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.judging import LEARNED, TraceHalves, Verdict, burst_arena, grid_arena, judge, trace_arena
from besteffort.evaluation.report import Cell, Column, Picture, Report, Table, comparison_table, write_report
from besteffort.evaluation.statistics import Interval, mean_interval
from besteffort.evaluation.tuning import ALWAYS
from besteffort.files import write_json
from besteffort.policy import Policy
from besteffort.routers.learned import learned_router
from besteffort.situation import Situation
from besteffort.version import __version__

_ON_TIMELINE = ("priced", "deadline")
_BURST_SHARE = 0.9  # the time line shows the surroundings of the window at this quantile of the arrivals


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
