"""What a gateway costs a request: its processor time and the wait that it adds, of ours and of LiteLLM's proxy.

    python -m benchmarks.gateway [--litellm EXECUTABLE] [--out FILE] [--fast]

The server answers at once, or with 20 tokens at 1 ms. Asked are: the server itself; the least that a proxy does, with
the same libraries as ours; ours, with all estimates, three models and the policy that needs no training; and LiteLLM's
proxy with one worker and no database, where there is one. Ours is asked plainly twice: it streams what clients want
whole from its servers, unless told otherwise. Each is a process, on a core of its own where there are two, and takes
turns with the others round by round; what it used is read off its clock of processor time, which no other work on the
machine moves. Waits, until the first token and until the end, are of streams that come at random times, few enough
that most are alone. What a gateway adds is the difference to the server itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import random
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import yaml
from aiohttp import web
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.outcome import check_replaced, write_result
from benchmarks.summary import Row
from benchmarks.timing import machine
from besteffort.gateway import process

ROOT = Path(__file__).resolve().parent.parent
DIRECT, BARE, OURS, WHOLE, LITELLM = "the server", "bare proxy", "ours", "ours, passed whole", "LiteLLM proxy"
PLAIN, STREAM = "plain", "stream of 20 tokens"
CLIENTS = (1, 16)
_TOKENS = 20
_TOKEN_S = 1e-3
_PER_SECOND = 10.0  # streams whose waits are measured
_PERCENTILES = (50, 99)
_START_S = 600.0
_PROMPT = "To open a jar of pickles, the first thing to do is to "
_USAGE = {"prompt_tokens": 14, "completion_tokens": _TOKENS, "total_tokens": 14 + _TOKENS}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
      plain, stream: requests in a round.
      slow: share of them that LiteLLM gets.
      waits: streams in a round whose waits are measured.
      rounds: how often every case is run.
    """

    plain: int = 160
    stream: int = 32
    slow: float = 0.1
    waits: int = 130
    rounds: int = 3


FAST = Size(plain=32, stream=16, slow=1.0, waits=8, rounds=1)


@dataclasses.dataclass(frozen=True)
class Arm:
    """Something that answers.

    Attributes:
      name: its name.
      address: where.
      pid: its process.
      cases: shapes of requests that it is asked for.
      share: of the requests of a round that it gets.
    """

    name: str
    address: str
    pid: int
    cases: tuple[str, ...] = (PLAIN, STREAM)
    share: float = 1.0


def processor_s(pid: int) -> float:
    """Seconds of processor time that a process has used, its own and the system's for it."""
    # The clock of another process, as `clock_getcpuclockid` of POSIX has it on Linux.
    return time.clock_gettime((~pid << 3) | 2)


