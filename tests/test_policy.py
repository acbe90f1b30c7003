from __future__ import annotations

import dataclasses
import itertools
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from besteffort.errors import InputError
from besteffort.estimates.estimates import Estimates
from besteffort.estimates.rule import Rule
from besteffort.observation import ESTIMATES, FEATURES, VALUE, Observation, default_features, encode, input_size
from besteffort.policy import FORMAT, Policy, load_policy, save_policy
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality, load_profile
from besteffort.situation import Cluster, Deadline, Origin, Reward, Situation, Task, Tenant, View
from besteffort.weights import merge
from tests.made_up import make_rule

MODELS = ("small", "middle", "large")
TASKS = ("PIQA", "ARC-easy", "WinoGrande", "LAMBADA")
CLUSTER = Cluster(replicas=3, max_batch=24, queue_capacity=16)


def make_situation(names: tuple[str, ...] = FEATURES[:3]) -> Situation:
    """A situation that states all that one can, with numbers that no short decimal is."""
    rng = np.random.default_rng(5)
    count = len(MODELS)

    def points(last: int) -> tuple[tuple[int, float], ...]:
        return tuple(zip((1, 2, last), np.sort(rng.uniform(0.001, 0.1, 3)).tolist(), strict=True))

    models = tuple(
        ModelProfile(
            name,
            decode=points(32),
            prefill=points(512),
            slowdown=tuple(1.0 if k == i else 1 + rng.random() / 3 for k in range(count)),
            context_cost_s=rng.random() * 1e-6,
            cache_tokens=None if i == 1 else 40_000 - i,
            chunk_tokens=None if i == 1 else 512 + i,
            weights_gb=1.25 + i,
        )
        for i, name in enumerate(MODELS)
    )
    qualities = tuple(
        TaskQuality(name, "acc, zero-shot", "a tést", tuple(100 * rng.random(count))) for name in TASKS[::-1]
    )
    measured = Source("measured", "a script", "at 512 tokens", "A100", "float16", "2025-01-31", ("jax 0.7",))
    provenance = Provenance(measured, Source("modelled", "a formula"), measured, Source("published", "a paper"))
    tasks = tuple(
        Task(
            name,
            share=rng.random(),
            prompt_tokens=(8 + i, 256),
            output_tokens=(1 + i, 64),
            deadline=Deadline(rng.random(), rng.random() / 30),
            weight=1 + rng.random(),
            mean_prompt_tokens=100 + rng.random(),
            mean_output_tokens=20 + rng.random(),
            output_quantiles=tuple(np.sort(rng.uniform(1 + i, 64, 5)).tolist()),
        )
        for i, name in enumerate(TASKS)
    )
    return Situation(
        profile=Profile(
            1,
            "mine",
            "A100",
            models,
            qualities,
            provenance,
            rng.random(),
            context_tokens=900,
            memory_gb=80.0,
            load_gb_per_s=2.5,
        ),
        cluster=dataclasses.replace(CLUSTER, network_delay_s=rng.random() / 100),
        tasks=tasks,
        reward=Reward(soft_span=rng.random(), miss_penalty=rng.random()),
        origins=(Origin("near", rng.random()), Origin("far", rng.random())),
        tenants=(Tenant("gold", 1 + rng.random(), rng.random()), Tenant("lead", rng.random(), rng.random())),
        view=View(
            names,
            rate_tau_s=rng.random(),
            rate_lag=3,
            batch_refresh_s=rng.random(),
            streamed=False,
            slowdown_tau_s=1.0,
            gateways=3,
            gateway_delay_s=rng.random(),
        ),
    )


def make_policy(names: tuple[str, ...] = FEATURES[:3], hidden: tuple[int, ...] = (64, 64), seed: int = 0) -> Policy:
    features = default_features(len(TASKS), len(MODELS), 4, 32, 50.0, names, origins=2)
    rng = np.random.default_rng(seed)
    sizes = (input_size(features), *hidden, len(MODELS))
    weights = tuple(
        (rng.normal(0, rows**-0.5, (rows, columns)).astype(np.float32), rng.normal(0, 0.1, columns).astype(np.float32))
        for rows, columns in itertools.pairwise(sizes)
    )
    return Policy(
        situation=make_situation(names),
        features=features,
        weights=weights,
        training={"seed": seed, "hidden": hidden, "rates": [0.1, 12.0]},
        rule=make_rule(len(MODELS)) if VALUE in names else None,
    )


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy()


