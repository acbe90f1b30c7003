"""The engine as an HTTP server. A model is found by the name in the body, or by a path: `/laptop-1m/v1/completions`."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping

import jax
from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from besteffort.engine.orders import Order, Shape, read_order, usage_of
from besteffort.engine.texts import Stop, Tail, Texts
from besteffort.errors import InputError, brief
from besteffort.gateway import http
from besteffort.gateway.config import KeyRing, Listen
from besteffort.gateway.errors import ApiError
from besteffort.opt.engine import Answer, Engine, OverloadedError, StoppedError

LOGGER = logging.getLogger("besteffort.engine")

_BUSY_S = 0.1  # after which a full model may be asked again
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)
_DEFAULT_TOKENS = 16


class EngineServer:
    """The handlers over an engine that runs."""

    def __init__(self, engine: Engine, texts: Mapping[str, Texts], listen: Listen, keys: KeyRing | None = None) -> None:
        """Does not listen yet.

        Args:
          engine: has the models.
          texts: how the texts of each are tokens.
          listen: limits on bodies.
          keys: that clients need.
        """
        self._engine, self._texts, self._listen, self._keys = engine, texts, listen, keys or KeyRing([])
        self._metrics = _Metrics(engine)

    def application(self) -> web.Application:
        """The application."""
        app = http.application(LOGGER, "The engine")
        for prefix in ("", "/{path_model}"):
            app.router.add_post(f"{prefix}/v1/completions", self._completions)
            app.router.add_post(f"{prefix}/v1/chat/completions", self._chat)
            app.router.add_get(f"{prefix}/v1/models", self._models)
        app.router.add_get("/v1/models/{model}", self._model)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._figures)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self._engine.serving else 503)

    async def _figures(self, request: web.Request) -> web.Response:
        self._check_key(request)
        return web.Response(body=self._metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _models(self, request: web.Request) -> web.Response:
        self._check_key(request)
        names = self._known(request)
        entries = [http.model_entry(name) | {"max_model_len": self._engine.context(name)} for name in names]
        return web.json_response({"object": "list", "data": entries})

    async def _model(self, request: web.Request) -> web.Response:
        self._check_key(request)
        name = request.match_info["model"]
        _check_model(name, self._engine.models)
        return web.json_response(http.model_entry(name) | {"max_model_len": self._engine.context(name)})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=False)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True)

    def _check_key(self, request: web.Request) -> None:
        if not self._keys:
            return
        scheme, _, secret = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "bearer" or self._keys.name_of(secret.strip()) is None:
            raise ApiError(401, "The API key is missing or unknown.", kind="authentication_error")

    def _known(self, request: web.Request) -> tuple[str, ...]:
        """The models that a path is for."""
        name = request.match_info.get("path_model")
        if name is None:
            return self._engine.models
        _check_model(name, self._engine.models)
        return (name,)

    async def _answer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        self._check_key(request)
        known = self._known(request)
        order = read_order(await http.read_body(request, self._listen), chat=chat)
        model = known[0] if order.model is None and len(known) == 1 else order.model
        if model is None:
            raise ApiError(400, f"`model` is missing; choose from {', '.join(known)}.", param="model")
        _check_model(model, known)
        answer, ends = self._submit(order, model)
        name = request[http.ID]
        shape = Shape(f"{'chatcmpl' if chat else 'cmpl'}-{name}", model, int(time.time()), chat)
        pieces = _Pieces(answer, Tail(self._texts[model]), Stop(order.stop), ends)
        try:
            if order.streamed:
                return await self._stream(request, pieces, shape, order.wants_usage)
            text = "".join([piece async for piece in pieces.read()])
            return web.json_response(shape.whole(text, pieces.finish or "stop", pieces.usage))
        except StoppedError as error:
            raise _stopped() from error
        finally:
            # Also where the client has left: what is cancelled leaves its slot with the iteration in progress.
            self._metrics.ended(answer, pieces.finish)
            answer.cancel()

    def _submit(self, order: Order, model: str) -> tuple[Answer, frozenset[int]]:
        """Gives a request to the engine; with it, the tokens that end it."""
        try:
            prompt = self._texts[model].encode(order.prompt) if isinstance(order.prompt, str) else order.prompt
            room = self._engine.context(model) - len(prompt) + 1
            longest = order.max_tokens or max(min(room, room if order.chat else _DEFAULT_TOKENS), 1)
            key = None
            if order.sampling.temperature > 0:
                seed = secrets.randbits(31) if order.seed is None else order.seed % 2**31
                key = jax.random.key(seed)
            stop_tokens = None if order.ends else ()
            answer = self._engine.submit(model, prompt, longest, order.sampling, key, stop_tokens)
        except InputError as error:
            raise ApiError(400, str(error)) from error
        except OverloadedError as error:
            raise ApiError(
                429, f"{brief(str(error))}", kind="server_error", code="overloaded", retry_after_s=_BUSY_S
            ) from error
        except StoppedError as error:
            raise _stopped() from error
        return answer, answer.stop_tokens

    async def _stream(
        self, request: web.Request, pieces: _Pieces, shape: Shape, wants_usage: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        first = True
        try:
            async with contextlib.aclosing(pieces.read()) as texts:
                async for text in texts:
                    if text or pieces.finish is not None:
                        await response.write(shape.event(text, pieces.finish, first=first))
                        first = False
            end = shape.usage_event(pieces.usage) if wants_usage else b""
            await response.write(end + b"data: [DONE]\n\n")
        except StoppedError:
            await response.write(_stopped().event())
        await response.write_eof()
        return response


class _Pieces:
    """The text of an answer as it comes.

    Attributes:
      finish: `stop` or `length` once it is whole.
    """

    def __init__(self, answer: Answer, tail: Tail, stop: Stop, ends: frozenset[int]) -> None:
        self._answer, self._tail, self._stop, self._ends = answer, tail, stop, ends
        self._count = 0
        self.finish: str | None = None

    @property
    def usage(self) -> dict[str, int]:
        """Lengths so far."""
        return usage_of(len(self._answer.prompt), self._count)

    async def read(self) -> AsyncGenerator[str, None]:
        """Texts, one per token; with the last one, `finish` is set.

        Raises:
          StoppedError: if the engine stopped before the answer was whole.
        """
        async for token in self._answer:
            self._count += 1
            ended = token in self._ends
            last = ended or self._count == self._answer.max_new_tokens
            text, stopped = self._stop.add(self._tail.add(token, last=last), last=last)
            if last or stopped:
                self.finish = "stop" if ended or stopped else "length"
            yield text
            if stopped:
                return


class _Metrics:
    """Figures under the names that vLLM gives them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._figures = figures = CollectorRegistry()
        self._ended = Counter(
            "vllm:request_success", "Requests that ended.", ("model_name", "finished_reason"), registry=figures
        )
        self._prompt = Counter("vllm:prompt_tokens", "Tokens of prompts.", ("model_name",), registry=figures)
        self._output = Counter("vllm:generation_tokens", "Tokens of answers.", ("model_name",), registry=figures)
        self._first = Histogram(
            "vllm:time_to_first_token_seconds",
            "From arrival to the first token.",
            ("model_name",),
            buckets=_SECONDS,
            registry=figures,
        )
        self._latency = Histogram(
            "vllm:e2e_request_latency_seconds",
            "From arrival to the end of the answer.",
            ("model_name",),
            buckets=_SECONDS,
            registry=figures,
        )
        figures.register(self)

    def ended(self, answer: Answer, finish: str | None) -> None:
        """Counts a request that has ended."""
        self._ended.labels(answer.model, finish or "abort").inc()
        self._prompt.labels(answer.model).inc(len(answer.prompt))
        self._output.labels(answer.model).inc(len(answer.tokens))
        if answer.tokens:
            self._first.labels(answer.model).observe(answer.first_token_s - answer.arrival_s)
        # One that a stop string ended has no last token by which the engine would know its end.
        ended_s = self._engine.clock_s() if finish is not None and not answer.done else answer.completion_s
        if ended_s >= answer.arrival_s:
            self._latency.labels(answer.model).observe(ended_s - answer.arrival_s)

    def text(self) -> bytes:
        """What a scrape gets."""
        return generate_latest(self._figures)

    def collect(self) -> Iterator[Metric]:
        """What is read off the engine at a scrape."""
        labels = ("model_name",)
        running = GaugeMetricFamily("vllm:num_requests_running", "Requests that run.", labels=labels)
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Requests that wait.", labels=labels)
        for name, size in self._engine.batch_sizes.items():
            waits = self._engine.waiting[name]
            running.add_metric((name,), size - waits)
            waiting.add_metric((name,), waits)
        yield from (running, waiting)

    def describe(self) -> Iterator[Metric]:
        """Nothing: names are known once collected."""
        return iter(())


def _check_model(name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ApiError(
            404,
            f"There is no model `{brief(name)}`; choose from {', '.join(known)}.",
            code="model_not_found",
            param="model",
        )


def _stopped() -> ApiError:
    return ApiError(503, "The engine has stopped.", kind="server_error", code="stopped")
