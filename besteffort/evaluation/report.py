"""Tables and the Markdown report: settings, where the profile's figures come from, tables with intervals, figures.

A `Table` is formatted in one place and shown in two: `markdown` for files, `terminal` for `rich`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from besteffort.bounds.prices import Bound
from besteffort.evaluation import metrics
from besteffort.evaluation.statistics import Interval, mean_interval, paired_difference
from besteffort.files import jsonable, write_text
from besteffort.pools import Fleet, Pool
from besteffort.profile import Profile, Source
from besteffort.simulator.result import Result
from besteffort.situation import Cluster, Situation
from besteffort.workload.requests import Party

_BETWEEN = 2  # characters between the columns of a terminal's table
_HAPPENS = {"start": "started", "drain": "drained", "fail": "failed"}

Kind = Literal["percent", "points", "milliseconds", "number", "text"]
Cell = Interval | float | str | None


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
      title: its heading, unit included.
      kind: how its figures, given as shares or in SI units, are shown: shares as `percent` or, with a sign, as
        percentage `points`; seconds as `milliseconds`; others as plain `number`; words as `text`.
      digits: digits after the point.
      brief: shown on a terminal too, which has room for a few columns.
      key: its name in `Table.as_data`, unit included; by default it follows from the title.
    """

    title: str
    kind: Kind = "percent"
    digits: int = 1
    brief: bool = False
    key: str = ""

    @property
    def name(self) -> str:
        """Its name for machines: a word in lower case that ends in `_s` where the figures are seconds."""
        if self.key:
            return self.key
        words = re.sub(r"\((%|points|ms)\)|%|\bms\b", " ", self.title.lower())
        name = re.sub(r"[^a-z0-9.]+", "_", words).strip("_")
        return f"{name}_s" if self.kind == "milliseconds" else name


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of figures, one row per router or setting.

    Attributes:
      title: what it shows.
      head: heading of the column of names.
      columns: the columns of figures.
      rows: name and cells of each row; a cell is an interval of shape (), a plain number, words, or None for no figure.
      focus: name of the row that stands out.
      note: a line below the table.
    """

    title: str
    head: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    focus: str | None = None
    note: str = ""

    def markdown(self) -> str:
        """The table in GitHub's Markdown, title and note included."""
        header = [self.head, *(column.title for column in self.columns)]
        lines = [_line(header), _line(["---", *("---:" for _ in self.columns)])]
        for name, cells in self._formatted():
            row = [name, *cells]
            lines.append(_line([f"**{cell}**" for cell in row] if name == self.focus else row))
        return "\n".join([f"### {self.title}", "", *lines, *(["", self.note] if self.note else [])]) + "\n"

    def as_data(self) -> dict[str, Any]:
        """The table as plain JSON values: shares and SI units, means with their intervals, null for what is not finite.

        If some figures of a column have an interval, all of them are given as a mean and half a width.
        """
        intervals = [
            any(isinstance(cells[index], Interval) for _, cells in self.rows) for index in range(len(self.columns))
        ]
        rows = []
        for name, cells in self.rows:
            row: dict[str, Any] = {"name": name}
            for column, cell, wide in zip(self.columns, cells, intervals, strict=True):
                value = jsonable(cell)
                alone = wide and isinstance(value, int | float)
                row[column.name] = {"mean": value, "half_width": None} if alone else value
            rows.append(row)
        return {"title": self.title, "head": self.head, "rows": rows, "note": self.note}

    def terminal(self) -> RichTable:
        """The table for a terminal, its brief columns only (all if none is); print it with a `rich.console.Console`."""
        table = RichTable(
            title=Text(self.title, style="bold"),
            caption=Text(self.note) if self.note else None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        figures_only = all(column.kind != "text" for column in self.columns)
        table.add_column(self.head, no_wrap=figures_only, overflow="fold")
        brief = [index for index, column in enumerate(self.columns) if column.brief] or range(len(self.columns))
        formatted = self._formatted()
        for index in brief:
            if self.columns[index].kind == "text":
                table.add_column(self.columns[index].title, overflow="fold")
                continue
            widest = max((len(cells[index]) for _, cells in formatted), default=0)
            table.add_column(self.columns[index].title, justify="right", min_width=widest, overflow="fold")
        for name, cells in formatted:
            style = "bold" if name == self.focus else None
            table.add_row(Text(name), *(Text(cells[index]) for index in brief), style=style)
        return table

    def parts(self, width: int) -> list[Table]:
        """The table; where its brief columns do not fit into so many characters, several with some of them each.

        Headings may wrap between words, figures and names never lose a character.
        """
        shown = [index for index, column in enumerate(self.columns) if column.brief] or list(range(len(self.columns)))
        if any(self.columns[index].kind == "text" for index in shown):
            return [self]  # words wrap
        formatted = self._formatted()
        taken = left = max([len(self.head), *(len(name) for name, _ in formatted)])
        groups: list[list[int]] = [[]]
        for index in shown:
            words = [*self.columns[index].title.split(), *(cells[index] for _, cells in formatted)]
            need = _BETWEEN + max(map(len, words))
            if groups[-1] and taken + need > width:
                groups.append([])
                taken = left
            groups[-1].append(index)
            taken += need
        if len(groups) == 1:
            return [self]
        return [
            dataclasses.replace(
                self,
                title=self.title if number == 0 else f"{self.title} (continued)",
                columns=tuple(dataclasses.replace(self.columns[index], brief=True) for index in group),
                rows=tuple((name, tuple(cells[index] for index in group)) for name, cells in self.rows),
                note=self.note if number == len(groups) - 1 else "",
            )
            for number, group in enumerate(groups)
        ]

    def _formatted(self) -> list[tuple[str, list[str]]]:
        return [
            (name, [format_cell(cell, column) for cell, column in zip(cells, self.columns, strict=True)])
            for name, cells in self.rows
        ]


def format_cell(cell: Cell, column: Column) -> str:
    """A figure as text: `93.2 ± 0.6`, without the interval where there is one seed, `-` where there is no figure."""
    if cell is None or isinstance(cell, str):
        return cell or "-"
    mean, half_width = (float(cell.mean), float(cell.half_width)) if isinstance(cell, Interval) else (cell, math.inf)
    if math.isnan(mean):
        return "-"
    scale = {"percent": 100, "points": 100, "milliseconds": 1000, "number": 1, "text": 1}[column.kind]
    sign = "+" if column.kind == "points" else ""
    text = f"{scale * mean:{sign},.{column.digits}f}"
    return f"{text} ± {scale * half_width:.{column.digits}f}" if math.isfinite(half_width) else text


_OF_ORIGINS = (
    Column("Share of requests (%)", brief=True),
    Column("Performance (%)", digits=2, brief=True),
    Column("SLO attainment (%)", brief=True),
    Column("P50 latency (ms)", "milliseconds", 0, brief=True, key="latency_p50_s"),
    Column("P99 latency (ms)", "milliseconds", 0, brief=True, key="latency_p99_s"),
)
PARTY_COLUMNS: Mapping[Party, tuple[Column, ...]] = {
    "origin": _OF_ORIGINS,
    "tenant": (*_OF_ORIGINS, Column("Performance of peak (%)", digits=2, brief=True)),
}
"""What is shown of the requests of an origin or a tenant."""


def comparison_table(
    title: str,
    results: Mapping[str, Result],
    situation: Situation,
    *,
    width_s: float,
    warm_up_s: float = 0.0,
    bound: Bound | None = None,
    focus: str | None = None,
) -> Table:
    """The measures of every router on the same requests.

    Args:
      title: what was served.
      results: per router a result of shape (seeds, n); all routers met the same requests, seed by seed.
      situation: what was served, on what.
      width_s: width of the windows in which performance is held against its peak.
      warm_up_s: seconds after the first arrival that do not count.
      bound: upper bounds of shape (), shown as the last row.
      focus: the router that the others are compared with, in a column of paired differences.
    """
    measures = shown_measures(situation, width_s, warm_up_s)
    columns = [column for column, _ in measures]
    rows: list[tuple[str, list[Cell]]] = []
    for name, result in results.items():
        rows.append((name, [mean_interval(measure(result)) for _, measure in measures]))
    if bound is not None:
        figures = {"Performance (%)": float(bound.performance), "SLO attainment (%)": float(bound.slo_attainment)}
        rows.append(("upper bound", [figures.get(column.title) for column in columns]))
    if focus is not None:
        columns.insert(1, Column(f"against {focus} (points)", "points", 2, brief=True, key="performance_difference"))
        ours = metrics.performance(results[focus], warm_up_s=warm_up_s)
        for name, cells in rows:
            compared = name in results and name != focus
            theirs = metrics.performance(results[name], warm_up_s=warm_up_s) if compared else ours
            cells.insert(1, paired_difference(theirs, ours) if compared else None)
    seeds = next(iter(results.values())).arrival_s.shape[0]
    note = f"Mean ± half the 95% Student t interval over {seeds} seeds" if seeds > 1 else "One seed, so no intervals"
    return Table(
        title,
        "Router",
        tuple(columns),
        tuple((name, tuple(cells)) for name, cells in rows),
        focus,
        f"{note}; latencies over answered requests only.",
    )


def shown_measures(
    situation: Situation, width_s: float, warm_up_s: float
) -> list[tuple[Column, Callable[[Result], np.ndarray]]]:
    """The columns of `comparison_table`, each with the function that gives its figure per seed."""
    accuracy = metrics.accuracy_table(situation.fleet, situation.task_names)
    peak = situation.peak_rewards

    def counted(
        measure: Callable[..., np.ndarray], *arguments: object, **more: object
    ) -> Callable[[Result], np.ndarray]:
        return lambda result: measure(result, *arguments, **more, warm_up_s=warm_up_s)

    def one(measure: Callable[..., np.ndarray], percentile: float) -> Callable[[Result], np.ndarray]:
        return lambda result: measure(result, (percentile,), warm_up_s=warm_up_s)[..., 0]

    at_96 = counted(metrics.windows_at_peak, peak, width_s=width_s, fraction=0.96)
    at_98 = counted(metrics.windows_at_peak, peak, width_s=width_s, fraction=0.98)
    return [
        (Column("Performance (%)", digits=2, brief=True), counted(metrics.performance)),
        (Column("SLO attainment (%)", brief=True), counted(metrics.slo_attainment)),
        (Column(f"{width_s:g} s windows at 96% of peak (%)", brief=True, key="windows_at_96_percent_of_peak"), at_96),
        (Column(f"{width_s:g} s windows at 98% of peak (%)", key="windows_at_98_percent_of_peak"), at_98),
        (Column("Effective accuracy (%)"), counted(metrics.effective_accuracy, accuracy)),
        (Column("Performance per GPU (%)"), counted(metrics.performance_per_gpu, situation.fleet.gpus)),
        (Column("P50 latency (ms)", "milliseconds", 0, key="latency_p50_s"), one(metrics.latency_percentiles, 50.0)),
        (Column("P99 latency (ms)", "milliseconds", 0, key="latency_p99_s"), one(metrics.latency_percentiles, 99.0)),
        (Column("P99 TTFT (ms)", "milliseconds", 0, key="ttft_p99_s"), one(metrics.ttft_percentiles, 99.0)),
        (Column("Rejected (%)"), counted(metrics.rejection_rate)),
        *(_measures_of_life(situation.fleet, counted) if situation.fleet.alive else []),
        *(_measures_of_tenants(situation, counted) if situation.tenants else []),
    ]


def _measures_of_life(
    fleet: Fleet, counted: Callable[..., Callable[[Result], np.ndarray]]
) -> list[tuple[Column, Callable[[Result], np.ndarray]]]:
    """Columns that say something only where replicas start, drain and fail."""
    seconds = [
        (
            Column(f"GPU-seconds of {pool.name}", "number", 0, key=f"gpu_seconds_{pool.name}"),
            counted(metrics.gpu_seconds_of, pool, index),
        )
        for index, pool in enumerate(fleet.pools)
    ]
    return [(Column("Lost (%)"), counted(metrics.loss_rate)), *seconds]


def _measures_of_tenants(
    situation: Situation, counted: Callable[..., Callable[[Result], np.ndarray]]
) -> list[tuple[Column, Callable[[Result], np.ndarray]]]:
    """Columns that say something only where requests have tenants; the first only where these count differently."""
    weights, tenants = situation.tenant_weights, len(situation.tenants)
    weighted = (
        Column("Weighted performance (%)", digits=2, brief=True),
        counted(metrics.weighted_performance, weights),
    )
    worst = (
        Column("Worst tenant (% of peak)", digits=2, brief=True, key="worst_tenant"),
        counted(metrics.worst_tenant, tenants, situation.peak_rewards),
    )
    return [worst] if weights is None else [weighted, worst]


def by_party(
    result: Result, situation: Situation, party: Party, *, warm_up_s: float = 0.0
) -> list[tuple[str, tuple[Interval, ...]]]:
    """Of each origin or tenant its name and the figures of `PARTY_COLUMNS`; none where requests have none."""
    rows = []
    names, of = getattr(situation, f"{party}_names"), getattr(result, party)
    for index, name in enumerate(names if of is not None else ()):
        mine = np.asarray(of == index)
        latency_s = metrics.latency_percentiles(result, (50.0, 99.0), warm_up_s=warm_up_s, among=mine)
        figures = [
            metrics.share_of(result, mine, warm_up_s=warm_up_s),
            metrics.performance(result, warm_up_s=warm_up_s, among=mine),
            metrics.slo_attainment(result, warm_up_s=warm_up_s, among=mine),
            latency_s[..., 0],
            latency_s[..., 1],
        ]
        if party == "tenant":
            peak = situation.peak_rewards
            figures.append(metrics.performance_of_peak(result, peak, warm_up_s=warm_up_s, among=mine))
        rows.append((name, tuple(map(mean_interval, figures))))
    return rows


def party_table(
    title: str,
    results: Mapping[str, Result],
    situation: Situation,
    party: Party,
    *,
    warm_up_s: float = 0.0,
) -> Table | None:
    """How the requests of each origin or tenant fare; None where requests have none.

    Arguments as of `comparison_table`, and by which of both.
    """
    rows = [
        (one if len(results) == 1 else f"{name}, {one}", cells)
        for name, result in results.items()
        for one, cells in by_party(result, situation, party, warm_up_s=warm_up_s)
    ]
    if not rows:
        return None
    head = party.capitalize() if len(results) == 1 else f"Router, {party}"
    note = "Latencies over answered requests."
    return Table(f"{title}, by {party}", head, PARTY_COLUMNS[party], tuple(rows), note=note)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of the report: its file and what it shows."""

    path: Path
    caption: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that a report says.

    Attributes:
      title: its heading.
      summary: the result in a sentence or two.
      situation: what was served, on what; its profile's provenance is printed.
      settings: further settings by name, such as the workload, the seeds and the package version.
      tables: the tables.
      pictures: the figures.
    """

    title: str
    summary: str
    situation: Situation
    settings: Mapping[str, str]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...] = ()

    def markdown(self, directory: Path) -> str:
        """The report as it reads in `directory`: figures are linked relative to it."""
        settings = {**_settings(self.situation), **self.settings}
        parts = [
            f"# {self.title}",
            self.summary,
            *(
                f"![{picture.caption}]({_relative(picture.path, directory)})\n\n*{picture.caption}*"
                for picture in self.pictures
            ),
            "## Results",
            *(table.markdown().rstrip() for table in self.tables),
            "## Settings",
            "\n".join(
                [_line(["Setting", "Value"]), _line(["---", "---"]), *(_line([*item]) for item in settings.items())]
            ),
            _task_table(self.situation),
            "## Where the profile's figures come from",
            provenance_lines(self.situation.profile),
        ]
        return "\n\n".join(parts) + "\n"


