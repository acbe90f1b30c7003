from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from besteffort.errors import InputError
from besteffort.evaluation.config import EvaluationConfig
from besteffort.learning.config import DQNConfig, DQNHyperparams
from besteffort.runs.config import config_names, load_config, load_situation, to_yaml
from besteffort.runs.experiment import RunConfig, TrainingConfig, load_run
from besteffort.workload.config import Markov
from besteffort.workload.readers import READERS


def test_hyper_changes_only_what_is_given() -> None:
    config = DQNConfig(decisions=1_000)
    assert TrainingConfig(config=config).numbers() == DQNHyperparams.for_decisions(1_000)
    assert TrainingConfig(config=config, hyper={"tau": 0.5}).numbers() == DQNHyperparams.for_decisions(1_000, tau=0.5)


def test_unknown_hyper_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"`training.hyper.learning_rat` is not a known number, did you mean `learning_"
    ):
        TrainingConfig(hyper={"learning_rat": 1.0})


@pytest.mark.parametrize("name", config_names())
def test_shipped_configurations_are_whole(name: str, tmp_path: Path) -> None:
    run, situation = load_run(name)
    assert load_situation(name) == situation
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(run), encoding="utf-8")
    assert load_config(path, RunConfig) == run


def test_sections_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "profile: opt-a100\n"
        "tasks: [{name: piqa}]\n"
        "training: {seeds: 3, config: {decisions: 1000, hidden_sizes: [8]}, hyper: {tau: 0.9}, start: p.safetensors}\n"
        "evaluation: {burst: {kind: markov, loads: [1.0, 2.0], dwell_s: [1.0, 3.0]}}\n",
        encoding="utf-8",
    )
    run, _ = load_run(path)
    assert (run.training.seeds, run.training.config.hidden_sizes, run.training.start) == (
        3,
        (8,),
        tmp_path / "p.safetensors",
    )
    assert run.training.numbers().tau == 0.9
    assert run.evaluation.burst == Markov(loads=(1.0, 2.0), dwell_s=(1.0, 3.0))


def test_tuning_seeds_are_no_judging_seeds() -> None:
    config = EvaluationConfig(seeds=5, tuning_seeds=3)
    assert not set(config.judging_seeds) & set(config.unjudged_seeds)
    assert len(config.unjudged_seeds) == 3


def test_loads_must_ascend() -> None:
    with pytest.raises(InputError, match=r"`loads` is \[2.0, 1.0\]; give positive loads, each once, smallest first"):
        EvaluationConfig(loads=(2.0, 1.0))


def test_formats_of_a_trace_are_those_of_the_readers(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    text = (
        "profile: opt-a100\ntasks: [{{name: piqa}}]\ntraining: {{workload: {{kind: trace, path: a.csv, format: {}}}}}\n"
    )
    for name in READERS:
        path.write_text(text.format(name), encoding="utf-8")
        assert load_run(path)[0].training.workload.format == name
    path.write_text(text.format("nonsense"), encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_run(path)
    assert str(error.value) == f"{path}: Trace a.csv: `format` is `nonsense`; choose from {', '.join(READERS)}."


def test_changes_of_a_run() -> None:
    before, _ = load_run("paper")
    changes = {"training.config.num_envs": 64, "training.hyper.tau": 0.9, "evaluation.seeds": 3, "cluster.replicas": 2}
    after, situation = load_run("paper", changes=changes)
    assert after.training.config == dataclasses.replace(before.training.config, num_envs=64)
    assert after.training.numbers().tau == 0.9
    assert after.evaluation == dataclasses.replace(before.evaluation, seeds=3)
    assert situation.cluster.replicas == 2


def test_changes_that_do_not_fit_each_other() -> None:
    with pytest.raises(
        InputError, match=r"paper\.yaml with `changes`: Training: the environment remembers 1 decisions"
    ):
        load_run("paper", changes={"training.history": 1})


@pytest.mark.parametrize(
    ("seed", "training", "lists"),
    [(10_000, 0, (10_000, 10_003)), (10_003, 0, (10_000, 10_003)), (49_998, 3, (50_000, 50_003))],
)
def test_what_is_searched_on_is_not_judged_on(seed: int, training: int, lists: tuple[int, int]) -> None:
    """A list is known by its load and its seed."""
    changes = {"evaluation.seed": seed, "evaluation.seeds": 5, "training.seed": training, "training.seeds": 3}
    first, last = lists
    with pytest.raises(InputError, match=rf"`evaluation.seed` is {seed}, and lists of the seeds {first} to {last} are"):
        load_run("quickstart", changes=changes)
    load_run("quickstart", changes=changes | {"evaluation.seed": seed + 2_000})
