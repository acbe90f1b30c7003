"""Training to a fixed quality: ours, Stable-Baselines3, and a gymnax loop, on the same environment.

    python -m benchmarks.learners [--out FILE] [--seeds N] [--fast]

All train for the default situation on the load of `besteffort quickstart`, with the paper's input, a single network of
64 x 64 units and random weights, and are paid with the marginal credit of every decision. They take turns, from one
snapshot of the network to the next, so that a machine that slows down slows all of them. Their clocks run only while
they train, and count processor time, so that other work on the machine does not count: on one core that is the time on
the wall where nothing else runs, on several it is to the disadvantage of those who use them. Compilation is measured
before and reported apart. Afterwards every snapshot is judged on the same lists, which no router was trained or tuned
on: Poisson arrivals at several loads, and bursts. The quality to reach is 95% of the mean performance there of the best
heuristic, which has one setting for all of them, tuned on other lists.

| learner | what it is |
|---|---|
| ours | `besteffort.learning`, 128 environments; judged is what a policy file would hold |
| gymnax loop | DQN as in purejaxrl on the gymnax adapter (`benchmarks/gymnax_dqn.py`), 128 environments |
| Stable-Baselines3, tuned | its DQN on the `VecEnv` and the replay buffer of the adapter, 64 environments in one call |
| Stable-Baselines3, as it comes | its DQN with its own buffer and its own settings, on a single environment |

Apart from these stands the search (`training.method=search`), which finds the numbers of a rule and trains no network:
its processor time, with everything compiled, and what its rule earns on the same lists.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks import gymnax_dqn
from benchmarks.outcome import check_replaced, write_result
from benchmarks.summary import Row
from benchmarks.timing import machine
from besteffort.adapters.gymnax import ServingGymnax
from besteffort.adapters.wrapped import WrappedEnv
from besteffort.evaluation import plots
from besteffort.evaluation.colours import FOCUS, GRID, INK, SERIES
from besteffort.evaluation.rollouts import Rollout, mean_rewards
from besteffort.evaluation.tuning import heuristic_routers, tune
from besteffort.learning.config import DQNHyperparams, SearchConfig
from besteffort.learning.network import to_weights
from besteffort.learning.train import initial_state, segment
from besteffort.routers.learned import LearnedRouter, learned_router
from besteffort.runs.experiment import RunConfig, load_run
from besteffort.runs.training import TrainingProblem, make_training_problem, search_policies
from besteffort.situation import View
from besteffort.weights import Weights
from besteffort.workload.config import Poisson
from besteffort.workload.config import build as build_workload
from besteffort.workload.requests import Requests
from besteffort.workload.sample import sample_lists

ROOT = Path(__file__).resolve().parent.parent
SHARE, TARGET = 0.95, 12.0
OURS, GYMNAX, TUNED, AS_IT_COMES = "ours", "gymnax loop", "Stable-Baselines3, tuned", "Stable-Baselines3, as it comes"
STYLES = dict(zip((FOCUS, *SERIES[:3]), ("-", "--", "-.", ":"), strict=True))  # colour and line of each learner
HORIZON_S = 0.25  # of the discount by time, as in `besteffort.learning.config.DQNHyperparams`


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
      seeds: trainings of each learner.
      loads: of the Poisson lists, in multiples of the largest model's capacity.
      lists: lists per load, and of bursts.
      requests: length of a list.
      decisions: of a training, by learner; one that is left out does not take part.
      snapshots: of a training.
      search: settings of the search; by default those of a configuration that states none.
    """

    seeds: int = 3
    loads: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    lists: int = 2
    requests: int = 10_000
    decisions: tuple[tuple[str, int], ...] = (
        (OURS, 524_288),
        (GYMNAX, 1_048_576),
        (TUNED, 524_288),
        (AS_IT_COMES, 32_768),
    )
    snapshots: int = 32
    search: SearchConfig | None = None


FAST = Size(
    seeds=1,
    loads=(1.0,),
    lists=1,
    requests=2_000,
    decisions=((OURS, 4_096), (GYMNAX, 4_096), (TUNED, 4_096), (AS_IT_COMES, 64)),
    snapshots=2,
    search=SearchConfig(generations=1, requests=400),
)


