"""Where the programs of a sweep run, and what they report meanwhile."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from annotated_types import Ge

from besteffort.ranges import Count, NonNegative


@dataclasses.dataclass(frozen=True)
class ProgramProgress:
    """How a program gets on.

    Attributes:
      program: its name.
      point, points: log points so far, and of the whole training.
      reward: mean over its trials of the reward per decision, since the log point before.
      ended: the program has ended, in one way or another.
    """

    program: str
    point: int = 0
    points: int = 0
    reward: float = 0.0
    ended: bool = False


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Asynchronous successive halving (Li et al., MLSys 2020): at each rung, only programs with the best trials go on.

    Attributes:
      grace: log points that every program gets.
      factor: of the programs that come to a rung one in so many goes on, to a rung that is as many times as far.
    """

    grace: Count = 1
    factor: Annotated[int, Ge(2)] = 3


@dataclasses.dataclass(frozen=True)
class Local:
    """Processes on this machine.

    Attributes:
      workers: how many at a time; by default one per core.
    """

    workers: Count | None = None


@dataclasses.dataclass(frozen=True)
class Ray:
    """A Ray cluster, whose machines all see the sweep's directory.

    Attributes:
      address: where it is; None for one that is started on this machine.
      cpus, gpus: what each program gets.
      early: programs that lag behind are given up; None if none is.
    """

    address: str | None = None
    cpus: Count = 1
    gpus: NonNegative = 0.0
    early: EarlyStopping | None = None
