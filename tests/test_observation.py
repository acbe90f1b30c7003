"""The rate estimate by hand, and what a clock that steps back does to it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.observation import next_rate


def test_rate_by_hand() -> None:
    """Two arrivals within one time constant of 2 s: each adds 1/2 and fades by e per 2 s."""
    first = next_rate(0.0, 2.0, 2.0)
    assert first == pytest.approx(0.5 / np.e)
    assert next_rate(first, 1.0, 2.0) == pytest.approx((0.5 / np.e + 0.5) / np.sqrt(np.e))


@pytest.mark.parametrize("gap_s", [-1e-9, -60.0, -3600.0, -np.inf])
def test_a_clock_that_steps_back_counts_as_no_time(gap_s: float) -> None:
    rate = next_rate(100.0, gap_s, 2.0)
    assert rate == 100.5
    assert jax.jit(lambda gap_s: next_rate(jnp.float32(100.0), gap_s, 2.0, jnp))(jnp.float32(gap_s)) == 100.5
    for _ in range(20):
        rate = next_rate(rate, 5.0, 2.0)
    assert rate == pytest.approx(0.5 / (np.exp(2.5) - 1), rel=1e-9)  # what arrivals every 5 s settle at


def test_gaps_of_all_kinds_leave_it_finite() -> None:
    rate = 0.0
    for gap_s in np.random.default_rng(0).normal(0.0, 1e3, 1000):
        rate = next_rate(rate, gap_s, 2.0)
        assert 0 <= rate < 1000
