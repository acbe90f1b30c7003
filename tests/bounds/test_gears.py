from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from besteffort.bounds.fluid import fluid_bound, throughput
from besteffort.bounds.gears import gear_plan, price_plan
from besteffort.situation import Cluster, Deadline, Task

FLAT = ((1, 1.0),)


def test_follows_the_bound_and_leaves_nobody_without_a_model(make_situation):
    # 1, 4 and 10 requests/s in time on the three models, of which the first task gains more.
    situation = make_situation([FLAT] * 3, [0.1, 0.25, 1.0], [(20.0, 50.0, 80.0), (60.0, 70.0, 80.0)])
    plan = gear_plan(situation)
    rates, shares = np.array(plan["rates"]), np.array(plan["shares"])
    assert plan["head_room"] == 1.0
    assert (rates[0], rates[-1]) == pytest.approx((0.1, 30.0))
    np.testing.assert_allclose(shares.sum(axis=2), 1.0)
    assert (shares >= 0).all()
    np.testing.assert_array_equal(shares[0], [[0, 0, 1], [0, 0, 1]])
    served = rates < 15.0
    np.testing.assert_allclose(shares[served], fluid_bound(situation, rates[served]).routing, atol=1e-9)


def test_what_cannot_be_served_goes_where_least_is_lost(make_situation):
    situation = make_situation([FLAT] * 2, [0.1, 1.0], [(70.0, 80.0)])
    plan = gear_plan(situation)
    # At 22 requests/s the small model serves 10 and the large one 1; the other half goes to the large one, too.
    np.testing.assert_allclose(plan["shares"][-1], [[10 / 22, 12 / 22]])


def test_nobody_in_time_is_no_error(make_situation):
    hopeless = {"deadline": Deadline(0.01, 0.0)}
    shares = np.array(gear_plan(make_situation([FLAT] * 2, [0.1, 1.0], [(70.0, 80.0)], tasks=[hopeless]))["shares"])
    np.testing.assert_allclose(shares.sum(axis=2), 1.0)


def test_plans_for_the_lengths_that_a_trace_shows(make_situation):
    task = {"output_tokens": (1, 101)}
    situation = make_situation([FLAT], [1e-6], [(80.0,)], tasks=[task], cluster=Cluster(replicas=1, max_batch=1))
    shown = dataclasses.replace(situation.tasks[0], mean_output_tokens=11.0)
    assert isinstance(shown, Task)
    for one, decodes in ((situation, 50), (dataclasses.replace(situation, tasks=(shown,)), 10)):
        assert throughput(one)[0] == pytest.approx(1 / decodes, rel=1e-4)
        assert gear_plan(one)["rates"][-1] == pytest.approx(2 / decodes, rel=1e-4)


def test_prices_rise_from_nothing_where_models_fill_up(make_situation):
    # The large model serves 1 request/s, the small one 4 for half the reward.
    situation = make_situation([FLAT] * 2, [0.25, 1.0], [(40.0, 80.0)])
    plan = price_plan(situation)
    rates, prices = np.array(plan["rates"]), np.array(plan["prices"])
    assert (rates[0], rates[-1]) == pytest.approx((0.1, 10.0))
    assert prices.shape == (48, 2)
    np.testing.assert_allclose(prices[rates < 0.3], 0.0, atol=1e-4)
    assert (np.diff(prices, axis=0) >= -1e-12).all()
    # Between, the large one's second decides between 1 and 0.5; in overload, all are worth what they earn.
    np.testing.assert_allclose(prices[np.abs(rates - 2.2).argmin()], [0.0, 0.5], atol=0.02)
    np.testing.assert_allclose(prices[-1], [2.0, 1.0], atol=0.02)


def test_prices_are_no_steps(make_situation):
    situation = make_situation([FLAT] * 2, [0.25, 1.0], [(40.0, 80.0)])
    exact = fluid_bound(situation, np.array(price_plan(situation)["rates"])).prices
    smooth = np.array(price_plan(situation)["prices"])
    assert np.diff(smooth, axis=0).max() < 0.25 * np.diff(exact, axis=0).max()


def test_nobody_in_time_costs_nothing(make_situation):
    hopeless = {"deadline": Deadline(0.01, 0.0)}
    situation = make_situation([FLAT] * 2, [0.1, 1.0], [(70.0, 80.0)], tasks=[hopeless])
    assert not np.any(price_plan(situation)["prices"])
