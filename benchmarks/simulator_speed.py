"""Speed of the compiled simulator and its rivals, everything in one run on the machine at hand.

    python -m benchmarks.simulator_speed [--out FILE] [--fast]

Decisions per second of the exact simulator in the default situation, requests drawn, routed and rewarded; requests per
second of the plain reference, of SimPy and, if it is installed, of sched-sim on lists of the same workloads; steps per
second of gymnax CartPole.
Compilation is not included. Every figure is the median over rounds in which all cases take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.cartpole import cartpole_case
from benchmarks.compiled import Rollouts, Scenario, part_cases, scenarios
from benchmarks.limits import limits, limits_table
from benchmarks.outcome import check_replaced, write_result
from benchmarks.rivals import SCHED_SIM, Job, Workers, columns, rival_cases
from benchmarks.summary import Row
from benchmarks.timing import Case, Speed, Speeds, machine, measure
from besteffort.device import cores
from besteffort.estimates.tables import Tables
from besteffort.workload.sample import sample_workload

ROOT = Path(__file__).resolve().parent.parent
HEADLINE = "load 0.9, random"
TARGET = 500_000
PARTS_AT = 1024


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
      loads: multiples of the capacity of the largest model.
      routers: routers of the compiled simulator.
      environments: counts of environments that run side by side.
      rounds: how often every case is run.
      decisions: of the compiled simulator in a run, over all environments.
      warm_steps: decisions of every environment before, so that waiting lines are as long as they get.
      cartpole_steps: of CartPole in a run, over all environments.
      requests: on each list of the reference and SimPy.
    """

    loads: tuple[float, ...] = (0.3, 0.9, 3.0, 10.0)
    routers: tuple[str, ...] = ("random", "static largest", "deadline")
    environments: tuple[int, ...] = (64, 128, 256, 1024, 4096)
    rounds: int = 5
    decisions: int = 2**17
    warm_steps: int = 1536
    cartpole_steps: int = 2**21
    requests: int = 10_000


FAST = Size(
    loads=(0.9,),
    routers=("random",),
    environments=(64,),
    rounds=2,
    decisions=2**12,
    warm_steps=64,
    cartpole_steps=2**14,
    requests=200,
)


def simulator_cases(size: Size, found: Sequence[Scenario]) -> list[Case]:
    """Every scenario under every router; the headline also without reading rewards, and with a device per core."""
    rollouts = Rollouts(size.decisions, size.warm_steps)
    cases = []
    for scenario in found:
        for router in size.routers:
            cases += [rollouts.case(scenario, router, count) for count in size.environments]
            if f"{scenario.name}, {router}" == HEADLINE:
                cases += [rollouts.case(scenario, router, count, rewards=False) for count in size.environments]
                if jax.device_count() > 1:
                    devices = jax.device_count()
                    cases += [rollouts.case(scenario, router, count, devices=devices) for count in size.environments]
    return cases


def jobs(size: Size, found: Sequence[Scenario]) -> dict[str, Sequence[Job]]:
    """A list per core for every scenario, under the two routers that need no prediction."""
    lists: dict[str, Sequence[Job]] = {}
    for scenario in found:
        situation = scenario.situation
        longest = max(task.prompt_tokens[1] for task in situation.tasks)
        tables = Tables.of(situation.fleet, longest)
        requests = [
            sample_workload(scenario.workload, situation.task_names, size.requests, seed) for seed in range(cores())
        ]
        drawn = np.random.default_rng(0).integers(0, tables.pools, size.requests).tolist()
        for router, models in (("random", drawn), ("static largest", [tables.pools - 1] * size.requests)):
            if router not in size.routers:
                continue
            lists[f"{scenario.name}, {router}"] = [Job(situation, tables, one, models) for one in requests]
    return lists


def best(row: dict[str, Speed]) -> tuple[str, Speed]:
    """The count of environments at which a row is fastest, and its speed."""
    counts = {column: speed for column, speed in row.items() if column not in columns()}
    return max(counts.items(), key=lambda item: item[1].median)


def ratios(speeds: Speeds) -> dict[str, dict[str, float]]:
    """Speed at the best count of environments over that of each rival, for the rows that have rivals.

    What follows a semicolon in a row's name is a variant with the same rivals.
    """
    rivals = {name: speeds.get(name.split(";")[0], {}) for name in speeds}
    return {
        name: {rival: best(row)[1].median / rivals[name][rival].median for rival in columns()}
        for name, row in speeds.items()
        if set(columns()) <= set(rivals[name])
    }


