"""The Q-network: a small multi-layer perceptron that also runs on a CPU next to the load balancer."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from besteffort.errors import InputError
from besteffort.observation import EXOGENOUS, VALUE, Feature
from besteffort.weights import Weights, with_bypass, without_bypass


class QNetwork(nn.Module):
    """Multi-layer perceptron with ReLU between layers and a duelling last layer (Wang et al., ICML 2016).

    It learns one value per state and one advantage per action, `Q = value + advantage - mean advantage`. Values are
    large and common to all actions; advantages are small and decide. The layer is linear in the last hidden layer, so
    a policy file stores it as one ordinary matrix.

    Where a rule has valued the models already (the feature `value`), the network learns what to add to that. Its last
    layer then starts at zero, so that an untrained network decides as the rule.

    Attributes:
      hidden_sizes: width of each hidden layer.
      actions: number of outputs, one Q-value each.
      values_at: first of the inputs that are the models' values; None if there are none.
    """

    hidden_sizes: tuple[int, ...]
    actions: int
    values_at: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch actions"]:
        start: dict[str, Any] = {}
        values: Any = 0.0
        if self.values_at is not None:
            start["kernel_init"] = nn.initializers.zeros
            values = x[..., self.values_at : self.values_at + self.actions]
        for width in self.hidden_sizes:
            x = nn.relu(nn.Dense(width, param_dtype=x.dtype)(x))
        return values + _duel(nn.Dense(1 + self.actions, param_dtype=x.dtype, **start)(x))


def _duel(outputs: Any) -> Any:
    """Q-values from the last axis, which holds the value first, then the advantages."""
    value, advantages = outputs[..., :1], outputs[..., 1:]
    return value + advantages - advantages.mean(axis=-1, keepdims=True)


def _unduel(q: np.ndarray) -> np.ndarray:
    """An inverse of `_duel`: the value is the mean, and the advantages have mean zero."""
    value = q.mean(axis=-1, keepdims=True)
    return np.concatenate([value, q - value], axis=-1)


class Baseline(nn.Module):
    """Average reward of a decision, given features that no decision changes; see `double_dqn.loss`.

    Attributes:
      exogenous: (features,) whether the module reads each input.
    """

    exogenous: tuple[bool, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch"]:
        x = jnp.where(jnp.broadcast_to(jnp.array(self.exogenous), x.shape), x, 0.0)
        x = nn.relu(nn.Dense(32, param_dtype=x.dtype)(x))
        return nn.Dense(1, param_dtype=x.dtype)(x)[..., 0]


class Networks(NamedTuple):
    """The modules that a training uses."""

    q: QNetwork
    baseline: Baseline


class Variables(NamedTuple):
    """The variables of `Networks`."""

    q: Any
    baseline: Any


def exogenous(features: tuple[Feature, ...]) -> tuple[bool, ...]:
    """Whether each of the network's inputs is independent of the router's choices."""
    return tuple(feature.name in EXOGENOUS for feature in features for _ in range(feature.size))


def values_at(features: tuple[Feature, ...]) -> int | None:
    """First of the inputs that are values by a rule; None without such a feature."""
    start = 0
    for feature in features:
        if feature.name == VALUE:
            return start
        start += feature.size
    return None


def q_values(network: QNetwork, variables: Any, x: Float[Array, "*batch features"]) -> Float[Array, "*batch actions"]:
    """Q-values of every action."""
    return cast(Array, network.apply(variables, x))


def to_weights(variables: Any, values_at: int | None = None) -> Weights:
    """Weights of a `QNetwork` as NumPy arrays, in the order of its layers.

    Where the network adds to values, they go through all layers, see `besteffort.weights.with_bypass`.
    """
    layers = variables["params"]
    dense = (layers[f"Dense_{i}"] for i in range(len(layers)))
    *hidden, (kernel, bias) = ((np.asarray(layer["kernel"]), np.asarray(layer["bias"])) for layer in dense)
    weights = (*hidden, (_duel(kernel), _duel(bias)))
    return weights if values_at is None else with_bypass(weights, values_at)


def from_weights(weights: Weights, inputs: int, network: QNetwork) -> Any:
    """Variables of `network` on `inputs` features with the given weights.

    Raises:
      InputError: if the weights have other layers or sizes than the network.
    """
    if network.values_at is not None:
        weights = without_bypass(weights)
    wanted = list(itertools.pairwise((inputs, *network.hidden_sizes, network.actions)))
    given = [matrix.shape for matrix, _ in weights]
    if given != wanted:
        raise InputError(
            f"The starting weights have layers {given}, but this training needs {wanted}; "
            "train with the features, the models and the `hidden_sizes` sizes of the policy that they come from."
        )
    *hidden, (kernel, bias) = weights
    weights = (*hidden, (_unduel(kernel), _unduel(bias)))
    layers = {
        f"Dense_{i}": {"kernel": jnp.asarray(matrix, float), "bias": jnp.asarray(bias, float)}
        for i, (matrix, bias) in enumerate(weights)
    }
    return {"params": layers}
