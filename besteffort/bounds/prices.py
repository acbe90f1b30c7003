"""Bounds by prices: the most that requests can earn if they must buy the time of instances.

Time is cut into bins, in each of which an instance of every model has some room, in seconds. A request that model m
answers within its deadline takes at least `charge` seconds (`besteffort.estimates.charges`) of the room between its
arrival and that deadline, so with any prices `price[m, t] >= 0` per second

    sum of gains <= sum over m, t of price[m, t] x room
                    + sum over requests of max(0, max over m of gain - charge x lowest[m])

with `lowest[m]` the lowest price of m from the bin of the arrival to that of the deadline: the answered requests pay at
least `charge x lowest` each, and together no more than the price of all room. This holds for all prices, assignments
and schedules (weak duality). Good prices come from a linear programme, the dual of allotting room to requests. It
treats similar requests as one class and is solved block by block of time, which makes it fast. The bound is then
evaluated request by request, so neither approximation can make it false.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, sparse

from besteffort.bounds.realised import delay_s, realised_work
from besteffort.estimates.charges import gains, stretches
from besteffort.situation import Situation
from besteffort.workload.requests import Requests

_GROUPS = 2  # groups by charge of the requests of the same bin and task
_BLOCK = 128  # bins whose prices are found together
_THINNED = 8  # the search for prices uses one in so many steps of soft deadlines


@dataclasses.dataclass(frozen=True)
class Bound:
    """Upper bounds, arrays of equal shape; () for a single list or rate.

    Attributes:
      performance: bound on the mean reward.
      slo_attainment: bound on the share answered in time; the two bounds need not be reached together.
    """

    performance: np.ndarray
    slo_attainment: np.ndarray


@dataclasses.dataclass(frozen=True)
class Offers:
    """Gains and charges of answers to the requests of a list; steps as in `besteffort.estimates.charges.gains`.

    Attributes:
      task: (n,) index of the task.
      gain: (n, steps, pools) reward beyond that of no answer.
      charge_s: (n, steps, pools) least instance-seconds, infinite where impossible.
      until_s: (n, steps) time of the latest completion, in the pool with the least network delay.
      forgone: penalty if no request is answered.
      replicas: (pools,) instances of every pool.
    """

    task: np.ndarray
    gain: np.ndarray
    charge_s: np.ndarray
    until_s: np.ndarray
    forgone: float
    replicas: np.ndarray

    @classmethod
    def of(cls, situation: Situation, requests: Requests) -> Offers:
        """The offers of every request of a list."""
        work, stretch = realised_work(situation, requests), stretches(situation.reward)
        quality = situation.quality
        weight = situation.weights
        gain = weight[:, None, None] * gains(quality, situation.reward)
        charges = [work.charges(pool, stretch)[1] for pool in range(len(situation.fleet.pools))]
        latest = requests.arrival_s[:, None] + requests.deadline_s[:, None] * stretch
        return cls(
            task=requests.task,
            gain=gain.swapaxes(1, 2)[requests.task],
            charge_s=np.stack(charges, axis=2),
            until_s=np.maximum(latest - delay_s(situation, requests).min(axis=0)[:, None], requests.arrival_s[:, None]),
            forgone=float(weight[requests.task].sum() * situation.reward.miss_penalty),
            replicas=situation.fleet.replicas,
        )

    def bound(self, first: Int[np.ndarray, " n"], last: Int[np.ndarray, "n steps"], room_s: Any) -> Bound:
        """Bound where request i is answered between its bins `first` and `last`.

        `room_s` are the seconds that each instance has in a bin, or (bins, pools) those of all instances of each pool.
        """
        if np.ndim(room_s) == 0:
            room_s = np.broadcast_to(self.replicas * room_s, (int(last.max()) + 1, len(self.replicas)))
        in_time = slice(0, 1)
        earned = _most(self.task, self.gain, self.charge_s, first, last, room_s)
        once = np.ones_like(self.gain[:, in_time])
        answered = _most(self.task, once, self.charge_s[:, in_time], first, last[:, in_time], room_s)
        n = len(self.task)
        return Bound(np.asarray((earned - self.forgone) / n), np.asarray(answered / n))


def _most(
    task: Int[np.ndarray, " n"],
    gain: Float[np.ndarray, "n steps pools"],
    charge_s: Float[np.ndarray, "n steps pools"],
    first: Int[np.ndarray, " n"],
    last: Int[np.ndarray, "n steps"],
    room_s: Float[np.ndarray, "bins pools"],
) -> float:
    """Upper bound on the sum of gains, from good prices or from none: then it is the sum of the largest gains.

    Good prices are those of classes of similar requests, and where nearly all can be answered, they may bound worse.
    """
    room_s = room_s[: int(last.max()) + 1]
    prices = _good_prices(task, gain, charge_s, first, last, room_s)
    return min(value(each, gain, charge_s, first, last, room_s) for each in (prices, np.zeros_like(prices)))


def value(
    price: Float[np.ndarray, "bins pools"],
    gain: Float[np.ndarray, "n steps pools"],
    charge_s: Float[np.ndarray, "n steps pools"],
    first: Int[np.ndarray, " n"],
    last: Int[np.ndarray, "n steps"],
    room_s: Any,
) -> float:
    """The upper bound on the sum of gains that follows from non-negative prices.

    Args:
      price: price of a second in each bin.
      gain: gain of each request's answer within each step by each model.
      charge_s: least instance-seconds that the answer takes, infinite where impossible.
      first: bin of the request's arrival.
      last: bin of the latest completion.
      room_s: instance-seconds of every pool in each bin, or what broadcasts to that.
    """
    possible = np.isfinite(charge_s)
    cost = np.where(possible, charge_s, 0.0) * _lowest(price, first, last)
    net = np.where(possible, gain - cost, 0.0).max(axis=(1, 2))
    return float((room_s * price).sum() + np.maximum(net, 0.0).sum())


def _lowest(
    price: Float[np.ndarray, "bins pools"], first: Int[np.ndarray, " n"], last: Int[np.ndarray, "n steps"]
) -> Float[np.ndarray, "n steps pools"]:
    """Lowest price of every model from bin `first` to bin `last`, both included."""
    level = _level(first[:, None], last)
    tables = [price]  # lowest price of the 1, 2, 4, ... bins from each bin on
    for k in range(int(level.max())):
        later = np.full_like(price, np.inf)
        later[: -(2**k)] = tables[-1][2**k :]
        tables.append(np.minimum(tables[-1], later))
    table = np.stack(tables)
    return np.minimum(table[level, first[:, None]], table[level, last + 1 - 2**level])


def _level(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The k for which 2^k bins are at most those from `first` to `last`, and 2^(k + 1) are more."""
    return np.frexp(last - first + 1)[1] - 1