@pytest.fixture(scope="module")
def content(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("policy") / "policy.safetensors"
    save_policy(policy, path)
    return path.read_bytes()


def refused(path: Path) -> str:
    """The sentence with which `path` is refused."""
    with pytest.raises(InputError) as error:
        load_policy(path)
    text = str(error.value)
    assert text.startswith(str(path))
    assert text.endswith(".")
    assert "\n" not in text
    return text


def write_with_metadata(path: Path, content: bytes, change: Any) -> None:
    """The file again, its metadata passed through `change`."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    metadata = json.loads(header["__metadata__"]["besteffort"])
    change(metadata)
    tensors = safetensors.numpy.load(content)
    path.write_bytes(safetensors.numpy.save(tensors, {"besteffort": json.dumps(metadata)}))


def test_round_trip(policy: Policy, tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    save_policy(policy, path)
    loaded = load_policy(str(path))
    for field in dataclasses.fields(Policy):
        if field.init and field.name not in ("weights", "training"):
            assert getattr(loaded, field.name) == getattr(policy, field.name)
    assert loaded.situation.profile.digest() == policy.situation.profile.digest()
    assert (loaded.models, loaded.tasks) == (MODELS, TASKS)
    assert loaded.rate_tau_s == policy.situation.view.rate_tau_s
    assert loaded.training == {"seed": 0, "hidden": [64, 64], "rates": [0.1, 12.0]}
    for mine, theirs in zip(loaded.weights, policy.weights, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.dtype == np.float32
            np.testing.assert_array_equal(a, b)


def test_equal_policies_are_equal_files(content: bytes, tmp_path: Path) -> None:
    save_policy(make_policy(), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == content
    save_policy(load_policy(tmp_path / "again"), tmp_path / "once more")
    assert (tmp_path / "once more").read_bytes() == content
    save_policy(make_policy(seed=1), tmp_path / "other")
    assert (tmp_path / "other").read_bytes() != content


def test_a_rule_keeps_its_numbers_to_the_last_bit(tmp_path: Path) -> None:
    policy = make_policy(("value", "task"), hidden=())
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    for field in dataclasses.fields(Rule):
        np.testing.assert_array_equal(getattr(loaded.rule, field.name), getattr(policy.rule, field.name))
    save_policy(loaded, tmp_path / "again")
    # Single precision is what a simulator hands over.
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), loaded.rule)
    save_policy(dataclasses.replace(loaded, rule=single), tmp_path / "single")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "policy").read_bytes()
    np.testing.assert_allclose(load_policy(tmp_path / "single").rule.prices, policy.rule.prices, rtol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"width": float("nan")}, "`rule.width` has the wrong shape or is not finite"),
        ({"harm_weight": [1.0]}, "`rule.harm_weight` has the wrong shape"),
        ({"prices": np.zeros((3, 2))}, "`rule.prices` has the wrong shape"),
        ({"prices": np.full((3, 3), np.inf)}, "`rule.prices` has the wrong shape or is not finite"),
        ({"rates": [1.0, 2.0]}, "`rule.prices` has the wrong shape"),
        ({"rates": [1.0, 3.0, 2.0]}, "`rule.rates` do not ascend from above 0"),
        ({"rates": [0.0, 1.0, 2.0]}, "`rule.rates` do not ascend from above 0"),
        ({"rates": [], "prices": np.zeros((0, 3))}, "`rule.rates` do not ascend from above 0"),
    ],
)
def test_a_rule_must_fit(numbers: dict[str, Any], expected: str) -> None:
    policy = make_policy(("value",), hidden=())
    rule = dataclasses.replace(policy.rule, **{name: np.asarray(value) for name, value in numbers.items()})
    with pytest.raises(InputError, match=expected):
        dataclasses.replace(policy, rule=rule)


def test_a_rule_and_its_feature_belong_together(policy: Policy) -> None:
    for one, rule in ((policy, make_rule(3)), (make_policy(("value",), hidden=()), None)):
        with pytest.raises(InputError, match="a rule and the feature `value` belong together"):
            dataclasses.replace(one, rule=rule)


def test_the_situation_of_the_round_trip_states_every_field() -> None:
    """Every field that has a default has another value, so that none could go missing unseen."""

    def unstated(*values: Any) -> list[str]:
        return [
            f"{type(value).__name__}.{field.name}"
            for value in values
            for field in dataclasses.fields(value)
            if field.default is not dataclasses.MISSING and getattr(value, field.name) == field.default
        ]

    def stated_elsewhere(names: list[str]) -> list[str]:
        """Pools exclude a cluster; `test_pools_survive_a_policy_file` has them."""
        return [name for name in names if name not in ("Situation.pools", "Situation.hardware")]

    situation = make_situation(FEATURES)
    profile = situation.profile
    parts = (situation, situation.cluster, situation.reward, situation.view, *situation.tasks)
    assert stated_elsewhere(unstated(*parts, profile, profile.models[0], profile.provenance.decode)) == []


def test_a_number_that_is_not_finite_is_refused(policy: Policy, tmp_path: Path) -> None:
    reward = Reward(miss_penalty=float("inf"))
    endless = dataclasses.replace(policy, situation=dataclasses.replace(policy.situation, reward=reward))
    for one in (endless, dataclasses.replace(policy, training={"rate": float("nan")})):
        with pytest.raises(InputError, match=r"a number of its situation or of `training` is not finite.*\.$"):
            save_policy(one, tmp_path / "policy.safetensors")
    assert not list(tmp_path.iterdir())


def test_cut_anywhere(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    header = 8 + struct.unpack("<Q", content[:8])[0]
    ends = [0, 1, 7, 8, 9, header - 1, header, header + 1, header + 4, len(content) // 2, len(content) - 1]
    for end in [*ends, *range(16, len(content), 997)]:
        path.write_bytes(content[:end])
        assert "not a whole policy file" in refused(path)
    path.write_bytes(content + b"\0")
    refused(path)


def test_any_flipped_bit_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    rng = np.random.default_rng(1)
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for at in [*range(header), *rng.integers(header, len(content), 200)]:
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        refused(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["situation"]["tasks"].reverse(),
        lambda m: m["situation"]["profile"]["models"].reverse(),
        lambda m: m["features"][1].update(scale=8.0),
        lambda m: m["situation"]["tasks"][0]["deadline"].update(base_s=9.0),
        lambda m: m["situation"]["cluster"].update(replicas=8),
        lambda m: m["situation"]["cluster"].update(replicas=float("nan")),
        lambda m: m["situation"]["profile"]["models"][0]["decode"][1].append(1e-9),
        lambda m: m["situation"]["profile"]["tasks"][1]["quality_percent"].reverse(),
        lambda m: m["situation"]["view"].update(rate_tau_s=1.0),
        lambda m: m["training"].update(seed=1),
        lambda m: m.update(extra=1),
        lambda m: m.pop("sha256"),
        lambda m: m.update(sha256="0" * 64),
        lambda m: m.update(sha256=None),
    ],
)
def test_edited_metadata_is_refused(content: bytes, tmp_path: Path, change: Any) -> None:
    path = tmp_path / "policy.safetensors"
    write_with_metadata(path, content, change)
    assert "were changed" in refused(path)


def test_edited_weights_are_refused(content: bytes, tmp_path: Path) -> None:
    tensors = safetensors.numpy.load(content)
    path = tmp_path / "policy.safetensors"
    path.write_bytes(content)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    for name, value in (("layers.1.bias", tensors["layers.1.bias"] + 1), ("extra", np.zeros(1, np.float32))):
        path.write_bytes(safetensors.numpy.save({**tensors, name: value}, metadata))
        assert "were changed" in refused(path)


def test_other_formats_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    for other, words in (
        (FORMAT + 1, ("of the newer format 5, ", "use the version that wrote it")),
        (FORMAT - 1, ("of the older format 3, ", "train the policy again with `besteffort train CONFIG")),
        (None, ("`format` is null, but must be 4",)),
        ("1", ('`format` is "1", but must be 4',)),
        (True, ("`format` is true, but must be 4",)),
    ):
        write_with_metadata(path, content, lambda m, other=other: m.update(format=other))
        said = refused(path)
        assert all(word in said for word in words)


def test_a_file_of_format_2_is_refused(content: bytes, tmp_path: Path) -> None:
    """As the version before wrote them: whole and signed, without a situation."""
    from besteffort import policy as module

    tensors = safetensors.numpy.load(content)
    metadata = {
        "format": 2,
        "version": "0.2.0",
        "models": list(MODELS),
        "tasks": list(TASKS),
        "features": [dataclasses.asdict(feature) for feature in make_policy().features],
        "deadlines": [{"base_s": 0.1, "per_token_s": 0.015}] * len(TASKS),
        "cluster": dataclasses.asdict(CLUSTER),
        "rate_tau_s": 2.0,
        "profile": {"name": "opt-a100", "digest": "0123"},
        "training": {},
        "ensemble_size": 1,
    }
    signed = metadata | {"sha256": module._digest(metadata, tensors)}
    path = tmp_path / "policy.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors, {"besteffort": json.dumps(signed)}))
    assert refused(path) == (
        f"{path}: the file is of the older format 2, and this version of besteffort reads 4; train the policy again "
        "with `besteffort train CONFIG --out DIRECTORY`."
    )


def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    assert "no such policy file" in refused(tmp_path / "none")
    (tmp_path / "directory").mkdir()
    refused(tmp_path / "directory")
    (tmp_path / "text").write_text("a policy\n")
    refused(tmp_path / "text")
    for number, metadata in enumerate((None, {"format": "pt"}, {"besteffort": "[1]"}, {"besteffort": "{"}, DEEP)):
        path = tmp_path / str(number)
        path.write_bytes(safetensors.numpy.save({"x": np.zeros(1)}, metadata))
        assert "without a policy's metadata" in refused(path)


DEEP = {"besteffort": "[" * 100_000}


def test_well_signed_nonsense_is_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file by another program, digest and all, whose fields are not a policy's."""
    from besteffort import policy as module

    path = tmp_path / "policy.safetensors"
    monkeypatch.setattr(module, "_digest", lambda metadata, tensors: "signed")
    for change, expected in [
        (lambda m: m.pop("situation"), "`situation` is missing"),
        (lambda m: m.update(situation=None), "`situation` is null, but should be a mapping"),
        (lambda m: m.update(situation=[1]), "`situation` is [1], but should be a mapping"),
        (lambda m: m.update(extra=1), "`extra` is not a known field"),
        (lambda m: m.update(features={}), "`features` is {}, but should be a list"),
        (lambda m: m["features"][0].pop("size"), "`features[0].size` is missing"),
        (lambda m: m["features"][0].update(size="3"), '`features[0].size` is "3", but should be a valid integer'),
        (lambda m: m["features"][1].update(scale=0.0), "a scale from 1e-12 to 1e12"),
        (lambda m: m["features"][0].update(name="weather"), "unknown feature `weather`"),
        (lambda m: m["features"][1].update(size=4), "feature `batch_sizes` has a size or transform that does not"),
        (lambda m: m["features"].pop(), "the features are task, batch_sizes, but"),
        (lambda m: m["features"].reverse(), "`view.features` of its situation is task, batch_sizes, arrival_rate"),
        (lambda m: m.update(ensemble_size=1.5), "`ensemble_size` is 1.5, but should be a valid integer"),
        (lambda m: m.update(training=3), "`training` is 3, but should be a"),
        (lambda m: m.update(version=2), "`version` is 2, but should be a valid string"),
        (lambda m: m["situation"].pop("profile"), "`situation.profile` is missing"),
        (lambda m: m["situation"].update(profile="opt"), '`situation.profile` is "opt", but should be a mapping'),
        (lambda m: m["situation"]["profile"].update(format=2), "`situation.profile.format` is 2, but should be 1"),
        (lambda m: m["situation"]["profile"]["models"].pop(), "`quality_percent` has 3 values for 2 models"),
        (lambda m: model(m).update(decode=3), "`situation.profile.models[0].decode` is 3, but should be a list"),
        (lambda m: model(m)["decode"][0].append(1), "`situation.profile.models[0].decode[0]` is"),
        (lambda m: model(m)["prefill"][1].__setitem__(1, None), "`situation.profile.models[0].prefill[1][1]` is null"),
        (lambda m: model(m)["prefill"][1].__setitem__(1, -1.0), "Model `small`: `prefill` has -1 s"),
        (lambda m: m["situation"].update(tasks=[]), "lists no task"),
        (lambda m: m["situation"]["tasks"].pop(), "feature `task` has a size or transform that does not fit"),
        (lambda m: m["situation"]["tasks"][0].update(name="sums"), "Profile `mine` has no task `sums`"),
        (lambda m: m["situation"]["tasks"][0].update(weight="a"), "`situation.tasks[0].weight` is"),
        (lambda m: m["situation"]["tasks"][0].update(deadline=3), "`situation.tasks[0].deadline` is 3, but should be"),
        (lambda m: m["situation"]["cluster"].update(replicas=0), "`situation.cluster.replicas` is 0, but should be"),
        (lambda m: m["situation"]["reward"].update(soft_span=True), "`situation.reward.soft_span` is true"),
        (lambda m: m["situation"]["view"].update(rate_tau_s=0.0), "`situation.view.rate_tau_s` is 0.0"),
    ]:
        write_with_metadata(path, content, lambda m, change=change: (m.update(sha256="signed"), change(m)))
        assert expected in refused(path)
    write_with_metadata(path, content, lambda m: m.update(sha256="signed"))
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = safetensors.numpy.load(content)
    tensors["layers.7.bias"] = tensors.pop("layers.1.bias")
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    assert "lacks `layers.1.kernel` or `layers.1.bias`" in refused(path)


def test_a_well_signed_rule_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from besteffort import policy as module

    path = tmp_path / "policy.safetensors"
    save_policy(make_policy(("value",), hidden=()), path)
    content = path.read_bytes()
    monkeypatch.setattr(module, "_digest", lambda metadata, tensors: "signed")
    for change, expected in [
        (lambda m: m.pop("rule"), "`rule` is missing"),
        (lambda m: m.update(rule=None), "a rule and the feature `value` belong together"),
        (lambda m: m.update(rule=[1.0]), "`rule` is [1.0], but should be"),
        (lambda m: m["rule"].pop("width"), "`rule` lacks `width` or has it too many"),
        (lambda m: m["rule"].update(charm=1.0), "`rule` lacks `charm` or has it too many"),
        (lambda m: m["rule"].update(width="wide"), "`rule.width"),
        (lambda m: m["rule"].update(width=[0.1]), "`rule.width` has the wrong shape"),
        (lambda m: m["rule"]["prices"].pop(), "`rule.prices` has the wrong shape"),
        (lambda m: m["rule"]["prices"][0].pop(), "`rule.prices`"),
    ]:
        write_with_metadata(path, content, lambda m, change=change: (m.update(sha256="signed"), change(m)))
        assert expected in refused(path)


def model(metadata: dict[str, Any]) -> dict[str, Any]:
    """The first model in the situation of a policy's metadata."""
    first: dict[str, Any] = metadata["situation"]["profile"]["models"][0]
    return first


def test_an_unwritable_place_is_one_sentence(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write it, .*\.$"):
        save_policy(policy, tmp_path / "none" / "policy.safetensors")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w[:-1], "64 outputs for 3 models"),
        (lambda w: ((w[0][0][1:], w[0][1]), *w[1:]), "layer 0 has the shapes"),
        (lambda w: (w[0], (w[1][0], w[1][1][1:]), w[2]), "layer 1 has the shapes"),
        (lambda w: (*w[:-1], (w[2][0], w[2][1] * np.float32("nan"))), "layer 2 has a weight that is not finite"),
        # Beyond single precision, which NumPy would warn of.
        (lambda w: (*w[:-1], (w[2][0].astype(float) + 1e39, w[2][1])), "layer 2 has a weight that is not finite"),
        (lambda w: (), "must be equal"),
    ],
)
def test_weights_must_fit(policy: Policy, change: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        dataclasses.replace(policy, weights=change(policy.weights))


def random_states(n: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "task": TASKS[rng.integers(len(TASKS))],
            "batch_sizes": dict(zip(MODELS, rng.integers(0, 257, 3).tolist(), strict=True)),
            "arrival_rate": float(rng.gamma(0.5, 200.0)),
        }
        for _ in range(n)
    ]


