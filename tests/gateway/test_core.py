"""Counts are what is in flight, whatever happens and in whatever order; decisions, retries, leases, reloads."""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from besteffort.gateway.config import Breaker, Listen, Retries
from besteffort.gateway.core import Ask, Claim, Core, Record, RefusedError, Ticket
from besteffort.policy import Policy
from besteffort.situation import Origin, Tenant
from tests.gateway.policies import MODELS, Clock, config, greedy, snapshot

ASK = Ask(task="piqa", characters=400)
PLENTY = Retries(most=16, share=1.0)


def core(policy: Policy | None = None, **others: object) -> tuple[Core, Clock, list[Record]]:
    clock, records = Clock(), []
    given = config(**{"retries": PLENTY, **others})
    made = Core(snapshot(given, policy, clock=clock), clock=clock, calendar=lambda: 1e9, log=records.append)
    return made, clock, records


def counts(made: Core) -> int:
    return sum(place.state.in_flight for place in made.snapshot.places)


class Counts(RuleBasedStateMachine):
    """Calls in any order, also those that a caller should not make, against a count of what is in flight."""

    open_tickets = Bundle("tickets")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.core, self.clock, self.records = core(breaker=Breaker(failures=2))
        self.arrived = 0
        self.tickets: list[Ticket] = []

    @rule(target=open_tickets, streamed=st.booleans())
    def arrive(self, streamed: bool) -> Ticket:
        ticket = self.core.arrive(dataclasses.replace(ASK, streamed=streamed), f"r{self.arrived}")
        self.arrived += 1
        self.tickets.append(ticket)
        return ticket

    @rule(target=claims, ticket=open_tickets)
    def claim(self, ticket: Ticket) -> object:
        if not ticket.flights or ticket.claim is not None:
            with pytest.raises(RuntimeError):
                self.core.claim(ticket)
            return multiple()
        try:
            return self.core.claim(ticket)
        except RefusedError:
            return multiple()

    @rule(claim=claims, count=st.integers(1, 3))
    def token(self, claim: Claim, count: int) -> None:
        self.core.token(claim, count)

    @rule(claim=claims, tokens=st.none() | st.integers(-1, 50))
    def finish(self, claim: Claim, tokens: int | None) -> None:
        self.core.finished(claim, output_tokens=tokens, prompt_tokens=tokens)

    @rule(claim=claims, blame=st.booleans())
    def fail(self, claim: Claim, blame: bool) -> None:
        self.core.failed(claim, "reset", blame=blame)
        self.core.may_retry(claim.ticket)

    @rule(claim=claims)
    def busy(self, claim: Claim) -> None:
        self.core.busy(claim, 0.1)

    @rule(ticket=consumes(open_tickets))
    def close(self, ticket: Ticket) -> None:
        self.core.close(ticket, "cancelled")
        self.core.close(ticket, "answered")

    @rule(gap=st.floats(0, 400))
    def wait(self, gap: float) -> None:
        self.clock.now += gap
        self.core.sweep()

    @rule(gap=st.floats(0, 5))
    def clock_steps_back(self, gap: float) -> None:
        self.clock.now -= gap

    @rule(swapped=st.booleans(), dropped=st.booleans())
    def reload(self, swapped: bool, dropped: bool) -> None:
        urls = [["http://a/v1", "http://b/v1"], [] if dropped else ["http://c/v1"]]
        given = config([urls[0][::-1] if swapped else urls[0], urls[1]], retries=PLENTY)
        self.core.replace(snapshot(given, clock=self.clock, earlier=self.core.snapshot))

    @invariant()
    def counts_are_claims(self) -> None:
        held = [ticket.claim for ticket in self.tickets if ticket.claim is not None]
        assert all(claim.held and claim.ticket.open for claim in held)
        for place in self.core.snapshot.places:
            # A replica that was left out and came back starts anew.
            mine = sum(claim.place.state is place.state for claim in held)
            assert place.state.in_flight == mine
            assert self.core.snapshot.flight.batch_sizes[place.row, place.index] == mine
        assert self.core.open_requests == sum(ticket.open for ticket in self.tickets)
        assert len(self.records) == self.arrived - self.core.open_requests

    def teardown(self) -> None:
        for ticket in self.tickets:
            self.core.close(ticket, "cancelled")
        assert counts(self.core) == self.core.open_requests == 0
        assert not self.core.snapshot.flight.batch_sizes.any()
        assert sorted(record.request_id for record in self.records) == sorted(f"r{i}" for i in range(self.arrived))


