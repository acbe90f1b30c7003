"""Answers of commands, as text or as one JSON document, and their progress on standard error.

A document has the keys `besteffort` (the version), `command`, `tables`, `notes` and `files`, and further ones of its
command. Figures are shares or in SI units; a figure with an interval is `{"mean", "half_width"}`; null stands for a
number that is not finite.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from besteffort import interrupts
from besteffort.errors import InputError, printable
from besteffort.files import jsonable
from besteffort.version import __version__

if TYPE_CHECKING:
    from besteffort.evaluation.report import Table
    from besteffort.learning.train import Progress as TrainingProgress
    from besteffort.runs.training import TrainingProblem
    from besteffort.sweep.run import ProgramProgress

Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
"""An option that is off unless it is given."""

_EVERY_S = 60.0  # between two lines of progress where there is no terminal
_LOOK_S = 1.0  # between two looks whether a line is due
_UNCUT = 10_000  # columns where standard output is no terminal, so that no line is wrapped or cut


@dataclasses.dataclass(frozen=True)
class Output:
    """How to answer; options that commands share.

    Attributes:
      json: print one JSON document instead of text.
      quiet: print results and the files written only: no progress, tables or remarks.
    """

    json: Flag = False
    quiet: Flag = False


class Answer:
    """The answer of a command: text at once, or with `--json` one document at the end.

    Attributes:
      output: how to answer.
    """

    def __init__(self, command: str, output: Output) -> None:
        self.output = output
        self._tables: list[dict[str, Any]] = []
        self._notes: list[str] = []
        self._files: dict[str, Any] = {}
        self._data: dict[str, Any] = {}
        self._command = command
        self._to = sys.stdout
        if output.json:
            sys.stdout = sys.stderr  # prints of libraries do not belong to the document
        if output.quiet:
            logging.disable(logging.WARNING)
            warnings.simplefilter("ignore")

    def note(self, text: str) -> None:
        """A remark, in a sentence or more."""
        self._notes.append(text)
        if not self.output.quiet:
            self._print(text)

    def table(self, table: Table, brief: Table | None = None) -> None:
        """A table; `brief` is what a terminal shows of it."""
        if self.output.json:
            self._tables.append(table.as_data())
        elif not self.output.quiet:
            show(brief or table)

    def line(self, text: str) -> None:
        """A result that is a sentence, or a line of text that `data` has too."""
        self._print(text)

    def rows(self, rows: Sequence[tuple[str, str]], heading: str = "") -> None:
        """Names with their meanings, as text that `data` has too; with `--quiet` the names only."""
        if self.output.json:
            return
        if self.output.quiet:
            for name, _ in rows:
                self._print(name)
            return
        if heading:
            self._print(heading)
        indent = "  " if heading else ""
        column = max(len(name) for name, _ in rows)
        for name, meaning in rows:
            first = f"{indent}{name:<{column}}  "
            width = max(_console().width, len(first) + 20)
            self._print(
                textwrap.fill(
                    meaning, width, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False
                )
            )

    def data(self, **values: Any) -> None:
        """Further keys of the document."""
        self._data |= values

    def file(self, name: str, path: Path, remark: str = "") -> None:
        """A file that was written, with a remark on it for readers."""
        self._files[name] = path
        self._print(f"{name.replace('_', ' ').capitalize()}: {path}{remark}")

    def files(self, name: str, title: str, paths: Sequence[Path]) -> None:
        """Several files of one kind that were written; without a title in the document only."""
        self._files[name] = list(paths)
        if title:
            self._print(f"{title}: {', '.join(map(str, paths))}")

    @contextmanager
    def status(self, text: str) -> Iterator[Callable[[str], None]]:
        """Shows a text on standard error until the block ends; yields a function that changes the text.

        Where standard error is no terminal, the latest text stands there once a minute, whether it changes or not.
        """
        lines = _Lines(self.output)
        lines.begin(text)
        with lines.repeated(), _errors(self.output).status(text) as status:

            def change(latest: str) -> None:
                status.update(latest)
                lines.tell(latest)
                interrupts.check()

            yield change

    def finish(self) -> None:
        """Prints the document, if one is asked for."""
        if self.output.json:
            document = {
                "besteffort": __version__,
                "command": self._command,
                **self._data,
                "tables": self._tables,
                "notes": self._notes,
                "files": self._files,
            }
            self._to.write(json.dumps(jsonable(document), indent=2, allow_nan=False) + "\n")

    def _print(self, text: str) -> None:
        if not self.output.json:
            plain = "\n".join(map(printable, text.split("\n")))
            _console().print(plain, highlight=False, markup=False, soft_wrap=True)


@dataclasses.dataclass
class Ended:
    """How a block ended.

    Attributes:
      status: the exit status.
    """

    status: int = 0


@contextmanager
def exit_statuses(name: str) -> Iterator[Ended]:
    """Turns what ends a block early into a sentence on standard error, after the name of the program, and a status.

    The status is 2 for a user's mistake and for what the machine lacks, 130 for an interrupt, and 1 if the reader of
    standard output has left. Any other exception is a defect of ours, and passes.
    """
    ended = Ended()
    said = ""
    try:
        with interrupts.handled(name):
            yield ended
    except InputError as error:
        ended.status, said = 2, f"{name}: {error}"
    except KeyboardInterrupt:
        ended.status, said = interrupts.STATUS, interrupts.last_words(name)
    except BrokenPipeError:
        ended.status = 1
        drop_output()
    except (OSError, MemoryError, RuntimeError, AssertionError) as error:
        lacking = _lacking(error)
        if not lacking:
            raise
        ended.status, said = 2, f"{name}: {InputError(lacking)}"
        if isinstance(error, OSError) and error.filename is None:
            drop_output()
    if said:
        with suppress(OSError):
            sys.stderr.write(f"{said}\n")
            sys.stderr.flush()


def _lacking(error: OSError | MemoryError | RuntimeError | AssertionError) -> str:
    """What the machine lacks, by an exception that tells of it; empty for any other."""
    text = str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return "The memory does not suffice; ask for less at a time, or use a machine with more."
    if isinstance(error, OSError):
        where = error.filename if isinstance(error.filename, str) else "standard output"
        reason = (error.strerror or text).lower()
        return f"{where}: cannot use it, {reason}; mend that or choose another place."
    if "Unable to initialize backend" in text or (isinstance(error, AssertionError) and not _has_devices()):
        platforms = printable(os.environ.get("JAX_PLATFORMS", ""))
        return (
            f"JAX finds no device of the platform `{platforms}`, which `JAX_PLATFORMS` asks for; unset that variable "
            "or install JAX for that platform."
        )
    return ""


def _has_devices() -> bool:
    """Whether JAX, where it is in use, has the devices that the environment asks for; it may assert that it has."""
    jax = sys.modules.get("jax")
    try:
        return jax is None or bool(jax.devices())
    except (AssertionError, RuntimeError):
        return False


@contextmanager
def streams_restored() -> Iterator[None]:
    """Restores what an `Answer` changes for the whole process: standard output, logging and warnings.

    Warnings of this package are sentences for the user, and shown as such.
    """
    out, disabled, formatted = sys.stdout, logging.root.manager.disable, warnings.formatwarning

    def sentence(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any) -> str:
        if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parent):
            return f"besteffort: {printable(str(message))}\n"
        return formatted(message, category, filename, *rest, **more)

    with warnings.catch_warnings():
        try:
            warnings.formatwarning = sentence
            yield
        finally:
            sys.stdout = out
            logging.disable(disabled)
            warnings.formatwarning = formatted


def drop_output() -> None:
    """Discards what is left of standard output, so that the interpreter can exit after its reader has left."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def program_bars(programs: int, output: Output) -> Iterator[Callable[[ProgramProgress], None]]:
    """Progress bars of a sweep: one for all programs, and one for each that runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_errors(output)) as bars:
        total = bars.add_task("Programs", total=programs, figures="")
        running: dict[str, Any] = {}
        ended: list[str] = []
        lines = _Lines(output)

        def report(latest: ProgramProgress) -> None:
            if latest.ended:
                bars.update(total, advance=1)
                ended.append(latest.program)
                lines.tell(f"{len(ended)} of {programs} programs have ended", last=len(ended) == programs)
                if latest.program in running:
                    bars.remove_task(running.pop(latest.program))
                return
            if latest.program not in running:
                running[latest.program] = bars.add_task(f"Program {latest.program}", figures="")
            figures = f"mean reward {latest.reward:.3f}"
            bars.update(running[latest.program], completed=latest.point, total=latest.points, figures=figures)
            lines.tell(f"Program {latest.program}: {latest.point} of {latest.points}, {figures}", latest.program)

        yield report


class TrainingBars(NamedTuple):
    """What tells of trainings, and of other work between them.

    Attributes:
      training: takes the name of what is trained next and its problem, and returns what is to be called at log points.
      doing: takes what else is done next, in a few words.
    """

    training: Callable[[str, TrainingProblem], Callable[[TrainingProgress], None]]
    doing: Callable[[str], None]


@contextmanager
def training_bars(output: Output) -> Iterator[TrainingBars]:
    """Progress bars of trainings: log points, mean reward (over the seeds), decisions per second.

    Where standard error is no terminal, the latest stands there once a minute, whether it changes or not.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    lines = _Lines(output)
    with lines.repeated(), Progress(*columns, console=_errors(output)) as bars:

        def start(name: str, problem: TrainingProblem) -> Callable[[TrainingProgress], None]:
            training = problem.training
            networks = training.seeds * (training.config.ensemble_size if training.method == "dqn" else 1)
            task = bars.add_task(f"Training ({name})", total=None, figures="compiling")
            reported_s: list[float] = []

            def report(latest: TrainingProgress) -> None:
                reported_s.append(time.perf_counter())
                figures = f"mean reward {latest.metrics['reward'].mean():.3f}"
                if len(reported_s) > 1:
                    per_point = networks * float(latest.metrics["decisions"][0]) / latest.point
                    speed = per_point * (len(reported_s) - 1) / (reported_s[-1] - reported_s[0])
                    figures += f", {speed:,.0f} decisions/s"
                bars.update(task, completed=latest.point, total=latest.points, figures=figures)
                lines.tell(
                    f"Training ({name}): {latest.point} of {latest.points}, {figures}",
                    name,
                    last=latest.point == latest.points,
                )

            lines.tell(f"Training ({name}): compiling", name)
            return report

        others: list[Any] = []

        def doing(text: str) -> None:
            for other in others:
                bars.remove_task(other)
            others[:] = [bars.add_task(text, total=None, figures="")]
            lines.begin(text)
            interrupts.check()

        yield TrainingBars(start, doing)


