"""Runs one program of a sweep in its own process: trains its trials together, then evaluates each.

`python -m besteffort.sweep.program SWEEP PROGRAM [TRACKER ...]` prints a line of JSON at every log point. If it is
killed and started again, it continues from its checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from besteffort.errors import InputError
from besteffort.evaluation import metrics
from besteffort.evaluation.config import EvaluationConfig
from besteffort.evaluation.judging import EvaluationSet, draw_lists, mean_load
from besteffort.evaluation.rollouts import Rollout, play_rollouts
from besteffort.files import read_json, write_json
from besteffort.learning.train import Progress, per_run, train
from besteffort.policy import Policy, save_policy
from besteffort.routers.learned import learned_router
from besteffort.runs.compilation import set_up_compilation
from besteffort.runs.config import load_config
from besteffort.runs.experiment import RunConfig, load_run
from besteffort.runs.trackers import MetricsLog, TrackerName
from besteffort.runs.training import (
    CHECKPOINT,
    TrainingProblem,
    dqn_policy,
    make_training_problem,
    run_keys,
    search_policies,
    settings,
)
from besteffort.simulator.build import build
from besteffort.simulator.environment import ServingEnvironment
from besteffort.situation import Situation
from besteffort.sweep.plan import Judging, SweepConfig, judged_situation
from besteffort.workload.config import Poisson
from besteffort.workload.requests import Requests

OUTCOME = "outcome.json"


class Member(NamedTuple):
    """A trial: its directory, its configuration and its training problem."""

    directory: Path
    config: RunConfig
    problem: TrainingProblem

    @property
    def seed(self) -> int:
        return self.problem.training.seed


def run_program(
    out: Path,
    program: str,
    *,
    track: Sequence[TrackerName] = (),
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Trains the trials of a program, evaluates those that did not diverge, and writes their outcomes.

    Trials that have an outcome are not evaluated again. If all trials have one, there is nothing to do.

    Args:
      out: directory of the sweep.
      program: name of the program.
      track: trackers that also receive the metrics.
      progress: called at every log point.

    Raises:
      InputError: if a file is damaged or cannot be written, or settings do not fit each other.
    """
    members = [_read(out / "trials" / name) for name in read_programs(out)[program]]
    checkpoint = out / "programs" / program / CHECKPOINT
    if all((member.directory / OUTCOME).exists() for member in members):
        discard(checkpoint)
        return
    sweep, base = load_config(out / "sweep.yaml", SweepConfig), load_config(out / "base.yaml", RunConfig)
    # Before the training, so that unsuitable evaluation lists raise an error now.
    actual_situations = [judged_situation(sweep, base, member.problem.situation) for member in members]
    sets = draw_sets(sweep.judge, base.evaluation, actual_situations)
    learn = {"dqn": _by_dqn, "search": _by_search}[members[0].problem.training.method]
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(_log(member, track)) for member in members]
        learned = learn(members, logs, checkpoint, progress or _ignore)
    sound: list[int] = []
    policies: list[Policy] = []
    for index, (member, policy) in enumerate(zip(members, learned, strict=True)):
        if isinstance(policy, int):
            reason = f"lost its finite weights by {policy:,} decisions"
            _conclude(member, {"status": "diverged", "reason": reason, "decisions": policy})
        elif not (member.directory / OUTCOME).exists():
            save_policy(policy, member.directory / f"policy-{member.seed}.safetensors")
            save_policy(policy, member.directory / "policy.safetensors")
            sound.append(index)
            policies.append(policy)
    judged = judge(policies, [sets[index] for index in sound])
    for index, outcome in zip(sound, judged, strict=True):
        made = policies[sound.index(index)].training["decisions_made"]
        _conclude(members[index], {"status": "finished", "decisions": made, **outcome})
    discard(checkpoint)


def _by_dqn(
    members: Sequence[Member], logs: Sequence[MetricsLog], checkpoint: Path, progress: Callable[[Progress], None]
) -> list[Policy | int]:
    """The policy of each member, all trained together; of one that diverged the decisions by which it had."""
    problems = [member.problem for member in members]
    built = [build(each.situation, each.workload, history=each.training.history, rule=each.rule) for each in problems]

    def keep(latest: Progress) -> None:
        for run, (member, log) in enumerate(zip(members, logs, strict=True)):
            if latest.finite(run):
                log.add(member.seed, latest.of(run))
        progress(latest)

    # All members have the same static settings.
    trained = train(
        ServingEnvironment(built[0][0]),
        per_run([params for _, params in built]),
        problems[0].features,
        problems[0].training.config,
        jax.tree.map(lambda *each: np.array(each), *(each.training.numbers() for each in problems)),
        run_keys([member.seed for member in members]),
        weights=problems[0].weights,
        checkpoint_path=checkpoint,
        progress=keep,
        tolerant=True,
    )
    return [
        dqn_policy(member.problem, weights, member.seed, trained.decisions) if diverged is None else diverged
        for member, weights, diverged in zip(members, trained.weights, trained.diverged, strict=True)
    ]


