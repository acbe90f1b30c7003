"""A gateway that believes a wrong profile, and mends it from its own log: the loop closed once, in real time.

    python -m experiments.closed_loop [--out FILE]

The demo's engine serves three models. A gateway before it believes that all of them take three times as long as they
do. The demo's list is played to it; then `profile fit` fits the profile to what the gateway has logged, the gateway
takes up the policy that needs no training for the fitted profile, and the list is played again; then a searched policy
is taken up and the list is played once more. Each is a change of the gateway's file, which it reads while it serves. At
last, what the gateway does which has believed the truth from the beginning. Lists differ from play to play in nothing.
Writes results/closed_loop.json; two to six minutes on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from besteffort import laptop
from besteffort.demo.fleet import SITUATION, paces
from besteffort.demo.play import ask, play_demo, table
from besteffort.device import cores, cpu_name
from besteffort.engine.command import load_models, warm_up
from besteffort.engine.server import EngineServer
from besteffort.files import write_json
from besteffort.gateway.config import Listen
from besteffort.gateway.http import Listener
from besteffort.load.play import Played, Target
from besteffort.opt.engine import Engine
from besteffort.profile import Profile, load_profile, save_profile
from besteffort.runs.config import load_situation
from besteffort.version import __version__
from experiments.lab import exiting

ROOT = Path(__file__).resolve().parent.parent
WRONG = 3.0
"""Times of the wrong profile over the true ones."""
_SEARCH = ("training.method=search", "training.search.generations=4", "training.search.requests=4000")
_RELOAD_S = 30.0


def wrong(profile: Profile) -> Profile:
    """The profile with `WRONG` times its times."""
    models = tuple(
        dataclasses.replace(
            model,
            decode=tuple((size, WRONG * seconds) for size, seconds in model.decode),
            prefill=tuple((tokens, WRONG * seconds) for tokens, seconds in model.prefill),
        )
        for model in profile.models
    )
    return dataclasses.replace(profile, name="wrong", models=models)


def write_situation(folder: Path, name: str, profile: str) -> str:
    """The demo's situation with another profile, and without looking at how long things really take; its file."""
    given = yaml.safe_load((ROOT / "configs" / f"{SITUATION}.yaml").read_text("utf-8"))
    given["profile"] = profile
    del given["view"]["slowdown_tau_s"]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    return f"{name}.yaml"


def write_gateway(folder: Path, server: str, **policy: str) -> Path:
    """The gateway's file, which names a policy or a situation."""
    pools = [{"name": model, "urls": [f"{server}/{model}/v1"]} for model in laptop.MODELS]
    path = folder / "gateway.yaml"
    aside = path.with_suffix(".new")
    given = {**policy, "pools": pools, "listen": {"port": 0}, "request_log": "requests.csv"}
    aside.write_text(yaml.safe_dump(given), encoding="utf-8")
    aside.replace(path)
    return path


def command(folder: Path, *arguments: str) -> None:
    """Runs `besteffort` to its end."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "besteffort", *arguments], cwd=folder, env=environment, check=True)


@contextlib.asynccontextmanager
async def engine(console: Console) -> AsyncIterator[str]:
    """The demo's engine, at its pace; its address."""
    situation = load_situation(SITUATION)
    loaded, cluster = load_models(laptop.MODELS), situation.cluster
    made = Engine(
        loaded.models, max_batch=cluster.max_batch, queue_capacity=cluster.queue_capacity, paces=paces(situation)
    )
    async with made:
        await warm_up(made, console.print)
        listen = Listen(port=0)
        behind = Listener(EngineServer(made, loaded.texts, listen).application(), listen)
        try:
            yield await behind.start()
        finally:
            await behind.stop()


