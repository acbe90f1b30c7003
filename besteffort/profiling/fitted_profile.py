"""Makes a profile from a server log: the work of `besteffort profile fit`.

Every model of the log is fitted three times: to the first half of its requests, which then predicts the times of the
second half, to the second half, and to all requests. The errors of the first fit show how far to trust the last, and so
does what the halves find different.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from besteffort.errors import InputError
from besteffort.evaluation import plots
from besteffort.evaluation.report import Column, Table
from besteffort.files import jsonable, write_json
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality, load_profile, save_profile
from besteffort.profiling.fit import LEAST_REQUESTS, Fitted, fit, limit_words
from besteffort.profiling.kept_fits import NOTHING_KEPT, KeptFits
from besteffort.profiling.problem import Progress
from besteffort.profiling.server_log import RequestLog
from besteffort.runs.config import SituationConfig, write_config
from besteffort.situation import Cluster, Deadline, Task
from besteffort.validation import did_you_mean

PERCENTILES = (50, 95, 99)
MEASURES = {"ttft_s": "first token", "latency_s": "end to end"}
Qualities = Mapping[str, Mapping[str, float]]
"""Percent by task and model; the model is `""` where there is only one."""

_NAMELESS = "requests"  # the task of requests whose log names none
_APART = 0.1  # of a median time, from which fits of two halves disagree

GOOD = {50: 0.05, 95: 0.10}
"""Largest relative error of a percentile of end-to-end times with which a fit is good enough, the same as for simulated
against measured times (docs/profiles.md)."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Times of held-out requests, whose times a fit did not use, arrays of shape (n,); nan where the log has none.

    Attributes:
      measured, predicted: seconds by measure, see `MEASURES`.
    """

    measured: dict[str, np.ndarray]
    predicted: dict[str, np.ndarray]

    def percentiles(self, measure: str) -> tuple[np.ndarray, np.ndarray]:
        """(3,) measured and predicted seconds at `PERCENTILES`; nan where the log has none."""
        known = np.isfinite(self.measured.get(measure, np.zeros(0)))
        if not known.any():
            return np.full(len(PERCENTILES), np.nan), np.full(len(PERCENTILES), np.nan)
        both = (np.percentile(times[measure][known], PERCENTILES) for times in (self.measured, self.predicted))
        measured, predicted = both
        return measured, predicted

    def errors(self, measure: str) -> np.ndarray:
        """(3,) relative errors of the predicted percentiles."""
        measured, predicted = self.percentiles(measure)
        return np.asarray(predicted / measured - 1)


@dataclasses.dataclass(frozen=True)
class FittedModel:
    """One model of a log.

    Attributes:
      name: name of the model.
      log: its requests.
      fitted: the fit to all requests.
      held_out: predictions for the second half of the requests from a fit to the first half.
      halves: the fits to the first half and to the second; none where they were not made.
    """

    name: str
    log: RequestLog
    fitted: Fitted
    held_out: HeldOut
    halves: tuple[Fitted, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The results to report to the user.

    Attributes:
      profile: the profile.
      models: the fitted models, from the smallest to the largest.
      doubts: what logs do not determine, and halves that disagree, a sentence each; to be read first.
      table: errors on the held-out halves.
      notes: what logs determine, and whether the fits are good enough, a sentence each.
      files: the written files.
    """

    profile: Profile
    models: tuple[FittedModel, ...]
    doubts: tuple[str, ...]
    table: Table
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def fit_halves(
    log: RequestLog,
    *,
    max_batch: int | None = None,
    share: float | None = None,
    kept: KeptFits = NOTHING_KEPT,
    progress: Progress | None = None,
) -> tuple[Fitted, Fitted]:
    """Fits to the first half of a log's requests and to the second; options as in `fit_logs`."""
    first = np.arange(len(log)) < len(log) // 2

    def half(which: str, rows: np.ndarray) -> Fitted:
        def report(doing: str, misfit: float) -> None:
            if progress is not None:
                progress(f"{which}, {doing}", misfit)

        def make() -> Fitted:
            return fit(log, rows, max_batch=max_batch, cache_output_share=share, explain=False, progress=report)

        return kept.fit(log, make, part=which, max_batch=max_batch, share=share)

    return half("first half", first), half("second half", ~first)


