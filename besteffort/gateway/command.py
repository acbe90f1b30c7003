"""The command `serve`: checks, starts, prints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from besteffort.errors import InputError

MOST_WORKERS = 64

if TYPE_CHECKING:
    from besteffort.gateway.snapshot import Snapshot


def check(path_or_name: str) -> str:
    """Reads and checks all that a gateway needs; returns what it would do, in a sentence.

    Raises:
      InputError: if something does not fit.
    """
    snapshot, _ = _prepared(path_or_name)
    return f"{path_or_name} is in order: {describe(snapshot)}."


def serve(path_or_name: str, say: Callable[[str], None], workers: int = 1) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
      path_or_name: the configuration.
      say: gets a sentence once the gateway listens.
      workers: processes that share the work.

    Raises:
      InputError: if something does not fit, or the gateway cannot listen.
    """
    snapshot, path = _prepared(path_or_name)
    from besteffort.gateway import process
    from besteffort.gateway import serve as serving
    from besteffort.gateway.process import LOGGER

    if not 1 <= workers <= MOST_WORKERS:
        raise InputError(f"`--workers` is {workers}; give 1 to {MOST_WORKERS}.")
    process.log_to_stderr(LOGGER)
    if workers > 1:
        from besteffort.gateway.workers import run_workers

        run_workers(
            snapshot, path, workers, lambda at: say(f"Listening on {at}: {describe(snapshot)}; {workers} workers.")
        )
        return
    serving.run(snapshot, path, ready=lambda address: say(f"Listening on {address}: {describe(snapshot)}."))


def describe(snapshot: Snapshot) -> str:
    """A snapshot in words."""
    pools = (
        f"{places[0].pool.name} ({places[0].model}, {len(places)} replica{'s' if len(places) > 1 else ''})"
        for places in snapshot.places.by_pool
        if places
    )
    said = f"tasks {', '.join(snapshot.tasks)}; pools {', '.join(pools)}"
    if snapshot.config.canary is not None:
        said += f"; a canary decides {snapshot.config.canary.share:.1%}"
    return said if snapshot.shadow is None else f"{said}; with a shadow"


@contextlib.contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Around imports of what only the extra `gateway` brings.

    Raises:
      InputError: if it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "besteffort":
            raise
        raise InputError(
            f"`{name}` needs {error.name}, which is not installed; `pip install '.[gateway]'` in a checkout of "
            "besteffort."
        ) from error


def _prepared(path_or_name: str) -> tuple[Snapshot, Path]:
    with needs_extra("serve"):
        from besteffort.gateway.serve import prepare
    return prepare(path_or_name)
