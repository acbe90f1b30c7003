"""The fluid bound: an upper bound on the average of any router, from a linear programme over tasks and pools.

Share x[k, m] of task k's requests that pool m answers in time, reward weight x quality for each:

    maximise    sum rate[k] weight[k] quality[k, m] x[k, m] / sum rate[k]
    subject to  sum_k rate[k] seconds[k, m] x[k, m] <= replicas[m]   for every pool m
                sum_m x[k, m] <= 1                                   for every task k

`seconds[k, m]` is the least instance time that one answer in time takes, from `besteffort.estimates.charges`. A late
answer has a charge there, too, and a router that does not see output lengths cannot choose which requests are late; so
`seconds` is the smallest ratio of charges to answers in time over all choices of which output lengths are to be in
time. The same holds of prompt lengths, in groups: all prompts are charged their mean prefill, those in time have what
the shortest of their group leaves for decodes.

The dual of the programme prices an instance-second of each pool: what the best use of one more of them would earn.

Replicas that start, drain or fail count as up all the time: for a stationary load there is no other sense.

It bounds the long-run performance of a router that does not see the lengths of single requests.
`besteffort.bounds.clairvoyant` bounds any router on a list, including one that knows the whole list in advance.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import optimize, sparse

from besteffort.bounds.prices import Bound
from besteffort.errors import InputError
from besteffort.estimates.charges import Work, gains, stretches, typical_work
from besteffort.situation import Situation

_PROGRAMMES_AT_ONCE = 256  # independent programmes that are solved as one
_PROMPT_GROUPS = 32  # of each task


@dataclasses.dataclass(frozen=True)
class FluidBound(Bound):
    """Upper bounds for stationary load, arrays of the shape (*rates) of the given rates.

    Attributes:
      routing: (*rates, tasks, pools) share of each task's requests that each pool answers at that performance; other
        shares reach the SLO attainment.
      prices: (*rates, pools) reward that one more instance-second of each pool would earn at that performance.
    """

    routing: np.ndarray
    prices: np.ndarray


def fluid_bound(
    situation: Situation, rate: Float[np.ndarray, "*rates"] | float, *, even_prefills: bool = False
) -> FluidBound:
    """Bound at one or more stationary arrival rates in requests per second; lengths as the tasks state them.

    It holds for the long run. A list that lasts only a few deadlines also uses the time after its last arrival.

    With `even_prefills` the prefills of other requests are spread evenly, see `besteffort.estimates.charges`: closer to
    what routers reach and good for planning, but no bound.

    Raises:
      InputError: if a rate is not positive.
    """
    rates = np.asarray(rate, dtype=np.float64)
    if not (rates > 0).all():
        raise InputError("The bound needs positive arrival rates in requests per second.")
    arrivals = rates.reshape(-1, 1) * situation.shares
    quality = situation.quality
    weight = situation.weights
    penalty = situation.reward.miss_penalty
    work, gain = _work(situation, even_prefills), gains(quality, situation.reward)
    replicas = situation.fleet.replicas.astype(np.float64)
    best = gain[..., 0]
    seconds = _seconds(work, gain, stretches(situation.reward), even_prefills)
    routing, prices = _allocate(seconds, arrivals, replicas, weight[:, None] * best)
    gained = (arrivals * ((routing * best).sum(axis=-1) - penalty)) @ weight
    # Answers after a soft deadline count for the performance only.
    seconds = _seconds(work, np.ones((*quality.shape, 1)), np.ones(1), even_prefills)
    in_time, _ = _allocate(seconds, arrivals, replicas, np.ones_like(quality))
    answered = (arrivals * in_time.sum(axis=-1)).sum(axis=-1)
    total = arrivals.sum(axis=-1)
    return FluidBound(
        performance=(gained / total).reshape(rates.shape),
        slo_attainment=(answered / total).reshape(rates.shape),
        routing=routing.reshape(*rates.shape, *quality.shape),
        prices=prices.reshape(*rates.shape, quality.shape[1]),
    )


def seconds_per_answer(situation: Situation, *, even_prefills: bool = False) -> Float[np.ndarray, "tasks pools"]:
    """Least instance time in seconds that one answer in time takes; infinite where no answer can be in time."""
    one = np.ones((len(situation.tasks), len(situation.fleet.pools), 1))
    return _seconds(_work(situation, even_prefills), one, np.ones(1), even_prefills)


def throughput(situation: Situation, *, even_prefills: bool = False) -> Float[np.ndarray, " pools"]:
    """Requests per second that each pool can answer in time if it answers everything.

    This is `Situation.capacity` wherever a full batch is the cheapest one and deadlines leave time for it.
    """
    return situation.fleet.replicas / (situation.shares @ seconds_per_answer(situation, even_prefills=even_prefills))


def _work(situation: Situation, even_prefills: bool) -> Work:
    """The kinds of requests: those of a bound, or those of an estimate, whose prompts are all as the mean."""
    return typical_work(situation, prompt_groups=None if even_prefills else _PROMPT_GROUPS)


def _seconds(
    work: Work,
    gain: Float[np.ndarray, "tasks pools steps"],
    stretch: Float[np.ndarray, " steps"],
    even_prefills: bool,
) -> Float[np.ndarray, "tasks pools"]:
    """Least instance-seconds per answer that has the gain of one in time.

    Each kind of request is answered by one of the steps or too late; the ratio of the charges' sum to the gains' sum
    is minimised by Dinkelbach's method, which descends to the optimum in finitely many rounds.
    """
    tasks, pools, _ = gain.shape
    result = np.empty((tasks, pools))
    for pool in range(pools):
        late, in_time = work.charges(pool, stretch, work.beside_s(pool) if even_prefills else 0.0)
        charge = np.concatenate([in_time, late[:, None]], axis=1)
        relative = gain[:, pool] / np.maximum(gain[:, pool, :1], np.finfo(float).tiny)
        relative = np.concatenate([relative[work.task], np.zeros((len(late), 1))], axis=1)
        ratio = np.full(tasks, np.finfo(float).max)
        while True:
            with np.errstate(over="ignore", invalid="ignore"):
                net = np.where(np.isfinite(charge), ratio[work.task, None] * relative - charge, -np.inf)
            picked = np.arange(len(net)), np.argmax(net, axis=1)
            spent = np.bincount(work.task, weights=work.count * charge[picked], minlength=tasks)
            gained = np.bincount(work.task, weights=work.count * relative[picked], minlength=tasks)
            lower = np.divide(spent, gained, out=np.full(tasks, np.inf), where=gained > 0)
            if not (lower < ratio * (1 - 1e-12)).any():
                break
            ratio = np.minimum(lower, ratio)
        result[:, pool] = np.where(ratio < np.finfo(float).max, ratio, np.inf)
    return result


def _allocate(
    seconds: Float[np.ndarray, "tasks pools"],
    arrivals: np.ndarray,
    instance_seconds: Float[np.ndarray, " pools"],
    gain: Float[np.ndarray, "tasks pools"],
) -> tuple[Float[np.ndarray, "programmes tasks pools"], Float[np.ndarray, "programmes pools"]]:
    """Shares of each task per pool with the highest total gain, and the gain of a further instance-second of a pool.

    One linear programme per row of `arrivals` (programmes, tasks), which counts requests; every pool has
    `instance_seconds`; an answer takes `seconds`.
    """
    tasks, pools = gain.shape
    possible = np.broadcast_to(np.isfinite(seconds), (len(arrivals), tasks, pools))
    load = np.where(possible, arrivals[..., None] * np.where(possible, seconds, 0.0), 0.0) / instance_seconds
    # Where the best pool of every task has room for all of its requests, that is the optimum.
    favourite = np.where(possible, gain, -np.inf).argmax(axis=-1)
    shares = (np.arange(pools) == favourite[..., None]) & possible
    crowded = np.flatnonzero(((shares * load).sum(axis=1) > 1).any(axis=-1))
    shares, prices = shares.astype(np.float64), np.zeros((len(arrivals), pools))
    for start in range(0, len(crowded), _PROGRAMMES_AT_ONCE):
        part = crowded[start : start + _PROGRAMMES_AT_ONCE]
        shares[part], prices[part] = _solve(load[part], possible[part], arrivals[part][..., None] * gain)
    return shares, prices / instance_seconds


def _solve(
    load: Float[np.ndarray, "programmes tasks pools"],
    possible: np.ndarray,
    gain: Float[np.ndarray, "programmes tasks pools"],
) -> tuple[Float[np.ndarray, "programmes tasks pools"], Float[np.ndarray, "programmes pools"]]:
    """Solves independent programmes as one, with HiGHS: shares, and the gain of the whole room of a pool once more."""
    programmes, tasks, pools = load.shape
    column = np.arange(load.size)
    programme, task, pool = np.unravel_index(column, load.shape)
    capacity_row = programme * pools + pool
    task_row = programmes * pools + programme * tasks + task
    rows = programmes * (pools + tasks)
    constraints = sparse.csr_array(
        (
            np.concatenate([load.ravel(), np.ones(load.size)]),
            (np.concatenate([capacity_row, task_row]), np.concatenate([column, column])),
        ),
        shape=(rows, load.size),
    )
    limits = np.column_stack([np.zeros(load.size), possible.ravel().astype(np.float64)])
    scale = np.abs(gain).max() or 1.0
    solution = optimize.linprog(
        -gain.ravel() / scale, A_ub=constraints, b_ub=np.ones(rows), bounds=limits, method="highs"
    )
    if not solution.success:
        raise RuntimeError(f"The bound's linear programme was not solved: {solution.message}")
    prices = -scale * solution.ineqlin.marginals[: programmes * pools]
    return solution.x.reshape(load.shape), np.maximum(prices, 0.0).reshape(programmes, pools)
