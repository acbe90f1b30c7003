"""Chooses what to assume of a server's limits by what each assumption predicts on stretches of the log held out.

The requests whose times may be used are cut into stretches. Under every assumption the terms are fitted to the times of
every second stretch, and judged by those of the others: the whole list is simulated, since arrivals and lengths are
known. Of the assumptions that predict about as well as the best, the simplest is used.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from besteffort.profiling.log_simulation import UNLIMITED
from besteffort.profiling.problem import (
    LEAST_MISFIT,
    MISFIT,
    Assumption,
    Basis,
    Problem,
    Progress,
    descend,
)
from besteffort.profiling.server_log import RequestLog

CHUNKS = (8192, 4096, 2048, 1024, 512, 256)
"""Tokens of an iteration that are tried, besides none."""

EXCEEDED = 1.15
"""Times a largest batch, that blurred times explain."""

_SHARED = 256  # tokens of a shared prefix that are tried, and multiples of them, where every prompt is longer
_MOST_SHARED = 6  # multiples
_STRETCHES = 16
_LEAST_STRETCH = 4  # requests
_WAITS = 8  # fewer long waits show no limit
_ROUNDS = 6
_FAR = 2.0  # times the best's cost, beyond which an assumption is given up unless it still improves much
_CLEAR = 0.25  # of the best's cost, by which others are worse at least: servers are not quite as modelled
_EQUAL = 0.05  # of the best's cost, by which a simpler one may be worse at most to be used instead


@dataclasses.dataclass(frozen=True)
class Tried:
    """An assumption and how its fit to every second stretch predicts the others.

    Attributes:
      assumption: what is assumed.
      x: coefficients, relative to the units of its basis.
      cost: of the times that it was fitted to.
      misfits: (requests held out, 2) relative misfits of first and last tokens; nan where the log has no first token.
    """

    assumption: Assumption
    x: np.ndarray
    cost: float
    misfits: np.ndarray


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is assumed, and what predicts as well.

    Attributes:
      chosen: the assumption in use, with its fit.
      alike: assumptions that predict about as well as the best, which is the first; `chosen` is one of them.
    """

    chosen: Tried
    alike: tuple[Assumption, ...]


class Bases:
    """A basis per number of shared tokens, made when it is first asked for."""

    def __init__(self, log: RequestLog, rows: np.ndarray, max_batch: int | None, share: float | None) -> None:
        self._of = (log, rows, max_batch, share)
        self._made: dict[int, Basis] = {}

    def __getitem__(self, shared_tokens: int) -> Basis:
        if shared_tokens not in self._made:
            self._made[shared_tokens] = Basis(*self._of, shared_tokens)
        return self._made[shared_tokens]


def choose(bases: Bases, max_batch: int | None, report: Progress, among: Sequence[Assumption] | None = None) -> Choice:
    """Chooses limits, chunk and shared prefix.

    Args:
      bases: the log.
      max_batch: the server's largest batch, if known.
      report: progress.
      among: what is tried; by default, limits and chunks in turn, then prefixes.
    """
    chooser = _Chooser(bases, report)
    if among is None:
        chooser.search(max_batch)
    else:
        for assumption in among:
            chooser.try_out(assumption, chooser.best() if chooser.tried else None)
    alike = chooser.alike(chooser.tried.values(), _CLEAR)
    # Prompts read whole are the rule, so that chunks and prefixes have to be clearly better.
    whole = [each for each in alike if each.assumption.chunk_tokens is None and not each.assumption.shared_tokens]
    chosen = chooser.alike(whole or chooser.tried.values(), _EQUAL)[0]
    alike.sort(key=lambda each: _loss(each.misfits, MISFIT).sum())
    return Choice(chosen, tuple(each.assumption for each in alike))


