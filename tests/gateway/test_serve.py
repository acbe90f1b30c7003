"""The process: starts, reloads under load, refuses what is broken, drains, and ends with a status."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from besteffort.gateway import serve
from besteffort.gateway.config import Listen
from besteffort.gateway.snapshot import Snapshot, Source
from besteffort.policy import Policy, save_policy
from tests.gateway.backends import answer, backend, once, run, running, started
from tests.gateway.policies import MODELS, config, contrary, greedy


def write(folder: Path, url: str, **others: object) -> Path:
    """A configuration and its policy, as files."""
    if not (folder / "policy.safetensors").exists():
        save_policy(greedy(), folder / "policy.safetensors")
    data = {
        "policy": "policy.safetensors",
        "pools": [{"name": "small", "model": MODELS[0], "urls": [url], "assemble": False}],
        "listen": {"port": 0, "drain_s": 5.0},
        **others,
    }
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@asynccontextmanager
async def process(
    path: Path, *arguments: str, command: Sequence[str] = ("besteffort.gateway",)
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A gateway in a process of its own, and its address; ended by its id."""
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *command,
        str(path),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert started.stdout is not None
    try:
        line = (await started.stdout.readline()).decode()
        assert started.returncode is None or not line, line
        yield started, line.split(" ")[2].rstrip(":") if line.startswith("Listening on ") else line
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def ask(session: aiohttp.ClientSession, address: str) -> int:
    async with session.post(f"{address}/v1/completions", json={"model": "besteffort", "prompt": "a"}) as response:
        await response.read()
        return response.status


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (("besteffort.gateway",), signal.SIGTERM),
        (("besteffort", "serve"), signal.SIGTERM),
        (("besteffort", "serve"), signal.SIGINT),
    ],
)
def test_a_process_answers_and_ends_what_is_in_work_before_it_leaves(
    tmp_path: Path, command: tuple[str, ...], number: signal.Signals
) -> None:
    release = asyncio.Event()
    slow = once(release, answer)

    async def scenario() -> None:
        async with backend(slow) as (url, made):
            path = write(tmp_path, url, request_log="requests.csv")
            async with process(path, command=command) as (gateway, address), aiohttp.ClientSession() as session:
                first = asyncio.create_task(ask(session, address))
                while not made.calls:
                    await asyncio.sleep(0.01)
                gateway.send_signal(number)
                await asyncio.sleep(0.2)
                async with session.get(f"{address}/ready") as response:
                    assert response.status == 503
                assert await ask(session, address) == 503
                assert gateway.returncode is None
                release.set()
                assert await first == 200
                assert await asyncio.wait_for(gateway.wait(), 20) == 0
                assert gateway.stderr is not None
                lines = [json.loads(line) for line in (await gateway.stderr.read()).splitlines()]
                assert [line["message"].split(" ")[0] for line in lines] == ["Drift", "Listening", "Ending:", "Ended."]
        assert len((tmp_path / "requests.csv").read_text().splitlines()) == 2

    run(scenario(), 120.0)


