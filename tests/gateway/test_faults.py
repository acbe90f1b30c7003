"""What goes wrong in front of real servers, by public reports, against real servers on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from besteffort.gateway import upstream
from besteffort.gateway.config import Breaker, Listen, Retries, Timeouts
from tests.gateway.backends import (
    DONE,
    USAGE,
    WHOLE,
    Call,
    answer,
    answer_chat,
    backend,
    completion,
    event,
    run,
    running,
    started,
)
from tests.gateway.policies import MODELS, config

PLENTY = Retries(most=4, share=1.0)
FAST = Timeouts(connect_s=1.0, first_token_s=1.0, between_tokens_s=0.3, total_s=2.0)


async def unavailable(call: Call) -> None:
    await call.respond(500, {"detail": "out of memory at 0xdeadbeef"})


def with_timeouts(urls: list[list[str]], timeouts: Timeouts = FAST, **others: object) -> object:
    given = config(urls, listen=Listen(port=0, drain_s=0.0), **others)
    return dataclasses.replace(given, pools=tuple(dataclasses.replace(p, timeouts=timeouts) for p in given.pools))


PATIENT = {"x-besteffort-deadline-ms": "60000"}


# Counters


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_frees_its_count(tmp_path: Path, stream: bool) -> None:
    """Error path without release (skypilot#10444)."""

    async def scenario() -> None:
        async with backend(unavailable) as (url, _), running(tmp_path, [[url]]) as found:
            for _ in range(5):
                status, body, _ = await found.post(stream=stream)
                assert status in (502, 503)
                assert body["error"]["type"] == "server_error"
                assert "0xdeadbeef" not in json.dumps(body)
                assert found.counts() == 0
            assert {record.outcome for record in found.records} <= {"failed", "refused"}

    run(scenario())


def test_a_server_that_leaves_and_returns_is_never_counted_below_zero(tmp_path: Path) -> None:
    """Endpoint leaves and returns, count negative (llm-d#1950)."""

    async def scenario() -> None:
        async with (
            backend(answer) as (url, made),
            backend(answer) as (other, _),
            running(tmp_path, [[url], [other]], retries=PLENTY, breaker=Breaker(open_s=0.05)) as found,
        ):
            for behaviour in (answer, unavailable, answer):
                made.behaviour = behaviour
                done = await asyncio.gather(*(found.post(headers=PATIENT) for _ in range(6)))
                assert [status for status, _, _ in done] == [200] * 6
                assert found.counts() == 0
                await asyncio.sleep(0.1)

    run(scenario())


# Disconnects


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_server(tmp_path: Path, stream: bool) -> None:
    """Upstream goes on generating (litellm#3341, vllm#54947); leaves a plain request."""
    gone = asyncio.Event()

    async def slow(call: Call) -> None:
        if call.body.get("stream"):
            await call.begin_stream()
            await call.chunk(event("4"))
        await call.left()
        gone.set()

    async def scenario() -> None:
        async with backend(slow) as (url, made), running(tmp_path, [[url]]) as found:
            task = asyncio.create_task(found.post(stream=stream))
            while not made.calls:
                await asyncio.sleep(0.005)
            assert found.counts() == 2
            task.cancel()
            await asyncio.wait_for(gone.wait(), 5)
            await found.settle()
            (record,) = found.records
            assert (record.outcome, record.error) == ("cancelled", "client")

    run(scenario())


def test_a_client_that_leaves_while_connecting_frees_its_count(tmp_path: Path) -> None:
    """Leaves between decision and connect."""

    async def scenario() -> None:
        # Its line of connections is full, so connecting waits.
        with socket.create_server(("127.0.0.1", 0), backlog=0) as stuck, contextlib.ExitStack() as line:
            for _ in range(8):
                waiting = line.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(stuck.getsockname())
            async with running(tmp_path, [[f"http://127.0.0.1:{stuck.getsockname()[1]}/v1"]]) as found:
                task = asyncio.create_task(found.post())
                while not found.counts():
                    await asyncio.sleep(0.001)
                task.cancel()
                await found.settle()
                assert found.records[0].outcome == "cancelled"

    run(scenario())


# Servers


def test_a_hung_server_is_left_out_and_its_requests_are_answered_elsewhere(tmp_path: Path) -> None:
    """Healthy but hung (vllm#39863, Fastllm-proxy#19); one bad one blocks all (production-stack#749)."""

    async def hung(call: Call) -> None:
        if call.body.get("stream"):
            await call.begin_stream()
            await call.chunk(b'data: {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}\n\n')
        await call.left()

    async def scenario() -> None:
        async with backend(hung) as (bad, made), backend(answer) as (good, _):
            given = with_timeouts([[good], [bad]], retries=PLENTY, breaker=Breaker(failures=2, open_s=60.0))
            async with started(given, tmp_path) as found:
                for _ in range(6):
                    async with found.session.post(
                        f"{found.address}/v1/completions",
                        json={"model": "besteffort", "prompt": "a", "stream": True},
                        headers=PATIENT,
                    ) as response:
                        assert b'"text": "2"' in await response.read()
                assert len(made.calls) == 2
                assert found.counts() == 0
                assert [record.attempts for record in found.records] == [2, 2, 1, 1, 1, 1]

    run(scenario())


@pytest.mark.parametrize("starved", [False, True])
def test_a_server_is_not_blamed_where_the_gateway_itself_stands_still(tmp_path: Path, starved: bool) -> None:
    """A good server is ejected under load (ray#54070)."""

    async def hung(call: Call) -> None:
        await call.left()

    async def stand_still() -> None:
        while starved:
            time.sleep(0.2)
            await asyncio.sleep(0.05)

    async def scenario() -> None:
        async with backend(hung) as (url, _):
            settings = {"retries": Retries(most=0), "breaker": Breaker(failures=1, open_s=60.0, longest_s=60.0)}
            async with started(with_timeouts([[url]], **settings), tmp_path) as found:
                still = asyncio.create_task(stand_still())
                status, body, _ = await found.post(stream=True, headers=PATIENT)
                still.cancel()
                assert (status, body["error"]["code"]) == (504, "first_token_timeout")
                (place,) = found.gateway.core.snapshot.places
                assert place.state.breaker.allows(found.gateway.core.now()) == starved

    run(scenario())


def test_servers_are_asked_for_nothing_but_answers(tmp_path: Path) -> None:
    """Worker dead, `/health` says ok for ever; gauges are stale or late (vllm#29928, #49538): neither is asked for."""

    async def scenario() -> None:
        async with backend(answer) as (url, made), running(tmp_path, [[url]]) as found:
            for _ in range(3):
                await found.post()
            await found.gateway.tick()
            async with found.session.get(f"{found.address}/ready") as response:
                assert response.status == 200
            assert [call.path for call in made.calls] == ["/v1/completions"] * 3

    run(scenario())


def test_a_plain_request_to_a_hung_server_ends_with_its_time(tmp_path: Path) -> None:
    """No time-out (production-stack#749)."""

    async def hung(call: Call) -> None:
        await call.left()

    async def scenario() -> None:
        async with backend(hung) as (url, _):
            given = with_timeouts([[url]], dataclasses.replace(FAST, total_s=0.2))
            async with started(given, tmp_path) as found:
                status, body, _ = await found.post()
                assert (status, body["error"]["code"]) == (504, "timeout")
                assert found.counts() == 0

    run(scenario())


def test_a_server_that_dies_at_the_first_request_is_no_loss(tmp_path: Path) -> None:
    async def dies(call: Call) -> None:
        call.reset()

    async def scenario() -> None:
        async with (
            backend(dies) as (bad, _),
            backend(answer) as (good, _),
            running(tmp_path, [[good], [bad]], retries=PLENTY) as found,
        ):
            for stream in (False, True):
                body = {"model": "besteffort", "prompt": "a", "stream": stream}
                async with found.session.post(
                    f"{found.address}/v1/completions", json=body, headers=PATIENT
                ) as response:
                    assert response.status == 200
                    assert response.headers["x-besteffort-model"] == MODELS[0]
                    await response.read()

    run(scenario())


def test_a_server_that_is_not_there_is_no_loss(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            backend(answer) as (good, _),
            running(tmp_path, [[good], ["http://127.0.0.1:9/v1"]], retries=PLENTY) as found,
        ):
            status, _, _ = await found.post(headers=PATIENT)
            assert status == 200
            assert found.records[0].attempts == 2

    run(scenario())


def test_a_server_is_not_blamed_where_the_gateway_has_no_descriptors(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with backend(answer) as (url, _), running(tmp_path, [[url]]) as found:
            async with found.session.get(f"{found.address}/health") as response:
                await response.read()  # the client is connected
            with no_descriptors():
                for _ in range(4):
                    status, body, _ = await found.post()
                    assert (status, body["error"]["code"]) == (503, "no_descriptors")
            status, _, _ = await found.post()
            assert status == 200

    run(scenario())


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """None is to be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (sum(1 for _ in Path("/dev/fd").iterdir()) + 64, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_server_recovers_after_failures(tmp_path: Path) -> None:
    """Never recovers after a spike (litellm#30192)."""

    async def scenario() -> None:
        async with (
            backend(unavailable) as (url, made),
            running(tmp_path, [[url]], breaker=Breaker(failures=2)) as found,
        ):
            statuses = [(await found.post())[0] for _ in range(6)]
            assert statuses == [502, 502, 503, 503, 503, 503]
            assert len(made.calls) == 2
            async with found.session.get(f"{found.address}/ready") as response:
                assert response.status == 503
            made.behaviour = answer
            await asyncio.sleep(1.05)
            done = await asyncio.gather(*(found.post() for _ in range(4)))
            # One of them tried it, the others were refused meanwhile.
            assert sorted({status for status, _, _ in done}) in ([200], [200, 503])
            assert [(await found.post())[0] for _ in range(3)] == [200] * 3

    run(scenario())


def test_a_busy_server_is_left_alone_and_another_answers(tmp_path: Path) -> None:
    """Retry-After of an hour parks a backend."""

    async def busy(call: Call) -> None:
        await call.respond(429, {"error": {"message": "slow down"}}, {"retry-after": "3600"})

    async def scenario() -> None:
        async with (
            backend(busy) as (bad, made),
            backend(answer) as (good, _),
            running(tmp_path, [[good], [bad]], retries=PLENTY, breaker=Breaker(longest_s=20.0)) as found,
        ):
            for _ in range(3):
                assert (await found.post(headers=PATIENT))[0] == 200
            assert len(made.calls) == 1
            core = found.gateway.core
            waits = [place.state.breaker.opens_in_s(core.now()) for place in core.snapshot.places]
            assert waits[0] == 0.0
            assert 0.0 < waits[1] <= 20.0

    run(scenario())


def test_a_request_that_only_busy_servers_get_failed_and_was_not_wrong(tmp_path: Path) -> None:
    async def busy(call: Call) -> None:
        await call.respond(429, {"error": {"message": "slow down"}}, {"retry-after": "1"})

    async def scenario() -> None:
        async with backend(busy) as (url, _), running(tmp_path, [[url]]) as found:
            status, body, headers = await found.post()
            assert (status, body["error"]["code"], headers["retry-after"]) == (429, "busy", "1")
            assert [(record.outcome, record.error) for record in found.records] == [("failed", "busy")]

    run(scenario())


def test_a_wrong_request_is_not_tried_elsewhere_and_blames_nobody(tmp_path: Path) -> None:
    async def refuses(call: Call) -> None:
        await call.respond(400, {"detail": "temperature is out of range"})

    async def scenario() -> None:
        async with (
            backend(refuses) as (url, made),
            backend(answer) as (good, _),
            running(tmp_path, [[good], [url]], breaker=Breaker(failures=1)) as found,
        ):
            for _ in range(3):
                status, body, _ = await found.post()
                assert status == 400
                assert body["error"] == {
                    "message": "temperature is out of range",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": None,
                }
            assert len(made.calls) == 3
            assert {record.outcome for record in found.records} == {"invalid"}

    run(scenario())


def test_what_is_wrong_with_a_request_may_come_in_parts(tmp_path: Path) -> None:
    async def refuses(call: Call) -> None:
        await call.send(b"HTTP/1.1 400 X\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        await call.chunk(b'{"error": {"message": "too ')
        await asyncio.sleep(0.05)
        await call.chunk(b'long", "code": "context_length_exceeded"}}')
        await call.end_stream()

    async def scenario() -> None:
        async with backend(refuses) as (url, _), running(tmp_path, [[url]]) as found:
            status, body, _ = await found.post()
            assert (status, body["error"]["message"]) == (400, "too long")
            assert body["error"]["code"] == "context_length_exceeded"

    run(scenario())


# Streams


def test_events_and_letters_cut_at_any_byte(tmp_path: Path) -> None:
    raw = event("Größe ") + event("€ 漢字") + event("", "stop") + USAGE + DONE

    async def cut(call: Call) -> None:
        await call.begin_stream()
        for at in range(len(raw)):
            await call.chunk(raw[at : at + 1])
        await call.end_stream()

    async def scenario() -> None:
        async with backend(cut) as (url, _), running(tmp_path, [[url]]) as found:
            assert await found.stream() == raw.replace(USAGE, b"")
            assert await found.stream(stream_options={"include_usage": True}) == raw
            assert [record.output_tokens for record in found.records] == [2, 2]

    run(scenario())


@pytest.mark.parametrize("how", ["reset", "end", "close"])
def test_a_stream_that_breaks_becomes_an_error_event(tmp_path: Path, how: str) -> None:
    """Reset becomes a clean end (open-webui#29628, litellm PR#33222); glued to half a line (codex-router PR#111)."""

    async def breaks(call: Call) -> None:
        if how == "close":
            await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            await call.send(event("4") + b'data: {"choices": [{"ind')
            call.writer.close()
            return
        await call.begin_stream()
        await call.chunk(event("4"))
        await call.chunk(b'data: {"choices": [{"ind')
        await asyncio.sleep(0.05)
        if how == "reset":
            call.reset()
        else:
            await call.end_stream()

    async def scenario() -> None:
        async with backend(breaks) as (url, _), running(tmp_path, [[url]]) as found:
            raw = await found.stream()
            assert raw.startswith(event("4") + b"\n\ndata: ")
            last = json.loads(raw.removeprefix(event("4")).strip().removeprefix(b"data: "))
            assert last["error"]["code"] in ("reset", "cut_short")
            assert b"[DONE]" not in raw
            assert found.records[0].outcome == "failed"
            assert found.counts() == 0

    run(scenario())


def test_a_stream_that_falls_silent_becomes_an_error_event(tmp_path: Path) -> None:
    async def silent(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(event("4"))
        await call.left()

    async def scenario() -> None:
        async with backend(silent) as (url, _), started(with_timeouts([[url]]), tmp_path) as found:
            raw = await found.stream()
            assert b'"code": "between_tokens_timeout"' in raw
            await found.settle()

    run(scenario())


def test_an_error_event_before_the_first_token_goes_elsewhere(tmp_path: Path) -> None:
    async def fails(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(b'data: {"error": {"message": "no memory"}}\n\n')
        await call.end_stream()

    async def scenario() -> None:
        async with (
            backend(fails) as (bad, _),
            backend(answer) as (good, _),
            running(tmp_path, [[good], [bad]], retries=PLENTY) as found,
        ):
            assert b'"text": "2"' in await found.stream()
            assert found.records[0].attempts == 2

    run(scenario())


def test_a_missing_done_is_added(tmp_path: Path) -> None:
    async def lacks(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(event("42") + event("", "stop"))
        await call.end_stream()

    async def scenario() -> None:
        async with backend(lacks) as (url, _), running(tmp_path, [[url]]) as found:
            assert await found.stream() == event("42") + event("", "stop") + DONE
            assert found.records[0].outcome == "answered"

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_nobody_waits_for_the_end_of_an_answer_that_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(upstream, "_END_S", 3600.0)

    async def stays_open(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(WHOLE)
        await call.left()

    async def scenario() -> None:
        async with backend(stays_open) as (url, made):
            pools = tuple(dataclasses.replace(pool, assemble=True) for pool in config([[url]]).pools)
            async with running(tmp_path, [[url]], pools=pools) as found:
                for _ in range(2):  # on one connection
                    if stream:
                        assert b"[DONE]" in await found.stream()
                    else:
                        assert (await found.post())[1]["choices"][0]["text"] == "42"
                assert [record.outcome for record in found.records] == ["answered"] * 2
                assert made.open == 2
            while made.open:  # the end of the gateway is that of its connections
                await asyncio.sleep(0.01)

    run(scenario())


def test_silence_is_filled_with_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long silence kills the stream."""
    monkeypatch.setattr("besteffort.gateway.server._SILENCE_S", 0.05)

    async def slow(call: Call) -> None:
        await call.begin_stream()
        await asyncio.sleep(0.15)
        await call.chunk(event("4"))
        await asyncio.sleep(0.15)
        await call.chunk(event("", "stop") + DONE)
        await call.end_stream()

    async def scenario() -> None:
        async with backend(slow) as (url, _), running(tmp_path, [[url]]) as found:
            raw = await found.stream()
            assert raw.count(b": waiting\n\n") >= 2
            assert raw.replace(b": waiting\n\n", b"") == event("4") + event("", "stop") + DONE

    run(scenario())


def test_silence_before_the_headers_is_filled_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that begin their answer with the first token, after another one that failed without a word."""
    monkeypatch.setattr("besteffort.gateway.server._SILENCE_S", 0.1)

    async def hangs(call: Call) -> None:
        await call.left()

    async def late(call: Call) -> None:
        await asyncio.sleep(0.25)
        await answer(call)

    async def scenario() -> None:
        timeouts = Timeouts(first_token_s=0.4)
        async with backend(late) as (good, _), backend(hangs) as (bad, made):
            given = with_timeouts([[good], [bad]], timeouts, retries=PLENTY)
            async with started(given, tmp_path) as found:
                body = {"model": "besteffort", "prompt": "a", "stream": True}
                url = f"{found.address}/v1/completions"
                async with found.session.post(url, json=body, headers=PATIENT) as response:
                    raw = await response.read()
                assert raw.count(b": waiting\n\n") >= 4
                assert b"".join(raw.split(b": waiting\n\n")).endswith(DONE)
                assert found.records[0].attempts == 2
                await found.settle()
                while made.open:  # of the one that was given up
                    await asyncio.sleep(0.01)

    run(scenario())


def test_comments_of_a_server_before_the_first_token_are_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are held back with all else that comes before the first token."""
    monkeypatch.setattr("besteffort.gateway.server._SILENCE_S", 0.1)

    async def pings(call: Call) -> None:
        await call.begin_stream()
        for _ in range(10):
            await asyncio.sleep(0.04)
            await call.chunk(b": processing\n\n")
        await call.chunk(event("4") + event("", "stop") + DONE)
        await call.end_stream()

    async def scenario() -> None:
        async with backend(pings) as (url, _), running(tmp_path, [[url]]) as found:
            before, _, after = (await found.stream()).partition(b": processing\n\n")
            assert before.count(b": waiting\n\n") >= 2
            assert after.endswith(event("4") + event("", "stop") + DONE)

    run(scenario())


def test_a_wrong_request_after_comments_is_an_error_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("besteffort.gateway.server._SILENCE_S", 0.05)

    async def breaks(call: Call) -> None:
        await call.begin_stream()
        await asyncio.sleep(0.15)
        call.reset()

    async def refuses(call: Call) -> None:
        await call.respond(400, {"error": {"message": "too long for this model", "code": "context_length_exceeded"}})

    async def scenario() -> None:
        async with (
            backend(breaks) as (bad, _),
            backend(refuses) as (small, _),
            running(tmp_path, [[small], [bad]], retries=PLENTY) as found,
        ):
            raw = await found.stream()
            comments, _, last = raw.partition(b"\n\ndata: ")
            assert comments.startswith(b": waiting\n\n")
            assert json.loads(last)["error"]["message"] == "too long for this model"
            (record,) = found.records
            assert (record.outcome, record.error) == ("invalid", "context_length_exceeded")

    run(scenario())


def test_a_failure_inside_writes_no_second_answer_into_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async def in_parts(call: Call) -> None:
            await call.begin_stream()
            await call.chunk(event("4"))
            await asyncio.sleep(0.05)
            await call.chunk(event("", "stop") + DONE)
            await call.end_stream()

        async with backend(in_parts) as (url, _), running(tmp_path, [[url]]) as found:

            def fail(*_: object, **__: object) -> None:
                raise RuntimeError

            monkeypatch.setattr(found.gateway.core, "finished", fail)
            body = {"model": "besteffort", "prompt": "a", "stream": True}
            async with found.session.post(f"{found.address}/v1/completions", json=body) as response:
                assert await response.content.readany() == event("4")
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.content.read()
            assert [record.error for record in found.records] == ["internal_error"]
            assert found.counts() == 0

    run(scenario())


def test_a_server_that_does_not_stream_is_another_failure(tmp_path: Path) -> None:
    async def plain(call: Call) -> None:
        await call.respond(200, completion())

    async def scenario() -> None:
        async with backend(plain) as (url, _), running(tmp_path, [[url]]) as found:
            status, body, _ = await found.post(stream=True)
            assert (status, body["error"]["code"]) == (502, "no_stream")

    run(scenario())


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"error": "no memory"}', b"\xff"])
def test_an_answer_that_is_none_is_a_failure(tmp_path: Path, raw: bytes) -> None:
    async def nonsense(call: Call) -> None:
        await call.respond(200, raw)

    async def scenario() -> None:
        async with backend(nonsense) as (url, _), running(tmp_path, [[url]]) as found:
            status, body, _ = await found.post()
            assert (status, body["error"]["code"]) == (502, "not_json")

    run(scenario())


# Usage


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": None, "completion_tokens": -3}, [1], "many"])
def test_usage_that_is_none_does_no_harm(tmp_path: Path, usage: object) -> None:
    async def odd(call: Call) -> None:
        await call.respond(200, completion(usage=usage))

    async def scenario() -> None:
        async with backend(odd) as (url, _), running(tmp_path, [[url]]) as found:
            status, body, _ = await found.post()
            assert (status, body["usage"]) == (200, usage)
            assert found.records[0].output_tokens == 0

    run(scenario())


# Operations


def test_many_requests_through_many_faults_lose_none(tmp_path: Path) -> None:
    """Every request ends with an answer or an error, and all counts are 0 at the end."""
    kinds = [answer, unavailable, answer, answer]

    async def moody(call: Call) -> None:
        seed = len(call.raw) + int(call.headers["x-request-id"][1:])
        if seed % 7 == 0:
            call.reset()
        elif seed % 11 == 0:
            await call.begin_stream()
            await call.chunk(event("4"))
            call.reset()
        else:
            await kinds[seed % 4](call)

    async def scenario() -> None:
        async with backend(moody) as (one, _), backend(moody) as (two, _), backend(answer) as (three, _):
            settings = {"retries": PLENTY, "breaker": Breaker(failures=5, open_s=0.02, longest_s=0.05)}
            async with running(tmp_path, [[one, two], [three]], **settings) as found:
                ended = []

                async def ask(number: int) -> None:
                    body = {"model": "besteffort", "prompt": "a" * (number % 50), "stream": number % 2 == 0}
                    headers = PATIENT | {"x-request-id": f"r{number}"}
                    post = found.session.post(f"{found.address}/v1/completions", json=body, headers=headers)
                    if number % 13 == 0:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(0.002), post as response:
                                await response.read()
                        return
                    async with post as response:
                        raw = await response.read()
                        whole = b"[DONE]" in raw or b'"usage"' in raw
                        ended.append((whole, b'"error"' in raw))

                for start in range(0, 300, 20):
                    await asyncio.gather(*(ask(number) for number in range(start, start + 20)))
                await found.settle()
                assert all(whole != error for whole, error in ended)
                assert sum(whole for whole, _ in ended) > 150
                assert found.gateway.core.expired == 0

    run(scenario())


def test_the_limit_of_connections_holds(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            backend(answer) as (url, _),
            running(tmp_path, [[url]], listen=Listen(port=0, connections=2, drain_s=0.0)) as found,
        ):
            port = int(found.address.rpartition(":")[2])
            pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            await asyncio.sleep(0.05)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
            for _, other in (*pairs, (reader, writer)):
                other.close()

    run(scenario())


def test_limits_of_connections_change_with_the_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with backend(answer) as (url, _), running(tmp_path, [[url]]) as found:
            core, long = found.gateway.core, {"x-a": "b" * 500}
            assert (await found.post(headers=long))[0] == 200
            listen = Listen(header_bytes=400, header_s=0.05)
            config = dataclasses.replace(core.snapshot.config, listen=listen)
            core.replace(dataclasses.replace(core.snapshot, config=config))
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{found.address}/health", headers=long) as response,
            ):
                assert response.status == 400
            reader, writer = await asyncio.open_connection("127.0.0.1", int(found.address.rpartition(":")[2]))
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()

    run(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="needs TCP_USER_TIMEOUT")
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_reads_no_more_holds_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr("besteffort.gateway.http._UNREAD_S", 0.5)
    sent = json.dumps({"model": "besteffort", "prompt": "a", "stream": stream}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"

    async def large(call: Call) -> None:
        if not call.body.get("stream"):
            await call.respond(200, completion("a" * 2**24))
            return
        await call.begin_stream()
        while True:
            await call.chunk(event("a" * 2**15))

    async def scenario() -> None:
        async with backend(large) as (url, made):
            given = with_timeouts([[url]])
            given = dataclasses.replace(given, listen=Listen(port=0, connections=1, drain_s=0.0))
            async with started(given, tmp_path) as found:
                _, writer = await asyncio.open_connection("127.0.0.1", int(found.address.rpartition(":")[2]))
                writer.transport.pause_reading()
                writer.write(head % len(sent) + sent)
                while not found.records:
                    await asyncio.sleep(0.01)
                made.behaviour = answer
                async with asyncio.timeout(20):
                    while True:
                        with contextlib.suppress(aiohttp.ClientError):
                            assert (await found.post())[0] == 200
                            break
                        await asyncio.sleep(0.1)
                writer.transport.abort()

    run(scenario())


def test_an_end_waits_until_answers_are_sent(tmp_path: Path) -> None:
    """A long answer is done before a slow client has it."""
    text = "a" * 2**24

    async def long(call: Call) -> None:
        await call.respond(200, completion(text))

    async def scenario() -> None:
        listen = Listen(port=0, drain_s=20.0)
        async with backend(long) as (url, _), running(tmp_path, [[url]], listen=listen) as found:
            host, port = found.address.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            body = b'{"model": "besteffort", "prompt": "a"}'
            head = f"host: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
            writer.write(f"POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n".encode() + body)
            answered = await reader.readuntil(b"\r\n\r\n")
            length = int(answered.lower().partition(b"content-length: ")[2].split(b"\r")[0])
            draining = asyncio.create_task(found.gateway.drain())
            await asyncio.sleep(0.1)
            assert not found.counts()
            assert not draining.done()
            assert json.loads(await reader.readexactly(length))["choices"][0]["text"] == text
            await asyncio.wait_for(draining, 10)
            writer.close()

    run(scenario())


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/completions HTT", b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nx-a: b"]
)
def test_half_a_header_holds_no_connection(tmp_path: Path, sent: bytes) -> None:
    """Slow headers."""

    async def scenario() -> None:
        async with (
            backend(answer) as (url, _),
            running(tmp_path, [[url]], listen=Listen(port=0, header_s=0.3, drain_s=0.0)) as found,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(found.address.rpartition(":")[2]))
            writer.write(sent)
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 5)
            writer.close()

    run(scenario())


def test_half_a_body_holds_no_connection_and_counts_nowhere(tmp_path: Path) -> None:
    """Slow bodies."""

    async def scenario() -> None:
        async with (
            backend(answer) as (url, made),
            running(tmp_path, [[url]], listen=Listen(port=0, body_s=0.2, drain_s=0.0)) as found,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(found.address.rpartition(":")[2]))
            head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            writer.write(head + b"content-length: 100\r\n\r\n{")
            assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 408")
            assert found.counts() == 0
            assert not made.calls
            writer.close()

    run(scenario())


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 40\r\ntransfer-encoding: chunked\r\n\r\n",
        b"content-length: 2\r\ncontent-length: 40\r\n\r\n",
        b"content-length: +2\r\n\r\n",
        b"x-a: b\r\n folded\r\ncontent-length: 2\r\n\r\n",
        b"content-length: 2\n\n",
        b"x-large: " + b"a" * 20_000 + b"\r\n\r\n",
    ],
)
def test_smuggled_requests_are_refused(tmp_path: Path, head: bytes) -> None:
    """Smuggling (h11 CVE-2025-43859)."""

    async def scenario() -> None:
        async with backend(answer) as (url, made), running(tmp_path, [[url]]) as found:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(found.address.rpartition(":")[2]))
            writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n" + head)
            writer.write(b"{}GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")
            raw = await asyncio.wait_for(reader.read(), 5)
            assert raw.partition(b" ")[2].startswith(b"400")
            assert b"x-request-id: req-" in raw.lower()
            assert (
                json.loads(raw.rpartition(b"\r\n\r\n")[2])["error"]["message"] == "The request is no well-formed HTTP."
            )
            assert raw.count(b"HTTP/") == 1
            assert not made.calls
            writer.close()

    run(scenario())


def test_a_body_beyond_its_limit_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            backend(answer) as (url, made),
            running(tmp_path, [[url]], listen=Listen(port=0, body_bytes=1000, drain_s=0.0)) as found,
        ):
            status, body, _ = await found.post(prompt="a" * 2000)
            assert (status, body["error"]["code"]) == (413, "too_large")

            async def parts() -> object:
                for _ in range(100):
                    yield b" " * 100

            with contextlib.suppress(aiohttp.ClientError):
                async with found.session.post(
                    f"{found.address}/v1/completions",
                    data=parts(),
                    headers={"content-type": "application/json"},
                ) as response:
                    assert response.status == 413
            assert not made.calls

    run(scenario())


def test_a_server_without_completions_serves_chat(tmp_path: Path) -> None:
    """llm-katan."""

    async def chat_only(call: Call) -> None:
        if call.path.endswith("/chat/completions"):
            await answer_chat(call)
        else:
            await call.respond(404, {"detail": "Not Found"})

    async def scenario() -> None:
        messages = {"model": "besteffort", "messages": [{"role": "user", "content": "6 x 7?"}]}
        async with (
            backend(chat_only) as (url, lacking),
            backend(answer) as (other, _),
            running(tmp_path, [[url], [other]], retries=Retries(share=1.0)) as found,
        ):
            for _ in range(8):
                status, _, headers = await found.post()
                assert (status, headers["x-besteffort-model"]) == (200, MODELS[1])
            # Three failures in a row, and it is asked for completions no more.
            assert len(lacking.calls) <= 3
            found.gateway.core.snapshot.places.by_pool[1][0].state.breaker.busy(False, 30.0, found.gateway.core.now())
            async with found.session.post(f"{found.address}/v1/chat/completions", json=messages) as response:
                assert response.status == 200, await response.read()
                assert response.headers["x-besteffort-model"] == MODELS[0]
            assert found.counts() == 0

    run(scenario())
