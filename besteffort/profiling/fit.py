"""Fits the terms of the serving model to a server log: `fit` finds terms that reproduce the log's times.

There are three steps, all deterministic. First, evidence that needs no simulation (`besteffort.profiling.evidence`)
yields a start. Second, the log is simulated with candidates for all terms at once
(`besteffort.profiling.log_simulation`), and Gauss-Newton steps move first and last tokens to their logged times.
Derivatives are central differences over a few percent: a request joins at an iteration's end, so its times are a
staircase in every term, of which only the slope over several steps matters. The misfit of the simulation decides which
limit held requests back, if any. Last, terms that a server may lack are changed and the rest is fitted again: where the
log then fits as well, it does not determine them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy.optimize import lsq_linear

from besteffort.errors import InputError
from besteffort.profile.types import Points
from besteffort.profiling import evidence
from besteffort.profiling.evidence import Curve
from besteffort.profiling.log_simulation import Candidates, Player
from besteffort.profiling.server_log import RequestLog

Limit = Literal["nothing", "batch", "cache"]
Progress = Callable[[str, float], None]
"""Called with the current activity and the misfit, in cost per residual."""

LEAST_REQUESTS = 8
"""Least number of requests that can be fitted."""

LANES = 32
"""Candidates per simulation; the current coefficients and each changed in two directions fit in."""
_WAITS = 8  # fewer long waits show no limit
_FULL = 0.9  # share of the waits at one batch size from which that size is the limit without further evidence
_MISFIT, _LEAST_MISFIT = (
    0.05,
    0.004,
)  # relative misfits from which a request counts as an outlier: initial, smallest
_EXCEEDED = 1.15
_STEP = 0.04  # of the central differences, in units of each coefficient
_KINK = 0.2  # prior: bend of a curve between two knots, relative to its value
_SLOPE = 0.3  # prior: change of an iteration's length over a segment of batch sizes, relative to that length
_DEPENDENT = 10.0  # requests are correlated: one residual in so many is independent evidence
_PLAIN = 0.02  # cost per residual, about 1% of error, at which the simplest explanation is good enough
_SHAPE = 0.02  # least relative error of times from which a fit's uncertainty is computed
_LOOSE = 0.2  # relative width of an interval from which a curve counts as undetermined
_CACHE_SHARE, _CACHE_SPREAD = (
    0.2,
    0.1,
)  # prior: share of an iteration that a full cache costs, and its standard deviation
_DOING: dict[Limit, str] = {"nothing": "no limit", "batch": "a largest batch", "cache": "a full cache"}
_MAX_BATCH = 512  # limit of the room for batches beyond those seen


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of the serving model as the log shows it.

    Attributes:
      name: name of the term.
      determined: whether the log determines it.
      text: its value in a sentence.
    """

    name: str
    determined: bool
    text: str


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The fit of one model on one kind of replica.

    Attributes:
      decode, prefill, context_cost_s, cache_tokens: see `besteffort.profile.ModelProfile`.
      cache_output_share: see `besteffort.profile.Profile`.
      max_batch: the largest batch: the server's limit where `limit` is `batch`, else somewhat more than any seen.
      delay_s: delay of every answer in addition to the server's own work; a cluster's network delay.
      limit: the limit that held requests back.
      terms: all terms, with whether the log determines them.
      first_s, last_s: (n,) simulated seconds from each arrival to the first and the last token.
      largest_batch: most requests that ran at once.
      batch_from: where `max_batch` is from: `given` by the user, shown by the `log`, or `assumed`, with room beyond
        `largest_batch`.
    """

    decode: Points
    prefill: Points
    context_cost_s: float
    cache_tokens: int | None
    cache_output_share: float
    max_batch: int
    delay_s: float
    limit: Limit
    terms: tuple[Term, ...]
    first_s: np.ndarray
    last_s: np.ndarray
    largest_batch: int = 1
    batch_from: Literal["given", "log", "assumed"] = "assumed"


def fit(
    log: RequestLog,
    fitted: np.ndarray | None = None,
    *,
    max_batch: int | None = None,
    cache_output_share: float | None = None,
    explain: bool = True,
    progress: Progress | None = None,
) -> Fitted:
    """Finds the terms of the serving model that explain the times of a log of one model.

    Args:
      log: the requests, all served by the same model.
      fitted: (n,) whether the fit may use each request's times; by default all. Of the other requests it uses only
        arrivals and lengths, for the simulation.
      max_batch: the server's largest batch, if known.
      cache_output_share: the share of outputs that admission claims of the cache, if known.
      explain: whether to find out which terms the log determines, which takes half of the time.
      progress: called with the current activity and the misfit.

    Raises:
      InputError: if `fitted` selects fewer than `LEAST_REQUESTS` requests, or more ran at once than `max_batch`.
    """
    rows = np.ones(len(log), bool) if fitted is None else fitted
    if rows.sum() < LEAST_REQUESTS:
        raise InputError(
            f"{log.path}: {int(rows.sum())} answered requests of a model are too few to fit its costs to; "
            f"give a log with at least {LEAST_REQUESTS}."
        )
    if max_batch is not None and max_batch < 1:
        raise InputError(f"{log.path}: the largest batch is given as {max_batch}; give at least 1.")
    seen = dataclasses.replace(log, **{k: v[rows] for k, v in vars(log).items() if isinstance(v, np.ndarray)})
    report = progress or (lambda doing, misfit: None)

    def solve(limit: Limit) -> tuple[_Problem, _Solution]:
        problem = _Problem(log, rows, seen, limit, max_batch, cache_output_share)
        found = (_descend(problem, start, rounds=8, doing=_DOING[limit], report=report) for start in problem.starts())
        return problem, min(found, key=lambda solution: solution.cost)

    simplest, *others = _possible_limits(seen, max_batch)
    problem, best = solve(simplest)
    misfit = problem.misfit(best.x)
    if misfit > _PLAIN * problem.residual_count:
        for other, solution in map(solve, others):
            # Accept a limit only if the log fits worse without it by more than chance.
            if other.misfit(solution.x) < misfit - problem.clear_rise(misfit):
                problem, best, misfit = other, solution, other.misfit(solution.x)
    while problem.tighten(best.x):
        best = _descend(problem, best.x, rounds=8, doing="sharpening", report=report)
    return _conclude(problem, best, _explain(problem, best, report) if explain else ())


def _possible_limits(log: RequestLog, max_batch: int | None) -> tuple[Limit, ...]:
    """The assumptions to try, the simplest first."""
    first_s = evidence.first_tokens(log)
    shown = evidence.limits(log, first_s, evidence.typical_times(log, first_s)[0])
    if max_batch is not None and shown.largest_batch > _EXCEEDED * max_batch:
        raise InputError(
            f"{log.path}: {shown.largest_batch} requests ran at once, but the largest batch is given as {max_batch}; "
            "correct it or leave it out."
        )
    if shown.waits < _WAITS:
        return ("nothing",)
    if max_batch is not None:
        return ("batch", "cache")
    if shown.full >= _FULL:
        return ("batch",)
    # If more requests ran than blurred times explain, the batch is not the limit.
    possible = shown.full > 1 - _FULL and shown.largest_batch < _EXCEEDED * shown.waiting_batch
    return ("nothing", "batch", "cache") if possible else ("nothing", "cache")


@dataclasses.dataclass(frozen=True)
class _Solution:
    """Coefficients, relative to their units, and their cost."""

    x: np.ndarray
    cost: float


class _Problem:
    """The cost of coefficients, for one assumption about the limit.

    The coefficients, each divided by its entry of `units`, are those of the decode curve, those of the prefill curve,
    the context cost and the delay; with a cache limit also its tokens and the share of outputs.
    """

    def __init__(
        self,
        log: RequestLog,
        rows: np.ndarray,
        seen: RequestLog,
        limit: Limit,
        max_batch: int | None,
        share: float | None,
    ) -> None:
        self.log, self.rows, self.seen, self.limit = log, rows, seen, limit
        first_s = evidence.first_tokens(seen)
        self.iteration_s, prefill_s = evidence.typical_times(seen, first_s)
        sizes, seconds = evidence.batch_sizes(seen, first_s)
        self.sizes, self.seconds = sizes, seconds
        self.decode = Curve.through(sizes, sizes * seconds, 2.0 ** np.arange(1, 6), 0.05)
        quantiles = np.unique(np.rint(np.quantile(seen.prompt_tokens, (0.15, 0.4, 0.7))))
        self.prefill = Curve.through(seen.prompt_tokens, np.ones(len(seen)), quantiles, 0.1)
        self.limits = evidence.limits(seen, first_s, self.iteration_s)
        largest = self.limits.largest_batch
        self.batch_from: Literal["given", "log", "assumed"] = "given"
        if max_batch is None:
            self.batch_from = "log" if limit == "batch" else "assumed"
            roomy = min(2 ** math.ceil(math.log2(max(1.3 * largest, 8))), max(_MAX_BATCH, largest))
            max_batch = self.limits.waiting_batch if limit == "batch" else roomy
        self.max_batch = max_batch
        self.cache = limit == "cache"
        self.share = share
        batch = float(np.average(sizes, weights=seconds)) if len(sizes) else 1.0
        self.held = batch * float(
            np.average(seen.prompt_tokens + seen.output_tokens / 2, weights=seen.output_tokens.astype(np.float64))
        )
        d, p = self.decode.columns(np.array(batch)), evidence.reading(self.prefill, seen).mean(axis=0)
        curves = np.concatenate(
            [self.iteration_s / np.maximum(d, 1), prefill_s / np.maximum(p, 1), [self.iteration_s / self.held]]
        )
        self._start = evidence.regress(seen, first_s, self.decode, self.prefill, curves) / curves
        self.units = np.append(curves, prefill_s)
        if self.cache:
            self.units = np.append(self.units, [np.median(self._cache_tokens(0.5)), 1.0])
        self.low = np.zeros(len(self.units))
        self.low[[0, self.decode.size]] = 0.02, 1e-4
        self.high = np.full(len(self.units), np.inf)
        if self.cache:
            self.low[-2], self.high[-1] = 0.05, 1.0
            if share is not None:
                self.low[-1] = self.high[-1] = share
        self._ttft_rows = rows & np.isfinite(log.ttft_s)
        self.scale = _MISFIT
        self._player = Player(log, self.max_batch, cache_limit=self.cache)
        self.prior = self._priors()

    @property
    def context(self) -> int:
        """Index of the context cost."""
        return self.decode.size + self.prefill.size

    @property
    def residual_count(self) -> int:
        return int(self._ttft_rows.sum() + self.rows.sum())

    def clear_rise(self, cost: float) -> float:
        """The least rise above `cost` that is more than chance."""
        return max(2 * _DEPENDENT * cost / self.residual_count, _PLAIN / 2 * self.residual_count)

    def cache_tokens(self, x: np.ndarray) -> int:
        """The fitted size of the cache, in whole tokens; every request of the log fits, since it was answered."""
        largest = (self.log.prompt_tokens + np.ceil(x[-1] * self.log.output_tokens)).max()
        return round(max(float(x[-2] * self.units[-2]), float(largest)))

    def starts(self) -> list[np.ndarray]:
        """Starting points: the regression, scaled by the best of several factors, for several shares of outputs."""
        x = np.append(self._start, 0.0)
        scaled = np.stack([x * pace for pace in (0.15, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0)])
        if not self.cache:
            return [scaled[np.argmin(self.costs(scaled))]]
        starts = []
        for share in (0.5, 0.75, 1.0) if self.share is None else (self.share,):
            tokens = self._cache_tokens(share) / self.units[-2]
            candidates = np.concatenate([scaled, np.tile([np.median(tokens), share], (len(scaled), 1))], axis=1)
            starts.append(candidates[np.argmin(self.costs(candidates))])
        return starts

    def values(self, x: np.ndarray) -> np.ndarray:
        """(candidates, coefficients) in seconds and tokens."""
        return x * self.units

    def play(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(candidates, n) seconds to first and last tokens of every request; up to `LANES` candidates."""
        values = self.values(np.pad(x, ((0, LANES - len(x)), (0, 0)), mode="edge"))
        d, c = self.decode.size, self.context
        table = values[:, :d] @ self.decode.columns(np.arange(self.max_batch + 1)).T
        table[:, 0] = 0.0
        claims, tokens = np.zeros((LANES, len(self.log))), np.full(LANES, np.inf)
        if self.cache:
            claims = self.log.prompt_tokens + np.ceil(values[:, -1:] * self.log.output_tokens)
            tokens = np.maximum(values[:, -2], claims.max(axis=1))
        prefill_s = values[:, d:c] @ evidence.reading(self.prefill, self.log).T
        first_s, last_s = self._player.play(Candidates(table, prefill_s, values[:, c], tokens, claims))
        delay_s = values[:, c + 1, None]
        return (first_s + delay_s)[: len(x)], (last_s + delay_s)[: len(x)]

    def residuals(self, x: np.ndarray) -> np.ndarray:
        """(candidates, residuals) misfits of first tokens, last tokens and, with a cache limit, of admissions.

        A request's misfit is in units of `scale` times the root sum of squares of its time and the mean time. The mean
        counts because the errors of all earlier requests accumulate at the end of a long queue.
        """
        first_s, last_s = self.play(x)
        parts = []
        for simulated, logged, rows in (
            (first_s, self.log.ttft_s, self._ttft_rows),
            (last_s, self.log.latency_s, self.rows),
        ):
            if rows.any():
                measured = logged[rows]
                parts.append((simulated[:, rows] - measured) / (self.scale * np.hypot(measured, measured.mean())))
        if self.cache:
            values = self.values(x)
            tokens = values[:, -2:-1]
            now, more = self.limits.claims(values[:, -1])
            held_back = np.isfinite(self.limits.next_tokens[:, 0])
            amiss = np.maximum(now - tokens, 0)[:, held_back] + np.maximum(tokens - more, 0)[:, held_back]
            parts.append(amiss / (self.scale * tokens))
        return np.nan_to_num(np.concatenate(parts, axis=1), nan=1e3, posinf=1e3, neginf=-1e3)

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
        scale = float(np.clip(1.5 * typical, _LEAST_MISFIT, self.scale))
        changed = scale < 0.5 * self.scale
        self.scale = scale if changed else self.scale
        return changed

    def _cache_tokens(self, share: float) -> np.ndarray:
        """Cache sizes half-way between the tokens that fitted and those that did not."""
        now, more = self.limits.claims(np.array(share))
        return ((now + more) / 2)[np.isfinite(more)]

    def _priors(self) -> tuple[np.ndarray, np.ndarray]:
        rows, targets = [], []
        for offset, curve, least in (
            (0, self.decode, self.iteration_s),
            (self.decode.size, self.prefill, self.units[self.context + 1]),
        ):
            start = (self._start * self.units[: len(self._start)])[offset : offset + curve.size]
            for k in range(1, curve.size - 1):
                value = max(float(curve.columns(np.array(curve.knots[k])) @ start), least)
                row = np.zeros(len(self.units))
                row[offset + k : offset + k + 2] = np.array([-1.0, 1.0]) * self.units[offset + k : offset + k + 2]
                rows.append(row * (curve.knots[k + 1] - curve.knots[k]) / (_KINK * value))
                targets.append(0.0)
        row = np.zeros(len(self.units))
        row[self.context + 1] = 10.0  # a delay looks like a prefill that delays no other request; prefer a prefill
        rows.append(row)
        targets.append(0.0)
        # Where the number of tokens held hardly changes, as with a full cache, a log cannot separate their cost from
        # that of the weights. Both go through the same memory, and the cache gets the memory that the weights leave, so
        # a full cache costs a part of every iteration. The size of that part is an assumption, checked on one real log.
        row = np.zeros(len(self.units))
        row[self.context] = 1.0 / _CACHE_SPREAD if self.cache else 1.0
        rows.append(row)
        targets.append(_CACHE_SHARE / _CACHE_SPREAD if self.cache else 0.0)
        for k in range(1, self.decode.size):
            row = np.zeros(len(self.units))
            row[k] = self.units[k] * (self.decode.knots[k] - self.decode.knots[k - 1]) / (_SLOPE * self.iteration_s)
            rows.append(row)
            targets.append(0.0)
        weight = math.sqrt(_DEPENDENT)
        return weight * np.array(rows), weight * np.array(targets)


