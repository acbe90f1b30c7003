"""Two programs that share nothing but the rules, the SimPy model and the reference, give the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from besteffort.estimates.tables import Tables
from besteffort.observation import Observation
from besteffort.simulator.reference import simulate_reference
from besteffort.situation import Cluster, Reward, View
from besteffort.workload.requests import Requests

pytestmark = pytest.mark.checkout


def random_case(seed: int, dyadic: bool) -> tuple[Requests, Tables, Cluster, np.ndarray]:
    """300 requests for a small cluster at 0.1 to 5 times what it can serve; `dyadic` times coincide often."""
    rng = np.random.default_rng(seed)
    n, models, longest = 300, int(rng.integers(1, 6)), int(rng.choice([1, 4, 60]))
    cluster = Cluster(
        replicas=int(rng.integers(1, 6)),
        max_batch=int(rng.integers(1, 12)),
        queue_capacity=int(rng.integers(0, 12)),
        network_delay_s=float(rng.choice([0.0, 0.5])),
    )
    decode = np.cumsum(rng.integers(0, 3, (models, cluster.max_batch + 1)), axis=1) + 4.0
    decode[:, 0] = 0.0
    prefill = np.cumsum(rng.integers(0, 3, (models, 17)), axis=1) + 1.0
    per_request_s = prefill.mean() + (longest - 1) / 2 * decode[:, -1].mean() / cluster.max_batch
    gaps = rng.exponential(per_request_s / (cluster.replicas * models * 10 ** rng.uniform(-1, 0.7)), n)
    if dyadic:
        gaps = np.round(gaps)
    else:
        decode, prefill = decode * rng.uniform(0.5, 1.0, (models, 1)), prefill * rng.uniform(0.5, 1.0, (models, 1))
    tables = Tables(decode, prefill, np.ones((models, models)), np.zeros(models), np.full(models, np.inf))
    requests = Requests(
        ("task",), np.cumsum(gaps), np.zeros(n), rng.integers(1, 17, n), rng.integers(1, longest + 1, n), np.ones(n)
    )
    return requests, tables, cluster, rng.integers(0, models, n)


@pytest.mark.parametrize("dyadic", [True, False])
def test_simpy_and_reference_agree(dyadic: bool) -> None:
    from benchmarks.simpy_model import serve

    rejected = 0
    for seed in range(40):
        requests, tables, cluster, models = random_case(seed, dyadic)
        seen: list[tuple[list[int], float]] = []

        def route(index: int, observation: Observation, models: np.ndarray = models, seen: list[object] = seen) -> int:
            seen.append((observation.batch_sizes.tolist(), observation.arrival_rate))
            return int(models[index])

        reference = simulate_reference(
            requests,
            tables,
            cluster.pools([f"model{m}" for m in range(tables.pools)]),
            route,
            quality=np.ones((1, tables.pools)),
            weight=np.ones(1),
            visible_deadline_s=np.ones(1),
            reward=Reward(),
            view=View(),
        )
        also_seen: list[tuple[list[int], float]] = []

        def simpy_route(
            index: int, sizes: list[int], rate: float, models: np.ndarray = models, seen: list[object] = also_seen
        ) -> int:
            seen.append((sizes, rate))
            return int(models[index])

        served = serve(requests, tables, cluster, simpy_route)
        assert served.model.tolist() == reference.model.tolist()
        assert served.replica.tolist() == reference.replica.tolist()
        assert [sizes for sizes, _ in also_seen] == [sizes for sizes, _ in seen]
        np.testing.assert_allclose([rate for _, rate in also_seen], [rate for _, rate in seen], rtol=1e-12)
        tolerance = 0.0 if dyadic else 1e-12 * np.nanmax(reference.completion_s)
        np.testing.assert_allclose(served.completion_s, reference.completion_s, rtol=0, atol=tolerance)
        np.testing.assert_allclose(served.latency_s, reference.latency_s, rtol=0, atol=tolerance)
        rejected += int(reference.rejected.sum())
    assert rejected > 100


def test_coupled_instances_are_refused() -> None:
    from benchmarks.simpy_model import serve

    requests, tables, cluster, models = random_case(0, dyadic=True)
    slow = dataclasses.replace(tables, context_cost_s=np.full(tables.pools, 0.1))
    with pytest.raises(ValueError, match="knows neither slow-down"):
        serve(requests, slow, cluster, lambda index, sizes, rate: int(models[index]))