def _by_search(
    members: Sequence[Member], logs: Sequence[MetricsLog], checkpoint: Path, progress: Callable[[Progress], None]
) -> list[Policy | int]:
    """The policy of each member, found one after the other, since each has lists of its own."""
    policies: list[Policy | int] = []
    for index, (member, log) in enumerate(zip(members, logs, strict=True)):

        def keep(latest: Progress, index: int = index, log: MetricsLog = log, seed: int = member.seed) -> None:
            log.add(seed, latest.of(0))
            points = latest.points * len(members)
            progress(latest._replace(point=index * latest.points + latest.point, points=points))

        place = checkpoint.with_name(f"{index}-{checkpoint.name}")
        policies += search_policies(member.problem, [member.seed], place, keep)
    return policies


def discard(checkpoint: Path) -> None:
    """Removes a program's checkpoint, those before it, and those of its single trials."""
    for path in checkpoint.parent.glob(f"*{checkpoint.name}"):
        path.unlink()


def _ignore(latest: Progress) -> None:
    """Progress that nobody asked for."""


def draw_sets(judging: Judging, config: EvaluationConfig, situations: Sequence[Situation]) -> list[EvaluationSet]:
    """Draws the evaluation sets of policies, each in its own situation; equal situations share a set.

    Raises:
      InputError: if a list ends within the warm-up.
    """
    grid = judging.lists == "grid"
    loads = config.loads if grid else (mean_load(config.burst, situations[0]),)
    workloads = [Poisson(load=load) for load in loads] if grid else [config.burst]
    sets: list[EvaluationSet] = []
    for situation in situations:
        known = next((one for one in sets if one.situation == situation), None)
        if known is None:
            lists = draw_lists(situation, workloads, config.requests, config.judging_seeds)
            shortest_s = min(
                float(requests.arrival_s[-1] - requests.arrival_s[0]) for group in lists for requests in group
            )
            if shortest_s <= config.warm_up_s:
                raise InputError(
                    f"The shortest list to judge on lasts {shortest_s:.3g} s, all of it in `evaluation.warm_up_s`, "
                    f"{config.warm_up_s:g} s; raise `evaluation.requests` or lower that."
                )
            capacity = situation.unit_load
            known = EvaluationSet(judging.lists, judging.lists, situation, loads, lists, (), capacity, config.warm_up_s)
        sets.append(known)
    return sets


def judge(policies: Sequence[Policy], sets: Sequence[EvaluationSet]) -> list[dict[str, list[float]]]:
    """Evaluates each policy on its set, all in one compiled program; situations of the sets differ in numbers only.

    Returns:
      Per policy `performance` and `slo_attainment` by seed of its lists, means over the loads.
    """
    if not policies:
        return []
    first: dict[int, int] = {}  # row of the first list of each set
    lists: list[Requests] = []
    rollouts: list[Rollout] = []
    for policy, own in zip(policies, sets, strict=True):
        mine = [requests for group in own.judged for requests in group]
        if id(own) not in first:
            first[id(own)] = len(lists)
            lists += mine
        router, row = learned_router(policy), first[id(own)]
        rollouts += [Rollout("learned", row + offset, router, own.situation) for offset in range(len(mine))]
    measures = {"performance": metrics.performance, "slo_attainment": metrics.slo_attainment}
    found = {name: np.empty(len(rollouts)) for name in measures}
    for indices, result in play_rollouts(sets[0].situation, lists, rollouts):
        for name, measure in measures.items():
            found[name][indices] = measure(result, warm_up_s=sets[0].warm_up_s)
    shape = (len(policies), len(sets[0].judged), -1)
    means = {name: values.reshape(shape).mean(axis=1) for name, values in found.items()}
    return [{name: values[index].tolist() for name, values in means.items()} for index in range(len(policies))]


def read_programs(out: Path) -> dict[str, list[str]]:
    """Names of the trials of each program of a sweep.

    Raises:
      InputError: if `out` holds no sweep.
    """
    path = out / "programs.json"
    programs = read_json(path)
    each = programs.values() if isinstance(programs, dict) else (None,)
    if not all(isinstance(trials, list) and all(isinstance(name, str) for name in trials) for trials in each):
        raise InputError(f"{path}: it holds no lists of trials by program; start the sweep anew in another directory.")
    found: dict[str, list[str]] = programs
    return found


def _read(directory: Path) -> Member:
    config, situation = load_run(directory / "config.yaml")
    return Member(directory, config, make_training_problem(situation, config.training))


def _log(member: Member, track: Sequence[TrackerName]) -> MetricsLog:
    models = member.problem.situation.fleet.names
    return MetricsLog(member.directory, [member.seed], models, settings(member.problem), track)


def _conclude(member: Member, outcome: dict[str, Any]) -> None:
    write_json(member.directory / OUTCOME, outcome)


def main(arguments: Sequence[str]) -> int:
    """Runs a program and returns its exit status: 0, or 2 if settings or files do not fit."""
    out, program, *track = arguments
    set_up_compilation()

    def report(latest: Progress) -> None:
        reward = latest.metrics["reward"]
        far = {"point": latest.point, "points": latest.points}
        print(json.dumps({**far, "reward": float(reward.mean()), "best": float(reward.max())}))  # noqa: T201

    try:
        run_program(Path(out), program, track=cast(Sequence[TrackerName], track), progress=report)
    except InputError as error:
        print(error)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
