"""Runs a gateway in a process: listens, reloads its files when they change, drains when it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from besteffort.errors import InputError
from besteffort.gateway.board import BEAT_S, Board
from besteffort.gateway.config import GatewayConfig, load_gateway
from besteffort.gateway.core import Core, Record
from besteffort.gateway.errors import ApiError
from besteffort.gateway.hosts import Hosts, make_client
from besteffort.gateway.metrics import Metrics
from besteffort.gateway.request_log import RequestLog
from besteffort.gateway.server import LOGGER, Server
from besteffort.gateway.snapshot import ArmName, Snapshot, Source, make_policy, make_snapshot, sources
from besteffort.gateway.upstream import Upstream
from besteffort.policy import Policy

_TICK_S = 1.0  # between looks at leases and files
_BACKLOG = 512
_CUT_OFF_S = 0.05  # that requests have to end once they are cut off

# aiohttp would log lines that it cannot read, and a key may be in these.
_SILENT = logging.getLogger("besteffort.gateway.http")
_SILENT.setLevel(logging.CRITICAL + 1)


def prepare(path_or_name: str | Path) -> tuple[Snapshot, Path]:
    """Reads and checks all that a gateway needs, before it starts.

    Returns:
      the first snapshot, and the file of its configuration.

    Raises:
      InputError: if something does not fit.
    """
    config, path = load_gateway(path_or_name)
    if config.redis is not None:
        make_client(config.redis)
    return _snapshot(config, path, {arm: _policy(each, path) for arm, each in sources(config).items()}, None), path


def run(
    snapshot: Snapshot,
    path: Path,
    *,
    ready: Callable[[str], None] = lambda address: None,
    board: Board | None = None,
    port: int | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is in work.

    Args:
      snapshot: as from `prepare`.
      path: file of the configuration.
      ready: gets the address once the gateway listens.
      board: shared with the other workers of this host, if there are any; it ends with the process that began it.
      port: of all workers.

    Raises:
      InputError: if the address is taken, or the request log cannot be written.
    """
    runner = asyncio.run if sys.platform == "win32" else _uvloop_or_asyncio()
    runner(_serve(Gateway(snapshot, path, board=board, port=port), ready))


