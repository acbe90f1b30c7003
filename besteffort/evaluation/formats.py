"""Figures with their intervals as text."""

from __future__ import annotations

import numpy as np

from besteffort.evaluation.statistics import Interval, mean_interval


def percent(value: Interval | np.ndarray | float, digits: int = 1) -> str:
    """A share, or its mean over seeds with the interval, in percent."""
    if isinstance(value, np.ndarray) and value.ndim:
        value = mean_interval(value)
    if not isinstance(value, Interval):
        return f"{100 * float(value):.{digits}f}%"
    half = f" ± {100 * float(value.half_width):.{digits}f}" if np.isfinite(value.half_width) else ""
    return f"{100 * float(value.mean):.{digits}f}{half}%"


def with_name(best: tuple[str, np.ndarray]) -> str:
    """The mean over seeds of `Ranking.static` or `Ranking.heuristic` in percent, and whose it is."""
    return f"{percent(best[1])} ({best[0]})"


def times(value: Interval | float, digits: int = 1) -> str:
    """A ratio with its interval."""
    if not isinstance(value, Interval):
        return f"{value:.{digits}f}x"
    half = f" ± {float(value.half_width):.{digits}f}" if np.isfinite(value.half_width) else ""
    return f"{float(value.mean):.{digits}f}{half}x"


def points(value: Interval | float, digits: int = 1) -> str:
    """A difference of shares with its interval in percentage points, with a sign."""
    if not isinstance(value, Interval):
        return f"{100 * float(value):+.{digits}f}"
    half = f" ± {100 * float(value.half_width):.{digits}f}" if np.isfinite(value.half_width) else ""
    return f"{100 * float(value.mean):+.{digits}f}{half}"
