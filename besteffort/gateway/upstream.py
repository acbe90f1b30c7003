"""The servers behind the gateway, over HTTP: sends a request on, and tells failures by what they say of a server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import ssl
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, NoReturn

import aiohttp

from besteffort.errors import printable
from besteffort.gateway.errors import CLIENTS_FAULT, LACKS_PATH, ApiError, busy_s
from besteffort.gateway.pools import Place

# uvicorn, which most servers run on, closes connections that are idle for 5 s; one that it closes as a request is on
# its way would fail that.
_KEEP_S = 3.0
MOST_ANSWER_BYTES = 2**26
"""Size of the largest answer that is held here as a whole."""
_MOST_ERROR_BYTES = 2**16
_END_S = 0.2  # that a server has to end a stream after its last event
_LONGEST_MESSAGE = 500
_OWN_WANT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # which say nothing of a server


class UpstreamError(Exception):
    """A server did not answer as it should.

    Attributes:
      why: a word for logs and metrics.
      blame: whether it says something of the server.
      busy_s: seconds that the server wants to be left alone, if it is only busy.
      waited_s: seconds for which nothing came, where that is the failure.
      lacks_path: whether the server lives, but has no such path.
      error: what the client gets unless another server answers.
    """

    def __init__(
        self,
        why: str,
        message: str,
        *,
        status: int = 502,
        blame: bool = True,
        busy_s: float | None = None,
        waited_s: float | None = None,
        lacks_path: bool = False,
    ) -> None:
        super().__init__(message)
        self.why, self.blame, self.busy_s, self.waited_s = why, blame, busy_s, waited_s
        self.lacks_path = lacks_path
        self.error = ApiError(status, message, kind="server_error", code=why, retry_after_s=busy_s)


class InvalidRequestError(Exception):
    """A server says that the request is wrong.

    Attributes:
      error: what the client gets.
    """

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


class Upstream:
    """Connections to all servers."""

    def __init__(self) -> None:
        self._ending: set[asyncio.Task[None]] = set()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            trust_env=False,
            auto_decompress=False,
            read_bufsize=2**16,
            max_line_size=2**14,
            max_field_size=2**14,
        )

    async def close(self) -> None:
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._session.close()

    def post(self, place: Place, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Post:
        """Sends a request; a context with an answer of status 200 that has begun.

        Args:
          place: where it goes.
          path: from `/v1` on.
          body: what is sent, but for the model's name.
          headers: that the server may see, without its key.

        Raises:
          UpstreamError: if the server cannot be reached, breaks off, or says that it failed.
          InvalidRequestError: if it says that the request is wrong.
        """
        payload = json.dumps({**body, "model": place.served_model}).encode()
        sent = {"content-type": "application/json", "accept-encoding": "identity", **headers}
        if place.api_key is not None:
            sent["authorization"] = f"Bearer {place.api_key}"
        begun = self._session.post(
            place.url + path.removeprefix("/v1"),
            data=payload,
            headers=sent,
            allow_redirects=False,
            timeout=_timeout(place.pool.timeouts.connect_s),
        )
        return Post(begun, place)

    def end_later(self, post: contextlib.AsyncExitStack, content: aiohttp.StreamReader) -> None:
        """Lets a server end an answer that is whole, and nobody wait for it.

        Read to its end, the connection serves the next request.

        Args:
          post: has the context of the answer.
          content: what is left of it.
        """
        task = asyncio.get_running_loop().create_task(_end(post, content))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class Post:
    """A request to a server from its beginning to its end, see `Upstream.post`.

    A class of its own, since a generator as a context costs several times as much.
    """

    __slots__ = ("_begun", "_place")

    def __init__(self, begun: AbstractAsyncContextManager[aiohttp.ClientResponse], place: Place) -> None:
        self._begun, self._place = begun, place

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            response = await self._begun.__aenter__()
        except Exception as error:
            _raise_as_upstreams(error, self._place)
            raise
        if response.status == 200:
            return response
        try:
            await _refused(response, self._place)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._begun.__aexit__(kind, error, trace)
        if error is not None:
            _raise_as_upstreams(error, self._place)


def _raise_as_upstreams(error: BaseException, place: Place) -> None:
    """Says what an error of the connection means.

    Raises:
      UpstreamError: if it is one.
    """
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        waited_s = place.pool.timeouts.connect_s
        raise UpstreamError("connect", "The server cannot be reached.", waited_s=waited_s) from error
    if isinstance(error, aiohttp.ClientConnectorError) and error.errno in _OWN_WANT:
        message = "The gateway cannot open another connection."
        raise UpstreamError("no_descriptors", message, status=503, blame=False) from error
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientSSLError | ssl.SSLError):
        raise UpstreamError("connect", "The server cannot be reached.") from error
    if isinstance(error, aiohttp.ClientError | ConnectionError | asyncio.IncompleteReadError | EOFError):
        raise UpstreamError("reset", "The server broke off its answer.") from error


@functools.lru_cache(64)
def _timeout(connect_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=connect_s)


async def _end(post: contextlib.AsyncExitStack, content: aiohttp.StreamReader) -> None:
    with contextlib.suppress(Exception):
        async with post, asyncio.timeout(_END_S):
            while await content.readany():
                pass


async def read_whole(response: aiohttp.ClientResponse) -> bytes:
    """The body of an answer that is not streamed.

    Raises:
      UpstreamError: if it is too large.
    """
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MOST_ANSWER_BYTES:
            raise UpstreamError("too_large", "The server's answer is too large.")
    return b"".join(parts)


async def _refused(response: aiohttp.ClientResponse, place: Place) -> NoReturn:
    """Tells what another status than 200 means.

    Raises:
      UpstreamError: if it is the server's fault.
      InvalidRequestError: if it is the client's.
    """
    status = response.status
    if (seconds := busy_s(status, response.headers)) is not None:
        raise UpstreamError("busy", "The server is busy.", status=429, blame=False, busy_s=seconds)
    if status not in CLIENTS_FAULT:
        # What it says may quote its key, or be about the gateway.
        lacks = status in LACKS_PATH
        raise UpstreamError(f"status_{status}", f"The server answered with status {status}.", lacks_path=lacks)
    raw = b""
    while len(raw) <= _MOST_ERROR_BYTES and (part := await response.content.readany()):
        raw += part
    raise InvalidRequestError(_clients_error(status, raw, place))


def _clients_error(status: int, raw: bytes, place: Place) -> ApiError:
    """A server's error in OpenAI's shape; others than that are `{"error": "text"}` and `{"detail": ...}`."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        found = None
    error = found.get("error", found.get("detail")) if isinstance(found, dict) else None
    if isinstance(found, dict) and isinstance(found.get("message"), str):
        error = found
    fields = error if isinstance(error, dict) else {}
    message = fields.get("message") if fields else error
    if not isinstance(message, str) or not message:
        message = "The server refused the request."
    code, kind, param = (fields.get(name) for name in ("code", "type", "param"))

    def shown(text: str, most: int = 64) -> str:
        return printable(text if place.api_key is None else text.replace(place.api_key, "***"))[:most]

    return ApiError(
        status,
        shown(message, _LONGEST_MESSAGE),
        kind=shown(kind) if isinstance(kind, str) else "invalid_request_error",
        code=None if code is None else shown(str(code)),
        param=shown(param) if isinstance(param, str) else None,
    )
