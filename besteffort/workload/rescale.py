"""Scales lists of requests in time and cuts windows out of them."""

from __future__ import annotations

import dataclasses

import numpy as np

from besteffort.errors import InputError
from besteffort.situation import Situation
from besteffort.workload.requests import Requests


def mean_rate(requests: Requests) -> float:
    """Requests per second, one over the mean gap; infinite if all arrive at one instant, or as good as at one."""
    span = float(requests.arrival_s[-1] - requests.arrival_s[0])
    return (len(requests) - 1) / span if span > 0 else float("inf")


def scale_time(requests: Requests, factor: float) -> Requests:
    """The same requests with all arrival times multiplied by `factor`, which stretches bursts. Deadlines stay.

    Raises:
      InputError: if the factor is not positive and finite.
    """
    if not (np.isfinite(factor) and factor > 0):
        raise InputError(f"Times cannot be scaled by {factor}; give a positive factor.")
    return dataclasses.replace(requests, arrival_s=requests.arrival_s * factor)


def scale_rate(requests: Requests, factor: float) -> Requests:
    """The same requests `factor` times as fast: `scale_time` by its inverse. Burstiness in numbers of requests stays.

    Raises:
      InputError: if the factor is not positive and finite.
    """
    if not (np.isfinite(factor) and factor > 0):
        raise InputError(f"Rates cannot be scaled by {factor}; give a positive factor.")
    return scale_time(requests, 1 / factor)


def to_mean_rate(requests: Requests, rate: float) -> Requests:
    """The same requests at a mean rate of `rate` requests per second.

    Raises:
      InputError: if the rate is not positive and finite, or all requests arrive at one instant.
    """
    present = mean_rate(requests)
    if not np.isfinite(present):
        raise InputError(
            "All requests of the list arrive at one instant, so that it has no rate to scale; give two different times."
        )
    return scale_rate(requests, rate / present)


def capacity(requests: Requests, situation: Situation) -> np.ndarray:
    """(pools,) requests per second that each pool sustains.

    `Situation.capacity` with these requests' own lengths in place of the situation's.
    """
    prefill = situation.fleet.prefill_table(int(requests.prompt_tokens.max()))
    return situation.capacity_at(prefill[:, requests.prompt_tokens].mean(axis=1), requests.output_tokens.mean())


def unit_load(requests: Requests, situation: Situation) -> float:
    """Requests per second at load 1, for requests of these lengths: `Situation.unit_load` with these."""
    return float(capacity(requests, situation)[situation.fleet.largest].sum())


def to_load(requests: Requests, situation: Situation, load: float) -> Requests:
    """The same requests at `load` times the largest model's capacity for requests of these lengths.

    Raises:
      InputError: as `to_mean_rate`.
    """
    return to_mean_rate(requests, load * unit_load(requests, situation))


def window(requests: Requests, start_s: float, end_s: float) -> Requests:
    """The requests that arrive in `[start_s, end_s)`, with times counted from `start_s`.

    Raises:
      InputError: if there is none.
    """
    first, end = np.searchsorted(requests.arrival_s, (start_s, end_s))
    if end <= first:
        raise InputError(
            f"No request arrives between {start_s:g} and {end_s:g} s; "
            f"the list spans {requests.arrival_s[0]:g} to {requests.arrival_s[-1]:g} s."
        )
    return requests.part(slice(first, end), start_s)