async def upstream(request: web.Request) -> web.StreamResponse:
    """Answers without a model."""
    body = await request.json()
    choice = {"index": 0, "text": " word" * _TOKENS, "finish_reason": "stop"}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
    if not body.get("stream"):
        return web.json_response({**head, "choices": [choice], "usage": _USAGE})
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for number in range(_TOKENS):
        choice = {"index": 0, "text": " word", "finish_reason": "stop" if number == _TOKENS - 1 else None}
        await response.write(_event({**head, "choices": [choice]}))
        await asyncio.sleep(_TOKEN_S)
    await response.write(_event({**head, "choices": [], "usage": _USAGE}) + b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def bare(url: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The least that a proxy does: reads the body, names another model, passes the answer on."""
    sessions: list[aiohttp.ClientSession] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if not sessions:
            sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        body = json.loads(await request.read())
        payload = json.dumps({**body, "model": "m"}).encode()
        headers = {"content-type": "application/json"}
        async with sessions[0].post(f"{url}/completions", data=payload, headers=headers) as found:
            if not body.get("stream"):
                return web.Response(body=await found.read(), content_type="application/json")
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            async for chunk in found.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    return answer


def serve(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> None:
    """Serves in this process until it is told to end."""

    async def listen() -> None:
        app = web.Application()
        app.router.add_post("/v1/{of:.*}completions", handler)  # each replica has a path of its own
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await process.until_told(lambda: print(f"Listening on http://127.0.0.1:{runner.addresses[0][1]}.", flush=True))
        await runner.cleanup()

    process.run(listen())


@contextlib.asynccontextmanager
async def started(command: Sequence[str], core: int | None, address: str | None = None) -> AsyncIterator[Arm]:
    """A process that says where it listens, or is asked until it answers."""
    one = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert one.stdout is not None
    waste: asyncio.Task[bytes] | None = None
    try:
        async with asyncio.timeout(_START_S):
            if address is None:
                said = [""]
                while not said[-1].startswith("Listening on "):
                    said.append((await one.stdout.readline()).decode())
                    if not said[-1]:
                        raise SystemExit(f"{' '.join(command)} ended before it listened.\n{''.join(said)}")
                address = said[-1].split()[2].rstrip(".:;,")
            waste = asyncio.create_task(one.stdout.read())
            await _answers(address)
        if core is not None:
            os.sched_setaffinity(one.pid, {core})
        yield Arm("", address, one.pid)
    finally:
        if one.returncode is None:
            one.kill()
        await one.wait()
        if waste is not None:
            await waste


async def _answers(address: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                await ask(session, address, PLAIN)
                return
            await asyncio.sleep(0.2)


async def ask(session: aiohttp.ClientSession, address: str, shape: str) -> tuple[float, float]:
    """One request, whose answer has to be whole; milliseconds until its first token and until its end."""
    body = {"model": "besteffort", "prompt": _PROMPT, "max_tokens": _TOKENS, "stream": shape == STREAM}
    began = time.perf_counter()
    async with session.post(f"{address}/v1/completions", json=body) as response:
        raw = b""
        while b" word" not in raw and (part := await response.content.readany()):
            raw += part
        first = time.perf_counter()
        raw += await response.content.read()
        if response.status != 200 or raw.count(b" word") != _TOKENS:
            raise RuntimeError(f"{address} answered with status {response.status}: {raw[:200]!r}")
    return 1e3 * (first - began), 1e3 * (time.perf_counter() - began)


async def play(session: aiohttp.ClientSession, arm: Arm, shape: str, clients: int, requests: int) -> float:
    """Milliseconds of processor time per request."""
    each = max(round(requests * arm.share / clients), 1)

    async def client() -> None:
        for _ in range(each):
            await ask(session, arm.address, shape)

    began = processor_s(arm.pid)
    await asyncio.gather(*(client() for _ in range(clients)))
    return 1e3 * (processor_s(arm.pid) - began) / (each * clients)


async def waits(session: aiohttp.ClientSession, arm: Arm, requests: int, seed: int) -> list[tuple[float, float]]:
    """Milliseconds until the first token and until the end, of streams that do not wait for each other."""
    loop = asyncio.get_running_loop()

    async def one(at: float) -> tuple[float, float]:
        await asyncio.sleep(at - loop.time())
        return await ask(session, arm.address, STREAM)

    chance, at, tasks = random.Random(seed), loop.time(), []
    for _ in range(requests):
        at += chance.expovariate(_PER_SECOND)
        tasks.append(asyncio.create_task(one(at)))
    return await asyncio.gather(*tasks)


def write_ours(folder: Path, url: str, *, assemble: bool) -> Path:
    """Our configuration: three models on one server, and the policy that needs no training as a file."""
    from besteffort import default_policy
    from besteffort.policy import save_policy
    from besteffort.runs.config import load_situation

    policy = folder / "policy.safetensors"
    if not policy.exists():
        save_policy(default_policy(load_situation("paper")), policy)
    names = load_situation("paper").profile.model_names
    given = {
        "policy": policy.name,
        "pools": [{"name": name, "model": name, "urls": [f"{url}/{name}"], "assemble": assemble} for name in names],
        "listen": {"port": 0},
    }
    path = folder / ("ours.yaml" if assemble else "whole.yaml")
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    return path


def write_litellm(folder: Path, url: str) -> Path:
    """The same for LiteLLM: three deployments of one name."""
    given = {
        "model_list": [
            {
                "model_name": "besteffort",
                "litellm_params": {"model": f"text-completion-openai/m{number}", "api_base": url, "api_key": "none"},
            }
            for number in range(3)
        ],
        "litellm_settings": {"telemetry": False},
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},  # as ours, on loopback
    }
    path = folder / "litellm.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    return path


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.asynccontextmanager
async def arms(folder: Path, litellm: str | None, size: Size) -> AsyncIterator[list[Arm]]:
    """All that is asked."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    core = cores[0] if len(cores) > 1 else None
    if core is not None:
        os.sched_setaffinity(0, set(cores[1:]))  # of this process, and of the server that it starts
    me = (sys.executable, "-m", "benchmarks.gateway")
    try:
        async with contextlib.AsyncExitStack() as stack:

            async def begin(name: str, *command: str, address: str | None = None, **others: Any) -> Arm:
                where = None if name == DIRECT else core
                found = await stack.enter_async_context(started(command, where, address))
                return dataclasses.replace(found, name=name, **others)

            server = await begin(DIRECT, *me, "--serve", "upstream")
            url = f"{server.address}/v1"
            found = [server, await begin(BARE, *me, "--serve", url)]
            gateway = (sys.executable, "-m", "besteffort.gateway")
            found.append(await begin(OURS, *gateway, str(write_ours(folder, url, assemble=True))))
            whole = str(write_ours(folder, url, assemble=False))
            found.append(await begin(WHOLE, *gateway, whole, cases=(PLAIN,)))
            if litellm is not None:
                port = _free_port()
                where = ("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
                theirs = (litellm, "--config", str(write_litellm(folder, url)), *where)
                found.append(await begin(LITELLM, *theirs, address=f"http://127.0.0.1:{port}", share=size.slow))
            yield found
    finally:
        if core is not None:
            os.sched_setaffinity(0, set(cores))


Costs = dict[tuple[str, str, int], list[float]]
"""Milliseconds of processor time per arm, shape and number of clients, round by round."""
Waits = dict[str, list[tuple[float, float]]]
"""Milliseconds per arm until the first token and until the end, stream by stream."""


async def measured(size: Size, litellm: str | None, console: Console) -> tuple[Costs, Waits]:
    """Runs every case in every round."""
    found: Costs = {}
    waited: Waits = {}
    with tempfile.TemporaryDirectory() as name:
        async with (
            arms(Path(name), litellm, size) as everyone,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        ):
            cases = [(arm, shape, clients) for arm in everyone for shape in arm.cases for clients in CLIENTS]
            for arm, shape, clients in cases:  # not counted: what is done once
                await play(session, arm, shape, clients, 4 * clients)
            for number in track(range(size.rounds), "measuring", console=console):
                for arm, shape, clients in cases if number % 2 == 0 else reversed(cases):
                    cost = await play(session, arm, shape, clients, size.plain if shape == PLAIN else size.stream)
                    found.setdefault((arm.name, shape, clients), []).append(cost)
                for arm in everyone if number % 2 == 0 else reversed(everyone):
                    if STREAM in arm.cases:
                        waited.setdefault(arm.name, []).extend(await waits(session, arm, size.waits, seed=number))
    return found, waited


def run(size: Size, litellm: str | None, console: Console) -> dict[str, Any]:
    """Measures everything and prints it; returns what the JSON file holds."""
    began, load_average = time.perf_counter(), os.getloadavg()[0]
    found, waited = asyncio.run(measured(size, litellm, console))
    costs: dict[str, Any] = {}
    for (arm, shape, clients), rounds in found.items():
        cell = {"median": statistics.median(rounds), "fastest": min(rounds), "slowest": max(rounds)}
        cells = costs.setdefault(arm, {}).setdefault(shape, {})
        cells[str(clients)] = {name: round(value, 4) for name, value in cell.items()}
    latencies = {
        arm: {
            what: {f"p{percent}": round(float(np.percentile(values, percent)), 3) for percent in _PERCENTILES}
            for what, values in zip(("first token", "whole"), np.transpose(each), strict=True)
        }
        for arm, each in waited.items()
    }
    console.print(_table(costs))
    console.print(_waits_table(latencies))
    return {
        "machine": machine("aiohttp", "uvloop", "numpy"),
        "litellm": litellm is not None,
        "load_average_before": round(load_average, 2),
        "seconds": round(time.perf_counter() - began),
        "size": dataclasses.asdict(size),
        "milliseconds": costs,
        "streams_per_second": _PER_SECOND,
        "latency_milliseconds": latencies,
    }


def _table(costs: dict[str, Any]) -> Table:
    table = Table(title="Milliseconds of processor time per request: median (fastest to slowest round)")
    table.add_column("process")
    for shape in (PLAIN, STREAM):
        for clients in CLIENTS:
            table.add_column(f"{shape}, clients: {clients}", justify="right")
    for arm, shapes in costs.items():
        cells = [shapes.get(shape, {}).get(str(clients)) for shape in (PLAIN, STREAM) for clients in CLIENTS]
        told = ("-" if c is None else f"{c['median']:.3f} ({c['fastest']:.3f} to {c['slowest']:.3f})" for c in cells)
        table.add_row(arm, *told)
    return table


def _waits_table(latencies: dict[str, Any]) -> Table:
    table = Table(title=f"Milliseconds of streams of {_TOKENS} tokens, {_PER_SECOND:g} per second")
    table.add_column("process")
    for what in ("first token", "whole"):
        for percent in _PERCENTILES:
            table.add_column(f"{what}, P{percent}", justify="right")
    for arm, found in latencies.items():
        table.add_row(arm, *(f"{value:.2f}" for each in found.values() for value in each.values()))
    return table


def rows(result: dict[str, Any]) -> list[Row]:
    """Lines of the table of all benchmarks."""
    costs = result["milliseconds"]
    found = []
    for shape, ours in ((PLAIN, WHOLE), (STREAM, OURS)):
        for clients in map(str, CLIENTS):
            own = costs[ours][shape][clients]["median"]
            what = f"A request through the gateway, {shape}, clients: {clients}"
            for name, target in ((BARE, None), (LITELLM, 20.0)):
                if name in costs:
                    other = costs[name][shape][clients]["median"]
                    found.append(Row(what, f"{own:.2f} ms", f"{other:.2f} ms ({name})", other / own, target))
    return found


def _executable(stated: str | None) -> str | None:
    """LiteLLM's proxy: as stated, unless that is empty, or the one on the path."""
    return shutil.which("litellm") if stated is None else stated or None


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--litellm", help="executable of LiteLLM's proxy, `` for none; the one on the path unless given"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gateway.json", help="file to write")
    parser.add_argument("--fast", action="store_true", help="few requests, one round: whether it runs, not how fast")
    parser.add_argument("--serve", metavar="URL", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.serve is not None:
        serve(upstream if args.serve == "upstream" else bare(args.serve))
        return
    check_replaced(parser, args.out, fast=args.fast)
    result = run(FAST if args.fast else Size(), _executable(args.litellm), Console(width=200))
    write_result(args.out, result, fast=args.fast)


if __name__ == "__main__":
    main()
