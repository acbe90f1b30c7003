"""Quality by lm-evaluation-harness: the figures of its own PyTorch backend, and one sentence for what cannot be."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from besteffort.cli import main
from besteffort.errors import InputError
from besteffort.files import append_jsonl
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality, load_profile, save_profile
from besteffort.profiling.measure import Qualities, read_qualities
from besteffort.profiling.quality import (
    Figure,
    QualityPlan,
    _depends_on,
    _figure,
    check_merge,
    measure_qualities,
    merged,
    parse_metrics,
    qualities,
    read_examples,
    table,
)

DATA = Path(__file__).resolve().parent / "data" / "quality"
FILES = tuple(DATA / f"{name}.jsonl" for name in ("choices", "texts", "answers"))
REFERENCE: dict[str, dict[str, float]] = json.loads((DATA / "reference.json").read_text())


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What the command line makes of the model and the three tasks beside it."""
    pytest.importorskip("lm_eval")
    out = tmp_path_factory.mktemp("quality") / "found.json"
    examples = [argument for file in FILES for argument in ("--examples", str(file))]
    assert main(["profile", "quality", str(DATA), "--out", str(out), *examples, "--metric", "answers=rougeL"]) == 0
    lines = out.with_name("found.quality.jsonl").read_text().splitlines()
    return out, [json.loads(line) for line in lines]


def test_figures_are_those_of_the_harness_with_pytorch(measured: tuple[Path, list[dict[str, Any]]]) -> None:
    found = {line["task"]: line["all"] for line in measured[1]}
    assert found.keys() == REFERENCE.keys()
    for task, figures in found.items():
        expected = {name: value for name, value in REFERENCE[task].items() if not name.endswith("_stderr")}
        assert figures == pytest.approx(expected, rel=1e-5)


def test_the_quality_is_a_percentage_with_its_error(measured: tuple[Path, list[dict[str, Any]]]) -> None:
    out, lines = measured
    choices, texts, answers = lines
    assert (choices["metric"], choices["examples"]) == ("acc", 40)
    assert choices["percent"] == pytest.approx(100 * REFERENCE["choices"]["acc"])
    assert choices["error_percent"] == pytest.approx(100 * REFERENCE["choices"]["acc_stderr"])
    assert texts["percent"] == pytest.approx(100 / REFERENCE["texts"]["byte_perplexity"], rel=1e-5)
    assert 0 < texts["error_percent"] < 0.1 * texts["percent"]
    assert answers["percent"] == pytest.approx(REFERENCE["answers"]["rougeL"])
    assert answers["error_percent"] == pytest.approx(REFERENCE["answers"]["rougeL_stderr"])
    known = read_qualities(["quality"], out)
    assert [task.metric for task in known.tasks] == ["acc, 0-shot", "1 / byte_perplexity, 0-shot", "rougeL, 0-shot"]
    assert known.source.kind == "measured"
    assert "answers: rougeL, n = 30: quality 89" in known.source.method
    assert known.source.libraries[0].startswith("lm_eval 0.")


def test_nothing_is_compiled_for_a_length_of_its_own(measured: tuple[Path, list[dict[str, Any]]]) -> None:
    """Sequences of every length go through as many programs as there are buckets."""
    from besteffort.opt.hub import load_tokenizer
    from besteffort.opt.weights import load_model
    from besteffort.profiling.lm_eval import HarnessOPT

    harness = HarnessOPT(load_model(DATA), load_tokenizer(DATA))
    pairs = [(None, [2], [3] * length) for length in range(1, 65)]
    together = harness._loglikelihood_tokens(pairs)
    assert harness._score._cache_size() == 4  # 16, 32, 48, 64
    assert harness._loglikelihood_tokens(pairs[20:21]) == [pytest.approx(together[20], rel=1e-5)]
    assert harness.truncated == 0
    cut = harness._loglikelihood_tokens([(None, [7] * 70 + [2], [3, 4])])
    assert cut == [pytest.approx(harness._loglikelihood_tokens([(None, [7] * 62 + [2], [3, 4])])[0], rel=1e-5)]
    assert harness.truncated == 1
    with pytest.raises(InputError, match=r"continuation of 65 tokens exceeds the context of .*, 64 tokens; shorten it"):
        harness._loglikelihood_tokens([(None, [2], [3] * 65)])


def profile_of(*names: str) -> Profile:
    known = Source("published", "a test")
    return Profile(
        format=1,
        name="base",
        device="none",
        models=tuple(ModelProfile(name, ((1, 0.1),), ((1, 0.1),)) for name in names),
        tasks=tuple(TaskQuality(task, "acc", "a test", (50.0,) * len(names)) for task in ("piqa", "answers")),
        provenance=Provenance(known, known, known, known),
    )


