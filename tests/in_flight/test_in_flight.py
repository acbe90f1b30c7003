"""Live book-keeping: mistakes are one sentence or a defined value, and nothing is counted twice or below 0."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.errors import InputError
from besteffort.estimates.encoding import appraise
from besteffort.estimates.estimates import Estimates
from besteffort.estimates.params import ServingParams
from besteffort.in_flight import InFlight
from besteffort.observation import default_features, value_of
from besteffort.policy import Policy
from besteffort.runs.config import load_situation
from besteffort.runs.untrained import default_policy, rule_policy
from besteffort.situation import Cluster, Deadline, Pool, Situation
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


def elsewhere(replica: int = 0, **wrong: float) -> Callable[[InFlight], None]:
    request: dict[str, Any] = {"task": TASK, "prompt_tokens": 1, "arrived_s": 0.05}
    return lambda flight: flight.sent_elsewhere("x", LARGEST, replica, **request | wrong)


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
        (elsewhere(prompt_tokens=0), "`prompt_tokens` is 0; give at least 1"),
        (elsewhere(max_tokens=0), "`max_tokens` is 0; give at least 1"),
        (elsewhere(deadline_s=-1.0), "`deadline_s` is -1.0; give a positive number"),
        (elsewhere(deadline_s=math.inf), "`deadline_s` is inf; give a positive number"),
        (elsewhere(arrived_s=math.nan), "`arrived_s` is nan; give a finite number"),
        (elsewhere(replica=4), "no replica 4"),
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


UNTYPED = """
from besteffort.errors import InputError
from besteffort.in_flight import InFlight
from besteffort.runs.config import load_situation

flight = InFlight(load_situation("paper"))
flight.arrived("sent", task="piqa", prompt_tokens=10, at=0.0)
flight.sent("sent", 0, at=0.0)
for wrong in ({"prompt_tokens": 10.0}, {"prompt_tokens": "10"}, {"max_tokens": 5.0}, {"cached_tokens": True}):
    try:
        flight.arrived("new", **{"task": "piqa", "prompt_tokens": 10, "at": 0.1, **wrong})
    except InputError as error:
        print(error)
try:
    flight.tokens("sent", 2.0, at=0.1)
except InputError as error:
    print(error)
