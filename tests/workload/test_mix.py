from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.workload.mix import task_mix


def tasks_at(mix, gaps, seed=0, paths=4000):
    """(paths, requests) tasks of requests with the given gaps."""

    def path(key):
        init_key, draw_key = jax.random.split(key)
        uniforms = jax.random.uniform(draw_key, (len(gaps),))

        def step(clock, inputs):
            task, clock = mix.next(*inputs, clock)
            return clock, task

        return jax.lax.scan(step, mix.init(init_key), (uniforms, jnp.asarray(gaps)))[1]

    return np.asarray(jax.jit(jax.vmap(path))(jax.random.split(jax.random.key(seed), paths)))


def test_constant_mix_draws_its_shares():
    found = tasks_at(task_mix([[3.0, 0.0, 1.0]]), [1.0, 5.0])
    for request in found.T:
        shares = np.bincount(request, minlength=3) / len(request)
        assert shares[1] == 0
        assert shares[0] == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / len(request)))


def test_abrupt_flips_come_on_time_and_a_last_period_lasts():
    mix = task_mix([[1, 0], [0, 1], [1, 0]], starts_s=[0.0, 10.0, 20.0])
    #       9.5  10.5 19.5  20.5  a day later
    gaps = [9.5, 1.0, 9.0, 1.0, 90_000.0]
    np.testing.assert_array_equal(tasks_at(mix, gaps, paths=3), [[0, 1, 1, 0, 0]] * 3)


def test_cyclic_mix_repeats_and_gaps_may_span_periods():
    mix = task_mix([[1, 0], [0, 1]], starts_s=[0.0, 4.0], period_s=10.0)
    #       3    23   25   69   71
    gaps = [3.0, 20.0, 2.0, 44.0, 2.0]
    np.testing.assert_array_equal(tasks_at(mix, gaps, paths=3), [[0, 0, 1, 1, 0]] * 3)


def test_random_start_is_uniform_over_the_cycle():
    mix = task_mix([[1, 0], [0, 1]], starts_s=[0.0, 2.0], period_s=10.0, random_start=True)
    found = tasks_at(mix, [0.0, 3.0, 100.0])
    np.testing.assert_allclose(found.mean(axis=0), 0.8, atol=4 * np.sqrt(0.16 / len(found)))


@pytest.mark.parametrize(
    ("shares", "starts_s"),
    [
        (np.array([1.0, 2.0]), [0.0]),
        ([[1.0, 2.0]], [0.0, 1.0]),
        ([[1.0, -1.0]], [0.0]),
        ([[0.0, 0.0]], [0.0]),
        ([[np.nan, 1.0]], [0.0]),
    ],
)
def test_impossible_mixes_are_refused(shares, starts_s):
    with pytest.raises(InputError):
        task_mix(shares, starts_s)
