"""Estimates as a network's input, in simulation and live; for NumPy and JAX alike."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from besteffort.errors import InputError
from besteffort.estimates.estimates import Estimates, Newcomer, estimate
from besteffort.estimates.in_flight import InFlight
from besteffort.observation import ESTIMATES, PER_MODEL, Feature, Observation, encode, value_of


def network_input(observation: Observation, features: tuple[Feature, ...], params: Any, xp: Any = np) -> Any:
    """(inputs,) network input of one observation, with the estimates that features name.

    Args:
      observation: what a router sees; it shows the requests in flight if a feature needs them.
      features: features of the network, in order.
      params: the numbers that the router takes for granted, see `besteffort.estimates.estimates.estimate`; not read
        where no feature is an estimate.
      xp: the array module, `numpy` or `jax.numpy`.

    Raises:
      InputError: if a feature needs the requests in flight, and the observation does not show them.
    """
    return encode(observation, features, xp, estimates=_estimates(observation, features, params, xp))


def features_of(
    flight: InFlight, request: Hashable, features: tuple[Feature, ...], *, at: float | None = None
) -> dict[str, Any]:
    """What `Policy.decide` and `Policy.values` take for a request that has arrived, with a policy's features.

        model = policy.decide(**features_of(flight, "a", policy.features))

    Per model, values are by name. The situation of `flight` says what estimates reckon with; where it is not the
    policy's, `Policy.check_fits` says whether it may be.

    Raises:
      InputError: if the request has not arrived.
    """
    names = {feature.name for feature in features} | {"task", "batch_sizes", "arrival_rate"}
    seen = flight.observation(request, at=at)
    estimates = flight.estimates(request, at=at) if names.intersection(ESTIMATES) else None
    models = flight.situation.profile.model_names
    found: dict[str, Any] = {"task": flight.situation.task_names[seen.task]}
    for name in names - {"task"}:
        value = value_of(name, seen, estimates)
        found[name] = dict(zip(models, value.tolist(), strict=True)) if name in PER_MODEL else value
    return found


def _estimates(observation: Observation, features: tuple[Feature, ...], params: Any, xp: Any) -> Estimates | None:
    """The estimates of an observation; None where no feature is one, or it shows no requests in flight."""
    if observation.in_flight is None or not any(feature.name in ESTIMATES for feature in features):
        return None
    if getattr(params, "priors", None) is None:
        raise InputError(
            "Estimates need the laws of output lengths, which these parameters lack; build them with `estimates=True`."
        )
    return estimate(Newcomer.of(observation), observation.in_flight, params, xp=xp)
