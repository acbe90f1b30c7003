from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.runs.config import load_situation
from besteffort.situation import Situation, Task
from besteffort.workload.arrivals import Poisson
from besteffort.workload.requests import Requests
from besteffort.workload.resample import halves, resample, with_lengths_of
from besteffort.workload.sample import sample_workload


@pytest.fixture(scope="module")
def situation() -> Situation:
    return load_situation("paper")


@pytest.fixture(scope="module")
def listed(situation: Situation) -> Requests:
    """Every row has its own prompt length, so that a drawn request tells which row it came from."""
    rng = np.random.default_rng(1)
    n = 40
    outputs = rng.integers(1, 60, n)
    return Requests(
        tasks=situation.task_names,
        arrival_s=np.sort(rng.uniform(3.0, 50.0, n)),
        task=rng.integers(0, 3, n),
        prompt_tokens=100 + np.arange(n),
        output_tokens=outputs,
        deadline_s=0.1 + 0.015 * outputs,
    )


def test_rows_stay_together_and_come_equally_often(listed: Requests) -> None:
    drawn = sample_workload(resample(listed, Poisson(5.0)), listed.tasks, 8_000, seed=3)
    row = drawn.prompt_tokens - 100
    np.testing.assert_array_equal(drawn.task, listed.task[row])
    np.testing.assert_array_equal(drawn.output_tokens, listed.output_tokens[row])
    np.testing.assert_allclose(drawn.deadline_s, listed.deadline_s[row], rtol=1e-6)
    counts = np.bincount(row, minlength=40)
    # chi-squared with 39 degrees of freedom: mean 39, standard deviation 8.8
    assert ((counts - 200) ** 2 / 200).sum() < 39 + 4 * 8.8


def test_arrivals_are_the_process_not_the_list(listed: Requests) -> None:
    drawn = sample_workload(resample(listed, Poisson(5.0)), listed.tasks, 8_000, seed=3)
    gaps = np.diff(drawn.arrival_s)
    assert gaps.mean() == pytest.approx(0.2, rel=4 / np.sqrt(8_000))
    assert gaps.std() == pytest.approx(0.2, rel=0.08)


def test_vmaps_over_rates(listed: Requests) -> None:
    def first_gap(rate: jax.Array) -> jax.Array:
        workload = resample(listed, Poisson(rate))
        return workload.next(jax.random.key(0), workload.init(jax.random.key(1)))[0].gap_s

    slow, fast = jax.vmap(first_gap)(jax.numpy.array([1.0, 4.0]))
    assert float(slow) == pytest.approx(4 * float(fast), rel=1e-6)


def test_halves_cover_the_list_once(listed: Requests) -> None:
    first, second = halves(listed)
    np.testing.assert_array_equal(np.concatenate([first.prompt_tokens, second.prompt_tokens]), listed.prompt_tokens)
    for half, whole in ((first, listed.arrival_s[:20]), (second, listed.arrival_s[20:])):
        assert half.arrival_s[0] == 0
        np.testing.assert_allclose(half.arrival_s, whole - whole[0])


def test_halves_of_three_requests_are_refused(listed: Requests) -> None:
    ones = np.ones(3, np.int32)
    short = Requests(listed.tasks, np.arange(3.0), 0 * ones, ones, ones, np.ones(3))
    with pytest.raises(InputError, match="at least four"):
        halves(short)


def test_situation_learns_lengths_by_task(situation: Situation, listed: Requests) -> None:
    known = with_lengths_of(situation, listed)
    for index in range(3):
        mine = listed.task == index
        task = known.tasks[index]
        assert task.prompt_tokens == (listed.prompt_tokens[mine].min(), listed.prompt_tokens[mine].max())
        assert known.mean_output_tokens[index] == pytest.approx(listed.output_tokens[mine].mean())
        assert known.mean_prompt_tokens[index] == pytest.approx(listed.prompt_tokens[mine].mean())
        assert task.deadline == situation.tasks[index].deadline
        assert_quantiles(task, listed.output_tokens[mine])
    # No request is of the last task: it takes all.
    assert known.mean_output_tokens[3] == pytest.approx(listed.output_tokens.mean())
    assert_quantiles(known.tasks[3], listed.output_tokens)
    assert known.shares.tolist() == situation.shares.tolist()


def assert_quantiles(task: Task, outputs: np.ndarray) -> None:
    """A share (i + 1/2) / 32 of the lengths, at least, are at most the quantile, and less of them are below it."""
    assert task.output_quantiles is not None
    assert len(task.output_quantiles) == 32
    for i, value in enumerate(task.output_quantiles):
        assert value in outputs
        assert (outputs < value).mean() < (i + 0.5) / 32 <= (outputs <= value).mean()


def test_a_list_of_one_length_has_that_quantile(situation: Situation, listed: Requests) -> None:
    same = dataclasses.replace(listed, output_tokens=np.full(len(listed), 7))
    assert {task.output_quantiles for task in with_lengths_of(situation, same).tasks} == {(7.0,) * 32}


@pytest.mark.parametrize(
    ("quantiles", "message"),
    [
        ((), "`output_quantiles` is empty; give at least one, or leave it out"),
        ((12.0, 11.5), "`output_quantiles` falls from 12 to 11.5; sort them"),
        ((9.5, 12.0), "`output_quantiles` has 9.5; give lengths from 10 to 30, the range in `output_tokens`"),
        ((12.0, 31.0), "`output_quantiles` has 31; give lengths"),
        ((12.0, math.nan), "`output_quantiles` has nan; give lengths"),
    ],
)
def test_quantiles_ascend_within_the_range(quantiles: tuple[float, ...], message: str) -> None:
    assert Task("piqa", output_quantiles=(10.0, 12.0, 12.0, 30.0)).output_quantiles == (10.0, 12.0, 12.0, 30.0)
    with pytest.raises(InputError, match=f"Task `piqa`: {message}"):
        Task("piqa", output_quantiles=quantiles)


def test_stated_means_replace_the_middle_of_the_range() -> None:
    assert Task("piqa", mean_output_tokens=12.0).mean_output_tokens == 12.0
    with pytest.raises(InputError, match="`mean_output_tokens` is 31; give one from 10 to 30"):
        Task("piqa", mean_output_tokens=31.0)
