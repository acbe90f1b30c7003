"""Situations side by side: one shape, numbers of their own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from besteffort.diagnosis.wrong_profiles import perturb_latency
from besteffort.errors import InputError
from besteffort.runs.config import load_situation
from besteffort.simulator.build import build, build_alike
from besteffort.situation import Situation


@pytest.fixture(scope="module")
def situation() -> Situation:
    return load_situation("paper")


def test_switches_are_those_of_any_and_numbers_those_of_each(situation: Situation) -> None:
    late = dataclasses.replace(situation, view=dataclasses.replace(situation.view, rate_lag=7, batch_refresh_s=0.5))
    earlier = dataclasses.replace(situation, view=dataclasses.replace(situation.view, rate_lag=3))
    costly = tuple(dataclasses.replace(model, context_cost_s=1e-6) for model in situation.profile.models)
    costly = dataclasses.replace(situation, profile=dataclasses.replace(situation.profile, models=costly))
    chunked = tuple(dataclasses.replace(model, chunk_tokens=64) for model in situation.profile.models)
    chunked = dataclasses.replace(situation, profile=dataclasses.replace(situation.profile, models=chunked))
    shape, (a, b, c, d) = build_alike([situation, late, earlier, costly], history=8)
    assert (shape.chunks, shape.stepwise, a.chunk_tokens) == (False, False, None)
    together, (whole, parts) = build_alike([situation, chunked], history=8)
    assert (together.chunks, together.stepwise, together.slowdown) == (True, True, False)
    np.testing.assert_array_equal([whole.chunk_tokens, parts.chunk_tokens], [[np.inf] * 3, [64] * 3])
    assert (shape.rate_memory, shape.stale_sizes, shape.context_cost, shape.cache_limit) == (7, True, True, False)
    assert [int(params.rate_lag) for params in (a, b, c, d)] == [0, 7, 3, 0]
    np.testing.assert_allclose([params.batch_refresh_s for params in (a, b, c, d)], [0, 0.5, 0, 0])
    np.testing.assert_allclose(d.context_cost_s, 1e-6)
    np.testing.assert_array_equal(a.context_cost_s, 0)


def test_one_alone_is_built_as_ever(situation: Situation) -> None:
    shape, (params,) = build_alike([situation], history=8)
    alone, numbers = build(situation, None, history=8)
    assert shape == alone
    assert (shape.rate_memory, shape.stale_sizes) == (0, False)
    np.testing.assert_array_equal(params.decode, numbers.decode)


def test_tables_cover_the_longest_prompt_of_all(situation: Situation) -> None:
    longer = tuple(dataclasses.replace(task, prompt_tokens=(64, 500)) for task in situation.tasks)
    slower = dataclasses.replace(situation, profile=perturb_latency(situation.profile, 0.1, "slower"))
    _, numbers = build_alike([slower, dataclasses.replace(situation, tasks=longer)], history=8)
    assert {params.prefill.shape for params in numbers} == {(3, 501)}
    np.testing.assert_allclose(numbers[0].prefill[:, 1:], 1.1 * numbers[1].prefill[:, 1:], rtol=1e-6)


def test_more_than_numbers_is_refused(situation: Situation) -> None:
    larger = dataclasses.replace(situation, cluster=dataclasses.replace(situation.cluster, replicas=5))
    with pytest.raises(InputError, match="give situations that differ in numbers only"):
        build_alike([situation, larger], history=8)
