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
Where times are compared with the tables, all of these last as much longer as was observed, see
`besteffort.estimates.correction`.

Where prompts are read in chunks (`Terms.chunks`), nobody outside sees how much of one was read, so those with tokens
decode and all others wait with whole prompts. With `B` the budget of an iteration and `W` the tokens that wait to be
read, the first token comes after the rest of the iteration in progress (what it took beyond its decode went into the
reading), the reading of what waits and of the own prompt, and one decode for each of the `(W + p) / (B - b)` iterations
that this takes. Tokens that were found in a prefix cache are not read.

Departures are expected, never planned: the next boundary frees `sum of 1 / E[n - g | n > g]` places. Values are
softened, since no one knows who else will come.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from besteffort.estimates import scalars
from besteffort.estimates.view import InFlightView, Terms
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
    in_flight: Any = 0.1


DEFAULT_SOFTNESS = Softness()


class Newcomer(NamedTuple):
    """The request that waits for a decision.

    Attributes:
      task: () index of its task.
      prompt_tokens: () length of its prompt.
      arrival_rate: () estimated arrival rate, requests per second.
      output_limit: () the client's limit on its output; None where clients state none.
      deadline_factor: () factor in force on its deadline; None where deadlines do not change.
      origin: () index of its origin; None where requests have none.
      cached_tokens: () tokens of its prompt that are found in a prefix cache; None where requests state none.
      tenant_weight: () factor on its rewards; None where all count the same.
    """

    task: Any
    prompt_tokens: Any
    arrival_rate: Any
    output_limit: Any = None
    deadline_factor: Any = None
    origin: Any = None
    cached_tokens: Any = None
    tenant_weight: Any = None

    @classmethod
    def of(cls, observation: Observation) -> Newcomer:
        """The request that a router sees."""
        return cls(
            observation.task,
            observation.prompt_tokens,
            observation.arrival_rate,
            observation.output_limit,
            observation.deadline_factor,
            observation.origin,
            observation.cached_tokens,
            observation.tenant_weight,
        )


class Line(NamedTuple):
    """Counts of the instance of each model, fields of shape (pools,).

    Attributes:
      decoding: requests whose first token has come.
      running: those, and those that the iteration in progress admitted.
      waiting: the others.
      joining_s, waiting_s: seconds of prefill of those admitted by the iteration in progress, and of those that wait.
      leaving: expected departures per iteration.
      held: tokens held by those decoding; None unless they cost.
      claimed: tokens that all are expected to claim of the cache; None unless it is limited.
      elapsed_s: seconds since the iteration in progress began.
      stretch: slow-down by other models on the replica, times that which was observed; None where there is neither.
      waiting_tokens: tokens to be read of those that wait; None unless prompts are read in chunks.
      waiting_leaving: what those that wait will add to `leaving`; None likewise.
      ready_s, takes: as in `InFlightView`.
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
    waiting_tokens: Any = None
    waiting_leaving: Any = None
    ready_s: Any = None
    takes: Any = None


class Course(NamedTuple):
    """How the new request would fare on each model, fields of shape (pools,).

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
    """What is to be expected of each model, fields of shape (pools,).

    Attributes:
      own: expected reward of the new request.
      harm: expected loss of reward of the requests in flight if the new one joins them.
      work: instance-seconds that it takes, by the measure of the fluid bound.
      load: arrival rate over the capacity of this model and all larger ones.
      first_token_s: expected seconds until the first token, without the network delay.
      completion_s: expected seconds until the last one, with it.
      value: value of the model to all requests by a rule, see `besteffort.estimates.rule`; None without one.
      observed_slowdown: factor on the times of the tables that was observed, see `besteffort.estimates.correction`; all
        other estimates reckon with it. None where times are not compared.
    """

    own: Any
    harm: Any
    work: Any
    load: Any
    first_token_s: Any
    completion_s: Any
    value: Any = None
    observed_slowdown: Any = None


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
    view = brought_up(settled(view, params, xp), params, xp)
    line = count(view, params, xp)
    course = follow(newcomer, line, view, params, xp)
    return Estimates(
        own=own_value(newcomer, prospect(newcomer, params, softness, xp), line, course, view.terms, params, xp),
        harm=harm(newcomer, stakes(view, params, xp), line, course, view, params, softness, xp),
        work=work_s(newcomer, course, view.observed_slowdown, params),
        load=newcomer.arrival_rate / capacity(view.observed_slowdown, params, xp),
        first_token_s=course.first_token_s,
        completion_s=completion_s(newcomer, course, params, xp),
        observed_slowdown=view.observed_slowdown,
    )


