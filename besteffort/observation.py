"""The router's observation and its encoding: the same functions for NumPy and JAX, in simulation and live.

This module imports NumPy only. Functions take the array module as `xp` (`numpy` or `jax.numpy`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from besteffort.errors import InputError


class Observation(NamedTuple):
    """The router's information when a request arrives, before it is placed.

    Batch sizes and rate may be delayed, see `besteffort.situation.View`.

    Attributes:
      task: () integer, index of the request's task.
      batch_sizes: (models,) running plus waiting requests of each model, summed over replicas.
      arrival_rate: () estimated arrival rate in requests per second, see `next_rate`.
      instance_batch_sizes: (replicas, models) the same counts per instance; for heuristics and load balancers.
      deadline_s: () deadline as known before the answer, in seconds: that of the task's mean output length, times the
        factor in force where deadlines change with time.
      since_change_s: () seconds since any batch size last changed, before this request.
      prompt_tokens: () length of the request's prompt; None where routers do not estimate.
      output_limit: () the client's limit on the output; None where clients state none, or routers do not estimate.
      deadline_factor: () factor in force on the deadline; None likewise.
      in_flight: the requests in flight, a `besteffort.estimates.view.InFlightView`; None where routers do not estimate.
    """

    task: Any
    batch_sizes: Any
    arrival_rate: Any
    instance_batch_sizes: Any
    deadline_s: Any
    since_change_s: Any
    prompt_tokens: Any = None
    output_limit: Any = None
    deadline_factor: Any = None
    in_flight: Any = None


def next_rate(rate: Any, gap_s: Any, tau_s: Any, xp: Any = np) -> Any:
    """Rate estimate at an arrival `gap_s` after the previous one.

    An exponential filter with time constant `tau_s` over past arrivals, excluding the current one:
    `rate_k = (rate_{k-1} + 1 / tau) exp(-gap_k / tau)`; the first arrival of all sees 0.
    """
    return (rate + 1.0 / tau_s) * xp.exp(-gap_s / tau_s)


@dataclasses.dataclass(frozen=True)
class Feature:
    """One named part of a network's input.

    Attributes:
      name: one of `FEATURES`.
      size: number of inputs that it contributes.
      transform: `one_hot` (an index), `linear` (`x / scale`) or `log1p` (`log(1 + x / scale)`).
      scale: divisor, in the unit of the feature; unused by `one_hot`.
    """

    name: str
    size: int
    transform: str
    scale: float = 1.0


FEATURES = ("task", "batch_sizes", "arrival_rate", "deadline_s", "smallest_batch", "since_change_s")

EXOGENOUS = ("task", "arrival_rate", "deadline_s")
"""Features that do not depend on the router's choices."""


def default_features(
    tasks: int, models: int, replicas: int, max_batch: int, typical_rate: float, names: tuple[str, ...] = FEATURES[:3]
) -> tuple[Feature, ...]:
    """Features by name with normalisers that keep them of order one.

    `typical_rate` is in requests per second; the capacity of the largest model is a good choice. The logarithm of the
    arrival rate bends at a tenth of it.

    Raises:
      InputError: on an unknown or repeated name.
    """
    known = {
        "task": Feature("task", tasks, "one_hot"),
        "batch_sizes": Feature("batch_sizes", models, "linear", replicas * max_batch / 8.0),
        "arrival_rate": Feature("arrival_rate", 1, "log1p", 0.1 * typical_rate),
        "deadline_s": Feature("deadline_s", 1, "log1p", 0.1),
        "smallest_batch": Feature("smallest_batch", models, "linear", float(max_batch)),
        "since_change_s": Feature("since_change_s", 1, "log1p", 1.0 / typical_rate),
    }
    for name in names:
        if name not in known:
            raise InputError(f"Unknown feature `{name}`; choose from {', '.join(FEATURES)}.")
    if len(set(names)) != len(names):
        raise InputError("A feature is named twice; name each once.")
    return tuple(known[name] for name in names)


def encode(observation: Observation, features: tuple[Feature, ...], xp: Any = np) -> Any:
    """Network input, a (sum of sizes,) vector of floats, for one observation."""
    parts = []
    for feature in features:
        if feature.name == "smallest_batch":
            value = observation.instance_batch_sizes.min(axis=0)
        else:
            value = getattr(observation, feature.name)
        if feature.transform == "one_hot":
            part = (xp.arange(feature.size) == value) * 1.0
        else:
            part = xp.atleast_1d(xp.asarray(value) / feature.scale)
            if feature.transform == "log1p":
                part = xp.log1p(part)
        parts.append(part)
    return xp.concatenate(parts)


def input_size(features: tuple[Feature, ...]) -> int:
    """Length of the vector that `encode` returns."""
    return sum(feature.size for feature in features)


def check_feature(feature: Feature, where: str) -> None:
    """Raises `InputError` if `encode` does not support `feature`, which was read from `where`."""
    if feature.name not in FEATURES:
        raise InputError(f"{where}: unknown feature `{feature.name}`; this version knows {', '.join(FEATURES)}.")
    if feature.transform not in ("one_hot", "linear", "log1p"):
        raise InputError(f"{where}: feature `{feature.name}` has the unknown transform `{feature.transform}`.")
    if feature.size < 1 or not (math.isfinite(feature.scale) and feature.scale > 0):
        raise InputError(f"{where}: feature `{feature.name}` needs a size of at least 1 and a positive scale.")
