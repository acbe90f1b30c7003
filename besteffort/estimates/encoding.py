"""Estimates as a network's input; for NumPy and JAX alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from besteffort.errors import InputError
from besteffort.estimates.estimates import Estimates, Newcomer, estimate
from besteffort.observation import ESTIMATES, Feature, Observation, encode


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


def _estimates(observation: Observation, features: tuple[Feature, ...], params: Any, xp: Any) -> Estimates | None:
    """The estimates of an observation; None where no feature is one, or it shows no requests in flight."""
    if observation.in_flight is None or not any(feature.name in ESTIMATES for feature in features):
        return None
    if getattr(params, "priors", None) is None:
        raise InputError(
            "Estimates need the laws of output lengths, which these parameters lack; build them with `estimates=True`."
        )
    return estimate(Newcomer.of(observation), observation.in_flight, params, xp=xp)
