"""Routers: one protocol, `route(observation, params, key) -> model`, for baselines, heuristics and networks.

Each router is a pytree whose numbers are its leaves, so `jax.vmap` can try many settings.
"""

from besteffort.routers.baselines import LadderRouter, RandomRouter, ShortestQueueRouter, StaticRouter
from besteffort.routers.gear import GearRouter
from besteffort.routers.heuristics import DeadlineRouter, PricedRouter
from besteffort.routers.learned import LearnedRouter
from besteffort.routers.prediction import predict_latency
from besteffort.routers.registry import ROUTERS, TUNABLE, candidates, make_router
from besteffort.routers.with_params import RouterWithParams

__all__ = [
    "ROUTERS",
    "TUNABLE",
    "DeadlineRouter",
    "GearRouter",
    "LadderRouter",
    "LearnedRouter",
    "PricedRouter",
    "RandomRouter",
    "RouterWithParams",
    "ShortestQueueRouter",
    "StaticRouter",
    "candidates",
    "make_router",
    "predict_latency",
]
