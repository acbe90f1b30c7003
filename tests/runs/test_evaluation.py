from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from besteffort.cli import main
from besteffort.errors import InputError
from besteffort.runs.evaluation import read_halves, trace_arena
from besteffort.runs.experiment import load_run
from besteffort.workload import rescale

ROUTERS = {
    *("learned", "always opt-125m", "always opt-1.3b", "always opt-6.7b", "random", "shortest-queue"),
    *("ladder", "deadline", "deadline-reserve", "priced", "upper bound (fluid)"),
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
        bound = group["rows"]["upper bound (fluid)"]["Performance (%)"]
        for name in ROUTERS - {"upper bound (fluid)"}:
            performance = group["rows"][name]["Performance (%)"]
            assert 0 <= performance["mean"] <= bound + 1e-6


@pytest.mark.slow
def test_report_shows_every_figure_and_where_the_profile_comes_from(evaluated: Path) -> None:
    report = (evaluated / "report.md").read_text(encoding="utf-8")
    pictures = [path.name for path in evaluated.glob("*.png")]
    assert len(pictures) == 4
    assert all(f"]({name})" in report for name in pictures)
    assert "**modelled**" in report
    assert "**published**" in report


def test_traces_are_judged_on_their_second_half(small: Path, trace: Path) -> None:
    run, situation = load_run(small)
    (halves,) = read_halves([trace], situation, run.evaluation.judging_seeds)
    arena = trace_arena(halves, situation, run.evaluation)
    assert arena.loads == (1.0, 2.0)
    for load, lists in zip(arena.loads, arena.judged, strict=True):
        assert len(lists) == 2
        for requests, half in zip(lists, halves.second, strict=True):
            np.testing.assert_array_equal(requests.prompt_tokens, half.prompt_tokens)
            capacity = rescale.capacity(requests, situation)[-1]
            assert rescale.mean_rate(requests) == pytest.approx(load * capacity)
    # The seeds draw tasks and nothing else.
    one, two = arena.judged[0]
    assert (one.task != two.task).any()
    np.testing.assert_array_equal(one.output_tokens, two.output_tokens)
    # What routers know, and what heuristics are tuned on, is of the first half.
    np.testing.assert_array_equal(arena.tuning[0].output_tokens, halves.first[0].output_tokens)
    known = arena.situation.shares @ arena.situation.mean_output_tokens
    assert known == pytest.approx(halves.first[0].output_tokens.mean(), rel=0.1)


def test_traces_are_named_by_what_tells_them_apart(small: Path, trace: Path, tmp_path: Path) -> None:
    _, situation = load_run(small)
    paths = [tmp_path / f"SomeInferenceTrace_{word}_2023.csv" for word in ("code", "conv")]
    for path in paths:
        path.write_bytes(trace.read_bytes())
    assert [halves.name for halves in read_halves(paths, situation, [0])] == ["code", "conv"]
    assert [halves.name for halves in read_halves(paths[:1], situation, [0])] == ["code_2023"]
    with pytest.raises(InputError, match="the same name; give each once"):
        read_halves([paths[0], paths[0]], situation, [0])
