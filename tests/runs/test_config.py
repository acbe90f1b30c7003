from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.profile import load_profile, save_profile
from besteffort.runs.config import (
    SituationConfig,
    config_names,
    find_config,
    from_mapping,
    load_config,
    load_situation,
    located,
    parse_changes,
    read_yaml,
    to_yaml,
    write_config,
)
from besteffort.runs.experiment import RunConfig, load_run
from besteffort.situation import Cluster, Deadline, Reward, Task, View
from besteffort.workload.config import Trace


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "situation.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(path: str | Path) -> str:
    with pytest.raises(InputError) as error:
        load_config(path, SituationConfig)
    text = str(error.value)
    assert text.startswith(str(path))
    assert text.endswith(".")
    assert "\n" not in text
    return text


MINIMAL = "profile: opt-a100\ntasks: [{name: piqa}]\n"


def test_paper_is_the_default_situation() -> None:
    config = load_config("paper", SituationConfig)
    names = ("piqa", "arc_easy", "winogrande", "lambada")
    task = {"share": 1.0, "prompt_tokens": (64, 192), "output_tokens": (10, 30), "deadline": Deadline(0.1, 0.015)}
    assert config == SituationConfig(
        profile="opt-a100",
        tasks=tuple(Task(name=name, **task) for name in names),
        cluster=Cluster(replicas=4, max_batch=32, queue_capacity=32),
        reward=Reward(soft_span=0.0, miss_penalty=0.0),
        view=View(features=("task", "batch_sizes", "arrival_rate"), rate_tau_s=2.0),
    )


def test_paper_builds() -> None:
    situation = load_situation("paper")
    assert situation.task_names == ("piqa", "arc_easy", "winogrande", "lambada")
    assert len(situation.profile.model_names) == 3
    np.testing.assert_allclose(situation.shares, 0.25)


def test_absent_fields_take_their_defaults(write) -> None:
    assert load_config(write(MINIMAL), SituationConfig) == SituationConfig(profile="opt-a100", tasks=(Task("piqa"),))


def test_quantiles_of_output_lengths(write) -> None:
    text = "profile: opt-a100\ntasks: [{name: piqa, output_quantiles: [10, 12.5, 30]}]\n"
    assert load_config(write(text), SituationConfig).tasks == (Task("piqa", output_quantiles=(10.0, 12.5, 30.0)),)
    said = refused(write(text.replace("12.5", "40")))
    assert "Task `piqa`: `output_quantiles` has 40; give lengths from 10 to 30, the range in `output_tokens`." in said
    assert '`tasks[0].output_quantiles[1]` is "12"' in refused(write(text.replace("12.5", "'12'")))
    assert "`tasks[0].output_quantiles` is 3, but should be a list" in refused(
        write(text.replace("[10, 12.5, 30]", "3"))
    )


def test_written_out_and_read_back(write) -> None:
    config = load_config("paper", SituationConfig)
    config = dataclasses.replace(config, reward=Reward(soft_span=1.0, miss_penalty=1e-7))
    config = dataclasses.replace(config, tasks=(*config.tasks[1:], Task("piqa", output_quantiles=(10.0, 31 / 3))))
    assert load_config(write(to_yaml(config)), SituationConfig) == config


