"""The exported policy: one file, read without JAX, that answers in microseconds.

A policy file is a `.safetensors` file. Its tensors are `layers.<i>.kernel` (in, out) and `layers.<i>.bias` (out,), in
float32. Its metadata has one entry, `besteffort`, a JSON object: `format`, `version` (of the package that wrote it),
`models`, `tasks`, `features` (in order, with their normalisers), `deadlines`, `cluster`, `rate_tau_s`, `profile` (name
and digest), `training`, `ensemble_size`, and `sha256` over all of it and the tensors. One entry, because safetensors
fixes no order of several, and equal policies shall be equal files.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from besteffort.digests import array_digest
from besteffort.errors import InputError
from besteffort.files import write_bytes
from besteffort.observation import Feature, check_feature, input_size
from besteffort.situation import Cluster, Deadline, Situation
from besteffort.version import __version__
from besteffort.weights import Weights, split

FORMAT = 2
"""Version of the file format; it grows when an older or a newer reader would misread a file. Others are refused."""

_ENTRY = "besteffort"
_PER_MODEL = ("batch_sizes", "smallest_batch")
_ALWAYS_GIVEN = ("task", "batch_sizes", "arrival_rate")


_ZERO = np.zeros((), np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """A trained router, and what it was trained for.

    Attributes:
      models: names of the models, in the order of the network's outputs.
      tasks: names of the tasks, in the order of the one-hot code.
      features: the network's input, part by part.
      weights: per layer a kernel (in, out) and a bias (out,), float32; ReLU between layers; the last gives Q-values.
      deadlines: one per task.
      cluster: the cluster that it was trained for.
      rate_tau_s: time constant in seconds of the rate estimate that it expects, see `besteffort.observation.next_rate`.
      profile_name: name of the profile that it was trained on.
      profile_digest: that profile's digest.
      training: the training configuration, plain JSON values.
      ensemble_size: how many networks `weights` hold side by side, see `besteffort.weights.merge`.
      version: version of the package that wrote it.

    Raises:
      InputError: if the parts do not fit together, or a weight is not finite.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    features: tuple[Feature, ...]
    weights: Weights
    deadlines: tuple[Deadline, ...]
    cluster: Cluster
    rate_tau_s: float
    profile_name: str
    profile_digest: str
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ensemble_size: int = 1
    version: str = __version__

    # Derived for speed. Every layer has one more unit, which is always 1, so that biases are rows of the kernels; the
    # first kernel is per task, with the task's row in its bias.
    _first: dict[str, np.ndarray] = dataclasses.field(init=False, repr=False)
    _rest: tuple[np.ndarray, ...] = dataclasses.field(init=False, repr=False)
    _inputs: tuple[tuple[str, bool, bool, float], ...] = dataclasses.field(init=False, repr=False)
    _further: frozenset[str] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        weights = tuple((np.asarray(w, np.float32), np.asarray(b, np.float32)) for w, b in self.weights)
        object.__setattr__(self, "weights", weights)
        self._check()
        kernel, bias = weights[0]
        task_bias = dict.fromkeys(self.tasks, bias)
        rows = []
        inputs = []
        start = 0
        for feature in self.features:
            stop = start + feature.size
            if feature.name == "task":
                task_bias = {task: bias + kernel[start + i] for i, task in enumerate(self.tasks)}
            else:
                rows.append(kernel[start:stop])
                inputs.append((feature.name, feature.name in _PER_MODEL, feature.transform == "log1p", feature.scale))
            start = stop
        first = np.concatenate(rows) if rows else np.zeros((0, len(bias)), np.float32)
        last = len(weights) == 1
        object.__setattr__(self, "_first", {task: _with_one(first, row, last) for task, row in task_bias.items()})
        rest = (_with_one(*layer, i == len(weights) - 1) for i, layer in enumerate(weights[1:], start=1))
        object.__setattr__(self, "_rest", tuple(rest))
        object.__setattr__(self, "_inputs", tuple(inputs))
        object.__setattr__(self, "_further", frozenset(f.name for f in self.features) - frozenset(_ALWAYS_GIVEN))

    def decide(
        self, *, task: str, batch_sizes: Mapping[str, int] | Sequence[int], arrival_rate: float, **further: Any
    ) -> str:
        """Name of the model that shall answer a request.

        Args:
          task: name of the request's task.
          batch_sizes: per model, by name or in the order of `models`, the requests running and waiting on all replicas,
            without this one.
          arrival_rate: the rate estimate in requests per second, see `besteffort.observation.next_rate`.
          **further: its further features by name: `deadline_s`, `since_change_s`, `smallest_batch` (per model); see
            `besteffort.observation.Observation`.

        Raises:
          InputError: on an unknown task, a value that is missing, negative or not finite, or a feature that is not its.
        """
        return self.models[
            self.values(task=task, batch_sizes=batch_sizes, arrival_rate=arrival_rate, **further).argmax()
        ]

    def values(
        self, *, task: str, batch_sizes: Mapping[str, int] | Sequence[int], arrival_rate: float, **further: Any
    ) -> np.ndarray:
        """(models,) float32 Q-values; arguments and errors as `decide`."""
        if further.keys() != self._further:
            raise self._wrong_features(further)
        first = self._first.get(task)
        if first is None:
            raise InputError(f"The policy does not know the task `{task}`; it was trained for {', '.join(self.tasks)}.")
        further["batch_sizes"] = batch_sizes
        further["arrival_rate"] = arrival_rate
        hidden: np.ndarray = self._encode(further).dot(first)
        for kernel in self._rest:
            np.maximum(hidden, _ZERO, out=hidden)
            hidden = hidden.dot(kernel)
        return hidden

    def check_fits(self, situation: Situation) -> None:
        """Checks that the policy can route in a situation.

        Raises:
          InputError: if the situation has other models, tasks (or an other order of these) or features, or another time
            constant of the rate estimate.
        """
        models, tasks = situation.profile.model_names, situation.task_names
        for what, own, other in (("models", self.models, models), ("tasks", self.tasks, tasks)):
            if own != other:
                raise InputError(
                    f"The policy was trained for the {what} {', '.join(own)} in this order, not {', '.join(other)}; "
                    f"train one for these {what} or choose a situation that has the policy's."
                )
        features = tuple(feature.name for feature in self.features)
        if features != situation.view.features:
            raise InputError(
                f"The policy's features are {', '.join(features)}, but `view.features` of the situation is "
                f"{', '.join(situation.view.features)}; set `view.features` to the policy's."
            )
        if self.rate_tau_s != situation.view.rate_tau_s:
            raise InputError(
                f"The policy expects a rate estimate over {self.rate_tau_s:g} s, but `view.rate_tau_s` of the "
                f"situation is {situation.view.rate_tau_s:g}; set it to the policy's."
            )

    def _encode(self, given: Mapping[str, Any]) -> np.ndarray:
        """(inputs + 1,) float32 network input and a 1, as `besteffort.observation.encode` but for the task."""
        numbers = []
        for name, per_model, log1p, scale in self._inputs:
            values = self._per_model(name, given[name]) if per_model else (given[name],)
            for value in values:
                if not 0.0 <= value < math.inf:
                    raise InputError(f"`{name}` has the value {value}; it must be a number, at least 0 and finite.")
                numbers.append(math.log1p(value / scale) if log1p else value / scale)
        numbers.append(1.0)
        return np.array(numbers, np.float32)

    def _per_model(self, name: str, values: Mapping[str, int] | Sequence[int]) -> Sequence[int]:
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
            return InputError(f"The policy also needs {', '.join(f'`{name}`' for name in missing)}; pass it by name.")
        unknown = min(further.keys() - self._further)
        names = ", ".join(feature.name for feature in self.features)
        return InputError(f"`{unknown}` is no feature of this policy, leave it out; its features are {names}.")

    def _check(self) -> None:
        for what, names in (("models", self.models), ("tasks", self.tasks)):
            if not names or len(set(names)) != len(names):
                raise InputError(f"Policy: `{what}` must list at least one name and none twice.")
        if len(self.deadlines) != len(self.tasks):
            raise InputError(f"Policy: {len(self.deadlines)} deadlines for {len(self.tasks)} tasks; give one per task.")
        if not (math.isfinite(self.rate_tau_s) and self.rate_tau_s > 0):
            raise InputError(f"Policy: `rate_tau_s` is {self.rate_tau_s}; it must be positive.")
        sizes = {"task": len(self.tasks), **dict.fromkeys(_PER_MODEL, len(self.models))}
        for feature in self.features:
            check_feature(feature, "Policy")
            if feature.size != sizes.get(feature.name, 1) or (feature.name == "task") != (
                feature.transform == "one_hot"
            ):
                raise InputError(
                    f"Policy: feature `{feature.name}` has a size or transform that does not fit; export it again."
                )
        if len({feature.name for feature in self.features}) != len(self.features):
            raise InputError("Policy: a feature is listed twice; list each once.")
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
        if self.ensemble_size < 1:
            raise InputError(f"Policy: `ensemble_size` is {self.ensemble_size}; it must be at least 1.")
        split(self.weights, self.ensemble_size)


