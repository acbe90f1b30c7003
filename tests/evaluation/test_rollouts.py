from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.autoscaler import Autoscaler
from besteffort.diagnosis.wrong_profiles import perturb_latency, perturb_quality
from besteffort.errors import InputError
from besteffort.evaluation import rollouts
from besteffort.evaluation.metrics import gpu_seconds
from besteffort.evaluation.rollouts import Rollout, mean_rewards, play_rollouts, play_routers
from besteffort.observation import Observation, default_features
from besteffort.pools import Pool, ReplicaEvent
from besteffort.routers import DeadlineRouter, LearnedRouter, PricedRouter, RandomRouter, StaticRouter
from besteffort.routers.value import ValueRouter
from besteffort.runs.config import load_situation
from besteffort.simulator.build import build
from besteffort.simulator.result import Result
from besteffort.simulator.simulate import simulate
from besteffort.simulator.types import EnvParams
from besteffort.situation import Cluster, Situation
from besteffort.workload.arrivals import Poisson
from besteffort.workload.deadline_factors import deadline_factors
from besteffort.workload.requests import Requests
from besteffort.workload.sample import sample_lists, sample_workload
from besteffort.workload.synthetic_workload import synthetic
from tests.made_up import FewestPromptTokens, make_rule

N = 300
SCALER = Autoscaler(interval_s=0.25, in_flight=4.0, down_window_s=1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Believer:
    """A router that takes parameters of its own for granted, whatever it is given."""

    router: ValueRouter
    params: Any
    estimates: ClassVar[bool] = True

    def route(self, observation: Observation, params: EnvParams, key: jax.Array) -> jax.Array:
        return self.router.route(observation, self.params, key)


@pytest.fixture(scope="module")
def situation() -> Situation:
    return load_situation("paper")


@pytest.fixture(scope="module")
def lists(situation: Situation) -> list[Requests]:
    workloads = [synthetic(situation, Poisson(rate)) for rate in (100.0, 400.0)]
    return sample_lists(workloads, situation.task_names, N, [5, 6])


def test_together_as_alone(situation: Situation, lists: list[Requests]) -> None:
    """Against the reference, one router and one list at a time: what is planned in float32 differs by rounding only."""
    routers = {"small": StaticRouter(0), "deadline": DeadlineRouter(0.0)}
    played = play_routers(situation, lists, {name: [router] * len(lists) for name, router in routers.items()})
    for name, router in routers.items():
        for index in (0, 3):
            alone = simulate(lists[index], situation, router, backend="reference" if index else "jax")
            assert np.mean(played[name].model[index] == alone.model) > 0.98
            if (played[name].model[index] == alone.model).all():
                np.testing.assert_allclose(played[name].latency_s[index], alone.latency_s, rtol=1e-4, atol=1e-5)
                np.testing.assert_array_equal(played[name].replica[index], alone.replica)
                assert played[name].reward[index].mean() == pytest.approx(alone.reward.mean(), abs=1e-3)


def test_each_list_has_its_own_router(situation: Situation, lists: list[Requests]) -> None:
    played = play_routers(situation, lists, {"mixed": [StaticRouter(index % 3) for index in range(4)]})["mixed"]
    assert [set(row.tolist()) for row in played.model] == [{0}, {1}, {2}, {0}]
    assert played.reward.shape == (4, N)


def test_worlds_are_played_as_they_are_and_routed_as_believed(situation: Situation, lists: list[Requests]) -> None:
    """Lanes of one program against lists played alone."""
    profile, view = situation.profile, situation.view
    actual_situations = [
        dataclasses.replace(situation, profile=perturb_latency(profile, 0.3, "slower")),
        dataclasses.replace(situation, view=dataclasses.replace(view, rate_lag=10, batch_refresh_s=0.05)),
        situation,
        dataclasses.replace(
            situation,
            profile=perturb_quality(profile, 0.3, seed=1),
            cluster=dataclasses.replace(situation.cluster, network_delay_s=0.02),
        ),
    ]
    routers = {"small": StaticRouter(0), "priced": PricedRouter(0.1, 0.2)}
    each = {name: [router] * len(lists) for name, router in routers.items()}
    played = play_routers(situation, lists, each, actual_situations=actual_situations)
    as_known = play_routers(situation, lists, each)
    for index, (requests, actual) in enumerate(zip(lists, actual_situations, strict=True)):
        alone = simulate(requests, actual, routers["priced"], assumed=situation)
        assert np.mean(played["priced"].model[index] == alone.model) > 0.98
        assert played["priced"].reward[index].mean() == pytest.approx(alone.reward.mean(), abs=5e-3)
        assert played["priced"].met[index].mean() == pytest.approx(alone.met.mean(), abs=5e-3)
    # Where the actual situation is the assumed one, other rollouts in the program change nothing.
    for field in dataclasses.fields(Result):
        one, other = (getattr(each["priced"].lanes(2), field.name) for each in (played, as_known))
        np.testing.assert_array_equal(one, other)
    assert played["small"].latency_s[0].mean() > 1.2 * as_known["small"].latency_s[0].mean()


def test_rollouts_may_assume_different_situations(situation: Situation, lists: list[Requests]) -> None:
    """Each as where all assume its own."""
    slower = dataclasses.replace(situation, profile=perturb_latency(situation.profile, 0.3, "slower"))
    router = PricedRouter(0.1, 0.2)
    rollouts = [
        Rollout("priced", row, router, situation, assumed) for assumed in (situation, slower) for row in range(2)
    ]
    together = mean_rewards(situation, lists, rollouts).reshape(2, 2)
    for assumed, found in zip((situation, slower), together, strict=True):
        alone = [Rollout("priced", row, router, actual=situation) for row in range(2)]
        np.testing.assert_allclose(found, mean_rewards(assumed, lists, alone), rtol=1e-6)
    assert (np.abs(together[0] - together[1]) > 1e-4).all()


def test_what_a_rollout_assumes_is_what_its_router_takes_for_granted(
    situation: Situation, lists: list[Requests]
) -> None:
    wrong = dataclasses.replace(
        situation,
        profile=perturb_latency(situation.profile, 0.6, "slower"),
        tasks=tuple(dataclasses.replace(task, output_tokens=(1, 90)) for task in situation.tasks),
    )
    requests = lists[2].part(slice(100), 0.0)
    _, params = build(wrong, None, history=1, longest_prompt=int(requests.prompt_tokens.max()), estimates=True)
    router = ValueRouter(jax.tree.map(jnp.asarray, make_rule(3)))
    each = [
        Rollout("it", 0, router),
        Rollout("it", 0, router, assumed=wrong),
        Rollout("wrapped", 0, Believer(router, params)),
        Rollout("it", 0, router, actual=wrong, assumed=situation),
        Rollout("it", 0, router, actual=wrong),
    ]
    indices, results = zip(*play_rollouts(situation, [requests], each), strict=True)
    order = np.argsort(np.concatenate(indices))
    model, reward = (
        np.concatenate([getattr(result, name) for result in results])[order] for name in ("model", "reward")
    )
    plain, assumed, wrapped, believed, by_default = model
    np.testing.assert_array_equal(assumed, wrapped)
    np.testing.assert_array_equal(reward[1], reward[2])
    assert (assumed != plain).any()
    # Whoever is not told otherwise assumes what all have in common, wherever it is played.
    np.testing.assert_array_equal(believed, by_default)


def test_blocks_of_lanes_are_what_all_together_are(
    situation: Situation, lists: list[Requests], monkeypatch: pytest.MonkeyPatch
) -> None:
    routers = {"mixed": [StaticRouter(index % 3) for index in range(4)], "random": [RandomRouter()] * 4}
    whole = play_routers(situation, lists, routers)
    monkeypatch.setattr(rollouts, "_LANES", 3)
    each_rollout = [Rollout(name, row, router) for name, each in routers.items() for row, router in enumerate(each)]
    blocks = list(play_rollouts(situation, lists, each_rollout))
    assert [len(block) for block, _ in blocks] == [3, 1, 3, 1]
    assert [each_rollout[index] for block, _ in blocks for index in block] == each_rollout
    for name, start in (("mixed", 0), ("random", 4)):
        for field in ("model", "latency_s", "reward", "arrival_s"):
            found = np.concatenate([getattr(result, field) for _, result in blocks])[start : start + 4]
            np.testing.assert_array_equal(found, getattr(whole[name], field))


def test_lanes_of_all_kinds_are_what_blocks_of_each_are(
    situation: Situation, lists: list[Requests], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As accelerators play them."""
    routers = {
        "static": [StaticRouter(index % 3) for index in range(4)],
        "random": [RandomRouter()] * 4,
        "priced": [PricedRouter(0.1 * index) for index in range(4)],
        "fewest": [FewestPromptTokens()] * 4,
    }
    apart = play_routers(situation, lists, routers)
    monkeypatch.setattr(rollouts, "_mixes_lanes", lambda: True)
    mixed = play_routers(situation, lists, routers)
    for name, result in apart.items():
        for field in ("model", "replica", "latency_s", "reward"):
            np.testing.assert_array_equal(getattr(mixed[name], field), getattr(result, field))


def test_calls_with_one_panel_share_their_programs(situation: Situation, lists: list[Requests]) -> None:
    """Whatever their routers, how many, and the length of their lists; what is played does not depend on the panel."""
    panel = [StaticRouter(0), PricedRouter(0.1), FewestPromptTokens()]
    short = [requests.part(slice(0, 200), 0.0) for requests in lists]
    alone = play_routers(situation, short, {"priced": [PricedRouter(0.3)] * 4})["priced"]
    play_routers(situation, lists, {"static": [StaticRouter(1)] * 4}, panel=panel)
    programs = rollouts._play_lanes._cache_size()
    played = play_routers(situation, short, {"priced": [PricedRouter(0.3)] * 4}, panel=panel)["priced"]
    mean_rewards(situation, lists[:1], [Rollout("static", 0, StaticRouter(2))], panel=panel)
    assert rollouts._play_lanes._cache_size() == programs
    for field in ("model", "replica", "latency_s", "reward"):
        np.testing.assert_array_equal(getattr(played, field), getattr(alone, field))


def test_routers_of_one_name_differ_in_numbers_only(situation: Situation, lists: list[Requests]) -> None:
    with pytest.raises(InputError, match="a name of its own"):
        play_routers(situation, lists, {"mixed": [StaticRouter(0), RandomRouter(), StaticRouter(0), StaticRouter(1)]})


def test_lists_keep_the_factors_on_their_deadlines(situation: Situation) -> None:
    factors = deadline_factors([1.0, 0.25], [0.0, 0.5], 1.0)
    listed = sample_lists([synthetic(situation, Poisson(100.0), factors=factors)], situation.task_names, N, [5])
    played = play_routers(situation, listed, {"deadline": [DeadlineRouter(0.0)]})["deadline"]
    alone = simulate(listed[0], situation, DeadlineRouter(0.0))
    assert np.mean(played.model[0] == alone.model) > 0.98
    assert played.model[0][listed[0].deadline_factor == 0.25].mean() < played.model[0].mean() - 0.3


def test_lists_of_different_length_are_refused(situation: Situation, lists: list[Requests]) -> None:
    short = sample_workload(synthetic(situation, Poisson(1.0)), situation.task_names, 7, 0)
    with pytest.raises(InputError, match=r"\[7, 300\] requests; give lists of one length"):
        play_routers(situation, [lists[0], short], {"small": [StaticRouter(0)] * 2})


def test_networks_that_differ_are_played_apart_with_the_same_outcome(
    situation: Situation, lists: list[Requests], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = default_features(tasks=4, pools=3, replicas=4, max_batch=32, typical_rate=300.0, names=("batch_sizes",))
    random = np.random.default_rng(0)

    def network() -> LearnedRouter:
        sizes = ((3, 64), (64, 64), (64, 3))
        weights = tuple((jnp.asarray(random.normal(size=size)), jnp.zeros(size[1])) for size in sizes)
        return LearnedRouter(weights, features)

    learned = [network(), network()] * 2
    routers = {"small": [StaticRouter(0)] * 4, "learned": learned, "priced": [PricedRouter(0.1)] * 4}
    each_rollout = [Rollout(name, row, router) for name, each in routers.items() for row, router in enumerate(each)]
    assert [program.tolist() for program in rollouts._programs(each_rollout, mixed=True)] == [
        [4, 5, 6, 7],
        [0, 1, 2, 3, 8, 9, 10, 11],
    ]
    assert [program.tolist() for program in rollouts._programs(each_rollout, mixed=False)] == [list(range(12))]
    shared = [rollout._replace(router=learned[0]) if rollout.kind == "learned" else rollout for rollout in each_rollout]
    assert [program.tolist() for program in rollouts._programs(shared, mixed=True)] == [list(range(12))]
    apart = play_routers(situation, lists, routers)
    monkeypatch.setattr(rollouts, "_MANY", 10_000)
    together = play_routers(situation, lists, routers)
    assert list(apart) == list(together) == list(routers)
    assert (together["learned"].model[0] != together["learned"].model[1]).any()
    for name, result in together.items():
        np.testing.assert_array_equal(apart[name].model, result.model)
        np.testing.assert_allclose(apart[name].reward, result.reward, rtol=1e-5)


def test_reading_the_requests_in_flight_changes_nothing_for_others(situation: Situation, lists: list[Requests]) -> None:
    others = {"deadline": [DeadlineRouter(0.1)] * 4, "random": [RandomRouter()] * 4}
    reading = {"fewest": [FewestPromptTokens()] * 4}
    each = others | reading
    each_rollout = [Rollout(name, row, router) for name, routers in each.items() for row, router in enumerate(routers)]
    assert [program.tolist() for program in rollouts._programs(each_rollout, mixed=True)] == [
        [8, 9, 10, 11],
        list(range(8)),
    ]
    together = play_routers(situation, lists, each)
    assert list(together) == list(each)
    alone = play_routers(situation, lists, others) | play_routers(situation, lists, reading)
    for name, result in alone.items():
        for field in dataclasses.fields(Result):
            np.testing.assert_array_equal(getattr(together[name], field.name), getattr(result, field.name))
    one = simulate(lists[2], situation, FewestPromptTokens())
    assert np.mean(together["fewest"].model[2] == one.model) > 0.98
    assert len(set(one.model.tolist())) == 3


def test_replicas_come_and_go_as_alone(situation: Situation) -> None:
    """Against the reference, where replicas fail, start and are scaled: losses and rejections, too."""
    pools = (
        Pool("large", "opt-6.7b", replicas=2, events=(ReplicaEvent(1.0, 0, "fail"), ReplicaEvent(1.2, 1, "fail"))),
        Pool("middle", "opt-1.3b", replicas=3, start_s=0.3, autoscaler=SCALER),
        Pool("small", "opt-125m", events=(ReplicaEvent(0.5, 0, "start"),)),
    )
    alive = dataclasses.replace(situation, cluster=Cluster(), pools=pools)
    requests = sample_lists([synthetic(alive, Poisson(150.0))], alive.task_names, N, [5, 6])
    routers = {"large": StaticRouter(0), "middle": StaticRouter(1), "deadline": DeadlineRouter(0.0)}
    played = play_routers(alive, requests, {name: [router] * 2 for name, router in routers.items()})
    for name, router in routers.items():
        for lane, one in enumerate(requests):
            alone, found = simulate(one, alive, router, backend="reference"), played[name].lanes(lane)
            np.testing.assert_allclose(found.lost.mean(), alone.lost.mean(), atol=0.02)
            np.testing.assert_allclose(found.rejected.mean(), alone.rejected.mean(), atol=0.02)
            np.testing.assert_allclose(found.reward.mean(), alone.reward.mean(), atol=0.02)
            assert np.isinf(found.latency_s[found.lost]).all()
            np.testing.assert_allclose(
                gpu_seconds(found, alive.fleet), gpu_seconds(alone, alive.fleet), rtol=0.05, atol=0.05
            )
    assert played["large"].lost.any()
    assert played["large"].rejected.any()


def test_where_one_fails_nobody_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "cores", lambda: 2)
    released, begun = threading.Event(), set()

    def play(item: int) -> None:
        begun.add(item)
        if item == 0:
            raise InputError("It failed.")
        released.wait(60)

    start_s = time.monotonic()
    with pytest.raises(InputError, match="It failed"):
        list(rollouts._side_by_side(play, range(10)))
    assert time.monotonic() - start_s < 30
    released.set()
    time.sleep(0.1)
    assert begun <= {0, 1, 2}  # what was queued does not begin
