"""`besteffort evaluate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from besteffort.commands.options import (
    LOAD,
    Changes,
    Config,
    Directory,
    PartOfLog,
    SharedChanges,
    SharedOutput,
    SharedPart,
    Traces,
    metavar,
    optional,
)
from besteffort.commands.shared import begin_out, check_out, note_tables
from besteffort.console import Answer, Flag, Output


def evaluate(
    policy: tyro.conf.Positional[Annotated[Path, metavar("POLICY")]],
    out: Directory,
    config: Config = "paper",
    trace: Traces = (),
    loads: Annotated[tuple[float, ...] | None, optional("X [X ...]"), LOAD] = None,
    resume: Flag = False,
    part: SharedPart = PartOfLog(),
    changes: SharedChanges = Changes(),
    output: SharedOutput = Output(),
) -> Answer:
    """Compare a policy with all other routers, on synthetic loads or on traces.

    Args:
      policy: policy file.
      out: new directory for tables, figures and the report.
      config: situation to judge in, and how: a name or a YAML file.
      trace: trace to judge on (its second half) in place of synthetic load; may be given several times.
      loads: mean loads, in multiples of the largest model's capacity, instead of the configuration's.
      resume: continue the evaluation in `--out`, which was interrupted; what was tuned is not tuned again.
      part: options on how to read a log, and which part of it.
      changes: options that change the configuration.
      output: options on what is printed.
    """
    from besteffort.evaluation.judging import read_halves
    from besteffort.evaluation.results import evaluate as evaluate_policy
    from besteffort.policy import load_policy
    from besteffort.runs.experiment import load_run

    check_out(out, "evaluate", resume)
    answer = Answer("evaluate", output)
    reading = part.reading(trace)
    run, situation = load_run(config, **changes.arguments())
    loaded = load_policy(policy, situation)
    judging = run.evaluation
    if loads is not None:
        judging = dataclasses.replace(judging, loads=loads, trace_loads=loads)
    halves = read_halves(trace, situation, judging.judging_seeds, reading)
    begin_out(out, "evaluate", resume)
    note_tables(answer, situation)
    for half in halves:
        answer.note(str(half.info))
    if (own := loaded.situation.profile).digest() != situation.profile.digest():
        answer.note(
            f"The policy was trained on another version of profile {own.name}; "
            "the table tells what it is worth on this one."
        )
    with answer.status("Judging all routers"):
        outcome = evaluate_policy(loaded, situation, judging, halves, out)
    answer.table(outcome.table, outcome.brief)
    answer.file("report", out / "report.md")
    answer.file("results", out / "results.json")
    return answer
