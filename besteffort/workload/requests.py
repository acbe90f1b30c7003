"""An explicit list of requests: the result of reading a trace or sampling a generator, and the input of `simulate`."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from besteffort.errors import InputError
from besteffort.situation import Situation

NO_LIMIT = int(np.iinfo(np.int32).max)
"""The limit on output tokens of a request whose client states none."""

Party = Literal["origin", "tenant"]
"""By what requests are told apart: where they come from, or whose they are."""

PARTIES: tuple[Party, ...] = ("origin", "tenant")


@dataclasses.dataclass(frozen=True)
class Requests:
    """Requests in order of arrival. Arrays are float64 or int32, one entry per request.

    Attributes:
      tasks: names of the tasks; `task` indexes into them.
      arrival_s: (n,) arrival times in seconds, finite, non-decreasing and none before 0.
      task: (n,) index of each request's task.
      prompt_tokens: (n,) prompt lengths, at least 1.
      output_tokens: (n,) output lengths, at least 1.
      deadline_s: (n,) deadline on each request's end-to-end latency in seconds, positive.
      deadline_factor: (n,) factor in force on each deadline, positive and included in `deadline_s`; routers see it in
        `Observation.deadline_s`. None where deadlines do not change with time.
      output_limit: (n,) int32 limit on each request's output tokens that its client states, which routers may know; at
        least its output, because a limit cuts the answer. `NO_LIMIT` where a client states none, None where none does.
      cached_tokens: (n,) int32 tokens of each prompt, from its beginning, that are found in a prefix cache, whatever
        the routing: they are not read again. At least one token of a prompt is read, so all but one count at most.
        Routers know them, as they know the prompt. None where no request states any.
      origin: (n,) index of each request's origin; None where requests have none.
      origins: names of the origins; `origin` indexes into them.
      tenant: (n,) index of each request's tenant; None where requests have none.
      tenants: names of the tenants; `tenant` indexes into them.

    Raises:
      InputError: on an empty list, arrays of unequal length, unsorted or non-finite times, or values out of range.
    """

    tasks: tuple[str, ...]
    arrival_s: np.ndarray
    task: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    deadline_s: np.ndarray
    deadline_factor: np.ndarray | None = None
    output_limit: np.ndarray | None = None
    cached_tokens: np.ndarray | None = None
    origin: np.ndarray | None = None
    origins: tuple[str, ...] = ()
    tenant: np.ndarray | None = None
    tenants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=dtype))
        n = len(self.arrival_s)
        if n == 0:
            raise InputError("The list of requests is empty; give at least one request.")
        for name in _DTYPES:
            if getattr(self, name).shape != (n,):
                raise InputError(
                    f"Requests: `{name}` has shape {getattr(self, name).shape}, `arrival_s` has ({n},); "
                    "make them equal."
                )
        if not np.isfinite(self.arrival_s).all():
            raise InputError("Requests: `arrival_s` has a value that is not finite; remove that request.")
        late = np.flatnonzero(np.diff(self.arrival_s) < 0)
        if late.size:
            raise InputError(
                f"Requests: `arrival_s` goes back in time at request {late[0] + 1}; sort the list by arrival."
            )
        if self.task.min() < 0 or self.task.max() >= len(self.tasks):
            raise InputError(f"Requests: `task` must index one of the {len(self.tasks)} tasks {', '.join(self.tasks)}.")
        if self.arrival_s[0] < 0:
            raise InputError(
                f"Requests: `arrival_s` starts at {self.arrival_s[0]:g} s; shift the list so that it starts at 0."
            )
        for name in ("prompt_tokens", "output_tokens"):
            if getattr(self, name).min() < 1:
                raise InputError(
                    f"Requests: `{name}` of request {int(np.argmin(getattr(self, name)))} is below 1; "
                    "give at least one token."
                )
        if not (np.isfinite(self.deadline_s).all() and self.deadline_s.min() > 0):
            raise InputError("Requests: `deadline_s` must be finite and positive for every request.")
        if self.deadline_factor is not None:
            factor = np.ascontiguousarray(self.deadline_factor, dtype=np.float64)
            object.__setattr__(self, "deadline_factor", factor)
            if factor.shape != (n,) or not (np.isfinite(factor).all() and factor.min() > 0):
                raise InputError("Requests: `deadline_factor` must be finite and positive for every request.")
        if self.output_limit is not None:
            limit = np.asarray(self.output_limit)
            if limit.shape != (n,):
                raise InputError(f"Requests: `output_limit` has shape {limit.shape}; give one limit per request.")
            low = np.flatnonzero(~(limit >= self.output_tokens))
            if low.size:
                raise InputError(
                    f"Requests: `output_limit` of request {low[0]} is {limit[low[0]]}, but its output has "
                    f"{self.output_tokens[low[0]]} tokens; a limit cuts the answer, so give at least these."
                )
            object.__setattr__(self, "output_limit", np.minimum(limit, NO_LIMIT).astype(np.int32))
        if self.cached_tokens is not None:
            cached = np.asarray(self.cached_tokens)
            if cached.shape != (n,):
                raise InputError(f"Requests: `cached_tokens` has shape {cached.shape}; give one number per request.")
            off = np.flatnonzero(~((cached >= 0) & (cached <= self.prompt_tokens)))
            if off.size:
                raise InputError(
                    f"Requests: `cached_tokens` of request {off[0]} is {cached[off[0]]}, its prompt has "
                    f"{self.prompt_tokens[off[0]]} tokens; give at least 0 and at most these."
                )
            object.__setattr__(self, "cached_tokens", np.minimum(cached, self.prompt_tokens - 1).astype(np.int32))
        for name in PARTIES:
            index, names = getattr(self, name), getattr(self, f"{name}s")
            if index is None:
                continue
            index = np.ascontiguousarray(index, dtype=np.int32)
            object.__setattr__(self, name, index)
            if index.shape != (n,) or index.min() < 0 or index.max() >= len(names):
                raise InputError(f"Requests: `{name}` must index one of the {len(names)} `{name}s` for every request.")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def deadline_factors(self) -> np.ndarray:
        """(n,) factor in force on each deadline, 1 where deadlines do not change."""
        return np.ones(len(self)) if self.deadline_factor is None else self.deadline_factor

    @property
    def output_limits(self) -> np.ndarray:
        """(n,) limit on each request's output tokens, `NO_LIMIT` where clients state none."""
        return np.full(len(self), NO_LIMIT, np.int32) if self.output_limit is None else self.output_limit

    @property
    def found_tokens(self) -> np.ndarray:
        """(n,) tokens of each prompt that are found in a prefix cache, 0 where requests state none."""
        return np.zeros(len(self), np.int32) if self.cached_tokens is None else self.cached_tokens

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The arrays by name, which a `besteffort.simulator.result.Result` repeats; `PARTIES` where they are stated."""
        stated = {name: getattr(self, name) for name in PARTIES if getattr(self, name) is not None}
        return {name: getattr(self, name) for name in _DTYPES} | stated

    def part(self, rows: slice, start_s: float) -> Requests:
        """The requests `rows`, with times counted from `start_s`."""
        stated = {name: getattr(self, name) for name in ("deadline_factor", "output_limit", "cached_tokens")}
        columns = self.columns | {name: values for name, values in stated.items() if values is not None}
        columns = {name: values[rows] for name, values in columns.items()}
        columns["arrival_s"] = columns["arrival_s"] - start_s
        return Requests(self.tasks, **columns, origins=self.origins, tenants=self.tenants)


def check_parties(requests: Requests, situation: Situation) -> None:
    """Checks that a list's origins and tenants, if it has any, are the situation's.

    Raises:
      InputError: if they are not.
    """
    for name in PARTIES:
        stated, known = getattr(requests, f"{name}s"), getattr(situation, f"{name}_names")
        if getattr(requests, name) is not None and stated != known:
            raise InputError(
                f"The list's {name}s are {', '.join(stated)}, the situation's {', '.join(known) or 'none'}; give the "
                "same names in the same order."
            )


def weight_of_each(requests: Requests, situation: Situation) -> np.ndarray | None:
    """(n,) factor on the rewards of each request that its tenant makes; None where all count the same."""
    weights = situation.tenant_weights
    return None if weights is None or requests.tenant is None else weights[requests.tenant]


_DTYPES = {
    "arrival_s": np.float64,
    "task": np.int32,
    "prompt_tokens": np.int32,
    "output_tokens": np.int32,
    "deadline_s": np.float64,
}
