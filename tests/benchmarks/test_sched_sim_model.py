"""sched-sim, given where requests go, ends their last iterations when the reference does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from besteffort.simulator.reference import simulate_reference
from besteffort.situation import Reward, View
from tests.benchmarks.test_simpy_model import random_case

pytest.importorskip("sched_sim")
pytestmark = pytest.mark.checkout


def test_sched_sim_and_reference_agree() -> None:
    from benchmarks.sched_sim_model import serve

    met, rejected = 0, 0
    for seed in range(12):
        requests, tables, cluster, models = random_case(seed, dyadic=False)
        requests = dataclasses.replace(requests, output_tokens=requests.output_tokens + 1)
        cluster = dataclasses.replace(cluster, network_delay_s=0.0)
        truth = simulate_reference(
            requests,
            tables,
            cluster.pools([f"model{m}" for m in range(tables.pools)]),
            lambda index, observation, models=models: int(models[index]),
            quality=np.ones((1, tables.pools)),
            weight=np.ones(1),
            visible_deadline_s=np.ones(1),
            reward=Reward(),
            view=View(),
        )
        ends_s = serve(requests, tables, cluster.max_batch, models.tolist(), truth.replica.tolist())
        np.testing.assert_allclose(ends_s, truth.completion_s, rtol=1e-9)
        met, rejected = met + int(np.isfinite(ends_s).sum()), rejected + int(truth.rejected.sum())
    assert met > 1000
    assert rejected > 100
