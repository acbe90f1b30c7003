"""The learned router: a multi-layer perceptron over features of the observation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from besteffort.estimates.encoding import network_input
from besteffort.estimates.rule import Rule
from besteffort.observation import Feature, Observation, needs_in_flight
from besteffort.policy import Policy
from besteffort.routers.baselines import best
from besteffort.routers.value import ValueRouter
from besteffort.simulator.types import EnvParams
from besteffort.weights import split


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedRouter:
    """Sends each request to the model with the largest Q-value.

    Estimates among the features follow the parameters that the router is given, be it a policy's: those of the assumed
    situation, not of the one that the network was trained for. The rule's numbers are the policy's own.

    Attributes:
      weights: per layer the pair of matrix (inputs, outputs) and bias (outputs,); ReLU between layers. An extra
        leading axis means an ensemble, whose mean Q-values decide.
      features: features of an observation that the network reads, in order; static.
      rule: values models, for the feature `value`; None without it.
    """

    weights: tuple[tuple[Any, Any], ...]
    features: tuple[Feature, ...] = dataclasses.field(metadata={"static": True})
    rule: Rule | None = None

    @property
    def estimates(self) -> bool:
        """Whether it needs observations that show the requests in flight."""
        return needs_in_flight(feature.name for feature in self.features)

    def q_values(self, observation: Observation, params: EnvParams | None = None) -> Float[Array, " pools"]:
        """(pools,) expected discounted credit of each model, less the average of decisions.

        `params` are only read for estimates.
        """
        if params is not None:
            params = dataclasses.replace(params, rule=self.rule)
        x = network_input(observation, self.features, params, jnp)
        if self.weights[0][0].ndim == 2:
            return _perceptron(self.weights, x)
        return jax.vmap(_perceptron, in_axes=(0, None))(self.weights, x).mean(0)

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        return best(observation, self.q_values(observation, params))


def learned_router(policy: Policy) -> LearnedRouter | ValueRouter:
    """Turns a policy into a router of the compiled simulator; stacks the networks of an ensemble, without the zeros.

    One that decides by its rule alone is that rule, as a search plays it.
    """
    if policy.is_rule:
        return ValueRouter(jax.tree.map(lambda leaf: jnp.asarray(leaf, float), policy.rule))
    networks = split(policy.weights, policy.ensemble_size)
    stacked = networks[0] if len(networks) == 1 else jax.tree.map(lambda *arrays: np.stack(arrays), *networks)
    return LearnedRouter(
        jax.tree.map(jnp.asarray, stacked),
        policy.features,
        jax.tree.map(lambda leaf: jnp.asarray(leaf, float), policy.rule),
    )


def _perceptron(weights: tuple[tuple[Any, Any], ...], x: Float[Array, " inputs"]) -> Float[Array, " pools"]:
    *hidden, (matrix, bias) = weights
    for hidden_matrix, hidden_bias in hidden:
        x = jax.nn.relu(x @ hidden_matrix + hidden_bias)
    return x @ matrix + bias
