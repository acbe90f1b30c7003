"""Gateways that tell each other through a real Redis what they have in flight, also when it goes and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from besteffort.errors import InputError
from besteffort.gateway.config import Redis, Retries
from besteffort.gateway.core import Ask, Core
from besteffort.gateway.hosts import Hosts, pack, unpack
from besteffort.gateway.peers import HELD, Held
from besteffort.gateway.serve import prepare
from tests.gateway.backends import Call, Running, backend, completion, run, running
from tests.gateway.policies import Clock, config, snapshot
from tests.gateway.test_serve import write

ASK = Ask(task="piqa", prompt_tokens=100, max_tokens=30)
SERVER = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(SERVER is None, reason="there is no redis-server")


class Server:
    """A Redis on loopback that can be stopped and started again; what it had is lost then."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.process: asyncio.subprocess.Process | None = None

    @property
    def settings(self) -> Redis:
        return Redis(f"redis://127.0.0.1:{self.port}/0", every_s=0.05, lease_s=1.0)

    async def start(self) -> None:
        pytest.importorskip("redis")
        self.process = await asyncio.create_subprocess_exec(
            *(str(SERVER), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
            cwd=self.folder,
            stdout=asyncio.subprocess.DEVNULL,
        )
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@contextlib.asynccontextmanager
async def redis(folder: Path) -> AsyncIterator[Server]:
    server = Server(folder)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def core(*, clock: Clock | None = None) -> Core:
    clock = Clock() if clock is None else clock
    return Core(snapshot(config(retries=Retries(most=4, share=1.0)), clock=clock), clock=clock)


def counts(made: Core) -> int:
    for place in made.snapshot.places:
        assert made.snapshot.flight.batch_sizes[place.row, place.index] == place.state.busy
    return sum(place.state.busy for place in made.snapshot.places)


def test_what_is_told_is_what_is_in_flight_on_any_clock() -> None:
    made, other = core(), core()
    made.shares = True
    other_clock_s = other.now()
    claims = []
    for i in range(3):
        claims.append(made.claim(made.arrive(ASK, f"r{i}")))
        made.token(claims[-1], i + 1)
    told = unpack(pack(made), other_clock_s - 0.25)
    assert told is not None
    assert told.rate is not None
    assert [held.tokens for held in told.requests.values()] == [1, 2, 3]
    assert {held.sent_s for held in told.requests.values()} == {other_clock_s - 0.25}
    other.peers.replace("redis a.b", *told)
    assert counts(other) == counts(made) == 3
    made.finished(claims[0])
    told = unpack(pack(made), other_clock_s)
    assert told is not None
    other.peers.replace("redis a.b", *told)
    assert counts(other) == 2
    other.peers.forget("redis a.b")
    assert counts(other) == 0


def test_a_request_that_cannot_be_placed_is_left_out_as_far_as_it_is_unknown() -> None:
    made, other = core(), core()
    made.shares = True
    made.claim(made.arrive(ASK, "r0"))
    (held,) = made.shown().values()
    other.peers.replace("redis a.b", {1: held._replace(place=1), 2: held._replace(number=2, task=1)}, None)
    # A replica that is not in the file here counts nothing; a task that is unknown counts on its replica only.
    assert sum(place.state.busy for place in other.snapshot.places) == 1
    assert not other.snapshot.flight.batch_sizes.any()
    other.peers.forget("redis a.b")
    assert counts(other) == 0


def test_what_is_broken_or_of_another_version_tells_nothing() -> None:
    made = core()
    made.shares = True
    made.claim(made.arrive(ASK, "r0"))
    content = pack(made)
    assert unpack(content, 0.0) is not None
    for broken in (b"", content[:-1], content + b"x", b"bef9" + content[4:], content[:48] + bytes(len(content) - 48)):
        assert unpack(broken, 0.0) is None
    head, held = content[: -HELD.size], Held(*HELD.unpack(content[-HELD.size :]))
    assert unpack(head + HELD.pack(*held), 0.0) is not None
    for wrong in ({"deadline_s": math.inf}, {"max_tokens": -1}, {"arrived_s": math.nan}, {"heard_s": -math.inf}):
        assert unpack(head + HELD.pack(*held._replace(**wrong)), 0.0) is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"url": "redis://user:pass@host/0"}, "has a password"),
        ({"url": "http://host"}, "write redis://HOST:PORT"),
        ({"url": "redis://host/a"}, "write redis://HOST:PORT"),
        ({"url": "redis://host", "name": "a b"}, "redis.name"),
        ({"url": "redis://host", "lease_s": 0.1}, "at least 4 times"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Redis(**settings)


def test_a_missing_library_or_password_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "http://127.0.0.1:9/v1", redis={"url": "redis://127.0.0.1", "password_env": "NO_SUCH"})
    with monkeypatch.context() as without:
        for name in ("redis", "redis.asyncio"):
            without.setitem(sys.modules, name, None)
        with pytest.raises(InputError, match=r"^`redis` needs redis\S*, which is not installed; `pip install"):
            prepare(path)
    pytest.importorskip("redis")
    with pytest.raises(InputError, match="`NO_SUCH` is not set"):
        prepare(path)


