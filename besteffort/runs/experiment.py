"""A whole experiment as one file states it: the situation, how to train for it, how to judge what was trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Interval, Len

from besteffort.errors import InputError
from besteffort.learning.config import Config, Hyper, check
from besteffort.runs.config import SituationConfig, build_situation, find_config, load_config
from besteffort.situation import Count, NonNegative, Positive, Situation
from besteffort.validation import did_you_mean
from besteffort.workload.config import Markov, RandomRates, Synthetic, WorkloadConfig

Seed = Annotated[int, Interval(ge=0, lt=2**31)]


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
      workload: what to train on; a synthetic one serves its arrivals with a trace's lengths, too.
      seed: of the first run; the next ones count up.
      seeds: runs that train side by side, each with its own network.
      start: policy file to start from instead of random networks, for fine-tuning.
      history: decisions that an environment remembers; more than are in flight at a time.
      config: static settings.
      hyper: numbers of `besteffort.learning.config.Hyper` by name, where they differ from its defaults.
      selection_requests: length of the 16 training draws on which the best seed is found.

    Raises:
      InputError: if `hyper` names what is no such number.
    """

    workload: WorkloadConfig = dataclasses.field(default_factory=RandomRates)
    seed: Seed = 0
    seeds: Count = 1
    start: Path | None = None
    history: Count = 1024
    config: Config = dataclasses.field(default_factory=Config)
    hyper: dict[str, int | float] = dataclasses.field(default_factory=dict)
    selection_requests: Count = 20_000

    def __post_init__(self) -> None:
        known = [field.name for field in dataclasses.fields(Hyper)]
        for name in self.hyper:
            if name not in known:
                raise InputError(
                    f"`training.hyper.{name}` is not a known number{did_you_mean(name, known)}; known are "
                    f"{', '.join(known)}."
                )

    def numbers(self) -> Hyper:
        """All numbers, with schedules that fit the length of the training unless they are given."""
        return Hyper.for_decisions(self.config.decisions, **self.hyper)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How to judge. Every router meets the same lists.

    Attributes:
      loads: grid of Poisson loads, ascending; multiples of the largest model's capacity.
      burst: the bursty load.
      trace_loads: mean loads to which a trace is scaled, ascending.
      seed: of the first list; the next ones count up. Tuning uses the seeds after them.
      seeds: lists per load, drawn by seed; of a trace, drawings of its tasks.
      requests: length of a synthetic list.
      tuning_seeds, tuning_requests: the lists on which heuristics are tuned.
      window_s: width of the windows in which performance is held against its peak.
      warm_up_s: seconds from the first arrival that do not count; three time constants of the rate estimate, which
        starts at 0, by default. Of a trace at most a tenth of the list.
    """

    loads: Annotated[tuple[Positive, ...], Len(1)] = (0.1, 0.3, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0)
    burst: Synthetic = dataclasses.field(default_factory=lambda: Markov(loads=(0.5, 4.0), dwell_s=(4.0, 2.0)))
    trace_loads: Annotated[tuple[Positive, ...], Len(1)] = (0.5, 1.0, 2.0, 4.0)
    seed: Seed = 1_000
    seeds: Count = 5
    requests: Annotated[int, Ge(2)] = 40_000
    tuning_seeds: Count = 1
    tuning_requests: Annotated[int, Ge(2)] = 20_000
    window_s: Positive = 1.0
    warm_up_s: NonNegative = 6.0

    def __post_init__(self) -> None:
        for field in ("loads", "trace_loads"):
            loads = getattr(self, field)
            if not loads or not min(loads) > 0 or list(loads) != sorted(set(loads)):
                raise InputError(
                    f"Evaluation: `{field}` is {list(loads)}; give positive loads, each once, smallest first."
                )

    @property
    def judging_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    @property
    def unjudged_seeds(self) -> range:
        """Seeds of the lists on which heuristics are tuned."""
        return range(self.seed + self.seeds, self.seed + self.seeds + self.tuning_seeds)


@dataclasses.dataclass(frozen=True)
class RunConfig(SituationConfig):
    """A situation, and what to do in it."""

    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)


def load_run(path_or_name: str | Path, *, profile: str | None = None) -> tuple[RunConfig, Situation]:
    """The configuration of a run and its situation, from a file or by name; `profile` replaces the file's.

    Raises:
      InputError: if the file or its profile is missing, or does not fit, or settings do not fit each other.
    """
    path = find_config(path_or_name)
    config = load_config(path, RunConfig)
    training = config.training
    try:
        check(training.config, training.numbers(), training.history)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if profile is None:
        return config, build_situation(config, path)
    config = dataclasses.replace(config, profile=profile)
    return config, config.build()
