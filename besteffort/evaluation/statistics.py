"""Confidence intervals over seeds. NumPy and SciPy only.

Seeds are independent repetitions, so a Student t interval on their mean is exact for normal samples and close for
means over thousands of requests. Routers are compared on the same requests (common random numbers):
`paired_difference` then removes the variation that the requests have in common.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; arrays of one shape, any shape.

    Attributes:
      mean: mean over the seeds.
      half_width: half the width of the interval; infinite for a single seed, which says nothing about its own spread.
      seeds: number of seeds.
      confidence: coverage of the interval.
    """

    mean: np.ndarray
    half_width: np.ndarray
    seeds: int
    confidence: float = 0.95

    @property
    def low(self) -> np.ndarray:
        return np.asarray(self.mean - self.half_width)

    @property
    def high(self) -> np.ndarray:
        return np.asarray(self.mean + self.half_width)

    def jsonable(self) -> dict[str, np.ndarray]:
        """What files keep of an interval."""
        return {"mean": self.mean, "half_width": self.half_width}

    def __getitem__(self, index: Any) -> Interval:
        """The interval of some of the means, indexed as their array."""
        return dataclasses.replace(
            self, mean=np.asarray(self.mean[index]), half_width=np.asarray(self.half_width[index])
        )


def mean_interval(samples: Float[np.ndarray, "*rest"], *, axis: int = -1, confidence: float = 0.95) -> Interval:
    """Mean over the seeds, which lie along `axis`, with a two-sided Student t interval.

    `mean +- t(confidence, seeds - 1) x s / sqrt(seeds)`, with the sample standard deviation `s`. A single seed gives
    an infinite interval. A `nan` among the samples gives `nan` for its mean and interval.
    """
    samples = np.moveaxis(np.asarray(samples, dtype=np.float64), axis, -1)
    seeds = samples.shape[-1]
    mean = np.asarray(samples.mean(axis=-1))
    if seeds == 1:
        return Interval(mean, np.full(mean.shape, np.inf), seeds, confidence)
    quantile = stdtrit(seeds - 1, (1 + confidence) / 2)
    half_width = quantile * samples.std(axis=-1, ddof=1) / np.sqrt(seeds)
    return Interval(mean, np.asarray(half_width), seeds, confidence)


def paired_difference(
    ours: Float[np.ndarray, "*rest"], theirs: Float[np.ndarray, "*rest"], *, axis: int = -1, confidence: float = 0.95
) -> Interval:
    """Mean of `ours - theirs` over the seeds with its interval; entry s of both comes from the same requests."""
    return mean_interval(
        np.asarray(ours, np.float64) - np.asarray(theirs, np.float64), axis=axis, confidence=confidence
    )


def best_mean(values: Mapping[str, np.ndarray], names: Iterable[str] | None = None) -> str:
    """The name whose values have the highest mean, among `names` (all, if none are given); ties go to the first."""
    return max(values if names is None else names, key=lambda name: float(values[name].mean()))


def explained_share(groups: Sequence[Hashable], samples: Float[np.ndarray, " samples"]) -> float:
    """Share of the samples' variance that lies between their groups, freed of what chance alone puts there.

    `(between - (groups - 1) within / (samples - groups)) / total`, sums of squares (the epsilon-squared of Kelley, PNAS
    1935), at least 0; `nan` if there is a single group, or no group of two samples.
    """
    samples = np.asarray(samples, dtype=np.float64)
    members: dict[Hashable, list[float]] = {}
    for group, sample in zip(groups, samples.tolist(), strict=True):
        members.setdefault(group, []).append(sample)
    spare = len(samples) - len(members)
    total = float(((samples - samples.mean()) ** 2).sum())
    if len(members) < 2 or not spare or not total:
        return float("nan")
    within = sum(float(np.var(each)) * len(each) for each in members.values())
    return max(0.0, (total - within - (len(members) - 1) * within / spare) / total)


def ratio_interval(ours: np.ndarray, theirs: np.ndarray) -> Interval:
    """Ratio of the means of paired (seeds,) values, with a jackknife interval over the seeds.

    Ratios seed by seed would be infinite wherever a rival has a seed with 0. Where only one seed of theirs is not 0,
    nothing is known of the ratio's spread.
    """
    seeds, rest = len(ours), theirs.sum() - theirs
    whole = np.asarray(ours.mean() / theirs.mean() if theirs.sum() > 0 else np.inf)
    if not (rest > 0).all():
        return Interval(whole, np.asarray(np.inf), seeds)
    without = (ours.sum() - ours) / rest
    return dataclasses.replace(mean_interval(seeds * whole - (seeds - 1) * without), mean=whole)
