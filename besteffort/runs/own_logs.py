"""What a quickstart takes from people's own logs and profiles where nobody stated it: tasks, and their deadlines."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from besteffort.errors import InputError
from besteffort.profile import Profile, TaskQuality, builtin_profiles, load_profile
from besteffort.runs.config import (
    RUN_SECTIONS,
    SituationConfig,
    apply_changes,
    config_names,
    find_config,
    load_config,
    read_yaml,
)
from besteffort.runs.experiment import RunConfig, load_run
from besteffort.situation import Deadline, Situation, Task
from besteffort.validation import did_you_mean
from besteffort.workload.resample import with_lengths_of
from besteffort.workload.traces import Trace

QUICKSTART = "quickstart"
_GUESSED = "Deadlines are guesses"
_DEADLINE = re.compile(r"(?:(?P<task>[^=]+)=)?(?P<base>[0-9.eE-]+)(?:\+(?P<per_token>[0-9.eE-]+))?$")


class Taken(NamedTuple):
    """A configuration and its situation, with what was taken from elsewhere, a sentence each."""

    config: RunConfig
    situation: Situation
    notes: tuple[str, ...] = ()


def load_quickstart(
    config: str | None, profile: str | None, *, changes: Mapping[str, Any] | None = None, changes_from: str = ""
) -> Taken:
    """The configuration of a quickstart.

    A file that states only a situation, as `besteffort profile fit` writes one, is trained for and judged as the
    quickstart's own situation. A profile in a file serves the tasks of the situation that lies beside it
    (`my_server.yaml` beside `my_server.json`), else those of the quickstart if it knows them, else its own.

    Args:
      config: name or file of a configuration; by default the one named like the profile, or else `quickstart`.
      profile: built-in profile or profile file, instead of the configuration's.
      changes: other values by dotted field.
      changes_from: what messages call these.

    Raises:
      InputError: as `besteffort.runs.experiment.load_run`.
    """
    given: dict[str, Any] = {"changes": changes, "changes_from": changes_from}
    if config is None and profile is not None and profile not in builtin_profiles():
        return _for_profile(profile, **given)
    if config is None:
        config = profile if profile in config_names() else QUICKSTART
    if config not in config_names() and not set(RUN_SECTIONS) & _sections(find_config(config)):
        return _with_situation(find_config(config), profile, **given)
    return Taken(*load_run(config, profile=profile, **given))


def _sections(path: Path) -> set[str]:
    data = read_yaml(path)
    return set(data) if isinstance(data, dict) else set()


def _with_situation(path: Path, profile: str | None, **given: Any) -> Taken:
    """The quickstart in the situation of a file that states nothing else."""
    stated = load_config(path, SituationConfig)
    base = load_config(QUICKSTART, RunConfig)
    view = stated.view if "view" in _sections(path) else base.view
    fields = {field.name: getattr(stated, field.name) for field in dataclasses.fields(SituationConfig)}
    config = dataclasses.replace(base, **(fields | {"view": view} | ({} if profile is None else {"profile": profile})))
    return _built(config, str(path), **given)


def _for_profile(profile: str, **given: Any) -> Taken:
    beside = Path(profile).with_suffix(".yaml")
    if beside.is_file() and beside != Path(profile):
        taken = _with_situation(beside, profile, **given)
        note = f"Tasks, deadlines and cluster are those of {beside}, which lies beside the profile."
        return taken._replace(notes=(note, *taken.notes))
    known = load_profile(profile).task_names
    config = dataclasses.replace(load_config(QUICKSTART, RunConfig), profile=profile)
    notes: tuple[str, ...] = ()
    if not {task.name for task in config.tasks} <= set(known):
        tasks = tuple(dataclasses.replace(config.tasks[0], name=name) for name in known)
        config = dataclasses.replace(config, tasks=tasks)
        lengths = "with the quickstart's lengths and deadlines; state your own in a file, `--config`"
        notes = (f"Tasks are the profile's, {', '.join(known)}, {lengths}.",)
    taken = _built(config, profile, **given)
    return taken._replace(notes=notes)


def _built(config: RunConfig, where: str, *, changes: Mapping[str, Any] | None, changes_from: str) -> Taken:
    config = apply_changes(config, changes, changes_from)
    try:
        return Taken(config, config.build())
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def with_tasks_of(taken: Taken, traces: Sequence[Trace]) -> Taken:
    """The situation with the tasks that logs name, if it lacks one of them.

    Shares are those of the logs, lengths those of the first that names tasks. A task that the situation has keeps its
    deadline; others get that of its first task. A task that the profile lacks gets the mean quality of the profile's
    tasks, model by model.
    """
    config, situation, notes = taken
    counts: dict[str, float] = {}
    for trace in traces:
        for name, count in trace.tasks.items():
            counts[name] = counts.get(name, 0.0) + count
    if counts.keys() <= set(situation.task_names):
        return taken
    known = {task.name: task for task in situation.tasks}
    first = situation.tasks[0]
    tasks = tuple(
        dataclasses.replace(known.get(name, dataclasses.replace(first, name=name)), share=count)
        for name, count in counts.items()
    )
    profile, unknown = _with_qualities(situation.profile, tuple(counts))
    said = [f"Tasks are the log's: {', '.join(counts)}."]
    if unknown:
        said.append(
            f"How well the models do {', '.join(unknown)} is not known: the mean of the profile's tasks "
            f"({', '.join(situation.profile.task_names)}) is assumed. State it in a profile of your models, "
            "`profile fit --quality`."
        )
    deadlines = sorted({(task.deadline.base_s, task.deadline.per_token_s) for task in tasks})
    guessed = " and ".join(f"{base:g} s + {1e3 * per:g} ms per token" for base, per in deadlines)
    said.append(f"{_GUESSED}, {guessed}; ask for others with `--deadline`.")
    situation = dataclasses.replace(situation, profile=profile, tasks=tasks)
    lengths, _ = next(trace for trace in traces if trace.tasks).requests(situation)
    situation = with_lengths_of(situation, lengths)
    return Taken(dataclasses.replace(config, tasks=situation.tasks), situation, (*notes, *said))


def _with_qualities(profile: Profile, names: Sequence[str]) -> tuple[Profile, tuple[str, ...]]:
    """The profile with the named tasks, and those that it lacked."""
    unknown = tuple(name for name in names if name not in profile.task_names)
    mean = np.mean([task.quality_percent for task in profile.tasks], axis=0)
    assumed = tuple(round(float(percent), 4) for percent in mean)
    source = f"assumed: the mean of {', '.join(profile.task_names)}"
    tasks = (*profile.tasks, *(TaskQuality(name, "unstated", source, assumed) for name in unknown))
    return dataclasses.replace(profile, tasks=tasks), unknown


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def parse_deadlines(texts: Sequence[str], names: Sequence[str]) -> dict[str, Deadline]:
    """Deadlines by task, from texts `BASE+PER_TOKEN` for all tasks, or `TASK=BASE+PER_TOKEN`, in seconds.

    Raises:
      InputError: on text that does not fit, or a task that is none of `names`.
    """
    deadlines: dict[str, Deadline] = {}
    for text in texts:
        match = _DEADLINE.match(text)
        base_s, per_token_s = (_number(match[part] or "0") if match else np.nan for part in ("base", "per_token"))
        if match is None or not (0 < base_s < 1e6 and 0 <= per_token_s < 1e6):
            raise InputError(
                f"`--deadline {text}` is no deadline; give seconds, and seconds per output token, as in "
                "`--deadline 0.5+0.02`, or by task, `--deadline chat=0.5+0.02`."
            )
        task = match["task"]
        if task is not None and task not in names:
            raise InputError(
                f"`--deadline {text}`: there is no task `{task}`{did_you_mean(task, names)}; the tasks are "
                f"{', '.join(names)}."
            )
        deadlines |= dict.fromkeys(names if task is None else (task,), Deadline(base_s, per_token_s))
    return deadlines


def with_deadlines(taken: Taken, texts: Sequence[str]) -> Taken:
    """The situation with deadlines that the user asks for, see `parse_deadlines`.

    Raises:
      InputError: as `parse_deadlines`.
    """
    if not texts:
        return taken
    config, situation, notes = taken
    deadlines = parse_deadlines(texts, situation.task_names)
    tasks: tuple[Task, ...] = tuple(
        dataclasses.replace(task, deadline=deadlines.get(task.name, task.deadline)) for task in situation.tasks
    )
    all_stated = len(deadlines) == len(tasks)
    kept = tuple(note for note in notes if not (all_stated and note.startswith(_GUESSED)))
    if tasks == situation.tasks:
        return taken._replace(notes=kept)
    situation = dataclasses.replace(situation, tasks=tasks)
    return Taken(dataclasses.replace(config, tasks=tasks), situation, kept)
