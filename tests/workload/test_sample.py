from __future__ import annotations

import numpy as np
import pytest

from besteffort.situation import Situation
from besteffort.workload.arrivals import Poisson
from besteffort.workload.requests import Requests
from besteffort.workload.sample import sample_lists, sample_workload
from besteffort.workload.synthetic_workload import synthetic

N = 600


@pytest.fixture(scope="module")
def lists(situation: Situation) -> list[Requests]:
    workloads = [synthetic(situation, Poisson(rate)) for rate in (100.0, 400.0)]
    return sample_lists(workloads, situation.task_names, N, [5, 6])


def test_lists_are_the_generators_own(situation: Situation, lists: list[Requests]) -> None:
    assert len(lists) == 4
    alone = sample_workload(synthetic(situation, Poisson(400.0)), situation.task_names, N, 6)
    for name, values in alone.columns.items():
        np.testing.assert_allclose(getattr(lists[3], name), values, rtol=1e-6)


def test_lists_of_a_seed_share_their_draws(lists: list[Requests]) -> None:
    slow, fast = lists[0], lists[2]
    np.testing.assert_array_equal(slow.output_tokens, fast.output_tokens)
    np.testing.assert_allclose(slow.arrival_s, 4 * fast.arrival_s, rtol=1e-5)
    assert (lists[0].output_tokens != lists[1].output_tokens).any()


def test_a_list_depends_on_its_load_and_seed_alone(situation: Situation, lists: list[Requests]) -> None:
    """Bit for bit, with more seeds than are drawn by one call, and more requests than one call draws."""
    several = sample_lists([synthetic(situation, Poisson(400.0))], situation.task_names, 5_000, [*range(10, 18), 6])
    assert len(several) == 9
    assert len(several[8]) == 5_000
    for name, values in lists[3].columns.items():
        np.testing.assert_array_equal(getattr(several[8], name)[:N], values)
