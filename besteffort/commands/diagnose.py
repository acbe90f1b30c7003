"""`besteffort diagnose`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from besteffort.commands.options import (
    Changes,
    Config,
    Directory,
    MaybeFile,
    MaybeLoad,
    MaybeProfile,
    PartOfLog,
    SharedChanges,
    SharedOutput,
    SharedPart,
    metavar,
)
from besteffort.commands.shared import begin_out, check_out, note_tables
from besteffort.console import Answer, Flag, Output
from besteffort.errors import InputError


def diagnose(
    policy: tyro.conf.Positional[Annotated[Path, metavar("POLICY")]],
    out: Directory,
    config: Config = "paper",
    profile: MaybeProfile = None,
    trace: MaybeFile = None,
    load: MaybeLoad = None,
    resume: Flag = False,
    part: SharedPart = PartOfLog(),
    changes: SharedChanges = Changes(),
    output: SharedOutput = Output(),
) -> Answer:
    """Find out where a policy breaks: wrong tables, late views, other requests.

    Args:
      policy: policy file.
      out: new directory for the figures and the report.
      config: situation to diagnose it in: a name or a YAML file.
      profile: built-in profile or profile file, instead of the configuration's.
      trace: trace to judge on (its second half) in place of the bursty load.
      load: mean load of the trace, in multiples of the largest model's capacity; by default 1.
      resume: continue the diagnosis in `--out`, which was interrupted; what was tuned is not tuned again.
      part: options on how to read a log, and which part of it.
      changes: options that change the configuration.
      output: options on what is printed.
    """
    from besteffort.diagnosis import diagnose
    from besteffort.evaluation.judging import read_halves
    from besteffort.policy import load_policy
    from besteffort.runs.experiment import load_run

    check_out(out, "diagnose", resume)
    answer = Answer("diagnose", output)
    if load is not None and trace is None:
        raise InputError("`--load` is that of a trace; name one, `--trace FILE`, or leave it out.")
    traces = [] if trace is None else [trace]
    reading = part.reading(traces)
    run, situation = load_run(config, profile=profile, **changes.arguments())
    loaded = load_policy(policy, situation)
    judging = run.evaluation
    halves = read_halves(traces, situation, judging.judging_seeds, reading)
    begin_out(out, "diagnose", resume)
    note_tables(answer, situation)
    for half in halves:
        answer.note(str(half.info))
    with answer.status("Diagnosing"):
        done = diagnose.diagnose(loaded, situation, judging, out, trace=halves[0] if halves else None, load=load or 1.0)
    answer.table(done.table)
    answer.data(findings=[dataclasses.asdict(finding) for finding in done.findings], checked=done.checked)
    for line in done.lines:
        answer.line(line)
    answer.file("report", done.report)
    answer.file("results", out / "results.json")
    return answer
