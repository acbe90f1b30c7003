"""Profiles that are measured, on tiny models: what is measured, what it becomes, and that a killed run goes on."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from besteffort.cli import main
from besteffort.errors import InputError
from besteffort.opt.config import OPTConfig, published
from besteffort.opt.weights import random_model, to_checkpoint
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality, load_profile
from besteffort.profile.roofline import A100, OPT, Efficiency, HostOverhead, Roofline
from besteffort.profiling.floors import Ceilings, decode_floor_s, measure_ceilings, prefill_floor_s
from besteffort.profiling.measure import (
    Measurement,
    MeasurementPlan,
    Point,
    Qualities,
    Report,
    context_cost_s,
    figures_file,
    interference_remarks,
    measure_profile,
    read_qualities,
    staircase,
)

SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 24}
NAMES = ("small", "large")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Two checkpoints; the large one has twice the layers of the small one."""
    found = []
    for name, layers in zip(NAMES, (1, 2), strict=True):
        where = tmp_path_factory.mktemp("models") / name
        where.mkdir()
        fields = SMALL | {"num_hidden_layers": layers, "max_position_embeddings": 20}
        (where / "config.json").write_text(json.dumps(fields))
        save_file(to_checkpoint(random_model(OPTConfig.from_transformers(fields))), where / "model.safetensors")
        found.append(str(where))
    return tuple(found)


@pytest.fixture(scope="module")
def qualities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks = (TaskQuality("addition", "exact match", "a test", (99.0, 20.0, 80.0)),)
    content = Qualities(("opt-66b", *NAMES), tasks, Source("measured", "a test"))
    path = tmp_path_factory.mktemp("qualities") / "qualities.json"
    path.write_text(json.dumps(dataclasses.asdict(content)))
    return path


@pytest.fixture(scope="module")
def measured(
    models: tuple[str, ...], qualities: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Report, list[tuple[str, int, int]]]]:
    out = tmp_path_factory.mktemp("measured") / "tiny.json"
    latest: list[tuple[str, int, int]] = []
    plan = MeasurementPlan(models, max_batch=2, context=20, repeats=4)
    report = measure_profile(plan, read_qualities(NAMES, qualities), out, progress=lambda *what: latest.append(what))
    return out, report, latest


def test_a_measured_profile_says_what_it_is(measured: tuple[Path, Report, list]) -> None:
    out, report, latest = measured
    profile = load_profile(out)
    assert profile == report.profile
    assert profile.name == "tiny"
    assert profile.model_names == NAMES
    assert profile.provenance.summary == "decode measured, prefill measured, slowdown measured, quality measured"
    assert profile.tasks[0].quality_percent == (20.0, 80.0)
    source = profile.provenance.decode
    assert source.device == profile.device
    assert source.dtype == "float32"
    assert [library.split()[0] for library in source.libraries] == ["jax", "jaxlib", "flax"]
    for model in profile.models:
        assert [size for size, _ in model.decode] == [1, 2]
        assert [size for size, _ in model.prefill] == [1, 16, 17, 20]
        assert model.prefill[0][1] == model.prefill[1][1]
        assert len(model.slowdown) == 2
        assert min(model.slowdown) == 1.0
    assert latest[-1] == ("done", 14, 14)
    assert "The tables end at a batch size of 2 and a prompt of 20 tokens" in report.remarks[-1]
    np.testing.assert_array_equal(profile.prefill_table(99)[:, 99], profile.prefill_table(20)[:, 20])


def test_each_figure_has_its_spread_and_its_floor(measured: tuple[Path, Report, list]) -> None:
    out, report, _ = measured
    lines = [json.loads(line) for line in figures_file(out).read_text().splitlines()]
    assert lines[0]["device"] == report.profile.device
    assert lines[0]["plan"]["repeats"] == 4
    assert lines[1]["ceilings"] == dataclasses.asdict(report.ceilings)
    figures = lines[2:]
    kinds = [line["point"]["kind"] for line in figures]
    # Per model two batches at one context, two prompts, and nothing; alone and beside the other.
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"decode": 4, "prefill": 4, "host": 2, "slowdown": 4}
    floors = {
        (line["point"]["model"], line["point"]["kind"], line["point"]["size"]): line["floor_s"] for line in figures
    }
    assert floors["small", "decode", 1] < floors["large", "decode", 1]
    for line in figures:
        low, high = line["quartiles_s"]
        assert line["floor_s"] < line["median_s"]
        assert (line["floor_s"] > 0) == (line["point"]["kind"] != "host")
        assert low <= line["median_s"] <= high
        assert line["repeats"] == 4


def test_the_host_counts_once_per_iteration(measured: tuple[Path, Report, list]) -> None:
    _, report, _ = measured
    seconds = {figure.point: figure.median_s for figure in report.figures}
    for model in report.profile.models:
        alone_s, host_s = seconds[Point(model.name, "prefill", 16)], seconds[Point(model.name, "host", 0)]
        assert model.prefill[0][1] == pytest.approx(max(alone_s - host_s, 0.1 * alone_s))


