"""From nothing to a policy and a picture: trains, judges all routers on bursty load, and on traces where given."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from besteffort import interrupts
from besteffort.bounds.prices import Bound
from besteffort.digests import array_digest
from besteffort.errors import InputError
from besteffort.evaluation import results
from besteffort.evaluation.judging import (
    LEARNED,
    EvaluationResult,
    EvaluationSet,
    bounds_of,
    burst_set,
    draw_lists,
    halves_of,
    judge,
    trace_set,
    tune_on,
)
from besteffort.evaluation.report import Picture, Table
from besteffort.evaluation.tuning import untuned_routers
from besteffort.files import os_errors_as_input_errors, read_json, write_json
from besteffort.learning.train import Progress
from besteffort.policy import Policy, save_policy
from besteffort.profile import save_profile
from besteffort.routers.learned import learned_router
from besteffort.routers.registry import Settings
from besteffort.runs.config import SituationConfig, write_config
from besteffort.runs.experiment import Method, RunConfig
from besteffort.runs.own_logs import Taken, with_deadlines, with_tasks_of
from besteffort.runs.papers import paper_policy
from besteffort.runs.training import (
    DivergedError,
    TrainingProblem,
    compile_training,
    example_policy,
    make_training_problem,
    performance_on,
    run_training,
)
from besteffort.runs.untrained import default_policy
from besteffort.simulator.types import Router
from besteffort.situation import Situation
from besteffort.validation import as_data
from besteffort.workload import config as workloads
from besteffort.workload.reading import ALL, Drawing, Reading
from besteffort.workload.requests import Requests
from besteffort.workload.traces import open_trace

_SELECTION_SEED, _SELECTION_LISTS = 2**31, 4  # beyond all seeds that a configuration can name

PROFILE, SITUATION = "profile.json", "situation.yaml"
"""What is written where the situation is no file's: its profile, and itself."""

_HEAD = "# Written by `besteffort quickstart`: tasks are the log's. Set deadlines, cluster and weights to your own.\n"

ProgressCallback = Callable[[str, TrainingProblem], Callable[[Progress], None]]
"""Takes the name of what is trained next and its problem, and returns what is to be called at its log points."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What to tell the user.

    Attributes:
      table: the one table.
      brief: the same for a terminal, which has no room for intervals at many loads.
      picture: file of the picture.
      policies: files of the policies.
      report: file of the report.
      notes: what was exported, and which seeds of a training diverged.
      situation: file of the situation, where it was no file's.
    """

    table: Table
    brief: Table
    picture: Path
    policies: tuple[Path, ...]
    report: Path
    notes: tuple[str, ...] = ()
    situation: Path | None = None


class Stage(NamedTuple):
    """What is learned for, and judged on, one evaluation set.

    Attributes:
      suffix: ends the names of its directories and files.
      problems: by method the training; none where nothing is trained.
      evaluation_set: where the policies are judged.
      selection: other lists, on which the policy to export is chosen.
      panel: a router of each form that is tuned, trained or judged, so that all of this shares its programs.
    """

    suffix: str
    problems: Mapping[Method, TrainingProblem]
    evaluation_set: EvaluationSet
    selection: tuple[Requests, ...]
    panel: tuple[Router, ...] = ()


@dataclasses.dataclass(frozen=True)
class QuickstartPlan:
    """What a quickstart does, checked; nothing is written yet.

    Attributes:
      config: the configuration.
      situation: what is served.
      stages: bursts first, then each trace.
      notes: what was done to each trace, by name.
      taken: what was taken from logs and profiles, because nobody stated it, a sentence each.
      own: the situation is no file's, so that one has to be written.
    """

    config: RunConfig
    situation: Situation
    stages: tuple[Stage, ...]
    notes: dict[str, str]
    taken: tuple[str, ...] = ()
    own: bool = False


def make_plan(
    given: Taken,
    traces: Sequence[Path] = (),
    *,
    training: bool = True,
    reading: Reading = ALL,
    deadlines: Sequence[str] = (),
) -> QuickstartPlan:
    """Plans to train for the situation and for the lengths of each trace's first half.

    Args:
      given: the configuration, and what is served; where a trace names other tasks, it is served.
      traces: files of traces.
      training: train; otherwise the untrained policy is judged alone.
      reading: what to read of the traces.
      deadlines: other deadlines, see `besteffort.runs.own_logs.with_deadlines`.

    Raises:
      InputError: on a damaged trace, or one too short to halve.
    """
    opened = [open_trace(path, given.situation, reading) for path in traces]
    taken = with_deadlines(with_tasks_of(given, opened), deadlines)
    config, situation, notes = taken
    if len(situation.tasks) != len(given.situation.tasks):  # over which counts are spread
        opened = [
            open_trace(path, situation, reading) if isinstance(each.found, Drawing) else each
            for path, each in zip(traces, opened, strict=True)
        ]
    judging = config.evaluation
    read = halves_of(traces, opened, situation, judging.judging_seeds)
    seeds = range(_SELECTION_SEED, _SELECTION_SEED + _SELECTION_LISTS)
    (selection,) = draw_lists(situation, [judging.burst], judging.tuning_requests, seeds)
    bursts = burst_set(situation, judging)
    problem = make_training_problem(situation, config.training)
    load = workloads.build(judging.burst, situation)
    problems = _problems(problem, selection, workload=load) if training else {}
    stages = [_stage("", problems, bursts, selection)]
    for trace in read:
        judged = trace_set(trace, situation, judging)
        problem = make_training_problem(situation, config.training, trace.first[0])
        problems = _problems(problem, judged.tuning, lists=judged.tuning) if training else {}
        stages.append(_stage(f"-{trace.name}", problems, judged, judged.tuning))
    told = {trace.name: str(trace.info) for trace in read}
    if len(situation.fleet.pools) == 1:
        notes = (
            *notes,
            "The profile has one model, so there is nothing to route; fit the logs of several with `profile fit`.",
        )
    return QuickstartPlan(config, situation, tuple(stages), told, notes, situation is not given.situation)


