"""The network, and its weights outside of Flax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.learning.network import Baseline, QNetwork, exogenous, from_weights, to_weights, values_at
from besteffort.observation import default_features
from besteffort.weights import Weights

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


FEATURES = default_features(2, 3, 1, 8, 10.0, ("task", "value", "harm"))
ADDING = QNetwork((5, 4), 3, values_at(FEATURES))


def test_values_lie_where_their_feature_does() -> None:
    assert values_at(FEATURES) == 2
    assert values_at(FEATURES[1:]) == 0
    assert values_at(FEATURES[::2]) is None


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_network_on_values_decides_as_the_rule(seed: int) -> None:
    x = jax.random.normal(jax.random.key(seed), (50, 8))
    variables = ADDING.init(jax.random.key(seed), x)
    np.testing.assert_array_equal(ADDING.apply(variables, x), x[:, 2:5])
    # So does what a policy file holds.
    weights = to_weights(variables, ADDING.values_at)
    y = np.asarray(x)
    for matrix, bias in weights[:-1]:
        y = np.maximum(y @ matrix + bias, 0)
    np.testing.assert_array_equal(y @ weights[-1][0] + weights[-1][1], x[:, 2:5])


def test_all_but_its_last_layer_starts_at_random() -> None:
    """Otherwise nothing would be learned."""
    layers = ADDING.init(jax.random.key(0), jnp.zeros((1, 8)))["params"]
    assert (layers["Dense_2"]["kernel"] == 0).all()
    assert (layers["Dense_0"]["kernel"] != 0).all()
    assert (layers["Dense_1"]["kernel"] != 0).all()


def test_there_and_back_with_values() -> None:
    x = jax.random.normal(jax.random.key(1), (7, 8))
    drawn = QNetwork((5, 4), 3).init(jax.random.key(0), x)  # a last layer that is not 0
    weights = to_weights(drawn, 2)
    assert [matrix.shape for matrix, _ in weights] == [(8, 11), (11, 10), (10, 3)]
    again = from_weights(weights, 8, ADDING)
    np.testing.assert_allclose(ADDING.apply(drawn, x), ADDING.apply(again, x), rtol=1e-5, atol=1e-6)
    for old, new in zip(weights, to_weights(again, 2), strict=True):
        np.testing.assert_allclose(old[0], new[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(old[1], new[1], rtol=1e-5, atol=1e-6)
    y = np.asarray(x)
    for matrix, bias in weights[:-1]:
        y = np.maximum(y @ matrix + bias, 0)
    np.testing.assert_allclose(y @ weights[-1][0] + weights[-1][1], ADDING.apply(drawn, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [((np.eye(3, dtype=np.float32), np.zeros(3, np.float32)),), None])
def test_weights_without_a_bypass_are_refused(weights: Weights | None) -> None:
    """Those of a rule alone, and those of a network that does not add to values."""
    if weights is None:
        weights = to_weights(QNetwork((5, 4), 3).init(jax.random.key(0), jnp.zeros((1, 8))))
    with pytest.raises(InputError, match="but this training needs"):
        from_weights(weights, 8, ADDING)


def test_the_baseline_reads_nothing_that_a_decision_changes() -> None:
    """Otherwise it would take from a choice what the choice has earned."""
    reads = exogenous(default_features(2, 3, 1, 8, 10.0, ("harm", "task", "batch_sizes", "arrival_rate")))
    assert reads == (False,) * 3 + (True,) * 2 + (False,) * 3 + (True,)
    baseline, x = Baseline(reads), jax.random.normal(jax.random.key(1), 9)
    variables = baseline.init(jax.random.key(0), x)
    for place, read in enumerate(reads):
        other = baseline.apply(variables, x.at[place].add(1.0))
        assert bool(other != baseline.apply(variables, x)) == read
