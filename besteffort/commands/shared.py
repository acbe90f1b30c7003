"""Steps that commands share: they check and begin the directory of a run, and say what its tables do not reach."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from besteffort import interrupts

if TYPE_CHECKING:
    from besteffort.commands.options import PartOfLog
    from besteffort.console import Answer
    from besteffort.situation import Situation


def check_out(out: Path, kind: str, resume: bool) -> None:
    """Checks a run's directory before any work is done; errors as `begin_run`."""
    from besteffort.files import check_run_directory

    check_run_directory(out, kind, resume=resume)


def begin_out(out: Path, kind: str, resume: bool) -> None:
    """Begins or resumes a run, and says what an interrupt leaves; errors as `begin_run`."""
    from besteffort.files import begin_run

    begin_run(out, kind, resume=resume)
    interrupts.advise(f"what was written stays in {out}, and the same command with `--resume` goes on from there")


def note_tables(answer: Answer, situation: Situation) -> None:
    """Says what latency tables do not reach."""
    if beyond := situation.beyond_tables():
        answer.note(beyond)


def next_quickstart(situation: Path, logs: Sequence[Path], part: PartOfLog) -> str:
    """The options of a quickstart in a situation that reads the same part of logs in the same way, for a shell."""
    given = [("config", situation), *(("trace", log) for log in logs), *part.stated()]
    return " ".join(f"--{option} {shlex.quote(str(value))}" for option, value in given)
