"""The common basis of all adapters: an environment, the features of a network, and the reward of a step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from besteffort.errors import InputError, brief
from besteffort.estimates.correction import HIGHEST
from besteffort.estimates.encoding import network_input
from besteffort.observation import (
    OBSERVED_SLOWDOWN,
    SIGNED,
    TENANT_WEIGHT,
    VALUE,
    Feature,
    Observation,
    input_size,
    needs_in_flight,
)
from besteffort.runs.training import TrainingProblem, load_training_problem
from besteffort.simulator.types import Environment, EnvShape, believed

Credit = Literal["step", "marginal", "own"]

_ROUNDING = 1e-5  # share of the largest value by which sums in float32 may miss it


class Bounds(NamedTuple):
    """Smallest and largest values of a network's input, (inputs,) float32."""

    low: np.ndarray
    high: np.ndarray


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
      InputError: if there is no such credit, or the environment does not return it, or does not show the requests in
        flight that a feature needs.
    """

    env: Environment
    params: Any
    features: tuple[Feature, ...]
    credit: Credit = "marginal"

    def __post_init__(self) -> None:
        if self.credit not in get_args(Credit):
            raise InputError(f"`credit` is `{brief(self.credit)}`; choose from {', '.join(get_args(Credit))}.")
        if self.credit == "marginal" and self.env.shape.stepwise:
            raise InputError(
                "`credit` is `marginal`, which this environment does not know, because models slow each other "
                "down or read prompts in chunks; choose `own` or `step`."
            )
        needing = [feature.name for feature in self.features if needs_in_flight([feature.name])]
        if needing and self.env.shape.estimates is None:
            raise InputError(
                f"The feature `{needing[0]}` needs the requests in flight, which this environment does not show; build "
                "it with `estimates=True`."
            )

    @property
    def bounds(self) -> Bounds:
        """Smallest and largest values of a network's input, see `bounds_of`."""
        return bounds_of(self.features, self.env.shape, self.params)


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
    env, params = source.environment(history=history, horizon=horizon)
    return WrappedEnv(env, params, source.features, credit)


def read(observation: Observation, features: tuple[Feature, ...], params: Any) -> Float[Array, " inputs"]:
    """Input of a network for one observation, float32; estimates follow what is believed."""
    return network_input(observation, features, believed(params), jnp).astype(jnp.float32)


def bounds_of(features: tuple[Feature, ...], shape: EnvShape, params: Any) -> Bounds:
    """Smallest and largest values of a network's input, for the tables, qualities and weights in `params`.

    | feature | from | to |
    |---|---|---|
    | `batch_sizes`, `smallest_batch` | 0 | what the cluster, or an instance, holds |
    | `own` | -weight x penalty, of the task where that is least | weight x quality, of the best model and task |
    | `tenant_weight` | 0 | that of the tenant that counts most; it is a factor on the weights of tasks, too |
    | `harm` | 0 | weight x (quality + penalty), for each request that an instance, with slow-down a replica, holds |
    | `value` | minus the largest number: prices have no bound | that of `own` |
    | `work` | 0 | the longest prefill and the most decode work of a task |
    | `observed_slowdown` | 0 | the most that is believed |
    | `prompt_tokens` | 0 | the longest prompt |
    | rates, loads and times | 0 | the largest number: nothing bounds them |
    """
    largest = float(np.finfo(np.float32).max)
    ranges = {"batch_sizes": (0.0, shape.replicas * _seats(shape)), "smallest_batch": (0.0, _seats(shape))}
    of_tenants = getattr(params, "tenant_weight", None)
    heaviest = 1.0 if of_tenants is None else float(np.max(of_tenants))
    ranges[TENANT_WEIGHT] = (0.0, heaviest)
    if needs_in_flight(feature.name for feature in features):
        ranges |= _ranges_of_estimates(shape, believed(params), heaviest)
    low, high = np.zeros((2, input_size(features)))
    start = 0
    for feature in features:
        part = slice(start, start + feature.size)
        for bound, value in zip((low, high), ranges.get(feature.name, (0.0, largest)), strict=True):
            scaled = np.clip(value / np.asarray(feature.scale), -largest, largest)
            if feature.transform == "one_hot":
                scaled = np.minimum(value, 1.0)
            elif feature.transform == "log1p":
                scaled = np.log1p(scaled)
            bound[part] = scaled
        start += feature.size
    return Bounds(low.astype(np.float32), high.astype(np.float32))


def _ranges_of_estimates(shape: EnvShape, params: Any, heaviest: float) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of the features that have a range, with tenants that weigh so much at most."""
    weight = heaviest * np.asarray(params.weight, float)[:, None]
    quality, penalty = np.asarray(params.quality, float), float(params.miss_penalty)
    harmed = _seats(shape) * (shape.pools if shape.slowdown else 1)
    # Of work, as much as the slow-down that is observed may make of it.
    slowest = HIGHEST if shape.compare_times else 1.0
    most = {
        "own": float((weight * quality).max()),
        "harm": float((weight * (quality + penalty)).max()) * harmed,
        "work": slowest * float(np.max(params.prefill) + np.max(params.priors.decode_work_s)),
        OBSERVED_SLOWDOWN: HIGHEST,
    }
    least = {"own": -float(weight.max()) * penalty, "harm": 0.0, "work": 0.0, OBSERVED_SLOWDOWN: 0.0}
    ranges = {}
    for name, value in most.items():
        room = _ROUNDING * (value - least[name])
        ranges[name] = (least[name] - room if name in SIGNED else 0.0, value + room)
    largest = float(np.finfo(np.float32).max)
    return ranges | {VALUE: (-largest, ranges["own"][1]), "prompt_tokens": (0.0, params.prefill.shape[-1] - 1.0)}


def _seats(shape: EnvShape) -> float:
    """Requests that an instance is seen to hold at most."""
    return float(shape.seats)