@needs_redis
def test_a_gateway_that_leaves_or_dies_counts_no_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with redis(tmp_path) as server:
            cores = [core(), core(), core()]
            hosts = [Hosts(each, server.settings, f"host {i}") for i, each in enumerate(cores)]
            workers = [Hosts(cores[0], server.settings, "host 1")]
            for each in cores:
                for i in range(2):
                    each.claim(each.arrive(ASK, f"r{i}"))
            for _ in range(2):
                for each in hosts:
                    await each.share()
            assert [counts(each) for each in cores] == [6, 6, 6]
            # Those of the own group are known otherwise.
            before = counts(cores[1])
            await workers[0].share()
            await hosts[1].share()
            assert counts(cores[1]) == before
            await workers[0].close()
            await hosts[0].close()
            await hosts[1].share()
            assert counts(cores[1]) == 4
            # The last one says nothing any more, and its lease ends.
            until = asyncio.get_running_loop().time() + server.settings.lease_s + 0.5
            while counts(cores[1]) > 2:
                assert asyncio.get_running_loop().time() < until
                await asyncio.sleep(0.05)
                await hosts[1].share()
            assert counts(cores[1]) == 2
            await hosts[1].close()
            await hosts[2].close()

    run(scenario())


@needs_redis
@pytest.mark.parametrize("way", ["killed", "hangs"])
def test_counts_are_right_within_a_second_of_redis_return(tmp_path: Path, way: str) -> None:
    """Redis is away for 10 s. Meanwhile requests come and end, and each gateway counts its own."""
    release = {}

    async def slow(call: Call) -> None:
        await release.setdefault(call.headers["x-request-id"], asyncio.Event()).wait()
        await call.respond(200, completion())

    def known(found: Running) -> int:
        return sum(place.state.busy for place in found.gateway.core.snapshot.places)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with (
            redis(tmp_path) as server,
            backend(slow) as (url, _),
            running(tmp_path, [[url]], redis=server.settings) as one,
            running(tmp_path, [[url]], redis=server.settings) as two,
        ):
            tasks: dict[str, asyncio.Task[object]] = {}

            def begin(found: Running, name: str) -> None:
                tasks[name] = asyncio.create_task(found.post(headers={"x-request-id": name}))

            async def until(first: int, second: int, seconds: float) -> None:
                end = loop.time() + seconds
                while (known(one), known(two)) != (first, second):
                    assert loop.time() < end, (known(one), known(two))
                    await asyncio.sleep(0.01)

            for i in range(2):
                begin(one, f"one-{i}")
            begin(two, "two-0")
            await until(3, 3, 10.0)
            assert server.process is not None
            gone_s = loop.time()
            if way == "killed":
                await server.stop()
            else:
                server.process.send_signal(signal.SIGSTOP)
            # Own counts only, once the lease is over.
            await until(2, 1, server.settings.lease_s + 2.0)
            begin(two, "two-1")
            release["one-0"].set()
            await until(1, 2, 10.0)
            await asyncio.sleep(max(gone_s + 10.0 - loop.time(), 0.0))
            if way == "killed":
                await server.start()
            else:
                server.process.send_signal(signal.SIGCONT)
            await until(3, 3, 1.0)
            for each in release.values():
                each.set()
            assert {(await task)[0] for task in tasks.values()} == {200}
            await until(0, 0, 2.0)

    run(scenario(), 90.0)


def test_a_connection_that_does_not_close_ends_no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the others' counts would stay as they were for good."""
    errors = pytest.importorskip("redis.exceptions")
    clock, said, closed = Clock(), [], []

    async def stuck() -> None:
        closed.append(clock())
        raise errors.TimeoutError("Timed out closing connection")

    async def scenario() -> None:
        made = core(clock=clock)
        hosts = Hosts(made, Redis("redis://127.0.0.1:9/0", every_s=0.01, lease_s=1.0), "host")
        monkeypatch.setattr(hosts._client.connection_pool, "disconnect", stuck)
        elsewhere = core()
        elsewhere.shares = True
        elsewhere.claim(elsewhere.arrive(ASK, "r0"))
        made.peers.replace("redis a.b", elsewhere.shown(), None)
        assert counts(made) == 1
        task = asyncio.create_task(hosts.keep(said.append))
        clock.now += 2.0
        async with asyncio.timeout(10.0):
            while len(closed) < 3:
                await asyncio.sleep(0.01)
        assert counts(made) == 0
        task.cancel()

    run(scenario())
    assert len(said) == 1


def test_a_transport_that_is_closed_ends_no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop tells of it by a RuntimeError."""
    pytest.importorskip("redis")
    said: list[str] = []
    failures = [RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")] * 2

    async def scenario() -> None:
        hosts = Hosts(core(), Redis("redis://127.0.0.1:9/0", every_s=0.01), "host")

        async def share() -> None:
            if failures:
                raise failures.pop()

        monkeypatch.setattr(hosts, "share", share)
        task = asyncio.create_task(hosts.keep(said.append))
        async with asyncio.timeout(10.0):
            while not hosts.connected:
                await asyncio.sleep(0.01)
        task.cancel()

    run(scenario())
    assert [sentence.partition(" ")[2].partition(" ")[0] for sentence in said] == ["cannot", "is"]


def test_a_gateway_without_redis_serves(tmp_path: Path) -> None:
    pytest.importorskip("redis")

    async def scenario() -> None:
        async with backend(lambda call: call.respond(200, completion())) as (url, _):
            settings = Redis("redis://127.0.0.1:9/0")
            async with running(tmp_path, [[url]], redis=settings) as found:
                for _ in range(3):
                    assert (await found.post())[0] == 200
                    await asyncio.sleep(0.1)
                assert found.counts() == 0

    run(scenario())
