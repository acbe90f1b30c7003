"""What gateways on several hosts tell each other through Redis.

Every `every_s` a gateway writes all that it has in flight, as ages, since clocks of hosts differ, and reads what the
others have, in one script. So nothing has to be made up for: whoever comes, or comes back, knows all and is known after
one round. Each is exact about its own requests, and late by about `every_s` about those of others. A lease in a sorted
set says until when a gateway's counts hold that says no more. Without Redis each has its own counts only.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from besteffort.errors import InputError
from besteffort.gateway.config import Redis, secret_of
from besteffort.gateway.core import Core
from besteffort.gateway.peers import HELD, Held, Rate, short_hash

_HEAD = struct.Struct("<4sqddd")  # magic, requests, rate, age, time constant
_MAGIC = b"bef1"
_MOST = 2**16  # requests of a gateway
_TIMEOUT_S = 0.4

_ROUND = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[2] == '' then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], ARGV[1])
  return {now, {}}
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f:', now) .. ARGV[2])
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  redis.call('ZREM', KEYS[1], gone)
  redis.call('HDEL', KEYS[2], gone)
end
redis.call('PEXPIRE', KEYS[1], 10 * ARGV[3])
redis.call('PEXPIRE', KEYS[2], 10 * ARGV[3])
return {now, redis.call('HGETALL', KEYS[2])}
"""


class Told(NamedTuple):
    """What a gateway has told."""

    requests: dict[int, Held]
    rate: Rate | None


def pack(core: Core) -> bytes:
    """What a gateway tells: times are ages in seconds."""
    now, rate, shown = core.now(), core.rate(), core.shown()
    age_s = now - rate.at_s
    head = _HEAD.pack(_MAGIC, len(shown), rate.rate, age_s if age_s < 1e9 else -1.0, rate.tau_s)
    rows = (
        HELD.pack(*held[:7], now - held.arrived_s, now - held.sent_s, now - held.heard_s) for held in shown.values()
    )
    return head + b"".join(rows)


def unpack(content: bytes, told_s: float) -> Told | None:
    """What was told at a time of the own clock; None if it is of another version, or broken."""
    if len(content) < _HEAD.size:
        return None
    magic, count, rate, age_s, tau_s = _HEAD.unpack_from(content)
    if magic != _MAGIC or not 0 <= count <= _MOST or len(content) != _HEAD.size + count * HELD.size or not tau_s > 0:
        return None
    requests = {}
    for row in HELD.iter_unpack(content[_HEAD.size :]):
        held = Held._make((*row[:7], told_s - row[7], told_s - row[8], told_s - row[9]))
        counts = held.number >= 1 and held.prompt_tokens >= 1 and held.max_tokens >= 0 and held.tokens >= 0
        if not (counts and held.deadline_s > 0 and all(map(math.isfinite, held[6:]))):
            return None
        requests[held.number] = held
    return Told(requests, Rate(rate, told_s - age_s, tau_s) if age_s >= 0 else None)


class Hosts:
    """The other gateways, through Redis.

    Attributes:
      connected: whether the last round went well.

    Raises:
      InputError: if the client of Redis is not installed, or the variable with its password not set.
    """

    def __init__(self, core: Core, settings: Redis, group: str) -> None:
        """Nothing is told yet.

        Args:
          core: its counts are shared.
          settings: where Redis is.
          group: of gateways that know of each other otherwise, as workers of a host do.
        """
        self.connected = False
        core.shares = True
        self._core, self._settings = core, settings
        self._group = f"{short_hash(group):x}"
        self._name = f"{self._group}.{secrets.token_hex(8)}"
        self._client = make_client(settings)
        self._round = self._client.register_script(_ROUND)
        self._heard_s = core.now()

    async def keep(self, say: Callable[[str], None]) -> None:
        """Tells and hears until it is cancelled.

        Args:
          say: gets a sentence when Redis comes and goes.
        """
        from redis.exceptions import RedisError

        first = True
        while True:
            try:
                async with asyncio.timeout(2 * _TIMEOUT_S):
                    await self.share()
            except (RedisError, OSError, RuntimeError, TimeoutError) as error:  # uvloop's closed transports raise one
                if self.connected or first:
                    say(f"Redis cannot be reached ({type(error).__name__}); only own requests are counted.")
                self.connected = False
                # One that does not close in time, as TLS may not, is an error of its own.
                with contextlib.suppress(RedisError, OSError, RuntimeError, TimeoutError):
                    await self._client.connection_pool.disconnect()
                if self._core.now() - self._heard_s > self._settings.lease_s:
                    self._forget(frozenset())
            else:
                if not self.connected:
                    say("Redis is there; requests of other gateways are counted.")
                self.connected = True
            first = False
            await asyncio.sleep(self._settings.every_s)

    async def share(self) -> None:
        """One round: tells what is in flight here, and hears what is elsewhere."""
        server_ms, told = await self._call(pack(self._core))
        self._heard_s = now = self._core.now()
        here = set()
        for name, content in zip(told[::2], told[1::2], strict=True):
            gateway = name.decode("ascii", "replace")
            if gateway.partition(".")[0] == self._group:
                continue
            at_ms, _, rest = content.partition(b":")
            found = unpack(rest, now - max(server_ms - int(at_ms), 0) / 1e3) if at_ms.isdigit() else None
            if found is not None:
                self._core.peers.replace(f"redis {gateway}", *found)
                here.add(f"redis {gateway}")
        self._forget(frozenset(here))

    async def close(self) -> None:
        """Says that this gateway has nothing in flight any more, if Redis can be reached."""
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._call(b"")
        except (RedisError, OSError, TimeoutError):
            pass
        finally:
            await self._client.aclose()

    async def _call(self, content: bytes) -> Any:
        name = self._settings.name
        keys = (f"{{{name}}}:leases", f"{{{name}}}:requests")
        return await self._round(keys=keys, args=(self._name, content, round(1e3 * self._settings.lease_s)))

    def _forget(self, here: frozenset[str]) -> None:
        for gateway in self._core.peers.gateways() - here:
            if gateway.startswith("redis "):
                self._core.peers.forget(gateway)


def make_client(settings: Redis) -> Any:
    """A client that is not connected yet.

    Raises:
      InputError: if its library is not installed, or the variable with the password not set.
    """
    try:
        from redis.asyncio import Redis as Client
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ModuleNotFoundError as error:
        raise InputError(f"`redis` needs {error.name}, which is not installed; `pip install redis`.") from error
    password = None
    if settings.password_env is not None:
        password = secret_of("`redis`", settings.password_env)
    return Client.from_url(
        settings.url,
        username=settings.username,
        password=password,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        max_connections=1,
    )
