"""Makes a profile from a server log: the work of `besteffort profile fit`.

Every model of the log is fitted twice: to the first half of its requests, which then predicts the times of the second
half, and to all requests. The errors of the first fit show how far to trust the second.
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
from besteffort.files import jsonable, write_json, write_text
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality, save_profile
from besteffort.profiling.fit import LEAST_REQUESTS, Fitted, Progress, fit
from besteffort.profiling.server_log import RequestLog
from besteffort.runs.config import to_yaml
from besteffort.situation import Cluster, Deadline, Task

PERCENTILES = (50, 95, 99)
MEASURES = {"ttft_s": "first token", "latency_s": "end to end"}
Qualities = Mapping[str, Mapping[str, float]]
"""Percent by task and model; the model is `""` where the log has only one."""


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
    """

    name: str
    log: RequestLog
    fitted: Fitted
    held_out: HeldOut


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The results to report to the user.

    Attributes:
      profile: the profile.
      models: the fitted models, from the smallest to the largest.
      table: errors on the held-out halves.
      notes: which terms the log determines, a sentence each.
      files: the written files.
    """

    profile: Profile
    models: tuple[FittedModel, ...]
    table: Table
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def judge(
    log: RequestLog, *, max_batch: int | None = None, share: float | None = None, progress: Progress | None = None
) -> HeldOut:
    """Fits the first half of a log's requests and predicts the second; `max_batch` and `share` as in `fit_log`."""
    half = len(log) // 2
    first = np.arange(len(log)) < half
    fitted = fit(log, first, max_batch=max_batch, cache_output_share=share, explain=False, progress=progress)
    return HeldOut(
        measured={"ttft_s": log.ttft_s[half:], "latency_s": log.latency_s[half:]},
        predicted={"ttft_s": fitted.first_s[half:], "latency_s": fitted.last_s[half:]},
    )


def fit_log(
    log: RequestLog,
    *,
    name: str | None = None,
    max_batch: int | None = None,
    share: float | None = None,
    progress: Progress | None = None,
) -> tuple[FittedModel, ...]:
    """Fits every model of a log; returns them from the fastest at batch size 1 to the slowest.

    Args:
      log: the requests.
      name: name of the model where the log does not name any; by default the file's.
      max_batch: the server's largest batch, if known.
      share: the share of outputs claimed of the cache, if known; by default that of the first model that shows one,
        because a profile has one for all models.
      progress: called with the current activity and the misfit.

    Raises:
      InputError: if a model has too few requests, or `name` or `max_batch` contradicts the log.
    """
    parts = [(model, log.of_model(index)) for index, model in enumerate(model_names(log, name))]
    for model, part in parts:
        _enough(log.path, model, part)
    done = []
    for model, part in sorted(parts, key=lambda each: -len(each[1])):

        def report(doing: str, misfit: float, model: str = model) -> None:
            if progress is not None:
                progress(f"{model}: {doing}", misfit)

        held_out = judge(
            part,
            max_batch=max_batch,
            share=share,
            progress=lambda doing, misfit: report(f"first half, {doing}", misfit),
        )
        fitted = fit(part, max_batch=max_batch, cache_output_share=share, progress=report)
        if share is None and fitted.limit == "cache":
            share = fitted.cache_output_share
        done.append(FittedModel(model, part, fitted, held_out))
    return tuple(sorted(done, key=lambda each: each.fitted.decode[0][1]))


def model_names(log: RequestLog, name: str | None) -> tuple[str, ...]:
    """Names of the log's models: its own, else the given name, else the file's.

    Raises:
      InputError: if a name is given to models that have their own.
    """
    if name is not None and log.models != ("",):
        raise InputError(
            f"{log.path}: the log names its models ({', '.join(log.models)}), so `--name` has none to name; "
            "leave it out."
        )
    return tuple(model or name or _stem(log.path) for model in log.models)


def share_of_others(base: Profile, log: RequestLog, name: str | None) -> float | None:
    """The share of outputs that `base` counts against the cache, if models that are not fitted depend on it."""
    fitted = model_names(log, name)
    rest = any(model.cache_tokens is not None for model in base.models if model.name not in fitted)
    return base.cache_output_share if rest else None


