"""What is due from time to time may fail, and the server goes on."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal

import pytest

from besteffort.gateway import process


@pytest.mark.parametrize("asked", [False, True])
def test_a_fault_in_what_is_due_does_not_end_the_server(monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    monkeypatch.setattr(process, "_TICK_S", 0.01)
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append  # type: ignore[method-assign]
    process.LOGGER.addHandler(handler)
    calls = 0

    async def due() -> None:
        nonlocal calls
        calls += 1
        if asked:
            os.kill(os.getpid(), signal.SIGHUP)
        raise KeyError("unforeseen")

    async def serve() -> None:
        await process.until_told(
            lambda: os.kill(os.getpid(), signal.SIGHUP) if asked else None,
            None if asked else due,
            due if asked else None,
            lambda: calls == 3,
        )

    try:
        asyncio.run(asyncio.wait_for(serve(), 10))
    finally:
        process.LOGGER.removeHandler(handler)
    assert calls == 3
    assert [record.levelname for record in said] == ["ERROR"] * 3
    assert "unforeseen" in logging.Formatter().format(said[0])


def test_a_server_has_as_many_descriptors_as_it_may_have() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found: list[tuple[int, int]] = []

    async def look() -> None:
        found.append(resource.getrlimit(resource.RLIMIT_NOFILE))

    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        process.run(look())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found == [(2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16), hard)]
