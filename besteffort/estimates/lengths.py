"""Laws of output lengths: what is known of a request's length beforehand. NumPy only."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def length_law(
    ends: tuple[int, int], mean: float | None
) -> tuple[Int[np.ndarray, " lengths"], Float[np.ndarray, " lengths"]]:
    """Lengths from the smallest to the largest and their probabilities, proportional to `exp(tilt x length)`.

    It has the largest entropy of all laws on this range with this mean, and is uniform where the mean is the middle or
    not stated.

    Args:
      ends: smallest and largest length, both included.
      mean: their mean; None where it is not stated.
    """
    values = np.arange(ends[0], ends[1] + 1)
    if mean is None or len(values) == 1:
        return values, np.full(len(values), 1 / len(values))
    # Beyond these tilts all weight is at one end.
    low, high = -50.0, 50.0
    for _ in range(100):
        tilt = (low + high) / 2
        weight = np.exp(tilt * (values - values[0 if tilt < 0 else -1]))
        share = weight / weight.sum()
        low, high = (tilt, high) if values @ share < mean else (low, tilt)
    return values, share