def test_a_killed_measurement_goes_on(
    measured: tuple[Path, Report, list], models: tuple[str, ...], qualities: Path, tmp_path: Path
) -> None:
    """With the figures that it had: those, and only those, are in the new file as they were."""
    old = figures_file(measured[0]).read_bytes()
    out = tmp_path / "again.json"
    lines = old.splitlines(keepends=True)
    kept = len(lines) - 3
    figures_file(out).write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
    plan, known = MeasurementPlan(models, max_batch=2, context=20, repeats=4), read_qualities(NAMES, qualities)
    with pytest.raises(InputError, match=r"there are figures already; continue them with `--resume`, or remove"):
        measure_profile(plan, known, out)
    with pytest.raises(InputError, match="these figures are of another plan, device or version"):
        measure_profile(dataclasses.replace(plan, repeats=5), known, out, resume=True)
    report = measure_profile(plan, known, out, resume=True)
    again = figures_file(out).read_bytes().splitlines(keepends=True)
    assert again[:kept] == lines[:kept]
    assert len(again) == len(lines)
    assert [figure.point for figure in report.figures] == [figure.point for figure in measured[1].figures]
    assert load_profile(out).models[0].decode == measured[1].profile.models[0].decode


def test_the_command(
    models: tuple[str, ...], qualities: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "one.json"
    arguments = ["profile", "measure", models[0], "--out", str(out), "--qualities", str(qualities)]
    settings = ["--max-batch", "2", "--context", "20", "--repeats", "3", "--chunk-tokens", "7"]
    assert main([*arguments, *settings]) == 0
    said = capsys.readouterr().out
    assert "Device: " in said
    assert "GFLOP/s of matrix products" in said.replace("\n", " ")
    assert "decode at batch 2, context 20" in said
    profile = load_profile(out)
    assert profile.models[0].slowdown == ()
    # A prompt of 20 tokens is read in three iterations, in each of which the host counts.
    assert profile.models[0].chunk_tokens == 7
    lines = [json.loads(line) for line in figures_file(out).read_text().splitlines()]
    seconds = {(each["point"]["kind"], each["point"]["size"]): each["median_s"] for each in lines if "point" in each}
    whole_s, host_s = seconds["prefill", 20], seconds["host", 0]
    rising = max(whole_s - 3 * host_s, 0.1 * whole_s, profile.models[0].prefill[0][1])
    assert profile.models[0].prefill[-1] == (20, pytest.approx(rising))
    assert profile.tasks[0].quality_percent == (20.0,)
    assert main([*arguments]) == 2
    assert "the file exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["opt-125m", "opt-125m"], "`opt-125m` is to be measured twice"),
        (["nowhere/opt-125m", "opt-125m"], "`opt-125m` is to be measured twice"),
        (["opt-125m", "--chunk-tokens", "0"], "`chunk_tokens` is 0; give at least 1"),
        (["opt-125m", "--repeats", "2"], "`repeats` is 2; give at least 3"),
        (["tiny"], "opt-a100-all: there is no quality of `tiny`, only of opt-125m"),
        (["opt-125m", "--qualities", "nowhere.json"], "nowhere.json: no such file"),
    ],
)
def test_one_sentence_for_each_mistake(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "measure", *arguments, "--out", str(tmp_path / "out.json")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("besteffort: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


def test_nothing_is_left_behind_by_a_model_that_does_not_fit(tmp_path: Path, qualities: Path) -> None:
    plan = MeasurementPlan(("opt-66b",))
    known = read_qualities(plan.names, qualities)
    with pytest.raises(InputError, match="opt-66b in float32 needs 263 GB of memory"):
        measure_profile(plan, known, tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"there is no directory .*; make it first or name another place"):
        measure_profile(plan, known, tmp_path / "nowhere" / "out.json")


def test_published_qualities() -> None:
    found = read_qualities(("opt-6.7b", "opt-125m"))
    everybody = load_profile("opt-a100-all")
    own = [everybody.model_names.index(name) for name in found.models]
    for task, all_of_them in zip(found.tasks, everybody.tasks, strict=True):
        assert task.quality_percent == tuple(all_of_them.quality_percent[i] for i in own)
    assert found.source.kind == "published"


def test_qualities_that_do_not_fit_their_models(tmp_path: Path) -> None:
    content = {
        "models": ["a", "b"],
        "tasks": [{"name": "t", "metric": "m", "source": "s", "quality_percent": [1.0]}],
        "source": {"kind": "measured", "source": "a test"},
    }
    path = tmp_path / "q.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="task `t` has 1 values for 2 models"):
        read_qualities(("a",), path)
    path.write_text(json.dumps(content | {"modles": []}))
    with pytest.raises(InputError, match="did you mean `models`"):
        read_qualities(("a",), path)
    path.write_text('{"source": ' + "[" * 100_000)
    with pytest.raises(InputError, match="deep within each other; flatten them"):
        read_qualities(("a",), path)


def test_the_cost_of_context_is_found_again() -> None:
    rng = np.random.default_rng(0)
    decode = {1: 0.010, 4: 0.012, 16: 0.020}
    steps = {(b, float(c)): decode[b] + 3e-7 * b * c + 1e-5 * rng.normal() for b in decode for c in (64, 192, 384, 768)}
    assert context_cost_s(steps) == pytest.approx(3e-7, rel=0.05)
    assert context_cost_s({(b, 64.0): s for b, s in decode.items()}) == 0.0
    assert context_cost_s({(1, 64.0): 0.02, (1, 128.0): 0.01}) == 0.0  # noise that falls
    steep = context_cost_s({(1, 64.0): 0.001, (1, 1024.0): 0.1})
    assert 0.0505 - steep * (64 + 1024) / 2 > 0


def test_a_staircase_holds_each_bucket_to_both_ends_and_never_falls() -> None:
    assert staircase({1: 1.0, 2: 3.0, 4: 2.0, 8: 5.0}) == ((1, 1.0), (2, 3.0), (3, 3.0), (4, 3.0), (5, 5.0), (8, 5.0))
    assert staircase({16: 1.0}) == ((1, 1.0), (16, 1.0))


def test_floors_are_the_rooflines() -> None:
    """Of a device that attains its peak figures, with a host that costs nothing."""
    free = Roofline(A100, HostOverhead(0.0, 0.0, 0.0, 0.0), Efficiency(1.0, 1.0, 1.0, 0.0))
    ceilings = Ceilings(A100.memory_bytes_per_s, A100.flops_per_s)
    for name in ("opt-125m", "opt-350m", "opt-6.7b"):
        for batch, context in ((1, 128), (32, 1024)):
            found = decode_floor_s(published(name), batch, context, 2, ceilings)
            assert found == pytest.approx(free.decode_s(OPT[name], batch, context), rel=0.02)  # positions
        for tokens in (1, 2048):
            found = prefill_floor_s(published(name), tokens, 2, ceilings)
            assert found == pytest.approx(free.prefill_s(OPT[name], tokens), rel=0.02)


def test_several_companions_are_held_against_the_product_of_their_factors() -> None:
    models = tuple(
        ModelProfile(name, ((1, 0.01),), ((1, 0.02),), tuple(1.0 if name == other else 1.5 for other in "abc"))
        for name in "abc"
    )
    task = TaskQuality("t", "m", "s", (1.0, 2.0, 3.0))
    source = Source("measured", "a test")
    profile = Profile(1, "p", "d", models, (task,), Provenance(source, source, source, source))
    figures = [
        Measurement(Point("a", "slowdown", 4, 128, beside), seconds, (seconds, seconds), 3, 0.001)
        for beside, seconds in (((), 0.01), (("b",), 0.015), (("c",), 0.015), (("b", "c"), 0.02))
    ]
    assert interference_remarks(profile, figures) == [
        "a: next to b and c it takes 2.00 times as long; the product of its factors is 2.25."
    ]


def test_ceilings_are_measured() -> None:
    found = measure_ceilings(jnp.float32, repeats=2)
    assert 1e8 < found.bytes_per_s < 1e14
    assert 1e8 < found.flops_per_s < 1e16
    assert found.floor_s(found.bytes_per_s, 0.0) == 1.0
    assert found.floor_s(0.0, 2 * found.flops_per_s) == 2.0
    assert math.isfinite(found.floor_s(1.0, 1.0))


def test_the_processors_clock_counts_each_model_alone(
    models: tuple[str, ...], qualities: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a timer that ticks once for every look at it: an iteration takes a tick, a prefill no more than the host."""
    ticks = itertools.count()
    monkeypatch.setattr("besteffort.profiling.measure.time.process_time", lambda: float(next(ticks)))
    out = tmp_path / "processor.json"
    plan = MeasurementPlan(models, max_batch=2, context=20, repeats=4, clock="processor")
    report = measure_profile(plan, read_qualities(NAMES, qualities), out)
    assert {figure.point.kind for figure in report.figures} == {"decode", "prefill", "host"}
    assert {figure.mean_s for figure in report.figures} == {1.0}
    profile = load_profile(out)
    for model in profile.models:
        assert {seconds for _, seconds in model.decode} == {1.0}
        assert {seconds for _, seconds in model.prefill} == {0.1}  # never nothing, despite noise
        assert model.slowdown == ()
    assert "mean processor time" in profile.provenance.decode.method
    assert profile.provenance.slowdown.method.startswith("each model on a device of its own")
    kept = figures_file(out).read_bytes()
    again = measure_profile(plan, read_qualities(NAMES, qualities), out, resume=True)
    assert again.figures == report.figures
    assert figures_file(out).read_bytes() == kept


def test_the_processors_clock_is_of_the_processor(
    tmp_path: Path, qualities: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    plan = MeasurementPlan(("opt-66b",), clock="processor")
    with pytest.raises(InputError, match=r"`clock` is `processor`, but .* computes, .*; choose `wall`"):
        measure_profile(plan, read_qualities(plan.names, qualities), tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == []
