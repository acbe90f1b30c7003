"""The router's observation and its encoding: the same functions for NumPy and JAX, in simulation and live.

This module imports NumPy only. Functions take the array module as `xp` (`numpy` or `jax.numpy`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from besteffort.errors import InputError
from besteffort.pools import smallest


class Observation(NamedTuple):
    """The router's information when a request arrives, before it is placed.

    Batch sizes and rate may be delayed, see `besteffort.situation.View`.

    Attributes:
      task: () integer, index of the request's task.
      batch_sizes: (pools,) running plus waiting requests of each pool, summed over replicas.
      arrival_rate: () estimated arrival rate in requests per second, see `next_rate`.
      instance_batch_sizes: (rows, pools) the same counts per replica; for heuristics and load balancers.
      deadline_s: () deadline as known before the answer, in seconds: that of the task's mean output length, times the
        factor in force where deadlines change with time.
      since_change_s: () seconds since any batch size last changed, before this request.
      prompt_tokens: () length of the request's prompt; None where routers do not estimate.
      cached_tokens: () how much of it is found in a prefix cache; None where requests state none, or routers do not
        estimate.
      output_limit: () the client's limit on the output; None where clients state none, or routers do not estimate.
      deadline_factor: () factor in force on the deadline; None likewise.
      takes: (rows, pools) between which replicas the load balancer chooses, of a pool that takes no requests none; None
        where that is all of a full array.
      ready_s: (pools,) seconds until the replica is up that would get the request; None where nothing happens to them.
      origin: () index of the request's origin; None where requests have none.
      tenant_weight: () factor on the request's rewards by its tenant; None where all count the same.
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
    takes: Any = None
    origin: Any = None
    cached_tokens: Any = None
    ready_s: Any = None
    tenant_weight: Any = None

    @property
    def open(self) -> Any:
        """(pools,) which pools take requests; None where nothing happens to replicas: then all do."""
        return None if self.ready_s is None else self.takes.any(axis=-2)


def next_rate(rate: Any, gap_s: Any, tau_s: Any, xp: Any = np) -> Any:
    """Rate estimate at an arrival `gap_s` seconds after the previous one.

    An exponential filter with time constant `tau_s` over past arrivals, excluding the current one:
    `rate_k = (rate_{k-1} + 1 / tau) exp(-gap_k / tau)`; the first arrival of all sees 0. A gap below 0 counts as 0,
    so a clock that steps back does little harm; `time.monotonic` never does.
    """
    return (rate + 1.0 / tau_s) * xp.exp(-xp.maximum(gap_s, 0.0) / tau_s)


@dataclasses.dataclass(frozen=True)
class Feature:
    """One named part of a network's input.

    Attributes:
      name: one of `FEATURES`.
      size: number of inputs that it contributes.
      transform: `one_hot` (an index), `linear` (`x / scale`) or `log1p` (`log(1 + x / scale)`).
      scale: divisor, in the unit of the feature, or one for each input; unused by `one_hot`.
    """

    name: str
    size: int
    transform: str
    scale: float | tuple[float, ...] = 1.0


VALUE = "value"
"""The feature that follows from the other estimates by a rule, see `besteffort.estimates.rule`."""

OBSERVED_SLOWDOWN = "observed_slowdown"
"""The feature that says how observed times compare with the tables, see `besteffort.estimates.correction`."""

ESTIMATES = ("own", "harm", "work", "load", "first_token_s", "completion_s", VALUE, OBSERVED_SLOWDOWN)
"""Features that are worked out from the requests in flight, see `besteffort.estimates.estimates.Estimates`."""

IN_FLIGHT = (*ESTIMATES, "prompt_tokens")
"""Features that routers have only where observations show the requests in flight."""

ORIGIN = "origin"
"""The feature that says where a request comes from; all zeros for one that has no origin."""

TENANT_WEIGHT = "tenant_weight"
"""The feature that says how much a request counts; 1 for one that has no tenant, which is the mean of them."""

FEATURES = (
    *("task", "batch_sizes", "arrival_rate", "deadline_s", "smallest_batch", "since_change_s", *IN_FLIGHT),
    *(ORIGIN, TENANT_WEIGHT),
)

PER_MODEL = ("batch_sizes", "smallest_batch", *ESTIMATES)
"""Features with a value for each pool."""

SIGNED = ("own", "harm", VALUE)
"""Features that may be below 0: a miss and a place may cost something, and `harm` is a sum of rounded differences."""

ONE_HOT = ("task", ORIGIN)
"""Features that are one of several; their number is an index."""

EXOGENOUS = (*ONE_HOT, "arrival_rate", "deadline_s", "work", "load", "prompt_tokens", TENANT_WEIGHT)
"""Features that do not depend on the router's choices."""


def needs_in_flight(names: Iterable[str]) -> bool:
    """Whether features of these names need observations that show the requests in flight."""
    return any(name in IN_FLIGHT for name in names)


