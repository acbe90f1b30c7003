"""How to judge, as a configuration states it."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from annotated_types import Interval, Len

from besteffort.errors import InputError, brief
from besteffort.learning.evolution import SMALLEST_POPULATION
from besteffort.ranges import Few, Length, Load, NonNegative, Positive, Seed
from besteffort.workload.config import Markov, Synthetic

_MOST_REQUESTS = 10**8  # of all lists, which are kept in memory


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
      tuning_generations, tuning_population: how often each heuristic tries new settings on them, and how many at once.
      window_s: width of the windows in which performance is held against its peak.
      warm_up_s: seconds from the first arrival that do not count; three time constants of the rate estimate, which
        starts at 0, by default. Of a trace at most a tenth of the list.
    """

    loads: Annotated[tuple[Load, ...], Len(1)] = (0.1, 0.3, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0)
    burst: Synthetic = dataclasses.field(default_factory=lambda: Markov(loads=(0.5, 4.0), dwell_s=(4.0, 2.0)))
    trace_loads: Annotated[tuple[Load, ...], Len(1)] = (0.5, 1.0, 2.0, 4.0)
    seed: Seed = 1_000
    seeds: Few = 5
    requests: Length = 40_000
    tuning_seeds: Few = 1
    tuning_requests: Length = 20_000
    tuning_generations: Few = 10
    tuning_population: Annotated[int, Interval(ge=SMALLEST_POPULATION, le=2**16)] = 16
    window_s: Positive = 1.0
    warm_up_s: NonNegative = 6.0

    def __post_init__(self) -> None:
        for field in ("loads", "trace_loads"):
            loads = getattr(self, field)
            if not loads or not min(loads) > 0 or list(loads) != sorted(set(loads)):
                raise InputError(
                    f"Evaluation: `{field}` is {brief(list(loads))}; give positive loads, each once, smallest first."
                )
        drawn = len(self.loads) * (self.seeds * self.requests + self.tuning_seeds * self.tuning_requests)
        if drawn > _MOST_REQUESTS:
            raise InputError(
                f"Evaluation: `loads`, `seeds`, `requests` and those of the tuning come to {drawn:,} requests; lower "
                f"one of them, to {_MOST_REQUESTS:,} at most."
            )

    @property
    def judging_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    @property
    def unjudged_seeds(self) -> range:
        """Seeds of the lists on which heuristics are tuned."""
        return range(self.seed + self.seeds, self.seed + self.seeds + self.tuning_seeds)
