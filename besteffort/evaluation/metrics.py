"""Measures of a simulation, from the result of each request. NumPy only.

Every function takes a `Result` whose arrays have the shape (*lanes, n) and returns one figure per lane: an array of
shape (*lanes,), `nan` where a lane has no request that counts. Requests that arrive in the first `warm_up_s` seconds
after a lane's first arrival do not count, so that an initially empty cluster does not flatter the figures. Some take
`among`, (*lanes, n), the only requests that count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from besteffort.autoscaler import Autoscaler, Looks
from besteffort.errors import InputError
from besteffort.pools import Fleet, Layout, Pool, ReplicaEvent
from besteffort.simulator.result import Result

# Rewards come from float32 simulations too: a window that misses its threshold by rounding alone reaches it.
_ROUNDING = 1e-6


def after_warm_up(arrival_s: Float[np.ndarray, "*lanes n"], warm_up_s: float) -> Bool[np.ndarray, "*lanes n"]:
    """Which requests count."""
    return arrival_s >= arrival_s[..., :1] + warm_up_s


def mean_over(values: np.ndarray, counted: Bool[np.ndarray, "*lanes n"]) -> Float[np.ndarray, "*lanes"]:
    """Mean of the values that count."""
    total = np.sum(values, axis=-1, where=counted, dtype=np.float64)
    number = counted.sum(axis=-1)
    return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)


def performance(
    result: Result, *, warm_up_s: float = 0.0, among: Bool[np.ndarray, "*lanes n"] | None = None
) -> Float[np.ndarray, "*lanes"]:
    """Mean reward over all requests that arrived, rejected ones included."""
    return mean_over(result.reward, _counted(result, warm_up_s, among))


def weighted_performance(
    result: Result, weights: Float[np.ndarray, " tenants"] | None, *, warm_up_s: float = 0.0
) -> Float[np.ndarray, "*lanes"]:
    """Mean reward of the requests, each of which counts as much as its tenant.

    It is the performance where `weights` (see `Situation.tenant_weights`) is None, or requests have no tenants.
    """
    if weights is None or result.tenant is None:
        return performance(result, warm_up_s=warm_up_s)
    each, counted = weights[result.tenant], _counted(result, warm_up_s)
    return np.asarray(mean_over(each * result.reward, counted) / mean_over(each, counted))


def performance_of_peak(
    result: Result,
    peak_reward: Float[np.ndarray, " tasks"],
    *,
    warm_up_s: float = 0.0,
    among: Bool[np.ndarray, "*lanes n"] | None = None,
) -> Float[np.ndarray, "*lanes"]:
    """Performance over the peak performance of the same requests, see `peak_performance`."""
    counted = _counted(result, warm_up_s, among)
    return np.asarray(mean_over(result.reward, counted) / mean_over(peak_reward[result.task], counted))


def worst_tenant(
    result: Result, tenants: int, peak_reward: Float[np.ndarray, " tasks"], *, warm_up_s: float = 0.0
) -> Float[np.ndarray, "*lanes"]:
    """Performance of peak of the tenant that fares worst, of those with requests; `nan` where requests have none."""
    if result.tenant is None:
        return np.full(result.arrival_s.shape[:-1], np.nan)
    each = [
        performance_of_peak(result, peak_reward, warm_up_s=warm_up_s, among=result.tenant == tenant)
        for tenant in range(tenants)
    ]
    return np.asarray(np.fmin.reduce(each))


def slo_attainment(
    result: Result, *, warm_up_s: float = 0.0, among: Bool[np.ndarray, "*lanes n"] | None = None
) -> Float[np.ndarray, "*lanes"]:
    """Share of all requests that arrived, rejected ones included, that were answered by their deadline."""
    return mean_over(result.met, _counted(result, warm_up_s, among))


def share_of(
    result: Result, among: Bool[np.ndarray, "*lanes n"], *, warm_up_s: float = 0.0
) -> Float[np.ndarray, "*lanes"]:
    """Share of the requests that are among some."""
    return mean_over(among, _counted(result, warm_up_s))


def effective_accuracy(
    result: Result, accuracy: Float[np.ndarray, "tasks pools"], *, warm_up_s: float = 0.0
) -> Float[np.ndarray, "*lanes"]:
    """Mean over all requests that arrived of the answering model's raw accuracy on the task, 0 if late or rejected.

    The definition of Proteus (ASPLOS 2024) counts served requests only and so rewards rejecting; this one does not.
    `accuracy` comes from `accuracy_table`.
    """
    return mean_over(accuracy[result.task, result.model] * result.met, _counted(result, warm_up_s))


def accuracy_table(fleet: Fleet, task_names: Sequence[str]) -> Float[np.ndarray, "tasks pools"]:
    """Raw task metric of every pool on the named tasks, 0 to 1; `Profile.quality_table` divides it by the best one."""
    percent = {task.name: task.quality_percent for task in fleet.profile.tasks}
    return np.array([percent[name] for name in task_names])[:, fleet.model] / 100


def performance_per_gpu(result: Result, gpus: int, *, warm_up_s: float = 0.0) -> Float[np.ndarray, "*lanes"]:
    """Performance divided by the number of GPUs that it took."""
    return np.asarray(performance(result, warm_up_s=warm_up_s) / gpus)


def rejection_rate(result: Result, *, warm_up_s: float = 0.0) -> Float[np.ndarray, "*lanes"]:
    """Share of the requests that were turned away on arrival."""
    return mean_over(result.rejected, _counted(result, warm_up_s))


def loss_rate(result: Result, *, warm_up_s: float = 0.0) -> Float[np.ndarray, "*lanes"]:
    """Share of the requests that were lost with a replica that failed."""
    return mean_over(result.lost, _counted(result, warm_up_s))


def gpu_seconds(result: Result, fleet: Fleet, *, warm_up_s: float = 0.0) -> Float[np.ndarray, "*lanes pools"]:
    """Seconds that the replicas of each pool held a GPU, from their start until they were down, summed over replicas.

    Counted is the time from the end of the warm-up to the last arrival. A replica that drains is down when the last of
    its requests has left. A GPU that several pools share counts for each.
    """
    each = [gpu_seconds_of(result, pool, index, warm_up_s=warm_up_s) for index, pool in enumerate(fleet.pools)]
    return np.stack(each, axis=-1)


def gpu_seconds_of(result: Result, pool: Pool, index: int, *, warm_up_s: float = 0.0) -> Float[np.ndarray, "*lanes"]:
    """Seconds that the replicas of a pool, the `index`-th of its fleet, held a GPU; see `gpu_seconds`."""
    n = result.arrival_s.shape[-1]
    columns = (result.arrival_s, result.completion_s, result.model, result.replica)
    lanes = zip(*(column.reshape(-1, n) for column in columns), strict=True)
    seconds = [_held_s(pool, index, *lane, warm_up_s=warm_up_s) for lane in lanes]
    return np.array(seconds).reshape(result.arrival_s.shape[:-1])


def _held_s(
    pool: Pool,
    index: int,
    arrival_s: Float[np.ndarray, " n"],
    completion_s: Float[np.ndarray, " n"],
    pool_of: Int[np.ndarray, " n"],
    replica_of: Int[np.ndarray, " n"],
    *,
    warm_up_s: float,
) -> float:
    """Seconds that all replicas of a pool held a GPU, see `gpu_seconds`."""
    first_s, last_s = float(arrival_s[0]) + warm_up_s, float(arrival_s[-1])
    events: Sequence[ReplicaEvent] = pool.sorted_events
    if pool.autoscaler is not None:
        events = _orders(
            pool, pool.autoscaler, last_s, arrival_s, completion_s, np.where(pool_of == index, replica_of, -1)
        )

    def counted(begins_s: float, ends_s: float) -> float:
        return max(min(ends_s, last_s) - max(begins_s, first_s), 0.0)

    total_s = 0.0
    for replica, up in enumerate(pool.up_first):
        begins_s, ends_s = (-np.inf if up else np.inf), np.inf
        for event in events:
            if event.replica != replica:
                continue
            if event.what == "drain":
                there = (pool_of == index) & (replica_of == replica) & (arrival_s < event.time_s)
                ends_s = max(event.time_s, float(np.nanmax(completion_s[there], initial=-np.inf)))
                continue
            if event.what == "start" and begins_s < np.inf and event.time_s < ends_s:
                ends_s = np.inf  # it still drained
                continue
            total_s += counted(begins_s, min(ends_s, event.time_s))
            begins_s, ends_s = (event.time_s if event.what == "start" else np.inf), np.inf
        total_s += counted(begins_s, ends_s)
    return total_s


def _orders(
    pool: Pool,
    autoscaler: Autoscaler,
    last_s: float,
    arrival_s: Float[np.ndarray, " n"],
    completion_s: Float[np.ndarray, " n"],
    replica_of: Int[np.ndarray, " n"],
) -> list[ReplicaEvent]:
    """What an autoscaler did until `last_s`, which follows from where requests were, and when."""
    looks = Looks(autoscaler, pool.replicas, pool.max_batch)
    mine = [replica_of == replica for replica in range(pool.replicas)]
    came_s, left_s = ([np.sort(times[each]) for each in mine] for times in (arrival_s, completion_s))
    takes, events = list(pool.up_first), list[ReplicaEvent]()
    while (now_s := looks.next_s) <= last_s:
        sizes = [
            int(np.searchsorted(came, now_s, side="left") - np.searchsorted(left, now_s, side="right"))
            for came, left in zip(came_s, left_s, strict=True)
        ]
        starts, drains = looks.look(takes, sizes)
        events += [ReplicaEvent(now_s, replica, "start") for replica in starts]
        events += [ReplicaEvent(now_s, replica, "drain") for replica in drains]
        for replica in (*starts, *drains):
            takes[replica] = not takes[replica]
    return events


def routing_mix(result: Result, models: int, *, warm_up_s: float = 0.0) -> Float[np.ndarray, "*lanes outcomes"]:
    """Share of all requests that each model got, smallest first, and as last entry the share that was rejected."""
    counted = _counted(result, warm_up_s)
    outcome = np.where(result.rejected, models, result.model)
    return np.stack([mean_over(outcome == index, counted) for index in range(models + 1)], axis=-1)


def performance_by_model(result: Result, models: int, *, warm_up_s: float = 0.0) -> Float[np.ndarray, "*lanes models"]:
    """What each model's answers contribute to the performance; they add up to it unless rejections cost a penalty."""
    counted = _counted(result, warm_up_s)
    by_model = [np.where(result.model == index, result.reward, 0.0) for index in range(models)]
    return np.stack([mean_over(np.where(result.rejected, 0.0, reward), counted) for reward in by_model], axis=-1)