def show(table: Table) -> None:
    """Prints a table on standard output, its columns in several parts where they do not fit side by side."""
    console = _console()
    for part in table.parts(console.width):
        console.print(part.terminal())


def _console() -> Console:
    """Standard output, as wide as the terminal, or without a limit where there is none."""
    return Console(width=None if sys.stdout.isatty() else _UNCUT)


def _errors(output: Output) -> Console:
    return Console(stderr=True, quiet=output.quiet or not sys.stderr.isatty())


class _Lines:
    """Progress as plain lines, at most one a minute of each kind; nothing on a terminal, which has bars."""

    def __init__(self, output: Output) -> None:
        self._silent = output.quiet or sys.stderr.isatty()
        self._told_s: dict[str, float] = {}
        self._latest = ("", "")

    def begin(self, text: str) -> None:
        """What is done from now on; its first line comes in a minute."""
        self._told_s[""] = time.monotonic()
        self._latest = (text, "")

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Tells the latest line again, once a minute, while the block runs and says nothing new."""
        over = threading.Event()

        def tell() -> None:
            while not over.wait(_LOOK_S):
                text, kind = self._latest
                if text:
                    self.tell(text, kind)

        if self._silent:
            yield
            return
        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def tell(self, text: str, kind: str = "", *, last: bool = False) -> None:
        """A line now, unless the last one of its kind is less than a minute old and it is not the `last`."""
        now = time.monotonic()
        self._latest = ("", "") if last else (text, kind)
        if self._silent or (not last and now - self._told_s.get(kind, -math.inf) < _EVERY_S):
            return
        self._told_s[kind] = now
        with suppress(OSError):
            sys.stderr.write(f"{printable(text)}\n")
            sys.stderr.flush()