def judge(log: RequestLog, first: Fitted) -> HeldOut:
    """How a fit to the first half of a log's requests predicts the second."""
    half = len(log) // 2
    return HeldOut(
        measured={"ttft_s": log.ttft_s[half:], "latency_s": log.latency_s[half:]},
        predicted={"ttft_s": first.first_s[half:], "latency_s": first.last_s[half:]},
    )


def disagreements(model: FittedModel) -> list[str]:
    """What the fits to the two halves of a log find different, a sentence each."""
    if not model.halves:
        return []
    (one, other), found = model.halves, []
    # A half that cannot tell agrees with all that it cannot tell apart.
    if not {each.chunk_tokens for each in one.alike} & {each.chunk_tokens for each in other.alike}:
        words = ["none" if each.chunk_tokens is None else f"{each.chunk_tokens:,}" for each in model.halves]
        found.append(f"The halves disagree: `chunk_tokens` is {words[0]} by the first and {words[1]} by the second.")
    limits = [{(each.cache, each.max_batch) for each in half.alike} for half in model.halves]
    if not limits[0] & limits[1] and not _within(one, other):
        words = [limit_words([each.assumed]) for each in model.halves]
        found.append(
            f"The halves disagree: what held requests back is {words[0]} by the first and {words[1]} by the second."
        )
    ratio = float(np.median(other.last_s) / np.median(one.last_s))
    if not abs(ratio - 1) <= _APART:
        found.append(
            f"The halves disagree: by the second, the median request of the log takes {100 * abs(ratio - 1):.0f}% "
            f"{'longer' if ratio > 1 else 'less'} than by the first; the server may have changed (`--from` and `--to` "
            "fit to a part)."
        )
    return found


def _within(one: Fitted, other: Fitted) -> bool:
    """Whether the half without a limit never had as many requests at once as the other's limit lets run."""
    for free, bound in ((one, other), (other, one)):
        if free.limit == "nothing" and bound.limit == "batch":
            return free.largest_batch <= bound.max_batch
    return False


def fit_logs(
    logs: Sequence[RequestLog],
    *,
    max_batch: int | None = None,
    share: float | None = None,
    kept: KeptFits = NOTHING_KEPT,
    progress: Progress | None = None,
) -> tuple[FittedModel, ...]:
    """Fits every model of logs; returns them from the fastest at batch size 1 to the slowest.

    Args:
      logs: the requests, as `besteffort.profiling.server_log.read_logs` reads them.
      max_batch: the server's largest batch, if known.
      share: the share of outputs claimed of the cache, if known; by default that of the first model that shows one,
        because a profile has one for all models.
      kept: fits that are finished.
      progress: called with the current activity and the misfit.

    Raises:
      InputError: if a model has too few requests, or `max_batch` contradicts its log.
    """
    parts = _parts(logs)
    done = []
    for model, part in sorted(parts, key=lambda each: -len(each[1])):

        def report(doing: str, misfit: float, model: str = model) -> None:
            if progress is not None:
                progress(f"{model}: {doing}", misfit)

        halves = fit_halves(part, max_batch=max_batch, share=share, kept=kept, progress=report)

        def make(
            part: RequestLog = part,
            share: float | None = share,
            report: Progress = report,
            halves: tuple[Fitted, ...] = halves,
        ) -> Fitted:
            among = tuple(dict.fromkeys(each for half in halves for each in (half.assumed, *half.alike)))
            return fit(part, max_batch=max_batch, cache_output_share=share, among=among, progress=report)

        fitted = kept.fit(part, make, part="all", max_batch=max_batch, share=share)
        if share is None and fitted.limit == "cache":
            share = fitted.cache_output_share
        done.append(FittedModel(model, part, fitted, judge(part, halves[0]), halves))
    return tuple(sorted(done, key=lambda each: each.fitted.decode[0][1]))


def _parts(logs: Sequence[RequestLog]) -> list[tuple[str, RequestLog]]:
    """The models of logs, each with its requests.

    Raises:
      InputError: if one has too few.
    """
    parts = [(model, log.of_model(index)) for log in logs for index, model in enumerate(log.models)]
    for model, part in parts:
        _enough(part.path, model, part)
    return parts


