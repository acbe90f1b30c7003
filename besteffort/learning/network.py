"""The Q-network: a small multi-layer perceptron that also runs on a CPU beside the load balancer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float
from scipy.linalg import block_diag

from besteffort.errors import InputError
from besteffort.observation import EXOGENOUS, Feature

Weights = tuple[tuple[np.ndarray, np.ndarray], ...]
"""Per layer the pair of matrix (inputs, outputs) and bias (outputs,): what a policy file holds."""


class QNetwork(nn.Module):
    """Multi-layer perceptron with ReLU between layers, whose last layer is a duel (Wang et al., ICML 2016).

    It learns one value per state and one advantage per action, `Q = value + advantage - mean advantage`. Values are
    large and common to all actions, advantages small and what decides. All of it is linear in the last hidden layer, so
    a policy file holds it as one ordinary matrix.

    Attributes:
      hidden: width of each hidden layer.
      actions: number of outputs, one Q-value each.
    """

    hidden: tuple[int, ...]
    actions: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch actions"]:
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, param_dtype=x.dtype)(x))
        return _duel(nn.Dense(1 + self.actions, param_dtype=x.dtype)(x))


def _duel(outputs: Any) -> Any:
    """Q-values from the value, which comes first, and the advantages, along the last axis."""
    value, advantages = outputs[..., :1], outputs[..., 1:]
    return value + advantages - advantages.mean(axis=-1, keepdims=True)


def _unduel(q: np.ndarray) -> np.ndarray:
    """An inverse of `_duel`: the value is the mean, and the advantages have none."""
    value = q.mean(axis=-1, keepdims=True)
    return np.concatenate([value, q - value], axis=-1)


class Baseline(nn.Module):
    """What a decision earns on average, by features that no decision changes; see `double_dqn.loss`.

    Attributes:
      exogenous: (features,) which inputs it reads.
    """

    exogenous: tuple[bool, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch"]:
        x = jnp.where(jnp.broadcast_to(jnp.array(self.exogenous), x.shape), x, 0.0)
        x = nn.relu(nn.Dense(32, param_dtype=x.dtype)(x))
        return nn.Dense(1, param_dtype=x.dtype)(x)[..., 0]


class Networks(NamedTuple):
    """The modules of a training."""

    q: QNetwork
    baseline: Baseline


class Variables(NamedTuple):
    """Their variables."""

    q: Any
    baseline: Any


def exogenous(features: tuple[Feature, ...]) -> tuple[bool, ...]:
    """Which of the network's inputs no router's choices change."""
    return tuple(feature.name in EXOGENOUS for feature in features for _ in range(feature.size))


def q_values(network: QNetwork, variables: Any, x: Float[Array, "*batch features"]) -> Float[Array, "*batch actions"]:
    """Q-values of every action."""
    return cast(Array, network.apply(variables, x))


def to_weights(variables: Any) -> Weights:
    """Weights of a `QNetwork` as NumPy arrays, in the order of its layers."""
    layers = variables["params"]
    dense = (layers[f"Dense_{i}"] for i in range(len(layers)))
    *hidden, (kernel, bias) = ((np.asarray(layer["kernel"]), np.asarray(layer["bias"])) for layer in dense)
    return (*hidden, (_duel(kernel), _duel(bias)))


def merge(committee: Sequence[Weights]) -> Weights:
    """One network that holds several of one shape side by side; its Q-values are the means of theirs."""
    (first, *inner), last = list(zip(*committee, strict=True))[:-1], [weights[-1] for weights in committee]
    kernels = [np.concatenate([kernel for kernel, _ in first], axis=1)]
    kernels += [block_diag(*(kernel for kernel, _ in layer)) for layer in inner]
    biases = [np.concatenate([bias for _, bias in layer]) for layer in (first, *inner)]
    kernel = np.concatenate([kernel for kernel, _ in last]) / len(last)
    return (*zip(kernels, biases, strict=True), (kernel, np.mean([bias for _, bias in last], axis=0)))


def split(weights: Weights, networks: int) -> list[Weights]:
    """The networks that `merge` made one of.

    Raises:
      InputError: if they are not so many networks side by side.
    """
    committee = _parts(weights, networks)
    if committee is None:
        raise InputError(
            f"The starting weights are not {networks} networks side by side; set `training.config.committee` to the "
            "number of networks in the policy that they come from."
        )
    return committee


def members(weights: Weights) -> list[Weights]:
    """The networks of which one consists side by side, as many as there can be; itself where there is one."""
    widths = [offset.size for _, offset in weights[:-1]]
    # Of a single layer, every unit could be called a network.
    most = math.gcd(*widths) if len(widths) > 1 else 1
    found = (_parts(weights, networks) for networks in range(most, 1, -1))
    return next(filter(None, found), [weights])


def _parts(weights: Weights, networks: int) -> list[Weights] | None:
    """So many networks that `weights` hold side by side; None if they do not."""
    *hidden, (kernel, bias) = weights
    if any(offset.size % networks for _, offset in hidden):
        return None
    (first, offset), *inner = [[np.split(part, networks, axis=-1) for part in layer] for layer in hidden]
    parts = [[pair] for pair in zip(first, offset, strict=True)]
    for columns, offsets in inner:
        for index, part in enumerate(parts):
            part.append((np.split(columns[index], networks)[index], offsets[index]))
    for part, rows in zip(parts, np.split(kernel * networks, networks), strict=True):
        part.append((rows, bias))
    committee = [tuple(part) for part in parts]
    again = merge(committee)
    return committee if all((old[0] == new[0]).all() for old, new in zip(hidden, again, strict=False)) else None


def from_weights(weights: Weights, inputs: int, network: QNetwork) -> Any:
    """Variables of `network` on `inputs` features with the given weights.

    Raises:
      InputError: if the weights have other layers or sizes than the network.
    """
    wanted = list(itertools.pairwise((inputs, *network.hidden, network.actions)))
    given = [matrix.shape for matrix, _ in weights]
    if given != wanted:
        raise InputError(
            f"The starting weights have layers {given}, but this training needs {wanted}; "
            "train with the features, the models and the `hidden` sizes of the policy that they come from."
        )
    *hidden, (kernel, bias) = weights
    weights = (*hidden, (_unduel(kernel), _unduel(bias)))
    layers = {
        f"Dense_{i}": {"kernel": jnp.asarray(matrix, float), "bias": jnp.asarray(bias, float)}
        for i, (matrix, bias) in enumerate(weights)
    }
    return {"params": layers}
