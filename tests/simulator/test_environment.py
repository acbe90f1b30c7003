"""The environment as learners and evaluations use it, and the two dynamics against each other."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.routers import DeadlineRouter, RandomRouter, StaticRouter
from besteffort.runs.config import load_situation
from besteffort.simulator.build import build
from besteffort.simulator.environment import EnvState, ServingEnvironment
from besteffort.simulator.simulate import simulate
from besteffort.simulator.types import EnvParams, EnvShape, Router, TimeStep
from besteffort.situation import Cluster, Reward, Situation, Task, View
from besteffort.workload.arrivals import Poisson
from besteffort.workload.deadline_factors import deadline_factors
from besteffort.workload.requests import Requests
from besteffort.workload.sample import sample_workload
from besteffort.workload.synthetic_workload import synthetic
from besteffort.workload.trace_workload import replay
from tests.simulator.cases import (
    LONGEST_PROMPT,
    Case,
    Kind,
    draw_case,
    make_profile,
    play_compiled,
    simulate_by_reference,
)
from tests.simulator.environment_api import check_environment

PLAIN = Kind(3, 2, 2, max_batch=3, queue_capacity=2, dyadic=True, extras=frozenset())
MEMORY = dataclasses.replace(PLAIN, extras=frozenset({"context", "cache", "delay"}))
COUPLED = dataclasses.replace(PLAIN, extras=frozenset({"slowdown", "context", "cache", "delay"}))
CHUNKED = dataclasses.replace(PLAIN, extras=frozenset({"chunks", "delay"}))
KINDS = {"plain": PLAIN, "memory": MEMORY, "coupled": COUPLED, "chunked": CHUNKED}
SEEDS = {"plain": 6, "memory": 12, "coupled": 1, "chunked": 0}
"""Lists on which requests are rejected, late, and in time."""


def situation_of(kind: Kind = PLAIN, reward: Reward = Reward()) -> Situation:
    return dataclasses.replace(draw_case(kind, seed=6).situation, reward=reward)


def make_environment(
    situation: Situation, load: float = 1.5, history: int = 64, **static: Any
) -> tuple[ServingEnvironment, EnvParams]:
    """Poisson arrivals at `load` times the largest model's capacity."""
    workload = synthetic(situation, Poisson(jnp.asarray(load * situation.capacity()[-1])))
    shape, params = build(situation, workload, history=history)
    return ServingEnvironment(dataclasses.replace(shape, **static)), params


class Rollout(NamedTuple):
    """`steps` decisions: what followed each (leading axis `steps`), and the state at the end."""

    timesteps: TimeStep
    state: EnvState


def rollout(environment: ServingEnvironment, params: EnvParams, router: Router, key: jax.Array, steps: int) -> Rollout:
    reset_key, route_key, step_key = jax.random.split(key, 3)

    def one(carry: tuple[EnvState, TimeStep], k: jax.Array) -> tuple[tuple[EnvState, TimeStep], TimeStep]:
        state, timestep = carry
        action = router.route(timestep.observation, params, jax.random.fold_in(route_key, k))
        state, timestep = environment.step(jax.random.fold_in(step_key, k), state, action, params)
        return (state, timestep), timestep

    (state, _), timesteps = jax.lax.scan(one, environment.reset(reset_key, params), jnp.arange(steps))
    return Rollout(timesteps, state)


@pytest.mark.parametrize(
    ("name", "x64"),
    [("plain", False), ("memory", False), ("coupled", False), ("memory", True), ("coupled", True), ("chunked", False)],
)
def test_the_environment_keeps_its_protocol(name: str, x64: bool) -> None:
    with jax.enable_x64(x64):
        environment, params = make_environment(situation_of(KINDS[name]))
        check_environment(environment, params)


@pytest.mark.parametrize("x64", [False, True])
def test_the_environment_keeps_its_protocol_where_views_are_late_and_deadlines_change(x64: bool) -> None:
    view = View(rate_lag=3, batch_refresh_s=0.5)
    with jax.enable_x64(x64):
        environment, params = make_environment(dataclasses.replace(situation_of(), view=view))
        workload = dataclasses.replace(params.workload, deadline_factors=deadline_factors([1, 2], [0, 0.1], 0.2))
        check_environment(environment, dataclasses.replace(params, workload=workload))


