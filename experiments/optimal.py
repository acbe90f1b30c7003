"""How far from optimal: the learned router and the best policy there is, where that can be computed.

    python -m experiments.optimal [--fast]

One replica with three models, two tasks, answers of one or two tokens, batches of two, all times whole ticks: small
enough to solve (`experiments.small_instance`). The optimum is that of a router which sees the whole state of every
instance, the lengths of all answers in progress among it. A gateway learns a length when the answer ends: the best that
it can do is computed, too (`experiments.unknown_lengths`), and so is a policy that sees task and batch sizes alone. The
same search as anywhere finds rules for
this situation, the same recipe trains networks that add to them, and heuristics are tuned on it. The optimal policy is
also played by the reference simulator, on the lists that all routers are judged on: its mean reward has to be what was
computed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from besteffort.evaluation import metrics, plots
from besteffort.evaluation.formats import percent
from besteffort.evaluation.judging import LEARNED, EvaluationResult, EvaluationSet
from besteffort.evaluation.ranking import ranking
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.statistics import Interval, mean_interval
from besteffort.observation import ESTIMATES, OBSERVED_SLOWDOWN
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality
from besteffort.runs.experiment import TrainingConfig
from besteffort.simulator.simulate import simulate_by_reference
from besteffort.situation import Cluster, Deadline, Situation, Task, View
from besteffort.workload.requests import Requests
from besteffort.workload.sample import sample_lists
from besteffort.workload.synthetic_workload import SyntheticWorkload, synthetic
from experiments.lab import Claim, Findings, Lab, main, status_of
from experiments.small_instance import Instance, Solution, TickArrivals, best_by_sizes, follow, make_instance, solve
from experiments.unknown_lengths import best_reward

TICK_S = 1 / 128  # a power of two, so that sums of ticks are exact in float32
PROBABILITIES = (0.25, 0.5, 0.75)
TARGET = 0.003
SEARCH = f"{LEARNED}: search"
MODELS = (("small", 1, (1, 1)), ("middle", 1, (2, 2)), ("large", 2, (3, 3)))  # prefill, decode of 1 and of 2; in ticks
QUALITY = {"plain": (70.0, 78.0, 80.0), "hard": (45.0, 70.0, 80.0)}
OPTIMUM, SEEN = "optimum, sees everything", "optimum, does not know lengths"
BY_SIZES = "computed, sees task and batch sizes"


class Case(NamedTuple):
    """One arrival rate.

    Attributes:
      load: in multiples of the largest model's capacity.
      instance: the process.
      optimum: its solution.
      seen: what the best router earns that does not know the lengths of answers.
      by_sizes: a policy that sees less.
      evaluation: what routers do.
      played: (seeds,) what the optimal policy earns on the evaluation's lists, by the reference.
    """

    load: float
    instance: Instance
    optimum: Solution
    seen: float
    by_sizes: Solution
    evaluation: EvaluationResult
    played: np.ndarray

    @property
    def gaps(self) -> np.ndarray:
        """(seeds,) how far the learned router stays behind the optimal policy on the same lists, relative to that."""
        return self.gaps_of(LEARNED)

    def gaps_of(self, learned: str) -> np.ndarray:
        """The same of the networks or of the searched rules."""
        return 1 - ranking(self.evaluation, learned=learned).learned / self.played


def run(lab: Lab) -> Findings:
    """Computes the optimum, trains and judges, at every rate."""
    situation = small_situation()
    cases = [case(lab, situation, probability) for probability in PROBABILITIES]
    worst = max(cases, key=lambda one: float(one.gaps.mean()))
    gap, best = mean_interval(worst.gaps), ranking(worst.evaluation)
    searched = max((mean_interval(one.gaps_of(SEARCH)) for one in cases), key=lambda one: float(one.mean))
    claim = Claim(
        f"Small instance: gap to the optimal policy of {TARGET:.1%} or less at each of {len(cases)} loads",
        "",
        f"{percent(gap, 2)} at the worst, of which {percent(1 - worst.seen / worst.optimum.reward, 2)} for not knowing "
        f"the lengths of answers in progress; by search {percent(searched, 2)}",
        static=f"{percent(mean_interval(1 - best.static[1] / worst.played))} ({best.static[0]})",
        heuristic=f"{percent(mean_interval(1 - best.heuristic[1] / worst.played), 2)} ({best.heuristic[0]})",
        status=status_of(sum(bool(mean_interval(one.gaps).high <= TARGET) for one in cases), len(cases)),
    )
    data = {"target": TARGET, "loads": [figures(one) for one in cases]}
    return Findings(data, (claim,), (table(cases),), {"": figure(cases)})


def case(lab: Lab, situation: Situation, probability: float) -> Case:
    """Everything at one rate."""
    lab.log(f"solving the small instance with {probability:g} arrivals per tick")
    instance = make_instance(situation, TICK_S, probability)
    optimum = solve(instance)
    workload = synthetic(situation, TickArrivals(TICK_S, probability))
    name = f"small instance, {probability:g} per tick"
    search = TrainingConfig(method="search", seed=lab.scale.seed * lab.scale.seeds, seeds=lab.scale.seeds)
    searched = lab.train(situation, search, name=f"{name}, search", workload=workload)
    networks = lab.train(situation, lab.training(variant=True), name=name, workload=workload, start=searched)
    policies = {LEARNED: networks, SEARCH: searched}
    evaluation = lab.judge(evaluation_set(lab, situation, workload, probability), policies)
    lists, warm_up_s = evaluation.set.judged[0], evaluation.set.warm_up_s
    return Case(
        load=evaluation.set.loads[0],
        instance=instance,
        optimum=optimum,
        seen=best_reward(instance),
        by_sizes=best_by_sizes(instance),
        evaluation=evaluation,
        played=np.array([play(instance, optimum, requests, warm_up_s) for requests in lists]),
    )


def play(instance: Instance, solution: Solution, requests: Requests, warm_up_s: float) -> float:
    """What a computed policy earns of a list in the reference simulator."""
    route = follow(instance, solution.policy, requests)
    result = simulate_by_reference(requests, instance.situation, route)
    return float(metrics.performance(result, warm_up_s=warm_up_s))


def small_situation() -> Situation:
    """What is served, on what."""
    made_up = Source("modelled", "made up, so small that the best router can be computed")
    models = tuple(
        ModelProfile(
            name, tuple((b, TICK_S * ticks) for b, ticks in enumerate(decode, start=1)), ((1, TICK_S * prefill),)
        )
        for name, prefill, decode in MODELS
    )
    qualities = tuple(TaskQuality(task, "made up", "made up", row) for task, row in QUALITY.items())
    profile = Profile(1, "small instance", "none", models, qualities, Provenance(made_up, made_up, made_up, made_up))
    tasks = tuple(
        Task(name, prompt_tokens=(1, 1), output_tokens=(1, 2), deadline=Deadline(8 * TICK_S, 2 * TICK_S))
        for name in QUALITY
    )
    # Everything is as believed here, so there is nothing to compare.
    estimates = (name for name in ESTIMATES if name != OBSERVED_SLOWDOWN)
    view = View(features=("task", "batch_sizes", "since_change_s", *estimates))
    return Situation(profile, Cluster(replicas=1, max_batch=2, queue_capacity=1), tasks, view=view)


def evaluation_set(lab: Lab, situation: Situation, workload: SyntheticWorkload, probability: float) -> EvaluationSet:
    """Lists to judge and to tune on."""
    config = lab.evaluation
    names, capacity = situation.task_names, situation.unit_load
    load = probability / TICK_S / capacity
    return EvaluationSet(
        name="small",
        title=f"Small instance at load {load:.2g}",
        situation=situation,
        loads=(load,),
        judged=(tuple(sample_lists([workload], names, config.requests, config.judging_seeds)),),
        tuning=tuple(sample_lists([workload], names, config.tuning_requests, config.unjudged_seeds)),
        capacity_per_s=capacity,
        warm_up_s=config.warm_up_s,
    )


def figures(one: Case) -> dict[str, object]:
    """Everything about one rate, for the file of results."""
    names = one.evaluation.routers
    played = mean_interval(one.played)
    return {
        "load": one.load,
        "arrivals_per_tick": one.instance.probability,
        "states": len(one.instance.quiet),
        "optimum": one.optimum.reward,
        "optimum_played": played,
        "optimum_played_agrees": bool(played.low <= one.optimum.reward <= played.high),
        "optimum_without_lengths": one.seen,
        "by_sizes": one.by_sizes.reward,
        "gap": mean_interval(one.gaps),
        "search_gap": mean_interval(one.gaps_of(SEARCH)),
        "performance": {name: mean_interval(one.evaluation.measure(metrics.performance, 0, name)) for name in names},
        "tuned": one.evaluation.tuned,
        "bound": float(one.evaluation.bounds[0].performance),
    }


def table(cases: list[Case]) -> Table:
    """The learned router, the optimum and the best of the others."""
    rows = []
    for one in cases:
        best = ranking(one.evaluation)
        cells = (
            one.optimum.reward,
            mean_interval(one.played),
            one.seen,
            one.by_sizes.reward,
            mean_interval(best.learned),
            mean_interval(one.gaps),
            mean_interval(one.gaps_of(SEARCH)),
            mean_interval(best.heuristic[1]),
            mean_interval(1 - best.heuristic[1] / one.played),
            float(one.evaluation.bounds[0].performance),
        )
        rows.append((f"{one.load:.2g} ({best.heuristic[0]})", cells))
    return Table(
        title="Small instance: how far from optimal",
        head="Load",
        columns=(
            Column("Optimum (%)", digits=2, brief=True),
            Column("Played (%)", digits=2, brief=True),
            Column("Not knowing lengths (%)", digits=2, brief=True),
            Column("By task and batch sizes (%)", digits=2, brief=True),
            Column("Learned (%)", digits=2, brief=True),
            Column("Its gap (%)", digits=2, brief=True),
            Column("Gap by search (%)", digits=2, brief=True),
            Column("Best heuristic (%)", digits=2, brief=True),
            Column("Its gap (%)", digits=2, brief=True),
            Column("Bound (%)", digits=2, brief=True),
        ),
        rows=tuple(rows),
        note="Computed: the optimum, of a router that sees the whole state; that of one that sees all but the lengths "
        "of answers in progress; and a policy that sees task and batch sizes alone. Played: the optimal policy in the "
        "reference simulator, on the lists of all others. Gaps are relative to that. In brackets the best heuristic. "
        "Mean ± half the 95% interval over policies and lists.",
    )


def figure(cases: list[Case]) -> Figure:
    """Performance, and what is missing to the optimum, against load."""
    loads = np.array([one.load for one in cases])
    optimum = np.array([one.optimum.reward for one in cases])
    seen = np.array([one.seen for one in cases])
    by_sizes = np.array([one.by_sizes.reward for one in cases])
    played = np.stack([one.played for one in cases])
    names = (LEARNED, SEARCH, *sorted({ranking(one.evaluation).heuristic[0] for one in cases}))
    routers = {
        name: np.stack([one.evaluation.measure(metrics.performance, 0, name) for one in cases]) for name in names
    }

    def exact(values: np.ndarray) -> Interval:
        return Interval(values, np.zeros(len(values)), played.shape[1])

    load = "Load (multiples of the largest model's capacity)"
    panels = (
        plots.Panel(
            title="Performance",
            x=loads,
            curves={
                **{name: mean_interval(values) for name, values in routers.items()},
                OPTIMUM: exact(optimum),
                SEEN: exact(seen),
                BY_SIZES: exact(by_sizes),
            },
            x_label=load,
            y_label="Mean reward per request",
            bound=np.array([float(one.evaluation.bounds[0].performance) for one in cases]),
        ),
        plots.Panel(
            title="Missing to the optimum",
            x=loads,
            curves={
                **{name: mean_interval(1 - values / played) for name, values in routers.items()},
                SEEN: exact(1 - seen / optimum),
                BY_SIZES: exact(1 - by_sizes / optimum),
            },
            x_label=load,
            y_label="Share of the optimum",
            zero=True,
        ),
    )
    return plots.plot_panels(panels, focus=LEARNED)


if __name__ == "__main__":
    main(run, __file__)
