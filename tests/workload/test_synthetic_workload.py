from __future__ import annotations

import jax
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.workload.arrivals import Poisson, random_rates
from besteffort.workload.mix import task_mix
from besteffort.workload.sample import sample_workload
from besteffort.workload.synthetic_workload import strata, synthetic
from besteffort.workload.trace_workload import replay


def test_requests_follow_the_situation(situation):
    requests = sample_workload(synthetic(situation, Poisson(20.0)), situation.task_names, 20_000, seed=0)
    assert requests.tasks == ("piqa", "lambada")
    assert requests.task.mean() == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 20_000))
    for index, task in enumerate(situation.tasks):
        mine = requests.task == index
        for found, (low, high) in (
            (requests.prompt_tokens[mine], task.prompt_tokens),
            (requests.output_tokens[mine], task.output_tokens),
        ):
            share = np.bincount(found, minlength=high + 1)[low:] / mine.sum()
            width = high - low + 1
            assert len(share) == width
            np.testing.assert_allclose(share, 1 / width, atol=4.5 * np.sqrt(1 / width / mine.sum()))
    np.testing.assert_allclose(
        requests.deadline_s, situation.deadlines(requests.task, requests.output_tokens), rtol=1e-6
    )
    assert requests.arrival_s[-1] == pytest.approx(1000.0, rel=0.03)


def test_list_is_what_the_generator_says(situation):
    """The list against the generator called one request at a time, outside any compiled program."""
    mix = task_mix([[1, 0], [0, 1]], starts_s=[0.0, 0.5], period_s=1.0)
    workload = synthetic(situation, Poisson(20.0), mix)
    requests = sample_workload(workload, situation.task_names, 30, seed=5)
    init_key, next_key = jax.random.split(jax.random.key(5))
    state, now = workload.init(init_key), 0.0
    for index in range(30):
        arrival, state = workload.next(jax.random.fold_in(next_key, index), state)
        now += float(arrival.gap_s)
        assert now == pytest.approx(requests.arrival_s[index], rel=1e-5)
        assert int(arrival.task) == requests.task[index] == int(now % 1.0 >= 0.5)
        assert int(arrival.prompt_tokens) == requests.prompt_tokens[index]
        assert int(arrival.output_tokens) == requests.output_tokens[index]
        assert float(arrival.deadline_s) == pytest.approx(requests.deadline_s[index])


def test_seeds(situation):
    workload = synthetic(situation, Poisson(20.0))
    first = sample_workload(workload, situation.task_names, 100, seed=1)
    again = sample_workload(workload, situation.task_names, 100, seed=1)
    other = sample_workload(workload, situation.task_names, 100, seed=2)
    np.testing.assert_array_equal(first.arrival_s, again.arrival_s)
    np.testing.assert_array_equal(first.prompt_tokens, again.prompt_tokens)
    assert not np.array_equal(first.arrival_s, other.arrival_s)
    assert not np.array_equal(first.prompt_tokens, other.prompt_tokens)


def test_float64(situation):
    workload = synthetic(situation, Poisson(20.0))
    with jax.enable_x64(True):
        requests = sample_workload(workload, situation.task_names, 50, seed=1)
    np.testing.assert_allclose(
        requests.deadline_s, situation.deadlines(requests.task, requests.output_tokens), rtol=1e-14
    )


def test_mix_for_other_tasks_is_refused(situation):
    with pytest.raises(InputError, match="3 tasks, not 2"):
        synthetic(situation, Poisson(1.0), task_mix([[1, 1, 1]]))


def test_replay_gives_the_list_back_and_comes_round(situation):
    requests = sample_workload(synthetic(situation, Poisson(20.0)), situation.task_names, 50, seed=1)
    again = sample_workload(replay(requests, "first"), situation.task_names, 101, seed=0)
    np.testing.assert_allclose(again.arrival_s[:50], requests.arrival_s, rtol=1e-6)
    mean_gap = (requests.arrival_s[-1] - requests.arrival_s[0]) / 49
    gaps = np.diff(again.arrival_s)
    np.testing.assert_allclose(gaps[[49, 99]], mean_gap, rtol=1e-4)
    np.testing.assert_allclose(gaps[50:99], gaps[:49], rtol=1e-4)
    for field in ("task", "prompt_tokens", "output_tokens"):
        expected = getattr(requests, field)
        np.testing.assert_array_equal(getattr(again, field), np.concatenate([expected, expected, expected[:1]]))
    with jax.enable_x64(True):
        exact = sample_workload(replay(requests, "first"), situation.task_names, 50, seed=0)
    np.testing.assert_allclose(exact.arrival_s, requests.arrival_s, rtol=1e-14)


def test_replay_starts_anywhere(situation):
    requests = sample_workload(synthetic(situation, Poisson(20.0)), situation.task_names, 10, seed=1)
    workload = replay(requests)
    starts = np.asarray(jax.vmap(workload.init)(jax.random.split(jax.random.key(0), 2000)))
    assert set(starts.tolist()) == set(range(1, 11))
    gaps = np.append(np.diff(requests.arrival_s), np.diff(requests.arrival_s).mean())
    for seed in range(5):
        first = sample_workload(workload, situation.task_names, 4, seed)
        shift = next(s for s in range(10) if np.allclose(np.roll(gaps, -s)[:3], np.diff(first.arrival_s), rtol=1e-4))
        np.testing.assert_array_equal(first.output_tokens, np.roll(requests.output_tokens, -shift)[:4])


def test_replay_needs_two_times(situation):
    requests = sample_workload(synthetic(situation, Poisson(20.0)), situation.task_names, 1, seed=1)
    with pytest.raises(InputError, match="one instant"):
        replay(requests)


def test_strata_share_out_the_rates(situation):
    workload = synthetic(situation, random_rates(2.0, 128.0, 1e9))
    parts = strata(workload, 3)
    edges = [(part.arrivals.low, part.arrivals.high) for part in parts]
    np.testing.assert_allclose(edges, [(2, 8), (8, 32), (32, 128)])
    for part, (low, high) in zip(parts, edges, strict=True):
        rates = [
            len(requests) / float(requests.arrival_s[-1])
            for requests in (sample_workload(part, situation.task_names, 2000, seed) for seed in range(8))
        ]
        assert low / 1.1 < min(rates) < max(rates) < high * 1.1
    steady = synthetic(situation, Poisson(20.0))
    assert all(part is steady for part in strata(steady, 3))
