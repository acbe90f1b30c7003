"""A configuration and its policy, ready for use: what a request is decided by from its arrival to its end."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from besteffort.errors import InputError, brief
from besteffort.gateway.config import Canary, GatewayConfig, KeyRing, Shadow
from besteffort.gateway.pools import Places, place_pools
from besteffort.in_flight import InFlight
from besteffort.policy import Policy, load_policy
from besteffort.runs.config import load_situation

PREFIX = "besteffort"
"""The model that clients ask for; `besteffort:TASK` states the task, too."""


ArmName = Literal["policy", "canary", "shadow"]
Source = GatewayConfig | Shadow | Canary
"""What names a policy."""


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """A policy with books of its own, which know the requests of all arms.

    Attributes:
      name: what it is for.
      policy: the policy, for as many replicas as there are.
      flight: its books.
      places: where requests may go, as it numbers them.
      visible_deadline_s: per task the deadline that its situation states.
    """

    name: ArmName
    policy: Policy
    flight: InFlight
    places: Places
    visible_deadline_s: Mapping[str, float]

    @functools.cached_property
    def everywhere(self) -> np.ndarray:
        """(rows, pools) where there is a replica."""
        found = np.zeros(self.flight.batch_sizes.shape, bool)
        for place in self.places:
            found[place.row, place.index] = True
        found.flags.writeable = False
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """All that decides a request. It never changes, but for the books and the states of replicas.

    Attributes:
      number: of the snapshot; it grows with every reload.
      config: the configuration.
      main: the policy.
      canary: the one that decides a share of the requests, if there is one.
      shadow: the one that is not followed, if there is one.
      keys: of clients.
      tasks: per task its index.
      default_task: of requests that say nothing.
      quality: (tasks, pools) of the main policy's situation, which judges all arms.
      deadline_base_s, deadline_per_token_s, mean_output_tokens, visible_deadline_s: per task; likewise.
    """

    number: int
    config: GatewayConfig
    main: Arm
    canary: Arm | None
    shadow: Arm | None
    keys: KeyRing
    tasks: Mapping[str, int]
    default_task: str
    quality: np.ndarray
    deadline_base_s: tuple[float, ...]
    deadline_per_token_s: tuple[float, ...]
    mean_output_tokens: tuple[float, ...]
    visible_deadline_s: tuple[float, ...]

    @property
    def policy(self) -> Policy:
        """The main policy."""
        return self.main.policy

    @property
    def flight(self) -> InFlight:
        """The main policy's books."""
        return self.main.flight

    @property
    def places(self) -> Places:
        """Where requests may go, as the main policy numbers them."""
        return self.main.places

    @functools.cached_property
    def origins(self) -> tuple[str, ...]:
        """Names of origins that requests may state."""
        return self.policy.situation.origin_names

    @functools.cached_property
    def tenants(self) -> tuple[str, ...]:
        """Names of tenants that requests may state."""
        return self.policy.situation.tenant_names

    @functools.cached_property
    def longest_wait_s(self) -> float:
        """Seconds after which a request has no try in progress."""
        return max(pool.timeouts.total_s + pool.timeouts.connect_s for pool in self.config.pools)

    @functools.cached_property
    def arms(self) -> tuple[Arm, ...]:
        """All arms, the main one first."""
        return tuple(arm for arm in (self.main, self.canary, self.shadow) if arm is not None)

    def arm_for(self, request: str) -> Arm:
        """The arm that decides a request."""
        stated = self.config.canary
        if stated is None or self.canary is None:
            return self.main
        number = int.from_bytes(hashlib.blake2b(request.encode(), digest_size=7).digest(), "big")
        return self.canary if number < stated.share * 2**56 else self.main

    @functools.cached_property
    def model_names(self) -> tuple[str, ...]:
        """Names that clients may ask for."""
        return (PREFIX, *(f"{PREFIX}:{task}" for task in self.tasks), *self.config.models)


def sources(config: GatewayConfig) -> dict[ArmName, Source]:
    """What names the policy of each arm that there is."""
    found: dict[ArmName, Source | None] = {"policy": config, "canary": config.canary, "shadow": config.shadow}
    return {name: source for name, source in found.items() if source is not None}


def make_policy(source: Source, folder: Path) -> Policy:
    """The policy that a part of a configuration names; its paths are from `folder`.

    Raises:
      InputError: if it cannot be read, or needs the full package.
    """
    if source.policy is not None:
        return load_policy(folder / source.policy)
    name = str(source.situation)
    inner = folder / name
    situation = load_situation(inner if inner.suffix else name)
    try:
        from besteffort import default_policy
    except ImportError as error:
        raise InputError(
            "`situation` asks for the untrained policy, which is worked out by the full package; write a policy file "
            "where that is installed, and name it in `policy`."
        ) from error
    return default_policy(situation)


def make_snapshot(
    config: GatewayConfig,
    policy: Policy,
    *,
    canary: Policy | None = None,
    shadow: Policy | None = None,
    clock: Callable[[], float] = time.monotonic,
    environment: Mapping[str, str] | None = None,
    earlier: Snapshot | None = None,
) -> Snapshot:
    """Puts a configuration and a policy together; books are empty.

    Args:
      config: the configuration.
      policy: its policy.
      canary: that of the canary, if there is one.
      shadow: that of the shadow, if there is one.
      clock: of the books.
      environment: variables that hold keys; those of the process unless given.
      earlier: the snapshot that it is to replace.

    Raises:
      InputError: if they do not fit together.
    """
    places, policy = place_pools(config, policy, environment, None if earlier is None else earlier.places)

    def arm(name: ArmName, its: Policy, where: Places) -> Arm:
        visible = dict(zip(its.tasks, its.situation.visible_deadlines.tolist(), strict=True))
        return Arm(name, its, InFlight(its, clock=clock), where, visible)

    def other(name: ArmName, its: Policy | None) -> Arm | None:
        if its is None:
            return None
        missing = [task for task in policy.tasks if task not in its.tasks]
        if missing:
            raise InputError(f"`{name}`: its policy lacks the task `{brief(missing[0])}`; name one that has all tasks.")
        try:
            where, its = place_pools(config, its, environment, places)
        except InputError as error:
            raise InputError(f"`{name}`: {error}") from error
        return arm(name, its, where)

    tasks = {name: index for index, name in enumerate(policy.tasks)}
    default = policy.tasks[0] if config.default_task is None else config.default_task
    for where, task in (("default_task", default), *(("rules", rule.task) for rule in config.rules)):
        if task not in tasks:
            raise InputError(f"`{where}`: the policy has no task `{brief(task)}`; its tasks are {', '.join(tasks)}.")
    situation = policy.situation
    return Snapshot(
        0 if earlier is None else earlier.number + 1,
        config,
        arm("policy", policy, places),
        other("canary", canary),
        other("shadow", shadow),
        KeyRing(config.keys, environment),
        tasks,
        default,
        situation.quality,
        tuple(float(task.deadline.base_s) for task in situation.tasks),
        tuple(float(task.deadline.per_token_s) for task in situation.tasks),
        tuple(situation.mean_output_tokens.tolist()),
        tuple(situation.visible_deadlines.tolist()),
    )
