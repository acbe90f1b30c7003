"""Weights outside of Flax: ensembles merged into one network, and taken apart again."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.learning.network import QNetwork, to_weights
from besteffort.weights import Weights, merge, split, with_bypass, with_share, without_bypass

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


def whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Whole numbers, so small that no sum of theirs is rounded."""
    return rng.integers(-4, 5, shape).astype(np.float32)


def random_network(*sizes: int) -> Weights:
    rng = np.random.default_rng(len(sizes))
    return tuple((whole(rng, *pair), whole(rng, pair[1])) for pair in itertools.pairwise(sizes))


# The inputs of the bypass come first, in the middle, last.
@pytest.mark.parametrize("start", [0, 2, 4])
@pytest.mark.parametrize("hidden", [(5,), (5, 4), (6, 2, 5)], ids=len)
def test_a_bypass_adds_inputs_to_outputs(hidden: tuple[int, ...], start: int) -> None:
    weights = random_network(7, *hidden, 3)
    x = whole(np.random.default_rng(9), 20, 7)
    bypassed = with_bypass(weights, start)
    assert {array.dtype for layer in bypassed for array in layer} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(values(bypassed, x), values(weights, x) + x[:, start : start + 3])


@pytest.mark.parametrize("hidden", [(5,), (5, 4), (6, 2, 5)], ids=len)
def test_what_was_bypassed_is_as_before(hidden: tuple[int, ...]) -> None:
    weights = random_network(7, *hidden, 3)
    for old, new in zip(weights, without_bypass(with_bypass(weights, 2)), strict=True):
        np.testing.assert_array_equal(old[0], new[0])
        np.testing.assert_array_equal(old[1], new[1])


def test_any_inputs_pass_as_they_are() -> None:
    """A network of zeros shows what becomes of them, however large or small."""
    zeros: Weights = tuple(
        (np.zeros(pair, np.float32), np.zeros(pair[1], np.float32)) for pair in itertools.pairwise((3, 5, 4, 3))
    )
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * np.float32(10) ** np.arange(-25, 25)[:, None]
    x = x.astype(np.float32)
    np.testing.assert_array_equal(values(with_bypass(zeros, 0), x), x)


def test_an_ensemble_with_bypasses_merges_and_parts() -> None:
    networks = [to_weights(NETWORK.init(key, jnp.zeros((1, 6)))) for key in jax.random.split(jax.random.key(3), 3)]
    merged = merge([with_bypass(weights, 2) for weights in networks])
    x = np.asarray(jax.random.normal(jax.random.key(1), (7, 6)))
    mean = np.mean([values(weights, x) for weights in networks], axis=0)
    np.testing.assert_allclose(values(merged, x), mean + x[:, 2:5], rtol=1e-5, atol=1e-5)
    for old, part in zip(networks, map(without_bypass, split(merged, 3)), strict=True):
        for one, other in zip(old[:-1], part[:-1], strict=True):
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_allclose(old[-1][0], part[-1][0], rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_what_an_ensemble_adds(share: float) -> None:
    networks = [to_weights(NETWORK.init(key, jnp.zeros((1, 6)))) for key in jax.random.split(jax.random.key(3), 3)]
    merged = merge([with_bypass(weights, 2) for weights in networks])
    x = np.asarray(jax.random.normal(jax.random.key(1), (7, 6)))
    added = values(merge(networks), x)
    assert np.abs(added).max() > 0.1
    kept = values(with_share(merged, share, 2, 3), x)
    np.testing.assert_allclose(kept, x[:, 2:5] + share * added, rtol=1e-5, atol=1e-6)
