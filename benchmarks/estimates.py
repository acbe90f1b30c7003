"""What estimates cost: live, per decision in NumPy, in the compiled simulator, and in training.

    python -m benchmarks.estimates [--out FILE] [--fast]

Live: `InFlight.estimates` with 64 requests in flight on each instance, batches full and lines long, for the three
models of the default profile, for twelve, and for twelve pools on three kinds of hardware in two sites; with and
without harm. Compiled: steps of the environment with random choices at load 0.9, as it is, with the requests in flight
shown but not read, and with all estimates made at every step. Training: one network of `besteffort quickstart` by
Double DQN, its input the paper's state, or with the estimates of `configs/quickstart.yaml`. One thread, processor time,
compilation not counted, cases in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.outcome import check_replaced, write_result
from benchmarks.summary import Row
from benchmarks.timing import Case, Speeds, machine, measure, one_core
from besteffort.diagnosis.wrong_profiles import perturb_latency
from besteffort.estimates.estimates import Newcomer, estimate
from besteffort.in_flight import InFlight
from besteffort.learning.config import DQNHyperparams
from besteffort.learning.train import initial_state, segment
from besteffort.pools import Pool
from besteffort.runs.config import load_situation
from besteffort.runs.experiment import load_run
from besteffort.runs.training import make_training_problem
from besteffort.simulator.build import build
from besteffort.simulator.environment import ServingEnvironment
from besteffort.situation import Cluster, Situation
from besteffort.workload.config import Poisson
from besteffort.workload.config import build as build_workload
from experiments.more_models import made_up

ROOT = Path(__file__).resolve().parent.parent
OFF, SHOWN, ON = "off", "shown", "on"
_IN_FLIGHT = 64


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
      decisions: live ones in a round.
      envs, steps: environments side by side, and steps of each in a round.
      rollouts: of training in a round, each with its updates.
      rounds: how often every case is run.
    """

    decisions: int = 2_000
    envs: int = 64
    steps: int = 1_024
    rollouts: int = 4
    rounds: int = 9


FAST = Size(decisions=20, envs=4, steps=8, rollouts=1, rounds=1)


def live_case(name: str, situation: Situation, size: Size, *, with_harm: bool) -> Case:
    """Estimates for one request, over and over."""
    flight = full(situation)

    def run(number: int) -> None:
        del number
        for _ in range(size.decisions):
            flight.estimates("new", with_harm=with_harm)

    return Case(f"live, {name}", "with harm" if with_harm else "without harm", size.decisions, run)


def full(situation: Situation) -> InFlight:
    """Every instance with as many requests as its batch holds, and as many again that wait; one that has arrived."""
    rng = np.random.default_rng(0)
    flight = InFlight(situation, clock=lambda: 1.0)
    names = situation.task_names
    for pool in situation.fleet.pools:
        for replica in range(pool.replicas):
            for number in range(_IN_FLIGHT):
                request = (replica, pool.name, number)
                task, prompt = names[rng.integers(len(names))], int(rng.integers(64, 192))
                flight.arrived(request, task=task, prompt_tokens=prompt, at=0.0)
                flight.sent(request, pool.name, replica, at=0.0)
            for number in range(pool.max_batch):
                flight.tokens((replica, pool.name, number), int(rng.integers(1, 20)), at=0.99)
    flight.arrived("new", task=names[0], prompt_tokens=100, at=1.0)
    return flight


def compiled_case(name: str, size: Size) -> Case:
    """Steps of the environment, one compiled program."""
    situation = load_situation("paper")
    workload = build_workload(Poisson(load=0.9), situation)
    shape, params = build(situation, workload, history=1_024, estimates=name != OFF)
    environment = ServingEnvironment(shape)

    def roll(states: Any, key: jax.Array) -> Any:
        def step(carry: Any, key: jax.Array) -> Any:
            states, total = carry
            choice, keys = jax.random.split(key)
            actions = jax.random.randint(choice, (size.envs,), 0, shape.pools)
            states, steps = jax.vmap(environment.step, in_axes=(0, 0, 0, None))(
                jax.random.split(keys, size.envs), states, actions, params
            )
            total += steps.reward.sum()
            if name == ON:
                seen = steps.observation
                found = jax.vmap(lambda o: estimate(Newcomer.of(o), o.in_flight, params, xp=jnp))(seen)
                total += sum(field.sum() for field in found if field is not None)
            return (states, total), None

        return jax.lax.scan(step, (states, jnp.zeros(())), jax.random.split(key, size.steps))[0]

    play = jax.jit(roll)
    reset = jax.vmap(environment.reset, in_axes=(0, None))
    started = jax.jit(reset)(jax.random.split(jax.random.key(0), size.envs), params)[0]
    began = time.perf_counter()
    state = {"now": jax.block_until_ready(play(started, jax.random.key(1)))[0]}
    compile_s = time.perf_counter() - began

    def run(number: int) -> None:
        state["now"] = jax.block_until_ready(play(state["now"], jax.random.key(number)))[0]

    return Case("compiled", name, size.envs * size.steps, run, compile_s)


