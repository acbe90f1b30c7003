"""Backends that run the programs of a sweep, and the progress that they report."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from annotated_types import Ge

from besteffort.ranges import Count, NonNegative


@dataclasses.dataclass(frozen=True)
class ProgramProgress:
    """Progress of a program.

    Attributes:
      program: name of the program.
      point, points: log points so far, and of the whole training.
      reward: mean over its trials of the reward per decision, since the previous log point.
      ended: whether the program has ended, successfully or not.
    """

    program: str
    point: int = 0
    points: int = 0
    reward: float = 0.0
    ended: bool = False


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Asynchronous successive halving (Li et al., MLSys 2020): only programs with the best trials pass each rung.

    Attributes:
      grace: log points that every program gets.
      factor: one in `factor` programs that reach a rung continues, to a rung that is `factor` times as far.
    """

    grace: Count = 1
    factor: Annotated[int, Ge(2)] = 3


@dataclasses.dataclass(frozen=True)
class Local:
    """Processes on this machine.

    Attributes:
      workers: number of processes at a time; by default one per core.
    """

    workers: Count | None = None


@dataclasses.dataclass(frozen=True)
class Ray:
    """A Ray cluster, whose machines all see the sweep's directory.

    Attributes:
      address: address of the cluster; None starts one on this machine.
      cpus, gpus: resources of each program.
      early: rule for stopping programs that lag behind; None stops none.
    """

    address: str | None = None
    cpus: Count = 1
    gpus: NonNegative = 0.0
    early: EarlyStopping | None = None
