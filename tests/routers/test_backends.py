"""The compiled simulator and the reference show every router the same, so that it decides alike in both."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest

import besteffort
from besteffort.evaluation.tuning import maker
from besteffort.profile import load_profile
from besteffort.routers import ROUTERS, TUNED, settings_at
from besteffort.routers.registry import dimensions
from besteffort.routers.switch import SwitchRouter
from besteffort.simulator.build import build
from besteffort.simulator.result import Result
from besteffort.simulator.types import Router
from besteffort.situation import Cluster, Deadline, Reward, Situation, Task
from besteffort.workload.requests import PARTIES, Requests

SITUATION = Situation(
    load_profile("opt-a100"),
    Cluster(replicas=2, max_batch=4, queue_capacity=3, network_delay_s=0.01),
    tuple(
        Task(name, prompt_tokens=(16, 400), output_tokens=(1, 30), deadline=Deadline(0.1, 0.015))
        for name in ("piqa", "lambada")
    ),
    Reward(0.5, 0.25),
)
NAMES = [name for name in ROUTERS if name != "static"]


def requests(n: int = 150) -> Requests:
    rng = np.random.default_rng(0)
    outputs = rng.integers(1, 30, n)
    arrival_s = np.cumsum(rng.exponential(1 / 120, n))
    task, prompts = rng.integers(0, 2, n), rng.integers(16, 400, n)
    return Requests(SITUATION.task_names, arrival_s, task, prompts, outputs, 0.1 + 0.015 * outputs)


@cache
def members() -> tuple[Router, ...]:
    """Every router by name, with the numbers that tuning starts from."""
    shape, _ = build(SITUATION, None, history=1)
    make = maker(SITUATION)
    return tuple(
        make(name, **settings_at(name, shape, np.zeros(dimensions(name, shape))) if name in TUNED else {})
        for name in NAMES
    )


@pytest.mark.parametrize("name", NAMES)
def test_both_backends_give_the_same(name: str) -> None:
    # One program for all of them; which is followed is a number.
    router = SwitchRouter(members(), np.int32(NAMES.index(name)))
    results = [
        besteffort.simulate(requests(), SITUATION, router, backend=each, seed=3) for each in ("jax", "reference")
    ]
    np.testing.assert_array_equal(results[0].model, results[1].model)
    assert len(set(results[0].model.tolist())) > 1
    for field in dataclasses.fields(Result):
        one, other = (getattr(result, field.name) for result in results)
        if field.name in PARTIES:
            assert one is other is None
        else:
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-9, err_msg=field.name)
