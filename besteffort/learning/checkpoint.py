"""Checkpoints of a training run: one self-describing `.npz` file that is replaced atomically.

A run that is killed at any time leaves either the previous checkpoint or the new one, never a part of one.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from besteffort.errors import InputError
from besteffort.files import replacing

FORMAT = 1

Metrics = dict[str, np.ndarray]


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


def load(path: Path, like: Any, identity: Mapping[str, str]) -> tuple[Any, Metrics]:
    """Returns the state and metrics that `save` wrote; `like` has the structure, shapes and dtypes of the state.

    Raises:
      InputError: if the file cannot be read, is damaged, is of another format, or belongs to a different training.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            _check(path, header, identity)
            names = [f"state{name}" for name, _ in _named_leaves(like)]
            leaves = [_from_numpy(file[name], leaf) for name, leaf in zip(names, jax.tree.leaves(like), strict=True)]
            metrics = {name.removeprefix("metrics/"): file[name] for name in file.files if name.startswith("metrics/")}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: the checkpoint could not be read ({error.strerror or error}).") from error
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{path}: the checkpoint is damaged or no checkpoint; delete it to start afresh.") from error
    return jax.tree.unflatten(jax.tree.structure(like), leaves), metrics


def extended(metrics: Metrics, latest: Metrics) -> Metrics:
    """Metrics with those of one more point."""
    if not metrics:
        return {name: values[None] for name, values in latest.items()}
    return {name: np.concatenate([metrics[name], values[None]]) for name, values in latest.items()}


def _check(path: Path, header: Mapping[str, Any], identity: Mapping[str, str]) -> None:
    if header["format"] != FORMAT:
        raise InputError(
            f"{path}: the checkpoint has format {header['format']}, this version reads {FORMAT}; "
            "continue with the version that wrote it, or delete it to start afresh."
        )
    saved = header["identity"]
    for name in [*identity, *saved]:
        if saved.get(name) != identity.get(name):
            raise InputError(
                f"{path}: the checkpoint is of a training with {name} {saved.get(name)}, but this one has "
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