def _good_prices(
    task: Int[np.ndarray, " n"],
    gain: Float[np.ndarray, "n steps pools"],
    charge_s: Float[np.ndarray, "n steps pools"],
    first: Int[np.ndarray, " n"],
    last: Int[np.ndarray, "n steps"],
    room_s: Float[np.ndarray, "bins pools"],
) -> Float[np.ndarray, "bins pools"]:
    """(bins, pools) non-negative prices that make the bound low."""
    bins, longest = int(last.max()) + 1, int((last - first[:, None]).max()) + 1
    every = slice(None, None, _THINNED)
    gain, charge_s, last = gain[:, every], charge_s[:, every], last[:, every]
    possible = np.isfinite(charge_s)
    size = np.where(possible[:, 0], charge_s[:, 0], 0.0).sum(axis=-1)
    group = np.empty(len(task), dtype=np.int64)
    group[np.argsort(size, kind="stable")] = np.arange(len(task)) * _GROUPS // len(task)
    key = np.stack([first, task, group, possible[:, 0].sum(axis=-1)])
    classes, inverse, count = np.unique(key, axis=1, return_inverse=True, return_counts=True)

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.zeros((len(count), *values.shape[1:]))
        np.add.at(sums, inverse, values)
        return sums / count.reshape(-1, *(1,) * (values.ndim - 1))

    gain, charge_s, last, first = mean(gain), mean(charge_s), np.round(mean(last)).astype(np.int64), classes[0]
    block = max(_BLOCK, 2 * longest)
    price = np.zeros((bins, gain.shape[-1]))
    for start in range(0, bins, block):
        # The programme includes neighbours on both sides, which compete for the block's room.
        low, high = max(0, start - longest), min(bins, start + block + longest)
        inside = (first >= low) & (last[:, -1] < high)
        part = (gain[inside], charge_s[inside], first[inside] - low, last[inside] - low, count[inside], high - low)
        if not _all_fit(*part, room_s[low:high]):
            price[start : start + block] = _solve(*part, room_s[low:high])[start - low : start - low + block]
    return price


