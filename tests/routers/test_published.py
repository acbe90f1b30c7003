"""Rules of other systems, where what they choose is plain."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from in_flight import built, choose, observe

from besteffort.errors import InputError
from besteffort.routers import make_router
from besteffort.routers.prediction import predict_latency_ahead
from besteffort.routers.published import LatencyBasedRouter, LeastBusyRouter
from besteffort.routers.switch import SwitchRouter

SHAPE, PARAMS = built()
FULL = [(model, replica, 100) for model in (0, 1, 2) for replica in (0, 1) for _ in range(4)]
QUALITY = np.asarray(PARAMS.quality[0])


def latencies(sent: Any = ()) -> np.ndarray:
    return np.asarray(predict_latency_ahead(observe(sent), PARAMS))


def slackfit(reserve: float, buckets: float) -> Any:
    return make_router("slackfit", SHAPE, reserve=reserve, buckets=buckets)


@pytest.mark.parametrize("buckets", [1.0, 2.5, 1e4])
def test_slackfit_spends_the_slack(buckets: float) -> None:
    small, middle, large = latencies().tolist()
    assert small < middle < large
    assert (np.diff(QUALITY) > 0).all()
    for model, latency in enumerate((small, middle, large)):
        assert choose(slackfit(0.0, buckets), observe(deadline_s=1.001 * latency)) == model
        assert choose(slackfit(0.0, buckets), observe(deadline_s=0.999 * latency)) == max(model - 1, 0)
        assert choose(slackfit(0.5, buckets), observe(deadline_s=2.002 * latency)) == model


def test_slackfit_takes_the_best_of_a_bucket() -> None:
    # Lines make the middle model the slowest one.
    sent = [(1, replica, 2_000) for replica in (0, 1) for _ in range(7)]
    small, middle, large = latencies(sent).tolist()
    assert small < large < middle
    chosen = [choose(slackfit(0.0, buckets), observe(sent, deadline_s=10.0)) for buckets in (1.0, 1e4)]
    assert chosen == [2, 1]
    assert choose(slackfit(0.0, 1e4), observe(sent, deadline_s=(large + middle) / 2)) == 2


def test_slackfit_takes_the_fastest_where_none_fits() -> None:
    assert choose(slackfit(0.0, 3.0), observe(FULL, deadline_s=1e-3)) == int(np.argmin(latencies(FULL)))


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.2, 0.0), (0.0, 0.2), (0.05, 0.05), (10.0, 0.0), (0.0, 10.0)])
@pytest.mark.parametrize("sent", [[], [(2, 0, 900), (2, 1, 900)]], ids=len)
def test_routebalance_is_an_argmax_of_the_weighted_score(weights: tuple[float, float], sent: Any) -> None:
    router = make_router("routebalance", SHAPE, latency_weight=weights[0], cost_weight=weights[1])
    work = np.asarray(PARAMS.prefill[:, 100] + PARAMS.priors.decode_work_s[0])
    latency = latencies(sent)
    score = QUALITY - weights[0] * latency / latency.max() - weights[1] * work / work.max()
    assert choose(router, observe(sent)) == int(score.argmax())
    if max(weights) in (0.0, 10.0):
        assert int(score.argmax()) == (2 if max(weights) == 0.0 else 0)


def test_least_busy_counts_all_replicas_and_takes_the_first_on_a_tie() -> None:
    assert choose(LeastBusyRouter(), observe()) == 0
    # The idle instance of the largest model does not count for it.
    sent = [(0, 0, 100), (1, 0, 100), (0, 1, 100), (2, 0, 100), (2, 0, 100)]
    assert choose(LeastBusyRouter(), observe(sent)) == 1
    assert choose(LeastBusyRouter(), observe([*sent, (1, 1, 100)])) == 0


def drawn(router: Any) -> np.ndarray:
    """(1000,) models that a router draws on an idle cluster."""
    observation, keys = observe(), jax.random.split(jax.random.key(0), 1_000)
    return np.asarray(jax.jit(jax.vmap(lambda key: router.route(observation, PARAMS, key)))(keys))


def test_latency_based_draws_within_the_buffer() -> None:
    small, middle, large = latencies().tolist()
    for buffer, models in ((0.0, 1), (1.001 * middle / small - 1, 2), (1.001 * large / small - 1, 3)):
        counts = np.bincount(drawn(make_router("latency-based", SHAPE, buffer=buffer)), minlength=3)
        np.testing.assert_allclose(counts[:models] / 1_000, 1 / models, atol=0.05)
        assert not counts[models:].any()


def test_latency_based_draws_beside_others_that_draw() -> None:
    members = (
        make_router("random", SHAPE),
        make_router("gear", SHAPE, rates=[1.0], shares=np.full((1, 1, 3), 1 / 3), head_room=1.0),
        LatencyBasedRouter(1e3),
    )
    of_random, of_gear, mine = (drawn(SwitchRouter(members, which)) for which in range(3))
    assert np.mean(of_random == mine) == pytest.approx(1 / 3, abs=0.05)
    assert np.mean(of_gear == mine) == pytest.approx(1 / 3, abs=0.05)


def test_settings_are_checked() -> None:
    for name, numbers, message in (
        ("slackfit", {"reserve": 0.1, "buckets": 0.5}, "`buckets` is 0.5; give a finite number of at least 1"),
        ("routebalance", {"latency_weight": -1.0, "cost_weight": 0.1}, "`latency_weight` is -1.0"),
        ("latency-based", {"buffer": float("inf")}, "`buffer` is inf"),
    ):
        with pytest.raises(InputError, match=message):
            make_router(name, SHAPE, **numbers)
