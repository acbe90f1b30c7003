"""Several processes of one gateway on a host, which listen on one port and share their counts.

    python -m besteffort.gateway.workers CONFIG BOARD NUMBER PORT

is one of them. The process that starts them answers no request: it starts a worker again that has ended, passes
signals on, and ends when all have.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from besteffort.errors import InputError
from besteffort.gateway.board import Board, make_board
from besteffort.gateway.http import cannot_listen
from besteffort.gateway.metrics import COUNTS_FOLDER
from besteffort.gateway.process import LOGGER
from besteffort.gateway.request_log import RequestLog
from besteffort.gateway.snapshot import Snapshot

_AGAIN_S = 0.5  # until a worker that has ended is started again


def run_workers(snapshot: Snapshot, path: Path, workers: int, ready: Callable[[str], None]) -> None:
    """Serves with so many processes until SIGTERM or SIGINT.

    Args:
      snapshot: as from `besteffort.gateway.serve.prepare`.
      path: file of the configuration.
      workers: how many.
      ready: gets the address once all listen.

    Raises:
      InputError: if the address is taken, the request log cannot be written, or a worker cannot start.
    """
    listen, log = snapshot.config.listen, snapshot.config.request_log
    if not hasattr(socket, "SO_REUSEPORT"):
        raise InputError("`--workers` needs ports that processes share, which this system lacks; leave it out.")
    if log is not None:
        RequestLog(path.parent / log).close()
    with tempfile.TemporaryDirectory(prefix="besteffort-") as folder, contextlib.ExitStack() as stack:
        board = Path(folder) / "board"
        make_board(board, workers, listen.requests)
        port = stack.enter_context(_reserved(listen.host, listen.port)).getsockname()[1]
        asyncio.run(_Workers(path, board, port, workers).run(ready))


def main() -> int:
    """One of several workers; returns the exit status."""
    from besteffort.gateway import process, serve

    config, board, number, port = sys.argv[1:]
    try:
        snapshot, path = serve.prepare(config)
        process.log_to_stderr(LOGGER)
        serve.run(snapshot, path, ready=_say, board=Board(Path(board), int(number)), port=int(port))
    except InputError as error:
        sys.stderr.write(f"besteffort-gateway: {error}\n")
        return 2
    return 0


class _Workers:
    """The processes."""

    def __init__(self, path: Path, board: Path, port: int, workers: int) -> None:
        self._arguments = (str(path.absolute()), str(board))  # a link may lead elsewhere later
        self._port, self._number = port, workers
        self._environment = os.environ | {COUNTS_FOLDER: str(board.parent)}
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._listening: set[int] = set()
        self._ending = asyncio.Event()

    async def run(self, ready: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        listening = [loop.create_future() for _ in range(self._number)]
        tasks = [loop.create_task(self._keep(worker, each)) for worker, each in enumerate(listening)]
        addresses = await asyncio.gather(*listening)
        if all(addresses):
            ready(addresses[0])
        elif not self._ending.is_set():
            self._end()
            await asyncio.gather(*tasks)
            raise InputError("A worker could not start; what it says stands above.")
        await asyncio.gather(*tasks)

    async def _keep(self, worker: int, listening: asyncio.Future[str]) -> None:
        """Starts a worker, and starts it again when it ends."""
        while not self._ending.is_set():
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "besteffort.gateway.workers", *self._arguments, str(worker), str(self._port)),
                stdout=asyncio.subprocess.PIPE,
                env=self._environment,
            )
            self._processes[worker] = process
            if self._ending.is_set():
                process.terminate()
            assert process.stdout is not None
            address = (await process.stdout.readline()).decode().strip()
            if address:
                self._listening.add(worker)
            first = not listening.done()
            if first:
                listening.set_result(address)
            status = await process.wait()
            self._listening.discard(worker)
            if self._ending.is_set() or (first and not address):
                return
            LOGGER.error("Worker %d has ended with status %d; it is started again.", worker, status)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), _AGAIN_S)

    def _end(self) -> None:
        self._ending.set()
        self._send(signal.SIGTERM, self._processes)

    def _reload(self) -> None:
        # One that is being started does not know the signal, which would end it; it reads the files anyway.
        self._send(signal.SIGHUP, self._listening)

    def _send(self, number: signal.Signals, workers: Iterable[int]) -> None:
        for process in (self._processes[worker] for worker in workers):
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)


def _reserved(host: str, port: int) -> socket.socket:
    """A socket that holds a port for the workers; it does not listen.

    Raises:
      InputError: if the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reserved = socket.socket(family)
    try:
        # Workers of another gateway would share the port, so it is tried alone first.
        with socket.socket(family) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
            if port:
                alone.listen()
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            reserved.setsockopt(socket.SOL_SOCKET, option, 1)
        reserved.bind((host, port))
    except OSError as error:
        reserved.close()
        raise cannot_listen(host, port, error) from error
    return reserved


def _say(address: str) -> None:
    sys.stdout.write(f"{address}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