def test_decide_is_the_argmax_of_jax_on_ten_thousand_states(policy: Policy, tmp_path: Path) -> None:
    states = random_states(10_000, 7)
    # Without its mean over the states, a random network chooses every model.
    kernel, bias = policy.weights[-1]
    mean = np.mean([policy.values(**s) for s in states], axis=0)
    policy = dataclasses.replace(policy, weights=(*policy.weights[:-1], (kernel, bias - mean)))
    save_policy(policy, tmp_path / "policy.safetensors")
    policy = load_policy(tmp_path / "policy.safetensors")

    @jax.jit
    @jax.vmap
    def q_values(task: jax.Array, batch_sizes: jax.Array, arrival_rate: jax.Array) -> jax.Array:
        seen = Observation(task, batch_sizes, arrival_rate, None, None, None)
        x = encode(seen, policy.features, jnp)
        for i, (kernel, bias) in enumerate(policy.weights):
            x = (jax.nn.relu(x) if i else x) @ kernel + bias
        return x

    expected = np.asarray(
        q_values(
            jnp.array([TASKS.index(s["task"]) for s in states]),
            jnp.array([list(s["batch_sizes"].values()) for s in states]),
            jnp.array([s["arrival_rate"] for s in states]),
        )
    )
    np.testing.assert_allclose(np.array([policy.values(**s) for s in states]), expected, atol=5e-6)
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] >= 1e-5
    decided = np.array([MODELS.index(policy.decide(**s)) for s in states])
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(decided[clear], expected.argmax(axis=1)[clear])
    assert np.bincount(decided, minlength=3).min() > 500


