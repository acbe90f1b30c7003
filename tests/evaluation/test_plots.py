from __future__ import annotations

import dataclasses
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest

from besteffort.bounds.prices import Bound
from besteffort.errors import InputError
from besteffort.evaluation import plots
from besteffort.evaluation.colours import model_colours
from besteffort.evaluation.statistics import Interval, mean_interval

LOADS = np.array([0.1, 0.5, 1.0, 2.0, 10.0])
MODELS = ("small", "middle", "large")


def curves(names, seeds=4):
    rng = np.random.default_rng(0)
    return {name: mean_interval(rng.uniform(0.5, 1.0, (len(LOADS), seeds))) for name in names}


def texts(figure):
    found = [text.get_text() for ax in figure.axes for text in (*ax.texts, *ax.get_yticklabels(), ax.title)]
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    return found + [text.get_text() for legend in legends for text in (*legend.get_texts(), legend.get_title())]


def test_every_router_and_the_bound_can_be_told_apart():
    names = [f"router {index}" for index in range(14)]
    bound = Bound(np.ones(5), np.ones(5))
    figure = plots.plot_against_rate(
        LOADS, curves(names), curves(names), bound=bound, requests_per_s=200.0, focus="router 3"
    )
    for ax in figure.axes:
        lines = ax.get_lines()
        assert len(lines) == 15
        assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 15
        assert len({(line.get_marker(), str(line._dash_pattern)) for line in lines}) == 15  # in greyscale print
        assert ax.get_xscale() == "log"
        assert "200 requests/s" in ax.get_xlabel()
    assert {*names, "upper bound", "bands: 95% intervals over 4 seeds"} <= set(texts(figure))


def test_a_single_seed_is_drawn_without_bands():
    figure = plots.plot_against_rate(LOADS, curves(["one"], seeds=1), curves(["one"], seeds=1))
    assert "one seed" in texts(figure)
    figure.draw_without_rendering()
    assert figure.axes[0].get_ylim()[0] == 0.0


@pytest.mark.parametrize("models", [1, 2, 3, 7])
def test_models_run_from_light_to_dark(models):
    lightness = [mpl.colors.rgb_to_hsv(colour[:3])[2] for colour in model_colours(models)]
    assert lightness == sorted(lightness, reverse=True)


@pytest.mark.parametrize("panels", [1, 2, 4, 5])
def test_routing_mix_has_a_panel_per_router(panels):
    mix = np.tile([0.2, 0.3, 0.4, 0.1], (len(LOADS), 1))
    figure = plots.plot_routing_mix(LOADS, {f"router {index}": mix for index in range(panels)}, MODELS)
    assert len(figure.axes) == panels
    assert {*MODELS, "rejected"} <= set(texts(figure))


def test_timeline_shows_rates_and_means_per_bin(make_result):
    arrival_s = np.arange(0.0, 10.0, 0.1) + 0.05
    burst = make_result(arrival_s, model=np.arange(100) % 3, reward=arrival_s < 5)
    figure = plots.plot_timeline(
        {"ours": burst, "theirs": burst}, MODELS, start_s=0.0, end_s=10.0, width_s=1.0, focus="ours", capacity_per_s=7.0
    )
    top, _, bottom = figure.axes
    np.testing.assert_allclose(top.patches[0].get_data().values, 10.0)
    np.testing.assert_allclose(bottom.get_lines()[0].get_ydata(), [1.0] * 5 + [0.0] * 5)
    assert {"ours", "theirs", *MODELS, "largest model's capacity"} <= set(texts(figure))


def test_comparison_puts_the_best_on_top_and_shows_its_figures():
    def bar(name, mean):
        return plots.Bar(
            name, Interval(np.array(mean), np.array(0.01), 3), np.full(3, mean / 3), mean_interval(np.ones(1))
        )

    figure = plots.plot_comparison(
        [bar("middling", 0.6), bar("ours", 0.9), bar("poor", 0.3)], MODELS, title="load", bound=0.95, focus="ours"
    )
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["poor", "middling", "ours"]
    assert "90.0% ± 1.0" in texts(figure)
    assert "no router can do better" in texts(figure)


