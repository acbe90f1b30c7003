"""A small problem that all adapters share, so that they share its compiled programs."""

from __future__ import annotations

import pytest

from besteffort.adapters.wrapped import Credit, WrappedEnv
from besteffort.observation import default_features
from besteffort.runs.config import load_situation
from besteffort.simulator.build import build
from besteffort.simulator.environment import ServingEnvironment
from besteffort.situation import Situation
from besteffort.workload.arrivals import Poisson
from besteffort.workload.synthetic_workload import synthetic

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
    features = default_features(shape.tasks, shape.models, shape.replicas, shape.max_batch, RATE)
    return WrappedEnv(ServingEnvironment(shape), params, features, credit)
