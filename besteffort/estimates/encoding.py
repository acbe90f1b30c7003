"""Estimates as a network's input; for NumPy and JAX alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from besteffort.errors import InputError
from besteffort.estimates.estimates import DEFAULT_SOFTNESS, Estimates, Newcomer, estimate, slots
from besteffort.estimates.rule import rule_softness, rule_values
from besteffort.observation import ESTIMATES, Feature, Observation, encode


def network_input(observation: Observation, features: tuple[Feature, ...], params: Any, xp: Any = np) -> Any:
    """(inputs,) network input of one observation, with the estimates that features name.

    Args:
      observation: what a router sees; it shows the requests in flight if a feature needs them.
      features: features of the network, in order.
      params: the numbers that the router takes for granted, see `appraise`; not read where no feature is an estimate.
      xp: the array module, `numpy` or `jax.numpy`.

    Raises:
      InputError: if a feature needs the requests in flight, and the observation does not show them, or a rule, and the
        parameters have none.
    """
    estimates = None
    if observation.in_flight is not None and any(feature.name in ESTIMATES for feature in features):
        estimates = appraise(observation, params, xp)
    return encode(observation, features, xp, estimates=estimates)


def appraise(observation: Observation, params: Any, xp: Any = np) -> Estimates:
    """The estimates for the request of an observation that shows the requests in flight.

    Args:
      observation: what a router sees.
      params: the numbers that the router takes for granted, see `besteffort.estimates.estimates.estimate`. With a
        `rule`, its softness holds for all estimates, and they include the `value`.
      xp: the array module, `numpy` or `jax.numpy`.

    Raises:
      InputError: if the parameters have no laws of output lengths.
    """
    if getattr(params, "priors", None) is None:
        raise InputError(
            "Estimates need the laws of output lengths, which these parameters lack; build them with `estimates=True`."
        )
    rule, rate = params.rule, observation.arrival_rate
    view = observation.in_flight
    how = DEFAULT_SOFTNESS if rule is None else rule_softness(rule, rate, params, xp, view.observed_slowdown)
    found = estimate(Newcomer.of(observation), view, params, how, xp)
    if rule is None:
        return found
    # The count of now: batch sizes of the observation may have been read earlier.
    replicas = observation.instance_batch_sizes.shape[0] if params.pools is None else params.pools.placed.sum(0)
    occupancy = xp.asarray(view.batch_sizes) / (slots(params) * replicas)
    weight, deadline_s = observation.tenant_weight, observation.deadline_s
    value = rule_values(rule, found, observation.task, rate, occupancy, deadline_s, params, xp, weight)
    return found._replace(value=value)