def _descend(
    problem: _Problem, x: np.ndarray, *, rounds: int, doing: str, report: Progress, fixed: int | None = None
) -> _Solution:
    """Gauss-Newton that tries several dampings and step lengths at once; the cost never rises."""
    size = len(x)
    low, high = problem.low.copy(), problem.high.copy()
    if fixed is not None:
        low[fixed] = high[fixed] = x[fixed]
    x = np.clip(x, low, high)
    rows, targets = problem.prior
    widest = _STEP * problem.scale / _MISFIT
    step, reach = np.full(size, widest), 0.5
    if problem.cache:
        step[-1] *= 3
    best = float(problem.costs(x[None])[0])
    for _ in range(rounds):
        candidates, residuals, weighted = _linearise(problem, x, step, low, high)
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
        if best > before * (1 - 2e-3):
            step, reach = step / 2, reach / 2
            if step[0] < widest / 9:
                break
    return _Solution(x, best)


def _linearise(
    problem: _Problem, x: np.ndarray, step: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Central differences at `x`: the candidates (`x` first), their residuals, and the weighted Jacobian at `x`."""
    size = len(x)
    up, down = np.minimum(x + np.diag(step), high), np.maximum(x - np.diag(step), low)
    candidates = np.concatenate([x[None], up, down])
    residuals = problem.residuals(candidates)
    width = np.diag(up - down)
    moved = (residuals[1 : size + 1] - residuals[size + 1 :]).T
    jacobian = np.divide(moved, width, out=np.zeros_like(moved), where=width > 0)
    return candidates, residuals, jacobian * ((1 + residuals[0] ** 2) ** -0.25)[:, None]


def _conclude(problem: _Problem, best: _Solution, terms: tuple[Term, ...]) -> Fitted:
    values = problem.values(best.x[None])[0]
    d, c = problem.decode.size, problem.context
    first_s, last_s = (times[0] for times in problem.play(best.x[None]))
    return Fitted(
        decode=_points(problem.decode, values[:d]),
        prefill=_points(problem.prefill, values[d:c]),
        context_cost_s=float(values[c]),
        cache_tokens=problem.cache_tokens(best.x) if problem.cache else None,
        cache_output_share=float(values[-1]) if problem.cache else 1.0,
        max_batch=problem.max_batch,
        delay_s=float(values[c + 1]),
        limit=problem.limit,
        terms=terms,
        first_s=first_s,
        last_s=last_s,
        largest_batch=problem.limits.largest_batch,
        batch_from=problem.batch_from,
    )


def _explain(problem: _Problem, best: _Solution, report: Progress) -> tuple[Term, ...]:
    """Describes all terms and whether the log determines them."""
    values, covariance = problem.values(best.x[None])[0], _covariance(problem, best.x)
    d, c = problem.decode.size, problem.context
    seen, shown = problem.seen, problem.limits
    tokens = problem.sizes * problem.seconds
    batches, prompts = _middle(problem.sizes, tokens), _middle(seen.prompt_tokens, np.ones(len(seen)))
    held = problem.held / max(float(np.average(problem.sizes, weights=problem.seconds)), 1.0)
    decode = np.zeros((len(batches), len(best.x)))
    decode[:, :d], decode[:, c] = problem.decode.columns(np.array(batches)), held * np.array(batches)
    prefill = np.zeros((len(prompts), len(best.x)))
    prefill[:, d:c] = problem.prefill.columns(np.array(prompts))
    terms = [
        _curve_term("decode", values, covariance, decode, batches, "decode iteration at batch size", "batch sizes"),
        _curve_term("prefill", values, covariance, prefill, prompts, "prefill of", "prompt lengths"),
    ]
    if shown.largest_batch == 1:
        text = "No two requests ran at once, so larger batches are unknown and assumed to cost as much as one request."
        terms.append(Term("larger batches", False, text))

    misfit = problem.misfit(best.x)

    def matters(index: int, value: float) -> bool:
        """Whether the log fits clearly worse with another value of a coefficient, after refitting the rest."""
        moved = best.x.copy()
        moved[index] = value
        other = _descend(problem, moved, rounds=4, doing="testing", report=report, fixed=index)
        return problem.misfit(other.x) > misfit + problem.clear_rise(misfit)

    share = float(best.x[c])
    taken = f"{1e9 * values[c]:.3g} ns per token held, {share:.0%} of a typical iteration"
    if matters(c, 0.0 if share > 0.02 else 0.1):
        terms.append(Term("context cost", True, f"Context cost {taken}."))
    else:
        why = "typical of servers with a full cache" if problem.cache else "which fits as well as others"
        terms.append(
            Term("context cost", False, f"The log fits as well without a context cost; assumed: {taken}, {why}.")
        )
    terms += _limit_terms(problem, best, matters)
    return tuple(terms)


def _limit_terms(problem: _Problem, best: _Solution, matters: Callable[[int, float], bool]) -> list[Term]:
    shown, tokens = problem.limits, int(problem.limits.claims(np.array(1.0))[0].max())
    unknown_cache = f"the cache was never full, and holds at least {tokens:,} tokens"
    if problem.limit == "nothing":
        text = (
            f"Nothing held requests back: {unknown_cache}; at least {shown.largest_batch} requests fit a batch. "
            f"The log does not show larger limits."
        )
        return [Term("limits", False, text)]
    if problem.limit == "batch":
        text = f"Requests waited while {problem.max_batch} ran: `max_batch` is {problem.max_batch}."
        return [Term("largest batch", True, text), Term("cache", False, f"As far as the log shows, {unknown_cache}.")]
    share = float(best.x[-1])
    size = f"`cache_tokens` {problem.cache_tokens(best.x):,}, counting {share:.0%} of outputs"
    text = f"The cache held requests back: {size}."
    terms = [Term("cache", True, text)]
    others = [value for value in (max(0.0, share - 0.3), min(1.0, share + 0.3)) if abs(value - share) > 0.1]
    if problem.share is None and not all(matters(len(best.x) - 1, value) for value in others):
        text = "Other shares of outputs, with another size of the cache, fit as well: use the two only together."
        terms.append(Term("share of outputs", False, text))
    text = f"At most {shown.largest_batch} requests ran at once, as the cache was full; `max_batch` is at least that."
    terms.append(Term("largest batch", False, text))
    return terms


def _curve_term(
    name: str,
    values: np.ndarray,
    covariance: np.ndarray,
    columns: np.ndarray,
    at: tuple[int, int],
    what: str,
    axis: str,
) -> Term:
    """A curve at both ends of the range that most of the log covers (rows of `columns`), +- two standard deviations."""
    seconds = columns @ values
    spread_s = 2 * np.sqrt(np.einsum("ij,jk,ik->i", columns, covariance, columns))
    clear = bool((spread_s < _LOOSE * seconds).all())
    shown = [f"{1e3 * v:.3g} ± {1e3 * s:.2g} ms" for v, s in zip(seconds, spread_s, strict=True)]
    text = f"A {what} {at[0]} lasts {shown[0]}"
    if at[1] > at[0]:
        text += f", of {at[1]} {shown[1]}"
    text += f"; the log covers {axis} {_range(at)}, values beyond are extrapolated."
    return Term(name, clear, text if clear else f"{text} The intervals are wide: the log hardly determines it.")


def _covariance(problem: _Problem, x: np.ndarray) -> np.ndarray:
    """Covariance of the coefficients, in seconds and tokens, as if one in `_DEPENDENT` residuals were independent."""
    step = np.full(len(x), _STEP * problem.scale / _MISFIT)
    _, residuals, weighted = _linearise(problem, x, step, problem.low, problem.high)
    size = float(np.mean(residuals[0] ** 2 / np.sqrt(1 + residuals[0] ** 2)))
    rows, _ = problem.prior
    # Even without noise, curves of a few segments have an error, and no term is known more precisely than that.
    size = max(size, (_SHAPE / problem.scale) ** 2)
    information = (weighted.T @ weighted) / size + rows.T @ rows
    inverse = np.linalg.pinv(information / _DEPENDENT + 1e-6 * np.eye(len(x)))
    return np.asarray(inverse * problem.units * problem.units[:, None])


def _middle(values: np.ndarray, weight: np.ndarray) -> tuple[int, int]:
    """The two of `values` that enclose 98% of the weight."""
    order = np.argsort(values)
    past = np.cumsum(weight[order]) / weight.sum()
    low, high = np.minimum(np.searchsorted(past, (0.01, 0.99)), len(values) - 1)
    return int(values[order[low]]), int(values[order[high]])


def _range(ends: tuple[int, int]) -> str:
    return f"{ends[0]}" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _points(curve: Curve, coefficients: np.ndarray) -> Points:
    """The curve's knots with their values in seconds, rounded to a nanosecond."""
    seconds = np.maximum(np.round(curve.columns(curve.knots) @ coefficients, 9), 1e-9)
    return tuple((int(x), float(y)) for x, y in zip(curve.knots, np.maximum.accumulate(seconds), strict=True))