def test_routers_see_the_past_and_load_balancers_the_present() -> None:
    # One program, vmapped over how late the view is; the router looks at nothing, so requests go the same way.
    situation = situation_of()
    view = dataclasses.replace(situation.view, rate_lag=5, batch_refresh_s=0.25)
    environment, params = make_environment(dataclasses.replace(situation, view=view), load=1.0)
    lags, refreshes_s = jnp.array([0, 2, 5]), jnp.array([0.0, 0.01, 0.25])

    def run(lag: jax.Array, refresh_s: jax.Array) -> TimeStep:
        own = dataclasses.replace(params, rate_lag=lag, batch_refresh_s=refresh_s)
        return rollout(environment, own, RandomRouter(), jax.random.key(0), 200).timesteps

    seen = jax.jit(jax.vmap(run))(lags, refreshes_s)
    live, plain = make_environment(situation, load=1.0)
    true = jax.jit(lambda: rollout(live, plain, RandomRouter(), jax.random.key(0), 200).timesteps)()
    for lane, (lag, refresh_s) in enumerate(zip(lags.tolist(), refreshes_s.tolist(), strict=True)):
        np.testing.assert_array_equal(seen.reward[lane], true.reward)  # the balancer is not misled
        np.testing.assert_array_equal(seen.observation.since_change_s[lane], true.observation.since_change_s)
        # Timesteps begin with decision 1; decision 0 saw the rate 0 and nobody.
        rate = np.concatenate([np.zeros(1 + lag), true.observation.arrival_rate])[1:201]
        np.testing.assert_array_equal(seen.observation.arrival_rate[lane], rate)
        sizes = np.concatenate([np.zeros((1, 2, 3), int), true.observation.instance_batch_sizes])
        age_s, read, fresh = np.float32(0), 0, []
        for index, gap_s in enumerate(np.asarray(true.gap_s, np.float32), start=1):
            age_s += gap_s
            if age_s >= np.float32(refresh_s):
                age_s, read = np.float32(0), index
            fresh.append(read)
        np.testing.assert_array_equal(seen.observation.instance_batch_sizes[lane], sizes[fresh])
        np.testing.assert_array_equal(seen.observation.batch_sizes[lane], sizes[fresh].sum(1))
        assert (len(set(fresh)) < 200) == (refresh_s > 0)


def test_the_horizon_truncates_and_nothing_terminates() -> None:
    environment, params = make_environment(situation_of(), horizon=5)
    timesteps = jax.jit(lambda key: rollout(environment, params, RandomRouter(), key, 8).timesteps)(jax.random.key(0))
    assert timesteps.index.tolist() == list(range(1, 9))
    assert timesteps.truncated.tolist() == [index >= 5 for index in range(1, 9)]
    assert not timesteps.terminated.any()
    environment, params = make_environment(situation_of(), horizon=0)
    endless = jax.jit(lambda key: rollout(environment, params, RandomRouter(), key, 8).timesteps)(jax.random.key(0))
    assert not (endless.truncated | endless.terminated).any()


def test_keys_and_nothing_else_decide() -> None:
    environment, params = make_environment(situation_of())
    run = jax.jit(lambda key: rollout(environment, params, RandomRouter(), key, 50).timesteps)
    one, same, other = run(jax.random.key(1)), run(jax.random.key(1)), run(jax.random.key(2))
    chex.assert_trees_all_equal(one, same)
    assert not np.allclose(one.observation.arrival_rate, other.observation.arrival_rate)
    assert not np.array_equal(one.observation.batch_sizes, other.observation.batch_sizes)


class Replayed(NamedTuple):
    """A list played through `reset` and `step`, and by the reference; the router has no noise, so they agree."""

    case: Case
    truth: Any
    environment: ServingEnvironment
    params: EnvParams
    rollout: Rollout


@cache
def replayed(name: str, reward: Reward, history: int = 501) -> Replayed:
    case = draw_case(KINDS[name], SEEDS[name])
    case = dataclasses.replace(
        case,
        situation=dataclasses.replace(case.situation, reward=reward),
        router=dataclasses.replace(case.router, noise=np.asarray(0.0)),
    )
    workload = replay(case.requests, start="first")
    shape, params = build(case.situation, workload, history=history, longest_prompt=LONGEST_PROMPT, record=True)
    environment = ServingEnvironment(shape)
    n = len(case.requests)
    played = jax.jit(lambda router, key: rollout(environment, params, router, key, n))(case.router, jax.random.key(0))
    return Replayed(case, simulate_by_reference(case), environment, params, played)