def speed_table(speeds: Speeds, size: Size) -> Table:
    """Thousands per second: decisions, requests or steps."""
    counts, found = [f"{count:,}" for count in size.environments], ratios(speeds)
    against = [rival for rival in columns() if rival.endswith(f"x{cores()}")]
    table = Table(
        title="Speed of the exact simulator and its rivals",
        caption=f"Thousands of decisions, requests or steps per second, median and range over {size.rounds} rounds; "
        "ratios of medians, at the best count of environments.",
    )
    table.add_column("environments")
    for heading in (*counts, *columns(), *(f"over {rival}" for rival in against)):
        table.add_column(heading, justify="right")
    for name, row in speeds.items():
        cells = [_cell(row[column]) if column in row else "" for column in (*counts, *columns())]
        table.add_row(name, *cells, *(f"{found[name][rival]:.1f}" if name in found else "" for rival in against))
    return table


def parts_table(parts: Speeds) -> Table:
    """Nanoseconds per decision."""
    table = Table(title=f"Parts of a step at {PARTS_AT:,} environments, each compiled alone")
    table.add_column("part")
    table.add_column("ns per decision", justify="right")
    for name, row in parts.items():
        table.add_row(name, *(f"{1e9 / speed.median:,.0f}" for speed in row.values()))
    return table


def _cell(speed: Speed) -> str:
    return f"{_thousands(speed.median)}\n{_thousands(speed.slowest)}-{_thousands(speed.fastest)}"


def _thousands(rate: float) -> str:
    return f"{rate / 1e3:,.0f}" if rate >= 1e5 else f"{rate / 1e3:.3g}"


def run(size: Size, console: Console) -> dict[str, Any]:
    """Measures everything and prints it; returns what the JSON file holds.

    Further things to time are further cases: a row each, among those that take turns.
    """
    began, load_average = time.perf_counter(), os.getloadavg()[0]
    found = scenarios(size.loads)
    headline = next(scenario for scenario in found if HEADLINE.startswith(f"{scenario.name},"))
    with Workers(jobs(size, found)) as workers:
        cases = simulator_cases(size, found) + rival_cases(workers)
        for given in (False, True):
            cases += [cartpole_case(count, size.cartpole_steps // count, given=given) for count in size.environments]
        speeds = measure(cases, size.rounds, console)
    parts = measure(part_cases(headline, PARTS_AT, max(size.decisions, PARTS_AT)), size.rounds, console)
    bounds = limits(headline, HEADLINE.rpartition(", ")[2], size.decisions, size.warm_steps)
    count, speed = best(speeds[HEADLINE])
    console.print(speed_table(speeds, size), parts_table(parts), limits_table(bounds), sep="\n")
    console.print(
        f"Headline, {HEADLINE} router, rewards read, {count} environments: {speed.median:,.0f} decisions/s; "
        f"the target of {TARGET:,} is {'met' if speed.median >= TARGET else 'missed'}."
    )
    return {
        "machine": machine("jax", "jaxlib", "numpy", "simpy", "gymnax", *[SCHED_SIM] * (SCHED_SIM in columns())),
        "load_average_before": round(load_average, 2),
        "seconds": round(time.perf_counter() - began),
        "size": dataclasses.asdict(size),
        "headline": {"row": HEADLINE, "environments": count, "per_second": round(speed.median), "target": TARGET},
        "per_second": {name: {key: _rounded(value) for key, value in row.items()} for name, row in speeds.items()},
        "ratios": {name: {key: round(value, 2) for key, value in row.items()} for name, row in ratios(speeds).items()},
        "parts_ns": {name: round(1e9 / value.median) for name, row in parts.items() for value in row.values()},
        "limits": bounds,
    }


def rows(result: dict[str, Any]) -> list[Row]:
    """Lines of the table of all benchmarks."""
    row, ours = result["headline"]["row"], result["headline"]["per_second"]
    return [
        Row(
            f"Simulation, {row}",
            f"{ours:,} decisions/s",
            f"{result['per_second'][row][rival]['median']:,} requests/s ({rival})",
            ratio,
        )
        for rival, ratio in result["ratios"][row].items()
    ]


def _rounded(speed: Speed) -> dict[str, float]:
    """As the file has it; compile times where there were any."""
    fields = {key: round(value, 1) for key, value in dataclasses.asdict(speed).items() if value is not None}
    return {key: value if key == "compile_s" else round(value) for key, value in fields.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "simulator_speed.json", help="file to write")
    parser.add_argument("--fast", action="store_true", help="one load, few environments: whether it runs, not how fast")
    args = parser.parse_args(arguments)
    check_replaced(parser, args.out, fast=args.fast)
    jax.config.update("jax_num_cpu_devices", cores())  # a plain `jit` uses the first, which has all threads
    result = run(FAST if args.fast else Size(), Console(width=200))
    write_result(args.out, result, fast=args.fast)


if __name__ == "__main__":
    main()
