"""The reference against hand-computed cases, against properties that any such system has, and against queueing theory.

Durations are dyadic wherever instants coincide, so that floating-point arithmetic is exact.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from besteffort.errors import InputError
from besteffort.estimates.tables import Tables
from besteffort.observation import Observation
from besteffort.simulator.reference import simulate_reference
from besteffort.simulator.result import Result
from besteffort.situation import Cluster, Reward, View
from besteffort.workload.requests import Requests
from tests.simulator.queueing import (
    batch_means,
    erlang_b,
    fcfs_waits,
    mg1_mean_wait,
    mmc_mean_wait,
    ps_mean_response,
    ps_responses,
)


def make_requests(arrival_s: ArrayLike, prompts: ArrayLike, outputs: ArrayLike, deadline_s: float = 4.0) -> Requests:
    columns = [np.asarray(values) for values in (arrival_s, np.zeros_like(prompts), prompts, outputs)]
    return Requests(("task",), *columns, np.full(len(columns[0]), deadline_s))


def make_tables(models: int = 1, largest: int = 8, **changes: object) -> Tables:
    """Decode `0.5 + 0.5 b` seconds, prefill `0.25 p` seconds, for every model alike."""
    at = np.arange(largest + 1)
    tables = Tables(
        decode=np.tile(np.where(at > 0, 0.5 + 0.5 * at, 0.0), (models, 1)),
        prefill=np.tile(0.25 * at, (models, 1)),
        slowdown=np.ones((models, models)),
        context_cost_s=np.zeros(models),
        cache_tokens=np.full(models, np.inf),
    )
    return dataclasses.replace(tables, **changes)


def run(
    requests: Requests,
    tables: Tables | None = None,
    cluster: Cluster | None = None,
    route: Callable[[int, Observation], int] = lambda index, observation: 0,
    reward: Reward | None = None,
    view: View | None = None,
) -> Result:
    tables = tables or make_tables()
    return simulate_reference(
        requests,
        tables,
        (cluster or Cluster(replicas=1, max_batch=4, queue_capacity=4)).pools(
            [f"model{m}" for m in range(tables.pools)]
        ),
        route,
        quality=np.linspace(0.5, 1.0, tables.pools)[None],
        weight=np.array([2.0]),
        visible_deadline_s=np.array([3.0]),
        reward=reward or Reward(),
        view=view or View(),
    )


def by(models: Sequence[int]) -> Callable[[int, Observation], int]:
    return lambda index, observation: int(models[index])


class TestIterations:
    def test_prefill_gives_the_first_token_and_decodes_the_others(self) -> None:
        result = run(make_requests([2.0], [4], [3]))
        assert (result.admission_s, result.first_token_s, result.completion_s) == (2.0, 3.0, 5.0)
        assert result.latency_s == 3.0

    def test_a_one_token_answer_needs_no_decode(self) -> None:
        result = run(make_requests([2.0], [4], [1]))
        assert result.first_token_s == result.completion_s == 3.0

    def test_a_request_joins_at_the_end_of_the_iteration_in_progress(self) -> None:
        # 0-1 prefill A; 1-2.5 prefill B and decode A; 2.5-4 decode both.
        result = run(make_requests([0.0, 0.5], [4, 2], [3, 2]))
        assert result.admission_s.tolist() == [0.0, 1.0]
        assert result.first_token_s.tolist() == [1.0, 2.5]
        assert result.completion_s.tolist() == [4.0, 4.0]

    def test_all_that_wait_are_admitted_together_and_their_prefills_add(self) -> None:
        # 0-1 prefill A; 1-3.75 prefill B and C (0.75 + 1) and decode A (1).
        result = run(make_requests([0.0, 0.25, 0.5], [4, 3, 4], [2, 1, 1]))
        assert result.admission_s.tolist() == [0.0, 1.0, 1.0]
        assert result.completion_s.tolist() == [3.75, 3.75, 3.75]

    def test_an_arrival_at_the_instant_of_an_end_waits_for_the_next(self) -> None:
        # 0-1 prefill A, 1-2 decode A without B, 2-3.25 prefill B and decode A.
        result = run(make_requests([0.0, 1.0], [4, 1], [3, 1]))
        assert result.admission_s.tolist() == [0.0, 2.0]
        assert result.completion_s.tolist() == [3.25, 3.25]

    def test_an_arrival_at_the_instant_of_the_last_departure_starts_at_once(self) -> None:
        result = run(make_requests([0.0, 1.0], [4, 4], [1, 1]))
        assert result.admission_s.tolist() == [0.0, 1.0]

    def test_of_two_arrivals_at_one_instant_the_first_starts_an_idle_instance_alone(self) -> None:
        result = run(make_requests([0.0, 0.0], [4, 4], [1, 1]))
        assert result.admission_s.tolist() == [0.0, 1.0]
        assert result.completion_s.tolist() == [1.0, 2.0]

    def test_a_full_batch_admits_in_order_of_arrival_as_others_leave(self) -> None:
        # 0-1 prefill A; 1-3 prefill B, decode A, which leaves; 3-5 prefill C, decode B, which leaves; 5-6 prefill D.
        cluster = Cluster(replicas=1, max_batch=2, queue_capacity=4)
        result = run(make_requests([0.0, 0.5, 0.5, 0.5], [4] * 4, [2, 2, 1, 1]), cluster=cluster)
        assert result.admission_s.tolist() == [0.0, 1.0, 3.0, 5.0]
        assert result.completion_s.tolist() == [3.0, 5.0, 5.0, 6.0]

    def test_network_delay_counts_in_the_latency_alone(self) -> None:
        requests = make_requests([0.0], [4], [3], deadline_s=3.0)
        near = run(requests, cluster=Cluster(replicas=1, max_batch=4))
        far = run(requests, cluster=Cluster(replicas=1, max_batch=4, network_delay_s=0.25))
        assert near.completion_s == far.completion_s == 3.0
        assert (near.latency_s, far.latency_s) == (3.0, 3.25)
        assert (near.met, far.met) == (True, False)


class TestChunks:
    """Decode `0.5 + 0.5 b` seconds and 0.25 s per token read, as everywhere here."""

    def test_a_long_prompt_is_read_in_several_iterations(self) -> None:
        # 0-1 and 1-2 read 4 tokens each, 2-2.5 the last 2, 2.5-3.5 decode.
        result = run(make_requests([0.0], [10], [2]), chunks(4))
        assert (result.admission_s, result.first_token_s, result.completion_s) == (0.0, 2.5, 3.5)

    def test_those_that_decode_take_one_token_of_the_budget_each(self) -> None:
        # 0-1 read A; 1-2.75 decode A (1), 3 of B (0.75); 2.75-4.5 the same, B is read; 4.5-6 decode both.
        result = run(make_requests([0.0, 0.5], [4, 6], [9, 2]), chunks(4))
        assert result.admission_s.tolist() == [0.0, 1.0]
        assert (result.first_token_s[1], result.completion_s[1]) == (4.5, 6.0)

    def test_several_prompts_end_in_one_iteration_and_the_next_is_begun(self) -> None:
        # 0-1 read A, which leaves; 1-2.5 read B (2), C (3) and 1 of D; 2.5-2.5+0.75 the other 3 of D.
        result = run(make_requests([0.0, 0.25, 0.25, 0.5], [4, 2, 3, 4], [1, 1, 1, 1]), chunks(6))
        assert result.admission_s.tolist() == [0.0, 1.0, 1.0, 1.0]
        assert result.first_token_s.tolist() == [1.0, 2.5, 2.5, 3.25]

    def test_a_request_that_is_read_counts_in_the_batch(self) -> None:
        # 0-2 read A; 2-3 decode A, the batch is full; 3-4 read B.
        cluster = Cluster(replicas=1, max_batch=1, queue_capacity=4)
        result = run(make_requests([0.0, 0.0], [8, 4], [2, 1]), chunks(4), cluster)
        assert result.admission_s.tolist() == [0.0, 3.0]
        assert result.completion_s.tolist() == [3.0, 4.0]

    def test_nothing_is_read_where_those_that_decode_take_the_whole_budget(self) -> None:
        # 0-0.25 read A; 0.25-2.25 decode A twice; 2.25-2.75 read B.
        result = run(make_requests([0.0, 0.0], [1, 2], [3, 1]), chunks(1))
        assert result.admission_s.tolist() == [0.0, 2.25]
        assert result.first_token_s.tolist() == [0.25, 2.75]

    def test_the_cache_is_claimed_when_reading_begins(self) -> None:
        # A claims 8 + 1 = 9 and leaves at 2; B claims 3 + 1 and would fit the budget, but not the cache.
        tables = dataclasses.replace(chunks(6), cache_tokens=np.array([12.0]))
        result = run(make_requests([0.0, 0.0], [8, 3], [1, 1]), tables)
        assert result.admission_s.tolist() == [0.0, 2.0]
        assert result.completion_s.tolist() == [2.0, 2.75]

    def test_only_those_that_decode_cost_context(self) -> None:
        tables = dataclasses.replace(chunks(3), context_cost_s=np.array([0.25]))
        result = run(make_requests([0.0, 0.25], [3, 4], [9, 2]), tables)
        # 0-0.75 read A (3); decode 1 + 0.25 x 4 + 0.5 = 2.5; 1 + 0.25 x 5 + 0.5 = 2.75; both 1.5 + 0.25 x (6 + 5).
        assert result.first_token_s.tolist() == [0.75, 6.0]
        assert result.completion_s[1] == 10.25

    def test_what_was_found_is_not_read(self) -> None:
        requests = dataclasses.replace(
            make_requests([0.0, 8.0, 16.0], [8, 8, 8], [1, 1, 1]), cached_tokens=np.array([6, 8, 0])
        )
        result = run(requests)
        assert (result.first_token_s - result.arrival_s).tolist() == [0.5, 0.25, 2.0]
        # Of the budget it takes nothing: two tokens are read in one iteration, at the price that the table has there.
        square = dataclasses.replace(chunks(3), prefill=np.arange(9.0)[None] ** 2 / 64)
        result = run(requests, square)
        assert (result.first_token_s - result.arrival_s).tolist() == [(64 - 36) / 64, (64 - 49) / 64, 1.0]

    def test_an_unlimited_budget_changes_nothing(self) -> None:
        rng = np.random.default_rng(0)
        arrivals, prompts, outputs = np.cumsum(rng.exponential(0.8, 300)), rng.integers(1, 30, (2, 300)), 6
        requests = make_requests(arrivals, prompts[0], rng.integers(1, outputs, 300))
        tables = make_tables(largest=32)
        plain, unlimited = (run(requests, each) for each in (tables, chunks(np.inf, largest=32)))
        for name in ("admission_s", "first_token_s", "completion_s", "reward"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(unlimited, name))


def chunks(tokens: float, largest: int = 10) -> Tables:
    """The tables with a budget of so many tokens per iteration."""
    return make_tables(largest=largest, chunk_tokens=np.array([tokens]))


class TestPlacement:
    def test_the_smallest_batch_wins_and_ties_go_to_the_lowest_index(self) -> None:
        cluster = Cluster(replicas=3, max_batch=4)
        result = run(make_requests([0.0] * 4 + [1.0], [8, 4, 8, 8, 4], [1] * 5), cluster=cluster)
        assert result.replica.tolist() == [0, 1, 2, 0, 1]  # the second one left at the instant of the last arrival

    def test_each_model_has_its_own_line(self) -> None:
        cluster = Cluster(replicas=2, max_batch=4)
        result = run(make_requests([0.0] * 4, [8] * 4, [1] * 4), make_tables(2), cluster, by([0, 1, 1, 0]))
        assert result.replica.tolist() == [0, 0, 1, 1]

    def test_a_full_waiting_line_rejects_until_somebody_leaves(self) -> None:
        cluster = Cluster(replicas=1, max_batch=1, queue_capacity=1)
        reward = Reward(miss_penalty=0.25)
        requests = make_requests([0.0, 0.5, 0.75, 1.0], [4] * 4, [1] * 4)
        result = run(requests, make_tables(2), cluster, by([1] * 4), reward)
        assert result.rejected.tolist() == [False, False, True, False]
        assert result.completion_s[[0, 1, 3]].tolist() == [1.0, 2.0, 3.0]
        assert result.model[2] == 1
        assert result.replica[2] == -1
        assert np.isnan([result.admission_s[2], result.first_token_s[2], result.completion_s[2]]).all()
        assert result.latency_s[2] == math.inf
        assert not result.met[2]
        assert result.reward.tolist() == [2.0, 2.0, -0.5, 2.0]

    def test_reward_is_weight_times_quality_times_timeliness(self) -> None:
        requests = make_requests([0.0, 10.0], [4, 4], [3, 1], deadline_s=2.0)  # latencies 3 and 1
        result = run(requests, make_tables(2), route=by([0, 1]), reward=Reward(soft_span=1.0, miss_penalty=0.125))
        assert result.reward.tolist() == [2.0 * (0.5 * 0.5 - 0.125), 2.0]


class TestSlowdown:
    def test_iterations_in_progress_on_the_replica_multiply_the_duration(self) -> None:
        slowdown = np.array([[1.0, 2.0, 4.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
        requests = make_requests([0.0, 0.0, 0.5], [8, 8, 4], [1, 1, 1])
        result = run(requests, make_tables(3, slowdown=slowdown), route=by([1, 2, 0]))
        assert result.completion_s.tolist() == [2.0, 2.0, 8.5]

    def test_an_iteration_keeps_the_factor_with_which_it_started(self) -> None:
        # The first one started alone; the second one starts beside it, though it soon runs alone.
        tables = make_tables(2, slowdown=np.array([[1.0, 2.0], [4.0, 1.0]]))
        result = run(make_requests([0.0, 0.5], [4, 4], [1, 1]), tables, route=by([0, 1]))
        assert result.completion_s.tolist() == [1.0, 4.5]

    def test_at_one_instant_all_end_before_the_next_start_in_order_of_models(self) -> None:
        # Both prefills end at 1. Model 0 starts while nobody has an iteration in progress, then model 1 beside it.
        tables = make_tables(2, slowdown=np.array([[1.0, 2.0], [4.0, 1.0]]))
        result = run(make_requests([0.0, 0.0], [4, 1], [2, 2]), tables, route=by([0, 1]))
        assert result.first_token_s.tolist() == [1.0, 1.0]
        assert result.completion_s.tolist() == [2.0, 5.0]

    def test_an_iteration_that_has_just_ended_does_not_count(self) -> None:
        tables = make_tables(2, slowdown=np.array([[1.0, 2.0], [4.0, 1.0]]))
        result = run(make_requests([0.0, 1.0], [4, 4], [1, 1]), tables, route=by([0, 1]))
        assert result.completion_s.tolist() == [1.0, 2.0]

    def test_replicas_do_not_slow_each_other(self) -> None:
        tables = make_tables(2, slowdown=np.array([[1.0, 2.0], [4.0, 1.0]]))
        cluster = Cluster(replicas=2, max_batch=4)
        result = run(make_requests([0.0] * 3, [4] * 3, [1] * 3), tables, cluster, by([0, 1, 1]))
        assert result.replica.tolist() == [0, 0, 1]
        assert result.completion_s.tolist() == [1.0, 4.0, 1.0]


class TestMemory:
    def test_context_cost_counts_prompt_and_generated_tokens_of_those_that_ran_before(self) -> None:
        # 0-1 prefill A, nobody ran before. 1-3.125: prefill B 0.5, decode A 1, context 0.125 x (4 + 1).
        # 3.125-6.125: decode both 1.5, context 0.125 x (4 + 2 + 2 + 1).
        tables = make_tables(context_cost_s=np.array([0.125]))
        result = run(make_requests([0.0, 0.5], [4, 2], [3, 2]), tables)
        assert result.first_token_s.tolist() == [1.0, 3.125]
        assert result.completion_s.tolist() == [5.75, 5.75]

    def test_the_cache_blocks_the_head_of_the_line_and_all_behind_it(self) -> None:
        # Claims: A 4 + 2, B 4 + ceil(1.5), C 1 + 1. A and B exceed 10; C would fit beside A but comes after B.
        tables = make_tables(cache_tokens=np.array([10.0]), cache_output_share=0.5)
        result = run(make_requests([0.0, 0.25, 0.5], [4, 4, 1], [4, 3, 1]), tables)
        assert result.admission_s.tolist() == [0.0, 4.0, 4.0]
        assert result.first_token_s.tolist() == [1.0, 5.25, 5.25]

    def test_what_just_fits_the_cache_is_admitted(self) -> None:
        tables = make_tables(cache_tokens=np.array([12.0]), cache_output_share=0.5)
        result = run(make_requests([0.0, 0.25], [4, 4], [4, 3]), tables)
        assert result.admission_s.tolist() == [0.0, 1.0]

    def test_a_request_that_exceeds_the_cache_alone_is_rejected(self) -> None:
        tables = make_tables(cache_tokens=np.array([7.0]))
        result = run(make_requests([0.0, 0.0], [4, 4], [4, 3]), tables)
        assert result.rejected.tolist() == [True, False]


class TestObservation:
    def test_the_router_sees_the_state_before_its_request(self) -> None:
        seen: list[Observation] = []

        def route(index: int, observation: Observation) -> int:
            seen.append(observation)
            return (0, 1, 1, 1)[index]

        cluster = Cluster(replicas=2, max_batch=4)
        run(make_requests([1.0, 1.0, 1.5, 2.0], [4, 4, 8, 4], [1, 1, 1, 1]), make_tables(2), cluster, route)
        assert [o.instance_batch_sizes.tolist() for o in seen] == [
            [[0, 0], [0, 0]],
            [[1, 0], [0, 0]],
            [[1, 1], [0, 0]],
            [[0, 0], [0, 1]],  # the first two left at this very instant
        ]
        assert [o.batch_sizes.tolist() for o in seen] == [[0, 0], [1, 0], [1, 1], [0, 1]]
        assert [o.since_change_s for o in seen] == [1.0, 0.0, 0.5, 0.0]
        assert [o.task for o in seen] == [0] * 4
        assert [o.deadline_s for o in seen] == [3.0] * 4
        rates = [0.0, 0.5, (0.5 + 0.5) * math.exp(-0.25), (math.exp(-0.25) + 0.5) * math.exp(-0.25)]
        assert [o.arrival_rate for o in seen] == pytest.approx(rates, rel=1e-15)

    def test_a_rejection_changes_no_batch_size(self) -> None:
        seen: list[float] = []

        def route(index: int, observation: Observation) -> int:
            seen.append(observation.since_change_s)
            return 0

        cluster = Cluster(replicas=1, max_batch=1, queue_capacity=0)
        run(make_requests([0.25, 0.5, 0.75], [8, 1, 1], [1, 1, 1]), cluster=cluster, route=route)
        assert seen == [0.25, 0.25, 0.5]


class TestErrors:
    def test_tables_must_cover_batches_and_prompts(self) -> None:
        with pytest.raises(InputError, match="`decode` ends at batch size 8, `max_batch` is 9"):
            run(make_requests([0.0], [1], [1]), cluster=Cluster(max_batch=9))
        with pytest.raises(InputError, match="`prefill` ends at 8 tokens, the longest prompt has 9"):
            run(make_requests([0.0], [9], [1]))

    @pytest.mark.parametrize("pool", [-1, 2])
    def test_the_router_must_name_a_pool(self, pool: int) -> None:
        with pytest.raises(InputError, match=f"chose pool {pool} for request 0"):
            run(make_requests([0.0], [1], [1]), make_tables(2), route=by([pool]))


@dataclasses.dataclass(frozen=True)
class Case:
    """A list of requests, each with its model, on a cluster.

    It holds plain numbers: the run-time type checks of `besteffort` draw random numbers, which a strategy may not.
    """

    cluster_counts: tuple[int, int, int]
    arrival_s: np.ndarray
    prompts: np.ndarray
    outputs: np.ndarray
    models: np.ndarray
    speed: np.ndarray
    coupling: dict[str, object]

    @cached_property
    def requests(self) -> Requests:
        return make_requests(self.arrival_s, self.prompts, self.outputs)

    @cached_property
    def tables(self) -> Tables:
        plain = make_tables(len(self.speed))
        factor = self.speed[:, None]
        return dataclasses.replace(plain, decode=plain.decode * factor, prefill=plain.prefill * factor, **self.coupling)

    @cached_property
    def cluster(self) -> Cluster:
        return Cluster(*self.cluster_counts)

    def run(self) -> Result:
        return run(self.requests, self.tables, self.cluster, by(self.models))


@st.composite
def cases(draw: st.DrawFn, coupled: bool = True) -> Case:
    """Crowded little systems with many coinciding instants; `coupled` ones may have slow-down, context and cache."""
    models = draw(st.integers(1, 3))
    n = draw(st.integers(1, 30))

    def integers(low: int, high: int, count: int) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

    coupling: dict[str, object] = {}
    if coupled:
        slowdown = 1 + integers(0, 2, models * models).reshape(models, models) / 2
        np.fill_diagonal(slowdown, 1.0)
        coupling = {
            "slowdown": slowdown,
            "context_cost_s": integers(0, 2, models) / 16,
            "cache_tokens": draw(st.sampled_from([math.inf, 8.0])) + integers(0, 6, models),
            "cache_output_share": draw(st.sampled_from([0.0, 0.3, 1.0])),
        }
    return Case(
        cluster_counts=(draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(0, 3))),
        arrival_s=np.cumsum(integers(0, draw(st.integers(1, 8)), n)) / 4,
        prompts=integers(1, 6, n),
        outputs=integers(1, 6, n),
        models=integers(0, models - 1, n),
        speed=integers(1, 4, models) / 2,
        coupling=coupling,
    )


def claims(case: Case) -> np.ndarray:
    return case.requests.prompt_tokens + np.ceil(case.tables.cache_output_share * case.requests.output_tokens)


@given(cases())
def test_every_accepted_request_is_served_once_and_in_order(case: Case) -> None:
    result = case.run()
    assert result.model.tolist() == case.models.tolist()
    served = ~result.rejected
    times = np.stack([result.arrival_s, result.admission_s, result.first_token_s, result.completion_s])
    assert np.isfinite(times[:, served]).all()
    assert np.isnan(times[1:, ~served]).all()
    steps = np.diff(times[:, served], axis=0)
    one_token = result.output_tokens[served] == 1
    decode_alone = case.tables.decode[result.model[served], 1]
    assert (steps[0] >= 0).all()
    assert (steps[1] >= case.tables.prefill[result.model, result.prompt_tokens][served]).all()
    assert (steps[2] >= (result.output_tokens[served] - 1) * decode_alone).all()
    assert ((steps[2] == 0) == one_token).all()
    for instance in range(case.cluster.replicas * case.tables.pools):
        mine = served & (result.replica * case.tables.pools + result.model == instance)
        assert (np.diff(result.admission_s[mine]) >= 0).all()


@given(cases())
def test_the_load_balancer_takes_the_smallest_batch_and_rejects_only_when_full(case: Case) -> None:
    result = case.run()
    room = case.cluster.max_batch + case.cluster.queue_capacity
    for k in range(len(case.requests)):
        present = (np.arange(len(case.requests)) < k) & (result.completion_s > result.arrival_s[k])
        mine = result.replica[present & (result.model == result.model[k])]
        sizes = np.bincount(mine, minlength=case.cluster.replicas)
        avoidable_misses = claims(case)[k] > case.tables.cache_tokens[result.model[k]]
        expected = -1 if sizes.min() >= room or avoidable_misses else sizes.argmin()
        assert result.replica[k] == expected


@given(cases())
def test_neither_the_batch_nor_the_cache_overflows(case: Case) -> None:
    result = case.run()
    for k in np.flatnonzero(~result.rejected):
        beside = (result.replica == result.replica[k]) & (result.model == result.model[k])
        running = beside & (result.admission_s <= result.admission_s[k]) & (result.completion_s > result.admission_s[k])
        assert running.sum() <= case.cluster.max_batch
        assert claims(case)[running].sum() <= case.tables.cache_tokens[result.model[k]]


@given(cases())
def test_what_comes_later_changes_nothing_before(case: Case) -> None:
    whole = case.run()
    half = (len(case.models) + 1) // 2
    first = {name: getattr(case, name)[:half] for name in ("arrival_s", "prompts", "outputs", "models")}
    part = dataclasses.replace(case, **first).run()
    assert part.replica.tolist() == whole.replica[:half].tolist()
    if half < len(case.models):
        over = part.completion_s <= whole.arrival_s[half]
        assert part.completion_s[over].tolist() == whole.completion_s[:half][over].tolist()


@given(cases(coupled=False), st.permutations(range(3)))
def test_relabelled_models_give_relabelled_results(case: Case, permutation: list[int]) -> None:
    order = np.array([model for model in permutation if model < len(case.speed)])
    relabelled = dataclasses.replace(case, speed=case.speed[order], models=np.argsort(order)[case.models])
    one, two = case.run(), relabelled.run()
    assert one.replica.tolist() == two.replica.tolist()
    np.testing.assert_array_equal(one.completion_s, two.completion_s)


@given(cases(coupled=False))
def test_work_is_conserved(case: Case) -> None:
    # One instance whose every token costs 1/4 s is busy exactly when a single server with that work is.
    tables = make_tables(largest=30, decode=np.arange(31)[None] / 4, prefill=np.full((1, 31), 0.25))
    cluster = Cluster(replicas=1, max_batch=case.cluster.max_batch, queue_capacity=30)
    result = run(case.requests, tables, cluster)
    service_s = case.requests.output_tokens / 4
    finished_s = case.requests.arrival_s + fcfs_waits(case.requests.arrival_s, service_s) + service_s
    empties = np.append(finished_s[:-1] <= case.requests.arrival_s[1:], True)
    assert np.maximum.accumulate(result.completion_s)[empties].tolist() == finished_s[empties].tolist()


def test_the_theory_itself_gives_known_answers() -> None:
    assert erlang_b(5, 3.0) == pytest.approx(0.11005, abs=5e-6)  # (3^5 / 5!) / (1 + 3 + 9/2 + 27/6 + 81/24 + 243/120)
    assert mmc_mean_wait(1, 0.5, 1.0) == pytest.approx(mg1_mean_wait(0.5, 1.0, 2.0)) == pytest.approx(1.0)  # M/M/1
    assert mmc_mean_wait(2, 1.0, 1.0) == pytest.approx(1 / 3)
    assert ps_mean_response(0.5, 1.0) == 2.0
    assert fcfs_waits(np.array([0.0, 1.0, 1.0]), np.array([4.0, 2.0, 1.0]), servers=2).tolist() == [0.0, 0.0, 2.0]
    assert ps_responses(np.array([0.0, 1.0, 9.0]), np.array([2.0, 1.5, 1.0])).tolist() == [3.0, 2.5, 1.0]


class TestView:
    """What the router sees, one line per request; six arrive half a second apart and stay for ten iterations."""

    def seen(self, view: View, factors: np.ndarray | None = None) -> list[Observation]:
        requests = make_requests(np.arange(6) / 2, np.ones(6, int), np.full(6, 10))
        requests = dataclasses.replace(requests, deadline_factor=factors)
        observations: list[Observation] = []

        def route(index: int, observation: Observation) -> int:
            observations.append(observation)
            return 0

        self.replicas = run(requests, cluster=Cluster(replicas=2, max_batch=4), route=route, view=view).replica.tolist()
        return observations

    def test_rates_are_those_of_so_many_arrivals_ago(self) -> None:
        now = [observation.arrival_rate for observation in self.seen(View())]
        late = [observation.arrival_rate for observation in self.seen(View(rate_lag=2))]
        assert late == [0.0, 0.0, *now[:4]]
        assert np.all(np.diff(now) > 0)
        assert {observation.arrival_rate for observation in self.seen(View(rate_lag=6))} == {0.0}

    def test_batch_sizes_are_those_of_the_last_reading(self) -> None:
        now = [observation.batch_sizes.tolist() for observation in self.seen(View())]
        assert now == [[0], [1], [2], [3], [4], [5]]
        late = self.seen(View(batch_refresh_s=1.0))
        assert [observation.batch_sizes.tolist() for observation in late] == [[0], [0], [2], [2], [4], [4]]
        assert late[3].instance_batch_sizes.tolist() == [[1], [1]]
        assert [observation.since_change_s for observation in late] == [0.0, 0.5, 0.5, 0.5, 0.5, 0.5]
        # The load balancer goes on alternating.
        assert self.replicas == [0, 1, 0, 1, 0, 1]

    def test_deadlines_are_seen_with_the_factor_in_force(self) -> None:
        factors = np.array([1.0, 1.0, 0.5, 0.5, 2.0, 1.0])
        assert [observation.deadline_s for observation in self.seen(View(), factors)] == (3 * factors).tolist()
        assert {observation.deadline_s for observation in self.seen(View())} == {3.0}


class TestTheory:
    """Fixed seeds; means are held against theory within three standard errors."""

    def test_one_slot_and_one_token_is_a_queue_in_order_of_arrival(self) -> None:
        # M/D/1 and M/G/1: prompts of 1, or of 1 to 4 tokens, 1/4 s each.
        rng = np.random.default_rng(1)
        cluster = Cluster(replicas=1, max_batch=1, queue_capacity=100_000)
        for longest in (1, 4):
            lengths = np.arange(1, longest + 1)
            prompts = rng.choice(lengths, 20_000)
            service_s = 0.25 * lengths
            rate = 0.7 / service_s.mean()
            arrival_s = np.cumsum(rng.exponential(1 / rate, len(prompts)))
            result = run(make_requests(arrival_s, prompts, np.ones_like(prompts)), cluster=cluster)
            wait_s = result.admission_s - arrival_s
            np.testing.assert_allclose(wait_s, fcfs_waits(arrival_s, 0.25 * prompts), atol=1e-9)
            assert batch_means(wait_s).within(mg1_mean_wait(rate, service_s.mean(), (service_s**2).mean()))

    def test_many_slots_are_servers(self) -> None:
        # Constant decode makes each of 4 slots a server of one token per iteration; service times are geometric.
        # Bias: a request starts and ends on iteration boundaries, so it holds its slot for up to one iteration less
        # (the first token of a request that finds the instance idle is almost free) or more (if it joins late), of 100.
        tokens, servers, rate = 100, 4, 3.0
        iteration_s = 1 / tokens
        rng = np.random.default_rng(2)
        n = 10_000
        arrival_s = np.cumsum(rng.exponential(1 / rate, n))
        requests = make_requests(arrival_s, np.ones(n, int), rng.geometric(1 / tokens, n))
        tables = make_tables(
            decode=np.array([[0.0] + [iteration_s] * servers]), prefill=np.full((1, 2), iteration_s / 1000)
        )
        shorter, longer = 1 - iteration_s, 1 + iteration_s

        loss = run(requests, tables, Cluster(replicas=1, max_batch=servers, queue_capacity=0))
        assert batch_means(loss.rejected).within(erlang_b(servers, rate * shorter), erlang_b(servers, rate * longer))

        queue = run(requests, tables, Cluster(replicas=1, max_batch=servers, queue_capacity=n))
        wait = batch_means(queue.admission_s - arrival_s)
        late = iteration_s  # a request that finds a free slot still waits for the iteration in progress
        assert wait.within(mmc_mean_wait(servers, rate, shorter), mmc_mean_wait(servers, rate, longer) + late)

    def test_a_constant_token_rate_is_processor_sharing(self) -> None:
        # Decode proportional to the batch size: all present share a constant rate of tokens. Bias: shares are handed
        # out in whole iterations; against exact processor sharing of the same list the mean moves by less than one
        # token's time, 1% of a mean service.
        tokens, load, most = 100, 0.6, 100
        token_s = 1 / tokens
        rng = np.random.default_rng(3)
        n = 10_000
        outputs = rng.geometric(1 / tokens, n)
        arrival_s = np.cumsum(rng.exponential(1 / load, n))
        tables = make_tables(decode=token_s * np.arange(most + 1)[None], prefill=np.full((1, 2), token_s))
        requests = make_requests(arrival_s, np.ones(n, int), outputs)
        result = run(requests, tables, Cluster(replicas=1, max_batch=most, queue_capacity=0))
        assert not result.rejected.any()
        response_s = result.completion_s - arrival_s
        answer = ps_mean_response(load, 1.0)
        assert batch_means(response_s).within(answer - token_s, answer + token_s)
        assert abs((response_s - ps_responses(arrival_s, token_s * outputs)).mean()) < token_s
