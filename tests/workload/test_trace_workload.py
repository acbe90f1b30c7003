from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.workload.requests import Requests
from besteffort.workload.sample import draw
from besteffort.workload.trace_workload import replay_at_rates

N = 50


@pytest.fixture(scope="module")
def bursty() -> Requests:
    rng = np.random.default_rng(0)
    gaps = np.where(np.arange(N) % 10 == 0, 5.0, 0.1) * rng.uniform(0.5, 1.5, N)
    return Requests(
        tasks=("a", "b"),
        arrival_s=np.cumsum(gaps) - gaps[0],
        task=rng.integers(0, 2, N),
        prompt_tokens=np.arange(1, N + 1),
        output_tokens=rng.integers(1, 9, N),
        deadline_s=rng.uniform(1, 2, N),
    )


def test_order_and_bursts_stay_and_only_the_rate_changes(bursty: Requests) -> None:
    arrivals = draw(replay_at_rates(bursty, 2.0, 200.0, 400.0), jax.random.key(3), 4_000)
    rows = np.asarray(arrivals.prompt_tokens) - 1  # tells the row
    np.testing.assert_array_equal(arrivals.task, bursty.task[rows])
    np.testing.assert_array_equal(arrivals.output_tokens, bursty.output_tokens[rows])
    goes_on = (np.diff(rows) - 1) % N == 0
    changes = np.flatnonzero(~goes_on) + 1
    assert 3 <= len(changes) <= 25  # 4,000 requests at about 400 a rate
    own = np.diff(bursty.arrival_s, append=bursty.arrival_s[-1] + (bursty.arrival_s[-1]) / (N - 1))
    expected = np.roll(own, 1)[rows]
    stretch = np.asarray(arrivals.gap_s) / expected
    for stretch_of in np.split(stretch, changes):
        np.testing.assert_allclose(stretch_of, stretch_of[0], rtol=1e-4)
    rates = (N - 1) / bursty.arrival_s[-1] / stretch
    assert rates.min() >= 2.0 * (1 - 1e-4)
    assert rates.max() <= 200.0 * (1 + 1e-4)
    assert rates.max() / rates.min() > 3


def test_rates_are_spread_log_uniformly(bursty: Requests) -> None:
    workload = replay_at_rates(bursty, 1.0, 100.0, 10.0)
    keys = jax.random.split(jax.random.key(0), 2_000)
    stretch = jax.vmap(workload.init)(keys).stretch
    logs = np.log10((N - 1) / bursty.arrival_s[-1] / np.asarray(stretch))
    quantiles = np.quantile(logs, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quantiles, [0.5, 1.0, 1.5], atol=0.12)
    assert jnp.shape(stretch) == (2_000,)


@pytest.mark.parametrize("numbers", [(0.0, 1.0, 10.0), (2.0, 1.0, 10.0), (1.0, float("inf"), 10.0), (1.0, 2.0, 0.0)])
def test_rates_out_of_range_are_refused(bursty: Requests, numbers: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="give positive numbers"):
        replay_at_rates(bursty, *numbers)
