"""Many requests through a gateway whose servers are killed, hung, slow, lying or full, and whose clients leave.

    python -m tests.soak [--requests 100000]

Every answer must be whole or say that it is an error, all counts must be 0 at the end, and the gateway's memory must
not grow. Needs Linux, for the memory of the gateway, which is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import yaml

from besteffort.policy import save_policy
from tests.gateway.backends import USAGE, Backend, Call, answer, answer_chat, event
from tests.gateway.policies import MODELS, greedy

AT_ONCE = 48
LEAVES = 0.05  # share of clients that leave before their answer is whole
PAUSE_S = 0.1  # after an error, as clients make one
GROWTH = 1.05  # of memory, that is no leak
MODES = {"good": 120, "slow": 8, "hung": 3, "reset": 6, "cut": 6, "lying": 6, "full": 6, "failing": 6, "killed": 4}
"""How a server behaves, and how often."""


@dataclasses.dataclass
class Moody:
    """A server that changes its behaviour, and now and then its process, as it seems from outside."""

    rng: random.Random
    mode: str = "good"
    port: int = 0
    backend: Backend = dataclasses.field(init=False)
    server: asyncio.Server | None = None

    def __post_init__(self) -> None:
        self.backend = Backend(self.behave)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def live(self) -> None:
        """Changes every now and then, until cancelled."""
        while True:
            await asyncio.sleep(self.rng.uniform(0.5, 3.0))
            await self.become(self.rng.choices(list(MODES), list(MODES.values()))[0])

    async def become(self, mode: str) -> None:
        """Changes now; what was asked of a server that is killed gets no answer."""
        self.mode = mode
        if mode == "killed":
            if self.server is not None:
                self.server.close()
                self.server = None
            await self.backend.stop()
        elif self.server is None:
            self.server = await asyncio.start_server(self.backend.handle, "127.0.0.1", self.port, backlog=256)
            self.port = self.server.sockets[0].getsockname()[1]

    async def behave(self, call: Call) -> None:
        self.backend.calls.clear()
        mode, whole = self.mode, answer_chat if call.path.endswith("chat/completions") else answer
        if mode == "slow":
            await asyncio.sleep(self.rng.uniform(0.02, 0.2))
        if mode in ("good", "slow"):
            await whole(call)
        elif mode == "hung":
            await call.left()
        elif mode == "reset":
            call.reset()
        elif mode == "cut":
            await call.begin_stream()
            await call.chunk(event("4") + b'data: {"cho')
            call.reset()
        elif mode == "full":
            await call.respond(429, {"error": "full"}, {"retry-after": "3600"})
        elif mode == "failing":
            await call.respond(500, {"detail": "out of memory"})
        elif call.body.get("stream"):
            await call.begin_stream()
            lies = [b"data: 42\n\n", event("4"), b'data: {"error": {"message": "no"}}\n\n', event("4") + USAGE, b""]
            await call.chunk(self.rng.choice(lies) or b"\n")
            await call.end_stream()  # as if that were all
        else:
            lies = [b"42", b'{"error": "no"}', b"[]", b"\xff" * 100]
            await call.respond(200, self.rng.choice(lies))


@dataclasses.dataclass
class Counts:
    """What became of the requests."""

    ended: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    errors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    lost: list[str] = dataclasses.field(default_factory=list)
    memory: list[int] = dataclasses.field(default_factory=list)  # bytes, every 10,000 requests

    @property
    def total(self) -> int:
        return sum(self.ended.values())


def judge(status: int, raw: bytes, streamed: bool) -> str:
    """`whole` or `error`; else what is wrong with an answer."""
    error = b'"error"' in raw
    if status != 200:
        return "error" if error and json.loads(raw)["error"]["message"] else f"status {status} without an error"
    texts = re.findall(rb'"(?:text|content)": ?"([^"]*)"', raw)
    right = b"".join(texts) == b"42"
    if not streamed:
        return "whole" if right and json.loads(raw)["usage"] else "another answer"
    if error:
        return "error" if raw.endswith(b"\n\n") else "half an error"
    return "whole" if right and raw.endswith(b"data: [DONE]\n\n") else "an answer cut short without an error"


async def ask(session: aiohttp.ClientSession, address: str, number: int, counts: Counts, rng: random.Random) -> None:
    """One request."""
    streamed, chat = rng.random() < 0.5, rng.random() < 0.2
    body = {"model": "besteffort", "stream": streamed, "max_tokens": 5}
    words = "a" * rng.randrange(400)
    body |= {"messages": [{"role": "user", "content": words}]} if chat else {"prompt": words}
    headers = {"x-besteffort-deadline-ms": "60000"} if rng.random() < 0.9 else {}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    try:
        async with asyncio.timeout(rng.uniform(0.0, 0.05) if rng.random() < LEAVES else 60.0):
            async with session.post(address + path, json=body, headers=headers) as response:
                raw = await response.read()
                found = judge(response.status, raw, streamed)
    except TimeoutError:
        counts.ended["left"] += 1
        return
    except (aiohttp.ClientError, ValueError, KeyError, TypeError) as error:
        raw = b""
        found = f"{type(error).__name__}: {error}"
    if found == "error":
        code = re.search(rb'"code": ?"?([a-z0-9_]+)', raw)
        counts.errors[code[1].decode() if code else ""] += 1
        await asyncio.sleep(PAUSE_S)
    counts.ended[found if found in ("whole", "error") else "lost"] += 1
    if found not in ("whole", "error"):
        counts.lost.append(f"request {number}: {found}")


def resident_bytes(process: int) -> int:
    """Memory of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def figures(session: aiohttp.ClientSession, address: str) -> dict[str, float]:
    """Of `/metrics`, sums over labels."""
    sums: dict[str, float] = {}
    async with session.get(f"{address}/metrics") as response:
        for line in (await response.text()).splitlines():
            if line and line[0] != "#":
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                sums[name] = sums.get(name, 0.0) + float(value)
    return sums


