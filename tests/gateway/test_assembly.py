"""Answers that are put together say what whole ones say, and their tokens are seen."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from besteffort.gateway.assembly import Assembly, can_assemble
from besteffort.gateway.config import GatewayConfig, Listen, Retries, Timeouts
from tests.gateway.backends import Call, answer, answer_chat, backend, event, run, started
from tests.gateway.policies import MODELS, config


def assembling(urls: list[list[str]], **timeouts: float) -> GatewayConfig:
    given = config(urls, listen=Listen(port=0, drain_s=0.0), retries=Retries(most=2, share=1.0))
    pools = (dataclasses.replace(pool, assemble=True, timeouts=Timeouts(**timeouts)) for pool in given.pools)
    return dataclasses.replace(given, pools=tuple(pools))


def test_texts_of_choices_are_joined_and_the_rest_is_kept() -> None:
    assembly = Assembly(chat=False)
    head = {"id": "c", "created": 3, "model": "m", "object": "chunk"}
    for index, text, finish in ((1, "x", None), (0, "a", None), (0, "b", "stop"), (1, "", "length")):
        choice = {"index": index, "text": text, "finish_reason": finish, "stop_reason": None}
        assembly.add({**head, "choices": [choice]})
    assembly.add({**head, "choices": [], "usage": {"prompt_tokens": 1}})
    assert assembly.whole() == {
        "id": "c",
        "created": 3,
        "model": "m",
        "object": "text_completion",
        "choices": [
            {"index": 0, "text": "ab", "finish_reason": "stop", "stop_reason": None},
            {"index": 1, "text": "x", "finish_reason": "length", "stop_reason": None},
        ],
        "usage": {"prompt_tokens": 1},
    }


def test_messages_are_joined() -> None:
    assembly = Assembly(chat=True)
    for delta in (
        {"role": "assistant", "content": None},
        {"reasoning_content": "so"},
        {"content": "4"},
        {"content": "2"},
    ):
        assembly.add({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    assembly.add({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    (choice,) = assembly.whole()["choices"]
    assert choice["message"] == {"role": "assistant", "content": "42", "reasoning_content": "so"}
    assert choice["finish_reason"] == "stop"
    assert "usage" not in assembly.whole()


@pytest.mark.parametrize("chunk", [{}, {"choices": None}, {"choices": [3]}, {"choices": [{"index": [], "text": 3}]}])
@pytest.mark.parametrize("chat", [False, True])
def test_odd_chunks_do_no_harm(chunk: dict[str, Any], chat: bool) -> None:
    assembly = Assembly(chat=chat)
    assembly.add(chunk)
    assembly.add({"choices": [{"index": 0, "delta": 3, "text": None}]})
    json.dumps(assembly.whole())


def test_only_text_is_put_together() -> None:
    assert can_assemble({"prompt": "a", "logprobs": None, "echo": False})
    assert can_assemble({"tools": [], "return_token_ids": False})
    for name in ("logprobs", "tools", "best_of", "echo"):
        assert not can_assemble({name: [1]})
    # Each chunk has those of its own tokens, and only these.
    for asked in ({"logprobs": 0}, {"prompt_logprobs": 0}, {"return_token_ids": True}):
        assert not can_assemble(asked)


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_client_gets_the_same_whichever_way(tmp_path: Path, path: str) -> None:
    async def scenario() -> None:
        behaviour = answer_chat if path.startswith("chat") else answer
        async with backend(behaviour) as (url, made), started(assembling([[url]]), tmp_path) as found:
            body = {"model": "besteffort", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
            got = []
            for further in ({}, {"logprobs": 1}):
                post = found.session.post(f"{found.address}/v1/{path}", json={**body, **further})
                async with post as response:
                    assert response.status == 200
                    got.append(await response.json())
            assert [call.body.get("stream") for call in made.calls] == [True, None]
            put_together, whole = got
            assert put_together["object"] == whole["object"]
            assert put_together["choices"] == whole["choices"]
            assert put_together["usage"] == whole["usage"]
            assert [record.ttft_s is not None for record in found.records] == [True, False]

    run(scenario())


def test_a_server_that_hangs_or_breaks_is_no_loss_to_clients_that_want_all_at_once(tmp_path: Path) -> None:
    async def hangs(call: Call) -> None:
        await call.begin_stream()
        await call.left()

    async def breaks(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(event("4"))
        call.reset()

    async def scenario() -> None:
        for behaviour in (hangs, breaks):
            async with backend(behaviour) as (bad, _), backend(answer) as (good, _):
                given = assembling([[good], [bad]], first_token_s=2.0)
                async with started(given, tmp_path) as found:
                    status, body, headers = await found.post(headers={"x-besteffort-deadline-ms": "60000"})
                    assert (status, headers["x-besteffort-model"]) == (200, MODELS[0])
                    assert body["choices"][0]["text"] == "42"
                    assert found.counts() == 0

    run(scenario())


def test_a_client_that_leaves_frees_the_server(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def slow(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(event("4"))
        await call.left()
        gone.set()

    async def scenario() -> None:
        async with backend(slow) as (url, made), started(assembling([[url]]), tmp_path) as found:
            task = asyncio.create_task(found.post())
            while not made.calls:
                await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.wait_for(gone.wait(), 10)
            await found.settle()
            assert found.records[0].outcome == "cancelled"

    run(scenario())
