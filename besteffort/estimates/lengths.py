"""Laws of output lengths: what is known of a request's length before, and while, it is answered. NumPy only.

A length `n` of a task has the survival function `S(g) = P(n > g)` and the mean remainder `R(g) = E[n - g | n > g]`. A
request of which `g` tokens came goes on with

    P(n > a | n > g) = S(a) / S(g)                                       for a >= g
    E[min(n, l) - g | n > g] = R(g) - S(l) / S(g) R(l)                   with the client's limit `l` on its output

so two tables answer every question, for NumPy and JAX alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from besteffort.situation import Task

QUANTILES = 16
"""Lengths, all equally likely, that stand for a law where values are averaged over it."""

_LEAST = 1e-30  # in place of no chance at all, so that no ratio divides by zero


@dataclasses.dataclass(frozen=True)
class LengthLaws:
    """The laws of all tasks, as tables; the NumPy counterpart of the fields of the same names in `EnvParams`.

    A request that goes on beyond the longest known length is taken to have one more token.

    Attributes:
      survival: (tasks, longest + 1) share of a task's outputs that are longer than the index.
      remainder: (tasks, longest + 1) mean tokens to come of those that are longer than the index, at least 1.
      longest: (tasks,) longest output.
      length_quantiles: (tasks, `QUANTILES`) equally likely output lengths, ascending.
    """

    survival: np.ndarray
    remainder: np.ndarray
    longest: np.ndarray
    length_quantiles: np.ndarray

    @classmethod
    def of(cls, tasks: Sequence[Task], longest: int | None = None) -> LengthLaws:
        """Laws of the tasks' output lengths, see `output_law`, as tables up to `longest` tokens, or their longest."""
        ends = np.array([task.output_tokens[1] for task in tasks])
        longest = max(longest or 1, int(ends.max()))
        survival = np.zeros((len(tasks), longest + 1))
        quantiles = np.zeros((len(tasks), QUANTILES))
        for row, task in enumerate(tasks):
            values, shares = output_law(task)
            # Summed from the long end: near it, a difference to 1 would have no digits left.
            of_length = np.bincount(values, shares, longest + 1)
            survival[row, :-1] = np.cumsum(of_length[:0:-1])[::-1]
            at = (np.arange(QUANTILES) + 0.5) / QUANTILES
            quantiles[row] = values[np.minimum(np.searchsorted(np.cumsum(shares), at), len(values) - 1)]
        remainder = np.ones_like(survival)
        for g in range(longest - 1, -1, -1):
            goes_on = np.divide(survival[:, g + 1], survival[:, g], out=np.zeros(len(tasks)), where=survival[:, g] > 0)
            remainder[:, g] = 1.0 + goes_on * remainder[:, g + 1]
        return cls(np.maximum(survival, _LEAST), remainder, ends, quantiles)


def output_law(task: Task) -> tuple[Int[np.ndarray, " lengths"], Float[np.ndarray, " lengths"]]:
    """Output lengths of a task and their probabilities: its quantiles, else the law of its range and mean."""
    if task.output_quantiles is not None:
        values, counts = np.unique(np.round(task.output_quantiles).astype(np.int64), return_counts=True)
        return values, counts / counts.sum()
    return length_law(task.output_tokens, task.mean_output_tokens)


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