@given(
    names=st.permutations(FEATURES).flatmap(lambda p: st.integers(1, len(p)).map(lambda n: tuple(p[:n]))),
    task=st.integers(0, 3),
    origin=st.sampled_from([None, "near", "far"]),
    weight=st.sampled_from([None, 0.25, 3.0]),
    instances=st.lists(st.lists(st.integers(0, 64), min_size=3, max_size=3), min_size=4, max_size=4),
    numbers=st.tuples(*[st.floats(0, 1e4)] * 4),
    per_model=st.tuples(*[st.tuples(*[st.floats(0, 9)] * 3)] * len(ESTIMATES)),
    sign=st.sampled_from([-1.0, 1.0]),
)
def test_any_features_in_any_order_are_read_as_in_simulation(
    names: tuple[str, ...],
    task: int,
    origin: str | None,
    weight: float | None,
    instances: list[list[int]],
    numbers: tuple[float, ...],
    per_model: tuple[tuple[float, ...], ...],
    sign: float,
) -> None:
    policy = make_policy(names, hidden=(8,))
    rate, deadline, since, prompt = numbers
    counts = np.array(instances)
    seen = Observation(task, counts.sum(axis=0), rate, counts, deadline, since, prompt_tokens=prompt)
    seen = seen._replace(origin=None if origin is None else policy.situation.origin_names.index(origin))
    seen = seen._replace(tenant_weight=weight)
    estimates = Estimates(*(np.array(values) for values in per_model))
    estimates = estimates._replace(own=sign * estimates.own)
    x = encode(seen, policy.features, estimates=estimates).astype(np.float32)
    (first, bias), (last, last_bias) = policy.weights
    expected = np.maximum(x @ first + bias, 0) @ last + last_bias
    further: dict[str, Any] = {"deadline_s": deadline, "since_change_s": since, "prompt_tokens": prompt}
    further["origin"] = origin
    further["tenant_weight"] = 1.0 if weight is None else weight
    further["smallest_batch"] = counts.min(axis=0).tolist()
    further |= {name: dict(zip(MODELS, getattr(estimates, name), strict=True)) for name in ESTIMATES}
    got = policy.values(
        task=TASKS[task],
        batch_sizes=seen.batch_sizes.tolist(),
        arrival_rate=rate,
        **{name: value for name, value in further.items() if name in names},
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_batch_sizes_by_name_or_in_order(policy: Policy) -> None:
    by_name = policy.values(task="PIQA", batch_sizes={"large": 3, "small": 1, "middle": 2}, arrival_rate=5.0)
    in_order = policy.values(task="PIQA", batch_sizes=[1, 2, 3], arrival_rate=5.0)
    np.testing.assert_array_equal(by_name, in_order)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"task": "BoolQ"}, "does not know the task `BoolQ`; it was trained for PIQA, ARC-easy"),
        ({"batch_sizes": [1, 2]}, "`batch_sizes` has 2 values; give one value for each of the models small, middle"),
        ({"batch_sizes": {"small": 1, "large": 2}}, "has small, large; give one value for each"),
        ({"batch_sizes": {"small": 1, "middle": 1, "huge": 2}}, "has small, middle, huge; give one"),
        ({"batch_sizes": [1, -2, 3]}, "`batch_sizes` has the value -2"),
        ({"arrival_rate": -0.5}, "`arrival_rate` has the value -0.5"),
        ({"arrival_rate": float("nan")}, "`arrival_rate` has the value nan"),
        ({"arrival_rate": float("inf")}, "`arrival_rate` has the value inf"),
        ({"arrival_rate": 1e308}, "`arrival_rate` has the value 1e+308; it must be a finite number"),
        ({"task": "a\x1b[31mb\n" * 99}, r"does not know the task `a\x1b[31mb\na\x1b"),
    ],
)
def test_bad_states_are_one_sentence(policy: Policy, changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as error:
        policy.decide(**{"task": "PIQA", "batch_sizes": [1, 2, 3], "arrival_rate": 5.0, **changed})
    assert expected in str(error.value)
    assert str(error.value).endswith(".")


def test_what_is_no_number_is_one_sentence_too(tmp_path: Path) -> None:
    """In a process of its own, since the tests' type checks would refuse these before the policy does."""
    save_policy(make_policy(), tmp_path / "policy.safetensors")
    lines = _NO_NUMBERS.splitlines()
    code = "\n".join([*lines[:-2], f"for rate, sizes, task in [{''.join(lines[-2:])}]: tell(rate, sizes, task)"])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "policy.safetensors")], capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    for line, expected in zip(said, _ANSWERS, strict=True):
        assert line.startswith(expected)
        assert line.endswith(".")