TestCounts = Counts.TestCase
TestCounts.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def test_a_request_goes_to_the_best_model_until_that_is_full() -> None:
    """Select-then-count race (aibrix#2422): a claim counts with the decision."""
    made, _, _ = core()
    chosen = [made.claim(made.arrive(ASK, f"r{i}")).place.model for i in range(24)]
    assert chosen[0] == MODELS[1]
    assert {place.model: place.state.in_flight for place in made.snapshot.places} == {MODELS[0]: 8, MODELS[1]: 8}
    with pytest.raises(RefusedError) as refused:
        made.claim(made.arrive(ASK, "one too many"))
    assert refused.value.code == "no_capacity"
    assert 0 < refused.value.retry_after_s <= 1.0


def test_a_limit_of_a_pool_holds() -> None:
    given = config()
    pools = tuple(dataclasses.replace(pool, limit=1) for pool in given.pools)
    made = Core(snapshot(dataclasses.replace(given, pools=pools)))
    for i in range(3):
        made.claim(made.arrive(ASK, f"r{i}"))
    with pytest.raises(RefusedError):
        made.claim(made.arrive(ASK, "r3"))
    assert counts(made) == 3


def test_a_failed_request_goes_elsewhere_while_its_deadline_allows() -> None:
    made, clock, records = core()
    ticket = made.arrive(ASK, "r")
    first = made.claim(ticket)
    made.failed(first, "connect")
    assert made.may_retry(ticket)
    second = made.claim(ticket)
    assert second.place is not first.place
    made.failed(second, "connect")
    clock.now += 0.41
    assert not made.may_retry(ticket)
    made.close(ticket, "failed")
    assert (records[0].attempts, records[0].error, records[0].outcome) == (2, "connect", "failed")


def test_late_in_its_time_a_request_goes_to_a_model_that_still_can() -> None:
    given = config([["http://s/v1"], ["http://m/v1"], ["http://l/v1", "http://l2/v1"]], retries=PLENTY)
    clock = Clock()
    made = Core(snapshot(given, clock=clock), clock=clock)
    ticket = made.arrive(ASK, "r")
    large = made.claim(ticket)
    assert large.place.model == MODELS[2]
    completion_s = ticket.snapshot.flight.estimates("r", with_harm=False).completion_s
    made.failed(large, "reset")
    clock.now += ticket.deadline_s - float(completion_s[:2].mean())
    assert made.may_retry(ticket)
    assert made.claim(ticket).place.model == MODELS[0]


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_request_is_sent_again_as_often_as_the_operator_allows(most: int) -> None:
    made, _, _ = core(urls=[[f"http://{i}/v1" for i in range(5)]], retries=Retries(most=most, share=1.0))
    ticket = made.arrive(ASK, "r")
    made.failed(made.claim(ticket), "reset")
    while made.may_retry(ticket):
        made.failed(made.claim(ticket), "reset")
    assert made.retries == ticket.attempts - 1 == most


def test_failures_make_no_storm_of_retries() -> None:
    """Storms (better-ccflare PR#349): of many requests that fail, a share is sent again."""
    made, _, _ = core(retries=Retries(most=2, share=0.1), breaker=Breaker(failures=1000))
    for i in range(100):
        ticket = made.arrive(ASK, f"r{i}")
        made.failed(made.claim(ticket), "reset")
        if made.may_retry(ticket):
            made.failed(made.claim(ticket), "reset")
        made.close(ticket, "failed")
    assert 15 <= made.retries <= 20


