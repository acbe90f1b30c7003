"""Measures the quality of models with lm-evaluation-harness: on its own tasks by name, and on yours from JSON lines.

Each line of your task is an example; its fields determine the kind. The model reads `prompt + choice`, with nothing in
between:

| lines | kind | metrics |
|---|---|---|
| `{"prompt": "2+2=", "choices": ["3", "4"], "answer": 1}` | multiple choice, by likelihood | `acc`, `acc_norm` |
| `{"prompt": "Sort 3 1 2:", "answer": "1 2 3"}`, or a list of answers | generation | `exact_match`, `rouge1`, `rouge2`, `rougeL`, `bleu` |
| `{"text": "..."}` | likelihood of the text | `byte_perplexity`, `word_perplexity`, `bits_per_byte` |

An answer is generated up to the first line break, unless answers of the file have line breaks, and up to twice as many
tokens as the longest answer of the file. ROUGE is `rouge_score`'s, BLEU `sacrebleu`'s. Higher quality is better, so a
perplexity `x` becomes `1 / x`: the mean (geometric) probability of a byte or word.
"""  # noqa: E501 (a table)

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import io
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from besteffort.device import device_name
from besteffort.digests import array_digest
from besteffort.errors import InputError
from besteffort.evaluation.report import Column, Table
from besteffort.files import append_jsonl, read_jsonl
from besteffort.opt.config import PUBLISHED
from besteffort.opt.hub import load_tokenizer, quiet_hub, short_name
from besteffort.opt.weights import load_model
from besteffort.profile.types import Profile, Source, TaskQuality
from besteffort.profiling.measure import Qualities
from besteffort.validation import did_you_mean, from_json
from besteffort.version import __version__

if TYPE_CHECKING:
    from besteffort.profiling.lm_eval import HarnessOPT

Kind = Literal["multiple choice", "generation", "likelihood"]
ProgressCallback = Callable[[str, int, int], None]
"""Called with the current activity, the number of steps done, and the total number of steps."""

_FIELDS: dict[Kind, tuple[str, ...]] = {
    "multiple choice": ("prompt", "choices", "answer"),
    "generation": ("prompt", "answer"),
    "likelihood": ("text",),
}
_HARNESS_KINDS = {
    "multiple choice": "multiple_choice",
    "generation": "generate_until",
    "likelihood": "loglikelihood_rolling",
}
# The default metric is the first of these that a task has.
_USUAL = ("acc", "exact_match", "f1", "rougeL", "bleu", "byte_perplexity")
# Others that begin like them are shares, such as `bleu_acc` of truthfulqa_gen and `rouge_score` of longbench.
_IN_PERCENT = re.compile(r"(bleu|chrf(\+\+)?|rouge(1|2|L|Lsum))(_max)?(,.*)?")
_PERPLEXITIES = ("perplexity", "byte_perplexity", "word_perplexity")
_ROUGE = ("rouge1", "rouge2", "rougeL")
_RESAMPLES = 100
_FEWSHOT_SEED = 1234  # the harness's own default


