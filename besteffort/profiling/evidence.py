"""Evidence from a server log without simulation: which requests ran together, and what held others back.

It uses the times of first and last tokens. Between them a request gains one token per iteration, so its time per token
is the mean length of the iterations that it saw: the cost of batches of those sizes and of the tokens that they held,
plus its share of the prefills in between. That is linear in the terms of the serving model. NumPy and SciPy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from scipy.optimize import least_squares

from besteffort.profiling.server_log import RequestLog

_TIGHT = 0.05  # relative misfit from which a regression row counts as an outlier
_GAP_ITERATIONS = 3.0  # a shorter wait is only the wait for an iteration's end


@dataclasses.dataclass(frozen=True)
class Curve:
    """A rising, piecewise linear function of a count: a value at 1, and a slope of at least 0 in every segment.

    Attributes:
      knots: (size,) 1, the points where the slope changes, and the end of the data.
    """

    knots: np.ndarray

    @property
    def size(self) -> int:
        """Number of coefficients: the value at 1, then the slopes."""
        return len(self.knots)

    def columns(self, x: np.ndarray) -> np.ndarray:
        """(*x.shape, size) contribution of a unit of each coefficient at `x`; the last slope holds beyond the data."""
        x = np.maximum(np.asarray(x, np.float64), 1.0)[..., None]
        ends = np.append(self.knots[1:-1], np.inf)[: self.size - 1]
        stretches = np.clip(x, self.knots[:-1], ends) - self.knots[:-1]
        return np.concatenate([np.ones_like(x), stretches], axis=-1)

    @classmethod
    def through(cls, values: np.ndarray, weight: np.ndarray, knots: np.ndarray, share: float) -> Curve:
        """A curve up to the largest of `values`, with those `knots` that leave `share` of the weight on both sides.

        Args:
          values: (n,) positions of the data.
          weight: (n,) weights of the data.
          knots: candidate knots, ascending.
          share: least share of the weight between two knots.
        """
        last = float(np.ceil(values.max(initial=1.0)))
        kept = [1.0]
        for knot in knots[(knots > 1) & (knots < last)]:
            since, beyond = (weight[part].sum() for part in ((values >= kept[-1]) & (values < knot), values >= knot))
            if min(since, beyond) >= share * weight.sum():
                kept.append(float(knot))
        return cls(np.array([*kept, last] if last > 1 else kept))


@dataclasses.dataclass(frozen=True)
class Limits:
    """Evidence of the limit that held requests back while some waited for longer than an iteration.

    Attributes:
      largest_batch: most requests that ran at once.
      waits: number of times that requests waited.
      waiting_batch: median number of running requests during the waits.
      full: share of the waits with that many running requests, up to a tenth more or less.
      prompt_tokens, output_tokens, requests: (admissions,) sums over all requests that ran after each admission.
      next_tokens: (admissions, 2) prompt and output length of the request that had to wait then; nan where none had to.
    """

    largest_batch: int
    waits: int
    waiting_batch: int
    full: float
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    requests: np.ndarray
    next_tokens: np.ndarray

    def claims(self, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(*share.shape, admissions) tokens claimed after each admission, without and with the request that waited.

        Rounding up each request's `share x output tokens` counts with its mean effect.
        """
        share = np.asarray(share, np.float64)[..., None]
        half = np.where((share > 0) & (share < 1), 0.5, 0.0)
        claimed = self.prompt_tokens + share * self.output_tokens + half * self.requests
        return claimed, claimed + self.next_tokens[:, 0] + share * self.next_tokens[:, 1] + half


def reading(prefill: Curve, log: RequestLog) -> np.ndarray:
    """(n, size) contribution of a unit of each coefficient to reading what was not found of each prompt."""
    whole = prefill.columns(log.prompt_tokens)
    if log.cached_tokens is None:
        return whole
    found = log.cached_tokens[:, None] > 0
    return np.where(found, whole - prefill.columns(log.cached_tokens), whole)


