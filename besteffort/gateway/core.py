"""The gateway without transport: decides, counts, gives up and tries again, on a clock that is passed in.

    ticket = core.arrive(ask, "id")
    try:
        while True:
            claim = core.claim(ticket)            # decides and counts, in one step; raises RefusedError
            ...                                   # send it to claim.place; core.token(claim) as tokens come
            core.finished(claim, output_tokens=n) # or core.failed(claim, "...", retry=True), then perhaps once more
    finally:
        core.close(ticket, "...")                 # whatever happened: frees what is still claimed, and logs

A claim is freed exactly once, by whichever comes first: its end, its failure, the ticket's end, or the end of its
lease, which is for callers that are gone without a word. Not safe for threads; nothing in here waits.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
import time
from collections.abc import Callable
from typing import Literal

import numpy as np

from besteffort.gateway.board import Board, Totals
from besteffort.gateway.breaker import CircuitBreaker
from besteffort.gateway.peers import Held, Peers, Rate, short_hash
from besteffort.gateway.pools import Place, ReplicaState
from besteffort.gateway.prompt_lengths import CharactersPerToken
from besteffort.gateway.snapshot import Arm, Snapshot
from besteffort.in_flight import InFlight
from besteffort.situation import deadline_s

Outcome = Literal["answered", "refused", "failed", "cancelled", "invalid", "lost"]

_LONGEST_PROMPT = 2**17  # tokens; tables are worked out up to the longest prompt, which takes memory
_LEAST_RETRY_S = 0.05
_FULL_RETRY_S = 1.0  # until a full gateway is tried again
_SPARE_RETRIES = 10.0
_SPARE_LEASES = 64  # of requests that have ended, kept besides as many as there are open ones
_SYNC_S = 0.002  # between two looks at what other workers do, while nothing is decided


class RefusedError(Exception):
    """A request that is not sent anywhere.

    Attributes:
      code: `no_capacity`, `too_late`, `draining` or `too_many_requests`.
      retry_after_s: when it may be tried again.
    """

    def __init__(self, code: str, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = max(retry_after_s, _LEAST_RETRY_S)


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """What the core has to know of a request.

    Attributes:
      task: its task.
      task_source: what said so.
      characters: of the prompt.
      prompt_tokens: where they are known; else they are estimated from the characters.
      max_tokens: the client's limit on the output.
      deadline_base_s, deadline_per_token_s: deadline of the client's own, if there is one.
      deadline_factor: on the task's deadline.
      patience_s: how long the client waits at most.
      streamed: whether the answer comes token by token.
      client: name of the client's key.
      path: of the API.
      origin: where it comes from, if the policy knows origins.
      tenant: whose it is, if the policy knows tenants.
    """

    task: str
    task_source: str = "default"
    characters: int = 0
    prompt_tokens: int | None = None
    max_tokens: int | None = None
    deadline_base_s: float | None = None
    deadline_per_token_s: float = 0.0
    deadline_factor: float = 1.0
    patience_s: float | None = None
    streamed: bool = False
    client: str = ""
    path: str = ""
    origin: str | None = None
    tenant: str | None = None


@dataclasses.dataclass(eq=False, slots=True)
class Claim:
    """A request's place on a replica.

    Attributes:
      ticket: the request.
      place: the replica.
      trial: whether it tries a replica whose breaker is open.
      path_trial: whether it tries a path that the replica was found to lack.
      sent_s: when it was claimed.
      held: whether it counts still.
      shown: as other gateways are told of it; None where there are none.
    """

    ticket: Ticket
    place: Place
    trial: bool
    sent_s: float
    path_trial: bool = False
    held: bool = True
    shown: Held | None = None


@dataclasses.dataclass(eq=False, slots=True)
class Ticket:
    """A request from its arrival to its end.

    Attributes:
      name: its id.
      ask: what is known of it.
      snapshot: what decides it, whatever is reloaded meanwhile.
      arm: the policy of it that does.
      flights: the books that know it, and whether it is on its place there.
      arrived_s: on the core's clock.
      arrived_at: seconds since 1970.
      prompt_tokens: known or estimated, later as the server says.
      deadline_s: on the latency, of an answer of the task's mean length.
      expires_s: when its lease ends.
      claim: its place, while it has one.
      place: its last place.
      tried: replicas that failed it.
      attempts: times that it was sent.
      expected_s: latency that was predicted when it was sent first.
      shadow_pool: where the shadow would have sent it first; empty without one.
      shadow_s: seconds that this took.
      first_s: when its first token came.
      output_tokens: tokens that came; of several choices those of the longest, and at the end those of all.
      why: what failed last.
      open: whether it has not ended.
    """

    name: str
    ask: Ask
    snapshot: Snapshot
    arm: Arm
    flights: dict[InFlight, bool]
    arrived_s: float
    arrived_at: float
    prompt_tokens: int
    deadline_s: float
    expires_s: float
    claim: Claim | None = None
    place: Place | None = None
    tried: list[ReplicaState] = dataclasses.field(default_factory=list)
    attempts: int = 0
    expected_s: float | None = None
    shadow_pool: str = ""
    shadow_s: float = 0.0
    first_s: float | None = None
    output_tokens: int = 0
    why: str = ""
    open: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """A request that has ended: a line of the request log, without prompt, answer or key.

    Times are in seconds; those that are not known are None.
    """

    request_id: str
    arrival_s: float
    task: str
    task_source: str
    client: str
    origin: str
    tenant: str
    model: str
    pool: str
    replica: int | None
    prompt_tokens: int
    output_tokens: int
    output_limit: int | None
    streamed: bool
    deadline_s: float
    ttft_s: float | None
    latency_s: float
    expected_s: float | None
    in_time: bool
    quality: float
    attempts: int
    snapshot: int
    arm: str
    shadow_pool: str
    outcome: Outcome
    error: str


class Core:
    """The decisions and counts of a gateway.

    Attributes:
      snapshot: what new requests are decided by.
      draining: whether new requests are refused.
      peers: other gateways in front of the same servers.
      board: what this worker and others of its host tell each other; None where it is alone.
      shares: whether others are told of requests.
      prompt_lengths: characters per token, as learned.
      retries: times that requests were sent again.
      expired: leases that ended.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        clock: Callable[[], float] = time.monotonic,
        calendar: Callable[[], float] = time.time,
        log: Callable[[Record], None] = lambda record: None,
        board: Board | None = None,
    ) -> None:
        """Nothing in flight.

        Args:
          snapshot: what requests are decided by at first; its books are on the same clock.
          clock: seconds.
          calendar: seconds since 1970.
          log: takes the record of every request that has ended.
          board: shared with other workers of this host.
        """
        self.snapshot = snapshot
        self.draining = False
        self.peers = Peers(snapshot, clock)
        self.board = board
        self.shares = board is not None
        self._synced_s = -math.inf
        self.prompt_lengths = CharactersPerToken()
        self.retries = self.expired = 0
        self._clock, self._calendar, self._log = clock, calendar, log
        self._tickets: dict[str, Ticket] = {}
        self._leases: list[tuple[float, int, Ticket]] = []
        self._numbers = itertools.count()
        self._spare_retries = _SPARE_RETRIES

    @property
    def open_requests(self) -> int:
        """Requests that have arrived and not ended."""
        return len(self._tickets)

    def replace(self, snapshot: Snapshot) -> None:
        """New requests are decided by another snapshot from now on, which takes over what is in flight."""
        before, self.snapshot = self.snapshot, snapshot
        for place in snapshot.places:
            for breaker in (place.state.breaker, *place.state.of_path.values()):
                breaker.settings = snapshot.config.breaker
        if snapshot.flight is before.flight:
            return
        self.peers.leave()
        for arm in snapshot.arms:
            taken = arm.flight.take_over(before.flight, arm.places.moved(before.places))
            for name, sent in taken.items():
                self._tickets[str(name)].flights[arm.flight] = sent
        self.peers.enter(snapshot)

    def arrive(self, ask: Ask, name: str) -> Ticket:
        """A request has come; its task is one of the snapshot's.

        Raises:
          RefusedError: if the gateway is draining or full.
        """
        now, snapshot = self._clock(), self.snapshot
        self.sweep(now)
        if self.draining:
            raise RefusedError("draining", "The gateway is shutting down; try another one.", _FULL_RETRY_S)
        most = snapshot.config.listen.requests
        if len(self._tickets) >= (most if self.board is None else min(most, self.board.slots)):
            raise RefusedError("too_many_requests", "The gateway has too many requests in work.", _FULL_RETRY_S)
        arm = snapshot.arm_for(name)
        while name in self._tickets:
            name = f"{name}-{next(self._numbers)}"
        tokens = ask.prompt_tokens if ask.prompt_tokens is not None else self.prompt_lengths.tokens(ask.characters)
        tokens = min(max(tokens, 1), _LONGEST_PROMPT)
        self.sync(now)
        visible_s = _deadline_s(ask, snapshot)
        ticket = Ticket(name, ask, snapshot, arm, {}, now, self._calendar(), tokens, visible_s, math.inf)
        for each in snapshot.arms:
            # One of the client's own, or of a situation that has others than the main one.
            own = each.visible_deadline_s[ask.task] != visible_s
            each.flight.arrived(
                name,
                task=ask.task,
                prompt_tokens=tokens,
                max_tokens=ask.max_tokens,
                deadline_s=visible_s if own else None,
                origin=ask.origin if ask.origin in each.policy.situation.origin_names else None,
                tenant=ask.tenant if ask.tenant in each.policy.situation.tenant_names else None,
                at=now,
            )
            ticket.flights[each.flight] = False
        if self.board is not None:
            self.board.tell_rate(self.rate())
        self._tickets[name] = ticket
        self._lease(ticket, now)
        config = snapshot.config
        self._spare_retries = min(self._spare_retries + config.retries.share, _SPARE_RETRIES)
        return ticket

    def claim(self, ticket: Ticket) -> Claim:
        """Decides where a request goes, and counts it there.

        Raises:
          RefusedError: if there is no place for it, or it would be late and the operator wants that refused.
        """
        now = self._clock()
        self.sweep(now)
        if not ticket.flights or ticket.claim is not None:
            raise RuntimeError(f"Request {ticket.name} has ended or has a place already.")
        self.sync(now)
        place = self._choose(ticket, ticket.arm, now)
        if not ticket.attempts:
            flight, index = ticket.arm.flight, _here(ticket.arm, place).index
            ticket.expected_s = float(flight.completion_s(ticket.name, at=now)[index]) + now - ticket.arrived_s
            if ticket.arm is ticket.snapshot.main:
                self._ask_shadow(ticket, now)
        for books in ticket.flights:
            ticket.flights[books] = self._sent(books, ticket, place, now)
        place.state.in_flight += 1
        of_path = place.state.of_path.get(ticket.ask.path)
        claim = Claim(ticket, place, place.state.breaker.sent(now), now, of_path is not None and of_path.sent(now))
        ticket.claim, ticket.place, ticket.first_s, ticket.output_tokens = claim, place, None, 0
        ticket.attempts += 1
        self._show(claim, now)
        self._lease(ticket, now)
        return claim

    def token(self, claim: Claim, count: int = 1) -> None:
        """So many tokens have come, one per iteration: of several choices, those of the longest."""
        if not claim.held:
            return
        now, ticket = self._clock(), claim.ticket
        if ticket.first_s is None:
            ticket.first_s = now
            self._succeeded(claim)
        else:
            claim.place.state.breaker.alive()
        ticket.output_tokens += count
        if now - self._synced_s >= _SYNC_S:
            self.sync(now)
        self._show(claim, now)
        for books, sent in ticket.flights.items():
            if sent:
                books.tokens(ticket.name, count, at=now)

    def finished(
        self,
        claim: Claim,
        *,
        output_tokens: int | None = None,
        prompt_tokens: int | None = None,
        choices: int = 1,
    ) -> None:
        """The answer is whole.

        Args:
          claim: its place.
          output_tokens: its length as the server says; else what was counted.
          prompt_tokens: length of the prompt as the server says.
          choices: that it has, which were decoded side by side.
        """
        ticket = claim.ticket
        if not self._free(claim):
            return
        self._succeeded(claim)
        seen = ticket.output_tokens > 0
        if output_tokens is not None and output_tokens > 0:
            ticket.output_tokens = output_tokens
        if prompt_tokens is not None and prompt_tokens > 0:
            self.prompt_lengths.learn(ticket.ask.characters, prompt_tokens)
            ticket.prompt_tokens = prompt_tokens
        now = self._clock()
        for books, sent in ticket.flights.items():
            if sent:
                tokens = -(-ticket.output_tokens // choices) or None
                books.done(ticket.name, output_tokens=tokens, last_token=not seen, at=now)
            else:
                books.cancelled(ticket.name, at=now)
        ticket.flights.clear()

    def failed(self, claim: Claim, why: str, *, blame: bool = True, lacks_path: bool = False) -> None:
        """The replica failed the request, which may be claimed once more.

        Args:
          claim: its place.
          why: a word for logs.
          blame: whether it says something of the replica.
          lacks_path: whether it says that the replica lives, but lacks the request's path.
        """
        ticket, state = claim.ticket, claim.place.state
        if not self._free(claim):
            return
        now = self._clock()
        if blame and lacks_path:
            state.breaker.succeeded(claim.trial)
            of_path = state.of_path.setdefault(ticket.ask.path, CircuitBreaker(state.breaker.settings))
            of_path.failed(claim.path_trial, now)
        else:
            if blame:
                state.breaker.failed(claim.trial, now)
            else:
                state.breaker.ended(claim.trial)
            self._end_trial_of_path(claim)
        self._return(ticket, claim.place, why, now)

    def busy(self, claim: Claim, retry_after_s: float) -> None:
        """The replica refused the request for want of room, which may be claimed once more."""
        if not self._free(claim):
            return
        now = self._clock()
        claim.place.state.breaker.busy(claim.trial, retry_after_s, now)
        self._end_trial_of_path(claim)
        self._return(claim.ticket, claim.place, "busy", now)

    def may_retry(self, ticket: Ticket) -> bool:
        """Whether a request that failed is worth another try; if so, it takes one from the budget."""
        if not ticket.open or ticket.attempts > ticket.snapshot.config.retries.most or self._spare_retries < 1.0:
            return False
        now = self._clock()
        if now - ticket.arrived_s >= ticket.deadline_s or not self._able(ticket, ticket.arm, now).any():
            return False
        self._spare_retries -= 1.0
        self.retries += 1
        return True

    def close(self, ticket: Ticket, outcome: Outcome, error: str = "") -> None:
        """A request has ended; only the first of several calls counts. Frees its place, if it has one still."""
        if not ticket.open:
            return
        ticket.open = False
        if ticket.claim is not None:
            claim = ticket.claim
            self._free(claim)
            claim.place.state.breaker.ended(claim.trial)
            self._end_trial_of_path(claim)
        now = self._clock()
        for books in ticket.flights:
            books.cancelled(ticket.name, at=now)
        ticket.flights.clear()
        del self._tickets[ticket.name]
        self._log(self._record(ticket, outcome, error or ticket.why, now))

    def sweep(self, now: float | None = None) -> None:
        """Ends requests whose lease is over."""
        now = self._clock() if now is None else now
        while self._leases and self._leases[0][0] <= now:
            _, _, ticket = heapq.heappop(self._leases)
            if not ticket.open:
                continue
            if ticket.expires_s > now:
                heapq.heappush(self._leases, (ticket.expires_s, next(self._numbers), ticket))
                continue
            self.expired += 1
            self.close(ticket, "lost", "lease")
        # A lease is minutes longer than most requests, which would all be kept for so long.
        if len(self._leases) > 2 * len(self._tickets) + _SPARE_LEASES:
            self._leases = [lease for lease in self._leases if lease[2].open]
            heapq.heapify(self._leases)

    def sync(self, now: float | None = None) -> None:
        """Looks at what other workers of this host do."""
        if self.board is not None:
            self._synced_s = self._clock() if now is None else now
            self.board.sync(self.peers)

    def shown(self) -> dict[int, Held]:
        """The requests in flight, as other gateways are told of them."""
        claims = (ticket.claim for ticket in self._tickets.values())
        found = (claim.shown for claim in claims if claim is not None)
        return {held.number: held for held in found if held is not None}

    def rate(self) -> Rate:
        """The own arrivals, as other gateways are told of them."""
        flight = self.snapshot.flight
        return Rate(*flight.own_rate(), flight.situation.view.rate_tau_s)

    def totals(self) -> Totals:
        """Figures of all workers of this host."""
        own = Totals(self.open_requests, self.retries, self.expired)
        if self.board is None:
            return own
        self.board.beat(own)
        return self.board.totals()

    def now(self) -> float:
        """Seconds on the core's clock."""
        return self._clock()

    def arrival_rate(self) -> float:
        """Requests per second, as a request would see it that comes now."""
        return self.snapshot.flight.arrival_rate()

    def _lease(self, ticket: Ticket, now: float) -> None:
        config = ticket.snapshot.config
        new = math.isinf(ticket.expires_s)
        ticket.expires_s = now + ticket.snapshot.longest_wait_s + config.lease_s
        if new:
            heapq.heappush(self._leases, (ticket.expires_s, next(self._numbers), ticket))

    def _choose(self, ticket: Ticket, arm: Arm, now: float) -> Place:
        """Where an arm would send a request, as the main policy numbers it.

        Raises:
          RefusedError: if there is no place for it, or it would be late and the operator wants that refused.
        """
        able = self._able(ticket, arm, now)
        if not able.any():
            raise RefusedError("no_capacity", "No server can take the request now.", self._next_chance_s(ticket, now))
        arm.flight.use_only(able)
        if ticket.attempts or ticket.snapshot.config.when_late != "policy":
            arm.flight.use_only(self._in_time(ticket, arm, able, now))
        pool, replica = arm.flight.decide(ticket.name, at=now)
        return _here(ticket.snapshot.main, arm.places.by_pool[arm.policy.models.index(pool)][replica])

    def _ask_shadow(self, ticket: Ticket, now: float) -> None:
        """Notes where the shadow would send a request, on the observation that the main policy had."""
        shadow = ticket.snapshot.shadow
        if shadow is None:
            return
        started = time.perf_counter()
        try:
            ticket.shadow_pool = self._choose(ticket, shadow, now).pool.name
        except RefusedError as refused:
            ticket.shadow_pool = refused.code
        ticket.shadow_s = time.perf_counter() - started

    def _able(self, ticket: Ticket, arm: Arm, now: float) -> np.ndarray:
        """(rows, pools) whether a request may be sent there, as an arm numbers them."""
        tried, path, where = ticket.tried, ticket.ask.path, []
        for place in arm.places:
            state = place.state
            if state.busy < place.limit and state.allows(path, now) and state not in tried:
                where.append(place)
        if len(where) == len(arm.places):
            return arm.everywhere
        able = np.zeros(arm.flight.batch_sizes.shape, bool)
        for place in where:
            able[place.row, place.index] = True
        return able

    def _in_time(self, ticket: Ticket, arm: Arm, able: np.ndarray, now: float) -> np.ndarray:
        """What remains where pools are left out that would be late; if all would be, as the operator wants it.

        Raises:
          RefusedError: if the operator wants that.
        """
        config = ticket.snapshot.config
        completion_s = arm.flight.completion_s(ticket.name, at=now)
        left_s = ticket.deadline_s - (now - ticket.arrived_s)
        pools = able.any(axis=0)
        punctual = pools & (completion_s <= left_s)
        if punctual.any():
            # The policy knows what a first try risks, but takes a later one for a request that has just come.
            return able & punctual if ticket.attempts else able
        if config.when_late == "refuse":
            wait_s = float(completion_s[pools].min()) - left_s
            raise RefusedError("too_late", "No model is expected to answer in time.", wait_s)
        only = np.zeros_like(able)
        size = arm.policy.situation.fleet.model
        smallest = min(np.flatnonzero(pools).tolist(), key=size.tolist().__getitem__)
        only[:, smallest] = able[:, smallest]
        return only

    def _next_chance_s(self, ticket: Ticket, now: float) -> float:
        """Seconds until a place may be free."""
        full, waits_s = False, [_FULL_RETRY_S]
        for place in ticket.snapshot.places:
            wait_s = place.state.opens_in_s(ticket.ask.path, now)
            full |= wait_s == 0.0
            waits_s.append(wait_s or _FULL_RETRY_S)
        return _FULL_RETRY_S if full else min(waits_s)

    def _sent(self, books: InFlight, ticket: Ticket, place: Place, now: float) -> bool:
        """Tells books that a request was sent; whether they have its place."""
        # Of snapshots in between nothing is asked any more.
        for arm in (*ticket.snapshot.arms, *self.snapshot.arms):
            if arm.flight is books and (here := arm.places.same(place)) is not None:
                books.sent(ticket.name, here.index, here.replica, at=now)
                return True
        return False

    def _held(self, claim: Claim, now: float) -> Held:
        ticket = claim.ticket
        return Held(
            number=next(self._numbers) + 1,
            place=short_hash(*claim.place.key),
            task=short_hash(ticket.ask.task),
            prompt_tokens=ticket.prompt_tokens,
            max_tokens=ticket.ask.max_tokens or 0,
            tokens=ticket.output_tokens,
            deadline_s=ticket.deadline_s,
            arrived_s=ticket.arrived_s,
            sent_s=claim.sent_s,
            heard_s=now,
        )

    def _show(self, claim: Claim, now: float) -> None:
        """Tells others of a claim and its tokens."""
        if not self.shares:
            return
        shown = claim.shown
        tokens = claim.ticket.output_tokens
        claim.shown = self._held(claim, now) if shown is None else shown._replace(tokens=tokens, heard_s=now)
        if self.board is not None:
            self.board.put(claim.ticket.name, claim.shown)

    def _free(self, claim: Claim) -> bool:
        """Takes a claim from the counts; whether it was there."""
        if not claim.held:
            return False
        if self.board is not None:
            self.board.drop(claim.ticket.name)
        claim.held = False
        claim.ticket.claim = None
        claim.place.state.in_flight -= 1
        return True

    def _succeeded(self, claim: Claim) -> None:
        """An answer ended well, or began: the replica is in use, and has the path."""
        state = claim.place.state
        state.breaker.succeeded(claim.trial)
        if state.of_path:
            state.of_path.pop(claim.ticket.ask.path, None)
        claim.trial = claim.path_trial = False

    def _end_trial_of_path(self, claim: Claim) -> None:
        if claim.path_trial:
            of_path = claim.place.state.of_path.get(claim.ticket.ask.path)
            if of_path is not None:  # else an earlier request has shown meanwhile that it is there
                of_path.ended(trial=True)

    def _return(self, ticket: Ticket, place: Place, why: str, now: float) -> None:
        ticket.tried.append(place.state)
        ticket.why = why
        for books, sent in ticket.flights.items():
            if sent:
                books.returned(ticket.name, at=now)
                ticket.flights[books] = False

    def _record(self, ticket: Ticket, outcome: Outcome, error: str, now: float) -> Record:
        ask, place, snapshot = ticket.ask, ticket.place, ticket.snapshot
        latency_s = max(now - ticket.arrived_s, 0.0)
        task = snapshot.tasks[ask.task]
        due_s = ticket.deadline_s
        if ticket.output_tokens:
            base_s, per_token_s = snapshot.deadline_base_s[task], snapshot.deadline_per_token_s[task]
            due_s *= deadline_s(base_s, per_token_s, ticket.output_tokens) / snapshot.visible_deadline_s[task]
        in_time = outcome == "answered" and latency_s <= due_s
        return Record(
            request_id=ticket.name,
            arrival_s=ticket.arrived_at,
            task=ask.task,
            task_source=ask.task_source,
            client=ask.client,
            origin=ask.origin or "",
            tenant=ask.tenant or "",
            model="" if place is None else place.model,
            pool="" if place is None else place.pool.name,
            replica=None if place is None else place.replica,
            prompt_tokens=ticket.prompt_tokens,
            output_tokens=ticket.output_tokens,
            output_limit=ask.max_tokens,
            streamed=ask.streamed,
            deadline_s=due_s,
            ttft_s=None if ticket.first_s is None else max(ticket.first_s - ticket.arrived_s, 0.0),
            latency_s=latency_s,
            expected_s=ticket.expected_s,
            in_time=in_time,
            quality=0.0 if place is None else float(snapshot.quality[task, place.index]),
            attempts=ticket.attempts,
            snapshot=snapshot.number,
            arm=ticket.arm.name,
            shadow_pool=ticket.shadow_pool,
            outcome=outcome,
            error="" if outcome == "answered" else error,
        )


def _here(arm: Arm, place: Place) -> Place:
    """A replica of the same snapshot as an arm numbers it."""
    found = arm.places.same(place)
    assert found is not None
    return found


def _deadline_s(ask: Ask, snapshot: Snapshot) -> float:
    """The deadline that holds for a request, of an answer of mean length."""
    task = snapshot.tasks[ask.task]
    own_s = snapshot.visible_deadline_s[task] * ask.deadline_factor
    if ask.deadline_base_s is not None:
        own_s = deadline_s(ask.deadline_base_s, ask.deadline_per_token_s, snapshot.mean_output_tokens[task])
    if ask.patience_s is not None:
        own_s = min(own_s, ask.patience_s)
    return own_s