def capacity(observed_slowdown: Any, params: Any, xp: Any = np) -> Any:
    """(pools,) requests per second that each model and all larger ones sustain, as fast as they were observed to be.

    `observed_slowdown` is None where times are not compared.
    """
    together = params.priors.capacity
    if observed_slowdown is None:
        return together
    if params.pools is not None:
        size = params.pools.size
        at_least = size[None] >= size[:, None]
        return together - xp.where(at_least, params.priors.alone * (1.0 - 1.0 / observed_slowdown), 0.0).sum(-1)
    alone = together - xp.concatenate([together[1:], xp.zeros_like(together[:1])])
    # The loss is taken off, so that none changes no digit.
    lost = alone * (1.0 - 1.0 / observed_slowdown)
    return together - xp.cumsum(lost[::-1])[::-1]


def all_together(observed_slowdown: Any, params: Any, xp: Any = np) -> Any:
    """() requests per second that all pools together sustain, each serving alone; see `capacity`."""
    together = capacity(observed_slowdown, params, xp)
    return together[0] if params.pools is None else together.max()


def slots(params: Any) -> Any:
    """Requests that run at once on an instance: a number, or (pools,) of them where pools differ."""
    return params.decode.shape[-1] - 1 if params.pools is None else params.pools.max_batch


def count(view: InFlightView, params: Any, xp: Any = np) -> Line:
    """Counts the requests of a view that is `settled`, see `Line`."""
    present, running, terms, tokens = view.present, view.running, view.terms, view.tokens
    remainder = expected_remainder(view, tokens, params, xp)
    prefill_s = _prefill(params, view, xp)
    decoding = running & (tokens > 0) if terms.streamed else running
    joining, waiting = running & ~decoding, present & ~running
    if view.share is not None:
        present, running, decoding = present * view.share, running * view.share, decoding * view.share
        joining, waiting = joining * view.share, waiting * view.share
    held = claimed = None
    if terms.context_cost:
        held = ((view.prompt_tokens + tokens) * decoding).sum(-1)
    if terms.cache_limit:
        claimed = (_claim(view, params, xp) * present).sum(-1)
    unread = later = None
    if terms.chunks:
        tokens_to_read = view.prompt_tokens if view.cached_tokens is None else view.prompt_tokens - view.cached_tokens
        unread, later = (tokens_to_read * waiting).sum(-1), _total(waiting / remainder, xp)
    number = running.sum(-1)
    line = Line(
        decoding=decoding.sum(-1),
        running=number,
        waiting=present.sum(-1) - number,
        joining_s=_total(prefill_s * joining, xp),
        waiting_s=_total(prefill_s * waiting, xp),
        leaving=_total(running / remainder, xp),
        held=held,
        claimed=claimed,
        elapsed_s=view.elapsed_s,
        stretch=_stretch(view, params, xp),
        waiting_tokens=unread,
        waiting_leaving=later,
        ready_s=view.ready_s,
        takes=view.takes,
    )
    return line if view.unseen is None else _with_unseen(line, view.unseen, params, xp)


def _with_unseen(line: Line, unseen: Any, params: Any, xp: Any) -> Line:
    """Counts with requests of mean length that no one has seen yet; as far as there is room, they run."""
    admitted = xp.clip(slots(params) - line.running, 0.0, unseen)
    left = unseen - admitted
    output = params.mean_output_tokens.mean()
    return line._replace(
        decoding=line.decoding + admitted,
        running=line.running + admitted,
        waiting=line.waiting + left,
        waiting_s=line.waiting_s + left * params.priors.follower_s * output,
        leaving=line.leaving + admitted / output,
        held=None if line.held is None else line.held + admitted * params.priors.held_each,
        claimed=None if line.claimed is None else line.claimed + unseen * params.priors.held_each,
    )


def brought_up(view: InFlightView, params: Any, xp: Any = np) -> InFlightView:
    """The view of now, where requests were seen earlier: they have had the tokens of the time since, or have left.

    Each is taken to be there still with the share of outputs that are longer than the tokens that it then has.
    """
    if view.seen_s is None:
        return view
    number = view.running.sum(-1)
    pace_s = _interpolated(params.decode, number, xp) + number * params.priors.follower_s
    if view.observed_slowdown is not None:
        pace_s = pace_s * view.observed_slowdown
    since = xp.floor(view.seen_s / xp.maximum(pace_s, _SHORTEST_S)[:, None] + _TIE).astype(view.tokens.dtype)
    longest = params.priors.survival.shape[-1] - 1
    law = view.task * (longest + 1)
    tokens = xp.where(view.running, view.tokens + since, view.tokens)
    was, now = (_take(params.priors.survival, law + xp.minimum(some, longest)) for some in (view.tokens, tokens))
    return dataclasses.replace(view, tokens=tokens, share=now / was)


