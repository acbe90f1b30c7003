"""Fits the terms of the serving model to a server log: `fit` finds terms that reproduce the log's times.

There are four steps, all deterministic. First, evidence that needs no simulation (`besteffort.profiling.evidence`)
yields a start. Second, limits and chunks are tried as candidates and chosen by what each predicts on stretches of the
log held out (`besteffort.profiling.choice`). Third, the terms are fitted to all times under what was chosen
(`besteffort.profiling.problem`). Last, terms that a server may lack are changed and the rest is fitted again: where the
log then fits as well, it does not determine them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from besteffort.errors import InputError
from besteffort.profile.types import Points
from besteffort.profiling.choice import EXCEEDED, Bases, choose
from besteffort.profiling.evidence import Curve
from besteffort.profiling.problem import (
    DEPENDENT,
    MISFIT,
    STEP,
    Assumption,
    Basis,
    Limit,
    Problem,
    Progress,
    Solution,
    descend,
    linearise,
)
from besteffort.profiling.server_log import RequestLog

LEAST_REQUESTS = 8
"""Least number of requests that can be fitted."""

_PLAIN = 0.02  # cost per residual, about 1% of error, at which the simplest explanation is good enough
_SHAPE = 0.02  # least relative error of times from which a fit's uncertainty is computed
_LOOSE = 0.2  # relative width of an interval from which a curve counts as undetermined


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
      chunk_tokens: see `besteffort.profile.ModelProfile`.
      shared_tokens: tokens that a prefix cache is suspected to have had of every prompt; `prefill` leaves them out.
      assumed: what was assumed.
      alike: what predicts stretches of the log held out about as well.
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
    chunk_tokens: int | None = None
    shared_tokens: int = 0
    assumed: Assumption = dataclasses.field(default_factory=Assumption)
    alike: tuple[Assumption, ...] = ()


def fit(
    log: RequestLog,
    fitted: np.ndarray | None = None,
    *,
    max_batch: int | None = None,
    cache_output_share: float | None = None,
    explain: bool = True,
    among: Sequence[Assumption] | None = None,
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
      among: limits and chunks that are tried; by default a search.
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
    report = progress or (lambda doing, misfit: None)
    bases = Bases(log, rows, max_batch, cache_output_share)
    if max_batch is not None and bases[0].limits.largest_batch > EXCEEDED * max_batch:
        raise InputError(
            f"{log.path}: {bases[0].limits.largest_batch} requests ran at once, but the largest batch is given as "
            f"{max_batch}; correct it or leave it out."
        )
    choice = choose(bases, max_batch, report, among)
    assumed = choice.chosen.assumption
    problem = Problem(bases[assumed.shared_tokens], assumed)
    starts = [choice.chosen.x, *problem.starts()]
    found = (descend(problem, start, rounds=8, doing=f"all, {assumed}", report=report) for start in starts)
    best = min(found, key=lambda solution: solution.cost)
    while problem.tighten(best.x):
        best = descend(problem, best.x, rounds=8, doing="sharpening", report=report)
    terms = _explain(problem, best, choice.alike, report) if explain else ()
    return _conclude(problem, best, choice.alike, terms, given=max_batch is not None)


def _clear_rise(problem: Problem, cost: float) -> float:
    """The least rise above `cost` that is more than chance."""
    return max(2 * DEPENDENT * cost / problem.residual_count, _PLAIN / 2 * problem.residual_count)


def _conclude(
    problem: Problem, best: Solution, alike: tuple[Assumption, ...], terms: tuple[Term, ...], *, given: bool
) -> Fitted:
    basis, assumed = problem.basis, problem.assumption
    values = best.x * basis.units
    d, c = basis.decode.size, basis.context
    prefill = _effective(basis.prefill, values[d:c], assumed.shared_tokens)
    reads = prefill if assumed.shared_tokens else None
    first_s, last_s = (times[0] for times in problem.play(best.x[None], whole=True, prefill=reads))
    return Fitted(
        decode=_points(basis.decode, values[:d]),
        prefill=prefill,
        context_cost_s=float(values[c]),
        cache_tokens=problem.cache_tokens(best.x) if assumed.cache else None,
        cache_output_share=float(values[-1]) if assumed.cache else 1.0,
        max_batch=problem.max_batch,
        delay_s=float(values[c + 1]),
        limit=assumed.limit,
        terms=terms,
        first_s=first_s,
        last_s=last_s,
        largest_batch=basis.limits.largest_batch,
        batch_from="given" if given else "assumed" if assumed.max_batch is None else "log",
        chunk_tokens=assumed.chunk_tokens,
        shared_tokens=assumed.shared_tokens,
        assumed=assumed,
        alike=alike,
    )


def _explain(problem: Problem, best: Solution, alike: tuple[Assumption, ...], report: Progress) -> tuple[Term, ...]:
    """Describes all terms and whether the log determines them."""
    basis = problem.basis
    values, covariance = best.x * basis.units, _covariance(problem, best.x)
    d, c = basis.decode.size, basis.context
    seen, shown = basis.seen, basis.limits
    prompts = _middle(seen.prompt_tokens, np.ones(len(seen)))
    prefill = np.zeros((len(prompts), len(best.x)))
    prefill[:, d:c] = _read(basis.prefill, np.array(prompts), problem.assumption.shared_tokens)
    terms = [
        _decode_term(basis, values, covariance),
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
        other = descend(problem, moved, rounds=4, doing="testing", report=report, fixed=index)
        return problem.misfit(other.x) > misfit + _clear_rise(problem, misfit)

    share = float(best.x[c])
    taken = f"{1e9 * values[c]:.3g} ns per token held, {share:.0%} of a typical iteration"
    if matters(c, 0.0 if share > 0.02 else 0.1):
        terms.append(Term("context cost", True, f"Context cost {taken}."))
    else:
        why = "typical of servers with a full cache" if problem.assumption.cache else "which fits as well as others"
        terms.append(
            Term("context cost", False, f"The log fits as well without a context cost; assumed: {taken}, {why}.")
        )
    terms += _limit_terms(problem, best, alike, matters)
    return (*_assumed_terms(problem, alike), *terms)


def _assumed_terms(problem: Problem, alike: tuple[Assumption, ...]) -> list[Term]:
    """What predicts the stretches held out, and what does as well."""
    used = problem.assumption
    found = []
    chunks = _distinct([used, *alike], lambda each: each.chunk_tokens)
    words = "prompts are read whole" if used.chunk_tokens is None else f"`chunk_tokens` is {used.chunk_tokens:,}"
    if len(chunks) > 1:
        text = f"`chunk_tokens`: undetermined between {_words(chunks, 'none')}; taken: {words}."
        found.append(Term("chunk tokens", False, text))
    elif used.chunk_tokens is None:
        text = "No `chunk_tokens` that was tried predicts better than prompts read whole."
        found.append(Term("chunk tokens", True, text))
    else:
        text = f"`chunk_tokens` is {used.chunk_tokens:,}: no other that was tried predicts as well."
        found.append(Term("chunk tokens", True, text))
    prefixes = _distinct([used, *alike], lambda each: each.shared_tokens or None)
    if prefixes != [None]:
        best = used.shared_tokens or next(each.shared_tokens for each in alike if each.shared_tokens)
        text = (
            f"Suspected: all prompts share a prefix of about {best:,} tokens, which a prefix cache has. Predictions "
            f"are as good with {_words(prefixes, 'none')}; taken: {used.shared_tokens or 'none'}. Where you know it, "
            "state `cached_tokens` for each request of the log."
        )
        found.append(Term("shared prefix", False, text))
    return found


def _distinct(alike: Iterable[Assumption], of: Callable[[Assumption], int | None]) -> list[int | None]:
    """The values that assumptions have, each once, none first."""
    return sorted({of(each) for each in alike}, key=lambda value: value or 0)


def _words(values: Sequence[int | None], nothing: str) -> str:
    """Numbers as a list, with a word for none: `none, 512 and 1,024`."""
    listed = [nothing if value is None else f"{value:,}" for value in values]
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"


def limit_words(assumptions: Iterable[Assumption]) -> str:
    """Limits as a list: `no limit, a largest batch of 24 and a full cache`."""
    kinds = []
    for each in sorted(assumptions, key=lambda each: (each.cache, each.max_batch or 0)):
        batch = "no limit" if each.max_batch is None else f"a largest batch of {each.max_batch}"
        kinds.append("a full cache" if each.cache else batch)
    listed = list(dict.fromkeys(kinds))
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"


def _limit_terms(
    problem: Problem, best: Solution, alike: tuple[Assumption, ...], matters: Callable[[int, float], bool]
) -> list[Term]:
    basis, used = problem.basis, problem.assumption
    shown, tokens = basis.limits, int(basis.limits.claims(np.array(1.0))[0].max())
    unknown_cache = f"the cache was never full, and holds at least {tokens:,} tokens"
    limits = {(each.cache, each.max_batch): each for each in (used, *alike)}
    others = f"What held requests back is undetermined between {limit_words(limits.values())}"
    if used.limit == "nothing":
        # Batches of at least as many as ran at once are no other explanation.
        told = any(cache or (batch or shown.largest_batch) < shown.largest_batch for cache, batch in limits)
        text = (
            f"Nothing held requests back: {unknown_cache}; at least {shown.largest_batch} requests fit a batch. "
            f"The log does not show larger limits."
        )
        if told:
            text = f"{others}; taken: no limit. At least {shown.largest_batch} requests fit a batch."
        return [Term("limits", False, text)]
    if used.limit == "batch":
        cache = Term("cache", False, f"As far as the log shows, {unknown_cache}.")
        if basis.given:
            return [Term("largest batch", True, f"`max_batch` is {problem.max_batch}, as given."), cache]
        if len(limits) > 1:
            return [Term("largest batch", False, f"{others}; taken: `max_batch` is {problem.max_batch}."), cache]
        text = f"Requests waited while {problem.max_batch} ran: `max_batch` is {problem.max_batch}."
        return [Term("largest batch", True, text), cache]
    share = float(best.x[-1])
    size = f"`cache_tokens` {problem.cache_tokens(best.x):,}, counting {share:.0%} of outputs"
    clear = len(limits) == 1
    text = f"The cache held requests back: {size}." if clear else f"{others}; taken: a full cache, {size}."
    terms = [Term("cache", clear, text)]
    shares = [value for value in (max(0.0, share - 0.3), min(1.0, share + 0.3)) if abs(value - share) > 0.1]
    if basis.share is None and not all(matters(len(best.x) - 1, value) for value in shares):
        text = "Other shares of outputs, with another size of the cache, fit as well: use the two only together."
        terms.append(Term("share of outputs", False, text))
    text = f"At most {shown.largest_batch} requests ran at once, as the cache was full; `max_batch` is at least that."
    terms.append(Term("largest batch", False, text))
    return terms


def _decode_term(basis: Basis, values: np.ndarray, covariance: np.ndarray) -> Term:
    """What a decode iteration lasts, with a context cost as requests of the log have it."""
    d, c = basis.decode.size, basis.context
    if not len(basis.sizes):  # as of a model that classifies
        assumed = _plain(1e3 * float(basis.decode.columns(np.array(1.0)) @ values[:d]), 3)
        text = f"No request has a second token, so decode iterations are unknown and assumed to last {assumed} ms."
        return Term("decode", False, text)
    batches = _middle(basis.sizes, basis.sizes * basis.seconds)
    held = basis.held / max(float(np.average(basis.sizes, weights=basis.seconds)), 1.0)
    columns = np.zeros((len(batches), len(values)))
    columns[:, :d], columns[:, c] = basis.decode.columns(np.array(batches)), held * np.array(batches)
    return _curve_term("decode", values, covariance, columns, batches, "decode iteration at batch size", "batch sizes")


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
    shown = [f"{_plain(1e3 * v, 3)} ± {_plain(1e3 * s, 2)} ms" for v, s in zip(seconds, spread_s, strict=True)]
    text = f"A {what} {at[0]} lasts {shown[0]}"
    if at[1] > at[0]:
        text += f", of {at[1]} {shown[1]}"
    text += f"; the log covers {axis} {_range(at)}, values beyond are extrapolated."
    return Term(name, clear, text if clear else f"{text} The intervals are wide: the log hardly determines it.")


def _covariance(problem: Problem, x: np.ndarray) -> np.ndarray:
    """Covariance of the coefficients, in seconds and tokens, as if one in `DEPENDENT` residuals were independent."""
    step, units = np.full(len(x), STEP * problem.scale / MISFIT), problem.basis.units
    _, residuals, weighted = linearise(problem, x, step, problem.low, problem.high)
    size = float(np.mean(residuals[0] ** 2 / np.sqrt(1 + residuals[0] ** 2)))
    rows, _ = problem.prior
    # Even without noise, curves of a few segments have an error, and no term is known more precisely than that.
    size = max(size, (_SHAPE / problem.scale) ** 2)
    information = (weighted.T @ weighted) / size + rows.T @ rows
    inverse = np.linalg.pinv(information / DEPENDENT + 1e-6 * np.eye(len(x)))
    return np.asarray(inverse * units * units[:, None])


def _middle(values: np.ndarray, weight: np.ndarray) -> tuple[int, int]:
    """The two of `values` that enclose 98% of the weight."""
    order = np.argsort(values)
    past = np.cumsum(weight[order]) / weight.sum()
    low, high = np.minimum(np.searchsorted(past, (0.01, 0.99)), len(values) - 1)
    return int(values[order[low]]), int(values[order[high]])


def _range(ends: tuple[int, int]) -> str:
    return f"{ends[0]}" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _plain(value: float, digits: int) -> str:
    """A value to so many digits, large ones without a power of ten."""
    return f"{float(f'{value:.{digits}g}'):g}"


def _points(curve: Curve, coefficients: np.ndarray) -> Points:
    """The curve's knots with their values in seconds, rounded to a nanosecond."""
    seconds = np.maximum(np.round(curve.columns(curve.knots) @ coefficients, 9), 1e-9)
    return tuple((int(x), float(y)) for x, y in zip(curve.knots, np.maximum.accumulate(seconds), strict=True))


def _read(curve: Curve, tokens: np.ndarray, shared_tokens: int) -> np.ndarray:
    """(*tokens.shape, size) contribution of each coefficient to reading prompts whose first tokens are found."""
    whole = curve.columns(tokens)
    return whole - curve.columns(np.minimum(shared_tokens, tokens - 1)) if shared_tokens else whole


def _effective(curve: Curve, coefficients: np.ndarray, shared_tokens: int) -> Points:
    """The prefill of a profile, which knows no shared prefix: reading what is not found of prompts of each length."""
    if not shared_tokens:
        return _points(curve, coefficients)
    at = np.unique(np.concatenate([[1.0, shared_tokens + 1.0], curve.knots[curve.knots > shared_tokens]]))
    seconds = np.maximum(np.round(_read(curve, at, shared_tokens) @ coefficients, 9), 1e-9)
    return tuple((int(x), float(y)) for x, y in zip(at, np.maximum.accumulate(seconds), strict=True))
