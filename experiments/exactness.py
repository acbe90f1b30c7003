"""How exactly the compiled simulator plays what the reference plays, in float64 and in float32.

    python -m experiments.exactness [--lists N] [--paper-lists N] [--seed S] [--out FILE]

Two sets of lists of 500 requests:

- random lists on random clusters (`tests/simulator/cases.py`): load 0.1 to 5, one to seven models, one to eight
  replicas, with shares of slow-down, context cost, cache limits and network delay, and a router that looks at
  everything; half of them on dyadic durations, where instants coincide all the time, half on continuous ones;
- the default situation with the routers that are meant for it, at loads 0.1 to 5.

Both float types are held against the reference, which is in float64. Writes results/exactness.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from besteffort.routers import make_router
from besteffort.runs.config import load_situation
from besteffort.simulator.build import build
from besteffort.simulator.result import Result
from besteffort.simulator.simulate import simulate
from besteffort.simulator.types import Router
from besteffort.version import __version__
from besteffort.workload.arrivals import Poisson
from besteffort.workload.sample import sample_workload
from besteffort.workload.synthetic_workload import synthetic
from tests.simulator.cases import (
    LENGTH,
    LOADS,
    Case,
    Kind,
    compare,
    draw_case,
    draw_kinds,
    play_compiled,
    simulate_by_reference,
)

ROOT = Path(__file__).resolve().parent.parent
KINDS = 22
PAPER_LOADS = (0.1, 0.3, 0.6, 0.9, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
PAPER_ROUTERS: dict[str, dict[str, Any]] = {
    "random": {},
    "shortest-queue": {},
    "ladder": {"thresholds": (12, 6)},
    "deadline": {},
    "deadline-reserve": {"reserve": 0.2},
    "priced": {"price": 0.1, "reserve": 0.0, "width": 0.0},
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One list in one float type, against the reference.

    Attributes:
      outcomes: requests with another model, replica or rejection.
      deadlines: requests that meet their deadline in one and miss it in the other.
      time: largest difference of an admission, first token or completion, in horizons.
      reward: largest difference of a request's reward.
      points: performance minus that of the reference, in points (hundredths of a perfect answer).
    """

    outcomes: int
    deadlines: int
    time: float
    reward: float
    points: float


def measure(cases: Sequence[Case], truths: Sequence[Result]) -> dict[str, list[Row]]:
    """Plays cases of one shape in both float types; rows in the order of the cases."""
    rows: dict[str, list[Row]] = {}
    for name, x64 in (("float64", True), ("float32", False)):
        rows[name] = []
        for case, played, truth in zip(cases, play_compiled(cases, x64), truths, strict=True):
            difference = compare(played, truth)
            latency_s = np.nan_to_num(played.service_s, nan=np.inf) + case.situation.cluster.network_delay_s
            met = latency_s <= case.requests.deadline_s
            points = 100 * float(played.reward.mean() - truth.reward.mean())
            rows[name].append(Row(deadlines=int((met != truth.met).sum()), points=points, **difference._asdict()))
    return rows


def paper_cases(router: Router, lists: int, seed: int) -> list[Case]:
    """Lists of the default situation under Poisson arrivals, as many at each of `PAPER_LOADS`."""
    situation = load_situation("paper")
    cases = []
    for k, load in enumerate(PAPER_LOADS):
        workload = synthetic(situation, Poisson(load * situation.unit_load))
        for j in range(lists):
            list_seed = (seed * len(PAPER_LOADS) + k) * lists + j
            requests = sample_workload(workload, situation.task_names, LENGTH, list_seed)
            cases.append(Case(requests, situation, router, list_seed))
    return cases


def play_paper_reference(case: Case) -> Result:
    """The reference with a router of the package, which JAX evaluates request by request."""
    return simulate(case.requests, case.situation, case.router, seed=case.seed, backend="reference")


def exactly(rows: Sequence[Row]) -> dict[str, Any]:
    """What float64 has to show: nothing but rounding in the times."""
    return {
        "lists": len(rows),
        "requests": LENGTH * len(rows),
        "requests_with_another_model_replica_or_rejection": sum(row.outcomes for row in rows),
        "requests_with_another_verdict_on_the_deadline": sum(row.deadlines for row in rows),
        "largest_time_error_in_horizons": max(row.time for row in rows),
        "largest_reward_error": max(row.reward for row in rows),
    }


