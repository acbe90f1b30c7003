"""Observed times against the tables: exactly 1 where the tables hold, alike in all that compare, forgotten in time."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Literal

import numpy as np
import pytest

from besteffort import sample_requests, workload
from besteffort.diagnosis.wrong_profiles import perturb_latency
from besteffort.errors import InputError
from besteffort.estimates.correction import HIGHEST, LOWEST, PRIOR, Comparison, compared, observed_slowdown
from besteffort.estimates.encoding import appraise
from besteffort.estimates.params import ServingParams
from besteffort.in_flight import InFlight
from besteffort.routers.learned import learned_router
from besteffort.runs.config import load_situation
from besteffort.runs.experiment import TrainingConfig
from besteffort.runs.training import make_training_problem
from besteffort.runs.untrained import default_policy
from besteffort.simulator.simulate import simulate
from besteffort.situation import Situation, View
from tests.estimates.lists import Seen, apart, compiled, draw_list, known, reference
from tests.estimates.test_agreement import KINDS, STREAMED, TOLERANCE, at, marks
from tests.simulator.cases import Case

LISTS = 3
BACKENDS: tuple[Literal["jax"], Literal["reference"]] = ("jax", "reference")
# Held tokens that cost, a limited cache, all extras with models that slow each other down; and two kinds not streamed.
EACH = [pytest.param(i, marks=marks(KINDS[i]), id=str(KINDS[i])) for i in (2, 5, 8, 11, 12)]
STREAMING = EACH[:3]


def comparing(case: Case, tau_s: float) -> Case:
    view = dataclasses.replace(case.situation.view, slowdown_tau_s=tau_s)
    return dataclasses.replace(case, situation=dataclasses.replace(case.situation, view=view))


def misled(situation: Situation, seed: int) -> Situation:
    """The situation as one believes it whose tables are wrong, each term of each model by a factor of its own."""
    rng = np.random.default_rng(seed)

    def scaled(points: tuple[tuple[float, float], ...], factor: float) -> tuple[tuple[float, float], ...]:
        return tuple((x, factor * seconds) for x, seconds in points)

    models = tuple(
        dataclasses.replace(
            model,
            decode=scaled(model.decode, rng.uniform(0.5, 1.5)),
            prefill=scaled(model.prefill, rng.uniform(0.5, 1.5)),
            context_cost_s=rng.uniform(0.5, 1.5) * model.context_cost_s,
            slowdown=tuple(1 + rng.uniform(0.5, 1.5) * (factor - 1) for factor in model.slowdown or ()),
        )
        for model in situation.profile.models
    )
    return dataclasses.replace(situation, profile=dataclasses.replace(situation.profile, models=models))


@cache
def lists(index: int, wrong: bool) -> tuple[tuple[Case, Seen], ...]:
    """Lists of a kind that compare times, in a world as believed or not, and what reference and live tell of them."""
    found = []
    for k in range(LISTS):
        seed = 1000 * index + k
        case = comparing(draw_list(KINDS[index], seed, streamed=index < len(STREAMED), limits=index % 3 == 1), 0.5 + k)
        # All have one, so that one program serves lists of both kinds.
        case = dataclasses.replace(case, assumed=misled(case.situation, seed) if wrong else case.situation)
        found.append((case, reference(case, live=True)))
    return tuple(found)


@pytest.mark.parametrize("index", EACH)
def test_all_three_agree_where_the_tables_are_wrong(index: int) -> None:
    cases, seen = zip(*lists(index, True), strict=True)
    found, models = compiled(cases)
    strayed = 0.0
    for lane, of_reference in enumerate(seen):
        np.testing.assert_array_equal(models[lane], of_reference.models)
        assert of_reference.estimates is not None
        assert of_reference.live is not None
        assert of_reference.estimates.observed_slowdown is not None
        assert max(apart(at(found, lane), of_reference.estimates).values()) <= TOLERANCE
        # Where models slow each other down, live sees who is busy only as far as requests are there.
        if "slowdown" not in KINDS[index].extras:
            assert max(apart(of_reference.live, of_reference.estimates).values()) <= TOLERANCE
        strayed = max(strayed, float(np.abs(of_reference.estimates.observed_slowdown - 1).max()))
    assert strayed > 0.05


@pytest.mark.parametrize("index", STREAMING)
def test_with_the_tables_of_the_world_the_slowdown_is_exactly_1(index: int) -> None:
    cases, seen = zip(*lists(index, False), strict=True)
    found, _ = compiled(cases)
    assert (found.observed_slowdown == 1).all()
    for case, of_reference in zip(cases, seen, strict=True):
        assert of_reference.estimates is not None
        assert of_reference.live is not None
        np.testing.assert_allclose(of_reference.estimates.observed_slowdown, 1, rtol=1e-9)
        if "slowdown" not in KINDS[index].extras:
            np.testing.assert_allclose(of_reference.live.observed_slowdown, 1, rtol=1e-9)
        plain = reference(dataclasses.replace(comparing(case, 0.0), assumed=None)).estimates
        assert plain is not None
        assert plain.observed_slowdown is None
        for name, wanted in known(plain).items():
            np.testing.assert_allclose(getattr(of_reference.estimates, name), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("index", EACH[3:])
def test_answers_that_are_not_streamed_come_close(index: int) -> None:
    """With the tables of the world, what is observed is within a tenth of 1."""
    right = np.concatenate([seen.live.observed_slowdown[50:] for _, seen in lists(index, False) if seen.live])
    assert 0.9 < np.median(right) < 1.1


def after(seconds: float, comparison: Comparison, tau_s: float) -> float:
    none = np.zeros(1)
    return float(observed_slowdown(compared(comparison, seconds, none, none, tau_s), tau_s)[0])


def test_what_is_not_seen_any_more_is_forgotten_within_the_stated_time() -> None:
    tau_s = 2.0
    # For a minute, four replicas took 30% longer than the tables say.
    seen = Comparison(np.zeros(1), np.zeros(1))
    for _ in range(600):
        seen = compared(seen, 0.1, np.array([0.12]), np.array([0.4]), tau_s)
    slowdown = float(observed_slowdown(seen, tau_s)[0])
    assert slowdown == pytest.approx(1.3, abs=0.005)
    kept_s = tau_s * np.log(1 + float(seen.assumed_s[0]) / (PRIOR * tau_s))
    # Kept for that long, when about half of it is left, then less by e with each time constant.
    left = after(kept_s, seen, tau_s) - 1
    assert left == pytest.approx(0.5 * (slowdown - 1), rel=0.02)
    assert after(kept_s + tau_s, seen, tau_s) - 1 == pytest.approx(left / np.e, rel=0.5)
    assert after(kept_s + 10 * tau_s, seen, tau_s) == pytest.approx(1, abs=1e-4)


def test_it_is_bounded_whatever_is_seen() -> None:
    for excess_s, assumed_s in ((1e9, 1e-9), (-1.0, 1.0), (-1e6, 1e6), (0.0, 0.0)):
        found = observed_slowdown(Comparison(np.array([excess_s]), np.array([assumed_s])), 2.0)
        assert LOWEST <= found[0] <= HIGHEST


def test_a_slow_model_is_told_live_whatever_order_tokens_come_in() -> None:
    """Four requests on one instance, whose iterations take twice the tables; their tokens come spread over 2 ms."""
    situation = load_situation("paper")
    view = dataclasses.replace(situation.view, slowdown_tau_s=2.0)
    rng = np.random.default_rng(0)
    flight = InFlight(dataclasses.replace(situation, view=view))
    for name in range(4):
        flight.arrived(name, task="piqa", prompt_tokens=100, at=0.0)
        flight.sent(name, "opt-1.3b", at=0.0)
    decode = situation.profile.decode_table(4)[1]
    prefill_s = situation.profile.prefill_table(100)[1, 100]
    # The first is read alone, as it found the instance idle; then the others join.
    ends_s = np.cumsum(2 * np.array([prefill_s, 3 * prefill_s + decode[1], *[decode[4]] * 30]))
    for number, end_s in enumerate(ends_s):
        who = range(1) if number == 0 else range(4)
        for name, late_s in sorted(((one, rng.uniform(0, 0.002)) for one in who), key=lambda pair: pair[1]):
            flight.tokens(name, at=end_s + late_s)
    flight.arrived("new", task="piqa", prompt_tokens=100, at=ends_s[-1] + 0.003)
    slowdown = flight.estimates("new", at=ends_s[-1] + 0.003).observed_slowdown
    busy_s = ends_s[-1] / 2
    # The prior holds it back a little.
    np.testing.assert_allclose(slowdown, [1, 1 + busy_s / (busy_s + PRIOR * 2), 1], rtol=0.01)


def test_estimates_follow_what_was_observed() -> None:
    """Where all models take as many times as long, estimates are those of tables that say so."""
    situation = load_situation("paper")
    slower = dataclasses.replace(situation, profile=perturb_latency(situation.profile, 0.5, "slower"))
    found = []
    for believed, factor in ((situation, 1.5), (slower, None)):
        flight = InFlight(believed)
        for name in range(40):
            flight.arrived(name, task="piqa", prompt_tokens=100, at=0.01 * name)
            flight.sent(name, name % 3, name % 4, at=0.01 * name)
            flight.tokens(name, 1 + name % 5, at=0.01 * name + 0.005)
        flight.arrived("new", task="piqa", prompt_tokens=120, at=0.5)
        seen = flight.observation("new", at=0.5)
        if factor:
            told = dataclasses.replace(seen.in_flight, observed_slowdown=np.full(3, factor))
            seen = seen._replace(in_flight=told)
        found.append(appraise(seen, ServingParams.of(believed)))
    corrected, wanted = found
    for name in ("own", "harm", "load", "first_token_s", "completion_s"):
        np.testing.assert_allclose(getattr(corrected, name), getattr(wanted, name), rtol=1e-9, atol=1e-9)
    # What answers in time take depends on deadlines, too.
    np.testing.assert_allclose(corrected.work, wanted.work, rtol=0.3)


def test_a_feature_that_nothing_feeds_is_refused() -> None:
    with pytest.raises(InputError, match=r"`view.features` names `observed_slowdown`.*set `view.slowdown_tau_s`"):
        View(features=("observed_slowdown",))


def test_both_backends_route_by_what_is_believed() -> None:
    """A rule whose tables say half: it decides otherwise than one that is told the truth, until it has compared."""
    believed = load_situation("paper")
    actual = dataclasses.replace(believed, profile=perturb_latency(believed.profile, 0.9, "slower"))
    requests = sample_requests(believed, workload.Poisson(500.0), 150, seed=0)
    router = learned_router(default_policy(believed))
    told = simulate(requests, actual, router)
    blind = simulate(requests, actual, router, assumed=believed)
    assert (told.model != blind.model).any()
    view = dataclasses.replace(actual.view, slowdown_tau_s=2.0)
    comparing = dataclasses.replace(actual, view=view)
    compiled_, plain = (
        simulate(requests, comparing, router, assumed=believed, backend=backend) for backend in BACKENDS
    )
    np.testing.assert_array_equal(compiled_.model, plain.model)
    np.testing.assert_allclose(compiled_.reward, plain.reward)
    assert (compiled_.model != blind.model).any()


def test_training_may_simulate_other_tables_than_are_believed() -> None:
    believed = load_situation("paper")
    actual = dataclasses.replace(believed, profile=perturb_latency(believed.profile, 0.3, "slower"))
    problem = make_training_problem(believed, TrainingConfig())
    env, params = dataclasses.replace(problem, actual=actual).environment(history=64)
    np.testing.assert_allclose(params.decode, 1.3 * params.believed.decode, rtol=1e-6)
    alone, same = problem.environment(history=64)
    assert same.believed is same
    assert env.shape == alone.shape
