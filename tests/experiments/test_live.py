"""The gateway's core in virtual time: with the tables' lengths it is the simulator, and nothing is left in the end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("experiments", reason="needs a checkout")

from besteffort.demo.fleet import paces
from besteffort.opt.virtual import VirtualEngine
from besteffort.profile import load_profile
from besteffort.routers.heuristics import DeadlineRouter
from besteffort.runs.untrained import default_policy
from besteffort.situation import Situation
from besteffort.workload.config import Poisson
from experiments import live
from experiments.live import Contender

pytestmark = pytest.mark.checkout


@pytest.fixture(scope="module")
def situation() -> Situation:
    return live.situation_with(tuple(load_profile("laptop").models))


@pytest.fixture(scope="module")
def engine(situation: Situation) -> Iterator[VirtualEngine]:
    made = live.make_engine(paces(situation), warm=False)
    yield made
    made.close()


def test_models_have_a_device_each(situation: Situation) -> None:
    assert (situation.fleet.slowdown == 1).all()


@pytest.mark.parametrize("name", ["always laptop-1m", "untrained", "deadline"])
def test_the_core_is_the_simulator(engine: VirtualEngine, situation: Situation, name: str) -> None:
    contenders = live.static_contenders(situation)
    contenders["untrained"] = Contender(default_policy(situation))
    contenders["deadline"] = Contender(default_policy(situation), rule=DeadlineRouter())
    # A model alone is overloaded, so that it rejects.
    load = 9.0 if name.startswith("always") else 1.5
    listed = live.listed(Poisson(load=load), situation, 150, 3)
    played = live.play(engine, contenders[name], listed, situation, exact=True)
    model = live.simulated(contenders[name], listed, situation)
    assert played.left == 0
    np.testing.assert_array_equal(played.result.model[~model.rejected], model.model[~model.rejected])
    np.testing.assert_array_equal(played.result.rejected, model.rejected)
    assert model.rejected.any() == name.startswith("always")
    np.testing.assert_allclose(played.result.latency_s, model.latency_s, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(played.result.first_token_s, model.first_token_s, rtol=1e-9, atol=1e-9)
    # The models were judged on other cases.
    everything = np.ones(len(listed.cases), bool)
    shares = live.right_and_in_time(played.result, played.right, everything)
    assert shares == pytest.approx(live.expected_right(situation, model, everything), abs=0.1)
