"""An external processor for Envoy (`ext_proc`): Envoy sends, and `besteffort` decides where.

    python -m besteffort.plugins.envoy gateway.yaml --port 50051

`gateway.yaml` is what `besteffort serve` reads; of its pools the policy, tasks, limits and leases count here, not the
addresses. For each request the processor writes the pool's name into the header `x-besteffort-pool`, which Envoy takes
as the cluster (`cluster_header`), and the name by which its servers know the model into the body. Envoy balances over
a cluster's servers, with circuit breakers and time-outs of its own. The answer's parts are looked at as they pass, so
that tokens count. A claim is freed when the answer ends or Envoy ends the exchange, whatever happened.

Envoy has to send the body whole, and the answer in parts: `request_body_mode: BUFFERED`, `response_header_mode: SEND`,
`response_body_mode: STREAMED`. docs/gateway.md has a configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc
from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.ext_proc.v3 import external_processor_pb2 as messages
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import (
    ExternalProcessorServicer,
    add_ExternalProcessorServicer_to_server,
)
from envoy.type.v3.http_status_pb2 import HttpStatus

from besteffort.errors import InputError
from besteffort.gateway.core import Claim, Core, RefusedError, Ticket
from besteffort.gateway.errors import CLIENTS_FAULT, LACKS_PATH, ApiError, busy_s
from besteffort.gateway.events import AnswerStream, EventReader, EventTooLargeError, Usage, usage_of
from besteffort.gateway.http import REQUEST_ID, joined, request_id
from besteffort.gateway.intake import CHAT, COMPLETIONS, Intake, read_request
from besteffort.plugins.unused import make_core

POOL_HEADER = "x-besteffort-pool"
_MOST_BYTES = 2**22  # of an answer that is no stream, whose usage is read
_WRONG_KEY = (401, 403)  # the client's own, which Envoy passes on
_SWEEP_S = 1.0
_DRAIN_S = 30.0


class Processor(ExternalProcessorServicer):
    """Decides for the requests that an Envoy sends."""

    def __init__(self, core: Core) -> None:
        self.core = core

    async def Process(  # noqa: N802 - the protocol's name
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        """One request, from its headers to the end of its answer."""
        exchange = _Exchange(self.core)
        try:
            async for asked in request_iterator:
                yield exchange.answer(asked)
        finally:
            exchange.end()


class _Exchange:
    """A request on its way through Envoy."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._headers: dict[str, str] = {}
        self._ticket: Ticket | None = None
        self._claim: Claim | None = None
        self._answer: _Answer | None = None

    def answer(self, asked: Any) -> Any:
        """What Envoy is to do with a part of the exchange."""
        part = asked.WhichOneof("request")
        match part:
            case "request_headers":
                self._headers = _plain(asked.request_headers.headers)
                if POOL_HEADER in self._headers:
                    return _without_pool()
            case "request_body":
                return self._decide(asked.request_body.body)
            case "response_headers":
                return self._begin(_plain(asked.response_headers.headers))
            case "response_body":
                return self._take(asked.response_body.body, last=asked.response_body.end_of_stream)
        return _continue(part)

    def end(self) -> None:
        """Nothing more comes; what is claimed still is freed."""
        if self._ticket is not None:
            self._core.close(self._ticket, "cancelled", "client")

    def _decide(self, body: bytes) -> Any:
        path = self._headers.get(":path", "").partition("?")[0]
        if path not in (COMPLETIONS, CHAT):
            return _continue("request_body")
        core, name = self._core, request_id(self._headers)
        try:
            intake = read_request(body, self._headers, path, "", core.snapshot)
            self._ticket = ticket = core.arrive(intake.ask, name)
            self._claim = claim = core.claim(ticket)
        except ApiError as error:
            return _refuse(error, name)
        except RefusedError as refused:
            if self._ticket is not None:
                core.close(self._ticket, "refused", refused.code)
            return _refuse(
                ApiError(
                    503,
                    str(refused),
                    kind="server_error",
                    code=refused.code,
                    retry_after_s=refused.retry_after_s,
                ),
                name,
            )
        self._answer = _Answer(intake)
        onward = json.dumps({**intake.body, "model": claim.place.served_model}).encode()
        changed = {
            POOL_HEADER: claim.place.pool.name,
            "content-length": str(len(onward)),
            # Of an answer that is compressed no tokens are seen.
            "accept-encoding": "identity",
            REQUEST_ID: ticket.name,
        }
        return messages.ProcessingResponse(
            request_body=messages.BodyResponse(
                response=messages.CommonResponse(
                    header_mutation=_headers(changed),
                    body_mutation=messages.BodyMutation(body=onward),
                    clear_route_cache=True,
                )
            )
        )

    def _begin(self, headers: Mapping[str, str]) -> Any:
        """The answer's headers have come."""
        if self._ticket is None or self._claim is None:
            return _continue("response_headers")
        status = int(headers.get(":status", "200"))
        if (seconds := busy_s(status, headers)) is not None:
            self._core.busy(self._claim, seconds)
            self._core.close(self._ticket, "failed")
        elif status != 200:
            client = status in (*CLIENTS_FAULT, *_WRONG_KEY)
            why = "invalid" if client else f"status_{status}"
            self._core.failed(self._claim, why, blame=not client, lacks_path=status in LACKS_PATH)
            self._core.close(self._ticket, "invalid" if client else "failed")
        elif self._answer is not None:
            self._answer.begin(headers)
        # What goes on of a stream may be less than came.
        shorter = self._answer is not None and self._answer.edited and "content-length" in headers
        gone = messages.HeaderMutation(remove_headers=["content-length"] if shorter else [])
        changed = messages.HeadersResponse(response=messages.CommonResponse(header_mutation=gone))
        return messages.ProcessingResponse(response_headers=changed)

    def _take(self, part: bytes, *, last: bool) -> Any:
        """A part of the answer has come."""
        answer = self._answer
        if self._ticket is None or self._claim is None or answer is None:
            return _continue("response_body")
        tokens, onward = answer.add(part, last=last)
        if self._ticket.open:
            if tokens:
                self._core.token(self._claim, tokens)
            if last or answer.done:
                self._end(answer)
        if onward == part:
            return _continue("response_body")
        changed = messages.CommonResponse(body_mutation=messages.BodyMutation(body=onward))
        return messages.ProcessingResponse(response_body=messages.BodyResponse(response=changed))

    def _end(self, answer: _Answer) -> None:
        assert self._ticket is not None
        assert self._claim is not None
        if not answer.whole:
            self._core.failed(self._claim, "cut_short")
            self._core.close(self._ticket, "failed")
            return
        usage = answer.usage
        self._core.finished(
            self._claim, output_tokens=usage.output_tokens, prompt_tokens=usage.prompt_tokens, choices=usage.choices
        )
        self._core.close(self._ticket, "answered")


