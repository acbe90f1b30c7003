"""The gateway's core in virtual time: with the tables' lengths it is the simulator, and nothing is left in the end."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("experiments", reason="needs a checkout")

from besteffort.demo.fleet import paces
from besteffort.opt.engine import Part
from besteffort.opt.runtime import Buckets
from besteffort.opt.virtual import VirtualEngine
from besteffort.profile import load_profile
from besteffort.profiling.measure import Measurement, Point, Sampler
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


def test_answers_end_where_models_end_them(engine: VirtualEngine, situation: Situation) -> None:
    """Whatever the list says of their lengths."""
    listed = live.listed(Poisson(load=0.5), situation, 60, 5)
    lengths = listed.requests.output_tokens
    told = dataclasses.replace(listed.requests, output_tokens=np.ones_like(lengths))
    always = live.static_contenders(situation)["always laptop-1m"]
    played = live.play(engine, always, dataclasses.replace(listed, requests=told), situation)
    assert played.right.sum() > 20
    assert (played.result.output_tokens[played.right] == lengths[played.right]).all()
    assert played.left == 0


def test_the_gauge_tells_the_pace(engine: VirtualEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose timer runs three times as fast as it did."""
    sampler = Sampler(engine, every=1, memory_s=1e9)
    ticks = itertools.count()
    monkeypatch.setattr("besteffort.profiling.measure.time.process_time", lambda: 3.0 * next(ticks))
    points = [point for rig in sampler._rigs.values() for point in rig.points(())]
    sampler.take([Measurement(point, 1.0, (1.0, 1.0), 9, 0.0, 1.0) for point in points])
    assert [sampler.gauge(name) for name in engine.models] == pytest.approx([3.0] * 3)
    assert all(len(factors) == 1 for factors in sampler.factors.values())
    assert Point("laptop-1m", "prefill", 16) in points


def test_tables_are_corrected_by_what_iterations_take() -> None:
    rng = np.random.default_rng(0)
    buckets = Buckets((1, 2, 4), (16, 18), (18,))
    alone = dataclasses.replace(
        load_profile("laptop").models[0],
        decode=((1, 1.0), (2, 2.0), (3, 3.0), (4, 3.0)),
        prefill=((1, 4.0), (16, 4.0), (17, 5.0), (18, 5.0)),
    )
    factors = {1: 0.9, 2: 1.1, 3: 1.0, 4: 1.0}
    rows = []
    for _ in range(2000):
        decoding, prompts = int(rng.integers(0, 5)), rng.choice([5, 16, 18], int(rng.integers(0, 4))).tolist()
        seconds = dict(alone.decode).get(decoding, 0.0) * factors.get(decoding, 0.0)
        seconds += sum(0.8 * 4.0 if tokens <= 16 else 1.0 * 5.0 for tokens in prompts)
        rows.append((decoding, [(0, tokens) for tokens in prompts], max(seconds, 1e-9)))
    rows = [row for row in rows if row[0] or row[1]]
    found = live._corrected(alone, buckets, rows)
    assert [size for size, _ in found.decode] == [1, 2, 3, 4]
    assert [each_s for _, each_s in found.decode] == pytest.approx([0.9, 2.2, 3.0, 3.0], rel=0.02)
    assert [each_s for _, each_s in found.prefill] == pytest.approx([3.2, 3.2, 5.0, 5.0], rel=0.02)


def test_the_engine_tells_how_long_iterations_take(engine: VirtualEngine, situation: Situation) -> None:
    told: list[tuple[str, int, list[Part], float]] = []
    engine.timed = lambda *iteration: told.append(iteration)
    listed = live.listed(Poisson(load=0.5), situation, 20, 1)
    live.play(engine, live.static_contenders(situation)["always laptop-1m"], listed, situation, exact=True)
    engine.timed = lambda *iteration: None
    assert sum(len(parts) for _, _, parts, _ in told) == 20
    # A request decodes once for each token but the first.
    assert sum(decoding for _, decoding, _, _ in told) == int((listed.requests.output_tokens - 1).sum())
    assert all(seconds == paces(situation)[model](decoding, parts) for model, decoding, parts, seconds in told)
