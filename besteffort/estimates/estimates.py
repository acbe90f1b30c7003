"""What follows, for each model, from all that a gateway knows when a request arrives; for NumPy and JAX alike.

Everything is an expectation under the law of output lengths: of the request itself, and of those in flight given the
tokens that they have. With `b` the requests on the instance that the load balancer would pick, of which some run, some
have just joined and some wait, and `p` the prompt of the new one:

    first  = rest of the iteration in progress + iterations until there is room + prefill(waiting) + prefill(p)
             + decode(those that ran before and stay)
    latency(n) = network delay + first + (n - 1) x step
    own    = E[value(latency(n), n)]
    harm   = sum over those in flight of E[value of theirs without it - value of theirs with it]

`step` is a decode of those that then run, plus the prefills of those to come: each who leaves is followed by another.
Departures are expected, never planned: the next boundary frees `sum of 1 / E[n - g | n > g]` places. Values are
softened, since no one knows who else will come.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from besteffort.estimates.view import InFlightView
from besteffort.observation import Observation

_TIE = 1e-6  # tokens or iterations; keeps sums in another order from deciding otherwise
_SHORTEST_S = 1e-6  # so that what is certain is a step and no division by zero


class Softness(NamedTuple):
    """How uncertain predictions are taken to be.

    Attributes:
      reserve: share of a new request's deadline that is kept back for what the prediction misses.
      width: scale of the logistic error of its completion, in deadlines.
      in_flight: the same of a request in flight, in remaining times.
    """

    reserve: Any = 0.0
    width: Any = 0.05
    in_flight: Any = 0.4


DEFAULT_SOFTNESS = Softness()


class Newcomer(NamedTuple):
    """The request that waits for a decision.

    Attributes:
      task: () index of its task.
      prompt_tokens: () length of its prompt.
      arrival_rate: () estimated arrival rate, requests per second.
      output_limit: () the client's limit on its output; None where clients state none.
      deadline_factor: () factor in force on its deadline; None where deadlines do not change.
    """

    task: Any
    prompt_tokens: Any
    arrival_rate: Any
    output_limit: Any = None
    deadline_factor: Any = None

    @classmethod
    def of(cls, observation: Observation) -> Newcomer:
        """The request that a router sees."""
        return cls(
            observation.task,
            observation.prompt_tokens,
            observation.arrival_rate,
            observation.output_limit,
            observation.deadline_factor,
        )


class Line(NamedTuple):
    """Counts of the instance of each model, fields of shape (models,).

    Attributes:
      decoding: requests whose first token has come.
      running: those, and those that the iteration in progress admitted.
      waiting: the others.
      joining_s, waiting_s: seconds of prefill of those admitted by the iteration in progress, and of those that wait.
      leaving: expected departures per iteration.
      held: tokens held by those decoding; None unless they cost.
      claimed: tokens that all are expected to claim of the cache; None unless it is limited.
      elapsed_s: seconds since the iteration in progress began.
      stretch: slow-down by other models on the replica; None where there is none.
    """

    decoding: Any
    running: Any
    waiting: Any
    joining_s: Any
    waiting_s: Any
    leaving: Any
    held: Any
    claimed: Any
    elapsed_s: Any
    stretch: Any


class Course(NamedTuple):
    """How the new request would fare on each model, fields of shape (models,).

    Attributes:
      admission_s: seconds until the iteration that admits it begins.
      boundaries: iterations that end by then.
      first_token_s: seconds until its first token.
      step_s: seconds between two of its tokens.
      pace_s: the same of the others, without it.
      own_prefill_s: seconds of its prefill.
    """

    admission_s: Any
    boundaries: Any
    first_token_s: Any
    step_s: Any
    pace_s: Any
    own_prefill_s: Any


class Estimates(NamedTuple):
    """What is to be expected of each model, fields of shape (models,).

    Attributes:
      own: expected reward of the new request.
      harm: expected loss of reward of the requests in flight if the new one joins them.
      work: instance-seconds that it takes, by the measure of the fluid bound.
      load: arrival rate over the capacity of this model and all larger ones.
      first_token_s: expected seconds until the first token, without the network delay.
      completion_s: expected seconds until the last one, with it.
    """

    own: Any
    harm: Any
    work: Any
    load: Any
    first_token_s: Any
    completion_s: Any


def estimate(
    newcomer: Newcomer, view: InFlightView, params: Any, softness: Softness = DEFAULT_SOFTNESS, xp: Any = np
) -> Estimates:
    """All estimates for a request that has just arrived.

    Args:
      newcomer: the request.
      view: the requests in flight.
      params: tables, qualities, deadlines and limits, with `priors`: a `besteffort.simulator.types.EnvParams`, or its
        NumPy counterpart `besteffort.estimates.params.ServingParams`.
      softness: how uncertain predictions are.
      xp: the array module, `numpy` or `jax.numpy`.
    """
    view = settled(view, params, xp)
    line = count(view, params, xp)
    course = follow(newcomer, line, view, params, xp)
    length = expected_length(newcomer, params, xp)
    return Estimates(
        own=own_value(newcomer, line, course, view, params, softness, xp),
        harm=harm(newcomer, line, course, view, params, softness, xp),
        work=course.own_prefill_s + params.priors.decode_work_s[newcomer.task],
        load=newcomer.arrival_rate / params.priors.capacity,
        first_token_s=course.first_token_s,
        completion_s=params.network_delay_s + course.first_token_s + (length - 1.0) * course.step_s,
    )


def count(view: InFlightView, params: Any, xp: Any = np) -> Line:
    """Counts the requests of a view that is `settled`, see `Line`."""
    present, terms, tokens = view.present, view.terms, view.tokens
    _, remainder = goes_on(view, tokens, params, xp)
    running = present & view.running
    waiting = present & ~view.running
    prefill_s = _prefill(params, view.prompt_tokens, xp)
    decoding = running & (tokens > 0) if terms.streamed else running
    held = claimed = None
    if terms.context_cost:
        held = xp.sum(xp.where(decoding, view.prompt_tokens + tokens, 0), axis=-1)
    if terms.cache_limit:
        claimed = xp.sum(xp.where(present, _claim(view, params, xp), 0.0), axis=-1)
    return Line(
        decoding=xp.sum(decoding, axis=-1),
        running=xp.sum(running, axis=-1),
        waiting=xp.sum(waiting, axis=-1),
        joining_s=xp.sum(xp.where(running & ~decoding, prefill_s, 0.0), axis=-1),
        waiting_s=xp.sum(xp.where(waiting, prefill_s, 0.0), axis=-1),
        leaving=xp.sum(xp.where(running, 1.0 / remainder, 0.0), axis=-1),
        held=held,
        claimed=claimed,
        elapsed_s=view.elapsed_s,
        stretch=_stretch(view, params, xp),
    )


def follow(newcomer: Newcomer, line: Line, view: InFlightView, params: Any, xp: Any = np) -> Course:
    """How the new request would fare, see `Course`."""
    terms = view.terms
    slots = params.decode.shape[-1] - 1
    stretch = 1.0 if line.stretch is None else line.stretch
    own_prefill_s = params.prefill[:, newcomer.prompt_tokens]
    # Each who leaves is followed by another, with the mean prompt; a router does not know the mix of tasks.
    mean_prompt, mean_output = params.mean_prompt_tokens.mean(), params.mean_output_tokens.mean()
    follower_s = _mean_prefill(params, mean_prompt, xp) / mean_output
    held_each = _held_each(params)

    def decode(number: Any) -> Any:
        """Seconds of a decode of a fractional number of requests."""
        seconds = _interpolated(params.decode, number, xp)
        return seconds + params.context_cost_s * held_each * number if terms.context_cost else seconds

    running, busy = line.running, line.running > 0
    length_s = _interpolated(params.decode, line.decoding, xp) + line.joining_s
    if terms.context_cost:
        length_s = length_s + params.context_cost_s * line.held
    length_s = length_s * stretch
    rest_s = xp.maximum(length_s - line.elapsed_s, 0.0) if terms.streamed else length_s / 2
    lacking = xp.maximum(running + line.waiting + 1 - slots, 0)
    if terms.cache_limit:
        claim = newcomer.prompt_tokens + params.cache_output_share * expected_length(newcomer, params, xp)
        excess = line.claimed + claim - params.cache_tokens
        each = line.claimed / xp.maximum(running + line.waiting, 1)
        lacking = xp.maximum(lacking, xp.where(excess > _TIE, excess / xp.maximum(each, 1.0), 0.0))
    short = (lacking > 0) & busy
    boundaries = xp.where(busy, xp.maximum(lacking / xp.maximum(line.leaving, _TIE), 1.0), 0.0)
    admission_s = xp.where(busy, rest_s + xp.maximum(boundaries - 1.0, 0.0) * decode(running) * stretch, 0.0)
    stay = running - xp.minimum(line.leaving, running)
    before = xp.where(short, running - 1, stay)
    peers = xp.where(short, running, xp.minimum(stay + line.waiting + 1, slots))
    first_token_s = admission_s + (line.waiting_s + own_prefill_s + decode(before)) * stretch
    others = peers - 1
    return Course(
        admission_s=admission_s,
        boundaries=boundaries,
        first_token_s=first_token_s,
        step_s=(decode(peers) + others * follower_s) * stretch,
        pace_s=(decode(others) + others * follower_s) * stretch,
        own_prefill_s=own_prefill_s,
    )


def own_value(
    newcomer: Newcomer,
    line: Line,
    course: Course,
    view: InFlightView,
    params: Any,
    softness: Softness = DEFAULT_SOFTNESS,
    xp: Any = np,
) -> Any:
    """(models,) expected reward of the new request, over the law of its output length."""
    length = params.priors.length_quantiles[newcomer.task]
    if newcomer.output_limit is not None:
        length = xp.minimum(length, newcomer.output_limit)
    deadline_s = _deadline(params, newcomer.task, length, newcomer.deadline_factor, xp) * (1.0 - softness.reserve)
    length, deadline_s = length[None], deadline_s[None]
    step_s = course.step_s[:, None]
    latency_s = params.network_delay_s + course.first_token_s[:, None] + (length - 1.0) * step_s
    slack_s, scale_s = deadline_s - latency_s, softness.width * deadline_s + _SHORTEST_S
    timely, met = _in_time(slack_s, scale_s, deadline_s, params, view, xp)
    quality, weight = params.quality[newcomer.task], params.weight[newcomer.task]
    served = line.running + line.waiting < view.terms.capacity
    if view.terms.cache_limit:
        claim = newcomer.prompt_tokens + xp.ceil(params.cache_output_share * length)
        served = served[:, None] & (claim <= params.cache_tokens[:, None])
        timely, met, served = xp.where(served, timely, 0.0), xp.where(served, met, 0.0), True
    value = quality * timely.mean(-1) - params.miss_penalty * (1.0 - met.mean(-1))
    return weight * xp.where(served, value, -params.miss_penalty)


def harm(
    newcomer: Newcomer,
    line: Line,
    course: Course,
    view: InFlightView,
    params: Any,
    softness: Softness = DEFAULT_SOFTNESS,
    xp: Any = np,
) -> Any:
    """(models,) expected loss of those in flight on the instance, and with slow-down on its replica."""
    stretch = 1.0 if line.stretch is None else line.stretch
    boundaries = xp.floor(course.boundaries + 0.5 - _TIE).astype(view.tokens.dtype)
    tokens = received(view, course.pace_s[:, None], params, xp)
    at = xp.where(view.running, tokens + boundaries[:, None], 0)
    now, _ = goes_on(view, tokens, params, xp)
    then, remainder = goes_on(view, at, params, xp)
    still = xp.where(view.running, then / now, 1.0)
    remaining_s = remainder * course.pace_s[:, None]
    before_s = params.network_delay_s + view.age_s + (course.admission_s + line.waiting_s * stretch)[:, None]
    deadline_s = _deadline(params, view.task, at + remainder, view.deadline_factor, xp)
    slack_s = deadline_s - before_s - remaining_s
    length = expected_length(newcomer, params, xp)
    together = xp.minimum(remainder, length) - 1.0
    delay_s = (course.own_prefill_s * stretch)[:, None] + together * (course.step_s - course.pace_s)[:, None]
    scale_s = softness.in_flight * remaining_s + _SHORTEST_S
    loss = _loss(view, params, slack_s, delay_s, scale_s, deadline_s, xp)
    total = xp.sum(xp.where(view.present, still * loss, 0.0), axis=-1)
    if view.beside is None:
        return total
    return total + _harm_beside(newcomer, course, view, params, softness, xp)


def received(view: InFlightView, pace_s: Any, params: Any, xp: Any = np) -> Any:
    """(models, seats) tokens received; where answers are not streamed, as many as its age allows at today's pace."""
    if view.terms.streamed:
        return view.tokens
    decoding_s = view.age_s - _prefill(params, view.prompt_tokens, xp)
    most = _of_task(params.priors.longest, view.task, xp) - 1
    if view.output_limit is not None:
        most = xp.minimum(most, view.output_limit - 1)
    tokens = xp.floor(decoding_s / xp.maximum(pace_s, _SHORTEST_S) - _TIE)
    return xp.where(view.running, xp.clip(tokens, 0, most), 0).astype(view.tokens.dtype)