class _Answer:
    """What the parts of an answer say.

    Attributes:
      edited: whether the client did not ask for the usage that a stream says, so that less goes on.
    """

    def __init__(self, intake: Intake) -> None:
        self.edited = False
        self._wants_usage = intake.wants_usage
        self._streamed = self._encoded = self._failed = self._unreadable = False
        self._events, self._stream = EventReader(), AnswerStream(keep_usage=intake.wants_usage)
        self._held = b""

    def begin(self, headers: Mapping[str, str]) -> None:
        """Takes notice of the headers."""
        # A server may compress what it was asked not to.
        self._encoded = headers.get("content-encoding", "identity").lower() != "identity"
        self._streamed = "text/event-stream" in headers.get("content-type", "") and not self._encoded
        self.edited = self._streamed and not self._wants_usage

    def add(self, part: bytes, *, last: bool) -> tuple[int, bytes]:
        """Takes notice of a part; the tokens in it, of a stream, and what goes on in its place."""
        if not self._streamed:
            self._held += part[: _MOST_BYTES - len(self._held)]
            return 0, part
        if self._unreadable:
            return 0, part
        tokens, onward = 0, b""
        try:
            for event in self._events.feed(part):
                found = self._stream.read(event)
                self._failed |= found.error
                tokens += found.tokens
                onward += event if found.error else found.content
        except EventTooLargeError:
            self._unreadable = True
        if last or self._unreadable:
            onward += self._events.rest()
        return tokens, onward if self.edited else part

    @property
    def done(self) -> bool:
        """Whether nothing of it is to come, though the server may keep it open."""
        return self._stream.done

    @property
    def whole(self) -> bool:
        if not self._streamed:
            return True
        return not (self._failed or self._unreadable) and (self._stream.finished or self._stream.done)

    @property
    def usage(self) -> Usage:
        if self._streamed:
            return self._stream.counted
        try:
            return usage_of(json.loads(self._held)) or Usage()
        except (ValueError, RecursionError):
            return Usage()


