"""The profile file as dataclasses, and the tables that the simulator and the routers take from it.

Reading a file checks types (`besteffort.profile.files`); construction always checks values. Arrays are float64. NumPy
only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from besteffort.errors import InputError, brief

# Read by pydantic: no unknown fields, no silent conversions, no NaN.
_STRICT: dict[str, object] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}

Points = tuple[tuple[int, float], ...]

_LONGEST_S = 1e6
_MOST_TOKENS = 2**40
_LONGEST_CONTEXT = 2**22
_MOST_AT_ONCE = 2**24
_MOST_NAMED = 1_000
_MOST_GB = 1e6
_LATER = (
    "chunk_tokens",
    "weights_gb",
    "memory_gb",
    "load_gb_per_s",
)  # fields that came later; what none states is not written
_LONGEST_NAME = 200


@dataclasses.dataclass(frozen=True)
class Source:
    """The provenance of one part of a profile.

    Attributes:
      kind: `measured` on the device, `published` by others, or `modelled` by a formula.
      source: a script, a publication or a data set.
      method: how the part was obtained from the source, with the conditions that matter (context length, engine).
      device, dtype, date: device, number format and date, as far as they apply.
      libraries: versions, one `name version` each.
    """

    __pydantic_config__: ClassVar = _STRICT

    kind: Literal["measured", "published", "modelled"]
    source: str
    method: str = ""
    device: str | None = None
    dtype: str | None = None
    date: str | None = None
    libraries: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The source of each part of a profile. `decode` covers `context_cost_s` and `cache_tokens` too."""

    __pydantic_config__: ClassVar = _STRICT

    decode: Source
    prefill: Source
    slowdown: Source
    quality: Source

    @property
    def summary(self) -> str:
        """One line for reports: `decode modelled, prefill modelled, slowdown modelled, quality published`."""
        return ", ".join(f"{field.name} {getattr(self, field.name).kind}" for field in dataclasses.fields(self))


@dataclasses.dataclass(frozen=True)
class ModelProfile:
    """Latency and memory of one model.

    Attributes:
      name: name of the model.
      decode: points `(batch size, seconds)` of a decode iteration, from batch size 1 upwards.
      prefill: points `(prompt tokens, seconds)` of the prefill of one prompt, from 1 token upwards.
      slowdown: one factor per model of the profile: how much longer this model's iterations take while that model has
        one in progress on the same replica; empty means 1 for all. Its own entry is 1.
      context_cost_s: seconds added to an iteration per token held by the requests that ran before.
      cache_tokens: tokens that fit an instance's key-value cache; none means no limit.
      chunk_tokens: tokens that an iteration works on at most, so that longer prompts are read in several; none means
        that prompts are read whole.
      weights_gb: GB of its weights, which are loaded when a replica starts; none if that is not known.

    Raises:
      InputError: on tables that do not start at 1, are unsorted, not positive, not finite or decreasing, and on other
        values out of range.
    """

    __pydantic_config__: ClassVar = _STRICT

    name: str
    decode: Points
    prefill: Points
    slowdown: tuple[float, ...] = ()
    context_cost_s: float = 0.0
    cache_tokens: int | None = None
    chunk_tokens: int | None = None
    weights_gb: float | None = None

    def __post_init__(self) -> None:
        _check_points(self.name, "decode", "batch size", self.decode)
        _check_points(self.name, "prefill", "prompt tokens", self.prefill)
        for factor in self.slowdown:
            if not 1 <= factor <= _LONGEST_S:
                raise InputError(
                    f"Model `{self.name}`: `slowdown` has {factor:g}; give factors of at least 1 and up to "
                    f"{_LONGEST_S:g}."
                )
        if not 0 <= self.context_cost_s <= _LONGEST_S:
            raise InputError(
                f"Model `{self.name}`: `context_cost_s` is {self.context_cost_s:g}; give seconds per token, at least 0 "
                f"and at most {_LONGEST_S:g}."
            )
        for field, off in (("cache_tokens", "no limit"), ("chunk_tokens", "prompts that are read whole")):
            tokens = getattr(self, field)
            if tokens is not None and not 1 <= tokens <= _MOST_TOKENS:
                raise InputError(
                    f"Model `{self.name}`: `{field}` is {brief(tokens)}; give a positive number of at most "
                    f"{_MOST_TOKENS:,}, or null for {off}."
                )
        _check_size(f"Model `{self.name}`: `weights_gb`", self.weights_gb)


@dataclasses.dataclass(frozen=True)
class TaskQuality:
    """Quality of the models on one task.

    Attributes:
      name: the task's name.
      metric: the metric, e.g. `acc, zero-shot`.
      source: the source of the figures.
      quality_percent: the metric of each model, in the order of the profile's models, 0 to 100; higher is better.

    Raises:
      InputError: if a value is outside 0 to 100, or all are zero.
    """

    __pydantic_config__: ClassVar = _STRICT

    name: str
    metric: str
    source: str
    quality_percent: tuple[float, ...]

    def __post_init__(self) -> None:
        for value in self.quality_percent:
            if not 0 <= value <= 100:
                raise InputError(
                    f"Task `{self.name}`: `quality_percent` has {value:g}; give percentages from 0 to 100."
                )
        if not any(self.quality_percent):
            raise InputError(
                f"Task `{self.name}`: `quality_percent` is 0 for every model; give one that can do the task."
            )


