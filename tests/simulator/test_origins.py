"""Origins of requests: whose network delay counts, and where they come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from besteffort import simulate
from besteffort.errors import InputError
from besteffort.evaluation.rollouts import play_routers
from besteffort.in_flight import InFlight
from besteffort.policy import Policy, load_policy, save_policy
from besteffort.pools import OriginDelay, Pool
from besteffort.routers import StaticRouter
from besteffort.routers.learned import learned_router
from besteffort.runs.experiment import TrainingConfig
from besteffort.runs.training import make_policy, make_training_problem
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Cluster, Deadline, Origin, Situation, Task
from besteffort.workload.requests import Requests
from besteffort.workload.traces import read_trace
from tests.simulator.cases import lone_requests, make_profile

PROFILE = make_profile(np.full((1, 4), 0.5), np.full((1, 8), 1.0))
TASK = Task("task0", prompt_tokens=(1, 8), output_tokens=(1, 3), deadline=Deadline(2.0, 0.0))
POOLS = (
    Pool("east", "model0", delays=(OriginDelay("asia", 0.25), OriginDelay("europe", 1.5))),
    Pool("west", "model0", network_delay_s=0.5, delays=(OriginDelay("asia", 2.0),)),
)
SITUATION = Situation(
    PROFILE, Cluster(), (TASK,), pools=POOLS, origins=(Origin("asia", 3.0), Origin("europe", 1.0), Origin("mars", 0.0))
)


def listed(origin: list[int] | None, origins: tuple[str, ...] = ("asia", "europe", "mars")) -> Requests:
    """Requests that meet no other, each a prefill of a second."""
    return lone_requests("origin", origin, origins)


def test_the_delay_between_origin_and_pool_counts() -> None:
    pools = [0, 0, 0, 1, 1, 1]
    result = simulate_by_reference(listed([0, 1, 2, 0, 1, 2]), SITUATION, lambda index, _: pools[index])
    np.testing.assert_array_equal(result.latency_s, [1.25, 2.5, 1.0, 3.0, 1.5, 1.5])
    np.testing.assert_array_equal(result.met, [True, False, True, False, True, True])
    np.testing.assert_array_equal(result.completion_s - result.arrival_s, np.ones(6))
    np.testing.assert_array_equal(result.origin, [0, 1, 2, 0, 1, 2])


def test_requests_without_an_origin_have_the_delay_of_the_pool() -> None:
    result = simulate_by_reference(listed(None), SITUATION, lambda index, _: index % 2)
    np.testing.assert_array_equal(result.latency_s, [1.0, 1.5, 1.0, 1.5])
    assert result.origin is None


def test_many_rollouts_repeat_the_origins_of_each_list() -> None:
    lists = [listed([0, 1, 2, 0]), listed([1, 1, 0, 2])]
    for name, played in play_routers(SITUATION, lists, {"east": [StaticRouter(0)] * 2}).items():
        assert name == "east"
        np.testing.assert_array_equal(played.origin, [each.origin for each in lists])
        np.testing.assert_array_equal(played.latency_s[0], [1.25, 2.5, 1.0, 1.25])
        assert played.lanes(1).origin.tolist() == [1, 1, 0, 2]


FILE = """\
arrival_s,prompt_tokens,output_tokens,origin
0.5,1,1,europe
1.0,2,2,asia
1.5,3,1,europe
"""


def test_a_trace_says_where_requests_come_from(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(FILE)
    requests, info = read_trace(path, SITUATION)
    assert "origin" not in str(info)
    assert requests.origins == ("asia", "europe", "mars")
    np.testing.assert_array_equal(requests.origin, [1, 0, 1])
    nowhere = dataclasses.replace(
        SITUATION, origins=(), pools=tuple(dataclasses.replace(pool, delays=()) for pool in POOLS)
    )
    requests, info = read_trace(path, nowhere)
    assert requests.origin is None
    assert str(info).endswith("; `origin` is not read, because the situation lists no `origins`")
    path.write_text("\n".join(line.rpartition(",")[0] for line in FILE.splitlines()) + "\n")
    requests, info = read_trace(path, SITUATION)
    assert requests.origin is None
    assert "it does not say where requests come from, so they have the delay `network_delay_s` of each pool" in str(
        info
    )
    path.write_text(FILE.replace("asia", "moon"))
    with pytest.raises(InputError, match="origin `moon` is not an origin of the situation, which has asia, europe"):
        read_trace(path, SITUATION)
    path.write_text(FILE.replace("asia", ""))
    with pytest.raises(InputError, match="`origin` is empty for 1 requests; say where from"):
        read_trace(path, SITUATION)


def test_live_own_counts_the_delay_from_the_origin() -> None:
    flight = InFlight(SITUATION)
    found = {}
    for origin in (None, "asia", "europe"):
        flight.arrived(origin or "nowhere", task="task0", prompt_tokens=1, origin=origin, at=0.0)
        found[origin] = flight.estimates(origin or "nowhere", at=0.0).completion_s
    np.testing.assert_allclose(found["asia"] - found[None], [0.25, 1.5])
    np.testing.assert_allclose(found["europe"] - found[None], [1.5, 0.0])
    with pytest.raises(InputError, match="unknown origin `moon`; choose from asia, europe, mars"):
        flight.arrived("new", task="task0", prompt_tokens=1, origin="moon")


def by_origin() -> Policy:
    """A policy that only reads origins: asia's requests go east, europe's west, others by the bias, east."""
    view = dataclasses.replace(SITUATION.view, features=("origin", "arrival_rate"))
    problem = make_training_problem(dataclasses.replace(SITUATION, view=view), TrainingConfig())
    kernel = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    return make_policy(problem, ((kernel, np.array([0.5, 0.0])),), {})


@pytest.mark.parametrize("backend", ["jax", "reference"])
def test_a_network_reads_the_origin(backend: Literal["jax", "reference"]) -> None:
    router = learned_router(by_origin())
    result = simulate(listed([0, 1, 2, 1, 0]), SITUATION, router, backend=backend)
    np.testing.assert_array_equal(result.model, [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(simulate(listed(None), SITUATION, router, backend=backend).model, np.zeros(4))


def test_a_gateway_tells_a_policy_the_origin(tmp_path: Path) -> None:
    save_policy(by_origin(), tmp_path / "policy.safetensors")
    flight = InFlight(load_policy(tmp_path / "policy.safetensors", SITUATION))
    for origin, pool in (("asia", "east"), ("europe", "west"), (None, "east")):
        flight.arrived(origin, task="task0", prompt_tokens=1, origin=origin, at=0.0)
        assert flight.decide(origin, at=0.0).model == pool


def test_other_origins_than_the_situations_are_refused() -> None:
    with pytest.raises(InputError, match="The list's origins are asia, europe, the situation's asia, europe, mars"):
        simulate(listed([0, 1], ("asia", "europe")), SITUATION, StaticRouter(0))
    with pytest.raises(InputError, match="`origin` must index one of the 3 `origins`"):
        listed([0, 3])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"origins": ()}, "Pool `east`: `delays` names the origin `asia`, which the situation lacks; list it under"),
        ({"origins": (Origin("asia"),)}, "`delays` names the origin `europe`, which the situation lacks; choose from"),
        ({"origins": (Origin("asia"), Origin("asia"))}, "Origin `asia` is listed twice under `origins`; list it once"),
        ({"origins": tuple(Origin(name, 0.0) for name in ("asia", "europe"))}, "Every origin has `share` 0; give"),
    ],
)
def test_a_mistake_is_one_sentence(change: dict[str, tuple[Origin, ...]], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        dataclasses.replace(SITUATION, **change)


def test_negative_and_repeated_delays_are_refused() -> None:
    with pytest.raises(InputError, match="Pool `a`: the delay from `asia` is -1; give at least 0"):
        Pool("a", "model0", delays=(OriginDelay("asia", -1.0),))
    with pytest.raises(InputError, match="Pool `a`: `delays` lists `asia` twice; list it once"):
        Pool("a", "model0", delays=(OriginDelay("asia", 1.0), OriginDelay("asia", 2.0)))