def roughly(rows: Sequence[Row]) -> dict[str, Any]:
    """What float32 costs: how many lists go another way at some request, and what that does to performance."""
    points = np.array([row.points for row in rows])
    return {
        "lists": len(rows),
        "share_of_lists_with_another_outcome": float(np.mean([row.outcomes > 0 for row in rows])),
        "share_of_requests_with_another_outcome": sum(row.outcomes for row in rows) / (LENGTH * len(rows)),
        "performance_difference_points": {
            "mean": float(points.mean()),
            "mean_absolute": float(np.abs(points).mean()),
            "largest_absolute": float(np.abs(points).max()),
        },
    }


def run(kinds: Sequence[Kind], lists: int, paper_lists: int, seed: int, console: Console) -> dict[str, Any]:
    """All comparisons: `lists` lists of every kind, `paper_lists` per load and router of the default situation."""
    rows: dict[str, list[Row]] = {"float64": [], "float32": []}
    dyadic: list[bool] = []
    paper: dict[str, dict[str, list[Row]]] = {}
    started = time.monotonic()
    routers = PAPER_ROUTERS if paper_lists else {}
    with Progress(console=console) as progress:
        bar = progress.add_task("random lists", total=len(kinds) * lists)
        for k, kind in enumerate(kinds):
            cases = [draw_case(kind, seed=(seed * len(kinds) + k) * 1_000_000 + j) for j in range(lists)]
            truths = [simulate_by_reference(case) for case in cases]
            for name, found in measure(cases, truths).items():
                rows[name] += found
            dyadic += [kind.dyadic] * lists
            progress.advance(bar, lists)
        bar = progress.add_task("default situation", total=len(routers) * len(PAPER_LOADS) * paper_lists)
        shape, _ = build(load_situation("paper"), None, history=LENGTH)
        for name, numbers in routers.items():
            cases = paper_cases(make_router(name, shape, **numbers), paper_lists, seed)
            paper[name] = measure(cases, [play_paper_reference(case) for case in cases])
            progress.advance(bar, len(cases))

    def of(is_dyadic: bool) -> list[Row]:
        return [row for row, flag in zip(rows["float32"], dyadic, strict=True) if flag == is_dyadic]

    result: dict[str, Any] = {
        "versions": {
            "python": platform.python_version(),
            "besteffort": __version__,
            **{name: version(name) for name in ("jax", "jaxlib", "numpy")},
        },
        "device": jax.devices()[0].device_kind,
        "seconds": round(time.monotonic() - started),
        "seed": seed,
        "requests_per_list": LENGTH,
        "random_lists": {
            "loads": LOADS,
            "kinds": [str(kind) for kind in kinds],
            "float64": exactly(rows["float64"]),
            "float32": {
                name: roughly(of(is_dyadic))
                for name, is_dyadic in (("dyadic", True), ("continuous", False))
                if is_dyadic in dyadic
            },
        },
    }
    if paper:
        result["default_situation"] = {
            "loads": PAPER_LOADS,
            "routers": PAPER_ROUTERS,
            "float64": exactly([row for found in paper.values() for row in found["float64"]]),
            "float32": {
                "all": roughly([row for found in paper.values() for row in found["float32"]]),
                **{name: roughly(found["float32"]) for name, found in paper.items()},
            },
        }
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, plays, and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lists", type=int, default=1000, help="random lists in all, at least (default 1000)")
    parser.add_argument(
        "--paper-lists", type=int, default=5, help="lists of the default situation per load and router (default 5)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn (default 1)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "exactness.json", help="file to write")
    args = parser.parse_args(arguments)

    console = Console(stderr=True)
    kinds = draw_kinds(KINDS, args.seed)
    result = run(kinds, -(-args.lists // KINDS), args.paper_lists, args.seed, console)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("random_lists", "default_situation") if key in result}, indent=2))
    console.print(f"wrote {args.out}")
    sets = [result[key] for key in ("random_lists", "default_situation") if key in result]
    if any(found["float64"]["requests_with_another_model_replica_or_rejection"] for found in sets):
        raise SystemExit("The compiled simulator and the reference disagree in float64; this is a bug.")


if __name__ == "__main__":
    main()
