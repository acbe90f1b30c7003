"""Runs a gateway in a process: listens, reloads its files when they change, drains when it is told to end."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

from besteffort.errors import InputError
from besteffort.gateway import process
from besteffort.gateway.config import GatewayConfig, load_gateway
from besteffort.gateway.core import Core, Record
from besteffort.gateway.http import Listener
from besteffort.gateway.live import Live
from besteffort.gateway.metrics import Metrics
from besteffort.gateway.request_log import RequestLog
from besteffort.gateway.server import LOGGER, Server
from besteffort.gateway.snapshot import Snapshot, make_policy, make_snapshot
from besteffort.gateway.upstream import Upstream
from besteffort.policy import Policy


def prepare(path_or_name: str | Path) -> tuple[Snapshot, Path]:
    """Reads and checks all that a gateway needs, before it starts.

    Returns:
      the first snapshot, and the file of its configuration.

    Raises:
      InputError: if something does not fit.
    """
    config, path = load_gateway(path_or_name)
    return _snapshot(config, path, _policy(config, path), None), path


def run(snapshot: Snapshot, path: Path, *, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is in work.

    Args:
      snapshot: as from `prepare`.
      path: file of the configuration.
      ready: gets the address once the gateway listens.

    Raises:
      InputError: if the address is taken, or the request log cannot be written.
    """
    process.run(_serve(snapshot, path, ready))


class Gateway:
    """A gateway that listens.

    Attributes:
      core: decides and counts.
      metrics: figures.
      live: what the page shows.
      listeners: get the record of every request that has ended.
    """

    def __init__(self, snapshot: Snapshot, path: Path | None) -> None:
        """Does not listen yet.

        Args:
          snapshot: what requests are decided by at first.
          path: file of the configuration, which is read again when it changes; None if it is in none.
        """
        self.core = Core(snapshot, log=self._log)
        self.metrics = Metrics(self.core)
        self.live = Live(self.core)
        self.listeners: list[Callable[[Record], None]] = [self.metrics.record, self.live.record]
        self._path = path
        self._digest = "" if path is None else _digest(path, snapshot.config)
        self._request_log: RequestLog | None = None
        self._listener: Listener | None = None
        self._upstream: Upstream | None = None
        self._policy: tuple[str, Policy] = (
            "" if path is None else _policy_digest(path, snapshot.config),
            snapshot.policy,
        )

    async def start(self) -> str:
        """Listens; returns the address.

        Raises:
          InputError: if the address cannot be had, or the request log not be written.
        """
        config = self.core.snapshot.config
        if config.request_log is not None:
            folder = Path() if self._path is None else self._path.parent
            self._request_log = RequestLog(folder / config.request_log)
        self._upstream = Upstream()
        app = Server(self.core, self._upstream, self.metrics, self.live).application()
        self._listener = Listener(app, config.listen, lambda: self.core.snapshot.config.listen.connections)
        return await self._listener.start()

    async def tick(self) -> None:
        """What is due from time to time: leases, the request log, files that changed."""
        self.core.sweep()
        self._flush()
        path, config = self._path, self.core.snapshot.config
        if path is not None and await asyncio.to_thread(_digest, path, config) != self._digest:
            await self.reload()

    async def reload(self) -> bool:
        """Reads configuration and policy again; whether they are in use. If they do not fit, those before stay."""
        before, path = self.core.snapshot, self._path
        if path is None:
            return False
        self._digest = await asyncio.to_thread(_digest, path, before.config)
        try:
            snapshot = await asyncio.to_thread(self._read_again, path, before)
        except InputError as error:
            LOGGER.error("Not reloaded, the last one stays in use: %s", error)
            self.metrics.reloaded("refused")
            return False
        if snapshot.config.listen.host != before.config.listen.host or (
            snapshot.config.listen.port != before.config.listen.port
            or snapshot.config.request_log != before.config.request_log
        ):
            LOGGER.warning("`listen.host`, `listen.port` and `request_log` change with a restart only.")
        self.core.replace(snapshot)
        self._digest = await asyncio.to_thread(_digest, path, snapshot.config)
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
        if self._listener is not None:
            await self._listener.stop()
        if self._upstream is not None:
            await self._upstream.close()
        if self._request_log is not None:
            self._request_log.close()

    def _read_again(self, path: Path, before: Snapshot) -> Snapshot:
        config, path = load_gateway(path)
        digest = _policy_digest(path, config)
        if digest != self._policy[0]:
            self._policy = (digest, _policy(config, path))
        return _snapshot(config, path, self._policy[1], before)

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


async def _serve(snapshot: Snapshot, path: Path, ready: Callable[[str], None]) -> None:
    gateway = Gateway(snapshot, path)
    try:
        address = await gateway.start()

        def say() -> None:
            LOGGER.info("Listening on %s.", address)
            ready(address)

        await process.until_told(say, gateway.tick, gateway.reload)
        LOGGER.info("Ending: %d requests in work.", gateway.core.open_requests)
        await gateway.drain()
    finally:
        await gateway.stop()
    LOGGER.info("Ended.")


def _policy(config: GatewayConfig, path: Path) -> Policy:
    try:
        return make_policy(config, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _snapshot(config: GatewayConfig, path: Path, policy: Policy, earlier: Snapshot | None) -> Snapshot:
    try:
        return make_snapshot(config, policy, earlier=earlier)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _digest(path: Path, config: GatewayConfig) -> str:
    """Of the files that a reload would read."""
    return "\n".join((_file_digest(path), _policy_digest(path, config)))


def _policy_digest(path: Path, config: GatewayConfig) -> str:
    named = config.policy or config.situation
    return f"{named}\n{_file_digest(path.parent / str(named))}"


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
