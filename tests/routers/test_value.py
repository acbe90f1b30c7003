"""Routers that weigh what a request earns against what it costs others."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from in_flight import built, choose, observe

from besteffort.errors import InputError
from besteffort.estimates.estimates import Estimates, Newcomer, Softness, estimate
from besteffort.estimates.rule import NUMBERS, rule_values
from besteffort.observation import Observation
from besteffort.routers import make_router

SHAPE, PARAMS = built()
BUSY = [(0, 0, 50), (0, 1, 300), (1, 0, 700), (1, 1, 20), (1, 0, 400), (2, 0, 100), (2, 1, 900), (2, 1, 60), (2, 0, 10)]
FREE = dict.fromkeys(NUMBERS, 0.0) | {"width": 0.02, "in_flight_width": 0.2, "harm_floor": 1e-6, "head_room": 1.0}
PRICES = {"rates": [20.0, 200.0], "prices": np.array([[0.1, 0.3, 0.2], [0.8, 1.5, 4.0]])}


def value(**numbers: float) -> Any:
    return make_router("value", SHAPE, **(FREE | PRICES | numbers))


@jax.jit
def estimated(observation: Observation, softness: Softness) -> Estimates:
    return estimate(Newcomer.of(observation), observation.in_flight, PARAMS, softness, xp=jnp)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_argmax_of_its_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = {name: float(rng.uniform(0.05, 0.4)) for name in FREE}
    router = value(**numbers)
    chosen = set()
    for deadline_s in np.geomspace(0.05, 2.0, 12):
        rate = float(rng.uniform(1, 500))
        seen = observe(BUSY[: rng.integers(10)], deadline_s=deadline_s)._replace(arrival_rate=rate)
        load = np.clip(rate / np.asarray(PARAMS.priors.capacity[0]), 0.08, 12.0)
        reserve = numbers["reserve"] + numbers["reserve_slope"] * np.log(load)
        found = estimated(seen, Softness(reserve, numbers["width"], numbers["in_flight_width"]))
        occupancy = seen.instance_batch_sizes.mean(0) / 4
        worth = rule_values(router.rule, found, 0, rate, occupancy, deadline_s, PARAMS, jnp)
        chosen.add(choose(router, seen))
        assert choose(router, seen) == int(np.argmax(worth))
    assert len(chosen) > 1


def test_harm_keeps_it_away_from_those_who_would_be_late() -> None:
    long_prompt = observe([(2, 0, 100), (2, 1, 100)], prompt=2_000, deadline_s=5.0)
    view = long_prompt.in_flight
    assert view.present[2].sum() == 1
    tight = long_prompt._replace(in_flight=dataclasses.replace(view, deadline_factor=np.full(view.task.shape, 0.45)))
    assert choose(value(), tight) == 2
    assert choose(value(harm_weight=1.0), long_prompt) == 2
    assert choose(value(harm_weight=1.0), tight) == 1


@pytest.mark.parametrize(
    "numbers",
    [
        {"latency_price": 0.3, "latency_exponent": 2.0},
        {"occupancy_price": 0.3, "occupancy_exponent": 2.0},
        {"time_price": 1.0, "head_room": 2.0},
    ],
)
def test_prices_that_grow_with_the_load_lead_to_smaller_models(numbers: dict[str, float]) -> None:
    router = value(**numbers)
    capacity = float(PARAMS.priors.capacity[-1])
    sent = [(2, 0, 100), (2, 1, 100)]
    chosen = [choose(router, observe(sent)._replace(arrival_rate=load * capacity)) for load in (0.0, 0.5, 8.0, 20.0)]
    assert chosen[:2] == [2, 2]
    assert 2 > chosen[2] >= chosen[3]


@pytest.mark.parametrize("rate", [0.0, 10.0, 20.0, 40.0, 1e4])
def test_marginal_is_an_argmax_at_the_price_of_the_rate(rate: float) -> None:
    prices = np.array([[0.0, 0.0, 0.0], [0.5, 1.0, 2.0], [3.0, 4.0, 5.0]])
    router = make_router("marginal", SHAPE, rates=[10.0, 20.0, 80.0], prices=prices)
    # 40 is halfway between 20 and 80 on a scale of logarithms.
    price = {0.0: prices[0], 10.0: prices[0], 20.0: prices[1], 40.0: prices[1:].mean(0), 1e4: prices[2]}[rate]
    for deadline_s in np.geomspace(0.05, 2.0, 8):
        seen = observe(BUSY, prompt=800, deadline_s=deadline_s)._replace(arrival_rate=rate)
        found = estimated(seen, Softness())
        assert choose(router, seen) == int(np.argmax(found.own - found.harm - price * found.work))


def test_marginal_without_prices_on_an_idle_cluster_takes_what_earns_most() -> None:
    router = make_router("marginal", SHAPE, rates=[1.0], prices=np.zeros((1, 3)))
    for deadline_s in np.geomspace(0.02, 2.0, 12):
        seen = observe(deadline_s=deadline_s)
        assert choose(router, seen) == int(np.argmax(estimated(seen, Softness()).own))


@pytest.mark.parametrize(("name", "numbers"), [("marginal", {}), ("value", FREE)])
@pytest.mark.parametrize("prices", [np.zeros((1, 2)), -np.ones((1, 3)), np.full((1, 3), np.nan)])
def test_prices_are_checked(name: str, numbers: dict[str, float], prices: np.ndarray) -> None:
    with pytest.raises(
        InputError,
        match=rf"Router `{name}`: `prices` has the shape \(1, .\); give finite prices of at least 0, for each",
    ):
        make_router(name, SHAPE, rates=[1.0], prices=prices, **numbers)
