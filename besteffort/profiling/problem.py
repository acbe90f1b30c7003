"""How far the serving model with certain coefficients is from a log, under an assumption about limits; and the descent.

The log is simulated with candidates for all coefficients at once (`besteffort.profiling.log_simulation`), and
Gauss-Newton steps move first and last tokens to their logged times. Derivatives are central differences over a few
percent: a request joins at an iteration's end, so its times are a staircase in every term, of which only the slope
over several steps matters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy.optimize import lsq_linear

from besteffort.profile.types import Points
from besteffort.profiling import evidence
from besteffort.profiling.evidence import Curve
from besteffort.profiling.log_simulation import UNLIMITED, Candidates, Player
from besteffort.profiling.server_log import RequestLog

Limit = Literal["nothing", "batch", "cache"]
Progress = Callable[[str, float], None]
"""Called with the current activity and the misfit, in cost per residual."""

LANES = 40
"""Candidates per simulation; the current coefficients and each changed in two directions fit in."""
MISFIT, LEAST_MISFIT = 0.05, 0.004
"""Relative misfits from which a request counts as an outlier: initial, smallest."""
STEP = 0.04
"""Of the central differences, in units of each coefficient."""
DEPENDENT = 10.0
"""Requests are correlated: one residual in so many is independent evidence."""
_KINK = 0.2  # prior: bend of a curve between two knots, relative to its value
_SLOPE = 0.3  # prior: change of an iteration's length over a segment of batch sizes, relative to that length
_CACHE_SHARE, _CACHE_SPREAD = (
    0.2,
    0.1,
)  # prior: share of an iteration that a full cache costs, and its standard deviation
_DELAY = 5.0  # prior: a delay, relative to a typical prefill
_MAX_BATCH = 512  # limit of the room for batches beyond those seen
_PACES = (0.15, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0)  # of a start, as multiples of what evidence says


@dataclasses.dataclass(frozen=True)
class Assumption:
    """What is assumed of a server besides its times.

    Attributes:
      max_batch: the largest batch that held requests back; None where none did.
      cache: whether a full cache held requests back.
      chunk_tokens: tokens of an iteration; None where prompts are read whole.
      shared_tokens: tokens of every prompt that a prefix cache had, besides those that the log states.
    """

    max_batch: int | None = None
    cache: bool = False
    chunk_tokens: int | None = None
    shared_tokens: int = 0

    @property
    def limit(self) -> Limit:
        """What held requests back."""
        return "cache" if self.cache else "nothing" if self.max_batch is None else "batch"

    def __str__(self) -> str:
        parts = ["a full cache"] if self.cache else []
        parts += [] if self.max_batch is None else [f"batches of {self.max_batch}"]
        parts += [] if self.chunk_tokens is None else [f"chunks of {self.chunk_tokens:,}"]
        parts += [f"{self.shared_tokens:,} tokens shared"] if self.shared_tokens else []
        return ", ".join(parts) or "no limit"


@dataclasses.dataclass(frozen=True)
class Solution:
    """Coefficients, relative to their units, and their cost."""

    x: np.ndarray
    cost: float


def sharing(log: RequestLog, tokens: int) -> RequestLog:
    """The log as if a prefix cache had the first `tokens` of every prompt."""
    if not tokens:
        return log
    cached = np.zeros(len(log), np.int32) if log.cached_tokens is None else log.cached_tokens
    had = np.maximum(cached, np.minimum(tokens, log.prompt_tokens - 1)).astype(np.int32)
    return dataclasses.replace(log, cached_tokens=had)


def _typical_s(log: RequestLog, times_s: np.ndarray) -> np.ndarray:
    """(n,) mean of the times that are known over the requests that were there while each one was, on any replica."""
    known = np.isfinite(times_s)
    if not known.any():
        return times_s
    arrival_s, last_s, values = log.arrival_s[known], log.last_token_s[known], times_s[known]
    order = np.argsort(last_s, kind="stable")
    come = np.searchsorted(arrival_s, log.last_token_s, side="left")
    gone = np.searchsorted(last_s[order], log.arrival_s, side="right")
    sums = [np.append(0.0, np.cumsum(part)) for part in (values, values[order])]
    return np.asarray((sums[0][come] - sums[1][gone]) / np.maximum(come - gone, 1))


class Basis:
    """What all assumptions about a log share: evidence, the curves with their units, and the simulation.

    The coefficients, each divided by its entry of `units`, are those of the decode curve, those of the prefill curve,
    the context cost, the delay, the tokens of the cache, and the share of outputs.
    """

    def __init__(
        self, log: RequestLog, rows: np.ndarray, max_batch: int | None, share: float | None, shared_tokens: int = 0
    ) -> None:
        """`rows` are those whose times may be used; `max_batch` and `share` are given by the user."""
        self.stated, self.log, self.rows, self.share = log, sharing(log, shared_tokens), rows, share
        self.seen = seen = self.log.part(rows)
        first_s = evidence.first_tokens(seen)
        self.iteration_s, prefill_s = evidence.typical_times(seen, first_s)
        self.sizes, self.seconds = evidence.batch_sizes(seen, first_s)
        self.decode = Curve.through(self.sizes, self.sizes * self.seconds, 2.0 ** np.arange(1, 6), 0.05)
        quantiles = np.unique(np.rint(np.quantile(seen.prompt_tokens, (0.15, 0.4, 0.7))))
        self.prefill = Curve.through(seen.prompt_tokens, np.ones(len(seen)), quantiles, 0.1)
        self.limits = evidence.limits(seen, first_s, self.iteration_s)
        largest = self.limits.largest_batch
        roomy = min(2 ** math.ceil(math.log2(max(1.3 * largest, 8))), max(_MAX_BATCH, largest))
        self.given = max_batch is not None
        self.seats = roomy if max_batch is None else max_batch
        batch = float(np.average(self.sizes, weights=self.seconds)) if len(self.sizes) else 1.0
        self.held = batch * float(
            np.average(seen.prompt_tokens + seen.output_tokens / 2, weights=seen.output_tokens.astype(np.float64))
        )
        d, p = self.decode.columns(np.array(batch)), evidence.reading(self.prefill, seen).mean(axis=0)
        curves = np.concatenate(
            [self.iteration_s / np.maximum(d, 1), prefill_s / np.maximum(p, 1), [self.iteration_s / self.held]]
        )
        self.start = evidence.regress(seen, first_s, self.decode, self.prefill, curves) / curves
        cache = self.cache_sizes(0.5)
        self.units = np.concatenate([curves, [prefill_s, np.median(cache) if len(cache) else 1.0, 1.0]])
        # Those who come after the last answer to `rows` change nothing for them.
        last = int(np.searchsorted(self.log.arrival_s, log.last_token_s[rows].max(), side="right"))
        self.part = self.log.part(slice(last))
        self.part_player = Player(self.part, self.seats, self.prefill)
        self.player = self.part_player if last == len(log) else Player(self.log, self.seats, self.prefill)
        self.typical_s = np.full((2, last), np.nan)
        for row, times_s in zip(self.typical_s, (seen.ttft_s, seen.latency_s), strict=True):
            row[rows[:last]] = _typical_s(seen, times_s)

    @property
    def context(self) -> int:
        """Index of the context cost; the delay, the tokens of the cache and the share of outputs follow."""
        return self.decode.size + self.prefill.size

    def cache_sizes(self, share: float) -> np.ndarray:
        """Cache sizes half-way between the tokens that fitted and those that did not."""
        now, more = self.limits.claims(np.array(share))
        return ((now + more) / 2)[np.isfinite(more)]


class Problem:
    """The cost of coefficients under an assumption, by the times of some requests."""

    def __init__(self, basis: Basis, assumption: Assumption, rows: np.ndarray | None = None) -> None:
        """`rows` are the requests whose times count, by default all that the basis may use."""
        self.basis, self.assumption = basis, assumption
        self._log = basis.part
        self._rows = (basis.rows if rows is None else rows)[: len(self._log)]
        self._known = np.isfinite(np.stack([self._log.ttft_s, self._log.latency_s])[:, self._rows])
        self.scale = MISFIT
        self.low = np.zeros(len(basis.units))
        self.low[[0, basis.decode.size]] = 0.02, 1e-4
        self.high = np.full(len(basis.units), np.inf)
        if assumption.cache:
            self.low[-2], self.high[-1] = 0.05, 1.0
            if basis.share is not None:
                self.low[-1] = self.high[-1] = basis.share
        else:
            self.low[-2:] = self.high[-2:] = 1.0
        self.prior = self._priors()

    @property
    def residual_count(self) -> int:
        return int(self._known.sum())

    @property
    def max_batch(self) -> int:
        """The largest batch that is simulated."""
        return self.assumption.max_batch or self.basis.seats

    def cache_tokens(self, x: np.ndarray) -> int:
        """The fitted size of the cache, in whole tokens; every request of the log fits, since it was answered."""
        log = self.basis.log
        largest = (log.prompt_tokens + np.ceil(x[-1] * log.output_tokens)).max()
        return round(max(float(x[-2] * self.basis.units[-2]), float(largest)))

    def starts(self, warm: np.ndarray | None = None) -> list[np.ndarray]:
        """Starting points: what evidence says, scaled by the best of several factors, for several shares of outputs.

        With `warm`, a solution under a similar assumption, it is the best of these and of it.
        """
        x = np.append(self.basis.start, [0.0, 1.0, 1.0])
        scaled = np.stack([x * pace for pace in _PACES])
        scaled[:, -2:] = 1.0
        if not self.assumption.cache or warm is not None:
            candidates = scaled if warm is None else np.stack([np.clip(warm, self.low, self.high), *scaled])
            return [candidates[np.argmin(self.costs(candidates))]]
        starts = []
        for share in (0.5, 0.75, 1.0) if self.basis.share is None else (self.basis.share,):
            sizes = self.basis.cache_sizes(share)
            scaled[:, -2:] = (np.median(sizes) / self.basis.units[-2] if len(sizes) else 1.0), share
            starts.append(scaled[np.argmin(self.costs(scaled))].copy())
        return starts

    def play(
        self, x: np.ndarray, *, whole: bool = False, prefill: Points | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(candidates, n) seconds to first and last tokens of requests; up to `LANES` candidates.

        The requests are those up to the last whose times may be used, or the `whole` log. With `prefill`, prompts are
        read by that table, as if the prefix cache had of none more than the log states.
        """
        basis, log = self.basis, self.basis.log
        values = np.pad(x, ((0, LANES - len(x)), (0, 0)), mode="edge") * basis.units
        d, c = basis.decode.size, basis.context
        table = values[:, :d] @ basis.decode.columns(np.arange(basis.seats + 1)).T
        table[:, 0] = 0.0
        tokens = np.full(LANES, np.inf)
        if self.assumption.cache:
            claims = log.prompt_tokens + np.ceil(values[:, -1:] * log.output_tokens)
            tokens = np.maximum(values[:, -2], claims.max(axis=1))
        player = basis.player if whole else basis.part_player
        reading = values[:, d:c]
        if prefill is not None:
            at, seconds = np.array(prefill).T
            player = Player(basis.stated, basis.seats, Curve(at))
            reading = np.tile(np.append(seconds[0], np.diff(seconds) / np.diff(at)), (LANES, 1))
        first_s, last_s = player.play(
            Candidates(
                decode=table,
                prefill=reading,
                context_cost_s=values[:, c],
                max_batch=np.full(LANES, self.max_batch),
                chunk_tokens=np.full(LANES, self.assumption.chunk_tokens or UNLIMITED),
                cache_tokens=tokens,
                output_share=values[:, -1],
            )
        )
        delay_s = values[:, c + 1, None]
        return (first_s + delay_s)[: len(x)], (last_s + delay_s)[: len(x)]

    def residuals(self, x: np.ndarray) -> np.ndarray:
        """(candidates, residuals) misfits of first tokens, last tokens and, with a cache limit, of admissions."""
        first_s, last_s = self.play(x)
        misfits = self._misfits(first_s, last_s, self._rows) / self.scale
        parts = [misfits[:, self._known]]
        # Where prompts are read in chunks, others wait while there is room in the cache.
        if self.assumption.cache and self.assumption.chunk_tokens is None:
            values = x * self.basis.units
            tokens = values[:, -2:-1]
            now, more = self.basis.limits.claims(values[:, -1])
            held_back = np.isfinite(self.basis.limits.next_tokens[:, 0])
            amiss = np.maximum(now - tokens, 0)[:, held_back] + np.maximum(tokens - more, 0)[:, held_back]
            parts.append(amiss / (self.scale * tokens))
        return np.nan_to_num(np.concatenate(parts, axis=1), nan=1e3, posinf=1e3, neginf=-1e3)

    def _misfits(self, first_s: np.ndarray, last_s: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(candidates, 2, rows) relative misfits of first and last tokens; nan where the log has no first token.

        A request's misfit is in units of the root sum of squares of its time, the mean time of those that were there
        while it was, and so many iterations that `MISFIT` is one. The mean counts because the errors of all earlier
        requests accumulate at the end of a long queue, the iteration because no server's are quite as modelled.
        """
        measured = np.stack([self._log.ttft_s, self._log.latency_s])[:, rows]
        simulated = np.stack([first_s, last_s], axis=1)[:, :, rows]
        units_s = np.hypot(np.hypot(measured, self.basis.typical_s[:, rows]), self.basis.iteration_s / MISFIT)
        return np.asarray((simulated - measured) / units_s)

    def relative_misfits(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(requests of `rows`, 2) relative misfits of first and last tokens; nan where the log has no first token."""
        first_s, last_s = self.play(x[None])
        misfits = self._misfits(first_s, last_s, rows[: len(self._log)])[0].T
        return np.where(np.isinf(misfits), 1e3, misfits)

    def costs(self, x: np.ndarray) -> np.ndarray:
        """(candidates,) cost of the residuals plus the prior on the coefficients."""
        return self.cost_of(self.residuals(x), x)

    def cost_of(self, residuals: np.ndarray, x: np.ndarray) -> np.ndarray:
        """(candidates,) pseudo-Huber cost, so that outliers (evicted requests, a stall of the host) count linearly."""
        rows, targets = self.prior
        prior = x @ rows.T - targets
        return np.asarray((np.sqrt(1 + residuals**2) - 1).sum(axis=1) + 0.5 * (prior**2).sum(axis=1))

    def misfit(self, x: np.ndarray) -> float:
        """The cost of the times alone, which is comparable between assumptions."""
        residuals = self.residuals(x[None])[0, : self.residual_count]
        return float((np.sqrt(1 + residuals**2) - 1).sum())

    def tighten(self, x: np.ndarray) -> bool:
        """Adapts `scale` to the remaining misfit; returns whether it changed much."""
        typical = float(np.median(np.abs(self.residuals(x[None])))) * self.scale
        scale = float(np.clip(1.5 * typical, LEAST_MISFIT, self.scale))
        changed = scale < 0.5 * self.scale
        self.scale = scale if changed else self.scale
        return changed

    def _priors(self) -> tuple[np.ndarray, np.ndarray]:
        basis, units = self.basis, self.basis.units
        rows, targets = [], []
        for offset, curve, least in (
            (0, basis.decode, basis.iteration_s),
            (basis.decode.size, basis.prefill, units[basis.context + 1]),
        ):
            start = (basis.start * units[: len(basis.start)])[offset : offset + curve.size]
            for k in range(1, curve.size - 1):
                value = max(float(curve.columns(np.array(curve.knots[k])) @ start), least)
                row = np.zeros(len(units))
                row[offset + k : offset + k + 2] = np.array([-1.0, 1.0]) * units[offset + k : offset + k + 2]
                rows.append(row * (curve.knots[k + 1] - curve.knots[k]) / (_KINK * value))
                targets.append(0.0)
        row = np.zeros(len(units))
        row[basis.context + 1] = _DELAY  # a delay looks like a prefill that delays no other request; prefer a prefill
        rows.append(row)
        targets.append(0.0)
        # Where the number of tokens held hardly changes, as with a full cache, a log cannot separate their cost from
        # that of the weights. Both go through the same memory, and the cache gets the memory that the weights leave, so
        # a full cache costs a part of every iteration. The size of that part is an assumption, checked on one real log.
        row = np.zeros(len(units))
        row[basis.context] = 1.0 / _CACHE_SPREAD if self.assumption.cache else 1.0
        rows.append(row)
        targets.append(_CACHE_SHARE / _CACHE_SPREAD if self.assumption.cache else 0.0)
        for k in range(1, basis.decode.size):
            row = np.zeros(len(units))
            row[k] = units[k] * (basis.decode.knots[k] - basis.decode.knots[k - 1]) / (_SLOPE * basis.iteration_s)
            rows.append(row)
            targets.append(0.0)
        weight = math.sqrt(DEPENDENT)
        return weight * np.array(rows), weight * np.array(targets)


def descend(
    problem: Problem,
    x: np.ndarray,
    *,
    rounds: int,
    doing: str,
    report: Progress,
    fixed: int | None = None,
    worth: Callable[[float, float], bool] | None = None,
) -> Solution:
    """Gauss-Newton that tries several dampings and step lengths at once; the cost never rises.

    Args:
      problem: what the cost is of.
      x: where it starts.
      rounds: steps at most.
      doing: what `report` is told.
      report: progress.
      fixed: index of a coefficient that stays.
      worth: whether to go on, asked after each step with the cost before and after it.
    """
    size = len(x)
    low, high = problem.low.copy(), problem.high.copy()
    if fixed is not None:
        low[fixed] = high[fixed] = x[fixed]
    x = np.clip(x, low, high)
    rows, targets = problem.prior
    widest = STEP * problem.scale / MISFIT
    step, reach = np.full(size, widest), 0.5
    step[-1] *= 3
    best = float(problem.costs(x[None])[0])
    for _ in range(rounds):
        candidates, residuals, weighted = linearise(problem, x, step, low, high)
        weight = (1 + residuals[0] ** 2) ** -0.25
        scale = np.linalg.norm(weighted, axis=0) + 1e-9
        room = reach * np.maximum(x, 0.2) + 1e-12
        bounds = np.maximum(low - x - 1e-12, -room), np.minimum(high - x + 1e-12, room)
        tries = []
        for damping in (0.003, 0.03, 0.3, 3.0):
            matrix = np.concatenate([weighted, rows, np.diag(np.sqrt(damping) * scale)])
            target = np.concatenate([-residuals[0] * weight, targets - rows @ x, np.zeros(size)])
            move = lsq_linear(matrix, target, bounds=bounds).x
            tries += [np.clip(x + length * move, low, high) for length in (0.15, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5)]
        candidates = np.concatenate([np.array(tries), candidates])
        costs = np.concatenate([problem.costs(np.array(tries)), problem.cost_of(residuals, candidates[len(tries) :])])
        before = best
        if costs.min() < best:
            x, best = candidates[np.argmin(costs)], float(costs.min())
        report(doing, best / problem.residual_count)
        if worth is not None and not worth(before, best):
            break
        if best > before * (1 - 2e-3):
            step, reach = step / 2, reach / 2
            if step[0] < widest / 9:
                break
    return Solution(x, best)


def linearise(
    problem: Problem, x: np.ndarray, step: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Central differences at `x`: the candidates (`x` first), their residuals, and the weighted Jacobian at `x`.

    Coefficients that cannot move take no candidates.
    """
    size = len(x)
    free = np.flatnonzero(high > low)
    moves = np.diag(step)[free]
    up, down = np.minimum(x + moves, high), np.maximum(x - moves, low)
    candidates = np.concatenate([x[None], up, down])
    residuals = problem.residuals(candidates)
    width = (up - down)[np.arange(len(free)), free]
    moved = (residuals[1 : len(free) + 1] - residuals[len(free) + 1 :]).T
    jacobian = np.zeros((residuals.shape[1], size))
    jacobian[:, free] = np.divide(moved, width, out=np.zeros_like(moved), where=width > 0)
    return candidates, residuals, jacobian * ((1 + residuals[0] ** 2) ** -0.25)[:, None]
