"""The plain reference, SimPy and sched-sim as cases to time.

All are handed a finished list of requests and the model of each, so that they pay for no random number and no router;
the compiled simulator draws its own requests and routes them. The first two also run as one process per core, each with
a list of its own: the most that plain Python does on the same machine. sched-sim, if it is installed, is handed the
replicas, too, and the beginning of the list.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from types import TracebackType

import numpy as np

from benchmarks.simpy_model import Served, serve
from benchmarks.timing import Case
from besteffort.device import cores
from besteffort.estimates.tables import Tables
from besteffort.simulator.result import Result
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Situation
from besteffort.workload.requests import Requests


@dataclasses.dataclass(frozen=True)
class Job:
    """A list to serve.

    Attributes:
      situation: what serves it.
      tables: what iterations cost there.
      requests: the list.
      models: index of the model of each request.
    """

    situation: Situation
    tables: Tables
    requests: Requests
    models: Sequence[int]


def by_reference(job: Job) -> Result:
    """Serves the list by the reference, which also works out the rewards."""
    return simulate_by_reference(job.requests, job.situation, lambda index, observation: job.models[index], job.tables)


def by_simpy(job: Job) -> Served:
    """Serves the list by SimPy, which stops at latencies."""
    tau_s = job.situation.view.rate_tau_s
    return serve(job.requests, job.tables, job.situation.cluster, lambda index, sizes, rate: job.models[index], tau_s)


SCHED_SIM = "sched-sim"
_BEGINNING = 1_000  # requests that sched-sim serves, which takes a step per token


def by_sched_sim(job: Job, replicas: Sequence[int]) -> np.ndarray:
    """Serves the list by sched-sim, which stops at the ends of last iterations."""
    from benchmarks.sched_sim_model import serve

    return serve(job.requests, job.tables, job.situation.cluster.max_batch, job.models, replicas)


SERVERS: dict[str, Callable[[Job], object]] = {"reference": by_reference, "SimPy": by_simpy}


def columns() -> list[str]:
    """Names of the rivals' columns: alone, and on all cores; and sched-sim, if it is installed."""
    plain = [f"{server}{processes}" for server in SERVERS for processes in ("", f" x{cores()}")]
    return [*plain, *[SCHED_SIM] * (find_spec("sched_sim") is not None)]


class Workers:
    """A process per core. Each holds its jobs from the start, so that a call sends no more than two names.

    Args:
      jobs: under each name one job per core.
    """

    def __init__(self, jobs: dict[str, Sequence[Job]]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process that runs JAX may hang
        self.jobs = jobs
        self._pools = [
            ProcessPoolExecutor(1, context, _hold, ({name: lists[core] for name, lists in jobs.items()},))
            for core in range(cores())
        ]

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def serve(self, server: str, name: str) -> None:
        """All processes at once serve their jobs of that name."""
        for future in [pool.submit(_serve, server, name) for pool in self._pools]:
            future.result()


def rival_cases(workers: Workers) -> list[Case]:
    """Reference and SimPy on every list, by this process alone and by one process per core; sched-sim alone."""
    cases = []
    for name, jobs in workers.jobs.items():
        for server in SERVERS:
            workers.serve(server, name)  # a first time, outside the clock
            n = len(jobs[0].requests)
            cases.append(Case(name, server, n, _alone(server, jobs[0])))
            cases.append(Case(name, f"{server} x{cores()}", n * cores(), _together(workers, server, name)))
        if SCHED_SIM in columns():
            cases.append(_sched_sim_case(name, jobs[0]))
    return cases


def _sched_sim_case(name: str, job: Job) -> Case:
    requests = job.requests.part(slice(_BEGINNING), float(job.requests.arrival_s[0]))
    beginning = dataclasses.replace(job, requests=requests, models=job.models[:_BEGINNING])
    replicas = by_reference(beginning).replica.tolist()
    return Case(name, SCHED_SIM, len(requests), lambda number: by_sched_sim(beginning, replicas))


def _alone(server: str, job: Job) -> Callable[[int], object]:
    return lambda number: SERVERS[server](job)


def _together(workers: Workers, server: str, name: str) -> Callable[[int], None]:
    return lambda number: workers.serve(server, name)


_held: dict[str, Job] = {}


def _hold(jobs: dict[str, Job]) -> None:
    """First thing that a worker does."""
    _held.update(jobs)


def _serve(server: str, name: str) -> None:
    """What a worker does when called; the outcome stays where it is."""
    SERVERS[server](_held[name])
