"""A list is played at its times, and what came back is counted: answers, lengths, failures."""

from __future__ import annotations

import asyncio
import dataclasses
import resource
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from besteffort.errors import InputError
from besteffort.gateway.events import MOST_BYTES
from besteffort.load.play import Target, play
from besteffort.policy import Policy
from besteffort.situation import Deadline, Origin, Tenant
from besteffort.workload.requests import Requests
from tests.gateway.backends import Call, answer, backend, event, running
from tests.gateway.policies import greedy

SITUATION = greedy().situation


def listed(count: int, gap_s: float = 0.02) -> Requests:
    task = np.arange(count) % 2
    output = np.full(count, 3)
    return Requests(
        SITUATION.task_names,
        arrival_s=gap_s * np.arange(count),
        task=task,
        prompt_tokens=np.full(count, 10),
        output_tokens=output,
        deadline_s=SITUATION.deadlines(task, output),
    )


@contextmanager
def in_thread(begin: Callable[[], AbstractAsyncContextManager[Any]]) -> Iterator[Any]:
    """What a context gives, which is open in an event loop of another thread."""
    ready, over = threading.Event(), None
    found: dict[str, Any] = {}

    async def scenario() -> None:
        nonlocal over
        async with begin() as given:
            over, found["loop"], found["all"] = asyncio.Event(), asyncio.get_running_loop(), given
            ready.set()
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(scenario(),))
    thread.start()
    assert ready.wait(60)
    try:
        yield found["all"]
    finally:
        found["loop"].call_soon_threadsafe(over.set)
        thread.join()


@contextmanager
def serving(folder: Path, behaviour: Any, policy: Policy | None = None) -> Iterator[tuple[str, Any, Any]]:
    """A gateway in front of a server, in a thread of its own: its address, the server and the gateway."""

    @asynccontextmanager
    async def begin() -> AsyncIterator[tuple[str, Any, Any]]:
        async with backend(behaviour) as (url, made), running(folder, [[url]], policy_of=policy) as gateway:
            yield f"{gateway.address}/v1", made, gateway

    with in_thread(begin) as found:
        yield found


@pytest.mark.parametrize("streamed", [True, False])
def test_requests_go_out_at_their_times_with_task_deadline_and_lengths(tmp_path: Path, streamed: bool) -> None:
    with serving(tmp_path, answer) as (url, made, gateway):
        played = play(listed(6), SITUATION, Target(url, streamed=streamed))
        result = played.result
        assert not played.failures
        assert (result.arrival_s >= 0.02 * np.arange(6) - 1e-3).all()
        assert result.output_tokens.tolist() == [2] * 6  # as the server says
        assert result.prompt_tokens.tolist() == [3] * 6
        assert result.deadline_s == pytest.approx(SITUATION.deadlines(result.task, result.output_tokens))
        assert result.model.tolist() == [0] * 6
        quality = SITUATION.profile.quality_table(SITUATION.task_names)[result.task, 0]
        assert result.reward == pytest.approx(np.where(result.met, quality, 0.0))
        assert [call.body["max_tokens"] for call in made.calls] == [3] * 6
        assert made.calls[0].body["prompt"].split() == ["hello"] * 10
        assert sorted({record.task for record in gateway.records}) == sorted(SITUATION.task_names[:2])
        assert {round(ticket.deadline_s, 3) for ticket in gateway.records} == {0.13}


@pytest.mark.parametrize("deadline", [Deadline(0.1, 0.0), Deadline(0.1, 0.0005), Deadline(1e6, 0.0)])
def test_the_gateway_takes_any_deadline_that_a_task_may_have(tmp_path: Path, deadline: Deadline) -> None:
    tasks = tuple(dataclasses.replace(task, deadline=deadline) for task in SITUATION.tasks)
    situation = dataclasses.replace(SITUATION, tasks=tasks)
    with serving(tmp_path, answer, dataclasses.replace(greedy(), situation=situation)) as (url, _, gateway):
        played = play(listed(2), situation, Target(url))
    assert not played.failures
    assert len(gateway.records) == 2


