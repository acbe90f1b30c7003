"""Figures: against the rate, the routing mix, a time line through a burst, and the comparison of the quickstart.

Every function returns a `matplotlib.figure.Figure` of its own (no pyplot, no global state, any thread);
`save_figure` writes it. Colours come from `besteffort.evaluation.colours`; markers and line styles tell curves apart in
greyscale print, and models run from light (smallest) to dark (largest).
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from besteffort.bounds.prices import Bound
from besteffort.evaluation.colours import (
    ARRIVALS,
    DIFFERENCES,
    FOCUS,
    GREY,
    GRID,
    HATCHING,
    INK,
    LOST,
    PAPER,
    SECOND,
    SERIES,
    STATIC,
    model_colours,
)
from besteffort.evaluation.formats import points
from besteffort.evaluation.metrics import binned
from besteffort.evaluation.statistics import Interval
from besteffort.files import write_bytes
from besteffort.simulator.result import Result

_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "h", "p")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
_SETTING: dict[str, Any] = {"color": SECOND, "alpha": 0.75, "zorder": 2}
_MEAN: dict[str, Any] = {"color": FOCUS, "linewidth": 2.4, "marker": "D", "markersize": 5, "zorder": 3}
_BEST: dict[str, Any] = {
    "color": INK,
    "linestyle": "",
    "marker": "o",
    "markersize": 9,
    "fillstyle": "none",
    "markeredgewidth": 1.6,
    "zorder": 4,
}
_MOST_LISTED = 8  # values of an axis that stand side by side
_BINS = 4  # of an axis whose values all differ
_BOUND: dict[str, Any] = {"color": INK, "linewidth": 1.4, "linestyle": (0, (4, 2))}


@dataclasses.dataclass(frozen=True)
class Bar:
    """One router in `plot_comparison`.

    Attributes:
      name: its name.
      performance: its performance, an interval of shape ().
      by_model: (models,) what each model's answers contribute to it, see `metrics.performance_by_model`.
      slo_attainment: its SLO attainment, an interval of shape ().
    """

    name: str
    performance: Interval
    by_model: np.ndarray
    slo_attainment: Interval


@dataclasses.dataclass(frozen=True)
class Panel:
    """One diagram of `plot_panels`.

    Attributes:
      title: what it shows.
      x: (points,) positions.
      curves: per name an interval of shape (points,).
      x_label, y_label: what the axes show, with units.
      log: whether the x axis is logarithmic; `x` is then labelled point by point.
      share: whether the figures are shares, shown in percent.
      bound: (points,) what nothing can exceed.
      zero: draw a line at 0, for differences.
      bars: intervals as bars, side by side, instead of bands; for few points whose intervals overlap.
    """

    title: str
    x: np.ndarray
    curves: Mapping[str, Interval]
    x_label: str
    y_label: str
    log: bool = False
    share: bool = True
    bound: np.ndarray | None = None
    zero: bool = False
    bars: bool = False


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of `plot_settings`; performances as shares of peak performance.

    Attributes:
      group: what is varied; rows of one group stand together.
      name: its value here.
      static, heuristic, learned: performance of the best static model, the best heuristic and the learned router.
      ahead: by how much the learned router is ahead of the best heuristic, paired.
      bound: what no router can exceed.
    """

    group: str
    name: str
    static: float
    heuristic: float
    learned: Interval
    ahead: Interval
    bound: float


