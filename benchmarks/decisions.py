"""Time that one decision takes, by a policy file in NumPy, by ONNX Runtime and by a compiled JAX function.

    python -m benchmarks.decisions [--policy FILE ...] [--out FILE] [--fast]

Every decision starts from Python numbers and ends with the index of a model, as next to a load balancer: one request at
a time, on one thread; what else runs on the machine is not counted. Also on how many of 10,000 states all three choose
the same model. Beside the policies that are given stand two networks with random weights that choose each model equally
often: one of 64 x 64 units and one of 256 x 256, as in the paper.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from benchmarks.outcome import check_replaced, write_result
from benchmarks.summary import Row
from benchmarks.timing import Case, Speeds, machine, measure
from besteffort.adapters.onnx import to_onnx
from besteffort.errors import InputError
from besteffort.observation import Observation, input_size
from besteffort.policy import Policy, load_policy
from besteffort.routers.learned import LearnedRouter, learned_router
from besteffort.runs.experiment import load_run
from besteffort.runs.training import make_policy, make_training_problem
from besteffort.workload.sources import listed
from experiments.lab import exiting

ROOT = Path(__file__).resolve().parent.parent
NUMPY, ONNX, JAX = "NumPy", "ONNX Runtime", "JAX"
_INPUTS = {"task", "batch_sizes", "arrival_rate"}

State = tuple[str, tuple[int, ...], float]
"""Name of the task, batch sizes, arrival rate: what a gateway knows."""
Decide = Callable[[State], int]


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
      states: on which choices are compared, and which decisions are timed on in turn.
      decisions: of a library in a round.
      rounds: how often every case is run.
    """

    states: int = 10_000
    decisions: int = 10_000
    rounds: int = 7


FAST = Size(states=500, decisions=200, rounds=2)


def random_policy(hidden: tuple[int, ...]) -> Policy:
    """A policy for the default situation with random weights."""
    config, situation = load_run("paper")
    problem = make_training_problem(situation, config.training)
    rng = np.random.default_rng(0)
    sizes = (input_size(problem.features), *hidden, len(situation.profile.model_names))
    weights = [(rng.normal(size=(n, m)) / np.sqrt(n), np.zeros(m)) for n, m in itertools.pairwise(sizes)]
    policy = make_policy(problem, tuple(weights), {})
    states = random_states(policy, 1000)
    values = [policy.values(task=task, batch_sizes=sizes, arrival_rate=rate) for task, sizes, rate in states]
    return dataclasses.replace(policy, weights=(*weights[:-1], (weights[-1][0], -np.median(values, axis=0))))


def random_states(policy: Policy, count: int) -> list[State]:
    """Tasks and batch sizes uniform over what is possible, rates log-uniform; the policy reads nothing else."""
    rng = np.random.default_rng(0)
    cluster = policy.situation.cluster
    most = cluster.replicas * (cluster.max_batch + cluster.queue_capacity)
    sizes = rng.integers(0, most + 1, (count, len(policy.models))).tolist()
    rates = (10.0 ** rng.uniform(-1, 4, count)).tolist()
    tasks = [policy.tasks[i] for i in rng.integers(0, len(policy.tasks), count)]
    return [(task, tuple(size), rate) for task, size, rate in zip(tasks, sizes, rates, strict=True)]


def on_the_papers_inputs(path: Path) -> Policy:
    """The policy of a file, which all three libraries can ask.

    Raises:
      InputError: if it cannot be read, or reads more than the paper's inputs.
    """
    policy = load_policy(path)
    if {feature.name for feature in policy.features} != _INPUTS:
        raise InputError(
            f"{path}: the policy reads {listed(feature.name for feature in policy.features)}; give one on the paper's "
            f"inputs, {listed(sorted(_INPUTS))}, such as `besteffort train paper` makes."
        )
    return policy


def deciders(policy: Policy) -> dict[str, Decide]:
    """The same policy by each library."""
    names = {model: index for index, model in enumerate(policy.models)}
    tasks = {task: index for index, task in enumerate(policy.tasks)}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        to_onnx(policy).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    router = learned_router(policy)
    assert isinstance(router, LearnedRouter)
    unread = np.zeros((), np.float32)

    @jax.jit
    def choose(task: Any, batch_sizes: Any, arrival_rate: Any) -> Any:
        seen = Observation(task, batch_sizes, arrival_rate, unread, unread, unread)
        return jnp.argmax(router.q_values(seen))

    def by_numpy(state: State) -> int:
        task, sizes, rate = state
        return names[policy.decide(task=task, batch_sizes=sizes, arrival_rate=rate)]

    def by_onnx(state: State) -> int:
        task, sizes, rate = state
        given = {
            "task": np.array([tasks[task]]),
            "batch_sizes": np.array([sizes]),
            "arrival_rate": np.array([rate]),
        }
        return int(session.run(["model"], given)[0][0])

    def by_jax(state: State) -> int:
        task, sizes, rate = state
        return int(choose(np.int32(tasks[task]), np.array(sizes, np.int32), np.float32(rate)))

    return {NUMPY: by_numpy, ONNX: by_onnx, JAX: by_jax}


