"""The breaker opens after failures in a row, one request at a time tries again, and nothing keeps that slot."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from besteffort.gateway.breaker import CircuitBreaker
from besteffort.gateway.config import Breaker

SETTINGS = Breaker(failures=3, open_s=1.0, longest_s=4.0)


def opened(now: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker(SETTINGS)
    for _ in range(3):
        breaker.failed(breaker.sent(now), now)
    return breaker


def test_opens_after_failures_in_a_row() -> None:
    breaker = CircuitBreaker(SETTINGS)
    for _ in range(2):
        breaker.failed(False, 0.0)
    assert breaker.state(0.0) == "closed"
    breaker.failed(False, 0.0)
    assert breaker.state(0.0) == "open"
    assert not breaker.allows(0.9)
    assert breaker.allows(1.0)


def test_a_sign_of_life_ends_the_row() -> None:
    """Long generations trip the breaker (vime PR#350); a good server is ejected under load (ray#54070)."""
    breaker = CircuitBreaker(SETTINGS)
    for _ in range(20):
        breaker.failed(False, 0.0)
        breaker.failed(False, 0.0)
        breaker.alive()
    assert breaker.state(0.0) == "closed"


def test_one_request_at_a_time_tries_again() -> None:
    """All probes rush into half-open (deer-flow PR#2095)."""
    breaker = opened()
    assert breaker.allows(1.0)
    assert breaker.sent(1.0)
    assert breaker.state(1.0) == "half-open"
    assert not any(breaker.allows(now) for now in (1.0, 2.0, 100.0))


def test_the_slot_is_given_back_whatever_comes_of_the_try() -> None:
    """A probe slot is leaked by a neutral outcome (voidllm PR#185)."""
    breaker = opened()
    breaker.ended(breaker.sent(1.0))
    assert breaker.allows(1.0)
    breaker.failed(breaker.sent(1.0), 1.0)
    assert not breaker.allows(2.9)  # twice as long
    assert breaker.allows(3.0)
    breaker.succeeded(breaker.sent(3.0))
    assert breaker.state(3.0) == "closed"


def test_it_is_never_open_for_longer_than_stated() -> None:
    """Never recovers after a spike (litellm#30192)."""
    breaker, now = opened(), 0.0
    for _ in range(20):
        assert breaker.opens_in_s(now) <= 4.0
        now += breaker.opens_in_s(now)
        assert breaker.allows(now)
        breaker.failed(breaker.sent(now), now)


def test_failures_of_requests_sent_before_it_opened_change_nothing() -> None:
    breaker = opened()
    for _ in range(50):
        breaker.failed(False, 0.5)
    assert breaker.allows(1.0)


def test_a_busy_server_is_left_alone_for_a_while_at_most() -> None:
    """A `retry-after` of an hour parks a backend."""
    breaker = CircuitBreaker(SETTINGS)
    breaker.busy(False, 3600.0, 10.0)
    assert not breaker.allows(13.9)
    assert breaker.allows(14.0)
    assert breaker.state(10.0) == "closed"


@given(st.lists(st.tuples(st.sampled_from(["send", "fail", "succeed", "end", "busy", "alive"]), st.floats(0, 3))))
def test_it_always_tries_again_once_all_requests_have_ended(steps: list[tuple[str, float]]) -> None:
    breaker, now, trials = CircuitBreaker(SETTINGS), 0.0, []
    for step, gap in steps:
        now += gap
        if step == "send" and breaker.allows(now):
            trials.append(breaker.sent(now))
            assert sum(trials) <= 1
        elif step == "alive":
            breaker.alive()
        elif trials:
            trial = trials.pop()
            if step == "fail":
                breaker.failed(trial, now)
            elif step == "succeed":
                breaker.succeeded(trial)
            elif step == "end":
                breaker.ended(trial)
            elif step == "busy":
                breaker.busy(trial, gap, now)
    for trial in trials:
        breaker.ended(trial)
    assert breaker.allows(now + 4.0)
