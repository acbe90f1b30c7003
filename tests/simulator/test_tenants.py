"""Tenants of requests: whose they are, and how much they count."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from besteffort import simulate
from besteffort.errors import InputError
from besteffort.evaluation.rollouts import play_routers
from besteffort.routers import StaticRouter
from besteffort.runs.config import load_situation
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Cluster, Deadline, Situation, Task, Tenant
from besteffort.workload.arrivals import Poisson
from besteffort.workload.requests import Requests
from besteffort.workload.resample import resample
from besteffort.workload.sample import sample_requests, sample_workload
from besteffort.workload.trace_workload import replay
from besteffort.workload.traces import read_trace
from tests.simulator.cases import make_profile

PROFILE = make_profile(np.full((1, 4), 0.5), np.full((1, 8), 1.0))
TASK = Task("task0", prompt_tokens=(1, 8), output_tokens=(1, 3), deadline=Deadline(2.0, 0.0))
TENANTS = (Tenant("gold", 3.0, 3.0), Tenant("silver", 1.0, 1.0), Tenant("lead", 0.5, 0.0))
SITUATION = Situation(PROFILE, Cluster(1, 2, 2), (TASK,), tenants=TENANTS)
NOBODY = dataclasses.replace(SITUATION, tenants=())


def listed(tenant: list[int] | None, tenants: tuple[str, ...] = ("gold", "silver", "lead")) -> Requests:
    """Requests that meet no other, each a prefill of a second."""
    n = 4 if tenant is None else len(tenant)
    return Requests(
        tasks=("task0",),
        arrival_s=10.0 * np.arange(n),
        task=np.zeros(n),
        prompt_tokens=np.ones(n),
        output_tokens=np.ones(n),
        deadline_s=np.full(n, 2.0),
        tenant=None if tenant is None else np.array(tenant),
        tenants=() if tenant is None else tenants,
    )


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


def test_a_synthetic_workload_draws_tenants_by_share_and_nothing_else_changes() -> None:
    requests = sample_requests(SITUATION, Poisson(100.0), 2000, seed=3)
    assert requests.tenants == ("gold", "silver", "lead")
    assert requests.tenant is not None
    counts = np.bincount(requests.tenant, minlength=3)
    assert counts[2] == 0
    assert 0.71 < counts[0] / 2000 < 0.79
    without = sample_requests(NOBODY, Poisson(100.0), 2000, seed=3)
    assert without.tenant is None
    assert without.columns.keys() | {"tenant"} == requests.columns.keys()
    for name, column in without.columns.items():
        np.testing.assert_array_equal(requests.columns[name], column)


@pytest.mark.parametrize("how", ["replay", "resample"])
def test_lists_as_workloads_keep_tenants(how: str) -> None:
    requests = listed([0, 1, 2, 1, 0, 2])
    requests = dataclasses.replace(requests, prompt_tokens=np.array([1, 2, 3, 2, 1, 3]))
    workload = replay(requests, "first") if how == "replay" else resample(requests, Poisson(1.0))
    drawn = sample_workload(workload, requests.tasks, 20, seed=0)
    assert drawn.tenants == requests.tenants
    np.testing.assert_array_equal(drawn.tenant, drawn.prompt_tokens - 1)
    with jax.enable_x64(False):
        part = drawn.part(slice(3, 9), 0.0)
    assert part.tenants == requests.tenants
    np.testing.assert_array_equal(part.tenant, drawn.tenant[3:9])


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
        ("[{name: a, weight: .inf}]", r"tenants\[0\]\.weight.*inf"),
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