def plot_against_rate(
    loads: Float[np.ndarray, " loads"],
    performance: Mapping[str, Interval],
    slo_attainment: Mapping[str, Interval],
    *,
    bound: Bound | None = None,
    requests_per_s: float | None = None,
    focus: str | None = None,
) -> Figure:
    """Performance and SLO attainment of every router against load, with confidence bands, and the bound.

    Args:
      loads: offered loads, in multiples of the largest model's capacity, ascending.
      performance: per router an interval of shape (loads,).
      slo_attainment: the same, of the same routers.
      bound: upper bounds of shape (loads,).
      requests_per_s: the rate of load 1, for the label of the axis.
      focus: the router that is drawn above the others.
    """
    figure = Figure(figsize=(12.5, 5.0), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, width_ratios=(1.35, 1))
    styles = _router_styles(tuple(performance), focus)
    panels = (
        (axes[0], "Performance (mean reward)", performance, bound.performance if bound else None),
        (axes[1], "SLO attainment (answered in time)", slo_attainment, bound.slo_attainment if bound else None),
    )
    for ax, title, curves, limit in panels:
        if limit is not None:
            ax.plot(loads, limit, color=INK, linewidth=1.4, linestyle=(0, (4, 2)), zorder=4)
        for name, curve in curves.items():
            ax.plot(loads, curve.mean, **styles[name])
            band = np.isfinite(curve.half_width)
            colour, above = styles[name]["color"], styles[name]["zorder"]
            ax.fill_between(
                loads, curve.low, curve.high, where=band, color=colour, alpha=0.18, linewidth=0, zorder=above - 0.1
            )
        _decorate(ax, title)
        _load_axis(ax, loads, requests_per_s)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        shown = [curve.mean for curve in curves.values()] + ([] if limit is None else [limit])
        highest = max(float(np.nanmax(values)) for values in (*shown, np.ones(1)))
        ax.set_ylim(top=1.02 * highest, bottom=min(0.0, ax.get_ylim()[0]))  # weights may take a mean beyond 1
    handles = [Line2D([], [], label=name, **styles[name]) for name in performance]
    if bound is not None:
        handles.append(Line2D([], [], color=INK, linewidth=1.4, linestyle=(0, (4, 2)), label="upper bound"))
    first = next(iter(performance.values()))
    note = f"bands: {first.confidence:.0%} intervals over {first.seeds} seeds" if first.seeds > 1 else "one seed"
    _legend(figure, handles, note)
    return figure


