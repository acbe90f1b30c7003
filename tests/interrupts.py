"""SIGINT at random moments of long commands: status 130 within five seconds, and the same files in the end.

    python -m tests.interrupts --moments 50

The moments are spread over the commands and over the time that each takes. After an interrupt the same command goes on
(`--resume`, where it takes that) and is interrupted again at the next moment; in the end it is left alone, and its
files are compared with those of a run that nobody interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

LIMIT_S = 5.0

CONFIG = """
profile: opt-a100
cluster: {replicas: 2, max_batch: 8, queue_capacity: 8}
tasks: [{name: piqa}, {name: arc_easy}]
training:
  config:
    decisions: 65536
    num_envs: 32
    rollout_length: 32
    buffer_length: 256
    batch_size: 64
    updates_per_rollout: 16
    log_interval: 4
    hidden_sizes: [8]
    ensemble_size: 2
  hyper: {target_interval: 256}
  history: 256
  search: {generations: 4, population: 4, lists: 1, requests: 400}
  selection_requests: 200
evaluation:
  loads: [0.5, 2.0]
  seeds: 2
  requests: 400
  tuning_seeds: 1
  tuning_requests: 200
  tuning_generations: 3
  tuning_population: 4
  warm_up_s: 0.1
"""
SWEEP = """
base: {base}
axes:
  training.hyper.learning_rate: [0.001, 0.002]
  cluster.replicas: [2, 3]
"""

# What tells of times, of the machine or of how often a run was begun.
_OF_THE_DAY = ("tensorboard", "log.txt", "logs", "ray", "seconds.json", "lock")


class Outcome(NamedTuple):
    """What an interrupt did.

    Attributes:
      command: name of the command.
      at_s: seconds after its start.
      took_s: seconds until its end.
      status: its exit status; 0 if it had ended before.
      said: the last line on standard error.
    """

    command: str
    at_s: float
    took_s: float
    status: int
    said: str

    @property
    def wrong(self) -> str:
        """What is wrong; empty if nothing is."""
        if self.status == 0:
            return ""
        if self.status != 130:
            return f"status {self.status}"
        if self.took_s > LIMIT_S:
            return f"{self.took_s:.1f} s"
        return "" if "interrupted" in self.said else f"it said `{self.said}`"


def commands(directory: Path) -> dict[str, list[str]]:
    """The commands by name, but for the directory that they write to."""
    config, sweep = directory / "config.yaml", directory / "sweep.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    sweep.write_text(SWEEP.format(base=config), encoding="utf-8")
    besteffort = [sys.executable, "-m", "besteffort"]
    return {
        "train": [*besteffort, "train", str(config)],
        "search": [*besteffort, "train", str(config), "--set", "training.method=search"],
        "quickstart": [*besteffort, "quickstart", "--config", str(config)],
        "sweep": [*besteffort, "sweep", str(sweep), "--workers", "1"],
        "reproduce": [*besteffort, "reproduce", "stable_load", "--fast"],
    }


def run(command: Sequence[str], out: Path, name: str, at_s: float | None) -> Outcome:
    """Runs a command, or goes on with it, and interrupts it after `at_s` seconds."""
    resume = ["--resume"] * (name != "reproduce" and out.exists())
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*command, "--out", str(out), *resume],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            process.wait(at_s)
            sent = time.monotonic()
        except subprocess.TimeoutExpired:
            sent = time.monotonic()
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        took = time.monotonic() - sent
        errors.seek(0)
        lines = [line for line in errors.read().splitlines() if line.strip()]
    return Outcome(name, sent - began, took, process.returncode, lines[-1] if lines else "")


def digests(out: Path) -> dict[str, str]:
    """What every file of a directory holds, but for what tells of the day."""
    return {
        str(path.relative_to(out)): hashlib.sha256(_content(path)).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not any(part in _OF_THE_DAY for part in path.relative_to(out).parts)
    }


def _content(path: Path) -> bytes:
    """What a file holds; of an experiment's record all but how long it took."""
    content = path.read_bytes()
    if path.suffix != ".json":
        return content
    found = json.loads(content)
    if isinstance(found, dict) and "experiment" in found:
        del found["seconds"]
    return json.dumps(found).encode()


def differing(one: Path, other: Path) -> list[str]:
    """Files of two directories whose content differs, or that one of them lacks."""
    those, these = digests(one), digests(other)
    differ = [path for path in sorted({*those, *these}) if those.get(path) != these.get(path)]
    return [path for path in differ if not path.endswith("claims.md")]


def interrupted(
    name: str, command: Sequence[str], directory: Path, moments: int, rng: np.random.Generator
) -> tuple[list[Outcome], list[str]]:
    """Interrupts a command at random moments; what came of each, and the files that differ in the end."""
    straight, out = directory / f"{name}-straight", directory / name
    whole = run(command, straight, name, None)
    if whole.status != 0:
        raise RuntimeError(f"{name} failed by itself: {whole.said}")
    outcomes = []
    while len(outcomes) < moments:
        # Some come while it still starts, most where a run that began anew is at work.
        outcomes.append(run(command, out, name, float(rng.uniform(0.0, whole.at_s))))
        if outcomes[-1].status == 0 and len(outcomes) < moments:
            outcomes.pop()  # it ended before; begin anew in another place
            out = directory / f"{name}-{len(list(directory.iterdir()))}"
    last = run(command, out, name, None)
    if last.status != 0:
        outcomes.append(last._replace(said=f"to the end: {last.said}"))
    return outcomes, differing(straight, out)


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """The command line; the status is 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="interrupts in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="names of commands")
    given = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as directory:
        known = commands(Path(directory))
        chosen = {name: known[name] for name in given.only or known}
        for index, (name, command) in enumerate(chosen.items()):
            share = len(range(index, given.moments, len(chosen)))
            rng = np.random.default_rng((given.seed, index))
            outcomes, differ = interrupted(name, command, Path(directory), share, rng)
            for each in outcomes:
                wrong += bool(each.wrong)
                tell(f"{name}: {each.at_s:.1f} s, status {each.status} after {each.took_s:.1f} s. {each.wrong}")
            wrong += len(differ)
            tell(f"{name}: files that differ: {', '.join(differ) or 'none'}")
    tell(f"{given.moments} interrupts, {wrong} mistakes")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
