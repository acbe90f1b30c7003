"""Plans from the fluid programme by arrival rate, as tables for routers: shares of models, and prices of their time."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float

from besteffort.bounds.fluid import FluidBound, fluid_bound, throughput
from besteffort.routers.registry import Settings
from besteffort.situation import Situation

_GEARS = 48
_BLUR = 0.25  # standard deviation of the logarithm of a rate over which prices are averaged


@functools.lru_cache(maxsize=16)
def gear_plan(situation: Situation) -> Settings:
    """Settings of router `gear` in a situation: `rates` (gears,), `shares` (gears, tasks, pools), and no head-room.

    Gears run from a tenth of the slowest model's throughput to twice the throughput of all models together, with
    prefills spread evenly. Requests that the programme leaves unanswered go to the model that earns least at that rate,
    so that the others keep their deadlines.
    """
    rates, bound = _programme(situation)
    shares = np.clip(bound.routing, 0.0, 1.0)
    quality = situation.quality
    weight = situation.shares * situation.weights
    earned = np.einsum("gkm,km,k->gm", shares, quality, weight)
    left = np.maximum(1.0 - shares.sum(axis=2), 0.0)
    shares[np.arange(_GEARS), :, earned.argmin(axis=1)] += left
    return {"rates": rates.tolist(), "shares": shares.tolist(), "head_room": 1.0}


@functools.lru_cache(maxsize=16)
def price_plan(situation: Situation) -> Settings:
    """Settings of router `marginal` in a situation: `rates` (gears,) and `prices` (gears, pools).

    The prices are rewards per instance-second, from the dual of the programme that `gear_plan` has the shares of. They
    are averaged over nearby rates, with a normal law of the rate's logarithm: exact ones jump where a model fills up,
    and a router knows the rate roughly only.
    """
    rates, bound = _programme(situation)
    steps = np.log(rates)
    kernel = np.exp(-0.5 * ((steps[:, None] - steps) / _BLUR) ** 2)
    prices = kernel @ bound.prices / kernel.sum(axis=1, keepdims=True)
    return {"rates": rates.tolist(), "prices": prices.tolist()}


@functools.lru_cache(maxsize=16)
def _programme(situation: Situation) -> tuple[Float[np.ndarray, " gears"], FluidBound]:
    able = throughput(situation, even_prefills=True)
    able = able[able > 0]
    if not len(able):  # no answer can be in time, so any plan will do
        able = np.ones(1)
    rates = np.geomspace(0.1 * able.min(), 2 * able.sum(), _GEARS)
    return rates, fluid_bound(situation, rates, even_prefills=True)
