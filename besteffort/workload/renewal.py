"""Draws arrivals of stationary renewal processes in many windows at once, on the host."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.special import gamma

_LEAST_COUNT = 1e-9


def renewal_times(
    rng: np.random.Generator,
    law: Literal["Gamma", "Weibull"],
    mean_count: Float[np.ndarray, " windows"],
    shape: Float[np.ndarray, " windows"],
    length_s: float,
    *,
    most: int | None = None,
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Draws arrivals of one renewal process per window, each over `[0, length_s)`.

    The first arrival of a window is drawn as seen from a random moment (a uniform share of a length-biased gap), so
    the expected number of arrivals is exactly `mean_count`. A full first gap would add about `(cv^2 - 1) / 2`.

    Args:
      rng: source of randomness.
      law: distribution of the gaps.
      mean_count: expected arrivals of each window; windows with 0, or less than 1e-9, stay empty.
      shape: shape parameter of each window's gaps. Gamma: `1 / cv^2`.
      length_s: length of every window in seconds.
      most: arrivals of all windows; None for any number. Gaps of a small shape may draw far more than expected.

    Returns:
      Window and time within it, in seconds, of every arrival, in order of window, then time.

    Raises:
      OverflowError: if there are more than `most`.
    """
    windows = np.flatnonzero(mean_count > _LEAST_COUNT)
    mean_count, shape = mean_count[windows], shape[windows]
    mean_gap = length_s / mean_count
    if law == "Gamma":
        scale = mean_gap / shape
        biased = rng.standard_gamma(shape + 1)
    else:
        scale = mean_gap / gamma(1 + 1 / shape)
        biased = rng.standard_gamma(1 + 1 / shape) ** (1 / shape)
    reached = rng.random(len(windows)) * biased * scale

    owners, times = [np.zeros(0, np.int64)], [np.zeros(0)]
    active = np.arange(len(windows))
    drawn = 0
    while True:
        inside = reached < length_s
        active, reached = active[inside], reached[inside]
        if not len(active):
            break
        owners.append(active)
        times.append(reached)
        # Draw as many gaps at once as each window still expects, so that few rounds are needed.
        draws = 1 + np.floor(mean_count[active] * (1 - reached / length_s)).astype(np.int64)
        row = np.repeat(np.arange(len(active)), draws)
        owner = active[row]
        gaps = (rng.standard_gamma if law == "Gamma" else rng.weibull)(shape[owner]) * scale[owner]
        total = np.cumsum(gaps)
        last = np.cumsum(draws) - 1
        start = np.concatenate([[0.0], total[last[:-1]]])
        reach = reached[row] + (total - start[row])
        inner = reach < length_s
        inner[last] = False
        owners.append(owner[inner])
        times.append(reach[inner])
        drawn += len(times[-1])
        if most is not None and drawn > most:
            raise OverflowError(f"more than {most:,} arrivals")
        reached = reach[last]
    owner, time = np.concatenate(owners), np.concatenate(times)
    order = np.lexsort((time, owner))
    return windows[owner[order]], time[order]
