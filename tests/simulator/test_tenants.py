"""Tenants of requests: whose they are, and how much they count."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort import simulate
from besteffort.errors import InputError
from besteffort.estimates.encoding import appraise
from besteffort.evaluation.objectives import scores
from besteffort.evaluation.rollouts import Rollout, mean_rewards, play_routers
from besteffort.learning.config import SearchConfig
from besteffort.routers import StaticRouter
from besteffort.runs.config import load_situation
from besteffort.simulator.build import build, make_env
from besteffort.simulator.environment import ServingEnvironment
from besteffort.simulator.result import Result
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Cluster, Deadline, Situation, Task, Tenant
from besteffort.workload.requests import Requests, weight_of_each
from besteffort.workload.trace_workload import replay
from besteffort.workload.traces import read_trace
from besteffort.workload.types import Arrival
from tests.simulator.cases import (
    TOLERANCE,
    Case,
    compare,
    draw_case,
    draw_kinds,
    lone_requests,
    make_profile,
    play_compiled,
    with_tenants,
)
from tests.simulator.cases import simulate_by_reference as cases_by_reference

PROFILE = make_profile(np.full((1, 4), 0.5), np.full((1, 8), 1.0))
TASK = Task("task0", prompt_tokens=(1, 8), output_tokens=(1, 3), deadline=Deadline(2.0, 0.0))
TENANTS = (Tenant("gold", 3.0, 3.0), Tenant("silver", 1.0, 1.0), Tenant("lead", 0.5, 0.0))
SITUATION = Situation(PROFILE, Cluster(1, 2, 2), (TASK,), tenants=TENANTS)
NOBODY = dataclasses.replace(SITUATION, tenants=())


def listed(tenant: list[int] | None, tenants: tuple[str, ...] = ("gold", "silver", "lead")) -> Requests:
    """Requests that meet no other, each a prefill of a second."""
    return lone_requests("tenant", tenant, tenants)


def test_weights_have_a_mean_of_one_over_the_mix() -> None:
    assert SITUATION.tenant_weights is not None
    np.testing.assert_allclose(SITUATION.tenant_weights, np.array([3.0, 1.0, 0.5]) / 2.5)
    heavier = tuple(dataclasses.replace(tenant, weight=7 * tenant.weight) for tenant in TENANTS)
    np.testing.assert_allclose(
        dataclasses.replace(SITUATION, tenants=heavier).tenant_weights, SITUATION.tenant_weights, rtol=1e-15
    )
    alike = tuple(dataclasses.replace(tenant, weight=7.0) for tenant in TENANTS)
    assert dataclasses.replace(SITUATION, tenants=alike).tenant_weights is None
    assert NOBODY.tenant_weights is None


def test_results_repeat_the_tenants_and_rewards_do_not_count_them() -> None:
    requests = listed([0, 1, 2, 1])
    compiled = simulate(requests, SITUATION, StaticRouter(0))
    reference = simulate_by_reference(requests, SITUATION, lambda index, observation: 0)
    plain = simulate(listed(None), NOBODY, StaticRouter(0))
    for result in (compiled, reference):
        np.testing.assert_array_equal(result.tenant, [0, 1, 2, 1])
        np.testing.assert_allclose(result.reward, plain.reward, rtol=1e-15)
    lists = [listed([0, 1, 2, 0]), listed([1, 1, 0, 2])]
    played = play_routers(SITUATION, lists, {"model0": [StaticRouter(0)] * 2})["model0"]
    np.testing.assert_array_equal(played.tenant, [each.tenant for each in lists])
    np.testing.assert_allclose(played.reward, np.tile(plain.reward, (2, 1)), rtol=1e-6)
    assert simulate(listed(None), SITUATION, StaticRouter(0)).tenant is None


FILE = """\
arrival_s,prompt_tokens,output_tokens,tenant
0.5,1,1,silver
1.0,2,2,gold
1.5,3,1,silver
"""


def test_a_trace_says_whose_requests_are(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(FILE)
    requests, info = read_trace(path, SITUATION)
    assert "tenant" not in str(info)
    assert requests.tenants == ("gold", "silver", "lead")
    np.testing.assert_array_equal(requests.tenant, [1, 0, 1])
    requests, info = read_trace(path, NOBODY)
    assert requests.tenant is None
    assert str(info).endswith("; `tenant` is not read, because the situation lists no `tenants`")
    path.write_text("\n".join(line.rpartition(",")[0] for line in FILE.splitlines()) + "\n")
    requests, info = read_trace(path, SITUATION)
    assert requests.tenant is None
    assert str(info).endswith("; it does not say whose requests they are, so all count the same")
    path.write_text(FILE.replace("gold", "tin"))
    with pytest.raises(
        InputError,
        match=r"trace\.csv: tenant `tin` is not a tenant of the situation, which has gold, silver, lead; rename it in",
    ):
        read_trace(path, SITUATION)
    path.write_text(FILE.replace("gold", ""))
    with pytest.raises(InputError, match="`tenant` is empty for 1 requests; say whose they are"):
        read_trace(path, SITUATION)


def test_the_team_of_a_spend_log_is_the_tenant(tmp_path: Path) -> None:
    path = tmp_path / "spend.json"
    rows: list[dict[str, Any]] = [
        {
            "request_id": f"r{index}",
            "startTime": f"2026-01-05T10:00:0{index}Z",
            "endTime": f"2026-01-05T10:00:0{index + 2}Z",
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "model": "some",
            "team_id": team,
            "user": "gold",
        }
        for index, team in enumerate(("silver", "gold", "gold"))
    ]
    path.write_text(json.dumps(rows))
    requests, _ = read_trace(path, SITUATION)
    np.testing.assert_array_equal(requests.tenant, [1, 0, 0])
    path.write_text(json.dumps(rows).replace("silver", "tin"))
    with pytest.raises(InputError, match=r"spend\.json: `team_id`: tenant `tin` is not a tenant of the situation"):
        read_trace(path, SITUATION)


def test_other_tenants_than_the_situations_are_refused() -> None:
    with pytest.raises(InputError, match="The list's tenants are gold, tin, the situation's gold, silver, lead; give"):
        simulate(listed([0, 1], ("gold", "tin")), SITUATION, StaticRouter(0))
    with pytest.raises(InputError, match="The list's tenants are gold, silver, the situation's none; give the same"):
        simulate(listed([0, 1], ("gold", "silver")), NOBODY, StaticRouter(0))
    with pytest.raises(InputError, match="`tenant` must index one of the 3 `tenants`"):
        listed([0, 3])
    with pytest.raises(InputError, match="The lists differ in their `tenants`"):
        play_routers(SITUATION, [listed([0, 1, 2, 0]), listed(None)], {"model0": [StaticRouter(0)] * 2})


@pytest.mark.parametrize(
    ("tenants", "sentence"),
    [
        ("[{name: a}, {name: a, weight: 2}]", "Tenant `a` is listed twice under `tenants`; list it once"),
        ("[{name: a, share: 0}]", "Every tenant has `share` 0; give at least one a positive share"),
        ("[{name: a, weight: 0}]", r"tenants\[0\]\.weight.* 0"),
        ("[{name: a, weight: .inf}]", r"tenants\[0\]\.weight` is Infinity, but should be a finite number"),
        ("[{name: a, wait: 2}]", r"tenants\[0\]\.wait.*weight"),
        ("[{weight: 2}]", r"tenants\[0\]\.name"),
    ],
)
def test_a_mistake_is_one_sentence(tenants: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"profile: opt-a100\ntasks: [{{name: piqa}}]\ntenants: {tenants}\n")
    with pytest.raises(InputError, match=sentence) as caught:
        load_situation(path)
    assert "\n" not in str(caught.value)


KINDS = draw_kinds(11)


@pytest.mark.parametrize(
    "index", [0, 5, pytest.param(8, marks=pytest.mark.optimised)], ids=lambda index: str(KINDS[index])
)
def test_compiled_rewards_count_as_much_as_their_tenants(index: int) -> None:
    """In the closed form, with batch sizes read late and a limited cache, and iteration by iteration."""
    cases = [with_tenants(shortened(draw_case(KINDS[index], 100 + k))) for k in range(4)]
    for case, played in zip(cases, play_compiled(cases), strict=True):
        truth = reference_of(case)
        weights = weight_of_each(case.requests, case.situation)
        assert weights is not None
        assert len(set(weights.tolist())) == 2
        difference = compare(played, dataclasses.replace(truth, reward=weights * truth.reward))
        assert difference.outcomes == 0
        assert max(difference.time, difference.reward) <= TOLERANCE
        alike = reference_of(dataclasses.replace(case, situation=dataclasses.replace(case.situation, tenants=())))
        np.testing.assert_array_equal(truth.reward, alike.reward)


def shortened(case: Case) -> Case:
    return dataclasses.replace(case, requests=case.requests.part(slice(0, 150), 0.0))


def reference_of(case: Case) -> Result:
    requests = case.requests if case.situation.tenants else dataclasses.replace(case.requests, tenant=None, tenants=())
    return cases_by_reference(dataclasses.replace(case, requests=requests))


def test_what_is_learned_from_counts_as_much_as_its_tenant() -> None:
    """Rewards, credits and own-request outcomes of an episode add up to the weighted rewards of the list."""
    case = with_tenants(shortened(draw_case(KINDS[0], 7)))
    requests, n = case.requests, len(case.requests)
    weights = weight_of_each(requests, case.situation)
    assert weights is not None
    with jax.enable_x64(True):
        env, params = make_env(case.situation, replay(requests, "first"), history=2 * n)
        state, first = env.reset(jax.random.key(0), params)
        last = len(case.situation.fleet.pools) - 1

        def step(state: Any, key: jax.Array) -> Any:
            state, now = env.step(key, state, jnp.int32(last), params)
            return state, (now.reward, now.credit)

        keys = jax.random.split(jax.random.key(1), n - 1)
        state, (reward, credit) = jax.lax.scan(step, state, keys)
        state, placed = env.place(state, jnp.int32(last), params)
        drained = env.drain(state, params)
    reward, credit = (
        np.append(np.asarray(each), one) for each, one in ((reward, first.reward), (credit, placed.credit))
    )
    result = simulate(requests, case.situation, StaticRouter(last))
    wanted = weights * result.reward
    np.testing.assert_allclose(np.asarray(drained.ledger.reward)[:n], wanted, atol=1e-12)
    np.testing.assert_allclose(credit.sum(), wanted.sum(), rtol=1e-9)
    assert abs(float(wanted.sum() - result.reward.sum())) > 1e-3
    # Step rewards come as requests leave; those that are still there have not paid.
    left = result.completion_s <= requests.arrival_s[-1]
    refused = result.rejected.copy()
    refused[-1] = False
    np.testing.assert_allclose(reward.sum(), wanted[left | refused].sum(), rtol=1e-9)


def test_search_and_tuning_look_for_the_weighted_mean() -> None:
    lists = [listed([0, 1, 2, 0]), listed([1, 1, 0, 2])]
    # A deadline that the prefill of gold's alone meets.
    lists = [dataclasses.replace(one, deadline_s=np.where(one.tenant == 0, 2.0, 0.5)) for one in lists]
    rollouts = [Rollout("model0", row, StaticRouter(0)) for row in (0, 1)]
    found = mean_rewards(SITUATION, lists, rollouts)
    np.testing.assert_allclose(found, [6 / 7.5, 3 / 5.5], rtol=1e-6)
    result = play_routers(SITUATION, lists, {"model0": [StaticRouter(0)] * 2})["model0"]
    np.testing.assert_allclose(scores(result, SITUATION, SearchConfig()), found, rtol=1e-6)
    alike = dataclasses.replace(SITUATION, tenants=tuple(dataclasses.replace(one, weight=1.0) for one in TENANTS))
    np.testing.assert_allclose(mean_rewards(alike, lists, rollouts), [0.5, 0.25], rtol=1e-6)
    both = [Rollout("model0", 0, StaticRouter(0), actual) for actual in (SITUATION, alike)]
    np.testing.assert_allclose(mean_rewards(SITUATION, lists, both), [6 / 7.5, 0.5], rtol=1e-6)


def program_of(situation: Situation, requests: Requests) -> str:
    """The compiled program that plays a list, as text."""
    shape, params = build(situation, None, history=8, longest_prompt=8, record=True, estimates=True)
    weighs = params.tenant_weight is not None
    arrival = Arrival(
        *(jnp.asarray(1.0), *(jnp.asarray(1, jnp.int32),) * 3, jnp.asarray(1.0)),
        tenant=jnp.asarray(0, jnp.int32) if weighs and requests.tenant is not None else None,
    )
    env = ServingEnvironment(shape)

    def play(params: Any, arrival: Arrival) -> Any:
        state, step = env.arrive(env.start(arrival), arrival, params)
        state, _ = env.place(state, jnp.int32(0), params)
        return env.drain(state, params).ledger, appraise(step.observation, params, jnp)

    return str(jax.make_jaxpr(play)(params, arrival))


def test_tenants_that_count_the_same_cost_nothing() -> None:
    alike = dataclasses.replace(SITUATION, tenants=tuple(dataclasses.replace(one, weight=2.0) for one in TENANTS))
    requests = listed([0, 1, 2])
    plain = program_of(NOBODY, listed(None))
    assert program_of(alike, requests) == plain
    assert program_of(SITUATION, requests) != plain
