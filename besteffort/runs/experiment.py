"""A whole experiment as one file states it: the situation, how to train for it, how to judge what was trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_types import Interval

from besteffort.errors import InputError
from besteffort.evaluation.config import EvaluationConfig
from besteffort.learning.config import DQNConfig, DQNHyperparams, SearchConfig, check
from besteffort.ranges import Count, Few, Seed
from besteffort.runs.config import (
    CHANGES,
    SituationConfig,
    apply_changes,
    build_situation,
    described,
    find_config,
    load_config,
)
from besteffort.situation import Situation
from besteffort.validation import did_you_mean
from besteffort.workload.config import RandomRates, WorkloadConfig

Method = Literal["dqn", "search"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How to train. In a configuration's file, paths count from that file, elsewhere from the working directory.

    Attributes:
      workload: what to train on; a synthetic one serves its arrivals with a trace's lengths, too.
      seed: of the first run; the next ones count up.
      seeds: runs that train side by side, each with its own network.
      method: `dqn`: Double DQN; `search`: an evolution strategy over the numbers of a rule.
      start: policy file to start from, for fine-tuning; instead of random networks, or of the untrained rule.
      history: decisions that an environment remembers; more than are in flight at a time.
      config: static settings of Double DQN.
      hyper: numbers of `besteffort.learning.config.DQNHyperparams` by name, where they differ from its defaults.
      search: settings of a search.
      selection_requests: length of the 16 training draws on which the best seed is found.

    Raises:
      InputError: if `hyper` names what is no such number.
    """

    workload: WorkloadConfig = dataclasses.field(default_factory=RandomRates)
    seed: Seed = 0
    seeds: Few = 1
    method: Method = "dqn"
    start: Path | None = None
    history: Count = 1024
    config: DQNConfig = dataclasses.field(default_factory=DQNConfig)
    hyper: dict[str, int | float] = dataclasses.field(default_factory=dict)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    selection_requests: Annotated[int, Interval(ge=1, le=10**7)] = 20_000

    def __post_init__(self) -> None:
        known = [field.name for field in dataclasses.fields(DQNHyperparams)]
        for name in self.hyper:
            if name not in known:
                raise InputError(
                    f"`training.hyper.{name}` is not a known number{did_you_mean(name, known)}; known are "
                    f"{', '.join(known)}."
                )

    def numbers(self) -> DQNHyperparams:
        """All numbers, with schedules that fit the length of the training unless they are given."""
        return DQNHyperparams.for_decisions(self.config.decisions, **self.hyper)


@dataclasses.dataclass(frozen=True)
class RunConfig(SituationConfig):
    """A situation, and what to do in it."""

    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)


def load_run(
    path_or_name: str | Path,
    *,
    profile: str | None = None,
    changes: Mapping[str, Any] | None = None,
    changes_from: str = CHANGES,
) -> tuple[RunConfig, Situation]:
    """The configuration of a run and its situation, from a file or by name.

    Args:
      path_or_name: path of a file, or the name of a configuration that comes with the package.
      profile: profile to use instead of the configuration's.
      changes: other values by dotted field, such as `training.config.num_envs`; see `besteffort.runs.config.places`.
      changes_from: what messages call these changes.

    Raises:
      InputError: if the file or its profile is missing, or does not fit, changes do not fit it, or settings do not fit
        each other.
    """
    path = find_config(path_or_name)
    config = apply_changes(load_config(path, RunConfig), changes, changes_from)
    where = described(path, changes, changes_from)
    training = config.training
    try:
        check(training.config, training.numbers(), training.history)
        _check_lists(training, config.evaluation)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if profile is None:
        return config, build_situation(config, where)
    config = dataclasses.replace(config, profile=profile)
    return config, config.build()


def _check_lists(training: TrainingConfig, evaluation: EvaluationConfig) -> None:
    """Checks that nothing is judged on lists that a search draws; a quickstart searches, whatever the method."""
    for seed in range(training.seed, training.seed + training.seeds):
        drawn = training.search.drawn_seeds(seed)
        if any(judged in drawn for judged in evaluation.judging_seeds):
            raise InputError(
                f"`evaluation.seed` is {evaluation.seed}, and lists of the seeds {drawn.start} to {drawn.stop - 1} are "
                "searched on, so they must not be judged on; give another seed, such as the default of 1000."
            )