def _harm_beside(
    newcomer: Newcomer, course: Course, view: InFlightView, params: Any, softness: Softness, xp: Any
) -> Any:
    """(models,) expected loss of requests of the other models on the replica, which a busy instance slows down.

    An instance of `m` that the new request keeps busy until it is done, beyond those in flight there, makes what is
    decoded meanwhile by model `k` take `slowdown[k, m]` times as long.
    """
    beside = settled(view.beside, params, xp)
    models = params.decode.shape[0]
    running = xp.sum(beside.present & beside.running, axis=-1)
    busy = beside.present.any(-1)
    other = ~xp.eye(models, dtype=bool)
    # [m, k, j]: on the replica of m, j slows k down.
    slowed = xp.prod(xp.where(busy[:, None, :] & other[None], params.slowdown[None], 1.0), axis=-1)
    context_s = params.context_cost_s[None] * running * _held_each(params)
    pace_s = (_interpolated(params.decode, running, xp) + context_s) * slowed
    tokens = received(beside, pace_s[..., None], params, xp)
    _, remainder = goes_on(beside, tokens, params, xp)
    left_s = remainder * pace_s[..., None] + xp.where(
        beside.running, 0.0, _prefill(params, beside.prompt_tokens, xp) * slowed[..., None]
    )
    mine = ~other[..., None]
    until_s = xp.max(xp.where(mine & beside.present, left_s, 0.0), axis=(-1, -2))
    length = expected_length(newcomer, params, xp)
    done_s = course.first_token_s + (length - 1.0) * course.step_s
    overlap_s = xp.maximum(xp.minimum(left_s, done_s[:, None, None]) - until_s[:, None, None], 0.0)
    delay_s = (params.slowdown.T - 1.0)[..., None] * overlap_s
    deadline_s = _deadline(params, beside.task, tokens + remainder, beside.deadline_factor, xp)
    slack_s = deadline_s - params.network_delay_s - beside.age_s - left_s
    scale_s = softness.in_flight * left_s + _SHORTEST_S
    loss = _loss(beside, params, slack_s, delay_s, scale_s, deadline_s, xp)
    return xp.sum(xp.where(beside.present & ~mine, loss, 0.0), axis=(-1, -2))


