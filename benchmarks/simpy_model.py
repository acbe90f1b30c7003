"""The serving model in SimPy, for independent instances: a rival for speed and an independent check of the reference.

One process per instance and one for the arrivals. An instance sleeps through all iterations in which nobody can join or
leave, since they last equally long; a request that may join moves the end of that sleep to the current iteration's end.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence

import numpy as np
import simpy
from simpy.events import Event, EventPriority, Timeout

from besteffort.estimates.tables import Tables
from besteffort.situation import Cluster
from besteffort.workload.requests import Requests

Route = Callable[[int, Sequence[int], float], int]
Process = Generator[Event, int, None]

AFTER_ENDS = EventPriority(2)  # SimPy serves smaller numbers first; timeouts have 1


@dataclasses.dataclass(frozen=True)
class Served:
    """What became of the requests, arrays of shape (n,).

    Attributes:
      model: index of the model that the router chose.
      replica: index of the replica that served it; -1 if rejected.
      completion_s: end of its last iteration; nan if rejected.
      latency_s: end-to-end latency, network delay included; inf if rejected.
    """

    model: np.ndarray
    replica: np.ndarray
    completion_s: np.ndarray
    latency_s: np.ndarray


def serve(requests: Requests, tables: Tables, cluster: Cluster, route: Route, rate_tau_s: float = 2.0) -> Served:
    """Serves a list of requests until the last answer.

    `route(index of the request, batch size of each model, rate estimate)` returns the index of a model.

    Raises:
      ValueError: if instances slow each other down, or iterations or admissions depend on the tokens held.
    """
    coupled = (tables.slowdown != 1).any()
    if coupled or tables.context_cost_s.any() or np.isfinite(tables.cache_tokens).any():
        raise ValueError("The SimPy model knows neither slow-down nor context cost nor a cache limit.")
    env = simpy.Environment()
    log = _Log(requests.prompt_tokens.tolist(), requests.output_tokens.tolist(), [math.nan] * len(requests))
    groups = []
    for decode, prefill in zip(tables.decode.tolist(), tables.prefill.tolist(), strict=True):
        sizes = [0] * cluster.replicas
        groups.append(
            [_Instance(env, log, decode, prefill, cluster.max_batch, sizes, k) for k in range(cluster.replicas)]
        )
    capacity = cluster.max_batch + cluster.queue_capacity
    env.process(_arrive(env, log, requests.arrival_s.tolist(), groups, capacity, route, rate_tau_s))
    env.run()
    replica = np.array(log.replica)
    completion_s = np.array(log.completion_s)
    latency_s = completion_s - requests.arrival_s + cluster.network_delay_s
    return Served(np.array(log.model), replica, completion_s, np.where(replica < 0, np.inf, latency_s))


@dataclasses.dataclass(frozen=True)
class _Log:
    """Lengths and fates of the requests; `model` and `replica` grow with each arrival."""

    prompt_tokens: list[int]
    output_tokens: list[int]
    completion_s: list[float]
    model: list[int] = dataclasses.field(default_factory=list)
    replica: list[int] = dataclasses.field(default_factory=list)


class _Arrival(Event):
    """A timeout that comes after all iteration ends of the same instant."""

    def __init__(self, env: simpy.Environment, delay: float) -> None:
        super().__init__(env)
        self._value = None
        self._ok = True
        env.schedule(self, AFTER_ENDS, delay)


class _Instance:
    """One model on one replica, and the process that runs its iterations."""

    def __init__(
        self,
        env: simpy.Environment,
        log: _Log,
        decode: list[float],
        prefill: list[float],
        max_batch: int,
        sizes: list[int],
        replica: int,
    ) -> None:
        self.sizes = sizes  # (replicas,) running plus waiting requests of the model, shared by its instances
        self._replica = replica
        self._env = env
        self._log = log
        self._decode = decode
        self._prefill = prefill
        self._max_batch = max_batch
        self._waiting: deque[int] = deque()
        self._idle: Event | None = None
        self._sleep: Timeout | None = None  # iterations in progress that a new request may cut short
        self._sleep_start = 0.0
        self._sleep_iterations = 0
        self._iteration_s = 0.0
        env.process(self._run())

    def accept(self, index: int, now: float) -> None:
        """Takes a request into the waiting line and sees to it that the process looks there in time."""
        self.sizes[self._replica] += 1
        self._waiting.append(index)
        if self._idle is not None:
            self._idle.succeed()
            self._idle = None
        elif self._sleep is not None:
            iterations = math.floor((now - self._sleep_start) / self._iteration_s) + 1
            if iterations < self._sleep_iterations:
                delay = self._sleep_start + iterations * self._iteration_s - now
                sooner = Timeout(self._env, max(0.0, delay), iterations)  # rounding can leave a last bit below zero
                sooner.callbacks, self._sleep.callbacks = self._sleep.callbacks, []
            self._sleep = None

    def _run(self) -> Process:
        env, waiting, sizes, replica = self._env, self._waiting, self.sizes, self._replica
        prompt_tokens, output_tokens, completion_s = (
            self._log.prompt_tokens,
            self._log.output_tokens,
            self._log.completion_s,
        )
        decode, prefill, max_batch = self._decode, self._prefill, self._max_batch
        iteration = 0  # iterations that have ended
        running: list[tuple[int, int]] = []  # heap of (iteration after which it leaves, index of the request)
        while True:
            if not running and not waiting:
                self._idle = Event(env)
                yield self._idle
            duration = decode[len(running)]
            if waiting and len(running) < max_batch:
                while waiting and len(running) < max_batch:
                    index = waiting.popleft()
                    duration += prefill[prompt_tokens[index]]
                    heapq.heappush(running, (iteration + output_tokens[index], index))
                yield Timeout(env, duration)
                iteration += 1
            else:
                iterations = running[0][0] - iteration
                sleep = Timeout(env, iterations * duration, iterations)
                if len(running) < max_batch:
                    self._sleep, self._sleep_iterations = sleep, iterations
                    self._sleep_start, self._iteration_s = env.now, duration
                iteration += yield sleep
                self._sleep = None
            while running and running[0][0] == iteration:
                completion_s[heapq.heappop(running)[1]] = env.now
                sizes[replica] -= 1


def _arrive(
    env: simpy.Environment,
    log: _Log,
    arrival_s: list[float],
    groups: list[list[_Instance]],
    capacity: int,
    route: Route,
    rate_tau_s: float,
) -> Process:
    """Places each request as it arrives; `groups` holds the instances of each model."""
    sizes = [group[0].sizes for group in groups]
    rate = 0.0
    previous = arrival_s[0]
    for index, now in enumerate(arrival_s):
        # Also where the last request came at this very instant: an idle instance starts before the next one is placed.
        yield _Arrival(env, max(0.0, now - env.now))
        if index > 0:
            rate = (rate + 1.0 / rate_tau_s) * math.exp((previous - now) / rate_tau_s)
        previous = now
        model = route(index, [sum(row) for row in sizes], rate)
        log.model.append(model)
        smallest = min(sizes[model])
        if smallest < capacity:
            replica = sizes[model].index(smallest)
            groups[model][replica].accept(index, now)
            log.replica.append(replica)
        else:
            log.replica.append(-1)
