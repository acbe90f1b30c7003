"""Routers from other code: any function, or a model of another library, as a router of the simulator.

    mine = HostRouter(each(lambda observation: 2 if observation.batch_sizes[-1] < 40 else 0))
    theirs = HostRouter(predicting(model, problem.features))
    result = simulate(requests, situation, theirs, seed=0, backend="jax")

With `estimates=True` observations show the requests in flight, `observation.in_flight`, from which
`besteffort.estimates.estimates.estimate` works out what is to be expected of each model.

The simulator stays compiled and calls the host at every decision, once for all lists that it simulates together; a call
costs tens of microseconds plus the time of the function. For a Stable-Baselines3 DQN a policy is better
(`besteffort.adapters.stable_baselines3.dqn_policy`): it needs no call to the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from besteffort.errors import InputError
from besteffort.estimates.encoding import network_input
from besteffort.estimates.params import ServingParams
from besteffort.observation import Feature, Observation
from besteffort.simulator.types import EnvParams

Batched = Callable[[Observation], Any]
"""From an observation of NumPy arrays with a leading axis (batch,) to (batch,) indices of models."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HostRouter:
    """Calls a Python function, which must not call JAX.

    Attributes:
      function: called with the observations of all rollouts at once, see `Batched`; static.
      estimates: whether observations have to show the requests in flight; static.
    """

    function: Batched = dataclasses.field(metadata={"static": True})
    estimates: bool = dataclasses.field(default=False, metadata={"static": True})

    def route(self, observation: Observation, params: EnvParams, key: Key[Array, ""]) -> Int[Array, ""]:
        models = observation.instance_batch_sizes.shape[-1]

        def ask(observation: Observation) -> np.ndarray:
            seen = jax.tree.map(np.asarray, observation)
            batch = seen.task.shape
            # Flatten all batch axes into one.
            flat = jax.tree.map(lambda field: field.reshape(-1, *field.shape[len(batch) :]), seen)
            chosen = np.asarray(self.function(flat))
            if chosen.shape != flat.task.shape or not ((chosen >= 0) & (chosen < models)).all():
                raise InputError(
                    f"The router's function returned {chosen.tolist()} for {len(flat.task)} requests; it must return "
                    f"for each an index from 0 to {models - 1}."
                )
            return chosen.astype(np.int32).reshape(batch)

        return jax.pure_callback(ask, jax.ShapeDtypeStruct((), jnp.int32), observation, vmap_method="broadcast_all")


def each(function: Callable[[Observation], Any]) -> Batched:
    """Wraps a function that decides one request at a time, from an observation of NumPy values without a batch axis."""

    def batched(observation: Observation) -> np.ndarray:
        return np.array([int(function(one)) for one in _rows(observation)])

    return batched


def reading(
    function: Callable[[np.ndarray], Any], features: tuple[Feature, ...], params: ServingParams | None = None
) -> Batched:
    """Wraps a function from network inputs, (batch, inputs) float32, to (batch,) models.

    Estimates among the features follow `params`, those of the situation that the router assumes.
    """

    def batched(observation: Observation) -> Any:
        return function(np.array([network_input(one, features, params) for one in _rows(observation)], np.float32))

    return batched


def predicting(model: Any, features: tuple[Feature, ...], params: ServingParams | None = None) -> Batched:
    """Wraps a model with `predict(inputs, deterministic=True) -> (models, state)`, as in Stable-Baselines3.

    `features` are those of the problem that the model was trained on; `params` as in `reading`.
    """
    return reading(lambda inputs: model.predict(inputs, deterministic=True)[0], features, params)


def _rows(observation: Observation) -> Iterator[Observation]:
    """Observations without the batch axis."""
    for row in range(len(observation.task)):
        yield jax.tree.map(lambda field, row=row: field[row], observation)
