"""Requests drawn from a list at the times of an arrival process: a trace's lengths without its order or its bursts.

A router trained on such a workload has not seen the trace's own sequence of arrivals.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from besteffort.errors import InputError
from besteffort.situation import Situation
from besteffort.workload.arrivals import Arrivals
from besteffort.workload.deadline_factors import DeadlineFactors
from besteffort.workload.requests import Requests
from besteffort.workload.types import Arrival

_QUANTILES = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ResampledWorkload:
    """Requests at the times of `arrivals`, everything else drawn jointly from `n` rows, with replacement.

    Attributes:
      arrivals: an arrival process of `besteffort.workload.arrivals`.
      task, prompt_tokens, output_tokens, deadline_s, deadline_factor, output_limit, origin, cached_tokens, tenant: (n,)
        as in `Requests`.
      factors: factors on these deadlines, period by period; None if they do not change.
      origins, tenants: names of the origins and tenants. Static.
    """

    arrivals: Any
    task: Any
    prompt_tokens: Any
    output_tokens: Any
    deadline_s: Any
    deadline_factor: Any = None
    output_limit: Any = None
    factors: DeadlineFactors | None = None
    origin: Any = None
    origins: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
    cached_tokens: Any = None
    tenant: Any = None
    tenants: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    def init(self, key: PRNGKeyArray) -> Any:
        if self.factors is None:
            return self.arrivals.init(key)
        arrivals_key, factors_key = jax.random.split(key)
        return self.arrivals.init(arrivals_key), self.factors.init(factors_key)

    def next(self, key: PRNGKeyArray, state: Any) -> tuple[Arrival, Any]:
        gap_key, row_key = jax.random.split(key)
        clock: Any = None
        if self.factors is not None:
            state, clock = state
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
            deadline_factor=None if self.deadline_factor is None else pick(self.deadline_factor, float),
            output_limit=None if self.output_limit is None else pick(self.output_limit),
            origin=None if self.origin is None else pick(self.origin),
            cached_tokens=None if self.cached_tokens is None else pick(self.cached_tokens),
            tenant=None if self.tenant is None else pick(self.tenant),
        )
        if self.factors is None:
            return arrival, state
        factor, clock = self.factors.next(gap_s, clock)
        own = 1.0 if arrival.deadline_factor is None else arrival.deadline_factor
        arrival = arrival._replace(deadline_s=factor * arrival.deadline_s, deadline_factor=factor * own)
        return arrival, (state, clock)


def resample(requests: Requests, arrivals: Arrivals, factors: DeadlineFactors | None = None) -> ResampledWorkload:
    """Draws requests from a list at the times of an arrival process; multiplies deadlines by the `factors` in force."""
    return ResampledWorkload(
        arrivals,
        requests.task,
        requests.prompt_tokens,
        requests.output_tokens,
        requests.deadline_s,
        requests.deadline_factor,
        requests.output_limit,
        factors,
        requests.origin,
        requests.origins,
        requests.cached_tokens,
        requests.tenant,
        requests.tenants,
    )


def with_lengths_of(situation: Situation, requests: Requests) -> Situation:
    """Replaces what the tasks say of their lengths, which routers may know, by what holds for a list.

    These are ranges, means, and 32 quantiles of the output lengths. Names, shares, deadlines and weights stay. A task
    without requests gets the lengths of all tasks.
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
                output_quantiles=_quantiles(outputs),
            )
        )
    return dataclasses.replace(situation, tasks=tuple(tasks))


def _quantiles(outputs: np.ndarray) -> tuple[float, ...]:
    """Lengths of the list, not between them, as `besteffort.situation.Task` states them."""
    probabilities = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    values = np.quantile(outputs, probabilities, method="inverted_cdf")
    return tuple(values.astype(np.float64).tolist())


def halves(requests: Requests, length: int | None = None) -> tuple[Requests, Requests]:
    """Splits a list into two halves, each with times counted from its first arrival.

    Args:
      requests: the list.
      length: number of its first requests to split; by default all.

    Raises:
      InputError: if `length` is below four.
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