def plot_routing_mix(
    loads: Float[np.ndarray, " loads"],
    mixes: Mapping[str, Float[np.ndarray, "loads outcomes"]],
    model_names: Sequence[str],
    *,
    requests_per_s: float | None = None,
) -> Figure:
    """Which model serves which share of the requests, against load: one panel per router.

    Args:
      loads: offered loads, ascending.
      mixes: per router the shares of (loads, models + 1) outcomes, the last one the rejected requests.
      model_names: names of the models, smallest first.
      requests_per_s: the rate of load 1, for the label of the axis.
    """
    columns = 2 if len(mixes) == 4 else min(len(mixes), 3)
    rows = -(-len(mixes) // columns)
    figure = Figure(figsize=(3.9 * columns + 1.6, 3.2 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    colours = (*model_colours(len(model_names)), LOST)
    for ax, (name, mix) in zip(axes, mixes.items(), strict=False):
        areas = ax.stackplot(loads, np.asarray(mix).T, colors=colours, edgecolor=PAPER, linewidth=0.8)
        areas[-1].set(hatch="////", edgecolor=HATCHING, linewidth=0.0)
        _decorate(ax, name)
        ax.grid(False)
        _load_axis(ax, loads, requests_per_s)
        ax.set(xlim=(loads[0], loads[-1]), ylim=(0, 1))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_ylabel("Share of requests", color=INK)
    for ax in axes[len(mixes) :]:
        ax.remove()
    _legend(figure, _model_handles(model_names, "rejected"))
    return figure


def plot_timeline(
    results: Mapping[str, Result],
    model_names: Sequence[str],
    *,
    start_s: float,
    end_s: float,
    width_s: float,
    focus: str,
    capacity_per_s: float | None = None,
) -> Figure:
    """Through a stretch of time: arrivals, the models that router `focus` chose, and the performance of all.

    Args:
      results: per router the results of the same requests; arrays of shape (n,).
      model_names: names of the models, smallest first.
      start_s: start of the stretch, on the clock of `arrival_s`.
      end_s: its end.
      width_s: width of a time bin.
      focus: the router whose choices are shown.
      capacity_per_s: requests per second that the largest model sustains; drawn as a line.
    """
    bins = int(np.ceil((end_s - start_s) / width_s))
    edges = start_s + width_s * np.arange(bins + 1)
    figure = Figure(figsize=(10.5, 6.6), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1.15, 1.3))
    chosen = results[focus]

    def per_bin(result: Result, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return binned(result, values, width_s=width_s, bins=bins, origin_s=start_s)

    count, _ = per_bin(chosen, chosen.reward)
    top.stairs(count / width_s, edges, fill=True, color=ARRIVALS)
    top.stairs(count / width_s, edges, color=INK, linewidth=1.0)
    top.set_ylabel("Arrivals\n(requests/s)", color=INK)
    top.set_ylim(bottom=0)
    if capacity_per_s is not None:
        top.axhline(capacity_per_s, color=INK, linewidth=1.1, linestyle=(0, (4, 2)))

    outcome = np.where(chosen.rejected, len(model_names), chosen.model)
    floor = np.zeros(bins)
    for index, colour in enumerate((*model_colours(len(model_names)), LOST)):
        _, share = per_bin(chosen, outcome == index)
        ceiling = floor + np.nan_to_num(share)
        middle.stairs(ceiling, edges, baseline=floor, fill=True, color=colour)
        floor = ceiling
    middle.set_ylabel(f"Models chosen\n({focus})", color=INK)
    middle.set_ylim(0, 1)
    middle.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    styles = _router_styles(tuple(results), focus)
    centres = (edges[1:] + edges[:-1]) / 2
    every, highest = max(1, bins // 20), 1.0
    for offset, (name, result) in enumerate(results.items()):
        _, mean = per_bin(result, result.reward)
        bottom.plot(centres, mean, **styles[name], markevery=(offset % every, every))
        highest = max(highest, *mean[np.isfinite(mean)])
    bottom.set_ylabel("Performance\n(mean reward)", color=INK)
    bottom.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bottom.set_ylim(top=1.04 * highest)  # weights may take a mean beyond 1
    bottom.set_xlabel("Time of arrival (s)", color=INK)
    for ax in (top, middle, bottom):
        _decorate(ax)
        ax.set_xlim(edges[0], edges[-1])
    middle.grid(False)
    figure.align_ylabels()
    _legend_beside(
        top,
        [Patch(facecolor=ARRIVALS, edgecolor=INK, label=f"arrivals per {width_s:g} s")]
        + [Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (4, 2)), label="largest model's capacity")]
        * (capacity_per_s is not None),
    )
    _legend_beside(middle, _model_handles(model_names, "rejected"))
    _legend_beside(bottom, [Line2D([], [], label=name, **styles[name]) for name in results])
    return figure


def plot_comparison(
    bars: Sequence[Bar],
    model_names: Sequence[str],
    *,
    title: str,
    peak: float = 1.0,
    bound: float | None = None,
    focus: str | None = None,
) -> Figure:
    """The picture of the quickstart: one bar per router, as long as its performance, coloured by who earned it.

    Args:
      bars: the routers; drawn with the best on top.
      model_names: names of the models, smallest first.
      title: what was served, in one line.
      peak: peak performance, the full length; performance is shown in percent of it.
      bound: upper bound on the performance.
      focus: the router whose name stands out.
    """
    ordered = sorted(bars, key=lambda bar: float(bar.performance.mean))
    figure = Figure(figsize=(10.5, 1.9 + 0.42 * len(ordered)), layout="constrained")
    ax = figure.subplots()
    colours = model_colours(len(model_names))
    rows = np.arange(len(ordered))
    ax.barh(rows, 1.0, color=LOST, height=0.72)
    left = np.zeros(len(ordered))
    for index, colour in enumerate(colours):
        width = np.array([bar.by_model[index] for bar in ordered]) / peak
        ax.barh(rows, width, left=left, color=colour, height=0.72)
        left += width
    for row, bar in enumerate(ordered):
        mean, half = float(bar.performance.mean) / peak, float(bar.performance.half_width) / peak
        if np.isfinite(half):
            whisker = ax.plot([mean - half, mean + half], [row, row], color=INK, linewidth=1.8, solid_capstyle="butt")
            whisker[0].set_path_effects([withStroke(linewidth=4.5, foreground=PAPER)])
        text = f"{mean:.1%}" + (f" ± {100 * half:.1f}" if np.isfinite(half) else "")
        weight = "bold" if bar.name == focus else "normal"
        ax.text(1.02, row, text, va="center", color=INK, fontweight=weight, fontsize=10)
        ax.text(
            1.19, row, f"{float(bar.slo_attainment.mean):.1%}", va="center", color=INK, fontweight=weight, fontsize=10
        )
    header = len(ordered) - 0.35
    ax.text(1.02, header, "of peak quality", va="bottom", color=GREY, fontsize=9)
    ax.text(1.19, header, "in time", va="bottom", color=GREY, fontsize=9)
    if bound is not None:
        ax.plot([bound / peak] * 2, [-0.5, len(ordered) - 0.5], color=INK, linewidth=1.4, linestyle=(0, (4, 2)))
        ax.text(bound / peak, header, "no router can do better", ha="right", va="bottom", color=INK, fontsize=9)
    ax.set_yticks(rows, [bar.name for bar in ordered])
    _decorate(ax)
    ax.grid(False)
    ax.tick_params(axis="y", length=0, labelsize=10)
    for label, bar in zip(ax.get_yticklabels(), ordered, strict=True):
        if bar.name == focus:
            label.set(color=FOCUS, fontweight="bold")
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set(xlim=(0, 1.27), ylim=(-0.55, len(ordered) + 0.1))
    ax.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel("Quality delivered in time, by the model that delivered it", color=INK, loc="left")
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold")
    handles = _model_handles(model_names, "lost: late, rejected, or a smaller model's lower quality", hatch=None)
    legend = figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=9)
    _ink(legend)
    return figure


def plot_panels(panels: Sequence[Panel], *, focus: str | None = None, columns: int = 2) -> Figure:
    """Curves with confidence bands, panel by panel; a name has one style in all of them, and one entry in the legend.

    Args:
      panels: the diagrams, row by row.
      focus: the curve that is drawn broad, beneath the others.
      columns: panels per row.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns + 2.2, 3.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    names = tuple(dict.fromkeys(name for panel in panels for name in panel.curves))
    styles = _router_styles(names, focus)
    for ax, panel in zip(axes, panels, strict=False):
        if panel.zero:
            ax.axhline(0.0, color=GREY, linewidth=1.0)
        if panel.bound is not None:
            ax.plot(panel.x, panel.bound, **_BOUND)
        shown = [] if panel.bound is None else [panel.bound]
        for offset, (name, curve) in enumerate(panel.curves.items()):
            style = styles[name]
            band = np.isfinite(curve.half_width)
            if panel.bars:
                beside = panel.x * (1 + 0.06 * offset) if panel.log else panel.x
                ax.errorbar(beside, curve.mean, np.where(band, curve.half_width, 0.0), **style, capsize=3)
                shown += [curve.low[band], curve.high[band]]
            else:
                ax.plot(panel.x, curve.mean, **style)
                colour = style["color"]
                ax.fill_between(panel.x, curve.low, curve.high, where=band, color=colour, alpha=0.18, linewidth=0)
            shown.append(curve.mean)
        _decorate(ax, panel.title)
        ax.set_xlabel(panel.x_label, color=INK)
        ax.set_ylabel(panel.y_label, color=INK)
        if panel.log:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(FixedLocator(list(panel.x)))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(_short))
        if panel.share:
            ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        low, high = float(np.nanmin(np.concatenate(shown))), float(np.nanmax(np.concatenate(shown)))
        margin = 0.08 * (high - low) or 0.01
        ax.set_ylim(low - margin, high + margin)  # a band of few seeds may be wider than the picture, a bar never is
    for ax in axes[len(panels) :]:
        ax.remove()
    handles = [Line2D([], [], label=name, **styles[name]) for name in names]
    if any(panel.bound is not None for panel in panels):
        handles.append(Line2D([], [], label="upper bound", **_BOUND))
    first = next(iter(panels[0].curves.values()))
    marks = "bars" if panels[0].bars else "bands"
    note = f"{marks}: {first.confidence:.0%} intervals over {first.seeds} seeds" if first.seeds > 1 else None
    _legend(figure, handles, note)
    return figure


def plot_settings(
    settings: Sequence[Setting], *, title: str, label: str = "Performance, in percent of peak quality"
) -> Figure:
    """A row per setting: the best static model, the best heuristic, the learned router and the bound on one line.

    Beside each row, by how much the learned router is ahead of the best heuristic: bold where the interval leaves no
    doubt of it, grey where it leaves the sign open.
    """
    groups = list(dict.fromkeys(setting.group for setting in settings))
    rows = np.array([-(index + 0.9 * groups.index(setting.group)) for index, setting in enumerate(settings)])
    figure = Figure(figsize=(10.5, 1.5 + 0.25 * -rows[-1]), layout="constrained")
    ax = figure.subplots()
    marks = (
        ("best static model", "s", STATIC, [setting.static for setting in settings]),
        ("best heuristic, tuned", "^", SECOND, [setting.heuristic for setting in settings]),
        ("learned", "o", FOCUS, [float(setting.learned.mean) for setting in settings]),
    )
    for row, setting in zip(rows, settings, strict=True):
        ax.plot([setting.static, setting.bound], [row, row], color=GRID, linewidth=2.0, zorder=1)
        ax.plot([setting.bound] * 2, [row - 0.35, row + 0.35], color=INK, linewidth=1.6, zorder=2)
        ahead, half = float(setting.ahead.mean), float(setting.ahead.half_width)
        sure = abs(ahead) > half
        text = points(setting.ahead)
        colour = GREY if not sure else FOCUS if ahead > 0 else SECOND
        ax.text(1.02, row, text, va="center", fontsize=9, color=colour, fontweight="bold" if sure else "normal")
    for name, marker, colour, values in marks:
        ax.scatter(values, rows, marker=marker, s=42 if marker == "o" else 30, color=colour, label=name, zorder=3)
    for group in groups:
        top = max(row for row, setting in zip(rows, settings, strict=True) if setting.group == group)
        ax.text(0.0, top + 0.72, group, fontsize=9, fontweight="bold", color=INK, va="center")
    ax.text(1.02, rows[0] + 0.8, "learned ahead of\nbest heuristic (points)", fontsize=8, color=GREY, va="bottom")
    _decorate(ax)
    ax.set_yticks(rows, [setting.name for setting in settings])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    lowest = min(float(np.nanmin(values)) for *_, values in marks)  # below 0 where misses cost
    ax.set(xlim=(lowest - 0.02 if lowest < 0 else 0, 1.22), ylim=(rows[-1] - 0.7, rows[0] + 1.2))
    ax.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel(label, color=INK, loc="left")
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold")
    handles = [*ax.get_legend_handles_labels()[0], Line2D([], [], color=INK, marker="|", linestyle="", label="bound")]
    legend = figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=9)
    _ink(legend)
    return figure


def plot_matrix(
    values: Float[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    row_label: str,
    column_label: str,
) -> Figure:
    """Differences in points as a table of colours with the figures in it; blue is behind, orange is ahead.

    Args:
      values: differences, as shares.
      rows: names of the rows.
      columns: names of the columns.
      title: what it shows.
      row_label: what rows are.
      column_label: what columns are.
    """
    figure = Figure(figsize=(3.4 + 0.95 * len(columns), 1.8 + 0.5 * len(rows)), layout="constrained")
    ax = figure.subplots()
    limit = max(float(np.nanmax(np.abs(values))), 1e-3)
    ax.imshow(values, cmap=DIFFERENCES, vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = PAPER if abs(value) > 0.6 * limit else INK
        ax.text(column, row, f"{100 * value:+.1f}", ha="center", va="center", fontsize=9, color=colour)
    _decorate(ax, title)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0)
    ax.set_xlabel(column_label, color=INK)
    ax.set_ylabel(row_label, color=INK)
    return figure


def plot_choices(
    choices: Mapping[str, np.ndarray],
    model_names: Sequence[str],
    *,
    rates: Float[np.ndarray, " rates"],
    sizes: Float[np.ndarray, " sizes"],
    x_label: str,
    y_label: str,
) -> Figure:
    """What a policy does: the model that it chooses, as a colour over arrival rate and batch size, panel by panel.

    Args:
      choices: per panel (sizes, rates) indices of models.
      model_names: names of the models, smallest first.
      rates: arrival rates, ascending and evenly spaced in the logarithm.
      sizes: batch sizes, ascending and evenly spaced.
      x_label: what the rates are, with their unit.
      y_label: what the sizes are.
    """
    figure = Figure(figsize=(3.1 * len(choices) + 1.8, 3.3), layout="constrained")
    axes = figure.subplots(1, len(choices), squeeze=False, sharey=True).ravel()
    colours = model_colours(len(model_names))
    palette = mpl.colors.ListedColormap(colours)
    for ax, (title, chosen) in zip(axes, choices.items(), strict=True):
        ax.pcolormesh(rates, sizes, chosen, cmap=palette, vmin=-0.5, vmax=len(model_names) - 0.5, shading="nearest")
        ax.set_xscale("log")
        _decorate(ax, title)
        ax.grid(False)
        ax.set_xlabel(x_label, color=INK)
    axes[0].set_ylabel(y_label, color=INK)
    handles = [Patch(facecolor=colour, label=name) for name, colour in zip(model_names, colours, strict=True)]
    _legend(figure, handles, "model chosen")
    return figure


@dataclasses.dataclass(frozen=True)
class SweptAxis:
    """One axis of a sweep, a panel of `plot_sweep`.

    Attributes:
      name: its name.
      values: its value in each setting, numbers or names.
      log: drawn evenly in its logarithm.
      explained: share of the variance between networks that lies between its values; `nan` if that is not known.
    """

    name: str
    values: tuple[Any, ...]
    log: bool = False
    explained: float = float("nan")

    @property
    def listed(self) -> bool:
        """Few values that come again and again stand side by side, in place of a scale."""
        return len(set(self.values)) <= _MOST_LISTED or not all(map(is_number, self.values))

    def groups(self, values: Sequence[Any]) -> list[Any]:
        """What `values` of this axis count as alike: the same ones, or neighbours where most differ."""
        if self.listed:
            return list(values)
        edges = np.quantile(np.unique(np.asarray(self.values, float)), np.linspace(0, 1, _BINS + 1)[1:-1])
        return np.searchsorted(edges, np.asarray(values, float), side="right").tolist()


def is_number(value: Any) -> bool:
    """Whether a value has a place on a scale."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def plot_sweep(axes: Sequence[SweptAxis], performance: Interval) -> Figure:
    """Performance of all settings of a sweep against each axis, with the mean over the settings of a value.

    Args:
      axes: the axes, panel by panel.
      performance: of shape (settings,); its intervals are those of the difference from the mean setting.
    """
    columns = 2 if len(axes) == 4 else min(3, len(axes))
    rows = -(-len(axes) // columns)
    figure = Figure(figsize=(3.7 * columns + 1.9, 3.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    mean = np.asarray(performance.mean)
    half = np.where(np.isfinite(performance.half_width), performance.half_width, 0.0)
    best = int(mean.argmax())
    for ax, axis in zip(panels.ravel(), axes, strict=False):
        groups = axis.groups(axis.values)
        distinct = sorted(set(groups)) if all(map(is_number, groups)) else list(dict.fromkeys(groups))
        if axis.listed:
            # Settings of one value stand next to each other, in their order, so that none hides another.
            x = np.empty(len(groups))
            for place, value in enumerate(distinct):
                mine = [index for index, group in enumerate(groups) if group == value]
                x[mine] = place + (np.linspace(-0.2, 0.2, len(mine)) if len(mine) > 1 else 0.0)
            ax.set_xticks(range(len(distinct)), [f"{v:g}" if is_number(v) else v for v in distinct])
            ax.set_xlim(-0.5, len(distinct) - 0.5)
        else:
            x = np.asarray(axis.values, float)
            if axis.log:
                ax.set_xscale("log")
        ax.errorbar(x, mean, half, linestyle="", marker="o", markersize=4, elinewidth=0.8, **_SETTING)
        of_group = [np.array([index for index, group in enumerate(groups) if group == value]) for value in distinct]
        places = [place if axis.listed else float(np.median(x[mine])) for place, mine in enumerate(of_group)]
        ax.plot(places, [mean[mine].mean() for mine in of_group], **_MEAN)
        ax.plot(x[best], mean[best], **_BEST)
        known = "" if np.isnan(axis.explained) else f": explains {axis.explained:.0%}"
        _decorate(ax, f"{axis.name}{known}")
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    margin = 0.08 * float(np.ptp(mean)) or 0.01
    panels[0, 0].set_ylim(float(mean.min()) - margin, float(mean.max()) + margin)  # few lists have wide intervals
    for ax in panels.ravel()[len(axes) :]:
        ax.remove()
    for ax in panels[:, 0]:
        ax.set_ylabel("Performance", color=INK)
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=4, label="a setting", **_SETTING),
        Line2D([], [], label="mean of settings", **_MEAN),
        Line2D([], [], label="the best setting", **_BEST),
    ]
    many = performance.seeds > 1
    note = f"bars: {performance.confidence:.0%} intervals of the\ndifference from the mean setting"
    _legend(figure, handles, note if many else None)
    return figure


def plot_prediction(times: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Distributions of times as measured and as predicted, one diagram each, with 50th, 95th and 99th percentiles.

    Args:
      times: by (model, what was timed) the measured and the predicted seconds, arrays of shape (n,); nan where unknown.
    """
    columns = min(len(times), 2)
    rows = -(-len(times) // columns)
    figure = Figure(figsize=(4.7 * columns + 1.6, 3.6 * rows + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    styles: tuple[dict[str, Any], ...] = (
        {"color": INK, "linewidth": 4.0, "alpha": 0.35, "solid_capstyle": "butt"},
        {"color": FOCUS, "linewidth": 1.6, "linestyle": (0, (5, 1.5))},
    )
    for ax, ((model, what), pair) in zip(axes, times.items(), strict=False):
        known = np.isfinite(pair[0])
        for seconds, style in zip(pair, styles, strict=True):
            ordered = np.sort(seconds[known])
            ax.plot(ordered, (np.arange(len(ordered)) + 0.5) / len(ordered), **style)
        for percentile in (50, 95, 99):
            measured, predicted = (float(np.percentile(seconds[known], percentile)) for seconds in pair)
            ax.plot(predicted, percentile / 100, "o", color=FOCUS, markersize=5, zorder=3)
            label = ax.annotate(
                f"P{percentile}  {measured:.3g} s, predicted {100 * (predicted / measured - 1):+.1f}%",
                (min(measured, predicted), percentile / 100),
                xytext=(-8, {50: 0, 95: -3, 99: 4}[percentile]),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=8.5,
                color=INK,
            )
            label.set_path_effects([withStroke(linewidth=3, foreground=PAPER)])
        _decorate(ax, f"{model}: {what}" if len({key[0] for key in times}) > 1 else what.capitalize())
        low, high = ax.get_xlim()
        ax.set(xlim=(low - 0.45 * (high - low), high), ylim=(0, 1.06))
        ax.set_xticks([tick for tick in ax.get_xticks() if 0 <= tick <= high])
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_xlabel("Seconds", color=INK)
        ax.set_ylabel("Share of requests", color=INK)
    for ax in axes[len(times) :]:
        ax.remove()
    _legend(
        figure, [Line2D([], [], label=n, **style) for n, style in zip(("measured", "predicted"), styles, strict=True)]
    )
    return figure


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 160, svg: bool = False) -> Path:
    """Writes a figure as a PNG file and returns the file; the same data give the same bytes.

    Args:
      figure: the figure.
      path: name of the file without its suffix.
      dpi: resolution.
      svg: write an SVG file next to it, too.

    Raises:
      InputError: if a file cannot be written.
    """
    path = Path(path)
    kinds: dict[str, dict[str, Any]] = {".png": {"dpi": dpi}}
    if svg:
        kinds[".svg"] = {"metadata": {"Date": None}}
    with mpl.rc_context({"svg.hashsalt": "besteffort", "svg.fonttype": "path"}):
        for suffix, options in kinds.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix[1:], facecolor=PAPER, **options)
            write_bytes(path.with_name(path.name + suffix), buffer.getvalue())
    return path.with_name(path.name + ".png")


def _router_styles(names: Sequence[str], focus: str | None) -> dict[str, dict[str, Any]]:
    """Colour, marker and line style of each router; all different, and the same for the same list of names."""
    styles: dict[str, dict[str, Any]] = {}
    others = [name for name in names if name != focus]
    for index, name in enumerate(others):
        styles[name] = {
            "color": SERIES[index % len(SERIES)],
            "marker": _MARKERS[index % len(_MARKERS)],
            "linestyle": _DASHES[(index + index // len(SERIES)) % len(_DASHES)],
            "linewidth": 1.3,
            "markersize": 4.5,
            "markeredgewidth": 0.0,
            "zorder": 2.5,
        }
    if focus is not None:
        styles[focus] = {
            "color": FOCUS,
            "marker": "o",
            "linestyle": "-",
            "linewidth": 3.6,
            "markersize": 7.0,
            "markeredgewidth": 0.0,
            "zorder": 2.4,  # wide and underneath, so that rivals close by stay visible
        }
    return styles


def _model_handles(model_names: Sequence[str], rest: str, hatch: str | None = "////") -> list[Patch]:
    handles = [
        Patch(facecolor=colour, label=name)
        for name, colour in zip(model_names, model_colours(len(model_names)), strict=True)
    ]
    return [*handles, Patch(facecolor=LOST, edgecolor=HATCHING, linewidth=0.0, hatch=hatch, label=rest)]


def _decorate(ax: Axes, title: str | None = None) -> None:
    if title is not None:
        ax.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.tick_params(colors=GREY, labelcolor=INK, labelsize=9)
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)


def _short(value: float, position: int | None = None) -> str:
    """Tick labels such as 0.5, 20, 3k, 1.2M."""
    del position
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def _load_axis(ax: Axes, loads: np.ndarray, requests_per_s: float | None) -> None:
    """Logarithmic, labelled at round multiples of the capacity."""
    ax.set_xscale("log")
    ticks = np.outer(10.0 ** np.arange(-4, 5), (1, 2, 5)).ravel()
    inside = ticks[(ticks >= loads[0] * 0.999) & (ticks <= loads[-1] * 1.001)]
    ax.xaxis.set_major_locator(FixedLocator(inside))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    unit = "" if requests_per_s is None else f"{requests_per_s:.3g} requests/s, "
    ax.set_xlabel(f"Load (1 = {unit}the largest model's capacity)", color=INK)


def _legend(figure: Figure, handles: Sequence[Any], note: str | None = None) -> None:
    legend = figure.legend(handles=list(handles), loc="outside right upper", frameon=False, fontsize=9, title=note)
    legend.get_title().set(fontsize=8, color=GREY)
    _ink(legend)


def _legend_beside(ax: Axes, handles: Sequence[Any]) -> None:
    legend = ax.legend(handles=list(handles), loc="upper left", bbox_to_anchor=(1.01, 1.03), frameon=False, fontsize=9)
    _ink(legend)


def _ink(legend: Any) -> None:
    for text in legend.get_texts():
        text.set_color(INK)
