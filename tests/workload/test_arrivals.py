from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.errors import InputError
from besteffort.workload.arrivals import (
    GammaRenewal,
    MarkovModulated,
    Poisson,
    RandomRates,
    markov_modulated,
    random_rates,
    square_wave,
    steps,
)

MILLIONS = pytest.mark.optimised
"""Of tests that draw millions of gaps, or hundreds of thousands one after another."""

PROCESSES = {
    "poisson": Poisson(5.0),
    "gamma": GammaRenewal(5.0, 3.0),
    "steps": steps([2.0, 0.0, 9.0], [0.0, 3.0, 4.0], period_s=7.0),
    "steps once": steps([2.0, 0.0, 9.0], [0.0, 3.0, 4.0]),
    "square": square_wave(1.0, 9.0, 4.0, 0.25),
    "square anywhere": square_wave(1.0, 9.0, 4.0, 0.25, random_start=True),
    "markov": markov_modulated([1.0, 20.0, 0.0], [3.0, 0.5, 1.0]),
    "random": random_rates(2.0, 50.0, 2.0, 0.3, 4.0, 0.2),
}


@functools.partial(jax.jit, static_argnames=("n", "paths"))
def sample(process, seed, n, paths):
    """(paths, n) gaps of independent paths."""

    def path(key):
        init_key, next_key = jax.random.split(key)

        def step(state, index):
            gap, state = process.next(jax.random.fold_in(next_key, index), state)
            return state, gap

        return jax.lax.scan(step, process.init(init_key), jnp.arange(n))[1]

    return jax.vmap(path)(jax.random.split(jax.random.key(seed), paths))


def times(process, n, paths, seed=0):
    return np.cumsum(np.asarray(sample(process, seed, n, paths)), axis=1, dtype=np.float64)


def counts(arrival_s, edges):
    """(paths, bins) arrivals of each path between the edges, all of which must lie before each path's last arrival."""
    assert arrival_s[:, -1].min() > edges[-1]
    return np.stack([np.histogram(path, edges)[0] for path in arrival_s])


def standard_errors(values, expected):
    """How many standard errors of the mean (over axis 0) lie between the mean and the expected value."""
    return np.abs(values.mean(axis=0) - expected) / (values.std(axis=0, ddof=1) / np.sqrt(len(values)))


@pytest.mark.parametrize("name", PROCESSES)
def test_a_key_gives_one_path_and_another_key_another(name):
    process = PROCESSES[name]
    first = sample(process, 1, 50, 2)
    np.testing.assert_array_equal(first, sample(process, 1, 50, 2))
    assert not np.array_equal(first, sample(process, 2, 50, 2))
    assert not np.array_equal(first[0], first[1])
    assert np.isfinite(first).all()
    assert np.asarray(first).min() >= 0


@pytest.mark.parametrize("name", ["gamma", "steps", "square anywhere", "random"])
def test_float64_and_float32_follow_the_same_law(name):
    single = np.asarray(sample(PROCESSES[name], 0, 200, 200))
    with jax.enable_x64(True):
        double = np.asarray(sample(PROCESSES[name], 0, 200, 200))
    assert single.dtype == np.float32
    assert double.dtype == np.float64
    ends = single.sum(axis=1), double.sum(axis=1)
    spread = np.sqrt(sum(end.var(ddof=1) / len(end) for end in ends))
    assert abs(ends[0].mean() - ends[1].mean()) < 4 * spread


@MILLIONS
@pytest.mark.parametrize("name", ["poisson", "gamma", "square anywhere", "markov"])
def test_stationary_processes_have_their_mean_rate_from_the_start(name):
    process = PROCESSES[name]
    found = counts(times(process, 1500, 3000), np.linspace(0.0, 4.0, 5))
    assert (standard_errors(found, float(process.mean_rate())) < 4).all()


@MILLIONS
@pytest.mark.parametrize(
    ("name", "rates"), [("steps", [2, 2, 2, 0, 9, 9, 9] * 2), ("steps once", [2] * 3 + [0] + [9] * 10)]
)
def test_steps_have_the_rate_of_each_second(name, rates):
    found = counts(times(PROCESSES[name], 400, 3000), np.arange(15.0))
    expected = np.array(rates, float)
    assert (found[:, expected == 0] == 0).all()
    assert (standard_errors(found[:, expected > 0], expected[expected > 0]) < 4).all()
    variance = found[:, expected > 0].var(axis=0, ddof=1)
    np.testing.assert_allclose(variance, expected[expected > 0], rtol=0.15)


def test_steps_mean_rate():
    assert float(PROCESSES["steps"].mean_rate()) == pytest.approx((2 * 3 + 9 * 3) / 7)
    assert float(PROCESSES["steps once"].mean_rate()) == 9.0
    assert float(PROCESSES["square"].mean_rate()) == pytest.approx(3.0)


