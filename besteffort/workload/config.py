"""Workloads as typed configuration, read from YAML; `kind` selects the type.

Rates are given as loads, multiples of the largest model's capacity (`Situation.capacity`), so that one configuration
serves any profile.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval, Len
from pydantic import Discriminator

from besteffort.errors import InputError
from besteffort.ranges import Load, NonNegative, Positive, Seed
from besteffort.situation import Situation
from besteffort.workload import arrivals, rescale, traces
from besteffort.workload.deadline_factors import DeadlineFactors, deadline_factors
from besteffort.workload.mix import TaskMix, task_mix
from besteffort.workload.readers import READERS, MafOptions, ServeGenOptions
from besteffort.workload.requests import Requests
from besteffort.workload.synthetic_workload import SyntheticWorkload, synthetic
from besteffort.workload.trace_workload import ReplayWorkload, replay

_LoadOrNone = Annotated[float, Interval(ge=0, le=1e6)]


@dataclasses.dataclass(frozen=True)
class MixConfig:
    """A task mix that shifts in time.

    Attributes:
      shares: per period one share for each task of the situation, in its order.
      starts_s: start of each period in seconds; the first is 0.
      period_s: length of a cycle; null if the last period lasts for ever.
    """

    shares: Annotated[tuple[tuple[NonNegative, ...], ...], Len(1)]
    starts_s: tuple[NonNegative, ...] = (0.0,)
    period_s: Positive | None = None

    def build(self) -> TaskMix:
        return task_mix(self.shares, self.starts_s, self.period_s)


@dataclasses.dataclass(frozen=True)
class DeadlinesConfig:
    """Deadlines that change with time.

    Attributes:
      factors: per period a factor on the deadlines of all tasks.
      starts_s: start of each period in seconds; the first is 0.
      period_s: length of a cycle; null if the last period lasts for ever.
      random_start: begin at a random time of the cycle, independent of the arrivals.
    """

    factors: Annotated[tuple[Positive, ...], Len(1)]
    starts_s: tuple[NonNegative, ...] = (0.0,)
    period_s: Positive | None = None
    random_start: bool = False

    def build(self) -> DeadlineFactors:
        return deadline_factors(self.factors, self.starts_s, self.period_s, self.random_start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """What every synthetic workload may set: changes with time other than those of the load.

    Attributes:
      mix: the task mix; null for the tasks' own shares throughout.
      deadlines: factors on the deadlines; null if they do not change.
    """

    mix: MixConfig | None = None
    deadlines: DeadlinesConfig | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poisson(SyntheticConfig):
    """Poisson arrivals at a constant `load`."""

    kind: Literal["poisson"] = "poisson"
    load: Load

    def process(self, capacity: float) -> arrivals.Arrivals:
        return arrivals.Poisson(self.load * capacity)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps(SyntheticConfig):
    """Poisson arrivals at loads that change at fixed times.

    Attributes:
      loads: load of each segment.
      starts_s: start of each segment in seconds; the first is 0.
      period_s: length of a cycle; null if the last segment lasts for ever.
      random_start: begin at a random time of the cycle.

    Raises:
      InputError: if there are not as many loads as starts, or none that would ever bring another arrival.
    """

    kind: Literal["steps"] = "steps"
    loads: Annotated[tuple[_LoadOrNone, ...], Len(1)]
    starts_s: tuple[NonNegative, ...]
    period_s: Positive | None = None
    random_start: bool = False

    def __post_init__(self) -> None:
        if len(self.loads) != len(self.starts_s):
            raise InputError(
                f"Workload `steps`: `loads` has {len(self.loads)} value(s) and `starts_s` {len(self.starts_s)}; give "
                "one start for each load."
            )
        if not (self.loads[-1] if self.period_s is None else max(self.loads)):
            which = "the last one, which lasts," if self.period_s is None else "one of them"
            raise InputError(f"Workload `steps`: `loads` is {list(self.loads)}; let {which} be positive.")

    def process(self, capacity: float) -> arrivals.Arrivals:
        return arrivals.steps([load * capacity for load in self.loads], self.starts_s, self.period_s, self.random_start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Markov(SyntheticConfig):
    """Markov-modulated Poisson arrivals: each state's load and mean dwell time.

    Raises:
      InputError: if there are not as many loads as dwell times, or all loads are 0.
    """

    kind: Literal["markov"] = "markov"
    loads: Annotated[tuple[_LoadOrNone, ...], Len(2)]
    dwell_s: Annotated[tuple[Positive, ...], Len(2)]

    def __post_init__(self) -> None:
        if len(self.loads) != len(self.dwell_s):
            raise InputError(
                f"Workload `markov`: `loads` has {len(self.loads)} values and `dwell_s` {len(self.dwell_s)}; give one "
                "dwell time for each load."
            )
        if not max(self.loads):
            raise InputError(f"Workload `markov`: `loads` is {list(self.loads)}; let one of them be positive.")

    def process(self, capacity: float) -> arrivals.Arrivals:
        return arrivals.markov_modulated([load * capacity for load in self.loads], self.dwell_s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gamma(SyntheticConfig):
    """A renewal process with Gamma gaps of the given coefficient of variation."""

    kind: Literal["gamma"] = "gamma"
    load: Load
    cv: Annotated[float, Interval(ge=1e-3, le=1e3)]

    def process(self, capacity: float) -> arrivals.Arrivals:
        return arrivals.GammaRenewal(self.load * capacity, self.cv)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square(SyntheticConfig):
    """Poisson arrivals at `high` load for the first `duty` share of each period, at `low` load for the rest."""

    kind: Literal["square"] = "square"
    low: _LoadOrNone
    high: Load
    period_s: Positive
    duty: Annotated[float, Interval(gt=0, lt=1)] = 0.5
    random_start: bool = False

    def process(self, capacity: float) -> arrivals.Arrivals:
        return arrivals.square_wave(
            self.low * capacity, self.high * capacity, self.period_s, self.duty, self.random_start
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomRates(SyntheticConfig):
    """The training load: loads spread log-uniformly, changing in steps and bursts.

    Attributes:
      low, high: smallest and largest load outside bursts.
      dwell_requests: mean number of requests between changes.
      burst_probability: share of calm stretches that end in a burst.
      burst_factor: load of a burst, relative to the load before it.
      burst_requests: mean number of requests in a burst.

    Raises:
      InputError: if the smallest load is above the largest.
    """

    kind: Literal["random_rates"] = "random_rates"
    low: Load = 0.05
    high: Load = 24.0
    dwell_requests: Positive = 12_000.0
    burst_probability: Annotated[float, Interval(ge=0, lt=1)] = 0.5
    burst_factor: Load = 4.0
    burst_requests: Positive = 1000.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise InputError(
                f"Workload `random_rates`: `low` is {self.low:g} and `high` {self.high:g}; let `high` not be below it."
            )

    def process(self, capacity: float) -> arrivals.Arrivals:
        return arrivals.random_rates(
            self.low * capacity,
            self.high * capacity,
            self.dwell_requests,
            self.burst_probability,
            self.burst_factor,
            self.burst_requests,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """A trace file, repeated endlessly.

    Attributes:
      path: the file, see `besteffort.workload.traces.read_trace`.
      format: its format, a name in `besteffort.workload.readers.READERS`; null to detect it from the header.
      window_s: start and end of the part to use, in seconds of the file; null for all of it.
      load: mean load to scale it to, relative to the capacity for its own lengths; null to keep its rate.
      start: begin at a random request or at the first one.
      seed: seed of tasks and of other fields that are drawn.
      maf, servegen: options of these formats.

    Raises:
      InputError: if there is no such format.
    """

    kind: Literal["trace"] = "trace"
    path: Path
    format: str | None = None
    window_s: tuple[NonNegative, Positive] | None = None
    load: Load | None = None
    start: Literal["random", "first"] = "random"
    seed: Seed = 0
    maf: MafOptions = dataclasses.field(default_factory=MafOptions)
    servegen: ServeGenOptions = dataclasses.field(default_factory=ServeGenOptions)

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in READERS:
            raise InputError(f"Trace {self.path}: `format` is `{self.format}`; choose from {', '.join(READERS)}.")


Synthetic = Poisson | Steps | Markov | Gamma | Square | RandomRates
WorkloadConfig = Annotated[Synthetic | Trace, Discriminator("kind")]
"""Any workload; a type for a field of a configuration."""


def load_trace(config: Trace, situation: Situation) -> tuple[Requests, traces.TraceInfo]:
    """Returns the requests of a trace, cut and scaled as configured, and how the whole file was interpreted.

    Raises:
      InputError: on a damaged file or a configuration that does not fit it.
    """
    requests, info = traces.read_trace(
        config.path, situation, seed=config.seed, kind=config.format, maf=config.maf, servegen=config.servegen
    )
    if config.window_s is not None:
        requests = rescale.window(requests, *config.window_s)
    if config.load is not None:
        requests = rescale.to_load(requests, situation, config.load)
    return requests, info


def build(config: Synthetic | Trace, situation: Situation) -> SyntheticWorkload | ReplayWorkload:
    """The workload of a configuration, for the tasks and the capacity of a situation.

    Raises:
      InputError: where the configuration does not fit the situation or a file.
    """
    if isinstance(config, Trace):
        return replay(load_trace(config, situation)[0], config.start)
    mix = config.mix.build() if config.mix is not None else None
    factors = config.deadlines.build() if config.deadlines is not None else None
    return synthetic(situation, config.process(situation.unit_load), mix, factors)
