from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from besteffort.cli import main
from besteffort.diagnosis import diagnose
from besteffort.diagnosis.perturbations import Outcome, as_known
from besteffort.errors import InputError
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.judging import read_halves
from besteffort.policy import load_policy, save_policy
from besteffort.pools import ReplicaEvent
from besteffort.runs.experiment import load_run
from besteffort.situation import Cluster
from besteffort.workload import rescale
from besteffort.workload.config import Markov


@pytest.fixture(scope="module")
def policy(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that says it was trained at load 0.5 only, so that lists are short."""
    path = tmp_path_factory.mktemp("policy") / "policy.safetensors"
    loaded = load_policy(trained / "policy.safetensors")
    save_policy(dataclasses.replace(loaded, training={"workload": {"kind": "poisson", "load": 0.5}}), path)
    return path


@pytest.mark.parametrize(
    ("workload", "loads"),
    [
        ({"kind": "random_rates", "low": 0.05, "high": 24.0}, (0.05, 24.0)),
        ({"kind": "poisson", "load": 2.0}, (2.0, 2.0)),
        ({"kind": "markov", "loads": [4.0, 0.5]}, (0.5, 4.0)),
        ({"kind": "markov", "loads": [0.0, 4.0]}, (4.0, 4.0)),
        ({"kind": "square", "low": 0.0, "high": 2.0}, (2.0, 2.0)),
        ({"kind": "trace", "load": None}, None),
        (None, None),
    ],
)
def test_the_training_range_is_what_the_policy_says(policy: Path, workload, loads) -> None:
    training = {} if workload is None else {"workload": workload}
    assert diagnose.trained_loads(dataclasses.replace(load_policy(policy), training=training)) == loads


def test_around_the_bursty_load(small: Path) -> None:
    run, situation = load_run(small)
    suite = diagnose.synthetic_suite(situation, run.evaluation, (0.05, 0.8))
    by_family = {family: [t for t in suite.shifts if t.family == family] for family in ("load", "arrivals", "task mix")}
    assert [perturbation.size for perturbation in by_family["load"]] == [0.025, 0.1, 0.2, 0.4, 1.2]
    assert [perturbation.name for perturbation in by_family["load"]][::4] == [
        "load 0.025, below training",
        "load 1.2, beyond training",
    ]
    for perturbation in by_family["load"]:
        rate = np.mean([rescale.mean_rate(requests) for requests in perturbation.lists])
        assert rate == pytest.approx(perturbation.size * suite.evaluation_set.capacity_per_s, rel=0.2)
        counted_s = min(float(requests.arrival_s[-1]) for requests in perturbation.lists) - run.evaluation.warm_up_s
        assert counted_s > 1.0
    assert [set(perturbation.lists[0].task) for perturbation in by_family["task mix"]] == [{0}, {1}]
    judged = {id(requests) for perturbation in suite.shifts for requests in perturbation.lists}
    assert not judged & {id(requests) for requests in suite.range_tuning}
    assert len({len(requests) for requests in (*suite.evaluation_set.tuning, *suite.range_tuning)}) == 1
    assert suite.notes == ()


def test_loads_that_would_take_too_long_are_left_out_and_named(small: Path) -> None:
    run, situation = load_run(small)
    suite = diagnose.synthetic_suite(situation, run.evaluation, (0.05, 1000.0))
    assert suite.notes[0].startswith("Load 1500 was left out")


def test_other_arrivals_that_end_within_the_warm_up_are_refused(small: Path) -> None:
    run, situation = load_run(small)
    calm = Markov(loads=(0.1, 0.1), dwell_s=(1.0, 1.0))  # as many requests come much sooner in the bursts of the suite
    config = dataclasses.replace(run.evaluation, burst=calm, warm_up_s=4.0)
    with pytest.raises(InputError, match=r"list of the perturbation `.*` lasts .* all of it in `evaluation.warm_up_s`"):
        diagnose.synthetic_suite(situation, config, (0.1, 0.1))


def test_around_a_trace(small: Path, trace: Path) -> None:
    run, situation = load_run(small)
    (halves,) = read_halves([trace], situation, run.evaluation.judging_seeds)
    suite = diagnose.trace_suite(halves, situation, run.evaluation, (0.05, 0.1), 0.1)
    lists = suite.evaluation_set.judged[0]
    loads = [perturbation for perturbation in suite.shifts if perturbation.family == "load"]
    assert [perturbation.size for perturbation in loads] == [0.025, 0.059, 0.071, 0.084, 0.15]
    for perturbation in loads:
        np.testing.assert_array_equal(perturbation.lists[0].output_tokens, lists[0].output_tokens)
    alone = [perturbation for perturbation in suite.shifts if perturbation.family == "task mix"]
    for index, perturbation in enumerate(alone):
        assert set(perturbation.lists[0].task) == {index}
        np.testing.assert_array_equal(perturbation.lists[0].arrival_s, lists[0].arrival_s)
        wanted = suite.evaluation_set.situation.deadlines(
            perturbation.lists[0].task, perturbation.lists[0].output_tokens
        )
        np.testing.assert_allclose(perturbation.lists[0].deadline_s, wanted)
    for requests in (*suite.evaluation_set.tuning, *suite.range_tuning):
        np.testing.assert_array_equal(requests.prompt_tokens, halves.first[0].prompt_tokens)


def test_a_log_that_leaves_nothing_to_draw_is_cut_into_several_lists(small: Path, tmp_path: Path) -> None:
    run, situation = load_run(small)
    path = tmp_path / "log.csv"
    rows = [f"{0.1 * i},piqa,50,{10 + i}" for i in range(80)]
    path.write_text("\n".join(["arrival_s,task,prompt_tokens,output_tokens", *rows]) + "\n", encoding="utf-8")
    (halves,) = read_halves([path], situation, run.evaluation.judging_seeds)
    for seeds, expected in ((2, [50, 70]), (3, [50, 64, 77]), (1, [50]), (40, [50])):
        config = dataclasses.replace(run.evaluation, seeds=seeds)
        suite = diagnose.trace_suite(halves, situation, config, (0.05, 0.1), 0.1)
        lists = suite.evaluation_set.judged[0]
        assert [int(requests.output_tokens[0]) for requests in lists] == expected
        assert {len(requests) for requests in lists} == {40 // len(expected)}
        for requests in lists:
            assert requests.arrival_s[0] == 0.0
            capacity = rescale.unit_load(requests, suite.evaluation_set.situation)
            assert rescale.mean_rate(requests) == pytest.approx(0.1 * capacity)
        known = Outcome(as_known(situation, lists), {}, {}, {}, {})
        said = diagnose._checked([known, known], ())
        assert ("In 2 of them there is one list, without an interval, so that nothing can be found" in said) == (
            len(lists) == 1
        )


@pytest.mark.slow
def test_a_diagnosis_says_in_words_and_figures_what_is_wrong(
    policy: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["diagnose", str(policy), "--config", str(small), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    report = (out / "report.md").read_text(encoding="utf-8")
    names = [perturbation["name"] for perturbation in results["perturbations"]]
    assert names[0] == "everything as known"
    assert {"qualities 30% off", "rates 100 arrivals late", "batch sizes up to 5 s old", "piqa only"} <= set(names)
    for name in names:
        assert name in said
        assert f"| {name} |" in report
    for perturbation in results["perturbations"]:
        assert {"learned", "priced", "always opt-125m"} <= set(perturbation["performance"])
        assert "random" not in perturbation["performance"]
        lists = len(perturbation["performance"]["learned"])
        assert lists == 2
        if perturbation["bound"] is not None:
            for values in perturbation["performance"].values():
                assert np.mean(values) <= perturbation["bound"] + 1e-6
    losses = [finding["loss"] for finding in results["findings"]]
    assert losses == sorted(losses, reverse=True)
    for finding in results["findings"]:
        assert finding["sentence"] in report
    assert ("Nothing found." in said) == (not losses)
    assert "](diagnosis.png)" in report
    assert (out / "diagnosis.png").stat().st_size > 0


def test_replicas_with_events_are_not_diagnosed(policy: Path, tmp_path: Path) -> None:
    loaded = load_policy(policy)
    pools = tuple(
        dataclasses.replace(pool, events=(ReplicaEvent(1.0, 0, "fail"),)) for pool in loaded.situation.fleet.pools
    )
    failing = dataclasses.replace(loaded.situation, cluster=Cluster(), pools=pools)
    with pytest.raises(InputError, match="`events` and `autoscaler` of pools cannot be diagnosed"):
        diagnose.diagnose(loaded, failing, EvaluationConfig(), tmp_path)
    assert not list(tmp_path.iterdir())
