"""Answers of queueing theory, and how to hold a simulation against them.

Sources, by short name:
  Kleinrock I, II: L. Kleinrock, Queueing Systems, volumes I (1975) and II (1976), Wiley.
  Harchol-Balter: M. Harchol-Balter, Performance Modeling and Design of Computer Systems, Cambridge, 2013.
"""

from __future__ import annotations

import heapq
import math
from typing import NamedTuple

import numpy as np


def mg1_mean_wait(rate: float, mean_service_s: float, second_moment_s2: float) -> float:
    """Mean wait of an M/G/1 queue in order of arrival: `rate E[S^2] / (2 (1 - rate E[S]))`.

    Pollaczek-Khinchine; Kleinrock I chapter 5, Harchol-Balter chapter 23. M/D/1 has `E[S^2] = E[S]^2`.
    """
    return rate * second_moment_s2 / (2.0 * (1.0 - rate * mean_service_s))


def erlang_b(servers: int, offered: float) -> float:
    """Share of arrivals that an M/G/c/c system turns away; `offered` is the arrival rate times the mean holding time.

    Kleinrock I chapter 3, Harchol-Balter chapter 14; by the recursion `B(c) = a B(c-1) / (c + a B(c-1))`. It holds for
    every distribution of the holding time with that mean.
    """
    blocked = 1.0
    for c in range(1, servers + 1):
        blocked = offered * blocked / (c + offered * blocked)
    return blocked


def erlang_c(servers: int, offered: float) -> float:
    """Share of arrivals that have to wait in an M/M/c queue: `c B / (c - a (1 - B))`.

    Kleinrock I chapter 3, Harchol-Balter chapter 14.
    """
    blocked = erlang_b(servers, offered)
    return servers * blocked / (servers - offered * (1.0 - blocked))


def mmc_mean_wait(servers: int, rate: float, mean_service_s: float) -> float:
    """Mean wait of an M/M/c queue in order of arrival: `C E[S] / (c - a)`.

    Harchol-Balter chapter 14.
    """
    offered = rate * mean_service_s
    return erlang_c(servers, offered) * mean_service_s / (servers - offered)


def ps_mean_response(rate: float, mean_service_s: float) -> float:
    """Mean response time under processor sharing, M/G/1: `E[S] / (1 - rate E[S])`.

    Kleinrock II chapter 4. It depends on the distribution of the service time through its mean only.
    """
    return mean_service_s / (1.0 - rate * mean_service_s)


def fcfs_waits(arrival_s: np.ndarray, service_s: np.ndarray, servers: int = 1) -> np.ndarray:
    """(n,) waits in order of arrival at `servers` servers: each request takes the server that is free first.

    The recursion of Kiefer and Wolfowitz (Trans. Amer. Math. Soc. 78, 1955); with one server, Lindley's.
    """
    free_s = [-math.inf] * servers
    waits = np.zeros(len(arrival_s))
    for k, (arrival, service) in enumerate(zip(arrival_s.tolist(), service_s.tolist(), strict=True)):
        start = max(arrival, free_s[0])
        heapq.heapreplace(free_s, start + service)
        waits[k] = start - arrival
    return waits


def ps_responses(arrival_s: np.ndarray, service_s: np.ndarray) -> np.ndarray:
    """(n,) response times under processor sharing, exactly: with `m` requests present each is served at rate `1 / m`.

    Attained service since the start of a busy period grows alike for all present, so a request leaves when it has grown
    by the request's service since its arrival.
    """
    responses = np.zeros(len(arrival_s))
    present: list[tuple[float, int]] = []  # heap of (attained service at which it leaves, index)
    attained = now = 0.0

    def serve(until: float) -> None:
        nonlocal attained, now
        while present and now + (present[0][0] - attained) * len(present) <= until:
            now += (present[0][0] - attained) * len(present)
            attained, k = heapq.heappop(present)
            responses[k] = now - arrival_s[k]
        if present:
            attained += (until - now) / len(present)
        now = until

    for k, arrival in enumerate(arrival_s.tolist()):
        serve(arrival)
        heapq.heappush(present, (attained + float(service_s[k]), k))
    serve(math.inf)
    return responses


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float

    def within(self, low: float, high: float | None = None) -> bool:
        """Whether the true mean may lie in `[low, high]`: the estimate is at most three standard errors outside.

        One argument stands for an exact answer, two for an answer with a stated bias.
        """
        high = low if high is None else high
        return low - 3.0 * self.error <= self.mean <= high + 3.0 * self.error


def batch_means(values: np.ndarray, warm_up: float = 0.1, batches: int = 30) -> Estimate:
    """Mean of a stationary series with a standard error that allows for its correlation.

    Drops the first `warm_up` share, then treats the means of `batches` equal pieces as independent; the pieces must be
    long beside the correlation time. Method of batch means: Law, Simulation Modeling and Analysis, chapter 9.
    """
    kept = values[int(warm_up * len(values)) :].astype(float)
    means = kept[: len(kept) // batches * batches].reshape(batches, -1).mean(axis=1)
    return Estimate(float(means.mean()), float(means.std(ddof=1)) / math.sqrt(batches))
