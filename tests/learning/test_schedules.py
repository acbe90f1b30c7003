"""Schedules count decisions, whatever the number of environments."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.learning.config import Config
from besteffort.learning.schedules import crossed, decisions_at, linear


def test_linear_starts_falls_and_stays() -> None:
    values = linear(1.0, 0.2, 1_000, jnp.array([0, 250, 1_000, 10_000]))
    np.testing.assert_allclose(values, [1.0, 0.8, 0.2, 0.2], rtol=1e-6)


@given(st.integers(1, 1_000), st.integers(0, 100_000), st.integers(0, 100_000))
def test_crossed_counts_multiples(interval: int, before: int, more: int) -> None:
    multiples = any(count % interval == 0 for count in range(before + 1, before + more + 1)[-interval:])
    assert bool(crossed(interval, jnp.array(before), jnp.array(before + more))) == multiples


def schedule_of_a_run(envs: int, decisions: int, interval: int) -> tuple[int, list[float]]:
    """Target syncs of a whole run with `envs` environments, and epsilon each 8,192 decisions."""
    config = Config(envs=envs, chunk=8, updates=16, ring=8, run=1, decisions=decisions, log_chunks=1)
    before = jnp.arange(config.log_points) * config.decisions_per_chunk
    at = jax.vmap(partial(decisions_at, config.updates, config.decisions_per_chunk))(before)
    np.testing.assert_array_equal(at[:, 0], before)
    np.testing.assert_array_equal(at[:, -1], before + config.decisions_per_chunk)
    epsilon = linear(1.0, 0.05, 20_000, before[:: max(1, 8_192 // config.decisions_per_chunk)])
    return int(crossed(interval, at[:, :-1], at[:, 1:]).sum()), epsilon.tolist()


@pytest.mark.parametrize("interval", [512, 3_000, 8_192])
def test_same_syncs_and_epsilon_for_any_number_of_environments(interval: int) -> None:
    runs = [schedule_of_a_run(envs, 65_536, interval) for envs in (1, 64, 1_024)]
    assert runs[0] == runs[1] == runs[2]
    assert runs[0][0] == 65_536 // interval
    assert len(runs[0][1]) == 8
