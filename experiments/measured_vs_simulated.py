"""The laptop tier as it is served, held against what the simulator says of the same lists.

    python -m besteffort quickstart --profile laptop --out OUT
    python -m experiments.measured_vs_simulated play --policy OUT/dqn/policy.safetensors --runs DIR [--minutes 4.5]
    python -m experiments.measured_vs_simulated compare --policy OUT/dqn/policy.safetensors --runs DIR

`play` serves every list twice with every router by the real engine, in real time, and keeps the result of each request
in DIR; called again it goes on where it was, so that it can be done in short stretches on a quiet machine. `compare`
simulates the lists that were played twice with the built-in profile `laptop`, and writes
results/measured_vs_simulated.json, .md and a picture. Both refuse what was played with another profile, configuration
or policy. A policy has seen the profile only. The machine has to have nothing else to do while it plays; in virtual
time, where that does not matter: `experiments/virtual_vs_simulated.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import hashlib
import io
import itertools
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from besteffort.errors import InputError
from besteffort.evaluation import metrics, plots
from besteffort.evaluation.report import Column, Table
from besteffort.files import os_errors_as_input_errors, write_bytes, write_json, write_text
from besteffort.laptop import MODELS, compute_in_one_thread, model_directory
from besteffort.laptop.quality import right_tokens
from besteffort.laptop.requests import CaseList, with_cases
from besteffort.laptop.tasks import CONTEXT
from besteffort.opt.driver import Choose, Played, choose_by_policy, drive
from besteffort.opt.engine import Engine
from besteffort.opt.weights import load_model
from besteffort.policy import Policy, load_policy
from besteffort.runs.config import load_situation
from besteffort.runs.playing import router_named
from besteffort.simulator.result import Result
from besteffort.simulator.simulate import simulate
from besteffort.situation import Situation
from besteffort.workload import config as workloads
from besteffort.workload import rescale
from besteffort.workload.sample import sample_workload
from experiments.lab import exiting, fingerprint

ROOT = Path(__file__).resolve().parent.parent
LEARNED = "learned"
REPEATS = 2
LOADS = (0.5, 0.8, 1.0, 1.2)
BURSTY = workloads.Markov(loads=(0.3, 2.0), dwell_s=(4.0, 1.0))
SECONDS = 8.0
"""Length of a list at a constant load; bursty ones last three times as long."""
LONE, LONE_GAP_S = 30, 0.05
"""Requests before and after each list, to which the largest model answers alone: how fast the machine is just then."""
WARM_UP_S = 1.5
PERCENTILES = (50, 95, 99)
LONELY = "lone request"
BRIEF = (LONELY, "end to end P50", "end to end P95", "performance")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A list and a router: `load` 0.5, 0.8, 1.0, 1.2, or 0 for the bursty one."""

    load: float
    router: str

    @property
    def name(self) -> str:
        return f"{f'load {self.load:g}' if self.load else 'bursts'}, {self.router}"

    def file(self, repeat: int) -> str:
        """Name of the file that keeps the results of the list."""
        return f"{self.name}, {repeat}.npz"


def settings() -> list[Setting]:
    """The largest model and the policy at every load, and all models and the policy under bursts."""
    steady = [Setting(load, router) for load in LOADS for router in (MODELS[-1], MODELS[-2], LEARNED)]
    return [*(Setting(0.0, router) for router in (*MODELS, LEARNED)), *steady]


def list_of(load: float, situation: Situation) -> CaseList:
    """The same list for every router."""
    process = workloads.Poisson(load=load) if load else BURSTY
    seconds = SECONDS if load else 3 * SECONDS
    mean_load = load or float(np.average(BURSTY.loads, weights=BURSTY.dwell_s))
    count = round(seconds * mean_load * situation.unit_load)
    times = sample_workload(workloads.build(process, situation), situation.task_names, count, seed=7)
    listed = with_cases(times, situation, seed=7)
    if load:
        listed = dataclasses.replace(listed, requests=rescale.to_load(listed.requests, situation, load))
    return listed


