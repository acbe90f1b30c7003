"""Live book-keeping: mistakes are one sentence or a defined value, and nothing is counted twice or below 0."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.errors import InputError
from besteffort.estimates.encoding import appraise
from besteffort.estimates.estimates import Estimates
from besteffort.estimates.params import ServingParams
from besteffort.in_flight import InFlight
from besteffort.observation import default_features
from besteffort.policy import Policy
from besteffort.runs.config import load_situation
from besteffort.runs.untrained import default_policy, rule_policy
from besteffort.situation import Situation
from tests.estimates.lists import apart, known

SITUATION = load_situation("paper")
SMALLEST, LARGEST = SITUATION.profile.model_names[0], SITUATION.profile.model_names[-1]
TASK = SITUATION.task_names[0]
RULED = default_policy(SITUATION)


@pytest.fixture
def flight() -> InFlight:
    """One request on its way with one token, one that has arrived only."""
    return filled(SITUATION)


def filled(policy: Policy | Situation) -> InFlight:
    flight = InFlight(policy)
    flight.arrived("sent", task=TASK, prompt_tokens=100, at=0.0)
    flight.sent("sent", LARGEST, at=0.0)
    flight.first_token("sent", at=0.05)
    flight.arrived("new", task=TASK, prompt_tokens=100, at=0.06)
    return flight


def done_twice(flight: InFlight) -> None:
    flight.done("sent", at=0.1)
    flight.done("sent", at=0.1)


def token_after_done(flight: InFlight) -> None:
    flight.done("sent", at=0.1)
    flight.tokens("sent", at=0.1)


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (lambda flight: flight.arrived("new", task=TASK, prompt_tokens=1), "has arrived already"),
        (lambda flight: flight.arrived("x", task="poetry", prompt_tokens=1), "unknown task `poetry`; choose from"),
        (lambda flight: flight.arrived("x", task=TASK, prompt_tokens=0), "`prompt_tokens` is 0; give at least 1"),
        (
            lambda flight: flight.arrived("x", task=TASK, prompt_tokens=1, max_tokens=0),
            "`max_tokens` is 0; give at least 1",
        ),
        (
            lambda flight: flight.arrived("x", task=TASK, prompt_tokens=1, deadline_s=0.0),
            "`deadline_s` is 0.0; give a positive number",
        ),
        (lambda flight: flight.arrived("x", task=TASK, prompt_tokens=1, at=math.nan), "`at` is nan; give a finite"),
        (lambda flight: flight.sent("unknown", LARGEST), "not known: it has not arrived, or has ended already"),
        (lambda flight: flight.sent("sent", LARGEST), "was sent already"),
        (lambda flight: flight.sent("new", "gpt"), "no replica 0 of `gpt`; there are, with how many"),
        (lambda flight: flight.sent("new", LARGEST, replica=4), "no replica 4"),
        (lambda flight: flight.tokens("new"), "was not sent; tell `sent` before its tokens"),
        (lambda flight: flight.tokens("unknown"), "not known"),
        (lambda flight: flight.tokens("sent", 0), "`count` is 0; give at least 1"),
        (lambda flight: flight.first_token("sent"), "first token has come already"),
        (done_twice, "has ended already"),
        (token_after_done, "has ended already"),
        (lambda flight: flight.failed("unknown"), "not known"),
        (lambda flight: flight.estimates("unknown"), "not known"),
        (lambda flight: flight.decide("new"), "no policy to decide"),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(
    flight: InFlight, mistake: Callable[[InFlight], None], sentence: str
) -> None:
    untouched = mistake in (done_twice, token_after_done)
    before = None if untouched else flight.estimates("new", at=0.07)
    with pytest.raises(InputError, match=sentence):
        mistake(flight)
    assert flight.batch_sizes.min() >= 0
    if before is not None:
        assert set(apart(flight.estimates("new", at=0.07), before).values()) == {0.0}


def test_a_clock_that_steps_back_stands_still(flight: InFlight) -> None:
    before = flight.estimates("new", at=0.07)
    assert set(apart(flight.estimates("new", at=-5.0), before).values()) == {0.0}
    flight.tokens("sent", at=0.01)
    assert finite(flight.estimates("new", at=0.0))


def finite(found: Estimates) -> bool:
    return all(np.isfinite(field).all() for field in known(found).values())


def test_alone_a_request_is_foreseen_to_the_last_digit() -> None:
    # With one possible length and nobody else, nothing is uncertain.
    tasks = tuple(dataclasses.replace(task, output_tokens=(12, 12)) for task in SITUATION.tasks)
    flight = InFlight(dataclasses.replace(SITUATION, tasks=tasks))
    flight.arrived("new", task=TASK, prompt_tokens=100, at=0.0)
    found = flight.estimates("new", at=0.0)
    profile = SITUATION.profile
    first_s = profile.prefill_table(100)[:, 100]
    np.testing.assert_allclose(found.first_token_s, first_s, rtol=1e-12)
    np.testing.assert_allclose(found.completion_s, first_s + 11 * profile.decode_table(32)[:, 1], rtol=1e-12)
    assert (found.harm == 0).all()


def test_more_in_flight_than_the_situation_says_is_counted(flight: InFlight) -> None:
    capacity = SITUATION.cluster.max_batch + SITUATION.cluster.queue_capacity
    for number in range(capacity + 5):
        flight.arrived(number, task=TASK, prompt_tokens=100, at=0.1)
        flight.sent(number, SMALLEST, at=0.1)
    assert flight.batch_sizes[0, 0] == capacity + 5
    assert finite(flight.estimates("new", at=0.1))


def test_a_deadline_and_a_limit_of_the_client_count(flight: InFlight) -> None:
    usual = flight.estimates("new", at=0.07)
    flight.arrived("hurried", task=TASK, prompt_tokens=100, deadline_s=0.05, at=0.07)
    assert (flight.estimates("hurried", at=0.07).own < usual.own).all()
    flight.arrived("short", task=TASK, prompt_tokens=100, max_tokens=1, at=0.07)
    short = flight.estimates("short", at=0.07)
    np.testing.assert_allclose(short.completion_s, short.first_token_s)
    assert (short.completion_s < usual.completion_s).all()


def test_a_policy_decides_and_the_balancer_picks() -> None:
    situation = SITUATION
    models = len(situation.profile.model_names)
    features = default_features(len(situation.tasks), models, 4, 32, 10.0, situation.view.features)
    width = sum(feature.size for feature in features)
    weights = ((np.zeros((width, models), np.float32), np.array([0.0, 2.0, 1.0], np.float32)),)
    flight = InFlight(Policy(situation, features, weights))
    flight.arrived("a", task=TASK, prompt_tokens=10, at=0.0)
    assert flight.decide("a", at=0.0) == (situation.profile.model_names[1], 0)
    flight.sent("a", *flight.decide("a", at=0.0), at=0.0)
    flight.arrived("b", task=TASK, prompt_tokens=10, at=0.0)
    assert flight.decide("b", at=0.0).replica == 1


def test_only_a_policy_with_a_rule_values_models() -> None:
    assert filled(SITUATION).estimates("new", at=0.07).value is None
    flight = filled(RULED)
    assert flight.estimates("new", at=0.07, with_harm=False).value is None
    value = flight.estimates("new", at=0.07).value
    assert value is not None
    assert flight.decide("new", at=0.07).model == SITUATION.profile.model_names[int(value.argmax())]


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.floats(0, 0.05)), max_size=60),
    st.booleans(),
    st.booleans(),
)
def test_any_events_leave_counts_that_add_up(events: list[tuple[int, int, float]], streamed: bool, ruled: bool) -> None:
    view = dataclasses.replace(SITUATION.view, streamed=streamed)
    situation = dataclasses.replace(SITUATION, view=view)
    flight = InFlight(rule_policy(situation, RULED.rule, {}) if ruled else situation)
    alive: set[int] = set()
    now = 0.0
    for kind, name, gap in events:
        now += gap
        try:
            if kind == 0:
                flight.arrived(name, task=TASK, prompt_tokens=1 + name * 50, at=now)
            elif kind == 1:
                flight.sent(name, SITUATION.profile.model_names[name % 3], name % 2, at=now)
                alive.add(name)
            elif kind <= 4:
                flight.tokens(name, kind, at=now)
            else:
                (flight.done if kind == 5 else flight.cancelled)(name, at=now)
                alive.discard(name)
        except InputError:
            continue
    assert flight.batch_sizes.sum() == len(alive)
    flight.arrived("last", task=TASK, prompt_tokens=100, at=now)
    found = flight.estimates("last", at=now)
    assert finite(found)
    again = recounted(flight, now)
    assert max(apart(found, again).values()) <= 1e-9


def recounted(flight: InFlight, now: float) -> Estimates:
    """The same estimates from the view, all sums made anew."""
    rule = None if flight.policy is None else flight.policy.rule
    params = ServingParams.of(flight.situation, 400, rule=rule)
    return appraise(flight.observation("last", at=now), params)
