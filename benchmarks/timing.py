"""Side-by-side timing: every case is run once per round, so that a machine that slows down slows all of them alike."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track

from besteffort.device import cores, cpu_name


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to time.

    Attributes:
      row, column: its place in the table.
      work: decisions, steps or requests that one run gets through.
      run: does the work once and returns when it is done; takes the number of the round.
      compile_s: what it took to compile, None if nothing was compiled for this case.
    """

    row: str
    column: str
    work: int
    run: Callable[[int], Any]
    compile_s: float | None = None


@dataclasses.dataclass(frozen=True)
class Speed:
    """Work per second over the rounds.

    Attributes:
      median, slowest, fastest: of the rounds, in work per second.
      compile_s: see `Case`.
    """

    median: float
    slowest: float
    fastest: float
    compile_s: float | None = None


Speeds = dict[str, dict[str, Speed]]
"""Row, then column."""


def measure(
    cases: Sequence[Case], rounds: int, console: Console, clock: Callable[[], float] = time.perf_counter
) -> Speeds:
    """Times all cases in turn, `rounds` times over, every other time in reverse order.

    `time.process_time` as the clock does not count what else runs on the machine; for what keeps to one thread.
    """
    rates: list[list[float]] = [[] for _ in cases]
    order = list(zip(cases, rates, strict=True))
    for number in track(range(rounds), "timing", console=console):
        for case, found in order if number % 2 == 0 else reversed(order):
            start = clock()
            case.run(number)
            found.append(case.work / (clock() - start))
    speeds: Speeds = {}
    for case, found in order:
        speed = Speed(statistics.median(found), min(found), max(found), case.compile_s)
        speeds.setdefault(case.row, {})[case.column] = speed
    return speeds


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keeps to one core meanwhile, where the system can; JAX, if it starts there, has one thread for good."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(every)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)


def machine(*packages: str) -> dict[str, Any]:
    """What figures are measured on, with the versions of `packages`."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }
