"""`besteffort profile fit` on logs of servers whose truth is known, from idle to overloaded.

    python -m experiments.fit_servers [--requests N] [--seed S] [--out FILE]

Six servers, each at three rates. Three are the serving model itself (the reference simulator), which reads prompts
whole or in chunks, so that its terms and limits can be held against those fitted; they meet bursts, too, in which alone
their largest batch is reached. Three are not: they share nothing with it but the word iteration, mix prompts cut to a
budget of tokens with decoding, overlap arithmetic and memory, and take noisy times; one is limited by its batch, one
by a cache from which it evicts the youngest, one by a cache that it reserves beforehand. Every log is fitted on its
first half and judged on its second. Writes results/fit_servers.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from besteffort.files import write_json
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality
from besteffort.profiling.fit import fit
from besteffort.profiling.fitted_profile import MEASURES, PERCENTILES, judge
from besteffort.profiling.server_log import RequestLog, read_log
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Cluster, Situation, Task
from besteffort.version import __version__
from besteffort.workload.requests import Requests
from experiments.lab import exiting

ROOT = Path(__file__).resolve().parent.parent
RATES = {"idle": 0.2, "moderate": 3.0, "overloaded": 10.0}
_KNOWN = Source("modelled", "chosen for this experiment")
DECODE = ((1, 0.012), (8, 0.0125), (32, 0.015))
PREFILL = ((1, 0.004), (4000, 0.3))
MODEL = Profile(
    format=1,
    name="known",
    device="none",
    models=(ModelProfile("model", DECODE, PREFILL, context_cost_s=1e-7),),
    tasks=(TaskQuality("task", "none", "none", (100.0,)),),
    provenance=Provenance(_KNOWN, _KNOWN, _KNOWN, _KNOWN),
)
MODEL_BATCH = 24
MODELS: dict[str, int | None] = {"serving model": None, "chunks of 512": 512, "chunks of 2,048": 2048}
"""Servers that are the serving model, with their `chunk_tokens`."""

BURSTS = "in bursts"


@dataclasses.dataclass(frozen=True)
class Server:
    """A server in plain Python. The defaults are about an 8 billion model on a card with 1.5 TB/s and 200 TFLOP/s.

    Attributes:
      weights_s: reading the weights, which every iteration has to.
      token_s: arithmetic per token, of prompts and outputs alike; goes on while weights are read.
      overhead_s: the host's share of an iteration.
      context_s: reading one token of the cache.
      budget: most tokens of an iteration; prompts are cut to fit.
      max_batch: most requests that run at once.
      cache_tokens: tokens that fit the cache.
      block: tokens of one block of the cache.
      reserve: admit a request only if its whole answer will fit; else as soon as its prompt does, and if the cache
        fills up, evict the youngest, who starts again with what it has.
      noise: standard deviation of the logarithm of an iteration's length.
    """

    weights_s: float = 0.0105
    token_s: float = 8e-5
    overhead_s: float = 0.003
    context_s: float = 1e-7
    budget: int = 2048
    max_batch: int = 256
    cache_tokens: float = math.inf
    block: int = 16
    reserve: bool = False
    noise: float = 0.05

    def blocks(self, tokens: int) -> int:
        """Tokens of cache that so many tokens take."""
        return -(-tokens // self.block) * self.block


SERVERS = {
    "batch of 32": Server(max_batch=32),
    "cache with eviction": Server(cache_tokens=20_000),
    "cache reserved": Server(cache_tokens=20_000, reserve=True),
}


@dataclasses.dataclass(slots=True, eq=False)
class _Sequence:
    """A request: `computed` of its tokens are in the cache, it gets its next one when all `known` ones are."""

    index: int
    prompt: int
    output: int
    known: int
    computed: int = 0

    @property
    def generated(self) -> int:
        return self.known - self.prompt


def serve(
    server: Server, arrival_s: np.ndarray, prompts: np.ndarray, outputs: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) times of first and last tokens of requests in order of arrival."""
    rng = np.random.default_rng(seed)
    first_s, last_s = np.full((2, len(arrival_s)), np.nan)
    waiting: deque[_Sequence] = deque()
    running: list[_Sequence] = []
    now, coming = 0.0, 0
    while coming < len(arrival_s) or waiting or running:
        if not waiting and not running:
            now = max(now, float(arrival_s[coming]))
        while coming < len(arrival_s) and arrival_s[coming] <= now:
            prompt = int(prompts[coming])
            waiting.append(_Sequence(coming, prompt, int(outputs[coming]), known=prompt))
            coming += 1
        work = _schedule(server, waiting, running)
        held = sum(sequence.computed for sequence in work)
        arithmetic_s = server.token_s * sum(work.values())
        length_s = server.overhead_s + max(server.weights_s, arithmetic_s) + server.context_s * held
        now += length_s * math.exp(server.noise * rng.normal())
        for sequence, tokens in work.items():
            sequence.computed += tokens
            if sequence.computed < sequence.known:
                continue
            sequence.known += 1
            if sequence.generated == 1:
                first_s[sequence.index] = now
            if sequence.generated == sequence.output:
                last_s[sequence.index] = now
                running.remove(sequence)
    return first_s, last_s


