"""A server that answers in iterations, as the serving model has it: by tables, or slower than these."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np

from besteffort.estimates.correction import PRIOR
from besteffort.estimates.params import ServingParams
from besteffort.policy import Policy
from tests.gateway.backends import DONE, USAGE, Call, event


@dataclasses.dataclass
class BatchingServer:
    """One replica of a pool of a policy.

    Attributes:
      policy: has the tables.
      pool: index of the pool.
      factor: what it really takes, over the tables.
      prompt_tokens: of every prompt.
      iterations: of each when it ended, its seconds, and those that the tables give.
    """

    policy: Policy
    pool: int
    factor: float = 1.0
    prompt_tokens: int = 10
    iterations: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        params = ServingParams.of(self.policy.situation, 200)
        self._decode, self._prefill = params.decode[self.pool], params.prefill[self.pool]
        self._most = int(self.policy.situation.fleet.pools[self.pool].max_batch)
        self._waiting: list[asyncio.Queue[int]] = []
        self._running: list[asyncio.Queue[int]] = []
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, call: Call) -> None:
        """Answers with as many tokens as are asked for at most."""
        mine: asyncio.Queue[int] = asyncio.Queue()
        self._waiting.append(mine)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        await call.begin_stream()
        try:
            for _ in range(int(call.body["max_tokens"])):
                await mine.get()
                await call.chunk(event("x"))
        finally:
            for queues in (self._waiting, self._running):
                if mine in queues:
                    queues.remove(mine)
        await call.chunk(event("", "length") + USAGE + DONE)
        await call.end_stream()

    def slowdown(self) -> float:
        """Its iterations over the tables, as the policy's comparison is defined.

        What is long ago counts less, and a little is taken to have been seen as in the tables always.
        """
        ended_s, took_s, tables_s = np.array(self.iterations).T
        tau_s = self.policy.situation.view.slowdown_tau_s
        kept = np.exp((ended_s - ended_s[-1]) / tau_s)
        return float(1.0 + kept @ (took_s - tables_s) / (kept @ tables_s + PRIOR * tau_s))

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting or self._running:
            batch = len(self._running)
            new = self._waiting[: self._most - batch]
            del self._waiting[: len(new)]
            self._running += new
            tables_s = len(new) * float(self._prefill[self.prompt_tokens]) + float(self._decode[batch])
            begun_s = loop.time()
            await asyncio.sleep(self.factor * tables_s)
            self.iterations.append((loop.time(), loop.time() - begun_s, tables_s))
            for queue in self._running:
                queue.put_nowait(1)
            # Those that are done leave before the next iteration begins.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