def windows_at_peak(
    result: Result,
    peak_reward: Float[np.ndarray, " tasks"],
    *,
    width_s: float,
    fraction: float,
    warm_up_s: float = 0.0,
) -> Float[np.ndarray, "*lanes"]:
    """Share of the windows with performance >= `fraction` of peak performance.

    Windows of `width_s` seconds follow each other from the end of the warm-up and hold the requests that *arrive* in
    them. Windows without arrivals are left out. The last one counts like the others, though the list may end within
    it, so that every request counts once. The peak of a window is what its own requests would have earned at
    `peak_reward` (see `Situation.peak_rewards`), so that a window's task mix does not count for or against a router.

    Raises:
      InputError: if `width_s` is not positive.
    """
    if not width_s > 0:
        raise InputError(f"`width_s` is {width_s}; give windows a positive width in seconds.")
    counted = _counted(result, warm_up_s)
    lanes, n = counted.shape[:-1], counted.shape[-1]
    elapsed = result.arrival_s - _first_arrival(result) - warm_up_s
    window = np.floor(np.where(counted, np.maximum(elapsed, 0.0), -1.0) / width_s).reshape(-1, n)
    # Arrivals are sorted, so a window is a run of requests: sum the runs instead of binning, whatever the width.
    begins = np.ones(window.shape, dtype=bool)
    begins[:, 1:] = window[:, 1:] != window[:, :-1]
    starts = np.flatnonzero(begins)
    earned = np.add.reduceat(np.where(counted, result.reward, 0.0).ravel(), starts, dtype=np.float64)
    peak = np.add.reduceat(np.where(counted, peak_reward[result.task], 0.0).ravel(), starts, dtype=np.float64)
    reached = np.zeros(window.size, dtype=bool)
    reached[starts] = earned >= fraction * peak * (1 - _ROUNDING)
    return mean_over(reached.reshape(*lanes, n), begins.reshape(*lanes, n) & counted)