class Costs(NamedTuple):
    """What serving takes; of one model as plain numbers, or of all as fields of shape (pools,).

    Attributes:
      decode: seconds of a decode of so many requests, which may be a fraction.
      slots: requests that run at once.
      follower_s: seconds of prefill per token of those that take the places of others.
      held_s: seconds per decode for the tokens that a request holds on average.
      context_cost_s: seconds per token held.
      cache_tokens: tokens that fit the cache.
      chunk_tokens: tokens that an iteration works on at most, infinite where prompts are read whole; None unless
        `Terms.chunks`.
    """

    decode: Callable[[Any], Any]
    slots: Any
    follower_s: Any
    held_s: Any
    context_cost_s: Any
    cache_tokens: Any
    chunk_tokens: Any = None


def follow(newcomer: Newcomer, line: Line, view: InFlightView, params: Any, xp: Any = np) -> Course:
    """How the new request would fare, see `Course`."""
    claim: Any = 0.0
    if view.terms.cache_limit:
        claim = newcomer.prompt_tokens + params.cache_output_share * expected_length(newcomer, params, xp)
    costs = Costs(
        decode=lambda number: _interpolated(params.decode, number, xp),
        slots=slots(params),
        follower_s=params.priors.follower_s,
        held_s=params.context_cost_s * params.priors.held_each,
        context_cost_s=params.context_cost_s,
        cache_tokens=params.cache_tokens,
        chunk_tokens=params.chunk_tokens,
    )
    own_prefill_s, own_tokens = own_reading(newcomer, params)
    return course_of(line, own_prefill_s, own_tokens, claim, costs, view.terms, xp)


def own_reading(newcomer: Newcomer, params: Any) -> tuple[Any, Any]:
    """(pools,) seconds of reading what was not found of the new request's prompt, and () tokens of it."""
    whole_s = params.prefill[:, newcomer.prompt_tokens]
    if newcomer.cached_tokens is None:
        return whole_s, newcomer.prompt_tokens
    found = newcomer.cached_tokens
    return whole_s - params.prefill[:, found], newcomer.prompt_tokens - found


def course_of(
    line: Line, own_prefill_s: Any, own_tokens: Any, claim: Any, costs: Costs, terms: Terms, xp: Any = np
) -> Course:
    """The same from counts, the new request's prefill, tokens to be read and claim of the cache, and costs.

    Of one model with `besteffort.estimates.scalars` as `xp`, or of all.
    """

    def decode(number: Any) -> Any:
        seconds = costs.decode(number)
        return seconds + costs.held_s * number if terms.context_cost else seconds

    def stretched(seconds: Any) -> Any:
        return seconds if line.stretch is None else seconds * line.stretch

    running, busy = line.running, line.running > 0
    if terms.chunks:
        busy = running + line.waiting > 0
    length_s = costs.decode(line.decoding) + line.joining_s
    if terms.context_cost:
        length_s = length_s + costs.context_cost_s * line.held
    length_s = stretched(length_s)
    least_s: Any = 0.0
    if terms.chunks:
        least_s = xp.where(xp.isinf(costs.chunk_tokens), 0.0, -stretched(line.waiting_s))
    rest_s = xp.maximum(length_s - line.elapsed_s, least_s) if terms.streamed else length_s / 2
    lacking = xp.maximum(running + line.waiting + 1 - costs.slots, 0)
    if terms.cache_limit:
        excess = line.claimed + claim - costs.cache_tokens
        each = line.claimed / xp.maximum(running + line.waiting, 1)
        lacking = xp.maximum(lacking, xp.where(excess > _TIE, excess / xp.maximum(each, 1.0), 0.0))
    short = (lacking > 0) & busy
    together, leaving = running, line.leaving
    if terms.chunks:
        # Those that wait and have room are read meanwhile, and then decode.
        joining = xp.minimum(xp.maximum(line.waiting + 1 - lacking, 0), line.waiting)
        joining = xp.where(xp.isinf(costs.chunk_tokens), 0, joining)
        together = running + joining
        leaving = leaving + line.waiting_leaving * (joining / xp.maximum(line.waiting, 1))
    boundaries = xp.where(busy, xp.maximum(lacking / xp.maximum(leaving, _TIE), 1.0), 0.0)
    full_s = xp.maximum(boundaries - 1.0, 0.0) * stretched(decode(together))
    admission_s = xp.where(busy, rest_s + full_s, 0.0 if line.ready_s is None else line.ready_s)
    stay = running - xp.minimum(line.leaving, running)
    before = xp.where(short, together - 1, stay)
    iterations: Any = None  # that read the own prompt, if not one
    if terms.chunks:
        # Of the iterations that read what waits and the own prompt, all but those until it is admitted come after.
        room = xp.maximum(costs.chunk_tokens - line.decoding, 1)
        ahead = xp.floor(line.waiting_tokens / room)
        every = xp.maximum(xp.ceil((line.waiting_tokens + own_tokens) / room), ahead + 1)
        until = xp.maximum(boundaries - 1.0, 0.0)
        more = xp.where(busy, xp.maximum(ahead - until, 0.0), 0.0)
        boundaries = boundaries + more
        admission_s = admission_s + more * stretched(decode(before))
        iterations = xp.maximum(every - (until + more), 1)
    peers = xp.where(short, together, xp.minimum(stay + line.waiting + 1, costs.slots))
    others = peers - 1
    others_s = others * costs.follower_s

    def decodes(number: Any) -> Any:
        return decode(number) if iterations is None else iterations * decode(number)

    return Course(
        admission_s=admission_s,
        boundaries=boundaries,
        first_token_s=admission_s + stretched(line.waiting_s + own_prefill_s + decodes(before)),
        step_s=stretched(decode(peers) + others_s),
        pace_s=stretched(decode(others) + others_s),
        own_prefill_s=own_prefill_s,
    )