@MILLIONS
def test_square_wave_is_high_first_and_low_then():
    found = counts(times(PROCESSES["square"], 200, 3000), np.arange(9.0))
    assert (standard_errors(found, np.array([9, 1, 1, 1, 9, 1, 1, 1.0])) < 4).all()


@MILLIONS
@pytest.mark.parametrize("cv", [0.3, 1.0, 4.0])
def test_gamma_gaps_have_their_mean_and_cv(cv):
    gaps = np.asarray(sample(GammaRenewal(2.0, cv), 0, 200, 5000), np.float64)[:, 1:]
    means = gaps.mean(axis=1)
    assert standard_errors(means, 0.5) < 4
    squares = np.square(gaps).mean(axis=1)
    assert standard_errors(squares, 0.25 * (1 + cv**2)) < 4


def test_first_gamma_gap_is_the_residual_one():
    """The mean time from a random moment to the next renewal is `(1 + cv^2) / (2 rate)`."""
    first = np.asarray(sample(GammaRenewal(2.0, 3.0), 0, 1, 40_000), np.float64)
    assert standard_errors(first[:, 0], (1 + 9) / 4) < 4


def test_poisson_gaps_are_exponential():
    gaps = np.asarray(sample(Poisson(4.0), 0, 200, 500), np.float64).ravel()
    for time in (0.05, 0.2, 0.7):
        assert standard_errors(gaps > time, np.exp(-4 * time)) < 4


@MILLIONS
def test_index_of_dispersion_of_the_two_state_markov_modulated_process():
    """Heffes and Lucantoni (1986): IDC(t) of a stationary MMPP of two states with leaving rates `a` and `b`."""
    rates, dwell = np.array([2.0, 30.0]), np.array([4.0, 1.0])
    a, b = 1 / dwell
    shares = dwell / dwell.sum()
    mean = rates @ shares
    for t in (0.5, 5.0):
        s = a + b
        excess = 2 * (rates[0] - rates[1]) ** 2 * shares.prod() / (s * mean) * (1 - (1 - np.exp(-s * t)) / (s * t))
        found = counts(times(markov_modulated(rates, dwell), 500, 6000), np.array([0.0, t]))[:, 0]
        assert standard_errors(np.square(found - mean * t), (1 + excess) * mean * t) < 4


def test_markov_modulation_is_followed_between_arrivals():
    """In the silent state nothing arrives, so the first gap is its dwell time plus an exponential."""
    process = markov_modulated([0.0, 3.0], [2.0, 0.5])
    gaps = np.asarray(sample(process, 0, 20, 5000), np.float64)[:, 1:]
    # From an arrival: the next event of the active state, and, if that is silence, its length and the same again.
    expected = (1 / (3 + 2) + 2 / (3 + 2) * 2.0) / (1 - 2 / (3 + 2))
    assert standard_errors(gaps.mean(axis=1), expected) < 4
    np.testing.assert_allclose(expected, 1 / float(process.mean_rate()))


def test_random_rates_are_log_uniform_and_burst():
    process = RandomRates(2.0, 50.0, 10.0, 0.5, 4.0, 2.0)
    states = jax.vmap(process.init)(jax.random.split(jax.random.key(0), 20_000))
    rates, burst = np.asarray(states.rate, np.float64), np.asarray(states.clock.segment) == 1
    assert standard_errors(burst, 0.5 * 2 / (10 + 0.5 * 2)) < 4
    position = np.log(np.where(burst, rates / 4, rates) / 2) / np.log(25)
    assert standard_errors(position, 0.5) < 4
    assert standard_errors(np.square(position), 1 / 3) < 4
    # A calm stretch of 10 requests at rate r takes 10 / r seconds, its bursts 0.5 x 2 / (4 r); E[1 / r] = 0.48 / ln 25.
    seconds = 0.48 / np.log(25) * (10 + 0.5 * 2 / 4)
    assert float(process.mean_rate()) == pytest.approx((10 + 0.5 * 2) / seconds, rel=1e-5)
    np.testing.assert_allclose(RandomRates(5.0, 5.0, 1.0).mean_rate(), 5.0)


@MILLIONS
def test_random_rates_have_their_mean_rate_in_the_long_run():
    process = PROCESSES["random"]
    mean_gaps = np.asarray(sample(process, 4, 4000, 300), np.float64).mean(axis=1)
    assert standard_errors(mean_gaps, 1 / float(process.mean_rate())) < 4


