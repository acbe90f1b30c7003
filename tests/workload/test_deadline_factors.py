from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.workload.arrivals import Poisson
from besteffort.workload.deadline_factors import deadline_factors
from besteffort.workload.requests import Requests
from besteffort.workload.resample import halves, resample
from besteffort.workload.sample import sample_workload
from besteffort.workload.synthetic_workload import synthetic
from besteffort.workload.trace_workload import replay

DAY = deadline_factors([1.0, 0.5], starts_s=[0.0, 2.0], period_s=3.0)
"""Half the deadlines in the last third of every three seconds."""


def factor_at(arrival_s):
    return np.where(arrival_s % 3.0 < 2.0, 1.0, 0.5)


@pytest.fixture(scope="module")
def requests(situation):
    return sample_workload(synthetic(situation, Poisson(20.0), factors=DAY), situation.task_names, 400, seed=1)


def test_deadlines_are_those_of_the_tasks_times_the_factor_in_force(situation, requests) -> None:
    np.testing.assert_array_equal(requests.deadline_factor, factor_at(requests.arrival_s))
    stated = situation.deadlines(requests.task, requests.output_tokens)
    np.testing.assert_allclose(requests.deadline_s, stated * requests.deadline_factor, rtol=1e-6)
    assert set(requests.deadline_factor) == {0.5, 1.0}


def test_nothing_else_changes(situation, requests) -> None:
    plain = sample_workload(synthetic(situation, Poisson(20.0)), situation.task_names, 400, seed=1)
    for name in ("arrival_s", "task", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(requests, name))
    assert plain.deadline_factor is None
    np.testing.assert_array_equal(plain.deadline_factors, 1.0)


def test_lists_keep_their_factors(situation, requests) -> None:
    again = sample_workload(replay(requests, "first"), situation.task_names, 450, seed=0)
    np.testing.assert_array_equal(again.deadline_factor, np.resize(requests.deadline_factor, 450))
    first, second = halves(requests)
    np.testing.assert_array_equal(
        np.concatenate([first.deadline_factor, second.deadline_factor]), requests.deadline_factor
    )


@pytest.mark.parametrize("own", [False, True])
def test_lengths_of_a_list_come_with_factors_of_the_moment(situation, own) -> None:
    rows = np.arange(40)  # in the prompts, so that a drawn request tells which row it came from
    before = np.where(rows % 2, 3.0, 1.0)
    listed = Requests(
        situation.task_names, rows, rows * 0, 1 + rows, rows * 0 + 5, 0.25 * before, before if own else None
    )
    drawn = sample_workload(resample(listed, Poisson(20.0), DAY), situation.task_names, 300, seed=3)
    row, now = drawn.prompt_tokens - 1, factor_at(drawn.arrival_s)
    np.testing.assert_array_equal(drawn.deadline_s, listed.deadline_s[row] * now)
    np.testing.assert_array_equal(drawn.deadline_factor, now * before[row] if own else now)


def test_a_random_start_is_uniform_over_the_cycle() -> None:
    factors = dataclasses.replace(DAY, schedule=dataclasses.replace(DAY.schedule, random_start=True))

    def first(key):
        return factors.next(jnp.zeros(()), factors.init(key))[0]

    drawn = jax.vmap(first)(jax.random.split(jax.random.key(0), 3000))
    assert np.mean(np.asarray(drawn) == 0.5) == pytest.approx(1 / 3, abs=4 * np.sqrt(2 / 9 / 3000))


@pytest.mark.parametrize(
    ("factors", "starts_s", "message"),
    [([1.0], [0.0, 1.0], "1 values; give one for each of 2 starts"), ([1.0, 0.0], [0.0, 1.0], "positive factors")],
)
def test_impossible_factors_are_refused(factors, starts_s, message) -> None:
    with pytest.raises(InputError, match=message):
        deadline_factors(factors, starts_s)


@pytest.mark.parametrize("factor", [np.zeros(400), np.ones(3), np.full(400, np.inf)])
def test_lists_with_impossible_factors_are_refused(requests, factor) -> None:
    with pytest.raises(InputError, match="`deadline_factor` must be finite and positive"):
        dataclasses.replace(requests, deadline_factor=factor)
