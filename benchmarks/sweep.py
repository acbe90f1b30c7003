"""A sweep in one compiled program against as many single runs: time, first updates, and what is learned.

    python -m benchmarks.sweep [--out FILE] [--singles N] [--fast]

One sweep, learning rate x discount x seed of the quickstart, is trained, judged and written as `besteffort sweep` does
it: with all trials in one program, and one by one, as many single runs at a time as there are cores. Both begin with an
empty cache of compiled programs; single runs find there what the first of them compiled. Beside the time on the wall
stands that of the processors, which other work on the machine does not count in. With `--singles N` only so many single
runs are made, spread over the sweep, and their times are scaled up; the result says so.

Besides, every trial's network after its first round of updates is held against that of its single run; and its
performance on the judged lists, after the whole training, against what its single run comes to.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.outcome import check_replaced, write_result
from benchmarks.summary import Row
from benchmarks.timing import machine
from besteffort.device import cores
from besteffort.evaluation.statistics import mean_interval
from besteffort.learning.train import initial_state, segment
from besteffort.runs.backends import Local
from besteffort.runs.training import make_training_problem, run_keys
from besteffort.simulator.build import build
from besteffort.simulator.environment import ServingEnvironment
from besteffort.sweep.plan import Axis, SweepConfig, SweepPlan, make_plan
from besteffort.sweep.run import run_sweep

ROOT = Path(__file__).resolve().parent.parent
ONE, SINGLE = "one program", "single runs"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
      rates, discounts, seeds: of the sweep.
      decisions: of a trial.
      lists, requests: to judge on.
      config: static settings that differ from the quickstart's.
    """

    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    discounts: tuple[float, ...] = (0.9, 0.97, 0.99, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    decisions: int = 65_536
    lists: int = 8
    requests: int = 8_000
    config: tuple[tuple[str, int], ...] = (("ensemble_size", 1), ("log_interval", 1))

    def sweep(self) -> SweepConfig:
        changes: dict[str, Any] = {"training.config.decisions": self.decisions}
        changes |= {f"training.config.{name}": value for name, value in self.config}
        changes |= {"evaluation.seeds": self.lists, "evaluation.requests": self.requests, "evaluation.warm_up_s": 1.0}
        axes = {
            "training.hyper.learning_rate": Axis(values=self.rates),
            "training.hyper.discount": Axis(values=self.discounts),
            "training.seed": Axis(values=self.seeds),
        }
        return SweepConfig("quickstart", axes, changes)


FAST = Size(
    rates=(1e-3, 4e-3),
    discounts=(1.0,),
    seeds=(0,),
    decisions=1_024,
    lists=2,
    requests=2_000,
    config=(
        ("ensemble_size", 1),
        ("num_envs", 16),
        ("rollout_length", 32),
        ("buffer_length", 128),
        ("batch_size", 64),
        ("updates_per_rollout", 16),
        ("log_interval", 1),
    ),
)


class Spent(NamedTuple):
    """Seconds on the wall, and of the processors that worked."""

    wall: float
    processors: float


def timed(plan: SweepPlan, out: Path, workers: int) -> Spent:
    """What the sweep takes, from its plan to its report, with nothing compiled before."""
    known = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(out.with_name(f"{out.name}-cache"))
    begun = Spent(time.perf_counter(), _processors())
    try:
        board = run_sweep(plan, out, on=Local(workers))
    finally:
        if known is None:
            del os.environ["JAX_COMPILATION_CACHE_DIR"]
        else:
            os.environ["JAX_COMPILATION_CACHE_DIR"] = known
    if board.unfinished:
        raise RuntimeError(f"{out}: {len(board.unfinished)} trials did not finish: {board.unfinished[0].reason}")
    return Spent(time.perf_counter() - begun.wall, _processors() - begun.processors)


def _processors() -> float:
    """Processor time of this process and of those that it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def spread(plan: SweepPlan, count: int) -> SweepPlan:
    """`count` of the trials, each as a program of its own."""
    chosen = np.linspace(0, len(plan.trials) - 1, count).round().astype(int).tolist()
    trials = tuple(plan.trials[index] for index in chosen)
    return dataclasses.replace(plan, trials=trials, programs=tuple((trial.number,) for trial in trials))


def first_updates(plan: SweepPlan) -> dict[str, Any]:
    """How far the networks of trials side by side are from those of single runs after the first round of updates."""
    problems = [make_training_problem(trial.config.build(), trial.config.training) for trial in plan.trials]
    problem = problems[0]
    config = dataclasses.replace(problem.training.config, log_interval=1)
    shape, params = build(problem.situation, problem.workload, history=problem.training.history)
    env = ServingEnvironment(shape)
    keys = run_keys([each.training.seed for each in problems])
    numbers = jax.tree.map(lambda *each: np.array(each), *(each.training.numbers() for each in problems))

    def networks(runs: slice) -> list[np.ndarray]:
        hyper = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf[runs]), numbers)
        state = initial_state(env, problem.features, config, params, hyper, keys[runs], None)
        state, _ = segment(env, problem.features, config, params, hyper, state)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state.runs.learner.online.q)]

    together = networks(slice(None))
    apart = [networks(slice(run, run + 1)) for run in range(len(problems))]
    differences = [
        max(float(np.abs(leaf[run] - own[0]).max()) for leaf, own in zip(together, apart[run], strict=True))
        for run in range(len(problems))
    ]
    moved = [float(np.abs(leaf - leaf[:1]).max()) for leaf in together]
    return {
        "updates": config.updates_per_rollout,
        "largest_difference": max(differences),
        "differences": differences,
        "largest_between_trials": max(moved),
    }


def judged(together: Path, single: Path) -> dict[str, Any]:
    """Performance of trials side by side and of their single runs, on the same lists."""
    of = {
        way: {
            trial["trial"]: np.array(trial["performance"])
            for trial in json.loads((out / "results.json").read_text(encoding="utf-8"))["trials"]
        }
        for way, out in (("together", together), ("single", single))
    }
    inside = {}
    for name, alone in of["single"].items():
        interval = mean_interval(of["together"][name])
        inside[name] = bool(abs(alone.mean() - interval.mean) <= interval.half_width)
    gap = mean_interval(np.array([alone.mean() - of["together"][name].mean() for name, alone in of["single"].items()]))
    return {
        "trials": len(inside),
        "single_run_within_the_trials_interval": sum(inside.values()),
        "outside": [name for name, within in inside.items() if not within],
        "single_less_together_mean": float(gap.mean),
        "single_less_together_half_width": float(gap.half_width),
    }


def run(size: Size, singles: int | None, console: Console) -> dict[str, Any]:
    """Measures everything and prints it; returns what the JSON file holds."""
    load_average = os.getloadavg()[0]
    plan = make_plan(size.sweep(), together=10**6)
    trials = len(plan.trials)
    singles = min(singles or trials, trials)
    spent = {}
    with tempfile.TemporaryDirectory() as directory:
        outs = {way: Path(directory) / way.replace(" ", "-") for way in (ONE, SINGLE)}
        for way, each in ((ONE, plan), (SINGLE, spread(plan, singles))):
            spent[way] = timed(each, outs[way], min(len(each.programs), cores()))
            console.print(
                f"{way}: {len(each.trials)} trials, {spent[way].wall:.0f} s, of processors {spent[way].processors:.0f}",
                highlight=False,
            )
        performance = judged(outs[ONE], outs[SINGLE])
    firsts = first_updates(plan)
    measured = spent[SINGLE]
    spent[SINGLE] = Spent(*(value * trials / singles for value in measured))
    result = {
        "machine": machine("jax"),
        "load_average_before": round(load_average, 2),
        "size": dataclasses.asdict(size),
        "trials": trials,
        "seconds": {way: value._asdict() for way, value in spent.items()},
        "single_runs": {"measured": singles, "seconds": measured._asdict(), "scaled": singles < trials},
        "ratios": {
            "wall": spent[SINGLE].wall / spent[ONE].wall,
            "processors": spent[SINGLE].processors / spent[ONE].processors,
        },
        "first_updates": firsts,
        "judged": performance,
    }
    console.print(table_of(result))
    return result


def table_of(result: dict[str, Any]) -> Table:
    """One line per way."""
    firsts, performance = result["first_updates"], result["judged"]
    table = Table(
        title=f"{result['trials']} trials of {result['size']['decisions']:,} decisions",
        caption=(
            f"After {firsts['updates']} updates no weight differs from the single run's by more than "
            f"{firsts['largest_difference']:.1e}; {performance['single_run_within_the_trials_interval']} of "
            f"{performance['trials']} single runs end within the 95% interval of their trial."
        ),
    )
    table.add_column("way")
    table.add_column("seconds", justify="right")
    table.add_column("of processors", justify="right")
    for way, seconds in result["seconds"].items():
        scaled = f", {result['single_runs']['measured']} measured" if way == SINGLE and _scaled(result) else ""
        table.add_row(f"{way}{scaled}", f"{seconds['wall']:.0f}", f"{seconds['processors']:.0f}")
    table.add_row("ratio", *(f"{result['ratios'][clock]:.3g}" for clock in ("wall", "processors")))
    return table


def rows(result: dict[str, Any]) -> list[Row]:
    """Lines of the table of all benchmarks."""
    scaled = ", scaled" if _scaled(result) else ""
    return [
        Row(
            f"Sweep of {result['trials']} trials, {clock}",
            f"{result['seconds'][ONE][clock]:.0f} s ({ONE})",
            f"{result['seconds'][SINGLE][clock]:.0f} s ({SINGLE}{scaled})",
            ratio,
        )
        for clock, ratio in result["ratios"].items()
    ]


def _scaled(result: dict[str, Any]) -> bool:
    return bool(result["single_runs"]["scaled"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "sweep.json", help="file to write")
    parser.add_argument("--singles", type=int, help="single runs to measure, by default all")
    parser.add_argument("--fast", action="store_true", help="a few decisions: whether it runs, not how fast")
    args = parser.parse_args(arguments)
    check_replaced(parser, args.out, fast=args.fast)
    result = run(FAST if args.fast else Size(), args.singles, Console(width=160))
    write_result(args.out, result, fast=args.fast)


if __name__ == "__main__":
    main()
