from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from besteffort.cli import main
from besteffort.errors import InputError
from besteffort.evaluation import judging, metrics
from besteffort.evaluation.judging import EvaluationSet, grid_set, list_bounds, read_halves, trace_set
from besteffort.pools import Pool, ReplicaEvent, What
from besteffort.routers.names import RIVALS
from besteffort.runs.experiment import load_run
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Cluster, Deadline, Situation, Task
from besteffort.workload import rescale
from besteffort.workload.requests import Requests
from tests.simulator.cases import make_profile

ROUTERS = {
    *("learned", "always opt-125m", "always opt-1.3b", "always opt-6.7b", "upper bound"),
    *(set(RIVALS) - {"static"}),
}


@pytest.fixture(scope="module")
def evaluated(trained: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "here"
    assert main(["evaluate", str(trained / "policy.safetensors"), "--config", str(small), "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_all_routers_and_the_bound_at_all_loads(evaluated: Path) -> None:
    grid, bursts = json.loads((evaluated / "results.json").read_text(encoding="utf-8"))
    assert [group["load"] for group in grid["loads"]] == [0.5, 2.0]
    assert bursts["loads"][0]["load"] == pytest.approx((0.5 * 4 + 4 * 2) / 6)
    for group in [*grid["loads"], *bursts["loads"]]:
        assert group["rows"].keys() == ROUTERS
        bound = group["rows"]["upper bound"]["performance"]
        for name in ROUTERS - {"upper bound"}:
            performance = group["rows"][name]["performance"]
            assert 0 <= performance["mean"] <= bound + 1e-6


@pytest.mark.slow
def test_report_shows_every_figure_and_where_the_profile_comes_from(evaluated: Path) -> None:
    report = (evaluated / "report.md").read_text(encoding="utf-8")
    pictures = [path.name for path in evaluated.glob("*.png")]
    assert len(pictures) == 4
    assert all(f"]({name})" in report for name in pictures)
    assert "**modelled**" in report
    assert "**published**" in report
    assert "### Sustained load (grid)" in report
    assert "Sustained load (bursts)" not in report


def test_traces_are_judged_on_their_second_half(small: Path, trace: Path) -> None:
    run, situation = load_run(small)
    (halves,) = read_halves([trace], situation, run.evaluation.judging_seeds)
    evaluation_set = trace_set(halves, situation, run.evaluation)
    assert evaluation_set.loads == (1.0, 2.0)
    for load, lists in zip(evaluation_set.loads, evaluation_set.judged, strict=True):
        assert len(lists) == 2
        for requests, half in zip(lists, halves.second, strict=True):
            np.testing.assert_array_equal(requests.prompt_tokens, half.prompt_tokens)
            capacity = rescale.capacity(requests, situation)[-1]
            assert rescale.mean_rate(requests) == pytest.approx(load * capacity)
    # The seeds draw tasks and nothing else.
    one, two = evaluation_set.judged[0]
    assert (one.task != two.task).any()
    np.testing.assert_array_equal(one.output_tokens, two.output_tokens)
    # What routers know, and what heuristics are tuned on, is of the first half.
    np.testing.assert_array_equal(evaluation_set.tuning[0].output_tokens, halves.first[0].output_tokens)
    known = evaluation_set.situation.shares @ evaluation_set.situation.mean_output_tokens
    assert known == pytest.approx(halves.first[0].output_tokens.mean(), rel=0.1)


def test_traces_are_named_by_what_tells_them_apart(small: Path, trace: Path, tmp_path: Path) -> None:
    _, situation = load_run(small)
    paths = [tmp_path / f"SomeInferenceTrace_{word}_2023.csv" for word in ("code", "conv")]
    for path in paths:
        path.write_bytes(trace.read_bytes())
    assert [halves.name for halves in read_halves(paths, situation, [0])] == ["code", "conv"]
    assert [halves.name for halves in read_halves(paths[:1], situation, [0])] == ["code_2023"]
    with pytest.raises(InputError, match="is given twice; give each once"):
        read_halves([paths[0], paths[0]], situation, [0])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((".csv",), ["trace"]),
        (("2024.01.05.csv", "2024.02.05.csv"), ["2024-01-05", "2024-02-05"]),
        (("a/log.csv", "b/log.csv"), ["log-1", "log-2"]),
        (("../quick start.csv.gz",), ["quick-start"]),
        (("x" * 200 + ".csv",), ["x" * 60]),
        (("größe.JSONL",), ["größe"]),
    ],
)
def test_names_of_traces_are_names_of_files(names: tuple[str, ...], expected: list[str]) -> None:
    assert judging._short_names([Path(name) for name in names]) == expected


def test_halves_of_drawn_arrivals_are_of_one_length(small: Path, tmp_path: Path) -> None:
    _, situation = load_run(small)
    path = tmp_path / "maf.csv"
    path.write_text("function_id,1,2,3\nf,40,40,40\ng,40,40,40\n", encoding="utf-8")
    (halves,) = read_halves([path], situation, [0, 1, 2])
    assert len(halves.first) == 3
    assert len({len(requests) for requests in halves.second}) == 1
    assert (halves.second[0].arrival_s != halves.second[1].arrival_s).any()


def test_a_log_that_says_everything_is_one_list(small: Path, tmp_path: Path) -> None:
    run, situation = load_run(small)
    path = tmp_path / "log.csv"
    rows = [f"{0.1 * i},piqa,50,{10 + i % 7}" for i in range(40)]
    path.write_text("\n".join(["arrival_s,task,prompt_tokens,output_tokens", *rows]) + "\n", encoding="utf-8")
    (halves,) = read_halves([path], situation, [0, 1, 2])
    assert len(halves.second) == 1
    evaluation_set = trace_set(halves, situation, run.evaluation)
    assert 0 < evaluation_set.warm_up_s <= min(group[0].arrival_s[-1] for group in evaluation_set.judged) / 10


@pytest.mark.parametrize(("what", "expected"), [("start", 15 / 17), ("fail", 2 / 17)])
def test_bounds_after_the_warm_up_keep_the_times_of_replicas(what: What, expected: float) -> None:
    # One request every 2 s takes 1 s and may take 1.5 s; the only replica starts or fails after 10 s.
    pool = Pool("a", "model0", replicas=1, start_s=0.0, max_batch=1, events=(ReplicaEvent(10.0, 0, what),))
    task = Task("task0", prompt_tokens=(1, 1), output_tokens=(1, 1), deadline=Deadline(1.5, 0.0))
    situation = Situation(make_profile(np.ones((1, 1)), np.ones((1, 1))), Cluster(), (task,), pools=(pool,))
    n = 20
    one = np.ones(n, int)
    requests = Requests(("task0",), 2.0 * np.arange(n), 0 * one, one, one, np.full(n, 1.5))
    made = EvaluationSet("one", "one list", situation, (1.0,), ((requests,),), (requests,), 1.0, warm_up_s=6.0)
    result = simulate_by_reference(requests, situation, lambda index, _: 0)
    assert metrics.performance(result, warm_up_s=6.0) == pytest.approx(expected)
    (bound,) = list_bounds(made, [requests])
    assert expected - 1e-6 <= bound.performance <= expected + 0.02  # bins are a quarter of a deadline wide


def test_lists_shorter_than_the_warm_up_are_refused(small: Path) -> None:
    run, situation = load_run(small)
    config = dataclasses.replace(run.evaluation, warm_up_s=1e4)
    with pytest.raises(InputError, match=r"all of it in `evaluation.warm_up_s`.*; raise `evaluation.requests`"):
        grid_set(situation, config)
    refused = r"The shortest list of the grid lasts .* all of it in `evaluation.warm_up_s`"
    with pytest.raises(InputError, match=refused):
        list_bounds(dataclasses.replace(made := grid_set(situation, run.evaluation), warm_up_s=1e4), made.judged[0])
