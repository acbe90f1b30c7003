"""The page at `/` loads nothing from elsewhere, and shows what the gateway's records say."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from besteffort.gateway import server
from besteffort.gateway.config import Key
from besteffort.gateway.core import Ask, Core
from besteffort.gateway.live import Live
from tests.gateway.backends import Call, Running, answer, backend, run, running
from tests.gateway.policies import MODELS, Clock, config, snapshot

FOLDER = Path(server.__file__).parent / "page"


def test_what_ended_is_counted_by_the_second() -> None:
    clock, records = Clock(), []
    calendar = Clock()
    made = Core(snapshot(config(), clock=clock), clock=clock, calendar=calendar, log=records.append)
    live = Live(made)

    def ask(outcome: Any, seconds: float, claims: bool = True) -> None:
        ticket = made.arrive(Ask("piqa", characters=40, deadline_base_s=0.5), f"r{len(records)}")
        claim = made.claim(ticket) if claims else None
        clock.now += seconds
        calendar.now += seconds
        if outcome == "answered" and claim is not None:
            made.finished(claim, output_tokens=3)
        made.close(ticket, outcome)
        live.record(records[-1])

    ask("answered", 0.02)
    ask("answered", 1.1)  # late
    ask("failed", 0.1)
    ask("refused", 0.1, claims=False)
    ask("cancelled", 0.1)
    ask("answered", 2.0)
    assert live.seconds(0, 101.5) == [
        {
            "at": 100,
            "answered": {records[0].model: 1},
            "in_time": 1,
            "quality": records[0].quality,
            "failed": 0,
            "left": 0,
        }
    ]
    (second,) = live.seconds(100, 103.9)
    assert (second["at"], second["in_time"], second["failed"], second["left"]) == (101, 0, 2, 1)
    assert second["answered"] == {records[1].model: 1}
    assert [each["at"] for each in live.seconds(0, 200.0)] == [100, 101, 103]
    state = live.state(104.0)
    assert [each["outcome"] for each in state["latest"]] == [
        "late",
        "cancelled",
        "refused",
        "failed",
        "late",
        "in time",
    ]
    assert state["models"] == list(MODELS[:2])
    assert [(pool["name"], len(pool["replicas"])) for pool in state["pools"]] == [("pool-0", 2), ("pool-1", 1)]
    # A clock that steps back adds to the last second.
    calendar.now = 50.0
    ask("answered", 0.1)
    assert live.seconds(102, 200.0)[-1]["answered"] == {records[5].model: 2}


def test_memory_is_bounded() -> None:
    clock, records = Clock(), []
    made = Core(snapshot(config(), clock=clock), clock=clock, calendar=clock, log=records.append)
    live = Live(made)
    for _ in range(400):
        ticket = made.arrive(Ask("piqa"), "r")
        clock.now += 1.0
        made.close(ticket, "failed")
        live.record(records[-1])
    assert len(live.seconds(0, 1e9)) == 300
    assert len(live.state(clock.now)["latest"]) == 20


def test_its_files_name_no_other_host() -> None:
    files = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert files.keys() == server._PAGE.keys()
    for text in files.values():
        assert set(re.findall(r"[a-z]+://[^\"'\s)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r'(?:src|href)="([^"]+)"', files["index.html"])) == {
        "/page/page.css",
        "/page/page.js",
        "data:,",
    }
    # With the policy on contents that comes with them, nothing inline would run.
    assert not re.search(r"<style|style=|<script>|\son[a-z]+=", files["index.html"])
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", files["page.js"])
    assert set(re.findall(r'byId\("([^"]+)"\)', files["page.js"])) <= set(
        re.findall(r'id="([^"]+)"', files["index.html"])
    )


async def events(found: Running, count: int, **headers: str) -> list[dict[str, Any]]:
    async with found.session.get(f"{found.address}/events", headers=headers) as response:
        assert response.status == 200
        assert response.headers["x-accel-buffering"] == "no"  # else nginx holds them back
        read: list[dict[str, Any]] = []
        while len(read) < count:
            line = await response.content.readline()
            if line.startswith(b"data: "):
                read.append(json.loads(line[6:]))
        return read


def test_events_tell_what_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_LOOK_S", 0.02)
    monkeypatch.setattr(server, "_MOST_VIEWERS", 2)

    async def scenario() -> None:
        async with backend(answer) as (url, _), running(tmp_path, [[url]]) as found:
            for path, kind in (
                ("/", "text/html"),
                ("/page/page.css", "text/css"),
                ("/page/page.js", "text/javascript"),
            ):
                async with found.session.get(found.address + path) as response:
                    assert (response.status, response.content_type) == (200, kind)
                    assert "default-src 'none'" in response.headers["content-security-policy"]
            for path in ("/page/server.py", "/page/../server.py", "/page/%2e%2e%2fserver.py"):
                async with found.session.get(found.address + path) as response:
                    assert response.status == 404
            for _ in range(3):
                assert (await found.post())[0] == 200
            (first,) = await events(found, 1)
            assert [each["outcome"] for each in first["state"]["latest"]] == ["in time"] * 3
            await asyncio.sleep(1.1)
            told = await events(found, 3)
            assert sum(sum(second["answered"].values()) for second in told[0]["seconds"]) == 3
            assert told[1]["seconds"] == []  # each second once
            # Two look, a third is refused, and may look once one has left.
            async with (
                found.session.get(f"{found.address}/events"),
                found.session.get(f"{found.address}/events") as two,
            ):
                await two.content.readline()
                async with found.session.get(f"{found.address}/events") as response:
                    assert response.status == 503
            async with asyncio.timeout(10):
                status = 503
                while status != 200:
                    async with found.session.get(f"{found.address}/events") as response:
                        status = response.status

    run(scenario())


def test_figures_need_a_key_where_there_is_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        secret = "key-of-sixteen-characters"
        keys = (Key("team", env="TEAM"),)
        async with backend(never) as (url, _), running(tmp_path, [[url]], {"TEAM": secret}, keys=keys) as found:
            async with found.session.get(f"{found.address}/events") as response:
                assert response.status == 401
            assert await events(found, 1, authorization=f"Bearer {secret}")
            async with aiohttp.ClientSession() as session, session.get(found.address) as response:
                assert secret not in await response.text()

    run(scenario())


async def never(call: Call) -> None:
    raise AssertionError