def settled(view: InFlightView, params: Any, xp: Any = np) -> InFlightView:
    """The view with `running` inferred where no one can see what the iteration in progress admitted.

    Requests with tokens run, and of the others those that were there when it began, in order of arrival, while the
    batch has a place and, by expected claims, the cache has room.
    """
    if view.running is not None:
        return view
    slots = params.decode.shape[-1] - 1
    begun = view.present & (view.tokens > 0)
    hopes = view.present & ~begun
    if view.terms.streamed:
        hopes = hopes & view.eligible
    # [i, j]: j is i or came before it.
    ahead = (view.order[..., None, :] <= view.order[..., :, None]) & hopes[..., None, :]
    places = slots - xp.sum(begun, axis=-1)
    fits = xp.sum(ahead, axis=-1) <= places[..., None]
    if view.terms.cache_limit:
        claim = _claim(view, params, xp)
        used = xp.sum(xp.where(begun, claim, 0.0), axis=-1)
        room = params.cache_tokens.reshape(*(1,) * (used.ndim - 1), -1) - used
        wanted = xp.sum(xp.where(ahead, claim[..., None, :], 0.0), axis=-1)
        # An empty instance admits the first in any case.
        fits = fits & ((wanted <= room[..., None] + _TIE) | ((xp.sum(ahead, axis=-1) == 1) & ~begun.any(-1)[..., None]))
    return dataclasses.replace(view, running=begun | (hopes & fits))