def _plain(headers: Any) -> dict[str, str]:
    return {one.key.lower(): one.value or one.raw_value.decode("latin-1") for one in headers.headers}


def _continue(part: str | None) -> Any:
    """Go on, with nothing changed."""
    kind = {
        "request_headers": messages.HeadersResponse,
        "response_headers": messages.HeadersResponse,
        "request_body": messages.BodyResponse,
        "response_body": messages.BodyResponse,
        "request_trailers": messages.TrailersResponse,
        "response_trailers": messages.TrailersResponse,
    }[str(part)]
    return messages.ProcessingResponse(**{str(part): kind()})


def _without_pool() -> Any:
    """Go on without the header that is the processor's to write: no client chooses a cluster."""
    gone = messages.CommonResponse(
        header_mutation=messages.HeaderMutation(remove_headers=[POOL_HEADER]), clear_route_cache=True
    )
    return messages.ProcessingResponse(request_headers=messages.HeadersResponse(response=gone))


def _refuse(error: ApiError, name: str) -> Any:
    return messages.ProcessingResponse(
        immediate_response=messages.ImmediateResponse(
            status=HttpStatus(code=error.status),
            headers=_headers({"content-type": "application/json", REQUEST_ID: name, **error.headers()}),
            body=json.dumps(error.body()).encode(),
        )
    )


def _headers(values: Mapping[str, str]) -> Any:
    overwrite = HeaderValueOption.HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD
    return messages.HeaderMutation(
        set_headers=[
            HeaderValueOption(header=HeaderValue(key=name, raw_value=value.encode()), append_action=overwrite)
            for name, value in values.items()
        ]
    )


async def serve(core: Core, host: str, port: int) -> tuple[Any, int]:
    """Listens, without encryption: for the Envoy on the same host, or within a network that is trusted.

    Returns:
      the server, and its port.

    Raises:
      InputError: if the address cannot be had.
    """
    server = grpc.aio.server()
    add_ExternalProcessorServicer_to_server(Processor(core), server)
    try:
        bound = server.add_insecure_port(joined(host, port))
    except RuntimeError as error:
        raise InputError(f"{host}, port {port}: cannot listen there; name another one.") from error
    await server.start()
    return server, bound


async def _run(core: Core, host: str, port: int) -> None:
    server, bound = await serve(core, host, port)
    sys.stdout.write(f"Deciding for Envoy on {joined(host, bound)}.\n")
    sys.stdout.flush()
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    while not ended.is_set():
        core.sweep()
        try:
            await asyncio.wait_for(ended.wait(), _SWEEP_S)
        except TimeoutError:
            continue
    core.draining = True
    await server.stop(_DRAIN_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves and returns the exit status: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m besteffort.plugins.envoy", description=__doc__.splitlines()[0])
    parser.add_argument("config", help="YAML file, as of `besteffort serve`")
    parser.add_argument("--host", default="127.0.0.1", help="address; others need no key, so keep it to a trusted one")
    parser.add_argument("--port", type=int, default=50051, help="TCP port; 0 takes a free one")
    given = parser.parse_args(arguments)
    try:
        asyncio.run(_run(make_core(given.config, "Envoy"), given.host, given.port))
    except InputError as error:
        sys.stderr.write(f"besteffort.plugins.envoy: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
