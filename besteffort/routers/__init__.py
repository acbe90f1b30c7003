"""Routers: one protocol, `route(observation, params, key) -> model`, for baselines, heuristics and networks.

Each router is a pytree whose numbers are its leaves, so that trying many settings is a `jax.vmap`.
"""

from besteffort.routers.baselines import LadderRouter, RandomRouter, ShortestQueueRouter, StaticRouter
from besteffort.routers.believing import BelievingRouter
from besteffort.routers.gear import GearRouter
from besteffort.routers.heuristics import DeadlineRouter, PricedRouter
from besteffort.routers.learned import LearnedRouter
from besteffort.routers.prediction import predict_latency
from besteffort.routers.registry import ROUTERS, TUNABLE, candidates, make_router, stack_routers

__all__ = [
    "ROUTERS",
    "TUNABLE",
    "BelievingRouter",
    "DeadlineRouter",
    "GearRouter",
    "LadderRouter",
    "LearnedRouter",
    "PricedRouter",
    "RandomRouter",
    "ShortestQueueRouter",
    "StaticRouter",
    "candidates",
    "make_router",
    "predict_latency",
    "stack_routers",
]