"""


def test_lengths_that_are_no_whole_numbers_are_refused() -> None:
    """In a process of its own, since the checks of types that are on here would come first."""
    said = subprocess.run([sys.executable, "-c", UNTYPED], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [
        "Request 'new': `prompt_tokens` is 10.0; give at least 1, a whole number.",
        "Request 'new': `prompt_tokens` is 10; give at least 1, a whole number.",
        "Request 'new': `max_tokens` is 5.0; give at least 1, a whole number.",
        "Request 'new': `cached_tokens` is True; give at least 0 and at most its `prompt_tokens`, 10, a whole number.",
        "Request 'sent': `count` is 2.0; give at least 1, a whole number.",
    ]


def test_an_observation_stays_what_was_seen(flight: InFlight) -> None:
    seen = flight.observation("new", at=0.06)
    flight.sent("new", LARGEST, at=0.06)
    assert seen.instance_batch_sizes.sum() == seen.batch_sizes.sum() == 1


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


def test_arrays_that_have_the_shape_of_seats_by_chance_stay_as_they_are() -> None:
    """As many places as columns of sums over answers, and one place on the replicas of one pool."""
    view = dataclasses.replace(SITUATION.view, streamed=False, slowdown_tau_s=2.0)
    cluster = dataclasses.replace(SITUATION.cluster, max_batch=2, queue_capacity=1)
    three = dataclasses.replace(SITUATION, view=view, cluster=cluster)
    pool = Pool("alone", LARGEST, replicas=2, max_batch=1, queue_capacity=0)
    one = dataclasses.replace(SITUATION, view=view, cluster=Cluster(), pools=(pool,))
    for situation, places in ((three, 3), (one, 1)):
        flight = InFlight(situation)
        shape = flight.batch_sizes.shape
        for number in range(places + 1):
            flight.arrived(number, task=TASK, prompt_tokens=10, at=0.1 * number)
            flight.sent(number, 0, at=0.1 * number)
        assert flight.batch_sizes.shape == shape
        flight.use_only(np.ones(shape, bool))
        for number in range(places + 1):
            flight.done(number, output_tokens=5, at=1.0 + 0.1 * number)
        flight.arrived("next", task=TASK, prompt_tokens=10, at=3.0)
        assert flight.estimates("next", at=3.0).completion_s.shape == shape[1:]
        assert flight.batch_sizes.sum() == 0


def test_a_deadline_and_a_limit_of_the_client_count(flight: InFlight) -> None:
    usual = flight.estimates("new", at=0.07)
    flight.arrived("hurried", task=TASK, prompt_tokens=100, deadline_s=0.05, at=0.07)
    assert (flight.estimates("hurried", at=0.07).own < usual.own).all()
    flight.arrived("short", task=TASK, prompt_tokens=100, max_tokens=1, at=0.07)
    short = flight.estimates("short", at=0.07)
    np.testing.assert_allclose(short.completion_s, short.first_token_s)
    assert (short.completion_s < usual.completion_s).all()


def test_a_limit_beyond_all_numbers_is_none() -> None:
    # A client may state any number; one that a gateway passes on must not leave the books half written.
    limited, free = InFlight(SITUATION), InFlight(SITUATION)
    for books, limit in ((limited, 2**70), (free, None)):
        books.arrived("a", task=TASK, prompt_tokens=10, max_tokens=limit, at=0.0)
        books.sent("a", 0, at=0.0)
        books.arrived("b", task=TASK, prompt_tokens=10, max_tokens=limit, at=0.5)
    found, wanted = limited.estimates("b", at=0.5), free.estimates("b", at=0.5)
    np.testing.assert_allclose(found.own, wanted.own)
    np.testing.assert_allclose(found.harm, wanted.harm)
    limited.done("a", at=1.0)
    assert not limited.batch_sizes.any()


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


def test_a_request_that_returns_is_sent_again_and_counts_as_one_arrival() -> None:
    flight, plain = filled(RULED), filled(RULED)
    for books in (flight, plain):
        books.arrived("again", task=TASK, prompt_tokens=50, at=0.07)
    flight.sent("again", 0, 1, at=0.07)
    flight.tokens("again", 2, at=0.08)
    flight.returned("again", at=0.09)
    assert (flight.batch_sizes == plain.batch_sizes).all()
    assert flight.observation("again", at=0.1).arrival_rate == plain.observation("again", at=0.1).arrival_rate
    flight.sent("again", 1, 0, at=0.1)
    flight.done("again", at=0.2)
    assert (flight.batch_sizes == plain.batch_sizes).all()
    with pytest.raises(InputError, match="not known"):
        flight.returned("again")


def test_only_what_is_available_is_chosen_and_estimated() -> None:
    flight = filled(RULED)
    flight.arrived("a", task=TASK, prompt_tokens=50, at=0.07)
    free = flight.decide("a", at=0.07)
    models = list(SITUATION.profile.model_names)
    available = np.ones(flight.batch_sizes.shape, bool)
    available[:, models.index(free.model)] = False
    flight.use_only(available)
    assert flight.decide("a", at=0.07).model != free.model
    # An instance that holds more is picked where the emptier one is out of use.
    flight.use_only(np.ones_like(available))
    for request in range(3):
        flight.arrived(request, task=TASK, prompt_tokens=50, at=0.07)
        flight.sent(request, 0, 0, at=0.07)
    emptier = flight.estimates("a", at=0.07).first_token_s[0]
    available = np.ones_like(available)
    available[1:, 0] = False
    flight.use_only(available)
    assert flight.estimates("a", at=0.07).first_token_s[0] > emptier
    available[:, 0] = False
    flight.use_only(available.copy())
    seen = flight.observation("a", at=0.07)
    assert seen.open.tolist() == [False, True, True]
    assert value_of("smallest_batch", seen).tolist() == [0, 0, 0]
    flight.use_only(np.zeros_like(available))
    with pytest.raises(InputError, match="no replica is available"):
        flight.decide("a", at=0.07)
    with pytest.raises(InputError, match="shape"):
        flight.use_only(np.ones((1, 1), bool))


def test_new_books_take_over_requests_and_rate() -> None:
    old = filled(RULED)
    old.arrived("gone", task=TASK, prompt_tokens=70, at=0.06)
    old.sent("gone", SMALLEST, at=0.06)
    old.done("gone", at=0.065)
    old.arrived("waits", task=TASK, prompt_tokens=70, max_tokens=9, deadline_s=0.4, at=0.07)
    new = InFlight(RULED)
    models, replicas = SITUATION.profile.model_names, SITUATION.cluster.replicas
    same = {(model, replica): (model, replica) for model in models for replica in range(replicas)}
    assert new.take_over(old, same) == {name: known.instance >= 0 for name, known in old._requests.items()}
    assert (new.batch_sizes == old.batch_sizes).all()
    for books in (old, new):
        books.arrived("new one", task=TASK, prompt_tokens=70, at=0.1)
    found, known = (books.observation("new one", at=0.1) for books in (new, old))
    assert found.arrival_rate == known.arrival_rate
    assert found.since_change_s == known.since_change_s == pytest.approx(0.035)
    seen, true = found.in_flight, known.in_flight
    assert (np.sort(seen.tokens[seen.present]) == np.sort(true.tokens[true.present])).all()
    assert (np.sort(seen.age_s[seen.present]) == np.sort(true.age_s[true.present])).all()
    for request in tuple(old._requests):
        new.cancelled(request, at=0.2)
    assert not new.batch_sizes.any()
    with pytest.raises(InputError, match="already"):
        new.take_over(old, same)


def test_requests_of_unknown_tasks_and_missing_replicas_are_not_taken_over() -> None:
    old = filled(SITUATION)
    fewer = dataclasses.replace(SITUATION, tasks=tuple(t for t in SITUATION.tasks if t.name != TASK))
    models = SITUATION.profile.model_names
    first = {(model, 0): (model, 0) for model in models}
    books = InFlight(fewer)
    assert books.take_over(old, first) == {}
    assert not books.batch_sizes.any()
    # The second replica becomes the first one.
    moved = InFlight(SITUATION)
    taken = moved.take_over(old, {(model, 1): (model, 0) for model in models})
    assert taken.keys() == old._requests.keys()
    assert sum(taken.values()) == old.batch_sizes[1].sum()
    assert (moved.batch_sizes[0] == old.batch_sizes[1]).all()
    assert not moved.batch_sizes[1:].any()


def test_a_deadline_of_its_own_is_taken_over_as_it_is() -> None:
    def longer(deadline: Deadline) -> Deadline:
        return Deadline(4 * deadline.base_s, 4 * deadline.per_token_s)

    tasks = tuple(dataclasses.replace(task, deadline=longer(task.deadline)) for task in SITUATION.tasks)
    old, new = InFlight(SITUATION), InFlight(dataclasses.replace(SITUATION, tasks=tasks))
    old.arrived("own", task=TASK, prompt_tokens=70, deadline_s=0.3, at=0.0)
    old.arrived("usual", task=TASK, prompt_tokens=70, at=0.0)
    new.take_over(old, {})
    assert new.observation("own", at=0.1).deadline_s == pytest.approx(0.3)
    usual_s = old.observation("usual", at=0.1).deadline_s
    assert new.observation("usual", at=0.1).deadline_s == pytest.approx(4 * usual_s)


def test_a_prediction_is_that_of_the_moment() -> None:
    """Whatever happened since the last decision, and whatever that was about."""
    flight = filled(RULED)
    flight.decide("new", at=0.07)
    for event in (
        lambda: None,
        lambda: flight.arrived("other", task=TASK, prompt_tokens=500, at=0.07),
        lambda: flight.sent("other", LARGEST, at=0.07),
        lambda: flight.tokens("sent", at=0.07),
        lambda: flight.values("other", at=0.07),
        lambda: flight.use_only(np.arange(flight.batch_sizes.size).reshape(flight.batch_sizes.shape) % 2 == 0),
        lambda: flight.cancelled("sent", at=0.07),
        lambda: flight.decide("new", at=0.09),
    ):
        event()
        for at in (0.09, 0.1):
            got = flight.completion_s("new", at=at)
            np.testing.assert_array_equal(got, flight.estimates("new", at=at).completion_s)
            np.testing.assert_array_equal(got, flight.completion_s("new", at=at))


@pytest.mark.parametrize("told_before", [False, True])
def test_a_last_token_is_one_iteration_however_it_is_told(told_before: bool) -> None:
    view = dataclasses.replace(SITUATION.view, slowdown_tau_s=2.0)
    situation = dataclasses.replace(SITUATION, view=view)
    params, now = ServingParams.of(situation), 0.0
    flight = InFlight(situation)
    for number in range(5):
        flight.arrived(number, task=TASK, prompt_tokens=100, at=now)
        flight.sent(number, LARGEST, at=now)
        now += params.prefill[-1, 100]
        flight.tokens(number, at=now)
        for token in range(7):
            now += params.decode[-1, 1]
            if token < 6 or told_before:
                flight.tokens(number, at=now)
        flight.done(number, last_token=not told_before, at=now)
    flight.arrived("next", task=TASK, prompt_tokens=100, at=now)
    assert flight.observed_slowdown is not None
    np.testing.assert_allclose(flight.observed_slowdown, 1.0, rtol=1e-9)


@pytest.mark.parametrize("beside", [False, True])
def test_answers_that_come_whole_among_streamed_ones_are_not_taken_for_slow(beside: bool) -> None:
    """As those with tools do; one token at their end is not all that their time went into."""
    view = dataclasses.replace(SITUATION.view, slowdown_tau_s=2.0)
    situation = dataclasses.replace(SITUATION, view=view)
    params = ServingParams.of(situation)
    prefill_s, decode_s = params.prefill[-1, 100], params.decode[-1]
    flight, now = InFlight(situation), 0.0
    if beside:
        flight.arrived("streamed", task=TASK, prompt_tokens=100, at=now)
        flight.sent("streamed", LARGEST, at=now)
        now += prefill_s
        flight.tokens("streamed", at=now)
    for number, length in enumerate((20, 20, 1, 20, 20, 1, 1, 20)):
        flight.arrived(number, task=TASK, prompt_tokens=100, at=now)
        flight.sent(number, LARGEST, at=now)
        if beside:
            for gap_s in (decode_s[1], decode_s[1] + prefill_s, *[decode_s[2]] * (length - 1)):
                now += gap_s
                flight.tokens("streamed", at=now)
        else:
            now += prefill_s + (length - 1) * decode_s[1]
        flight.done(number, output_tokens=length, at=now)
    flight.arrived("next", task=TASK, prompt_tokens=100, at=now)
    assert flight.observed_slowdown is not None
    np.testing.assert_allclose(flight.observed_slowdown, 1.0, rtol=0.01 if beside else 1e-9)


def test_requests_of_another_gateway_count_as_own_ones_but_for_the_rate() -> None:
    own, told = InFlight(SITUATION), InFlight(SITUATION)
    told.others = lambda now: 7.0
    for flight in (own, told):
        flight.arrived("first", task=TASK, prompt_tokens=40, at=0.0)
    request = {"task": TASK, "prompt_tokens": 120, "max_tokens": 12}
    own.arrived("x", **request, deadline_s=0.3, at=0.1)
    own.sent("x", LARGEST, 1, at=0.1)
    told.sent_elsewhere("x", LARGEST, 1, **request, deadline_s=0.3, arrived_s=0.1, at=0.1)
    for flight in (own, told):
        flight.tokens("x", 2, at=0.2)
    assert (told.batch_sizes == own.batch_sizes).all()
    for name in ("own", "harm", "first_token_s", "completion_s"):
        got, wanted = (getattr(flight.estimates("first", at=0.25), name) for flight in (told, own))
        np.testing.assert_allclose(got, wanted, rtol=1e-12, err_msg=name)
    tau_s = SITUATION.view.rate_tau_s
    assert told.own_rate() == (0.0, 0.0)
    assert told.arrival_rate(at=0.25) == pytest.approx(7.0 + math.exp(-0.25 / tau_s) / tau_s)
    told.cancelled("x", at=0.3)
    assert not told.batch_sizes.any()
    with pytest.raises(InputError, match="no replica 9"):
        told.sent_elsewhere("y", LARGEST, 9, **request, arrived_s=0.3)
    told.sent_elsewhere("y", LARGEST, 0, **request, arrived_s=0.3, at=0.3)
    with pytest.raises(InputError, match="is known already"):
        told.sent_elsewhere("y", LARGEST, 0, **request, arrived_s=0.3)
