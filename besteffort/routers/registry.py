"""Routers by name, for the command line and the evaluation, and the numbers of theirs that tuning sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from besteffort.errors import InputError
from besteffort.estimates.rule import ABOVE_ZERO, UNTRAINED, Rule
from besteffort.routers.baselines import LadderRouter, RandomRouter, ShortestQueueRouter, StaticRouter
from besteffort.routers.gear import GearRouter
from besteffort.routers.heuristics import DeadlineRouter, PricedRouter
from besteffort.routers.names import ROUTER_NAMES
from besteffort.routers.prediction import AHEAD, BY_BATCH_SIZE, Predictor
from besteffort.routers.published import LatencyBasedRouter, LeastBusyRouter, RouteBalanceRouter, SlackFitRouter
from besteffort.routers.tuned_number import TunedNumber
from besteffort.routers.value import MarginalRouter, ValueRouter
from besteffort.simulator.types import EnvShape, Router

Settings = dict[str, Any]
Number = float | int

_SMALLEST = 1e-6  # of a width that divides
_LEAST = {
    **dict.fromkeys(ABOVE_ZERO, _SMALLEST),
    **dict.fromkeys(("latency_price", "occupancy_price", "giving_up"), 0.0),
}


def make_router(name: str, shape: EnvShape, /, **numbers: Any) -> Router:
    """Builds router `name` (a key of `ROUTERS`) for clusters of the given shape.

    Raises:
      InputError: on an unknown name, an unknown or missing number, or one out of range.
    """
    if name not in ROUTERS:
        raise InputError(f"Unknown router `{name}`; choose from {', '.join(ROUTERS)}.")
    build, wanted = ROUTERS[name]
    if set(numbers) != set(wanted):
        given = ", ".join(sorted(numbers)) or "nothing"
        remedy = f"give {' '.join(f'{each}=X' for each in wanted)}" if wanted else "leave them out"
        raise InputError(
            f"Router `{name}` takes {', '.join(wanted) or 'no settings'}, but was given {given}; {remedy}."
        )
    return build(shape, **numbers)


def dimensions(name: str, shape: EnvShape) -> int:
    """How many numbers of router `name` tuning sets on clusters of the given shape."""
    return sum(number.count for number in TUNED[name](shape))


def settings_at(name: str, shape: EnvShape, steps: Float[np.ndarray, " dimensions"]) -> Settings:
    """The tuned settings of router `name` that lie so many steps from where tuning starts; see `TunedNumber`.

    Any steps lead to settings that `make_router` takes, 0 to those of the start. Numbers that are derived from the
    situation, such as the plan of `gear`, are not among them.
    """
    numbers = TUNED[name](shape)
    parts = np.split(steps, np.cumsum([number.count for number in numbers])[:-1])
    return {number.name: number.value(part) for number, part in zip(numbers, parts, strict=True)}


def steps_to(name: str, shape: EnvShape, settings: Settings) -> Float[np.ndarray, " dimensions"]:
    """The steps that lead to settings of router `name`, or as near as the ranges of its numbers allow."""
    return np.concatenate([number.steps(settings[number.name]) for number in TUNED[name](shape)])


def _static(shape: EnvShape, model: int) -> StaticRouter:
    if not 0 <= model < shape.pools:
        raise InputError(f"Router `static`: `model` is {model}; choose an index from 0 to {shape.pools - 1}.")
    return StaticRouter(model=jnp.asarray(model, jnp.int32))


def _ladder(shape: EnvShape, thresholds: Sequence[Number]) -> LadderRouter:
    values = np.asarray(thresholds, dtype=float)
    if values.shape != (shape.pools - 1,) or not (values >= 0).all():
        raise InputError(
            f"Router `ladder`: `thresholds` is {list(thresholds)}; give {shape.pools - 1} batch sizes of at least 0, "
            "one per model from the second smallest on."
        )
    return LadderRouter(thresholds=jnp.asarray(values))


def _gear(shape: EnvShape, rates: Any, shares: Any, head_room: Number) -> GearRouter:
    rates, shares = _rates("gear", rates), np.asarray(shares, dtype=float)
    if shares.shape != (len(rates), shape.tasks, shape.pools) or not np.allclose(shares.sum(axis=2), 1):
        raise InputError(
            f"Router `gear`: `shares` has the shape {shares.shape}; give shares that sum to one over the models, for "
            f"each of {len(rates)} rates, {shape.tasks} tasks and {shape.pools} models."
        )
    if not (np.isfinite(head_room) and head_room > 0):
        raise InputError(f"Router `gear`: `head_room` is {head_room}; give a positive factor.")
    return GearRouter(jnp.asarray(rates), jnp.asarray(shares), jnp.asarray(float(head_room)))


def _deadline(
    shape: EnvShape, reserve: Number = 0.0, *, name: str, predictor: Predictor = BY_BATCH_SIZE
) -> DeadlineRouter:
    return DeadlineRouter(_share(name, reserve), predictor)


def _priced(
    shape: EnvShape, price: Number, reserve: Number, width: Number, *, name: str, predictor: Predictor = BY_BATCH_SIZE
) -> PricedRouter:
    return PricedRouter(
        _at_least(0.0, name, "price", price),
        _share(name, reserve),
        _at_least(0.0, name, "width", width),
        predictor,
    )


def _slackfit(shape: EnvShape, reserve: Number, buckets: Number) -> SlackFitRouter:
    return SlackFitRouter(_share("slackfit", reserve), _at_least(1.0, "slackfit", "buckets", buckets))


def _routebalance(shape: EnvShape, latency_weight: Number, cost_weight: Number) -> RouteBalanceRouter:
    return RouteBalanceRouter(
        _at_least(0.0, "routebalance", "latency_weight", latency_weight),
        _at_least(0.0, "routebalance", "cost_weight", cost_weight),
    )


def _latency_based(shape: EnvShape, buffer: Number) -> LatencyBasedRouter:
    return LatencyBasedRouter(_at_least(0.0, "latency-based", "buffer", buffer))


def _value(shape: EnvShape, rates: Any, prices: Any, **numbers: Number) -> ValueRouter:
    checked = {name: _at_least(_LEAST.get(name, -np.inf), "value", name, value) for name, value in numbers.items()}
    if checked["giving_up"] > 1:
        raise InputError(f"Router `value`: `giving_up` is {numbers['giving_up']}; give a share from 0 to 1.")
    rates, prices = _prices("value", shape, rates, prices)
    return ValueRouter(Rule(**checked, rates=rates, prices=prices))


def _marginal(shape: EnvShape, rates: Any, prices: Any) -> MarginalRouter:
    return MarginalRouter(*_prices("marginal", shape, rates, prices))


def _prices(name: str, shape: EnvShape, rates: Any, prices: Any) -> tuple[Array, Array]:
    rates, prices = _rates(name, rates), np.asarray(prices, dtype=float)
    if prices.shape != (len(rates), shape.pools) or not (np.isfinite(prices) & (prices >= 0)).all():
        raise InputError(
            f"Router `{name}`: `prices` has the shape {prices.shape}; give finite prices of at least 0, for each of "
            f"{len(rates)} rates and {shape.pools} models."
        )
    return jnp.asarray(rates), jnp.asarray(prices)


def _rates(name: str, rates: Any) -> np.ndarray:
    rates = np.asarray(rates, dtype=float)
    if rates.ndim != 1 or not len(rates) or not (np.diff(rates, prepend=0.0) > 0).all():
        raise InputError(
            f"Router `{name}`: `rates` are not ascending; give at least one, all positive, smallest first."
        )
    return rates


def _at_least(least: float, name: str, setting: str, value: Number) -> Array:
    if not (np.isfinite(value) and value >= least):
        of_what = "" if least == -np.inf else f" of at least {least:g}"
        raise InputError(f"Router `{name}`: `{setting}` is {value}; give a finite number{of_what}.")
    return jnp.asarray(float(value))


def _share(name: str, reserve: Number) -> Array:
    if not 0 <= reserve < 1:
        raise InputError(f"Router `{name}`: `reserve` is {reserve}; give a share from 0 to below 1.")
    return jnp.asarray(float(reserve))


_BUILDERS: Mapping[str, Callable[..., Router]] = {
    "static": _static,
    "random": lambda shape: RandomRouter(),
    "shortest-queue": lambda shape: ShortestQueueRouter(),
    "gear": _gear,
    "ladder": _ladder,
    "deadline": partial(_deadline, name="deadline"),
    "deadline-reserve": partial(_deadline, name="deadline-reserve"),
    "priced": partial(_priced, name="priced"),
    "deadline-ahead": partial(_deadline, name="deadline-ahead", predictor=AHEAD),
    "deadline-reserve-ahead": partial(_deadline, name="deadline-reserve-ahead", predictor=AHEAD),
    "priced-ahead": partial(_priced, name="priced-ahead", predictor=AHEAD),
    "slackfit": _slackfit,
    "routebalance": _routebalance,
    "least-busy": lambda shape: LeastBusyRouter(),
    "latency-based": _latency_based,
    "marginal": _marginal,
    "value": _value,
}

ROUTERS: Mapping[str, tuple[Callable[..., Router], tuple[str, ...]]] = {
    name: (_BUILDERS[name], (*about.derived, *about.settings)) for name, about in ROUTER_NAMES.items()
}
"""Router names, each with its builder and the names of its numbers."""

_RESERVE = TunedNumber("reserve", start=0.3, spread=0.3, low=0.0, high=0.95)
_PRICED = (
    TunedNumber("price", start=0.15, spread=3.0, low=0.001, high=10.0, scale="log"),
    TunedNumber("reserve", start=0.05, spread=0.1, low=0.0, high=0.95),
    TunedNumber("width", start=0.04, spread=2.5, low=0.001, high=1.0, scale="log"),
)

TUNED: Mapping[str, Callable[[EnvShape], tuple[TunedNumber, ...]]] = {
    "gear": lambda shape: (TunedNumber("head_room", start=1.5, spread=1.8, low=0.1, high=10.0, scale="log"),),
    "ladder": lambda shape: (
        # A smaller model takes longer lines, since it works them off sooner.
        TunedNumber(
            "thresholds",
            start=tuple((shape.max_batch * np.linspace(0.375, 1.0, shape.pools - 1)[::-1]).tolist()),
            spread=2.0,
            low=1.0,
            high=float(shape.max_batch + shape.queue_capacity),
            scale="log",
        ),
    ),
    "deadline-reserve": lambda shape: (_RESERVE,),
    "priced": lambda shape: _PRICED,
    "deadline-reserve-ahead": lambda shape: (_RESERVE,),
    "priced-ahead": lambda shape: _PRICED,
    "slackfit": lambda shape: (
        _RESERVE,
        TunedNumber("buckets", start=4.0, spread=2.5, low=1.0, high=100.0, scale="log"),
    ),
    "routebalance": lambda shape: (
        TunedNumber("latency_weight", start=0.3, spread=2.5, low=0.001, high=10.0, scale="log"),
        TunedNumber("cost_weight", start=0.1, spread=2.5, low=0.001, high=10.0, scale="log"),
    ),
    "latency-based": lambda shape: (TunedNumber("buffer", start=0.5, spread=2.5, low=0.001, high=100.0, scale="log"),),
    "value": lambda shape: (
        TunedNumber("reserve", start=UNTRAINED["reserve"], spread=0.1, low=-0.5, high=0.95),
        TunedNumber("reserve_slope", start=UNTRAINED["reserve_slope"], spread=0.05, low=-0.3, high=0.3),
        TunedNumber("width", start=UNTRAINED["width"], spread=2.0, low=0.001, high=1.0, scale="log"),
        TunedNumber(
            "in_flight_width", start=UNTRAINED["in_flight_width"], spread=1.65, low=0.01, high=10.0, scale="log"
        ),
        TunedNumber("harm_weight", start=UNTRAINED["harm_weight"], spread=0.4, low=0.0, high=5.0),
        TunedNumber("harm_floor", start=UNTRAINED["harm_floor"], spread=2.0, low=0.001, high=5.0, scale="log"),
        TunedNumber("latency_price", start=UNTRAINED["latency_price"], spread=2.7, low=1e-4, high=100.0, scale="log"),
        TunedNumber("latency_exponent", start=UNTRAINED["latency_exponent"], spread=0.4, low=-3.0, high=3.0),
        TunedNumber(
            "occupancy_price", start=UNTRAINED["occupancy_price"], spread=2.7, low=1e-4, high=10.0, scale="log"
        ),
        TunedNumber("occupancy_exponent", start=UNTRAINED["occupancy_exponent"], spread=0.4, low=-3.0, high=3.0),
        TunedNumber("time_price", start=UNTRAINED["time_price"], spread=0.4, low=0.0, high=3.0),
        TunedNumber("head_room", start=UNTRAINED["head_room"], spread=1.3, low=0.2, high=5.0, scale="log"),
        TunedNumber("giving_up", start=UNTRAINED["giving_up"], spread=0.4, low=0.0, high=1.0),
    ),
}
"""Names of the routers that are tuned, each with its numbers on a cluster of a given shape.

Starts and spreads cover what was best for bursts, stable loads and public traces in the default situation.
The plan of `gear` is not tuned: it follows from the situation, see `besteffort.bounds.gears`. A router without numbers
is not tuned, nor is `static`: each model is its own router.
"""
