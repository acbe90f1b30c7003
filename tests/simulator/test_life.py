"""Replicas that start, drain and fail: hand-made cases of the reference, and the compiled simulator against it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.observation import Observation
from besteffort.pools import FAIL, Life, Pool, ReplicaEvent, What, taking
from besteffort.simulator import simulate
from besteffort.simulator.build import build
from besteffort.simulator.environment import EnvState, ServingEnvironment
from besteffort.simulator.life import LifeState, empty, live
from besteffort.simulator.reference import simulate_reference
from besteffort.simulator.result import Result
from besteffort.simulator.types import EnvShape
from besteffort.situation import Cluster, Reward, Situation, Task, View
from tests.simulator.cases import (
    TOLERANCE,
    Case,
    agree,
    make_profile,
    simulate_by_reference,
    stacked_lists,
    with_budgets,
)
from tests.simulator.pool_cases import draw_life_kinds, judged_cases
from tests.simulator.test_reference import make_requests, make_tables

KINDS = draw_life_kinds(6)
LISTS = 50
LENGTH = 200


def play(arrival_s: Sequence[float], pool: Pool, outputs: int | Sequence[int] = 3) -> Result:
    """Prompts of 4 tokens, read in 1 s; a decode of `b` takes 0.5 + 0.5 b seconds."""
    requests = make_requests(arrival_s, np.full(len(arrival_s), 4), np.broadcast_to(outputs, len(arrival_s)), 100.0)
    return simulate_reference(
        requests,
        make_tables(largest=32),
        (pool,),
        lambda index, observation: 0,
        quality=np.ones((1, 1)),
        weight=np.array([2.0]),
        visible_deadline_s=np.array([3.0]),
        reward=Reward(miss_penalty=0.25),
        view=View(),
    )


def pool_of(replicas: int, *events: tuple[float, int, What], start_s: float = 0.0, queue: int = 8) -> Pool:
    return Pool(
        "a",
        "m",
        replicas=replicas,
        queue_capacity=queue,
        start_s=start_s,
        events=tuple(ReplicaEvent(*event) for event in events),
    )


class TestByHand:
    """One request takes 3 s: 1 s prefill, two decodes."""

    def test_without_events_nothing_is_lost(self) -> None:
        result = play([0.0, 0.5, 20.0], pool_of(2))
        assert result.replica.tolist() == [0, 1, 0]
        assert not result.lost.any()

    def test_a_draining_replica_takes_nobody_new_and_finishes_what_it_has(self) -> None:
        result = play([0.0, 1.5, 2.0], pool_of(2, (1.0, 0, "drain")))
        assert result.replica.tolist() == [0, 1, 1]
        assert result.completion_s[0] == 3.0

    def test_a_failing_replica_loses_all_that_it_has_at_its_time(self) -> None:
        # Ends at 1 s come before the failure at 1 s, arrivals after it: A has its first token, B has been admitted.
        result = play([0.0, 0.5, 0.75, 1.0], pool_of(1, (1.0, 0, "fail")))
        assert result.replica.tolist() == [0, 0, 0, -1]
        assert result.lost.tolist() == [True, True, True, False]
        assert result.rejected.tolist() == [False, False, False, True]
        np.testing.assert_array_equal(result.admission_s, [0.0, 1.0, 1.0, np.nan])
        np.testing.assert_array_equal(result.first_token_s, [1.0, np.nan, np.nan, np.nan])
        assert np.isnan(result.completion_s).all()
        assert np.isinf(result.latency_s).all()
        assert not result.met.any()
        assert result.reward.tolist() == [-0.5] * 4

    def test_one_that_leaves_as_its_replica_fails_has_its_answer(self) -> None:
        result = play([0.0], pool_of(1, (3.0, 0, "fail")))
        assert result.completion_s.tolist() == [3.0]

    def test_if_none_is_up_requests_join_the_one_that_is_first(self) -> None:
        # Replica 1 is up at 5 s, 0 at 6 s; all three are admitted together at 5 s.
        result = play([2.5, 3.0, 4.5], pool_of(2, (2.0, 0, "start"), (1.0, 1, "start"), start_s=4.0), outputs=1)
        assert result.replica.tolist() == [1, 1, 1]
        assert result.admission_s.tolist() == [5.0] * 3
        assert result.completion_s.tolist() == [8.0] * 3

    def test_it_may_be_full(self) -> None:
        pool = dataclasses.replace(pool_of(2, (0.0, 0, "start"), (0.0, 1, "start"), start_s=4.0, queue=0), max_batch=1)
        assert play([1.0, 2.0, 4.0], pool).replica.tolist() == [0, -1, 1]

    def test_of_equals_the_lowest_is_joined(self) -> None:
        result = play([2.0], pool_of(3, *((1.0, replica, "start") for replica in range(3)), start_s=4.0))
        assert result.replica.tolist() == [0]

    def test_if_none_is_coming_requests_are_rejected(self) -> None:
        result = play([0.0, 2.0, 3.0], pool_of(1, (1.0, 0, "drain"), (3.0, 0, "start")))
        assert result.replica.tolist() == [0, -1, 0]
        # Its request left at 3 s, so it started anew, in no time.
        assert result.admission_s[2] == 3.0

    def test_one_that_still_drains_is_up_at_once_if_it_is_started(self) -> None:
        result = play([0.0, 2.5], pool_of(1, (1.0, 0, "drain"), (2.0, 0, "start"), start_s=50.0))
        assert result.admission_s.tolist() == [0.0, 3.0]
        anew = play([0.0, 3.5], pool_of(1, (1.0, 0, "drain"), (3.0, 0, "start"), start_s=50.0))
        assert anew.admission_s.tolist() == [0.0, 53.0]

    def test_one_that_starts_and_is_drained_serves_who_waits(self) -> None:
        result = play([1.0, 3.0], pool_of(1, (0.0, 0, "start"), (2.0, 0, "drain"), start_s=4.0))
        assert result.replica.tolist() == [0, -1]
        assert result.completion_s[0] == 7.0

    def test_one_that_fails_while_it_starts_is_not_up_when_it_was_to_be(self) -> None:
        result = play([0.5, 2.5], pool_of(1, (0.0, 0, "start"), (1.0, 0, "fail"), (2.0, 0, "start"), start_s=4.0))
        assert result.lost.tolist() == [True, False]
        assert np.isnan(result.admission_s[0])
        assert result.admission_s[1] == 6.0

    def test_after_a_failure_nothing_of_before_is_left(self) -> None:
        # A would have run from 0 to 3 s; B finds a replica that has nothing to do.
        result = play([0.0, 0.5], pool_of(1, (0.25, 0, "fail"), (0.25, 0, "start")))
        assert result.admission_s.tolist() == [0.0, 0.5]
        assert result.lost.tolist() == [True, False]


def test_the_balancer_chooses_between_those_that_are_up_or_the_first_that_will_be() -> None:
    takes = np.array([[True, True, False, True], [True, True, False, True], [False, True, False, False]])
    ready_s = np.array([[0.0, 3.0, 0.0, 2.0], [1.0, 2.0, 9.0, 2.0], [0.0, 2.0, 1.0, 1.0]])
    expected = [[True, False, False, True], [False, True, False, False], [False, False, False, False]]
    np.testing.assert_array_equal(taking(takes, ready_s), expected)
    np.testing.assert_array_equal(taking(jnp.asarray(takes), jnp.asarray(ready_s), jnp), expected)


def lists(index: int) -> tuple[tuple[Case, Result], ...]:
    """The lists of a kind, each with what the reference makes of it."""
    return judged_cases(KINDS[index], 1000 * index, LISTS, LENGTH)


@pytest.mark.parametrize("index", range(len(KINDS)), ids=map(str, KINDS))
def test_random_lives_are_played_as_by_the_reference(index: int) -> None:
    cases, truths = zip(*lists(index), strict=True)
    agree(cases, truths)


def test_the_lives_are_as_nasty_as_they_should_be() -> None:
    assert len(KINDS) * LISTS >= 300
    found = [(case.situation, truth) for index in range(len(KINDS)) for case, truth in lists(index)]
    assert np.mean([truth.lost.any() for _, truth in found]) > 0.6
    assert np.mean([truth.rejected.any() for _, truth in found]) > 0.6
    waits = [truth.admission_s - truth.arrival_s for _, truth in found]
    assert np.mean([(wait_s > 0).any() for wait_s in waits]) > 0.8
    assert np.mean([max(pool.start_s for pool in situation.pools) > 0 for situation, _ in found]) > 0.8
    events = [[event for pool in situation.pools for event in pool.events] for situation, _ in found]
    assert np.mean([len({event.time_s for event in some}) < len(some) for some in events]) > 0.3
    assert np.mean([len({event.what for event in some}) == 3 for some in events]) > 0.8


@pytest.mark.parametrize("index", [0, 1])
def test_every_event_shows_at_every_arrival(index: int) -> None:
    case, _ = lists(index)[3]
    seen: list[tuple[Any, ...]] = []
    chosen: list[int] = []

    def route(number: int, observation: Observation) -> int:
        seen.append((observation.takes, observation.instance_batch_sizes, observation.since_change_s))
        chosen.append(number % len(case.situation.pools))
        return chosen[-1]

    simulate.simulate_by_reference(case.requests, case.situation, route)
    with jax.enable_x64(True):
        longest = int(case.requests.prompt_tokens.max())
        shape, params = build(case.situation, None, history=LENGTH, longest_prompt=longest)
        environment = ServingEnvironment(shape)
        arrivals = jax.tree.map(lambda field: field[0], stacked_lists([case])[0])

        def decide(state: EnvState, given: Any) -> tuple[EnvState, Any]:
            arrival, pool = given
            state, step = environment.arrive(state, arrival, params)
            state, _ = environment.place(state, pool, params)
            shown = step.observation
            return state, (shown.takes, shown.instance_batch_sizes, shown.since_change_s)

        start = environment.start(jax.tree.map(lambda field: field[0], arrivals))
        _, found = jax.lax.scan(decide, start, (arrivals, jnp.asarray(chosen)))
    takes, sizes, since_s = zip(*seen, strict=True)
    np.testing.assert_array_equal(found[0], takes)
    np.testing.assert_array_equal(found[1], sizes)
    np.testing.assert_allclose(found[2], since_s, atol=TOLERANCE)


def test_pools_without_events_are_played_by_the_same_program() -> None:
    def without(case: Case) -> Case:
        pools = tuple(dataclasses.replace(pool, events=()) for pool in case.situation.pools)
        return dataclasses.replace(case, situation=dataclasses.replace(case.situation, pools=pools))

    first, *others = [case for case, _ in lists(0)[:10]]
    cases = [first, *map(without, others)]
    agree(cases, [simulate_by_reference(case) for case in cases])


def test_times_of_events_stay_sharp_for_days_in_float32() -> None:
    # 400,000 gaps of 0.25 s and a little, to more than a day; then a failure in the middle of a gap.
    gap_s = 0.25 + 1 / 4096
    number = 400_000
    end_s = number * gap_s
    time_s = np.array([end_s - 0.125])
    rounded = time_s.astype(np.float32)
    life = Life(
        jnp.asarray(rounded),
        jnp.zeros(1, jnp.int32),
        jnp.full(1, FAIL, jnp.int32),
        jnp.ones((1, 1), bool),
        jnp.zeros(1),
        jnp.asarray(time_s - rounded, jnp.float32),
    )
    shape = EnvShape(replicas=1, pools=1, tasks=1, max_batch=1, queue_capacity=0, history=1, uneven=True, life=True)

    def step(state: LifeState, _: None) -> tuple[LifeState, jax.Array]:
        one = jnp.ones((1, 1))
        state, fails_s = live(shape, life, one > 0, state, one, jnp.float32(gap_s))
        return state, fails_s[0]

    _, fails_s = jax.jit(lambda: jax.lax.scan(step, empty(shape), None, length=number))()
    assert np.isinf(fails_s[:-1]).all()
    assert fails_s[-1] == pytest.approx(gap_s - 0.125, abs=1e-6)


def test_what_cannot_be_simulated_is_one_sentence() -> None:
    case, _ = lists(0)[0]
    late = dataclasses.replace(case.situation, view=View(gateways=2, gateway_delay_s=0.1))
    with pytest.raises(
        InputError, match="`events` and `autoscaler` of pools are simulated only where there is one gateway"
    ):
        build(late, None, history=8, estimates=False)
    budgets = [7] * len(case.situation.profile.models)
    with pytest.raises(
        InputError, match="`events` and `autoscaler` of pools are simulated only where prompts are read whole"
    ):
        build(with_budgets(case.situation, budgets), None, history=8, estimates=False)
    compared = dataclasses.replace(case.situation, view=View(slowdown_tau_s=2.0))
    with pytest.raises(
        InputError, match="`events` and `autoscaler` of pools are simulated only where times are not compared"
    ):
        build(compared, None, history=8, estimates=True)
    models = make_profile(np.ones((2, 32)), np.ones((2, 8)), slowdown=np.array([[1.0, 2.0], [2.0, 1.0]]))
    pools = tuple(
        dataclasses.replace(pool_of(1, (1.0, 0, "fail")), name=f"p{m}", model=f"model{m}", gpus=(0,)) for m in range(2)
    )
    coupled = Situation(models, Cluster(), (Task("task0"),), pools=pools)
    with pytest.raises(
        InputError, match="`events` and `autoscaler` of pools are simulated only where models do not slow each other"
    ):
        build(coupled, None, history=8)
