"""What is written about an evaluation: tables, figures and the report."""

from __future__ import annotations

import dataclasses
import itertools
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
from besteffort.evaluation.judging import (
    LEARNED,
    EvaluationResult,
    TraceHalves,
    burst_set,
    grid_set,
    judge,
    trace_set,
    tune_on,
)
from besteffort.evaluation.report import (
    PARTY_COLUMNS,
    Column,
    Picture,
    Report,
    Table,
    by_party,
    comparison_table,
    party_table,
    write_report,
)
from besteffort.evaluation.statistics import Interval, best_mean, mean_interval
from besteffort.evaluation.tuning import static_name
from besteffort.files import jsonable, write_json
from besteffort.policy import Policy
from besteffort.routers.learned import learned_router
from besteffort.situation import Situation
from besteffort.version import __version__
from besteffort.workload.requests import PARTIES, Party

TUNED = "tuned.json"
"""File of an output directory that keeps the settings of heuristics, so that a resumed run does not tune them again."""

_ON_TIMELINE = ("priced", "deadline")
_BURST_SHARE = 0.9  # the time line shows the surroundings of the window at this quantile of the arrivals


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What to tell the user.

    Attributes:
      table: performance of all routers at all loads.
      brief: the same without intervals, for a terminal.
    """

    table: Table
    brief: Table


def evaluate(
    policy: Policy, situation: Situation, config: EvaluationConfig, traces: Sequence[TraceHalves], out: Path
) -> Outcome:
    """Judges a policy on the traces, or on the grid and the bursts if there are none, and writes everything to `out`.

    Raises:
      InputError: if a file cannot be written.
    """
    evaluation_sets = [trace_set(trace, situation, config) for trace in traces]
    evaluation_sets = evaluation_sets or [grid_set(situation, config), burst_set(situation, config)]
    evaluations = [
        judge(
            evaluation_set,
            {LEARNED: [learned_router(policy)]},
            config,
            tune_on(evaluation_set, config, kept=out / TUNED),
        )
        for evaluation_set in evaluation_sets
    ]
    pictures = []
    for evaluation in evaluations:
        name = evaluation.set.name
        if len(evaluation.set.loads) > 1:
            pictures.append(draw_against_load(evaluation, out / f"{name}-load"))
            pictures.append(draw_routing_mix(evaluation, out / f"{name}-mix"))
        else:
            pictures.append(draw_comparison(evaluation, 0, out / name))
            pictures.append(draw_timeline(evaluation, out / f"{name}-timeline"))
    settings = {f"Trace {trace.name}": str(trace.info) for trace in traces}
    write_outcome(out, "Evaluation", evaluations, config, pictures, settings)
    return Outcome(
        table=performance_table(evaluations, config, intervals=True),
        brief=performance_table(evaluations, config, intervals=False),
    )


def full_table(evaluation: EvaluationResult, index: int, config: EvaluationConfig) -> Table:
    """All measures of all routers at one load of an evaluation set."""
    evaluation_set = evaluation.set
    return comparison_table(
        _title(evaluation, index),
        evaluation.results[index],
        evaluation_set.situation,
        width_s=config.window_s,
        warm_up_s=evaluation_set.warm_up_s,
        bound=evaluation.bounds[index],
        focus=LEARNED,
    )


def full_tables(evaluation: EvaluationResult, config: EvaluationConfig) -> tuple[Table, ...]:
    """`full_table` at every load."""
    return tuple(full_table(evaluation, index, config) for index in range(len(evaluation.set.loads)))


def by_party_table(evaluation: EvaluationResult, index: int, party: Party) -> Table | None:
    """How the requests of each origin or tenant fare with each router, at one load; None where requests have none."""
    evaluation_set = evaluation.set
    return party_table(
        _title(evaluation, index),
        evaluation.results[index],
        evaluation_set.situation,
        party,
        warm_up_s=evaluation_set.warm_up_s,
    )


def _title(evaluation: EvaluationResult, index: int) -> str:
    evaluation_set = evaluation.set
    load = f", mean load {evaluation_set.loads[index]:g}" if len(evaluation_set.loads) > 1 else ""
    return f"{evaluation_set.title}{load}"


def performance_table(evaluations: Sequence[EvaluationResult], config: EvaluationConfig, *, intervals: bool) -> Table:
    """Performance of all routers at all loads of several evaluation sets: one row per router, one column per load."""
    names = evaluations[0].routers
    columns: list[Column] = []
    rows: dict[str, list[Interval | float]] = {name: [] for name in names}
    limits: list[float] = []
    for evaluation in evaluations:
        for index, load in enumerate(evaluation.set.loads):
            columns.append(Column(f"{evaluation.set.name.replace('_', ' ')} {load:.2g}", digits=1, brief=True))
            for name in names:
                cell = mean_interval(evaluation.measure(metrics.performance, index, name))
                rows[name].append(cell if intervals else float(cell.mean))
            limits.append(float(evaluation.bounds[index].performance))
    return Table(
        title="Performance (%) by load, in multiples of the largest model's capacity",
        head="Router",
        columns=tuple(columns),
        rows=(*((name, tuple(cells)) for name, cells in rows.items()), ("upper bound", tuple(limits))),
        focus=LEARNED,
        note="Mean ± half the 95% Student t interval over the lists." if intervals and config.seeds > 1 else "",
    )


def sustained_table(evaluation: EvaluationResult) -> Table:
    """Highest load up to which each router answers enough requests in time; `evaluation` is of several loads."""
    loads = np.array(evaluation.set.loads)
    targets = (0.99, 0.95)

    def sustained(name: str) -> tuple[Interval, ...]:
        attained = evaluation.over_loads(metrics.slo_attainment, name).T
        return tuple(mean_interval(metrics.sustained_rate(loads, attained, target)) for target in targets)

    return Table(
        title=f"Sustained load ({evaluation.set.name})",
        head="Router",
        columns=tuple(Column(f"At {target:.0%} SLO attainment", "number", 2) for target in targets),
        rows=tuple((name, sustained(name)) for name in evaluation.routers),
        focus=LEARNED,
        note=f"In multiples of the largest model's capacity, {evaluation.set.capacity_per_s:.0f} requests/s; "
        f"interpolated between the loads judged, 0 where the lowest is too much, at most {loads[-1]:g}.",
    )


def load_figure(evaluation: EvaluationResult) -> Figure:
    """Performance and SLO attainment of all routers against load."""

    def curves(measure: Callable[..., np.ndarray]) -> dict[str, Interval]:
        return {name: mean_interval(evaluation.over_loads(measure, name)) for name in evaluation.routers}

    return plots.plot_against_rate(
        np.array(evaluation.set.loads),
        curves(metrics.performance),
        curves(metrics.slo_attainment),
        bound=_stacked(evaluation.bounds),
        requests_per_s=evaluation.set.capacity_per_s,
        focus=LEARNED,
    )


def draw_against_load(evaluation: EvaluationResult, path: Path) -> Picture:
    """`load_figure`, as files."""
    plots.save_figure(load_figure(evaluation), path)
    return Picture(path.with_suffix(".png"), f"{evaluation.set.title}: performance and SLO attainment against load.")


def mix_figure(evaluation: EvaluationResult) -> Figure:
    """Which model serves which share, against load, for the routers that choose by load."""
    models = evaluation.set.situation.fleet.names
    mix = partial(metrics.routing_mix, models=len(models))
    chosen = [LEARNED, "priced", "deadline-reserve", "ladder"]
    mixes = {name: evaluation.over_loads(mix, name).mean(axis=1) for name in chosen}
    return plots.plot_routing_mix(
        np.array(evaluation.set.loads),
        mixes,
        models,
        requests_per_s=evaluation.set.capacity_per_s,
    )


def draw_routing_mix(evaluation: EvaluationResult, path: Path) -> Picture:
    """`mix_figure`, as files."""
    plots.save_figure(mix_figure(evaluation), path)
    return Picture(path.with_suffix(".png"), f"{evaluation.set.title}: which model serves which share of the requests.")


def draw_timeline(evaluation: EvaluationResult, path: Path) -> Picture:
    """A burst of the first seed's list at the last load: learned, heuristics, and the largest model alone."""
    results = evaluation.results[-1]
    fleet = evaluation.set.situation.fleet
    largest = static_name(fleet.names[int(np.flatnonzero(fleet.largest)[-1])])
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
        fleet.names,
        start_s=start_s,
        end_s=start_s + 12.0,
        width_s=width_s,
        focus=LEARNED,
        capacity_per_s=evaluation.set.capacity_per_s,
    )
    plots.save_figure(figure, path)
    return Picture(path.with_suffix(".png"), f"{evaluation.set.title}: a stretch of the first seed's list.")