def share_of_others(base: Profile, logs: Sequence[RequestLog]) -> float | None:
    """The share of outputs that `base` counts against the cache, if models that are not fitted depend on it."""
    fitted = [model for log in logs for model in log.models]
    rest = any(model.cache_tokens is not None for model in base.models if model.name not in fitted)
    return base.cache_output_share if rest else None


def check(logs: Sequence[RequestLog], qualities: Qualities, base: Profile | None = None) -> None:
    """Checks the inputs of `fit_logs` and `make_profile` before the computation starts.

    Raises:
      InputError: as they do.
    """
    nothing = np.zeros(0)
    unknown = Fitted(((1, 1.0),), ((1, 1.0),), 0.0, None, 1.0, 1, 0.0, "nothing", (), nothing, nothing)
    blank = [
        FittedModel(model, log, unknown, HeldOut({"latency_s": nothing}, {"latency_s": nothing}))
        for model, log in _parts(logs)
    ]
    make_profile(blank, name="any", qualities=qualities, into=base)


def check_made(path: Path, qualities: Qualities) -> None:
    """Checks that a new profile, which was made of fitted models, has these qualities of them.

    Raises:
      InputError: if it has others.
    """
    made = load_profile(path)
    if qualities != {task.name: dict(zip(made.model_names, task.quality_percent, strict=True)) for task in made.tasks}:
        raise InputError(
            f"{path}: the profile that was fitted here has other qualities, or of other models; give the same ones to "
            "continue, or another directory."
        )


def tasks_left_out(logs: Sequence[RequestLog], qualities: Qualities, base: Profile | None = None) -> tuple[str, ...]:
    """Tasks that logs name and `make_profile` gets no quality of, so that the situation does not have them."""
    known = {*qualities, *(() if base is None else base.task_names)}
    named = dict.fromkeys(task for log in logs for task in log.tasks if task)
    return tuple(task for task in named if known and task not in known)


def make_profile(
    models: Sequence[FittedModel],
    *,
    name: str,
    qualities: Qualities,
    into: Profile | None = None,
    device: str | None = None,
) -> Profile:
    """Makes a profile of fitted models, or merges their costs into another profile.

    A model that `into` has gets new costs and keeps its qualities and slow-downs; others are sorted among its models by
    their time at batch size 1. A single model without a quality counts as perfect: quality is relative to the best.

    Args:
      models: the fitted models.
      name: name of a new profile.
      qualities: percent by task and model; `""` stands for the only model.
      into: the profile to merge into.
      device: the device that the server ran on.

    Raises:
      InputError: if qualities are missing or of unknown models, or the share of outputs claimed of the cache differs
        from that of other models in `into`.
    """
    costs = {each.name: _model_profile(each) for each in models}
    known = tuple(dict.fromkeys((*costs, *(into.model_names if into is not None else ()))))
    given = {task: _by_model(task, values, tuple(costs), known) for task, values in qualities.items()}
    measured = _source(models, device)
    share = next((each.fitted.cache_output_share for each in models if each.fitted.limit == "cache"), None)
    if into is not None:
        return _merged_profile(into, costs, given, measured, share)
    if not given and len(models) > 1:
        raise InputError(
            f"The log has {len(models)} models and says nothing of their quality; give it for each task, as in "
            f"`--quality task={','.join(f'{model}:60' for model in costs)}`, or merge with `--into PROFILE`."
        )
    qualities_of = given or {task: dict.fromkeys(costs, 100.0) for task in _tasks(models)}
    assumed = "as given by the user" if given else "assumed: a single model is its own best"
    percents = _percents(qualities_of, tuple(costs), qualities_of)
    return Profile(
        format=1,
        name=name,
        device=device or "unknown",
        models=tuple(costs.values()),
        tasks=tuple(TaskQuality(task, "unstated", assumed, percent) for task, percent in percents.items()),
        provenance=Provenance(
            decode=measured,
            prefill=measured,
            slowdown=Source("modelled", "none", "models of the log are assumed not to slow each other down"),
            quality=Source("modelled", assumed),
        ),
        cache_output_share=1.0 if share is None else share,
    )