def lists_of(settings: Iterable[Setting], situation: Situation) -> dict[float, CaseList]:
    """The lists of some settings by their load."""
    return {load: list_of(load, situation) for load in sorted({setting.load for setting in settings})}


def lone_requests(situation: Situation) -> CaseList:
    """Requests so far apart that each is alone."""
    listed = list_of(LOADS[0], situation)
    first = listed.requests.part(slice(0, LONE), 0.0)
    return CaseList(dataclasses.replace(first, arrival_s=LONE_GAP_S * np.arange(LONE)), listed.cases[:LONE])


def always(model: int) -> Choose:
    """The same model for every request."""
    return lambda index, seen: model


def origin(setting: Setting, situation: Situation, policy: Path) -> dict[str, str]:
    """Digests of what rewards, deadlines and choices of a play come from; no policy where none chose."""
    profile, rest = fingerprint(situation)
    routed = policy.read_bytes() if setting.router == LEARNED else b""
    return {
        "profile": profile,
        "configuration": hashlib.sha256(rest.encode()).hexdigest(),
        "policy": hashlib.sha256(routed).hexdigest(),
    }


def read(file: Path, expected: dict[str, str]) -> dict[str, np.ndarray]:
    """What `save` kept.

    Raises:
      InputError: if it was played with something else than expected.
    """
    with np.load(file) as kept:
        for what, digest in expected.items():
            if str(kept[what]) != digest:
                raise InputError(f"{file}: this was played with another {what}; give `--runs` a directory of its own.")
        return dict(kept)


async def play(
    situation: Situation, policy: Path, loaded: Policy, runs: Path, minutes: float, console: Console
) -> None:
    """Plays what has not been played yet, for so many minutes.

    Raises:
      InputError: if something was played with another profile, configuration or policy.
    """
    origins = {setting: origin(setting, situation, policy) for setting in settings()}
    for repeat, setting in itertools.product(range(REPEATS), settings()):
        if (runs / setting.file(repeat)).exists():
            read(runs / setting.file(repeat), origins[setting])
    lists = lists_of(settings(), situation)
    until_s = time.monotonic() + 60 * minutes
    cluster = situation.cluster
    models = {name: load_model(model_directory(name)) for name in MODELS}
    learned, lone = choose_by_policy(loaded, situation), lone_requests(situation)
    choices = {**{name: always(number) for number, name in enumerate(MODELS)}, LEARNED: learned}
    async with Engine(
        models, max_batch=cluster.max_batch, queue_capacity=cluster.queue_capacity, context=CONTEXT
    ) as engine:
        await engine.warm_up()
        for repeat, setting in itertools.product(range(REPEATS), settings()):
            file = runs / setting.file(repeat)
            if file.exists():
                continue
            listed = lists[setting.load]
            if time.monotonic() + listed.requests.arrival_s[-1] > until_s:
                console.print("There is more to play; call again.")
                return
            before = await drive(engine, lone.requests, lone.prompts, situation, choices[MODELS[-1]])
            played = await drive(engine, listed.requests, listed.prompts, situation, choices[setting.router])
            after = await drive(engine, lone.requests, lone.prompts, situation, choices[MODELS[-1]])
            lone_s = np.concatenate([before.result.latency_s, after.result.latency_s])
            right = [
                list(tokens) == right_tokens(case) for tokens, case in zip(played.answers, listed.cases, strict=True)
            ]
            save(played, np.array(right), lone_s, origins[setting], file)
            console.print(
                f"{setting.name}: performance {played.result.reward.mean():.3f}, "
                f"a lone request {1000 * np.median(lone_s):.1f} ms",
                highlight=False,
            )


