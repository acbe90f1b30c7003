"""The compiled simulator against the reference, on random lists of every kind."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np
import pytest

from besteffort.routers import StaticRouter
from besteffort.simulator.build import build
from besteffort.simulator.result import Result
from besteffort.simulator.simulate import simulate, simulate_arrays
from besteffort.situation import Cluster, Situation, Task
from besteffort.workload.requests import Requests
from tests.simulator.cases import (
    Case,
    Difference,
    Kind,
    Played,
    agree,
    compare,
    draw_case,
    draw_kinds,
    make_profile,
    simulate_by_reference,
)

KINDS = draw_kinds(22)
LISTS = 15
"""Of times, in horizons; of rewards, absolute: soft deadlines divide the error of a latency by the deadline."""


def marks(kind: Kind) -> list[pytest.MarkDecorator]:
    """Models that slow each other down are played iteration by iteration, which takes longer than to compile."""
    return [pytest.mark.optimised] if "slowdown" in kind.extras else []


@cache
def lists(index: int) -> tuple[tuple[Case, Result], ...]:
    """The lists of a kind, each with what the reference makes of it."""
    cases = (draw_case(KINDS[index], seed=1000 * index + k) for k in range(LISTS))
    return tuple((case, simulate_by_reference(case)) for case in cases)


def test_the_comparison_sees_every_difference() -> None:
    _, truth = lists(0)[0]
    played = Played.of(truth)
    assert compare(played, truth) == (0, 0.0, 0.0)
    served = int(np.flatnonzero(~truth.rejected)[0])

    def changed(name: str, value: float) -> Difference:
        column = getattr(played, name).copy()
        column[served] = value
        return compare(played._replace(**{name: column}), truth)

    assert changed("model", 6).outcomes == 1
    assert changed("replica", -1).outcomes == 1
    late = changed("first_token_s", played.first_token_s[served] + 0.5)
    assert late.time == pytest.approx(0.5 / max(truth.arrival_s[-1], np.nanmax(truth.completion_s)))
    assert changed("service_s", np.nan).time == np.inf
    assert changed("reward", truth.reward[served] - 0.25).reward == 0.25


@pytest.mark.parametrize("index", [pytest.param(i, marks=marks(kind), id=str(kind)) for i, kind in enumerate(KINDS)])
def test_random_lists_are_played_as_by_the_reference(index: int) -> None:
    cases, truths = zip(*lists(index), strict=True)
    agree(cases, truths)


def test_the_lists_are_as_nasty_as_they_should_be() -> None:
    assert len(KINDS) * LISTS >= 300
    assert {kind.models for kind in KINDS} == set(range(1, 8))
    assert {kind.replicas for kind in KINDS} == set(range(1, 9))
    for extra in ("slowdown", "context", "cache", "delay", "lag", "stale", "factors"):
        assert {kind.dyadic for kind in KINDS if extra in kind.extras} == {False, True}
    assert any(kind.queue_capacity == 0 for kind in KINDS)

    played = [(kind, case.requests, truth) for index, kind in enumerate(KINDS) for case, truth in lists(index)]
    turned_away = np.array([truth.rejected.mean() for _, _, truth in played])
    assert (turned_away > 0).mean() > 0.4
    assert (turned_away == 0).mean() > 0.2
    assert (turned_away > 0.5).any()
    assert np.mean([(truth.admission_s > truth.arrival_s).any() for _, _, truth in played]) > 0.8
    assert np.mean([(requests.output_tokens == 1).any() for _, requests, _ in played]) > 0.8
    assert np.mean([(np.diff(requests.arrival_s) == 0).any() for _, requests, _ in played]) > 0.5
    tied = [np.isin(truth.completion_s, r.arrival_s).any() for kind, r, truth in played if kind.dyadic]
    assert np.mean(tied) > 0.8


@pytest.mark.parametrize("index", [3, 8, 13], ids=lambda index: str(KINDS[index]))
def test_simulate_gives_the_same_by_either_backend(index: int) -> None:
    # One list at a time, which XLA compiles differently, and with the router run by JAX for the reference, too.
    case, truth = lists(index)[1]
    results = {
        backend: simulate(case.requests, case.situation, case.router, seed=case.seed, backend=backend)
        for backend in ("jax", "reference")
    }
    for name in ("model", "replica", "met", "rejected"):
        np.testing.assert_array_equal(getattr(results["jax"], name), getattr(results["reference"], name))
        np.testing.assert_array_equal(getattr(results["jax"], name), getattr(truth, name))
    for name in ("admission_s", "first_token_s", "completion_s", "latency_s", "reward"):
        np.testing.assert_allclose(getattr(results["jax"], name), getattr(truth, name), rtol=0, atol=1e-9)
        np.testing.assert_allclose(getattr(results["reference"], name), getattr(truth, name), rtol=0, atol=1e-9)


@pytest.mark.parametrize("x64", [False, True])
def test_long_contexts_are_counted_in_full(x64: bool) -> None:
    # 2^20 tokens held by each of eight requests over thousands of iterations: token-iterations exceed 32 bits.
    longest, n = 2**20, 8
    profile = make_profile(
        decode=np.full((1, n), 1 / 64), prefill=np.full((1, longest), 1.0), context_cost_s=np.array([2.0**-30])
    )
    requests = Requests(
        tasks=profile.task_names,
        arrival_s=np.arange(n) / 4,
        task=np.zeros(n),
        prompt_tokens=np.full(n, longest),
        output_tokens=20_000 + 1_000 * np.arange(n),
        deadline_s=np.ones(n),
    )
    situation = Situation(profile, Cluster(replicas=1, max_batch=n, queue_capacity=0), (Task("task0"),))
    truth = simulate(requests, situation, StaticRouter(0), backend="reference")
    with jax.enable_x64(x64):
        shape, params = build(situation, None, history=n, longest_prompt=longest, record=True)
        ours = simulate_arrays(requests, shape, params, StaticRouter(0), jax.random.key(0))
    np.testing.assert_allclose(ours.completion_s, truth.completion_s, rtol=1e-12 if x64 else 1e-6)