def test_files_are_whole_and_the_same_every_time(tmp_path):
    figures = [plots.plot_against_rate(LOADS, curves(["one"]), curves(["one"])) for _ in range(2)]
    assert plots.save_figure(figures[0], tmp_path / "alone", dpi=50) == tmp_path / "alone.png"
    assert {path.name for path in tmp_path.iterdir()} == {"alone.png"}
    png = plots.save_figure(figures[0], tmp_path / "load_0.5", dpi=50, svg=True)
    svg = tmp_path / "load_0.5.svg"
    assert png.name == "load_0.5.png"
    assert matplotlib.image.imread(png).std() > 0
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    again = plots.save_figure(figures[1], tmp_path / "again", dpi=50, svg=True)
    assert again.read_bytes() == png.read_bytes()
    assert again.with_suffix(".svg").read_bytes() == svg.read_bytes()


def test_pyplot_stays_out():
    code = "import sys, besteffort.evaluation.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    figure = plots.plot_against_rate(LOADS, curves(["one"]), curves(["one"]))
    with pytest.raises(InputError, match="file/figure"):
        plots.save_figure(figure, tmp_path / "file" / "figure", dpi=30)


def test_predictions_stand_beside_what_was_measured():
    seconds = np.arange(1.0, 101.0)
    unknown = np.where(seconds > 50, np.nan, seconds)
    figure = plots.plot_prediction(
        {("m", "first token"): (unknown, 2 * seconds), ("m", "end to end"): (seconds, seconds)}
    )
    first, last = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["First token", "End to end"]
    measured, predicted = first.get_lines()[:2]
    np.testing.assert_array_equal(measured.get_xdata(), seconds[:50])
    np.testing.assert_array_equal(predicted.get_xdata(), 2 * seconds[:50])
    assert measured.get_linestyle() != predicted.get_linestyle()
    assert first.texts[0].get_text() == "P50  25.5 s, predicted +100.0%"
    assert all(text.get_text().endswith("+0.0%") for text in last.texts)
    assert {"measured", "predicted"} <= set(texts(figure))
    named = plots.plot_prediction({(name, "end to end"): (seconds, seconds) for name in "abc"})
    assert [ax.get_title(loc="left") for ax in named.axes] == ["a: end to end", "b: end to end", "c: end to end"]


def test_rewards_beyond_one_and_below_zero_are_in_the_picture(make_result):
    # A task may weigh 2, and a miss may cost.
    twice = mean_interval(np.full((len(LOADS), 3), 1.8))
    performance, attainment = plots.plot_against_rate(LOADS, {"one": twice}, curves(["one"])).axes
    assert performance.get_ylim()[1] == pytest.approx(1.02 * 1.8)
    assert attainment.get_ylim()[1] == 1.02
    worth = make_result(np.arange(10.0), reward=1.8)
    *_, bottom = plots.plot_timeline({"one": worth}, MODELS, start_s=0.0, end_s=10.0, width_s=1.0, focus="one").axes
    assert bottom.get_ylim()[1] == pytest.approx(1.04 * 1.8)
    one = mean_interval(np.full(3, 0.5))
    setting = plots.Setting("group", "name", static=-0.4, heuristic=0.2, learned=one, ahead=one, bound=float("nan"))
    for static, left in ((-0.4, -0.42), (0.1, 0.0)):
        (ax,) = plots.plot_settings([dataclasses.replace(setting, static=static)], title="").axes
        assert ax.get_xlim()[0] == pytest.approx(left)


def test_a_bar_is_never_cut():
    wide = Interval(np.array([0.5, 0.6]), np.array([0.4, np.inf]), 3)
    other = Interval(np.array([0.55, np.nan]), np.array([0.1, np.nan]), 3)
    panel = plots.Panel("", np.array([1.0, 8.0]), {"a": wide, "b": other}, "x", "y", log=True)
    for bars in (True, False):
        (ax,) = plots.plot_panels([dataclasses.replace(panel, bars=bars)]).axes
        low, high = ax.get_ylim()
        assert (low < 0.1, high > 0.9) == (bars, bars)
        assert low < 0.5
        assert high > 0.6