def _schedule(server: Server, waiting: deque[_Sequence], running: list[_Sequence]) -> dict[_Sequence, int]:
    """Tokens to compute in the next iteration, by request; admits and evicts."""
    budget = server.budget
    work: dict[_Sequence, int] = {}

    def taken() -> int:
        return sum(
            server.blocks(each.prompt + each.output if server.reserve else each.computed + work.get(each, 0))
            for each in running
        )

    for sequence in list(running):
        if sequence not in running:
            continue
        work[sequence] = min(sequence.known - sequence.computed, budget)
        while taken() > server.cache_tokens and running[-1] is not sequence:
            evicted = running.pop()
            budget += work.pop(evicted, 0)
            evicted.computed = 0
            waiting.appendleft(evicted)
        budget -= work[sequence]
    while waiting and budget > 0 and len(running) < server.max_batch:
        sequence = waiting[0]
        needed = server.blocks(sequence.prompt + sequence.output if server.reserve else sequence.known)
        if running and taken() + needed > server.cache_tokens:
            break
        running.append(waiting.popleft())
        work[sequence] = min(sequence.known, budget)
        budget -= work[sequence]
    return {sequence: tokens for sequence, tokens in work.items() if tokens > 0}


def requests_at(rate: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poisson arrivals, prompts of about 500 and outputs of about 150 tokens, both log-normal."""
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate, count))
    prompts = np.clip(rng.lognormal(math.log(500), 0.7, count), 8, 4000).astype(int)
    outputs = np.clip(rng.lognormal(math.log(150), 0.6, count), 2, 1500).astype(int)
    return arrival_s - arrival_s[0], prompts, outputs


def in_bursts(arrival_s: np.ndarray) -> np.ndarray:
    """(n,) arrivals, of which every fourth tenth come six times as fast."""
    gaps_s = np.diff(arrival_s, prepend=0.0)
    tenth = np.arange(len(gaps_s)) * 10 // len(gaps_s)
    return np.asarray(np.cumsum(np.where(tenth % 4 == 3, gaps_s / 6, gaps_s)))


def log_of(server: Server | str, rate: float, count: int, seed: int, path: Path, *, bursts: bool = False) -> RequestLog:
    """Serves requests, writes the log to `path` and reads it; a name is one of `MODELS`."""
    arrival_s, prompts, outputs = requests_at(rate, count, seed)
    if bursts:
        arrival_s = in_bursts(arrival_s)
    if isinstance(server, str):
        requests = Requests(("task",), arrival_s, np.zeros(count), prompts, outputs, np.ones(count))
        model = dataclasses.replace(MODEL.models[0], chunk_tokens=MODELS[server])
        profile = dataclasses.replace(MODEL, models=(model,))
        situation = Situation(profile, Cluster(1, MODEL_BATCH, count), (Task("task"),))
        result = simulate_by_reference(requests, situation, lambda index, observation: 0)
        first_s, last_s = result.first_token_s, result.completion_s
    else:
        first_s, last_s = serve(server, arrival_s, prompts, outputs, seed)
    names = ("arrival_s", "first_token_s", "last_token_s", "prompt_tokens", "output_tokens")
    columns = (arrival_s, first_s, last_s, prompts, outputs)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows), encoding="utf-8")
    return read_log(path)


@exiting("fit_servers")
def main() -> None:
    """The command line.

    Raises:
      SystemExit: with status 2 on a user's mistake.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400, help="per log (default 400)")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals, lengths and noise (default 1)")
    parser.add_argument("--only", choices=(*MODELS, *SERVERS), help="this server alone")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "fit_servers.json", help="file to write")
    arguments = parser.parse_args()
    console = Console()
    rows: list[dict[str, Any]] = []
    servers: dict[str, Server | str] = {**{name: name for name in MODELS}, **SERVERS}
    played = [(name, load) for name in servers for load in (*RATES, *([BURSTS] if name in MODELS else []))]
    for name, load in played:
        if arguments.only not in (None, name):
            continue
        server, rate = servers[name], RATES.get(load, RATES["moderate"])
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "log.jsonl"
            log = log_of(server, rate, arguments.requests, arguments.seed, path, bursts=load == BURSTS)
        started = time.process_time()
        found = fit(log, np.arange(len(log)) < len(log) // 2, explain=False)
        held_out = judge(log, found)
        row: dict[str, Any] = {
            "server": name,
            "load": load,
            "requests_per_s": rate,
            "limit_found": found.limit,
            "max_batch": found.max_batch,
            "chunk_tokens": found.chunk_tokens,
            "predict_as_well": [str(each) for each in found.alike],
            "median_latency_s": float(np.median(log.latency_s)),
            "processor_seconds": round(time.process_time() - started, 1),
            "relative_error": {MEASURES[m]: [float(e) for e in held_out.errors(m)] for m in MEASURES},
        }
        if isinstance(server, str):
            row["truth"] = {"chunk_tokens": MODELS[name], "max_batch": MODEL_BATCH}
            row["terms"] = _terms(found.decode, found.prefill, found.context_cost_s, log)
        rows.append(row)
        errors = "; ".join(
            f"{measure} {' '.join(f'{100 * error:+.1f}%' for error in row['relative_error'][measure])}"
            for measure in MEASURES.values()
        )
        console.print(f"{name}, {load}: {errors}; found: {found.assumed}", highlight=False, soft_wrap=True)
        write_json(  # after every log, so that an interrupted run leaves what it has
            arguments.out,
            {
                "version": __version__,
                "seed": arguments.seed,
                "requests": arguments.requests,
                "percentiles": PERCENTILES,
                "logs": rows,
            },
        )


def _terms(decode: Any, prefill: Any, context_cost_s: float, log: RequestLog) -> dict[str, float]:
    """Relative errors of what the serving model's server costs, at the middle and the end of what the log covers."""

    def at(points: Any, x: float) -> float:
        return float(np.interp(x, *np.array(points).T))

    held = float(np.mean(log.prompt_tokens + log.output_tokens / 2))
    errors = {}
    for batch in sorted({1, decode[-1][0] // 2 or 1, decode[-1][0]}):
        found, truth = (at(p, batch) + c * held * batch for p, c in ((decode, context_cost_s), (DECODE, 1e-7)))
        errors[f"decode at {batch}, context included"] = found / truth - 1
    for tokens in (200, 500, 1500):
        errors[f"prefill of {tokens}"] = at(prefill, tokens) / at(PREFILL, tokens) - 1
    return errors


if __name__ == "__main__":
    main()