def test_a_replica_that_fails_is_left_out_and_one_request_tries_it() -> None:
    made, clock, _ = core(breaker=Breaker(failures=2, open_s=1.0))
    places = {place.url: place for place in made.snapshot.places}
    best = places["http://c/v1"]
    for i in range(2):
        ticket = made.arrive(ASK, f"r{i}")
        claim = made.claim(ticket)
        assert claim.place is best
        made.failed(claim, "reset")
        made.close(ticket, "failed")
    assert made.claim(made.arrive(ASK, "else")).place is not best
    clock.now += 1.0
    trial = made.claim(made.arrive(ASK, "trial"))
    assert (trial.place, trial.trial) == (best, True)
    assert made.claim(made.arrive(ASK, "not it")).place is not best
    made.token(trial)
    assert made.claim(made.arrive(ASK, "again")).place is best


def test_a_claim_of_which_nothing_more_is_heard_ends_with_its_lease() -> None:
    made, clock, records = core(lease_s=5.0)
    ticket = made.arrive(ASK, "r")
    claim = made.claim(ticket)
    clock.now += 306.9
    made.sweep()
    assert counts(made) == 1
    clock.now += 0.2
    made.sweep()
    assert counts(made) == made.open_requests == 0
    assert (made.expired, records[0].outcome, records[0].error) == (1, "lost", "lease")
    # Whoever held it may come back; nothing is counted twice.
    made.token(claim)
    made.finished(claim, output_tokens=5)
    made.close(ticket, "answered")
    assert counts(made) == 0
    assert len(records) == 1


def test_requests_that_have_ended_are_not_kept_until_their_leases_end() -> None:
    """They are forgotten while those in between stay, and keep their leases."""
    made, clock, records = core(lease_s=5.0)
    lost = made.arrive(ASK, "lost")
    made.claim(lost)
    for number in range(500):
        ticket = made.arrive(ASK, f"r{number}")
        made.finished(made.claim(ticket), output_tokens=1)
        made.close(ticket, "answered")
    records.clear()
    gc.collect()
    kept = [each for each in gc.get_objects() if isinstance(each, Ticket) and each.snapshot is made.snapshot]
    assert len(kept) < 100
    clock.now += 307.1
    made.sweep()
    assert not lost.open
    assert [record.request_id for record in records] == ["lost"]


def test_an_ordinary_end_is_logged_with_what_the_server_counted() -> None:
    made, clock, records = core()
    ticket = made.arrive(dataclasses.replace(ASK, streamed=True, max_tokens=30, client="team"), "r")
    claim = made.claim(ticket)
    clock.now += 0.125
    made.token(claim)
    clock.now += 0.0625
    made.token(claim, 3)
    made.finished(claim, output_tokens=7, prompt_tokens=80)
    made.close(ticket, "answered")
    (record,) = records
    assert (record.ttft_s, record.latency_s, record.output_tokens, record.prompt_tokens) == (0.125, 0.1875, 7, 80)
    assert (record.in_time, record.outcome, record.client, record.output_limit) == (True, "answered", "team", 30)
    assert record.arrival_s == 1e9
    # 0.1 s and 15 ms per token.
    assert record.deadline_s == pytest.approx(0.1 + 7 * 0.015)
    assert made.prompt_lengths.ratio == pytest.approx(5.0)


@pytest.mark.parametrize(("when_late", "model"), [("policy", MODELS[1]), ("smallest", MODELS[0]), ("refuse", None)])
def test_where_nothing_can_be_in_time_the_operator_decides(when_late: str, model: str | None) -> None:
    # All are worth nothing; this policy takes a larger one then.
    base = greedy()
    made, _, _ = core(dataclasses.replace(base, weights=((np.eye(3), np.array([0.0, 1.0, 0.0])),)), when_late=when_late)
    ticket = made.arrive(dataclasses.replace(ASK, characters=200_000, deadline_base_s=0.002), "r")
    if model is not None:
        assert made.claim(ticket).place.model == model
        return
    soonest_s = made.snapshot.flight.estimates("r", with_harm=False).completion_s[:2].min()
    with pytest.raises(RefusedError) as refused:
        made.claim(ticket)
    assert refused.value.code == "too_late"
    assert refused.value.retry_after_s == pytest.approx(soonest_s - 0.002)