def set_up_logging() -> None:
    """One JSON object per line on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


class Gateway:
    """A gateway that listens.

    Attributes:
      core: decides and counts.
      metrics: figures.
      listeners: get the record of every request that has ended.
    """

    def __init__(self, snapshot: Snapshot, path: Path, *, board: Board | None = None, port: int | None = None) -> None:
        """A gateway that does not listen yet; arguments as of `run`."""
        self.core = Core(snapshot, log=self._log, board=board)
        self._port = snapshot.config.listen.port if port is None else port
        self.metrics = Metrics(self.core)
        self.listeners: list[Callable[[Record], None]] = [self.metrics.record]
        self._left_out: dict[str, str] = {}
        redis = snapshot.config.redis
        group = secrets.token_hex(8) if board is None else board.group
        self._hosts = None if redis is None else Hosts(self.core, redis, group)
        self._sharing: asyncio.Task[None] | None = None
        self._path = path
        self._digest = _digest(path, snapshot.config)
        self._request_log: RequestLog | None = None
        self._server: asyncio.Server | None = None
        self._runner: web.AppRunner | None = None
        self._upstream: Upstream | None = None
        named = sources(snapshot.config)
        self._policies = {_policy_digest(path, named[arm.name]): arm.policy for arm in snapshot.arms}

    async def start(self) -> str:
        """Listens; returns the address.

        Raises:
          InputError: if the address cannot be had, or the request log not be written.
        """
        config = self.core.snapshot.config
        if config.request_log is not None:
            self._request_log = RequestLog(self._path.parent / config.request_log, begun=self.core.board is not None)
        listen = config.listen
        self._upstream = Upstream()
        application = Server(self.core, self._upstream, self.metrics).application()
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=_CUT_OFF_S)
        await self._runner.setup()
        server, loop = self._runner.server, asyncio.get_running_loop()
        assert server is not None

        def protocol() -> asyncio.Protocol:
            if len(server.connections) >= self.core.snapshot.config.listen.connections:
                return _Full()
            return _Connection(
                server,
                loop=loop,
                # Also ends connections whose headers are not whole by then.
                keepalive_timeout=listen.header_s,
                access_log=_SILENT,
                max_line_size=listen.header_bytes,
                max_field_size=listen.header_bytes,
                lingering_time=1.0,
                logger=_SILENT,
            )

        try:
            self._server = await loop.create_server(
                protocol, listen.host, self._port, backlog=_BACKLOG, reuse_port=self.core.board is not None or None
            )
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InputError(
                f"`listen` is {listen.host}, port {self._port}: cannot listen there, {reason}; name another one."
            ) from error
        if self._hosts is not None:
            self._sharing = loop.create_task(self._hosts.keep(LOGGER.warning))
        self._watch()
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def tick(self) -> None:
        """What is due from time to time: leases, the request log, files that changed."""
        self.core.sweep()
        self._flush()
        self._watch()
        config = self.core.snapshot.config
        if await asyncio.to_thread(_digest, self._path, config) != self._digest:
            await self.reload()

    async def reload(self) -> bool:
        """Reads configuration and policy again; whether they are in use. If they do not fit, those before stay."""
        before = self.core.snapshot
        self._digest = await asyncio.to_thread(_digest, self._path, before.config)
        try:
            snapshot = await asyncio.to_thread(self._read_again, before)
        except InputError as error:
            LOGGER.error("Not reloaded, the last one stays in use: %s", error)
            self.metrics.reloaded("refused")
            return False
        if snapshot.config.listen.host != before.config.listen.host or (
            snapshot.config.listen.port != before.config.listen.port
            or snapshot.config.request_log != before.config.request_log
            or snapshot.config.redis != before.config.redis
        ):
            LOGGER.warning("`listen.host`, `listen.port`, `redis` and `request_log` change with a restart only.")
        self.core.replace(snapshot)
        self._digest = await asyncio.to_thread(_digest, self._path, snapshot.config)
        self.metrics.reloaded("done")
        LOGGER.info("Reloaded: snapshot %d.", snapshot.number)
        return True

    async def drain(self) -> None:
        """Takes no more requests, and waits for those in work, up to `listen.drain_s`."""
        self.core.draining = True
        loop = asyncio.get_running_loop()
        until = loop.time() + self.core.snapshot.config.listen.drain_s
        while self.core.open_requests and loop.time() < until:
            await asyncio.sleep(0.02)
        if self.core.open_requests:
            LOGGER.warning("%d requests were not done in time and are cut off.", self.core.open_requests)

    async def stop(self) -> None:
        """Closes all connections."""
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            if self._runner.server is not None:
                await self._runner.server.shutdown(_CUT_OFF_S)
            await self._runner.cleanup()
        if self._sharing is not None and self._hosts is not None:
            self._sharing.cancel()
            await asyncio.gather(self._sharing, return_exceptions=True)
            await self._hosts.close()
        if self._upstream is not None:
            await self._upstream.close()
        if self._request_log is not None:
            self._request_log.close()

    def _watch(self) -> None:
        """Says what has come to differ from what the policy was made for."""
        drift = self.metrics.drift
        for sentence in drift.look():
            LOGGER.warning("%s", sentence)
        if drift.left_out != self._left_out:
            self._left_out = dict(drift.left_out)
            for measure, why in drift.left_out.items():
                LOGGER.info("Drift of %s is not watched: %s.", measure, why)

    def _read_again(self, before: Snapshot) -> Snapshot:
        config, path = load_gateway(self._path)
        read: dict[str, Policy] = {}
        policies: dict[ArmName, Policy] = {}
        for arm, source in sources(config).items():
            digest = _policy_digest(self._path, source)
            known = read.get(digest) or self._policies.get(digest)
            policies[arm] = read[digest] = _policy(source, path) if known is None else known
        snapshot = _snapshot(config, path, policies, before)
        self._policies = read
        return snapshot

    def _log(self, record: Record) -> None:
        for listener in self.listeners:
            listener(record)
        if self._request_log is not None:
            try:
                self._request_log.add(record)
            except InputError as error:
                LOGGER.error("%s", error)

    def _flush(self) -> None:
        if self._request_log is not None:
            try:
                self._request_log.flush()
            except InputError as error:
                LOGGER.error("%s", error)


async def _beat(core: Core) -> None:
    """Signs of life to other workers."""
    while True:
        core.totals()
        core.sync()
        await asyncio.sleep(BEAT_S)


async def _serve(gateway: Gateway, ready: Callable[[str], None]) -> None:
    ended, asked = asyncio.Event(), asyncio.Event()
    loop, parent = asyncio.get_running_loop(), os.getppid()
    beating = loop.create_task(_beat(gateway.core)) if gateway.core.board is not None else None
    try:
        address = await gateway.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        loop.add_signal_handler(signal.SIGHUP, asked.set)
        LOGGER.info("Listening on %s.", address)
        ready(address)
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _TICK_S)
            if asked.is_set():
                asked.clear()
                await gateway.reload()
            else:
                await gateway.tick()
            if beating is not None and os.getppid() != parent:
                break
        LOGGER.info("Ending: %d requests in work.", gateway.core.open_requests)
        await gateway.drain()
    finally:
        if beating is not None:
            beating.cancel()
        await gateway.stop()
    LOGGER.info("Ended.")


def _policy(source: Source, path: Path) -> Policy:
    try:
        return make_policy(source, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _snapshot(
    config: GatewayConfig, path: Path, policies: Mapping[ArmName, Policy], earlier: Snapshot | None
) -> Snapshot:
    try:
        canary, shadow = policies.get("canary"), policies.get("shadow")
        return make_snapshot(config, policies["policy"], canary=canary, shadow=shadow, earlier=earlier)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _digest(path: Path, config: GatewayConfig) -> str:
    """Of the files that a reload would read."""
    policies = (_policy_digest(path, source) for source in sources(config).values())
    return "\n".join((_file_digest(path), *policies))


def _policy_digest(path: Path, source: Source) -> str:
    named = source.policy or source.situation
    return f"{named}\n{_file_digest(path.parent / str(named))}"


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _uvloop_or_asyncio() -> Callable[[Any], None]:
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    run: Callable[[Any], None] = uvloop.run
    return run


class _Connection(web.RequestHandler):
    """A connection that answers what is no HTTP as all else, and does not repeat it."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        error = ApiError(status, "The request is no well-formed HTTP.")
        if status >= 500:
            error = ApiError(status, "The gateway failed.", kind="server_error", code="internal_error")
        if request.writer.output_size > 0:
            raise ConnectionError("A part of the answer was sent.")
        response = web.json_response(error.body(), status=status)
        response.force_close()
        return response


class _Full(asyncio.Protocol):
    """Closes a connection beyond the limit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class _JsonLines(logging.Formatter):
    """Log records as JSON objects."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)