def work_s(newcomer: Newcomer, course: Course, observed_slowdown: Any, params: Any) -> Any:
    """(pools,) instance-seconds that the new request takes, see `Estimates`."""
    work = course.own_prefill_s + params.priors.decode_work_s[newcomer.task]
    return work if observed_slowdown is None else work * observed_slowdown


def completion_s(newcomer: Newcomer, course: Course, params: Any, xp: Any = np) -> Any:
    """(pools,) expected seconds until the last token, with the network delay."""
    length = expected_length(newcomer, params, xp)
    return own_delay_s(newcomer.origin, params) + course.first_token_s + (length - 1.0) * course.step_s


def own_delay_s(origin: Any, params: Any) -> Any:
    """() or (pools,) network delay of the answer to a request from an origin, or from none."""
    return params.network_delay_s if origin is None else params.origin_delay_s[origin]


class Prospect(NamedTuple):
    """What the new request has before it, over its equally likely lengths; fields of shape (lengths,).

    Attributes:
      length: tokens of its output.
      deadline_s: its deadline, less the reserve.
      steepness: one over twice the scale of the error of its completion, per second.
    """

    length: Any
    deadline_s: Any
    steepness: Any


def prospect(newcomer: Newcomer, params: Any, softness: Softness = DEFAULT_SOFTNESS, xp: Any = np) -> Prospect:
    """What the new request has before it."""
    length = params.priors.length_quantiles[newcomer.task]
    if newcomer.output_limit is not None:
        length = xp.minimum(length, newcomer.output_limit)
    deadline_s = params.deadline_base_s[newcomer.task] + params.deadline_per_token_s[newcomer.task] * length
    if newcomer.deadline_factor is not None:
        deadline_s = deadline_s * newcomer.deadline_factor
    deadline_s = deadline_s * (1.0 - softness.reserve)
    return Prospect(length, deadline_s, steepness_of(softness.width, deadline_s))


def steepness_of(width: Any, deadline_s: Any) -> Any:
    """One over twice the scale of the error of a completion, see `Prospect`."""
    return 0.5 / (width * deadline_s + _SHORTEST_S)


def own_value(
    newcomer: Newcomer, ahead: Prospect, line: Line, course: Course, terms: Terms, params: Any, xp: Any = np
) -> Any:
    """(pools,) expected reward of the new request, over the law of its output length."""
    base_s = own_delay_s(newcomer.origin, params) + course.first_token_s - course.step_s
    latency_s = base_s[:, None] + course.step_s[:, None] * ahead.length[None]
    slack_s = ahead.deadline_s[None] - latency_s
    timely, met = _in_time(slack_s, ahead.steepness[None], ahead.deadline_s[None], params, terms, xp)
    if terms.cache_limit:
        claim = newcomer.prompt_tokens + xp.ceil(params.cache_output_share * ahead.length)
        fits = claim[None] <= params.cache_tokens[:, None]
        timely, met = timely * fits, met * fits
    share = 1.0 / ahead.length.shape[-1]
    quality, penalty = params.quality[newcomer.task] * share, params.miss_penalty
    value = (
        quality * timely.sum(-1) + (penalty * share) * met.sum(-1)
        if terms.soft
        else ((quality + penalty * share) * met.sum(-1))
    )
    served = line.running + line.waiting < (terms.capacity if params.pools is None else params.pools.places)
    if line.takes is not None:
        served = served & line.takes
    return weight_of(newcomer.task, newcomer.tenant_weight, params) * (value * served - penalty)


