"""Routers by name, and the numbers that tuning sets."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from cluster import SHAPE, observe, params
from hypothesis import given
from hypothesis import strategies as st

from besteffort.errors import InputError
from besteffort.estimates.rule import UNTRAINED
from besteffort.routers import TUNED, make_router, settings_at, steps_to
from besteffort.routers.registry import dimensions
from besteffort.simulator.types import EnvShape

PLAN: dict[str, Any] = {"rates": [1.0, 2.0], "shares": np.full((2, SHAPE.tasks, SHAPE.pools), 1 / 3), "head_room": 1.0}

VALUE: dict[str, Any] = {**UNTRAINED, "rates": [1.0, 2.0], "prices": np.zeros((2, SHAPE.pools))}


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("stattic", {}, "Unknown router `stattic`; choose from static, random"),
        ("static", {}, "Router `static` takes model, but was given nothing"),
        ("random", {"price": 1.0}, "Router `random` takes no settings, but was given price"),
        ("static", {"model": 3}, "`model` is 3; choose an index from 0 to 2"),
        ("ladder", {"thresholds": [1.0]}, "`thresholds` is .* give 2 batch sizes"),
        ("ladder", {"thresholds": [1.0, -1.0]}, "`thresholds`"),
        ("deadline-reserve", {"reserve": 1.0}, "`reserve` is 1.0; give a share from 0 to below 1"),
        ("gear", {**PLAN, "rates": [2.0, 1.0]}, "`rates` are not ascending"),
        ("marginal", {"rates": [2.0, 1.0], "prices": np.zeros((2, 3))}, "Router `marginal`: `rates` are not ascending"),
        ("value", VALUE | {"rates": [2.0, 1.0]}, "Router `value`: `rates` are not ascending"),
        ("value", VALUE | {"width": 0.0}, "Router `value`: `width` is 0.0; give a finite number of at least 1e-06"),
        ("value", VALUE | {"harm_floor": 0.0}, "`harm_floor` is 0.0; give a finite number of at least 1e-06"),
        ("value", VALUE | {"head_room": 0.0}, "`head_room` is 0.0; give a finite number of at least 1e-06"),
        ("value", VALUE | {"occupancy_price": -0.1}, "`occupancy_price` is -0.1; give a finite number of at least 0"),
        ("value", VALUE | {"giving_up": -0.1}, "`giving_up` is -0.1; give a"),
        ("value", VALUE | {"giving_up": 1.1}, "`giving_up` is 1.1; give a share from 0 to 1"),
        ("value", VALUE | {"reserve": float("inf")}, "Router `value`: `reserve` is inf; give a finite number"),
        ("gear", {**PLAN, "shares": np.full((2, 2, 2), 0.5)}, r"`shares` has the shape \(2, 2, 2\); .* 3 models"),
        ("gear", {**PLAN, "shares": np.full((2, 2, 3), 0.5)}, "sum to one over the models"),
        ("gear", {**PLAN, "head_room": 0.0}, "`head_room` is 0.0; give a positive factor"),
        ("priced", {"price": -1.0, "reserve": 0.0, "width": 0.0}, "`price` is -1.0"),
        ("priced", {"price": float("nan"), "reserve": 0.0, "width": 0.0}, "`price` is nan"),
        ("priced", {"price": 0.1, "reserve": 2.0, "width": 0.0}, "Router `priced`: `reserve` is 2.0"),
        ("priced", {"price": 0.1, "reserve": 0.0, "width": -0.1}, "`width` is -0.1; give a finite number"),
        ("priced", {"price": 0.1, "reserve": 0.0}, "takes price, reserve, width, but was given price, reserve"),
    ],
)
def test_bad_settings_are_refused(name: str, numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_router(name, SHAPE, **numbers)


def shape_with(models: int) -> EnvShape:
    return dataclasses.replace(SHAPE, pools=models, max_batch=32, queue_capacity=16)


STEPS = st.floats(-1e6, 1e6, allow_nan=False) | st.floats(-4.0, 4.0)


@pytest.mark.parametrize("name", TUNED)
@given(st.sampled_from([1, 2, 3, 7]), st.data())
def test_any_steps_lead_to_valid_settings_and_back(name: str, models: int, data: st.DataObject) -> None:
    shape = shape_with(models)
    count = dimensions(name, shape)
    settings = settings_at(name, shape, np.array(data.draw(st.lists(STEPS, min_size=count, max_size=count))))
    shares, prices = np.full((1, shape.tasks, models), 1 / models), np.ones((1, models))
    plans = {"gear": {"rates": [1.0], "shares": shares}, "value": {"rates": [1.0], "prices": prices}}
    make_router(name, shape, **plans.get(name, {}), **settings)
    again = settings_at(name, shape, steps_to(name, shape, settings))
    for number in TUNED[name](shape):
        values = np.atleast_1d(settings[number.name])
        assert ((values >= number.low) & (values <= number.high)).all()
        np.testing.assert_allclose(again[number.name], settings[number.name], rtol=1e-3)


@pytest.mark.parametrize("name", TUNED)
def test_no_steps_lead_to_the_start(name: str) -> None:
    shape = shape_with(3)
    steps = np.zeros(dimensions(name, shape))
    settings = settings_at(name, shape, steps)
    for number in TUNED[name](shape):
        np.testing.assert_allclose(settings[number.name], number.start, rtol=1e-3)
    np.testing.assert_allclose(steps_to(name, shape, settings), steps, atol=1e-3)


def test_a_step_adds_or_multiplies() -> None:
    shape = shape_with(3)
    assert settings_at("deadline-reserve", shape, np.array([0.5])) == {"reserve": pytest.approx(0.45)}
    assert settings_at("priced", shape, np.array([1.0, 0.5, -1.0])) == pytest.approx(
        {"price": 0.45, "reserve": 0.1, "width": 0.016}
    )
    assert settings_at("ladder", shape, np.array([0.0, 1.0])) == {"thresholds": [32.0, 24.0]}


def test_settings_outside_the_range_count_as_its_end() -> None:
    shape = shape_with(3)
    steps = steps_to("priced", shape, {"price": 0.0, "reserve": -1.0, "width": 5.0})
    assert settings_at("priced", shape, steps) == {"price": 0.001, "reserve": 0.0, "width": 1.0}


def test_deadline_without_reserve_is_reserve_zero() -> None:
    observation = observe([[1, 1, 1], [1, 1, 1]])
    key = jax.random.key(0)
    plain = make_router("deadline", SHAPE)
    reserved = make_router("deadline-reserve", SHAPE, reserve=0.0)
    for deadline_s in np.geomspace(0.05, 3, 30):
        seen = observation._replace(deadline_s=jax.numpy.array(deadline_s))
        assert plain.route(seen, params(), key) == reserved.route(seen, params(), jax.random.key(1))
