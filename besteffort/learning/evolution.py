"""An evolution strategy: finds the numbers that score best, a population of candidates at a time.

A function scores all candidates of a generation at once, so that they can be rollouts of one compiled program. Scores
need no gradient, and may have steps or noise; where candidates meet the same requests, there is less of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from cmaes import CMA
from jaxtyping import Float

from besteffort.errors import InputError

SMALLEST_POPULATION = 4


class Generation(NamedTuple):
    """Candidates that were scored together.

    Attributes:
      candidates: (population, dimensions) their numbers.
      scores: (population,) the higher the better; -inf for what could not be scored.
    """

    candidates: np.ndarray
    scores: np.ndarray


class Found(NamedTuple):
    """What a search found.

    Attributes:
      values: (dimensions,) the candidate with the highest score; the first one on a tie, so the start if all are equal.
      score: its score.
    """

    values: np.ndarray
    score: float


@dataclasses.dataclass(eq=False)
class Evolution:
    """A search by CMA-ES (Hansen, arXiv:1604.00772): `ask` for candidates, `tell` their scores, over and over.

    Its fields are all its state: a search that is made of the fields of another goes on as that one would.

    Attributes:
      start: (dimensions,) the first candidate; the others of its generation lie around it.
      spread: (dimensions,) their standard deviations, above 0.
      population: candidates of a generation.
      seed: of all draws.
      generations: what was scored so far.

    Raises:
      InputError: if there is no dimension, a start without a spread or the reverse, a number that is not finite, a
        spread that is not positive, or a population smaller than `SMALLEST_POPULATION`.
    """

    start: np.ndarray
    spread: np.ndarray
    population: int
    seed: int = 0
    generations: tuple[Generation, ...] = ()

    def __post_init__(self) -> None:
        self.start, self.spread = np.array(self.start, np.float64), np.array(self.spread, np.float64)
        if self.start.ndim != 1 or not self.start.size or self.spread.shape != self.start.shape:
            raise InputError(
                f"A search has a start of shape {self.start.shape} and a spread of shape {self.spread.shape}; give one "
                "number of each per dimension, for one dimension or more."
            )
        if not (np.isfinite(self.start).all() and np.isfinite(self.spread).all() and (self.spread > 0).all()):
            raise InputError(
                f"A search has the start {self.start.tolist()} and the spread {self.spread.tolist()}; give finite "
                "numbers, and spreads above 0."
            )
        if self.population < SMALLEST_POPULATION:
            raise InputError(f"A search has a population of {self.population}; give at least {SMALLEST_POPULATION}.")
        # In units of the spread, around the start.
        self._distribution = CMA(
            mean=np.zeros(self.start.size), sigma=1.0, population_size=self.population, seed=self.seed
        )
        for generation in self.generations:
            self._learn(generation)

    def ask(self) -> Float[np.ndarray, "population dimensions"]:
        """The candidates of the next generation, first the mean of their distribution; the same until `tell`."""
        # Seeded for each generation, so that the state holds no generator.
        seed = np.random.SeedSequence([self.seed, len(self.generations)]).generate_state(1)
        self._distribution.reseed_rng(int(seed[0]))
        drawn = [self._distribution.ask() for _ in range(self.population - 1)]
        return self.start + self.spread * np.stack([self._distribution.mean, *drawn])

    def tell(self, scores: Float[np.ndarray, " population"]) -> None:
        """Takes the scores of the candidates that `ask` gives; a score that is not finite counts as the worst.

        Raises:
          InputError: if there is not one score for each candidate.
        """
        scores = np.asarray(scores, np.float64)
        if scores.shape != (self.population,):
            raise InputError(
                f"A generation has scores of shape {scores.shape}; give one for each of {self.population} candidates."
            )
        generation = Generation(self.ask(), np.where(np.isfinite(scores), scores, -np.inf))
        self.generations = (*self.generations, generation)
        self._learn(generation)

    @property
    def best(self) -> Found:
        """The best candidate so far.

        Raises:
          ValueError: before the first generation is scored.
        """
        candidates, scores = (np.concatenate(parts) for parts in zip(*self.generations, strict=True))
        index = int(scores.argmax())
        return Found(candidates[index], float(scores[index]))

    def _learn(self, generation: Generation) -> None:
        # Where no candidate has a score, their order says nothing.
        if np.isfinite(generation.scores).any():
            units = (generation.candidates - self.start) / self.spread
            self._distribution.tell(list(zip(units, (-generation.scores).tolist(), strict=True)))


def maximise(
    objective: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    spread: np.ndarray,
    *,
    generations: int,
    population: int,
    seed: int = 0,
    progress: Callable[[Evolution], None] | None = None,
) -> Found:
    """Searches for the numbers with the highest score.

    Args:
      objective: takes candidates (population, dimensions) and returns their scores (population,), the higher the
        better; one that is not finite counts as the worst.
      start: as of an `Evolution`; it is among the candidates, so what is found scores no less.
      spread: as of an `Evolution`.
      generations: how often the objective is called, at least once.
      population: as of an `Evolution`.
      seed: as of an `Evolution`.
      progress: called after each generation with the search as it is then.

    Raises:
      InputError: as an `Evolution`, if there is no generation, or if there is not one score for each candidate.
    """
    if generations < 1:
        raise InputError(f"A search has {generations} generations; give at least 1.")
    search = Evolution(start, spread, population, seed)
    for _ in range(generations):
        search.tell(objective(search.ask()))
        if progress is not None:
            progress(search)
    return search.best