def _merged_profile(
    into: Profile,
    fresh: Mapping[str, ModelProfile],
    qualities: Mapping[str, Mapping[str, float]],
    measured: Source,
    share: float | None,
) -> Profile:
    """The profile `into` with the costs of fitted models, see `make_profile`; `share` is None if no fit shows one."""
    kept = [model for model in into.models if model.name not in fresh]
    limited = any(model.cache_tokens is not None for model in kept)
    if share is not None and limited and share != into.cache_output_share:
        raise InputError(
            f"Profile `{into.name}` counts {into.cache_output_share:g} of outputs against the cache and the fit "
            f"{share:g}; fit with the profile's share."
        )
    old = {model.name: model for model in into.models}
    merged = [
        *(dataclasses.replace(fresh[m.name], slowdown=m.slowdown) if m.name in fresh else m for m in into.models),
        *(model for model in fresh.values() if model.name not in old),
    ]
    if any(model.slowdown for model in merged) and len(merged) > len(old):
        raise InputError(
            f"Profile `{into.name}` states how its models slow each other down, which the log does not show for "
            f"{', '.join(m for m in fresh if m not in old)}; fit a model that it has, or remove its `slowdown`."
        )
    if len(merged) > len(old):
        merged.sort(key=lambda model: model.decode[0][1])
    before = {task.name: dict(zip(into.model_names, task.quality_percent, strict=True)) for task in into.tasks}
    known = {task: {**before.get(task, {}), **qualities.get(task, {})} for task in (*before, *qualities)}
    percents = _percents(known, [model.name for model in merged], qualities)
    tasks = [dataclasses.replace(task, quality_percent=percents.pop(task.name)) for task in into.tasks]
    tasks += [TaskQuality(task, "unstated", "as given by the user", percent) for task, percent in percents.items()]
    provenance = dataclasses.replace(
        into.provenance,
        decode=_joined(into.provenance.decode, measured, bool(kept)),
        prefill=_joined(into.provenance.prefill, measured, bool(kept)),
    )
    return dataclasses.replace(
        into,
        models=tuple(merged),
        tasks=tuple(tasks),
        provenance=provenance,
        cache_output_share=into.cache_output_share if share is None else share,
    )