@pytest.mark.parametrize("reward", [Reward(), Reward(soft_span=1.0, miss_penalty=0.25)], ids=["hard", "soft"])
@pytest.mark.parametrize("name", KINDS)
def test_rewards_are_handed_out_when_requests_resolve(name: str, reward: Reward) -> None:
    # Dyadic times, so that a departure at the very instant of an arrival is on the right side of it.
    with jax.enable_x64(True):
        case, truth, environment, params, (timesteps, state) = replayed(name, reward)
        n, arrival_s = len(case.requests), case.requests.arrival_s
        assert truth.rejected.any()
        assert truth.met.any()
        assert not truth.met[~truth.rejected].all()

        ends_s = np.where(truth.rejected, arrival_s, truth.completion_s)
        for now, handed_out in enumerate(np.cumsum(timesteps.reward)[: n - 1], start=1):
            over = (np.arange(n) < now) & (ends_s <= arrival_s[now])
            assert handed_out == pytest.approx(truth.reward[over].sum(), abs=1e-9)

        # A decision's own reward is told when the request can earn nothing more, and is what the list's play gives.
        now_s = float(arrival_s[-1] + params.workload.gap_s[-1])
        outcomes = jax.jit(environment.outcomes)(state, params)
        due = arrival_s + (1 + reward.soft_span) * case.requests.deadline_s <= now_s
        assert outcomes.resolved[:n].tolist() == due.tolist()
        np.testing.assert_allclose(outcomes.reward[:n], np.where(due, truth.reward, 0.0), atol=1e-9)

        # Step rewards and what a drain still brings in are all there is.
        drained = jax.jit(environment.drain)(state, params)
        outcomes = jax.jit(environment.outcomes)(drained, params)
        assert outcomes.resolved[:n].all()
        np.testing.assert_allclose(outcomes.reward[:n], truth.reward, atol=1e-9)
        in_flight = ends_s > now_s
        total = float(timesteps.reward.sum()) + truth.reward[in_flight].sum()
        assert float(outcomes.reward[:n].sum()) == pytest.approx(total, abs=1e-9)
        timing = drained.ledger.timing
        np.testing.assert_allclose(timing.service_s[:n], truth.completion_s - arrival_s, atol=1e-9)


@pytest.mark.parametrize("slowdown", [False, True], ids=["jumps", "iterations"])
def test_an_answer_that_takes_no_time_earns_its_reward(slowdown: bool) -> None:
    # The table is flat: all but one token of a prompt are found, so reading the last one takes no time.
    profile = make_profile(decode=np.full((1, 2), 0.5), prefill=np.ones((1, 4)))
    requests = Requests(
        tasks=profile.task_names,
        arrival_s=np.array([0.0, 0.0, 1.0, 4.0]),
        task=np.zeros(4),
        prompt_tokens=np.full(4, 4),
        output_tokens=np.array([1, 1, 2, 1]),
        deadline_s=np.full(4, 2.0),
        cached_tokens=np.array([3, 3, 3, 0]),
    )
    situation = Situation(profile, Cluster(replicas=1, max_batch=2, queue_capacity=0), (Task("task0"),))
    truth = simulate(requests, situation, StaticRouter(0), backend="reference")
    assert (truth.completion_s - requests.arrival_s).tolist() == [0.0, 0.0, 0.5, 1.0]
    shape, params = build(situation, replay(requests, start="first"), history=8, longest_prompt=4)
    environment = ServingEnvironment(dataclasses.replace(shape, slowdown=slowdown))
    timesteps, _ = jax.jit(lambda key: rollout(environment, params, StaticRouter(0), key, 4))(jax.random.key(0))
    assert timesteps.reward[:3].tolist() == [1.0, 1.0, 1.0]
    if not slowdown:
        assert timesteps.credit.tolist() == truth.reward.tolist() == [1.0] * 4


