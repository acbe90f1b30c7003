"""A rule that weighs what a request is expected to earn against what it costs others; for NumPy and JAX alike.

    value = own - harm_weight x harm x harm / (harm + harm_floor) - charge x price
    price = gap x (latency_price x load^latency_exponent x latency / deadline
                   + occupancy_price x load^occupancy_exponent x occupancy)
            + time_price x price of an instance-second x work
    charge = 1 - giving_up x (1 - chance to be in time)

`own`, `harm`, `work`, `load` and the latency are those of `besteffort.estimates.estimates.Estimates`; the occupancy of
a model is the mean batch size of its instances over `max_batch`, the gap that of `Priors`. Harm is what can be foreseen
of the costs to others: those in flight. Small harm counts less, since most of it is what is uncertain. Prices stand for
the rest, the requests to come. Where an answer will be late anyway there is less to charge for: under overload one
model is then given up, and the others keep their deadlines.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from besteffort.estimates.estimates import Estimates, Softness, all_together, weight_of

_LOADS = (0.08, 12.0)  # prices stay what they are beyond; a rate of 0 has no logarithm
_SMALLEST = 1e-9


@dataclasses.dataclass(frozen=True)
class Rule:
    """The numbers of a rule, of shape () unless said otherwise.

    Attributes:
      reserve: share of the deadline that is kept back at load 1 of all models together, see `Softness`.
      reserve_slope: what the reserve gains when the load grows e-fold.
      width: scale of the error that the predicted latency is taken to have, in deadlines, above 0.
      in_flight_width: the same for requests in flight, in remaining times, above 0.
      harm_weight: reward given up to spare the requests in flight the loss of 1.
      harm_floor: harm of which half counts, above 0.
      latency_price: gaps given up per deadline of latency, at load 1.
      latency_exponent: how that grows with the load.
      occupancy_price: gaps given up to take a place of a full model rather than one of an empty one, at load 1.
      occupancy_exponent: how that grows with the load.
      time_price: share of the price of instance-time that is charged.
      head_room: factor on the arrival rate at which that price is looked up.
      giving_up: share of all prices that is not charged for answers that will be late, from 0 to 1.
      rates, prices: (rates,) and (rates, pools) the price of instance-time, see `price_at`.
    """

    reserve: Any
    reserve_slope: Any
    width: Any
    in_flight_width: Any
    harm_weight: Any
    harm_floor: Any
    latency_price: Any
    latency_exponent: Any
    occupancy_price: Any
    occupancy_exponent: Any
    time_price: Any
    head_room: Any
    giving_up: Any
    rates: Any
    prices: Any

    def plain(self) -> Rule:
        """The same with Python's numbers, which a decision of its own reads faster than arrays of one."""
        return dataclasses.replace(self, **{name: float(getattr(self, name)) for name in NUMBERS})


ABOVE_ZERO = ("width", "in_flight_width", "harm_floor", "head_room")
"""Numbers that divide, or of which there is a logarithm."""

NUMBERS = tuple(field.name for field in dataclasses.fields(Rule) if field.name not in ("rates", "prices"))
"""The numbers of a rule that do not follow from the situation."""


UNTRAINED: Mapping[str, float] = {
    "reserve": -0.05,
    "reserve_slope": -0.017,
    "width": 0.053,
    "in_flight_width": 0.32,
    "harm_weight": 1.06,
    "harm_floor": 0.3,
    "latency_price": 0.036,
    "latency_exponent": -0.007,
    "occupancy_price": 0.062,
    "occupancy_exponent": 0.363,
    "time_price": 0.467,
    "head_room": 1.21,
    "giving_up": 0.66,
}
"""Numbers for any situation, found on random ones by `python -m experiments.untrained`."""


def price_at(rates: Any, prices: Any, rate: Any, xp: Any = np) -> Any:
    """(pools,) price of an instance-second of each model at an arrival rate, in units of rewards.

    Args:
      rates: (rates,) arrival rates in requests per second, ascending; prices in between are interpolated in the
        logarithm of the rate, and those beyond are the last.
      prices: (rates, pools) what an instance-second would earn at best if others had it, from the dual of the fluid
        programme (`besteffort.bounds.gears`): it stands for the requests to come.
      rate: () the arrival rate in requests per second.
      xp: the array module, `numpy` or `jax.numpy`.
    """
    last = rates.shape[-1] - 1
    if not last:
        return prices[0]
    if xp is np:
        index = min(max(int(rates.searchsorted(rate, "right")) - 1, 0), last - 1)
        low, high, now = (math.log(number) for number in (rates[index], rates[index + 1], max(rate, _SMALLEST)))
        return prices[index] + min(max((now - low) / (high - low), 0.0), 1.0) * (prices[index + 1] - prices[index])
    index = xp.clip((rates <= rate).sum() - 1, 0, last - 1)
    low, high = xp.log(rates[index]), xp.log(rates[index + 1])
    share = xp.clip((xp.log(xp.maximum(rate, _SMALLEST)) - low) / (high - low), 0.0, 1.0)
    return prices[index] + share * (prices[index + 1] - prices[index])


