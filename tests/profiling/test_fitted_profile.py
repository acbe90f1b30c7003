from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from besteffort.cli import main
from besteffort.errors import InputError
from besteffort.profile import Profile, load_profile
from besteffort.profiling import fitted_profile
from besteffort.profiling.fit import Fitted
from besteffort.profiling.fitted_profile import FittedModel, HeldOut
from besteffort.profiling.server_log import RequestLog
from besteffort.runs.config import load_situation

N = 24
TIMES = np.arange(1.0, 101.0)


def log_text(n: int = N, model: bool = False) -> str:
    """Lone requests: 0.1 s + 1 ms per prompt token to the first token, 20 ms for each further one."""
    lines = ["arrival_s,first_token_s,last_token_s,prompt_tokens,output_tokens" + ",model" * model]
    for i in range(n):
        prompt, output = 20 + 13 * (i % 7), 3 + i % 5
        first = 10 * i + 0.1 + 0.001 * prompt
        cells = [10.0 * i, first, first + 0.02 * (output - 1), prompt, output, *(["ab"[i % 2]] * model)]
        lines.append(",".join(map(str, cells)))
    return "\n".join(lines) + "\n"


def fitted_model(name: str, decode_s: float = 0.01, cache_tokens: int | None = None, share: float = 1.0) -> FittedModel:
    whole = np.ones(4, np.int32)
    log = RequestLog(
        Path("log.csv"),
        *(np.arange(4.0),) * 4,
        whole,
        whole,
        0 * whole,
        0 * whole,
        0 * whole,
        (name,),
        ("chat",),
        ("",),
    )
    fitted = Fitted(
        decode=((1, decode_s), (8, 2 * decode_s)),
        prefill=((1, 0.01),),
        context_cost_s=1e-7,
        cache_tokens=cache_tokens,
        cache_output_share=share,
        max_batch=16,
        delay_s=0.0,
        limit="nothing" if cache_tokens is None else "cache",
        terms=(),
        first_s=TIMES,
        last_s=TIMES,
    )
    return FittedModel(name, log, fitted, HeldOut({"latency_s": TIMES}, {"latency_s": 1.1 * TIMES}))


@pytest.fixture
def base() -> Profile:
    return load_profile("opt-a100")


def test_errors_of_percentiles() -> None:
    held_out = HeldOut(
        {"latency_s": TIMES, "ttft_s": np.where(TIMES < 51, TIMES, np.nan)},
        {"latency_s": 1.1 * TIMES, "ttft_s": 2 * TIMES},
    )
    np.testing.assert_allclose(held_out.errors("latency_s"), 0.1)
    np.testing.assert_allclose(held_out.percentiles("ttft_s")[0], np.percentile(TIMES[:50], (50, 95, 99)))
    np.testing.assert_allclose(held_out.errors("ttft_s"), 1.0)


def test_a_lone_model_counts_as_perfect() -> None:
    profile = fitted_profile.make_profile([fitted_model("m")], name="p", qualities={})
    assert profile.task_names == ("chat",)
    assert profile.tasks[0].quality_percent == (100.0,)
    assert "assumed" in profile.tasks[0].source
    assert profile.provenance.decode.kind == "measured"
    assert profile.provenance.decode.source == "fitted to log.csv"
    assert "P50 +10.0%" in profile.provenance.decode.method


def test_several_models_need_qualities() -> None:
    models = [fitted_model("small", 0.01), fitted_model("large", 0.02, cache_tokens=900, share=0.5)]
    qualities = fitted_profile.parse_qualities(["chat=small:60,large:70"])
    profile = fitted_profile.make_profile(models, name="p", qualities=qualities)
    assert profile.model_names == ("small", "large")
    assert profile.tasks[0].quality_percent == (60.0, 70.0)
    assert profile.cache_output_share == 0.5
    with pytest.raises(
        InputError, match=r"2 models and says nothing of their quality; .*`--quality task=small:60,large:60`"
    ):
        fitted_profile.make_profile(models, name="p", qualities={})
    with pytest.raises(InputError, match="has a figure without a model"):
        fitted_profile.make_profile(models, name="p", qualities={"chat": {"": 60.0}})
    with pytest.raises(InputError, match="Task `chat` has no quality of model `large`"):
        fitted_profile.make_profile(models, name="p", qualities={"chat": {"small": 60.0}})


def test_costs_go_into_a_profile_that_knows_the_model(base: Profile) -> None:
    profile = fitted_profile.make_profile([fitted_model("opt-1.3b", 0.5)], name="p", qualities={}, into=base)
    assert profile.model_names == base.model_names
    assert profile.models[1].decode == ((1, 0.5), (8, 1.0))
    assert profile.models[0] == base.models[0]
    assert profile.tasks == base.tasks
    assert profile.provenance.quality == base.provenance.quality
    assert "Other models: modelled" in profile.provenance.decode.method