def test_random_rates_return_from_a_burst_to_the_rate_before():
    process = RandomRates(2.0, 50.0, 1.0, 0.9, 4.0, 1.0)

    def path(key):
        def step(state, index):
            _, after = process.next(jax.random.fold_in(key, index), state)
            return after, (state, after)

        return jax.lax.scan(step, process.init(key), jnp.arange(3000))[1]

    before, after = jax.jit(path)(jax.random.key(3))
    entered = (before.clock.segment == 0) & (after.clock.segment == 1)
    left = (before.clock.segment == 1) & (after.clock.segment == 0)
    assert entered.sum() > 20
    ratio = np.asarray(after.rate / before.rate)
    # A few calls span more than one change.
    assert np.mean(np.isclose(ratio[np.asarray(entered)], 4.0)) > 0.5
    assert np.mean(np.isclose(ratio[np.asarray(left)], 0.25)) > 0.5


@pytest.mark.parametrize("process", [Poisson(np.array([1.0, 7.0])), GammaRenewal(np.array([1.0, 7.0]), 2.0)])
def test_vmap_over_rates_equals_one_rate_at_a_time(process):
    axes = dataclasses.replace(process, rate=0, **({"cv": None} if isinstance(process, GammaRenewal) else {}))
    together = jax.vmap(lambda p: sample(p, 0, 20, 3), in_axes=(axes,))(process)
    for row, rate in zip(together, process.rate, strict=True):
        np.testing.assert_allclose(row, sample(dataclasses.replace(process, rate=rate), 0, 20, 3), rtol=1e-5)


def test_vmap_over_square_waves_and_chains_equals_one_at_a_time():
    high = jnp.array([2.0, 30.0])
    together = jax.vmap(lambda h: sample(square_wave(1.0, h, 4.0), 0, 50, 3))(high)
    for row, value in zip(together, high, strict=True):
        np.testing.assert_allclose(row, sample(square_wave(1.0, value, 4.0), 0, 50, 3), rtol=1e-4, atol=1e-6)
    rates = np.array([[1.0, 9.0], [0.0, 30.0]])
    chains = MarkovModulated(rates, np.ones((2, 2)))
    together = jax.vmap(lambda p: sample(p, 0, 50, 3))(chains)
    for row, value in zip(together, rates, strict=True):
        np.testing.assert_allclose(row, sample(MarkovModulated(value, np.ones(2)), 0, 50, 3), rtol=1e-4, atol=1e-6)


@MILLIONS
def test_a_change_after_hours_of_fast_arrivals_comes_on_time_in_float32():
    """Gaps of 0.2 ms are below half a unit in the last place of float32 at four hours (0.5 ms)."""
    hours_s = 14_400.0
    process = steps([5000.0, 1e-3], [0.0, hours_s])
    state = process.init(jax.random.key(0))
    state = state._replace(clock=state.clock._replace(left_s=jnp.asarray(hours_s)))

    def step(carry, index):
        state, elapsed, residue = carry
        gap, state = process.next(jax.random.fold_in(jax.random.key(1), index), state)
        return (state, elapsed, residue), gap

    (state, *_), gaps = jax.jit(lambda s: jax.lax.scan(step, (s, 0.0, 0.0), jnp.arange(500_000)))(state)
    elapsed = np.asarray(gaps, np.float64).sum()
    assert elapsed == pytest.approx(100.0, rel=0.01)
    assert hours_s - float(state.clock.remaining_s()) == pytest.approx(elapsed, abs=2e-3)


@given(st.lists(st.floats(0.0, 50.0), min_size=3, max_size=3), st.integers(0, 10))
def test_gaps_are_never_negative_nor_infinite(rates, seed):
    process = steps([*rates, 1.0], [0.0, 0.3, 0.6, 0.9], period_s=2.0)
    gaps = np.asarray(sample(process, seed, 100, 2))
    assert np.isfinite(gaps).all()
    assert gaps.min() >= 0


@pytest.mark.parametrize(
    "build",
    [
        lambda: steps([1.0, 2.0], [0.0]),
        lambda: steps([1.0, 0.0], [0.0, 5.0]),
        lambda: steps([0.0, 0.0], [0.0, 5.0], period_s=9.0),
        lambda: steps([-1.0, 2.0], [0.0, 5.0]),
        lambda: steps([1.0, 2.0], [1.0, 5.0]),
        lambda: steps([1.0, 2.0], [0.0, 0.0]),
        lambda: steps([1.0, 2.0], [0.0, 5.0], period_s=5.0),
        lambda: steps([1.0, 2.0], [0.0, 5.0], random_start=True),
        lambda: markov_modulated([1.0], [1.0]),
        lambda: markov_modulated([0.0, 0.0], [1.0, 1.0]),
        lambda: markov_modulated([1.0, 2.0], [1.0, 0.0]),
        lambda: random_rates(0.0, 1.0, 1.0),
        lambda: random_rates(2.0, 1.0, 1.0),
        lambda: random_rates(1.0, 2.0, 1.0, burst_probability=1.0),
    ],
)
def test_impossible_processes_are_refused(build):
    with pytest.raises(InputError):
        build()
