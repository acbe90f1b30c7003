"""A sweep on one worker and on two, of a Ray cluster on this machine and in local processes; and what more would do.

    python -m benchmarks.cluster [--out FILE] [--programs N] [--fast]

The same sweep, each trial as a program of its own, runs on a cluster that stands already, whose workers have one core
each, and in as many local processes. Programs were compiled before. All four have to give the same results, byte by
byte. It needs the extra `ray`, and two cores on which nothing else runs.

From the time on one worker and on two follow, by `seconds = fixed + per_program x ceil(programs / workers)`, those of
more workers. That takes for granted that workers have cores and memory of their own, as on other machines; that
programs are equally long; that the shared directory keeps up, to which a program writes a few files; and that the
driver does, of whose processor time a program takes the share that the result states.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.outcome import check_replaced, write_result
from benchmarks.timing import machine
from besteffort.device import cores
from besteffort.errors import InputError
from besteffort.runs.backends import Backend, Local, backend_of
from besteffort.sweep.plan import Axis, SweepConfig, SweepPlan, make_plan
from besteffort.sweep.run import run_sweep

ROOT = Path(__file__).resolve().parent.parent
WORKERS = (1, 2)
MORE = (8, 64)
"""Workers whose times are worked out."""

_SAME = ("results.json", "trials.csv", "report.md")


def make(programs: int, decisions: int) -> SweepPlan:
    """So many trainings that differ in their seeds, each a program."""
    changes = {
        "training.config.ensemble_size": 1,
        "training.config.decisions": decisions,
        "evaluation.seeds": 2,
        "evaluation.requests": 4_000,
        "evaluation.warm_up_s": 1.0,
    }
    axes = {"training.seed": Axis(values=tuple(range(programs)))}
    return make_plan(SweepConfig("quickstart", axes, changes), together=1)


@contextlib.contextmanager
def cluster_of(workers: int) -> Iterator[str]:
    """The address of a cluster on this machine: a head that computes nothing, and workers of one core each."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(workers):
            started.add_node(num_cpus=1)
        started.wait_for_nodes()
        yield str(started.address)
    finally:
        started.shutdown()


@dataclasses.dataclass(frozen=True)
class Spent:
    """Seconds on the wall, and of the driver's processor."""

    wall: float
    driver: float


def timed(plan: SweepPlan, out: Path, on: Backend) -> Spent:
    """What a sweep takes, from its plan to its report."""
    wall, driver = time.perf_counter(), _processor_s()
    board = run_sweep(plan, out, on=on)
    if board.unfinished:
        raise RuntimeError(f"{out}: {len(board.unfinished)} trials did not finish: {board.unfinished[0].reason}")
    return Spent(time.perf_counter() - wall, _processor_s() - driver)


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def predicted(programs: int, seconds: dict[int, float]) -> dict[str, Any]:
    """The model of the module's description, and what it says of more workers that have as many programs each."""
    one, two = (seconds[workers] for workers in WORKERS)
    per_program = (one - two) / (programs - math.ceil(programs / 2))
    fixed = max(one - programs * per_program, 0.0)
    more = {}
    for workers in MORE:
        total = workers * programs
        wall = fixed + programs * per_program
        more[str(workers)] = {
            "programs": total,
            "seconds": wall,
            "seconds_on_one": fixed + total * per_program,
            "speed_up": (fixed + total * per_program) / wall,
        }
    return {"fixed_s": fixed, "per_program_s": per_program, "speed_up_of_two": one / two, "workers": more}


def run(programs: int, decisions: int, console: Console) -> dict[str, Any]:
    """Measures everything and prints it; returns what the JSON file holds.

    Raises:
      InputError: if Ray is not installed.
    """
    backend_of("ray")
    load_average = os.getloadavg()[0]
    plan = make(programs, decisions)
    found: dict[str, dict[int, Spent]] = {"ray": {}, "local": {}}
    os.environ.setdefault("NPROC", "1")  # of each program, on every backend
    os.environ.setdefault("RAY_worker_niceness", "0")  # as local processes have
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(base / "cache"))
        timed(make(1, decisions), base / "compiled", Local(1))
        for workers in WORKERS:
            with cluster_of(workers) as address:
                on = backend_of("ray", address=address)
                found["ray"][workers] = timed(plan, base / f"ray-{workers}", on)
            found["local"][workers] = timed(plan, base / f"local-{workers}", Local(workers))
        outs = [base / f"{name}-{workers}" for name in found for workers in WORKERS]
        for name in _SAME:
            if len({(out / name).read_bytes() for out in outs}) > 1:
                raise RuntimeError(f"The results differ in {name}.")
    models = {
        name: predicted(programs, {workers: spent.wall for workers, spent in each.items()})
        for name, each in found.items()
    }
    driver_s = found["ray"][1].driver / programs
    result = {
        "machine": machine("jax", "ray"),
        "load_average_before": round(load_average, 2),
        "programs": programs,
        "decisions": decisions,
        "seconds": {
            name: {str(workers): dataclasses.asdict(spent) for workers, spent in each.items()}
            for name, each in found.items()
        },
        "models": models,
        "driver_share_per_worker": driver_s / models["ray"]["per_program_s"],
        "same_results": True,
    }
    console.print(table_of(result))
    if cores() < max(WORKERS):
        console.print("There are fewer cores than workers: what two workers take says nothing.")
    return result


def table_of(result: dict[str, Any]) -> Table:
    """One line per backend."""
    table = Table(title=f"{result['programs']} programs of {result['decisions']:,} decisions, seconds")
    table.add_column("backend")
    for heading in ("1 worker", "2 workers", "speed-up", *(f"of {workers}, worked out" for workers in MORE)):
        table.add_column(heading, justify="right")
    for name, each in result["seconds"].items():
        model = result["models"][name]
        table.add_row(
            name,
            *(f"{each[str(workers)]['wall']:.1f}" for workers in WORKERS),
            f"{model['speed_up_of_two']:.2f}",
            *(f"{model['workers'][str(workers)]['speed_up']:.1f}" for workers in MORE),
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line, measures, prints and writes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "cluster.json", help="file to write")
    parser.add_argument("--programs", type=int, default=8, help="programs of the sweep; an even number")
    parser.add_argument("--fast", action="store_true", help="a few decisions: whether it runs, not how fast")
    args = parser.parse_args(arguments)
    console = Console(width=160)
    if args.programs < 2 or args.programs % 2:
        parser.error(f"--programs is {args.programs}; give an even number from 2 on")
    check_replaced(parser, args.out, fast=args.fast)
    try:
        result = run(args.programs, 16_384 if args.fast else 524_288, console)
    except InputError as error:
        console.print(str(error))
        return 2
    write_result(args.out, result, fast=args.fast)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
