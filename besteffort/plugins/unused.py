"""What plug-ins leave aside of a gateway's file, which its operator is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from besteffort.gateway.config import GatewayConfig, Listen, load_gateway
from besteffort.gateway.core import Core
from besteffort.gateway.process import LOGGER
from besteffort.gateway.serve import first_snapshot

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
    config, path = load_gateway(path_or_name)
    stated = [field.name for field in dataclasses.fields(GatewayConfig) if getattr(config, field.name) != field.default]
    found = [f"`{name}`" for name in stated if name in (*_UNUSED, *unused)]
    if dataclasses.replace(config.listen, requests=Listen.requests) != Listen():
        found.append("`listen` (but for `listen.requests`)")
    if found:
        LOGGER.warning("%s: inside %s these count for nothing: %s; see to them there.", path, inside, ", ".join(found))
    return Core(first_snapshot(_used(config), path))


def _used(config: GatewayConfig) -> GatewayConfig:
    """A configuration without what counts for nothing in any plug-in, so that no key that it names has to be there."""
    fields = dataclasses.fields(GatewayConfig)
    unused: dict[str, Any] = {field.name: field.default for field in fields if field.name in _UNUSED}
    return dataclasses.replace(
        config,
        **unused,
        listen=Listen(requests=config.listen.requests),
        pools=tuple(dataclasses.replace(pool, api_key_env=None) for pool in config.pools),
        rules=tuple(rule for rule in config.rules if rule.key is None),  # no request has a key
    )
