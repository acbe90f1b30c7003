"""`besteffort profile fit` on logs of this package's own engine, in real time on this machine.

    python -m experiments.fit_engine [--requests N] [--seed S] [--out FILE]

A small OPT with random weights serves requests that come by a Poisson process at three loads, in multiples of what the
engine gets through when all come at once. A log says only when a request came and when its first and last token were
there. The profile is fitted to its first half and judged on the second; and, since a machine that others use does not
keep its pace, fitted to every other stretch of requests and judged on those between. Beside the errors stands what the
machine itself does: how far the same percentiles of a second run of the same list are from those of the first. Writes
results/fit_engine.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from besteffort.device import device_name
from besteffort.files import write_json
from besteffort.opt.config import OPTConfig
from besteffort.opt.engine import Answer, Engine
from besteffort.opt.weights import random_model
from besteffort.profiling.fit import fit
from besteffort.profiling.fitted_profile import MEASURES, PERCENTILES, HeldOut
from besteffort.profiling.server_log import RequestLog, read_log
from besteffort.version import __version__
from experiments.lab import exiting

ROOT = Path(__file__).resolve().parent.parent
SHAPE = OPTConfig(vocab=1000, hidden=256, layers=4, heads=4, ffn=1024, embedding=256, positions=256)
MAX_BATCH = 8
LOADS = {"idle": 0.3, "moderate": 0.7, "overloaded": 1.3}
_BURST = 64
_STRETCH = 25  # requests
_NAMES = ("arrival_s", "first_token_s", "last_token_s", "prompt_tokens", "output_tokens")


def lengths(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of about 40 and outputs of about 25 tokens, both log-normal; together they fit the context."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(math.log(40), 0.6, count), 4, 160).astype(int)
    return prompts, np.clip(rng.lognormal(math.log(25), 0.5, count), 2, 90).astype(int)


async def serve(engine: Engine, arrival_s: np.ndarray, prompts: np.ndarray, outputs: np.ndarray) -> list[Answer]:
    """Submits each request at its time and waits for all answers."""
    start_s = time.perf_counter()
    answers = []
    for arrival, prompt, output in zip(arrival_s.tolist(), prompts.tolist(), outputs.tolist(), strict=True):
        wait = start_s + arrival - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        answers.append(engine.submit("opt", range(3, 3 + prompt), output, stop_tokens=()))
    for answer in answers:
        await answer.complete()
    return answers


def log_of(answers: list[Answer], path: Path) -> RequestLog:
    """Writes what a server's log holds, and reads it."""
    rows = [(a.arrival_s, a.first_token_s, a.completion_s, len(a.prompt), len(a.tokens)) for a in answers]
    path.write_text("".join(json.dumps(dict(zip(_NAMES, row, strict=True))) + "\n" for row in rows), encoding="utf-8")
    return read_log(path)


async def play(count: int, seed: int, directory: Path, console: Console) -> dict[str, list[RequestLog]]:
    """Two logs of the same list for every load."""
    prompts, outputs = lengths(count, seed)
    logs: dict[str, list[RequestLog]] = {}
    async with Engine(
        {"opt": random_model(SHAPE)}, max_batch=MAX_BATCH, queue_capacity=max(count, _BURST), context=256
    ) as engine:
        with console.status("Compiling"):
            await engine.warm_up()
        for _ in range(2):  # the first one warms up
            burst = await serve(engine, np.zeros(_BURST), *lengths(_BURST, seed))
        capacity = _BURST / (max(answer.completion_s for answer in burst) - burst[0].arrival_s)
        console.print(f"{capacity:.3g} requests/s when all come at once", highlight=False)
        for load, share in LOADS.items():
            gaps = np.random.default_rng([seed, int(100 * share)]).exponential(1 / (share * capacity), count)
            for turn in range(2):
                answers = await serve(engine, np.cumsum(gaps), prompts, outputs)
                logs.setdefault(load, []).append(log_of(answers, directory / f"{load}-{turn}.jsonl"))
    return logs


def judged(log: RequestLog, hidden: np.ndarray) -> HeldOut:
    """Requests whose times a fit was not shown, as measured and as it predicts them."""
    found = fit(log, ~hidden, explain=False)
    return compared(log, found.first_s, found.last_s, hidden)


def compared(log: RequestLog, ttft_s: np.ndarray, latency_s: np.ndarray, rows: np.ndarray) -> HeldOut:
    """Times of some requests of a log next to others."""
    return HeldOut(
        {"ttft_s": log.ttft_s[rows], "latency_s": log.latency_s[rows]},
        {"ttft_s": ttft_s[rows], "latency_s": latency_s[rows]},
    )


@exiting("fit_engine")
def main() -> None:
    """The command line.

    Raises:
      SystemExit: with status 2 on a user's mistake.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300, help="per log (default 300)")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and lengths (default 1)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "fit_engine.json", help="file to write")
    parser.add_argument("--logs", type=Path, help="directory to keep the logs in")
    arguments = parser.parse_args()
    console = Console()
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        kept = Path(directory) if arguments.logs is None else arguments.logs
        kept.mkdir(parents=True, exist_ok=True)
        logs = asyncio.run(play(arguments.requests, arguments.seed, kept, console))
    rows: list[dict[str, Any]] = []
    for load, (log, again) in logs.items():
        index = np.arange(len(log))
        second, between = index >= len(log) // 2, index // _STRETCH % 2 == 1
        found = {
            "second half": judged(log, second),
            "stretches between": judged(log, between),
            "second run": compared(log, again.ttft_s, again.latency_s, second),
        }
        rows.append(
            {
                "load": load,
                "requests_per_s": round(len(log) / float(log.arrival_s[-1]), 3),
                "median_latency_s": float(np.median(log.latency_s)),
                "relative_error": {
                    what: {words: held_out.errors(measure).tolist() for measure, words in MEASURES.items()}
                    for what, held_out in found.items()
                },
            }
        )
        for what, held_out in found.items():
            errors = " ".join(f"{100 * error:+.1f}%" for error in held_out.errors("latency_s"))
            console.print(f"{load}, {what}: end to end {errors}", highlight=False)
        write_json(
            arguments.out,
            {
                "version": __version__,
                "device": device_name(),
                "load_average_before": round(busy, 2),
                "seed": arguments.seed,
                "requests": arguments.requests,
                "percentiles": PERCENTILES,
                "logs": rows,
            },
        )


if __name__ == "__main__":
    main()
