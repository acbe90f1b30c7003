"""A policy and configurations for the tests: no JAX, nothing that takes long."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from besteffort.gateway.config import GatewayConfig, Pool
from besteffort.gateway.snapshot import Snapshot, make_snapshot
from besteffort.observation import default_features
from besteffort.policy import Policy
from besteffort.runs.config import load_situation

MODELS = ("opt-125m", "opt-1.3b", "opt-6.7b")


@functools.cache
def greedy() -> Policy:
    """The model of which most is to be expected; 2 replicas with 4 places and 4 that wait each."""
    found = load_situation("paper")
    cluster = dataclasses.replace(found.cluster, replicas=2, max_batch=4, queue_capacity=4)
    view = dataclasses.replace(found.view, features=("own",))
    situation = dataclasses.replace(found, cluster=cluster, view=view)
    models = situation.profile.model_names
    features = default_features(len(situation.tasks), len(models), 2, 4, 50.0, ("own",))
    return Policy(situation, features, ((np.eye(len(models)), np.zeros(len(models))),))


def config(
    urls: Sequence[Sequence[str]] = (("http://a/v1", "http://b/v1"), ("http://c/v1",)), **others: Any
) -> GatewayConfig:
    """A pool per list of addresses, of the smallest model, the next one, and so on; answers come as clients ask."""
    names = greedy().models
    pools = tuple(Pool(f"pool-{i}", tuple(each), names[i], assemble=False) for i, each in enumerate(urls) if each)
    return GatewayConfig(**{"pools": pools, "policy": "policy.safetensors", **others})


def snapshot(given: GatewayConfig | None = None, policy: Policy | None = None, **others: Any) -> Snapshot:
    policy = greedy() if policy is None else policy
    return make_snapshot(config() if given is None else given, policy, **{"environment": {}, **others})


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@functools.cache
def contrary() -> Policy:
    """The model of which least is to be expected."""
    policy = greedy()
    return dataclasses.replace(policy, weights=((-np.eye(len(policy.models)), np.zeros(len(policy.models))),))
