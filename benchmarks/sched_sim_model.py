"""Lists of requests by sched-sim (PyPI): a discrete-event simulator of one engine with continuous batching.

sched-sim has no router, no load balancer, no deadlines of whole answers and no rewards, and an endless line. So it is
handed where each request goes, and one of its simulators serves each instance, with its first-come-first-served
scheduler. Its roofline is replaced by the tables; all else is the package's own. It makes every iteration of every
instance a step of its own, and each token of a request another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sched_sim.core.event_engine import Simulator
from sched_sim.core.request import Request
from sched_sim.hardware.latency_model import RooflineLatencyModel
from sched_sim.hardware.profile import HardwareProfile
from sched_sim.memory.block_manager import BlockManager
from sched_sim.memory.preemption import PreemptionHandler
from sched_sim.schedulers.fcfs import FCFSScheduler

from besteffort.estimates.tables import Tables
from besteffort.workload.requests import Requests

# A cache that is never full: an instance holds few requests at a time.
_HARDWARE = HardwareProfile(vram_gb=24.0)


class _Tables(RooflineLatencyModel):
    """Iterations last as the tables say."""

    def __init__(self, decode: Sequence[float], prefill: Sequence[float]) -> None:
        super().__init__(_HARDWARE)
        self.decode, self.prefill = decode, prefill
        self.read_s = 0.0  # the prompts of the iteration that was scheduled last

    def compute_prefill_step_time(self, num_prefill_tokens: int) -> float:
        return self.read_s

    def compute_decode_step_time(self, batch_size: int, total_context_tokens: int) -> float:
        return self.decode[batch_size]

    def compute_mixed_step_time(
        self, num_prefill_tokens: int, num_decode_requests: int, total_decode_context_tokens: int
    ) -> float:
        return self.read_s + self.decode[num_decode_requests]


class _InOrder(FCFSScheduler):
    """Tells the tables the prompts one by one, of which the package only adds up the tokens."""

    def schedule_iteration(self, current_time: float) -> Any:
        decision = super().schedule_iteration(current_time)
        prefill = self.latency_model.prefill
        self.latency_model.read_s = sum(prefill[tokens] for _, tokens in decision.prefill_requests)
        return decision


def serve(
    requests: Requests, tables: Tables, max_batch: int, models: Sequence[int], replicas: Sequence[int]
) -> np.ndarray:
    """(n,) end of the last iteration of each request; nan of those whose replica is -1.

    An answer of one token takes one iteration more than it should: the package's prompts bring no token.

    Args:
      requests: the list.
      tables: what iterations cost.
      max_batch: requests that run at once on an instance.
      models: the model that each request goes to.
      replicas: its replica.
    """
    completion_s = np.full(len(requests), np.nan)
    where = np.stack([models, replicas], axis=1)
    for model, replica in np.unique(where, axis=0).tolist():
        if replica < 0:
            continue
        mine = np.flatnonzero((where == (model, replica)).all(axis=1)).tolist()
        latency = _Tables(tables.decode[model].tolist(), tables.prefill[model].tolist())
        blocks = BlockManager(_HARDWARE, cpu_memory_gb=0.0)
        scheduler = _InOrder(blocks, latency, PreemptionHandler(blocks, latency), max_batch)
        simulator = Simulator(_HARDWARE, scheduler)
        known = [
            Request(
                request_id=str(index),
                arrived_at=float(requests.arrival_s[index]),
                prompt_tokens=int(requests.prompt_tokens[index]),
                output_tokens=max(int(requests.output_tokens[index]) - 1, 1),
            )
            for index in mine
        ]
        simulator.submit_workload(known)
        simulator.run()
        completion_s[mine] = [one.completed_at for one in known]
    return completion_s
