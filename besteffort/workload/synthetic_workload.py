"""Synthetic workloads: arrivals, task mix, lengths and deadlines combined."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from besteffort.errors import InputError
from besteffort.situation import Situation, deadline_s
from besteffort.workload.arrivals import Arrivals, RandomRates
from besteffort.workload.deadline_factors import DeadlineFactors
from besteffort.workload.mix import TaskMix, task_mix
from besteffort.workload.types import Arrival


class SyntheticState(NamedTuple):
    """State of the arrival process, of the task mix, and of the deadlines where they change."""

    arrivals: Any
    mix: Any
    deadlines: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SyntheticWorkload:
    """Requests at the times of `arrivals`, with tasks from `mix` and lengths uniform per task; `synthetic` builds one.

    Attributes:
      arrivals: an arrival process of `besteffort.workload.arrivals`.
      mix: a `besteffort.workload.mix.TaskMix`.
      prompt_tokens, output_tokens: (tasks, 2) smallest and largest length, both included.
      deadline_base_s, deadline_per_token_s: (tasks,) the numbers of `besteffort.situation.deadline_s`.
      deadline_factors: factors on deadlines, period by period; None if they do not change.
      origin_shares: (origins,) the mix of origins, summing to one; None where requests have none.
      origins: names of the origins. Static.
      tenant_shares, tenants: the same of tenants.
    """

    arrivals: Any
    mix: TaskMix
    prompt_tokens: Any
    output_tokens: Any
    deadline_base_s: Any
    deadline_per_token_s: Any
    deadline_factors: DeadlineFactors | None = None
    origin_shares: Any = None
    origins: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
    tenant_shares: Any = None
    tenants: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    def init(self, key: PRNGKeyArray) -> SyntheticState:
        arrivals_key, mix_key = jax.random.split(key)
        deadlines = None
        if self.deadline_factors is not None:
            mix_key, deadlines_key = jax.random.split(mix_key)
            deadlines = self.deadline_factors.init(deadlines_key)
        return SyntheticState(self.arrivals.init(arrivals_key), self.mix.init(mix_key), deadlines)

    def next(self, key: PRNGKeyArray, state: SyntheticState) -> tuple[Arrival, SyntheticState]:
        gap_key, request_key = jax.random.split(key)
        gap_s, arrivals = self.arrivals.next(gap_key, state.arrivals)
        uniforms = jax.random.uniform(request_key, (3,))
        task, mix = self.mix.next(uniforms[0], gap_s, state.mix)

        def length(uniform: Array, bounds: Any) -> Array:
            low, high = jnp.asarray(bounds)[task]
            return low + jnp.floor(uniform * (high - low + 1)).astype(low.dtype)

        prompt_tokens = length(uniforms[1], self.prompt_tokens)
        output_tokens = length(uniforms[2], self.output_tokens)
        base_s = jnp.asarray(self.deadline_base_s, float)[task]
        per_token_s = jnp.asarray(self.deadline_per_token_s, float)[task]
        arrival = Arrival(gap_s, task, prompt_tokens, output_tokens, deadline_s(base_s, per_token_s, output_tokens))
        deadlines = None
        if self.deadline_factors is not None:
            factor, deadlines = self.deadline_factors.next(gap_s, state.deadlines)
            arrival = arrival._replace(deadline_s=factor * arrival.deadline_s, deadline_factor=factor)
        if self.origin_shares is not None:
            arrival = arrival._replace(origin=_one_of(self.origin_shares, request_key, 1))
        if self.tenant_shares is not None:
            arrival = arrival._replace(tenant=_one_of(self.tenant_shares, request_key, 2))
        return arrival, SyntheticState(arrivals, mix, deadlines)


def _one_of(shares: Any, request_key: PRNGKeyArray, number: int) -> Array:
    """An index drawn by shares, with a key of its own, so that the other draws are as without it."""
    uniform = jax.random.uniform(jax.random.fold_in(request_key, number))
    return (uniform >= jnp.cumsum(jnp.asarray(shares, float))[:-1]).sum(dtype=jnp.int32)


def synthetic(
    situation: Situation, arrivals: Arrivals, mix: TaskMix | None = None, factors: DeadlineFactors | None = None
) -> SyntheticWorkload:
    """Builds a synthetic workload for the tasks of a situation, with their own constant mix unless `mix` is given.

    Deadlines are those of the tasks, multiplied by the `factors` in force if given.

    Raises:
      InputError: if `mix` is for another number of tasks.
    """
    tasks = situation.tasks
    if mix is None:
        mix = task_mix(situation.shares[None])
    elif mix.cumulative.shape[-1] != len(tasks):
        raise InputError(
            f"The task mix is for {mix.cumulative.shape[-1]} tasks, not {len(tasks)}; give one share per task."
        )
    return SyntheticWorkload(
        arrivals=arrivals,
        mix=mix,
        prompt_tokens=np.array([task.prompt_tokens for task in tasks], np.int32),
        output_tokens=np.array([task.output_tokens for task in tasks], np.int32),
        deadline_base_s=np.array([task.deadline.base_s for task in tasks]),
        deadline_per_token_s=np.array([task.deadline.per_token_s for task in tasks]),
        deadline_factors=factors,
        origin_shares=situation.origin_shares if situation.origins else None,
        origins=situation.origin_names,
        tenant_shares=situation.tenant_shares if situation.tenants else None,
        tenants=situation.tenant_names,
    )


def spreads_rates(workload: Any) -> bool:
    """Whether a workload spreads its rates at random over a range, so that one list has few of them."""
    return isinstance(getattr(workload, "arrivals", None), RandomRates)


def strata(workload: Any, count: int) -> list[Any]:
    """So many workloads that share out the rates of one, from the smallest to the largest.

    A workload whose rates are not spread at random is not divided: all are the same one.
    """
    if not spreads_rates(workload):
        return [workload] * count
    arrivals = workload.arrivals
    edges = np.geomspace(arrivals.low, arrivals.high, count + 1)
    return [
        dataclasses.replace(workload, arrivals=dataclasses.replace(arrivals, low=low, high=high))
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
