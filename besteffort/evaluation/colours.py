"""Colours of all figures. Colour-blind readers can distinguish them, and models run from light to dark."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np

INK = "#222222"
GREY = "#6b6b6b"
GRID = "#e3e3e3"
PAPER = "white"
LOST = "#ececec"  # requests that were rejected or earned nothing
HATCHING = "#9a9a9a"  # on `LOST`
ARRIVALS = "#b9c4cf"
FOCUS = "#d55e00"  # vermilion, for the router that the figure is about
# Okabe and Ito's palette without vermilion and yellow (too light for lines), then two that stay apart from them.
SERIES = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b4b9a", "#8c6d46", "#7a7a7a")
SECOND = SERIES[0]  # beside the focus, where there are only the two of them
STATIC = SERIES[-1]  # the best static model, where it is a third
MODELS = "YlGnBu"  # name of Matplotlib's colour map
DIFFERENCES = "PuOr_r"  # name of Matplotlib's colour map, from what is worse to what is better


def model_colours(models: int) -> list[Any]:
    """From light to dark, whatever the number of models: one hue after the other."""
    return [mpl.colormaps[MODELS](x) for x in np.linspace(0.3, 0.95, models)]