def peak_performance(
    result: Result, peak_reward: Float[np.ndarray, " tasks"], *, warm_up_s: float = 0.0
) -> Float[np.ndarray, "*lanes"]:
    """Performance of the same requests if the largest model answered each of them in time."""
    return mean_over(peak_reward[result.task], _counted(result, warm_up_s))


def latency_percentiles(
    result: Result,
    percentiles: Sequence[float],
    *,
    warm_up_s: float = 0.0,
    among: Bool[np.ndarray, "*lanes n"] | None = None,
) -> Float[np.ndarray, "*lanes percentiles"]:
    """Percentiles (0 to 100) of the end-to-end latency in seconds over answered requests, late ones included.

    Rejected and lost requests have no latency and are left out: read these figures with `rejection_rate`, `loss_rate`.
    """
    return _percentiles(result.latency_s, _answered(result, warm_up_s, among), percentiles)


def ttft_percentiles(
    result: Result, percentiles: Sequence[float], *, warm_up_s: float = 0.0
) -> Float[np.ndarray, "*lanes percentiles"]:
    """Like `latency_percentiles`, of the time to first token: the network delay is part of it."""
    ttft = result.latency_s - (result.completion_s - result.first_token_s)
    return _percentiles(ttft, _answered(result, warm_up_s), percentiles)


