"""What the HTTP servers of this package have in common: listening within limits, ids, errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from besteffort.errors import InputError
from besteffort.gateway.config import Listen
from besteffort.gateway.errors import ApiError

CUT_OFF_S = 0.05
"""Seconds that requests have to end once they are cut off."""

REQUEST_ID = "x-request-id"
"""The header with a request's id."""

ID = web.RequestKey("id", str)
"""Where a request has its id."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_BACKLOG = 512
_UNREAD_S = 60.0  # after which a client is gone that takes nothing of what is sent to it

# aiohttp would log lines that it cannot read, and a key may be in these.
_SILENT = logging.getLogger("besteffort.gateway.http")
_SILENT.setLevel(logging.CRITICAL + 1)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(logger: logging.Logger, what: str) -> web.Application:
    """An application without routes that answers errors in OpenAI's shape.

    Each request has its id under `ID`, and each answer has it in the header `REQUEST_ID`.

    Args:
      logger: gets what was not foreseen.
      what: what failed then, such as "The gateway".
    """

    @web.middleware
    async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[ID] = request_id(request.headers)
        try:
            return await handler(request)
        except ApiError as error:
            return error_response(error)
        except web.HTTPException as error:
            kind = "server_error" if error.status >= 500 else "invalid_request_error"
            allowed = {"allow": error.headers[hdrs.ALLOW]} if hdrs.ALLOW in error.headers else {}
            return error_response(ApiError(error.status, f"{error.reason}.", kind=kind), allowed)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            logger.exception("A request failed inside.")
            if request.writer.output_size > 0:
                raise ConnectionError("A part of the answer was sent.") from None
            return error_response(_failed(what))

    middlewares: list[Middleware] = [errors]
    # Bodies are limited by `read_body`, since limits may change while it runs.
    app = web.Application(middlewares=middlewares, client_max_size=2**30)
    app.on_response_prepare.append(_complete_headers)
    return app


def request_id(headers: Mapping[str, str]) -> str:
    """The id that a client gives its request, if that is a sane one; else a new one.

    Args:
      headers: of the request, with names in lower case, or a mapping that ignores case.
    """
    stated = headers.get(REQUEST_ID, "")
    return stated if _SANE_ID.fullmatch(stated) else f"req-{secrets.token_hex(12)}"


async def read_body(request: web.Request, listen: Listen) -> bytes:
    """The body of a request.

    Raises:
      ApiError: if it is of another type, too large, or too slow.
    """
    # A page in a browser cannot send this type elsewhere without being asked first.
    if "json" not in request.content_type:
        raise ApiError(415, "The content type is to be application/json.")
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise ApiError(415, "The body is not to be compressed.")
    too_large = ApiError(413, f"The body has more than {listen.body_bytes:,} bytes.", code="too_large")
    if (request.content_length or 0) > listen.body_bytes:
        raise too_large
    parts, size = [], 0
    try:
        if request.content.is_eof():  # it came with its headers: there is nothing to wait for
            whole = request.content.read_nowait()
            if len(whole) > listen.body_bytes:
                raise too_large
            return whole
        async with asyncio.timeout(listen.body_s):
            async for part in request.content.iter_any():
                size += len(part)
                if size > listen.body_bytes:
                    raise too_large
                parts.append(part)
    except web.RequestPayloadError:
        raise ApiError(400, "The body is not as its headers say.") from None
    except TimeoutError:
        raise ApiError(408, "The body came too slowly.", code="timeout", retry=False) from None
    return b"".join(parts)


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> web.Response:
    """The answer that says what is wrong."""
    response = web.json_response(error.body(), status=error.status, headers={**(headers or {}), **error.headers()})
    if error.status in (408, 413):
        response.force_close()  # what is left of the body is not waited for
    return response


def model_entry(name: str) -> dict[str, object]:
    """A model as `/v1/models` lists it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "besteffort"}


def cannot_listen(host: str, port: int, error: OSError) -> InputError:
    """What to say where an address cannot be had."""
    reason = (error.strerror or str(error)).lower()
    return InputError(f"`listen` is {host}, port {port}: cannot listen there, {reason}; name another one.")


def joined(host: str, port: int) -> str:
    """Host and port as addresses have them: one of IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Listener:
    """An application that listens."""

    def __init__(
        self,
        app: web.Application,
        listen: Listen,
        limits: Callable[[], Listen] | None = None,
        *,
        port: int | None = None,
        shared: bool = False,
    ) -> None:
        """Does not listen yet.

        Args:
          app: what answers.
          listen: where, and how much.
          limits: how much from now on, asked at every connection; as `listen` says unless given.
          port: instead of that of `listen`.
          shared: other processes listen on the same port.
        """
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=CUT_OFF_S)
        self._listen = listen
        self._limits = limits or (lambda: listen)
        self._port = listen.port if port is None else port
        self._shared = shared
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Listens; returns the address.

        Raises:
          InputError: if the address cannot be had.
        """
        await self._runner.setup()
        server, loop, listen = self._runner.server, asyncio.get_running_loop(), self._listen
        assert server is not None

        def protocol() -> asyncio.Protocol:
            limits = self._limits()
            if len(server.connections) >= limits.connections:
                return _Full()
            return _Connection(
                server,
                loop=loop,
                # Also ends connections whose headers are not whole by then.
                keepalive_timeout=limits.header_s,
                access_log=_SILENT,
                max_line_size=limits.header_bytes,
                max_field_size=limits.header_bytes,
                lingering_time=1.0,
                logger=_SILENT,
            )

        try:
            self._server = await loop.create_server(
                protocol, listen.host, self._port, backlog=_BACKLOG, reuse_port=self._shared or None
            )
        except OSError as error:
            raise cannot_listen(listen.host, self._port, error) from error
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{joined(host, port)}"

    @property
    def unsent(self) -> bool:
        """Whether a part of an answer waits for its client to take what came before."""
        server = self._runner.server
        connections = () if server is None else server.connections
        transports = (connection.transport for connection in connections)
        return any(transport is not None and transport.get_write_buffer_size() for transport in transports)

    async def stop(self) -> None:
        """Closes all connections."""
        if self._server is not None:
            self._server.close()
        if self._runner.server is not None:
            await self._runner.server.shutdown(CUT_OFF_S)
        await self._runner.cleanup()


class _Connection(web.RequestHandler):
    """A connection that answers what is no HTTP as all else, and does not repeat it."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if sys.platform == "linux":
            # Else a client that reads no more keeps its connection, and what is written for it, as long as it likes.
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1e3 * _UNREAD_S))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        error = ApiError(status, "The request is no well-formed HTTP.") if status < 500 else _failed("The server")
        if request.writer.output_size > 0:
            raise ConnectionError("A part of the answer was sent.")
        response = web.json_response(error.body(), status=error.status, headers={REQUEST_ID: request_id({})})
        response.force_close()
        return response


class _Full(asyncio.Protocol):
    """Closes a connection beyond the limit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def _failed(what: str) -> ApiError:
    return ApiError(500, f"{what} failed.", kind="server_error", code="internal_error")


async def _complete_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers[hdrs.SERVER] = "besteffort"
    if REQUEST_ID not in response.headers:
        response.headers[REQUEST_ID] = request.get(ID) or request_id(request.headers)
