"""Weights outside of Flax: ensembles merged into one network, and taken apart again."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.learning.network import QNetwork, to_weights
from besteffort.weights import Weights, merge, split

NETWORK = QNetwork((5, 4), 3)


def ensemble() -> list[Weights]:
    x = jnp.zeros((1, 2))
    return [to_weights(NETWORK.init(key, x)) for key in jax.random.split(jax.random.key(3), 3)]


def values(weights: Weights, x: np.ndarray) -> np.ndarray:
    for matrix, bias in weights[:-1]:
        x = np.maximum(x @ matrix + bias, 0)
    return x @ weights[-1][0] + weights[-1][1]


def test_an_ensemble_is_one_network_with_their_mean_values() -> None:
    x = np.asarray(jax.random.normal(jax.random.key(1), (7, 2)))
    merged = merge(ensemble())
    assert [matrix.shape for matrix, _ in merged] == [(2, 15), (15, 12), (12, 3)]
    assert {array.dtype for layer in merged for array in layer} == {np.dtype(np.float32)}
    mean = np.mean([values(weights, x) for weights in ensemble()], axis=0)
    np.testing.assert_allclose(values(merged, x), mean, rtol=1e-5, atol=1e-6)


def test_an_ensemble_parts_again() -> None:
    x = np.asarray(jax.random.normal(jax.random.key(1), (7, 2)))
    mean = np.mean([values(weights, x) for weights in ensemble()], axis=0)
    parts = split(merge(ensemble()), 3)
    for old, new in zip(ensemble(), parts, strict=True):
        for (old_kernel, old_bias), (new_kernel, new_bias) in zip(old[:-1], new[:-1], strict=True):
            np.testing.assert_array_equal(old_kernel, new_kernel)
            np.testing.assert_array_equal(old_bias, new_bias)
        np.testing.assert_allclose(old[-1][0], new[-1][0], rtol=1e-6)
    np.testing.assert_allclose(np.mean([values(weights, x) for weights in parts], axis=0), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("networks", [2, 5])
def test_what_is_no_such_ensemble_is_refused(networks: int) -> None:
    with pytest.raises(InputError, match=f"not {networks} networks side by side; give the `ensemble_size`"):
        split(merge(ensemble()), networks)
    with pytest.raises(InputError, match="not 5 networks"):
        split(to_weights(QNetwork((5, 5), 5).init(jax.random.key(0), jnp.zeros((1, 2)))), 5)
