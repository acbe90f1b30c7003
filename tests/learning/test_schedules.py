"""Schedules count decisions, whatever the number of environments."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.learning.config import DQNConfig
from besteffort.learning.schedules import crossed, decisions_at, linear, spread


def test_linear_starts_falls_and_stays() -> None:
    values = linear(1.0, 0.2, 1_000, jnp.array([0, 250, 1_000, 10_000]))
    np.testing.assert_allclose(values, [1.0, 0.8, 0.2, 0.2], rtol=1e-6)


def test_environments_explore_from_epsilon_up_to_a_power_of_it() -> None:
    epsilon = jnp.array([1.0, 0.0625])
    np.testing.assert_allclose(spread(epsilon, 0.75, 4), [[1.0] * 4, [0.0625, 0.125, 0.25, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(spread(epsilon, 0.0, 3), [[1.0] * 3, [0.0625] * 3], rtol=1e-6)
    np.testing.assert_allclose(spread(epsilon, 0.75, 1), [[1.0], [0.0625]], rtol=1e-6)


@given(st.integers(1, 1_000), st.integers(0, 100_000), st.integers(0, 100_000))
def test_crossed_counts_multiples(interval: int, before: int, more: int) -> None:
    multiples = any(count % interval == 0 for count in range(before + 1, before + more + 1)[-interval:])
    assert bool(crossed(interval, jnp.array(before), jnp.array(before + more))) == multiples


def schedule_of_a_run(envs: int, decisions: int, interval: int) -> tuple[int, list[float]]:
    """Target syncs of a whole run with `envs` environments, and epsilon each 8,192 decisions."""
    config = DQNConfig(
        num_envs=envs,
        rollout_length=8,
        updates_per_rollout=16,
        buffer_length=8,
        n_step=1,
        decisions=decisions,
        log_interval=1,
    )
    before = jnp.arange(config.log_points) * config.decisions_per_rollout
    at = jax.vmap(partial(decisions_at, config.updates_per_rollout, config.decisions_per_rollout))(before)
    np.testing.assert_array_equal(at[:, 0], before)
    np.testing.assert_array_equal(at[:, -1], before + config.decisions_per_rollout)
    epsilon = linear(1.0, 0.05, 20_000, before[:: max(1, 8_192 // config.decisions_per_rollout)])
    return int(crossed(interval, at[:, :-1], at[:, 1:]).sum()), epsilon.tolist()


@pytest.mark.parametrize("interval", [512, 3_000, 8_192])
def test_same_syncs_and_epsilon_for_any_number_of_environments(interval: int) -> None:
    runs = [schedule_of_a_run(envs, 65_536, interval) for envs in (1, 64, 1_024)]
    assert runs[0] == runs[1] == runs[2]
    assert runs[0][0] == 65_536 // interval
    assert len(runs[0][1]) == 8
