"""Routers on pools: the order in which pools are stated is free, and so is their number."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from besteffort.bounds.gears import gear_plan, price_plan
from besteffort.estimates.rule import UNTRAINED
from besteffort.evaluation.rollouts import play_routers
from besteffort.evaluation.tuning import maker
from besteffort.pools import Pool
from besteffort.profile import load_profile
from besteffort.routers.registry import make_router
from besteffort.simulator.build import build
from besteffort.situation import Cluster, Situation, Task
from besteffort.workload.arrivals import Poisson
from besteffort.workload.sample import sample_lists
from besteffort.workload.synthetic_workload import synthetic

PROFILE = load_profile("opt-a100")
CLUSTER = Cluster(replicas=2, max_batch=4, queue_capacity=4)
TASKS = (Task("piqa"), Task("lambada"))
SETTINGS: dict[str, dict[str, Any]] = {
    "shortest-queue": {},
    "ladder": {"thresholds": [5.0, 3.0]},
    "deadline": {},
    "priced": {"price": 0.2, "reserve": 0.1, "width": 0.05},
    "deadline-reserve-ahead": {"reserve": 0.2},
    "priced-ahead": {"price": 0.2, "reserve": 0.1, "width": 0.05},
    "slackfit": {"reserve": 0.1, "buckets": 4.0},
    "routebalance": {"latency_weight": 0.3, "cost_weight": 0.1},
}


def reordered(cluster: Situation, order: tuple[int, ...]) -> Situation:
    """A cluster's pools in another order."""
    pools = cluster.fleet.pools
    return dataclasses.replace(cluster, cluster=Cluster(), pools=tuple(pools[index] for index in order))


def test_the_order_of_pools_is_free() -> None:
    cluster = Situation(PROFILE, CLUSTER, TASKS)
    order = (2, 0, 1)
    pools = reordered(cluster, order)
    assert not pools.fleet.uniform
    assert pools.unit_load == cluster.unit_load
    plan = price_plan(cluster)
    lists = sample_lists([synthetic(cluster, Poisson(1.5 * cluster.unit_load))], cluster.task_names, 600, [3])
    results = []
    for situation, columns in ((cluster, (0, 1, 2)), (pools, order)):
        shape, _ = build(situation, None, history=1)
        prices = np.array(plan["prices"])[:, columns]
        values = {"rates": plan["rates"], "prices": prices}
        routers = {name: [make_router(name, shape, **numbers)] for name, numbers in SETTINGS.items()}
        routers["marginal"] = [make_router("marginal", shape, **values)]
        routers["value"] = [make_router("value", shape, **values, **UNTRAINED)]
        results.append(play_routers(situation, lists, routers))
    for name, expected in results[0].items():
        found = results[1][name]
        np.testing.assert_array_equal(np.array(order)[found.model], expected.model, err_msg=name)
        np.testing.assert_array_equal(found.replica, expected.replica, err_msg=name)
        np.testing.assert_allclose(found.latency_s, expected.latency_s, rtol=1e-4, err_msg=name)
        assert len(np.unique(expected.model)) > 1, name


def test_plans_follow_the_order_of_pools() -> None:
    cluster = Situation(PROFILE, CLUSTER, TASKS)
    pools = reordered(cluster, (2, 0, 1))
    for plan, axis in ((gear_plan, "shares"), (price_plan, "prices")):
        one, other = plan(cluster), plan(pools)
        np.testing.assert_allclose(other["rates"], one["rates"])
        np.testing.assert_allclose(other[axis], np.array(one[axis])[..., [2, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("name", ["static", "random", "gear", "least-busy", "latency-based"])
def test_every_router_plays_on_pools_of_any_number(name: str) -> None:
    pools = (
        Pool("far", "opt-1.3b", replicas=3, max_batch=8, network_delay_s=0.02),
        Pool("near", "opt-1.3b", replicas=1, max_batch=2, queue_capacity=1),
        Pool("small", "opt-125m", replicas=2, max_batch=4),
        Pool("alone", "opt-6.7b", replicas=1),
    )
    situation = Situation(PROFILE, Cluster(), TASKS, pools=pools)
    make = maker(situation)
    settings: dict[str, dict[str, Any]] = {
        "static": {"model": 1},
        "gear": {"head_room": 1.5},
        "latency-based": {"buffer": 0.5},
    }
    router = make(name, **settings.get(name, {}))
    lists = sample_lists([synthetic(situation, Poisson(200.0))], situation.task_names, 200, [1])
    result = play_routers(situation, lists, {name: [router]})[name]
    assert ((result.model >= 0) & (result.model < 4)).all()
    replicas = situation.fleet.replicas[result.model]
    assert (result.replica < replicas).all()
    if name == "static":
        assert (result.model == 1).all()
        assert result.rejected.any()
    else:
        assert len(np.unique(result.model)) > 1
