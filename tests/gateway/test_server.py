"""The API as clients see it, through the real thing: headers, models, keys, the OpenAI SDK."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import openai
import pytest

from besteffort.gateway.config import Breaker, Key, Listen, Pool, Retries
from besteffort.gateway.core import Ask
from tests.gateway.backends import (
    DONE,
    WHOLE,
    Call,
    Running,
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

SECRET, SERVERS = "sk-client-0123456789abcdef", "sk-server-fedcba9876543210"


def client(found: Running, key: str = "none-is-needed", **settings: object) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{found.address}/v1", api_key=key, **{"max_retries": 0, **settings})


def test_the_openai_sdk_gets_plain_answers_streams_and_errors(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with backend(answer_chat) as (url, made), running(tmp_path, [[url]]) as found, client(found) as sdk:
            names = [model.id async for model in sdk.models.list()]
            assert names[:2] == ["besteffort", "besteffort:piqa"]
            messages = [{"role": "user", "content": "What is 40 + 2?"}]
            plain = await sdk.chat.completions.create(model="besteffort:piqa", messages=messages, max_tokens=5)
            assert plain.choices[0].message.content == "42"
            assert plain.usage is not None
            stream = await sdk.chat.completions.create(model="besteffort", messages=messages, stream=True)
            chunks = [chunk async for chunk in stream]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "42"
            assert all(chunk.usage is None for chunk in chunks)
            with pytest.raises(openai.NotFoundError) as missing:
                await sdk.chat.completions.create(model="gpt-7", messages=messages)
            assert missing.value.code == "model_not_found"
            assert made.calls[0].body["model"] == MODELS[0]
            assert made.calls[0].body["max_tokens"] == 5

    run(scenario())


def test_the_openai_sdk_sees_a_stream_that_breaks(tmp_path: Path) -> None:
    async def breaks(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(event("4"))
        await asyncio.sleep(0.1)  # a break that comes with the token may be seen before it
        call.reset()

    async def scenario() -> None:
        async with backend(breaks) as (url, _), running(tmp_path, [[url]]) as found, client(found) as sdk:
            stream = await sdk.completions.create(model="besteffort", prompt="a", stream=True)
            with pytest.raises(openai.APIError):
                async for _ in stream:
                    pass

    run(scenario())


def test_the_openai_sdk_tries_again_when_it_is_told_to(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def fails_once(call: Call) -> None:
            if len(made.calls) == 1:
                await call.respond(500, {"detail": "not yet"})
            else:
                await answer(call)

        async with (
            backend(fails_once) as (url, made),
            running(tmp_path, [[url]], retries=Retries(most=0), breaker=Breaker(failures=1, open_s=0.05)) as found,
            client(found, max_retries=2) as sdk,
        ):
            answered = await sdk.completions.create(model="besteffort", prompt="a")
            assert answered.choices[0].text == "42"
            assert [record.outcome for record in found.records][:1] == ["failed"]

    run(scenario())


def test_a_request_that_the_sdk_gives_up_frees_its_count(tmp_path: Path) -> None:
    async def hung(call: Call) -> None:
        await call.left()

    async def scenario() -> None:
        async with backend(hung) as (url, _), running(tmp_path, [[url]]) as found, client(found, timeout=0.3) as sdk:
            with pytest.raises(openai.APITimeoutError):
                await sdk.completions.create(model="besteffort", prompt="a")
            await found.settle()
            (record,) = found.records
            assert record.outcome == "cancelled"
            assert record.deadline_s <= 0.4

    run(scenario())


def test_clients_are_told_what_was_decided_and_servers_nothing_else(tmp_path: Path) -> None:
    async def leaks(call: Call) -> None:
        await call.respond(200, completion(), {"set-cookie": "a=b", "server": "secret/1.0", "x-inner": "yes"})

    async def scenario() -> None:
        async with backend(leaks) as (url, made), running(tmp_path, [[url]]) as found:
            sent = {
                "authorization": "Bearer of-the-client",
                "cookie": "session=1",
                "x-besteffort-task": "arc_easy",
                "x-besteffort-deadline-ms": "5000",
                "x-request-id": "mine-1",
                "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            }
            status, _, headers = await found.post(headers=sent)
            assert status == 200
            assert headers["x-request-id"] == "mine-1"
            assert headers["x-besteffort-model"] == MODELS[0]
            assert headers["x-besteffort-pool"] == "pool-0"
            assert headers["x-besteffort-task"] == "arc_easy"
            assert headers["x-besteffort-task-source"] == "header"
            assert re.fullmatch(r"decide;dur=[0-9.]+", headers["server-timing"])
            assert not {"set-cookie", "x-inner"} & {name.lower() for name in headers}
            assert "secret" not in headers.get("server", "")
            (call,) = made.calls
            assert set(call.headers) <= {
                *("host", "accept", "accept-encoding", "content-type", "content-length", "user-agent"),
                *("x-request-id", "traceparent"),
            }
            assert call.headers["x-request-id"] == "mine-1"

    run(scenario())


@pytest.mark.parametrize("stated", ["", "a b", "x" * 200, "é"])
def test_a_request_id_that_is_none_is_replaced(tmp_path: Path, stated: str) -> None:
    async def scenario() -> None:
        async with backend(answer) as (url, _), running(tmp_path, [[url]]) as found:
            _, _, headers = await found.post(headers={"x-request-id": stated})
            assert re.fullmatch("req-[0-9a-f]{24}", headers["x-request-id"])

    run(scenario())


@pytest.mark.parametrize("stated", ["mine-1", "a b"])
def test_every_answer_has_a_request_id(tmp_path: Path, stated: str) -> None:
    async def scenario() -> None:
        async with backend(answer) as (url, _):
            listen = Listen(port=0, drain_s=0.0, body_bytes=4096)
            given = config([[url]], listen=listen, keys=(Key("team", env="TEAM"),))
            async with started(given, tmp_path, {"TEAM": SECRET}) as found:
                sent = {"authorization": f"Bearer {SECRET}", "x-request-id": stated}

                def check(headers: Mapping[str, str]) -> None:
                    assert re.fullmatch("mine-1" if stated == "mine-1" else "req-[0-9a-f]{24}", headers["x-request-id"])

                for expected, fields, others in (
                    (401, {}, {"authorization": "Bearer wrong"}),
                    (404, {"model": "gpt-7"}, {}),
                    (400, {"max_tokens": 0}, {}),
                    (413, {"prompt": "a" * 5000}, {}),
                ):
                    status, _, headers = await found.post(headers=sent | others, **fields)
                    assert status == expected
                    check(headers)
                for path, expected in (("/health", 200), ("/v1/models", 200), ("/v1/completions", 405), ("/no", 404)):
                    async with found.session.get(found.address + path, headers=sent) as response:
                        assert response.status == expected
                        check(response.headers)
                found.gateway.core.draining = True
                status, _, headers = await found.post(headers=sent)
                assert status == 503
                check(headers)

    run(scenario())


def test_keys_are_asked_for_where_there_are_some(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with backend(answer) as (url, _):
            given = config([[url]], listen=Listen(port=0, drain_s=0.0), keys=(Key("team", env="TEAM"),))
            async with started(given, tmp_path, {"TEAM": SECRET}) as found:
                for sent in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {SECRET}"}):
                    for path in ("/v1/models", "/metrics"):
                        async with found.session.get(found.address + path, headers=sent) as response:
                            assert response.status == 401
                    status, body, _ = await found.post(headers=sent)
                    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
                for path in ("/health", "/ready"):
                    async with found.session.get(found.address + path) as response:
                        assert response.status == 200
                status, _, _ = await found.post(headers={"authorization": f"Bearer {SECRET}"})
                assert status == 200
                assert found.records[0].client == "team"

    run(scenario())


def test_other_paths_methods_and_types_are_errors_in_the_same_shape(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with backend(answer) as (url, _), running(tmp_path, [[url]]) as found:
            for method, path, expected in (
                ("GET", "/v1/completions", 405),
                ("HEAD", "/events", 405),
                ("POST", "/v1/embeddings", 404),
                ("GET", "/v1/models/gpt-7", 404),
                ("POST", "/v1/completions", 415),
            ):
                async with found.session.request(method, found.address + path, data="a") as response:
                    assert response.status == expected
                    if method == "HEAD":
                        continue
                    assert set((await response.json())["error"]) == {"message", "type", "param", "code"}
            async with found.session.get(f"{found.address}/v1/models/besteffort:piqa") as response:
                assert (await response.json())["id"] == "besteffort:piqa"

    run(scenario())


def test_a_model_whose_name_has_slashes_is_found(tmp_path: Path) -> None:
    async def scenario() -> None:
        name = "facebook/opt-125m"
        given = {"models": (name,)}
        async with backend(answer) as (url, _), running(tmp_path, [[url]], **given) as found, client(found) as sdk:
            assert (await sdk.models.retrieve(name)).id == name
            async with found.session.get(f"{found.address}/v1/models/{name}") as response:
                assert (await response.json())["id"] == name

    run(scenario())


def test_of_choices_that_interleave_the_longest_counts_as_they_come_and_all_at_the_end(tmp_path: Path) -> None:
    held = asyncio.Event()

    def said(*choices: tuple[int, str], finish: str | None = None) -> bytes:
        parts = [{"index": index, "text": text, "finish_reason": finish} for index, text in choices]
        return b"data: " + json.dumps({"choices": parts}).encode() + b"\n\n"

    async def twice(call: Call) -> None:
        assert call.body["n"] == 2
        await call.begin_stream()
        await call.chunk(b"".join([said((0, "4")), said((1, "3")), said((0, "2"), (1, "8")), said((1, "!"))]))
        await held.wait()
        await call.chunk(said((0, "."), (1, ""), finish="stop") + DONE)
        await call.end_stream()

    async def scenario() -> None:
        async with backend(twice) as (url, _), running(tmp_path, [[url]]) as found:
            core = found.gateway.core
            core.shares = True
            asked = asyncio.create_task(found.stream(n=2, max_tokens=9))
            while not (shown := core.shown()) or not next(iter(shown.values())).tokens:
                await asyncio.sleep(0.01)
            assert [request.tokens for request in shown.values()] == [3]
            held.set()
            assert (await asked).count(b'"text"') == 7
            await found.settle()
            (record,) = found.records
            assert (record.outcome, record.output_tokens) == ("answered", 6)

    run(scenario())


def test_metrics_count_what_happened(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with backend(answer) as (url, made), running(tmp_path, [[url]]) as found:
            for stream in (False, True):
                body = {"model": "besteffort", "prompt": "a", "stream": stream}
                async with found.session.post(f"{found.address}/v1/completions", json=body) as response:
                    await response.read()
            async with found.session.get(f"{found.address}/metrics") as response:
                text = await response.text()
            model = f'model="{MODELS[0]}"'
            assert f'besteffort_requests_total{{{model},outcome="answered",task="piqa"}} 2.0' in text
            assert f'besteffort_requests_in_flight{{{model},pool="pool-0",replica="0"}} 0.0' in text
            assert f"besteffort_generation_tokens_total{{{model}}} 4.0" in text
            assert f"besteffort_time_to_first_token_seconds_count{{{model}}} 1.0" in text
            assert "besteffort_decision_seconds_count 2.0" in text
            assert len(made.calls) == 2

    run(scenario())


def test_metrics_count_requests_that_a_full_or_draining_gateway_refuses(tmp_path: Path) -> None:
    async def scenario() -> None:
        listen = Listen(port=0, requests=1, drain_s=0.0)
        async with backend(answer) as (url, _), running(tmp_path, [[url]], listen=listen) as found:
            core = found.gateway.core
            held = core.arrive(Ask("piqa"), "held")
            for _ in range(2):
                status, body, _ = await found.post()
                assert (status, body["error"]["code"]) == (503, "too_many_requests")
            core.close(held, "failed")
            core.draining = True
            assert (await found.post())[1]["error"]["code"] == "draining"
            async with found.session.get(f"{found.address}/metrics") as response:
                text = await response.text()
            assert 'besteffort_requests_turned_away_total{reason="too_many_requests"} 2.0' in text
            assert 'besteffort_requests_turned_away_total{reason="draining"} 1.0' in text

    run(scenario())


def test_no_key_is_written_anywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Keys in logs (litellm#7603, semantic-router#2132)."""
    written: list[str] = []

    async def quotes_keys(call: Call) -> None:
        assert call.headers["authorization"] == f"Bearer {SERVERS}"
        stated = call.body["prompt"]
        status = {"400": 400, "401": 401, "500": 500}.get(stated)
        if status is not None:
            await call.respond(status, {"error": {"message": f"wrong key {SERVERS}", "code": SERVERS, "type": SERVERS}})
        elif stated == "reset":
            call.reset()
        elif stated == "break":
            await call.begin_stream()
            await call.chunk(event("4"))
            call.reset()
        else:
            await answer(call)

    async def scenario() -> None:
        async with backend(quotes_keys) as (url, _):
            pool = Pool("pool", (url,), MODELS[0], api_key_env="SERVERS")
            given = config(
                [[url]],
                pools=(pool,),
                listen=Listen(port=0, drain_s=0.0),
                keys=(Key("team", env="TEAM"),),
                breaker=Breaker(failures=100),
                request_log="requests.csv",
            )
            async with started(given, tmp_path, {"TEAM": SECRET, "SERVERS": SERVERS}) as found:
                for prompt in ("fine", "400", "401", "500", "reset", "break", f"my key is {SECRET}"):
                    for key in (SECRET, f"{SECRET}x"):
                        async with found.session.post(
                            f"{found.address}/v1/completions",
                            json={"model": "besteffort", "prompt": prompt, "stream": prompt == "break"},
                            headers={"authorization": f"Bearer {key}"},
                        ) as response:
                            written.append(f"{response.headers} {await response.text()}")
                async with found.session.get(
                    f"{found.address}/metrics", headers={"authorization": f"Bearer {SECRET}"}
                ) as response:
                    written.append(await response.text())
                port = int(found.address.rpartition(":")[2])
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(f"POST /v1/models HTTP/1.1\r\nhost: a\r\nauthorization : Bearer {SECRET}\r\n\r\n".encode())
                written.append((await reader.read()).decode())
                assert " 400 " in written[-1]
                writer.close()
                written.append(repr(found.gateway.core.snapshot))
                written.append(repr(vars(found.gateway)))

    with caplog.at_level(logging.DEBUG):
        run(scenario())
    written.append(caplog.text)
    written += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 18
    assert "requests.csv" in {path.name for path in tmp_path.iterdir()}
    for text in written:
        assert SECRET not in text
        assert SERVERS not in text


def test_backends_come_from_the_file_only(tmp_path: Path) -> None:
    """SSRF by `api_base` in a body (litellm#24952, #37053), and by redirects."""

    async def redirects(call: Call) -> None:
        await call.respond(307, b"", {"location": f"{evil_url}/completions"})

    async def scenario() -> None:
        nonlocal evil_url
        async with (
            backend(answer) as (evil_url, evil),
            backend(answer) as (url, made),
            running(tmp_path, [[url]]) as found,
        ):
            status, _, _ = await found.post(api_base=evil_url, base_url=evil_url, headers={"x-api-base": evil_url})
            assert status == 200
            made.behaviour = redirects
            status, _, headers = await found.post()
            assert status == 502
            assert "location" not in headers
            assert len(made.calls) == 2
            assert not evil.calls

    evil_url = ""
    run(scenario())


def test_one_connection_serves_many_streams(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with backend(answer) as (url, made), running(tmp_path, [[url]]) as found:
            for _ in range(5):
                assert await found.stream(stream_options={"include_usage": True}) == WHOLE
            assert len({id(call.writer) for call in made.calls}) == 1
            await asyncio.sleep(0)

    run(scenario())