def weight_of(task: Any, tenant_weight: Any, params: Any) -> Any:
    """() factor on the rewards of a request, by its task and its tenant."""
    weight = params.weight[task]
    return weight if tenant_weight is None else weight * tenant_weight


def own_value_of_one(
    task: int,
    ahead: Prospect,
    served: bool,
    base_s: float,
    step_s: float,
    params: Any,
    terms: Terms,
    tenant_weight: float | None = None,
) -> float:
    """The same of one pool in plain numbers, where no cache is limited.

    Args:
      task: index of the task.
      ahead: with lists.
      served: whether there is a place.
      base_s: seconds until the first token, with the network delay, less `step_s`.
      step_s: seconds between two tokens.
      params: those of the pool, with lists over tasks.
      terms: what the serving model has.
      tenant_weight: as in `Newcomer`.
    """
    quality, penalty, lengths = params.quality[task], params.miss_penalty, len(ahead.length)
    slacks = [
        (due_s - base_s - step_s * tokens, steepness, due_s)
        for tokens, due_s, steepness in zip(ahead.length, ahead.deadline_s, ahead.steepness, strict=True)
    ]
    if terms.soft:
        chances = [_in_time(*one, params, terms, scalars) for one in slacks]
        value = sum(quality * timely + penalty * met for timely, met in chances) / lengths
    else:
        met = 0.5 + 0.5 * sum([math.tanh(slack_s * steepness) for slack_s, steepness, _ in slacks]) / lengths
        value = (quality + penalty) * met
    return float(weight_of(task, tenant_weight, params) * (value * served - penalty))


class Stakes(NamedTuple):
    """What requests in flight have to lose, fields of shape (pools, seats).

    Attributes:
      law: place of their task's law in the flattened tables of laws.
      limit: the last place of it that they can reach; None where clients state no limits.
      deadline_base_s, deadline_per_token_s: their deadlines.
      quality: what an answer in time by the row's model earns them; 0 in an empty seat.
      penalty: what a miss costs them; 0 in an empty seat.
    """

    law: Any
    limit: Any
    deadline_base_s: Any
    deadline_per_token_s: Any
    quality: Any
    penalty: Any


def stakes(view: InFlightView, params: Any, xp: Any = np) -> Stakes:
    """What the requests of a view have to lose."""
    longest = params.priors.survival.shape[-1] - 1
    base_s = _of_task(params.deadline_base_s, view.task, xp)
    per_token_s = _of_task(params.deadline_per_token_s, view.task, xp)
    if view.deadline_factor is not None:
        base_s, per_token_s = base_s * view.deadline_factor, per_token_s * view.deadline_factor
    law = view.task * (longest + 1)
    weight = _of_task(params.weight, view.task, xp) * view.present
    if view.tenant_weight is not None:
        weight = weight * view.tenant_weight
    if view.share is not None:
        weight = weight * view.share
    return Stakes(
        law=law,
        limit=None if view.output_limit is None else law + xp.minimum(view.output_limit, longest),
        deadline_base_s=base_s,
        deadline_per_token_s=per_token_s,
        quality=weight * _of_task(params.quality, view.task, xp, _along(xp.arange(view.present.shape[-2]), view.task)),
        penalty=weight * params.miss_penalty,
    )


def harm(
    newcomer: Newcomer,
    at_stake: Stakes,
    line: Line,
    course: Course,
    view: InFlightView,
    params: Any,
    softness: Softness = DEFAULT_SOFTNESS,
    xp: Any = np,
) -> Any:
    """(pools,) expected loss of those in flight on the instance, and with slow-down on its replica."""
    delay_of_all_s = params.network_delay_s if view.delay_s is None else 0.0
    own = burden(line, course, delay_of_all_s, xp)
    own = own._replace(boundaries=own.boundaries.astype(view.tokens.dtype))
    own = Burden(*(field[:, None] for field in own))
    tokens = received(view, own.pace_s, params, xp)
    age_s = view.age_s if view.delay_s is None else view.age_s + view.delay_s
    length = expected_length(newcomer, params, xp)
    lost = loss_of_each(at_stake, tokens, view.running, age_s, own, length, params, softness, view.terms, xp)
    total = _total(lost, xp)
    if view.beside is None:
        return total
    return total + _harm_beside(newcomer, course, view, params, softness, xp)


