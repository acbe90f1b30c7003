"""The gear plan: the solution of the fluid programme by arrival rate, as a table for a router."""

from __future__ import annotations

import functools

import numpy as np

from besteffort.bounds.fluid import fluid_bound, throughput
from besteffort.routers.registry import Settings
from besteffort.situation import Situation

_GEARS = 48


@functools.lru_cache(maxsize=16)
def gear_plan(situation: Situation) -> Settings:
    """Settings of router `gear` in a situation: `rates` (gears,), `shares` (gears, tasks, models), and no head-room.

    Gears run from a tenth of the slowest model's throughput to twice the throughput of all models together, with
    prefills spread evenly. Requests that the programme leaves unanswered go to the model that earns least at that rate,
    so that the others keep their deadlines.
    """
    able = throughput(situation, even_prefills=True)
    able = able[able > 0]
    if not len(able):  # no answer can be in time, so any plan will do
        able = np.ones(1)
    rates = np.geomspace(0.1 * able.min(), 2 * able.sum(), _GEARS)
    shares = np.clip(fluid_bound(situation, rates, even_prefills=True).routing, 0.0, 1.0)
    quality = situation.profile.quality_table(situation.task_names)
    weight = situation.shares * situation.weights
    earned = np.einsum("gkm,km,k->gm", shares, quality, weight)
    left = np.maximum(1.0 - shares.sum(axis=2), 0.0)
    shares[np.arange(_GEARS), :, earned.argmin(axis=1)] += left
    return {"rates": rates.tolist(), "shares": shares.tolist(), "head_room": 1.0}