def save_policy(policy: Policy, path: str | Path) -> None:
    """Writes a policy file, wholly or not at all; equal policies give equal files.

    Raises:
      InputError: if the place cannot be written.
    """
    tensors = {}
    for i, (kernel, bias) in enumerate(policy.weights):
        tensors[f"layers.{i}.kernel"] = np.ascontiguousarray(kernel)
        tensors[f"layers.{i}.bias"] = np.ascontiguousarray(bias)
    metadata = {"format": FORMAT, **describe(policy)}
    text = json.dumps({**metadata, "sha256": _digest(metadata, tensors)})
    write_bytes(path, safetensors.numpy.save(tensors, {_ENTRY: text}))


def describe(policy: Policy) -> dict[str, Any]:
    """All of a policy but its weights, as a reader of its file gets it back: plain JSON values."""
    metadata = {
        "version": policy.version,
        "models": list(policy.models),
        "tasks": list(policy.tasks),
        "features": [dataclasses.asdict(feature) for feature in policy.features],
        "deadlines": [dataclasses.asdict(deadline) for deadline in policy.deadlines],
        "cluster": dataclasses.asdict(policy.cluster),
        "rate_tau_s": policy.rate_tau_s,
        "profile": {"name": policy.profile_name, "digest": policy.profile_digest},
        "training": dict(policy.training),
        "ensemble_size": policy.ensemble_size,
    }
    values: dict[str, Any] = json.loads(_canonical(metadata))
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
    path = Path(path)
    metadata, tensors = _read(path)
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path}: `format` is {metadata.get('format')}, this version of besteffort reads {FORMAT}; "
            "use the version that wrote the file, or train the policy again with `besteffort train`."
        )
    if metadata.pop("sha256", None) != _digest(metadata, tensors):
        raise InputError(f"{path}: weights or metadata were changed after it was written; export the policy again.")
    try:
        policy = Policy(
            models=tuple(metadata["models"]),
            tasks=tuple(metadata["tasks"]),
            features=tuple(Feature(**feature) for feature in metadata["features"]),
            weights=tuple(
                (tensors[f"layers.{i}.kernel"], tensors[f"layers.{i}.bias"]) for i in range(len(tensors) // 2)
            ),
            deadlines=tuple(Deadline(**deadline) for deadline in metadata["deadlines"]),
            cluster=Cluster(**metadata["cluster"]),
            rate_tau_s=metadata["rate_tau_s"],
            profile_name=metadata["profile"]["name"],
            profile_digest=metadata["profile"]["digest"],
            training=metadata["training"],
            ensemble_size=metadata["ensemble_size"],
            version=metadata["version"],
        )
        if situation is not None:
            policy.check_fits(situation)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: the metadata are not a policy's ({error}); export the policy again.") from error
    return policy


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_ENTRY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such policy file; check the path.") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{path}: not a whole policy file (cut short or damaged?); copy or export it again."
        ) from error
    try:
        metadata = json.loads(text or "")
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: a safetensors file, but without a policy's metadata; export the policy again.")
    return metadata, tensors


def _canonical(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    return array_digest(sorted(tensors.items()), start=_canonical(metadata))


def _with_one(kernel: np.ndarray, bias: np.ndarray, last: bool) -> np.ndarray:
    """(inputs + 1, outputs + 1) kernel whose last input, always 1, carries the bias and, unless `last`, goes on."""
    rows = np.concatenate([kernel, bias[None]])
    if last:
        return rows
    one = np.zeros((len(rows), 1), np.float32)
    one[-1] = 1.0
    return np.concatenate([rows, one], axis=1)
