"""A list played to the engine: everybody's tokens and times, by the clock and the names of the simulator."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest
from tiny_opt import PROMPTS

from besteffort.errors import InputError
from besteffort.observation import Observation, default_features
from besteffort.opt.driver import Played, choose_by_policy, drive
from besteffort.opt.engine import Engine
from besteffort.opt.generation import generate
from besteffort.opt.runtime import Buckets, Runtime
from besteffort.opt.weights import Model, random_model
from besteffort.policy import Policy
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality
from besteffort.situation import Cluster, Situation, Task, Tenant
from besteffort.workload.requests import Requests

BUCKETS = Buckets((2,), (16,), (32,))
SOURCE = Source("measured", "a test")
N = 24


@pytest.fixture(scope="module")
def models(model: Model) -> dict[str, Model]:
    return {"one": model, "two": dataclasses.replace(random_model(model.config, seed=9), name="two")}


@pytest.fixture(scope="module")
def situation() -> Situation:
    costs = tuple(ModelProfile(name, ((1, 0.01),), ((1, 0.01),)) for name in ("one", "two"))
    tasks = tuple(TaskQuality(name, "m", "s", (50.0, 100.0)) for name in ("a", "b"))
    profile = Profile(1, "tiny", "d", costs, tasks, Provenance(SOURCE, SOURCE, SOURCE, SOURCE))
    return Situation(profile, Cluster(1, 2, 30), (Task("a", weight=2.0), Task("b")))


@pytest.fixture(scope="module")
def requests() -> Requests:
    prompts = np.array([len(PROMPTS[i % 9]) for i in range(N)])
    deadlines = np.where(np.arange(N) % 5 == 0, 1e-9, 60.0)
    return Requests(("a", "b"), np.arange(N) * 0.003, np.arange(N) % 2, prompts, 1 + np.arange(N) % 7, deadlines)


def play(models, requests, situation, choose, prompts=None) -> Played:
    async def run() -> Played:
        cluster = situation.cluster
        async with Engine(
            models,
            max_batch=cluster.max_batch,
            queue_capacity=cluster.queue_capacity,
            context=32,
            buckets=BUCKETS,
        ) as engine:
            await engine.warm_up()
            return await drive(engine, requests, prompts or [PROMPTS[i % 9] for i in range(N)], situation, choose)

    return asyncio.run(asyncio.wait_for(run(), 300))


def test_the_record_is_what_the_engine_did(models: dict[str, Model], requests: Requests, situation: Situation) -> None:
    seen: list[Observation] = []

    def choose(index: int, observation: Observation) -> int:
        seen.append(observation)
        return index % 3 % 2

    played = play(models, requests, situation, choose)
    result = played.result
    np.testing.assert_array_equal(result.model, np.arange(N) % 3 % 2)
    assert not result.rejected.any()
    runtimes = [Runtime(model, 2, 32, BUCKETS) for model in models.values()]
    for index, answer in enumerate(played.answers):
        alone = generate(runtimes[result.model[index]], [PROMPTS[index % 9]], 1 + index % 7, stop_tokens=())
        assert list(answer) == alone[0]
    assert (played.lateness_s >= 0).all()
    arrived = requests.arrival_s + played.lateness_s
    assert (arrived + played.routing_s <= result.admission_s).all()
    assert (result.admission_s < result.first_token_s).all()
    assert ((result.first_token_s < result.completion_s) == (requests.output_tokens > 1)).all()
    np.testing.assert_allclose(result.latency_s, result.completion_s - requests.arrival_s)
    np.testing.assert_array_equal(result.met, np.arange(N) % 5 != 0)
    worth = np.where(result.model == 1, 1.0, 0.5) * np.where(result.task == 0, 2.0, 1.0)
    np.testing.assert_allclose(result.reward, worth * result.met)

    assert [observation.task for observation in seen] == requests.task.tolist()
    assert seen[0].arrival_rate == 0.0
    assert seen[-1].arrival_rate > 0.0
    for index, observation in enumerate(seen):
        left = (result.completion_s[:index] <= arrived[index]).sum()
        # Between the last iteration's end and its tokens' being handed out, a request still counts.
        assert abs(observation.batch_sizes.sum() - (index - left)) <= 4
        np.testing.assert_array_equal(observation.batch_sizes, observation.instance_batch_sizes[0])


def test_who_finds_no_room_is_rejected(models: dict[str, Model], requests: Requests, situation: Situation) -> None:
    narrow = dataclasses.replace(situation, cluster=Cluster(1, 2, 0))
    together = dataclasses.replace(requests, arrival_s=np.zeros(N))
    played = play(models, together, narrow, lambda index, seen: 1)
    rejected = played.result.rejected
    assert 0 < rejected.sum() < N
    assert [answer == () for answer in played.answers] == rejected.tolist()
    assert np.isinf(played.result.latency_s[rejected]).all()
    assert (played.result.reward[rejected] == 0).all()


def test_policies_choose_as_in_the_simulator(situation: Situation) -> None:
    rng = np.random.default_rng(0)
    features = default_features(2, 2, 1, 2, 100.0, ("task", "batch_sizes", "arrival_rate", "smallest_batch"))
    weights = ((rng.normal(size=(7, 8)), np.zeros(8)), (rng.normal(size=(8, 2)), np.zeros(2)))
    view = dataclasses.replace(situation.view, features=tuple(feature.name for feature in features))
    situation = dataclasses.replace(situation, view=view)
    policy = Policy(situation, features, weights)
    by_policy = choose_by_policy(policy, situation)
    chosen = set()
    for index in range(30):
        sizes = rng.integers(0, 5, 2)
        seen = Observation(index % 2, sizes, float(rng.uniform(0, 300)), sizes[None], 0.1, np.nan)
        expected = policy.decide(
            task="ab"[index % 2],
            batch_sizes=sizes.tolist(),
            arrival_rate=seen.arrival_rate,
            smallest_batch=sizes.tolist(),
        )
        assert policy.models[by_policy(index, seen)] == expected
        chosen.add(expected)
    assert chosen == {"one", "two"}
    for name in ("since_change_s", "prompt_tokens", "tenant_weight"):
        features = default_features(2, 2, 1, 2, 9.0, ("task", name))
        unseen = dataclasses.replace(
            situation,
            view=dataclasses.replace(view, features=("task", name)),
            tenants=(Tenant("gold", weight=3.0), Tenant("lead")),
        )
        blind = Policy(unseen, features, ((np.zeros((3, 2)), np.zeros(2)),))
        with pytest.raises(InputError, match=f"reads `{name}`, which the engine does not report"):
            choose_by_policy(blind, situation)
    with pytest.raises(InputError, match="trained for the tasks a, b in this order, not b, a"):
        choose_by_policy(policy, dataclasses.replace(situation, tasks=situation.tasks[::-1]))
    profile = dataclasses.replace(situation.profile, models=situation.profile.models[::-1])
    swapped = dataclasses.replace(policy, situation=dataclasses.replace(situation, profile=profile))
    with pytest.raises(InputError, match="trained for the models two, one in this order, not one, two"):
        choose_by_policy(swapped, situation)
    slow = dataclasses.replace(situation, view=dataclasses.replace(view, rate_tau_s=9.0))
    with pytest.raises(InputError, match=r"rate estimate over 9 s, but `view.rate_tau_s` of the situation is 2"):
        choose_by_policy(dataclasses.replace(policy, situation=slow), situation)


def test_what_does_not_belong_together(models: dict[str, Model], requests: Requests, situation: Situation) -> None:
    def first(index: int, seen: Observation) -> int:
        return 0

    with pytest.raises(InputError, match="The engine serves two, one, the profile is of one, two"):
        play(dict(reversed(models.items())), requests, situation, first)
    with pytest.raises(InputError, match="The prompts do not have the lengths"):
        play(models, requests, situation, first, [[3]] * N)
    two = dataclasses.replace(situation, cluster=Cluster(2, 2, 30))
    with pytest.raises(InputError, match="The engine is one replica with `max_batch` 2 and `queue_capacity` 30"):
        play(models, requests, two, first)
    profile = situation.profile
    chunked = tuple(dataclasses.replace(model, chunk_tokens=9) for model in profile.models)
    parts = dataclasses.replace(situation, profile=dataclasses.replace(profile, models=chunked))
    with pytest.raises(InputError, match="The engine's `chunk_tokens` is not set; every model of the situation's pro"):
        play(models, requests, parts, first)
    with pytest.raises(ZeroDivisionError):
        play(models, requests, situation, lambda index, seen: 1 // 0)