class Task(NamedTuple):
    """What all learn.

    Attributes:
      problem: situation, load and network input.
      wrapped: its environment for the adapters. It never ends, and gives the marginal credit.
      gymnax: the same once more; a single object, since programs are compiled for one.
    """

    problem: TrainingProblem
    wrapped: WrappedEnv
    gymnax: ServingGymnax


def make_problem() -> tuple[RunConfig, TrainingProblem]:
    """The quickstart's configuration, and its problem with the paper's input.

    With estimates ours would start as a rule, which the others could not.
    """
    config, situation = load_run("quickstart")
    view = dataclasses.replace(situation.view, features=View().features)
    return config, make_training_problem(dataclasses.replace(situation, view=view), config.training)


def make_task(problem: TrainingProblem) -> Task:
    """A problem in the forms of all learners."""
    env, params = problem.environment(history=64)  # outcomes are not read
    wrapped = WrappedEnv(env, params, problem.features, "marginal")
    return Task(problem, wrapped, ServingGymnax(wrapped))


class Learner(Protocol):
    """A training that continues on request."""

    def proceed(self) -> Weights:
        """Trains up to the next snapshot, and gives the network."""
        ...


@dataclasses.dataclass
class Curve:
    """A training as it went.

    Attributes:
      compile_s: what its programs took to compile; a second training of the same kind spends nothing on that.
      seconds: of training up to each snapshot.
      decisions: up to each snapshot.
      weights: at each snapshot.
      performance: of each snapshot, mean over the lists.
    """

    compile_s: float
    seconds: list[float] = dataclasses.field(default_factory=list)
    decisions: list[int] = dataclasses.field(default_factory=list)
    weights: list[Weights] = dataclasses.field(default_factory=list)
    performance: list[float] = dataclasses.field(default_factory=list)

    def reached_s(self, quality: float) -> float | None:
        """Seconds up to the first snapshot of at least that quality."""
        good = [s for s, performance in zip(self.seconds, self.performance, strict=True) if performance >= quality]
        return good[0] if good else None

    def kept_s(self, quality: float) -> float | None:
        """Seconds up to the first snapshot from which on all are of at least that quality."""
        poor = [i for i, performance in enumerate(self.performance) if performance < quality]
        first = poor[-1] + 1 if poor else 0
        return self.seconds[first] if first < len(self.seconds) else None


class Ours:
    """`besteffort.learning` with the settings of the quickstart, for as many decisions as there are; one network."""

    def __init__(self, task: Task, decisions: int, snapshots: int, seed: int) -> None:
        problem = task.problem
        training = problem.training.config
        chunks = max(1, decisions // snapshots // training.decisions_per_rollout)
        self._config = dataclasses.replace(training, ensemble_size=1, decisions=decisions, log_interval=chunks)
        self._hyper = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], DQNHyperparams.for_decisions(decisions))
        self._env, self._params = problem.environment(history=problem.training.history)
        self._features = problem.features
        keys = jax.random.split(jax.random.key(seed), 1)
        self._state = initial_state(self._env, self._features, self._config, self._params, self._hyper, keys, None)
        self.per_snapshot = self._config.decisions_per_log_point

    def proceed(self) -> Weights:
        self._state, _ = segment(self._env, self._features, self._config, self._params, self._hyper, self._state)
        return to_weights(jax.tree.map(lambda leaf: leaf[0], self._state.runs.average))


