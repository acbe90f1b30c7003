"""What is estimated where replicas start, drain and fail: compiled, by the reference, and live from events."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.in_flight import InFlight
from besteffort.pools import Pool, ReplicaEvent
from besteffort.runs.untrained import default_policy
from besteffort.situation import Cluster, Situation, Task
from tests.estimates.lists import LENGTH, Seen, compiled, draw_rule, known, reference
from tests.estimates.test_agreement import check_agreement
from tests.simulator.cases import Case
from tests.simulator.pool_cases import draw_life_kinds, draw_pool_case, draw_scaled_kinds
from tests.test_pools import FAST

KINDS = [*draw_life_kinds(5), draw_scaled_kinds(2)[1]]
LISTS = 12
# By kind whether answers are streamed; without tokens, and with a cache, admissions are inferred.
STREAMED = (True, True, True, True, False, True)


def draw(index: int, seed: int) -> Case:
    case = draw_pool_case(KINDS[index], seed, LENGTH)
    view = dataclasses.replace(case.situation.view, streamed=STREAMED[index])
    requests = case.requests
    if index % 3 == 1:
        limit = requests.output_tokens + np.random.default_rng(seed).integers(0, 8, LENGTH)
        requests = dataclasses.replace(requests, output_limit=limit)
    return dataclasses.replace(case, requests=requests, situation=dataclasses.replace(case.situation, view=view))


@cache
def lists(index: int) -> tuple[tuple[Case, Seen], ...]:
    """The lists of a kind, each with what the reference and live book-keeping see."""
    cases = [draw(index, 1000 * index + k) for k in range(LISTS)]
    return tuple((case, reference(case, live=True)) for case in cases)


@pytest.mark.parametrize("index", range(len(STREAMED)), ids=lambda index: str(KINDS[index]))
def test_all_three_agree_at_every_decision(index: int) -> None:
    cases, seen = zip(*lists(index), strict=True)
    check_agreement(seen, *compiled(cases))


def test_the_values_of_a_rule_agree() -> None:
    cases = [draw(0, k) for k in range(3)]
    rules = [draw_rule(case, rates=2) for case in cases]
    seen = [reference(case, live=True, rule=rule) for case, rule in zip(cases, rules, strict=True)]
    check_agreement(seen, *compiled(cases, rules))


def test_estimates_are_finite_and_a_closed_pool_earns_nothing() -> None:
    closed = waits = 0
    for case, seen in (pair for index in range(len(STREAMED)) for pair in lists(index)):
        assert seen.estimates is not None
        assert all(np.isfinite(field).all() for field in known(seen.estimates).values())
        takes = np.array([view.takes for view in seen.views])
        ready_s = np.array([view.ready_s for view in seen.views])
        penalty = (case.situation.weights * case.situation.reward.miss_penalty)[case.requests.task]
        lost = np.broadcast_to(-penalty[:, None], takes.shape)
        np.testing.assert_allclose(seen.estimates.own[~takes], lost[~takes], atol=1e-12)
        assert (seen.estimates.first_token_s >= ready_s).all()
        closed += bool((~takes).any())
        waits += bool((ready_s > 0).any())
    assert closed > 0.4 * len(STREAMED) * LISTS
    assert waits > 0.4 * len(STREAMED) * LISTS


class TestLive:
    """Replicas of two pools, told event by event; a prefill and a decode of model m take m + 1 seconds."""

    def flight(self, **changes: Any) -> InFlight:
        pools = (Pool("a", "model0", replicas=2, max_batch=4, start_s=5.0), Pool("b", "model1", max_batch=4))
        task = Task("task0", prompt_tokens=(1, 8), output_tokens=(1, 3))
        return InFlight(Situation(FAST, Cluster(), (task,), pools=pools, **changes), clock=lambda: 0.0)

    def first_token_s(self, flight: InFlight, at: float) -> list[float]:
        flight.arrived(("probe", at), task="task0", prompt_tokens=1, at=at)
        found = flight.estimates(("probe", at), at=at).first_token_s.tolist()
        flight.cancelled(("probe", at), at=at)
        return found

    def test_a_starting_replica_is_waited_for(self) -> None:
        flight = self.flight()
        assert self.first_token_s(flight, 0.0) == [1.0, 2.0]
        assert flight.failed_replica("a", 0, at=1.0) == []
        assert self.first_token_s(flight, 1.0) == [1.0, 2.0]  # the other is up
        flight.failed_replica("a", 1, at=1.0)
        flight.started("a", 1, at=2.0)
        assert self.first_token_s(flight, 3.0) == [5.0, 2.0]
        flight.arrived("x", task="task0", prompt_tokens=1, at=3.0)
        flight.sent("x", "a", 1, at=3.0)
        assert self.first_token_s(flight, 4.0) == [5.0, 2.0]  # after the prefill of x
        # At 7 s it is up and reads x until 8 s; then half of x is expected to be left, to be decoded.
        assert self.first_token_s(flight, 7.5)[0] == pytest.approx(0.5 + 1.0 + 0.5)
        flight.started("a", 0, up_in_s=0.0, at=7.5)
        assert self.first_token_s(flight, 7.5) == [1.0, 2.0]

    def test_a_failure_ends_its_requests(self) -> None:
        flight = self.flight()
        for name, replica in (("x", 0), ("y", 1), ("z", 1)):
            flight.arrived(name, task="task0", prompt_tokens=1, at=0.0)
            flight.sent(name, "a", replica, at=0.0)
        assert flight.failed_replica(0, 1, at=0.5) == ["y", "z"]
        assert flight.batch_sizes.sum() == 1
        with pytest.raises(InputError, match="Request 'y' is not known"):
            flight.done("y", at=1.0)
        flight.done("x", at=1.0)
        assert flight.batch_sizes.sum() == 0

    def test_a_drained_replica_gets_nobody_and_may_be_taken_up_again(self) -> None:
        flight = self.flight()
        flight.arrived("x", task="task0", prompt_tokens=1, at=0.0)
        flight.sent("x", "b", at=0.0)
        flight.drained("b", at=0.0)
        observation = flight.observation("x", at=0.0)
        assert observation.open.tolist() == [True, False]
        flight.started("b", at=0.5)
        assert flight.observation("x", at=0.5).open.tolist() == [True, True]
        assert flight.observation("x", at=0.5).ready_s.tolist() == [0.0, 0.0]

    def test_a_start_told_again_changes_only_when_a_starting_replica_is_up(self) -> None:
        flight = self.flight()
        flight.arrived("x", task="task0", prompt_tokens=1, at=0.0)
        flight.sent("x", "b", at=0.0)
        flight.started("b", up_in_s=30.0, at=0.5)
        assert flight.observation("x", at=0.5).ready_s.tolist() == [0.0, 0.0]
        flight.cancelled("x", at=1.0)
        flight.started("b", up_in_s=30.0, at=1.0)
        flight.arrived("y", task="task0", prompt_tokens=1, at=1.0)
        flight.sent("y", "b", at=1.0)
        flight.started("b", up_in_s=4.0, at=2.0)
        assert flight.observation("y", at=2.0).ready_s.tolist() == [0.0, 4.0]

    def test_nothing_is_decided_where_all_are_down(self) -> None:
        flight = InFlight(default_policy(self.flight().situation))
        flight.arrived("x", task="task0", prompt_tokens=1, at=0.0)
        left = {("a", 0), ("b", 0), ("a", 1)}
        while left:
            chosen = flight.decide("x", at=0.0)
            left.remove(chosen)  # one that is up
            flight.failed_replica(*chosen, at=0.0)
        with pytest.raises(InputError, match="no replica is available"):
            flight.decide("x", at=0.0)

    def test_new_books_know_which_replicas_are_up(self) -> None:
        old, new = self.flight(), self.flight()
        old.drained("a", 0, at=0.0)
        old.failed_replica("b", at=0.0)
        old.started("b", up_in_s=9.0, at=1.0)
        old.arrived("x", task="task0", prompt_tokens=1, at=2.0)
        old.sent("x", "b", at=2.0)
        new.take_over(old, {place: place for place in (("a", 0), ("a", 1), ("b", 0))})
        for at in (4.0, 11.5):
            np.testing.assert_array_equal(new.observation("x", at=at).takes, old.observation("x", at=at).takes)
            np.testing.assert_array_equal(new.observation("x", at=at).ready_s, old.observation("x", at=at).ready_s)
            assert self.first_token_s(new, at) == self.first_token_s(old, at)

    def test_a_situation_says_who_is_down_at_first(self) -> None:
        pool = Pool("a", "model0", replicas=2, events=(ReplicaEvent(9.0, 0, "start"),))
        flight = InFlight(Situation(FAST, Cluster(), (Task("task0"),), pools=(pool,)))
        flight.arrived("x", task="task0", prompt_tokens=1, at=0.0)
        np.testing.assert_array_equal(flight.observation("x", at=0.0).takes, [[False], [True]])

    @pytest.mark.parametrize(
        ("told", "sentence"),
        [
            (lambda flight: flight.started("c"), "There is no replica 0 of `c`; there are, with how many replicas, a"),
            (lambda flight: flight.drained("a", 2), "There is no replica 2 of `a`; there are"),
            (lambda flight: flight.failed_replica("a", -1), "There is no replica -1 of `a`; there are"),
            (lambda flight: flight.started("a", up_in_s=-1.0), "`up_in_s` is -1; give a number of seconds"),
        ],
    )
    def test_a_mistake_is_one_sentence(self, told: Any, sentence: str) -> None:
        with pytest.raises(InputError, match=sentence):
            told(self.flight())
