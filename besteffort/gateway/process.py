"""A server as a process: its event loop, the signals that end it, and its log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

LOGGER = logging.getLogger("besteffort.gateway")
_TICK_S = 1.0
_DESCRIPTORS = 2**16  # that are asked for, where so many may be had


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs it to its end, with uvloop where it is installed, and as many descriptors as the process may have."""
    raise_descriptor_limit()
    runner: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run
    if sys.platform != "win32":
        with contextlib.suppress(ImportError):
            import uvloop

            runner = uvloop.run
    runner(main)


def raise_descriptor_limit() -> None:
    """Raises the soft limit, often 1,024, which is for programs that use `select`, to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # macOS may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def until_told(
    ready: Callable[[], None],
    tick: Callable[[], Awaitable[object]] | None = None,
    again: Callable[[], Awaitable[object]] | None = None,
    over: Callable[[], bool] = lambda: False,
) -> None:
    """Returns on SIGTERM or SIGINT. What is awaited here may fail; that is logged, and does not end what is served.

    Args:
      ready: called once these signals are heeded.
      tick: awaited every second.
      again: awaited on SIGHUP.
      over: asked every second whether it is to return anyway.
    """
    ended, asked = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if again is not None:
        loop.add_signal_handler(signal.SIGHUP, asked.set)
    ready()
    while not ended.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), _TICK_S)
        if again is not None and asked.is_set():
            asked.clear()
            await _attempt(again)
        elif tick is not None:
            await _attempt(tick)
        if over():
            return


async def _attempt(work: Callable[[], Awaitable[object]]) -> None:
    try:
        await work()
    except Exception:
        LOGGER.exception("What was due failed inside; the server goes on.")


def log_to_stderr(logger: logging.Logger) -> None:
    """One JSON object per line on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


class _JsonLines(logging.Formatter):
    """Log records as JSON objects."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)
