"""Routers by name, and the settings that tuning tries."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from cluster import SHAPE, observe, params

from besteffort.errors import InputError
from besteffort.routers import ROUTERS, TUNABLE, candidates, make_router

PLAN: dict[str, Any] = {"rates": [1.0, 2.0], "shares": np.full((2, SHAPE.tasks, SHAPE.models), 1 / 3), "head_room": 1.0}


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


@pytest.mark.parametrize("name", TUNABLE)
@pytest.mark.parametrize("models", [1, 2, 3, 7])
def test_candidates_are_distinct_valid_and_stack(name: str, models: int) -> None:
    shape = dataclasses.replace(SHAPE, models=models, max_batch=32)
    settings = candidates(name, shape)
    assert len({repr(setting) for setting in settings}) == len(settings) <= 100
    plan = {"rates": [1.0], "shares": np.full((1, shape.tasks, models), 1 / models)} if name == "gear" else {}
    routers = [make_router(name, shape, **plan, **setting) for setting in settings]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *routers)
    assert all(leaf.shape[0] == len(settings) for leaf in jax.tree.leaves(stacked))


def test_what_is_not_tuned_has_one_setting() -> None:
    for name in set(ROUTERS) - set(TUNABLE):
        assert candidates(name, SHAPE) == [{}]


def test_ladders_reach_from_hardly_ever_to_nearly_always() -> None:
    shape = dataclasses.replace(SHAPE, max_batch=32)
    thresholds = np.array([setting["thresholds"] for setting in candidates("ladder", shape)])
    assert thresholds.min() == 1
    assert thresholds.max() == 48
    assert len(thresholds) == 81


def test_deadline_without_reserve_is_reserve_zero() -> None:
    observation = observe([[1, 1, 1], [1, 1, 1]])
    key = jax.random.key(0)
    plain = make_router("deadline", SHAPE)
    reserved = make_router("deadline-reserve", SHAPE, reserve=0.0)
    for deadline_s in np.geomspace(0.05, 3, 30):
        seen = observation._replace(deadline_s=jax.numpy.array(deadline_s))
        assert plain.route(seen, params(), key) == reserved.route(seen, params(), jax.random.key(1))