@dataclasses.dataclass(frozen=True)
class Profile:
    """Latency and quality of models on a device.

    Attributes:
      format: version of the file format.
      name: name of the profile.
      device: the accelerator of one replica.
      models: the models, from the smallest to the largest.
      tasks: the tasks with a quality for every model.
      provenance: the source of each part.
      cache_output_share: share of a request's output tokens counted against `cache_tokens` at admission, 0 to 1.
      context_tokens: the longest prompt and answer, together, that the models take, to which logs of other models are
        clipped; null for no limit. It changes no time and no quality, and is no part of the digest.
      memory_gb: GB of a GPU that weights may take; none if that is not known, or no limit.
      load_gb_per_s: GB of weights that a starting replica loads per second; none if that is not known.

    Raises:
      InputError: on an empty or repeated list of names, or lists whose length is not that of `models`.
    """

    __pydantic_config__: ClassVar = _STRICT

    format: Literal[1]
    name: str
    device: str
    models: tuple[ModelProfile, ...]
    tasks: tuple[TaskQuality, ...]
    provenance: Provenance
    cache_output_share: float = 1.0
    context_tokens: int | None = None
    memory_gb: float | None = None
    load_gb_per_s: float | None = None

    def __post_init__(self) -> None:
        _check_names("name", (self.name,))
        _check_names("models", self.model_names)
        _check_names("tasks", self.task_names)
        count = len(self.models)
        for task in self.tasks:
            if len(task.quality_percent) != count:
                raise InputError(
                    f"Task `{task.name}`: `quality_percent` has {len(task.quality_percent)} values for {count} models; "
                    "give one per model."
                )
        for index, model in enumerate(self.models):
            if len(model.slowdown) not in (0, count):
                raise InputError(
                    f"Model `{model.name}`: `slowdown` has {len(model.slowdown)} factors for {count} models; "
                    "give one per model, or none."
                )
            if model.slowdown and model.slowdown[index] != 1:
                raise InputError(
                    f"Model `{model.name}`: `slowdown` by itself is {model.slowdown[index]:g}; give 1, for its own "
                    "load is in its tables."
                )
        if not 0 <= self.cache_output_share <= 1:
            raise InputError(f"`cache_output_share` is {self.cache_output_share:g}; give a share from 0 to 1.")
        if self.context_tokens is not None and not 2 <= self.context_tokens <= _LONGEST_CONTEXT:
            raise InputError(
                f"`context_tokens` is {brief(self.context_tokens)}; give a number from 2 to {_LONGEST_CONTEXT:,}, or "
                "null for no limit."
            )
        _check_size("`memory_gb`", self.memory_gb)
        _check_size("`load_gb_per_s`", self.load_gb_per_s)

    @property
    def model_names(self) -> tuple[str, ...]:
        return tuple(model.name for model in self.models)

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def decode_table(self, max_batch: int) -> np.ndarray:
        """(models, max_batch + 1) seconds of a decode iteration by batch size; entry 0 is 0.

        Linear between the points, and beyond them with the slope of the last two; one point alone is a constant.
        """
        table = np.stack([_interpolate(model.decode, max_batch) for model in self.models])
        table[:, 0] = 0.0
        return table

    def prefill_table(self, max_tokens: int) -> np.ndarray:
        """(models, max_tokens + 1) seconds of a prefill by prompt tokens; as `decode_table`, entry 0 is unused."""
        return np.stack([_interpolate(model.prefill, max_tokens) for model in self.models])

    def quality_table(self, task_names: Sequence[str]) -> np.ndarray:
        """(tasks, models) quality of the named tasks, divided by the best model's on that task.

        Raises:
          InputError: if the profile lacks a task.
        """
        known = {task.name: task for task in self.tasks}
        rows = []
        for name in task_names:
            if name not in known:
                raise InputError(f"Profile `{self.name}` has no task `{brief(name)}`; choose from {', '.join(known)}.")
            percent = np.array(known[name].quality_percent, dtype=np.float64)
            rows.append(percent / percent.max())
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.models))

    @property
    def slowdown(self) -> np.ndarray:
        """(models, models) factor on an iteration of the row's model while the column's has one in progress."""
        ones = (1.0,) * len(self.models)
        return np.array([model.slowdown or ones for model in self.models], dtype=np.float64)

    @property
    def context_cost_s(self) -> np.ndarray:
        """(models,) seconds per token held by the requests that ran before."""
        return np.array([model.context_cost_s for model in self.models], dtype=np.float64)

    @property
    def cache_tokens(self) -> np.ndarray:
        """(models,) tokens that fit an instance's key-value cache; infinite where unlimited."""
        tokens = [math.inf if model.cache_tokens is None else model.cache_tokens for model in self.models]
        return np.array(tokens, dtype=np.float64)

    @property
    def chunk_tokens(self) -> np.ndarray:
        """(models,) tokens that an iteration works on at most; infinite where prompts are read whole."""
        tokens = [math.inf if model.chunk_tokens is None else model.chunk_tokens for model in self.models]
        return np.array(tokens, dtype=np.float64)

    @property
    def weights_gb(self) -> np.ndarray:
        """(models,) GB of the weights, 0 where that is not known."""
        return np.array([model.weights_gb or 0.0 for model in self.models])

    @property
    def load_s(self) -> np.ndarray:
        """(models,) seconds until the weights of a starting replica are loaded, 0 where that is not known."""
        return self.weights_gb / (self.load_gb_per_s or np.inf)

    def digest(self) -> str:
        """SHA-256 of the content in hexadecimal, independent of the file's formatting."""
        counted = {name: value for name, value in as_written(self).items() if name != "context_tokens"}
        content = json.dumps(_canonical(counted), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def select(self, models: Sequence[str]) -> Profile:
        """The profile with only the given models, in its own order.

        Raises:
          InputError: on an empty list, a repeated name, or one that the profile lacks.
        """
        for name in models:
            if name not in self.model_names:
                raise InputError(
                    f"Profile `{self.name}` has no model `{name}`; choose from {', '.join(self.model_names)}."
                )
        _check_names("models", tuple(models))
        keep = [index for index, name in enumerate(self.model_names) if name in models]

        def pick(values: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(values[index] for index in keep)

        kept = (self.models[index] for index in keep)
        return dataclasses.replace(
            self,
            models=tuple(dataclasses.replace(m, slowdown=pick(m.slowdown) if m.slowdown else ()) for m in kept),
            tasks=tuple(dataclasses.replace(t, quality_percent=pick(t.quality_percent)) for t in self.tasks),
        )


def as_written(profile: Profile) -> dict[str, Any]:
    """The profile as plain data, without what came later and is not stated: files stay what they were."""
    return stated_only(dataclasses.asdict(profile))


def stated_only(data: Any) -> Any:
    """Plain data of a profile, or of what holds one, without fields that came later and that nobody states."""
    if isinstance(data, dict):
        return {name: stated_only(value) for name, value in data.items() if value is not None or name not in _LATER}
    return [stated_only(value) for value in data] if isinstance(data, list | tuple) else data


def _check_size(what: str, value: float | None) -> None:
    if value is not None and not 0 < value <= _MOST_GB:
        raise InputError(
            f"{what} is {value:g}; give a positive number of at most {_MOST_GB:,.0f}, or null if it is not known."
        )


def _interpolate(points: Points, last: int) -> np.ndarray:
    """(last + 1,) values at 0 to `last`; entry 0 repeats the first point's."""
    x, y = np.array(points, dtype=np.float64).T
    at = np.arange(last + 1, dtype=np.float64)
    values = np.interp(at, x, y)
    if len(x) > 1:
        values += (y[-1] - y[-2]) / (x[-1] - x[-2]) * np.maximum(at - x[-1], 0.0)
    return values


def _check_points(model: str, field: str, unit: str, points: Points) -> None:
    where = f"Model `{model}`: `{field}`"
    if not points or points[0][0] != 1:
        raise InputError(f"{where} must begin with a point at {unit} 1; add it.")
    for x, seconds in points:
        if not 0 < seconds <= _LONGEST_S:
            raise InputError(
                f"{where} has {seconds:g} s at {unit} {brief(x)}; give a positive number of seconds, up "
                f"to {_LONGEST_S:g}."
            )
        if x > _MOST_AT_ONCE:
            raise InputError(f"{where} has a point at {unit} {brief(x)}; give points up to {_MOST_AT_ONCE:,}.")
    for (x, seconds), (next_x, next_seconds) in itertools.pairwise(points):
        if next_x <= x:
            raise InputError(f"{where} goes from {unit} {x} to {next_x}; sort its points by {unit} and give each once.")
        if next_seconds < seconds:
            raise InputError(
                f"{where} falls from {seconds:g} s at {unit} {x} to {next_seconds:g} s at {next_x}; "
                "more work takes no less time, so raise the later value or remove that point."
            )


def _check_names(field: str, names: tuple[str, ...]) -> None:
    if not names:
        raise InputError(f"`{field}` is empty; list at least one.")
    if len(names) > _MOST_NAMED:
        raise InputError(f"`{field}` lists {len(names):,}; list at most {_MOST_NAMED:,}.")
    for name in names:
        if not name:
            raise InputError(f"`{field}` has an entry without a name; name it.")
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise InputError(
                f"`{field}` has the name `{brief(name)}`; give one of at most {_LONGEST_NAME} printable characters."
            )
        if names.count(name) > 1:
            raise InputError(f"`{field}` lists `{name}` twice; list it once.")


def _canonical(value: Any) -> Any:
    """The value with every number as a float, so that 1 and 1.0 hash alike."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return float(value) if isinstance(value, int | float) else value
