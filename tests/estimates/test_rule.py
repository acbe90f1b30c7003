"""The rule, term by term, in NumPy and JAX."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.estimates.estimates import Estimates
from besteffort.estimates.params import ServingParams
from besteffort.estimates.rule import NUMBERS, UNTRAINED, Rule, price_at, rule_softness, rule_values
from besteffort.runs.config import load_situation
from besteffort.simulator.build import build
from besteffort.situation import Reward, Situation
from tests.made_up import make_rule

PAPER = load_situation("paper")
WEIGHTS = (1.0, 3.0, 0.5, 2.0)
SITUATION = dataclasses.replace(
    PAPER,
    reward=Reward(soft_span=0.2, miss_penalty=0.3),
    tasks=tuple(dataclasses.replace(task, weight=w) for task, w in zip(PAPER.tasks, WEIGHTS, strict=True)),
)
PARAMS = ServingParams.of(SITUATION)
RATES, PRICES = np.array([1.0, 4.0, 64.0]), np.array([[0.0, 1.0], [2.0, 5.0], [3.0, 1.0]])


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.0, [0.0, 1.0]),
        (0.5, [0.0, 1.0]),
        (1.0, [0.0, 1.0]),
        (2.0, [1.0, 3.0]),  # halfway from 1 to 4 on a scale of logarithms
        (4.0, [2.0, 5.0]),
        (16.0, [2.5, 3.0]),
        (64.0, [3.0, 1.0]),
        (1e9, [3.0, 1.0]),
    ],
)
@pytest.mark.parametrize("xp", [np, jnp])
def test_prices_go_with_the_logarithm_of_the_rate(rate: float, expected: list[float], xp: Any) -> None:
    np.testing.assert_allclose(price_at(xp.asarray(RATES), xp.asarray(PRICES), xp.asarray(rate), xp), expected)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("rate", [0.0, 1.0, 7.0, 1e9])
def test_one_rate_has_its_price_everywhere(rate: float, xp: Any) -> None:
    np.testing.assert_array_equal(price_at(xp.asarray(RATES[1:2]), xp.asarray(PRICES[1:2]), rate, xp), [2.0, 5.0])


@pytest.mark.parametrize(("load", "counts_as"), [(0.0, 0.08), (0.08, 0.08), (1.0, 1.0), (math.e, math.e), (99.0, 12.0)])
def test_the_reserve_grows_with_the_load_of_all_models(load: float, counts_as: float) -> None:
    rule = make_rule(3, reserve=0.1, reserve_slope=-0.04)
    softness = rule_softness(rule, load * PARAMS.priors.capacity[0], PARAMS)
    assert softness.reserve == pytest.approx(0.1 - 0.04 * math.log(counts_as))
    assert (softness.width, softness.in_flight) == (rule.width, rule.in_flight_width)


def drawn(seed: int) -> tuple[Rule, Estimates, dict[str, Any]]:
    """A random rule, and what it may meet: loads beyond all bounds, harm that was rounded to below 0."""
    rng = np.random.default_rng(seed)
    task = int(rng.integers(4))
    own = rng.uniform(-0.3, PARAMS.quality[task]) * WEIGHTS[task]
    harm = np.append(rng.gamma(0.5, 0.3, 2), -1e-17)
    found = Estimates(
        own, harm, rng.uniform(0, 2, 3), np.geomspace(0.01, 50, 3), rng.uniform(0, 1, 3), rng.gamma(1.0, 1.0, 3)
    )
    met = {
        "task": task,
        "arrival_rate": rng.choice([0.0, 5.0, 60.0, 1e3]),
        "occupancy": rng.uniform(0, 2, 3),
        "deadline_s": rng.uniform(0.1, 3.0),
    }
    return make_rule(3, **{name: float(rng.uniform(0.05, 1.0)) for name in NUMBERS}), found, met


def by_hand(rule: Rule, found: Estimates, task: int, arrival_rate: float, occupancy: Any, deadline_s: float) -> Any:
    """The formula as the module states it, one model after the other in plain numbers."""
    values = []
    gap = np.mean([weight * (max(row) - min(row)) for weight, row in zip(WEIGHTS, PARAMS.quality, strict=True)])
    for model in range(3):
        load = min(max(found.load[model], 0.08), 12.0)
        harm = max(found.harm[model], 0.0)
        latency_price = rule.latency_price * load**rule.latency_exponent
        occupancy_price = rule.occupancy_price * load**rule.occupancy_exponent
        of_second = np.interp(
            math.log(max(rule.head_room * arrival_rate, 1e-9)), np.log(rule.rates), rule.prices[:, model]
        )
        price = gap * (latency_price * found.completion_s[model] / deadline_s + occupancy_price * occupancy[model])
        price += rule.time_price * of_second * found.work[model]
        worst, best = -0.3 * WEIGHTS[task], PARAMS.quality[task, model] * WEIGHTS[task]
        in_time = (found.own[model] - worst) / (best - worst)
        charge = 1 - rule.giving_up * (1 - in_time)
        values.append(found.own[model] - rule.harm_weight * harm * harm / (harm + rule.harm_floor) - charge * price)
    return values


@pytest.mark.parametrize("seed", range(8))
def test_values_are_those_of_the_formula(seed: int) -> None:
    rule, found, met = drawn(seed)
    values = rule_values(rule, found, **met, params=PARAMS)
    np.testing.assert_allclose(values, by_hand(rule, found, **met), rtol=1e-12)
    with jax.enable_x64(True):
        np.testing.assert_allclose(compiled(rule, found, met), values, rtol=1e-12)
    np.testing.assert_allclose(compiled(rule, found, met), values, rtol=1e-5, atol=1e-6)


def compiled(rule: Rule, found: Estimates, met: dict[str, Any]) -> jax.Array:
    """Values by JAX, in its present float type."""
    _, params = build(SITUATION, None, history=1, estimates=True)

    @jax.jit
    def values(rule: Rule, found: Estimates, met: dict[str, Any]) -> jax.Array:
        return rule_values(rule, found, **met, params=params, xp=jnp)

    return values(rule, found, met)


def value(situation: Situation, own: float, harm: float = 0.0, **numbers: float) -> float:
    """Value by the untrained numbers, but for some, of a model at work for long."""
    rule = make_rule(3, **numbers)
    found = Estimates(*(np.full(3, each) for each in (own, harm, 5.0, 2.0, 1.0, 3.0)))
    params = ServingParams.of(situation)
    return float(rule_values(rule, found, 1, 50.0, np.ones(3), 1.0, params)[0])


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_what_will_be_late_is_free_where_all_is_given_up(penalty: float) -> None:
    situation = dataclasses.replace(SITUATION, reward=Reward(miss_penalty=penalty))
    late = -3.0 * penalty
    assert value(situation, late, giving_up=1.0) == pytest.approx(late, abs=1e-12)
    charged = late - value(situation, late, giving_up=0.0)
    assert charged > 0.1
    assert late - value(situation, late, giving_up=0.75) == pytest.approx(charged / 4)
    # In time, all is charged.
    best = 3.0 * ServingParams.of(situation).quality[1, 0]
    assert best - value(situation, best, giving_up=1.0) == pytest.approx(charged)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_harm_as_large_as_the_floor_counts_half(weight: float) -> None:
    free = value(SITUATION, 1.0)
    for floor in (0.05, 0.2):
        numbers = {"harm_floor": floor, "harm_weight": weight}
        assert free - value(SITUATION, 1.0, harm=floor, **numbers) == pytest.approx(weight * floor / 2)
        assert free - value(SITUATION, 1.0, harm=1e3, **numbers) == pytest.approx(weight * 1e3, rel=1e-3)
        assert value(SITUATION, 1.0, harm=-1e-17, **numbers) == free


def test_every_untrained_number_counts() -> None:
    assert set(UNTRAINED) == set(NUMBERS)
    before = value(SITUATION, 0.5, harm=0.1)
    for name in set(NUMBERS) - {"reserve", "reserve_slope", "width", "in_flight_width"}:  # those of the softness
        assert value(SITUATION, 0.5, harm=0.1, **{name: UNTRAINED[name] * 0.9}) != before
