"""The external processor behind a real Envoy, with servers on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

pytest.importorskip("grpc")
pytest.importorskip("envoy.service.ext_proc.v3.external_processor_pb2")
ENVOY = shutil.which("envoy")
if ENVOY is None:
    pytest.skip("needs Envoy", allow_module_level=True)

from besteffort.gateway.core import Core, Record  # noqa: E402
from besteffort.plugins.envoy import main, serve  # noqa: E402
from tests.gateway.backends import (  # noqa: E402
    DONE,
    WHOLE,
    Backend,
    Call,
    answer,
    backend,
    completion,
    event,
    free_port,
    once,
    run,
)
from tests.gateway.policies import config, greedy, snapshot  # noqa: E402

POOLS = ("small", "large")


class Front:
    """An Envoy that asks the processor, and the servers behind it, smallest first."""

    def __init__(self, session: aiohttp.ClientSession, core: Core, servers: list[Backend], records: list[Record]):
        self.session, self.core, self.servers, self.records = session, core, servers, records

    async def post(self, *, stream: bool = False, **fields: Any) -> tuple[int, bytes, Any]:
        body = {"model": "besteffort", "prompt": "What?", "stream": stream, **fields}
        async with self.session.post("/v1/completions", json=body) as response:
            return response.status, await response.read(), response.headers

    async def settle(self) -> None:
        """Waits until Envoy has ended all exchanges."""
        for _ in range(200):
            if not self.core.open_requests:
                break
            await asyncio.sleep(0.05)
        assert self.core.open_requests == 0
        assert [place.state.in_flight for place in self.core.snapshot.places] == [0, 0]


@asynccontextmanager
async def front(folder: Path, behaviours: list[Any]) -> AsyncIterator[Front]:
    names = (greedy().models[0], greedy().models[-1])
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(backend(behaviour)) for behaviour in behaviours]
        given = config()
        pools = [
            type(given.pools[0])(name, (url,), model, served_model=f"served-{name}")
            for name, model, (url, _) in zip(POOLS, names, found, strict=True)
        ]
        records: list[Record] = []
        core = Core(snapshot(config(pools=tuple(pools))), log=records.append)
        server, port = await serve(core, "127.0.0.1", 0)
        stack.push_async_callback(server.stop, 0.0)
        ports = {"FRONT": free_port(), "PROCESSOR": port}
        ports |= {
            name.upper(): url.rsplit(":", 1)[1].split("/")[0] for name, (url, _) in zip(POOLS, found, strict=True)
        }
        text = (Path(__file__).parent / "envoy.yaml").read_text(encoding="utf-8")
        for name, value in ports.items():
            text = text.replace(f"port_value: {name}", f"port_value: {value}")
        (folder / "envoy.yaml").write_text(text, encoding="utf-8")
        log = stack.enter_context((folder / "envoy.log").open("wb"))
        arguments = ("-c", str(folder / "envoy.yaml"), "--concurrency", "1", "--use-dynamic-base-id")
        process = await asyncio.create_subprocess_exec(str(ENVOY), *arguments, stdout=log, stderr=log)
        stack.push_async_callback(_ended, process)
        session = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{ports['FRONT']}"))
        await _listens(int(ports["FRONT"]), process)
        yield Front(session, core, [one for _, one in found], records)


def test_answers_and_streams_pass(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with front(tmp_path, [answer, answer]) as made:
            status, raw, _ = await made.post()
            assert status == 200
            assert b'"text": "42"' in raw
            status, raw, _ = await made.post(stream=True, max_tokens=9)
            assert status == 200
            assert raw == event("4") + event("2") + event("", "stop") + DONE
            status, raw, _ = await made.post(stream=True, stream_options={"include_usage": True})
            assert (status, raw) == (200, WHOLE)
            await made.settle()
            calls = [call for server in made.servers for call in server.calls]
            assert {call.headers["accept-encoding"] for call in calls} == {"identity"}
            assert {call.body["model"] for call in made.servers[1].calls} <= {"served-large"}
            assert {call.body["model"] for call in made.servers[0].calls} <= {"served-small"}
            assert [record.outcome for record in made.records] == ["answered"] * 3
            # As the server counted them, in either form.
            assert [record.output_tokens for record in made.records] == [2] * 3
            assert made.records[1].ttft_s is not None

    run(scenario())


def test_events_that_are_cut_anywhere_pass(tmp_path: Path) -> None:
    async def bytewise(call: Call) -> None:
        await call.begin_stream()
        for at in range(0, len(WHOLE), 7):
            await call.chunk(WHOLE[at : at + 7])
            await asyncio.sleep(0.001)
        await call.end_stream()

    async def scenario() -> None:
        async with front(tmp_path, [bytewise] * 2) as made:
            _, raw, _ = await made.post(stream=True)
            assert raw == event("4") + event("2") + event("", "stop") + DONE
            _, raw, _ = await made.post(stream=True, stream_options={"include_usage": True})
            assert raw == WHOLE
            await made.settle()
            assert [record.output_tokens for record in made.records] == [2, 2]

    run(scenario())


def test_a_stream_of_a_stated_length_passes_without_the_usage(tmp_path: Path) -> None:
    async def sized(call: Call) -> None:
        await call.respond(200, WHOLE, {"content-type": "text/event-stream"})

    async def scenario() -> None:
        async with front(tmp_path, [sized] * 2) as made:
            _, raw, _ = await made.post(stream=True)
            assert raw == event("4") + event("2") + event("", "stop") + DONE
            await made.settle()

    run(scenario())


def test_an_answer_that_is_whole_frees_its_place_though_the_server_goes_on(tmp_path: Path) -> None:
    async def stays_open(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(WHOLE)
        await call.left()

    async def scenario() -> None:
        async with front(tmp_path, [stays_open] * 2) as made:
            asked = asyncio.create_task(made.post(stream=True))
            while not made.records:
                await asyncio.sleep(0.02)
            await made.settle()
            assert not asked.done()
            assert [record.outcome for record in made.records] == ["answered"]
            asked.cancel()

    run(scenario())


def test_an_answer_that_is_compressed_all_the_same_passes_and_blames_nobody(tmp_path: Path) -> None:
    async def compressed(call: Call) -> None:
        stream = call.body["stream"]
        raw = gzip.compress(WHOLE if stream else json.dumps(completion()).encode())
        kind = "text/event-stream" if stream else "application/json"
        await call.respond(200, raw, {"content-encoding": "gzip", "content-type": kind})

    async def scenario() -> None:
        async with front(tmp_path, [compressed] * 2) as made:
            for _ in range(4):
                assert (await made.post(stream=True))[:2] == (200, WHOLE)
                assert json.loads((await made.post())[1]) == completion()
            await made.settle()
            assert {record.outcome for record in made.records} == {"answered"}

    run(scenario())


def test_mistakes_and_refusals_are_answered_by_the_processor(tmp_path: Path) -> None:
    held = asyncio.Event()
    hold = once(held, answer)

    async def scenario() -> None:
        async with front(tmp_path, [hold, hold]) as made:
            status, raw, headers = await made.post(model="gpt")
            assert (status, b"model_not_found" in raw) == (404, True)
            assert headers["x-request-id"]
            assert not any(server.calls for server in made.servers)
            places = sum(place.limit for place in made.core.snapshot.places)
            asked = [asyncio.create_task(made.post()) for _ in range(places)]
            while sum(len(server.calls) for server in made.servers) < places:
                await asyncio.sleep(0.02)
            assert all(server.calls for server in made.servers)
            status, raw, headers = await made.post()
            assert (status, b"no_capacity" in raw) == (503, True)
            assert int(headers["retry-after-ms"]) > 0
            assert headers["x-request-id"]
            held.set()
            assert {status for status, _, _ in await asyncio.gather(*asked)} == {200}
            await made.settle()

    run(scenario())


def test_no_client_chooses_a_cluster(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with front(tmp_path, [answer] * 2) as made:
            own = {"x-besteffort-pool": "small"}
            async with made.session.post("/v1/embeddings", json={"model": "a"}, headers=own) as response:
                assert response.status >= 400
            assert not any(server.calls for server in made.servers)
            body = {"model": "besteffort", "prompt": "What?"}
            async with made.session.post("/v1/completions", json=body, headers=own) as response:
                assert response.status == 200
            await made.settle()
            assert [len(server.calls) for server in made.servers] == [
                sum(record.pool == name for record in made.records) for name in POOLS
            ]

    run(scenario())


def test_whatever_ends_an_exchange_frees_its_place(tmp_path: Path) -> None:
    async def never(call: Call) -> None:
        await call.begin_stream()
        await asyncio.sleep(60)

    async def fail(call: Call) -> None:
        await call.respond(500, {"error": {"message": "broken"}})

    async def reset(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(b'data: {"choices": [{"index": 0, "text": "4", "finish_reason": null}]}\n\n')
        call.reset()

    async def leaving() -> None:
        async with front(tmp_path, [never, never]) as made:
            task = asyncio.create_task(made.post(stream=True))
            while not any(server.calls for server in made.servers):
                await asyncio.sleep(0.02)
            task.cancel()
            await made.settle()
            assert [record.outcome for record in made.records] == ["cancelled"]

    async def failing() -> None:
        async with front(tmp_path, [fail, fail]) as made:
            status, _, _ = await made.post()
            assert status == 500
            await made.settle()
            assert [(record.outcome, record.error) for record in made.records] == [("failed", "status_500")]

    async def breaking() -> None:
        async with front(tmp_path, [reset, reset]) as made:
            with contextlib.suppress(aiohttp.ClientError):
                await made.post(stream=True)
            await made.settle()
            assert [record.outcome for record in made.records] in (["cancelled"], ["failed"])

    for scenario in (leaving, failing, breaking):
        run(scenario())


def test_what_does_not_fit_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("pools: []\n", encoding="utf-8")
    assert main([str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("besteffort.plugins.envoy: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    await process.wait()


async def _listens(port: int, process: asyncio.subprocess.Process) -> None:
    while process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        writer.close()
        return
    raise AssertionError("Envoy ended")