def fit_to_file(
    logs: Sequence[RequestLog],
    out: Path,
    *,
    qualities: Qualities,
    into: Profile | None = None,
    device: str | None = None,
    max_batch: int | None = None,
    deadlines: Mapping[str, Deadline] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Fits every model of logs and writes the profile; see `fit_logs`, `make_profile` and `write_outcome`.

    What is finished is kept in `kept_file(out)` until all is.

    Raises:
      InputError: as they do.
    """
    share = None if into is None else share_of_others(into, logs)
    kept = KeptFits(kept_file(out))
    models = fit_logs(logs, max_batch=max_batch, share=share, kept=kept, progress=progress)
    made = make_profile(models, name=out.stem, qualities=qualities, into=into, device=device)
    outcome = write_outcome(models, made, out, deadlines)
    kept.end()
    return outcome


def write_outcome(
    models: Sequence[FittedModel], profile: Profile, out: Path, deadlines: Mapping[str, Deadline] | None = None
) -> Outcome:
    """Writes the profile and, next to it, a situation for it (`.yaml`), the figures (`.fit.json`) and the plot.

    Args:
      models: the fitted models.
      profile: the profile.
      out: its file.
      deadlines: deadlines by task, in place of guesses.

    Raises:
      InputError: if a file cannot be written.
    """
    _, situation, figures, picture = outcome_files(out)
    logs = {model.log.path: model.log for model in models}
    doubts, notes = [], [f"{log.path.name}: {note}" for log in logs.values() for note in log.notes]
    for model in models:
        terms = model.fitted.terms
        doubts += [f"{model.name}: Not determined: {term.text}" for term in terms if not term.determined]
        doubts += [f"{model.name}: {text}" for text in disagreements(model)]
        notes += [f"{model.name}: {term.text}" for term in terms if term.determined]
    notes += [_batch_words(models), verdict(models)]
    table = error_table(models)
    save_profile(profile, out)
    _write_situation(situation, models, profile, out, deadlines or {})
    write_json(
        figures, {"profile": profile.name, "models": [_figures(model) for model in models], "notes": [*doubts, *notes]}
    )
    plots.save_figure(
        plots.plot_prediction(
            {
                (each.name, MEASURES[measure]): (each.held_out.measured[measure], each.held_out.predicted[measure])
                for each in models
                for measure in MEASURES
                if np.isfinite(each.held_out.measured[measure]).any()
            }
        ),
        picture.with_name(picture.name.removesuffix(".png")),
    )
    return Outcome(profile, tuple(models), tuple(doubts), table, tuple(notes), (out, situation, figures, picture))


def outcome_files(out: Path) -> tuple[Path, Path, Path, Path]:
    """The files of a fit: the profile `server.json`, and `server.yaml`, `server.fit.json` and `server.png` beside it.

    No two profiles share any of them.
    """
    stem = out.name.removesuffix(".json")
    situation, figures, picture = (out.with_name(f"{stem}{ending}") for ending in (".yaml", ".fit.json", ".png"))
    return out, situation, figures, picture


def kept_file(out: Path) -> Path:
    """The file that keeps the finished fits of a profile: `server.fit.npz` next to `server.json`."""
    return out.with_name(f"{out.name.removesuffix('.json')}.fit.npz")


def error_table(models: Sequence[FittedModel]) -> Table:
    """Percentiles of the held-out halves, as measured and as predicted; a terminal gets the errors, which fit it."""
    rows = []
    for model in models:
        for measure, words in MEASURES.items():
            measured, predicted = model.held_out.percentiles(measure)
            cells = [figure for pair in zip(measured, predicted / measured - 1, strict=True) for figure in pair]
            rows.append((f"{model.name}, {words}", tuple(float(figure) for figure in cells)))
    columns = [
        column
        for percentile in PERCENTILES
        for column in (
            Column(f"P{percentile} (s)", "number", 3, key=f"p{percentile}_s"),
            Column(f"P{percentile} error (%)", "points", 1, brief=True, key=f"p{percentile}_error"),
        )
    ]
    return Table(
        title="The second half of the log, as measured and as a fit to the first half predicts it",
        head="Time to",
        columns=tuple(columns),
        rows=tuple(rows),
        note="Errors in percent of what was measured. The profile itself is fitted to the whole log.",
    )


def parse_qualities(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Percent by task and model, from `task=60` or `task=small:60,large:70`.

    Raises:
      InputError: on text that does not fit, a task given twice, or a number outside 0 to 100.
    """
    qualities: dict[str, dict[str, float]] = {}
    for text in texts:
        task, equals, values = text.partition("=")
        if not (task and equals and values):
            raise InputError(f"`--quality {text}` names no task or no figure; write it like `--quality piqa=71.7`.")
        if task in qualities:
            raise InputError(f"`--quality` is given twice for task `{task}`; give it once, with all models.")
        qualities[task] = {}
        for value in values.split(","):
            model, _, figure = value.rpartition(":")
            try:
                percent = float(figure)
            except ValueError:
                percent = np.nan
            if not 0 <= percent <= 100:
                raise InputError(f"`--quality {text}`: `{figure}` is not a percentage; give a number from 0 to 100.")
            qualities[task][model] = percent
    return qualities


def verdict(models: Sequence[FittedModel]) -> str:
    """Whether fits are good enough, see `GOOD`, and what to do where they are not."""
    bounds = " and ".join(f"{bound:.0%} at P{percentile}" for percentile, bound in GOOD.items())
    amiss = []
    for model in models:
        errors = dict(zip(PERCENTILES, model.held_out.errors("latency_s"), strict=True))
        off = [f"{errors[p]:+.0%} at P{p}" for p, bound in GOOD.items() if not abs(errors[p]) <= bound]
        amiss += [f"{model.name} is off by {' and '.join(off)}"] if off else []
    if not amiss:
        return f"Good enough: end-to-end times of the second half are predicted to within {bounds}."
    return (
        f"Not good enough: of end-to-end times {', '.join(amiss)}, where at most {bounds} count as good. Fit a longer "
        "log, or a part with steady service (`--from`, `--to`), and state `--max-batch` where you know it; or let "
        "routers correct what they observe, `view: {slowdown_tau_s: 2}`, and ask `besteffort diagnose` what wrong "
        "tables cost."
    )


def _batch_words(models: Sequence[FittedModel]) -> str:
    """Where the `max_batch` of the situation is from: that of the model with the largest."""
    model = max(models, key=lambda each: (each.fitted.max_batch, each.fitted.largest_batch))
    size = model.fitted.max_batch
    if model.fitted.batch_from == "given":
        return f"`max_batch` is {size}, as given."
    if model.fitted.batch_from == "log":
        explanations = {(each.cache, each.max_batch): each for each in (model.fitted.assumed, *model.fitted.alike)}
        if len(explanations) == 1:
            return f"`max_batch` is {size}, because requests of {model.name} waited while so many ran."
        return (
            f"`max_batch` is {size}, which is assumed, because what held requests of {model.name} back is undetermined "
            f"between {limit_words(explanations.values())}; state it with `profile fit --max-batch` (vLLM: "
            "`--max-num-seqs`)."
        )
    return (
        f"`max_batch` is {size}, which is assumed, with room above the {model.fitted.largest_batch} requests of "
        f"{model.name} that ran at once, because the log does not show the server's limit; state it with `profile fit "
        "--max-batch` (vLLM: `--max-num-seqs`)."
    )


def _by_model(
    task: str, values: Mapping[str, float], fresh: tuple[str, ...], known: tuple[str, ...]
) -> dict[str, float]:
    """Percent by model's name, which is one of `known`; `""` may stand for the only `fresh` model."""
    for model in values:
        if model and model not in known:
            raise InputError(
                f"`--quality {task}={model}:...`: there is no model `{model}`{did_you_mean(model, known)}; the models "
                f"are {', '.join(known)}."
            )
    if "" not in values:
        return dict(values)
    if len(fresh) > 1 or len(values) > 1:
        raise InputError(
            f"`--quality {task}=...` has a figure without a model; name them, as in "
            f"`--quality {task}={','.join(f'{model}:60' for model in fresh)}`."
        )
    return {fresh[0]: values[""]}


def _percents(
    known: Mapping[str, Mapping[str, float]], models: Sequence[str], given: Mapping[str, Mapping[str, float]]
) -> dict[str, tuple[float, ...]]:
    """Percent by model on each task; `given` is what the user said of them.

    Raises:
      InputError: if a model lacks a quality on some task, naming all of these.
    """
    lacking = {task: [model for model in models if model not in values] for task, values in known.items()}
    lacking = {task: names for task, names in lacking.items() if names}
    if lacking:
        where = ", ".join(f"of `{'`, `'.join(names)}` on `{task}`" for task, names in lacking.items())
        whole = {
            task: [f"{model}:{percent:g}" for model, percent in given.get(task, {}).items()]
            + [f"{model}:PERCENT" for model in names]
            for task, names in lacking.items()
        }
        remedy = " ".join(f"--quality {task}={','.join(figures)}" for task, figures in whole.items())
        raise InputError(f"No quality is stated {where}; add `{remedy}`.")
    return {task: tuple(values[model] for model in models) for task, values in known.items()}


def _model_profile(model: FittedModel) -> ModelProfile:
    fitted = model.fitted
    return ModelProfile(
        name=model.name,
        decode=fitted.decode,
        prefill=fitted.prefill,
        context_cost_s=fitted.context_cost_s,
        cache_tokens=fitted.cache_tokens,
        chunk_tokens=fitted.chunk_tokens,
    )


def _source(models: Sequence[FittedModel], device: str | None) -> Source:
    """The source of the costs, with their error."""
    said = []
    for model in models:
        errors = ", ".join(
            f"P{percentile} {100 * error:+.1f}%"
            for percentile, error in zip(PERCENTILES, model.held_out.errors("latency_s"), strict=True)
        )
        said.append(f"{model.name}, {len(model.log):,} requests: {errors}")
    return Source(
        kind="measured",
        source=f"fitted to {', '.join(dict.fromkeys(model.log.path.name for model in models))}",
        method="besteffort profile fit; end-to-end latency of the second half as predicted from the first: "
        + "; ".join(said),
        device=device,
    )


def _joined(old: Source, new: Source, both: bool) -> Source:
    """The new source, with a note on the old one if models from it remain."""
    return dataclasses.replace(new, method=f"{new.method}. Other models: {old.kind}, {old.source}") if both else new


def _tasks(models: Sequence[FittedModel]) -> tuple[str, ...]:
    return task_names([model.log for model in models])


def task_names(logs: Sequence[RequestLog]) -> tuple[str, ...]:
    """Tasks of logs, in their order; `requests` where a log names none."""
    return tuple(dict.fromkeys(task or _NAMELESS for log in logs for task in log.tasks))


def _rows(log: RequestLog, task: str | None) -> np.ndarray:
    """(n,) whether a request is of a task; None for all."""
    if task is None:
        return np.ones(len(log), bool)
    return np.isin(log.task, [index for index, name in enumerate(log.tasks) if task == (name or _NAMELESS)])


def _write_situation(
    path: Path, models: Sequence[FittedModel], profile: Profile, out: Path, deadlines: Mapping[str, Deadline]
) -> None:
    """Writes a situation with the profile, the logs' lengths, and deadlines.

    Those that are not given are twice the median times of the slowest model, so that none is late from the start.
    """
    log_tasks = _tasks(models)
    tasks = []
    for quality in profile.tasks:
        picked = [_rows(m.log, quality.name if quality.name in log_tasks else None) for m in models]
        prompts, outputs = (
            np.concatenate([values[rows] for values, rows in zip(parts, picked, strict=True)])
            for parts in ([m.log.prompt_tokens for m in models], [m.log.output_tokens for m in models])
        )
        wait_s, pace_s = (
            max(float(np.median(values[rows])) for values, rows in zip(parts, picked, strict=True) if rows.any())
            for parts in (
                [np.where(np.isfinite(m.log.ttft_s), m.log.ttft_s, 0.1 * m.log.latency_s) for m in models],
                [m.log.latency_s / m.log.output_tokens for m in models],
            )
        )
        tasks.append(
            Task(
                name=quality.name,
                share=float(len(prompts)),
                prompt_tokens=(int(prompts.min()), int(prompts.max())),
                output_tokens=(int(outputs.min()), int(outputs.max())),
                deadline=deadlines.get(
                    quality.name,
                    Deadline(
                        base_s=float(f"{max(2 * wait_s, 1e-3):.2g}"),
                        per_token_s=float(f"{2 * pace_s:.2g}"),
                    ),
                ),
                mean_prompt_tokens=float(prompts.mean()),
                mean_output_tokens=float(outputs.mean()),
            )
        )
    cluster = Cluster(
        replicas=max(len(np.unique(m.log.replica)) for m in models),
        max_batch=max(m.fitted.max_batch for m in models),
        queue_capacity=1024,
        network_delay_s=round(max(m.fitted.delay_s for m in models), 6),
    )
    guessed = [task.name for task in tasks if task.name not in deadlines]
    guess = (
        f"Deadlines of {', '.join(guessed)} (twice the slowest model's median times) and `queue_capacity` are guesses"
    )
    head = (
        "Written by `besteffort profile fit`: lengths are the log's, `network_delay_s` is the fit's.",
        _batch_words(models),
        f"{guess if guessed else 'Deadlines are as given, and `queue_capacity` is a guess'}: set your own.",
    )
    config = SituationConfig(profile=str(out), tasks=tuple(tasks), cluster=cluster)
    write_config(path, config, head="".join(f"# {line}\n" for line in head))


def _figures(model: FittedModel) -> dict[str, Any]:
    fitted = model.fitted

    return {
        "name": model.name,
        "requests": len(model.log),
        "limit": fitted.limit,
        "max_batch": fitted.max_batch,
        "max_batch_from": fitted.batch_from,
        "largest_batch": fitted.largest_batch,
        "delay_s": fitted.delay_s,
        "context_cost_s": fitted.context_cost_s,
        "cache_tokens": fitted.cache_tokens,
        "chunk_tokens": fitted.chunk_tokens,
        "shared_tokens": fitted.shared_tokens,
        "alike": [dataclasses.asdict(each) for each in fitted.alike],
        "cache_output_share": fitted.cache_output_share,
        "terms": [dataclasses.asdict(term) for term in fitted.terms],
        "held_out": {
            MEASURES[measure]: {
                "percentiles": PERCENTILES,
                "measured_s": jsonable(model.held_out.percentiles(measure)[0]),
                "predicted_s": jsonable(model.held_out.percentiles(measure)[1]),
                "relative_error": jsonable(model.held_out.errors(measure)),
            }
            for measure in MEASURES
        },
    }


def _enough(path: Path, model: str, part: RequestLog) -> None:
    if len(part) < 2 * LEAST_REQUESTS:
        raise InputError(
            f"{path}: the log has too few answered requests of model `{model}`, {len(part)}, because half of them are "
            f"held out to check the fit; give one with at least {2 * LEAST_REQUESTS}."
        )