def test_deadlines_are_the_clients_the_tasks_or_its_patience() -> None:
    made, _, _ = core()
    for fields, expected in (
        ({}, 0.4),
        ({"deadline_factor": 2.0}, 0.8),
        ({"deadline_base_s": 0.3}, 0.3),
        ({"deadline_base_s": 0.3, "deadline_per_token_s": 0.01}, 0.5),
        ({"patience_s": 0.2}, 0.2),
        ({"deadline_base_s": 0.1, "patience_s": 0.2}, 0.1),
    ):
        ticket = made.arrive(dataclasses.replace(ASK, **fields), "r")
        assert ticket.deadline_s == pytest.approx(expected)
        made.close(ticket, "cancelled")


def test_requests_in_work_have_a_limit_and_draining_takes_none() -> None:
    made, _, _ = core(listen=Listen(requests=2))
    for i in range(2):
        made.arrive(ASK, f"r{i}")
    with pytest.raises(RefusedError, match="too many"):
        made.arrive(ASK, "r2")
    made.draining = True
    with pytest.raises(RefusedError, match="shutting down"):
        made.arrive(ASK, "r3")


def test_one_name_for_two_requests_makes_two() -> None:
    made, _, records = core()
    tickets = [made.arrive(ASK, "same") for _ in range(3)]
    for ticket in tickets:
        made.claim(ticket)
        made.close(ticket, "answered")
    assert len({record.request_id for record in records}) == 3


def test_a_path_that_a_replica_lacks_is_left_out_and_no_other() -> None:
    """llm-katan has chat, and no `/v1/completions`."""
    made, clock, _ = core(urls=[["http://a/v1"]], breaker=Breaker(failures=2, open_s=5.0))
    plain, chat = (
        dataclasses.replace(ASK, path="/v1/completions"),
        dataclasses.replace(ASK, path="/v1/chat/completions"),
    )
    (place,) = made.snapshot.places

    def begin(ask: Ask) -> Claim:
        return made.claim(made.arrive(ask, "r"))

    def end(claim: Claim, **how: bool) -> None:
        if how:
            made.failed(claim, "status_404", **how)
        else:
            made.finished(claim, output_tokens=2)
        made.close(claim.ticket, "failed" if how else "answered")

    for _ in range(2):
        end(begin(plain), lacks_path=True)
    with pytest.raises(RefusedError) as refused:
        begin(plain)
    assert refused.value.retry_after_s == pytest.approx(1.0)
    made.close(made._tickets["r"], "refused")
    end(begin(chat))
    assert place.state.breaker.state(clock.now) == "closed"
    clock.now += 5.0
    # One tries it again; that it leaves gives the try back.
    trial = begin(plain)
    with pytest.raises(RefusedError):
        made.claim(made.arrive(plain, "other"))
    made.close(made._tickets["other"], "refused")
    made.close(trial.ticket, "cancelled")
    end(begin(plain), lacks_path=True)
    assert not place.state.allows(plain.path, clock.now + 9.0)
    clock.now += 10.0
    trial = begin(plain)
    made.token(trial)
    assert place.state.of_path == {}
    end(trial)
    # What it lacks is not what it is blamed for otherwise.
    end(begin(plain), lacks_path=True)
    for _ in range(2):
        end(begin(chat), blame=True)
    assert place.state.breaker.state(clock.now) == "open"


def test_an_earlier_answer_ends_the_doubt_about_a_path() -> None:
    made, clock, _ = core(urls=[["http://a/v1"]], breaker=Breaker(failures=1, open_s=5.0))
    ask = dataclasses.replace(ASK, path="/v1/completions")
    early, late = (made.claim(made.arrive(ask, name)) for name in ("early", "late"))
    made.failed(late, "status_404", lacks_path=True)
    clock.now += 5.0
    trial = made.claim(made.arrive(ask, "trial"))
    assert trial.path_trial
    made.token(early)
    made.close(trial.ticket, "cancelled")
    assert made.snapshot.places.by_pool[0][0].state.allows(ask.path, clock.now)


