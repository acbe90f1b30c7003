"""From nothing to a policy and a picture: trains, judges all routers on bursty load, and on traces where given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from besteffort.evaluation import results
from besteffort.evaluation.judging import (
    LEARNED,
    EvaluationResult,
    EvaluationSet,
    burst_set,
    judge,
    read_halves,
    trace_set,
)
from besteffort.evaluation.report import Picture, Table
from besteffort.files import create_run_directory
from besteffort.learning.train import Progress
from besteffort.routers.learned import learned_router
from besteffort.runs.experiment import RunConfig
from besteffort.runs.training import TrainingProblem, make_training_problem, run_training
from besteffort.situation import Situation

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
      notes: what was done to the traces.
    """

    table: Table
    brief: Table
    picture: Path
    policies: tuple[Path, ...]
    report: Path
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class QuickstartPlan:
    """What a quickstart does, checked; nothing is written yet.

    Attributes:
      config: the configuration.
      stages: per policy the name of its directory, its training, and where it is judged.
      notes: what was done to each trace, by name.
    """

    config: RunConfig
    stages: tuple[tuple[str, TrainingProblem, EvaluationSet], ...]
    notes: dict[str, str]


def make_plan(config: RunConfig, situation: Situation, traces: Sequence[Path] = ()) -> QuickstartPlan:
    """Plans to train for the situation and for the lengths of each trace's first half.

    Raises:
      InputError: on a damaged trace, or one too short to halve.
    """
    judging = config.evaluation
    read = read_halves(traces, situation, judging.judging_seeds)
    synthetic = ("train", make_training_problem(situation, config.training), burst_set(situation, judging))
    on_traces = (
        (
            f"train-{trace.name}",
            make_training_problem(situation, config.training, trace.first[0]),
            trace_set(trace, situation, judging),
        )
        for trace in read
    )
    return QuickstartPlan(config, (synthetic, *on_traces), {trace.name: str(trace.info) for trace in read})


def quickstart(plan: QuickstartPlan, out: Path, *, progress: ProgressCallback) -> Outcome:
    """Trains, and judges each policy where it belongs.

    Writes a run directory per policy (`out/train`, `out/train-<trace>`), the table's figures (`results.json`), the
    pictures and `report.md`.

    Raises:
      InputError: if a file cannot be written.
    """
    config, judging = plan.config, plan.config.evaluation
    evaluations: list[EvaluationResult] = []
    policies: list[Path] = []
    for name, problem, evaluation_set in plan.stages:
        directory = create_run_directory(out / name)
        policy = run_training(config, problem, directory, progress=progress(evaluation_set.name, problem))[0]
        policies.append(directory / "policy.safetensors")
        evaluations.append(judge(evaluation_set, {LEARNED: [learned_router(policy)]}, judging))
    pictures: list[Picture] = [
        results.draw_comparison(evaluations[0], 0, out / "quickstart"),
        results.draw_timeline(evaluations[0], out / "timeline"),
        *(results.draw_against_load(evaluation, out / evaluation.set.name) for evaluation in evaluations[1:]),
    ]
    settings = {f"Trace {name}": note for name, note in plan.notes.items()}
    results.write_outcome(out, "Quickstart", evaluations, judging, pictures, settings)
    table = brief = results.full_table(evaluations[0], 0, judging)
    if plan.notes:
        table = results.performance_table(evaluations, judging, intervals=True)
        brief = results.performance_table(evaluations, judging, intervals=False)
    return Outcome(
        table=table,
        brief=brief,
        picture=pictures[0].path,
        policies=tuple(policies),
        report=out / "report.md",
        notes=tuple(plan.notes.values()),
    )