def write_report(report: Report, path: str | Path) -> Path:
    """Writes the report to `path`.

    Raises:
      InputError: if it cannot be written.
    """
    path = Path(path)
    write_text(path, report.markdown(path.parent))
    return path


def provenance_lines(profile: Profile) -> str:
    """Says of each part of a profile whether it is measured, published or modelled, and from what; a Markdown list."""
    parts = {field.name: getattr(profile.provenance, field.name) for field in dataclasses.fields(profile.provenance)}
    return "\n".join(f"- {name}: {_source_line(source)}" for name, source in parts.items())


def _source_line(source: Source) -> str:
    details = [source.source, source.method, source.device, source.dtype, source.date, *source.libraries]
    return f"**{source.kind}**; " + "; ".join(detail.rstrip(".") for detail in details if detail) + "."


def _settings(situation: Situation) -> dict[str, str]:
    reward = situation.reward
    deadlines = "hard" if reward.soft_span == 0 else f"soft, worth nothing after {1 + reward.soft_span:g} deadlines"
    return {
        "Profile": f"{situation.profile.name} ({situation.profile.provenance.summary})",
        "Device": situation.profile.device,
        "Models": ", ".join(situation.profile.model_names),
        **(_pool_lines(situation) if situation.pools else {"Cluster": _cluster_line(situation.cluster)}),
        **_origin_line(situation),
        **_tenant_line(situation),
        "Load 1": f"{situation.unit_load:.1f} requests/s, the largest model's capacity",
        "Deadlines": deadlines,
        "Penalty for a miss": f"{reward.miss_penalty:g}",
    }