def sustained_rate(
    rates: Float[np.ndarray, " rates"], attainment: Float[np.ndarray, "*lanes rates"], target: float
) -> Float[np.ndarray, "*lanes"]:
    """Highest rate up to which SLO attainment stays at or above `target`, in the unit of `rates`.

    Between two rates of the grid, attainment is taken as linear in the logarithm of the rate. A curve that falls
    below the target and comes back counts up to where it first falls. At the ends the figure is a lower bound: 0 if
    already the lowest rate misses the target, the highest rate of the grid if none does.

    Raises:
      InputError: if `rates` is not positive and strictly increasing.
    """
    rates = np.asarray(rates, dtype=np.float64)
    if not (rates > 0).all() or not (np.diff(rates) > 0).all():
        raise InputError(
            "`rates` must be positive and strictly increasing to find the sustained rate; sort the curve by rate."
        )
    reached = attainment >= target
    first_miss = np.where(reached.all(axis=-1), len(rates), reached.argmin(axis=-1))
    # The crossing lies between the grid points `above` and `above + 1`; the clipping is undone for both ends below.
    above = np.clip(first_miss - 1, 0, max(len(rates) - 2, 0))
    below = np.minimum(above + 1, len(rates) - 1)
    high = np.take_along_axis(attainment, above[..., None], axis=-1)[..., 0]
    low = np.take_along_axis(attainment, below[..., None], axis=-1)[..., 0]
    inside = (first_miss > 0) & (first_miss < len(rates))
    step = np.divide(high - target, high - low, out=np.zeros(inside.shape), where=inside)
    crossing = rates[above] * (rates[below] / rates[above]) ** step
    return np.where(inside, crossing, np.where(first_miss == 0, 0.0, rates[-1]))


def batch_sizes_found(result: Result, layout: Layout) -> Int[np.ndarray, "n rows pools"]:
    """Requests running or waiting at every instance when each request of a list, arrays of shape (n,), arrived.

    Of lost requests no one knows when they left, so there must be none.
    """
    sizes = np.zeros((len(result.arrival_s), *layout.placed.shape), dtype=np.int64)
    places = ((pool, replica, row) for pool, rows in enumerate(layout.rows) for replica, row in enumerate(rows))
    for pool, replica, row in places:
        mine = (result.replica == replica) & (result.model == pool)
        came = np.cumsum(mine) - mine
        left = np.searchsorted(np.sort(result.completion_s[mine]), result.arrival_s, side="right")
        sizes[:, row, pool] = came - left
    return sizes


def binned(
    result: Result, values: np.ndarray, *, width_s: float, bins: int, origin_s: float = 0.0
) -> tuple[Int[np.ndarray, "*lanes bins"], Float[np.ndarray, "*lanes bins"]]:
    """Number of arrivals per time bin, and the mean of `values` (*lanes, n) over them, `nan` in an empty bin.

    Bin k holds the arrivals from `origin_s + k width_s` up to but not including the start of the next; others are
    ignored.
    """
    n = result.arrival_s.shape[-1]
    index = np.floor((result.arrival_s - origin_s) / width_s).reshape(-1, n)
    inside = (index >= 0) & (index < bins)
    lane = np.broadcast_to(np.arange(len(index))[:, None], index.shape)
    flat = (lane * bins + np.where(inside, index, 0).astype(np.int64))[inside]
    size = len(index) * bins
    count = np.bincount(flat, minlength=size)
    total = np.bincount(
        flat, weights=np.broadcast_to(values, result.arrival_s.shape).reshape(-1, n)[inside], minlength=size
    )
    mean = np.divide(total, count, out=np.full(size, np.nan), where=count > 0)
    shape = (*result.arrival_s.shape[:-1], bins)
    return count.reshape(shape), mean.reshape(shape)


def _first_arrival(result: Result) -> Float[np.ndarray, "*lanes 1"]:
    return result.arrival_s[..., :1]


def _counted(
    result: Result, warm_up_s: float, among: Bool[np.ndarray, "*lanes n"] | None = None
) -> Bool[np.ndarray, "*lanes n"]:
    counted = after_warm_up(result.arrival_s, warm_up_s)
    return counted if among is None else counted & among


def _answered(
    result: Result, warm_up_s: float, among: Bool[np.ndarray, "*lanes n"] | None = None
) -> Bool[np.ndarray, "*lanes n"]:
    return _counted(result, warm_up_s, among) & ~result.rejected & ~result.lost


def _percentiles(
    values: Float[np.ndarray, "*lanes n"], counted: Bool[np.ndarray, "*lanes n"], percentiles: Sequence[float]
) -> Float[np.ndarray, "*lanes percentiles"]:
    """As `np.percentile`: linear between order statistics, with a different number of values in each lane."""
    ordered = np.sort(np.where(counted, values, np.nan), axis=-1)  # nan comes last
    last = (~np.isnan(ordered)).sum(axis=-1, keepdims=True) - 1
    place = np.asarray(percentiles, dtype=np.float64) / 100 * np.maximum(last, 0)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(last, 0))
    low = np.take_along_axis(ordered, below, axis=-1)
    high = np.take_along_axis(ordered, above, axis=-1)
    return low + (place - below) * (high - low)