def _claim(view: InFlightView, params: Any, xp: Any) -> Any:
    """(models, seats) tokens that requests are expected to claim of the cache."""
    _, remainder = goes_on(view, view.tokens, params, xp)
    return view.prompt_tokens + params.cache_output_share * (view.tokens + remainder)


def goes_on(view: InFlightView, tokens: Any, params: Any, xp: Any = np) -> tuple[Any, Any]:
    """Of requests with so many tokens: the share of outputs that are longer, and the mean tokens to come of those."""
    survival, remainder = params.priors.survival, params.priors.remainder
    longest = survival.shape[-1] - 1
    row = view.task * (longest + 1)
    place = row + xp.minimum(tokens, longest)
    share, rest = _take(survival, place, xp), _take(remainder, place, xp)
    if view.output_limit is not None:
        limit = row + xp.minimum(view.output_limit, longest)
        rest = xp.maximum(rest - _take(survival, limit, xp) / share * _take(remainder, limit, xp), 1.0)
    return share, rest


def expected_length(newcomer: Newcomer, params: Any, xp: Any = np) -> Any:
    """() mean output tokens of the new request, no more than its limit."""
    survival, remainder = params.priors.survival, params.priors.remainder
    mean = remainder[newcomer.task, 0]
    if newcomer.output_limit is None:
        return mean
    limit = xp.minimum(newcomer.output_limit, survival.shape[-1] - 1)
    return xp.maximum(mean - survival[newcomer.task, limit] * remainder[newcomer.task, limit], 1.0)


