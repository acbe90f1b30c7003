"""What the books hold: requests, and the sums over those of an instance that `Line` of the estimates counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

from besteffort.estimates.estimates import Stakes


@dataclasses.dataclass(slots=True)
class Entry:
    """A request that has arrived and is not done; `instance` is -1 until it is sent."""

    task: int
    prompt_tokens: int
    max_tokens: int | None
    deadline_factor: float
    arrival_s: float
    origin: int | None = None
    cached_tokens: int = 0
    tenant: int | None = None
    instance: int = -1
    seat: int = -1
    tokens: int = 0
    prefill_s: float = 0.0
    leaving: float = 0.0  # expected departures per iteration that it stands for, while it runs
    running: bool = False
    iteration: int = 0  # iterations that its instance had ended when its last token came, or it was admitted
    sent_s: float = 0.0
    found: int = 0  # requests on its instance when it was sent, itself included
    stakes: Stakes | None = None  # once it is sent
    delay_s: float = 0.0

    def unsent(self) -> Entry:
        """The same request as one that was not sent."""
        return Entry(
            self.task,
            self.prompt_tokens,
            self.max_tokens,
            self.deadline_factor,
            self.arrival_s,
            self.origin,
            self.cached_tokens,
            self.tenant,
        )


@dataclasses.dataclass(slots=True)
class Instance:
    """Sums over the requests of an instance, and those that wait, in order of arrival.

    Sums are kept up to date event by event, so that a decision does not pay for them. Those of prompts that are read in
    chunks are of those that wait.
    """

    chunks: bool = False  # whether any prompts are read in chunks
    decoding: int = 0
    running: int = 0
    joining_s: float = 0.0
    waiting_s: float = 0.0
    waiting_tokens: int = 0
    waiting_leaving: float = 0.0
    leaving: float = 0.0
    held: int = 0
    begun_s: float = 0.0
    boundary: bool = False  # an iteration has begun whose admissions are not settled
    iterations: int = 0  # that have ended
    ended_s: float = 0.0  # when the last one did, or the instance got to work; nan where no one saw it
    compared: bool = True  # whether what came with the last one is compared with the tables
    decoded: int = 0  # requests that it gave a token beyond their first
    stretch: float = 1.0  # what it took as many times as long for other models on the replica
    waiting: dict[Hashable, Entry] = dataclasses.field(default_factory=dict)
    present: dict[Hashable, Entry] = dataclasses.field(default_factory=dict)  # that wait or run
    free: list[int] = dataclasses.field(default_factory=list)

    def enter(self, request: Hashable, entry: Entry, leaving: float) -> None:
        """A request comes, and waits."""
        self.present[request] = self.waiting[request] = entry
        self.waiting_s += entry.prefill_s
        if self.chunks:
            entry.leaving = leaving
            self.waiting_tokens += entry.prompt_tokens - entry.cached_tokens
            self.waiting_leaving += leaving

    def admit(self, request: Hashable, leaving: float) -> None:
        """A request that waits begins to run."""
        entry = self.waiting.pop(request)
        self._forget_waiting(entry)
        entry.running = True
        entry.iteration = self.iterations
        entry.leaving = leaving
        self.running += 1
        self.joining_s += entry.prefill_s
        self.leaving += leaving

    def decode(self, entry: Entry, tokens: int, leaving: float) -> None:
        """A request that runs has got so many more tokens."""
        if not entry.tokens:
            self.decoding += 1
            self.joining_s = self.joining_s - entry.prefill_s if self.decoding < self.running else 0.0
            self.held += entry.prompt_tokens
        entry.tokens += tokens
        self.held += tokens
        self.leaving += leaving - entry.leaving
        entry.leaving = leaving

    def leave(self, request: Hashable, entry: Entry) -> None:
        """A request leaves, whatever has come of it."""
        if entry.running:
            self.running -= 1
            self.leaving -= entry.leaving
            if entry.tokens:
                self.decoding -= 1
                self.held -= entry.prompt_tokens + entry.tokens
            joining = self.decoding < self.running
            self.joining_s = self.joining_s - entry.prefill_s * (not entry.tokens) if joining else 0.0
        else:
            del self.waiting[request]
            self._forget_waiting(entry)
        if not self.running:
            # Sums of nothing are nothing, whatever was rounded on the way.
            self.leaving = 0.0
            self.boundary = self.boundary and bool(self.waiting)
        del self.present[request]
        self.free.append(entry.seat)

    def _forget_waiting(self, entry: Entry) -> None:
        """Takes a request that waits no longer off the sums over those that do."""
        self.waiting_s = self.waiting_s - entry.prefill_s if self.waiting else 0.0
        if self.chunks:
            self.waiting_tokens -= entry.prompt_tokens - entry.cached_tokens
            self.waiting_leaving = self.waiting_leaving - entry.leaving if self.waiting else 0.0