class _Chooser:
    """Tries assumptions one by one.

    Attributes:
      tried: those that were tried.
    """

    def __init__(self, bases: Bases, report: Progress) -> None:
        self._bases, self._report = bases, report
        rows = bases[0].rows
        stretch = stretches(rows)
        self._train, self._test = rows & (stretch % 2 == 0), rows & (stretch % 2 == 1)
        self.tried: dict[Assumption, Tried] = {}

    def search(self, max_batch: int | None) -> None:
        """Tries limits, chunks under the best limit and limits under the best chunk in turn, and then prefixes."""
        plain = Assumption(max_batch=max_batch)
        limits = [plain, *possible_limits(self._bases[0], max_batch)]
        for limit in limits:
            self.try_out(limit, self.tried.get(plain))
        before = None
        while (best := self.best()).assumption != before:
            before = best.assumption
            for chunk in CHUNKS:
                one = self.try_out(dataclasses.replace(before, chunk_tokens=chunk), self.best())
                if _loss(one.misfits, MISFIT).sum() > _FAR * _loss(self.best().misfits, MISFIT).sum():
                    break  # less is even worse
            best = self.best()
            for limit in limits:
                self.try_out(dataclasses.replace(limit, chunk_tokens=best.assumption.chunk_tokens), best)
        shortest = int(self._bases[0].seen.prompt_tokens.min())
        used = best.assumption.chunk_tokens
        for each in dict.fromkeys((used, max(used // 2, CHUNKS[-1]) if used else None)):
            near = self.tried.get(dataclasses.replace(best.assumption, chunk_tokens=each), best)
            for shared in range(_SHARED, min(shortest, _MOST_SHARED * _SHARED + 1), _SHARED):
                near = self.try_out(dataclasses.replace(best.assumption, chunk_tokens=each, shared_tokens=shared), near)

    def try_out(self, assumption: Assumption, near: Tried | None = None) -> Tried:
        """Fits under an assumption, from where the fit `near` ended or from what evidence says."""
        if assumption not in self.tried:
            self.tried[assumption] = self._fitted(assumption, near)
        return self.tried[assumption]

    def _fitted(self, assumption: Assumption, near: Tried | None) -> Tried:
        problem = Problem(self._bases[assumption.shared_tokens], assumption, self._train)
        least = min((each.cost for each in self.tried.values()), default=math.inf)
        slow = 0

        def worth(before: float, after: float) -> bool:
            """Whether it still moves, and is not far behind with little hope."""
            nonlocal slow
            slow = slow + 1 if after > 0.995 * before else 0
            return slow < 2 and (after < _FAR * least or after < 0.8 * before)

        warm = None
        if near is not None:
            warm = near.x * self._bases[near.assumption.shared_tokens].units / problem.basis.units
            if self._same(problem, near):
                return dataclasses.replace(near, assumption=assumption)
            if assumption.cache and not near.assumption.cache:
                warm = None  # it says nothing of the cache
        found = min(
            (
                descend(problem, start, rounds=_ROUNDS, doing=str(assumption), report=self._report, worth=worth)
                for start in problem.starts(warm)
            ),
            key=lambda solution: solution.cost,
        )
        return Tried(assumption, found.x, found.cost, problem.relative_misfits(found.x, self._test))

    def _same(self, problem: Problem, near: Tried) -> bool:
        """Whether an assumption makes no difference where the fit `near` ended."""
        one, other = problem.assumption, near.assumption
        if (one.cache, one.shared_tokens) != (other.cache, other.shared_tokens):
            return False
        times = (each.play(near.x[None]) for each in (problem, Problem(problem.basis, other, self._train)))
        return all(np.array_equal(one, two) for one, two in zip(*times, strict=True))

    def best(self) -> Tried:
        """That which predicts the stretches held out best."""
        return min(self.tried.values(), key=lambda each: _loss(each.misfits, MISFIT).sum())

    def _order(self, tried: Tried) -> tuple[int, ...]:
        """From the simplest on: without limits, then larger chunks, and batches near the most that ran at once."""
        one = tried.assumption
        chunk = 0 if one.chunk_tokens is None else UNLIMITED - one.chunk_tokens
        batch = 0 if one.max_batch is None else 1 + abs(one.max_batch - self._bases[0].limits.largest_batch)
        return (one.shared_tokens, int(chunk > 0), int(one.cache), batch, chunk)

    def alike(self, among: Iterable[Tried], share: float) -> list[Tried]:
        """Those that cost at most that share more than the best of them, the simplest first."""
        typical = float(np.nanmedian(np.abs(self.best().misfits)))
        scale = float(np.clip(1.5 * typical, LEAST_MISFIT, MISFIT))
        costs = {each.assumption: float(_loss(each.misfits, scale).sum()) for each in among}
        most = (1 + share) * min(costs.values()) + 1e-9
        return sorted((self.tried[one] for one, cost in costs.items() if cost <= most), key=self._order)


def stretches(rows: np.ndarray) -> np.ndarray:
    """(n,) number of the stretch that each request of `rows` lies in; -1 for others."""
    count = int(rows.sum())
    number = max(2, min(_STRETCHES, count // _LEAST_STRETCH))
    found = np.full(len(rows), -1)
    found[rows] = np.arange(count) * number // max(count, 1)
    return found


def possible_limits(basis: Basis, max_batch: int | None) -> list[Assumption]:
    """Limits to try besides none: batches near the most that ran at once and common sizes, and a cache.

    A batch that more requests ran in is no limit, nor is one that is given and never reached.
    """
    shown, largest = basis.limits, basis.limits.largest_batch
    cache = [Assumption(cache=True, max_batch=max_batch)] if shown.waits >= _WAITS else []
    if max_batch is not None:
        return cache
    sizes = {largest, largest + 1, 2 ** math.ceil(math.log2(max(largest, 2)))}
    if shown.waits >= _WAITS:
        sizes.add(shown.waiting_batch)
    fits = sorted(size for size in sizes if largest <= EXCEEDED * size and size <= basis.seats)
    return [*(Assumption(max_batch=size) for size in fits), *cache]


def _loss(misfits: np.ndarray, scale: float) -> np.ndarray:
    """(requests,) pseudo-Huber cost of their first and last tokens."""
    return np.asarray(np.nansum(np.sqrt(1 + (misfits / scale) ** 2) - 1, axis=1))