class Burden(NamedTuple):
    """What the new request means for those on an instance; of one as plain numbers, of all as fields of shape (pools,).

    Attributes:
      boundaries: iterations that end before it is admitted, a whole number.
      pace_s: seconds between two tokens of the others, without it.
      until_s: seconds until it is read, with the network delay that is the same for all of them.
      delay_s: what it delays them at once.
      apart_s: what it delays each further token of theirs, as long as it is there.
    """

    boundaries: Any
    pace_s: Any
    until_s: Any
    delay_s: Any
    apart_s: Any


def burden(line: Line, course: Course, delay_of_all_s: Any, xp: Any = np) -> Burden:
    """What the new request means for those in flight, see `Burden`."""
    stretch = 1.0 if line.stretch is None else line.stretch
    apart_s = course.step_s - course.pace_s
    return Burden(
        boundaries=xp.floor(course.boundaries + (0.5 - _TIE)),
        pace_s=course.pace_s,
        until_s=delay_of_all_s + course.admission_s + line.waiting_s * stretch,
        delay_s=course.own_prefill_s * stretch - apart_s,
        apart_s=apart_s,
    )


def loss_of_each(
    at_stake: Stakes,
    tokens: Any,
    running: Any,
    age_s: Any,
    own: Burden,
    length: Any,
    params: Any,
    softness: Softness,
    terms: Terms,
    xp: Any = np,
) -> Any:
    """Expected loss of requests in flight if the new one joins them; of one in plain numbers, or of arrays of them.

    Args:
      at_stake: what they have to lose.
      tokens: that they have received.
      running: whether they run.
      age_s: seconds since they arrived, with the network delay that is theirs alone.
      own: what the new one means for them.
      length: mean output tokens of the new one.
      params: as of `estimate`; for plain numbers with `survival` and `remainder` of its priors as flat lists.
      softness: how uncertain predictions are.
      terms: what the serving model has.
      xp: the array module, `numpy`, `jax.numpy` or `besteffort.estimates.scalars`.
    """
    # Of those that wait no token will have come.
    then = (tokens + own.boundaries) * running
    place = _place(at_stake, then, params, xp)
    survival = params.priors.survival
    longer = _take(survival, place)
    still = longer / _take(survival, _place(at_stake, tokens, params, xp))
    remainder = _remainder(at_stake, place, longer, params, xp)
    remaining_s = remainder * own.pace_s
    delay_s = own.delay_s + xp.minimum(remainder, length) * own.apart_s
    deadline_s = at_stake.deadline_base_s + at_stake.deadline_per_token_s * (then + remainder)
    slack_s = deadline_s - (age_s + own.until_s) - remaining_s
    steepness = 0.5 / (softness.in_flight * remaining_s + _SHORTEST_S)
    return still * _loss(at_stake, slack_s, delay_s, steepness, deadline_s, params, terms, xp)


def received(view: InFlightView, pace_s: Any, params: Any, xp: Any = np) -> Any:
    """(pools, seats) tokens received; where answers are not streamed, as many as its age allows at today's pace."""
    if view.terms.streamed:
        return view.tokens
    prefill_s = _prefill(params, view, xp)
    if view.observed_slowdown is not None:
        prefill_s = prefill_s * _along(view.observed_slowdown, prefill_s)
    decoding_s = view.age_s - prefill_s
    most = _of_task(params.priors.longest, view.task, xp) - 1
    if view.output_limit is not None:
        most = xp.minimum(most, view.output_limit - 1)
    tokens = xp.floor(decoding_s / xp.maximum(pace_s, _SHORTEST_S) - _TIE)
    return (xp.clip(tokens, 0, most) * view.running).astype(view.tokens.dtype)