def default_features(
    tasks: int,
    pools: int,
    replicas: Any,
    max_batch: Any,
    typical_rate: float,
    names: tuple[str, ...] = FEATURES[:3],
    *,
    typical_deadline_s: float = 0.5,
    typical_prompt_tokens: float = 128.0,
    largest_weight: float = 1.0,
    origins: int = 0,
) -> tuple[Feature, ...]:
    """Features by name with normalisers that keep them of order one.

    Args:
      tasks: how many there are.
      pools: how many there are.
      replicas: how many there are of each pool; a number, or (pools,) of them.
      max_batch: requests that run at once on a replica; likewise.
      typical_rate: requests per second; the capacity of the largest model is a good choice. The logarithm of the
        arrival rate bends at a tenth of it, and `work` counts in what a request takes of an instance at this rate.
      names: which features, in order.
      typical_deadline_s: seconds at which the logarithms of predicted times bend.
      typical_prompt_tokens: length at which the logarithm of the prompt length bends.
      largest_weight: unit of rewards, in which `own` and `harm` count.
      origins: how many there are.

    Raises:
      InputError: on an unknown or repeated name, or `origin` where there are none.
    """
    known = {
        "task": Feature("task", tasks, "one_hot"),
        "batch_sizes": Feature("batch_sizes", pools, "linear", _scale(replicas * max_batch / 8.0)),
        "arrival_rate": Feature("arrival_rate", 1, "log1p", 0.1 * typical_rate),
        "deadline_s": Feature("deadline_s", 1, "log1p", 0.1),
        "smallest_batch": Feature("smallest_batch", pools, "linear", _scale(max_batch)),
        "since_change_s": Feature("since_change_s", 1, "log1p", 1.0 / typical_rate),
        "own": Feature("own", pools, "linear", largest_weight),
        "harm": Feature("harm", pools, "linear", largest_weight),
        "work": Feature("work", pools, "linear", _scale(replicas / typical_rate)),
        "load": Feature("load", pools, "log1p", 1.0),
        "first_token_s": Feature("first_token_s", pools, "log1p", typical_deadline_s),
        "completion_s": Feature("completion_s", pools, "log1p", typical_deadline_s),
        "prompt_tokens": Feature("prompt_tokens", 1, "log1p", typical_prompt_tokens),
        VALUE: Feature(VALUE, pools, "linear", 1.0),
        OBSERVED_SLOWDOWN: Feature(OBSERVED_SLOWDOWN, pools, "log1p", 1.0),
        ORIGIN: Feature(ORIGIN, origins, "one_hot"),
        TENANT_WEIGHT: Feature(TENANT_WEIGHT, 1, "linear", 1.0),
    }
    for name in names:
        if name not in known:
            raise InputError(f"Unknown feature `{name}`; choose from {', '.join(FEATURES)}.")
    if len(set(names)) != len(names):
        raise InputError("A feature is named twice; name each once.")
    if ORIGIN in names and not origins:
        raise InputError(f"The feature `{ORIGIN}` needs origins; give their number.")
    return tuple(known[name] for name in names)


def _scale(each: Any) -> float | tuple[float, ...]:
    """One divisor where all are equal."""
    values = np.atleast_1d(np.asarray(each, np.float64)).tolist()
    return values[0] if len(set(values)) == 1 else tuple(values)


def value_of(name: str, observation: Observation, estimates: Any = None, xp: Any = np) -> Any:
    """() or (pools,) value of a feature; see `encode`.

    Raises:
      InputError: if the observation or the estimates lack it.
    """
    if name == "smallest_batch":
        value = smallest(observation.instance_batch_sizes, observation.takes, xp)
        return value if observation.open is None else xp.where(observation.open, value, 0)
    value = getattr(estimates if name in ESTIMATES else observation, name, None)
    if value is None and name == VALUE and estimates is not None:
        raise InputError(
            "The feature `value` needs a rule, which these parameters lack; build the environment with one, as `rule=`."
        )
    if value is None and name == OBSERVED_SLOWDOWN and estimates is not None:
        raise InputError(
            f"The feature `{name}` needs times to be compared with the tables; set `view.slowdown_tau_s` of the "
            "situation, to 2 for instance."
        )
    if value is None and name == TENANT_WEIGHT:
        return 1.0
    if value is None and name in IN_FLIGHT:
        raise InputError(
            f"The feature `{name}` needs the requests in flight, which this observation does not show; build the "
            f"environment with `estimates=True`, or name `{name}` in `view.features` of the situation."
        )
    return value


def encode(observation: Observation, features: tuple[Feature, ...], xp: Any = np, *, estimates: Any = None) -> Any:
    """Network input, a (sum of sizes,) vector of floats, for one observation.

    Args:
      observation: the observation.
      features: what of it, in order.
      xp: the array module, `numpy` or `jax.numpy`.
      estimates: the request's `besteffort.estimates.estimates.Estimates`, where a feature is one of them;
        `besteffort.estimates.encoding.network_input` works them out.

    Raises:
      InputError: if the observation or the estimates lack a feature.
    """
    parts = []
    for feature in features:
        value = value_of(feature.name, observation, estimates, xp)
        if feature.transform == "one_hot":
            part = (xp.arange(feature.size) == (-1 if value is None else value)) * 1.0
        else:
            scale = xp.asarray(feature.scale) if isinstance(feature.scale, tuple) else feature.scale
            part = xp.atleast_1d(xp.asarray(value) / scale)
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
    scales = feature.scale if isinstance(feature.scale, tuple) else (feature.scale,)
    if isinstance(feature.scale, tuple) and len(scales) != feature.size:
        raise InputError(
            f"{where}: feature `{feature.name}` has {len(scales)} scales for a size of {feature.size}; give one for "
            "each input, or one number."
        )
    if not 1 <= feature.size <= 2**20 or not all(1e-12 <= scale <= 1e12 for scale in scales):
        raise InputError(
            f"{where}: feature `{feature.name}` needs a size of at least 1 and a scale from 1e-12 to 1e12; mend it."
        )
