"""Small real servers on loopback that answer byte by byte as a test wants it, and a gateway in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from besteffort.gateway.config import GatewayConfig, Listen
from besteffort.gateway.core import Record
from besteffort.gateway.serve import Gateway
from besteffort.policy import Policy
from tests.gateway.policies import config, snapshot

Behaviour = Callable[["Call"], Awaitable[None]]


@dataclasses.dataclass
class Call:
    """A request that a server got, and its connection."""

    path: str
    headers: dict[str, str]
    body: Any
    raw: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def respond(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {"content-type": "application/json", "content-length": str(len(raw)), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await self.send(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + raw)

    async def begin_stream(self, headers: str = "") -> None:
        await self.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            + headers.encode()
            + b"transfer-encoding: chunked\r\n\r\n"
        )

    async def chunk(self, raw: bytes) -> None:
        await self.send(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")

    async def end_stream(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def send(self, raw: bytes) -> None:
        self.writer.write(raw)
        await self.writer.drain()

    def reset(self) -> None:
        self.writer.transport.abort()

    async def left(self) -> None:
        """Returns when the other side has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1024):
                pass


class Backend:
    """A server, and the calls that it got."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.calls: list[Call] = []
        self.open = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open += 1
        try:
            while (call := await self._read(reader, writer)) is not None:
                self.calls.append(call)
                await self.behaviour(call)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # `stop` cancels
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Call | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.split("\r\n")
        pairs = (line.split(": ", 1) for line in lines if line)
        headers = {name.lower(): value for name, value in pairs}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        return Call(first.split(" ")[1], headers, json.loads(raw), raw, reader, writer)

    async def stop(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def backend(behaviour: Behaviour) -> AsyncIterator[tuple[str, Backend]]:
    """A server that behaves so, and its address."""
    made = Backend(behaviour)
    server = await asyncio.start_server(made.handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1", made
    finally:
        server.close()
        await made.stop()


@dataclasses.dataclass
class Running:
    """A gateway, and a client of it."""

    gateway: Gateway
    address: str
    session: aiohttp.ClientSession
    records: list[Record]

    def counts(self) -> int:
        """Requests that count somewhere."""
        core = self.gateway.core
        booked = int(core.snapshot.flight.batch_sizes.sum())
        held = sum(place.state.in_flight for place in core.snapshot.places)
        assert booked == held, f"{booked} in the books, {held} at replicas"
        return held + core.open_requests

    async def settle(self, seconds: float = 10.0) -> None:
        """Waits until nothing counts any more."""
        async with asyncio.timeout(seconds):
            while self.counts():
                await asyncio.sleep(0.01)

    async def post(
        self, body: Any = None, headers: dict[str, str] | None = None, **fields: Any
    ) -> tuple[int, Any, Any]:
        """Status, answer as JSON, and headers of a plain completion."""
        body = {"model": "besteffort", "prompt": "What?", **fields} if body is None else body
        async with self.session.post(f"{self.address}/v1/completions", json=body, headers=headers) as response:
            raw = await response.read()
            return response.status, json.loads(raw), response.headers

    async def stream(self, **fields: Any) -> bytes:
        """All bytes of a streamed completion."""
        body = {"model": "besteffort", "prompt": "What?", "stream": True, **fields}
        async with self.session.post(f"{self.address}/v1/completions", json=body) as response:
            assert response.status == 200, await response.read()
            assert response.content_type == "text/event-stream"
            return await response.read()


@contextlib.asynccontextmanager
async def running(
    folder: Path,
    urls: Sequence[Sequence[str]],
    environment: dict[str, str] | None = None,
    policy_of: Policy | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """A gateway in front of pools, the smallest model first."""
    given = dataclasses.replace(config(urls), **{"listen": Listen(port=0, drain_s=0.0), **settings})
    async with started(given, folder, environment, policy_of) as found:
        yield found


@contextlib.asynccontextmanager
async def started(
    given: GatewayConfig, folder: Path, environment: dict[str, str] | None = None, policy_of: Policy | None = None
) -> AsyncIterator[Running]:
    gateway = Gateway(snapshot(given, policy_of, environment=environment or {}), folder / "gateway.yaml")
    records: list[Record] = []
    gateway.listeners.append(records.append)
    address = await gateway.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Running(gateway, address, session, records)
    finally:
        await gateway.stop()


def completion(text: str = "42", usage: Any = None) -> dict[str, Any]:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5} if usage is None else usage
    choice = {"index": 0, "text": text, "finish_reason": "stop"}
    return {"id": "cmpl-1", "object": "text_completion", "model": "any", "choices": [choice], "usage": usage}


def event(text: str = "", finish: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **fields}, ensure_ascii=False).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = event("4") + event("2") + event("", "stop") + USAGE + DONE


async def answer_chat(call: Call) -> None:
    """As a server should answer chat."""
    if not call.body.get("stream"):
        message = {"role": "assistant", "content": "42"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        await call.respond(200, {**completion(), "object": "chat.completion", "choices": [choice]})
        return
    await call.begin_stream()
    for delta, finish in (({"role": "assistant", "content": ""}, None), ({"content": "42"}, None), ({}, "stop")):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        await call.chunk(b"data: " + json.dumps({"id": "c", "choices": [choice]}).encode() + b"\n\n")
    await call.chunk(USAGE + DONE)
    await call.end_stream()


def once(released: asyncio.Event, behaviour: Behaviour) -> Behaviour:
    """Behaves so once that is set, and holds its calls until then."""

    async def hold(call: Call) -> None:
        await released.wait()
        await behaviour(call)

    return hold


async def answer(call: Call) -> None:
    """As a server should: plain or streamed."""
    if not call.body.get("stream"):
        await call.respond(200, completion())
        return
    await call.begin_stream()
    await call.chunk(WHOLE)
    await call.end_stream()


def run(scenario: Coroutine[Any, Any, None], seconds: float = 60.0) -> None:
    """Runs a scenario, which has so long."""

    async def limited() -> None:
        async with asyncio.timeout(seconds):
            await scenario

    asyncio.run(limited())


def free_port() -> int:
    """A port on loopback that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
