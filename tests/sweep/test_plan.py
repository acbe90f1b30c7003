"""Sweeps as they are stated: which trials, which programs, and one sentence for what cannot be."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from besteffort.cli import main
from besteffort.errors import InputError
from besteffort.runs.config import config_names, find_config
from besteffort.sweep.plan import Axis, Judging, SweepConfig, SweepPlan, load_sweep, make_plan

LR = "training.hyper.learning_rate"
HIDDEN = "training.config.hidden_sizes"


@pytest.fixture
def planned(small: Path) -> Callable[..., SweepPlan]:
    """Plans a sweep of the small configuration."""

    def plan(axes: dict[str, Axis], together: int = 64, **more: Any) -> SweepPlan:
        return make_plan(SweepConfig(str(small), axes, **more), together=together)

    return plan


def listed(*values: Any) -> Axis:
    return Axis(values=values)


def test_grid_of_listed_axes_and_seeds(planned: Callable[..., SweepPlan]) -> None:
    plan = planned({LR: listed(1e-3, 1e-2), "reward.miss_penalty": listed(0.0, 0.5, 1.0)}, seeds=2)
    seen = [
        (trial.values[LR], trial.values["reward.miss_penalty"], trial.config.training.seed) for trial in plan.trials
    ]
    assert seen == [(rate, cost, seed) for rate in (1e-3, 1e-2) for cost in (0.0, 0.5, 1.0) for seed in (0, 1)]
    assert [trial.setting for trial in plan.trials] == [setting for setting in range(6) for _ in range(2)]
    for trial in plan.trials:
        assert trial.config.training.hyper["learning_rate"] == trial.values[LR]
        assert trial.config.reward.miss_penalty == trial.values["reward.miss_penalty"]
        assert trial.config.training.seeds == 1


def test_numbers_share_a_program_and_shapes_do_not(planned: Callable[..., SweepPlan]) -> None:
    numbers = {
        LR: listed(1e-3, 1e-2),
        "training.hyper.discount": listed(0.9, 1.0),
        "training.hyper.epsilon_end": listed(0.02, 0.1),
        "reward.miss_penalty": listed(0.0, 0.5),
        "tasks.*.deadline.base_s": listed(0.1, 0.2),
        "training.workload.high": listed(4.0, 24.0),
        "cluster.network_delay_s": listed(0.0, 0.01),
        "training.seed": listed(0, 7),
    }
    for name, axis in numbers.items():
        assert len(planned({name: axis}).programs) == 1, name
    others = {
        HIDDEN: listed([16], [8, 8]),
        "cluster.replicas": listed(2, 3),
        "cluster.max_batch": listed(8, 4),
        "training.config.batch_size": listed(64, 32),
        "view.features": listed(["task", "batch_sizes"], ["task", "batch_sizes", "arrival_rate"]),
        "training.workload": listed({"kind": "poisson", "load": 1.0}, {"kind": "gamma", "load": 1.0, "cv": 2.0}),
        "profile": listed("opt-a100", "opt-h100"),
    }
    assert {name: len(planned({name: axis}).programs) for name, axis in others.items()} == dict.fromkeys(others, 2)
    both = planned({HIDDEN: listed([16], [8]), LR: listed(1e-3, 1e-2)}, seeds=3)
    assert both.programs == ((0, 1, 2, 6, 7, 8), (3, 4, 5, 9, 10, 11)) or both.programs == (
        tuple(range(6)),
        tuple(range(6, 12)),
    )


def test_programs_hold_no_more_trials_than_they_may(planned: Callable[..., SweepPlan]) -> None:
    plan = planned({LR: listed(*np.linspace(1e-4, 1e-2, 10).tolist())}, together=4)
    assert plan.programs == ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))


def test_draws_are_in_range_repeat_and_stay_when_more_are_drawn(planned: Callable[..., SweepPlan]) -> None:
    axes = {
        LR: Axis(log_uniform=(1e-4, 1e-2)),
        "training.hyper.discount": Axis(uniform=(0.5, 1.0)),
        "training.config.batch_size": Axis(log_uniform=(16.0, 64.0), whole=True),
        "reward.soft_span": Axis(choice=(0.0, 1.0)),
        "reward.miss_penalty": listed(0.0, 0.1),
    }
    few, more, others = (planned(axes, samples=n, seed=seed) for n, seed in ((3, 0), (20, 0), (3, 1)))
    values = [trial.values for trial in more.trials]
    assert len(values) == 40
    assert [trial.values for trial in few.trials] == values[:3] + values[20:23]
    assert [trial.values for trial in others.trials] != [trial.values for trial in few.trials]
    assert values == [trial.values for trial in planned(axes, samples=20).trials]
    rates = np.array([value[LR] for value in values])
    assert rates.min() >= 1e-4
    assert rates.max() <= 1e-2
    assert 0.25 < (rates < 1e-3).mean() < 0.75  # half of them in the lower decade
    assert {type(value["training.config.batch_size"]) for value in values} == {int}
    assert {value["reward.soft_span"] for value in values} == {0.0, 1.0}


def test_a_setting_that_is_drawn_again_is_trained_once(planned: Callable[..., SweepPlan]) -> None:
    axes = {"reward.soft_span": Axis(choice=(0.0, 1.0)), "reward.miss_penalty": listed(0.0, 0.1)}
    plan = planned(axes, samples=20, seeds=2)
    spans, penalties = (sorted(trial.values[name] for trial in plan.trials) for name in axes)
    assert spans == [0.0] * 4 + [1.0] * 4
    assert penalties == [0.0] * 4 + [0.1] * 4
    assert [trial.setting for trial in plan.trials] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_seeds_of_a_setting_share_its_draws(planned: Callable[..., SweepPlan]) -> None:
    plan = planned({LR: Axis(log_uniform=(1e-4, 1e-2))}, samples=2, seeds=2)
    rates = [trial.values[LR] for trial in plan.trials]
    assert rates[0] == rates[1] != rates[2] == rates[3]
    assert [trial.config.training.seed for trial in plan.trials] == [0, 1, 0, 1]


def test_entries_by_name_number_and_star(planned: Callable[..., SweepPlan]) -> None:
    plan = planned({"tasks.piqa.weight": listed(2.0), "tasks.1.weight": listed(3.0)})
    assert [task.weight for task in plan.trials[0].config.tasks] == [2.0, 3.0]
    plan = planned({"tasks.*.weight": listed(4.0)}, changes={"cluster.replicas": 3})
    assert [task.weight for task in plan.trials[0].config.tasks] == [4.0, 4.0]
    assert plan.trials[0].config.cluster.replicas == plan.base.cluster.replicas == 3


def test_a_file_says_the_same(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"base: {small}\naxes:\n  {LR}: {{log_uniform: [1e-4, 1e-2]}}\n  {HIDDEN}: [[16], [8]]\n"
        "samples: 3\njudge: {lists: grid}\n",
        encoding="utf-8",
    )
    axes = {LR: Axis(log_uniform=(1e-4, 1e-2)), HIDDEN: listed([16], [8])}
    assert load_sweep(path) == SweepConfig(str(small), axes, samples=3, judge=Judging(lists="grid"))


@pytest.mark.parametrize("name", config_names("sweeps"))
def test_sweeps_that_come_with_the_package(name: str) -> None:
    plan = make_plan(load_sweep(name))
    assert len(plan.trials) > 1
    assert find_config(name, "sweeps").is_file()


BAD = {
    "misspelt key": (
        "axes: {training.hyper.discount: [1.0]}\nsample: 2",
        "`sample` is not a known field, did you mean",
    ),
    "misspelt way": ("axes: {training.hyper.discount: {unifrom: [0.5, 1.0]}}", "did you mean `uniform`"),
    "wrong type": (
        "axes: {training.hyper.discount: [1.0]}\nsamples: many",
        '`samples` is "many", but should be a valid',
    ),
    "no axis": ("axes: {}", "`axes` is empty; name at least one"),
    "no values": ("axes: {training.hyper.discount: []}", "`training.hyper.discount` has no `values`"),
    "two ways": (
        "axes: {training.hyper.discount: {uniform: [0.5, 1.0], choice: [1.0]}}",
        "`training.hyper.discount` has choice and uniform; give one of",
    ),
    "range turned round": ("axes: {training.hyper.discount: {uniform: [1.0, 0.5]}}", "put the smaller number first"),
    "logarithm of nothing": ("axes: {training.hyper.discount: {log_uniform: [0.0, 0.5]}}", "from 0; start above 0"),
    "out of range": (
        "axes: {training.hyper.discount: {uniform: [0.5, 1.5]}}",
        "`training.hyper.discount` reaches 1.5: Training: `discount` is 1.5; give numbers from 0 to 1",
    ),
    "value out of range": (
        "axes: {training.hyper.discount: [0.5, 1.5]}",
        "trial 1 (discount 1.5): Training: `discount` is 1.5",
    ),
    "value of the wrong type": (
        "axes: {training.config.batch_size: [many]}",
        'trial 0 (batch_size many): `training.config.batch_size` is "many", but should be a valid integer',
    ),
    "not a whole number": ("axes: {cluster.replicas: {uniform: [1, 3]}}", "should be a valid integer"),
    "values that do not fit": (
        "axes: {training.config.buffer_length: [96, 100]}",
        "`buffer_length` is 100; give a multiple of `rollout_length`",
    ),
    "unknown field": (
        "axes: {training.config.hiden_sizes: [[8]]}",
        "`training.config.hiden_sizes`: `training.config` has no field `hiden_sizes`, did you mean `hidden_sizes`?",
    ),
    "unknown number": (
        "axes: {training.hyper.learning_rat: [1e-3]}",
        "`training.hyper.learning_rat` is not a known number, did you mean `learning_rate`?",
    ),
    "unknown entry": ("axes: {tasks.sums.weight: [1.0]}", "`tasks` has no entry `sums`; give `*` for all"),
    "field of a number": ("axes: {cluster.replicas.x: [1]}", "`cluster.replicas` is 2 and has no fields"),
    "two axes on a field": (
        "axes: {tasks.*.weight: [1.0], tasks.piqa.weight: [2.0]}",
        "`tasks.*.weight` and `tasks.piqa.weight` both set `tasks.0.weight`; leave one of them out",
    ),
    "an axis within another": (
        "axes: {training.config: [{}], training.config.hidden_sizes: [[8]]}",
        "both set `training.config.hidden_sizes`",
    ),
    "the same axis twice": (
        "axes:\n  cluster.replicas: [1]\n  cluster.replicas: [2]",
        "the key `cluster.replicas` stands twice",
    ),
    "changed and varied": (
        "axes: {cluster.replicas: [1]}\nchanges: {cluster.replicas: 2}",
        "`cluster.replicas` is in both `changes` and `axes`",
    ),
    "changed in vain": (
        "axes: {tasks.*.weight: [1.0]}\nchanges: {tasks.piqa.weight: 2.0}",
        "`changes`: `tasks.piqa.weight` has no effect, for the axis `tasks.*.weight` sets it, too",
    ),
    "changes that are none": (
        "axes: {cluster.replicas: [1]}\nchanges: 5",
        "`changes` is 5, but should be a mapping",
    ),
    "a seed twice": ("axes: {training.seed: [3, 4, 3]}", "`training.seed` lists 3 twice; list it once"),
    "a value twice": ("axes: {training.config.hidden_sizes: [[8], [8]]}", "lists [8] twice; list it once"),
    "samples of a grid": (
        "axes: {cluster.replicas: [1]}\nsamples: 2",
        "`samples` is 2, but all axes list their values",
    ),
    "seeds twice": ("axes: {training.seed: [1, 2]}\nseeds: 2", "both set the networks to train"),
    "seeds drawn": ("axes: {training.seed: {uniform: [1, 9]}}", "list its values, so that settings share them"),
    "seeds as an axis": ("axes: {training.seeds: [1, 2]}", "set `seeds` to the number of networks per setting"),
    "judged differently": ("axes: {evaluation.requests: [100, 200]}", "would judge trials differently"),
    "judged in another world": (
        "axes: {tasks: [[{name: piqa}]]}\njudge: {situation: base}",
        'trial 0 (tasks [{"name": "piqa"}]): its tasks are piqa, so it cannot be judged in the situation of the base',
    ),
}


@pytest.mark.parametrize(("text", "words"), BAD.values(), ids=BAD.keys())
def test_bad_sweeps_are_one_sentence(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"base: {small}\n{text}\n", encoding="utf-8")
    assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"besteffort: {path}")
    assert said.count("\n") == 1
    assert words in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "nothing: no configuration of this name"),
        (["nothing.yaml"], "nothing.yaml: there is no such file"),
        (["learning_rate", "--together", "0"], "`--together` is 0; give a number from 1 to 65,536"),
        (["learning_rate", "--workers", "0"], "`--workers` is 0; give a number from 1 to 65,536"),
        (["learning_rate", "--address", "auto"], "are for a cluster; add `--backend ray`"),
        (["learning_rate", "--resume"], "there is no run to resume here"),
    ],
)
def test_bad_arguments(arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err


def test_unknown_base(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="quickstart"):
        make_plan(SweepConfig("quikstart", {LR: listed(1e-3)}))


def test_samples_out_of_a_dataclass_are_checked_too(small: Path) -> None:
    with pytest.raises(InputError, match="has no values; give one of"):
        SweepConfig(str(small), {LR: Axis()})
    with pytest.raises(InputError, match="`whole` has nothing to round"):
        SweepConfig(str(small), {LR: dataclasses.replace(listed(1), whole=True)})


def test_changes_of_a_sweep_win_over_its_own(tmp_path: Path, small: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"base: {small}\nchanges: {{cluster.replicas: 1, tasks.*.weight: 3.0}}\naxes: {{training.hyper.tau: [0.9]}}\n",
        encoding="utf-8",
    )
    assert load_sweep(file, changes={}) == load_sweep(file)
    sweep = load_sweep(file, changes={"cluster.replicas": 3, "tasks.piqa.weight": 2.0})
    assert list(sweep.changes.items()) == [("tasks.*.weight", 3.0), ("cluster.replicas", 3), ("tasks.piqa.weight", 2.0)]
    for changes, words in (
        ({"training.hyper.tau": 0.5}, "`--set`: `training.hyper.tau` is an axis of "),
        ({"cluster.replicas": 0}, "`--set`: `cluster.replicas` is 0"),
        ({"cluster.replcas": 2}, "`--set`: `cluster.replcas`: `cluster` has no field `replcas`, did you mean"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            load_sweep(file, changes=changes, changes_from="`--set`")
