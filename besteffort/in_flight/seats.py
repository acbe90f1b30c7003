"""The requests of all instances as arrays: a row per instance, a column per seat, of which each request has one."""

from __future__ import annotations

import dataclasses

import numpy as np

from besteffort.estimates.estimates import Stakes
from besteffort.in_flight.entries import Entry

NO_LIMIT = int(np.iinfo(np.int64).max)
"""The limit on the output of a request that states none."""


@dataclasses.dataclass
class Seats:
    """Arrays of shape (instances, seats); what they hold of free seats is finite and means nothing.

    Attributes:
      present: whether there is a request.
      running: whether it runs.
      eligible: whether it was there when the iteration began.
      order: its place in the order of sending.
      limit: its limit on the output, or the largest integer.
      added_s: prefills of those that were sent to the instance after it, where answers are not streamed.
      law: where the law of its length begins, see `Stakes`; as the fields below.
    """

    present: np.ndarray
    running: np.ndarray
    eligible: np.ndarray
    task: np.ndarray
    prompt_tokens: np.ndarray
    cached_tokens: np.ndarray
    tokens: np.ndarray
    order: np.ndarray
    limit: np.ndarray
    arrival_s: np.ndarray
    deadline_factor: np.ndarray
    delay_s: np.ndarray
    tenant_weight: np.ndarray
    added_s: np.ndarray
    law: np.ndarray
    deadline_base_s: np.ndarray
    deadline_per_token_s: np.ndarray
    quality: np.ndarray
    penalty: np.ndarray

    @classmethod
    def empty(cls, instances: int, seats: int) -> Seats:
        """Free seats."""
        fills: dict[str, bool | int | float] = dict.fromkeys(("present", "running", "eligible"), False)
        fills |= dict.fromkeys(("task", "prompt_tokens", "cached_tokens", "tokens", "order", "law"), 0)
        fills |= {"limit": NO_LIMIT, "deadline_factor": 1.0, "tenant_weight": 1.0}
        return cls(*(np.full((instances, seats), fills.get(f.name, 0.0)) for f in dataclasses.fields(cls)))

    def widen(self) -> None:
        """Twice as many seats."""
        more = Seats.empty(*self.present.shape)
        for field in dataclasses.fields(self):
            both = (getattr(self, field.name), getattr(more, field.name))
            setattr(self, field.name, np.concatenate(both, axis=1))

    def take(self, entry: Entry, stakes: Stakes, *, order: int, eligible: bool, tenant_weight: float) -> None:
        """A request takes the seat that its entry names."""
        here = (entry.instance, entry.seat)
        self.present[here], self.running[here], self.eligible[here] = True, False, eligible
        self.task[here], self.prompt_tokens[here], self.tokens[here] = entry.task, entry.prompt_tokens, 0
        self.cached_tokens[here] = entry.cached_tokens
        self.order[here], self.arrival_s[here] = order, entry.arrival_s
        self.limit[here] = NO_LIMIT if entry.max_tokens is None else entry.max_tokens
        self.deadline_factor[here] = entry.deadline_factor
        self.delay_s[here], self.tenant_weight[here], self.added_s[here] = entry.delay_s, tenant_weight, 0.0
        self.law[here] = stakes.law
        self.deadline_base_s[here] = stakes.deadline_base_s
        self.deadline_per_token_s[here] = stakes.deadline_per_token_s
        self.quality[here], self.penalty[here] = stakes.quality, stakes.penalty

    def leave(self, entry: Entry) -> None:
        """A request leaves its seat."""
        here = (entry.instance, entry.seat)
        self.present[here] = self.running[here] = False
        self.quality[here] = self.penalty[here] = 0.0

    def stakes(self, rows: np.ndarray, longest: int, *, limits: bool) -> Stakes:
        """What the requests of some instances have to lose.

        Args:
          rows: the instances.
          longest: the longest output that laws have.
          limits: whether any request has a limit.
        """
        law = self.law[rows]
        return Stakes(
            law=law,
            limit=law + np.minimum(self.limit[rows], longest) if limits else None,
            deadline_base_s=self.deadline_base_s[rows],
            deadline_per_token_s=self.deadline_per_token_s[rows],
            quality=self.quality[rows],
            penalty=self.penalty[rows],
        )
