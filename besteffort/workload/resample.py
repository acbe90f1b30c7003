"""Requests drawn from a list at the times of an arrival process: a trace's lengths without its order or its bursts.

What a router learns on such a workload it cannot know from the trace's own sequence of arrivals.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from besteffort.errors import InputError
from besteffort.simulator.types import Arrival
from besteffort.situation import Situation
from besteffort.workload.arrivals import Arrivals
from besteffort.workload.requests import Requests


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ResampledWorkload:
    """Requests at the times of `arrivals`, everything else drawn jointly from `n` rows, with replacement.

    Attributes:
      arrivals: an arrival process of `besteffort.workload.arrivals`.
      task, prompt_tokens, output_tokens, deadline_s: (n,) as in `Requests`.
    """

    arrivals: Any
    task: Any
    prompt_tokens: Any
    output_tokens: Any
    deadline_s: Any

    def init(self, key: PRNGKeyArray) -> Any:
        return self.arrivals.init(key)

    def next(self, key: PRNGKeyArray, state: Any) -> tuple[Arrival, Any]:
        gap_key, row_key = jax.random.split(key)
        gap_s, state = self.arrivals.next(gap_key, state)
        row = jax.random.randint(row_key, (), 0, jnp.shape(self.task)[-1])

        def pick(values: Any, dtype: Any = None) -> Array:
            return jnp.asarray(values, dtype)[row]

        arrival = Arrival(
            gap_s=gap_s,
            task=pick(self.task),
            prompt_tokens=pick(self.prompt_tokens),
            output_tokens=pick(self.output_tokens),
            deadline_s=pick(self.deadline_s, float),
        )
        return arrival, state


def resample(requests: Requests, arrivals: Arrivals) -> ResampledWorkload:
    """Requests like those of a list, at the times of an arrival process."""
    return ResampledWorkload(
        arrivals, requests.task, requests.prompt_tokens, requests.output_tokens, requests.deadline_s
    )


def with_lengths_of(situation: Situation, requests: Requests) -> Situation:
    """The situation with what a list shows of its tasks' lengths: their ranges and means, which routers may know.

    Names, shares, deadlines and weights stay. A task without requests gets the lengths of all.
    """
    tasks = []
    for index, task in enumerate(situation.tasks):
        mine = requests.task == index
        if not mine.any():
            mine[:] = True
        prompts, outputs = requests.prompt_tokens[mine], requests.output_tokens[mine]
        tasks.append(
            dataclasses.replace(
                task,
                prompt_tokens=(int(prompts.min()), int(prompts.max())),
                output_tokens=(int(outputs.min()), int(outputs.max())),
                mean_prompt_tokens=float(prompts.mean()),
                mean_output_tokens=float(outputs.mean()),
            )
        )
    return dataclasses.replace(situation, tasks=tuple(tasks))


def halves(requests: Requests, length: int | None = None) -> tuple[Requests, Requests]:
    """The first and the second half of a list, each with times counted from its first arrival.

    Args:
      requests: the list.
      length: how many of its requests to halve; by default all.

    Raises:
      InputError: if that is fewer than four requests.
    """
    length = len(requests) if length is None else length
    middle = length // 2
    if middle < 2:
        raise InputError(f"The list has {length} requests; give at least four, two to learn from and two to judge.")
    second_s = float(requests.arrival_s[middle])
    return (
        requests.part(slice(None, middle), float(requests.arrival_s[0])),
        requests.part(slice(middle, length), second_s),
    )
