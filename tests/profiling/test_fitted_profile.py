from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from besteffort.cli import main
from besteffort.errors import InputError
from besteffort.profile import Profile, load_profile
from besteffort.profiling import fitted_profile
from besteffort.profiling.fit import Fitted
from besteffort.profiling.fitted_profile import FittedModel, HeldOut
from besteffort.profiling.problem import Assumption
from besteffort.profiling.server_log import RequestLog
from besteffort.runs.config import load_situation
from besteffort.situation import Deadline

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
    measured = {"latency_s": TIMES, "ttft_s": TIMES / 2}
    return FittedModel(name, log, fitted, HeldOut(measured, {"latency_s": 1.1 * TIMES, "ttft_s": TIMES / 2}))


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
    # One option states all of a task, so the remedy names what was given, too.
    with pytest.raises(
        InputError, match=r"No quality is stated of `large` on `chat`; add `--quality chat=small:60,large:PERCENT`\.$"
    ):
        fitted_profile.make_profile(models, name="p", qualities={"chat": {"small": 60.0}})
    with pytest.raises(
        InputError, match=r"there is no model `smal`, did you mean `small`\?.*the models are small, large\.$"
    ):
        fitted_profile.make_profile(models, name="p", qualities={"chat": {"smal": 60.0, "large": 70.0}})


@pytest.mark.parametrize(
    ("predicted", "words"),
    [
        (
            (1.04, 1.09),
            "Good enough: end-to-end times of the second half are predicted to within 5% at P50 and 10% at P95",
        ),
        (
            (1.06, 1.09),
            "Not good enough: of end-to-end times m is off by +6% at P50, where at most 5% at P50 and 10% at",
        ),
        ((0.8, 0.8), "m is off by -20% at P50 and -20% at P95"),
        ((1.0, 1.2), "m is off by +20% at P95, where at most"),
        ((np.nan, 1.0), "m is off by +nan% at P50"),
    ],
)
def test_a_verdict_on_the_fit(predicted: tuple[float, float], words: str) -> None:
    factors = np.interp(TIMES, [50, 90], predicted)
    model = dataclasses.replace(
        fitted_model("m"), held_out=HeldOut({"latency_s": TIMES}, {"latency_s": factors * TIMES})
    )
    said = fitted_profile.verdict([model])
    assert words in said
    assert ("besteffort diagnose" in said) == said.startswith("Not")


