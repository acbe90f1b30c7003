"""The network, and its weights outside of Flax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.learning.network import QNetwork, Weights, from_weights, members, merge, split, to_weights

NETWORK = QNetwork((5, 4), 3)


def test_weights_describe_the_network() -> None:
    x = jax.random.normal(jax.random.key(1), (7, 2))
    variables = NETWORK.init(jax.random.key(0), x)
    weights = to_weights(variables)
    assert [matrix.shape for matrix, _ in weights] == [(2, 5), (5, 4), (4, 3)]
    y = np.asarray(x)
    for matrix, bias in weights[:-1]:
        y = np.maximum(y @ matrix + bias, 0)
    np.testing.assert_allclose(NETWORK.apply(variables, x), y @ weights[-1][0] + weights[-1][1], rtol=1e-5, atol=1e-6)


def test_there_and_back() -> None:
    variables = NETWORK.init(jax.random.key(0), jnp.zeros((1, 2)))
    again = from_weights(to_weights(variables), 2, NETWORK)
    x = jax.random.normal(jax.random.key(1), (7, 2))
    np.testing.assert_allclose(NETWORK.apply(variables, x), NETWORK.apply(again, x), rtol=1e-5, atol=1e-6)
    for old, new in zip(to_weights(variables), to_weights(again), strict=True):
        np.testing.assert_allclose(old[0], new[0], rtol=1e-5, atol=1e-6)


def test_more_than_ten_layers_keep_their_order() -> None:
    network = QNetwork((2,) * 11, 1)
    sizes = [matrix.shape for matrix, _ in to_weights(network.init(jax.random.key(0), jnp.zeros((1, 3))))]
    assert sizes == [(3, 2)] + [(2, 2)] * 10 + [(2, 1)]


def test_other_sizes_are_refused() -> None:
    weights = to_weights(NETWORK.init(jax.random.key(0), jnp.zeros((1, 2))))
    with pytest.raises(InputError, match=r"layers \[\(2, 5\), \(5, 4\), \(4, 3\)\], but this training needs"):
        from_weights(weights, 6, NETWORK)


def committee() -> list[Weights]:
    x = jnp.zeros((1, 2))
    return [to_weights(NETWORK.init(key, x)) for key in jax.random.split(jax.random.key(3), 3)]


def values(weights: Weights, x: np.ndarray) -> np.ndarray:
    for matrix, bias in weights[:-1]:
        x = np.maximum(x @ matrix + bias, 0)
    return x @ weights[-1][0] + weights[-1][1]


def test_a_committee_is_one_network_with_their_mean_values() -> None:
    x = np.asarray(jax.random.normal(jax.random.key(1), (7, 2)))
    merged = merge(committee())
    assert [matrix.shape for matrix, _ in merged] == [(2, 15), (15, 12), (12, 3)]
    assert {array.dtype for layer in merged for array in layer} == {np.dtype(np.float32)}
    mean = np.mean([values(weights, x) for weights in committee()], axis=0)
    np.testing.assert_allclose(values(merged, x), mean, rtol=1e-5, atol=1e-6)


def test_a_committee_parts_again() -> None:
    x = np.asarray(jax.random.normal(jax.random.key(1), (7, 2)))
    mean = np.mean([values(weights, x) for weights in committee()], axis=0)
    parts = split(merge(committee()), 3)
    for old, new in zip(committee(), parts, strict=True):
        for (old_kernel, old_bias), (new_kernel, new_bias) in zip(old[:-1], new[:-1], strict=True):
            np.testing.assert_array_equal(old_kernel, new_kernel)
            np.testing.assert_array_equal(old_bias, new_bias)
        np.testing.assert_allclose(old[-1][0], new[-1][0], rtol=1e-6)
    np.testing.assert_allclose(np.mean([values(weights, x) for weights in parts], axis=0), mean, rtol=1e-5, atol=1e-6)


def test_how_many_a_network_consists_of_is_seen_from_its_zeros() -> None:
    three = committee()
    assert len(members(merge(three))) == 3
    np.testing.assert_array_equal(members(merge(three))[1][1][0], three[1][1][0])
    assert members(three[0]) == [three[0]]
    flat = to_weights(QNetwork((6,), 3).init(jax.random.key(0), jnp.zeros((1, 2))))
    assert members(flat) == [flat]


@pytest.mark.parametrize("networks", [2, 5])
def test_what_is_no_such_committee_is_refused(networks: int) -> None:
    with pytest.raises(InputError, match=f"not {networks} networks side by side; set `training.config.committee`"):
        split(merge(committee()), networks)
    with pytest.raises(InputError, match="not 5 networks"):
        split(to_weights(QNetwork((5, 5), 5).init(jax.random.key(0), jnp.zeros((1, 2)))), 5)
