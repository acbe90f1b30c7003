"""What all adapters wrap: an environment, what a network reads of it, and what a step pays."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from besteffort.errors import InputError
from besteffort.observation import Feature, Observation, encode, input_size
from besteffort.runs.experiment import load_run
from besteffort.runs.training import Course, make_course
from besteffort.simulator.build import build
from besteffort.simulator.environment import ServingEnvironment
from besteffort.simulator.types import Environment, EnvShape

Pay = Literal["reward", "credit", "own"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A decision problem.

    Attributes:
      env: the environment.
      params: its numbers.
      features: what a network reads of an observation, in order.
      pay: what a step pays. `credit`: what the decision changed in the rewards of all requests, known at once.
        `reward`: the rewards of the requests that were resolved meanwhile, which belong to decisions of long ago.
        `own`: the same as `reward`, for there is nothing else yet; what each decision's own request earned is told
        later, by `env.outcomes`, to learners that join it (`besteffort.adapters.stable_baselines3`).

    Raises:
      InputError: if decisions shall be paid with a credit that the environment does not know.
    """

    env: Environment
    params: Any
    features: tuple[Feature, ...]
    pay: Pay = "credit"

    def __post_init__(self) -> None:
        if self.pay == "credit" and self.env.shape.slowdown:
            raise InputError(
                "`pay` is `credit`, which this environment does not know, because models slow each other down; "
                "choose `own` or `reward`."
            )

    @property
    def high(self) -> np.ndarray:
        """(inputs,) float32 largest values of a network's input; the smallest are 0."""
        return highest(self.features, self.env.shape)


def make_problem(
    source: Problem | Course | str | Path = "paper", *, pay: Pay = "credit", horizon: int = 16_384, history: int = 4_096
) -> Problem:
    """The problem that a configuration states: its situation under its training load.

    Args:
      source: a `besteffort.runs.training.Course`, or the name or file of a configuration. A `Problem` is returned as it
        is, whatever the other arguments.
      pay: see `Problem`.
      horizon: decisions per episode, after which it truncates; 0 for no end. The cluster starts empty and the rate
        estimate at 0, so that short episodes see little else.
      history: decisions whose outcome is remembered, for `own`: more than are in flight and made between two readings.

    Raises:
      InputError: if there is no such configuration, a number is negative, or the credit is not known.
    """
    if isinstance(source, Problem):
        return source
    if horizon < 0 or history < 1:
        raise InputError(f"`horizon` is {horizon} and `history` {history}; give at least 0 and 1 decisions.")
    if not isinstance(source, Course):
        config, situation = load_run(source)
        source = make_course(situation, config.training)
    shape, params = build(source.situation, source.workload, history=history, horizon=horizon)
    return Problem(ServingEnvironment(shape), params, source.features, pay)


def network_input(observation: Observation, features: tuple[Feature, ...]) -> Float[Array, " inputs"]:
    """What a network reads of one observation, float32."""
    return encode(observation, features, jnp).astype(jnp.float32)


def highest(features: tuple[Feature, ...], shape: EnvShape) -> Float[np.ndarray, " inputs"]:
    """Largest values of a network's input, as float32: of counts what the cluster holds, else the largest number."""
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
