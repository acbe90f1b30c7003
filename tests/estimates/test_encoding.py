"""Estimates as a network's input: the same in NumPy and JAX, of order one, and from live book-keeping."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.estimates.encoding import network_input
from besteffort.estimates.params import ServingParams
from besteffort.in_flight import InFlight
from besteffort.observation import EXOGENOUS, FEATURES, IN_FLIGHT, default_features, encode, input_size, needs_in_flight
from besteffort.policy import Policy
from besteffort.runs.config import load_situation
from besteffort.runs.experiment import TrainingConfig
from besteffort.runs.training import make_policy, make_training_problem
from besteffort.simulator.build import build
from besteffort.situation import Origin, Situation, Tenant

MODELS = ("opt-125m", "opt-1.3b", "opt-6.7b")


@pytest.fixture(scope="module")
def situation() -> Situation:
    paper = load_situation("paper")
    # Over so long that the made-up times of the tests, which no model takes, hardly count.
    view = dataclasses.replace(paper.view, features=FEATURES, slowdown_tau_s=1_000.0)
    tenants = (Tenant("gold", 3.0), Tenant("lead", 1.0))
    return dataclasses.replace(paper, view=view, origins=(Origin("near"), Origin("far")), tenants=tenants)


def flight_of(policy: Policy | Situation, origin: str | None = "far", tenant: str | None = "gold") -> InFlight:
    """Books with requests running and waiting, and `new`, which has just arrived from an origin, of a tenant."""
    flight = InFlight(policy)
    situation = flight.situation
    rng = np.random.default_rng(0)
    for index in range(60):
        at = 0.01 * index
        whose = (None, "gold", "lead")[index % 3]
        prompt = int(rng.integers(64, 193))
        flight.arrived(index, task=situation.task_names[index % 4], prompt_tokens=prompt, tenant=whose, at=at)
        flight.sent(index, MODELS[index % 3], index % 4, at=at)
        if index % 5:
            flight.tokens(index, int(rng.integers(1, 9)), at=at + 0.005)
    flight.arrived("new", task="arc_easy", prompt_tokens=100, origin=origin, tenant=tenant, at=0.61)
    return flight


@pytest.mark.parametrize(("origin", "tenant"), [("near", "gold"), ("far", "lead"), (None, None)])
def test_numpy_and_jax_read_the_same(situation: Situation, origin: str | None, tenant: str | None) -> None:
    problem = make_training_problem(situation, TrainingConfig())
    features = problem.features
    seen = flight_of(situation, origin, tenant).observation("new", at=0.61)
    assert tuple(feature.name for feature in features) == FEATURES
    live = network_input(seen, features, ServingParams.of(situation, rule=problem.rule))
    with jax.enable_x64(True):
        _, params = build(situation, None, history=1, rule=problem.rule)
        compiled = jax.jit(lambda seen: network_input(seen, features, params, jnp))(jax.tree.map(jnp.asarray, seen))
    np.testing.assert_allclose(compiled, live, rtol=1e-12, atol=1e-12)
    assert np.abs(live).max() < 5
    np.testing.assert_array_equal(live[-3:-1], [origin == "near", origin == "far"])
    assert live[-1] == {"gold": 1.5, "lead": 0.5, None: 1.0}[tenant]


def test_a_gateway_decides_by_what_the_network_reads(situation: Situation) -> None:
    """All features, each with a weight of its own."""
    problem = make_training_problem(situation, TrainingConfig())
    width = input_size(problem.features)
    for seed in range(8):
        kernel = np.random.default_rng(seed).normal(size=(width, 3))
        policy = make_policy(problem, ((kernel, np.zeros(3)),), {})
        flight = flight_of(policy, (None, "near", "far")[seed % 3], (None, "gold", "lead")[seed // 3])
        seen = flight.observation("new", at=0.61)
        values = network_input(seen, problem.features, ServingParams.of(situation, rule=problem.rule)) @ kernel
        assert flight.decide("new", at=0.61).model == MODELS[values.argmax()]


def test_what_needs_the_requests_in_flight() -> None:
    assert needs_in_flight(("task", "prompt_tokens"))
    assert needs_in_flight(("harm",))
    assert not needs_in_flight(FEATURES[:6])
    assert set(EXOGENOUS) & set(IN_FLIGHT) == {"work", "load", "prompt_tokens"}


@pytest.mark.parametrize("name", IN_FLIGHT)
def test_what_is_missing_is_one_sentence(situation: Situation, name: str) -> None:
    features = default_features(4, 3, 4, 32, 200.0, (name,))
    params = ServingParams.of(situation)
    plain = flight_of(situation).observation("new", at=0.61)._replace(in_flight=None, prompt_tokens=None)
    said = f"The feature `{name}` needs the requests in flight, which this observation does not show"
    with pytest.raises(InputError, match=said):
        network_input(plain, features, params)
    with pytest.raises(InputError, match=said):
        encode(plain, features)


def test_a_value_without_a_rule_is_one_sentence(situation: Situation) -> None:
    seen = flight_of(situation).observation("new", at=0.61)
    for features in (
        default_features(4, 3, 4, 32, 200.0, ("value",)),
        default_features(4, 3, 4, 32, 200.0, FEATURES, origins=2),
    ):
        with pytest.raises(InputError, match=r"The feature `value` needs a rule, which these parameters lack; .*\.$"):
            network_input(seen, features, ServingParams.of(situation))


def test_parameters_without_laws_are_refused(situation: Situation) -> None:
    features: Any = default_features(4, 3, 4, 32, 200.0, ("own",))
    _, params = build(situation, None, history=1, estimates=False)
    with pytest.raises(InputError, match="need the laws of output lengths"):
        network_input(flight_of(situation).observation("new"), features, params, jnp)