def check(log: RequestLog, qualities: Qualities, base: Profile | None, name: str | None) -> None:
    """Checks the inputs of `fit_log` and `make_profile` before the computation starts.

    Raises:
      InputError: as they do.
    """
    names = model_names(log, name)
    for index, model in enumerate(names):
        _enough(log.path, model, log.of_model(index))
    nothing = np.zeros(0)
    unknown = Fitted(((1, 1.0),), ((1, 1.0),), 0.0, None, 1.0, 1, 0.0, "nothing", (), nothing, nothing)
    blank = [
        FittedModel(model, log, unknown, HeldOut({"latency_s": nothing}, {"latency_s": nothing})) for model in names
    ]
    make_profile(blank, name="any", qualities=qualities, into=base)


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
    given = {task: _by_model(task, values, tuple(costs)) for task, values in qualities.items()}
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
    return Profile(
        format=1,
        name=name,
        device=device or "unknown",
        models=tuple(costs.values()),
        tasks=tuple(
            TaskQuality(task, "unstated", assumed, tuple(_quality(task, values, model) for model in costs))
            for task, values in qualities_of.items()
        ),
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
    tasks = []
    for task in into.tasks:
        known = {**dict(zip(into.model_names, task.quality_percent, strict=True)), **qualities.get(task.name, {})}
        tasks.append(
            dataclasses.replace(task, quality_percent=tuple(_quality(task.name, known, m.name) for m in merged))
        )
    for task_name, values in qualities.items():
        if task_name in [task.name for task in into.tasks]:
            continue
        quality = tuple(_quality(task_name, values, model.name) for model in merged)
        tasks.append(TaskQuality(task_name, "unstated", "as given by the user", quality))
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
    log: RequestLog,
    out: Path,
    *,
    qualities: Qualities,
    into: Profile | None = None,
    name: str | None = None,
    device: str | None = None,
    max_batch: int | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Fits every model of a log and writes the profile; see `fit_log`, `make_profile` and `write_outcome`.

    Raises:
      InputError: as they do.
    """
    share = None if into is None else share_of_others(into, log, name)
    models = fit_log(log, name=name, max_batch=max_batch, share=share, progress=progress)
    made = make_profile(models, name=out.stem, qualities=qualities, into=into, device=device)
    return write_outcome(models, made, out)


def write_outcome(models: Sequence[FittedModel], profile: Profile, out: Path) -> Outcome:
    """Writes the profile and, next to it, a situation for it (`.yaml`), the figures (`.fit.json`) and the plot.

    Raises:
      InputError: if a file cannot be written.
    """
    _, situation, figures, picture = outcome_files(out)
    notes = [f"{m.log.path.name}: {note}" for m in models[:1] for note in m.log.notes]
    for model in models:
        notes += [
            f"{model.name}: {'' if term.determined else 'Not determined: '}{term.text}" for term in model.fitted.terms
        ]
    table = error_table(models)
    save_profile(profile, out)
    write_text(situation, _situation(models, profile, out))
    write_json(figures, {"profile": profile.name, "models": [_figures(model) for model in models], "notes": notes})
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
    return Outcome(profile, tuple(models), table, tuple(notes), (out, situation, figures, picture))


def outcome_files(out: Path) -> tuple[Path, Path, Path, Path]:
    """The files of a fit: the profile `server.json`, and `server.yaml`, `server.fit.json` and `server.png` beside it.

    No two profiles share any of them.
    """
    stem = out.name.removesuffix(".json")
    situation, figures, picture = (out.with_name(f"{stem}{ending}") for ending in (".yaml", ".fit.json", ".png"))
    return out, situation, figures, picture


def error_table(models: Sequence[FittedModel]) -> Table:
    """Percentiles of the held-out halves, as measured and as predicted."""
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
            Column("error (%)", "points", 1, key=f"p{percentile}_error"),
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


def _by_model(task: str, values: Mapping[str, float], fresh: tuple[str, ...]) -> dict[str, float]:
    """Percent by model's name; `""` may stand for the only model."""
    if "" not in values:
        return dict(values)
    if len(fresh) > 1 or len(values) > 1:
        raise InputError(
            f"`--quality {task}=...` has a figure without a model; name them, as in "
            f"`--quality {task}={','.join(f'{model}:60' for model in fresh)}`."
        )
    return {fresh[0]: values[""]}


def _quality(task: str, values: Mapping[str, float], model: str) -> float:
    if model not in values:
        raise InputError(f"Task `{task}` has no quality of model `{model}`; add `--quality {task}={model}:PERCENT`.")
    return values[model]


def _model_profile(model: FittedModel) -> ModelProfile:
    fitted = model.fitted
    return ModelProfile(
        name=model.name,
        decode=fitted.decode,
        prefill=fitted.prefill,
        context_cost_s=fitted.context_cost_s,
        cache_tokens=fitted.cache_tokens,
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
        source=f"fitted to {models[0].log.path.name}",
        method="besteffort profile fit; end-to-end latency of the second half as predicted from the first: "
        + "; ".join(said),
        device=device,
    )


def _joined(old: Source, new: Source, both: bool) -> Source:
    """The new source, with a note on the old one if models from it remain."""
    return dataclasses.replace(new, method=f"{new.method}. Other models: {old.kind}, {old.source}") if both else new


def _tasks(models: Sequence[FittedModel]) -> tuple[str, ...]:
    return tuple(task or "requests" for task in models[0].log.tasks)


def _situation(models: Sequence[FittedModel], profile: Profile, out: Path) -> str:
    """A configuration with the profile, the log's lengths, and deadlines of twice its median times."""
    from besteffort.runs.config import SituationConfig

    log_tasks = _tasks(models)
    tasks = []
    for quality in profile.tasks:
        index = log_tasks.index(quality.name) if quality.name in log_tasks else None
        picked = [m.log.task == index if index is not None else np.ones(len(m.log), bool) for m in models]
        prompts, outputs, waits, paces = (
            np.concatenate([values[rows] for values, rows in zip(parts, picked, strict=True)])
            for parts in (
                [m.log.prompt_tokens for m in models],
                [m.log.output_tokens for m in models],
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
                deadline=Deadline(
                    base_s=float(f"{max(2 * np.median(waits), 1e-3):.2g}"),
                    per_token_s=float(f"{2 * np.median(paces):.2g}"),
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
    text = to_yaml(SituationConfig(profile=str(out), tasks=tuple(tasks), cluster=cluster))
    return (
        "# Written by `besteffort profile fit`: lengths are the log's, `max_batch` and `network_delay_s` the fit's.\n"
        "# Deadlines (twice the log's median times) and `queue_capacity` are guesses: set your own.\n" + text
    )


def _figures(model: FittedModel) -> dict[str, Any]:
    fitted = model.fitted

    return {
        "name": model.name,
        "requests": len(model.log),
        "limit": fitted.limit,
        "max_batch": fitted.max_batch,
        "delay_s": fitted.delay_s,
        "context_cost_s": fitted.context_cost_s,
        "cache_tokens": fitted.cache_tokens,
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


def _stem(path: Path) -> str:
    """The file's name without its endings."""
    name = path.name
    for ending in (".gz", ".csv", ".jsonl", ".json"):
        name = name.removesuffix(ending)
    return name
