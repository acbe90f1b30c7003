"""Estimates whose values follow from a few lines of arithmetic."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from besteffort.estimates.estimates import Estimates, Newcomer, Softness, all_together, capacity, estimate
from besteffort.estimates.params import ServingParams
from besteffort.estimates.view import InFlightView, Terms
from besteffort.in_flight import InFlight
from besteffort.pools import Pool
from besteffort.runs.config import load_situation
from besteffort.situation import Cluster, Deadline, Reward, Situation, Task, View
from tests.simulator.cases import make_profile

SHARP = Softness(width=1e-6, in_flight=1e-6)
DECODE, PREFILL = 0.01, 0.1


def situation(**changes: object) -> Situation:
    """One model, one replica: prefills of 0.1 s, decodes of 0.01 s and 1 ms per request, answers of 11 tokens."""
    decode = DECODE + 0.001 * np.arange(1, 5)[None]
    parts: dict[str, object] = {
        "profile": make_profile(decode, np.full((1, 16), PREFILL)),
        "cluster": Cluster(replicas=1, max_batch=4, queue_capacity=4),
        "tasks": (Task("task0", prompt_tokens=(1, 16), output_tokens=(11, 11), deadline=Deadline(1.0, 0.0)),),
    }
    return Situation(**(parts | changes))  # type: ignore[arg-type]


def behind(count: int, tokens: int, at: float, where: Situation) -> Estimates:
    """Estimates at a time for one more request, behind so many that came at 0 and have so many tokens at 0.5."""
    flight = InFlight(where, softness=SHARP)
    for number in range(count):
        flight.arrived(number, task="task0", prompt_tokens=8, at=0.0)
        flight.sent(number, 0, at=0.0)
    for number in range(count):
        if tokens:
            flight.tokens(number, tokens, at=0.5)
    flight.arrived("new", task="task0", prompt_tokens=8, at=at)
    return flight.estimates("new", at=at)


@pytest.mark.parametrize(("deadline_s", "lost"), [(0.68, 0.0), (0.70, 3.0), (0.78, 3.0), (0.80, 0.0)])
def test_harm_is_what_the_others_lose(deadline_s: float, lost: float) -> None:
    # Three have 5 of 11 tokens at 0.5 s, and 6 after the iteration in progress, 0.013 s. Each goes on for 6 more, so
    # half a request leaves with it, and each who leaves is followed by one whose prefill is a hundredth of a second
    # per token. Without the new one the others are done at 0.689 s; its prefill and decodes delay them by 0.104 s.
    pace_s = DECODE + 0.001 * 2.5 + 2.5 * PREFILL / 11
    assert 0.5 + 0.013 + 5 * pace_s == pytest.approx(0.689, abs=1e-3)
    tasks = (dataclasses.replace(situation().tasks[0], deadline=Deadline(deadline_s, 0.0)),)
    assert behind(3, 5, 0.5, situation(tasks=tasks)).harm[0] == pytest.approx(lost, abs=1e-6)


def test_of_the_iteration_in_progress_only_the_rest_is_waited_for() -> None:
    # Two run, both with a token at 0.5 s: a decode of 0.012 s, of which 0.005 s are gone.
    found = behind(2, 1, 0.505, situation())
    leaving = 2 / 10
    before = DECODE + 0.001 * (2 - leaving)
    assert found.first_token_s[0] == pytest.approx(0.007 + PREFILL + before)


def test_a_full_batch_is_waited_for_until_one_is_expected_to_leave() -> None:
    # Four run, one token each: each goes on for ten, so one leaves after 2.5 iterations.
    found = behind(4, 1, 0.5, situation())
    full = DECODE + 0.004
    assert found.first_token_s[0] == pytest.approx(full + 1.5 * full + PREFILL + DECODE + 0.003)


def test_those_who_wait_read_their_prompts_first() -> None:
    flight = InFlight(situation())
    for number in range(3):
        flight.arrived(number, task="task0", prompt_tokens=8, at=0.0)
        flight.sent(number, 0, at=0.0)
    # The first started at once; the others came during its first iteration and wait.
    flight.arrived("new", task="task0", prompt_tokens=8, at=0.04)
    found = flight.estimates("new", at=0.04)
    assert found.first_token_s[0] == pytest.approx(0.06 + 3 * PREFILL + (1 - 1 / 11) * (DECODE + 0.001))


def test_a_full_line_earns_the_penalty() -> None:
    tasks = (dataclasses.replace(situation().tasks[0], deadline=Deadline(100.0, 0.0)),)
    where = situation(tasks=tasks, reward=Reward(0.0, 0.5))
    assert behind(7, 0, 0.01, where).own[0] == 1.0
    assert behind(8, 0, 0.01, where).own[0] == -0.5


def test_own_value_is_all_or_nothing_where_nothing_is_uncertain() -> None:
    # Alone: first token after 0.1 s, ten more of 0.011 s, done by 0.21 s.
    for deadline_s, value in ((0.2, 0.0), (0.22, 1.0)):
        tasks = (dataclasses.replace(situation().tasks[0], deadline=Deadline(deadline_s, 0.0)),)
        assert behind(0, 0, 0.0, situation(tasks=tasks)).own[0] == pytest.approx(value, abs=1e-9)


def test_soft_deadlines_lose_value_bit_by_bit() -> None:
    tasks = (dataclasses.replace(situation().tasks[0], deadline=Deadline(0.15, 0.0)),)
    found = behind(0, 0, 0.0, situation(tasks=tasks, reward=Reward(1.0, 0.0)))
    assert found.own[0] == pytest.approx(1 - 0.06 / 0.15, abs=1e-4)


def test_work_is_prefill_and_the_least_share_of_decodes() -> None:
    found = behind(0, 0, 0.0, situation())
    # With a deadline so loose, decodes are shared by a full batch.
    assert found.work[0] == pytest.approx(PREFILL + 10 * (DECODE + 0.004) / 4)


@pytest.mark.parametrize(("deadline_s", "lost"), [(0.56, 0.0), (0.58, 1.0), (0.62, 1.0), (0.64, 0.0)])
def test_harm_covers_the_other_models_of_the_replica(deadline_s: float, lost: float) -> None:
    # On model 0 one request goes on for 6 of its 11 tokens, 0.066 s. Model 1 is idle; while it works, model 0 takes
    # twice as long.
    decode = np.tile(DECODE + 0.001 * np.arange(1, 5), (2, 1))
    profile = make_profile(decode, np.full((2, 16), PREFILL), slowdown=np.array([[1.0, 2.0], [1.0, 1.0]]))
    tasks = (dataclasses.replace(situation().tasks[0], deadline=Deadline(deadline_s, 0.0)),)
    flight = InFlight(situation(profile=profile, tasks=tasks), softness=SHARP)
    flight.arrived("old", task="task0", prompt_tokens=8, at=0.0)
    flight.sent("old", 0, at=0.0)
    flight.tokens("old", 5, at=0.5)
    flight.arrived("new", task="task0", prompt_tokens=8, at=0.5)
    assert flight.estimates("new", at=0.5).harm[1] == pytest.approx(lost, abs=1e-6)


def costly(**costs: object) -> Situation:
    """The same model, whose iterations or admissions depend on the tokens that are held."""
    return situation(profile=make_profile(DECODE + 0.001 * np.arange(1, 5)[None], np.full((1, 16), PREFILL), **costs))


def test_tokens_that_are_held_make_iterations_longer() -> None:
    each_s = 1e-3
    found = behind(1, 1, 0.5, costly(context_cost_s=np.array([each_s])))
    # One runs and holds 8 + 1 tokens. A tenth of it leaves with the iteration in progress; from then on a request
    # holds what one holds on average, its prompt of 8.5 tokens and half of its output.
    rest_s, stay, held = DECODE + 0.001 + 9 * each_s, 0.9, 8.5 + 11 / 2
    first_s = rest_s + PREFILL + stay * (DECODE + 0.001 + held * each_s)
    step_s = DECODE + (0.001 + held * each_s) * (stay + 1) + stay * PREFILL / 11
    assert found.first_token_s[0] == pytest.approx(first_s)
    assert found.completion_s[0] == pytest.approx(first_s + 10 * step_s)


def test_a_full_cache_is_waited_for_until_enough_of_it_is_free() -> None:
    # Two run, one token each, and claim 8 + 11 tokens of the cache each, as the new one does.
    found = behind(2, 1, 0.5, costly(cache_tokens=[57]))
    assert found.first_token_s[0] == pytest.approx(DECODE + 0.002 + PREFILL + DECODE + 0.001 * 1.8)
    found = behind(2, 1, 0.5, costly(cache_tokens=[40]))
    # 17 tokens are lacking, which 17 / 19 of a request has to free; one leaves in five iterations.
    iterations = 5 * 17 / 19
    assert found.first_token_s[0] == pytest.approx(iterations * (DECODE + 0.002) + PREFILL + DECODE + 0.001)


def test_whom_the_cache_holds_up_reads_its_prompt_before_the_new_one() -> None:
    flight = InFlight(costly(cache_tokens=[40]))
    for number in range(3):
        flight.arrived(number, task="task0", prompt_tokens=8, at=0.0)
        flight.sent(number, 0, at=0.0)
    flight.tokens(0, at=0.1)
    flight.arrived("new", task="task0", prompt_tokens=8, at=0.1)
    found = flight.estimates("new", at=0.1)
    # The second runs with the first, for which the cache has room; 57 of its 40 tokens are claimed with the third.
    iterations = (57 + 19 - 40) / 19 / (1 / 10 + 1 / 11)
    rest_s = DECODE + 0.001 + PREFILL
    assert found.first_token_s[0] == pytest.approx(
        rest_s + (iterations - 1) * (DECODE + 0.002) + 2 * PREFILL + DECODE + 0.001
    )


def test_a_request_that_no_cache_holds_earns_the_penalty() -> None:
    tasks = (dataclasses.replace(situation().tasks[0], deadline=Deadline(100.0, 0.0)),)
    for tokens, value in ((19, 1.0), (18, -0.5)):
        where = dataclasses.replace(costly(cache_tokens=[tokens]), tasks=tasks, reward=Reward(0.0, 0.5))
        assert behind(0, 0, 0.0, where).own[0] == pytest.approx(value)


@pytest.mark.parametrize(("deadline_s", "lost"), [(0.29, 0.0), (0.30, 1.0), (0.40, 1.0), (0.41, 0.0)])
def test_without_streaming_an_age_tells_the_tokens_that_came(deadline_s: float, lost: float) -> None:
    # After its prefill of 0.1 s, the other one had another 0.1 s; at 0.018 s a token these are 5, and one more when the
    # new one begins, half a decode from now. The other 5 take it until 0.297 s, or with the new one until 0.404 s.
    stay = 1 - 1 / 11
    pace_s = stay * (DECODE + 0.001 + PREFILL / 11)
    assert 0.2 + (DECODE + 0.001) / 2 + 5 * pace_s == pytest.approx(0.297, abs=1e-3)
    tasks = (dataclasses.replace(situation().tasks[0], deadline=Deadline(deadline_s, 0.0)),)
    found = behind(1, 0, 0.2, situation(tasks=tasks, view=View(streamed=False)))
    assert found.harm[0] == pytest.approx(lost, abs=1e-6)


def test_harm_under_a_soft_deadline_is_what_fades_and_the_penalty_of_a_miss() -> None:
    # As above: without the new one all three are in time, with it they are late by so much.
    due_s, pace_s = 0.70, DECODE + 0.001 * 2.5 + 2.5 * PREFILL / 11
    late_s = 0.5 + 0.013 + 5 * pace_s + 0.104 - due_s
    tasks = (dataclasses.replace(situation().tasks[0], deadline=Deadline(due_s, 0.0)),)
    found = behind(3, 5, 0.5, situation(tasks=tasks, reward=Reward(1.0, 0.5)))
    assert found.harm[0] == pytest.approx(3 * (late_s / due_s + 0.5), abs=1e-4)


@pytest.mark.parametrize("unseen", [1.5, 5.0])
def test_those_seen_late_and_not_at_all_are_reckoned_with(unseen: float) -> None:
    # Of 2 to 11 tokens; one was seen 0.06 s ago with its first. At 0.026 s each it has had two more, and is there still
    # with a chance of 8 in 10, for 4.5 more tokens on average.
    where = situation(tasks=(dataclasses.replace(situation().tasks[0], output_tokens=(2, 11)),))
    seat = {
        "present": np.array([[True]]),
        "running": np.array([[True]]),
        "tokens": np.array([[1]]),
        "task": np.array([[0]]),
        "prompt_tokens": np.array([[8]]),
        "age_s": np.array([[0.2]]),
        "seen_s": np.array([[0.06]]),
    }
    view = InFlightView(**seat, elapsed_s=np.zeros(1), unseen=np.array([unseen]), terms=Terms.of(where))
    found = estimate(Newcomer(0, 8, 1.0), view, ServingParams.of(where))
    # As many of the others as have room run, with a mean length of 6.5 tokens; the rest wait with their prompts.
    joined = min(unseen, 4 - 0.8)
    running, waiting, leaving = 0.8 + joined, unseen - joined, 0.8 / 4.5 + joined / 6.5
    iteration_s = DECODE + 0.001 * running
    if waiting:
        iterations, before = (waiting + 1) / leaving, running - 1
    else:
        iterations, before = 1.0, running - leaving
    first_s = iterations * iteration_s + (waiting + 1) * PREFILL + DECODE + 0.001 * before
    others = running - 1 if waiting else before
    step_s = DECODE + 0.001 * (others + 1) + others * PREFILL / 6.5
    assert found.first_token_s[0] == pytest.approx(first_s)
    assert found.completion_s[0] == pytest.approx(first_s + 5.5 * step_s)


def test_a_pool_that_is_slower_takes_its_share_off_the_capacity_of_the_smaller_ones() -> None:
    paper = load_situation("paper")
    small, middle, large = paper.profile.model_names
    pools = (Pool("m", middle), Pool("l", large, replicas=2), Pool("s", small), Pool("l2", large))
    params = ServingParams.of(dataclasses.replace(paper, cluster=Cluster(), pools=pools))
    alone, size, slowdown = params.priors.alone, (1, 2, 0, 2), np.array([2.0, 4.0, 1.0, 0.5])
    expected = [
        sum(rate / slow for rate, slow, at in zip(alone, slowdown, size, strict=True) if at >= one) for one in size
    ]
    np.testing.assert_allclose(capacity(slowdown, params), expected)
    assert all_together(slowdown, params) == pytest.approx((alone / slowdown).sum())
    cluster = ServingParams.of(paper)
    each = cluster.priors.capacity - np.append(cluster.priors.capacity[1:], 0.0)
    slowdown = np.array([2.0, 4.0, 0.5])
    np.testing.assert_allclose(capacity(slowdown, cluster), np.cumsum((each / slowdown)[::-1])[::-1])
