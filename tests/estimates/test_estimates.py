"""Estimates whose values follow from a few lines of arithmetic."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from besteffort.estimates.estimates import Estimates, Softness
from besteffort.in_flight import InFlight
from besteffort.situation import Cluster, Deadline, Reward, Situation, Task
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
