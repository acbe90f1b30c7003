"""Routers: one protocol, `route(observation, params, key) -> model`, for baselines, heuristics and networks.

Each router is a pytree whose numbers are its leaves, so `jax.vmap` can try many settings.

The names below load at their first use, so `besteffort.routers.names` needs no JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from besteffort.lazy import lazy_names

if TYPE_CHECKING:
    from besteffort.routers.baselines import LadderRouter, RandomRouter, ShortestQueueRouter, StaticRouter
    from besteffort.routers.gear import GearRouter
    from besteffort.routers.heuristics import DeadlineRouter, PricedRouter
    from besteffort.routers.learned import LearnedRouter
    from besteffort.routers.prediction import predict_latency
    from besteffort.routers.registry import ROUTERS, TUNED, make_router, settings_at, steps_to

__all__ = [
    "ROUTERS",
    "TUNED",
    "DeadlineRouter",
    "GearRouter",
    "LadderRouter",
    "LearnedRouter",
    "PricedRouter",
    "RandomRouter",
    "ShortestQueueRouter",
    "StaticRouter",
    "make_router",
    "predict_latency",
    "settings_at",
    "steps_to",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ROUTERS": "besteffort.routers.registry",
        "TUNED": "besteffort.routers.registry",
        "DeadlineRouter": "besteffort.routers.heuristics",
        "GearRouter": "besteffort.routers.gear",
        "LadderRouter": "besteffort.routers.baselines",
        "LearnedRouter": "besteffort.routers.learned",
        "PricedRouter": "besteffort.routers.heuristics",
        "RandomRouter": "besteffort.routers.baselines",
        "ShortestQueueRouter": "besteffort.routers.baselines",
        "StaticRouter": "besteffort.routers.baselines",
        "make_router": "besteffort.routers.registry",
        "predict_latency": "besteffort.routers.prediction",
        "settings_at": "besteffort.routers.registry",
        "steps_to": "besteffort.routers.registry",
    },
)
