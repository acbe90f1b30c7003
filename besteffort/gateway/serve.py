"""Runs a gateway in a process: listens, reloads its files when they change, drains when it is told to end."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from besteffort.errors import InputError
from besteffort.gateway import process
from besteffort.gateway.board import BEAT_S, Board
from besteffort.gateway.config import GatewayConfig, load_gateway
from besteffort.gateway.core import Core, Record
from besteffort.gateway.hosts import Hosts, make_client
from besteffort.gateway.http import Listener
from besteffort.gateway.live import Live
from besteffort.gateway.metrics import Metrics
from besteffort.gateway.process import LOGGER
from besteffort.gateway.request_log import RequestLog
from besteffort.gateway.server import Server
from besteffort.gateway.snapshot import ArmName, Snapshot, Source, make_policy, make_snapshot, sources
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
    if config.redis is not None:
        make_client(config.redis)
    return first_snapshot(config, path), path


def first_snapshot(config: GatewayConfig, path: Path) -> Snapshot:
    """Reads the policies of a configuration, and puts them together with it.

    Args:
      config: the configuration.
      path: its file.

    Raises:
      InputError: if something does not fit.
    """
    return _snapshot(config, path, {arm: _policy(each, path) for arm, each in sources(config).items()}, None)


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
    process.run(_serve(Gateway(snapshot, path, board=board, port=port), ready))


class Gateway:
    """A gateway that listens.

    Attributes:
      core: decides and counts.
      metrics: figures.
      live: what the page shows.
      listeners: get the record of every request that has ended.
    """

    def __init__(
        self, snapshot: Snapshot, path: Path | None, *, board: Board | None = None, port: int | None = None
    ) -> None:
        """Does not listen yet.

        Args:
          snapshot: what requests are decided by at first.
          path: file of the configuration, which is read again when it changes; None if it is in none.
          board: as of `run`.
          port: as of `run`.
        """
        self.core = Core(snapshot, log=self._log, board=board)
        self._port = port
        self.metrics = Metrics(self.core)
        self.live = Live(self.core)
        self.listeners: list[Callable[[Record], None]] = [self.metrics.record, self.live.record]
        self._left_out: dict[str, str] = {}
        redis = snapshot.config.redis
        group = secrets.token_hex(8) if board is None else board.group
        self._hosts = None if redis is None else Hosts(self.core, redis, group)
        self._sharing: asyncio.Task[None] | None = None
        self._path = path
        self._watched = snapshot.config  # as read last, whether it is in use or not
        self._digest = "" if path is None else _digest(path, snapshot.config)
        self._request_log: RequestLog | None = None
        self._listener: Listener | None = None
        self._upstream: Upstream | None = None
        self._policies: dict[str, Policy] = {}
        if path is not None:
            named = sources(snapshot.config)
            self._policies = {_policy_digest(path, named[arm.name]): arm.policy for arm in snapshot.arms}

    async def start(self) -> str:
        """Listens; returns the address.

        Raises:
          InputError: if the address cannot be had, or the request log not be written.
        """
        config = self.core.snapshot.config
        if config.request_log is not None:
            folder = Path() if self._path is None else self._path.parent
            self._request_log = RequestLog(folder / config.request_log, begun=self.core.board is not None)
        self._upstream = Upstream()
        app = Server(self.core, self._upstream, self.metrics, self.live).application()
        self._listener = Listener(
            app,
            config.listen,
            lambda: self.core.snapshot.config.listen,
            port=self._port,
            shared=self.core.board is not None,
        )
        address = await self._listener.start()
        if self._hosts is not None:
            self._sharing = asyncio.get_running_loop().create_task(self._hosts.keep(LOGGER.warning))
        self._watch()
        return address

    async def tick(self) -> None:
        """What is due from time to time: leases, the request log, files that changed."""
        self.core.sweep()
        self._flush()
        self._watch()
        path = self._path
        if path is not None and await asyncio.to_thread(_digest, path, self._watched) != self._digest:
            await self.reload(changed_only=True)

    async def reload(self, *, changed_only: bool = False) -> bool:
        """Reads configuration and policy again; whether they are in use. If they do not fit, those before stay.

        Args:
          changed_only: whether a policy is left as it is whose file has not changed; what a situation names, such as
            its profile, may have.
        """
        before, path = self.core.snapshot, self._path
        if path is None:
            return False
        self._digest = await asyncio.to_thread(_digest, path, self._watched)
        try:
            snapshot = await asyncio.to_thread(self._read_again, path, before, changed_only)
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
        self.metrics.reloaded("done")
        LOGGER.info("Reloaded: snapshot %d.", snapshot.number)
        return True

    async def drain(self) -> None:
        """Takes no more requests, and waits until those in work are done and sent, up to `listen.drain_s`."""
        self.core.draining = True
        loop, listener = asyncio.get_running_loop(), self._listener
        until = loop.time() + self.core.snapshot.config.listen.drain_s
        while (self.core.open_requests or (listener is not None and listener.unsent)) and loop.time() < until:
            await asyncio.sleep(0.02)
        if self.core.open_requests:
            LOGGER.warning("%d requests were not done in time and are cut off.", self.core.open_requests)

    async def stop(self) -> None:
        """Closes all connections."""
        if self._listener is not None:
            await self._listener.stop()
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

    def _read_again(self, path: Path, before: Snapshot, changed_only: bool) -> Snapshot:
        # Digests are from before the reading, so that what changes meanwhile is read once more.
        own = _file_digest(path)
        config, path = load_gateway(path)
        digests = {arm: _policy_digest(path, source) for arm, source in sources(config).items()}
        self._watched, self._digest = config, _joined(own, digests.values())
        kept = self._policies if changed_only else {}
        read: dict[str, Policy] = {}
        policies: dict[ArmName, Policy] = {}
        for arm, source in sources(config).items():
            digest = digests[arm]
            known = read.get(digest) or kept.get(digest)
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
    loop, parent = asyncio.get_running_loop(), os.getppid()
    beating = loop.create_task(_beat(gateway.core)) if gateway.core.board is not None else None
    try:
        address = await gateway.start()

        def say() -> None:
            LOGGER.info("Listening on %s.", address)
            ready(address)

        def orphaned() -> bool:
            return beating is not None and os.getppid() != parent

        await process.until_told(say, gateway.tick, gateway.reload, orphaned)
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
    return _joined(_file_digest(path), (_policy_digest(path, source) for source in sources(config).values()))


def _joined(own: str, policies: Iterable[str]) -> str:
    return "\n".join((own, *policies))


def _policy_digest(path: Path, source: Source) -> str:
    named = source.policy or source.situation
    return f"{named}\n{_file_digest(path.parent / str(named))}"


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError):  # a path may have characters that none can have
        return ""
