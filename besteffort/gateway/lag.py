"""How late the event loop is: where a machine has no time for the gateway, that is no server's fault."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from aiohttp import web

_EVERY_S = 0.05  # between two looks
_LEAST_S = 0.02  # that is late
_MOST = 1024  # late looks that are kept


class Lag:
    """The last times at which the loop came back late."""

    def __init__(self) -> None:
        self._late: deque[tuple[float, float]] = deque(maxlen=_MOST)  # when, and how late

    async def watched(self, app: web.Application) -> AsyncIterator[None]:
        """Looks while an application runs."""
        task = asyncio.create_task(self._watch())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def share(self, seconds: float) -> float:
        """Share of the last seconds in which the loop stood still."""
        now = asyncio.get_running_loop().time()
        # What stands still now is not seen before the next look, but by then it is at its end.
        return sum(min(late_s, seconds) for at, late_s in self._late if at > now - seconds) / seconds

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            late_s = loop.time() - due
            if late_s >= _LEAST_S:
                self._late.append((loop.time(), late_s))