def _cluster_line(cluster: Cluster) -> str:
    return (
        f"{cluster.replicas} replicas; per model and replica {cluster.max_batch} requests run "
        f"and {cluster.queue_capacity} wait; network delay {1000 * cluster.network_delay_s:g} ms"
    )


def _pool_lines(situation: Situation) -> dict[str, str]:
    return {
        f"Pool {pool.name}": (
            f"{pool.model} on {pool.hardware or situation.profile.name}, {pool.replicas} replicas; {pool.max_batch} "
            f"requests run and {pool.queue_capacity} wait; network delay {1000 * pool.network_delay_s:g} ms"
            + "".join(f", {1000 * delay.network_delay_s:g} ms from {delay.origin}" for delay in pool.delays)
            + _events_words(pool)
        )
        for pool in situation.fleet.served
    }


def _events_words(pool: Pool) -> str:
    """What happens to the replicas of a pool, in numbers."""
    scaler = pool.autoscaler
    if scaler is not None:
        return (
            f"; autoscaler: {scaler.min_replicas} to {scaler.max_replicas or pool.replicas} replicas, looks every "
            f"{scaler.interval_s:g} s; {pool.start_s:g} s to start"
        )
    what: list[str] = [event.what for event in pool.events]
    if not what:
        return ""
    counts = ", ".join(f"{what.count(each)} {words}" for each, words in _HAPPENS.items())
    return f"; replicas: {counts}; {pool.start_s:g} s to start"


