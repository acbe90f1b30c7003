"""Estimates where prompts are read in chunks or found in a prefix cache: alike everywhere, close to what happens."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.estimates.encoding import appraise
from besteffort.estimates.params import ServingParams
from besteffort.estimates.view import Terms
from besteffort.in_flight import InFlight
from besteffort.observation import Observation
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Cluster, Deadline, Situation, Task
from besteffort.workload.requests import Requests
from tests.estimates.lists import Seen, compiled, reference
from tests.estimates.test_agreement import check_agreement
from tests.estimates.test_correction import comparing, misled
from tests.simulator.cases import Case, make_profile, with_budgets
from tests.simulator.test_chunks import KINDS, draw_part

LENGTH = 100
LISTS = 6
# Models of the last slow each other down.
EACH = [3, 4]


def draw(index: int, seed: int, *, streamed: bool = True) -> Case:
    case = draw_part(index, seed, LENGTH)
    view = dataclasses.replace(case.situation.view, streamed=streamed)
    return dataclasses.replace(case, situation=dataclasses.replace(case.situation, view=view))


@cache
def lists(index: int) -> tuple[tuple[Case, Seen], ...]:
    cases = (draw(index, 1000 * index + k) for k in range(LISTS))
    return tuple((case, reference(case, live=True)) for case in cases)


@pytest.mark.optimised
@pytest.mark.parametrize("index", EACH, ids=lambda index: str(KINDS[index]))
def test_all_three_agree_at_every_decision(index: int) -> None:
    cases, seen = zip(*lists(index), strict=True)
    check_agreement(seen, *compiled(cases))


@pytest.mark.optimised
@pytest.mark.parametrize("streamed", [True, False])
def test_they_agree_on_observed_times_too(streamed: bool) -> None:
    cases = []
    for k in range(3):
        case = comparing(draw(1, k, streamed=streamed), 0.5 + k)
        cases.append(dataclasses.replace(case, assumed=misled(case.situation, k)))
    seen = [reference(case, live=True) for case in cases]
    check_agreement(seen, *compiled(cases))
    strayed = [np.abs(one.estimates.observed_slowdown - 1).max() for one in seen if one.estimates]
    assert max(strayed) > 0.05


def test_with_the_tables_of_the_world_observed_times_come_close() -> None:
    """Reading shows by first tokens alone, so what of a prompt is read before its last iteration comes unexpected."""
    found = []
    for k in range(4):
        case = comparing(draw(1, 100 + k), 2.0)
        seen = reference(dataclasses.replace(case, assumed=case.situation))
        assert seen.estimates is not None
        found.append(seen.estimates.observed_slowdown[50:])
    assert 0.95 < np.median(np.concatenate(found)) < 1.05


def test_an_unlimited_budget_changes_no_estimate() -> None:
    """One pool has chunks: the estimates of the others are what they are without."""
    for k in range(3):
        case = draw(1, k)
        # Nothing is sent to the first, so that all else is as it was.
        router = dataclasses.replace(case.router, noise=np.zeros(()), taste=case.router.taste - [1e9, 0, 0])
        wanted, found = (
            reference(
                dataclasses.replace(case, situation=with_budgets(case.situation, [one, None, None]), router=router),
                live=True,
            )
            for one in (None, 7)
        )
        for each in ("estimates", "live"):
            for name in ("own", "harm", "first_token_s", "completion_s"):
                one, other = (getattr(getattr(seen, each), name)[:, 1:] for seen in (wanted, found))
                np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def predicted(requests: Requests, chunk_tokens: int | None, **profile: object) -> tuple[np.ndarray, np.ndarray]:
    """(n,) predicted and real seconds to the first token on one replica of one model.

    A decode of `b` lasts `0.5 + 0.5 b` seconds, a token is read in 0.25 s.
    """
    made = make_profile(0.5 + 0.5 * np.arange(1, 9)[None], 0.25 * np.arange(1, 65)[None], **profile)
    situation = Situation(
        made,
        Cluster(replicas=1, max_batch=8, queue_capacity=8),
        (Task("task0", prompt_tokens=(1, 64), output_tokens=(1, 64), deadline=Deadline(4.0)),),
    )
    situation = with_budgets(situation, [chunk_tokens])
    params, found = ServingParams.of(situation), []

    def route(index: int, observation: Observation) -> int:
        found.append(float(appraise(observation, params).first_token_s[0]))
        return 0

    result = simulate_by_reference(requests, situation, route, terms=Terms.of(situation))
    return np.array(found), result.first_token_s - result.arrival_s


def make_list(
    arrival_s: list[float], prompts: list[int], outputs: list[int], found: list[int] | None = None
) -> Requests:
    n = len(prompts)
    cached = None if found is None else np.array(found)
    columns = [np.array(values) for values in (arrival_s, [0] * n, prompts, outputs)]
    return Requests(("task0",), *columns, np.full(n, 4.0), cached_tokens=cached)


def test_alone_a_prompt_takes_what_its_reading_takes() -> None:
    found, real = predicted(make_list([0.0, 100.0], [20, 7], [1, 1], [0, 3]), 4)
    assert found.tolist() == real.tolist() == [5.0, 1.0]


def test_behind_a_prompt_that_is_read_the_time_since_its_beginning_counts() -> None:
    # The first is read from 0 to 5, 8 tokens at a time; from 4 to 6 its last 4 and the 4 of the second.
    found, real = predicted(make_list([0.0, 2.25], [20, 4], [9, 1]), 8)
    assert real.tolist() == [6.0, 3.75]
    assert found.tolist() == [5.0, 3.75]


def test_beside_one_that_decodes_each_iteration_reads_a_chunk_less_one() -> None:
    # The first is read from 0 to 0.25. At 0.5 its decode has 0.75 s to go; then 3 x 3 tokens are read, beside a decode
    # each.
    found, real = predicted(make_list([0.0, 0.5], [1, 9], [60, 1]), 4)
    assert real[1] == 0.75 + 9 * 0.25 + 3
    # The one that decodes may leave: its share in 64 tokens is taken off.
    assert found[1] == pytest.approx(real[1], rel=0.03)
    whole, _ = predicted(make_list([0.0, 0.5], [1, 9], [60, 1]), None)
    assert whole[1] == pytest.approx(0.75 + 9 * 0.25 + 1, rel=0.03)


def test_live_takes_no_more_found_tokens_than_the_prompt_has() -> None:
    case = draw(0, 0)
    flight = InFlight(case.situation)
    with pytest.raises(
        InputError, match=r"Request 'a': `cached_tokens` is 9; give at least 0 and at most its `prompt_to"
    ):
        flight.arrived("a", task="task0", prompt_tokens=8, cached_tokens=9)


def test_books_that_are_handed_on_keep_what_was_found() -> None:
    case = draw(0, 0)
    old, new = InFlight(case.situation), InFlight(case.situation)
    old.arrived("a", task="task0", prompt_tokens=40, cached_tokens=39, at=0.0)
    old.sent("a", 0, at=0.0)
    old.returned("a", at=0.0)
    old.sent("a", 0, at=0.0)
    (name,) = case.situation.fleet.names
    new.take_over(old, {(name, 0): (name, 0)})
    for flight in (old, new):
        flight.arrived("b", task="task0", prompt_tokens=8, at=0.0)
    found = [float(flight.estimates("b", at=0.0).first_token_s[0]) for flight in (old, new)]
    read = InFlight(case.situation)
    read.arrived("a", task="task0", prompt_tokens=40, at=0.0)
    read.sent("a", 0, at=0.0)
    read.arrived("b", task="task0", prompt_tokens=8, at=0.0)
    assert found[0] == found[1] < float(read.estimates("b", at=0.0).first_token_s[0])
