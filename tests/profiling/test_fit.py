"""Logs of the reference simulator with known terms, and logs that do not tell them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality
from besteffort.profiling import evidence
from besteffort.profiling.evidence import Curve
from besteffort.profiling.fit import Fitted, _curve_term, fit
from besteffort.profiling.log_simulation import UNLIMITED, Candidates, Player
from besteffort.profiling.server_log import RequestLog
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Cluster, Situation, Task
from besteffort.workload.requests import Requests

pytestmark = pytest.mark.optimised  # a log is simulated with 40 candidates again and again

KNOWN = Source("modelled", "a test")
N = 160  # of every log, so that programs are compiled once per largest batch
DECODE = ((1, 0.012), (64, 0.020))
PREFILL = ((1, 0.004), (4000, 0.3))


def served(
    rate: float,
    *,
    max_batch: int = 8,
    context_cost_s: float = 0.0,
    cache_tokens: int | None = None,
    chunk_tokens: int | None = None,
    share: float = 1.0,
    noise: float = 0.0,
    seed: int = 0,
    found: bool = False,
    longer: int = 0,
) -> RequestLog:
    """A log of the reference under Poisson arrivals at `rate`; times are noted `noise` seconds late, in the mean.

    With `found`, a prefix cache had most of every second prompt. With `longer`, all prompts are longer by a prefix of
    so many tokens, which it had.
    """
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate, N))
    prompts = np.clip(rng.lognormal(np.log(300), 0.7, N), 8, 2000).astype(int)
    outputs = np.clip(rng.lognormal(np.log(60), 0.6, N), 2, 400).astype(int)
    prompts += longer
    requests = Requests(("task",), arrival_s - arrival_s[0], np.zeros(N), prompts, outputs, np.ones(N))
    if longer:
        requests = dataclasses.replace(requests, cached_tokens=np.full(N, longer))
    if found:
        requests = dataclasses.replace(requests, cached_tokens=prompts * (np.arange(N) % 2) * 4 // 5)
    profile = Profile(
        format=1,
        name="known",
        device="none",
        models=(
            ModelProfile(
                "model",
                DECODE,
                PREFILL,
                context_cost_s=context_cost_s,
                cache_tokens=cache_tokens,
                chunk_tokens=chunk_tokens,
            ),
        ),
        tasks=(TaskQuality("task", "none", "none", (100.0,)),),
        provenance=Provenance(KNOWN, KNOWN, KNOWN, KNOWN),
        cache_output_share=share,
    )
    situation = Situation(profile, Cluster(1, max_batch, N), (Task("task"),))
    result = simulate_by_reference(requests, situation, lambda index, observation: 0)
    first_token_s, last_token_s = (
        moment + rng.exponential(noise, N) for moment in (result.first_token_s, result.completion_s)
    )
    nobody = np.zeros(N, np.int32)
    return RequestLog(
        path=Path("log.csv"),
        arrival_s=requests.arrival_s,
        scheduled_s=np.full(N, np.nan),
        first_token_s=first_token_s,
        last_token_s=last_token_s,
        prompt_tokens=requests.prompt_tokens,
        output_tokens=requests.output_tokens,
        model=nobody,
        task=nobody,
        replica=nobody,
        models=("",),
        tasks=("",),
        replicas=("",),
        cached_tokens=requests.cached_tokens,
    )


@functools.cache
def fitted(rate: float, noise: float = 0.002, **truth: float) -> tuple[RequestLog, Fitted]:
    log = served(rate, noise=noise, **truth)
    return log, fit(log)


def seconds(points: tuple[tuple[int, float], ...], x: float) -> float:
    return float(np.interp(x, *np.array(points).T))


def term(found: Fitted, name: str) -> tuple[bool, str]:
    (one,) = (term for term in found.terms if term.name == name)
    return one.determined, one.text


def test_long_times_are_written_without_powers_of_ten() -> None:
    columns, covariance = np.array([[1.0], [3.0]]), np.array([[0.055**2]])
    found = _curve_term("prefill", np.array([0.484]), covariance, columns, (86, 3764), "prefill of", "prompt lengths")
    assert "A prefill of 86 lasts 484 ± 110 ms, of 3764 1450 ± 330 ms;" in found.text


def predicted(log: RequestLog) -> np.ndarray:
    """(3,) errors of P50, P95 and P99 of the second half's latencies, as a fit to the first half predicts them."""
    half = N // 2
    found = fit(log, np.arange(N) < half, explain=False)
    of = [np.percentile(values[half:], (50, 95, 99)) for values in (found.last_s, log.latency_s)]
    return of[0] / of[1] - 1


TRUTH = Curve(np.array([1.0, 4000.0]))
COEFFICIENTS = np.array([PREFILL[0][1], (PREFILL[1][1] - PREFILL[0][1]) / 3999])
"""Of `PREFILL`, as a curve."""


