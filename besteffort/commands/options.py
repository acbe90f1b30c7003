"""Options that commands share: groups of them, and types with what help shows in place of a value."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from annotated_types import Interval

from besteffort.console import Output
from besteffort.errors import InputError

if TYPE_CHECKING:
    from besteffort.workload.reading import Reading


def metavar(metavar: str) -> Any:
    """An option whose help shows this in place of its value."""
    return tyro.conf.arg(metavar=metavar)


def optional(metavar: str) -> Any:
    """An option whose help says what holds without it, instead of `(default: None)`."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclasses.dataclass(frozen=True)
class Changes:
    """Changes to the configuration, an option that commands share.

    Attributes:
      set: another value for a field of the configuration, such as `cluster.replicas=2`, `tasks.piqa.weight=2`,
        `tasks.*.share=1` or `training.config.num_envs=64`; the value is YAML.
    """

    set: Annotated[tuple[str, ...], metavar("FIELD=VALUE"), tyro.conf.UseAppendAction] = ()

    def arguments(self) -> dict[str, Any]:
        """What `load_run`, `load_situation` and `load_sweep` are to be given.

        Raises:
          InputError: on text that is no change.
        """
        from besteffort.runs.config import parse_changes

        return {"changes": parse_changes(self.set), "changes_from": "`--set`"}


@dataclasses.dataclass(frozen=True)
class Columns:
    """How to read a log, an option that commands share.

    Attributes:
      columns: where a log states what, such as `arrival=ts:ms,prompt=n_in,output=n_out`; also `first`, `last`, `ttft`,
        `latency`, `task`, `origin`, `tenant`, `model`, `limit`, `cached`; in place of single columns of a known format,
        or all of an unknown one. A unit is `s`, `ms`, `us` or `ns`.
      limit: read only so many rows of a log.
    """

    columns: Annotated[tuple[str, ...], metavar("FIELD=COLUMN,..."), tyro.conf.UseAppendAction] = ()
    limit: Annotated[int | None, optional("N")] = None

    def stated(self) -> list[tuple[str, Any]]:
        """What is asked for, by the names of the options."""
        return [*(("columns", text) for text in self.columns), *_given(limit=self.limit)]

    def reading(self, logs: Sequence[Path]) -> Reading:
        """What to read of logs.

        Raises:
          InputError: on numbers out of range, or if something is asked for and there is no log.
        """
        from besteffort.workload.reading import Reading

        if not logs and (stated := self.stated()):
            raise InputError(f"`--{stated[0][0]}` says how to read a log; name one, `--trace FILE`, or leave it out.")
        return Reading(self.columns, self.limit)


@dataclasses.dataclass(frozen=True)
class PartOfLog(Columns):
    """How to read a log, and which part of it, an option that commands share.

    Attributes:
      since: only requests that arrive so many seconds after a log's first, or later.
      until: only requests that arrive earlier than so many seconds after a log's first.
    """

    since: Annotated[float | None, tyro.conf.arg(name="from", metavar="SECONDS", help_behavior_hint="")] = None
    until: Annotated[float | None, tyro.conf.arg(name="to", metavar="SECONDS", help_behavior_hint="")] = None

    def stated(self) -> list[tuple[str, Any]]:
        return [*super().stated(), *_given(**{"from": self.since, "to": self.until})]

    def reading(self, logs: Sequence[Path]) -> Reading:
        return dataclasses.replace(super().reading(logs), start_s=self.since, end_s=self.until)


def _given(**options: Any) -> list[tuple[str, Any]]:
    """Those that are not None."""
    return [(name, value) for name, value in options.items() if value is not None]


SharedColumns = Annotated[Columns, tyro.conf.arg(name="")]
SharedPart = Annotated[PartOfLog, tyro.conf.arg(name="")]
SharedOutput = Annotated[Output, tyro.conf.arg(name="")]
SharedChanges = Annotated[Changes, tyro.conf.arg(name="")]

FEW = Interval(ge=1, le=2**16)
PORT = Interval(ge=0, le=65_535)
LOAD = Interval(ge=1e-6, le=1e6)

Trackers = Annotated[tuple[Literal["mlflow", "wandb"], ...], metavar("TRACKER"), tyro.conf.UseAppendAction]
Traces = Annotated[tuple[Path, ...], tyro.conf.arg(name="trace", metavar="FILE"), tyro.conf.UseAppendAction]
Models = Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL [MODEL ...]", help_behavior_hint="(required)")]
Directory = Annotated[Path, metavar("DIR")]
NewFile = Annotated[Path, metavar("FILE")]
Config = Annotated[str, metavar("CONFIG")]
MaybeConfig = Annotated[str | None, optional("CONFIG")]
MaybeProfile = Annotated[str | None, optional("PROFILE")]
MaybeFile = Annotated[Path | None, optional("FILE")]
MaybeCount = Annotated[int | None, optional("N"), FEW]
MaybeLoad = Annotated[float | None, optional("X"), LOAD]
Qualities = Annotated[tuple[str, ...], metavar("TASK=PERCENT"), tyro.conf.UseAppendAction]
Names = Annotated[tuple[str, ...], metavar("NAME"), tyro.conf.UseAppendAction]