def _problems(
    problem: TrainingProblem, selection: tuple[Requests, ...], **searched: Any
) -> dict[Method, TrainingProblem]:
    """The training by each method, in order: a search on what is `searched`, and networks on all rates."""
    by: dict[Method, TrainingProblem] = {
        method: dataclasses.replace(
            problem, training=dataclasses.replace(problem.training, method=method), selection=selection
        )
        for method in ("search", "dqn")
    }
    by["search"] = dataclasses.replace(by["search"], **searched)
    return by


def _stage(
    suffix: str, problems: dict[Method, TrainingProblem], evaluation_set: EvaluationSet, selection: tuple[Requests, ...]
) -> Stage:
    """A stage, with a panel of all its routers."""
    situation = evaluation_set.situation
    policies = [default_policy(situation), *_papers(situation).values()]
    if "dqn" in problems:
        policies.append(example_policy(problems["dqn"]))
    panel = (*untuned_routers(situation), *map(learned_router, policies))
    problems = {method: dataclasses.replace(problem, panel=panel) for method, problem in problems.items()}
    return Stage(suffix, problems, evaluation_set, selection, panel)


def quickstart(
    plan: QuickstartPlan, out: Path, *, progress: ProgressCallback, doing: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Trains by every method, and judges each policy where it belongs, next to the one that needs no training.

    Writes run directories (`out/dqn`, `out/search`, and `out/dqn-<trace>` and so on), the policy that was best on lists
    that nobody is judged on (`out/policy.safetensors`, `out/policy-<trace>.safetensors`), the table's figures
    (`results.json`), the pictures and `report.md`. A training of which all seeds diverge leaves no policy to judge; the
    rest goes on, and the report says so.

    Raises:
      InputError: if a file cannot be written.
    """
    _keep_plan(plan, out)
    config = _written(plan, out)
    beside = Beside(plan, out / results.TUNED)
    try:
        return _quickstart(plan, out, config, beside, progress, doing)
    finally:
        beside.end()


class Beside:
    """What threads do while learners train.

    Attributes:
      bounds: for each stage, works out the upper bounds of its lists.
      compiled: for each stage, compiles what its networks will be trained by, where there are any.
    """

    def __init__(self, plan: QuickstartPlan, kept: Path) -> None:
        self._judging, self._kept, self._given_up = plan.config.evaluation, kept, threading.Event()
        self._tuning, self._beside = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.bounds: list[Future[list[list[Bound]]]] = []
        self.compiled: list[list[Future[None]]] = []
        for stage in plan.stages:
            # Bounds first: tracing what is to be compiled would keep the search's programs from being traced.
            self.bounds.append(self._beside.submit(bounds_of, stage.evaluation_set))
            problems = [problem for method, problem in stage.problems.items() if method == "dqn"]
            self.compiled.append([self._beside.submit(compile_training, problem) for problem in problems])

    def tune(self, stage: Stage) -> Future[dict[str, Settings]]:
        """Begins to find the settings of a stage's rivals."""
        return self._tuning.submit(
            tune_on, stage.evaluation_set, self._judging, kept=self._kept, check=self._check, panel=stage.panel
        )

    def _check(self) -> None:
        interrupts.check()
        if self._given_up.is_set():
            raise CancelledError

    def end(self) -> None:
        """Stops the threads where they can, and waits for none."""
        self._given_up.set()
        for threads in (self._tuning, self._beside):
            threads.shutdown(wait=False, cancel_futures=True)


def _quickstart(
    plan: QuickstartPlan,
    out: Path,
    config: RunConfig,
    beside: Beside,
    progress: ProgressCallback,
    doing: Callable[[str], None],
) -> Outcome:
    judging = plan.config.evaluation
    evaluations: list[EvaluationResult] = []
    files: list[Path] = []
    exported: dict[str, str] = {}
    diverged: list[str] = []
    for stage, compiled, bounds in zip(plan.stages, beside.compiled, beside.bounds, strict=True):
        situation = stage.evaluation_set.situation
        candidates: dict[str, Policy] = {}
        rivals: Future[dict[str, Settings]] | None = None
        for method, problem in stage.problems.items():
            directory = out / f"{method}{stage.suffix}"
            with os_errors_as_input_errors(directory):
                directory.mkdir(exist_ok=True)
            report = progress(f"{stage.evaluation_set.name}, {method}", problem)
            if problem.rule is not None and "search" in candidates:
                # Networks add to what was found.
                problem = dataclasses.replace(problem, rule=candidates["search"].rule)
            if method == "dqn":
                rivals = beside.tune(stage)  # not beside the search, which keeps all cores busy by itself
                wait(compiled)  # what went wrong there goes wrong again here
            try:
                trained = run_training(config, problem, directory, progress=report)
            except DivergedError as error:
                diverged.append(f"{directory} has no policy to judge. {error}")
                continue
            candidates[method] = next(iter(trained.policies.values()))
            diverged += [trained.diverged] * bool(trained.diverged)
        doing(f"Judging all routers ({stage.evaluation_set.name})")
        candidates["untrained"] = default_policy(situation)
        performance = performance_on(situation, stage.selection, candidates.values(), panel=stage.panel)
        scores = dict(zip(candidates, performance, strict=True))
        best = max(scores, key=scores.__getitem__)
        path = out / f"policy{stage.suffix}.safetensors"
        save_policy(candidates[best], path)
        files.append(path)
        exported[stage.evaluation_set.name] = f"{best}, as `{LEARNED}`; on lists that nobody is judged on " + ", ".join(
            f"{name} {score:.2%}" for name, score in scores.items()
        )
        judged = {LEARNED: candidates.pop(best), **candidates, **_papers(situation)}
        routers = {name: [learned_router(policy)] for name, policy in judged.items()}
        tuned = (rivals or beside.tune(stage)).result()
        evaluations.append(judge(stage.evaluation_set, routers, judging, tuned, stage.panel, bounds.result()))
    pictures: list[Picture] = [
        results.draw_comparison(evaluations[0], 0, out / "quickstart"),
        results.draw_timeline(evaluations[0], out / "timeline"),
        *(
            results.draw_against_load(evaluation, out / f"trace-{evaluation.set.name}")
            for evaluation in evaluations[1:]
        ),
    ]
    settings = {"Taken": " ".join(plan.taken)} if plan.taken else {}
    settings |= {f"Trace {name}": note for name, note in plan.notes.items()}
    settings |= {f"Exported ({name})": note for name, note in exported.items()}
    settings |= {"Diverged": " ".join(diverged)} if diverged else {}
    full = results.write_outcome(out, "Quickstart", evaluations, judging, pictures, settings)
    table = brief = full[0][0]
    if plan.notes:
        table = results.performance_table(evaluations, judging, intervals=True)
        brief = results.performance_table(evaluations, judging, intervals=False)
    return Outcome(
        table=table,
        brief=brief,
        picture=pictures[0].path,
        policies=tuple(files),
        report=out / "report.md",
        situation=out / SITUATION if plan.own else None,
        notes=(*(f"Learned is {note} ({name})." for name, note in exported.items()), *diverged),
    )


def _keep_plan(plan: QuickstartPlan, out: Path) -> None:
    """Writes what the quickstart is of, unless another one has begun there.

    Raises:
      InputError: if one has, or nothing can be written.
    """
    about = {
        "config": as_data(plan.config),
        "profile": plan.situation.profile.digest(),
        "stages": [
            {
                "name": stage.evaluation_set.name,
                "trains": sorted(stage.problems),
                "lists": array_digest(
                    (name, values)
                    for group in (stage.evaluation_set.tuning, *stage.evaluation_set.judged)
                    for requests in group
                    for name, values in requests.columns.items()
                ),
            }
            for stage in plan.stages
        ],
    }
    path = out / "quickstart.json"
    if path.exists() and read_json(path) != about:
        raise InputError(
            f"{path}: the quickstart that began here has other settings or traces; give the same ones to continue it, "
            "or another directory."
        )
    write_json(path, about)


def _written(plan: QuickstartPlan, out: Path) -> RunConfig:
    """The configuration; where its situation is no file's, it and its profile are written to `out`."""
    if not plan.own:
        return plan.config
    profile = out / PROFILE
    save_profile(plan.situation.profile, profile)
    config = dataclasses.replace(plan.config, profile=str(profile))
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(SituationConfig)}
    write_config(out / SITUATION, SituationConfig(**fields), head=_HEAD)
    return config


def _papers(situation: Situation) -> dict[str, Policy]:
    """The paper's policy, where it can route."""
    policy = paper_policy()
    try:
        policy.check_fits(situation)
    except InputError:
        return {}
    return {"paper": policy}
