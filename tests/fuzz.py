"""Damaged logs, policy files and checkpoints for minutes each: read or refused in one sentence, no gigabyte.

    python -m tests.fuzz [--minutes 10] [--only Mooncake policies ...]

The minutes are processor time, of each format of logs, of `--columns`, of policy files and of checkpoints. A failure
is told with its seed, which brings it back.
"""

from __future__ import annotations

import argparse
import collections
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from besteffort.runs.config import load_situation
from tests.test_fuzz import check_checkpoint, check_policy, policy_files
from tests.workload.readers.test_fuzz import TEXTS, check_columns, check_reader

GIGABYTE = 2**20  # in the kilobytes that the system counts

Check = Callable[[int], bool]


def checks(folder: Path) -> dict[str, Check]:
    """What is damaged and checked, by name. Each takes a seed, and says whether the file was read."""
    situation = load_situation("paper")
    contents = policy_files(folder / "policy.safetensors")

    def of(name: str) -> Check:
        return lambda seed: check_reader(name, seed, folder / "damaged.txt", situation)

    return {name: of(name) for name in TEXTS} | {
        "columns": lambda seed: check_columns(seed, folder / "damaged.csv"),
        "policies": lambda seed: check_policy(seed, contents, folder / "damaged.safetensors"),
        "checkpoints": lambda seed: check_checkpoint(seed, folder / "damaged.npz"),
    }


def fuzz(name: str, check: Check, seconds: float, chance: random.Random) -> int:
    """The number of different failures of one check within seconds of processor time; they are told."""
    ended: collections.Counter[bool] = collections.Counter()
    failures: collections.Counter[str] = collections.Counter()
    until = time.process_time() + seconds
    while time.process_time() < until:
        seed = chance.getrandbits(62)
        try:
            with warnings.catch_warnings():
                if name != "checkpoints":  # NumPy warns of what it casts there
                    warnings.simplefilter("error")
                ended[check(seed)] += 1
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}"
            if kind not in failures:
                sys.stdout.write(f"{name}, seed {seed}: {error!r:.300}\n")
            failures[kind] += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(
        f"{name}: {ended[True]:,} read, {ended[False]:,} refused, failures {dict(failures)}, "
        f"memory at most {peak // 1024:,} MiB\n"
    )
    sys.stdout.flush()
    return len(failures) + (peak > GIGABYTE)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        every = checks(Path(folder))
        chosen = [name for name in every if given.only is None or name in given.only]
        chance = random.Random(given.seed)
        return 1 if sum(fuzz(name, every[name], 60 * given.minutes, chance) for name in chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
