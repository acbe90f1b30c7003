"""Predicted latency against sums done by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cluster import DECODE, PREFILL, SIZES, observe, params
from hypothesis import given
from hypothesis import strategies as st

from besteffort.estimates.reward import timeliness
from besteffort.routers.prediction import picked, predict_latency, predicted_value

IDLE = [[0, 0, 0], [0, 0, 0]]
# Means over the tasks: 150 prompt and 16 output tokens.
ADMISSION = PREFILL[:, 150] / 16


def test_least_loaded_instance_is_the_first_of_the_smallest() -> None:
    replica, batch = picked(observe([[3, 1, 2], [1, 1, 5]]))
    assert replica.tolist() == [1, 0, 0]
    assert batch.tolist() == [1, 1, 2]


@pytest.mark.parametrize(("task", "prompt", "output"), [(0, 100, 11), (1, 200, 21)])
def test_idle_cluster_is_exact(task: int, prompt: int, output: int) -> None:
    expected = PREFILL[:, prompt] + (output - 1) * DECODE[:, 1]
    np.testing.assert_allclose(predict_latency(observe(IDLE, task), params()), expected, rtol=1e-6)


def test_half_full_instance() -> None:
    residual = (DECODE[:, 2] + 2 * ADMISSION) / 2
    first = PREFILL[:, 100] + DECODE[:, 2]
    further = 10 * (DECODE[:, 3] + 2 * ADMISSION)
    predicted = predict_latency(observe([[2, 2, 2], [3, 3, 3]]), params())
    np.testing.assert_allclose(predicted, residual + first + further, rtol=1e-6)


def test_full_instance_waits_for_departures() -> None:
    full = DECODE[:, 4] + 4 * ADMISSION
    residual = full / 2
    waiting = 3 * 16 / 4 * full
    first = PREFILL[:, 100] + DECODE[:, 3]
    further = 10 * (DECODE[:, 4] + 3 * ADMISSION)
    predicted = predict_latency(observe([[6, 6, 6], [6, 6, 6]]), params())
    np.testing.assert_allclose(predicted, residual + waiting + first + further, rtol=1e-6)


def test_slow_down_counts_busy_models_of_the_chosen_replica() -> None:
    slowdown = jnp.array([[9.0, 1.5, 2.0], [1.1, 9.0, 1.2], [1.3, 1.4, 9.0]])
    # Model 0 goes to replica 0, where model 2 is busy; model 1 to replica 1 (idle); model 2 to replica 1.
    batch = [[0, 1, 1], [0, 0, 0]]
    plain = predict_latency(observe(batch), params())
    stretched = predict_latency(observe(batch), params(slowdown=slowdown))
    np.testing.assert_allclose(stretched / plain, [1.5 * 2.0, 1.0, 1.0], rtol=1e-6)


def test_tokens_held_cost() -> None:
    cost = jnp.array([1e-5, 0.0, 2e-5])
    held = 150 + 16 / 2
    plain = predict_latency(observe([[2, 2, 2]] * 2), params())
    dearer = predict_latency(observe([[2, 2, 2]] * 2), params(context_cost_s=cost))
    np.testing.assert_allclose(dearer - plain, np.asarray(cost) * held * (2 / 2 + 2 + 10 * 3), rtol=1e-3)


def test_cache_limits_the_slots() -> None:
    # Mean request: 150 + 16 tokens; 400 tokens hold two, 10 tokens still count as one slot.
    limited = params(cache_tokens=jnp.array([jnp.inf, 400.0, 10.0]))
    batch = [[2, 2, 2]] * 2
    full = [DECODE[1, 2] + 2 * ADMISSION[1], DECODE[2, 1] + ADMISSION[2]]
    expected = [
        full[0] / 2 + 16 / 2 * full[0] + PREFILL[1, 100] + DECODE[1, 1] + 10 * (DECODE[1, 2] + ADMISSION[1]),
        full[1] / 2 + 2 * 16 * full[1] + PREFILL[2, 100] + 10 * DECODE[2, 1],
    ]
    predicted = predict_latency(observe(batch), limited)
    np.testing.assert_allclose(predicted[1:], expected, rtol=1e-6)
    np.testing.assert_allclose(predicted[0], predict_latency(observe(batch), params())[0], rtol=1e-6)


def test_network_delay_is_added() -> None:
    delayed = predict_latency(observe(IDLE), params(network_delay_s=jnp.array(0.25)))
    np.testing.assert_allclose(delayed, predict_latency(observe(IDLE), params()) + 0.25, rtol=1e-6)


@given(st.integers(0, 8), st.integers(0, 1))
def test_grows_with_the_batch_and_with_the_model(batch: int, task: int) -> None:
    predict = jax.jit(lambda batch: predict_latency(observe(jnp.full((2, 3), batch), task), params()))
    now, then = predict(batch), predict(batch + 1)
    assert (then > now).all()
    np.testing.assert_allclose(now / now[0], SIZES, rtol=1e-5)


def test_value_is_quality_while_in_time_and_fades_after() -> None:
    latency = jnp.array([0.5, 0.75, 1.1])
    soft = params(soft_span=jnp.array(1.0))
    np.testing.assert_allclose(predicted_value(observe(IDLE), params(), latency, jnp.array(0.5)), [0.6, 0.0, 0.0])
    np.testing.assert_allclose(predicted_value(observe(IDLE), soft, latency, jnp.array(0.5)), [0.6, 0.4, 0.0])


@given(st.floats(0.01, 3.0), st.floats(0.05, 2.0), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([1e-4, 0.02, 0.2]))
def test_a_width_gives_the_mean_over_errors_of_the_prediction(
    latency_s: float, deadline_s: float, soft_span: float, width_s: float
) -> None:
    chances = (np.arange(20_000) + 0.5) / 20_000
    errors_s = width_s * np.log(chances / (1 - chances))
    expected = timeliness(latency_s + errors_s, deadline_s, soft_span).mean()
    found = _value(latency_s, deadline_s, soft_span, width_s)
    np.testing.assert_allclose(found, np.array([0.6, 0.8, 1.0]) * expected, atol=2e-4)


@given(st.floats(0.01, 3.0), st.floats(0.05, 2.0), st.sampled_from([0.0, 0.3, 1.0]))
def test_without_a_width_the_prediction_counts_as_true(latency_s: float, deadline_s: float, soft_span: float) -> None:
    plain = params().quality[0] * timeliness(jnp.float32(latency_s), jnp.float32(deadline_s), soft_span, jnp)
    np.testing.assert_array_equal(_value(latency_s, deadline_s, soft_span, 0.0), plain)


@jax.jit
def _value(latency_s: float, deadline_s: float, soft_span: float, width_s: float) -> jax.Array:
    latencies = jnp.full(3, latency_s, jnp.float32)
    return predicted_value(
        observe(IDLE), params(soft_span=soft_span), latencies, jnp.float32(deadline_s), jnp.float32(width_s)
    )


def test_float64_stays_float64() -> None:
    with jax.enable_x64(True):
        assert predict_latency(observe(IDLE), params()).dtype == jnp.float64