def test_a_new_model_takes_its_place_by_its_pace(base: Profile) -> None:
    qualities = {task: {"opt-350m": 50.0} for task in base.task_names} | {"new": dict.fromkeys(base.model_names, 1.0)}
    qualities["new"]["opt-350m"] = 2.0
    profile = fitted_profile.make_profile([fitted_model("opt-350m", 0.002)], name="p", qualities=qualities, into=base)
    assert profile.model_names == ("opt-125m", "opt-350m", "opt-1.3b", "opt-6.7b")
    assert profile.tasks[0].quality_percent[1] == 50.0
    assert profile.tasks[0].quality_percent[0] == base.tasks[0].quality_percent[0]
    assert profile.tasks[-1].quality_percent == (1.0, 2.0, 1.0, 1.0)
    with pytest.raises(InputError, match=r"no quality of model `opt-350m`; add `--quality \w+=opt-350m:PERCENT`"):
        fitted_profile.make_profile([fitted_model("opt-350m", 0.002)], name="p", qualities={}, into=base)


def test_one_share_for_all(base: Profile) -> None:
    cached = dataclasses.replace(base, models=(dataclasses.replace(base.models[0], cache_tokens=999), *base.models[1:]))
    fresh = [fitted_model("opt-1.3b", cache_tokens=5000, share=0.5)]
    with pytest.raises(InputError, match=r"counts 1 of outputs against the cache and the fit 0\.5"):
        fitted_profile.make_profile(fresh, name="p", qualities={}, into=cached)
    assert fitted_profile.make_profile(fresh, name="p", qualities={}, into=base).cache_output_share == 0.5
    assert fitted_profile.share_of_others(cached, fresh[0].log, None) == 1.0
    assert fitted_profile.share_of_others(base, fresh[0].log, None) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("piqa", "names no task or no figure"),
        ("=4", "names no task or no figure"),
        ("piqa=good", "`good` is not a percentage"),
        ("piqa=140", "`140` is not a percentage"),
        ("piqa=a:nan", "`nan` is not a percentage"),
    ],
)
def test_bad_qualities(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fitted_profile.parse_qualities([text])
    with pytest.raises(InputError, match="given twice for task `a`"):
        fitted_profile.parse_qualities(["a=1", "a=2"])


def test_from_a_log_to_a_situation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command, and what it wrote read back."""
    log, out = tmp_path / "log.csv", tmp_path / "lone.json"
    log.write_text(log_text(), encoding="utf-8")
    assert main(["profile", "fit", str(log), "--out", str(out), "--name", "m", "--quality", "chat=61.5"]) == 0
    said = capsys.readouterr().out
    assert "m, end to end" in said
    assert "No two requests ran at once" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "log.csv",
        "lone.fit.json",
        "lone.json",
        "lone.png",
        "lone.yaml",
    ]
    profile = load_profile(out)
    assert profile.models[0].decode[0][1] == pytest.approx(0.02, rel=0.02)
    assert profile.prefill_table(98)[0, [20, 98]] == pytest.approx([0.12, 0.198], rel=0.03)
    assert profile.tasks[0].quality_percent == (61.5,)
    situation = load_situation(tmp_path / "lone.yaml")
    assert situation.profile == profile
    assert situation.tasks[0].prompt_tokens == (20, 98)
    figures = json.loads((tmp_path / "lone.fit.json").read_text(encoding="utf-8"))
    assert np.abs(figures["models"][0]["held_out"]["end to end"]["relative_error"]).max() < 0.03
    assert main(["profile", "fit", str(log), "--out", str(out)]) == 2
    assert "the file exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (log_text(1), [], ["too few answered requests", "1", "at least 16"]),
        (log_text(20, model=True), ["--quality", "chat=a:1,b:2"], ["model `a`, 10", "at least 16"]),
        (log_text(40, model=True), ["--name", "m"], ["names its models (a, b)", "leave it out"]),
        (log_text(40, model=True), [], ["2 models", "--quality"]),
        (log_text(), ["--quality", "chat=bad"], ["`bad` is not a percentage"]),
        (log_text(), ["--into", "opt-a100", "--name", "m"], ["no quality of model `m`"]),
        (log_text(), ["--max-batch", "0"], ["`--max-batch` is 0; give a number from 1"]),
        (log_text()[:-2], [], ["cut short"]),
    ],
)
def test_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, options: list[str], words: list[str]
) -> None:
    log, out = tmp_path / "log.csv", tmp_path / "out.json"
    log.write_text(text, encoding="utf-8")
    assert main(["profile", "fit", str(log), "--out", str(out), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("besteffort: ")
    assert said.count("\n") == 1
    for word in words:
        assert word in said
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


@pytest.mark.parametrize("command", [["profile"], ["profile", "fit"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([*command, "--help"])
    assert leaving.value.code == 0
    assert "fit" in capsys.readouterr().out
