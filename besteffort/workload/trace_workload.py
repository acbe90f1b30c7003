"""Replays an explicit list of requests as a generator inside the compiled simulator."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from besteffort.errors import InputError
from besteffort.workload import rescale
from besteffort.workload.requests import Requests
from besteffort.workload.types import Arrival


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReplayWorkload:
    """A list of `n` requests, repeated endlessly; `replay` builds one.

    Row 0 of the leaves is the first request of the list, with a gap counted from time 0. Row `n` is the same request
    in the next repetition, after the mean gap. The state is the row of the next request.

    Attributes:
      gap_s: (n + 1,) seconds since the previous request.
      task, prompt_tokens, output_tokens, deadline_s, deadline_factor, output_limit, origin, cached_tokens, tenant: (n +
        1,) as in `Requests`.
      random_start: start at a random request instead of the first one. Static.
      origins, tenants: names of the origins and tenants. Static.
    """

    gap_s: Any
    task: Any
    prompt_tokens: Any
    output_tokens: Any
    deadline_s: Any
    deadline_factor: Any = None
    output_limit: Any = None
    origin: Any = None
    cached_tokens: Any = None
    random_start: bool = dataclasses.field(default=True, metadata={"static": True})
    origins: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
    tenant: Any = None
    tenants: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    @property
    def length(self) -> int:
        """Number of requests in the list."""
        return jnp.shape(self.gap_s)[-1] - 1

    def init(self, key: PRNGKeyArray) -> Int[Array, ""]:
        if self.random_start:
            return jax.random.randint(key, (), 1, self.length + 1, jnp.int32)
        return jnp.asarray(0, jnp.int32)

    def next(self, key: PRNGKeyArray, state: Int[Array, ""]) -> tuple[Arrival, Int[Array, ""]]:
        del key
        arrival = Arrival(
            gap_s=jnp.asarray(self.gap_s, float)[state],
            task=jnp.asarray(self.task)[state],
            prompt_tokens=jnp.asarray(self.prompt_tokens)[state],
            output_tokens=jnp.asarray(self.output_tokens)[state],
            deadline_s=jnp.asarray(self.deadline_s, float)[state],
            deadline_factor=None if self.deadline_factor is None else jnp.asarray(self.deadline_factor, float)[state],
            output_limit=None if self.output_limit is None else jnp.asarray(self.output_limit)[state],
            origin=None if self.origin is None else jnp.asarray(self.origin)[state],
            cached_tokens=None if self.cached_tokens is None else jnp.asarray(self.cached_tokens)[state],
            tenant=None if self.tenant is None else jnp.asarray(self.tenant)[state],
        )
        return arrival, jnp.where(state == self.length, 1, state + 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReplayAtRates:
    """A list in its own order and with its own bursts, at one mean rate after another; `replay_at_rates` builds one.

    Mean rates are log-uniform. After about `dwell_requests` requests (exponential) a new rate is drawn, and the list
    continues from a random request.

    Attributes:
      replay: the list.
      mean_rate: its own mean rate, in requests per second.
      low, high: smallest and largest mean rate, in requests per second.
      dwell_requests: mean number of requests at one rate.
    """

    replay: ReplayWorkload
    mean_rate: Any
    low: Any
    high: Any
    dwell_requests: Any

    def init(self, key: PRNGKeyArray) -> AtRate:
        uniforms = jax.random.uniform(key, (3,))
        low = jnp.asarray(self.low, float)
        rate = low * jnp.exp(uniforms[0] * jnp.log(self.high / low))
        row = 1 + (uniforms[1] * self.replay.length).astype(jnp.int32)
        left = 1 + (-jnp.log1p(-uniforms[2]) * self.dwell_requests).astype(jnp.int32)
        return AtRate(row, jnp.asarray(self.mean_rate, float) / rate, left)

    def next(self, key: PRNGKeyArray, state: AtRate) -> tuple[Arrival, AtRate]:
        fresh_key, replay_key = jax.random.split(key)
        fresh = self.init(fresh_key)
        row, stretch, left = jax.tree.map(lambda new, old: jnp.where(state.left > 0, old, new), fresh, state)
        arrival, row = self.replay.next(replay_key, row)
        return arrival._replace(gap_s=stretch * arrival.gap_s), AtRate(row, stretch, left - 1)


class AtRate(NamedTuple):
    """State of a `ReplayAtRates`: scalars.

    Attributes:
      row: row of the next request.
      stretch: factor on the list's gaps.
      left: requests until the rate changes.
    """

    row: Array
    stretch: Array
    left: Array


def replay_at_rates(requests: Requests, low: float, high: float, dwell_requests: float) -> ReplayAtRates:
    """Replays the list at mean rates spread log-uniformly from `low` to `high` requests per second.

    Raises:
      InputError: as `replay`, or if a number is out of range.
    """
    if not 0 < low <= high < float("inf") or not dwell_requests > 0:
        raise InputError(
            f"The rates go from {low} to {high} requests/s and change after {dwell_requests} requests; "
            "give positive numbers, the smaller rate first."
        )
    return ReplayAtRates(replay(requests), rescale.mean_rate(requests), low, high, dwell_requests)


def replay(requests: Requests, start: Literal["random", "first"] = "random") -> ReplayWorkload:
    """Replays the list as a generator. Gaps are computed in float64, so float32 resolves them at the end of a day, too.

    Raises:
      InputError: if all requests arrive at one instant, so that there is no mean gap.
    """
    span = requests.arrival_s[-1] - requests.arrival_s[0]
    if span <= 0:
        raise InputError(
            "All requests of the list arrive at one instant; a list to be replayed needs two different times."
        )
    gaps = np.concatenate([np.diff(requests.arrival_s, prepend=0.0), [span / (len(requests) - 1)]])

    def ring(values: np.ndarray) -> np.ndarray:
        return np.append(values, values[0])

    return ReplayWorkload(
        gap_s=gaps,
        task=ring(requests.task),
        prompt_tokens=ring(requests.prompt_tokens),
        output_tokens=ring(requests.output_tokens),
        deadline_s=ring(requests.deadline_s),
        deadline_factor=None if requests.deadline_factor is None else ring(requests.deadline_factor),
        output_limit=None if requests.output_limit is None else ring(requests.output_limit),
        origin=None if requests.origin is None else ring(requests.origin),
        cached_tokens=None if requests.cached_tokens is None else ring(requests.cached_tokens),
        random_start=start == "random",
        origins=requests.origins,
        tenant=None if requests.tenant is None else ring(requests.tenant),
        tenants=requests.tenants,
    )
