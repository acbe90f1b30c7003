"""Fields of configurations that had another name in an earlier version."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from besteffort.errors import InputError

RENAMED = {
    "training.config.hidden": "training.config.hidden_sizes",
    "training.config.envs": "training.config.num_envs",
    "training.config.chunk": "training.config.rollout_length",
    "training.config.updates": "training.config.updates_per_rollout",
    "training.config.batch": "training.config.batch_size",
    "training.config.ring": "training.config.buffer_length",
    "training.config.settle": "training.config.min_age",
    "training.config.run": "training.config.n_step",
    "training.config.log_chunks": "training.config.log_interval",
    "training.config.committee": "training.config.ensemble_size",
}
"""Dotted fields of version 0.1, and what they are called now."""


def refuse_renamed_fields(data: Any, where: str) -> None:
    """Refuses a configuration, plain data read from `where`, that has a field by its former name.

    Raises:
      InputError: naming the field and its present name.
    """
    refuse_renamed(_fields(data), where)


def refuse_renamed(names: Iterable[str], where: str) -> None:
    """Refuses dotted names of fields, read from `where`, of which one is a former name.

    Raises:
      InputError: naming the field and its present name.
    """
    for name in names:
        if name in RENAMED:
            raise InputError(f"{where}: `{name}` is now called `{RENAMED[name]}`; rename it.")


def _fields(data: Any, before: str = "") -> Iterable[str]:
    """Dotted names of all fields of nested mappings."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield f"{before}{key}"
            yield from _fields(value, f"{before}{key}.")
