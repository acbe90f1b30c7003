"""The configuration of a gateway: a YAML file read into frozen dataclasses, checked before anything starts."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from annotated_types import Interval, Len

from besteffort.errors import InputError, brief
from besteffort.ranges import Few
from besteffort.runs.config import find_config, from_mapping, read_yaml

Seconds = Annotated[float, Interval(ge=0.001, le=86_400)]
Bytes = Annotated[int, Interval(ge=256, le=2**30)]
Share = Annotated[float, Interval(ge=0, le=1)]


@dataclasses.dataclass(frozen=True)
class Listen:
    """Where the gateway listens, and how much it takes.

    Attributes:
      host: address; `127.0.0.1` takes requests of this machine only, any other needs `keys`.
      port: TCP port; 0 takes a free one.
      connections: open at a time; further ones are closed at once.
      requests: in work at a time; further ones are refused.
      header_s: seconds until a connection is closed that is idle or whose headers are not complete.
      body_s: seconds that a request's body may take.
      body_bytes: size of the largest body.
      header_bytes: size of the longest header.
      drain_s: seconds that requests in work have at the end.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Interval(ge=0, le=65_535)] = 8080
    connections: Few = 1024
    requests: Few = 1024
    header_s: Seconds = 30.0
    body_s: Seconds = 30.0
    body_bytes: Bytes = 4 * 2**20
    header_bytes: Annotated[int, Interval(ge=256, le=2**20)] = 8190
    drain_s: Annotated[float, Interval(ge=0, le=86_400)] = 30.0


@dataclasses.dataclass(frozen=True)
class Timeouts:
    """How long the gateway waits for a server.

    Attributes:
      connect_s: seconds until it is connected.
      first_token_s: seconds from sending the request to the first token of an answer that is streamed.
      between_tokens_s: seconds between two parts of an answer that is streamed.
      total_s: seconds from sending the request to the end of the answer.
    """

    connect_s: Seconds = 2.0
    first_token_s: Seconds = 30.0
    between_tokens_s: Seconds = 30.0
    total_s: Seconds = 300.0


@dataclasses.dataclass(frozen=True)
class Pool:
    """Servers of one model: the same hardware, the same place.

    Attributes:
      name: of the pool, in metrics and logs; where the policy's situation states pools, the name of one of them.
      model: name of the model in the policy; `name` unless stated. Where the situation states pools, they say it.
      urls: one per replica, up to and including `/v1`.
      served_model: what the servers call the model; its name in the policy unless stated.
      api_key_env: environment variable that holds the key of these servers.
      limit: requests in flight per replica; `max_batch` + `queue_capacity` that the policy knows unless stated.
      assemble: whether answers that clients want whole are streamed from the servers and put together here, so that
        their tokens are seen; only where they are text and no more.
      timeouts: how long to wait.
    """

    name: str
    urls: Annotated[tuple[str, ...], Len(1, 256)]
    model: str | None = None
    served_model: str | None = None
    api_key_env: str | None = None
    limit: Few | None = None
    assemble: bool = True
    timeouts: Timeouts = Timeouts()

    def __post_init__(self) -> None:
        where = f"Pool `{brief(self.name)}`"
        if not _NAME.fullmatch(self.name):
            raise InputError(f"{where}: `name` is to have 1 to 64 letters, digits, `.`, `_` and `-`; change it.")
        for url in self.urls:
            _check_url(where, url)
        if len({url.rstrip("/") for url in self.urls}) < len(self.urls):
            raise InputError(f"{where}: `urls` names one address twice; name each replica once.")


@dataclasses.dataclass(frozen=True)
class Rule:
    """Requests that are of a task unless they say otherwise; of several rules the first that fits counts.

    Attributes:
      task: the task.
      key: name of the client's key; any unless stated.
      path: the path, such as `/v1/completions`; any unless stated.
    """

    task: str
    key: str | None = None
    path: str | None = None


@dataclasses.dataclass(frozen=True)
class Key:
    """A key that clients may use. The file holds no key, only where it is or what it hashes to.

    Attributes:
      name: of the client, in logs.
      env: environment variable that holds the key.
      sha256: SHA-256 of the key, in hexadecimal digits.
    """

    name: str
    env: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        where = f"Key `{brief(self.name)}`"
        if not _NAME.fullmatch(self.name):
            raise InputError(f"{where}: `name` is to have 1 to 64 letters, digits, `.`, `_` and `-`; change it.")
        if (self.env is None) == (self.sha256 is None):
            raise InputError(f"{where}: give one of `env` and `sha256`.")
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise InputError(f"{where}: `sha256` is to have 64 hexadecimal digits, as `sha256sum` prints them.")


@dataclasses.dataclass(frozen=True)
class Retries:
    """When a request is sent again, to another replica. It never is once the client has got a part of the answer.

    Attributes:
      most: times that a request is sent again.
      share: of the requests of late, how many may be sent again; beyond a few, so that failures make no storm.
    """

    most: Annotated[int, Interval(ge=0, le=16)] = 2
    share: Share = 0.2