class GymnaxLoop:
    """The loop of `benchmarks.gymnax_dqn` on the gymnax adapter."""

    def __init__(self, task: Task, decisions: int, snapshots: int, seed: int) -> None:
        self._env = task.gymnax
        self._params = self._env.default_params
        self._settings = gymnax_dqn.Settings(total_timesteps=decisions)
        self._steps = max(1, decisions // snapshots // self._settings.num_envs)
        self._runner = gymnax_dqn.start(self._env, self._params, self._settings, jax.random.key(seed))
        self.per_snapshot = self._steps * self._settings.num_envs

    def proceed(self) -> Weights:
        self._runner, _ = gymnax_dqn.proceed(self._env, self._params, self._settings, self._steps, self._runner)
        return tuple(
            (np.asarray(kernel), np.asarray(bias)) for kernel, bias in gymnax_dqn.weights_of(self._runner.params)
        )


class StableBaselines:
    """A DQN of Stable-Baselines3, in a thread that waits at every snapshot for its turn."""

    def __init__(self, model: Any, decisions: int, snapshots: int) -> None:
        from stable_baselines3.common.callbacks import BaseCallback

        from besteffort.adapters.stable_baselines3 import dqn_weights

        self.per_snapshot = max(decisions // snapshots, model.n_envs)
        self._model, self._weights = model, dqn_weights
        self._go, self._there = threading.Semaphore(0), threading.Semaphore(0)
        outer = self

        class Turns(BaseCallback):
            def _on_step(self) -> bool:
                if self.num_timesteps % outer.per_snapshot < model.n_envs:
                    outer._there.release()
                    outer._go.acquire()
                return True

        def learn() -> None:
            self._go.acquire()
            model.learn(decisions + self.per_snapshot, callback=Turns(), log_interval=None)

        threading.Thread(target=learn, daemon=True).start()

    def proceed(self) -> Weights:
        self._go.release()
        self._there.acquire()
        return self._weights(self._model)

    @classmethod
    def tuned(cls, task: Task, decisions: int, snapshots: int, seed: int) -> StableBaselines:
        """With what the adapter offers: many environments in one call, time discount; settings as the gymnax loop's."""
        import torch
        from stable_baselines3 import DQN

        from besteffort.adapters.stable_baselines3 import ServingReplayBuffer, ServingVecEnv

        torch.set_num_threads(1)  # faster than two for networks of this size
        model = DQN(
            "MlpPolicy",
            ServingVecEnv(64, task.wrapped),
            learning_rate=lambda left: 1e-3 * left,
            buffer_size=131_072,
            learning_starts=min(16_384, decisions // 4),
            batch_size=256,
            tau=0.005,
            target_update_interval=1,
            train_freq=1,
            gradient_steps=1,
            exploration_fraction=0.25,
            exploration_final_eps=0.05,
            replay_buffer_class=ServingReplayBuffer,
            replay_buffer_kwargs={"own": False, "horizon_s": HORIZON_S},
            policy_kwargs={"net_arch": [64, 64]},
            seed=seed,
            device="cpu",
        )
        return cls(model, decisions, snapshots)

    @classmethod
    def as_it_comes(cls, task: Task, decisions: int, snapshots: int, seed: int) -> StableBaselines:
        """On the single environment, one decision after the other, with the library's own buffer and settings."""
        import torch
        from stable_baselines3 import DQN

        from besteffort.adapters.gymnasium import ServingEnv

        torch.set_num_threads(1)
        net = {"net_arch": [64, 64]}
        model = DQN("MlpPolicy", ServingEnv(task.wrapped), policy_kwargs=net, seed=seed, device="cpu")
        return cls(model, decisions, snapshots)


LEARNERS: dict[str, Callable[[Task, int, int, int], Learner]] = {
    OURS: Ours,
    GYMNAX: GymnaxLoop,
    TUNED: StableBaselines.tuned,
    AS_IT_COMES: StableBaselines.as_it_comes,
}


def train_all(task: Task, size: Size, seed: int, console: Console) -> dict[str, Curve]:
    """One training of each learner, in turns; the next turn goes to the one that is least far."""
    curves: dict[str, Curve] = {}
    learners: dict[str, Any] = {}
    for name, decisions in size.decisions:
        begun = time.process_time()
        LEARNERS[name](task, decisions, size.snapshots, seed).proceed()
        again = time.process_time()
        learners[name] = LEARNERS[name](task, decisions, size.snapshots, seed)
        learners[name].proceed()
        spent = time.process_time() - again
        curves[name] = Curve(compile_s=again - begun - spent)
        learners[name] = LEARNERS[name](task, decisions, size.snapshots, seed)
    wanted = dict(size.decisions)

    def left(name: str) -> float:
        return 1 - (curves[name].decisions[-1] if curves[name].decisions else 0) / wanted[name]

    while (name := max(learners, key=left)) and left(name) > 0:
        begun = time.process_time()
        weights = learners[name].proceed()
        spent, curve = time.process_time() - begun, curves[name]
        curve.seconds.append(spent + (curve.seconds[-1] if curve.seconds else 0.0))
        curve.decisions.append(learners[name].per_snapshot + (curve.decisions[-1] if curve.decisions else 0))
        curve.weights.append(weights)
    for name, curve in curves.items():
        rate = curve.decisions[-1] / curve.seconds[-1]
        console.print(f"seed {seed}: {name}, {curve.seconds[-1]:.0f} s, {rate:,.0f} decisions/s", highlight=False)
    return curves


class Ground(NamedTuple):
    """Where snapshots are judged.

    Attributes:
      lists: the lists.
      heuristics: mean performance of every router that does not learn.
      warm_up_s: seconds from the first arrival of a list that do not count.
    """

    lists: list[Requests]
    heuristics: dict[str, float]
    warm_up_s: float

    @property
    def best(self) -> tuple[str, float]:
        return max(self.heuristics.items(), key=lambda item: item[1])


def make_ground(config: RunConfig, problem: TrainingProblem, size: Size) -> Ground:
    """Lists to judge on, and what the heuristics make of them."""
    situation, judging = problem.situation, config.evaluation
    begin = judging.seed
    judged = _lists(config, problem, size, range(begin, begin + size.lists))
    tuning = _lists(config, problem, size, range(begin + size.lists, begin + size.lists + 1))
    warm_up_s = min(judging.warm_up_s, min(float(requests.arrival_s[-1]) for requests in (*judged, *tuning)) / 4)
    (tuned,) = tune(situation, [tuning], judging, warm_up_s=warm_up_s)
    routers = heuristic_routers(situation, tuned, len(judged))
    lanes = [Rollout(name, row, router) for name, each in routers.items() for row, router in enumerate(each)]
    means = mean_rewards(situation, judged, lanes, warm_up_s=warm_up_s).reshape(len(routers), -1).mean(axis=1)
    return Ground(judged, dict(zip(routers, means.tolist(), strict=True)), warm_up_s)


def judge(ground: Ground, problem: TrainingProblem, curves: Sequence[Curve]) -> None:
    """Fills in the performance of every snapshot, all in one compiled program."""
    lanes = [
        Rollout("learned", row, LearnedRouter(weights, problem.features))
        for curve in curves
        for weights in curve.weights
        for row in range(len(ground.lists))
    ]
    means = mean_rewards(problem.situation, ground.lists, lanes, warm_up_s=ground.warm_up_s)
    each = iter(means.reshape(-1, len(ground.lists)).mean(axis=1).tolist())
    for curve in curves:
        curve.performance = [next(each) for _ in curve.weights]


def searched(config: RunConfig, ground: Ground, size: Size, console: Console) -> dict[str, Any]:
    """What searches take and come to, one per seed; the first of all is repeated, since it compiles."""
    search = size.search or SearchConfig()
    training = dataclasses.replace(config.training, method="search", search=search, seeds=1)
    problem = make_training_problem(config.build(), training)
    seconds, rules, compile_s = [], [], 0.0
    with tempfile.TemporaryDirectory() as directory:
        for run, seed in enumerate([0, *range(size.seeds)]):
            begun = time.process_time()
            (policy,) = search_policies(problem, [seed], Path(directory) / f"{run}.npz", lambda latest: None)
            spent = time.process_time() - begun
            if not run:
                compile_s = spent
                continue
            seconds.append(spent)
            rules.append(learned_router(policy))
    lanes = [Rollout("search", row, router) for router in rules for row in range(len(ground.lists))]
    means = mean_rewards(problem.situation, ground.lists, lanes, warm_up_s=ground.warm_up_s)
    performance = means.reshape(-1, len(ground.lists)).mean(axis=1).tolist()
    console.print(f"search: {statistics.median(seconds):.0f} s", highlight=False)
    return {
        "seconds": {"median": round(statistics.median(seconds), 2), "each": [round(each, 2) for each in seconds]},
        "compile_s": round(max(compile_s - seconds[0], 0.0), 1),
        "performance": {"mean": statistics.mean(performance), "each": performance},
    }


def describe(curves: Sequence[Curve], target: float) -> dict[str, Any]:
    """One learner's trainings as plain JSON values."""

    def reached(seconds: Sequence[float | None]) -> dict[str, Any]:
        known = [value for value in seconds if value is not None]
        median = round(statistics.median(known), 2) if len(known) > len(seconds) / 2 else None
        return {"median": median, "each": [None if value is None else round(value, 2) for value in seconds]}

    last = [curve.performance[-1] for curve in curves]
    return {
        "seconds": round(statistics.median(curve.seconds[-1] for curve in curves), 2),
        "decisions_per_s": round(statistics.median(curve.decisions[-1] / curve.seconds[-1] for curve in curves)),
        "compile_s": round(max(curve.compile_s for curve in curves), 1),  # later seeds find the programs
        "seconds_to_target": reached([curve.reached_s(target) for curve in curves]),
        "seconds_to_stay_above": reached([curve.kept_s(target) for curve in curves]),
        "performance_at_the_end": {"mean": statistics.mean(last), "each": last},
        "best_performance": statistics.mean(max(curve.performance) for curve in curves),
        "curves": [
            {
                "seconds": [round(value, 3) for value in curve.seconds],
                "decisions": curve.decisions,
                "performance": [round(value, 5) for value in curve.performance],
            }
            for curve in curves
        ],
    }


def draw(curves: dict[str, list[Curve]], ground: Ground, found: dict[str, Any]) -> Figure:
    """Judged performance against seconds of training; a thin line per training, a thick one for their median.

    Searches are points, at their end.
    """
    figure = Figure(figsize=(9.0, 4.8), layout="constrained")
    axes = figure.subplots()
    name, best = ground.best
    axes.axhline(100 * best, color=INK, linewidth=1.2, label=f"best heuristic ({name})")
    axes.axhline(100 * SHARE * best, color=INK, linewidth=1.2, linestyle="--", label=f"{SHARE:.0%} of it")
    for (name, each), (colour, style) in zip(curves.items(), STYLES.items(), strict=False):
        for curve in each:
            axes.plot(curve.seconds, 100 * np.array(curve.performance), style, color=colour, linewidth=0.7, alpha=0.5)
        seconds, performance = (np.median([getattr(c, f) for c in each], axis=0) for f in ("seconds", "performance"))
        axes.plot(seconds, 100 * performance, style, color=colour, linewidth=2.2, label=name)
    performance = 100 * np.array(found["performance"]["each"])
    axes.plot(found["seconds"]["each"], performance, "D", color=INK, markersize=5, label="search, no network")
    axes.set_xscale("log")
    axes.set_xlabel("seconds of processor time in training, compilation not included")
    axes.set_ylabel("performance on the judged lists (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def table_of(result: dict[str, Any]) -> Table:
    """One line per learner."""
    table = Table(
        title=f"Training to {SHARE:.0%} of the best heuristic ({result['target']:.4f}), {result['seeds']} seeds"
    )
    table.add_column("learner")
    headings = (
        "decisions/s",
        "s to get there",
        "s to stay there",
        "+ compiling (s)",
        "at the end (%)",
        "ours is faster by",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, found in result["learners"].items():
        ratio = result["ratios"].get(name)
        table.add_row(
            name,
            f"{found['decisions_per_s']:,}",
            *(_seconds(found[key]["median"]) for key in ("seconds_to_target", "seconds_to_stay_above")),
            f"{found['compile_s']:.1f}",
            f"{100 * found['performance_at_the_end']['mean']:.2f}",
            _times(ratio),
        )
    return table


def _times(ratio: dict[str, Any] | None) -> str:
    return "" if ratio is None else f"{'> ' if ratio['at_least'] else ''}{ratio['times']:.3g}"


def _seconds(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.3g}"


def run(size: Size, console: Console) -> tuple[dict[str, Any], Figure]:
    """Trains, judges and prints; returns what the JSON file holds, and the figure."""
    warnings.filterwarnings("ignore", module="stable_baselines3")
    began, load_average = time.perf_counter(), os.getloadavg()[0]
    if find_spec("stable_baselines3") is None:
        console.print("Stable-Baselines3 is not installed; it is left out.")
        size = dataclasses.replace(size, decisions=tuple(x for x in size.decisions if x[0] not in (TUNED, AS_IT_COMES)))
    config, problem = make_problem()
    ground, task = make_ground(config, problem, size), make_task(problem)
    curves: dict[str, list[Curve]] = {name: [] for name, _ in size.decisions}
    for seed in range(size.seeds):
        for name, curve in train_all(task, size, seed, console).items():
            curves[name].append(curve)
    judge(ground, problem, [curve for each in curves.values() for curve in each])
    found = searched(config, ground, size, console)
    name, best = ground.best
    learners = {name: describe(each, SHARE * best) for name, each in curves.items()}
    ours = learners[OURS]["seconds_to_target"]["median"]
    result = {
        "machine": machine("jax", "gymnax", *(("gymnasium", "stable-baselines3", "torch") if TUNED in curves else ())),
        "load_average_before": round(load_average, 2),
        "seconds": round(time.perf_counter() - began),
        "size": dataclasses.asdict(size),
        "seeds": size.seeds,
        "best_heuristic": {"name": name, "performance": best},
        "heuristics": ground.heuristics,
        "target": SHARE * best,
        "ratios": {name: _ratio(ours, found) for name, found in learners.items() if name != OURS},
        "learners": learners,
        "search": found,
    }
    console.print(table_of(result))
    return result, draw(curves, ground, found)


def _ratio(ours: float | None, found: dict[str, Any]) -> dict[str, Any] | None:
    """How many times faster ours is; `at_least` so many where theirs was not there at the end. None if ours was not."""
    theirs = found["seconds_to_target"]["median"]
    if ours is None:
        return None
    least = theirs is None
    return {"times": round((found["seconds"] if least else theirs) / ours, 1), "at_least": least}


def rows(result: dict[str, Any]) -> list[Row]:
    """Lines of the table of all benchmarks; a ratio that is a lower bound is marked by what theirs says."""
    ours = result["learners"][OURS]["seconds_to_target"]["median"]

    def theirs(name: str) -> str:
        found = result["learners"][name]
        reached = found["seconds_to_target"]["median"]
        return f"not in {found['seconds']:.3g} s ({name})" if reached is None else f"{reached:.3g} s ({name})"

    return [
        Row(
            f"Training to {SHARE:.0%} of the best heuristic",
            f"{_seconds(ours)} s" if ours is not None else "not reached",
            theirs(name),
            None if ratio is None else ratio["times"],
            None if name == GYMNAX else TARGET,
        )
        for name, ratio in result["ratios"].items()
    ]


def _lists(config: RunConfig, problem: TrainingProblem, size: Size, seeds: range) -> list[Requests]:
    situation = problem.situation
    families = ([Poisson(load=load) for load in size.loads], [config.evaluation.burst])
    return [
        requests
        for family in families
        for requests in sample_lists(
            [build_workload(workload, situation) for workload in family], situation.task_names, size.requests, seeds
        )
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, trains, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "learners.json", help="file to write")
    parser.add_argument("--seeds", type=int, help="trainings of each learner, by default 3")
    parser.add_argument("--fast", action="store_true", help="a few decisions: whether it runs, not how fast")
    args = parser.parse_args(arguments)
    check_replaced(parser, args.out, fast=args.fast)
    size = FAST if args.fast else Size()
    if args.seeds is not None:
        size = dataclasses.replace(size, seeds=args.seeds)
    result, figure = run(size, Console(width=160))
    write_result(args.out, result, fast=args.fast)
    plots.save_figure(figure, args.out.with_suffix(""))


if __name__ == "__main__":
    main()
