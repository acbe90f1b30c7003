from __future__ import annotations

import dataclasses
import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.errors import InputError
from besteffort.workload.requests import Requests
from besteffort.workload.rescale import (
    capacity,
    mean_rate,
    scale_rate,
    scale_time,
    to_load,
    to_mean_rate,
    window,
)
from besteffort.workload.traces import read_trace


@pytest.fixture
def requests(situation):
    task, outputs = np.array([0, 1, 1, 0]), np.array([1, 20, 20, 4])
    return Requests(
        tasks=situation.task_names,
        arrival_s=np.array([1.0, 2.0, 2.0, 7.0]),
        task=task,
        prompt_tokens=np.array([10, 100, 120, 12]),
        output_tokens=outputs,
        deadline_s=situation.deadlines(task, outputs),
    )


def test_scaling(requests):
    assert mean_rate(requests) == 0.5
    np.testing.assert_allclose(scale_time(requests, 3.0).arrival_s, [3, 6, 6, 21])
    np.testing.assert_allclose(scale_rate(requests, 4.0).arrival_s, [0.25, 0.5, 0.5, 1.75])
    assert mean_rate(to_mean_rate(requests, 17.0)) == pytest.approx(17.0)
    np.testing.assert_array_equal(to_mean_rate(requests, 17.0).deadline_s, requests.deadline_s)
    for factor in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(InputError, match="positive factor"):
            scale_time(requests, factor)
        with pytest.raises(InputError, match="positive factor"):
            scale_rate(requests, factor)
    for times in (np.ones(4), np.array([0.0, 0.0, 0.0, 1e-320])):
        together = dataclasses.replace(requests, arrival_s=times)
        assert mean_rate(together) == np.inf
        with pytest.raises(InputError, match="one instant"):
            to_mean_rate(together, 2.0)


def test_capacity_is_the_situations_for_lengths_of_the_situation(situation):
    """A list that holds every length in its exact proportion has the capacity of the situation."""
    rows = [
        (index, prompt, output)
        for index, task in enumerate(situation.tasks)
        for prompt in range(task.prompt_tokens[0], task.prompt_tokens[1] + 1)
        for output in range(task.output_tokens[0], task.output_tokens[1] + 1)
        # 12 pairs for the first task, 81 for the second: 81 x 3 to 12 makes the shares 3 to 1.
        for _ in range(81 * 3 if index == 0 else 12)
    ]
    task, prompts, outputs = np.array(rows).T
    n = len(rows)
    requests = Requests(situation.task_names, np.arange(n), task, prompts, outputs, np.ones(n))
    np.testing.assert_allclose(capacity(requests, situation), situation.capacity(), rtol=1e-12)
    assert mean_rate(to_load(requests, situation, 2.0)) == pytest.approx(2 * situation.capacity()[-1])


def test_window(requests):
    part = window(requests, 2.0, 7.0)
    np.testing.assert_array_equal(part.arrival_s, [0, 0])
    np.testing.assert_array_equal(part.prompt_tokens, [100, 120])
    with pytest.raises(InputError, match="No request arrives between 3 and 6 s; the list spans 1 to 7 s"):
        window(requests, 3.0, 6.0)


@given(gaps=st.lists(st.floats(0.0, 1e5), min_size=1, max_size=20), seed=st.integers(0, 100))
@pytest.mark.parametrize("name", ["list.csv", "list.csv.gz"])
def test_a_written_list_reads_back_exactly(situation, tmp_path_factory, name, gaps, seed):
    rng, n = np.random.default_rng(seed), len(gaps)
    task, outputs = rng.integers(0, 2, n), rng.integers(1, 1000, n)
    arrival_s, prompts = np.cumsum(gaps), rng.integers(1, 1000, n)
    deadlines = situation.deadlines(task, outputs)
    requests = Requests(situation.task_names, arrival_s, task, prompts, outputs, deadlines)
    path = tmp_path_factory.mktemp("lists") / name
    names = [situation.task_names[index] for index in task]
    rows = zip(arrival_s.tolist(), names, prompts.tolist(), outputs.tolist(), strict=True)
    text = "\n".join(["arrival_s,task,prompt_tokens,output_tokens", *(",".join(map(str, row)) for row in rows), ""])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    again, info = read_trace(path, situation)
    for field in dataclasses.fields(Requests):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(requests, field.name))
    assert info.kind == "csv"
    assert (info.clipped_outputs, info.clipped_prompts, info.raised) == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrival_s": np.array([1.0, 2.0, 1.5, 7.0])}, "goes back in time at request 2"),
        ({"arrival_s": np.array([-1.0, 2.0, 2.5, 7.0])}, "starts at -1 s"),
        ({"arrival_s": np.array([1.0, 2.0, np.nan, 7.0])}, "not finite"),
        ({"arrival_s": np.array([])}, "empty"),
        ({"task": np.array([0, 1, 2, 0])}, "must index one of the 2 tasks"),
        ({"task": np.array([0, 1])}, "`task` has shape"),
        ({"output_tokens": np.array([1, 0, 1, 1])}, "`output_tokens` of request 1 is below 1"),
        ({"deadline_s": np.array([1.0, 0.0, 1.0, 1.0])}, "`deadline_s` must be finite and positive"),
    ],
)
def test_impossible_lists_are_refused(requests, change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(requests, **change)