_NO_NUMBERS = """
import sys
from decimal import Decimal
import numpy as np
from besteffort import load_policy
from besteffort.errors import InputError
policy, r, s, t = load_policy(sys.argv[1]), 5.0, [1, 2, 3], "PIQA"
def tell(rate, sizes, task):
    try:
        print(policy.decide(task=task, batch_sizes=sizes, arrival_rate=rate))
    except InputError as error:
        print(error)
(None, s, t), ("5", s, t), (Decimal(5), s, t), (1j, s, t), ([5.0], s, t), (np.ones(2), s, t), (r, None, t), (r, 3, t),
(r, "123", t), (r, [1, [2], 3], t), (r, [None, 2, 3], t), (r, [1, 2, 10**5000], t), (r, s, None), (r, s, ["PIQA"])"""

_ANSWERS = [
    *(
        f"`arrival_rate` has the value {value}; it must be a finite number from 0"
        for value in ("None", "5", "5", "1j", "[5.0]", "[1. 1.]")
    ),
    *(
        f"`batch_sizes` has the value {value}; it must be a finite number from 0"
        for value in ("None", "3", "1", "[2]", "None", "a number of 16610 bits")
    ),
    "The policy does not know the task `None`; it was trained for PIQA",
    "The policy does not know the task `['PIQA']`; it was trained for PIQA",
]


