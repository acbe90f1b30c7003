"""What plug-ins leave aside of a gateway's file, which its operator is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from besteffort.gateway.config import GatewayConfig, Listen
from besteffort.gateway.core import Core
from besteffort.gateway.process import LOGGER
from besteffort.gateway.serve import prepare

_UNUSED = ("shadow", "drift", "redis", "keys", "retries", "request_log")


def make_core(path_or_name: str | Path, inside: str, unused: Iterable[str] = ()) -> Core:
    """What decides and counts inside the gateway of others; one line of the log says what it leaves aside.

    Args:
      path_or_name: file, or name, of a gateway's configuration.
      inside: name of the other gateway.
      unused: fields that count for nothing there, besides those that never do.

    Raises:
      InputError: if the configuration does not fit.
    """
    snapshot, path = prepare(path_or_name)
    config = snapshot.config
    stated = [field.name for field in dataclasses.fields(GatewayConfig) if getattr(config, field.name) != field.default]
    found = [f"`{name}`" for name in stated if name in (*_UNUSED, *unused)]
    if dataclasses.replace(config.listen, requests=Listen.requests) != Listen():
        found.append("`listen` (but for `listen.requests`)")
    if found:
        LOGGER.warning("%s: inside %s these count for nothing: %s; see to them there.", path, inside, ", ".join(found))
    return Core(snapshot)