def test_two_logs_of_one_model_each_make_one_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A small server, and one of half its pace: the same as their models in one log."""
    slow, quick, out = tmp_path / "slow.csv", tmp_path / "quick.csv", tmp_path / "both.json"
    slow.write_text(log_text(), encoding="utf-8")
    header, *lines = log_text().splitlines()
    with quick.open("w", encoding="utf-8") as file:
        file.write(f"{header},task\n")
        for line in lines:
            arrival, first, last, *lengths = map(float, line.split(","))
            cells = [
                arrival,
                arrival + (first - arrival) / 2,
                arrival + (last - arrival) / 2,
                *map(int, lengths),
                "chat",
            ]
            file.write(",".join(map(str, cells)) + "\n")
    arguments = ["profile", "fit", str(slow), str(quick), "--out", str(out), "--quality", "chat=large:70,quick:50"]
    assert main([*arguments, "--name", "large", "--name", "small", "--name", "x"]) == 2
    assert "`--name` is given 3 times, and 2 logs name no model" in capsys.readouterr().err
    assert main([*arguments, "--name", "large", "--name", "large"]) == 2
    assert f"{quick}: the model `large` is in {slow}, too" in capsys.readouterr().err
    assert main([*arguments, "--name", "large", "--name", "quick"]) == 0
    said = capsys.readouterr().out
    assert said.index("the model is `large`, as `--name` says") < said.index("The second half of the log")
    assert "Good enough" in said
    assert f"--trace {slow} --trace {quick}" in said
    profile = load_profile(out)
    assert profile.model_names == ("quick", "large")
    assert [model.decode[0][1] for model in profile.models] == pytest.approx([0.01, 0.02], rel=0.02)
    assert profile.tasks[0].quality_percent == (50.0, 70.0)
    assert profile.provenance.decode.source == "fitted to quick.csv, slow.csv"
    # Only one of the logs names the task.
    assert load_situation(tmp_path / "both.yaml").tasks[0].share == N


def test_guessed_deadlines_let_every_model_be_in_time(tmp_path: Path) -> None:
    """Also where most of the log is of the quicker one, whose medians are those of the whole."""
    models = []
    for name, pace, n in (("small", 1.0, 40), ("large", 10.0, 8)):
        model = fitted_model(name, 0.01 * pace)
        times = {"arrival_s": np.zeros(n), "first_token_s": np.full(n, 0.1 * pace), "last_token_s": np.full(n, pace)}
        lengths = {key: np.full(n, 10, np.int32) for key in ("prompt_tokens", "output_tokens")}
        labels = {key: np.zeros(n, np.int32) for key in ("model", "task", "replica")}
        log = dataclasses.replace(model.log, scheduled_s=np.zeros(n), **times, **lengths, **labels)
        models.append(dataclasses.replace(model, log=log))
    profile = fitted_profile.make_profile(models, name="p", qualities={"chat": {"small": 6.0, "large": 7.0}})
    fitted_profile.write_outcome(models, profile, tmp_path / "p.json")
    assert load_situation(tmp_path / "p.yaml").tasks[0].deadline == Deadline(2.0, 2.0)


def test_a_task_called_requests_is_also_that_of_requests_without_one(tmp_path: Path) -> None:
    model = fitted_model("m")
    tasks = {"tasks": ("", "requests", "zip"), "task": np.array([0, 1, 2, 2])}
    log = dataclasses.replace(model.log, prompt_tokens=np.array([1, 20, 300, 400]), **tasks)
    models = [dataclasses.replace(model, log=log)]
    profile = fitted_profile.make_profile(models, name="p", qualities={})
    fitted_profile.write_outcome(models, profile, tmp_path / "p.json")
    written = load_situation(tmp_path / "p.yaml").tasks
    assert [(task.name, task.share, task.prompt_tokens) for task in written] == [
        ("requests", 2.0, (1, 20)),
        ("zip", 2.0, (300, 400)),
    ]


def test_a_situation_says_where_its_numbers_are_from(tmp_path: Path) -> None:
    models = [fitted_model("small"), fitted_model("large")]
    profile = fitted_profile.make_profile(models, name="p", qualities={"chat": {"small": 6.0, "large": 7.0}})

    def written(fitted: list[FittedModel], deadlines: dict[str, Deadline]) -> str:
        fitted_profile.write_outcome(fitted, profile, tmp_path / "p.json", deadlines)
        return (tmp_path / "p.yaml").read_text(encoding="utf-8")

    text = written(models, {})
    assert "`max_batch` is 16, which is assumed, with room above the 1 requests of small that ran at once" in text
    assert "Deadlines of chat (twice the slowest model's median times)" in text
    text = written(models, {"chat": Deadline(0.5, 0.02)})
    assert "Deadlines are as given" in text
    assert load_situation(tmp_path / "p.yaml").tasks[0].deadline == Deadline(0.5, 0.02)
    for batch_from, words in (("given", "16, as given"), ("log", "16, because requests of large waited")):
        fitted = dataclasses.replace(models[1].fitted, max_batch=32, batch_from=batch_from)
        text = written([models[0], dataclasses.replace(models[1], fitted=fitted)], {})
        assert f"`max_batch` is {words.replace('16', '32')}" in text
    assumed, free = Assumption(max_batch=32), Assumption()
    fitted = dataclasses.replace(fitted, batch_from="log", assumed=assumed, alike=(assumed, free))
    text = written([models[0], dataclasses.replace(models[1], fitted=fitted)], {})
    assert "`max_batch` is 32, which is assumed, because what held requests of large back is undetermined" in text
    assert "between no limit and a largest batch of 32; state it with" in text


def test_what_is_written_may_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A situation finds its profile beside it, wherever the command runs and wherever both are moved."""
    models = [fitted_model("m")]
    profile = fitted_profile.make_profile(models, name="p", qualities={})
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path / "mine" / "p.json", Path("mine/p.json")):
        fitted_profile.write_outcome(models, profile, out)
        assert "profile: p.json" in Path("mine/p.yaml").read_text(encoding="utf-8")
    assert load_situation("mine/p.yaml").profile == profile
    Path("mine").rename("moved")
    monkeypatch.chdir(tmp_path / "moved")
    for path in ("p.yaml", tmp_path / "moved" / "p.yaml", "../moved/p.yaml"):
        assert load_situation(path).profile == profile


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
    remedy = " ".join(f"--quality {task}=opt-350m:PERCENT" for task in base.task_names)
    with pytest.raises(InputError, match=f"on `{base.task_names[-1]}`; add `{remedy}`"):
        fitted_profile.make_profile([fitted_model("opt-350m", 0.002)], name="p", qualities={}, into=base)


def test_errors_fit_a_narrow_terminal() -> None:
    """In one table, whatever the model's name."""
    table = fitted_profile.error_table([fitted_model("meta-llama/Llama-3.1-8B-Instr")])
    assert len(table.parts(80)) == 1
    console = Console(width=80, file=io.StringIO())
    console.print(table.terminal())
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for cell in ("meta-llama/Llama-3.1-8B-Instr, first token", "meta-llama/Llama-3.1-8B-Instr, end to end", "+10.0"):
        assert cell in said
    assert table.as_data()["rows"][1]["p50_s"] == pytest.approx(50.5)


