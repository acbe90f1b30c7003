"""Checkpoints of a training run: one self-describing `.npz` file that is replaced atomically.

A run that is killed at any time leaves either the previous checkpoint or the new one, never a part of one. The one
before is kept beside it, and used where the newest is damaged: a run continues from either to the same end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from besteffort.errors import InputError, brief
from besteffort.files import os_errors_as_input_errors, replacing

FORMAT = 1

Metrics = dict[str, np.ndarray]


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_name(f"previous-{path.name}")


def exists(path: Path) -> bool:
    """Whether there is a checkpoint, or the one before it."""
    return path.exists() or previous(path).exists()


def save(path: Path, state: Any, metrics: Metrics, identity: Mapping[str, str]) -> None:
    """Writes `state` (a pytree of arrays and typed keys), `metrics` and the `identity` of the training to `path`.

    Raises:
      InputError: if the file cannot be written; an earlier checkpoint then stays.
    """
    header = json.dumps({"format": FORMAT, "identity": dict(identity)})
    arrays: dict[str, Any] = {f"state{name}": _to_numpy(leaf) for name, leaf in _named_leaves(state)}
    arrays |= {f"metrics/{name}": values for name, values in metrics.items()}
    with replacing(path) as file:
        np.savez(file, header=np.array(header), **arrays)
        _keep(path)


def end(path: Path) -> None:
    """Removes the checkpoint before the last one of a training that is done."""
    with contextlib.suppress(OSError):
        previous(path).unlink(missing_ok=True)


def _keep(path: Path) -> None:
    """Keeps the checkpoint at `path` as the one before, where the file system has links; `path` stays."""
    before = previous(path)
    temporary = path.with_name(f".{before.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
        temporary.replace(before)


def load(path: Path, like: Any, identity: Mapping[str, str]) -> tuple[Any, Metrics]:
    """Returns the state and metrics that `save` wrote; `like` has the structure, shapes and dtypes of the state.

    Where the newest checkpoint is missing or damaged, a warning says so and the one before serves.

    Raises:
      InputError: if neither can be read, or both are damaged; if one is of another format, or belongs to a different
        training.
    """
    before = previous(path)
    try:
        return _load(path, like, identity)
    except _DamagedError as error:
        if not before.exists():
            raise
        try:
            found = _load(before, like, identity)
        except _DamagedError:
            raise error from None
        if path.exists():
            warnings.warn(f"{path}: the checkpoint is damaged, so the one before it serves.", stacklevel=2)
            with os_errors_as_input_errors(path):
                before.replace(path)
        return found


class _DamagedError(InputError):
    """A file that is no whole checkpoint."""


def _load(path: Path, like: Any, identity: Mapping[str, str]) -> tuple[Any, Metrics]:
    try:
        with path.open("rb") as raw:
            _check_sizes(raw)
            with np.load(raw, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                _check(path, header, identity)
                names = [f"state{name}" for name, _ in _named_leaves(like)]
                leaves = [
                    _from_numpy(file[name], leaf) for name, leaf in zip(names, jax.tree.leaves(like), strict=True)
                ]
                metrics = {
                    name.removeprefix("metrics/"): file[name] for name in file.files if name.startswith("metrics/")
                }
        lengths = {len(values) for values in metrics.values()}
        if len(lengths) > 1 or not all(values.dtype.kind in "biuf" for values in metrics.values()):
            raise ValueError("metrics of different lengths or kinds")
    except InputError:
        raise
    except OSError as error:
        if error.errno == errno.EINVAL:  # a place that no file has
            raise _DamagedError(_damage(path)) from error
        reason = (error.strerror or str(error)).lower()
        raise _DamagedError(f"{path}: cannot read the checkpoint, {reason}; mend that or delete it.") from error
    # A file with crafted contents makes the libraries that read it raise anything at all.
    except Exception as error:
        raise _DamagedError(_damage(path)) from error
    return jax.tree.unflatten(jax.tree.structure(like), leaves), metrics


def _damage(path: Path) -> str:
    return f"{path}: the checkpoint is damaged or no checkpoint; delete it to start afresh."


def _check_sizes(raw: BinaryIO) -> None:
    """Raises `ValueError` unless the parts of an archive are as large as it says and stored as they are.

    Archives that we write are not compressed, so none of them holds more than its file does.
    """
    size = raw.seek(0, os.SEEK_END)
    raw.seek(0)
    with zipfile.ZipFile(raw) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED or part.file_size > size:
                raise ValueError(f"{part.filename} is compressed")
            with archive.open(part) as stream:
                version = np.lib.format.read_magic(stream)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = read[version](stream)
                if math.prod(shape) * dtype.itemsize > size:
                    raise ValueError(f"{part.filename} is shorter than it says")
    raw.seek(0)


def extended(metrics: Metrics, latest: Metrics) -> Metrics:
    """Metrics with those of one more point."""
    if not metrics:
        return {name: values[None] for name, values in latest.items()}
    return {name: np.concatenate([metrics[name], values[None]]) for name, values in latest.items()}


def _check(path: Path, header: Mapping[str, Any], identity: Mapping[str, str]) -> None:
    if type(header["format"]) is not int or not isinstance(header["identity"], dict):
        raise ValueError("no header of a checkpoint")
    if header["format"] != FORMAT:
        raise InputError(
            f"{path}: the checkpoint has format {header['format']}, this version reads {FORMAT}; "
            "continue with the version that wrote it, or delete it to start afresh."
        )
    saved = header["identity"]
    for name in [*identity, *saved]:
        if saved.get(name) != identity.get(name):
            raise InputError(
                f"{path}: the checkpoint is of a training with {name} {brief(saved.get(name))}, but this one has "
                f"{identity.get(name)}; give the same settings to continue it, or another directory."
            )


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves, named by their paths in the tree, such as `/runs/learner/online`."""
    return [
        ("/" + jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _to_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _from_numpy(array: np.ndarray, like: Any) -> jax.Array:
    # A copy: JAX may otherwise share memory with the NumPy array, and training donates its buffers.
    values = jnp.array(array, copy=True)
    value = jax.random.wrap_key_data(values, impl=jax.random.key_impl(like)) if _is_key(like) else values
    if value.shape != like.shape or value.dtype != like.dtype:
        raise ValueError(f"{value.shape} {value.dtype} in place of {like.shape} {like.dtype}")
    return value


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