def training_case(name: str, size: Size) -> Case:
    """Training of one network, its input the paper's state, or all that the quickstart's network reads."""
    config, situation = load_run("quickstart")
    if name == OFF:
        situation = dataclasses.replace(situation, view=load_situation("paper").view)
    problem = make_training_problem(situation, config.training)
    settings = dataclasses.replace(problem.training.config, ensemble_size=1, log_interval=size.rollouts)
    numbers = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], DQNHyperparams.for_decisions(settings.decisions))
    environment, params = problem.environment(history=problem.training.history)
    features = problem.features
    keys = jax.random.split(jax.random.key(0), 1)
    state = {"now": initial_state(environment, features, settings, params, numbers, keys, None)}

    def run(number: int) -> None:
        del number
        state["now"] = segment(environment, features, settings, params, numbers, state["now"])[0]
        jax.block_until_ready(state["now"])

    began = time.perf_counter()
    run(-1)
    return Case("training", name, settings.decisions_per_log_point, run, time.perf_counter() - began)


def _situation(models: int) -> Situation:
    situation = load_situation("paper")
    if models == len(situation.profile.models):
        return situation
    return dataclasses.replace(situation, profile=made_up(situation.profile, models))


def twelve_pools() -> Situation:
    """The models of the default profile on three kinds of hardware in two sites."""
    situation = load_situation("paper")
    own = situation.profile
    others = (
        dataclasses.replace(perturb_latency(own, 0.3, "slower"), name="slower"),
        dataclasses.replace(perturb_latency(own, 0.4, "faster"), name="faster"),
    )
    pools = [
        Pool(
            name=f"{model} {index}",
            model=model,
            hardware=(own, *others)[index % 3].name,
            replicas=2 + index % 3,
            network_delay_s=(0.0, 0.03)[index % 2],
        )
        for index, model in enumerate(own.model_names * 4)
    ]
    return dataclasses.replace(situation, cluster=Cluster(), pools=tuple(pools), hardware=others)


def run(size: Size, console: Console) -> dict[str, Any]:
    """Measures everything and prints it; returns what the JSON file holds."""
    began, load_average = time.perf_counter(), os.getloadavg()[0]
    found = {"3 models": _situation(3), "12 models": _situation(12), "12 pools": twelve_pools()}
    cases = [
        live_case(name, situation, size, with_harm=harm) for name, situation in found.items() for harm in (True, False)
    ]
    cases += [compiled_case(name, size) for name in (OFF, SHOWN, ON)]
    cases += [training_case(name, size) for name in (OFF, ON)]
    speeds = measure(cases, size.rounds, console, time.process_time)
    console.print(_table(speeds))
    compiled = speeds["compiled"]
    return {
        "machine": machine("numpy", "jax"),
        "load_average_before": round(load_average, 2),
        "seconds": round(time.perf_counter() - began),
        "size": dataclasses.asdict(size),
        "microseconds": {
            row: {column: round(1e6 / speed.fastest, 2) for column, speed in columns.items()}
            for row, columns in speeds.items()
        },
        "share_of_speed": {name: round(compiled[name].median / compiled[OFF].median, 3) for name in (SHOWN, ON)},
        "training_per_second": {name: round(speed.fastest) for name, speed in speeds["training"].items()},
    }


def _table(speeds: Speeds) -> Table:
    table = Table(title="Microseconds per decision (fastest round; median)")
    table.add_column("what")
    table.add_column("how")
    table.add_column("microseconds", justify="right")
    for row, columns in speeds.items():
        for column, speed in columns.items():
            table.add_row(row, column, f"{1e6 / speed.fastest:.1f}; {1e6 / speed.median:.1f}")
    return table


def rows(result: dict[str, Any]) -> list[Row]:
    """Lines of the table of all benchmarks."""
    micros = result["microseconds"]
    return [
        Row(
            f"Estimates of one request, {name}, 64 in flight each",
            f"{micros[f'live, {name}']['with harm']:.0f} μs",
            f"{wanted} μs wanted",
            wanted / micros[f"live, {name}"]["with harm"],
            1.0,
        )
        for name, wanted in (("3 models", 100), ("12 models", 300), ("12 pools", 300))
        if f"live, {name}" in micros
    ] + [
        Row(
            "A step of the simulator with all estimates",
            f"{micros['compiled'][ON]:.1f} μs",
            f"{micros['compiled'][OFF]:.1f} μs without",
            result["share_of_speed"][ON],
            0.4,
        )
    ]


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "estimates.json", help="file to write")
    parser.add_argument("--fast", action="store_true", help="few decisions and rounds: whether it runs, not how fast")
    args = parser.parse_args(arguments)
    check_replaced(parser, args.out, fast=args.fast)
    with one_core():
        result = run(FAST if args.fast else Size(), Console(width=160))
    write_result(args.out, result, fast=args.fast)


if __name__ == "__main__":
    main()