def test_books_know_where_a_request_comes_from() -> None:
    policy = greedy()
    near_and_far = dataclasses.replace(policy.situation, origins=(Origin("near"), Origin("far")))
    made, _, records = core(policy=dataclasses.replace(policy, situation=near_and_far))
    for origin, index in (("far", 1), ("near", 0), (None, None)):
        ticket = made.arrive(dataclasses.replace(ASK, origin=origin), "r")
        assert made.snapshot.flight.observation("r").origin == index
        made.close(ticket, "cancelled")
    assert [record.origin for record in records] == ["far", "near", ""]


def test_books_know_whose_a_request_is() -> None:
    policy = greedy()
    tenants = dataclasses.replace(policy.situation, tenants=(Tenant("gold", 3.0), Tenant("lead")))
    made, _, records = core(policy=dataclasses.replace(policy, situation=tenants))
    for tenant, weight in (("gold", 1.5), ("lead", 0.5), (None, 1.0)):
        ticket = made.arrive(dataclasses.replace(ASK, tenant=tenant), "r")
        assert made.snapshot.flight.observation("r").tenant_weight == weight
        made.close(ticket, "cancelled")
    assert [record.tenant for record in records] == ["gold", "lead", ""]


def test_a_reload_keeps_counts_rate_and_breakers() -> None:
    """One snapshot per request; neurolink PR#1196, litellm#20409."""
    made, clock, _ = core(breaker=Breaker(failures=1, open_s=50.0))
    tickets = []
    for i in range(6):
        clock.now += 0.01
        tickets.append(made.arrive(ASK, f"r{i}"))
    claims = [made.claim(ticket) for ticket in tickets]
    failed = next(claim for claim in claims if claim.place.url == "http://c/v1")
    made.failed(failed, "reset")
    rate = made.arrival_rate()
    before = made.snapshot
    after = snapshot(config([["http://b/v1", "http://a/v1"], ["http://c/v1"]]), clock=clock, earlier=before)
    made.replace(after)
    assert made.arrival_rate() == pytest.approx(rate, rel=1e-12)
    assert tickets[0].snapshot is before
    new = made.arrive(ASK, "new")
    assert new.snapshot is after
    assert made.claim(new).place.url != "http://c/v1"  # its breaker is still open
    for place in after.places:
        assert after.flight.batch_sizes[place.row, place.index] == place.state.in_flight
    for ticket in (*tickets, new):
        made.close(ticket, "answered")
    assert counts(made) == 0
    assert not after.flight.batch_sizes.any()
    assert not before.flight.batch_sizes.any()


@pytest.mark.parametrize("jump_s", [-1e6, -3.0, 1e6])
def test_a_clock_that_jumps_leaves_counts_and_times_that_can_be(jump_s: float) -> None:
    """Clock jumps, even of monotonic clocks (pymongo PR#1758)."""
    made, clock, records = core()
    tickets = [made.arrive(ASK, f"r{i}") for i in range(4)]
    claims = [made.claim(ticket) for ticket in tickets]
    made.token(claims[0])
    clock.now += jump_s
    made.sweep()
    for claim in claims:
        made.token(claim)
    made.failed(claims[1], "reset")
    made.finished(claims[0], output_tokens=3)
    new = made.arrive(ASK, "new")
    made.finished(made.claim(new), output_tokens=3)
    for ticket in (*tickets, new):
        made.close(ticket, "answered")
    assert counts(made) == made.open_requests == 0
    assert not made.snapshot.flight.batch_sizes.any()
    assert len(records) == 5
    for record in records:
        assert 0.0 <= record.latency_s < np.inf
        assert record.ttft_s is None or 0.0 <= record.ttft_s <= record.latency_s
    assert 0.0 <= made.arrival_rate() < np.inf


def test_prompts_without_end_take_no_memory_without_end() -> None:
    made, _, _ = core()
    ticket = made.arrive(dataclasses.replace(ASK, characters=2**40), "r")
    assert ticket.prompt_tokens == 2**17
    assert np.isfinite(made.claim(ticket).sent_s)


def test_a_policy_serves_as_many_replicas_as_there_are() -> None:
    made = Core(snapshot(config([[f"http://{i}/v1" for i in range(5)]])))
    assert greedy().situation.cluster.replicas == 2
    used = {made.claim(made.arrive(ASK, f"r{i}")).place.replica for i in range(5)}
    assert used == {0, 1, 2, 3, 4}