def test_merging_keeps_the_costs_and_the_other_tasks(tmp_path: Path) -> None:
    base = profile_of("small", "large")
    tasks = tuple(TaskQuality(name, "acc", "measured", (80.0, 20.0)) for name in ("new", "answers"))
    found = merged(base, Qualities(("large", "small"), tasks, Source("measured", "here", "how")))
    assert found.models == base.models
    assert found.task_names == ("piqa", "answers", "new")
    assert found.tasks[0] == base.tasks[0]
    assert found.tasks[1].quality_percent == found.tasks[2].quality_percent == (20.0, 80.0)
    assert found.provenance.quality.method == "how. Other tasks (piqa): published, a test"
    assert found.provenance.decode == base.provenance.decode


def test_a_profile_is_merged_in_place(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    path = tmp_path / "profile.json"
    save_profile(profile_of("quality"), path)
    arguments = ["--into", str(path), "--out", str(path), "--examples", str(FILES[0]), "--limit", "4"]
    assert main(["profile", "quality", str(DATA), *arguments]) == 0
    found = load_profile(path)
    assert found.task_names == ("piqa", "answers", "choices")
    assert found.tasks[2].source == "measured, choices.jsonl, 4 examples"
    assert found.provenance.quality.kind == "measured"


def test_a_perfect_tie_of_errors_and_no_error_at_all() -> None:
    pytest.importorskip("lm_eval")  # whose version is named
    plan = QualityPlan(("a", "b"), tasks=("sums",))
    figures = [
        Figure(name, "sums", "acc", 5, 3, percent, error, 0, {})
        for name, percent, error in (("a", 30.0, 1.25), ("b", 90.0, None))
    ]
    found = qualities(plan, figures)
    assert "sums: acc, n = 3: a 30 ± 1.2, b 90" in found.source.method
    assert found.tasks[0].metric == "acc, 5-shot"
    assert "90.00" in table(figures).markdown()


@pytest.mark.parametrize("results", [{}, {"board": {"alias": "board", "name": "board"}}])
def test_a_group_without_a_figure(results: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="`board` has no figure of its own in lm-eval; name its tasks instead"):
        _figure("a", "board", {"results": results, "higher_is_better": {}, "n-samples": {}}, None, 0)


@pytest.mark.parametrize(
    ("metric", "value", "percent"),
    [
        *(("bleu", 30.0, 30.0), ("rougeL_max", 30.0, 30.0), ("chrf++", 30.0, 30.0), ("bleu_acc", 0.3, 30.0)),
        *(("rouge_score", 0.3, 30.0), ("acc", 0.3, 30.0), ("byte_perplexity", 4.0, 25.0)),
    ],
)
def test_shares_and_percentages_are_told_apart(metric: str, value: float, percent: float) -> None:
    found = {"alias": "a", f"{metric},none": value, f"{metric}_stderr,none": value / 100}
    results = {"results": {"a": found}, "higher_is_better": {}, "n-shot": {}, "n-samples": {"a": {"effective": 9}}}
    figure = _figure("small", "a", results, metric, 0)
    assert (figure.percent, figure.error_percent) == (pytest.approx(percent), pytest.approx(percent / 100))


CHOICE = {"prompt": "2+2=", "choices": ["3", "4"], "answer": 1}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "the file has no examples; give one per line"),
        (["{"], "line 1: it is no JSON object"),
        (["[" * 100_000], "line 1: it is no JSON object"),
        ([{"text": "\ud83d"}], "line 1: it has one half of a pair of surrogates; write whole characters"),
        ([{"prompt": "2+2="}], "line 1: `answer` is missing"),
        ([CHOICE, {**CHOICE, "answer": None}], "line 2: `answer` is missing"),
        ([{**CHOICE, "prompt": ""}], "line 1: `prompt` is empty"),
        ([{"prompt": "2+2=", "answer": ""}], "line 1: `answer` is empty"),
        ([{"prompt": "2+2=", "answer": ["4", " "]}], "line 1: `answer` must be text or a list of texts, none of them"),
        ([{"prompt": "2+2=", "answer": 4}], "line 1: `answer` must be text or a list of texts"),
        ([{"prompt": 4, "answer": "4"}], "line 1: `prompt` must be text, not 4"),
        ([{**CHOICE, "choices": ["4"]}], "line 1: `choices` must be a list of two or more texts"),
        ([{**CHOICE, "answer": 2}], "line 1: `answer` is 2; give one of the choices, or its index from 0 to 1"),
        ([{**CHOICE, "answer": "5"}], 'line 1: `answer` is "5"; give one of the choices'),
        ([{**CHOICE, "anwser": 1}], "line 1: `anwser` is no field of a multiple choice"),
        ([CHOICE, {"text": "a"}], "line 2: a likelihood among examples of multiple choice"),
    ],
)
def test_files_of_examples_that_cannot_be(tmp_path: Path, lines: list[Any], words: str) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    with pytest.raises(InputError) as caught:
        read_examples(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith(".")


def test_examples_in_one_form(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": "2+2=", "answer": "4"}, {"prompt": "1+1=", "answer": ["2", "two"]}]
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    assert [row["answer"] for row in read_examples(path).rows] == [["4", "4"], ["2", "two"]]
    path.write_text(json.dumps({**CHOICE, "answer": "4"}))
    assert read_examples(path).rows == (CHOICE,)
    text = {"text": "one\u2028two\x85three"}
    path.write_text(json.dumps(text, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read_examples(path).rows == (text,)


def long_prompt(directory: Path) -> list[str]:
    path = directory / "long.jsonl"
    rows = [{"prompt": "the cat", "answer": "sat"}, {"prompt": "the cat " * 80, "answer": "sat"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--examples", str(path)]


def long_choice(directory: Path) -> list[str]:
    path = directory / "long.jsonl"
    path.write_text(json.dumps({**CHOICE, "prompt": "the cat " * 80}) + "\n")
    return ["--examples", str(path)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda _: [], "No task to measure; name one with `--task`"),
        (lambda _: ["--examples", str(FILES[0]), "--examples", str(FILES[0])], "`choices` is to be measured twice"),
        (lambda _: ["--examples", "none.jsonl"], "none.jsonl: cannot be read"),
        pytest.param(
            lambda _: ["--task", "arc_eazy"],
            "lm-eval has no task `arc_eazy`, did you mean `arc_easy`?",
            marks=pytest.mark.slow,
        ),
        (long_prompt, "example 2: prompt and 2 tokens for the answer are "),
        (long_choice, "example 1: prompt and choice are "),
        (lambda _: ["--examples", str(FILES[0]), "--metric", "choices=bleu"], "`choices` has no metric `bleu`"),
        (
            lambda _: ["--examples", str(FILES[1]), "--metric", "texts=bits_per_byte"],
            "a lower `bits_per_byte` is better",
        ),
        (lambda _: ["--examples", str(FILES[0]), "--metric", "sums=acc"], "`--metric sums=...` is of no task"),
        (lambda _: ["--examples", str(FILES[0]), "--metric", "acc"], "`--metric acc` names no task or no metric"),
        (lambda _: ["--examples", str(FILES[0]), "--limit", "0"], "`limit` is 0; give at least 1"),
        (lambda _: ["--examples", str(FILES[0]), "--into", "opt-a100"], "which is not measured; a task needs a figure"),
    ],
)
def test_one_sentence_for_each_mistake(
    tmp_path: Path, arguments: Callable[[Path], list[str]], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    out = tmp_path / "found.json"
    assert main(["profile", "quality", str(DATA), "--out", str(out), *arguments(tmp_path)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("besteffort: ")
    assert words in said
    assert not out.exists()


def test_figures_that_are_there_are_not_measured_again(tmp_path: Path) -> None:
    """With all of them there, neither the harness nor a model is asked for."""
    examples = tuple(read_examples(file) for file in FILES)
    plan = QualityPlan(("small", "large"), examples=examples, limit=7)
    file = tmp_path / "found.quality.jsonl"
    wanted = [
        Figure(model, task, "acc", 0, 7, 10.0 * number, None, 0, {"acc": 0.1 * number})
        for number, (model, task) in enumerate((m, t) for m in plan.names for t in plan.task_names)
    ]
    for figure in reversed(wanted):
        depends_on = _depends_on(plan, figure.model, figure.task)
        append_jsonl(file, {**dataclasses.asdict(figure), "depends_on": depends_on})
    assert measure_qualities(plan, file, resume=True) == wanted
    with pytest.raises(InputError, match=r"there are figures already; keep them with `--resume`, or remove the file"):
        measure_qualities(plan, file)
    for other in (
        dataclasses.replace(plan, limit=8),
        dataclasses.replace(plan, metrics={"texts": "word_perplexity"}),
        dataclasses.replace(plan, models=("elsewhere/small", "large")),
        dataclasses.replace(
            plan, examples=(dataclasses.replace(examples[0], rows=examples[0].rows[1:]), *examples[1:])
        ),
    ):
        with pytest.raises(InputError, match=r"the figure of \w+ on \w+ is of other settings"):
            measure_qualities(other, file, resume=True)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from besteffort.opt.hub import load_tokenizer
    from besteffort.opt.weights import load_model
    from besteffort.profiling.lm_eval import HarnessOPT

    model, tokenizer = load_model(DATA), load_tokenizer(DATA)
    small = dataclasses.replace(model, config=dataclasses.replace(model.config, vocab=50))
    with pytest.raises(InputError, match=r"its tokenizer has the token .* but the model's run from 0 to 49"):
        HarnessOPT(small, tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="its tokenizer has no token that ends a text"):
        HarnessOPT(model, tokenizer)
    bare = Path(shutil.copytree(DATA, tmp_path / "bare"))
    for file in bare.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match=r"there is no tokenizer; add its files, such as `tokenizer\.json`"):
        load_tokenizer(bare)


def test_what_cannot_be_merged_is_said_before_measuring() -> None:
    with pytest.raises(InputError, match="Profile `base` has no model `c`; choose from a, b"):
        check_merge(profile_of("a", "b"), QualityPlan(("a", "b", "c"), tasks=("piqa",)))
    with pytest.raises(InputError, match="`--metric` is given twice for task `piqa`"):
        parse_metrics(["piqa=acc", "piqa=acc_norm"])