@dataclasses.dataclass(frozen=True)
class Breaker:
    """When a replica gets no requests any more.

    Attributes:
      failures: in a row, with no sign of life between them.
      open_s: seconds until one request tries it again; twice as long after every try that fails.
      longest_s: seconds that this grows to at most, and that a server's `retry-after` counts at most.
    """

    failures: Few = 3
    open_s: Seconds = 1.0
    longest_s: Seconds = 30.0


@dataclasses.dataclass(frozen=True)
class Tier:
    """What a `service_tier` means.

    Attributes:
      name: what clients send.
      deadline_factor: factor on the deadline.
    """

    name: str
    deadline_factor: Annotated[float, Interval(ge=0.01, le=100)] = 1.0


@dataclasses.dataclass(frozen=True)
class Redis:
    """Where gateways on several hosts, in front of the same servers, tell each other what they have in flight.

    Attributes:
      url: address, such as `redis://10.0.0.5:6379/0`; `rediss` for TLS.
      username: of Redis.
      password_env: environment variable that holds its password.
      name: of the gateways that tell each other, among others that use the same Redis.
      every_s: seconds between two exchanges.
      lease_s: seconds without one after which a gateway's requests count no more.
    """

    url: str
    username: str | None = None
    password_env: str | None = None
    name: str = "besteffort"
    every_s: Annotated[float, Interval(ge=0.005, le=10)] = 0.05
    lease_s: Annotated[float, Interval(ge=0.1, le=600)] = 2.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError("`redis.name` is to have 1 to 64 letters, digits, `.`, `_` and `-`; change it.")
        if "@" in self.url:
            raise InputError("`redis.url` has a password; put it into a variable that `redis.password_env` names.")
        try:
            parts = urlsplit(self.url)
            fits = parts.port != 0 and parts.scheme in ("redis", "rediss") and bool(parts.hostname)
        except ValueError:
            fits = False
        if not fits or parts.query or parts.fragment or not re.fullmatch(r"(/[0-9]{0,4})?", parts.path):
            raise InputError(f"`redis.url` is {brief(self.url)}; write redis://HOST:PORT, with /DATABASE if need be.")
        if self.lease_s < 4 * self.every_s:
            raise InputError("`redis.lease_s` is to be at least 4 times `redis.every_s`; raise it.")


@dataclasses.dataclass(frozen=True)
class Shadow:
    """A policy that decides every request, too, and is not followed.

    Attributes:
      policy: policy file; the policy that needs no training unless stated, for which `situation` is needed.
      situation: name of a configuration or a YAML file.
    """

    policy: str | None = None
    situation: str | None = None

    def __post_init__(self) -> None:
        _check_source("`shadow`: give", self.policy, self.situation)


@dataclasses.dataclass(frozen=True)
class Canary:
    """A policy that decides a share of the requests.

    Attributes:
      share: of the requests, by a hash of their ids: an id is on the same side always.
      policy: policy file; the policy that needs no training unless stated, for which `situation` is needed.
      situation: name of a configuration or a YAML file.
    """

    share: Share
    policy: str | None = None
    situation: str | None = None

    def __post_init__(self) -> None:
        _check_source("`canary`: give", self.policy, self.situation)


@dataclasses.dataclass(frozen=True)
class DriftLimits:
    """From when on requests and servers count as others than the policy was made for.

    Attributes:
      window_s: time constant in seconds over which averages forget.
      least: requests that an average rests on before it counts.
      mix: share of the requests that would have to be of another task for the policy's mix.
      outside: share of lengths outside the policy's range, and of the time at more than its highest rate.
      means: times that a mean length is longer or shorter.
      times: times that answers take longer or shorter than predicted.
    """

    window_s: Seconds = 300.0
    least: Few = 100
    mix: Share = 0.2
    outside: Share = 0.1
    means: Annotated[float, Interval(ge=1, le=1000)] = 1.5
    times: Annotated[float, Interval(ge=1, le=1000)] = 1.5


