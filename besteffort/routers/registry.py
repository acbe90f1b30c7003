"""Routers by name, for the command line and the evaluation, and the candidate settings for tuning."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from besteffort.errors import InputError
from besteffort.routers.baselines import LadderRouter, RandomRouter, ShortestQueueRouter, StaticRouter
from besteffort.routers.gear import GearRouter
from besteffort.routers.heuristics import DeadlineRouter, PricedRouter
from besteffort.routers.names import ROUTER_NAMES
from besteffort.simulator.types import EnvShape, Router

Settings = dict[str, Any]
Number = float | int


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
        raise InputError(f"Router `{name}` takes {', '.join(wanted) or 'no settings'}, but was given {given}.")
    return build(shape, **numbers)


def candidates(name: str, shape: EnvShape) -> list[Settings]:
    """Candidate settings of router `name` for tuning, each a set of keyword arguments of `make_router`.

    A router without tunable numbers has a single empty setting. `static` is not tuned: each model is its own router.
    """
    return TUNABLE[name](shape) if name in TUNABLE else [{}]


def _static(shape: EnvShape, model: int) -> StaticRouter:
    if not 0 <= model < shape.models:
        raise InputError(f"Router `static`: `model` is {model}; choose an index from 0 to {shape.models - 1}.")
    return StaticRouter(model=jnp.asarray(model, jnp.int32))


def _ladder(shape: EnvShape, thresholds: Sequence[Number]) -> LadderRouter:
    values = np.asarray(thresholds, dtype=float)
    if values.shape != (shape.models - 1,) or not (values >= 0).all():
        raise InputError(
            f"Router `ladder`: `thresholds` is {list(thresholds)}; give {shape.models - 1} batch sizes of at least 0, "
            "one per model from the second smallest on."
        )
    return LadderRouter(thresholds=jnp.asarray(values))


def _gear(shape: EnvShape, rates: Any, shares: Any, head_room: Number) -> GearRouter:
    rates, shares = np.asarray(rates, dtype=float), np.asarray(shares, dtype=float)
    if rates.ndim != 1 or not len(rates) or not (np.diff(rates, prepend=0.0) > 0).all():
        raise InputError("Router `gear`: `rates` are not ascending; give at least one, all positive, smallest first.")
    if shares.shape != (len(rates), shape.tasks, shape.models) or not np.allclose(shares.sum(axis=2), 1):
        raise InputError(
            f"Router `gear`: `shares` has the shape {shares.shape}; give shares that sum to one over the models, for "
            f"each of {len(rates)} rates, {shape.tasks} tasks and {shape.models} models."
        )
    if not (np.isfinite(head_room) and head_room > 0):
        raise InputError(f"Router `gear`: `head_room` is {head_room}; give a positive factor.")
    return GearRouter(jnp.asarray(rates), jnp.asarray(shares), jnp.asarray(float(head_room)))


def _deadline(shape: EnvShape, reserve: Number = 0.0) -> DeadlineRouter:
    return DeadlineRouter(reserve=_share("deadline-reserve", reserve))


def _priced(shape: EnvShape, price: Number, reserve: Number, width: Number) -> PricedRouter:
    for name, value in (("price", price), ("width", width)):
        if not (np.isfinite(value) and value >= 0):
            raise InputError(f"Router `priced`: `{name}` is {value}; give a finite number of at least 0.")
    return PricedRouter(jnp.asarray(float(price)), _share("priced", reserve), jnp.asarray(float(width)))


def _share(name: str, reserve: Number) -> Array:
    if not 0 <= reserve < 1:
        raise InputError(f"Router `{name}`: `reserve` is {reserve}; give a share from 0 to below 1.")
    return jnp.asarray(float(reserve))


def _ladder_candidates(shape: EnvShape) -> list[Settings]:
    """Ladders whose thresholds run linearly from the second smallest model's to the largest's, on a coarse grid."""
    if shape.models == 1:
        return [{"thresholds": []}]
    steps = np.unique(
        np.ceil(shape.max_batch * np.array([1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1, 3 / 2]))
    )
    ends = itertools.product(steps, steps) if shape.models > 2 else zip(steps, steps, strict=True)
    return [{"thresholds": np.linspace(low, high, shape.models - 1).tolist()} for low, high in ends]


def _head_room_candidates(shape: EnvShape) -> list[Settings]:
    return [{"head_room": x} for x in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0)]


def _reserve_candidates(shape: EnvShape) -> list[Settings]:
    return [{"reserve": reserve} for reserve in _shares(0.05, 17)]


def _price_candidates(shape: EnvShape) -> list[Settings]:
    prices = [0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8]
    return [{"price": price, "reserve": reserve, "width": 0.0} for price in prices for reserve in _shares(0.1, 6)]


def _shares(step: float, count: int) -> list[float]:
    """`0, step, ...`, without the rounding errors of a sum."""
    return [round(step * i, 6) for i in range(count)]


_BUILDERS: Mapping[str, Callable[..., Router]] = {
    "static": _static,
    "random": lambda shape: RandomRouter(),
    "shortest-queue": lambda shape: ShortestQueueRouter(),
    "gear": _gear,
    "ladder": _ladder,
    "deadline": _deadline,
    "deadline-reserve": _deadline,
    "priced": _priced,
}

ROUTERS: Mapping[str, tuple[Callable[..., Router], tuple[str, ...]]] = {
    name: (_BUILDERS[name], (*about.derived, *about.settings)) for name, about in ROUTER_NAMES.items()
}
"""Router names, each with its builder and the names of its numbers."""

TUNABLE: Mapping[str, Callable[[EnvShape], list[Settings]]] = {
    "gear": _head_room_candidates,
    "ladder": _ladder_candidates,
    "deadline-reserve": _reserve_candidates,
    "priced": _price_candidates,
}
"""Names of the routers that are tuned, each with the settings to try on a cluster of a given shape.

The plan of `gear` is not tuned: it follows from the situation, see `besteffort.bounds.gears`.
"""
