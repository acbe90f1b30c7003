"""Names of the routers, what they do and what they take. Needs no JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from besteffort.estimates.rule import NUMBERS


@dataclasses.dataclass(frozen=True)
class RouterName:
    """What a router does, in a sentence, and the numbers that it takes.

    Attributes:
      description: what it does.
      settings: numbers that its user sets.
      derived: further numbers, which follow from the situation.
      rival: whether evaluations hold it against a learned router.
    """

    description: str
    settings: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()
    rival: bool = True


ROUTER_NAMES: Mapping[str, RouterName] = {
    "static": RouterName(
        "Sends every request to one model, given by its index; a model's name does the same.", ("model",)
    ),
    "random": RouterName("Sends each request to a model drawn uniformly."),
    "shortest-queue": RouterName("Sends each request to the model whose least-loaded replica has the smallest batch."),
    "gear": RouterName(
        "Draws models with shares planned for the estimated arrival rate times `head_room`.",
        ("head_room",),
        ("rates", "shares"),
    ),
    "ladder": RouterName("Sends each request to the largest model with a batch below its threshold.", ("thresholds",)),
    "deadline": RouterName("Sends each request to the largest model that is predicted to meet its deadline."),
    "deadline-reserve": RouterName(
        "As `deadline`, with a share of the deadline kept back for what the prediction misses.", ("reserve",)
    ),
    "priced": RouterName(
        "Maximises expected quality in time, less a price for latency; predictions may be off by `width`.",
        ("price", "reserve", "width"),
    ),
    "deadline-ahead": RouterName(
        "As `deadline`, predicting from the request's own prompt and what is ahead of it in flight."
    ),
    "deadline-reserve-ahead": RouterName("As `deadline-reserve`, predicting like `deadline-ahead`.", ("reserve",)),
    "priced-ahead": RouterName("As `priced`, predicting like `deadline-ahead`.", ("price", "reserve", "width")),
    "slackfit": RouterName(
        "Takes the best of the models in the slowest of `buckets` ranges of predicted latency that fits the deadline "
        "less a reserve (SuperServe's SlackFit).",
        ("reserve", "buckets"),
    ),
    "routebalance": RouterName(
        "Maximises quality less weighted shares of the largest predicted latency and of the largest cost "
        "(RouteBalance).",
        ("latency_weight", "cost_weight"),
    ),
    "least-busy": RouterName("Sends each request to the model with the fewest requests in flight (LiteLLM)."),
    "latency-based": RouterName(
        "Draws one of the models whose predicted latency is within `buffer` of the lowest (LiteLLM).", ("buffer",)
    ),
    "marginal": RouterName(
        "Maximises what a request is expected to earn, less the harm to those in flight and what its work would earn "
        "elsewhere, by the dual of the fluid programme at the estimated arrival rate.",
        derived=("rates", "prices"),
    ),
    "value": RouterName(
        "Maximises what a request is expected to earn, less the harm to those in flight and prices for latency, "
        "occupancy and instance-time, which grow with the load.",
        NUMBERS,
        ("rates", "prices"),
        rival=False,
    ),
}

RIVALS: tuple[str, ...] = tuple(name for name, about in ROUTER_NAMES.items() if about.rival)