def first_tokens(log: RequestLog) -> np.ndarray:
    """(n,) times of first tokens; where the log has none, estimated from the other requests' time per token.

    If the log has no first tokens at all, the estimate uses the time per token of the fastest requests.
    """
    tokens = np.maximum(log.output_tokens - 1, 1)
    pace_s = (log.last_token_s - log.first_token_s) / tokens
    known = np.isfinite(pace_s) & (log.output_tokens > 1)
    typical_s = np.median(pace_s[known]) if known.any() else np.quantile(log.latency_s / log.output_tokens, 0.1)
    guess_s = np.maximum(log.last_token_s - (log.output_tokens - 1) * typical_s, log.arrival_s)
    return np.where(np.isfinite(log.first_token_s), log.first_token_s, guess_s)


def batch_sizes(log: RequestLog, first_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Batch sizes that occur, and the seconds spent at each, over all replicas."""
    seconds = np.zeros(len(log) + 1)
    for rows in replicas(log):
        times, running, _ = _sweep(log, first_s, rows)
        np.add.at(seconds, running, np.diff(times, append=times[-1]))
    seconds[0] = 0.0
    sizes = np.flatnonzero(seconds)
    return sizes, seconds[sizes]


def typical_times(log: RequestLog, first_s: np.ndarray) -> tuple[float, float]:
    """Approximate seconds of a typical iteration and of a typical prefill, which scale the fit."""
    several = log.output_tokens > 1
    spans_s = np.where(several, log.last_token_s - first_s, log.latency_s) / np.maximum(log.output_tokens - 1, 1)
    iteration_s = float(np.median(spans_s))
    ttft_s = first_s - log.arrival_s
    return iteration_s, float(np.clip(np.quantile(ttft_s, 0.1), 0.1 * iteration_s, 10 * iteration_s))


def regress(log: RequestLog, first_s: np.ndarray, decode: Curve, prefill: Curve, units: np.ndarray) -> np.ndarray:
    """Fits both curves and the context cost by robust least squares to times per token and times to first token.

    Args:
      log: the requests.
      first_s: (n,) times of first tokens, see `first_tokens`.
      decode: curve over batch sizes.
      prefill: curve over prompt lengths.
      units: (decode.size + prefill.size + 1,) size from which each coefficient matters.

    Returns:
      The coefficients of `decode`, of `prefill`, and the context cost.
    """
    blocks = [_rows(log, first_s, rows, decode, prefill) for rows in replicas(log)]
    columns, target_s, weight = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    matrix = columns * units / target_s[:, None] * weight[:, None]
    # A weak pull to zero decides where the rows cannot. It favours the constant parts, which come first.
    pull = np.full(len(units), 0.03)
    pull[[0, decode.size]] = 0.003
    matrix = np.concatenate([matrix, np.diag(pull)])
    target = np.concatenate([weight, np.zeros(len(units))])
    found = least_squares(
        lambda x: matrix @ x - target,
        np.full(len(units), 0.5),
        jac=lambda x: matrix,
        bounds=(0.0, np.inf),
        loss="soft_l1",
        f_scale=_TIGHT,
    )
    return np.asarray(found.x * units)


def limits(log: RequestLog, first_s: np.ndarray, iteration_s: float) -> Limits:
    """Finds what held requests back; `iteration_s` is the length of a typical iteration."""
    gap_s = _GAP_ITERATIONS * iteration_s
    largest, events = 0, []
    for rows in replicas(log):
        rows = rows[np.argsort(first_s[rows], kind="stable")]
        first, last = first_s[rows], log.last_token_s[rows]
        lengths = np.stack([np.ones(len(rows)), log.prompt_tokens[rows], log.output_tokens[rows]])
        left = np.argsort(last, kind="stable")
        # Requests that had their first token by then and had not left before: the batch of that iteration.
        gone = np.searchsorted(last[left], first, side="left")
        sums = np.concatenate([np.zeros((3, 1)), np.cumsum(lengths[:, left], axis=1)], axis=1)
        running = np.cumsum(lengths, axis=1) - sums[:, gone]
        waited = np.zeros(len(rows), bool)
        waited[:-1] = (first[1:] - first[:-1] > gap_s) & (log.arrival_s[rows][1:] < first[:-1] - gap_s)
        following = np.full((2, len(rows)), np.nan)
        following[:, :-1] = np.where(waited[:-1], lengths[1:, 1:], np.nan)
        events.append(np.concatenate([running, following]))
        largest = max(largest, int(running[0].max()))
    requests, prompts, outputs, next_prompt, next_output = np.concatenate(events, axis=1)
    waits = np.isfinite(next_prompt)
    typical = float(np.median(requests[waits])) if waits.any() else 0.0
    return Limits(
        largest_batch=largest,
        waits=int(waits.sum()),
        waiting_batch=round(typical),
        full=float((np.abs(requests[waits] - typical) <= 0.1 * typical).mean()) if waits.any() else 0.0,
        prompt_tokens=prompts,
        output_tokens=outputs,
        requests=requests,
        next_tokens=np.stack([next_prompt, next_output], axis=1),
    )


def replicas(log: RequestLog) -> Iterator[np.ndarray]:
    """Indices of the requests of each replica."""
    for index in range(len(log.replicas)):
        rows = np.flatnonzero(log.replica == index)
        if len(rows):
            yield rows


def _sweep(log: RequestLog, first_s: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times at which requests of one replica begin or end decoding, and the batch sizes and tokens held after them."""
    first, last = first_s[rows], log.last_token_s[rows]
    prompt, output = log.prompt_tokens[rows].astype(np.float64), log.output_tokens[rows].astype(np.float64)
    pace = (output - 1) / np.maximum(last - first, 1e-9)
    times = np.concatenate([first, last])
    order = np.argsort(times, kind="stable")
    begins = np.repeat([1.0, -1.0], len(rows))
    # Tokens held are `sum of (prompt + 1 + pace (t - first))` over the running ones: a constant and a slope in t.
    steps = np.stack([begins, begins * np.tile(prompt + 1 - pace * first, 2), begins * np.tile(pace, 2)])
    running, constant, slope = np.cumsum(steps[:, order], axis=1)
    times = times[order]
    return times, np.rint(running).astype(np.int64), np.maximum(constant + slope * times, 0.0)


def _rows(
    log: RequestLog, first_s: np.ndarray, rows: np.ndarray, decode: Curve, prefill: Curve
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equations of one replica: contribution of each coefficient, their sum in seconds, and a weight."""
    times, running, held = _sweep(log, first_s, rows)
    first, last, arrival = first_s[rows], log.last_token_s[rows], log.arrival_s[rows]
    output = log.output_tokens[rows]
    per_iteration = np.concatenate([decode.columns(running) * (running > 0)[:, None], held[:, None]], axis=1)
    seconds = np.diff(times)[:, None]
    past = np.concatenate([np.zeros((1, per_iteration.shape[1])), np.cumsum(per_iteration[:-1] * seconds, axis=0)])

    def until(moment: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(moment, times, column) for column in past.T], axis=1)

    order = np.argsort(first, kind="stable")
    prefills = reading(prefill, log)[rows][order]
    prefilled = np.concatenate([np.zeros((1, prefill.size)), np.cumsum(prefills, axis=0)])

    def prefilled_until(moment: np.ndarray) -> np.ndarray:
        return prefilled[np.searchsorted(first[order], moment, side="right")]

    def assemble(decoding: np.ndarray, prefilling: np.ndarray) -> np.ndarray:
        return np.concatenate([decoding[:, : decode.size], prefilling, decoding[:, decode.size :]], axis=1)

    # The times between tokens; from the arrival on where the first token is not known.
    known = np.isfinite(log.first_token_s[rows])
    start = np.where(known, first, arrival)
    span_s, steps = last - start, np.maximum(output - 1, 1)
    decoding = (until(last) - until(start)) / np.maximum(span_s, 1e-9)[:, None]
    tokens = assemble(decoding, (prefilled_until(last) - prefilled_until(start)) / steps[:, None])
    decodes = (output > 1) & (span_s > 0)
    steady = np.clip(np.sqrt(steps / np.median(steps)), 0.2, 1.0)
    # The times to first tokens where no request waited: the rest of an iteration, then one with all new requests.
    ahead = np.concatenate([[-np.inf], np.maximum.accumulate(first)[:-1]])
    ttft_s = first - arrival
    free = known & (ahead <= arrival) & (ttft_s > 0)
    at = np.searchsorted(times, arrival, side="right") - 1
    in_progress = np.where((at >= 0)[:, None], per_iteration[at], 0.0)
    starts = assemble(1.5 * in_progress, prefilled_until(first) - prefilled_until(arrival))
    return (
        np.concatenate([tokens[decodes], starts[free]]),
        np.concatenate([(span_s / steps)[decodes], ttft_s[free]]),
        np.concatenate([steady[decodes], np.full(int(free.sum()), 0.5)]),
    )