def _all_fit(
    gain: Float[np.ndarray, "classes steps pools"],
    charge_s: Float[np.ndarray, "classes steps pools"],
    first: Int[np.ndarray, " classes"],
    last: Int[np.ndarray, "classes steps"],
    count: Int[np.ndarray, " classes"],
    bins: int,
    room_s: Float[np.ndarray, "bins pools"],
) -> bool:
    """Whether the best answers to all fit when spread evenly over their bins; prices are then 0."""
    gain = np.where(np.isfinite(charge_s), gain, 0.0)[:, 0]
    best = gain == gain.max(axis=1, keepdims=True)
    model = np.where(best, charge_s[:, 0], np.inf).argmin(axis=1)
    charge = np.take_along_axis(charge_s[:, 0], model[:, None], axis=1)[:, 0]
    rate = count * np.where(np.isfinite(charge), charge, 0.0) / (last[:, 0] - first + 1)
    change = np.zeros((bins + 1, gain.shape[1]))
    np.add.at(change, (first, model), rate)
    np.add.at(change, (last[:, 0] + 1, model), -rate)
    return bool((change.cumsum(axis=0)[:-1] <= room_s).all())


def _solve(
    gain: Float[np.ndarray, "classes steps pools"],
    charge_s: Float[np.ndarray, "classes steps pools"],
    first: Int[np.ndarray, " classes"],
    last: Int[np.ndarray, "classes steps"],
    count: Int[np.ndarray, " classes"],
    bins: int,
    room_s: Float[np.ndarray, "bins pools"],
) -> Float[np.ndarray, "bins pools"]:
    """Best prices for classes of `count` requests each, with HiGHS.

    Minimise `room_s x sum of prices + sum of count x surplus` subject to `surplus >= gain - charge x price` for every
    class, step, model, and bin from `first` to `last`. Two rows replace one row per bin: `lowest[k, t]` is at most the
    prices of the 2^k bins from t on, and two such ranges cover any range.
    """
    models = gain.shape[2]
    level = _level(first[:, None], last)
    levels = int(level.max()) + 1
    surplus = models * levels * bins  # first column of the surpluses; lowest prices come before, level 0 are the prices

    def column(model: Any, level: Any, start: Any) -> np.ndarray:
        return np.asarray((model * levels + level) * bins + start)

    rows = _Rows()
    model, start = np.divmod(np.arange(models * bins), bins)
    for k in range(1, levels):
        half = 2 ** (k - 1)
        inside = start + 2 * half <= bins
        mine = column(model[inside], k, start[inside])
        for offset in (0, half):
            rows.add(mine, 1.0, column(model[inside], k - 1, start[inside] + offset), -1.0, 0.0)
    which, step, model = np.nonzero(np.isfinite(charge_s) & (gain > 0))
    stretch = level[which, step]
    for begin in (first[which], last[which, step] + 1 - 2**stretch):
        price = column(model, stretch, begin)
        rows.add(surplus + which, -1.0, price, -charge_s[which, step, model], -gain[which, step, model])
    cost = np.zeros(surplus + len(gain))
    cost[column(np.arange(models)[:, None], 0, np.arange(bins))] = room_s.T
    cost[surplus:] = count
    matrix, limit = rows.matrix(len(cost))
    solution = optimize.linprog(cost, A_ub=matrix, b_ub=limit, bounds=(0, None), method="highs-ds")
    if not solution.success:
        raise RuntimeError(f"The bound's linear programme was not solved: {solution.message}")
    return np.maximum(solution.x[column(np.arange(models), 0, np.arange(bins)[:, None])], 0.0)


class _Rows:
    """Collects rows `a x[i] + b x[j] <= limit` of a programme."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, ...]] = []

    def add(self, i: np.ndarray, a: Any, j: np.ndarray, b: Any, limit: Any) -> None:
        self._parts.append(np.broadcast_arrays(i, a, j, b, limit))

    def matrix(self, columns: int) -> tuple[sparse.csr_array, np.ndarray]:
        i, a, j, b, limit = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        row = np.arange(len(limit))
        entries = (np.concatenate([a, b]), (np.concatenate([row, row]), np.concatenate([i, j]).astype(np.int64)))
        return sparse.csr_array(entries, shape=(len(row), columns)), limit
