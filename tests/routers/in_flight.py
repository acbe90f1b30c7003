"""What routers see of requests in flight on a small cluster, as a gateway counts it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from besteffort.in_flight import InFlight
from besteffort.observation import Observation
from besteffort.profile import load_profile
from besteffort.pytrees import node_types
from besteffort.simulator.build import build
from besteffort.simulator.simulate import _route
from besteffort.simulator.types import EnvParams, EnvShape
from besteffort.situation import Cluster, Deadline, Situation, Task

PROMPT, OUTPUT, LONGEST = 100, 20, 2_000
SITUATION = Situation(
    load_profile("opt-a100"),
    Cluster(replicas=2, max_batch=4, queue_capacity=4),
    (Task("piqa", prompt_tokens=(PROMPT, PROMPT), output_tokens=(OUTPUT, OUTPUT), deadline=Deadline(0.5, 0.0)),),
)


@cache
def built() -> tuple[EnvShape, EnvParams]:
    return build(SITUATION, None, history=1, longest_prompt=LONGEST, estimates=True)


def observe(
    sent: Sequence[tuple[int, int, int]] = (), *, prompt: int = PROMPT, deadline_s: float = 0.5, after_s: float = 0.0
) -> Observation:
    """What a router sees of a request that arrives `after_s` after all others, none of which has a token yet.

    Args:
      sent: model, replica and prompt length of each of the others, in order.
      prompt: length of its own prompt.
      deadline_s: its deadline.
      after_s: seconds since the others came.
    """
    flight = InFlight(SITUATION)
    for index, (model, replica, tokens) in enumerate(sent):
        flight.arrived(index, task="piqa", prompt_tokens=tokens, at=0.0)
        flight.sent(index, model, replica, at=0.0)
    flight.arrived("new", task="piqa", prompt_tokens=prompt, deadline_s=float(deadline_s), at=after_s)
    return flight.observation("new", at=after_s)


def choose(router: Any, observation: Observation, key: int = 0) -> int:
    """The model that a router picks."""
    return int(_route(node_types(router), router, observation, built()[1], jax.random.key(key), jnp.int32(0)))