def time_price(
    rates: Any, prices: Any, arrival_rate: Any, params: Any, xp: Any = np, observed_slowdown: Any = None
) -> Any:
    """(pools,) the same as `price_at`, with models as fast as they were observed to be.

    Where all take `s` times as long, they are worth `1 / s` of what they are at `s` times the rate.
    """
    if observed_slowdown is None:
        return price_at(rates, prices, arrival_rate, xp)
    mean = all_together(None, params, xp) / all_together(observed_slowdown, params, xp)
    return price_at(rates, prices, arrival_rate * mean, xp) / mean


def rule_softness(rule: Rule, arrival_rate: Any, params: Any, xp: Any = np, observed_slowdown: Any = None) -> Softness:
    """How uncertain the rule takes predictions to be at an arrival rate, in requests per second."""
    load = arrival_rate / all_together(observed_slowdown, params, xp)
    log = math.log(min(max(load, _LOADS[0]), _LOADS[1])) if xp is np else xp.log(xp.clip(load, *_LOADS))
    return Softness(rule.reserve + rule.reserve_slope * log, rule.width, rule.in_flight_width)


def rule_values(
    rule: Rule,
    found: Estimates,
    task: Any,
    arrival_rate: Any,
    occupancy: Any,
    deadline_s: Any,
    params: Any,
    xp: Any = np,
    tenant_weight: Any = None,
) -> Any:
    """(pools,) value of each model to all requests, in units of rewards.

    Args:
      rule: the numbers.
      found: estimates of the request, with the rule's softness.
      task: () index of its task.
      arrival_rate: () estimated arrival rate in requests per second.
      occupancy: (pools,) mean batch size of each model's instances, over `max_batch`.
      deadline_s: () its deadline as known before the answer, in seconds.
      params: as of `besteffort.estimates.estimates.estimate`.
      xp: the array module, `numpy` or `jax.numpy`.
      tenant_weight: () factor on its rewards by its tenant; None where all count the same.
    """
    of_time = time_price(
        rule.rates, rule.prices, arrival_rate * rule.head_room, params, xp, observed_slowdown=found.observed_slowdown
    )
    return rule_value(rule, found, task, occupancy, deadline_s, of_time, params, xp, tenant_weight)


def rule_value(
    rule: Rule,
    found: Estimates,
    task: Any,
    occupancy: Any,
    deadline_s: Any,
    of_time: Any,
    params: Any,
    xp: Any = np,
    tenant_weight: Any = None,
) -> Any:
    """The same from the price of an instance-second; of all pools, or of one in plain numbers.

    Args:
      rule: as of `rule_values`.
      found: likewise.
      task: likewise.
      occupancy: likewise.
      deadline_s: likewise.
      of_time: price of an instance-second, see `time_price`.
      params: as of `rule_values`, of which the gap, weights, qualities and the penalty of a miss are read.
      xp: the array module, `numpy`, `jax.numpy` or `besteffort.estimates.scalars`.
      tenant_weight: as of `rule_values`.
    """
    load = xp.clip(found.load, *_LOADS)
    price = params.priors.gap * (
        rule.latency_price * load**rule.latency_exponent * (found.completion_s / deadline_s)
        + rule.occupancy_price * load**rule.occupancy_exponent * occupancy
    )
    price = price + rule.time_price * of_time * found.work
    weight, penalty = weight_of(task, tenant_weight, params), params.miss_penalty
    chance = (found.own + weight * penalty) / xp.maximum(weight * (params.quality[task] + penalty), _SMALLEST)
    harm = xp.maximum(found.harm, 0.0)
    harm = harm * harm / (harm + rule.harm_floor)
    return found.own - rule.harm_weight * harm - (1.0 - rule.giving_up * (1.0 - chance)) * price
