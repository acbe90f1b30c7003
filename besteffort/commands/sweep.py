"""`besteffort sweep`."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro
from annotated_types import Interval

from besteffort.commands.options import (
    FEW,
    Changes,
    Directory,
    MaybeCount,
    SharedChanges,
    SharedOutput,
    Trackers,
    metavar,
    optional,
)
from besteffort.commands.shared import begin_out, check_out
from besteffort.console import Answer, Flag, Output, program_bars
from besteffort.errors import InputError


def sweep(
    file: tyro.conf.Positional[Annotated[str, metavar("SWEEP")]],
    out: Directory,
    resume: Flag = False,
    workers: MaybeCount = None,
    together: Annotated[int, metavar("N"), FEW] = 64,
    backend: Literal["local", "ray"] = "local",
    address: Annotated[str | None, optional("ADDRESS")] = None,
    cpus: Annotated[int, metavar("N"), FEW] = 1,
    gpus: Annotated[float, metavar("X"), Interval(ge=0, le=1024.0)] = 0.0,
    early_stopping: Flag = False,
    track: Trackers = (),
    changes: SharedChanges = Changes(),
    output: SharedOutput = Output(),
) -> Answer:
    """Train and judge routers over values of configuration fields.

    Args:
      file: name of a sweep that comes with the package (`learning_rate`), or a YAML file.
      out: new directory for the leaderboard and, trial by trial, configuration, metrics and policy.
      resume: continue the sweep in `--out`, which was killed; trials that are finished are not repeated.
      workers: local processes at a time, instead of one per core.
      together: trials that train side by side in one program, at most; fewer need less memory.
      backend: local processes, or a Ray cluster.
      address: of the Ray cluster (`auto`, `host:6379`, `ray://...`); without it one is started on this machine.
      cpus: cores of each program on a Ray cluster.
      gpus: GPUs of each program on a Ray cluster, or a share of one.
      early_stopping: on a Ray cluster, give up programs that lag behind (asynchronous successive halving).
      track: hand the metrics to `mlflow` or `wandb`, too, which their environment variables set up.
      changes: options that change the configuration that the sweep varies.
      output: options on what is printed.
    """
    import jax

    from besteffort.runs.backends import EarlyStopping, backend_of
    from besteffort.sweep.plan import load_sweep, make_plan
    from besteffort.sweep.run import run_sweep

    check_out(out, "sweep", resume)
    answer = Answer("sweep", output)
    # This process only plans, and leaves an accelerator to the programs.
    jax.config.update("jax_platforms", "cpu")
    early = EarlyStopping() if early_stopping else None
    on = backend_of(backend, workers=workers, address=address, cpus=cpus, gpus=gpus, early=early)
    plan = make_plan(load_sweep(file, **changes.arguments()), where=file, together=together)
    begin_out(out, "sweep", resume)
    with program_bars(len(plan.programs), output) as progress:
        board = run_sweep(plan, out, resume=True, on=on, track=track, progress=progress)
    answer.table(board.table, board.brief)
    if board.unfinished:
        answer.note(f"{len(board.unfinished)} of {len(plan.trials)} trials did not finish; the report says why.")
    if board.picture is not None:
        answer.file("picture", board.picture)
    answer.file("report", board.report)
    answer.file("results", out / "results.json")
    failed = sum(entry.status == "failed" for entry in board.entries)
    if failed:
        answer.finish()
        raise InputError(
            f"{failed} of {len(plan.trials)} trials failed, {board.report} says why; the same command with `--resume` "
            "tries them again."
        )
    return answer
