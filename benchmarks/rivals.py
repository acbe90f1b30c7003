"""The plain reference and SimPy as cases to time.

Both are handed a finished list of requests and the model of each, so that they pay for no random number and no router;
the compiled simulator draws its own requests and routes them. Both also run as one process per core, each with a list
of its own: the most that plain Python does on the same machine.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType

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


SERVERS: dict[str, Callable[[Job], object]] = {"reference": by_reference, "SimPy": by_simpy}


def columns() -> list[str]:
    """Names of the rivals' columns: alone, and on all cores."""
    return [f"{server}{processes}" for server in SERVERS for processes in ("", f" x{cores()}")]


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
    """Reference and SimPy on every list, by this process alone and by one process per core."""
    cases = []
    for name, jobs in workers.jobs.items():
        for server in SERVERS:
            workers.serve(server, name)  # a first time, outside the clock
            n = len(jobs[0].requests)
            cases.append(Case(name, server, n, _alone(server, jobs[0])))
            cases.append(Case(name, f"{server} x{cores()}", n * cores(), _together(workers, server, name)))
    return cases


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