def test_requests_say_whose_they_are_and_where_they_come_from(tmp_path: Path) -> None:
    situation = dataclasses.replace(
        SITUATION, tenants=(Tenant("gold", 3.0), Tenant("lead")), origins=(Origin("east"), Origin("west"))
    )
    told = dataclasses.replace(
        listed(3),
        tenant=np.array([1, 0, 0]),
        tenants=("gold", "lead"),
        origin=np.array([0, 1, 0]),
        origins=("east", "west"),
    )
    with serving(tmp_path, answer, dataclasses.replace(greedy(), situation=situation)) as (url, _, gateway):
        played = play(told, situation, Target(url))
    assert not played.failures
    records = sorted(gateway.records, key=lambda record: record.arrival_s)
    assert [record.tenant for record in records] == ["lead", "gold", "gold"]
    assert [record.origin for record in records] == ["east", "west", "east"]


def test_failures_are_counted_and_earn_nothing(tmp_path: Path) -> None:
    async def moody(call: Call) -> None:
        number = len(made.calls)
        if number % 3 == 0:
            await call.respond(400, {"error": {"message": "no"}})
        elif number % 3 == 1:
            await call.begin_stream()
            await call.chunk(event("4"))
            await asyncio.sleep(0.1)  # a break that comes with the token may be seen before it
            call.reset()
        else:
            await answer(call)

    with serving(tmp_path, moody) as (url, made, _):
        played = play(listed(6, 0.1), SITUATION, Target(url))
    assert played.failures == {"status 400": 2, "error event": 2}
    assert played.result.rejected.sum() == 4
    assert np.isinf(played.result.latency_s[played.result.rejected]).all()
    assert not played.result.reward[played.result.rejected].any()


@pytest.mark.parametrize(
    ("streamed", "raw", "failure"),
    [
        (True, b"data: " + bytes(2 * MOST_BYTES) + b"\n\n", "event too large"),
        (False, b"[" * 100_000, "no JSON"),
    ],
)
def test_an_answer_that_cannot_be_read_costs_no_other_its_results(streamed: bool, raw: bytes, failure: str) -> None:
    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "besteffort"}]})

    async def bad(request: web.Request) -> web.Response:
        return web.Response(body=raw)

    @asynccontextmanager
    async def begin() -> AsyncIterator[str]:
        app = web.Application()
        app.add_routes([web.get("/v1/models", models), web.post("/v1/completions", bad)])
        async with TestServer(app) as server:
            yield str(server.make_url("/v1"))

    with in_thread(begin) as url:
        played = play(listed(2), SITUATION, Target(url, streamed=streamed))
    assert played.failures == {failure: 2}


def test_a_server_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no server answers"):
        play(listed(1), SITUATION, Target("http://127.0.0.1:9/v1"))
    with serving(tmp_path, answer) as (url, _, _):
        with pytest.raises(InputError, match="no model `gpt-7`; choose from besteffort"):
            play(listed(1), SITUATION, Target(url, model="gpt-7"))
        with pytest.raises(InputError, match="status 404"):
            play(listed(1), SITUATION, Target(url.removesuffix("/v1")))


def test_slow_answers_hold_nobody_up(tmp_path: Path) -> None:
    async def slow(call: Call) -> None:
        await asyncio.sleep(0.5)
        await answer(call)

    with serving(tmp_path, slow) as (url, _, _):
        played = play(listed(8, 0.01), SITUATION, Target(url))
    assert played.result.arrival_s[-1] < 0.5
    assert (played.result.latency_s >= 0.5).all()


def test_progress_is_told_now_and_then_and_not_for_every_request(tmp_path: Path) -> None:
    """All tasks are counted for it, which for every request would be late in a long list."""
    told: list[tuple[int, int]] = []
    with serving(tmp_path, answer) as (url, _, _):
        play(listed(70, 0.01), SITUATION, Target(url), lambda sent, done: told.append((sent, done)))
    assert 1 <= len(told) <= 5
    assert told[-1][0] == 70


def test_more_requests_may_be_open_than_most_shells_allow(tmp_path: Path) -> None:
    """Each has a descriptor, which failed for want of one as if the server had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(tmp_path, answer) as (url, _, _):
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        try:
            play(listed(1), SITUATION, Target(url))
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
