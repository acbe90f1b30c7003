from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from besteffort.cli import main
from besteffort.errors import InputError
from besteffort.files import read_jsonl
from besteffort.learning.train import Trained, train
from besteffort.policy import load_policy
from besteffort.profile import save_profile
from besteffort.runs.config import load_config, write_config
from besteffort.runs.experiment import RunConfig, load_run
from besteffort.runs.trackers import MetricsLog
from besteffort.runs.training import dqn_policy, make_policy, make_training_problem, run_training
from besteffort.simulator.build import build
from besteffort.weights import with_bypass
from besteffort.workload import arrivals
from besteffort.workload.config import DeadlinesConfig, Poisson, RandomRates, Trace
from besteffort.workload.resample import ResampledWorkload
from besteffort.workload.rescale import capacity as capacity_of
from besteffort.workload.sample import sample_requests
from besteffort.workload.trace_workload import ReplayAtRates
from besteffort.workload.traces import read_trace


def test_run_directory_is_whole(trained: Path, small: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {
        *("run.json", "config.yaml", "metrics.jsonl", "metrics.csv", "tensorboard", "checkpoint.npz"),
        *("policy.safetensors", "policy-0.safetensors", "policy-1.safetensors"),
    }
    resolved = load_config(trained / "config.yaml", RunConfig)
    run, _ = load_run(small)
    assert resolved == dataclasses.replace(run, training=dataclasses.replace(run.training, seeds=2))


def test_metrics_per_seed(trained: Path) -> None:
    records = read_jsonl(trained / "metrics.jsonl")
    assert [(record["decisions"], record["seed"]) for record in records] == [
        (decisions, seed) for decisions in (2048, 4096, 6144, 8192) for seed in (0, 1)
    ]
    assert all(0 <= record["reward"] <= 1 and len(record["actions"]) == 3 for record in records)


def test_seeds_differ_and_the_best_is_one_of_them(trained: Path) -> None:
    one, two = (load_policy(trained / f"policy-{seed}.safetensors") for seed in (0, 1))
    assert not np.allclose(one.weights[0][0], two.weights[0][0])
    assert (one.training["seed"], two.training["seed"]) == (0, 1)
    best = (trained / "policy.safetensors").read_bytes()
    assert best in [(trained / f"policy-{seed}.safetensors").read_bytes() for seed in (0, 1)]


def test_resumed_run_ends_alike(trained: Path, small: Path, tmp_path: Path) -> None:
    """The last checkpoint is there, the files after it and a line of metrics are not: nothing is trained again.

    Its configuration was written before tasks had quantiles.
    """
    out = tmp_path / "resumed"
    shutil.copytree(trained, out)
    config = (out / "config.yaml").read_text(encoding="utf-8")
    assert config.count("output_quantiles: null") == 2
    (out / "config.yaml").write_text(config.replace("  output_quantiles: null\n", ""), encoding="utf-8")
    for path in out.glob("policy*"):
        path.unlink()
    assert main(["train", str(small), "--seeds", "2", "--out", str(out), "--resume"]) == 0
    for name in ("policy.safetensors", "policy-0.safetensors", "policy-1.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (trained / name).read_bytes()


def test_seeds_beside_one_that_diverges_are_kept(
    trained: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says which seed, and its exit status that not all went well; so does one that resumes."""

    def unlike(*given: Any, **named: Any) -> Trained:
        env, params, features, config, hyper, keys = given
        rates = {name: np.array([getattr(hyper, name), 1e30]) for name in ("learning_rate", "learning_rate_end")}
        return train(env, params, features, config, dataclasses.replace(hyper, **rates), keys, **named)

    monkeypatch.setattr("besteffort.runs.training.train", unlike)
    out = tmp_path / "diverged"
    arguments = ["train", str(small), "--seeds", "2", "--out", str(out)]
    assert main(arguments) == 2
    said = capsys.readouterr()
    sentence = "besteffort: Training diverged: seed 1 has lost its finite weights by 2,048 decisions; lower"
    assert sentence in said.err
    assert f"{out} keeps the policies of the other seeds" in said.err
    assert f"Policy: {out / 'policy.safetensors'}" in said.out
    assert not (out / "policy-1.safetensors").exists()
    for name in ("policy.safetensors", "policy-0.safetensors"):
        assert (out / name).read_bytes() == (trained / "policy-0.safetensors").read_bytes()
    assert {record["seed"] for record in read_jsonl(out / "metrics.jsonl")} == {0}

    assert main([*arguments, "--resume", "--json"]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert json.loads(said.out)["files"]["policies"] == [str(out / "policy-0.safetensors")]


def test_a_training_of_which_no_seed_is_left_says_so(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its metrics are no JSON numbers, and not written."""
    rate = ["--set", "training.hyper.learning_rate=1e30", "--set", "training.hyper.learning_rate_end=1e30"]
    assert main(["train", str(small), *rate, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "Training diverged: seed 0 has lost its finite weights by 2,048 decisions; lower" in said.err
    assert "keeps" not in said.err
    assert not list((tmp_path / "out").glob("policy*"))


def test_lines_after_the_checkpoint_come_once(trained: Path, small: Path, tmp_path: Path) -> None:
    """Killed before the first checkpoint: all points come again, none twice."""
    out = tmp_path / "killed"
    out.mkdir()
    for name in ("run.json", "metrics.jsonl"):
        shutil.copy(trained / name, out)
    assert main(["train", str(small), "--seeds", "2", "--out", str(out), "--resume"]) == 0
    assert (out / "policy.safetensors").read_bytes() == (trained / "policy.safetensors").read_bytes()
    assert len(read_jsonl(out / "metrics.jsonl")) == 8


@pytest.mark.optimised  # the tolerance is for fused multiplications and additions
def test_fine_tuning_starts_from_the_policy(trained: Path, small: Path, tmp_path: Path) -> None:
    """With a learning rate of next to nothing, soft deadlines leave the weights where they were."""
    jax.clear_caches()  # the program may be there from a test that does without optimisations
    config = tmp_path / "soft.yaml"
    text = small.read_text(encoding="utf-8")
    text = text.replace("hyper: {", "hyper: {learning_rate: 1e-12, learning_rate_end: 0.0, ")
    text = text.replace("training:", "reward: {soft_span: 1.0}\ntraining:")
    config.write_text(text, encoding="utf-8")
    start = trained / "policy.safetensors"
    assert main(["train", str(config), "--from", str(start), "--out", str(tmp_path / "soft")]) == 0
    tuned = load_policy(tmp_path / "soft" / "policy.safetensors")
    for (kernel, bias), (old_kernel, old_bias) in zip(tuned.weights, load_policy(start).weights, strict=True):
        np.testing.assert_allclose(kernel, old_kernel, atol=1e-6)
        np.testing.assert_allclose(bias, old_bias, atol=1e-6)
    assert tuned.training["start"] == str(start)


def test_course_of_a_trace(small: Path, trace: Path) -> None:
    run, situation = load_run(small)
    lengths, _ = read_trace(trace, situation)
    own = dataclasses.replace(run.training, config=dataclasses.replace(run.training.config, credit="own"))
    problem = make_training_problem(situation, own, lengths)
    assert isinstance(problem.workload, ReplayAtRates)
    rates, capacity = run.training.workload, float(capacity_of(lengths, problem.situation)[-1])
    assert problem.workload.low == pytest.approx(rates.low * capacity)
    assert problem.workload.high == pytest.approx(rates.high / rates.burst_factor * capacity)
    for other in (Poisson(load=1.0), RandomRates(deadlines=DeadlinesConfig((0.5,)))):
        changed = make_training_problem(situation, dataclasses.replace(own, workload=other), lengths)
        assert isinstance(changed.workload, ResampledWorkload)
    narrow = RandomRates(low=1.0, high=2.0, burst_factor=4.0)
    with pytest.raises(InputError, match=r"`training.workload.high` over .* is 0\.5, below `low`, 1;"):
        make_training_problem(situation, dataclasses.replace(own, workload=narrow), lengths)
    assert problem.situation.mean_output_tokens.mean() == pytest.approx(lengths.output_tokens.mean(), rel=0.1)
    # For own-request credit ring and history hold what is open at the highest load, in whole chunks.
    assert problem.training.config.buffer_length % run.training.config.rollout_length == 0
    assert problem.training.history >= problem.training.config.buffer_length > run.training.config.buffer_length


def test_another_rate_estimate_does_not_fit_but_other_features_do(trained: Path, small: Path) -> None:
    _, situation = load_run(small)
    path = trained / "policy.safetensors"
    other = dataclasses.replace(situation, view=dataclasses.replace(situation.view, features=("task", "batch_sizes")))
    assert load_policy(path, other).situation.view.features == situation.view.features
    slow = dataclasses.replace(situation, view=dataclasses.replace(situation.view, rate_tau_s=9.0))
    with pytest.raises(InputError, match=r"`view.rate_tau_s` of the situation is 9"):
        load_policy(path, slow)


def test_another_configuration_is_not_written_over_the_one_that_began(
    trained: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "begun"
    shutil.copytree(trained, out)
    other = tmp_path / "other.yaml"
    other.write_text(
        small.read_text(encoding="utf-8").replace("hidden_sizes: [8]", "hidden_sizes: [4]"), encoding="utf-8"
    )
    assert main(["train", str(other), "--seeds", "2", "--out", str(out), "--resume"]) == 2
    assert "another configuration; give the same one" in " ".join(capsys.readouterr().err.split())
    assert (out / "config.yaml").read_bytes() == (trained / "config.yaml").read_bytes()
    for left in out.glob("*checkpoint.npz"):
        left.unlink()
    assert main(["train", str(other), "--seeds", "2", "--out", str(out), "--resume"]) == 2
    assert (out / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()


def test_a_run_whose_profile_is_beside_it_goes_on(
    trained: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profile's path is relative, that of the run is not."""
    monkeypatch.chdir(tmp_path)
    run, situation = load_run(small)
    save_profile(situation.profile, "mine.json")
    mine = dataclasses.replace(run, profile="mine.json")
    write_config(Path("mine.yaml"), mine)
    out = tmp_path / "deep" / "out"
    shutil.copytree(trained, out)
    write_config(out / "config.yaml", dataclasses.replace(mine, training=dataclasses.replace(mine.training, seeds=2)))
    assert main(["train", "mine.yaml", "--seeds", "2", "--out", str(out), "--resume"]) == 0
    assert (out / "policy.safetensors").read_bytes() == (trained / "policy.safetensors").read_bytes()


def test_a_trace_to_train_on_brings_its_own_lengths(small: Path, trace: Path) -> None:
    run, situation = load_run(small)
    problem = make_training_problem(situation, dataclasses.replace(run.training, workload=Trace(path=trace)))
    requests, _ = read_trace(trace, situation, seed=0)
    longest = max(task.prompt_tokens[1] for task in problem.situation.tasks)
    assert longest == requests.prompt_tokens.max() > max(task.prompt_tokens[1] for task in situation.tasks)
    _, params = build(problem.situation, problem.workload, history=8)
    assert params.prefill.shape[1] == longest + 1


@pytest.fixture(scope="module")
def search_config(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search") / "search.yaml"
    text = small.read_text(encoding="utf-8").replace("training:", "training:\n  method: search")
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def searched(search_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a search with two seeds; to be read only."""
    out = tmp_path_factory.mktemp("searched") / "out"
    assert main(["train", str(search_config), "--seeds", "2", "--out", str(out)]) == 0
    return out


def test_a_search_leaves_the_files_of_a_training(trained: Path, searched: Path, search_config: Path) -> None:
    assert {path.name for path in searched.iterdir()} == {path.name for path in trained.iterdir()}
    assert load_config(searched / "config.yaml", RunConfig).training.method == "search"
    records = read_jsonl(searched / "metrics.jsonl")
    # Twice the decisions that the configuration names, since the rates of the training load are spread.
    assert [(record["decisions"], record["seed"]) for record in records] == [
        (decisions, seed) for decisions in (480, 960) for seed in (0, 1)
    ]
    assert all(0 <= record["worst"] <= record["mean"] <= record["reward"] <= 1 for record in records)
    _, situation = load_run(search_config)
    one, two = (load_policy(searched / f"policy-{seed}.safetensors", situation) for seed in (0, 1))
    for seed, policy in enumerate((one, two)):
        assert policy.is_rule
        assert (policy.training["method"], policy.training["seed"]) == ("search", seed)
        assert policy.training["search"]["population"] == 4
    assert one.rule.width != two.rule.width
    best = (searched / "policy.safetensors").read_bytes()
    assert best in [(searched / f"policy-{seed}.safetensors").read_bytes() for seed in (0, 1)]


def test_searches_are_repeated_and_resumed_to_the_bit(searched: Path, search_config: Path, tmp_path: Path) -> None:
    again, resumed = tmp_path / "again", tmp_path / "resumed"
    assert main(["train", str(search_config), "--seeds", "2", "--out", str(again)]) == 0
    shutil.copytree(searched, resumed)
    for path in resumed.glob("policy*"):
        path.unlink()
    assert main(["train", str(search_config), "--seeds", "2", "--out", str(resumed), "--resume"]) == 0
    for name in ("policy.safetensors", "policy-0.safetensors", "policy-1.safetensors", "metrics.jsonl"):
        assert (again / name).read_bytes() == (resumed / name).read_bytes() == (searched / name).read_bytes()


@pytest.mark.slow
def test_a_search_that_is_killed_ends_alike(searched: Path, search_config: Path, tmp_path: Path) -> None:
    """SIGKILL of its process after the first generation, when a checkpoint is there and the end is not."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "besteffort", "train", str(search_config), "--seeds", "2", "--out", str(out)]
    process = subprocess.Popen([*command, "--set", "training.search.generations=2"])
    try:
        while not (out / "checkpoint.npz").exists():
            assert process.poll() is None, "it ended before its first checkpoint"
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, "it finished before it was killed"
    assert not (out / "policy.safetensors").exists()
    assert main(["train", str(search_config), "--seeds", "2", "--out", str(out), "--resume"]) == 0
    for name in ("policy.safetensors", "policy-0.safetensors", "policy-1.safetensors", "metrics.jsonl", "config.yaml"):
        assert (out / name).read_bytes() == (searched / name).read_bytes()


@pytest.mark.parametrize("content", ["", "\0\1", "[]", "a: b", "{"])
def test_a_damaged_configuration_is_one_sentence(trained: Path, small: Path, tmp_path: Path, content: str) -> None:
    out = tmp_path / "damaged"
    shutil.copytree(trained, out)
    (out / "config.yaml").write_text(content, encoding="utf-8")
    problem = make_training_problem(load_run(small)[1], load_config(trained / "config.yaml", RunConfig).training)
    with pytest.raises(InputError, match=r"config\.yaml"):
        run_training(load_run(small)[0], problem, out)
    assert (out / "config.yaml").read_text(encoding="utf-8") == content


@pytest.mark.parametrize(
    "line", ["{}", '{"seed": "0", "decisions": 1}', '{"seed": 0, "decisions": 1, "reward": null}', "[1]", '{"seed": 0}']
)
def test_damaged_metrics_are_one_sentence(trained: Path, small: Path, tmp_path: Path, line: str) -> None:
    out = tmp_path / "damaged"
    shutil.copytree(trained, out)
    (out / "metrics.jsonl").write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 1: the line is n.*; mend or remove it\."):
        MetricsLog(out, [0], ("a", "b", "c"), {})


def test_a_search_starts_from_the_rule_of_a_policy(trained: Path, searched: Path, search_config: Path) -> None:
    run, situation = load_run(search_config)
    start = searched / "policy.safetensors"
    problem = make_training_problem(situation, dataclasses.replace(run.training, start=start))
    np.testing.assert_array_equal(problem.rule.prices, load_policy(start).rule.prices)
    assert problem.rule.width == load_policy(start).rule.width
    with pytest.raises(InputError, match="the policy has no rule for a search to start from"):
        make_training_problem(situation, dataclasses.replace(run.training, start=trained / "policy.safetensors"))


@pytest.mark.parametrize("features", [("task", "batch_sizes"), ("task", "value")])
def test_networks_take_over_a_rule_where_they_read_values(
    searched: Path, search_config: Path, features: tuple[str, ...]
) -> None:
    run, situation = load_run(search_config)
    situation = dataclasses.replace(situation, view=dataclasses.replace(situation.view, features=features))
    start = searched / "policy.safetensors"
    problem = make_training_problem(situation, dataclasses.replace(run.training, method="dqn", start=start))
    assert problem.weights is None
    assert tuple(feature.name for feature in problem.features) == features
    width = sum(feature.size for feature in problem.features)
    policy = make_policy(problem, ((np.zeros((width, 3)), np.zeros(3)),), {})
    assert (policy.rule is not None) == ("value" in features)
    if policy.rule is not None:
        assert policy.rule.width == load_policy(start).rule.width


@pytest.mark.parametrize(("price", "addition", "kept"), [(0.0, -1.0, 0.0), (40.0, 100.0, 0.25)])
def test_of_what_networks_add_to_a_rule_that_is_kept_which_does_best(
    search_config: Path, price: float, addition: float, kept: float
) -> None:
    """Of idle instances the largest model is best. A rule that knows loses by what sends it elsewhere; one that does
    not, since it fears latency, gains by what makes up for that, and no more of it is kept than that takes."""
    run, situation = load_run(search_config)
    situation = dataclasses.replace(situation, view=dataclasses.replace(situation.view, features=("value",)))
    config = dataclasses.replace(run.training.config, ensemble_size=1)
    training = dataclasses.replace(run.training, method="dqn", config=config)
    problem = make_training_problem(situation, training)
    prices = {"latency_price": price, "occupancy_price": 0.0, "time_price": 0.0, "latency_exponent": 0.0}
    selection = tuple(sample_requests(situation, arrivals.Poisson(0.5), 30, seed=seed) for seed in (0, 1))
    problem = dataclasses.replace(problem, rule=dataclasses.replace(problem.rule, **prices), selection=selection)
    hidden = (np.zeros((3, 2), np.float32), np.ones(2, np.float32))
    last = (np.zeros((2, 3), np.float32), np.array([0.0, 0.0, addition], np.float32))
    policy = dqn_policy(problem, with_bypass((hidden, last), 0), 0, 100)
    assert policy.training["added"] == kept
    np.testing.assert_allclose(policy.weights[-1][1], [0.0, 0.0, kept * addition])
