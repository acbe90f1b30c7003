"""The leaderboard of a sweep: settings ranked by the performance of their routers on held-out lists, and the axes.

| file | what |
|---|---|
| `report.md` | the leaderboard, the plot, and the trials that did not finish |
| `results.json` | every figure |
| `trials.csv` | a row per trial: its values, status and performance |
| `what-mattered.png` | performance against each axis, where there is one besides seeds |
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from besteffort.evaluation import plots
from besteffort.evaluation.report import Cell, Column, Table
from besteffort.evaluation.statistics import explained_share, mean_interval, paired_difference
from besteffort.files import write_json, write_text

Status = Literal["finished", "diverged", "stopped", "failed"]

_SHOWN = 15  # settings on a terminal


@dataclasses.dataclass(frozen=True)
class Entry:
    """The outcome of a trial.

    Attributes:
      trial: name of the trial and of its directory.
      setting: number of its setting.
      seed: its seed.
      values: its value of each axis.
      status: `finished`; `diverged`; `stopped` early, because it lagged behind; or `failed`, because its program ended.
      reason: why it did not finish.
      performance, slo_attainment: (lists,) its result on each list; empty unless finished.
    """

    trial: str
    setting: int
    seed: int
    values: Mapping[str, Any]
    status: Status
    reason: str = ""
    performance: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    slo_attainment: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))


@dataclasses.dataclass(frozen=True)
class Leaderboard:
    """A sweep's outcome.

    Attributes:
      entries: all trials in order.
      table: settings, best first.
      brief: the best settings, for a terminal.
      report: path of the report.
      picture: path of the plot; None where only seeds differ.
    """

    entries: tuple[Entry, ...]
    table: Table
    brief: Table
    report: Path
    picture: Path | None

    @property
    def unfinished(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.status != "finished")


def write_leaderboard(
    entries: Sequence[Entry], out: Path, *, title: str, judged_on: str, logarithmic: Sequence[str] = ()
) -> Leaderboard:
    """Writes the files of the module's table to `out`.

    Args:
      entries: all trials, of which at least one is finished.
      out: the sweep's directory.
      title: title of the report.
      judged_on: the evaluation lists, in a sentence.
      logarithmic: axes sampled uniformly in their logarithm.

    Raises:
      InputError: if a file cannot be written.
    """
    settings = _settings(entries)
    names = short_names(tuple(entries[0].values))
    table = _table(settings, title)
    further = len(table.rows) - _SHOWN
    note = f"{table.note} {further} further settings are in the report." if further > 0 else table.note
    brief = dataclasses.replace(table, rows=table.rows[:_SHOWN], note=note)
    sound = [setting for setting in settings if setting.finished]
    picture = _plot(names, sound, logarithmic, out) if names else None
    unfinished = [
        f"- {entry.trial} ({describe_values(entry.values)}, seed {entry.seed}) {entry.status}: {entry.reason}."
        for entry in entries
        if entry.status != "finished"
    ]
    parts = [
        f"# {title}",
        f"{len(entries)} trials, {len(settings)} settings. {judged_on}",
        *(
            [
                f"![Performance against each axis]({picture.name})",
                "*Performance on the judged draws against each axis, the one that explains most first.*",
            ]
            if picture
            else []
        ),
        table.markdown().rstrip(),
        *(["## Not finished", "\n".join(unfinished)] if unfinished else []),
    ]
    report = out / "report.md"
    write_text(report, "\n\n".join(parts) + "\n")
    write_json(out / "results.json", {"judged_on": judged_on, "trials": [_figures(entry) for entry in entries]})
    write_text(out / "trials.csv", _trials_csv(entries))
    return Leaderboard(tuple(entries), table, brief, report, picture)


def _plot(names: Mapping[str, str], settings: Sequence[_Setting], logarithmic: Sequence[str], out: Path) -> Path:
    axes = [_axis(name, short, settings, log=name in logarithmic) for name, short in names.items()]
    axes.sort(key=lambda axis: -np.nan_to_num(axis.explained))
    performance = np.stack([setting.performance for setting in settings])
    # The part that settings share on a list carries no information about settings.
    deviation = paired_difference(performance, np.broadcast_to(performance.mean(axis=0), performance.shape))
    figure = plots.plot_sweep(axes, dataclasses.replace(deviation, mean=performance.mean(axis=1)))
    return plots.save_figure(figure, out / "what-mattered")


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The shortest suffix of each dotted name that is unique among the names."""
    short = {}
    for name in names:
        parts = name.split(".")
        ends = (".".join(parts[-size:]) for size in range(1, len(parts) + 1))
        alone = (end for end in ends if not any(other != name and f".{other}".endswith(f".{end}") for other in names))
        short[name] = next(alone, name)
    return short