def _harm_beside(
    newcomer: Newcomer, course: Course, view: InFlightView, params: Any, softness: Softness, xp: Any
) -> Any:
    """(pools,) expected loss of requests of the other models on the replica, which a busy instance slows down.

    An instance of `m` that the new request keeps busy until it is done, beyond those in flight there, makes what is
    decoded meanwhile by model `k` take `slowdown[k, m]` times as long.
    """
    beside = dataclasses.replace(settled(view.beside, params, xp), observed_slowdown=view.observed_slowdown)
    at_stake = stakes(beside, params, xp)
    models = params.decode.shape[0]
    running = beside.running.sum(-1)
    busy = beside.present.any(-1)
    other = ~xp.eye(models, dtype=bool)
    # [m, k, j]: on the replica of m, j slows k down.
    slowed = xp.prod(xp.where(busy[:, None, :] & other[None], params.slowdown[None], 1.0), axis=-1)
    if view.observed_slowdown is not None:
        slowed = slowed * view.observed_slowdown[None]
    context_s = params.context_cost_s[None] * running * params.priors.held_each
    pace_s = (_interpolated(params.decode, running, xp) + context_s) * slowed
    tokens = received(beside, pace_s[..., None], params, xp)
    place = _place(at_stake, tokens, params, xp)
    remainder = _remainder(at_stake, place, None, params, xp)
    left_s = remainder * pace_s[..., None] + xp.where(
        beside.running, 0.0, _prefill(params, beside, xp) * slowed[..., None]
    )
    mine = ~other[..., None]
    until_s = xp.max(xp.where(mine & beside.present, left_s, 0.0), axis=(-1, -2))
    length = expected_length(newcomer, params, xp)
    done_s = course.first_token_s + (length - 1.0) * course.step_s
    overlap_s = xp.maximum(xp.minimum(left_s, done_s[:, None, None]) - until_s[:, None, None], 0.0)
    delay_s = (params.slowdown.T - 1.0)[..., None] * overlap_s
    deadline_s = at_stake.deadline_base_s + at_stake.deadline_per_token_s * (tokens + remainder)
    network_s = _of_column(params.network_delay_s) if beside.delay_s is None else beside.delay_s
    slack_s = deadline_s - network_s - beside.age_s - left_s
    steepness = 0.5 / (softness.in_flight * left_s + _SHORTEST_S)
    loss = _loss(at_stake, slack_s, delay_s, steepness, deadline_s, params, beside.terms, xp)
    return (loss * ~mine).sum((-1, -2))


def settled(view: InFlightView, params: Any, xp: Any = np) -> InFlightView:
    """The view with `running` inferred where no one can see what the iteration in progress admitted.

    Requests with tokens run, and of the others those that were there when it began, in order of arrival, while the
    batch has a place and, by expected claims, the cache has room. Where prompts are read in chunks and answers are
    streamed, only requests with tokens run, for it cannot be seen which prompts are being read. Nobody runs on an
    instance that is not up.
    """
    if view.terms.chunks and view.terms.streamed:
        whole = settled(dataclasses.replace(view, terms=dataclasses.replace(view.terms, chunks=False)), params, xp)
        runs = whole.running & ((view.tokens > 0) | _along(xp.isinf(params.chunk_tokens), view.tokens))
        return dataclasses.replace(view, running=runs)
    if view.running is not None:
        return view
    begun = view.present & (view.tokens > 0)
    hopes = view.present & ~begun
    if view.ready_s is not None:
        hopes = hopes & (view.ready_s <= 0)[:, None]
    if view.terms.streamed:
        hopes = hopes & view.eligible
    # [i, j]: j is i or came before it.
    ahead = (view.order[..., None, :] <= view.order[..., :, None]) & hopes[..., None, :]
    most = slots(params)
    if params.pools is not None:
        most = most.reshape(*(1,) * (begun.ndim - 2), -1)
    fits = ahead.sum(-1) <= (most - begun.sum(-1))[..., None]
    if view.terms.cache_limit:
        claim = _claim(view, params, xp)
        used = (claim * begun).sum(-1)
        room = params.cache_tokens.reshape(*(1,) * (used.ndim - 1), -1) - used
        wanted = (claim[..., None, :] * ahead).sum(-1)
        # An empty instance admits the first in any case.
        first = (ahead.sum(-1) == 1) & ~begun.any(-1)[..., None]
        fits = fits & ((wanted <= room[..., None] + _TIE) | first)
    return dataclasses.replace(view, running=begun | (hopes & fits))


def expected_remainder(view: InFlightView, tokens: Any, params: Any, xp: Any = np) -> Any:
    """(pools, seats) mean tokens to come of requests that have so many."""
    longest = params.priors.survival.shape[-1] - 1
    law = view.task * (longest + 1)
    limit = None if view.output_limit is None else law + xp.minimum(view.output_limit, longest)
    of_law = Stakes(law, limit, None, None, None, None)
    return _remainder(of_law, _place(of_law, tokens, params, xp), None, params, xp)


def expected_length(newcomer: Newcomer, params: Any, xp: Any = np) -> Any:
    """() mean output tokens of the new request, no more than its limit."""
    survival, remainder = params.priors.survival, params.priors.remainder
    mean = remainder[newcomer.task, 0]
    if newcomer.output_limit is None:
        return mean
    limit = xp.minimum(newcomer.output_limit, survival.shape[-1] - 1)
    return xp.maximum(mean - survival[newcomer.task, limit] * remainder[newcomer.task, limit], 1.0)


def _place(at_stake: Stakes, tokens: Any, params: Any, xp: Any) -> Any:
    """Where the flattened tables of laws have requests with so many tokens."""
    return at_stake.law + xp.minimum(tokens, params.priors.longest_law)