def test_names_and_paths(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "paper" in config_names()
    assert find_config("paper").is_file()
    path = write(MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert load_config("situation.yaml", SituationConfig) == load_config(path, SituationConfig)
    assert "no such file" in refused("none.yaml")
    assert "did you mean `paper`?" in refused("papr")
    refused(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is null, but should be a mapping"),
        ("tasks: [{name: piqa}]", "`profile` is missing"),
        ("profile: 3\ntasks: [{name: piqa}]", "`profile` is 3, but should be a valid string"),
        ("profile: opt-a100\ntasks: []", "`tasks` is []"),
        (MINIMAL + "clster: {}", "`clster` is not a known field, did you mean `cluster`?"),
        (MINIMAL + "cluster: {replica: 4}", "`cluster.replica` is not a known field, did you mean `replicas`?"),
        (MINIMAL + "cluster: {replicas: 0}", "`cluster.replicas` is 0, but should be greater than or equal to 1"),
        (MINIMAL + "cluster: {replicas: four}", '`cluster.replicas` is "four", but should be a valid integer'),
        (MINIMAL + "cluster: {max_batch: '32'}", '`cluster.max_batch` is "32", but should be a valid integer'),
        (MINIMAL + "reward: {miss_penalty: -1}", "`reward.miss_penalty` is -1"),
        (MINIMAL + "reward: {miss_penalty: .nan}", "`reward.miss_penalty` is NaN"),
        (MINIMAL + "view: {features: task}", '`view.features` is "task", but should be a list'),
        (
            "profile: opt-a100\ntasks: [{name: piqa, deadline: {base: 1}}]",
            "`tasks[0].deadline.base` is not a known field, did you mean `base_s`?",
        ),
        (
            "profile: opt-a100\ntasks: [{name: piqa, prompt_tokens: [9, 3]}]",
            "Task `piqa`: `prompt_tokens` is [9, 3]; put the smaller number first",
        ),
        (MINIMAL + "cluster: {replicas: 2, replicas: 3}", "line 3: the key `replicas` stands twice; mend the YAML"),
        (MINIMAL + "profile: other", "line 3: the key `profile` stands twice"),
        ("profile: [", "mend the YAML"),
        ("a: b: c", "line 1: mapping values are not allowed here"),
        ("profile: !!python/object/apply:os.getcwd []", "line 1: could not determine a constructor"),
        ("profile: \x07", "mend the YAML"),
    ],
)
def test_misfits_are_one_sentence(write, text: str, expected: str) -> None:
    assert expected in refused(write(text))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot read it as text" in refused(tmp_path / "x.yaml")


def test_a_situation_that_does_not_fit_its_profile_names_the_file(write) -> None:
    path = write("profile: opt-a100\ntasks: [{name: BoolQ}]")
    with pytest.raises(InputError, match="`BoolQ`") as error:
        load_situation(path)
    assert str(error.value).startswith(f"{path}: ")


def test_exponents_without_a_point_are_numbers(write) -> None:
    path = write(MINIMAL + "reward: {soft_span: 1e-3, miss_penalty: 2E+1}")
    assert load_config(path, SituationConfig).reward == Reward(soft_span=0.001, miss_penalty=20.0)


def test_merged_keys_are_not_duplicates(write) -> None:
    path = write(
        "profile: opt-a100\n"
        "tasks: [&a {name: piqa, share: 2.0}, &b {<<: *a, name: lambada}, {<<: *b, name: arc_easy, share: 1}]\n"
    )
    tasks = load_config(path, SituationConfig).tasks
    assert [(task.name, task.share) for task in tasks] == [("piqa", 2.0), ("lambada", 2.0), ("arc_easy", 1.0)]


def test_plain_data() -> None:
    assert from_mapping(Cluster, {"replicas": 2}, "here") == Cluster(replicas=2)
    with pytest.raises(InputError, match=r"^here: `replicas` is -1"):
        from_mapping(Cluster, {"replicas": -1}, "here")


def test_changes_reach_entries_of_lists_and_fields_that_the_file_leaves_out() -> None:
    before = load_situation("paper")
    changes = {"tasks.*.share": 0.5, "tasks.piqa.weight": 2, "tasks.1.weight": 3, "cluster.network_delay_s": 1e-3}
    after = load_situation("paper", changes=changes)
    assert [task.share for task in after.tasks] == [0.5] * 4
    assert [task.weight for task in after.tasks] == [2.0, 3.0, 1.0, 1.0]
    assert after.cluster == dataclasses.replace(before.cluster, network_delay_s=1e-3)
    assert load_situation("paper", changes={}) == before


def test_what_is_set_in_many_places_can_be_changed_in_one() -> None:
    whole = {"base_s": 1.0, "per_token_s": 0.1}
    after = load_situation("paper", changes={"tasks.*.deadline": whole, "tasks.piqa.deadline.base_s": 2.0})
    assert [task.deadline.base_s for task in after.tasks] == [2.0, 1.0, 1.0, 1.0]
    assert whole == {"base_s": 1.0, "per_token_s": 0.1}


def test_changes_are_yaml() -> None:
    texts = ["a.b=64", "a.c=1e-3", "d=[1, 2]", "e={f: true}", "g=null", "h=two words", "i=x=y"]
    expected = {"a.b": 64, "a.c": 1e-3, "d": [1, 2], "e": {"f": True}, "g": None, "h": "two words", "i": "x=y"}
    assert parse_changes(texts) == expected


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["cluster.replicas"], "lacks a field or its value; write it like `--set cluster.replicas=2`"),
        (["=2"], "lacks a field or its value"),
        (["cluster.replicas="], "`null` for no value"),
        (["a=1", "a=2"], "`--set` gives `a` twice"),
        (["a=[1"], "`--set a=[1`, line 1: expected ',' or ']'"),
        (["a={b: 1, b: 2}"], "the key `b` stands twice"),
        (["a=\x00"], r"`--set a=\x00`: unacceptable character"),
    ],
)
def test_texts_that_are_no_changes(texts: list[str], words: str) -> None:
    with pytest.raises(InputError) as error:
        parse_changes(texts)
    assert words in str(error.value)
    assert str(error.value).startswith("`--set")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cluster.replcas": 2}, "`cluster` has no field `replcas`, did you mean `replicas`?"),
        ({"tasks.sums.weight": 2}, "`tasks` has no entry `sums`"),
        ({"cluster.replicas.x": 2}, "`cluster.replicas` is 4 and has no fields; change it as a whole"),
        ({"cluster.replicas": 0}, "`cluster.replicas` is 0, but should be greater than or equal to 1"),
        ({"cluster.replicas": "two"}, '`cluster.replicas` is "two", but should be a valid integer'),
        ({"training.seeds": 2}, "has no field `training`"),
        ({"profile": "opt-tpu"}, "opt-tpu: no such file"),
        ({"training.config.envs": 2}, "is now called `training.config.num_envs`"),
    ],
)
def test_changes_that_do_not_fit(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as error:
        load_situation("paper", changes=changes, changes_from="`--set`")
    assert words in str(error.value)
    assert "`--set`: " in str(error.value)
    assert "\n" not in str(error.value)


def test_the_path_of_a_profile_counts_from_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read, changed and written from any directory, it is the same file; a change counts from where it is made."""
    profile = load_profile("opt-a100")
    (tmp_path / "a" / "b").mkdir(parents=True)
    save_profile(profile, tmp_path / "a" / "mine.json")
    path = tmp_path / "a" / "b" / "s.yaml"
    path.write_text(MINIMAL.replace("opt-a100", "../mine.json"), encoding="utf-8")
    for where, name in ((tmp_path, "a/b/s.yaml"), (tmp_path / "a", "b/s.yaml"), (tmp_path / "a" / "b", "s.yaml")):
        monkeypatch.chdir(where)
        config = load_config(name, SituationConfig)
        assert load_situation(name).profile == config.build().profile == profile
        write_config(Path("again.yaml"), config)
        assert load_config("again.yaml", SituationConfig) == config
    monkeypatch.chdir(tmp_path)
    write_config(Path("a/b/t.yaml"), SituationConfig("a/mine.json", (Task("piqa"),)))
    assert "profile: ../mine.json" in Path("a/b/t.yaml").read_text(encoding="utf-8")
    assert load_situation("a/b/s.yaml", changes={"profile": "a/mine.json"}).profile == profile
    path.write_text(MINIMAL.replace("opt-a100", "nowhere.json"), encoding="utf-8")
    with pytest.raises(InputError, match=r"a/b/nowhere.json: no such file"):
        load_situation("a/b/s.yaml")
    absolute = tmp_path / "a" / "mine.json"
    write_config(Path("a/b/u.yaml"), SituationConfig(str(absolute), (Task("piqa"),)))
    assert f"profile: {absolute}" in Path("a/b/u.yaml").read_text(encoding="utf-8")


def test_a_configuration_behind_a_link_is_read_from_either_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the directory of runs is a link to a disk with room: a sweep's programs know their real directory."""
    (tmp_path / "disk" / "far" / "x").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk" / "far")
    monkeypatch.chdir(tmp_path)
    profile = load_profile("opt-a100")
    for place in (Path("mine.json"), Path("runs/x/its.json")):
        save_profile(profile, place)
        write_config(Path("runs/x/s.yaml"), SituationConfig(str(place), (Task("piqa"),)))
        for path in (Path("runs/x/s.yaml"), Path("runs/x/s.yaml").absolute(), Path("runs/x/s.yaml").resolve()):
            assert load_situation(path).profile == profile
    assert "profile: its.json" in Path("runs/x/s.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("out", ["run", "../beside", "absolute"])
def test_what_is_read_back_names_the_same_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    directory = tmp_path / "absolute" if out == "absolute" else Path(out)
    directory.mkdir()
    config = SituationConfig("mine.json", (Task("piqa"),))
    write_config(directory / "s.yaml", config)
    read = load_config(directory / "s.yaml", SituationConfig)
    assert located(read) == located(config)
    assert located(read) != located(dataclasses.replace(config, profile="other.json"))


def test_paths_of_the_training_count_from_their_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of what is nested, so that a run's directory does for another run wherever that is begun."""
    training = "training: {start: p.safetensors, workload: {kind: trace, path: ../log.csv}}\n"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.yaml").write_text(MINIMAL + training, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config = load_config("a/run.yaml", RunConfig)
    assert config.training.start == Path("a/p.safetensors")
    assert isinstance(config.training.workload, Trace)
    assert config.training.workload.path == Path("log.csv")
    (tmp_path / "b").mkdir()
    write_config(Path("b/config.yaml"), config)
    assert load_config("b/config.yaml", RunConfig) == config
    written = read_yaml(Path("b/config.yaml"))["training"]
    assert (written["start"], written["workload"]["path"]) == ("../a/p.safetensors", "../log.csv")
    changed, _ = load_run("a/run.yaml", changes={"training.start": "p.safetensors"})
    assert changed.training.start == Path("p.safetensors")
    monkeypatch.chdir(tmp_path / "b")
    moved = load_config("config.yaml", RunConfig)
    assert moved.training.start == Path("../a/p.safetensors")
    monkeypatch.chdir(tmp_path)
    assert located(moved) != located(config)
    assert located(load_config(Path("b/config.yaml").absolute(), RunConfig)) == located(config)


def test_the_path_of_hardware_counts_from_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    faster = dataclasses.replace(load_profile("opt-a100"), name="faster")
    save_profile(faster, tmp_path / "a" / "faster.json")
    pools = "pools: [{name: near, model: opt-125m}, {name: far, model: opt-125m, hardware: faster.json}]\n"
    (tmp_path / "a" / "s.yaml").write_text(MINIMAL + pools, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config = load_config("a/s.yaml", SituationConfig)
    assert load_situation("a/s.yaml").hardware == config.build().hardware == (faster,)
    write_config(Path("again.yaml"), config)
    assert load_config("again.yaml", SituationConfig) == config
