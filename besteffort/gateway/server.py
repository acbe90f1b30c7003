"""The gateway as an HTTP server: OpenAI's API in front, servers of the same API behind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from aiohttp import hdrs, web

from besteffort.gateway import http
from besteffort.gateway.assembly import Assembly, can_assemble
from besteffort.gateway.core import Claim, Core, Outcome, RefusedError, Ticket
from besteffort.gateway.errors import ApiError
from besteffort.gateway.events import AnswerStream, EventReader, EventTooLargeError, Usage, usage_of
from besteffort.gateway.intake import CHAT, COMPLETIONS, Intake, read_request
from besteffort.gateway.lag import Lag
from besteffort.gateway.live import Live
from besteffort.gateway.metrics import Metrics
from besteffort.gateway.process import LOGGER
from besteffort.gateway.upstream import (
    MOST_ANSWER_BYTES,
    InvalidRequestError,
    Post,
    Upstream,
    UpstreamError,
    read_whole,
)
from besteffort.version import __version__

_SILENCE_S = 15.0  # after which a stream gets a comment, so that nothing between gives it up
_COMMENT = b": waiting\n\n"
_STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}  # of nginx
_quoted = functools.lru_cache(1024)(quote)  # names of models and tasks
_FOLDER = Path(__file__).parent / "page"
_PAGE = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
}
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_OWN_FAULT = 0.25  # of the time that a server was waited for, in which the gateway itself stood still
_MOST_VIEWERS = 16
_LOOK_S = 0.5  # between two events of the page
_PASSED_ON = ("traceparent", "tracestate")  # of the client's headers; all others stay here
_STATUS = {"no_capacity": 503, "too_late": 503, "draining": 503, "too_many_requests": 503}


class Server:
    """The handlers, over a core.

    Attributes:
      core: decides and counts.
      upstream: the servers.
      metrics: figures.
      live: what the page shows.
      lag: how late the gateway itself is.
    """

    def __init__(self, core: Core, upstream: Upstream, metrics: Metrics, live: Live) -> None:
        self.core, self.upstream, self.metrics, self.live = core, upstream, metrics, live
        self.lag = Lag()
        self._viewers = 0

    def application(self) -> web.Application:
        """The application."""
        app = http.application(LOGGER, "The gateway")
        app.router.add_post(COMPLETIONS, self._completions)
        app.router.add_post(CHAT, self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model:.+}", self._model)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/", self._page)
        app.router.add_get("/page/{name}", self._page)
        app.router.add_get("/events", self._events, allow_head=False)  # it never ends
        app.cleanup_ctx.append(self.lag.watched)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "version": __version__})

    async def _ready(self, request: web.Request) -> web.Response:
        core = self.core
        now = core.now()
        ready = not core.draining and any(place.state.breaker.allows(now) for place in core.snapshot.places)
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        self._client(request)
        text, kind = self.metrics.text()
        return web.Response(body=text, headers={"content-type": kind})

    async def _page(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        if name not in _PAGE:
            raise web.HTTPNotFound
        return web.Response(body=(_FOLDER / name).read_bytes(), headers={"content-type": _PAGE[name], **_PAGE_HEADERS})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """What the page shows, as events, until the viewer leaves or the gateway ends."""
        self._client(request)
        if self._viewers >= _MOST_VIEWERS:
            raise ApiError(503, "Too many are looking at the page.", kind="server_error", retry_after_s=10.0)
        self._viewers += 1
        try:
            response = web.StreamResponse(headers={"cache-control": "no-store", **_STREAM_HEADERS})
            await response.prepare(request)
            last = 0
            while True:
                now = time.time()
                seconds = self.live.seconds(last, now)
                last = max((second["at"] for second in seconds), default=last)
                message = {"seconds": seconds, "state": self.live.state(now)}
                await response.write(b"data: " + json.dumps(message).encode() + b"\n\n")
                await asyncio.sleep(_LOOK_S)
        finally:
            self._viewers -= 1

    async def _models(self, request: web.Request) -> web.Response:
        self._client(request)
        names = self.core.snapshot.model_names
        return web.json_response({"object": "list", "data": [http.model_entry(name) for name in names]})

    async def _model(self, request: web.Request) -> web.Response:
        self._client(request)
        name = request.match_info["model"]
        if name not in self.core.snapshot.model_names:
            raise ApiError(404, "There is no such model; `/v1/models` lists what there is.", code="model_not_found")
        return web.json_response(http.model_entry(name))

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, COMPLETIONS)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, CHAT)

    def _client(self, request: web.Request) -> str:
        """Name of the client's key.

        Raises:
          ApiError: if keys are asked for, and it has none.
        """
        keys = self.core.snapshot.keys
        if not keys:
            return ""
        scheme, _, secret = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        name = keys.name_of(secret.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            raise ApiError(
                401,
                "The API key is missing or unknown; send `Authorization: Bearer KEY`.",
                kind="authentication_error",
                code="invalid_api_key",
            )
        return name

    async def _answer(self, request: web.Request, path: str) -> web.StreamResponse:
        core = self.core
        client = self._client(request)
        raw = await http.read_body(request, core.snapshot.config.listen)
        # From here to the arrival nothing waits, so that one snapshot decides.
        intake = read_request(raw, request.headers, path, client, core.snapshot)
        try:
            ticket = core.arrive(intake.ask, request[http.ID])
        except RefusedError as refused:
            self.metrics.turned_away(refused.code)
            raise _refusal(refused) from None
        call = _Call(self, request, intake, path, ticket)
        try:
            response = await call.run()
        except _EndedError as ended:
            return http.error_response(ended.error, call.headers())
        except RefusedError as refused:
            core.close(ticket, "refused", refused.code)
            return http.error_response(_refusal(refused), call.headers())
        except _ClientGoneError:
            core.close(ticket, "cancelled", "client")
            raise ConnectionResetError("The client has left.") from None
        except asyncio.CancelledError:
            core.close(ticket, "cancelled", "client")
            raise
        except BaseException:
            core.close(ticket, "failed", "internal_error")
            raise
        core.close(ticket, "cancelled", "client")  # unless the call has closed it
        return response


class _EndedError(Exception):
    """A request ends with an error before anything of its answer was sent."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