def _remainder(at_stake: Stakes, place: Any, longer: Any, params: Any, xp: Any) -> Any:
    """Mean tokens to come of requests at a place, the share of longer ones known or None."""
    survival, remainder = params.priors.survival, params.priors.remainder
    rest = _take(remainder, place)
    if at_stake.limit is None:
        return rest
    longer = _take(survival, place) if longer is None else longer
    return xp.maximum(rest - _take(survival, at_stake.limit) / longer * _take(remainder, at_stake.limit), 1.0)


def _claim(view: InFlightView, params: Any, xp: Any) -> Any:
    """(pools, seats) tokens that requests are expected to claim of the cache."""
    remainder = expected_remainder(view, view.tokens, params, xp)
    return view.prompt_tokens + params.cache_output_share * (view.tokens + remainder)


def _loss(
    at_stake: Stakes, slack_s: Any, delay_s: Any, steepness: Any, deadline_s: Any, params: Any, terms: Terms, xp: Any
) -> Any:
    """Expected loss of reward of requests that have so much slack and are delayed."""
    timely, met = _in_time(slack_s, steepness, deadline_s, params, terms, xp)
    later_timely, later_met = _in_time(slack_s - delay_s, steepness, deadline_s, params, terms, xp)
    if not terms.soft:
        return (at_stake.quality + at_stake.penalty) * (met - later_met)
    return at_stake.quality * (timely - later_timely) + at_stake.penalty * (met - later_met)


def _in_time(slack_s: Any, steepness: Any, deadline_s: Any, params: Any, terms: Terms, xp: Any) -> tuple[Any, Any]:
    """Expected timeliness, and chance to meet the deadline, if the slack has a logistic error, see `Prospect`."""
    half = slack_s * steepness
    met = 0.5 + 0.5 * xp.tanh(half)
    if not terms.soft:
        return met, met
    hard = params.soft_span <= 0
    span = xp.maximum(xp.where(hard, 1.0, params.soft_span) * deadline_s * (2 * steepness), _TIE)
    timely = (xp.logaddexp(0.0, 2 * half + span) - xp.logaddexp(0.0, 2 * half)) / span
    return xp.where(hard, met, timely), met


def _total(values: Any, xp: Any) -> Any:
    """Sums over the last axis.

    For JAX as a product with ones: a sum of floats has to keep its order, and XLA for CPUs would work out what it sums
    in the same loop, one by one.
    """
    if xp is np:
        return values.sum(-1)
    return xp.matmul(values, xp.ones(values.shape[-1], values.dtype), precision="highest")


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


def _prefill(params: Any, view: InFlightView, xp: Any) -> Any:
    """(pools, seats) seconds of reading what was not found of each prompt, on the model of its row."""
    if view.read_s is not None:
        return view.read_s
    rows = _along(xp.arange(params.prefill.shape[0]) * params.prefill.shape[-1], view.prompt_tokens)
    whole_s = _take(params.prefill, rows + view.prompt_tokens)
    return whole_s if view.cached_tokens is None else whole_s - _take(params.prefill, rows + view.cached_tokens)


def _of_column(of_pools: Any) -> Any:
    """() as it is, or (pools,) values with axes so that they go with (pools, pools, seats), the second axis's."""
    return of_pools[None, :, None] if of_pools.ndim else of_pools


def _along(of_pools: Any, like: Any) -> Any:
    """(pools,) values with axes so that they go with `like`, whose last axes are models and seats."""
    return of_pools.reshape(*(1,) * (like.ndim - 2), -1, 1)


def _interpolated(table: Any, number: Any, xp: Any) -> Any:
    """(..., pools) values of (pools, columns) tables at fractional columns of that shape."""
    columns = table.shape[-1]
    low = xp.minimum(xp.floor(number).astype(int), columns - 2)
    rows = xp.arange(table.shape[0]) * columns
    place = rows.reshape(*(1,) * (low.ndim - 1), -1) + low
    first = _take(table, place)
    return first + (number - low) * (_take(table, place + 1) - first)


def _take(table: Any, place: Any) -> Any:
    if type(table) is list:
        return table[place]
    return table.reshape(-1).take(place, mode="clip")


def _stretch(view: InFlightView, params: Any, xp: Any) -> Any:
    """(pools,) slow-down of each model, by others that are busy on its replica and observed; None without either."""
    if view.beside is None:
        return view.observed_slowdown
    busy = view.beside.present.any(-1)
    others = ~xp.eye(busy.shape[0], dtype=bool)
    stretch = xp.prod(xp.where(busy & others, params.slowdown, 1.0), axis=-1)
    return stretch if view.observed_slowdown is None else stretch * view.observed_slowdown