def save(played: Played, right: np.ndarray, lone_s: np.ndarray, origin: dict[str, str], file: Path) -> None:
    """Keeps the results of a list and of the lone requests around it, and what it was played with."""
    columns = {name: values for name, values in vars(played.result).items() if values is not None}
    extra = {"right": right, "lone_s": lone_s, "lateness_s": played.lateness_s, "routing_s": played.routing_s}
    content = io.BytesIO()
    entries: dict[str, Any] = {**columns, **extra, **origin}
    np.savez_compressed(content, **entries)
    write_bytes(file, content.getvalue())


def simulated(setting: Setting, listed: CaseList, situation: Situation, policy: Path) -> Result:
    """What the simulator says of the list."""
    name = str(policy) if setting.router == LEARNED else setting.router
    return simulate(listed.requests, situation, router_named(name, situation), seed=0, backend="jax")


def measures(result: Result) -> dict[str, float]:
    """Figures of a list; times in seconds."""
    counted = metrics.after_warm_up(result.arrival_s, WARM_UP_S) & ~result.rejected
    times_s = {"TTFT": (result.first_token_s - result.arrival_s)[counted], "end to end": result.latency_s[counted]}
    found = {f"{what} mean": float(seconds.mean()) for what, seconds in times_s.items()}
    for what, seconds in times_s.items():
        found |= {f"{what} P{p}": float(np.percentile(seconds, p)) for p in PERCENTILES}
    found["SLO attainment"] = float(metrics.slo_attainment(result, warm_up_s=WARM_UP_S))
    found["performance"] = float(metrics.performance(result, warm_up_s=WARM_UP_S))
    return found


def deviation(name: str, value: float, reference: float) -> float:
    """Relative for times, absolute for shares."""
    return value / reference - 1 if is_time(name) else value - reference


def is_time(name: str) -> bool:
    """Whether a figure is of seconds, not a share."""
    return name.startswith((LONELY, "TTFT", "end to end"))


def compare(situation: Situation, policy: Path, runs: Path, console: Console) -> None:
    """Simulates what was played, and writes tables and a picture.

    Raises:
      InputError: if nothing was played, or something with another profile, configuration or policy.
    """
    plays: dict[Setting, list[dict[str, np.ndarray]]] = {}
    for setting in settings():
        files = [runs / setting.file(repeat) for repeat in range(REPEATS)]
        if all(file.exists() for file in files):
            plays[setting] = [read(file, origin(setting, situation, policy)) for file in files]
    if not plays:
        raise InputError(f"{runs}: nothing was played {REPEATS} times; run `play` first.")
    for setting in settings():
        if setting not in plays:
            console.print(f"{setting.name}: left out, not played {REPEATS} times yet.", highlight=False)
    lists = lists_of(plays, situation)
    lone = simulated(Setting(LOADS[0], MODELS[-1]), lone_requests(situation), situation, policy).latency_s
    rows: dict[str, Any] = {}
    pictured: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    for setting, kept in plays.items():
        real = [Result(**{f.name: one[f.name] for f in dataclasses.fields(Result) if f.name in one}) for one in kept]
        model = simulated(setting, lists[setting.load], situation, policy)
        measured = [{LONELY: float(np.median(one["lone_s"])), **measures(r)} for one, r in zip(kept, real, strict=True)]
        expected = {LONELY: float(np.median(lone)), **measures(model)}
        rows[setting.name] = {
            "requests": len(model.arrival_s),
            "measured": measured,
            "simulated": expected,
            "error": {k: float(np.mean([deviation(k, v, run[k]) for run in measured])) for k, v in expected.items()},
            "between_runs": {k: deviation(k, measured[-1][k], v) for k, v in measured[0].items()},
            "right_and_in_time": [
                float(metrics.mean_over(one["right"] & result.met, metrics.after_warm_up(result.arrival_s, WARM_UP_S)))
                for one, result in zip(kept, real, strict=True)
            ],
            "routed_alike": [float(np.mean(result.model == model.model)) for result in real],
            "median_lateness_s": [float(np.median(one["lateness_s"])) for one in kept],
            "median_routing_s": [float(np.median(one["routing_s"])) for one in kept],
        }
        if setting.load in (0.0, 0.8) and setting.router in (MODELS[-1], LEARNED):
            answered = ~(real[0].rejected | model.rejected)
            pictured[setting.name, "end to end"] = (real[0].latency_s[answered], model.latency_s[answered])
    result = {
        "profile": situation.profile.name,
        "profile_digest": situation.profile.digest(),
        "device": situation.profile.device,
        "capacity_per_s": dict(zip(MODELS, situation.capacity().tolist(), strict=True)),
        "settings": rows,
    }
    write_json(ROOT / "results" / "measured_vs_simulated.json", result)
    tables = [errors_table(rows)]
    if any(not setting.load for setting in plays):
        tables.append(bursts_table(rows))
    write_text(ROOT / "results" / "measured_vs_simulated.md", "\n".join(table.markdown() for table in tables))
    if pictured:
        plots.save_figure(plots.plot_prediction(pictured), ROOT / "results" / "measured_vs_simulated")
    for table in tables:
        console.print(table.terminal())