@pytest.mark.parametrize("reward", [Reward(), Reward(soft_span=1.0, miss_penalty=0.25)], ids=["hard", "soft"])
@pytest.mark.parametrize("name", ["plain", "memory"])
def test_credit_is_what_a_decision_changes_in_the_sum_of_all_rewards(name: str, reward: Reward) -> None:
    # The list with this request as its last, less the list without it, by the reference.
    with jax.enable_x64(True):
        case, truth, _, _, (timesteps, _) = replayed(name, reward)
    credit = np.asarray(timesteps.credit)
    assert credit.sum() == pytest.approx(truth.reward.sum(), abs=1e-9)

    def total(n: int) -> float:
        fields = ("arrival_s", "task", "prompt_tokens", "output_tokens", "deadline_s")
        first = dataclasses.replace(case.requests, **{field: getattr(case.requests, field)[:n] for field in fields})
        return float(simulate_by_reference(dataclasses.replace(case, requests=first)).reward.sum())

    assert (np.abs(credit - truth.reward) > 1e-9).any()  # others are delayed, too
    for n in range(60, 500, 40):
        assert credit[n] == pytest.approx(total(n + 1) - total(n), abs=1e-9)


def test_the_ledger_remembers_the_last_decisions_only() -> None:
    history = 64
    with jax.enable_x64(True):
        *_, long_environment, params, (_, long_state) = replayed("plain", Reward())
        *_, environment, _, (_, state) = replayed("plain", Reward(), history=history)
        whole = jax.jit(long_environment.outcomes)(long_state, params)
        tail = jax.jit(environment.outcomes)(state, params)
    newest = int(state.index)
    remembered = np.arange(newest - history + 1, newest + 1)
    assert tail.resolved.any()
    np.testing.assert_array_equal(tail.resolved[remembered % history], whole.resolved[remembered])
    np.testing.assert_array_equal(tail.reward[remembered % history], whole.reward[remembered])


_EXACT = ("instance_batch_sizes", "since_change_s")


@pytest.mark.parametrize("name", KINDS)
def test_one_lane_many_lanes_and_nested_lanes_give_the_same(name: str) -> None:
    # Six lists of a kind, by hand through the environment: alone, under one vmap, under two. Dyadic, so exact.
    lanes = [replay(draw_case(KINDS[name], seed).requests, start="first") for seed in range(6)]
    case = draw_case(KINDS[name], seed=0)
    with jax.enable_x64(True):
        shape, params = build(case.situation, None, history=256, longest_prompt=LONGEST_PROMPT)
        environment = ServingEnvironment(shape)

        def run(workload: Any) -> tuple[TimeStep, Any]:
            own = dataclasses.replace(params, workload=workload)
            timesteps, state = rollout(environment, own, RandomRouter(), jax.random.key(4), 200)
            return timesteps, environment.outcomes(state, own)

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)
        alone = [jax.jit(run)(lane) for lane in lanes]
        alone = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
        once = jax.jit(jax.vmap(run))(stacked)
        folded = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), stacked)
        twice = jax.jit(jax.vmap(jax.vmap(run)))(folded)
        twice = jax.tree.map(lambda x: x.reshape(6, *x.shape[2:]), twice)
    assert int(alone[0].observation.instance_batch_sizes.max()) == PLAIN.max_batch + PLAIN.queue_capacity
    for other in (once, twice):
        chex.assert_trees_all_close(alone, other, rtol=1e-12, atol=1e-12)
        sizes, times = ([getattr(x[0].observation, name) for x in (alone, other)] for name in _EXACT)
        np.testing.assert_array_equal(*sizes)
        np.testing.assert_array_equal(*times)


def test_numbers_may_be_vmapped() -> None:
    # Rates and qualities as lanes of one program are what separate programs give.
    environment, params = make_environment(situation_of())
    rates = params.workload.arrivals.rate * jnp.array([0.2, 1.0, 3.0])
    qualities = jnp.stack([params.quality, params.quality / 2, params.quality / 4])

    def run(rate: jax.Array, quality: jax.Array) -> TimeStep:
        workload = dataclasses.replace(params.workload, arrivals=Poisson(rate))
        own = dataclasses.replace(params, workload=workload, quality=quality)
        return rollout(environment, own, RandomRouter(), jax.random.key(0), 100).timesteps

    together = jax.jit(jax.vmap(run))(rates, qualities)
    separate = [jax.jit(run)(*numbers) for numbers in zip(rates, qualities, strict=True)]
    chex.assert_trees_all_close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *separate), rtol=1e-4)
    assert (np.diff(together.observation.batch_sizes.sum((1, 2))) > 0).all()