def test_a_missing_feature_is_named() -> None:
    policy = make_policy((*FEATURES[:3], "deadline_s"))
    with pytest.raises(InputError, match=r"also needs `deadline_s`; pass it by name\.$"):
        policy.decide(task="PIQA", batch_sizes=[1, 2, 3], arrival_rate=5.0)


def test_plain_counts_do_not_do_for_estimates() -> None:
    policy = make_policy((*FEATURES[:3], "own", "prompt_tokens"))
    with pytest.raises(InputError) as error:
        policy.decide(task="PIQA", batch_sizes=[1, 2, 3], arrival_rate=5.0)
    assert str(error.value) == (
        "The policy also needs `own`, `prompt_tokens`; pass it by name, or let `besteffort.in_flight.InFlight` decide."
    )
    for own, expected in (
        ([0.5, 0.5], "`own` has 2 values"),
        ([0.5, -np.inf, 0.0], "must be a finite number from -1e"),
    ):
        with pytest.raises(InputError, match=expected):
            policy.decide(task="PIQA", batch_sizes=[1, 2, 3], arrival_rate=5.0, own=own, prompt_tokens=9)
    policy.decide(task="PIQA", batch_sizes=[1, 2, 3], arrival_rate=5.0, own=[-0.5, 0.0, 1.0], prompt_tokens=9)
    logarithm = dataclasses.replace(policy.features[3], transform="log1p")
    with pytest.raises(InputError, match="`own` may be negative; give it the transform `linear`"):
        dataclasses.replace(policy, features=(*policy.features[:3], logarithm, policy.features[4]))


