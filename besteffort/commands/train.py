"""`besteffort train`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from besteffort.commands.options import (
    Changes,
    Columns,
    Config,
    Directory,
    MaybeCount,
    MaybeFile,
    SharedChanges,
    SharedColumns,
    SharedOutput,
    Trackers,
)
from besteffort.commands.shared import begin_out, check_out, note_tables
from besteffort.console import Answer, Flag, Output, training_bars
from besteffort.errors import InputError


def train(
    config: tyro.conf.Positional[Config],
    out: Directory,
    seeds: MaybeCount = None,
    resume: Flag = False,
    start: Annotated[Path | None, tyro.conf.arg(name="from", metavar="POLICY", help_behavior_hint="")] = None,
    trace: MaybeFile = None,
    track: Trackers = (),
    log: SharedColumns = Columns(),
    changes: SharedChanges = Changes(),
    output: SharedOutput = Output(),
) -> Answer:
    """Train routers for a situation and write their policy files.

    Args:
      config: name of a configuration that comes with the package (`paper`), or a YAML file.
      out: new directory for the run: configuration, metrics per seed, checkpoint, policies.
      seeds: how many to train side by side, instead of the configuration's number.
      resume: continue the run in `--out`, which was killed, with the same settings.
      start: policy file to start from, for fine-tuning.
      trace: train for requests like those of the first half of this trace, at the configured loads.
      track: hand the metrics to `mlflow` or `wandb`, too, which their environment variables set up.
      log: options on how to read a log.
      changes: options that change the configuration.
      output: options on what is printed.
    """
    from besteffort.evaluation.judging import read_halves
    from besteffort.runs.experiment import load_run
    from besteffort.runs.trackers import check_trackers
    from besteffort.runs.training import make_training_problem, run_training

    check_out(out, "train", resume)
    answer = Answer("train", output)
    check_trackers(track)
    reading = log.reading([] if trace is None else [trace])
    run, situation = load_run(config, **changes.arguments())
    given: dict[str, Any] = {"seeds": seeds, "start": start}
    training = dataclasses.replace(run.training, **{k: v for k, v in given.items() if v is not None})
    lengths = None
    if trace is not None:
        (half,) = read_halves([trace], situation, [run.evaluation.seed], reading)
        lengths = half.first[0]
        answer.note(str(half.info))
    problem = make_training_problem(situation, training, lengths)
    begin_out(out, "train", resume)
    note_tables(answer, situation)
    with training_bars(output) as bars:
        trained = run_training(run, problem, out, progress=bars.training(out.name, problem), track=track)
    seeded = sorted(trained.policies)
    each = f"; one per seed beside it, {len(seeded)} in all" if training.seeds > 1 else ""
    answer.file("policy", out / "policy.safetensors", each)
    answer.files("policies", "", [out / f"policy-{seed}.safetensors" for seed in seeded])
    if trained.diverged:
        answer.finish()
        raise InputError(trained.diverged)
    return answer