def test_halves_that_disagree_are_named() -> None:
    model = fitted_model("m")
    assert fitted_profile.disagreements(model) == []

    def halves(*assumed: Assumption, pace: float = 1.0, largest_batch: int = 8) -> list[str]:
        fits = [
            dataclasses.replace(
                model.fitted,
                assumed=each,
                alike=(each,),
                chunk_tokens=each.chunk_tokens,
                limit=each.limit,
                max_batch=each.max_batch or 64,
                largest_batch=largest_batch,
                last_s=model.fitted.last_s * factor,
            )
            for each, factor in zip(assumed, (1.0, pace), strict=True)
        ]
        return fitted_profile.disagreements(dataclasses.replace(model, halves=tuple(fits)))

    assert halves(Assumption(), Assumption()) == []
    assert halves(Assumption(chunk_tokens=512), Assumption()) == [
        "The halves disagree: `chunk_tokens` is 512 by the first and none by the second."
    ]
    assert "a largest batch of 8 by the first and a full cache by the second" in " ".join(
        halves(Assumption(max_batch=8), Assumption(cache=True))
    )
    # A half that never reached the other's limit does not contradict it.
    assert halves(Assumption(), Assumption(max_batch=8)) == []
    assert len(halves(Assumption(), Assumption(max_batch=8), largest_batch=9)) == 1
    assert "takes 20% longer than by the first" in halves(Assumption(), Assumption(), pace=1.2)[0]


def test_one_share_for_all(base: Profile) -> None:
    cached = dataclasses.replace(base, models=(dataclasses.replace(base.models[0], cache_tokens=999), *base.models[1:]))
    fresh = [fitted_model("opt-1.3b", cache_tokens=5000, share=0.5)]
    with pytest.raises(InputError, match=r"counts 1 of outputs against the cache and the fit 0\.5"):
        fitted_profile.make_profile(fresh, name="p", qualities={}, into=cached)
    assert fitted_profile.make_profile(fresh, name="p", qualities={}, into=base).cache_output_share == 0.5
    assert fitted_profile.share_of_others(cached, [dataclasses.replace(fresh[0].log, models=("opt-1.3b",))]) == 1.0
    assert fitted_profile.share_of_others(base, [dataclasses.replace(fresh[0].log, models=("opt-1.3b",))]) is None


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
    # What the log cannot tell stands before what the fit is worth.
    assert said.index("Not determined: No two requests ran at once") < said.index("m, end to end")
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


def test_what_comes_next_reads_the_log_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, out = tmp_path / "log.csv", tmp_path / "s.json"
    log.write_text(log_text(40, model=True).replace("prompt_tokens", "words in"), encoding="utf-8")
    files = fitted_profile.outcome_files(out)
    monkeypatch.setattr("besteffort.commands.profile.fit_logs", lambda *_, **__: SimpleNamespace(files=files))
    options = ["--quality", "chat=a:1,b:2", "--columns", "prompt=words in", "--columns", "model=model"]
    assert main(["profile", "fit", str(log), "--out", str(out), *options]) == 0
    said = capsys.readouterr().out
    assert f"--config {files[1]} --trace {log} --columns 'prompt=words in' --columns model=model --out" in said


def test_tasks_that_have_no_quality_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, out = tmp_path / "log.csv", tmp_path / "s.json"
    header, *lines = log_text(40, model=True).splitlines()
    table = [f"{header},task", *(f"{line},{('talk', 'code')[i % 3 == 0]}" for i, line in enumerate(lines))]
    log.write_text("\n".join(table) + "\n", encoding="utf-8")
    files = fitted_profile.outcome_files(out)
    outcome = SimpleNamespace(files=files, doubts=(), notes=(), table=fitted_profile.error_table([]))
    monkeypatch.setattr(fitted_profile, "fit_to_file", lambda *_, **__: outcome)
    arguments = ["profile", "fit", str(log), "--out", str(out), "--quality", "talk=a:1,b:2"]
    assert main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The log names tasks without a quality, `code`, which the situation leaves out" in said
    assert "each, `--quality TASK=a:PERCENT,b:PERCENT`" in said
    assert main([*arguments, "--quality", "code=a:1,b:2"]) == 0
    assert "without a quality" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (log_text(1), [], ["too few answered requests", "1", "at least 16"]),
        (log_text(20, model=True), ["--quality", "chat=a:1,b:2"], ["model `a`, 10", "at least 16"]),
        (log_text(40, model=True), ["--name", "m"], ["names its models (a, b)", "leave it out"]),
        (log_text(40, model=True), [], ["2 models", "--quality"]),
        (log_text(), ["--quality", "chat=bad"], ["`bad` is not a percentage"]),
        (log_text(), ["--into", "opt-a100", "--name", "m"], ["No quality is stated of `m` on `piqa`, of `m` on "]),
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