def describe_values(values: Mapping[str, Any]) -> str:
    """Values with their short names, in one line."""
    names = short_names(tuple(values))
    return ", ".join(f"{names[name]} {_shown(value)}" for name, value in values.items()) or "as the base"


@dataclasses.dataclass(frozen=True)
class _Setting:
    """A setting: its values, its finished trials, and (lists,) means over their networks."""

    values: Mapping[str, Any]
    trials: int
    finished: tuple[Entry, ...]

    @property
    def performance(self) -> np.ndarray:
        return np.mean([entry.performance for entry in self.finished], axis=0)

    @property
    def slo_attainment(self) -> np.ndarray:
        return np.mean([entry.slo_attainment for entry in self.finished], axis=0)


def _settings(entries: Sequence[Entry]) -> list[_Setting]:
    """The settings, best first; settings without a finished trial come last."""
    groups: dict[int, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.setting, []).append(entry)
    settings = [
        _Setting(group[0].values, len(group), tuple(entry for entry in group if entry.status == "finished"))
        for group in groups.values()
    ]
    return sorted(settings, key=lambda setting: -setting.performance.mean() if setting.finished else math.inf)


def _table(settings: Sequence[_Setting], title: str) -> Table:
    several = max(setting.trials for setting in settings) > 1
    columns = [
        Column("Performance (%)", digits=2, brief=True),
        Column("against the best (points)", "points", 2, brief=True, key="performance_difference"),
        Column("SLO attainment (%)", digits=1),
    ]
    if several:
        columns += [Column("Worst network (%)", digits=2), Column("Networks", "number", 0)]
    best = settings[0].performance

    def cells(setting: _Setting) -> tuple[Cell, ...]:
        if not setting.finished:
            return (None,) * (len(columns) - 1) + ((0.0,) if several else (None,))
        mine = setting.performance
        row: list[Cell] = [
            mean_interval(mine),
            None if setting is settings[0] else paired_difference(mine, best),
            mean_interval(setting.slo_attainment),
        ]
        if several:
            row += [min(float(entry.performance.mean()) for entry in setting.finished), float(len(setting.finished))]
        return tuple(row)

    lists = len(best)
    return Table(
        title=title,
        head=", ".join(short_names(tuple(settings[0].values)).values()) or "setting",
        columns=tuple(columns),
        rows=tuple((_name(setting), cells(setting)) for setting in settings),
        focus=_name(settings[0]),
        note=(
            f"Mean ± half the 95% Student t interval over {lists} lists that all trials share; differences are paired."
            if lists > 1
            else "One list, so no intervals."
        ),
    )


def _name(setting: _Setting) -> str:
    return ", ".join(map(_shown, setting.values.values())) or "as the base"


def _axis(name: str, short: str, settings: Sequence[_Setting], *, log: bool) -> plots.SweptAxis:
    """An axis for the plot, with the share of the variance between networks that it explains."""
    values = [setting.values[name] for setting in settings]
    networks = [
        (value, float(np.mean(entry.performance)))
        for value, setting in zip(values, settings, strict=True)
        for entry in setting.finished
    ]
    axis = plots.SweptAxis(short, tuple(value if plots.is_number(value) else _shown(value) for value in values), log)
    groups = axis.groups([value if plots.is_number(value) else _shown(value) for value, _ in networks])
    return dataclasses.replace(axis, explained=explained_share(groups, np.array([mean for _, mean in networks])))


def _figures(entry: Entry) -> dict[str, Any]:
    data: dict[str, Any] = {
        "trial": entry.trial,
        "setting": entry.setting,
        "seed": entry.seed,
        "values": dict(entry.values),
        "status": entry.status,
    }
    if entry.status != "finished":
        return {**data, "reason": entry.reason}
    return {**data, "performance": entry.performance.tolist(), "slo_attainment": entry.slo_attainment.tolist()}


def _trials_csv(entries: Sequence[Entry]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["trial", "setting", "seed", *entries[0].values, "status", "performance", "half_width"])
    for entry in entries:
        figures: list[Any] = ["", ""]
        if entry.status == "finished":
            interval = mean_interval(entry.performance)
            half_width = float(interval.half_width)
            figures = [float(interval.mean), half_width if math.isfinite(half_width) else ""]
        values = (value if plots.is_number(value) else _shown(value) for value in entry.values.values())
        rows.writerow([entry.trial, entry.setting, entry.seed, *values, entry.status, *figures])
    return text.getvalue()


def _shown(value: Any) -> str:
    """A value as short text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