def test_check_fits() -> None:
    profile = load_profile("opt-a100")
    names = tuple(task.name for task in profile.tasks[:4])
    situation = Situation(profile, CLUSTER, tuple(map(Task, names)))
    policy = dataclasses.replace(make_policy(), situation=situation)
    policy.check_fits(situation)
    costs = tuple(ModelProfile(model.name, decode=((1, 9.0),), prefill=((1, 9.0),)) for model in profile.models)
    slower = dataclasses.replace(profile, name="slower", models=costs)
    policy.check_fits(
        Situation(
            slower,
            Cluster(replicas=1, max_batch=2, queue_capacity=0, network_delay_s=1.0),
            tuple(Task(name, 2.0, (1, 2), (3, 4), Deadline(9.0), 5.0) for name in names),
            Reward(1.0, 1.0),
            View(rate_lag=5, batch_refresh_s=1.0),
        )
    )
    with pytest.raises(InputError, match=rf"trained for the tasks {names[0]}, .* in this order, not {names[3]}"):
        policy.check_fits(dataclasses.replace(situation, tasks=situation.tasks[::-1]))
    with pytest.raises(InputError, match="trained for the models small, middle, large"):
        make_policy().check_fits(situation)
    policy.check_fits(dataclasses.replace(situation, view=View(features=("task",))))
    with pytest.raises(InputError, match=r"rate estimate over 2 s, but `view.rate_tau_s` of the situation is 9"):
        policy.check_fits(dataclasses.replace(situation, view=View(rate_tau_s=9.0)))
    policy.check_fits(dataclasses.replace(situation, view=View(streamed=False)))