def _origin_line(situation: Situation) -> dict[str, str]:
    if not situation.origins:
        return {}
    shares = zip(situation.origin_names, situation.origin_shares, strict=True)
    return {"Origins": ", ".join(f"{name} {share:.0%}" for name, share in shares)}


def _tenant_line(situation: Situation) -> dict[str, str]:
    if not situation.tenants:
        return {}
    each = zip(situation.tenants, situation.tenant_shares, strict=True)
    return {"Tenants": ", ".join(f"{tenant.name} {share:.0%}, weight {tenant.weight:g}" for tenant, share in each)}


def _task_table(situation: Situation) -> str:
    header = ["Task", "Share", "Prompt tokens", "Output tokens", "Deadline", "Weight"]
    lines = [_line(header), _line(["---", *("---:" for _ in header[1:])])]
    for task, share in zip(situation.tasks, situation.shares, strict=True):
        prompt, output = (f"{low} to {high}" for low, high in (task.prompt_tokens, task.output_tokens))
        deadline = f"{1000 * task.deadline.base_s:g} ms + {1000 * task.deadline.per_token_s:g} ms per output token"
        lines.append(_line([task.name, f"{share:.0%}", prompt, output, deadline, f"{task.weight:g}"]))
    return "\n".join(lines)


def _relative(path: Path, directory: Path) -> str:
    return Path(os.path.relpath(path, directory)).as_posix().replace(" ", "%20")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
