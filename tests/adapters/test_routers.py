"""Functions of NumPy as routers of the compiled simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from besteffort.adapters.routers import HostRouter, each, predicting, reading
from besteffort.estimates.estimates import Newcomer, estimate
from besteffort.estimates.params import ServingParams
from besteffort.evaluation.rollouts import play_routers
from besteffort.observation import Observation, default_features, encode
from besteffort.routers.baselines import LadderRouter
from besteffort.runs.experiment import TrainingConfig
from besteffort.runs.training import make_training_problem
from besteffort.simulator.result import Result
from besteffort.simulator.simulate import simulate
from besteffort.situation import Situation
from besteffort.workload.arrivals import Poisson
from besteffort.workload.requests import Requests
from besteffort.workload.sample import sample_workload
from besteffort.workload.synthetic_workload import synthetic

THRESHOLDS = [6.0, 3.0]


@pytest.fixture(scope="module")
def lists(situation: Situation) -> list[Requests]:
    workload = synthetic(situation, Poisson(600.0))
    return [sample_workload(workload, situation.task_names, 150, seed) for seed in range(2)]


def ladder(observation: Observation) -> int:
    """`LadderRouter(THRESHOLDS)` as anybody would write it."""
    smallest = observation.instance_batch_sizes.min(axis=0)
    return max([model for model in (1, 2) if smallest[model] < THRESHOLDS[model - 1]], default=0)


def same(one: Result, other: Result) -> None:
    np.testing.assert_array_equal(one.model, other.model)
    np.testing.assert_array_equal(one.replica, other.replica)
    np.testing.assert_array_equal(one.reward, other.reward)
    assert len(np.unique(one.model)) > 1


def test_a_function_decides_beside_ours(situation: Situation, lists: list[Requests]) -> None:
    """Two lists at once; the function is asked once per decision."""
    asked: list[int] = []

    def counted(observation: Observation) -> np.ndarray:
        asked.append(len(observation.task))
        return each(ladder)(observation)

    mine, ours = HostRouter(counted), LadderRouter(np.array(THRESHOLDS))
    played = play_routers(situation, lists, {"mine": [mine] * 2, "ours": [ours] * 2})
    same(played["mine"], played["ours"])
    assert asked == [8] * 150  # a block has eight lanes, be they filled or not


@pytest.mark.parametrize("backend", ["jax", "reference"])
def test_a_function_plays_a_list(situation: Situation, lists: list[Requests], backend: Any) -> None:
    results = [
        simulate(lists[0], situation, router, seed=0, backend=backend)
        for router in (HostRouter(each(ladder)), LadderRouter(np.array(THRESHOLDS)))
    ]
    same(*results)


def test_network_inputs_reach_a_model(situation: Situation) -> None:
    features = make_training_problem(situation, TrainingConfig()).features
    batch = np.arange(12).reshape(4, 3)
    one = Observation(2, batch.sum(axis=0), 40.0, batch, 0.4, 0.01)
    other = one._replace(task=1, arrival_rate=3.0)
    both = Observation(*(np.stack([np.asarray(a), np.asarray(b)]) for a, b in zip(one, other, strict=True)))
    seen: list[np.ndarray] = []

    class Model:
        def predict(self, inputs: np.ndarray, deterministic: bool) -> tuple[np.ndarray, None]:
            assert deterministic
            seen.append(inputs)
            return np.array([0, 2]), None

    assert predicting(Model(), features)(both).tolist() == [0, 2]
    assert reading(lambda inputs: inputs[:, :4].argmax(axis=1), features)(both).tolist() == [2, 1]
    assert seen[0].dtype == np.float32
    np.testing.assert_allclose(seen[0], [encode(one, features), encode(other, features)], rtol=1e-6)


def test_a_function_reads_estimates(situation: Situation, lists: list[Requests]) -> None:
    """A rule on two estimates, which the function works out by itself, or reads as a network's inputs."""
    params = ServingParams.of(situation)

    def priced(observation: Observation) -> int:
        found = estimate(Newcomer.of(observation), observation.in_flight, params)
        return int((found.own - found.harm - 10 * found.work).argmax())

    features = default_features(4, 3, 4, 32, 40.0, ("own", "harm", "work"))  # work in tenths of a second
    reads = reading(lambda inputs: (np.array([1, -1, -1]) @ inputs.reshape(-1, 3, 3)).argmax(axis=1), features, params)
    mine, theirs = (HostRouter(function, estimates=True) for function in (each(priced), reads))
    same(simulate(lists[0], situation, mine), simulate(lists[0], situation, theirs, backend="reference"))


def test_what_is_no_model_is_refused(situation: Situation, lists: list[Requests]) -> None:
    with pytest.raises(Exception, match="it must return for each an index from 0 to 2"):
        simulate(lists[0], situation, HostRouter(each(lambda observation: 3)), seed=0, backend="reference")
