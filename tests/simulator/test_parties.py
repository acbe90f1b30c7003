"""What holds of origins and tenants alike: workloads draw them by share, and keep them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from besteffort.situation import Cluster, Deadline, Origin, Situation, Task, Tenant
from besteffort.workload.arrivals import Poisson
from besteffort.workload.requests import PARTIES, Party
from besteffort.workload.resample import resample
from besteffort.workload.sample import sample_requests, sample_workload
from besteffort.workload.trace_workload import replay
from tests.simulator.cases import lone_requests, make_profile

NAMES = ("one", "other", "nobody")
SHARES = (3.0, 1.0, 0.0)
NONE = Situation(
    make_profile(np.full((1, 4), 0.5), np.full((1, 8), 1.0)),
    Cluster(1, 2, 2),
    (Task("task0", prompt_tokens=(1, 8), output_tokens=(1, 3), deadline=Deadline(2.0, 0.0)),),
)
SITUATIONS = {
    "origin": dataclasses.replace(NONE, origins=tuple(map(Origin, NAMES, SHARES))),
    "tenant": dataclasses.replace(NONE, tenants=tuple(map(Tenant, NAMES, (3.0, 1.0, 0.5), SHARES))),
}


@pytest.mark.parametrize("party", PARTIES)
def test_a_synthetic_workload_draws_them_by_share_and_nothing_else_changes(party: Party) -> None:
    requests = sample_requests(SITUATIONS[party], Poisson(100.0), 2000, seed=3)
    assert getattr(requests, f"{party}s") == NAMES
    counts = np.bincount(getattr(requests, party), minlength=3)
    assert counts[2] == 0
    assert 0.71 < counts[0] / 2000 < 0.79
    without = sample_requests(NONE, Poisson(100.0), 2000, seed=3)
    assert getattr(without, party) is None
    assert without.columns.keys() | {party} == requests.columns.keys()
    for name, column in without.columns.items():
        np.testing.assert_array_equal(requests.columns[name], column)


@pytest.mark.parametrize("party", PARTIES)
@pytest.mark.parametrize("how", ["replay", "resample"])
def test_lists_as_workloads_keep_them(how: str, party: Party) -> None:
    requests = lone_requests(party, [0, 1, 2, 1, 0, 2], NAMES)
    requests = dataclasses.replace(requests, prompt_tokens=np.array([1, 2, 3, 2, 1, 3]))
    workload = replay(requests, "first") if how == "replay" else resample(requests, Poisson(1.0))
    drawn = sample_workload(workload, requests.tasks, 20, seed=0)
    assert getattr(drawn, f"{party}s") == NAMES
    index = getattr(drawn, party)
    np.testing.assert_array_equal(index, drawn.prompt_tokens - 1)
    with jax.enable_x64(False):
        part = drawn.part(slice(3, 9), 0.0)
    assert getattr(part, f"{party}s") == NAMES
    assert getattr(part, party).tolist() == index[3:9].tolist()