def draw_comparison(evaluation: EvaluationResult, index: int, path: Path) -> Picture:
    """One bar per router."""
    evaluation_set = evaluation.set
    models = evaluation_set.situation.fleet.names
    peak = evaluation_set.situation.peak_rewards
    by_model = partial(metrics.performance_by_model, models=len(models))
    bars = [
        plots.Bar(
            name,
            mean_interval(evaluation.measure(metrics.performance, index, name)),
            evaluation.measure(by_model, index, name).mean(0),
            mean_interval(evaluation.measure(metrics.slo_attainment, index, name)),
        )
        for name in evaluation.routers
    ]
    peaks = evaluation.measure(partial(metrics.peak_performance, peak_reward=peak), index, LEARNED)
    figure = plots.plot_comparison(
        bars,
        models,
        title=f"{evaluation_set.title}: quality delivered in time",
        peak=float(peaks.mean()),
        bound=float(evaluation.bounds[index].performance),
        focus=LEARNED,
    )
    plots.save_figure(figure, path)
    return Picture(path.with_suffix(".png"), f"{evaluation_set.title}: one bar per router.")


def figures_of(evaluation: EvaluationResult, tables: Sequence[Table]) -> dict[str, Any]:
    """Every figure of an evaluation as plain JSON values, shares and SI units; null where a table has none.

    `tables` are its `full_tables`.
    """
    evaluation_set = evaluation.set
    groups = []
    for index, (load, table) in enumerate(zip(evaluation_set.loads, tables, strict=True)):
        keys = [column.name for column in table.columns]
        groups.append(
            {
                "load": load,
                "requests_per_s": load * evaluation_set.capacity_per_s,
                "rows": {
                    name: {key: jsonable(cell) for key, cell in zip(keys, cells, strict=True)}
                    | _of_parties(evaluation, index, name)
                    for name, cells in table.rows
                },
            }
        )
    return {
        "evaluation_set": evaluation_set.name,
        "title": evaluation_set.title,
        "seeds": len(evaluation_set.judged[0]),
        "requests": len(evaluation_set.judged[0][0]),
        "tuned": evaluation.tuned,
        "loads": groups,
    }


