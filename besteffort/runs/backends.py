"""Backends that jobs run on, and the options that name them."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from typing import Annotated, Literal

from annotated_types import Ge

from besteffort.errors import InputError
from besteffort.ranges import Count, NonNegative


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Asynchronous successive halving (Li et al., MLSys 2020): only the best jobs pass each rung.

    Jobs print lines of JSON with `point`, `points` and `best`, see `besteffort.sweep.program`.

    Attributes:
      points: log points of the longest job.
      grace: log points that every job gets.
      factor: one in `factor` jobs that reach a rung continues, to a rung that is `factor` times as far.
    """

    points: Count = 1
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
    """A Ray cluster, whose machines all see the directory of the run and have this package.

    Attributes:
      address: address of the cluster; None starts one on this machine.
      cpus, gpus: resources of each job.
      early: rule for stopping jobs that lag behind; None stops none.
    """

    address: str | None = None
    cpus: Count = 1
    gpus: NonNegative = 0.0
    early: EarlyStopping | None = None


Backend = Local | Ray
BackendName = Literal["local", "ray"]


def backend_of(
    name: BackendName,
    *,
    workers: int | None = None,
    address: str | None = None,
    cpus: int = 1,
    gpus: float = 0.0,
    early: EarlyStopping | None = None,
) -> Backend:
    """The backend that options of a command name.

    Raises:
      InputError: if an option is of the other backend or out of range, or Ray is asked for and not installed.
    """
    if cpus < 1:
        raise InputError(f"`--cpus` is {cpus}; give at least 1.")
    if not 0 <= gpus < math.inf:
        raise InputError(f"`--gpus` is {gpus:g}; give at least 0.")
    if name == "ray":
        if workers is not None:
            raise InputError("`--workers` is for local processes; leave it out, or `--backend ray`.")
        if importlib.util.find_spec("ray") is None:
            raise InputError("`--backend ray`: Ray is not installed; `pip install 'ray[tune]'`, or leave it out.")
        return Ray(address, cpus, gpus, early)
    if address is not None or early is not None or (cpus, gpus) != (1, 0.0):
        raise InputError(
            "`--address`, `--cpus`, `--gpus` and `--early-stopping` are for a cluster; add `--backend ray` or leave "
            "them out."
        )
    if workers is not None and workers < 1:
        raise InputError(f"`--workers` is {workers}; give at least 1.")
    return Local(workers)