@dataclasses.dataclass(frozen=True)
class GatewayConfig:
    """A gateway as a file states it. Paths are from the file's directory.

    Attributes:
      pools: where requests may go, one per model, or per pool where the policy's situation states pools.
      policy: policy file; the policy that needs no training unless stated, for which `situation` is needed.
      situation: name of a configuration or a YAML file: profile, tasks, deadlines.
      shadow: a policy to compare with.
      canary: a policy to try on a share of the requests.
      drift: when requests and servers are no longer what the policy was made for.
      redis: where gateways on several hosts tell each other what they have in flight.
      listen: where and how much.
      default_task: task of requests that say nothing; the first of the policy unless stated.
      rules: further ways to tell the task.
      models: further names that clients may ask for; `besteffort` and `besteffort:TASK` are always known.
      tiers: values of `service_tier`.
      keys: of clients.
      retries: when a request is sent again.
      breaker: when a replica gets no requests any more.
      when_late: what happens where no model is expected to answer in time: the policy's choice (`policy`), the
        smallest model (`smallest`), or a refusal (`refuse`).
      lease_s: seconds after which a request counts as gone of which nothing was heard beyond its time-outs.
      request_log: CSV file that gets a line per request.
    """

    pools: Annotated[tuple[Pool, ...], Len(1, 64)]
    policy: str | None = None
    situation: str | None = None
    shadow: Shadow | None = None
    canary: Canary | None = None
    drift: DriftLimits = DriftLimits()
    redis: Redis | None = None
    listen: Listen = Listen()
    default_task: str | None = None
    rules: tuple[Rule, ...] = ()
    models: tuple[str, ...] = ()
    tiers: tuple[Tier, ...] = ()
    keys: tuple[Key, ...] = ()
    retries: Retries = Retries()
    breaker: Breaker = Breaker()
    when_late: Literal["policy", "smallest", "refuse"] = "policy"
    lease_s: Annotated[float, Interval(ge=0.1, le=3600)] = 10.0
    request_log: str | None = None

    def __post_init__(self) -> None:
        for field in ("pools", "keys", "tiers"):
            _check_once(field, (each.name for each in getattr(self, field)))
        urls = [url.rstrip("/") for pool in self.pools for url in pool.urls]
        for url in urls:
            if urls.count(url) > 1:
                raise InputError(f"`pools`: {brief(url)} stands in two of them; name each replica once.")
        _check_source("Give", self.policy, self.situation)
        known = {key.name for key in self.keys}
        for rule in self.rules:
            if rule.key is not None and rule.key not in known:
                raise InputError(f"`rules`: there is no key `{brief(rule.key)}` under `keys`; add it or mend the rule.")
        if not self.keys and not is_loopback(self.listen.host):
            raise InputError(
                f"`listen.host` is {brief(self.listen.host)}, which others reach, and there are no `keys`; add one, or "
                "listen on 127.0.0.1."
            )


_NAME = re.compile("[A-Za-z0-9._-]{1,64}")
_LEAST_KEY = 16  # characters of a client's key


def load_gateway(path_or_name: str | Path) -> tuple[GatewayConfig, Path]:
    """Reads the configuration of a gateway.

    Returns:
      the configuration, and its file.

    Raises:
      InputError: if the file is missing or does not fit.
    """
    path = find_config(path_or_name)
    return from_mapping(GatewayConfig, read_yaml(path), str(path)), path


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class KeyRing:
    """The keys of clients, hashed.

    Raises:
      InputError: if a variable is not set or a key is too short.
    """

    def __init__(self, keys: Iterable[Key], environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._hashes: list[tuple[str, bytes]] = []
        for key in keys:
            if key.sha256 is not None:
                self._hashes.append((key.name, bytes.fromhex(key.sha256)))
                continue
            secret = secret_of(f"Key `{key.name}`", str(key.env), environment)
            if len(secret) < _LEAST_KEY:
                raise InputError(
                    f"Key `{key.name}`: the variable `{key.env}` holds fewer than {_LEAST_KEY} characters; take a "
                    "longer key."
                )
            self._hashes.append((key.name, _hashed(secret.encode())))

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def name_of(self, secret: str) -> str | None:
        """Name of the client whose key this is; it takes as long for a wrong key as for a right one."""
        given, found = _hashed(secret.encode("utf-8", "surrogateescape")), None
        for name, known in self._hashes:
            if hmac.compare_digest(given, known):
                found = name
        return found


def secret_of(where: str, variable: str, environment: Mapping[str, str] | None = None) -> str:
    """The key in an environment variable.

    Raises:
      InputError: if it is not set, or holds what cannot stand in a header; the message does not show it.
    """
    secret = (os.environ if environment is None else environment).get(variable, "").strip()
    if not secret:
        raise InputError(f"{where}: the environment variable `{brief(variable)}` is not set; set it to the key.")
    if not (secret.isascii() and secret.isprintable()):
        raise InputError(f"{where}: the variable `{brief(variable)}` holds more than printable ASCII; mend the key.")
    return secret


def _hashed(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _check_source(give: str, policy: str | None, situation: str | None) -> None:
    if (policy is None) == (situation is None):
        raise InputError(f"{give} one of `policy`, a policy file, and `situation`, for the untrained policy.")


def _check_once(field: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"`{field}` has `{brief(name)}` twice; give each a name of its own.")
        seen.add(name)


def _check_url(where: str, url: str) -> None:
    if "@" in url:
        raise InputError(f"{where}: `urls` has a key in an address; put it into a variable that `api_key_env` names.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(
            f"{where}: `urls` has {brief(url)}, which is no address; write http://HOST:PORT/v1."
        ) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not url.isprintable():
        raise InputError(f"{where}: `urls` has {brief(url)}, which is no address; write http://HOST:PORT/v1.")
    if parts.query or parts.fragment:
        raise InputError(f"{where}: `urls` has {brief(url)}; leave out what follows the path.")