def test_a_process_refuses_a_file_that_does_not_fit(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = write(tmp_path, "http://127.0.0.1:9/v1", pools=[])
        async with process(path) as (gateway, line):
            assert line == ""
            assert await gateway.wait() == 2
            assert gateway.stderr is not None
            said = (await gateway.stderr.read()).decode()
            assert said.startswith(f"besteffort-gateway: {path}: `pools`")
            assert said.count("\n") == 1

    run(scenario(), 120.0)


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        path = write(tmp_path, "http://127.0.0.1:9/v1", listen={"port": port})
        async with process(path) as (gateway, _):
            assert await gateway.wait() == 2
            assert gateway.stderr is not None
            said = (await gateway.stderr.read()).decode()
            assert f"port {port}: cannot listen there" in said
            assert "Traceback" not in said
        server.close()

    run(scenario(), 120.0)


def test_reloads_under_load_fail_no_request_and_a_broken_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Reload under load (litellm#20409, neurolink PR#1196)."""

    async def scenario() -> None:
        async with backend(answer) as (url, _), backend(answer) as (other, _):
            path = write(tmp_path, url)
            given = config([[url]], listen=Listen(port=0, drain_s=0.0))
            async with started(given, tmp_path) as found:
                gateway, statuses, over = found.gateway, [], asyncio.Event()

                async def load() -> None:
                    while not over.is_set():
                        statuses.append((await found.post())[0])

                tasks = [asyncio.create_task(load()) for _ in range(4)]
                policies = ("policy.safetensors", "contrary.safetensors")
                save_policy(contrary(), tmp_path / policies[1])
                for turn in range(100):
                    pools = [{"name": "small", "model": MODELS[turn % 2], "urls": [url, other][:: 1 - 2 * (turn % 2)]}]
                    write(tmp_path, url, pools=pools, policy=policies[turn // 10 % 2])
                    assert await gateway.reload()
                before = gateway.core.snapshot
                assert before.number == 100
                for text in ("pools: [", "pools: []\npolicy: policy.safetensors", "a: 1", ""):
                    path.write_text(text)
                    caplog.clear()
                    assert not await gateway.reload()
                    (said,) = (record.getMessage() for record in caplog.records if record.levelname == "ERROR")
                    assert said.startswith("Not reloaded, the last one stays in use: ")
                    assert str(path) in said
                path.unlink()
                assert not await gateway.reload()
                assert gateway.core.snapshot is before
                over.set()
                await asyncio.gather(*tasks)
                assert set(statuses) == {200}
                assert len(statuses) > 20
                assert found.counts() == 0
                assert {record.model for record in found.records} == {MODELS[0], MODELS[1]}
                # Each was decided by what was in use when it came, and by nothing else.
                assert len({record.snapshot for record in found.records}) > 50
                for record in found.records:
                    assert record.model == MODELS[max(record.snapshot - 1, 0) % 2]

    run(scenario(), 120.0)


def test_files_that_change_are_read_again_and_others_are_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with backend(answer) as (url, _):
            path = write(tmp_path, url)
            async with running(tmp_path, [[url]]) as found:
                gateway = found.gateway
                await gateway.tick()
                assert gateway.core.snapshot.number == 0
                write(tmp_path, url, when_late="refuse")
                await gateway.tick()
                await gateway.tick()
                assert gateway.core.snapshot.number == 1
                assert gateway.core.snapshot.config.when_late == "refuse"
                # The same policy file is not read again.
                policy = gateway.core.snapshot.policy
                (tmp_path / "policy.safetensors").touch()
                path.write_text(path.read_text() + "# no change\n")
                await gateway.tick()
                assert gateway.core.snapshot.policy is policy

    run(scenario(), 120.0)


def test_what_changes_while_files_are_read_is_read_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, late = serve.make_snapshot, ["smallest"]

    def make_and_write(*given: Any, **others: Any) -> Snapshot:
        if late:
            write(tmp_path, "http://127.0.0.1:9/v1", when_late=late.pop())
        return make(*given, **others)

    async def scenario() -> None:
        write(tmp_path, "http://127.0.0.1:9/v1")
        async with running(tmp_path, [["http://127.0.0.1:9/v1"]]) as found:
            monkeypatch.setattr(serve, "make_snapshot", make_and_write)
            write(tmp_path, "http://127.0.0.1:9/v1", when_late="refuse")
            used = []
            for _ in range(3):
                await found.gateway.tick()
                used.append(found.gateway.core.snapshot.config.when_late)
            assert used == ["refuse", "smallest", "smallest"]

    run(scenario())


def test_a_policy_that_comes_after_the_file_that_names_it_is_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        write(tmp_path, "http://127.0.0.1:9/v1")
        async with running(tmp_path, [["http://127.0.0.1:9/v1"]]) as found:
            gateway = found.gateway
            for named in ("next.safetensors", "a\0b", "next.safetensors"):
                write(tmp_path, "http://127.0.0.1:9/v1", policy=named)
                await gateway.tick()
                assert gateway.core.snapshot.number == 0
            save_policy(contrary(), tmp_path / "whole.safetensors")
            whole = (tmp_path / "whole.safetensors").read_bytes()
            for content, number in ((whole[:100], 0), (whole, 1)):
                (tmp_path / "next.safetensors").write_bytes(content)
                await gateway.tick()
                assert gateway.core.snapshot.number == number

    run(scenario())


def test_a_reload_that_is_asked_for_reads_what_a_situation_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str | None] = []

    def make(source: Source, folder: Path) -> Policy:
        made.append(source.situation)
        return greedy()

    async def scenario() -> None:
        write(tmp_path, "http://127.0.0.1:9/v1")
        async with running(tmp_path, [["http://127.0.0.1:9/v1"]]) as found:
            gateway = found.gateway
            monkeypatch.setattr(serve, "make_policy", make)
            write(tmp_path, "http://127.0.0.1:9/v1", policy=None, situation="my.yaml")
            await gateway.tick()
            write(tmp_path, "http://127.0.0.1:9/v1", policy=None, situation="my.yaml", when_late="refuse")
            await gateway.tick()
            assert made == ["my.yaml"]
            assert await gateway.reload()
            assert made == ["my.yaml"] * 2

    run(scenario())


def test_check_says_what_would_be_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with process(write(tmp_path, "http://127.0.0.1:9/v1"), "--check") as (gateway, line):
            assert await gateway.wait() == 0
            assert line.startswith(f"{tmp_path}/gateway.yaml is in order: tasks piqa, ")
            assert f"small ({MODELS[0]}, 1 replica)" in line

    run(scenario(), 120.0)
