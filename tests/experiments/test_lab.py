from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.evaluation import plots
from besteffort.evaluation.formats import percent, times
from besteffort.evaluation.judging import LEARNED, burst_set
from besteffort.evaluation.ranking import as_setting, ranking, settings_table
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.statistics import Interval, ratio_interval
from besteffort.files import jsonable, read_json
from besteffort.policy import Policy
from besteffort.runs.config import load_situation
from besteffort.runs.experiment import TrainingConfig, load_run
from besteffort.runs.processes import Job
from besteffort.simulator.environment import ServingEnvironment
from besteffort.situation import Situation
from experiments.__main__ import EXPERIMENTS, _done, claims_table, plan, reproduce
from experiments.lab import FAST, FULL, Arguments, Claim, Findings, Lab, _alone, conduct, fingerprint

TINY = dataclasses.replace(FAST, seeds=2, requests=200, tuning_requests=100, warm_up_s=0.1)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(TINY, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def problem(small: Path) -> tuple[Situation, TrainingConfig]:
    run, situation = load_run(small)
    return situation, dataclasses.replace(run.training, seeds=2)


@pytest.fixture(scope="module")
def policies(lab: Lab, problem: tuple[Situation, TrainingConfig]) -> list[Policy]:
    return lab.train(*problem, name="first")


def test_an_indication_takes_the_named_cases_only(tmp_path: Path) -> None:
    cases = {"a": 1, "b": 2, "c": 3}
    assert Lab(FULL, tmp_path).selected(cases, fast=("c", "a")) == cases
    assert Lab(FAST, tmp_path).selected(cases, fast=("c", "a")) == {"a": 1, "c": 3}
    with pytest.raises(ValueError, match="no case d"):
        Lab(FULL, tmp_path).selected(cases, fast=("a", "d"))


def test_nothing_is_trained_twice(lab: Lab, problem: tuple[Situation, TrainingConfig], policies: list[Policy]) -> None:
    said: list[str] = []
    again = dataclasses.replace(lab, log=said.append).train(*problem, name="second")
    assert said == []
    for one, other in zip(policies, again, strict=True):
        np.testing.assert_array_equal(one.weights[0][0], other.weights[0][0])
    assert not np.array_equal(policies[0].weights[0][0], policies[1].weights[0][0])
    assert lab.seconds(*problem) > 0


def test_what_differs_is_trained_anew(
    lab: Lab, problem: tuple[Situation, TrainingConfig], policies: list[Policy]
) -> None:
    situation, training = problem[0], dataclasses.replace(problem[1], seeds=1)
    said: list[str] = []
    talking = dataclasses.replace(lab, log=said.append)
    reward = dataclasses.replace(situation.reward, miss_penalty=0.5)
    talking.train(dataclasses.replace(situation, reward=reward), training, name="penalty")
    assert any("penalty" in line for line in said)
    (tuned, *_) = talking.train(situation, training, name="fine", start=policies[:1])
    assert any("fine" in line for line in said)
    assert not np.array_equal(tuned.weights[0][0], policies[0].weights[0][0])
    assert len(list((lab.work / "trainings").iterdir())) == 4


def test_only_what_is_stated_of_lengths_makes_another_training() -> None:
    situation = load_situation("paper")
    known, *others = situation.tasks
    known = dataclasses.replace(known, output_quantiles=(10.0, 30.0))
    plain, stated = (fingerprint(one) for one in (situation, dataclasses.replace(situation, tasks=(known, *others))))
    assert "output_quantiles" not in plain[1]
    assert plain[0] == stated[0]
    assert stated[1] == plain[1].replace("None)", "None, output_quantiles=(10.0, 30.0))", 1)


def test_what_is_kept_is_of_one_scale_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Amounts of training change what is found on the same lists."""
    scales = [FAST, FULL, *(dataclasses.replace(FAST, **{name: 7}) for name in ("decisions", "ensemble_size", "seed"))]
    assert len({Lab(scale, tmp_path).amount for scale in scales}) == len(scales)
    monkeypatch.setattr(ServingEnvironment, "version", "another")
    found = [Lab(scale, tmp_path).amount.removesuffix("-environment-another") for scale in (FAST, FULL, scales[-1])]
    assert found == ["fast-0", "full-0", "fast-7"]


def test_a_result_is_of_one_scale_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conduct(lambda lab: Findings({}), "trial", Arguments(out=tmp_path, work=tmp_path, fast=True))
    result = tmp_path / "trial.json"
    assert _done(result, FAST, traces=False)
    assert not _done(result, FULL, traces=False)
    monkeypatch.setattr(ServingEnvironment, "version", "another")
    assert not _done(result, FAST, traces=False)


def test_an_indication_does_not_replace_a_result(tmp_path: Path) -> None:
    conduct(lambda lab: Findings({"of": "full"}), "trial", Arguments(out=tmp_path, work=tmp_path))
    with pytest.raises(InputError, match="is a result of the full scale, which `--fast` would replace"):
        conduct(pytest.fail, "trial", Arguments(out=tmp_path, work=tmp_path, fast=True))
    with pytest.raises(InputError, match="which one of fewer seeds, decisions or requests would replace"):
        conduct(pytest.fail, "trial", Arguments(out=tmp_path, work=tmp_path, seeds=FULL.seeds - 1))
    assert read_json(tmp_path / "trial.json")["data"] == {"of": "full"}
    more = Arguments(out=tmp_path, work=tmp_path, requests=2 * FULL.requests, seed=1)
    assert conduct(lambda lab: Findings({"of": "more"}), "trial", more).data == {"of": "more"}


def test_without_locks_experiments_run_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with _alone(tmp_path / "lock"):
        pass


def test_policies_are_judged_seed_by_seed(
    lab: Lab, problem: tuple[Situation, TrainingConfig], policies: list[Policy]
) -> None:
    evaluation_set = burst_set(problem[0], lab.evaluation)
    both = lab.judge(evaluation_set, policies)
    alone = [lab.judge(evaluation_set, [policy], both.tuned) for policy in policies]
    expected = [ranking(evaluation).learned[seed] for seed, evaluation in enumerate(alone)]
    one = ranking(both)
    np.testing.assert_allclose(one.learned, expected, rtol=1e-6)
    assert one.static[0] in both.static
    assert one.heuristic[0] in both.heuristics
    assert {LEARNED, *both.static, *both.heuristics} == set(both.routers)
    setting = as_setting("group", "name", both)
    assert float(setting.learned.mean) <= setting.bound + 1e-6
    assert float(setting.ahead.mean) == pytest.approx(float(setting.learned.mean) - setting.heuristic)
    assert "group: name" in settings_table("title", "Setting", [setting]).markdown()


def test_an_experiment_writes_what_it_found(tmp_path: Path) -> None:
    def run(lab: Lab) -> Findings:
        assert lab.scale.seeds == 3
        values = mean = Interval(np.asarray(0.5), np.asarray(np.inf), 1)
        table = Table("Title", "Head", (Column("Value (%)"),), (("row", (values,)),))
        panel = plots.Panel("t", np.array([1.0, 2.0]), {"a": Interval(np.ones(2), np.zeros(2), 2)}, "x (s)", "y")
        figure = plots.plot_panels([panel])
        return Findings({"mean": mean}, [Claim("claim", "4x", "5x")], [table], {"": figure, "more": figure})

    conduct(run, "trial", Arguments(out=tmp_path / "out", work=tmp_path / "work", seeds=3, svg=True))
    names = {"trial.json", "trial.md", "trial.png", "trial.svg", "trial_more.png", "trial_more.svg"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    record = json.loads((tmp_path / "out" / "trial.json").read_text())
    assert record["data"] == {"mean": {"mean": 0.5, "half_width": None}}
    assert record["scale"] == dataclasses.asdict(dataclasses.replace(FULL, seeds=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 1}, "seeds"),
        ({"decisions": 0}, "decisions"),
        ({"seed": 20_261_129}, "`seed` is 20261129, but should be less than or equal to 10000"),
        ({"data": Path("nowhere")}, "nowhere: there is no such directory"),
    ],
)
def test_a_scale_out_of_range_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    arguments = Arguments(out=tmp_path, work=tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        conduct(lambda lab: Findings({}), "trial", arguments)


def test_figures_in_words() -> None:
    assert percent(0.1234) == "12.3%"
    assert percent(np.array([0.1, 0.2])) == "15.0 ± 63.5%"
    assert times(Interval(np.asarray(4.14), np.asarray(np.inf), 1)) == "4.1x"
    assert times(Interval(np.asarray(4.14), np.asarray(0.26), 5)) == "4.1 ± 0.3x"
    assert jsonable({"a": [np.float64("nan"), np.int64(2)], 3: (Claim("c", "", ""),)})["a"] == [None, 2]


def test_an_indication_does_not_replace_a_result_of_the_full_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default directory is the same, and a result may have taken hours."""
    ran: list[str] = []

    def run(on: object, jobs: Sequence[Job], **_: object) -> dict[str, int]:
        ran.extend(job.name for job in jobs)
        return {job.name: 0 for job in jobs}

    monkeypatch.setattr("experiments.__main__.run_on", run)
    for fast in (True, False):
        conduct(lambda lab: Findings({}), "stable_load", Arguments(out=tmp_path, work=tmp_path, fast=fast))
        before = (tmp_path / "stable_load.json").read_bytes()
        reproduce(["stable_load"], tmp_path, fast=fast)
        assert not ran  # since it is done
    with pytest.raises(InputError, match=r"stable_load\.json: this is a result of the full scale, which `--fast`"):
        reproduce(["rivals", "stable_load"], tmp_path, fast=True)
    assert not ran
    assert (tmp_path / "stable_load.json").read_bytes() == before
    reproduce(["rivals"], tmp_path, fast=True)
    assert ran == ["rivals"]


def test_ratio_of_means() -> None:
    exact = ratio_interval(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert (float(exact.mean), float(exact.half_width)) == (pytest.approx(2.0), pytest.approx(0.0))
    one_zero = ratio_interval(np.array([2.0, 2.0, 2.0]), np.array([0.0, 1.0, 2.0]))
    assert np.isfinite([one_zero.mean, one_zero.half_width]).all()
    assert np.isinf(ratio_interval(np.ones(3), np.zeros(3)).mean)
    unknown = ratio_interval(np.ones(2), np.array([0.0, 0.5]))
    assert (float(unknown.mean), float(unknown.half_width)) == (4.0, np.inf)
    # Its coverage: the ratio of the true means lies inside nineteen times out of twenty.
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        interval = ratio_interval(rng.normal(4, 0.4, 5), rng.normal(2, 0.2, 5))
        inside += float(interval.low) <= 2 <= float(interval.high)
    assert 0.91 <= inside / 400 <= 0.98


def test_page_of_claims(tmp_path: Path) -> None:
    for name, scale in (("stable_load", FULL), ("hardware_utility", FAST)):
        claim = dataclasses.asdict(Claim(f"claim of {name}", "4x", "5x", status="holds"))
        record = {"scale": dataclasses.asdict(scale), "claims": [claim]}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    text = claims_table(["stable_load", "hardware_utility"], tmp_path).markdown()
    assert "| claim of stable_load | 4x | 5x | - | - | - | holds |" in text
    assert "holds (indicative)" in text.splitlines()[-3]


@pytest.mark.checkout
def test_experiments_by_name() -> None:
    assert plan([]) == EXPERIMENTS
    assert plan(["where_it_pays", "stable_load"]) == ("stable_load", "where_it_pays")
    with pytest.raises(InputError, match="no experiment `stable_lode`, did you mean `stable_load`"):
        plan(["stable_lode"])
    root = Path(__file__).resolve().parents[2]
    for name in EXPERIMENTS:
        assert (root / "experiments" / f"{name}.py").is_file(), name
