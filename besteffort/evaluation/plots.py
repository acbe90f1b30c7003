"""Figures: against the rate, the routing mix, a time line through a burst, and the comparison of the quickstart.

Every function returns a `matplotlib.figure.Figure` that belongs to nobody else (no pyplot, no global state, any
thread); `save_figure` writes it. Colours can be told apart by colour-blind readers and in greyscale print, with markers
and line styles beside them; models run from light (smallest) to dark (largest).
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

from besteffort.evaluation.bounds import Bound
from besteffort.evaluation.metrics import binned
from besteffort.evaluation.statistics import Interval
from besteffort.runs.directory import write_bytes
from besteffort.simulator.result import Result

_INK = "#222222"
_GREY = "#6b6b6b"
_GRID = "#e3e3e3"
_LOST = "#ececec"
_FOCUS = "#d55e00"  # vermilion, for the router that the figure is about
# Okabe and Ito's palette without vermilion and yellow (too light for lines), then two that stay apart from them.
_COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b4b9a", "#8c6d46", "#7a7a7a")
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "h", "p")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))


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
            ax.plot(loads, limit, color=_INK, linewidth=1.4, linestyle=(0, (4, 2)), zorder=4)
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
        ax.set_ylim(top=1.02, bottom=min(0.0, ax.get_ylim()[0]))
    handles = [Line2D([], [], label=name, **styles[name]) for name in performance]
    if bound is not None:
        handles.append(Line2D([], [], color=_INK, linewidth=1.4, linestyle=(0, (4, 2)), label="upper bound (fluid)"))
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
    colours = (*_model_colours(len(model_names)), _LOST)
    for ax, (name, mix) in zip(axes, mixes.items(), strict=False):
        areas = ax.stackplot(loads, np.asarray(mix).T, colors=colours, edgecolor="white", linewidth=0.8)
        areas[-1].set(hatch="////", edgecolor="#9a9a9a", linewidth=0.0)
        _decorate(ax, name)
        ax.grid(False)
        _load_axis(ax, loads, requests_per_s)
        ax.set(xlim=(loads[0], loads[-1]), ylim=(0, 1))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_ylabel("Share of requests", color=_INK)
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
    """Through a stretch of time: arrivals, the models that router `focus` chose, and everybody's performance.

    Args:
      results: per router what became of the same requests; arrays of shape (n,).
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
    top.stairs(count / width_s, edges, fill=True, color="#b9c4cf")
    top.stairs(count / width_s, edges, color=_INK, linewidth=1.0)
    top.set_ylabel("Arrivals\n(requests/s)", color=_INK)
    top.set_ylim(bottom=0)
    if capacity_per_s is not None:
        top.axhline(capacity_per_s, color=_INK, linewidth=1.1, linestyle=(0, (4, 2)))

    outcome = np.where(chosen.rejected, len(model_names), chosen.model)
    floor = np.zeros(bins)
    for index, colour in enumerate((*_model_colours(len(model_names)), _LOST)):
        _, share = per_bin(chosen, outcome == index)
        ceiling = floor + np.nan_to_num(share)
        middle.stairs(ceiling, edges, baseline=floor, fill=True, color=colour)
        floor = ceiling
    middle.set_ylabel(f"Models chosen\n({focus})", color=_INK)
    middle.set_ylim(0, 1)
    middle.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    styles = _router_styles(tuple(results), focus)
    centres = (edges[1:] + edges[:-1]) / 2
    every = max(1, bins // 20)
    for offset, (name, result) in enumerate(results.items()):
        _, mean = per_bin(result, result.reward)
        bottom.plot(centres, mean, **styles[name], markevery=(offset % every, every))
    bottom.set_ylabel("Performance\n(mean reward)", color=_INK)
    bottom.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bottom.set_ylim(top=1.04)
    bottom.set_xlabel("Time of arrival (s)", color=_INK)
    for ax in (top, middle, bottom):
        _decorate(ax)
        ax.set_xlim(edges[0], edges[-1])
    middle.grid(False)
    figure.align_ylabels()
    _legend_beside(
        top,
        [Patch(facecolor="#b9c4cf", edgecolor=_INK, label=f"arrivals per {width_s:g} s")]
        + [Line2D([], [], color=_INK, linewidth=1.1, linestyle=(0, (4, 2)), label="largest model's capacity")]
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
    colours = _model_colours(len(model_names))
    rows = np.arange(len(ordered))
    ax.barh(rows, 1.0, color=_LOST, height=0.72)
    left = np.zeros(len(ordered))
    for index, colour in enumerate(colours):
        width = np.array([bar.by_model[index] for bar in ordered]) / peak
        ax.barh(rows, width, left=left, color=colour, height=0.72)
        left += width
    for row, bar in enumerate(ordered):
        mean, half = float(bar.performance.mean) / peak, float(bar.performance.half_width) / peak
        if np.isfinite(half):
            whisker = ax.plot([mean - half, mean + half], [row, row], color=_INK, linewidth=1.8, solid_capstyle="butt")
            whisker[0].set_path_effects([withStroke(linewidth=4.5, foreground="white")])
        text = f"{mean:.1%}" + (f" ± {100 * half:.1f}" if np.isfinite(half) else "")
        weight = "bold" if bar.name == focus else "normal"
        ax.text(1.02, row, text, va="center", color=_INK, fontweight=weight, fontsize=10)
        ax.text(
            1.19, row, f"{float(bar.slo_attainment.mean):.1%}", va="center", color=_INK, fontweight=weight, fontsize=10
        )
    header = len(ordered) - 0.35
    ax.text(1.02, header, "of peak quality", va="bottom", color=_GREY, fontsize=9)
    ax.text(1.19, header, "in time", va="bottom", color=_GREY, fontsize=9)
    if bound is not None:
        ax.plot([bound / peak] * 2, [-0.5, len(ordered) - 0.5], color=_INK, linewidth=1.4, linestyle=(0, (4, 2)))
        ax.text(bound / peak, header, "no router can do better", ha="right", va="bottom", color=_INK, fontsize=9)
    ax.set_yticks(rows, [bar.name for bar in ordered])
    _decorate(ax)
    ax.grid(False)
    ax.tick_params(axis="y", length=0, labelsize=10)
    for label, bar in zip(ax.get_yticklabels(), ordered, strict=True):
        if bar.name == focus:
            label.set(color=_FOCUS, fontweight="bold")
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set(xlim=(0, 1.27), ylim=(-0.55, len(ordered) + 0.1))
    ax.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel("Quality delivered in time, by the model that delivered it", color=_INK, loc="left")
    figure.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=12, fontweight="bold")
    handles = _model_handles(model_names, "lost: late, rejected, or a smaller model's lower quality", hatch=None)
    legend = figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=9)
    _ink(legend)
    return figure


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 160) -> tuple[Path, Path]:
    """Writes `path`, a name without suffix, as .png and as .svg and returns both; the same data give the same bytes.

    Raises:
      InputError: if a file cannot be written.
    """
    path = Path(path)
    written = []
    with mpl.rc_context({"svg.hashsalt": "besteffort", "svg.fonttype": "path"}):
        for suffix, options in ((".png", {"dpi": dpi}), (".svg", {"metadata": {"Date": None}})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix[1:], facecolor="white", **options)
            target = path.with_name(path.name + suffix)
            write_bytes(target, buffer.getvalue())
            written.append(target)
    return written[0], written[1]


