"""Small results and situations with known answers, and a router that reads the requests in flight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.estimates.rule import UNTRAINED, Rule
from besteffort.observation import Observation
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality
from besteffort.simulator.result import Result
from besteffort.simulator.types import EnvParams
from besteffort.situation import Cluster, Deadline, Reward, Situation, Task


def make_rule(models: int, **numbers: float) -> Rule:
    """A rule in which every number matters, with prices of its own for each model at three rates."""
    prices = np.outer([0.1, 0.7, 1.5], np.linspace(0.3, 1.1, models))
    return Rule(**{**UNTRAINED, **numbers}, rates=np.array([2.0, 20.0, 120.0]), prices=prices)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FewestPromptTokens:
    """Sends each request to the model with the fewest prompt tokens in flight, its own counted by its decode."""

    estimates: ClassVar[bool] = True

    def route(self, observation: Observation, params: EnvParams, key: jax.Array) -> jax.Array:
        view = observation.in_flight
        ahead = jnp.where(view.present, view.prompt_tokens, 0).sum(-1) + observation.prompt_tokens
        return jnp.argmin(ahead * params.decode[:, 1]).astype(jnp.int32)


@pytest.fixture(scope="session")
def make_result() -> Callable[..., Result]:
    """A result from arrival times and whatever else matters; everything is answered at once, well, by model 0."""

    def make(arrival_s: Any, **fields: Any) -> Result:
        arrival_s = np.asarray(arrival_s, dtype=np.float64)
        shape = arrival_s.shape
        latency_s = np.broadcast_to(np.asarray(fields.pop("latency_s", 0.5), np.float64), shape)
        rejected = np.broadcast_to(np.asarray(fields.pop("rejected", False)), shape)
        defaults: dict[str, Any] = {
            "task": np.zeros(shape, np.int32),
            "prompt_tokens": np.ones(shape, np.int32),
            "output_tokens": np.ones(shape, np.int32),
            "deadline_s": np.ones(shape),
            "model": np.zeros(shape, np.int32),
            "replica": np.where(rejected, -1, 0),
            "admission_s": np.where(rejected, np.nan, arrival_s),
            "first_token_s": np.where(rejected, np.nan, arrival_s + latency_s),
            "completion_s": np.where(rejected, np.nan, arrival_s + latency_s),
            "latency_s": np.where(rejected, np.inf, latency_s),
        }
        defaults |= {name: np.broadcast_to(np.asarray(value), shape) for name, value in fields.items()}
        defaults.setdefault("met", defaults["latency_s"] <= defaults["deadline_s"])
        defaults.setdefault("reward", defaults["met"].astype(np.float64))
        return Result(arrival_s=arrival_s, **defaults)

    return make


@pytest.fixture(scope="session")
def make_situation() -> Callable[..., Situation]:
    """A situation whose models take a constant time per iteration and per prefill, on one replica by default."""

    def make(
        decode: Sequence[Sequence[tuple[int, float]]],
        prefill_s: Sequence[float],
        quality_percent: Sequence[Sequence[float]],
        *,
        tasks: Sequence[dict[str, Any]] | None = None,
        cluster: Cluster = Cluster(replicas=1, max_batch=4),
        reward: Reward = Reward(),
        **model_fields: Any,
    ) -> Situation:
        source = Source("modelled", "made up | for a test", method="by hand.", device="abacus")
        names = [f"task{index}" for index in range(len(quality_percent))]
        models = tuple(
            ModelProfile(f"model{index}", tuple(points), ((1, seconds),), **model_fields)
            for index, (points, seconds) in enumerate(zip(decode, prefill_s, strict=True))
        )
        profile = Profile(
            format=1,
            name="test",
            device="abacus",
            models=models,
            tasks=tuple(
                TaskQuality(name, "acc", "made up", tuple(row))
                for name, row in zip(names, quality_percent, strict=True)
            ),
            provenance=Provenance(source, source, source, Source("published", "a book")),
        )
        settings: dict[str, Any] = {"prompt_tokens": (1, 1), "output_tokens": (1, 1), "deadline": Deadline(100.0, 0.0)}
        tasks = tasks or [{} for _ in names]
        made = tuple(Task(name, **(settings | more)) for name, more in zip(names, tasks, strict=True))
        return Situation(profile, cluster, made, reward)

    return make