def decision_case(row: str, column: str, decide: Decide, states: Sequence[State], count: int) -> Case:
    """`count` decisions, one after the other."""

    def run(number: int) -> None:
        for index in range(number * count, (number + 1) * count):
            decide(states[index % len(states)])

    run(0)
    return Case(row, column, count, run)


def choices(policy: Policy, states: Sequence[State]) -> dict[str, Any]:
    """How many states are decided alike, and how often each model is chosen."""
    by = {name: np.array([decide(state) for state in states]) for name, decide in deciders(policy).items()}
    shares = np.bincount(by[NUMPY], minlength=len(policy.models)) / len(states)
    return {
        "states": len(states),
        "as NumPy": {name: int((chosen == by[NUMPY]).sum()) for name, chosen in by.items()},
        "shares": dict(zip(policy.models, shares.round(3).tolist(), strict=True)),
    }


def latency_table(speeds: Speeds, agreed: dict[str, Any]) -> Table:
    """Microseconds per decision, and the same choices."""
    table = Table(title="Microseconds per decision (median, and range over the rounds)")
    table.add_column("policy")
    for name in (NUMPY, ONNX, JAX):
        table.add_column(name, justify="right")
    table.add_column("same choice as NumPy: ONNX Runtime, JAX", justify="right")
    for row, found in speeds.items():
        cells = [
            f"{1e6 / found[name].median:.1f}\n{1e6 / found[name].fastest:.1f}-{1e6 / found[name].slowest:.1f}"
            for name in (NUMPY, ONNX, JAX)
        ]
        same = agreed[row]["as NumPy"]
        table.add_row(row, *cells, f"{same[ONNX]:,}, {same[JAX]:,} of {agreed[row]['states']:,}")
    return table


def run(size: Size, policies: Mapping[str, Policy], console: Console) -> dict[str, Any]:
    """Measures everything and prints it; returns what the JSON file holds."""
    began, load_average = time.perf_counter(), os.getloadavg()[0]
    states = {name: random_states(policy, size.states) for name, policy in policies.items()}
    cases = [
        decision_case(name, library, decide, states[name], size.decisions)
        for name, policy in policies.items()
        for library, decide in deciders(policy).items()
    ]
    speeds = measure(cases, size.rounds, console, time.process_time)
    agreed = {name: choices(policy, states[name]) for name, policy in policies.items()}
    console.print(latency_table(speeds, agreed))
    return {
        "machine": machine("numpy", "onnx", "onnxruntime", "jax"),
        "load_average_before": round(load_average, 2),
        "seconds": round(time.perf_counter() - began),
        "size": dataclasses.asdict(size),
        "microseconds": {
            name: {
                library: {
                    "median": round(1e6 / speed.median, 2),
                    "fastest": round(1e6 / speed.fastest, 2),
                    "slowest": round(1e6 / speed.slowest, 2),
                }
                for library, speed in row.items()
            }
            for name, row in speeds.items()
        },
        "choices": agreed,
    }


def rows(result: dict[str, Any]) -> list[Row]:
    """Lines of the table of all benchmarks."""
    found = []
    for name, row in result["microseconds"].items():
        ours = row[NUMPY]["median"]
        for library in (ONNX, JAX):
            theirs = row[library]["median"]
            found.append(
                Row(
                    f"One decision, {name}",
                    f"{ours:.1f} μs (NumPy)",
                    f"{theirs:.1f} μs ({library})",
                    theirs / ours,
                )
            )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", type=Path, action="append", default=[], help="policy file to measure, too")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "decisions.json", help="file to write")
    parser.add_argument("--fast", action="store_true", help="few states and rounds: whether it runs, not how fast")
    args = parser.parse_args(arguments)
    check_replaced(parser, args.out, fast=args.fast)
    size = FAST if args.fast else Size()
    with exiting("benchmarks.decisions"):
        policies = {path.stem: on_the_papers_inputs(path) for path in args.policy}
    policies |= {f"random {' x '.join(map(str, hidden))}": random_policy(hidden) for hidden in ((64, 64), (256, 256))}
    result = run(size, policies, Console(width=160))
    write_result(args.out, result, fast=args.fast)


if __name__ == "__main__":
    main()
