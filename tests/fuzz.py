"""Damaged logs, policy files and checkpoints for minutes each: read or refused in one sentence, no gigabyte.

    pip install -e ".[test,fuzz]"
    python -m tests.fuzz [--minutes 10] [--only mooncake policies ...] [--workers 2]

Atheris sees which lines of the package a file reaches; what reaches new ones is kept and damaged further. The minutes
are processor time, for each reader of logs, `--columns`, policy files and checkpoints. What was kept lies under
`--folder` and is where the next run starts; so does every file that failed, which `--file` brings back:

    python -m tests.fuzz --only mooncake --file runs/fuzz/mooncake/failures/0
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import io
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import atheris
import numpy as np

with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["besteffort"]):  # names each
    from tests.fuzz_targets import Target, targets

MEGABYTES = 1024
UNCHANGED = 0.3  # of damaged files, those made from an original: what was kept is damaged beyond reading more and more


def free_comparisons() -> None:
    """Frees arrays that comparisons give, to which Atheris 3.0.0 keeps a reference: readers make megabytes of them."""
    traced = atheris._trace_cmp

    def compare(*arguments: Any) -> Any:
        result = traced(*arguments)
        if isinstance(result, np.ndarray) and sys.getrefcount(result) > 2:  # its name here and the argument
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(result))
        return result

    atheris._trace_cmp = compare


def checked(target: Target, content: bytes) -> bool:
    """Whether a file is read. Raises what is wrong, and warnings."""
    with warnings.catch_warnings():
        if not target.casts:
            warnings.simplefilter("error")
        return target.check(content)


def fuzz(name: str, target: Target, seconds: float, folder: Path) -> None:
    """Damages files of one target for seconds of processor time, then ends the process: with 1 if there were failures.

    libFuzzer, on which Atheris stands, ends it too if a file takes a minute or memory goes beyond a gigabyte.
    """
    corpus, failing = folder / "corpus", folder / "failures"
    for made in (corpus, failing):
        made.mkdir(parents=True, exist_ok=True)
    for number, original in enumerate(target.originals):
        (corpus / f"original-{number}").write_bytes(original)
    ended: collections.Counter[bool] = collections.Counter()
    failures: collections.Counter[str] = collections.Counter()
    until = time.process_time() + seconds

    def one(content: bytes) -> None:
        if not ended and not failures:  # Atheris puts its own in place just before
            free_comparisons()
        try:
            ended[checked(target, content)] += 1
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}"
            if kind not in failures:
                path = failing / str(len(failures))
                path.write_bytes(content)
                sys.stdout.write(f"{name}, {path}: {error!r:.300}\n")
            failures[kind] += 1
        if time.process_time() > until:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            sys.stdout.write(
                f"{name}: {ended[True]:,} read, {ended[False]:,} refused, failures {dict(failures)}, "
                f"{len(list(corpus.iterdir())):,} files kept, memory at most {peak:,} MiB\n"
            )
            sys.stdout.flush()
            os._exit(1 if failures else 0)  # libFuzzer has no other end that is not a failure

    def damage(content: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < UNCHANGED:
            content = target.damage(chance.choice(target.originals), chance)
        elif chance.random() < 0.5:
            content = target.damage(content, chance)
        else:
            content = atheris.Mutate(content, max(len(content), 1))
        return content[:most]

    longest = 4 * max(map(len, target.originals))
    options = ("-verbosity=0", f"-rss_limit_mb={MEGABYTES}", "-timeout=60", f"-max_len={longest}")
    atheris.Setup([name, str(corpus), *options, f"-artifact_prefix={failing}/"], one, custom_mutator=damage)
    atheris.Fuzz()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--file", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as written:
        every = targets(Path(written))
        unknown = set(given.only or ()) - every.keys()
        if unknown:
            parser.error(f"--only has {', '.join(sorted(unknown))}; choose from {', '.join(every)}")
        chosen = list(given.only or every)
        if given.file is not None:
            for name in chosen:
                sys.stdout.write(f"{name}: {'read' if checked(every[name], given.file.read_bytes()) else 'refused'}\n")
            return 0
        if len(chosen) == 1:  # a process has one corpus, one peak of memory, and one end
            fuzz(chosen[0], every[chosen[0]], 60 * given.minutes, given.folder / chosen[0])

        def alone(name: str) -> int:
            options = ("--only", name, "--minutes", str(given.minutes), "--folder", str(given.folder))
            command = (sys.executable, "-m", "tests.fuzz", *options)
            log = given.folder / name / "libfuzzer.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            # Its abrupt end leaves its files, which go with this process's.
            with log.open("w") as said:
                done = subprocess.run(command, check=False, stderr=said, env={**os.environ, "TMPDIR": written})
            if done.returncode not in (0, 1):
                sys.stdout.write(f"{name}: ended with {done.returncode}; {log} says why, the file lies beside it\n")
            return done.returncode

        with ThreadPoolExecutor(given.workers) as pool:
            return int(any(list(pool.map(alone, chosen))))


if __name__ == "__main__":
    sys.exit(main())
