"""The exported policy: one file, read without JAX, that answers in microseconds.

A policy file is a `.safetensors` file. Its tensors are `layers.<i>.kernel` (in, out) and `layers.<i>.bias` (out,), in
float32. Its metadata has one entry, `besteffort`, a JSON object: `format`, `version` (of the package that wrote it),
`features` (in order, with their normalisers), `situation` (profile, cluster, tasks, reward and view that it was trained
for, all fields of `besteffort.situation.Situation`), `rule` (its numbers by name, or null), `training`,
`ensemble_size`, and `sha256` over all of it and the tensors. One entry, because safetensors fixes no order of several,
and equal policies shall be equal files.

Only reading and writing files imports pydantic, so importing this module stays light.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from besteffort.digests import array_digest
from besteffort.documents import MOST_BYTES, parse_json
from besteffort.errors import InputError, brief
from besteffort.estimates.rule import ABOVE_ZERO, Rule
from besteffort.files import write_bytes
from besteffort.observation import (
    ESTIMATES,
    OBSERVED_SLOWDOWN,
    ONE_HOT,
    ORIGIN,
    PER_MODEL,
    SIGNED,
    VALUE,
    Feature,
    check_feature,
    input_size,
    needs_in_flight,
)
from besteffort.profile.types import stated_only
from besteffort.situation import Situation
from besteffort.version import __version__
from besteffort.weights import Weights, split

FORMAT = 4
"""Version of the file format; it grows when an older or a newer reader would misread a file. Others are refused."""

_ENTRY = "besteffort"
_PerModel = Mapping[str, Any] | Sequence[Any] | np.ndarray
_ALWAYS_GIVEN = ("task", "batch_sizes", "arrival_rate")


_ZERO = np.zeros((), np.float32)
_MOST_BYTES = 2**28  # of a policy file
_LARGEST_OF_RULE = 1e9
_LARGEST = 1e30  # inputs of a network; far larger ones would overflow its float32


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """A trained router, and what it was trained for.

    Attributes:
      situation: what it was trained for: profile, cluster, tasks, reward and view.
      features: the network's input, part by part, in the order of `situation.view.features`.
      weights: per layer a kernel (in, out) and a bias (out,), float32; ReLU between layers; the last gives Q-values.
      training: the training configuration, plain JSON values.
      ensemble_size: how many networks `weights` hold side by side, see `besteffort.weights.merge`.
      rule: values models, for the feature `value`; None without it.
      version: version of the package that wrote it.

    Raises:
      InputError: if the parts do not fit together, or a weight is not finite.
    """

    situation: Situation
    features: tuple[Feature, ...]
    weights: Weights
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ensemble_size: int = 1
    rule: Rule | None = None
    version: str = __version__

    # Derived for speed. Every layer has one more unit, which is always 1, so that biases are rows of the kernels; the
    # first kernel is per task and origin, with their rows in its bias.
    _first: dict[str | None, dict[str, np.ndarray]] = dataclasses.field(init=False, repr=False)
    _rest: tuple[np.ndarray, ...] = dataclasses.field(init=False, repr=False)
    _inputs: tuple[tuple[str, bool, float, float, bool, float | tuple[float, ...]], ...] = dataclasses.field(
        init=False, repr=False
    )
    _further: frozenset[str] = dataclasses.field(init=False, repr=False)

    @property
    def is_rule(self) -> bool:
        """Whether it decides by its rule alone, whose values its network passes on as they are."""
        if tuple(feature.name for feature in self.features) != (VALUE,) or len(self.weights) != 1:
            return False
        ((matrix, bias),) = self.weights
        return np.array_equal(matrix, np.eye(len(bias))) and not bias.any()

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):  # a weight that is too large becomes infinite, and is refused
            weights = tuple((np.asarray(w, np.float32), np.asarray(b, np.float32)) for w, b in self.weights)
        object.__setattr__(self, "weights", weights)
        self._check()
        kernel, bias = weights[0]
        of_task = dict.fromkeys(self.tasks, np.zeros_like(bias))
        of_origin: dict[str | None, np.ndarray] = {None: np.zeros_like(bias)}
        rows = []
        inputs = []
        start = 0
        for feature in self.features:
            stop = start + feature.size
            if feature.name == "task":
                of_task = dict(zip(self.tasks, kernel[start:stop], strict=True))
            elif feature.name == ORIGIN:
                of_origin |= dict(zip(self.situation.origin_names, kernel[start:stop], strict=True))
            else:
                rows.append(kernel[start:stop])
                highest = min(_LARGEST * np.min(feature.scale), sys.float_info.max)
                lowest = -highest if feature.name in SIGNED else 0.0
                per_model, log1p = feature.name in PER_MODEL, feature.transform == "log1p"
                inputs.append((feature.name, per_model, lowest, highest, log1p, feature.scale))
            start = stop
        first = np.concatenate(rows) if rows else np.zeros((0, len(bias)), np.float32)
        last = len(weights) == 1
        kernels = {
            origin: {task: _with_one(first, bias + row + more, last) for task, row in of_task.items()}
            for origin, more in of_origin.items()
        }
        object.__setattr__(self, "_first", kernels)
        rest = (_with_one(*layer, i == len(weights) - 1) for i, layer in enumerate(weights[1:], start=1))
        object.__setattr__(self, "_rest", tuple(rest))
        object.__setattr__(self, "_inputs", tuple(inputs))
        object.__setattr__(self, "_further", frozenset(f.name for f in self.features) - frozenset(_ALWAYS_GIVEN))

    # Cached, because `decide` would take noticeably longer if it built these names each time.
    @functools.cached_property
    def models(self) -> tuple[str, ...]:
        """Names of the pools, in the order of the network's outputs; where there is a cluster, those of the models."""
        return self.situation.fleet.names

    @functools.cached_property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the one-hot code."""
        return self.situation.task_names

    @property
    def rate_tau_s(self) -> float:
        """Time constant in seconds of the rate estimate that it expects, see `besteffort.observation.next_rate`."""
        return self.situation.view.rate_tau_s

    def decide(
        self, *, task: str, batch_sizes: Mapping[str, int] | Sequence[int], arrival_rate: float, **further: Any
    ) -> str:
        """Name of the model that shall answer a request; where there are pools, of the pool.

        Args:
          task: name of the request's task.
          batch_sizes: per model or pool, by name or in the order of `models`, the requests running and waiting on all
            replicas, without this one.
          arrival_rate: the rate estimate in requests per second, see `besteffort.observation.next_rate`.
          **further: its further features by name: `deadline_s`, `since_change_s`, `smallest_batch` (per model), and
            `origin` (its name, or None) and `tenant_weight` (1 for no tenant); see
            `besteffort.observation.Observation`. Those of `besteffort.observation.IN_FLIGHT`, too: estimates (per
            model) and `prompt_tokens`, for which `besteffort.in_flight.InFlight` keeps the books; its `decide` passes
            all of them.

        Raises:
          InputError: on an unknown task or origin, a value that is missing, no number, not finite or absurdly large, or
            negative where it cannot be, or a feature that is not its.
        """
        return self.models[
            self.values(task=task, batch_sizes=batch_sizes, arrival_rate=arrival_rate, **further).argmax()
        ]

    def values(
        self, *, task: str, batch_sizes: Mapping[str, int] | Sequence[int], arrival_rate: float, **further: Any
    ) -> np.ndarray:
        """(pools,) float32 Q-values; arguments and errors as `decide`."""
        if further.keys() != self._further:
            raise self._wrong_features(further)
        try:
            first = self._first[further.get(ORIGIN)][task]
        except (KeyError, TypeError):
            raise self._unknown(task, further.get(ORIGIN)) from None
        further["batch_sizes"] = batch_sizes
        further["arrival_rate"] = arrival_rate
        hidden: np.ndarray = self._encode(further).dot(first)
        for kernel in self._rest:
            np.maximum(hidden, _ZERO, out=hidden)
            hidden = hidden.dot(kernel)
        return hidden

    def _unknown(self, task: Any, origin: Any) -> InputError:
        what, name, known = "task", task, self.tasks
        if task in self.tasks:
            what, name, known = "origin", origin, self.situation.origin_names
        return InputError(
            f"The policy does not know the {what} `{brief(name)}`; it was trained for {', '.join(known)}."
        )

    def check_fits(self, situation: Situation) -> None:
        """Checks that the policy can route in a situation.

        What gives the network's inputs and outputs their meaning has to be as in its own situation: the names of pools
        (where there is a cluster, of models) and tasks, in the same order, and the time constant of the rate estimate.
        Of a policy with estimates also `view.streamed`, since tokens that nobody counts are estimated otherwise. Where
        it reads the observed slow-down, times have to be compared with the tables, and where it reads the origin, the
        names of origins have to be the same, in the same order.

        All else may differ: latency tables, slow-downs and qualities, replicas and their limits, shares, lengths,
        deadlines and weights of the tasks, the reward, and how late the view is; `view.features`, which names what is
        trained next. The policy then acts on what it was trained for, so it decides worse than one trained for the
        situation, but it decides.

        Estimates follow the numbers of whoever makes them: in a simulation those of the assumed situation, in a gateway
        those that the policy carries, since `besteffort.in_flight.InFlight` takes its situation.

        Raises:
          InputError: if the situation has other models or tasks (or an other order of these), or another time constant
            of the rate estimate, or the policy has estimates and tokens are counted in one of the two only, or
            it reads the observed slow-down and times are not compared, or it reads the origin and origins differ.
        """
        models, tasks = situation.fleet.names, situation.task_names
        kind = "pools" if self.situation.pools else "models"
        pairs = [(kind, self.models, models), ("tasks", self.tasks, tasks)]
        if ORIGIN in self._further:
            pairs.append(("origins", self.situation.origin_names, situation.origin_names))
        for what, own, other in pairs:
            if own != other:
                raise InputError(
                    f"The policy was trained for the {what} {', '.join(own)} in this order, not "
                    f"{', '.join(other) or 'for none'}; train one for these {what} or choose a situation that has the "
                    "policy's."
                )
        if self.rate_tau_s != situation.view.rate_tau_s:
            raise InputError(
                f"The policy expects a rate estimate over {self.rate_tau_s:g} s, but `view.rate_tau_s` of the "
                f"situation is {situation.view.rate_tau_s:g}; set it to the policy's."
            )
        streamed = self.situation.view.streamed
        if streamed != situation.view.streamed and any(feature.name in ESTIMATES for feature in self.features):
            raise InputError(
                f"The policy was trained with `view.streamed` {str(streamed).lower()}, which its estimates depend on; "
                "set it so in the situation."
            )
        if not situation.view.slowdown_tau_s and any(feature.name == OBSERVED_SLOWDOWN for feature in self.features):
            raise InputError(
                f"The policy reads `{OBSERVED_SLOWDOWN}`, for which times have to be compared with the tables; set "
                f"`view.slowdown_tau_s` to the policy's, {self.situation.view.slowdown_tau_s:g}."
            )

    def _encode(self, given: Mapping[str, Any]) -> np.ndarray:
        """(inputs + 1,) float32 network input and a 1, as `besteffort.observation.encode` but for the task."""
        numbers = []
        for name, per_model, lowest, highest, log1p, scale in self._inputs:
            value: Any = given[name]
            try:
                values = self._per_model(name, value) if per_model else (value,)
                if isinstance(scale, tuple):
                    values, scale = [value / one for value, one in zip(values, scale, strict=True)], 1.0
                for value in values:
                    if not lowest <= value <= highest:
                        raise ValueError
                    numbers.append(math.log1p(value / scale) if log1p else value / scale)
            except InputError:
                raise
            except (TypeError, ValueError, ArithmeticError):
                raise InputError(
                    f"`{name}` has the value {brief(value)}; it must be a finite number from {lowest:.3g} "
                    f"to {highest:.3g}."
                ) from None
        numbers.append(1.0)
        try:
            return np.array(numbers, np.float32)
        except (TypeError, ValueError):
            raise InputError("A feature has several values for a number; give one number for each.") from None

    def _per_model(self, name: str, values: _PerModel) -> Any:
        if len(values) == len(self.models):
            if not isinstance(values, Mapping):
                return values
            try:
                return [values[model] for model in self.models]
            except KeyError:
                pass
        found = ", ".join(values) if isinstance(values, Mapping) else f"{len(values)} values"
        raise InputError(f"`{name}` has {found}; give one value for each of the models {', '.join(self.models)}.")

    def _wrong_features(self, further: Mapping[str, Any]) -> InputError:
        missing = sorted(self._further - further.keys())
        if missing:
            names = ", ".join(f"`{name}`" for name in missing)
            live = ", or let `besteffort.in_flight.InFlight` decide" if needs_in_flight(missing) else ""
            return InputError(f"The policy also needs {names}; pass it by name{live}.")
        unknown = min(further.keys() - self._further)
        names = ", ".join(feature.name for feature in self.features)
        return InputError(f"`{unknown}` is no feature of this policy, leave it out; its features are {names}.")

    def _check(self) -> None:
        origins = len(self.situation.origins)
        sizes = {"task": len(self.tasks), ORIGIN: origins, **dict.fromkeys(PER_MODEL, len(self.models))}
        for feature in self.features:
            check_feature(feature, "Policy")
            if feature.size != sizes.get(feature.name, 1) or (feature.name in ONE_HOT) != (
                feature.transform == "one_hot"
            ):
                raise InputError(
                    f"Policy: feature `{feature.name}` has a size or transform that does not fit; export it again."
                )
            if feature.name in SIGNED and feature.transform == "log1p":
                raise InputError(f"Policy: feature `{feature.name}` may be negative; give it the transform `linear`.")
        if len({feature.name for feature in self.features}) != len(self.features):
            raise InputError("Policy: a feature is listed twice; list each once.")
        names = tuple(feature.name for feature in self.features)
        if names != self.situation.view.features:
            raise InputError(
                f"Policy: the features are {', '.join(names)}, but `view.features` of its situation is "
                f"{', '.join(self.situation.view.features)}; they must be the same."
            )
        width = input_size(self.features)
        for i, (kernel, bias) in enumerate(self.weights):
            if kernel.ndim != 2 or kernel.shape[0] != width or bias.shape != kernel.shape[1:]:
                raise InputError(
                    f"Policy: layer {i} has the shapes {kernel.shape} and {bias.shape}; its input has {width}."
                )
            if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
                raise InputError(
                    f"Policy: layer {i} has a weight that is not finite; train with a smaller learning rate."
                )
            width = kernel.shape[1]
        if not self.weights or width != len(self.models):
            raise InputError(
                f"Policy: the network has {width} outputs for {len(self.models)} models; they must be equal."
            )
        self._check_rule(self.rule)
        if self.ensemble_size < 1:
            raise InputError(f"Policy: `ensemble_size` is {self.ensemble_size}; it must be at least 1.")
        split(self.weights, self.ensemble_size)

    def _check_rule(self, rule: Rule | None) -> None:
        valued = any(feature.name == VALUE for feature in self.features)
        if valued != (rule is not None):
            raise InputError(
                "Policy: a rule and the feature `value` belong together, and one of them is missing; export it again."
            )
        if rule is None:
            return
        fields = {field.name: np.asarray(getattr(rule, field.name), float) for field in dataclasses.fields(rule)}
        rates = fields["rates"]
        shapes = dict.fromkeys(fields, ()) | {"rates": (rates.size,), "prices": (rates.size, len(self.models))}
        for name, value in fields.items():
            if value.shape != shapes[name] or not np.isfinite(value).all():
                raise InputError(f"Policy: `rule.{name}` has the wrong shape or is not finite; export it again.")
            if not (abs(value) <= _LARGEST_OF_RULE).all():
                raise InputError(f"Policy: `rule.{name}` is beyond {_LARGEST_OF_RULE:g}; export it again.")
        for name in ABOVE_ZERO:
            if not fields[name] > 0:
                raise InputError(f"Policy: `rule.{name}` is {fields[name]:g}, but must be above 0; export it again.")
        if not 0 <= fields["giving_up"] <= 1:
            raise InputError("Policy: `rule.giving_up` must be a share from 0 to 1; export it again.")
        if not rates.size or not (np.diff(rates, prepend=0.0) > 0).all():
            raise InputError("Policy: `rule.rates` do not ascend from above 0; export it again.")


def save_policy(policy: Policy, path: str | Path) -> None:
    """Writes a policy file, wholly or not at all; equal policies give equal files.

    Raises:
      InputError: if the place cannot be written, or a number of the situation or of `training` is not finite.
    """
    tensors = {}
    for i, (kernel, bias) in enumerate(policy.weights):
        tensors[f"layers.{i}.kernel"] = np.ascontiguousarray(kernel)
        tensors[f"layers.{i}.bias"] = np.ascontiguousarray(bias)
    metadata = {"format": FORMAT, **describe(policy)}
    text = json.dumps({**metadata, "sha256": _digest(metadata, tensors)})
    write_bytes(path, safetensors.numpy.save(tensors, {_ENTRY: text}))


def describe(policy: Policy) -> dict[str, Any]:
    """All of a policy but its weights, as a reader of its file gets it back: plain JSON values.

    Raises:
      InputError: if a number is not finite.
    """
    from besteffort.validation import as_data

    about = {field.name: getattr(policy, field.name) for field in dataclasses.fields(_About)}
    if policy.rule is not None:
        numbers = dataclasses.asdict(policy.rule)
        about["rule"] = {name: np.asarray(value, np.float64).tolist() for name, value in numbers.items()}
    # The settings are JSON values of any type, of which pydantic would make null where they are not finite.
    data = as_data(_About(**about | {"training": {}})) | {"training": dict(policy.training)}
    # What came later and is off is not written, so that files stay what they were.
    data["situation"] = stated_only(
        {
            name: value
            for name, value in data["situation"].items()
            if value or name not in ("pools", "hardware", "origins", "tenants")
        }
    )
    try:
        values: dict[str, Any] = json.loads(_canonical(data))
    except ValueError as error:
        raise InputError(
            "Policy: a number of its situation or of `training` is not finite, which its file cannot hold; give a "
            "finite one."
        ) from error
    return values


def load_policy(path: str | Path, situation: Situation | None = None) -> Policy:
    """Reads a policy file.

    Args:
      path: the file.
      situation: where the policy is to route, if that is to be checked, too; see `Policy.check_fits`.

    Raises:
      InputError: if it is missing, cut short, edited, of another format, or not a policy at all, or if it does not fit
        the situation.
    """
    from besteffort.validation import from_json

    path = Path(path)
    text, tensors = _read(path)
    metadata = _parse(path, text)
    _check_format(path, metadata)
    if not _is_signed(text, metadata, tensors):
        raise InputError(f"{path}: weights or metadata were changed after it was written; export the policy again.")
    about = {name: value for name, value in metadata.items() if name not in ("format", "sha256")}
    read = from_json(_About, json.dumps(about), str(path))
    weights = []
    for i in range(len(tensors) // 2):
        names = (f"layers.{i}.kernel", f"layers.{i}.bias")
        if not tensors.keys() >= set(names):
            raise InputError(f"{path}: it lacks `{names[0]}` or `{names[1]}`; export the policy again.")
        weights.append((tensors[names[0]], tensors[names[1]]))
    try:
        fields = {field.name: getattr(read, field.name) for field in dataclasses.fields(read)}
        policy = Policy(weights=tuple(weights), **fields | {"rule": _rule(read.rule)})
        if situation is not None:
            policy.check_fits(situation)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return policy


def _rule(numbers: Mapping[str, Any] | None) -> Rule | None:
    if numbers is None:
        return None
    wanted = {field.name for field in dataclasses.fields(Rule)}
    if numbers.keys() != wanted:
        odd = min(numbers.keys() ^ wanted)
        raise InputError(f"`rule` lacks `{odd}` or has it too many; export the policy again.")
    arrays = {}
    for name, value in numbers.items():
        try:
            arrays[name] = np.asarray(value, np.float64)
        except ValueError as error:  # rows of different lengths
            raise InputError(f"`rule.{name}` has the wrong shape; export the policy again.") from error
    return Rule(**arrays)


@dataclasses.dataclass(frozen=True)
class _About:
    """A policy but for its weights, typed for `besteffort.validation`; fields as those of `Policy`."""

    version: str
    features: tuple[Feature, ...]
    situation: Situation
    training: dict[str, Any]
    ensemble_size: int
    rule: dict[str, float | list[float] | list[list[float]]] | None


def _check_format(path: Path, metadata: Mapping[str, Any]) -> None:
    found = metadata.get("format")
    if type(found) is not int:
        raise InputError(f"{path}: `format` is {json.dumps(found)}, but must be {FORMAT}; export the policy again.")
    if found < FORMAT:
        raise InputError(
            f"{path}: the file is of the older format {found}, and this version of besteffort reads {FORMAT}; train "
            "the policy again with `besteffort train CONFIG --out DIRECTORY`."
        )
    if found > FORMAT:
        raise InputError(
            f"{path}: the file is of the newer format {found}, and this version of besteffort reads {FORMAT}; use the "
            "version that wrote it."
        )


def _read(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """The text of the metadata, empty if there are none, and the tensors."""
    damaged = f"{path}: not a whole policy file (cut short or damaged?); copy or export it again."
    try:
        with path.open("rb") as raw:
            size, header = raw.seek(0, os.SEEK_END), int.from_bytes((raw.seek(0), raw.read(8))[1], "little")
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such policy file; check the path.") from error
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise InputError(f"{path}: cannot read it, {reason}; name a policy file that you may read.") from error
    if size > _MOST_BYTES or header > min(MOST_BYTES, size):
        raise InputError(damaged)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_ENTRY, "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, TypeError, ValueError, AttributeError, safetensors.SafetensorError) as error:
        raise InputError(damaged) from error
    return text, tensors


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        metadata = parse_json(text, str(path))
    except InputError:
        metadata = None
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: a safetensors file, but without a policy's metadata; export the policy again.")
    return metadata


def _canonical(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    return array_digest(sorted(tensors.items()), start=_canonical(metadata))


def _is_signed(text: str, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the digest in the metadata is theirs and the tensors', and their text is as `save_policy` writes it."""
    signed = {name: value for name, value in metadata.items() if name != "sha256"}
    try:
        # The text, too, because one value has several: 1e-5 and 1E-5.
        return json.dumps(metadata) == text and bool(metadata.get("sha256") == _digest(signed, tensors))
    # Numbers that are not finite, text that is not Unicode, mappings without end: we write none of these.
    except (ValueError, RecursionError):
        return False


def _with_one(kernel: np.ndarray, bias: np.ndarray, last: bool) -> np.ndarray:
    """(inputs + 1, outputs + 1) kernel whose last input, always 1, carries the bias and, unless `last`, goes on."""
    rows = np.concatenate([kernel, bias[None]])
    if last:
        return rows
    one = np.zeros((len(rows), 1), np.float32)
    one[-1] = 1.0
    return np.concatenate([rows, one], axis=1)
