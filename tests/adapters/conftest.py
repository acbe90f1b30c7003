"""A small problem that all adapters share, so that they share its compiled programs."""

from __future__ import annotations

import dataclasses

import pytest

from besteffort.adapters.wrapped import Credit, WrappedEnv
from besteffort.observation import FEATURES, default_features
from besteffort.runs.config import load_situation
from besteffort.simulator.build import build
from besteffort.simulator.environment import ServingEnvironment
from besteffort.situation import Cluster, Origin, Reward, Situation, Tenant
from besteffort.workload.arrivals import Poisson
from besteffort.workload.synthetic_workload import synthetic
from tests.made_up import make_rule

HORIZON = 40
RATE = 20.0  # requests per second, so that answers come within an episode


@pytest.fixture(scope="session")
def situation() -> Situation:
    return load_situation("paper")


@pytest.fixture(scope="session")
def problem(situation: Situation) -> WrappedEnv:
    return serving(situation)


def serving(
    situation: Situation, credit: Credit = "marginal", horizon: int = HORIZON, history: int = 256
) -> WrappedEnv:
    """The default situation under Poisson arrivals."""
    shape, params = build(situation, synthetic(situation, Poisson(RATE)), history=history, horizon=horizon)
    features = default_features(shape.tasks, shape.pools, shape.replicas, shape.max_batch, RATE)
    return WrappedEnv(ServingEnvironment(shape), params, features, credit)


@pytest.fixture(scope="session")
def seeing(situation: Situation) -> WrappedEnv:
    """All features, on a small cluster that is overloaded, where misses cost."""
    weights = (1.0, 3.0, 0.5, 2.0)
    crowded = dataclasses.replace(
        situation,
        cluster=Cluster(replicas=1, max_batch=4, queue_capacity=3),
        tasks=tuple(dataclasses.replace(task, weight=w) for task, w in zip(situation.tasks, weights, strict=True)),
        reward=Reward(soft_span=0.5, miss_penalty=0.4),
        view=dataclasses.replace(situation.view, features=FEATURES, slowdown_tau_s=2.0),
        origins=(Origin("near", 2.0), Origin("far")),
        tenants=(Tenant("gold", 3.0), Tenant("lead", 1.0, 2.0)),
    )
    load = synthetic(crowded, Poisson(300.0))
    shape, params = build(crowded, load, history=64, horizon=HORIZON, rule=make_rule(3))
    features = default_features(
        shape.tasks, shape.pools, 1, shape.max_batch, 50.0, FEATURES, largest_weight=3.0, origins=2
    )
    return WrappedEnv(ServingEnvironment(shape), params, features)
