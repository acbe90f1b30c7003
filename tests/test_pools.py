"""Pools, where their replicas are, and mistakes in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.observation import Observation, default_features, encode
from besteffort.policy import describe, load_policy, save_policy
from besteffort.pools import DRAIN, FAIL, START, Fleet, Layout, Pool, ReplicaEvent, What, least_loaded, smallest
from besteffort.profile import Profile, load_profile, save_profile
from besteffort.runs.config import load_situation
from besteffort.runs.untrained import default_policy
from besteffort.situation import Cluster, Situation, Task
from tests.simulator.cases import make_profile


def profile_of(name: str, *, slowdown: float = 1.0, seconds: float = 1.0) -> Profile:
    """Three models, model m of which takes (m + 1) x `seconds` for whatever it does."""
    each = seconds * np.arange(1.0, 4.0)[:, None]
    factors = np.full((3, 3), slowdown)
    np.fill_diagonal(factors, 1.0)
    made = make_profile(
        np.repeat(each, 4, axis=1),
        np.repeat(each, 8, axis=1),
        quality_percent=np.array([[20.0, 40.0, 80.0]]),
        slowdown=factors,
    )
    return dataclasses.replace(made, name=name)


FAST, SLOW = profile_of("fast", slowdown=1.5), profile_of("slow", slowdown=2.0, seconds=3.0)


def fleet(*pools: Pool) -> Fleet:
    return Fleet(pools, FAST, (SLOW,))


def test_tables_and_qualities_are_those_of_the_pools_model_on_its_hardware() -> None:
    found = fleet(
        Pool("a", "model2", max_batch=2), Pool("b", "model0", "slow", max_batch=4), Pool("c", "model2", "slow")
    )
    np.testing.assert_array_equal(found.prefill_table(8)[:, 1], [3.0, 3.0, 9.0])
    assert found.decode_table().shape == (3, 33)
    np.testing.assert_array_equal(found.full_decode_s(), [3.0, 3.0, 9.0])
    np.testing.assert_array_equal(found.quality_table(("task0",)), [[1.0, 0.25, 1.0]])
    np.testing.assert_array_equal(found.model, [2, 0, 2])
    np.testing.assert_array_equal(found.largest, [True, False, True])


def test_what_tables_do_not_reach_is_told() -> None:
    task = Task("task0", prompt_tokens=(1, 9), output_tokens=(1, 5))
    pools = (Pool("a", "model0", max_batch=4), Pool("b", "model1", max_batch=5), Pool("c", "model2", max_batch=2))
    situation = Situation(FAST, Cluster(), (task,), pools=pools)
    assert situation.beyond_tables() == (
        "Profile fast: the decode table of b ends at 4 requests, batches at 5; the prefill table of a ends at 8 "
        "tokens, prompts at 9; beyond, times go on as between the last two points."
    )
    within = dataclasses.replace(task, prompt_tokens=(1, 8))
    assert not Situation(FAST, Cluster(), (within,), pools=(pools[0], pools[2])).beyond_tables()


def test_models_slow_each_other_down_on_a_shared_gpu_only() -> None:
    found = fleet(
        Pool("a", "model0", replicas=2, gpus=(0, 1)),
        Pool("b", "model1", replicas=1, gpus=(1,)),
        Pool("c", "model2", replicas=2),
        Pool("d", "model1", "slow", replicas=1, gpus=(7,)),
        Pool("e", "model2", "slow", replicas=1, gpus=(7,)),
    )
    expected = np.ones((5, 5))
    expected[0, 1] = expected[1, 0] = 1.5
    expected[3, 4] = expected[4, 3] = 2.0
    np.testing.assert_array_equal(found.slowdown, expected)
    assert found.gpus == 5
    # GPUs 0, 1 and 7; those of c are their own. Whoever slows another down shares its row, and nobody else's.
    assert found.layout.gpus == ((0, 1), (1,), (8, 9), (7,), (7,))
    assert found.layout.rows == ((0, 1), (1,), (0, 1), (0,), (0,))


def test_a_gpu_has_a_row_of_its_own_where_models_of_another_would_slow_it_down() -> None:
    pools = [Pool("a", "x", replicas=2, gpus=(0, 1)), Pool("b", "y", replicas=2, gpus=(1, 2))]
    layout = Layout.of(pools, np.array([[1.0, 2.0], [1.0, 1.0]]))
    assert layout.rows == ((0, 1), (1, 2))
    np.testing.assert_array_equal(layout.placed, [[True, False], [True, True], [False, True]])
    assert Layout.of(pools, np.ones((2, 2))).rows == ((0, 1), (1, 2))  # b's first replica is on GPU 1, with a's second


def test_a_cluster_is_one_pool_per_model() -> None:
    situation = Situation(
        FAST, Cluster(replicas=3, max_batch=4, queue_capacity=2, network_delay_s=0.5), (Task("task0"),)
    )
    stated = Situation(
        FAST,
        Cluster(),
        (Task("task0"),),
        pools=tuple(Pool(f"model{m}", f"model{m}", None, 3, 4, 2, 0.5, (0, 1, 2)) for m in range(3)),
    )
    assert situation.fleet.pools == stated.fleet.pools
    assert situation.fleet.uniform
    assert situation.fleet.gpus == 3
    np.testing.assert_array_equal(situation.fleet.slowdown, FAST.slowdown)
    np.testing.assert_array_equal(situation.fleet.layout.placed, np.ones((3, 3), bool))


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": 2, "gpus": (0, 1)},
        {"max_batch": 3},
        {"queue_capacity": 1},
        {"network_delay_s": 0.25},
        {"model": "model0", "gpus": None},
    ],
)
def test_pools_that_differ_are_not_uniform(change: dict[str, Any]) -> None:
    pools = Cluster(replicas=3, max_batch=4, queue_capacity=2).pools(FAST.model_names)
    assert Fleet(pools, FAST).uniform
    assert not Fleet((*pools[:2], dataclasses.replace(pools[2], **change)), FAST).uniform


def test_load_and_peak_go_by_the_largest_model_that_is_served() -> None:
    pools = (Pool("a", "model1", replicas=2), Pool("b", "model0", replicas=7), Pool("c", "model1", "slow", replicas=3))
    task = Task("task0", prompt_tokens=(1, 8), output_tokens=(1, 3))
    situation = Situation(FAST, Cluster(), (task,), pools=pools, hardware=(SLOW,))
    # A prefill, and one decode on average, which 32 share.
    each_s = np.array([2.0, 1.0, 6.0]) * (1 + 1 / 32)
    np.testing.assert_allclose(situation.capacity(), np.array([2, 7, 3]) / each_s)
    assert situation.unit_load == pytest.approx((2 / 2 + 3 / 6) / (1 + 1 / 32))
    np.testing.assert_array_equal(situation.peak_rewards, [0.5])


def test_the_balancer_takes_the_first_of_the_smallest_that_are_there() -> None:
    sizes = np.array([[2, 0, 1], [1, 0, 1], [1, 0, 0]])
    there = np.array([[True, False, True], [True, True, True], [True, True, False]])
    assert least_loaded(sizes).tolist() == [1, 0, 2]
    assert least_loaded(sizes, there).tolist() == [1, 1, 0]
    assert smallest(sizes, there).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("pools", "sentence"),
    [
        (lambda: [Pool("a", "model0", replicas=0)], "Pool `a`: `replicas` is 0; give at least 1"),
        (lambda: [Pool("a", "model0", network_delay_s=-0.1)], "Pool `a`: `network_delay_s` is -0.1; give at least 0"),
        (lambda: [Pool("a", "gpt")], "Pool `a`: profile `fast` has no model `gpt`; choose from model0, model1, model2"),
        (lambda: [Pool("a", "model0", "tpu")], "Pool `a`: there is no hardware profile `tpu`; choose from fast, slow"),
        (lambda: [Pool("a", "model0"), Pool("a", "model1")], "Pool `a` is listed twice; give each a name of its own"),
        (lambda: [Pool("a", "model0", replicas=2, gpus=(1,))], "`gpus` lists 1 for 2 replicas; give one for each"),
        (lambda: [Pool("a", "model0", replicas=2, gpus=(1, 1))], r"`gpus` is \[1, 1\]; list each once, ascending"),
        (
            lambda: [Pool("a", "model0", gpus=(3,)), Pool("b", "model1", "slow", gpus=(3,))],
            "Pools `a` and `b` share GPU 3, but differ in `hardware`; give them GPUs of their own",
        ),
        (
            lambda: [Pool("a", "model0", gpus=(3,)), Pool("b", "model0", gpus=(3,))],
            "GPU 3 has model `model0` twice, of 2 pools; put each replica of a model on a GPU of its own",
        ),
        (lambda: [Pool("", "model0")], "`pools` has the name ``; give printable characters"),
    ],
)
def test_a_mistake_is_one_sentence(pools: Callable[[], list[Pool]], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        fleet(*pools())
    assert str(caught.value).endswith(".")


def test_profiles_that_count_the_cache_differently_are_refused() -> None:
    models = tuple(dataclasses.replace(model, cache_tokens=100) for model in FAST.models)
    one = dataclasses.replace(FAST, models=models)
    other = dataclasses.replace(one, name="slow", cache_output_share=0.5)
    Fleet((Pool("a", "model0"), Pool("b", "model0")), one, (other,))
    with pytest.raises(InputError, match="differ in `cache_output_share`; give them the same"):
        Fleet((Pool("a", "model0"), Pool("b", "model0", "slow")), one, (other,))


FILE = """\
profile: opt-a100
tasks: [{name: piqa}]
pools:
- {name: far, model: opt-1.3b, hardware: HARDWARE, replicas: 2, max_batch: 8, queue_capacity: 3, network_delay_s: 0.02}
- {name: near, model: opt-125m}
"""


def stated(tmp_path: Path, text: str) -> Situation:
    path = tmp_path / "pools.yaml"
    path.write_text(text)
    return load_situation(path)


def test_a_file_states_pools(tmp_path: Path) -> None:
    situation = stated(tmp_path, FILE.replace("HARDWARE", "opt-a100"))
    assert situation.fleet.names == ("far", "near")
    assert situation.pools[0] == Pool("far", "opt-1.3b", "opt-a100", 2, 8, 3, 0.02)
    assert situation.hardware == ()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("HARDWARE", "tpu", "tpu"),
        ("opt-1.3b", "gpt", "no model `gpt`"),
        ("replicas: 2", "replicas: 0", "replicas"),
        ("network_delay_s: 0.02", "network_delay_s: -1", "network_delay_s"),
        ("model: opt-125m", "models: opt-125m", "model"),
        ("pools:", "cluster: {replicas: 2}\npools:", "both `cluster` and `pools`; state one of them"),
        ("max_batch: 8", "max_batch: 65536", "lower one of these, to 1,048,576 places at most"),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    text = FILE.replace(old, new).replace("HARDWARE", "opt-a100")
    text = text.replace("replicas: 2,", "replicas: 9,") if "65536" in new else text
    with pytest.raises(InputError, match=sentence) as caught:
        stated(tmp_path, text)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_pools_survive_a_policy_file(tmp_path: Path) -> None:
    situation = Situation(
        FAST,
        Cluster(),
        (Task("task0"),),
        pools=(Pool("a", "model0", "slow", 2, 8, 3, 0.25, (0, 4)), Pool("b", "model2")),
        hardware=(SLOW,),
    )
    policy = default_policy(situation)
    save_policy(policy, tmp_path / "policy.safetensors")
    read = load_policy(tmp_path / "policy.safetensors", situation)
    assert read.situation == policy.situation
    assert read.models == ("a", "b")
    other = dataclasses.replace(situation, pools=situation.pools[::-1])
    with pytest.raises(InputError, match="was trained for the pools a, b in this order, not b, a"):
        load_policy(tmp_path / "policy.safetensors", other)


def test_a_policy_file_of_a_cluster_says_nothing_of_pools() -> None:
    policy = default_policy(Situation(FAST, Cluster(), (Task("task0"),)))
    assert {"pools", "hardware"}.isdisjoint(describe(policy)["situation"])


def test_batch_sizes_are_encoded_by_what_each_pool_holds() -> None:
    features = default_features(
        1, 2, np.array([4, 1]), np.array([8, 2]), 10.0, names=("batch_sizes", "smallest_batch", "work")
    )
    assert [feature.scale for feature in features] == [(4.0, 0.25), (8.0, 2.0), (0.4, 0.1)]
    sizes = np.array([[2, 1], [5, 0], [3, 0], [6, 0]])
    there = np.array([[True, True], [True, False], [True, False], [True, False]])
    observation = Observation(0, sizes.sum(0), 0.0, sizes, 1.0, 0.0, takes=there)
    np.testing.assert_array_equal(encode(observation, features[:2]), [4.0, 4.0, 0.25, 0.5])
    policy = default_policy(
        Situation(
            FAST, Cluster(), (Task("task0"),), pools=(Pool("a", "model0", replicas=4, max_batch=8), Pool("b", "model1"))
        )
    )
    view = dataclasses.replace(policy.situation.view, features=("batch_sizes",))
    linear = dataclasses.replace(
        policy,
        situation=dataclasses.replace(policy.situation, view=view),
        features=features[:1],
        weights=((np.eye(2, dtype=np.float32), np.zeros(2, np.float32)),),
        rule=None,
    )
    values = linear.values(batch_sizes=[16, 1], task="task0", arrival_rate=1.0)
    np.testing.assert_array_equal(values, [4.0, 4.0])


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ([(-1.0, 0, "fail")], "`events` has `time_s` -1; give at least 0"),
        ([(float("inf"), 0, "fail")], "`events` has `time_s` inf; give at least 0"),
        ([(1.0, 2, "fail")], "`events` names replica 2; there are 2, numbered from 0"),
        ([(1.0, -1, "fail")], "`events` names replica -1; there are 2, numbered from 0"),
        (
            [(2.0, 1, "start"), (1.0, 1, "start")],
            "at 2 s replica 1 has `start` after `start`, which changes nothing; leave it",
        ),
        ([(1.0, 0, "fail"), (2.0, 1, "drain"), (3.0, 0, "drain")], "replica 0 has `drain` after `fail`, which changes"),
    ],
)
def test_a_mistake_in_events_is_one_sentence(events: list[Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        Pool("a", "model0", replicas=2, events=tuple(ReplicaEvent(*event) for event in events))
    assert str(caught.value).startswith("Pool `a`: `events`")
    assert str(caught.value).endswith(".")


def test_the_first_event_says_who_is_up_before() -> None:
    events = (ReplicaEvent(5.0, 1, "drain"), ReplicaEvent(2.0, 1, "start"), ReplicaEvent(1.0, 2, "fail"))
    pool = Pool("a", "model0", replicas=3, start_s=4.0, events=events)
    assert pool.up_first == (True, False, True)
    found = fleet(Pool("b", "model1"), pool)
    life = found.life((5, 0, 0))
    np.testing.assert_array_equal(life.time_s, [1.0, 2.0, 5.0, np.inf, np.inf])
    assert life.what.tolist()[:3] == [FAIL, START, DRAIN]
    assert life.instance.tolist()[:3] == [5, 3, 3]  # rows of two pools
    np.testing.assert_array_equal(life.up_first, [[True, True], [False, False], [False, True]])
    assert found.life_size == (3, 0, 0)
    assert not found.uniform


def test_a_file_states_events(tmp_path: Path) -> None:
    text = FILE.replace("HARDWARE", "opt-a100")
    text += "  start_s: 2\n  replicas: 2\n  events: [{time_s: 3, replica: 1, what: drain}]\n"
    text = text.replace("- {name: near, model: opt-125m}", "- name: near\n  model: opt-125m")
    situation = stated(tmp_path, text)
    assert situation.pools[1] == Pool(
        "near", "opt-125m", replicas=2, start_s=2.0, events=(ReplicaEvent(3.0, 1, "drain"),)
    )
    save_policy(default_policy(situation), tmp_path / "policy.safetensors")
    assert load_policy(tmp_path / "policy.safetensors").situation.pools == situation.pools


def heavy(memory_gb: float | None = 24.0, load_gb_per_s: float | None = 2.0) -> Profile:
    """Models with 2, 4 and 26 GB of weights."""
    models = tuple(
        dataclasses.replace(model, weights_gb=size) for model, size in zip(FAST.models, (2.0, 4.0, 26.0), strict=True)
    )
    return dataclasses.replace(FAST, models=models, memory_gb=memory_gb, load_gb_per_s=load_gb_per_s)


def event(time_s: float, what: What) -> tuple[ReplicaEvent, ...]:
    return (ReplicaEvent(time_s, 0, what),)


@pytest.mark.parametrize(
    ("pools", "sentence"),
    [
        (
            [Pool("a", "model0"), Pool("b", "model2")],
            "Pool `b`: the weights of model2 take 26 GB, and a GPU of profile `fast` has 24 GB for them; choose a",
        ),
        (
            [Pool(name, f"model{index}", gpus=(0,)) for index, name in enumerate("ab")],
            "Pools `a`, `b` share a GPU, and their weights take 6 of 5 GB; give them GPUs of their own, or let one",
        ),
        (
            [
                Pool("a", "model0", gpus=(0,), events=event(3.0, "drain")),
                Pool("b", "model1", gpus=(0,), events=event(9.0, "start")),
            ],
            "Pools `a`, `b` share a GPU, and their weights take 6 of 5 GB at 9 s; give",
        ),
    ],
)
def test_what_does_not_fit_a_gpu_is_one_sentence(pools: list[Pool], sentence: str) -> None:
    memory_gb = 5.0 if "5 GB" in sentence else 24.0
    with pytest.raises(InputError, match=sentence) as caught:
        Fleet(tuple(pools), heavy(memory_gb))
    assert str(caught.value).endswith(".")
    Fleet(tuple(pools), heavy(None))


def test_a_model_starts_where_another_has_failed() -> None:
    swapped = (
        Pool("a", "model0", gpus=(0,), events=(ReplicaEvent(3.0, 0, "drain"), ReplicaEvent(9.0, 0, "fail"))),
        Pool("b", "model1", gpus=(0,), events=event(9.0, "start")),
    )
    assert Fleet(swapped, heavy(5.0)).start_s.tolist() == [1.0, 2.0]


def test_a_start_takes_as_long_as_loading_unless_stated() -> None:
    pools = (Pool("a", "model1"), Pool("b", "model1", start_s=7.0), Pool("c", "model0", "slow"))
    found = Fleet(pools, heavy(), (SLOW,))
    assert found.start_s.tolist() == [2.0, 7.0, 0.0]
    assert [pool.start_s for pool in found.served] == [2.0, 7.0, 0.0]
    assert Fleet(pools, heavy(load_gb_per_s=None), (SLOW,)).start_s.tolist() == [0.0, 7.0, 0.0]
    np.testing.assert_array_equal(found.life((0, 0, 0)).start_s, [2.0, 7.0, 0.0])


def test_weights_survive_files_and_are_written_only_where_stated(tmp_path: Path) -> None:
    profile = heavy()
    save_profile(profile, tmp_path / "heavy.json")
    assert load_profile(tmp_path / "heavy.json") == profile
    assert profile.digest() != FAST.digest()
    policy = default_policy(Situation(profile, Cluster(), (Task("task0"),), pools=(Pool("a", "model0"),)))
    save_policy(policy, tmp_path / "heavy.safetensors")
    assert load_policy(tmp_path / "heavy.safetensors").situation.profile == profile
    save_profile(FAST, tmp_path / "fast.json")
    words = (tmp_path / "fast.json").read_text() + str(
        describe(default_policy(Situation(FAST, Cluster(), (Task("task0"),))))
    )
    assert not any(name in words for name in ("weights_gb", "memory_gb", "load_gb_per_s"))
