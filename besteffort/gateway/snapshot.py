"""A configuration and its policy, ready for use: what a request is decided by from its arrival to its end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from besteffort.errors import InputError, brief
from besteffort.gateway.config import GatewayConfig, KeyRing
from besteffort.gateway.pools import Places, place_pools
from besteffort.in_flight import InFlight
from besteffort.policy import Policy, load_policy
from besteffort.runs.config import load_situation

PREFIX = "besteffort"
"""The model that clients ask for; `besteffort:TASK` states the task, too."""


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """All that decides a request. It never changes, but for the books and the states of replicas.

    Attributes:
      number: of the snapshot; it grows with every reload.
      config: the configuration.
      policy: the policy.
      flight: its books.
      places: where requests may go.
      keys: of clients.
      tasks: per task its index.
      default_task: of requests that say nothing.
      quality: (tasks, pools) of the policy's situation.
      deadline_base_s, deadline_per_token_s, mean_output_tokens, visible_deadline_s: per task.
    """

    number: int
    config: GatewayConfig
    policy: Policy
    flight: InFlight
    places: Places
    keys: KeyRing
    tasks: Mapping[str, int]
    default_task: str
    quality: np.ndarray
    deadline_base_s: tuple[float, ...]
    deadline_per_token_s: tuple[float, ...]
    mean_output_tokens: tuple[float, ...]
    visible_deadline_s: tuple[float, ...]

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names that clients may ask for."""
        return (PREFIX, *(f"{PREFIX}:{task}" for task in self.tasks), *self.config.models)


def make_policy(config: GatewayConfig, folder: Path) -> Policy:
    """The policy that a configuration names; its paths are from `folder`.

    Raises:
      InputError: if it cannot be read, or needs the full package.
    """
    if config.policy is not None:
        return load_policy(folder / config.policy)
    name = str(config.situation)
    inner = folder / name
    situation = load_situation(inner if inner.suffix else name)
    try:
        from besteffort import default_policy
    except ImportError as error:
        raise InputError(
            "`situation` asks for the untrained policy, which is worked out by the full package; `pip install "
            "besteffort`, or write a policy file there and name it in `policy`."
        ) from error
    return default_policy(situation)


def make_snapshot(
    config: GatewayConfig,
    policy: Policy,
    *,
    clock: Callable[[], float] = time.monotonic,
    environment: Mapping[str, str] | None = None,
    earlier: Snapshot | None = None,
) -> Snapshot:
    """Puts a configuration and a policy together; books are empty.

    Args:
      config: the configuration.
      policy: its policy.
      clock: of the books.
      environment: variables that hold keys; those of the process unless given.
      earlier: the snapshot that it is to replace.

    Raises:
      InputError: if they do not fit together.
    """
    places, policy = place_pools(config, policy, environment, None if earlier is None else earlier.places)
    tasks = {name: index for index, name in enumerate(policy.tasks)}
    default = policy.tasks[0] if config.default_task is None else config.default_task
    for where, task in (("default_task", default), *(("rules", rule.task) for rule in config.rules)):
        if task not in tasks:
            raise InputError(f"`{where}`: the policy has no task `{brief(task)}`; its tasks are {', '.join(tasks)}.")
    situation = policy.situation
    return Snapshot(
        0 if earlier is None else earlier.number + 1,
        config,
        policy,
        InFlight(policy, clock=clock),
        places,
        KeyRing(config.keys, environment),
        tasks,
        default,
        situation.quality,
        tuple(float(task.deadline.base_s) for task in situation.tasks),
        tuple(float(task.deadline.per_token_s) for task in situation.tasks),
        tuple(situation.mean_output_tokens.tolist()),
        tuple(situation.visible_deadlines.tolist()),
    )
