"""Sweeps as configured in files, and their trials, checked before anything is compiled.

```yaml
base: quickstart                      # name of a configuration, or a file
changes: {training.config.decisions: 500000}
axes:
  training.hyper.learning_rate: {log_uniform: [1e-4, 1e-2]}
  training.hyper.discount: [0.9, 1.0]
  tasks.*.deadline.base_s: [0.1, 0.2]
samples: 8                            # draws of the first axis, for each point of the grid of the others
seeds: 2                              # networks per setting
```

Trials that differ in numbers only train together in one compiled program; values that change shapes need another
program. The grouping is automatic: trials with equal environments, features and static settings share a program.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from besteffort.errors import InputError, brief
from besteffort.learning.config import check
from besteffort.ranges import Few, Seed
from besteffort.runs.config import (
    CHANGES,
    apply_changes,
    find_config,
    from_mapping,
    places,
    read_yaml,
    with_changes,
)
from besteffort.runs.experiment import RunConfig, load_run
from besteffort.runs.renamed import refuse_renamed
from besteffort.runs.training import TrainingProblem, make_training_problem
from besteffort.simulator.build import build
from besteffort.situation import Situation
from besteffort.sweep.leaderboard import describe_values
from besteffort.validation import as_data

SEED = "training.seed"

_WAYS = ("values", "choice", "uniform", "log_uniform")
_TOGETHER = 64


@dataclasses.dataclass(frozen=True)
class Axis:
    """The variation of one field: exactly one of the first four attributes is set.

    Attributes:
      values: all of these, a dimension of the grid; a plain list in a file means the same.
      choice: each sample draws one of these.
      uniform: each sample draws a number from the first to the second, to four digits.
      log_uniform: like `uniform`, but uniform in the logarithm.
      whole: round draws to whole numbers.
    """

    values: tuple[Any, ...] | None = None
    choice: tuple[Any, ...] | None = None
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    whole: bool = False

    @property
    def sampled(self) -> bool:
        return self.values is None

    @property
    def ends(self) -> tuple[int | float, ...]:
        """The range of a sampled number; empty for listed values."""
        return tuple(map(self._rounded, self.uniform or self.log_uniform or ()))

    def draw(self, uniform: float) -> Any:
        """The value for a uniform draw from [0, 1)."""
        if self.choice is not None:
            return self.choice[int(uniform * len(self.choice))]
        if self.uniform is not None:
            low, high = self.uniform
            return self._rounded(min(max(float(f"{low + uniform * (high - low):.4g}"), low), high))
        assert self.log_uniform is not None
        low, high = self.log_uniform
        return self._rounded(min(max(float(f"{low * (high / low) ** uniform:.4g}"), low), high))

    def _rounded(self, number: float) -> int | float:
        return round(number) if self.whole else number

    def check(self, name: str) -> None:
        """Raises `InputError`, which names the axis, if its settings are invalid."""
        given = [way for way in _WAYS if getattr(self, way) is not None]
        if len(given) != 1:
            raise InputError(
                f"`axes`: `{name}` has {' and '.join(given) or 'no values'}; give one of {', '.join(_WAYS)}."
            )
        (way,) = given
        values = getattr(self, way)
        if not values:
            raise InputError(f"`axes`: `{name}` has no `{way}`; give at least one.")
        if way in ("uniform", "log_uniform"):
            low, high = values
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(f"`axes`: `{name}` has `{way}` [{low:g}, {high:g}]; put the smaller number first.")
            if way == "log_uniform" and low <= 0:
                raise InputError(f"`axes`: `{name}` has `log_uniform` from {low:g}; start above 0.")
            return
        if self.whole:
            raise InputError(f"`axes`: `{name}` lists its values, so `whole` has nothing to round; leave it out.")
        twice = [value for index, value in enumerate(values) if value in values[:index]]
        if way == "values" and twice:
            raise InputError(f"`axes`: `{name}` lists {brief(twice[0])} twice; list it once.")


@dataclasses.dataclass(frozen=True)
class Judging:
    """The evaluation of trials; lists and seeds are those of the base's `evaluation`.

    Attributes:
      lists: `bursts`, the bursty load, or `grid`, the mean over the grid of Poisson loads.
      situation: evaluate each trial in its `own` situation, or all in that of the `base`, which shows whether training
        with other deadlines or rewards makes better routers for the base.
    """

    lists: Literal["bursts", "grid"] = "bursts"
    situation: Literal["own", "base"] = "own"


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """A sweep as configured in its file.

    Attributes:
      base: name of a configuration that comes with the package, or a YAML file (from the working directory).
      axes: axes by dotted field; `*` stands for all entries of a list, a number or an entry's `name` for one.
      changes: other values for fields of the base, for all trials.
      samples: draws of the sampled axes for each point of the grid of the listed axes. What is drawn again is left out,
        since it would train to the same networks.
      seeds: networks per setting; null for as many as `training.seeds` of the base.
      seed: seed of the draws.
      judge: evaluation of the trials.

    Raises:
      InputError: if an axis is invalid, or `samples` and `seeds` do not fit the axes.
    """

    base: str
    axes: dict[str, Axis]
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    samples: Few = 1
    seeds: Few | None = None
    seed: Seed = 0
    judge: Judging = Judging()

    def __post_init__(self) -> None:
        if not self.axes:
            raise InputError("`axes` is empty; name at least one field to vary.")
        for name, axis in self.axes.items():
            axis.check(name)
        if self.samples > 1 and not any(axis.sampled for axis in self.axes.values()):
            raise InputError(f"`samples` is {self.samples}, but all axes list their values; leave `samples` out.")
        if SEED in self.axes:
            if self.axes[SEED].sampled:
                raise InputError(f"`axes`: `{SEED}` is drawn; list its values, so that settings share them.")
            if self.seeds is not None:
                raise InputError(f"`seeds` and the axis `{SEED}` both set the networks to train; leave one out.")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training of a sweep.

    Attributes:
      number: number of the trial, from 0, in the order of the grid.
      setting: number of its setting; trials of one setting differ in their seed only.
      values: its value of each axis, without the seed.
      config: its configuration, with one seed.
    """

    number: int
    setting: int
    values: dict[str, Any]
    config: RunConfig

    @property
    def name(self) -> str:
        return f"{self.number:04d}"


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A checked sweep, before compilation.

    Attributes:
      sweep: the configuration of the sweep.
      base: the base configuration, including `changes`.
      trials: the trials.
      programs: per program the numbers of its trials, which train together.
    """

    sweep: SweepConfig
    base: RunConfig
    trials: tuple[Trial, ...]
    programs: tuple[tuple[int, ...], ...]


def load_sweep(
    path_or_name: str | Path, *, changes: Mapping[str, Any] | None = None, changes_from: str = CHANGES
) -> SweepConfig:
    """Loads a sweep from a YAML file, or one of the package by name.

    Args:
      path_or_name: path of a file, or the name of a sweep that comes with the package.
      changes: values for fields of the base, added to the sweep's own `changes`; they win over these.
      changes_from: what messages call these changes.

    Raises:
      InputError: if the file is missing, is not YAML, repeats a key, or does not fit, or the changes do not fit.
    """
    path = find_config(path_or_name, "sweeps")
    data = read_yaml(path)
    if isinstance(data, dict) and isinstance(data.get("axes"), dict):
        axes = {name: {"values": axis} if isinstance(axis, list) else axis for name, axis in data["axes"].items()}
        data = {**data, "axes": axes}
        stated = data.get("changes")
        refuse_renamed([*axes, *(stated if isinstance(stated, dict) else ())], str(path))
    sweep = from_mapping(SweepConfig, data, str(path))
    if not changes:
        return sweep
    varied = next((name for name in changes if name in sweep.axes), None)
    if varied is not None:
        raise InputError(f"{changes_from}: `{varied}` is an axis of {path}; leave it out or change the axis.")
    own = {name: value for name, value in sweep.changes.items() if name not in changes}
    apply_changes(apply_changes(load_run(sweep.base)[0], own, f"{path}: `changes`"), changes, changes_from)
    return dataclasses.replace(sweep, changes=own | dict(changes))


def make_plan(sweep: SweepConfig, *, where: str = "The sweep", together: int = _TOGETHER) -> SweepPlan:
    """Makes all trials of a sweep and groups them into programs.

    Args:
      sweep: the sweep.
      where: the file that it was read from, for messages.
      together: largest number of trials in one program.

    Raises:
      InputError: if the base is missing or does not fit, an axis names no field, two set the same one, or a trial has
        values that are out of range or do not fit each other.
    """
    if together < 1:
        raise InputError(f"`--together` is {together}; give at least 1.")
    try:
        data = as_data(load_run(sweep.base)[0])
    except InputError as error:
        raise InputError(f"{where}: `base`: {error}") from error
    try:
        data = with_changes(data, sweep.changes)
        _check_axes(data, sweep)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    base = from_mapping(RunConfig, data, f"{where}: `changes`")
    trials: list[Trial] = []
    programs: dict[Hashable, list[int]] = {}
    for setting, values in enumerate(_settings(sweep)):
        changed = with_changes(data, values)
        if not trials:
            _check_ends(changed, sweep, base, where)
        for seed in _seeds(sweep, changed):
            one = with_changes(changed, {SEED: seed, "training.seeds": 1})
            trial_where = f"{where}, trial {len(trials)} ({describe_values(values)})"
            config = from_mapping(RunConfig, one, trial_where)
            problem = _training_problem(sweep, base, config, trial_where)
            programs.setdefault(_static(problem), []).append(len(trials))
            trials.append(Trial(len(trials), setting, values, config))
    blocks = (
        block for members in programs.values() for block in np.array_split(members, math.ceil(len(members) / together))
    )
    return SweepPlan(sweep, base, tuple(trials), tuple(tuple(map(int, block)) for block in blocks))


def judged_situation(sweep: SweepConfig, base: RunConfig, own: Situation) -> Situation:
    """The situation in which to evaluate the policy of a trial that trained in its `own` situation.

    Raises:
      InputError: if the sweep asks for the base's situation, which has other models or tasks.
    """
    if sweep.judge.situation == "own":
        return own
    shared = dataclasses.replace(base, view=own.view).build()
    for what, mine, others in (
        ("tasks", own.task_names, shared.task_names),
        ("models" if not shared.pools else "pools", own.fleet.names, shared.fleet.names),
    ):
        if mine != others:
            raise InputError(
                f"its {what} are {', '.join(mine)}, so it cannot be judged in the situation of the base; "
                "set `judge.situation` to `own`."
            )
    return shared


def _settings(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    """Yields the values of all axes except the seed, by setting, each once.

    A larger `samples` does not change earlier draws.
    """
    axes = {name: axis for name, axis in sweep.axes.items() if name != SEED}
    grid = {name: axis.values for name, axis in axes.items() if axis.values is not None}
    for point, values in enumerate(itertools.product(*grid.values())):
        listed = dict(zip(grid, values, strict=True))
        drawn: list[dict[str, Any]] = []
        for sample in range(sweep.samples):
            draws = iter(np.random.default_rng((sweep.seed, point, sample)).random(len(axes)).tolist())
            setting = {name: listed[name] if name in listed else axis.draw(next(draws)) for name, axis in axes.items()}
            if setting not in drawn:
                drawn.append(setting)
                yield setting


def _seeds(sweep: SweepConfig, data: dict[str, Any]) -> Sequence[Any]:
    if SEED in sweep.axes:
        return sweep.axes[SEED].values or ()
    first = data["training"]["seed"]
    return range(first, first + (sweep.seeds or data["training"]["seeds"]))


def _check_axes(data: dict[str, Any], sweep: SweepConfig) -> None:
    """Checks that every axis names fields that may vary, and that no two axes set the same field."""
    taken: dict[tuple[str | int, ...], str] = {}
    for name in sweep.axes:
        for place in places(data, name):
            for other, other_name in taken.items():
                shared = min(len(place), len(other))
                if place[:shared] == other[:shared]:
                    field = ".".join(map(str, place if len(place) > len(other) else other))
                    raise InputError(f"`axes`: `{other_name}` and `{name}` both set `{field}`; leave one of them out.")
            taken[place] = name
        if name in sweep.changes:
            raise InputError(f"`{name}` is in both `changes` and `axes`; leave one of them out.")
        if name.split(".")[0] == "evaluation":
            raise InputError(f"`axes`: `{name}` would judge trials differently; set it under `changes`, for all.")
        if name == "training.seeds":
            raise InputError(f"`axes`: `{name}` is no axis; set `seeds` to the number of networks per setting.")
    for name in sweep.changes:
        over = [
            next((axis for at, axis in taken.items() if place[: len(at)] == at), "") for place in places(data, name)
        ]
        if all(over):
            raise InputError(
                f"`changes`: `{name}` has no effect, for the axis `{over[0]}` sets it, too; leave one of them out."
            )


def _check_ends(data: dict[str, Any], sweep: SweepConfig, base: RunConfig, where: str) -> None:
    """Checks the ends of ranges, which the draws need not reach."""
    for name, axis in sweep.axes.items():
        for end in axis.ends:
            reached = f"{where}: `axes`: `{name}` reaches {end:g}"
            _training_problem(sweep, base, from_mapping(RunConfig, with_changes(data, {name: end}), reached), reached)


def _training_problem(sweep: SweepConfig, base: RunConfig, config: RunConfig, where: str) -> TrainingProblem:
    """Makes and checks the training problem of a trial."""
    training = config.training
    try:
        check(training.config, training.numbers(), training.history)
        problem = make_training_problem(config.build(), training)
        judged_situation(sweep, base, problem.situation)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return problem


def _static(problem: TrainingProblem) -> Hashable:
    """A key that is equal for trials that one compiled program can train together."""
    training = problem.training
    shape, params = build(problem.situation, problem.workload, history=training.history, rule=problem.rule)
    leaves, structure = jax.tree.flatten(params)
    kinds = tuple((leaf.shape, leaf.dtype.kind) for leaf in map(np.asarray, leaves))
    return training.method, shape, problem.features, training.config, training.start, structure, kinds