def candidates(seats: int, **lanes: list[float]) -> Candidates:
    """Lanes with the true times, and limits and shares as given for each."""
    size = len(next(iter(lanes.values())))
    sizes = np.arange(seats + 1)
    decode = np.interp(sizes, *np.array(DECODE).T) * (sizes > 0)
    limits = {"max_batch": seats, "chunk_tokens": UNLIMITED, "cache_tokens": np.inf, "output_share": 1.0}
    return Candidates(
        decode=np.tile(decode, (size, 1)),
        prefill=np.tile(COEFFICIENTS, (size, 1)),
        context_cost_s=np.full(size, 2e-7),
        **{name: np.asarray(lanes.get(name, [value] * size)) for name, value in limits.items()},
    )


def test_the_player_gives_what_the_reference_gives() -> None:
    """On two replicas that have nothing to do with each other, and with other limits in other lanes something else."""
    log = served(20.0, context_cost_s=2e-7, cache_tokens=3000, share=0.5)
    twice = {name: np.repeat(value, 2) for name, value in vars(log).items() if isinstance(value, np.ndarray)}
    both = dataclasses.replace(log, **twice | {"replica": np.tile(np.array([0, 1], np.int32), N)}, replicas=("a", "b"))
    lanes = candidates(8, cache_tokens=[3000.0, 1e9], output_share=[0.5, 0.5])
    first_s, last_s = Player(both, 8, TRUTH).play(lanes)
    np.testing.assert_allclose(first_s[0], both.ttft_s, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(last_s[0], both.latency_s, rtol=1e-4, atol=1e-4)
    assert last_s[1].mean() < 0.9 * last_s[0].mean()


@pytest.mark.parametrize("rate", [0.2, 4.0])
def test_the_player_plays_what_no_two_lanes_have_alike(rate: float) -> None:
    """Batches, chunks down to fewer tokens than requests decode, and caches, each in a lane of its own."""
    truths: list[dict[str, Any]] = [
        {"max_batch": 8},
        {"max_batch": 3, "chunk_tokens": 512},
        {"max_batch": 8, "chunk_tokens": 64},
        {"max_batch": 8, "chunk_tokens": 5},
        {"max_batch": 8, "chunk_tokens": 256, "cache_tokens": 3000, "share": 0.5},
    ]
    logs = [served(rate, context_cost_s=2e-7, found=True, **truth) for truth in truths]
    lanes = candidates(
        8,
        max_batch=[truth["max_batch"] for truth in truths],
        chunk_tokens=[truth.get("chunk_tokens", UNLIMITED) for truth in truths],
        cache_tokens=[truth.get("cache_tokens", np.inf) for truth in truths],
        output_share=[truth.get("share", 1.0) for truth in truths],
    )
    first_s, last_s = Player(logs[0], 8, TRUTH).play(lanes)
    for lane, log in enumerate(logs):
        np.testing.assert_allclose(first_s[lane], log.ttft_s, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(last_s[lane], log.latency_s, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rate", "limit"), [(0.5, "nothing"), (4.0, "batch")])
def test_known_terms_are_found(rate: float, limit: str) -> None:
    """Within the stated error and a percent for noise and the curve's own shape; now and then 8 run, as many as may."""
    log, found = fitted(rate, context_cost_s=4e-7)
    assert found.limit == limit
    held = 300.0
    for batch in (1, 2):
        truth = seconds(DECODE, batch) + 4e-7 * held * batch
        assert seconds(found.decode, batch) + found.context_cost_s * held * batch == pytest.approx(truth, rel=0.02)
    for tokens in (200, 500, 1000):
        assert seconds(found.prefill, tokens) == pytest.approx(seconds(PREFILL, tokens), rel=0.06, abs=1e-3)
    assert found.delay_s < 2e-3
    assert term(found, "decode")[0]
    if limit == "batch":
        assert term(found, "largest batch") == (True, "Requests waited while 8 ran: `max_batch` is 8.")
    else:
        assert not term(found, "limits")[0]
        assert "The log does not show larger limits" in term(found, "limits")[1]
    assert np.abs(predicted(log)).max() < 0.05


def test_what_a_prefix_cache_had_costs_nothing() -> None:
    log = served(1.0, noise=0.002, found=True)
    found = fit(log, explain=False)
    for tokens in (200, 500, 1000):
        assert seconds(found.prefill, tokens) == pytest.approx(seconds(PREFILL, tokens), rel=0.06, abs=1e-3)
    # As if all had been read, long prompts look cheaper.
    whole = fit(dataclasses.replace(log, cached_tokens=None), explain=False)
    assert seconds(whole.prefill, 1000) < 0.8 * seconds(PREFILL, 1000)


def test_the_largest_batch_is_found() -> None:
    log, found = fitted(14.0)
    assert (found.limit, found.max_batch) == ("batch", 8)
    assert term(found, "largest batch") == (True, "Requests waited while 8 ran: `max_batch` is 8.")
    assert not term(found, "cache")[0]
    assert np.abs(predicted(log)).max() < 0.05


def test_a_cache_limit_is_found() -> None:
    log, found = fitted(20.0, max_batch=32, cache_tokens=3000, share=1.0)
    assert found.limit == "cache"
    assert found.cache_tokens is not None
    # Size and share trade off: what counts is how many typical requests fit.
    claim = log.prompt_tokens.mean() + found.cache_output_share * log.output_tokens.mean()
    truth = log.prompt_tokens.mean() + log.output_tokens.mean()
    assert found.cache_tokens / claim == pytest.approx(3000 / truth, rel=0.08)
    assert term(found, "cache")[0]
    assert np.abs(predicted(log)).max() < 0.05


def test_a_log_of_lone_requests_says_nothing_of_batches() -> None:
    log, found = fitted(0.001)
    assert [batch for batch, _ in found.decode] == [1]
    assert "No two requests ran at once" in term(found, "larger batches")[1]
    assert not term(found, "larger batches")[0]
    assert np.abs(predicted(log)).max() < 0.05


def test_a_log_of_single_tokens_says_nothing_of_decoding() -> None:
    """As of a model that classifies: each answer ends with its first token."""
    log = served(0.001)
    found = fit(dataclasses.replace(log, last_token_s=log.first_token_s, output_tokens=np.ones(N, np.int32)))
    assert "No request has a second token" in term(found, "decode")[1]
    assert not term(found, "decode")[0]
    assert seconds(found.prefill, 500) == pytest.approx(seconds(PREFILL, 500), rel=0.02)


def test_first_tokens_may_be_unknown() -> None:
    log = served(4.0, noise=0.002)
    silent = dataclasses.replace(log, first_token_s=np.full(N, np.nan))
    found = fit(silent, explain=False)
    assert seconds(found.decode, 2) == pytest.approx(seconds(DECODE, 2), rel=0.06)
    assert np.abs(predicted(silent)).max() < 0.05


def test_a_fit_looks_at_no_times_of_the_rest() -> None:
    log = served(4.0, noise=0.002)
    half = np.arange(N) < N // 2
    spoiled = dataclasses.replace(
        log,
        first_token_s=np.where(half, log.first_token_s, log.arrival_s + 1.0),
        last_token_s=np.where(half, log.last_token_s, log.arrival_s + 99.0),
    )
    one, other = (fit(each, half, explain=False) for each in (log, spoiled))
    assert one.decode == other.decode
    np.testing.assert_array_equal(one.last_s, other.last_s)


def test_too_few_requests() -> None:
    with pytest.raises(InputError, match=r"log\.csv: 5 answered requests of a model are too few.* at least 8\."):
        fit(served(4.0), np.arange(N) < 5)


def test_curves_rise_through_their_knots() -> None:
    curve = Curve(np.array([1.0, 4.0, 10.0]))
    coefficients = np.array([2.0, 0.5, 1.0])
    values = curve.columns(np.array([0, 1, 2, 4, 10, 12])) @ coefficients
    np.testing.assert_allclose(values, [2.0, 2.0, 2.5, 3.5, 9.5, 11.5])
    assert Curve(np.array([1.0])).columns(np.array([1, 5])).tolist() == [[1.0], [1.0]]


def test_knots_need_data_on_both_sides() -> None:
    values = np.array([1.0, 2.0, 3.0, 9.0])
    kept = Curve.through(values, np.array([50.0, 1.0, 40.0, 9.0]), np.array([2.0, 3.0, 8.0]), 0.05).knots
    assert kept.tolist() == [1.0, 2.0, 8.0, 9.0]
    assert Curve.through(np.ones(3), np.ones(3), np.array([2.0]), 0.1).knots.tolist() == [1.0]


def test_batch_sizes_and_limits_by_hand() -> None:
    """Three requests of 11 tokens; two run at a time, the third waits for one of them."""
    log = served(1.0)
    three = {k: v[:3] for k, v in vars(log).items() if isinstance(v, np.ndarray)}
    hand = dataclasses.replace(
        log,
        **three
        | {
            "arrival_s": np.array([0.0, 0.0, 0.2]),
            "first_token_s": np.array([1.0, 1.125, 13.0]),
            "last_token_s": np.array([11.0, 12.0, 23.0]),
            "prompt_tokens": np.array([5, 6, 7], np.int32),
            "output_tokens": np.array([11, 11, 11], np.int32),
        },
    )
    first_s = evidence.first_tokens(hand)
    sizes, spent_s = evidence.batch_sizes(hand, first_s)
    assert dict(zip(sizes.tolist(), spent_s.tolist(), strict=True)) == {1: 11.125, 2: 9.875}
    shown = evidence.limits(hand, first_s, iteration_s=0.2)
    assert (shown.largest_batch, shown.waits, shown.waiting_batch, shown.full) == (2, 1, 2, 1.0)
    now, more = shown.claims(np.array(1.0))
    assert now.tolist() == [16.0, 33.0, 18.0]
    assert more[1] == 51.0