def _loss(view: InFlightView, params: Any, slack_s: Any, delay_s: Any, scale_s: Any, deadline_s: Any, xp: Any) -> Any:
    """Expected loss of reward of requests that have so much slack and are delayed."""
    models = _along(xp.arange(view.present.shape[-2]), view.task)
    quality, weight = _of_task(params.quality, view.task, xp, models), _of_task(params.weight, view.task, xp)
    timely, met = _in_time(slack_s, scale_s, deadline_s, params, view, xp)
    later_timely, later_met = _in_time(slack_s - delay_s, scale_s, deadline_s, params, view, xp)
    return weight * (quality * (timely - later_timely) + params.miss_penalty * (met - later_met))


def _in_time(slack_s: Any, scale_s: Any, deadline_s: Any, params: Any, view: InFlightView, xp: Any) -> tuple[Any, Any]:
    """Expected timeliness, and chance to meet the deadline, if the slack has a logistic error of that scale."""
    ratio = slack_s / scale_s
    met = 0.5 + 0.5 * xp.tanh(0.5 * ratio)
    if not view.terms.soft:
        return met, met
    hard = params.soft_span <= 0
    span = xp.where(hard, 1.0, params.soft_span) * deadline_s / scale_s
    timely = (xp.logaddexp(0.0, ratio + span) - xp.logaddexp(0.0, ratio)) / span
    return xp.where(hard, met, timely), met


def _deadline(params: Any, task: Any, length: Any, factor: Any, xp: Any) -> Any:
    deadline_s = _of_task(params.deadline_base_s, task, xp) + _of_task(params.deadline_per_token_s, task, xp) * length
    return deadline_s if factor is None else deadline_s * factor


def _of_task(table: Any, task: Any, xp: Any, column: Any = None) -> Any:
    """`table[task]`, or `table[task, column]`.

    For JAX by selection, which runs in vector registers; on a CPU its gather works element by element.
    """
    if xp is np:
        return table[task] if column is None else table[task, column]
    rows = [table[k] if column is None else table[k][column] for k in range(table.shape[0])]
    value = rows[0]
    for k, row in enumerate(rows[1:], start=1):
        value = xp.where(task == k, row, value)
    return value


def _prefill(params: Any, prompt_tokens: Any, xp: Any) -> Any:
    """(models, seats) seconds of each prompt on the model of its row."""
    columns = params.prefill.shape[-1]
    rows = xp.arange(params.prefill.shape[0]) * columns
    return _take(params.prefill, _along(rows, prompt_tokens) + prompt_tokens, xp)


def _along(of_models: Any, like: Any) -> Any:
    """(models,) values with axes so that they go with `like`, whose last axes are models and seats."""
    return of_models.reshape(*(1,) * (like.ndim - 2), -1, 1)


def _held_each(params: Any) -> Any:
    """Tokens that a request holds on average."""
    return params.mean_prompt_tokens.mean() + params.mean_output_tokens.mean() / 2


def _mean_prefill(params: Any, prompt: Any, xp: Any) -> Any:
    return params.prefill[:, xp.round(prompt).astype(int)]


def _interpolated(table: Any, number: Any, xp: Any) -> Any:
    """(..., models) values of (models, columns) tables at fractional columns of that shape."""
    columns = table.shape[-1]
    low = xp.minimum(xp.floor(number).astype(int), columns - 2)
    rows = xp.arange(table.shape[0]) * columns
    place = rows.reshape(*(1,) * (low.ndim - 1), -1) + low
    first, second = _take(table, place, xp), _take(table, place + 1, xp)
    return first + (number - low) * (second - first)


def _take(table: Any, place: Any, xp: Any) -> Any:
    return xp.take(table.reshape(-1), place, mode="clip")


def _stretch(view: InFlightView, params: Any, xp: Any) -> Any:
    """(models,) slow-down of each model by the others that are busy on its replica; None where there is none."""
    if view.beside is None:
        return None
    busy = view.beside.present.any(-1)
    others = ~xp.eye(busy.shape[0], dtype=bool)
    return xp.prod(xp.where(busy & others, params.slowdown, 1.0), axis=-1)