def test_estimates_must_come_from_tokens_that_are_counted_alike() -> None:
    policy = make_policy((*FEATURES[:3], "harm"))
    view = policy.situation.view
    other = dataclasses.replace(policy.situation, view=dataclasses.replace(view, streamed=not view.streamed))
    policy.check_fits(dataclasses.replace(policy.situation, cluster=Cluster(replicas=9)))
    with pytest.raises(InputError, match=r"trained with `view.streamed` false, which its estimates depend on"):
        policy.check_fits(other)


def test_origins_must_be_the_policys_where_it_reads_them() -> None:
    policy = make_policy((*FEATURES[:3], "origin"))
    assert policy.situation.origin_names == ("near", "far")
    turned = dataclasses.replace(policy.situation, origins=policy.situation.origins[::-1])
    nowhere = dataclasses.replace(policy.situation, origins=(), view=View(("task",), policy.rate_tau_s))
    make_policy().check_fits(turned)
    for other, names in ((turned, "far, near"), (nowhere, "for none")):
        with pytest.raises(InputError, match=f"trained for the origins near, far in this order, not {names}; train"):
            policy.check_fits(dataclasses.replace(other, view=dataclasses.replace(other.view, streamed=False)))
    state: dict[str, Any] = {"task": "PIQA", "batch_sizes": [1, 2, 3], "arrival_rate": 5.0}
    with pytest.raises(InputError, match=r"does not know the origin `moon`; it was trained for near, far\.$"):
        policy.decide(**state, origin="moon")
    with pytest.raises(InputError, match="does not know the task `moon`"):
        policy.decide(**state | {"task": "moon"}, origin="moon")
    with pytest.raises(InputError, match="also needs `origin`; pass it by name"):
        policy.decide(**state)
    assert not np.array_equal(policy.values(**state, origin="near"), policy.values(**state, origin=None))


def test_a_situation_without_origins_has_no_feature_of_them() -> None:
    with pytest.raises(
        InputError, match=r"names `origin`, but the situation has no origins; list them under `origins`"
    ):
        dataclasses.replace(make_situation((*FEATURES[:3], "origin")), origins=())
    with pytest.raises(InputError, match="`origin` needs origins; give their number"):
        default_features(2, 3, 4, 32, 50.0, ("origin",))


def test_a_situation_whose_tenants_count_the_same_has_no_feature_of_it() -> None:
    situation = make_situation((*FEATURES[:3], "tenant_weight"))
    for tenants in ((), (Tenant("gold", 2.0), Tenant("lead", 2.0))):
        with pytest.raises(InputError, match="names `tenant_weight`, but all requests count the same; list `tenants`"):
            dataclasses.replace(situation, tenants=tenants)


def test_how_many_networks_it_holds_must_be_true(policy: Policy) -> None:
    with pytest.raises(InputError, match="not 4 networks side by side"):
        dataclasses.replace(policy, ensemble_size=4)
    with pytest.raises(InputError, match="`ensemble_size` is 0"):
        dataclasses.replace(policy, ensemble_size=0)
    merged = merge([make_policy(seed=seed).weights for seed in range(4)])
    assert dataclasses.replace(policy, weights=merged, ensemble_size=4).ensemble_size == 4


FRESH = """
import sys
from besteffort import load_policy
policy = load_policy(sys.argv[1])
state = dict(task="WinoGrande", batch_sizes={"small": 3, "middle": 2, "large": 7}, arrival_rate=33.0)
policy.decide(**state)
heavy = {"jax", "flax", "matplotlib", "torch"} & {name.split(".")[0] for name in sys.modules}
print(*heavy)
"""


def test_a_fresh_process_decides_without_jax(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    path.write_bytes(content)
    done = subprocess.run([sys.executable, "-c", FRESH, str(path)], capture_output=True, text=True, check=True)
    assert not done.stdout.split()
