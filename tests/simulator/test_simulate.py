"""`simulate` as users call it."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import besteffort
from besteffort.errors import InputError
from besteffort.profile import Profile, load_profile
from besteffort.routers import (
    DeadlineRouter,
    LadderRouter,
    PricedRouter,
    RandomRouter,
    ShortestQueueRouter,
    StaticRouter,
)
from besteffort.simulator.result import Result
from besteffort.simulator.simulate import tasks_of
from besteffort.simulator.types import Router
from besteffort.situation import Cluster, Deadline, Reward, Situation, Task, View
from besteffort.workload.requests import Requests

PROFILE = load_profile("opt-a100")
CLUSTER = Cluster(replicas=2, max_batch=4, queue_capacity=3, network_delay_s=0.01)
ROUTERS: dict[str, Router] = {
    "static": StaticRouter(2),
    "random": RandomRouter(),
    "shortest-queue": ShortestQueueRouter(),
    "ladder": LadderRouter(jnp.array([5.0, 2.0])),
    "deadline": DeadlineRouter(0.1),
    "priced": PricedRouter(0.2, 0.1),
}


def make_requests(n: int = 300, rate: float = 120.0, seed: int = 0) -> Requests:
    rng = np.random.default_rng(seed)
    outputs = rng.integers(1, 30, n)
    return Requests(
        tasks=("piqa", "lambada"),
        arrival_s=np.cumsum(rng.exponential(1 / rate, n)),
        task=rng.integers(0, 2, n),
        prompt_tokens=rng.integers(16, 400, n),
        output_tokens=outputs,
        deadline_s=0.1 + 0.015 * outputs,
    )


def simulate(
    requests: Requests,
    cluster: Cluster,
    profile: Profile,
    router: Router,
    *,
    tasks: tuple[Task, ...] | None = None,
    reward: Reward = Reward(),
    view: View = View(),
    **options: Any,
) -> Result:
    """In a situation that knows of the tasks what the list shows of them, unless they are given."""
    situation = Situation(profile, cluster, tasks or tasks_of(requests), reward, view)
    return besteffort.simulate(requests, situation, router, **options)


def assert_alike(one: Result, other: Result) -> None:
    for field in dataclasses.fields(Result):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if a is None or b is None:
            assert a is b, field.name
            continue
        assert a.shape == b.shape, field.name
        if np.issubdtype(a.dtype, np.floating):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-9, err_msg=field.name)
        else:
            np.testing.assert_array_equal(a, b, err_msg=field.name)


@pytest.mark.parametrize("name", ROUTERS)
def test_both_backends_give_the_same(name: str) -> None:
    requests = make_requests()
    results = [
        simulate(requests, CLUSTER, PROFILE, ROUTERS[name], reward=Reward(0.5, 0.25), seed=3, backend=backend)
        for backend in ("jax", "reference")
    ]
    assert_alike(*results)
    result = results[0]
    assert result.model.max() <= 2
    np.testing.assert_array_equal(result.arrival_s, requests.arrival_s)
    np.testing.assert_array_equal(result.rejected, np.isinf(result.latency_s))
    np.testing.assert_array_equal(result.met, result.latency_s <= requests.deadline_s)
    served = ~result.rejected
    wanted = result.completion_s[served] - result.arrival_s[served] + 0.01
    np.testing.assert_allclose(result.latency_s[served], wanted, atol=1e-12)


def test_an_idle_cluster_answers_as_the_profile_says() -> None:
    requests = Requests(("piqa",), np.array([5.0]), np.zeros(1), np.array([100]), np.array([20]), np.array([9.0]))
    result = simulate(requests, Cluster(), PROFILE, StaticRouter(2))
    prefill_s, decode_s = PROFILE.prefill_table(100)[2, 100], PROFILE.decode_table(1)[2, 1]
    assert result.admission_s[0] == 5.0
    assert result.first_token_s[0] == pytest.approx(5.0 + prefill_s, abs=1e-12)
    assert result.completion_s[0] == pytest.approx(5.0 + prefill_s + 19 * decode_s, abs=1e-12)
    assert result.reward[0] == 1.0  # the largest model is the best on this task


def test_the_seed_decides_random_choices_and_nothing_else_does() -> None:
    requests = make_requests()
    one, same, other = (simulate(requests, CLUSTER, PROFILE, RandomRouter(), seed=seed) for seed in (1, 1, 2))
    assert_alike(one, same)
    assert (one.model != other.model).any()
    assert np.bincount(one.model, minlength=3).min() > 60
    static = [simulate(requests, CLUSTER, PROFILE, StaticRouter(0), seed=seed) for seed in (1, 2)]
    assert_alike(*static)


def test_the_moment_at_which_a_list_starts_changes_nothing() -> None:
    # Gaps are what count, so an hour's delay costs no precision.
    requests = make_requests()
    later = dataclasses.replace(requests, arrival_s=requests.arrival_s + 3600.0)
    now, then = (simulate(r, CLUSTER, PROFILE, ShortestQueueRouter()) for r in (requests, later))
    np.testing.assert_array_equal(now.model, then.model)
    np.testing.assert_array_equal(now.replica, then.replica)
    np.testing.assert_allclose(now.latency_s, then.latency_s, atol=1e-9)


def test_rewards_follow_weights_and_penalties() -> None:
    requests = make_requests()
    tasks = (Task("piqa", weight=2.0), Task("lambada"))
    plain = simulate(requests, CLUSTER, PROFILE, StaticRouter(2))
    fined = simulate(requests, CLUSTER, PROFILE, StaticRouter(2), reward=Reward(miss_penalty=0.5), tasks=tasks)
    weight = np.where(requests.task == 0, 2.0, 1.0)
    np.testing.assert_array_equal(plain.model, fined.model)
    np.testing.assert_allclose(fined.reward, weight * np.where(plain.met, plain.reward, -0.5))
    assert 0 < plain.met.sum() < len(requests)


def test_what_routers_know_of_tasks_is_what_the_list_shows_unless_told() -> None:
    # The deadlines lie on a line, so the list shows it; told twice the deadline, a heuristic dares more.
    requests = make_requests(rate=60.0)
    told = {
        factor: tuple(
            Task(name, 1.0, (16, 399), (1, 29), Deadline(factor * 0.1, factor * 0.015)) for name in requests.tasks
        )
        for factor in (1, 2)
    }
    shown = simulate(requests, CLUSTER, PROFILE, DeadlineRouter(0.0))
    as_shown, relaxed = (simulate(requests, CLUSTER, PROFILE, DeadlineRouter(0.0), tasks=told[k]) for k in (1, 2))
    assert (shown.model == as_shown.model).mean() > 0.95
    assert relaxed.model.mean() > as_shown.model.mean()


def test_deadlines_that_change_do_not_hide_what_the_list_shows() -> None:
    # Half the deadlines are half as long; told so, the tasks' own are on a line as before.
    requests = make_requests()
    factor = np.where(np.arange(len(requests)) % 2, 0.5, 1.0)
    strict = dataclasses.replace(requests, deadline_s=factor * requests.deadline_s, deadline_factor=factor)
    results = [simulate(strict, CLUSTER, PROFILE, DeadlineRouter(0.0), backend=b) for b in ("jax", "reference")]
    assert_alike(*results)
    told = tuple(Task(name, 1.0, (16, 399), (1, 29), Deadline(0.1, 0.015)) for name in requests.tasks)
    as_told = simulate(strict, CLUSTER, PROFILE, DeadlineRouter(0.0), tasks=told)
    assert (results[0].model == as_told.model).mean() > 0.95
    hidden = dataclasses.replace(strict, deadline_factor=None)
    unaware = simulate(hidden, CLUSTER, PROFILE, DeadlineRouter(0.0), tasks=told)
    assert results[0].met.mean() > unaware.met.mean()


def test_the_view_sets_the_time_constant_of_the_rate() -> None:
    class ByRate:
        """The larger model while the estimated rate is low."""

        def route(self, observation: Any, params: Any, key: Any) -> Any:
            return (observation.arrival_rate < 60.0).astype("int32")

    jax.tree_util.register_pytree_node(ByRate, lambda _: ((), None), lambda *_: ByRate())
    requests = make_requests()
    slow, fast = (
        simulate(requests, CLUSTER, PROFILE, ByRate(), view=View(rate_tau_s=tau_s)).model for tau_s in (2.0, 0.05)
    )
    # From 0, an estimate with a time constant of 2 s needs about 1.4 s to reach half of 120 requests per second.
    crossing_s = requests.arrival_s[np.flatnonzero(slow == 0)[0]]
    assert 0.9 < crossing_s < 2.0
    assert np.abs(np.diff(fast)).sum() > np.abs(np.diff(slow)).sum()


def test_one_request_and_tasks_without_requests_will_do() -> None:
    requests = Requests(("piqa", "lambada"), np.zeros(1), np.ones(1), np.ones(1), np.ones(1), np.ones(1))
    result = simulate(requests, Cluster(replicas=1, max_batch=1, queue_capacity=0), PROFILE, StaticRouter(0))
    assert result.replica.tolist() == [0]
    assert result.met.tolist() == [True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "numpy"}, "Unknown backend `numpy`; choose `jax` or `reference`"),
        (
            {"tasks": (Task("lambada"), Task("piqa"))},
            "The list's tasks are piqa, lambada, the situation's lambada, piqa; give",
        ),
        ({"tasks": (Task("piqa"), Task("poetry"))}, "has no task `poetry`"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(besteffort, "simulate", inspect.unwrap(besteffort.simulate))  # without checks of types
    with pytest.raises(InputError, match=message):
        simulate(make_requests(n=3), CLUSTER, PROFILE, StaticRouter(0), **change)


def test_a_list_of_tasks_that_the_profile_lacks_is_refused() -> None:
    requests = dataclasses.replace(make_requests(n=3), tasks=("piqa", "poetry"))
    with pytest.raises(InputError, match="has no task `poetry`"):
        simulate(requests, CLUSTER, PROFILE, StaticRouter(0))