async def soak(requests: int, seed: int, folder: Path) -> bool:
    """Whether all went well; prints what happened."""
    rng = random.Random(seed)
    servers = [Moody(random.Random(rng.random())) for _ in range(5)]
    for server in servers:
        await server.become("good")
    limits = {"connect_s": 5.0, "first_token_s": 3.0, "between_tokens_s": 3.0, "total_s": 10.0}
    pools = [
        {"name": "small", "model": MODELS[0], "urls": [s.url for s in servers[:2]], "timeouts": limits, "limit": 24},
        {"name": "medium", "model": MODELS[1], "urls": [s.url for s in servers[2:4]], "timeouts": limits, "limit": 24},
        {"name": "large", "model": MODELS[2], "urls": [servers[4].url], "timeouts": limits, "assemble": False},
    ]
    given = {
        "policy": "policy.safetensors",
        "pools": pools,
        "listen": {"port": 0},
        "breaker": {"failures": 3, "open_s": 0.2, "longest_s": 1.0},
        "request_log": "requests.csv",
    }
    (folder / "gateway.yaml").write_text(yaml.safe_dump(given))
    save_policy(greedy(), folder / "policy.safetensors")
    gateway = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "besteffort.gateway",
        str(folder / "gateway.yaml"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert gateway.stdout is not None
    address = (await gateway.stdout.readline()).decode().split(" ")[2].rstrip(":")
    moods = [asyncio.create_task(server.live()) for server in servers]
    counts, begun_s = Counts(), time.monotonic()
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            numbers = iter(range(requests))

            async def client() -> None:
                for number in numbers:
                    await ask(session, address, number, counts, rng)
                    if counts.total % 10_000 == 0:
                        counts.memory.append(resident_bytes(gateway.pid))
                        told = f"{counts.total:,} in {time.monotonic() - begun_s:.0f} s: {dict(counts.ended)}"
                        sys.stdout.write(f"{told}; {counts.memory[-1] / 2**20:.1f} MiB\n")
                        sys.stdout.flush()

            await asyncio.gather(*(client() for _ in range(AT_ONCE)))
            for mood in moods:
                mood.cancel()
            await asyncio.sleep(limits["total_s"] + 1.0)
            seen = await figures(session, address)
    finally:
        gateway.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(gateway.wait(), 60)
        for server in servers:
            await server.become("killed")
    left = {name: seen[f"besteffort_{name}"] for name in ("requests_in_flight", "open_requests")}
    logged = len((folder / "requests.csv").read_text().splitlines()) - 1
    growth = counts.memory[-1] / counts.memory[0] if len(counts.memory) > 1 else 1.0
    sys.stdout.write(f"errors by code: {dict(counts.errors)}\n")
    for line in counts.lost[:20]:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(
        f"{requests:,} requests: {dict(counts.ended)}; counts at the end {left}, leases that ran out "
        f"{seen['besteffort_leases_expired_total']:.0f}, sent again {seen['besteffort_retries_total']:.0f}, "
        f"lines in the log {logged:,}, memory x {growth:.3f}, status {gateway.returncode}\n"
    )
    return not counts.lost and not any(left.values()) and growth <= GROWTH and gateway.returncode == 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return 0 if asyncio.run(soak(given.requests, given.seed, Path(folder))) else 1


if __name__ == "__main__":
    sys.exit(main())
