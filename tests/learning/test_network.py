"""The network, and its weights outside of Flax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.learning.network import QNetwork, from_weights, to_weights

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