@dataclasses.dataclass(frozen=True)
class Examples:
    """A task from a file.

    Attributes:
      name: the file's name without its ending.
      path: the file.
      kind: kind of the task.
      rows: the examples, with the fields of their kind; `answer` is an index for a choice, a list for a generation.
    """

    name: str
    path: Path
    kind: Kind
    rows: tuple[dict[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Figure:
    """Quality of one model on one task, and one line of the file of figures.

    Attributes:
      model, task: names.
      metric: the harness's name of the metric.
      shots: number of examples in the prompt.
      examples: number of examples that the figure averages.
      percent: the quality, 0 to 100, higher is better.
      error_percent: its standard error; none where the harness returns none.
      truncated: number of requests whose context did not fit and was cut on the left.
      all: every metric as returned by the harness.
    """

    model: str
    task: str
    metric: str
    shots: int
    examples: int
    percent: float
    error_percent: float | None
    truncated: int
    all: dict[str, float]


def read_examples(path: str | Path) -> Examples:
    """Reads a task from JSON lines, see above.

    Raises:
      InputError: if the file cannot be read, has no examples or no answers, or a line does not fit; it names the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not at U+2028 or U+0085, which may be part of a string
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"{path}: cannot be read ({reason}); give a file of JSON lines.") from None
    rows: list[dict[str, Any]] = []
    kind: Kind | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InputError(f"{where}: it has one half of a pair of surrogates; write whole characters.") from None
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise InputError(f"{where}: it is no JSON object; give one example per line.")
        found = _kind(row, where)
        kind = kind or found
        if found != kind:
            raise InputError(f"{where}: a {found} among examples of {kind}; give each kind a file of its own.")
        rows.append(_row(row, kind, where))
    if kind is None:
        raise InputError(f"{path}: the file has no examples; give one per line.")
    if kind == "generation":
        # For BLEU the harness uses as many references of every line as the line with the fewest has.
        most = max(len(row["answer"]) for row in rows)
        for row in rows:
            row["answer"] += [row["answer"][0]] * (most - len(row["answer"]))
    return Examples(path.stem, path, kind, tuple(rows))


def _kind(row: Mapping[str, Any], where: str) -> Kind:
    kind: Kind = "likelihood" if "text" in row else "multiple choice" if "choices" in row else "generation"
    for field in _FIELDS[kind]:
        if field not in row or row[field] in (None, [], ""):
            what = "empty" if row.get(field) in ([], "") else "missing"
            raise InputError(
                f"{where}: `{field}` is {what}; an example is `prompt` and `answer`, with `choices` to choose from, "
                "or a `text`."
            )
    unknown = [field for field in row if field not in _FIELDS[kind]]
    if unknown:
        raise InputError(f"{where}: `{unknown[0]}` is no field of a {kind}; it has {', '.join(_FIELDS[kind])}.")
    return kind


def _row(row: Mapping[str, Any], kind: Kind, where: str) -> dict[str, Any]:
    """An example in normal form."""
    for field in ("text", "prompt"):
        if field in row and not isinstance(row[field], str):
            raise InputError(f"{where}: `{field}` must be text, not {json.dumps(row[field])[:40]}.")
    if kind == "likelihood":
        return {"text": row["text"]}
    answer = row["answer"]
    if kind == "generation":
        answers = list(answer) if isinstance(answer, list) else [answer]
        if not all(isinstance(each, str) and each.strip() for each in answers):
            raise InputError(f"{where}: `answer` must be text or a list of texts, none of them empty.")
        return {"prompt": row["prompt"], "answer": answers}
    choices = row["choices"]
    if not (isinstance(choices, list) and len(choices) > 1 and all(isinstance(c, str) and c for c in choices)):
        raise InputError(f"{where}: `choices` must be a list of two or more texts, none of them empty.")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise InputError(
            f"{where}: `answer` is {json.dumps(answer)[:40]}; give one of the choices, or its index from 0 to "
            f"{len(choices) - 1}."
        )
    return {"prompt": row["prompt"], "choices": choices, "answer": answer}


@dataclasses.dataclass(frozen=True)
class QualityPlan:
    """What to measure.

    Attributes:
      models: directories, hub names or published sizes, from the smallest model to the largest.
      tasks: names of the harness's tasks.
      examples: tasks of the user.
      metrics: metric that is the quality, by task, where it is not the default.
      shots: examples in the prompt of the harness's tasks; by default each task's own number.
      limit: largest number of examples of each task; by default all.
      dtype: `float32` or `bfloat16`.
      max_batch: sequences at a time.

    Raises:
      InputError: if there is nothing to measure, a name is repeated, or a number is out of range.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    examples: tuple[Examples, ...] = ()
    metrics: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shots: int | None = None
    limit: int | None = None
    dtype: str = "float32"
    max_batch: int = 8

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("No model to measure; name at least one, such as `opt-125m`.")
        if not self.task_names:
            raise InputError("No task to measure; name one with `--task`, or a file of your own with `--examples`.")
        for names in (self.names, self.task_names):
            for name in names:
                if names.count(name) > 1:
                    raise InputError(f"`{name}` is to be measured twice; name it once.")
        for name in self.metrics:
            if name not in self.task_names:
                raise InputError(
                    f"`--metric {name}=...` is of no task that is measured; those are {', '.join(self.task_names)}."
                )
        if self.shots is not None and self.shots < 0:
            raise InputError(f"`shots` is {self.shots}; give 0 or more.")
        for field in ("limit", "max_batch"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InputError(f"`{field}` is {value}; give at least 1.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models: the last part of their path or hub name."""
        return tuple(map(short_name, self.models))

    @property
    def task_names(self) -> tuple[str, ...]:
        return (*self.tasks, *(each.name for each in self.examples))


def parse_metrics(texts: Sequence[str]) -> dict[str, str]:
    """Metric by task, from `piqa=acc_norm`.

    Raises:
      InputError: on other text, or a task named twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        task, _, metric = text.partition("=")
        if not (task and metric):
            raise InputError(f"`--metric {text}` names no task or no metric; write it like `--metric piqa=acc_norm`.")
        if task in found:
            raise InputError(f"`--metric` is given twice for task `{task}`; give it once.")
        found[task] = metric
    return found


def measure_qualities(
    plan: QualityPlan, figures: Path, progress: ProgressCallback | None = None, *, resume: bool = False
) -> list[Figure]:
    """Measures every model on every task, one model in memory at a time, on JAX's default device.

    Args:
      plan: what to measure.
      figures: file of JSON lines to which each figure is appended at once, with a digest of what it depends on.
      progress: called with the current activity, the number of steps done and the total.
      resume: keep the figures that are in the file.

    Raises:
      InputError: if there are figures already and `resume` is off, or they are of other settings; if the harness is not
        installed, a task is unknown or its data are not available, a model cannot be loaded, an example does not fit
        its context, or there is no such metric.
    """
    known = _known_figures(plan, figures, resume)
    if len(known) == len(plan.models) * len(plan.task_names):
        return [known[model, task] for model in plan.names for task in plan.task_names]
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when the harness imports it; progress goes to `progress`
    from besteffort.profiling.lm_eval import HarnessOPT

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    progress = progress or (lambda what, done, total: None)
    total = len(plan.models) * len(plan.task_names)
    standard = {}
    for name in plan.tasks:
        progress(f"{name}: data", 0, total)
        standard[name] = _standard(name)
    done: list[Figure] = []
    for model, source in zip(plan.names, plan.models, strict=True):
        if all((model, task) in known for task in plan.task_names):
            done += [known[model, task] for task in plan.task_names]
            continue
        progress(f"{model}: loading", len(done), total)
        where = f"facebook/{source}" if source in PUBLISHED else source
        harness = HarnessOPT(load_model(where, plan.dtype), load_tokenizer(where), plan.max_batch)
        own = {each.name: own_task(each, harness) for each in plan.examples}
        for task, loaded in (*standard.items(), *own.items()):
            if (model, task) in known:
                done.append(known[model, task])
                continue
            progress(f"{model}: {task}", len(done), total)
            results, truncated = evaluate(harness, loaded, plan.shots if task in standard else 0, plan.limit)
            figure = _figure(model, task, results, plan.metrics.get(task), truncated)
            append_jsonl(figures, {**dataclasses.asdict(figure), "depends_on": _depends_on(plan, source, task)})
            done.append(figure)
    progress("done", total, total)
    return done


def _depends_on(plan: QualityPlan, source: str, task: str) -> str:
    """Digest of what a model's figure on a task depends on, next to the model's weights."""
    own = next((each.rows for each in plan.examples if each.name == task), None)
    about = (source, task, own, plan.metrics.get(task), plan.shots, plan.limit, plan.dtype, __version__)
    return array_digest((), start=json.dumps(about))


def _known_figures(plan: QualityPlan, file: Path, resume: bool) -> dict[tuple[str, str], Figure]:
    """The figures of a plan that are in its file, by model and task.

    Raises:
      InputError: if there are figures and they are not to be kept, or one is of other settings.
    """
    lines = read_jsonl(file)
    if lines and not resume:
        raise InputError(f"{file}: there are figures already; keep them with `--resume`, or remove the file.")
    wanted = {
        (name, task): _depends_on(plan, source, task)
        for name, source in zip(plan.names, plan.models, strict=True)
        for task in plan.task_names
    }
    known = {}
    for line in lines:
        depends_on = line.pop("depends_on", "")
        figure = from_json(Figure, json.dumps(line), str(file))
        place = (figure.model, figure.task)
        if place in wanted and wanted[place] != depends_on:
            raise InputError(
                f"{file}: the figure of {figure.model} on {figure.task} is of other settings; give the same ones, or "
                "remove the file."
            )
        known[place] = figure
    return {place: known[place] for place in wanted if place in known}


def evaluate(harness: HarnessOPT, tasks: Any, shots: int | None, limit: int | None) -> tuple[dict[str, Any], int]:
    """Returns the harness's results and the number of requests that were cut.

    Args:
      harness: the model.
      tasks: the result of `TaskManager.load`.
      shots: see `QualityPlan`.
      limit: see `QualityPlan`.
    """
    from lm_eval.evaluator import evaluate

    for task in tasks["tasks"].values():
        if shots is not None or task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", shots or 0)
        task.set_fewshot_seed(_FEWSHOT_SEED)
    before = harness.truncated
    with _quiet():
        results = evaluate(harness, tasks, limit=limit, bootstrap_iters=_RESAMPLES, log_samples=True)
    return results, harness.truncated - before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the harness from printing and from forking, which a process that runs JAX must not do."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.redirect_stdout(io.StringIO()), quiet_hub():
            yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


@functools.cache
def _manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _standard(name: str) -> Any:
    """A task of the harness, or a group of them, with its data."""
    known = (*_manager().all_subtasks, *_manager().all_groups)
    if name not in known:
        if name in _manager().all_tags:
            raise InputError(f"`{name}` stands for several tasks of lm-eval without a common figure; name the tasks.")
        raise InputError(
            f"lm-eval has no task `{name}`{did_you_mean(name, known)}; give your own as a file, `--examples FILE`."
        )
    try:
        with _quiet():
            return _manager().load([name])
    except Exception as error:  # the hub, its mirrors and scripts of data sets fail in many ways
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise InputError(
            f"{name}: the data of this task are not available ({reason}); check the network, or give your own examples "
            "with `--examples FILE`."
        ) from None


def own_task(examples: Examples, harness: HarnessOPT) -> Any:
    """Turns a task of the user into a task of the harness.

    Raises:
      InputError: naming the first example that does not fit the model's context.
    """
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    config: dict[str, Any] = {
        "task": examples.name,
        "output_type": _HARNESS_KINDS[examples.kind],
        "custom_dataset": lambda **_: {"test": Dataset.from_list(list(examples.rows))},
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "num_fewshot": 0,
    }
    if examples.kind == "likelihood":
        config |= {"doc_to_text": "", "doc_to_target": "text"}
    elif examples.kind == "multiple choice":
        config["doc_to_choice"] = "choices"
        longest = [max(len(harness.tok_encode(row["prompt"] + c)) for c in row["choices"]) for row in examples.rows]
        _check_fit(examples, longest, harness.max_length + 1, "prompt and choice", harness.opt.name)
    else:
        answers = [answer for row in examples.rows for answer in row["answer"]]
        count = 2 * max(len(harness.tok_encode(answer, add_special_tokens=False)) for answer in answers)
        lengths = [len(harness.tok_encode(row["prompt"])) + count for row in examples.rows]
        _check_fit(examples, lengths, harness.max_length, f"prompt and {count} tokens for the answer", harness.opt.name)
        means = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("exact_match", *_ROUGE)]
        config |= {
            "generation_kwargs": {
                "until": [] if any("\n" in answer for answer in answers) else ["\n"],
                "max_gen_toks": count,
                "do_sample": False,
            },
            "metric_list": [*means, {"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}],
            "process_results": judged,
        }
    with _quiet():
        return {"tasks": {examples.name: ConfigurableTask(config=config)}, "groups": {}}


def judged(row: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Metrics of one generated answer, the best over the references; for BLEU, a corpus metric, the texts."""
    references, (given,) = row["answer"], results
    scores = _rouge().score_multi(references, given)
    exact = any(given.strip() == reference.strip() for reference in references)
    return {
        "exact_match": float(exact),
        **{name: 100 * scores[name].fmeasure for name in _ROUGE},
        "bleu": (references, given),
    }


@functools.cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(_ROUGE))


def _check_fit(examples: Examples, lengths: Sequence[int], limit: int, what: str, model: str) -> None:
    for number, length in enumerate(lengths, start=1):
        if length > limit:
            raise InputError(
                f"{examples.path}, example {number}: {what} are {length} tokens, but {model} takes {limit}; shorten it."
            )


def _figure(model: str, task: str, results: Mapping[str, Any], metric: str | None, truncated: int) -> Figure:
    """The figure that is the quality, from the results of the harness."""
    plain: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in results["results"].get(task, {}).items():
        name, _, filtered = key.partition(",")
        if filtered and isinstance(value, int | float):
            # A metric may be computed after several filters; the first of them has the metric's bare name.
            into = errors if name.endswith("_stderr") else plain
            name = name.removesuffix("_stderr")
            into[name if name not in into else f"{name},{filtered}"] = float(value)
    if not plain:  # a group that the harness does not aggregate has at most a name in the results
        raise InputError(f"`{task}` has no figure of its own in lm-eval; name its tasks instead.")
    usual = [name for name in _USUAL if name in plain]
    chosen = metric or next(iter([*usual, *plain]))
    if chosen not in plain:
        raise InputError(
            f"`{task}` has no metric `{chosen}`{did_you_mean(chosen, tuple(plain))}; choose from {', '.join(plain)}."
        )
    better = results["higher_is_better"].get(task, {}).get(chosen.partition(",")[0], True)
    value, error = plain[chosen], errors.get(chosen)
    if chosen in _PERPLEXITIES:
        error = _perplexity_error(results, task, chosen) if error is None else error / value
        value, error = 1 / value, None if error is None else error / value
    elif better is False:
        raise InputError(
            f"`{task}`: a lower `{chosen}` is better, so it is no quality; choose another with `--metric`."
        )
    scale = 1.0 if _IN_PERCENT.fullmatch(chosen) else 100.0
    if not 0 <= scale * value <= 100:
        raise InputError(
            f"`{task}`: `{chosen}` is {value:g}, which is no share of 1 (or 100); choose another with `--metric`."
        )
    counts = [each["effective"] for each in results["n-samples"].values()]
    return Figure(
        model=model,
        task=task,
        metric=chosen,
        shots=int(results["n-shot"].get(task) or 0),
        examples=sum(counts),
        percent=scale * value,
        error_percent=None if error is None or math.isnan(error) else scale * error,
        truncated=truncated,
        all=plain,
    )


def _perplexity_error(results: Mapping[str, Any], task: str, metric: str) -> float | None:
    """Standard error of the logarithm of a weighted perplexity, a ratio of sums over the texts; linearised."""
    pairs = [sample[metric] for sample in results["samples"].get(task, [])]
    if len(pairs) < 2:
        return None
    likelihood, size = np.array(pairs, float).T
    residual = likelihood - size * (likelihood.sum() / size.sum())
    return float(residual.std(ddof=1) * math.sqrt(len(pairs)) / size.sum())


def qualities(plan: QualityPlan, figures: Sequence[Figure]) -> Qualities:
    """Figures as a part of a profile, with metrics and standard errors in the provenance."""
    by_task = {task: [figure for figure in figures if figure.task == task] for task in plan.task_names}
    files = {each.name: each.path.name for each in plan.examples}
    tasks = tuple(
        TaskQuality(
            task,
            metric=f"{'1 / ' * (found[0].metric in _PERPLEXITIES)}{found[0].metric}, {found[0].shots}-shot",
            source=f"measured, {files.get(task, 'lm-eval')}, {found[0].examples} examples",
            quality_percent=tuple(round(figure.percent, 6) for figure in found),
        )
        for task, found in by_task.items()
    )
    said = []
    for task, found in by_task.items():
        each = ", ".join(f"{figure.model} {_with_error(figure)}" for figure in found)
        cut = max(figure.truncated for figure in found)
        said.append(f"{task}: {found[0].metric}, n = {found[0].examples}: {each}{f' ({cut} contexts cut)' * bool(cut)}")
    source = Source(
        kind="measured",
        source=f"`besteffort profile quality`, besteffort {__version__}",
        method="lm-evaluation-harness; percent with standard errors. " + "; ".join(said),
        device=device_name(),
        dtype=plan.dtype,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        libraries=tuple(
            f"{name} {importlib.metadata.version(name)}"
            for name in ("lm_eval", "rouge_score", "sacrebleu", "transformers", "jax", "jaxlib", "flax")
        ),
    )
    return Qualities(plan.names, tasks, source)


def _with_error(figure: Figure) -> str:
    return f"{figure.percent:.4g}" + ("" if figure.error_percent is None else f" ± {figure.error_percent:.2g}")


def check_merge(profile: Profile, plan: QualityPlan) -> None:
    """Raises `InputError` if the results of a plan cannot be merged into a profile; does not measure."""
    missing = [name for name in profile.model_names if name not in plan.names]
    if missing:
        raise InputError(
            f"Profile `{profile.name}` has the model `{missing[0]}`, which is not measured; a task needs a figure for "
            "every model, so name all of them."
        )
    unknown = [name for name in plan.names if name not in profile.model_names]
    if unknown:
        raise InputError(
            f"Profile `{profile.name}` has no model `{unknown[0]}`; choose from {', '.join(profile.model_names)}."
        )


def merged(profile: Profile, measured: Qualities) -> Profile:
    """The profile with these qualities: its tasks of the same names get new figures, other tasks are appended."""
    order = [measured.models.index(name) for name in profile.model_names]
    fresh = {
        task.name: dataclasses.replace(task, quality_percent=tuple(task.quality_percent[i] for i in order))
        for task in measured.tasks
    }
    kept = [task.name for task in profile.tasks if task.name not in fresh]
    source, old = measured.source, profile.provenance.quality
    if kept:
        source = dataclasses.replace(
            source, method=f"{source.method}. Other tasks ({', '.join(kept)}): {old.kind}, {old.source}"
        )
    tasks = [fresh.pop(task.name, task) for task in profile.tasks]
    return dataclasses.replace(
        profile,
        tasks=(*tasks, *fresh.values()),
        provenance=dataclasses.replace(profile.provenance, quality=source),
    )


def table(figures: Sequence[Figure]) -> Table:
    """One row per model and task."""
    columns = (
        Column("metric", "text", brief=True),
        Column("quality (%)", "number", 2, brief=True, key="quality_percent"),
        Column("std. error", "number", 2, brief=True, key="standard_error_percent"),
        Column("examples", "number", 0, brief=True),
    )
    rows = tuple(
        (f"{each.model}, {each.task}", (each.metric, each.percent, each.error_percent, float(each.examples)))
        for each in figures
    )
    return Table("Quality", "Model, task", columns, rows)
