"""A looser bound on a list, window by window, which the clairvoyant bound must not exceed by more than rounding."""

from __future__ import annotations

import numpy as np

from besteffort.bounds.prices import Bound, Offers
from besteffort.errors import InputError
from besteffort.situation import Situation
from besteffort.workload.requests import Requests


def fluid_bound_windows(situation: Situation, requests: Requests, *, window_s: float) -> Bound:
    """Bound for a list of requests whose rate may vary, from its own arrivals, tasks, lengths and deadlines.

    Answers in time to the requests of a window take their instance-seconds between the window's start and its end
    plus the longest deadline, so each window is a programme with that much room. Short windows see bursts but count
    the longest deadline often, long ones the other way round; therefore windows of `window_s`, twice that, and so on
    up to the whole list are solved, and the lowest bound counts. It holds for every router, whatever it knows.

    Raises:
      InputError: if `window_s` is not positive.
    """
    if not window_s > 0:
        raise InputError(f"`window_s` is {window_s}; give windows a positive width in seconds.")
    elapsed = requests.arrival_s - requests.arrival_s[0]
    longest_s = float(requests.deadline_s.max()) * (1 + situation.reward.soft_span)
    tail_s = max(0.0, longest_s - situation.cluster.network_delay_s)
    offers, each = Offers.of(situation, requests), []
    while True:
        _, window = np.unique(np.floor(elapsed / window_s), return_inverse=True)
        each.append(offers.bound(window, np.broadcast_to(window[:, None], offers.until_s.shape), window_s + tail_s))
        if window[-1] == 0:
            break
        window_s *= 2
    return Bound(
        performance=np.asarray(min(float(bound.performance) for bound in each)),
        slo_attainment=np.asarray(min(float(bound.slo_attainment) for bound in each)),
    )