def _router_styles(names: Sequence[str], focus: str | None) -> dict[str, dict[str, Any]]:
    """Colour, marker and line style of each router; all different, and the same for the same list of names."""
    styles: dict[str, dict[str, Any]] = {}
    others = [name for name in names if name != focus]
    for index, name in enumerate(others):
        styles[name] = {
            "color": _COLOURS[index % len(_COLOURS)],
            "marker": _MARKERS[index % len(_MARKERS)],
            "linestyle": _DASHES[(index + index // len(_COLOURS)) % len(_DASHES)],
            "linewidth": 1.3,
            "markersize": 4.5,
            "markeredgewidth": 0.0,
            "zorder": 2.5,
        }
    if focus is not None:
        styles[focus] = {
            "color": _FOCUS,
            "marker": "o",
            "linestyle": "-",
            "linewidth": 3.6,
            "markersize": 7.0,
            "markeredgewidth": 0.0,
            "zorder": 2.4,  # wide and underneath, so that rivals close by stay visible
        }
    return styles


def _model_colours(models: int) -> list[Any]:
    """From light to dark, whatever the number of models: one hue after the other."""
    return [mpl.colormaps["YlGnBu"](x) for x in np.linspace(0.3, 0.95, models)]


def _model_handles(model_names: Sequence[str], rest: str, hatch: str | None = "////") -> list[Patch]:
    handles = [
        Patch(facecolor=colour, label=name)
        for name, colour in zip(model_names, _model_colours(len(model_names)), strict=True)
    ]
    return [*handles, Patch(facecolor=_LOST, edgecolor="#9a9a9a", linewidth=0.0, hatch=hatch, label=rest)]


def _decorate(ax: Axes, title: str | None = None) -> None:
    if title is not None:
        ax.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(_GREY)
    ax.tick_params(colors=_GREY, labelcolor=_INK, labelsize=9)
    ax.grid(color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)


def _load_axis(ax: Axes, loads: np.ndarray, requests_per_s: float | None) -> None:
    """Logarithmic, labelled at round multiples of the capacity."""
    ax.set_xscale("log")
    ticks = np.outer(10.0 ** np.arange(-4, 5), (1, 2, 5)).ravel()
    inside = ticks[(ticks >= loads[0] * 0.999) & (ticks <= loads[-1] * 1.001)]
    ax.xaxis.set_major_locator(FixedLocator(inside))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    unit = "" if requests_per_s is None else f"{requests_per_s:.3g} requests/s, "
    ax.set_xlabel(f"Load (1 = {unit}the largest model's capacity)", color=_INK)


def _legend(figure: Figure, handles: Sequence[Any], note: str | None = None) -> None:
    legend = figure.legend(handles=list(handles), loc="outside right upper", frameon=False, fontsize=9, title=note)
    legend.get_title().set(fontsize=8, color=_GREY)
    _ink(legend)


def _legend_beside(ax: Axes, handles: Sequence[Any]) -> None:
    legend = ax.legend(handles=list(handles), loc="upper left", bbox_to_anchor=(1.01, 1.03), frameon=False, fontsize=9)
    _ink(legend)


def _ink(legend: Any) -> None:
    for text in legend.get_texts():
        text.set_color(_INK)
