"""Workers of a host: what each knows of the others, without delay, and when one of them is killed."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import signal
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from besteffort.gateway.board import LEASE_S, Board, make_board
from besteffort.gateway.config import Retries
from besteffort.gateway.core import Ask, Core, RefusedError
from besteffort.gateway.request_log import COLUMNS
from besteffort.observation import next_rate
from tests.gateway.backends import answer, backend, once, run
from tests.gateway.policies import MODELS, Clock, config, greedy, snapshot
from tests.gateway.test_serve import process, write

ASK = Ask(task="piqa", prompt_tokens=100, max_tokens=30)


def workers(folder: Path, count: int, slots: int = 64, **stated: object) -> tuple[list[Core], Clock]:
    """Cores of so many workers, in one process."""
    clock = Clock()
    make_board(folder / "board", count, slots)
    given = config(**{"retries": Retries(most=16, share=1.0), **stated})
    return [
        Core(snapshot(given, clock=clock), clock=clock, board=Board(folder / "board", i, clock)) for i in range(count)
    ], clock


def counts(core: Core) -> dict[str, int]:
    """Requests on each replica, as the core knows them; the books have the same."""
    core.sync()
    for place in core.snapshot.places:
        assert core.snapshot.flight.batch_sizes[place.row, place.index] == place.state.busy
    return {place.url: place.state.busy for place in core.snapshot.places}


def test_each_counts_the_requests_of_all(tmp_path: Path) -> None:
    cores, _ = workers(tmp_path, 3)
    claims = []
    for i in range(24):
        core = cores[i % 3]
        claims.append(core.claim(core.arrive(ASK, f"r{i}")))
        assert sum(counts(core).values()) == i + 1
    # Full for all: 3 replicas with 8 places each.
    for core in cores:
        assert set(counts(core).values()) == {8}
        with pytest.raises(RefusedError):
            core.claim(core.arrive(ASK, "one too many"))
    for i, claim in enumerate(claims):
        cores[i % 3].finished(claim)
        for core in cores:
            assert sum(counts(core).values()) == 23 - i


def test_estimates_are_those_of_one_gateway_with_all_requests(tmp_path: Path) -> None:
    cores, clock = workers(tmp_path, 2)
    alone = Core(snapshot(cores[0].snapshot.config, clock=clock), clock=clock)
    open_claims = []
    random = np.random.default_rng(1)
    for i in range(10):
        clock.now += 0.01
        ask = dataclasses.replace(ASK, prompt_tokens=int(random.integers(20, 300)), deadline_factor=1.0 + i % 3)
        core = cores[i % 2]
        pair = core.claim(core.arrive(ask, f"r{i}")), alone.claim(alone.arrive(ask, f"r{i}"))
        assert pair[0].place.url == pair[1].place.url
        open_claims.append((core, pair))
        clock.now += 0.02
        for its, (claim, same) in open_claims[:: 1 + i % 2]:
            its.token(claim)
            alone.token(same)
        for each in cores:
            each.sync()
    clock.now += 0.01
    probe = {"task": "piqa", "prompt_tokens": 50}
    expected = alone.snapshot.flight
    expected.arrived("probe", **probe)
    for core in cores:
        flight = core.snapshot.flight
        core.sync()
        flight.arrived("probe", **probe)
        for name in ("own", "harm", "completion_s", "first_token_s"):
            got, wanted = (getattr(books.estimates("probe"), name) for books in (flight, expected))
            np.testing.assert_allclose(got, wanted, rtol=1e-9, err_msg=name)
        flight.cancelled("probe")


def test_rates_add_up_to_that_of_one_gateway(tmp_path: Path) -> None:
    """Also with a worker that gets no requests."""
    cores, clock = workers(tmp_path, 4)
    random, rate, last_s = np.random.default_rng(0), None, clock.now
    tau_s = greedy().situation.view.rate_tau_s
    for i in range(200):
        clock.now += float(random.exponential(0.05))
        rate = 0.0 if rate is None else float(next_rate(rate, clock.now - last_s, tau_s))
        last_s = clock.now
        core = cores[int(random.integers(3))]
        ticket = core.arrive(ASK, f"r{i}")
        assert core.snapshot.flight._rate() == pytest.approx(rate, rel=1e-12, abs=1e-12)
        core.close(ticket, "cancelled")
    clock.now += 0.3
    for core in cores:
        core.sync()
        assert core.arrival_rate() == pytest.approx(float(next_rate(rate, 0.3, tau_s)), rel=1e-12)


def test_a_worker_that_gives_no_sign_of_life_counts_no_more_and_comes_back(tmp_path: Path) -> None:
    (first, second), clock = workers(tmp_path, 2)
    claims = [second.claim(second.arrive(ASK, f"r{i}")) for i in range(3)]
    assert sum(counts(first).values()) == 3
    clock.now += LEASE_S + 0.01
    assert sum(counts(first).values()) == 0
    assert first.arrival_rate() == 0.0
    second.totals()
    assert sum(counts(first).values()) == 3
    assert first.arrival_rate() > 0.0
    # Killed and started again: what it had is gone at once.
    again = Core(snapshot(clock=clock), clock=clock, board=Board(tmp_path / "board", 1, clock))
    assert sum(counts(first).values()) == 0
    again.claim(again.arrive(ASK, "r9"))
    assert sum(counts(first).values()) == 1
    assert len(claims) == 3


def test_what_is_half_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    (first, second), _ = workers(tmp_path, 2)
    second.claim(second.arrive(ASK, "r0"))
    board = second.board
    assert board is not None
    versions = board._versions[1]
    slot = int(np.flatnonzero(versions == versions.max())[0])
    versions[slot] += 1
    assert sum(counts(first).values()) == 0
    versions[slot] += 1
    assert sum(counts(first).values()) == 1


def test_a_reload_keeps_what_others_have(tmp_path: Path) -> None:
    (first, second), clock = workers(tmp_path, 2)
    claims = [second.claim(second.arrive(ASK, f"r{i}")) for i in range(6)]
    own = first.claim(first.arrive(ASK, "own"))
    before = counts(first)
    turned = config([["http://b/v1", "http://a/v1"], ["http://c/v1"]])
    first.replace(snapshot(turned, clock=clock, earlier=first.snapshot))
    assert counts(first) == before
    # A replica that is gone from the file here is counted by the others still.
    first.replace(snapshot(config([["http://a/v1"]]), clock=clock, earlier=first.snapshot))
    assert counts(first) == {"http://a/v1": before["http://a/v1"]}
    first.finished(own)
    for claim in claims:
        second.finished(claim)
    assert set(counts(first).values()) == set(counts(second).values()) == {0}


def test_a_worker_takes_no_more_than_it_can_show(tmp_path: Path) -> None:
    (first, _), _ = workers(tmp_path, 2, slots=2)
    first.claim(first.arrive(ASK, "a"))
    first.claim(first.arrive(ASK, "b"))
    with pytest.raises(RefusedError) as refused:
        first.arrive(ASK, "c")
    assert refused.value.code == "too_many_requests"


def children(parent: int) -> list[int]:
    """Processes that a process has started, by number of the worker."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, its_parent = path.read_text().rpartition(")")[2].split()[:2]
            words = (path.parent / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(its_parent) == parent and state != "Z" and b"besteffort.gateway.workers" in words:
            found[int(words[-3])] = int(path.parent.name)
    return [found[number] for number in sorted(found)]


async def scrape(address: str) -> dict[str, float]:
    """Sums over labels, by name; from whichever worker takes the connection."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session, session.get(f"{address}/metrics") as response:
        text = await response.text()
    sums: dict[str, float] = {}
    for name, value in re.findall(r"^(\w+)(?:\{[^}]*\})? (\S+)$", text, re.M):
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_counts_are_right_again_when_a_worker_was_killed(tmp_path: Path) -> None:
    """Worker killed with claims held; metrics per worker (litellm#10595); a reload reaches all."""
    release = asyncio.Event()
    slow = once(release, answer)

    async def scenario() -> None:
        async with backend(slow) as (url, made):
            pools = [{"name": "small", "model": MODELS[0], "urls": [url], "assemble": False, "limit": 64}]
            path = write(tmp_path, url, pools=pools, request_log="requests.csv", retries={"most": 0})
            async with process(path, "--workers", "2") as (gateway, address):
                connector = aiohttp.TCPConnector(force_close=True, limit=0)
                async with aiohttp.ClientSession(connector=connector) as session:

                    async def ask() -> str:
                        body = {"model": "besteffort", "prompt": "a"}
                        try:
                            async with session.post(f"{address}/v1/completions", json=body) as response:
                                await response.read()
                                return str(response.status)
                        except aiohttp.ClientError:
                            return "cut off"

                    tasks = [asyncio.create_task(ask()) for _ in range(24)]
                    while len(made.calls) < 24:
                        await asyncio.sleep(0.02)
                    await asyncio.sleep(0.3)
                    for _ in range(6):
                        assert (await scrape(address))["besteffort_requests_in_flight"] == 24
                    write(tmp_path, url, pools=pools, request_log="requests.csv", when_late="refuse")
                    gateway.send_signal(signal.SIGHUP)
                    while min([(await scrape(address))["besteffort_snapshot"] for _ in range(8)]) < 1:
                        await asyncio.sleep(0.05)
                    assert (await scrape(address))["besteffort_requests_in_flight"] == 24
                    killed, kept = children(gateway.pid)
                    os.kill(killed, signal.SIGKILL)
                    at = asyncio.get_running_loop().time()
                    while True:
                        cut_off = sum(task.done() for task in tasks)
                        with_all = {(await scrape(address))["besteffort_requests_in_flight"] for _ in range(3)}
                        if cut_off and with_all == {24.0 - cut_off}:
                            break
                        assert asyncio.get_running_loop().time() < at + LEASE_S + 1.0, (cut_off, with_all)
                    assert 0 < cut_off < 24
                    while len(children(gateway.pid)) < 2:
                        await asyncio.sleep(0.05)
                    assert children(gateway.pid)[1] == kept
                    release.set()
                    results = await asyncio.gather(*tasks)
                    assert results.count("200") == 24 - cut_off
                    while (await scrape(address))["besteffort_open_requests"]:
                        await asyncio.sleep(0.05)
                    for _ in range(4):
                        found = await scrape(address)
                        assert found["besteffort_requests_in_flight"] == 0
                        # Those of the killed one that ended before would count, too; none had.
                        assert found["besteffort_requests_total"] == 24 - cut_off
                        assert found["besteffort_reloads_total"] >= 2
                    gateway.send_signal(signal.SIGTERM)
                    assert await asyncio.wait_for(gateway.wait(), 30) == 0
        lines = (tmp_path / "requests.csv").read_text().splitlines()
        assert lines[0] == ",".join(COLUMNS)
        assert len(lines) == 1 + 24 - cut_off
        assert {line.count(",") for line in lines} == {len(COLUMNS) - 1}

    run(scenario(), 150.0)


def test_a_worker_that_cannot_start_ends_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        path = write(tmp_path, "http://127.0.0.1:9/v1", listen={"port": port})
        async with process(path, "--workers", "2") as (gateway, _):
            assert await gateway.wait() == 2
            assert gateway.stderr is not None
            assert f"port {port}: cannot listen there" in (await gateway.stderr.read()).decode()
        server.close()
        async with process(path, "--workers", "0") as (gateway, _):
            assert await gateway.wait() == 2

    run(scenario(), 120.0)


def test_workers_follow_a_link_to_other_files(tmp_path: Path) -> None:
    """As Kubernetes changes what it mounts of a ConfigMap: the link is put in place anew, the files before go."""

    async def scenario() -> None:
        async with backend(once(asyncio.Event(), answer)) as (url, _):
            plain = write(tmp_path, url)
            path, current = tmp_path / "mounted.yaml", tmp_path / "current"
            for name, changed in (("one", {}), ("two", {"when_late": "refuse"})):
                (tmp_path / name).mkdir()
                write(tmp_path, url, **changed).rename(tmp_path / name / plain.name)
            current.symlink_to("one")
            path.symlink_to(Path("current", plain.name))
            async with process(path, "--workers", "2") as (gateway, address):
                (tmp_path / "next").symlink_to("two")
                (tmp_path / "next").rename(current)
                (tmp_path / "one" / plain.name).unlink()
                async with asyncio.timeout(15):
                    while min([(await scrape(address))["besteffort_snapshot"] for _ in range(8)]) < 1:
                        await asyncio.sleep(0.1)
                gateway.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(gateway.wait(), 30) == 0

    run(scenario(), 90.0)