def test_network_delay_soft_deadlines_and_penalties_change_rewards_alone() -> None:
    environment, params = make_environment(situation_of(), load=1.0, history=256)

    @jax.jit
    def run(params: EnvParams) -> tuple[TimeStep, Any]:
        timesteps, state = rollout(environment, params, StaticRouter(1), jax.random.key(3), 200)
        return timesteps, environment.outcomes(environment.drain(state, params), params).reward[:200]

    plain_steps, plain = run(params)
    missed = plain == 0
    assert 0 < missed.sum() < 200

    def changed(**numbers: float) -> np.ndarray:
        timesteps, rewards = run(
            dataclasses.replace(params, **{name: jnp.asarray(value) for name, value in numbers.items()})
        )
        chex.assert_trees_all_equal(timesteps.observation, plain_steps.observation)
        assert (rewards != plain).any()
        return np.asarray(rewards)

    late, soft, fined = changed(network_delay_s=0.25), changed(soft_span=1.0), changed(miss_penalty=0.5)
    assert np.isin(late, [0.0, *plain]).all()
    assert (late <= plain).all()
    np.testing.assert_array_equal(soft[~missed], plain[~missed])
    assert (soft[missed] >= 0).all()
    np.testing.assert_array_equal(fined[~missed], plain[~missed])
    assert set(np.unique(fined[missed]).tolist()) <= {-0.5 * float(weight) for weight in params.weight}


def test_a_function_of_the_users_own_says_what_an_answer_is_worth() -> None:
    def patience(quality, weight, latency_s, deadline_s, soft_span, miss_penalty, xp=np):
        return weight * quality * xp.exp(-latency_s)

    case = draw_case(PLAIN, seed=3)
    truth = simulate_by_reference(case)
    (played,) = play_compiled([case], reward_fn=patience)
    quality = case.situation.profile.quality_table(case.situation.task_names)
    weight = np.array([task.weight for task in case.situation.tasks])
    task = case.requests.task
    wanted = patience(quality[task, truth.model], weight[task], truth.latency_s, None, None, None)
    np.testing.assert_allclose(played.reward, wanted, atol=1e-12)
    assert (played.reward[truth.rejected] == 0).all()


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("router", [RandomRouter(), DeadlineRouter(0.0)], ids=["random", "deadline"])
def test_jumps_and_iterations_agree_at_scale(router: Router) -> None:
    # The two dynamics share little code. With all slow-downs 1 they must give the same: the default situation, long
    # lists, from almost idle to hopelessly overloaded.
    situation = load_situation("paper")
    capacity = situation.unit_load
    cases = []
    for seed, load in enumerate((0.3, 1.0, 2.0, 4.0, 10.0)):
        workload = synthetic(situation, Poisson(load * capacity))
        requests: Requests = sample_workload(workload, situation.task_names, 2000, seed)
        cases.append(Case(requests, situation, router, seed))
    jumps = play_compiled(cases)
    iterations = play_compiled(cases, slowdown=True)
    for one, other, case in zip(jumps, iterations, cases, strict=True):
        np.testing.assert_array_equal(one.model, other.model)
        np.testing.assert_array_equal(one.replica, other.replica)
        horizon = float(np.nanmax(case.requests.arrival_s + np.nan_to_num(one.service_s)))
        for name in ("wait_s", "first_token_s", "service_s"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=0, atol=1e-9 * horizon)
        np.testing.assert_allclose(one.reward, other.reward, atol=1e-12)
    assert (jumps[-1].replica < 0).any() or isinstance(router, DeadlineRouter)
    assert all((played.service_s[played.replica >= 0] > 0).all() for played in jumps)


def test_shapes_are_hashable_and_count_instances() -> None:
    shape = EnvShape(replicas=2, pools=3, tasks=1, max_batch=4, queue_capacity=0, history=8)
    assert shape.instances == 6
    assert hash(shape) == hash(dataclasses.replace(shape))
