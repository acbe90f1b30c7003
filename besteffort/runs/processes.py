"""Commands side by side in a few local processes, each on its own: what happens to one leaves the others alone."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from besteffort import interrupts
from besteffort.device import cores
from besteffort.errors import InputError
from besteffort.files import os_errors_as_input_errors

_LOOK_S = 0.05
_GRACE_S = 1.0

# Runs before each command. Linux then kills the command when its parent is gone, however that ended; without it, a
# parent that is killed and started again would meet its own children at work on the same files.
_START = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, see prctl(2)
    if os.getppid() != int(parent):
        os._exit(1)
try:
    os.execvp(command[0], command)
except OSError as error:
    print(f"{command[0]}: {error.strerror}", flush=True)
    os._exit(127)
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """A command to run.

    Attributes:
      name: tells it from the other jobs.
      command: program and arguments.
      log: file that holds what it prints, standard error included; written anew.
    """

    name: str
    command: tuple[str, ...]
    log: Path


@dataclasses.dataclass(frozen=True)
class JobProgress:
    """What a job has just done: it has printed a line, or it has ended.

    Attributes:
      job: the job.
      line: the line, without its end; None where the job has ended.
      status: its exit status; None where it has printed a line, or was stopped early.
    """

    job: Job
    line: str | None = None
    status: int | None = None


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    *,
    directory: Path | None = None,
    progress: Callable[[JobProgress], None] | None = None,
) -> dict[str, int]:
    """Runs the jobs in their order, `workers` at a time, and waits for all of them.

    The processes share the cores: `NPROC` limits the threads of JAX in each, unless it is set already. They also share
    a GPU, which JAX else takes whole (`XLA_PYTHON_CLIENT_PREALLOCATE`). An exception, of a callback or from the
    keyboard, ends all processes and all that they have started.

    Args:
      jobs: what to run; names differ.
      workers: processes at a time.
      directory: where they run; by default here.
      progress: called in this thread with each line that a job prints, as it comes, and when a job has ended.

    Returns:
      The exit status of each job by name: 0 if all went well, 127 if there is no such command, `-n` if signal `n`
      ended it (9 from a system that is out of memory, 6 from a program that gave up).

    Raises:
      InputError: if two jobs have one name, `workers` is not positive, or a log cannot be written.
    """
    names = check_jobs(jobs)
    if workers < 1:
        raise InputError(f"The jobs shall run in {workers} processes; give at least 1.")
    report = progress or (lambda each: None)
    environment = _shared(min(workers, max(1, len(jobs))))
    waiting = deque(jobs)
    running: list[_Running] = []
    statuses: dict[str, int] = {}
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or running:
                interrupts.check()
                while waiting and len(running) < workers:
                    running.append(_Running(waiting.popleft(), environment, directory))
                    selector.register(running[-1].output, selectors.EVENT_READ, running[-1])
                for key, _ in selector.select(_LOOK_S):
                    for line in key.data.lines():
                        report(JobProgress(key.data.job, line=line))
                    if key.data.closed:
                        selector.unregister(key.fileobj)
                for one in [one for one in running if one.process.poll() is not None]:
                    for line in one.lines(to_the_end=True):
                        report(JobProgress(one.job, line=line))
                    if one.output in selector.get_map():
                        selector.unregister(one.output)
                    one.close()
                    running.remove(one)
                    statuses[one.job.name] = one.process.returncode
                    report(JobProgress(one.job, status=one.process.returncode))
        finally:
            _end(running)
    return {name: statuses[name] for name in names}


def check_jobs(jobs: Sequence[Job]) -> list[str]:
    """The names of jobs.

    Raises:
      InputError: if two jobs have one name.
    """
    names = [job.name for job in jobs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"Two jobs have the name `{name}`; give each its own.")
    return names


class _Running:
    """A job's process, and what of its output has come."""

    def __init__(self, job: Job, environment: dict[str, str], directory: Path | None) -> None:
        self.job = job
        self.closed = False
        self._partial = b""
        with os_errors_as_input_errors(job.log):
            self._log: BinaryIO = job.log.open("wb")
        # A session of its own: the keyboard interrupts this process, which then ends the whole group.
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, str(os.getpid()), *job.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=directory,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        os.set_blocking(self.output.fileno(), False)

    def lines(self, *, to_the_end: bool = False) -> Iterator[str]:
        """Lines that have come since the last call; `to_the_end`, also what has no line's end."""
        while not self.closed:
            try:
                piece = os.read(self.output.fileno(), 1 << 16)
            except BlockingIOError:
                break
            self.closed = not piece
            self._log.write(piece)
            *whole, self._partial = (self._partial + piece).split(b"\n")
            yield from map(_text, whole)
            if not to_the_end:
                break
        self._log.flush()
        if (self.closed or to_the_end) and self._partial:
            yield _text(self._partial)
            self._partial = b""

    def close(self) -> None:
        self.output.close()
        self._log.close()


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")


def _shared(processes: int) -> dict[str, str]:
    """The environment of each of so many processes."""
    environment = {"PYTHONUNBUFFERED": "1", **os.environ}
    if processes > 1:
        environment.setdefault("NPROC", str(max(1, cores() // processes)))
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return environment


def _end(running: Sequence[_Running]) -> None:
    """Ends processes and all that they have started, at first politely."""
    try:
        _signal(running, signal.SIGTERM)
        until = time.monotonic() + _GRACE_S
        while any(one.process.poll() is None for one in running) and time.monotonic() < until:
            time.sleep(_LOOK_S)
    finally:
        _signal(running, signal.SIGKILL)
        for one in running:
            one.process.wait()
            one.close()


def _signal(running: Sequence[_Running], number: signal.Signals) -> None:
    for one in running:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(one.process.pid, number)