def errors_table(rows: dict[str, Any]) -> Table:
    """Simulated against measured, and one run against the other."""
    shown = list(next(iter(rows.values()))["error"])
    cells = tuple(
        (name, tuple(f"{100 * row['error'][k]:+.1f} ({100 * row['between_runs'][k]:+.1f})" for k in shown))
        for name, row in rows.items()
    )
    units = ["%" if is_time(k) else "points" for k in shown]
    return Table(
        "Simulated against measured, mean of two runs; in brackets the second run against the first",
        "list and router",
        tuple(Column(f"{k}, {unit}", "text", brief=k in BRIEF) for k, unit in zip(shown, units, strict=True)),
        cells,
        note="Signed deviations of the simulated figure from each run's, averaged: what the simulator is off by "
        f"systematically, not how far off a single run may be. Times relative, shares in points; the first "
        f"{WARM_UP_S:g} s of a list do not count. Lone requests: the median latency of {2 * LONE} requests to the "
        "largest model before and after each list, one after another, which tells how fast the machine was just then.",
    )


def bursts_table(rows: dict[str, Any]) -> Table:
    """Performance under bursts, measured and predicted."""
    bursts = {name.partition(", ")[2]: row for name, row in rows.items() if name.startswith("bursts")}
    return Table(
        "Bursty load: performance",
        "router",
        (Column("measured, %", "text"), Column("simulated, %", "text"), Column("right and in time, %", "text")),
        tuple(
            (
                name,
                (
                    ", ".join(f"{100 * run['performance']:.1f}" for run in row["measured"]),
                    f"{100 * row['simulated']['performance']:.1f}",
                    ", ".join(f"{100 * share:.1f}" for share in row["right_and_in_time"]),
                ),
            )
            for name, row in bursts.items()
        ),
        focus=LEARNED,
        note="Performance is relative: a request in time earns its model's share of right answers at the task, as the "
        "profile has it, over the best model's. Right and in time is absolute: the share of all requests whose answer, "
        f"as generated, was right and came in time. Both without the first {WARM_UP_S:g} s.",
    )


def main() -> None:
    """The command line.

    Raises:
      SystemExit: with status 2 on a user's mistake.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("play", "compare"))
    parser.add_argument(
        "--policy", type=Path, required=True, help="policy file, trained for the configuration `laptop`"
    )
    parser.add_argument("--runs", type=Path, required=True, help="directory of what was played")
    parser.add_argument("--minutes", type=float, default=60.0, help="to play for at most")
    arguments = parser.parse_args()
    compute_in_one_thread()
    path, runs, console = arguments.policy, arguments.runs, Console()
    with exiting("measured_vs_simulated"):
        situation = load_situation("laptop")
        policy = load_policy(path, situation)
        if arguments.what == "play":
            with os_errors_as_input_errors(runs):
                runs.mkdir(parents=True, exist_ok=True)
            asyncio.run(play(situation, path, policy, runs, arguments.minutes, console))
        else:
            compare(situation, path, runs, console)


if __name__ == "__main__":
    main()
