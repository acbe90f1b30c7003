"""The common basis of all adapters: an environment, the features of a network, and the reward of a step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from besteffort.errors import InputError
from besteffort.observation import Feature, Observation, encode, input_size
from besteffort.runs.training import TrainingProblem, load_training_problem
from besteffort.simulator.build import build
from besteffort.simulator.environment import ServingEnvironment
from besteffort.simulator.types import Environment, EnvShape

Credit = Literal["step", "marginal", "own"]


@dataclasses.dataclass(frozen=True)
class WrappedEnv:
    """An environment for the learners of other libraries.

    Attributes:
      env: the environment.
      params: its numbers.
      features: features of an observation that a network reads, in order.
      credit: the reward of a step. `marginal`: change that the decision made in the rewards of all requests, known at
        once. `step`: sum of the rewards of the requests resolved since the last step, which belong to much earlier
        decisions. `own`: at first the same as `step`; `env.outcomes` returns the reward of each decision's own request
        later, for learners that join it (`besteffort.adapters.stable_baselines3`).

    Raises:
      InputError: if the environment does not return the credit.
    """

    env: Environment
    params: Any
    features: tuple[Feature, ...]
    credit: Credit = "marginal"

    def __post_init__(self) -> None:
        if self.credit == "marginal" and self.env.shape.slowdown:
            raise InputError(
                "`credit` is `marginal`, which this environment does not know, because models slow each other down; "
                "choose `own` or `step`."
            )

    @property
    def high(self) -> np.ndarray:
        """(inputs,) float32 largest values of a network's input; the smallest are 0."""
        return highest(self.features, self.env.shape)


def wrap_env(
    source: WrappedEnv | TrainingProblem | str | Path = "paper",
    *,
    credit: Credit = "marginal",
    horizon: int = 16_384,
    history: int = 4_096,
) -> WrappedEnv:
    """Wraps the environment of a training problem, given directly or by a configuration.

    Args:
      source: a `besteffort.runs.training.TrainingProblem`, or the name or file of a configuration. A `WrappedEnv` is
        returned as it is, and the other arguments are ignored.
      credit: see `WrappedEnv`.
      horizon: decisions per episode, after which it truncates; 0 means that episodes do not end. The cluster starts
        empty and the rate estimate at 0, which short episodes do not get past.
      history: decisions whose outcome is kept, for `own`: more than are in flight plus those between two readings.

    Raises:
      InputError: if there is no such configuration, a number is negative, or the environment lacks the credit.
    """
    if isinstance(source, WrappedEnv):
        return source
    if horizon < 0 or history < 1:
        raise InputError(f"`horizon` is {horizon} and `history` {history}; give at least 0 and 1 decisions.")
    if not isinstance(source, TrainingProblem):
        source = load_training_problem(source)
    shape, params = build(source.situation, source.workload, history=history, horizon=horizon)
    return WrappedEnv(ServingEnvironment(shape), params, source.features, credit)


def network_input(observation: Observation, features: tuple[Feature, ...]) -> Float[Array, " inputs"]:
    """Input of a network for one observation, float32."""
    return encode(observation, features, jnp).astype(jnp.float32)


def highest(features: tuple[Feature, ...], shape: EnvShape) -> Float[np.ndarray, " inputs"]:
    """Largest values of a network's input, as float32: the cluster's capacity for counts, else the largest number."""
    largest = float(np.finfo(np.float32).max)
    most = shape.max_batch + shape.queue_capacity
    counts = {"batch_sizes": shape.replicas * most, "smallest_batch": most}
    high = np.zeros(input_size(features))
    start = 0
    for feature in features:
        value = min(counts.get(feature.name, largest) / feature.scale, largest)
        transformed = {"one_hot": 1.0, "linear": value, "log1p": np.log1p(value)}[feature.transform]
        high[start : start + feature.size] = transformed
        start += feature.size
    return high.astype(np.float32)
