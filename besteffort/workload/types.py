"""The workload protocol: a source of arrivals for the environment and for sampling lists."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

Array = jax.Array


class Arrival(NamedTuple):
    """A request that a workload generates; every field is a scalar.

    Attributes:
      gap_s: seconds since the previous arrival (since the start, for the first).
      task: index of its task.
      prompt_tokens: length of its prompt, at least 1.
      output_tokens: length of its output, at least 1.
      deadline_s: deadline on the end-to-end latency, seconds.
      deadline_factor: the factor in force on deadlines, included in `deadline_s`; None if they never change.
      output_limit: the client's limit on output tokens, at least `output_tokens`, as in
        `besteffort.workload.requests.Requests`; None if no client states one.
      cached_tokens: tokens of its prompt that are found in a prefix cache, fewer than `prompt_tokens`; None if no
        request states any.
      origin: index of its origin; None if requests have none.
      tenant: index of its tenant; likewise.
    """

    gap_s: Array
    task: Array
    prompt_tokens: Array
    output_tokens: Array
    deadline_s: Array
    deadline_factor: Array | None = None
    output_limit: Array | None = None
    origin: Array | None = None
    cached_tokens: Array | None = None
    tenant: Array | None = None


@runtime_checkable
class Workload(Protocol):
    """A source of arrivals: a pytree whose leaves are numbers, so that it can be vmapped."""

    def init(self, key: Array) -> Any:
        """State before the first arrival; a pytree."""
        ...

    def next(self, key: Array, state: Any) -> tuple[Arrival, Any]:
        """The next arrival and the state after it."""
        ...
