"""What `tests.fuzz` damages: logs by their reader, tables for `--columns`, policy files and checkpoints."""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

from besteffort.runs.config import load_situation
from besteffort.workload.reading import read
from tests.test_fuzz import (
    check_checkpoint,
    check_policy,
    checkpoint_file,
    damaged_checkpoint,
    damaged_policy,
    policy_files,
)
from tests.workload.readers.test_fuzz import TABLE, TEXTS, check_columns, check_reader, damaged


@dataclasses.dataclass(frozen=True)
class Target:
    """One way to read files.

    Attributes:
      originals: files as they should be.
      damage: damages a file a little, in ways that know its format; any bytes will do.
      check: whether a file is read; fails if one that is not is refused otherwise than in one sentence.
      casts: whether NumPy may warn of what it casts.
    """

    originals: tuple[bytes, ...]
    damage: Callable[[bytes, random.Random], bytes]
    check: Callable[[bytes], bool]
    casts: bool = False


def targets(folder: Path) -> dict[str, Target]:
    """All targets by name, which for logs is that of the reader. Files are written to the folder."""
    situation = load_situation("paper")
    log, policy, checkpoint = folder / "log", folder / "policy.safetensors", folder / "checkpoint.npz"
    texts: dict[str, list[bytes]] = collections.defaultdict(list)
    for text in TEXTS.values():
        log.write_bytes(text.encode())
        texts[read(log, tasks=2).kind].append(text.encode())
    readers = {
        reader: Target(tuple(originals), damaged, lambda content: check_reader(content, log, situation))
        for reader, originals in texts.items()
    }
    return readers | {
        "columns": Target((TABLE.encode(),), damaged, lambda content: check_columns(content, log)),
        "policies": Target(tuple(policy_files(policy)), damaged_policy, lambda content: check_policy(content, policy)),
        "checkpoints": Target(
            (checkpoint_file(checkpoint),),
            damaged_checkpoint,
            lambda content: check_checkpoint(content, checkpoint),
            casts=True,
        ),
    }
