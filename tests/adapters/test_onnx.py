"""ONNX files: ONNX Runtime decides as the policy does, and the metadata stay."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from besteffort.cli import main
from besteffort.errors import InputError
from besteffort.observation import ESTIMATES, FEATURES, VALUE, Feature, default_features
from besteffort.policy import Policy, describe, save_policy
from besteffort.situation import Origin, Situation, Tenant
from tests.made_up import make_rule

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnxruntime

from besteffort.adapters.onnx import export_onnx, to_onnx

ORIGINS = (Origin("near"), Origin("far"))
TENANTS = (Tenant("gold", 3.0), Tenant("lead"))


def policy_of(situation: Situation, features: tuple[Feature, ...], hidden: tuple[int, ...] = (64, 64)) -> Policy:
    """A policy with random weights that chooses each model in about a third of the states."""
    rng = np.random.default_rng(0)
    names = tuple(feature.name for feature in features)
    view = dataclasses.replace(situation.view, features=names, slowdown_tau_s=2.0)
    sizes = [sum(feature.size for feature in features), *hidden, 3]
    weights = [(rng.normal(size=(n, m)) / np.sqrt(n), np.zeros(m)) for n, m in itertools.pairwise(sizes)]
    policy = Policy(
        situation=dataclasses.replace(situation, view=view, origins=ORIGINS, tenants=TENANTS),
        features=features,
        weights=tuple(weights),
        training={"hyper": {"learning_rate": 1e-3}, "seed": 3},
        rule=make_rule(3) if VALUE in view.features else None,
    )
    given = states(policy, 200)
    weights[-1] = (weights[-1][0], -np.median([values_of(policy, given, row) for row in range(200)], axis=0))
    return dataclasses.replace(policy, weights=tuple(weights))


def states(policy: Policy, count: int) -> dict[str, np.ndarray]:
    """Random states by name of the input, rates and times over many orders of magnitude."""
    rng = np.random.default_rng(1)
    known = {
        "task": rng.integers(0, len(policy.tasks), count),
        "batch_sizes": rng.integers(0, 257, (count, len(policy.models))),
        "smallest_batch": rng.integers(0, 65, (count, len(policy.models))),
        "arrival_rate": 10.0 ** rng.uniform(-3, 4, count) * (rng.random(count) > 0.05),
        "deadline_s": rng.uniform(0.1, 5.0, count),
        "since_change_s": 10.0 ** rng.uniform(-6, 2, count),
        "prompt_tokens": rng.integers(1, 4097, count),
        "origin": rng.integers(0, 1 + len(policy.situation.origins), count),
        "tenant_weight": rng.choice([0.5, 1.0, 1.5], count),
        **{name: rng.gamma(0.5, 2.0, (count, len(policy.models))) for name in ESTIMATES},
        **{name: rng.uniform(-1, 1, (count, len(policy.models))) for name in ("own", VALUE)},
    }
    return {feature.name: known[feature.name] for feature in policy.features}


def values_of(policy: Policy, given: dict[str, np.ndarray], row: int) -> np.ndarray:
    """Q-values of one state by the policy; a feature that it does not have but always takes is 0."""
    one: dict[str, Any] = {"task": 0, "batch_sizes": [0] * len(policy.models), "arrival_rate": 0.0}
    one |= {name: value[row].tolist() for name, value in given.items()}
    if "origin" in one:
        one["origin"] = (*policy.situation.origin_names, None)[one["origin"]]
    return policy.values(**one | {"task": policy.tasks[one["task"]]})


@pytest.mark.parametrize(
    "names",
    [FEATURES[:3], FEATURES, ("own", "prompt_tokens"), ("arrival_rate", "task"), ("since_change_s", "batch_sizes")],
    ids=" ".join,
)
def test_it_decides_as_the_policy_does(situation: Situation, tmp_path: Path, names: tuple[str, ...]) -> None:
    policy = policy_of(situation, default_features(4, 3, 4, 32, 200.0, names, origins=len(ORIGINS)))
    export_onnx(policy, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    assert [one.name for one in session.get_inputs()] == list(names)
    assert [one.name for one in session.get_outputs()] == ["q_values", "model"]
    count = 10_000 if names == FEATURES[:3] else 300
    given = states(policy, count)
    q, model = session.run(None, given)
    expected = np.array([values_of(policy, given, row) for row in range(count)])
    assert q.dtype == np.float32
    np.testing.assert_allclose(q, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(model, expected.argmax(axis=1))
    assert set(model.tolist()) == {0, 1, 2}
    one = {name: value[:1] for name, value in given.items()}
    np.testing.assert_allclose(session.run(["q_values"], one)[0][0], expected[0], rtol=1e-5, atol=1e-5)


def test_the_metadata_stay(situation: Situation, tmp_path: Path) -> None:
    policy = policy_of(situation, default_features(4, 3, 4, 32, 200.0), hidden=(8,))
    export_onnx(policy, tmp_path / "policy.onnx")
    kept = onnxruntime.InferenceSession(tmp_path / "policy.onnx").get_modelmeta().custom_metadata_map
    read = {name: json.loads(text) for name, text in kept.items()}
    assert read == describe(policy)
    stated = read["situation"]
    assert [model["name"] for model in stated["profile"]["models"]] == ["opt-125m", "opt-1.3b", "opt-6.7b"]
    assert [task["name"] for task in stated["tasks"]] == list(situation.task_names)
    assert stated["view"]["rate_tau_s"] == 2.0
    assert read["features"][2] == {"name": "arrival_rate", "size": 1, "transform": "log1p", "scale": 20.0}
    assert read["training"] == policy.training


def test_an_unknown_task_is_refused_by_the_graph(situation: Situation) -> None:
    features = default_features(4, 3, 4, 32, 200.0, (*FEATURES[:3], "origin"), origins=len(ORIGINS))
    policy = policy_of(situation, features, hidden=(8,))
    session = onnxruntime.InferenceSession(to_onnx(policy).SerializeToString())
    given = {name: value[:1] for name, value in states(policy, 1).items()}
    # Below 0 as well, which is what many languages say of a name that a list does not have.
    for name, index in (("task", 4), ("task", -1), ("task", -4), ("origin", 3), ("origin", -1)):
        with pytest.raises(Exception, match="out of data bounds"):
            session.run(None, given | {name: np.array([index])})


def test_equal_policies_give_equal_files(situation: Situation) -> None:
    one, other = (policy_of(situation, default_features(4, 3, 4, 32, 200.0), hidden=(8,)) for _ in range(2))
    assert to_onnx(one).SerializeToString(deterministic=True) == to_onnx(other).SerializeToString(deterministic=True)


def test_what_is_there_stays(situation: Situation, tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    path.write_text("mine")
    policy = policy_of(situation, default_features(4, 3, 4, 32, 200.0), hidden=(8,))
    with pytest.raises(InputError, match="the file exists; name another one or remove it first"):
        export_onnx(policy, path)
    assert path.read_text() == "mine"
    with pytest.raises(InputError, match="there is no directory"):
        export_onnx(policy, tmp_path / "none" / "policy.onnx")


def test_the_command_line(situation: Situation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = policy_of(situation, default_features(4, 3, 4, 32, 200.0), hidden=(8,))
    file, out = str(tmp_path / "policy.safetensors"), tmp_path / "policy.onnx"
    save_policy(policy, file)
    assert main(["policy", "export", file, "--onnx", str(out)]) == 0
    assert capsys.readouterr().out == f"ONNX: {out}\n"
    assert out.read_bytes() == to_onnx(policy).SerializeToString()
    for arguments, words in (
        (["export", file, "--onnx", str(out)], f"{out}: the file exists; name another one or remove it first."),
        (["export", file], "`besteffort policy export` lacks --onnx FILE; add it"),
        (["show", file, "--onnx", str(out)], "There is no option `--onnx`; `besteffort policy show --help`"),
        (["export", str(out), "--onnx", f"{out}.onnx"], f"{out}: not a whole policy file"),
    ):
        assert main(["policy", *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert words in said.err


def test_without_the_package_it_is_one_sentence(
    situation: Situation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "policy.safetensors")
    save_policy(policy_of(situation, default_features(4, 3, 4, 32, 200.0), hidden=(8,)), file)
    monkeypatch.delitem(sys.modules, "besteffort.adapters.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)  # as where it is not installed
    assert main(["policy", "export", file, "--onnx", str(tmp_path / "policy.onnx")]) == 2
    said = "The package `onnx` is not installed; run `pip install onnx` to export to ONNX."
    assert capsys.readouterr().err == f"besteffort: {said}\n"
    assert not (tmp_path / "policy.onnx").exists()
