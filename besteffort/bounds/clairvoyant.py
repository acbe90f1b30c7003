"""The clairvoyant bound: an upper bound on a list of requests, even for a router that knows the whole list.

A linear programme over time, bounded by prices (`besteffort.bounds.prices`). Time is cut into equal bins; in a bin of
`bin_s` seconds every model has `replicas x bin_s` instance-seconds of room. A request that a model answers within its
deadline, or within a step of a soft one, is charged at least the time in `besteffort.estimates.charges`.

Why it is a bound. Spread the charges of an iteration evenly over its duration. At any time the charges of all requests
on an instance then add up to at most one second per second, also where an iteration reads parts of prompts, whose
increments of the prefill table are charged to their requests; so in every bin the charges of all requests on a model
add up to at most its room. The charges of a request lie within its own iterations, hence between its arrival and its
latest completion, deadline less network delay: in the bins from the first to the last of these. So the actions of any
router are a feasible allotment of room, with the gains that it really earns, and late answers and rejections gain and
need nothing. The router may know all arrivals and lengths, and may choose the replica, too. Nothing is assumed about
prefills, tables, mixes or arrivals.

Where replicas start, drain and fail at stated times, a bin has the time in it during which replicas are up, or can
still answer one of the requests that came before they were drained in time. Where there is an autoscaler, all are up.

What it leaves out, and why it cannot be reached: requests are divisible in time, prefills of other requests delay none,
batches are as full as each request's own deadline allows, whatever the other requests are, and choices are made with
knowledge of the future.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from besteffort.bounds.prices import Bound, Offers
from besteffort.errors import InputError
from besteffort.pools import Pool
from besteffort.situation import Situation
from besteffort.workload.requests import Requests

_BINS_PER_DEADLINE = 4  # more make the bound tighter by some hundredths of a point


def clairvoyant_bound(situation: Situation, requests: Requests, *, bin_s: float | None = None) -> Bound:
    """Upper bound for a list of requests; it holds for every router, whatever it knows.

    Args:
      situation: the models, tasks and cluster.
      requests: the list.
      bin_s: width of the bins; by default a quarter of the median deadline.

    Raises:
      InputError: if `bin_s` is not positive.
    """
    if bin_s is None:
        bin_s = float(np.median(requests.deadline_s)) / _BINS_PER_DEADLINE
    if not bin_s > 0:
        raise InputError(f"`bin_s` is {bin_s}; give bins a positive width in seconds.")
    offers = Offers.of(situation, requests)
    start_s = requests.arrival_s[0]
    first = np.floor((requests.arrival_s - start_s) / bin_s).astype(np.int64)
    # A request whose deadline touches the edge of a bin, up to rounding, may use that bin.
    last = np.floor((offers.until_s - start_s) / bin_s + 1e-6).astype(np.int64)
    if not situation.fleet.life_size[0]:
        return offers.bound(first, last, bin_s)
    edges_s = start_s + bin_s * np.arange(int(last.max()) + 2)
    return offers.bound(
        first, last, _room_s(situation.fleet.served, requests.arrival_s, offers.until_s.max(1), edges_s)
    )


def _room_s(
    pools: Sequence[Pool],
    arrival_s: Float[np.ndarray, " n"],
    until_s: Float[np.ndarray, " n"],
    edges_s: Float[np.ndarray, " edges"],
) -> Float[np.ndarray, "bins pools"]:
    """Seconds in each bin, between two edges, in which instances of each pool can do something for an answer in time.

    Requests arrive at `arrival_s`, in order, and earn nothing after `until_s`.
    """
    latest_s = np.maximum.accumulate(until_s)  # of those that have arrived
    room_s = np.zeros((len(edges_s) - 1, len(pools)))
    for index, pool in enumerate(pools):
        for replica in range(pool.replicas):
            for begins_s, ends_s in _spans(pool, replica, arrival_s, latest_s):
                within_s = np.minimum(edges_s[1:], ends_s) - np.maximum(edges_s[:-1], begins_s)
                room_s[:, index] += np.maximum(within_s, 0.0)
    return room_s


def _spans(
    pool: Pool, replica: int, arrival_s: Float[np.ndarray, " n"], latest_s: Float[np.ndarray, " n"]
) -> list[tuple[float, float]]:
    """Spans of time, apart from each other, in which a replica may be at work on answers in time."""
    if pool.autoscaler is not None:
        return [(-np.inf, np.inf)]
    spans: list[tuple[float, float]] = []
    begins_s = -np.inf if pool.up_first[replica] else np.inf
    drains_s = np.inf  # when it will have nothing left that could be in time
    for event in pool.sorted_events:
        if event.replica != replica:
            continue
        if event.what == "drain":
            came = int(np.searchsorted(arrival_s, event.time_s, side="left"))
            drains_s = max(event.time_s, latest_s[came - 1] if came else -np.inf)
        elif event.what == "fail":
            spans.append((begins_s, min(drains_s, event.time_s)))
            begins_s = drains_s = np.inf
        elif begins_s < np.inf:  # it may still drain, and then is up at once
            spans.append((begins_s, min(drains_s, event.time_s)))
            begins_s, drains_s = event.time_s, np.inf
        else:
            begins_s = event.time_s + (pool.start_s or 0.0)
    spans.append((begins_s, drains_s))
    return spans
