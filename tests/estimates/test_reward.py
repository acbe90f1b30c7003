from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.estimates.reward import reward, timeliness

POSITIVE = st.floats(0.015625, 64, width=32)
SPAN = st.sampled_from([0.0, 0.5, 1.0, 3.0])


@pytest.mark.parametrize(
    ("latency_s", "soft_span", "wanted"),
    [
        (0.0, 0.0, 1.0),
        (2.0, 0.0, 1.0),  # the deadline itself is in time
        (2.0000001, 0.0, 0.0),
        (math.inf, 0.0, 0.0),
        (2.0, 1.0, 1.0),
        (3.0, 1.0, 0.5),
        (4.0, 1.0, 0.0),
        (5.0, 1.0, 0.0),
        (math.inf, 1.0, 0.0),
        (2.5, 0.5, 0.5),
        (3.0, 0.5, 0.0),
    ],
)
def test_timeliness_has_known_values(latency_s: float, soft_span: float, wanted: float) -> None:
    assert timeliness(latency_s, 2.0, soft_span) == wanted


def test_reward_has_known_values() -> None:
    assert reward(0.75, 2.0, 1.0, 1.0, 0.0, 0.25) == 1.5
    assert reward(0.75, 2.0, 1.5, 1.0, 0.0, 0.25) == -0.5
    assert reward(0.75, 2.0, 1.5, 1.0, 1.0, 0.25) == 2.0 * (0.75 * 0.5 - 0.25)
    assert reward(0.75, 2.0, math.inf, 1.0, 1.0, 0.25) == -0.5


@given(POSITIVE, POSITIVE, POSITIVE, SPAN, st.sampled_from([0.0, 0.25]))
def test_later_is_never_better_and_values_are_bounded(
    one_s: float, other_s: float, deadline_s: float, soft_span: float, penalty: float
) -> None:
    latency_s = np.array([one_s, other_s, deadline_s, math.inf])
    value = reward(0.8, 1.5, np.sort(latency_s), deadline_s, soft_span, penalty)
    assert (np.diff(value) <= 0).all()
    assert value.max() == 1.5 * 0.8
    assert value.min() == -1.5 * penalty
    assert (timeliness(latency_s, deadline_s, soft_span) >= timeliness(latency_s, deadline_s, 0.0)).all()


def test_numpy_and_jax_agree() -> None:
    rng = np.random.default_rng(0)
    n = 1000
    numbers = [rng.uniform(0.1, 2, n) for _ in range(4)]
    numbers[2][::10] = math.inf
    numbers[2][::7] = numbers[3][::7]
    for soft_span in (0.0, 1.0):
        for penalty in (0.0, 0.5):
            wanted = reward(*numbers, soft_span, penalty)
            with jax.enable_x64(True):
                ours = jax.jit(lambda *args: reward(*args, xp=jnp))(*numbers, soft_span, penalty)
            np.testing.assert_allclose(ours, wanted, rtol=1e-14, atol=1e-15)