class _ClientGoneError(Exception):
    """The client has left, or does not read its answer."""


class _Call:
    """One request on its way through servers."""

    def __init__(self, server: Server, request: web.Request, intake: Intake, path: str, ticket: Ticket) -> None:
        self._server, self._core, self._request = server, server.core, request
        self._intake, self._path, self._ticket = intake, path, ticket
        self._decided_s = 0.0
        self._response: web.StreamResponse | None = None  # once a stream has begun
        self._begun = False  # once a part of the answer was sent
        self._wrote_s = asyncio.get_running_loop().time()  # when something was sent last

    def headers(self) -> dict[str, str]:
        """What the client is told about the decision."""
        ticket = self._ticket
        found = {
            http.REQUEST_ID: ticket.name,
            "x-besteffort-task": _quoted(ticket.ask.task),
            "x-besteffort-task-source": ticket.ask.task_source,
            "server-timing": f"decide;dur={1e3 * self._decided_s:.3f}",
            "cache-control": "no-store",
        }
        if ticket.place is not None:
            found["x-besteffort-model"] = _quoted(ticket.place.model)
            found["x-besteffort-pool"] = ticket.place.pool.name
        return found

    async def run(self) -> web.StreamResponse:
        """Answers the request, by another server where one fails.

        Raises:
          RefusedError: if there is no place for it.
          _EndedError: if it ends with an error.
        """
        core, ticket = self._core, self._ticket
        last: UpstreamError | None = None
        while True:
            started = time.perf_counter()
            try:
                claim = core.claim(ticket)
            except RefusedError:
                if last is not None:
                    return await self._end(last.error, "failed")
                raise
            seconds = time.perf_counter() - started
            self._decided_s += seconds
            self._server.metrics.decided(claim, seconds)
            try:
                return await self._send(claim)
            except InvalidRequestError as invalid:
                core.failed(claim, "invalid", blame=False)
                return await self._end(invalid.error, "invalid")
            except UpstreamError as failure:
                last = failure
                if failure.busy_s is not None:
                    core.busy(claim, failure.busy_s)
                else:
                    blame = failure.blame and not self._own_fault(failure)
                    core.failed(claim, failure.why, blame=blame, lacks_path=failure.lacks_path)
                LOGGER.warning(
                    "Request %s: pool %s, replica %d: %s.",
                    ticket.name,
                    claim.place.pool.name,
                    claim.place.replica,
                    failure.why,
                )
                if self._begun or not core.may_retry(ticket):
                    return await self._end(failure.error, "failed")

    def _own_fault(self, failure: UpstreamError) -> bool:
        """Whether a server may have been silent only because nobody listened."""
        waited_s = failure.waited_s
        return waited_s is not None and self._server.lag.share(waited_s) >= _OWN_FAULT

    async def _end(self, error: ApiError, outcome: Outcome) -> web.StreamResponse:
        """Ends with the error of the last server: as an event, if the stream has begun."""
        self._core.close(self._ticket, outcome, error.code or "")
        if self._response is None:
            raise _EndedError(error)
        await self._write(error.event())
        return await self._close_stream()

    async def _send(self, claim: Claim) -> web.StreamResponse:
        headers = {http.REQUEST_ID: self._ticket.name}
        for name in _PASSED_ON:
            if name in self._request.headers:
                headers[name] = self._request.headers[name]
        if self._intake.streamed:
            return await self._stream(claim, headers)
        if claim.place.pool.assemble and can_assemble(self._intake.body):
            return await self._assembled(claim, headers)
        return await self._whole(claim, headers)

    async def _whole(self, claim: Claim, headers: dict[str, str]) -> web.StreamResponse:
        """An answer that comes in one piece."""
        place = claim.place
        try:
            async with (
                asyncio.timeout(place.pool.timeouts.total_s),
                self._server.upstream.post(place, self._path, self._intake.body, headers) as answer,
            ):
                raw = await read_whole(answer)
        except TimeoutError:
            raise UpstreamError("timeout", "The server took too long.", status=504) from None
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("error") is not None:
            raise UpstreamError("not_json", "The server's answer is no JSON object, or says that it failed.")
        self._finish(claim, usage_of(found) or Usage())
        return web.Response(body=raw, headers=self.headers() | {"content-type": "application/json"})

    async def _assembled(self, claim: Claim, headers: dict[str, str]) -> web.StreamResponse:
        """An answer that comes in pieces and goes on in one."""
        assembly = Assembly(chat=self._path == CHAT)
        stream = AnswerStream(keep_usage=True, take=assembly.add, take_text=assembly.add_text)
        body = {**self._intake.body, "stream": True, "stream_options": {"include_usage": True}}
        size = 0
        async with contextlib.aclosing(self._events(claim, body, headers, stream)) as events:
            async for content in events:
                size += len(content or b"")
                if size > MOST_ANSWER_BYTES:
                    raise UpstreamError("too_large", "The server's answer is too large.")
        self._finish(claim, stream.counted)
        return web.json_response(assembly.whole(), headers=self.headers())

    async def _stream(self, claim: Claim, headers: dict[str, str]) -> web.StreamResponse:
        """An answer that goes on in pieces as they come."""
        end = asyncio.get_running_loop().time() + claim.place.pool.timeouts.total_s
        stream = AnswerStream(keep_usage=self._intake.wants_usage)
        held: list[bytes] = []  # of the answer, before its first token
        async with contextlib.aclosing(self._events(claim, self._intake.body, headers, stream)) as events:
            async for content in events:
                if content is not None:
                    held.append(content)
                    if not (self._begun or stream.begun or stream.finished):
                        continue
                else:
                    self._finish(claim, stream.counted)
                    held.append(b"" if stream.done else b"data: [DONE]\n\n")
                try:
                    async with asyncio.timeout_at(end):
                        await self._write(b"".join(held))
                except TimeoutError:
                    raise _ClientGoneError from None
                held.clear()
                if content is None:
                    await self._close_stream()
        assert self._response is not None
        return self._response

    async def _events(
        self, claim: Claim, body: Mapping[str, Any], headers: dict[str, str], stream: AnswerStream
    ) -> AsyncGenerator[bytes | None, None]:
        """What the events of an answer say to the client, as they come; None once it is whole.

        Raises:
          UpstreamError: if it breaks, says that it failed, or takes too long.
        """
        loop, timeouts = asyncio.get_running_loop(), claim.place.pool.timeouts
        end = loop.time() + timeouts.total_s
        limit = min(loop.time() + timeouts.first_token_s, end)
        reader = EventReader()
        try:
            async with contextlib.AsyncExitStack() as stack:
                post = self._server.upstream.post(claim.place, self._path, body, headers)
                if self._intake.streamed:
                    answer = await self._begin(post, limit)
                    stack.push_async_exit(post)
                else:
                    async with asyncio.timeout_at(limit):
                        answer = await stack.enter_async_context(post)
                if "text/event-stream" not in answer.headers.get(hdrs.CONTENT_TYPE, ""):
                    raise UpstreamError("no_stream", "The server did not stream its answer.")
                while not stream.done:
                    chunk = await self._read(answer.content, limit)
                    if not chunk:
                        break
                    parts, tokens, failed = [], 0, False
                    for event in reader.feed(chunk):
                        found = stream.read(event)
                        tokens += found.tokens
                        parts.append(found.content)
                        failed = found.error
                        if failed or stream.done:
                            break
                    if tokens:
                        self._core.token(claim, tokens)
                    yield b"".join(parts)
                    if failed:
                        raise UpstreamError("error_event", "The server says that it failed.")
                    if stream.begun:
                        limit = min(loop.time() + timeouts.between_tokens_s, end)
                if not stream.finished and not stream.done:
                    raise UpstreamError("cut_short", "The server ended the answer before it was whole.")
                if not answer.content.at_eof():
                    self._server.upstream.end_later(stack.pop_all(), answer.content)
                yield None
        except TimeoutError:
            waited = "between_tokens_timeout" if stream.begun else "first_token_timeout"
            why = "timeout" if loop.time() >= end else waited
            raise UpstreamError(
                why,
                "The server took too long.",
                status=504,
                blame=why != "timeout",
                waited_s=timeouts.between_tokens_s if stream.begun else timeouts.first_token_s,
            ) from None
        except EventTooLargeError:
            raise UpstreamError("too_large", "The server sent an event that is too large.") from None

    async def _begin(self, post: Post, limit: float) -> aiohttp.ClientResponse:
        """The answer of a server that has begun it, which many do with their first token only; as `_read` otherwise.

        Raises:
          UpstreamError: if it fails before.
          TimeoutError: when the loop's time is `limit`.
        """
        loop = asyncio.get_running_loop()
        begins = loop.create_task(post.__aenter__())  # what was begun cannot be asked for again after a comment
        try:
            while True:
                until = min(limit, self._wrote_s + _SILENCE_S)
                if (await asyncio.wait((begins,), timeout=until - loop.time()))[0]:
                    return begins.result()
                if loop.time() >= limit:
                    raise TimeoutError
                await self._write(_COMMENT, begins=False)
        except BaseException as error:
            begins.cancel()
            await asyncio.wait((begins,))
            if not begins.cancelled() and begins.exception() is None:
                await post.__aexit__(type(error), error, error.__traceback__)
            raise

    async def _read(self, content: aiohttp.StreamReader, limit: float) -> bytes:
        """The next bytes of a stream, none at its end; while they do not come, a client of streams gets comments.

        Raises:
          TimeoutError: when the loop's time is `limit`.
        """
        loop = asyncio.get_running_loop()
        while True:
            # What comes may be nothing that is sent on yet, such as a server's own comments.
            until = min(limit, self._wrote_s + _SILENCE_S) if self._intake.streamed else limit
            try:
                async with asyncio.timeout_at(until):
                    return await content.readany()
            except TimeoutError:
                if loop.time() >= limit:
                    raise
            await self._write(_COMMENT, begins=False)

    async def _write(self, content: bytes, *, begins: bool = True) -> None:
        """Writes to the client, whose response it begins.

        Raises:
          _ClientGoneError: if the client has left.
        """
        response = self._response
        self._begun |= begins
        try:
            if response is None:
                response = self._response = web.StreamResponse(headers=self.headers() | _STREAM_HEADERS)
                await response.prepare(self._request)
            if content:
                await response.write(content)
                self._wrote_s = asyncio.get_running_loop().time()
        except ConnectionError as error:
            # Not an error of a server, whose connection is in use around this.
            raise _ClientGoneError from error

    async def _close_stream(self) -> web.StreamResponse:
        response = self._response
        assert response is not None
        with contextlib.suppress(ConnectionError):
            await response.write_eof()
        return response

    def _finish(self, claim: Claim, usage: Usage) -> None:
        self._core.finished(
            claim, output_tokens=usage.output_tokens, prompt_tokens=usage.prompt_tokens, choices=usage.choices
        )
        self._core.close(self._ticket, "answered")


def _refusal(refused: RefusedError) -> ApiError:
    return ApiError(
        _STATUS[refused.code], str(refused), kind="server_error", code=refused.code, retry_after_s=refused.retry_after_s
    )
