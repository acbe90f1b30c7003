"""Compiled simulator, reference and live book-keeping make the same estimates, and none of them knows the future."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from besteffort.estimates.estimates import Estimates
from tests.estimates.lists import LENGTH, Seen, apart, compiled, draw_list, draw_rule, known, reference
from tests.simulator.cases import Case, Kind, draw_kinds

_ALL = draw_kinds(22)
STREAMED = _ALL[:11]
UNSTREAMED = [_ALL[12], _ALL[16], _ALL[19]]
KINDS = [*STREAMED, *UNSTREAMED]
LISTS = 22
TOLERANCE = 1e-9


def draw_lists(index: int, count: int) -> list[Case]:
    """So many lists of a kind."""
    streamed, limits = index < len(STREAMED), index % 3 == 1
    return [draw_list(KINDS[index], 1000 * index + k, streamed=streamed, limits=limits) for k in range(count)]


@cache
def lists(index: int) -> tuple[tuple[Case, Seen], ...]:
    """The lists of a kind, each with what the reference and live book-keeping see."""
    return tuple((case, reference(case, live=True)) for case in draw_lists(index, LISTS))


def marks(kind: Kind) -> list[pytest.MarkDecorator]:
    """Models that slow each other down are played iteration by iteration, which takes longer than to compile."""
    return [pytest.mark.optimised] if "slowdown" in kind.extras else []


EACH = [pytest.param(i, marks=marks(kind), id=str(kind)) for i, kind in enumerate(KINDS)]


@pytest.mark.parametrize("index", EACH)
def test_all_three_agree_at_every_decision(index: int) -> None:
    cases, seen = zip(*lists(index), strict=True)
    check_agreement(seen, *compiled(cases))


def check_agreement(seen: Sequence[Seen], found: Estimates, models: np.ndarray) -> None:
    """Compares what the reference and live book-keeping see of lists with what the compiled simulator does."""
    check_simulators(seen, found, models)
    for of_reference in seen:
        assert of_reference.estimates is not None
        assert of_reference.live is not None
        assert max(apart(of_reference.live, of_reference.estimates).values()) <= TOLERANCE


def check_simulators(seen: Sequence[Seen], found: Estimates, models: np.ndarray) -> None:
    """Compares what the reference sees of lists with what the compiled simulator does."""
    for lane, (of_reference, chosen) in enumerate(zip(seen, models, strict=True)):
        np.testing.assert_array_equal(chosen, of_reference.models)
        assert of_reference.estimates is not None
        assert max(apart(at(found, lane), of_reference.estimates).values()) <= TOLERANCE


# Of these kinds live book-keeping adds up event by event, has all extras to follow, or counts no tokens.
@pytest.mark.parametrize("index", [EACH[1], EACH[8], EACH[12]])
def test_the_values_of_a_rule_agree_at_every_decision(index: int) -> None:
    """Batch sizes that are read late or not: a rule counts those of now, as live book-keeping does."""
    cases = [draw_list(KINDS[index], k, streamed=index < len(STREAMED), limits=index == 1) for k in range(3)]
    rules = [draw_rule(case, rates=1 + index % 3) for case in cases]
    seen = [reference(case, live=True, rule=rule) for case, rule in zip(cases, rules, strict=True)]
    assert all(one.live is not None and one.live.value is not None for one in seen)
    check_agreement(seen, *compiled(cases, rules))


@pytest.mark.parametrize("index", EACH)
def test_every_estimate_is_finite_and_in_its_range(index: int) -> None:
    for case, seen in lists(index):
        assert seen.estimates is not None
        assert all(np.isfinite(field).all() for field in known(seen.estimates).values())
        own, harm = seen.estimates.own, seen.estimates.harm
        situation = case.situation
        quality = situation.profile.quality_table(situation.task_names)[case.requests.task]
        weight = situation.weights[case.requests.task][:, None]
        assert (own <= weight * quality + TOLERANCE).all()
        assert (own >= -weight * situation.reward.miss_penalty - TOLERANCE).all()
        assert (harm >= -TOLERANCE).all()
        assert (seen.estimates.first_token_s > 0).all()
        assert (seen.estimates.work > 0).all()


def test_the_lists_are_as_nasty_as_they_should_be() -> None:
    assert len(KINDS) * LISTS >= 300
    for kinds in (STREAMED, UNSTREAMED):
        assert frozenset.union(*(kind.extras for kind in kinds)) >= {"slowdown", "context", "cache", "delay", "factors"}
    full = lines = 0
    for index, kind in enumerate(KINDS):
        for _, seen in lists(index):
            present = np.array([view.present.sum(-1).max() for view in seen.views])
            full += bool((present >= kind.max_batch).mean() > 0.1)
            lines += bool((present > kind.max_batch).mean() > 0.1)
    assert full > 0.3 * len(KINDS) * LISTS
    assert lines > 0.2 * len(KINDS) * LISTS


@pytest.mark.parametrize("index", EACH)
def test_no_estimate_depends_on_the_future(index: int) -> None:
    """Other lengths of those in flight, each longer than the tokens that came, change no estimate of the moment."""
    rng = np.random.default_rng(index)
    # One program serves this test and the first: as many lists, of the same situations.
    cases, moments = [], []
    for case, seen in lists(index):
        moment = int(rng.integers(LENGTH // 4, LENGTH))
        other = with_another_future(case, seen, moment, rng)
        # What the cache admits depends on the lengths; where it would have admitted others, the past is another.
        same = same_past(seen, reference(other, estimates=False), moment)
        cases.append(other if same else case)
        moments.append(moment if same else -1)
    assert sum(moment >= 0 for moment in moments) >= LISTS // 3
    found, _ = compiled(cases)
    for lane, ((_, seen), moment) in enumerate(zip(lists(index), moments, strict=True)):
        if moment >= 0:
            assert seen.estimates is not None
            assert max(apart(at(at(found, lane), moment), at(seen.estimates, moment)).values()) <= TOLERANCE


def at(found: Estimates, index: int) -> Estimates:
    """Estimates of one list, or of one decision."""
    return Estimates(**{name: field[index] for name, field in known(found).items()})


def with_another_future(case: Case, seen: Seen, moment: int, rng: np.random.Generator) -> Case:
    """The case with new lengths for those in flight when that request arrives; limits stay, since all see them."""
    requests, now = case.requests, case.requests.arrival_s[moment]
    output = requests.output_tokens.copy()
    served = ~seen.result.rejected[:moment]
    for index in np.flatnonzero(served & (seen.result.completion_s[:moment] > now)):
        received = int(np.searchsorted(seen.tape.token_s[index], now, side="right"))
        longest = received + 60 if requests.output_limit is None else int(requests.output_limit[index])
        output[index] = rng.integers(received + 1, longest + 1)
    return dataclasses.replace(case, requests=dataclasses.replace(requests, output_tokens=output))


def same_past(seen: Seen, other: Seen, moment: int) -> bool:
    """Whether what can be counted at a moment, and all choices before it, are the same."""
    one, another = seen.views[moment], other.views[moment]
    return bool((seen.models[:moment] == other.models[:moment]).all()) and all(
        np.array_equal(getattr(one, name), getattr(another, name))
        for name in ("present", "tokens", "age_s", "elapsed_s")
    )