@contextlib.asynccontextmanager
async def gateway(path: Path, console: Console) -> AsyncIterator[str]:
    """`besteffort serve`; its address."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command_line = (sys.executable, "-m", "besteffort", "serve", str(path))
    one = await asyncio.create_subprocess_exec(*command_line, stdout=asyncio.subprocess.PIPE, env=environment)
    assert one.stdout is not None
    try:
        line = ""
        while "Listening on " not in line:
            line = (await one.stdout.readline()).decode()
            if not line:
                raise SystemExit("The gateway ended before it listened.")
        console.print(line.strip())
        yield line.split("Listening on ")[1].split()[0].rstrip(".:;,")
    finally:
        if one.returncode is None:
            one.terminate()
        await one.communicate()


async def snapshot_of(address: str) -> int:
    """How often the gateway has replaced its policy or configuration."""
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(f"{address}/metrics") as response:
        for line in (await response.text()).splitlines():
            if line.startswith("besteffort_snapshot "):
                return int(float(line.split()[1]))
    raise SystemExit("The gateway does not say what is in use.")


async def taken_up(address: str, before: int) -> None:
    """Waits until the gateway has read its file again."""
    async with asyncio.timeout(_RELOAD_S):
        while await snapshot_of(address) == before:
            await asyncio.sleep(0.2)


async def loop(folder: Path, console: Console) -> dict[str, Played]:
    """Plays the list before and after, see the module."""
    save_profile(wrong(load_profile(SITUATION)), folder / "wrong.json")
    asked, played = ask(), {}

    async with engine(console) as server:

        async def play(name: str, address: str) -> None:
            console.print(f"Playing to the gateway that believes: {name}")
            target = Target(f"{address}/v1")
            played[name] = await asyncio.to_thread(play_demo, asked, target, lambda done, of: None)

        async def take_up(address: str, **policy: str) -> None:
            before = await snapshot_of(address)
            write_gateway(folder, server, **policy)
            await taken_up(address, before)

        path = write_gateway(folder, server, situation=write_situation(folder, "believed", "wrong.json"))
        async with gateway(path, console) as address:
            await play("a wrong profile", address)
            await asyncio.sleep(2.0)  # so that the log is written
            fit = ("profile", "fit", "requests.csv", "--into", "wrong.json", "--out", "fitted.json", "--quiet")
            await asyncio.to_thread(command, folder, *fit)
            situation = write_situation(folder, "mended", "fitted.json")
            await take_up(address, situation=situation)
            await play("the profile fitted to its log", address)
            changes = (part for change in _SEARCH for part in ("--set", change))
            search = ("train", situation, "--out", "next", "--seeds", "1", *changes, "--quiet")
            await asyncio.to_thread(command, folder, *search)
            await take_up(address, policy="next/policy.safetensors")
            await play("the same, and a searched policy", address)
            await take_up(address, situation=write_situation(folder, "true", SITUATION))
            await play("the true profile", address)
    return played


def run(console: Console) -> dict[str, Any]:
    """Closes the loop and prints what came of it; returns what the JSON file holds."""
    began, load_average = time.perf_counter(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        played = asyncio.run(loop(folder, console))
        fitted, true = load_profile(str(folder / "fitted.json")), load_profile(SITUATION)
    asked = ask()
    console.print(table(asked, played).markdown())
    rows = {}
    for believed, each in played.items():
        right = np.array([text == case.answer for text, case in zip(each.texts, asked.cases.cases, strict=True)])
        met, model = each.result.met, each.result.model
        rows[believed] = {
            "right_and_in_time": round(float((right & met).mean()), 4),
            "in_bursts": round(float((right & met)[asked.in_burst].mean()), 4),
            "in_time": round(float(met.mean()), 4),
            "right": round(float(right.mean()), 4),
            "by_model": [round(float((model == index).mean()), 4) for index in range(len(laptop.MODELS))],
        }
    ratio = {
        one.name: {
            "decode_of_one": round(one.decode[0][1] / other.decode[0][1], 3),
            "decode_of_a_full_batch": round(_at(one.decode, 16) / _at(other.decode, 16), 3),
            "prefill": round(_at(one.prefill, 9) / _at(other.prefill, 9), 3),
        }
        for one, other in zip(fitted.models, true.models, strict=True)
    }
    return {
        "version": __version__,
        "machine": {"cpu": cpu_name(), "cores": cores()},
        "load_average_before": round(load_average, 2),
        "seconds": round(time.perf_counter() - began),
        "requests": len(asked.in_burst),
        "times_of_the_wrong_profile": WRONG,
        "fitted_over_true": ratio,
        "played": rows,
    }


def _at(points: tuple[tuple[int, float], ...], where: int) -> float:
    numbers, seconds = zip(*points, strict=True)
    return float(np.interp(where, numbers, seconds))


def main() -> None:
    """Reads the command line, runs and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "closed_loop.json", help="file to write")
    args = parser.parse_args()
    with exiting("closed_loop"):
        write_json(args.out, run(Console(width=160)))


if __name__ == "__main__":
    main()