def _of_parties(evaluation: EvaluationResult, index: int, router: str) -> dict[str, Any]:
    """The figures of each origin and tenant with a router, by kind; nothing where there are none, as for the bound."""
    results, evaluation_set = evaluation.results[index], evaluation.set
    if router not in results:
        return {}
    found = {}
    for party in PARTIES:
        keys = [column.name for column in PARTY_COLUMNS[party]]
        rows = by_party(results[router], evaluation_set.situation, party, warm_up_s=evaluation_set.warm_up_s)
        named = {name: {key: jsonable(cell) for key, cell in zip(keys, cells, strict=True)} for name, cells in rows}
        if named:
            found[f"{party}s"] = named
    return found


def write_outcome(
    out: Path,
    title: str,
    evaluations: Sequence[EvaluationResult],
    config: EvaluationConfig,
    pictures: Sequence[Picture],
    settings: Mapping[str, str],
) -> list[tuple[Table, ...]]:
    """Writes `results.json` and `report.md`, and returns each evaluation's `full_tables`; there is at least one.

    Raises:
      InputError: if a file cannot be written.
    """
    tables = [full_tables(evaluation, config) for evaluation in evaluations]
    write_json(out / "results.json", [*map(figures_of, evaluations, tables)])
    tuned = {
        f"Tuned on other lists ({evaluation.set.name})": "; ".join(
            f"{name}: {', '.join(f'{key} {value}' for key, value in chosen.items())}"
            for name, chosen in evaluation.tuned.items()
        )
        for evaluation in evaluations
    }
    report = Report(
        title=title,
        summary=_summary(evaluations),
        situation=evaluations[0].set.situation,
        settings={
            **settings,
            "Judged on": "; ".join(
                f"{v.set.name}: {len(v.set.judged[0])} list(s) per load, the first {v.set.warm_up_s:.3g} s of "
                "each do not count"
                for v in evaluations
            ),
            **tuned,
            "Version": f"besteffort {__version__}",
        },
        tables=(
            performance_table(evaluations, config, intervals=True),
            *(sustained_table(evaluation) for evaluation in evaluations if len(evaluation.set.loads) > 1),
            *itertools.chain.from_iterable(tables),
            *(
                table
                for evaluation in evaluations
                for i in range(len(evaluation.set.loads))
                for party in PARTIES
                if (table := by_party_table(evaluation, i, party)) is not None
            ),
        ),
        pictures=tuple(pictures),
    )
    write_report(report, out / "report.md")
    return tables


def _summary(evaluations: Sequence[EvaluationResult]) -> str:
    sentences = []
    for evaluation in evaluations:
        for index, (load, bound) in enumerate(zip(evaluation.set.loads, evaluation.bounds, strict=True)):
            values = {name: evaluation.measure(metrics.performance, index, name) for name in evaluation.routers}
            rival = best_mean(values, (*evaluation.static, *evaluation.heuristics))
            sentences.append(
                f"- {evaluation.set.name} at load {load:.2g}: learned {values[LEARNED].mean():.1%}, best other "
                f"({rival}) {values[rival].mean():.1%}, bound {float(bound.performance):.1%}."
            )
    return "Performance (mean of quality in time over all requests):\n\n" + "\n".join(sentences)


def _stacked(bounds: Sequence[Bound]) -> Bound:
    return Bound(*(np.stack([getattr(b, f.name) for b in bounds]) for f in dataclasses.fields(Bound)))
