"""Runs sweeps: trains and evaluates all trials, in local processes or on a cluster, into one directory.

| file | what |
|---|---|
| `sweep.yaml`, `base.yaml` | the sweep, and the configuration that it varies, every field written out |
| `inputs.json` | digests of the files that trials depend on, by name, and the environment's number |
| `programs.json` | the trials of each program, see `besteffort.sweep.plan` |
| `programs/<program>/` | the output of its process, and its checkpoint until its trials are evaluated |
| `trials/<trial>/` | a run directory, see `besteffort.runs.training`, and the outcome of the trial |
| `report.md` and others | the leaderboard, see `besteffort.sweep.leaderboard` |
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from besteffort.errors import InputError, brief
from besteffort.files import begin_run, os_errors_as_input_errors, read_json, write_json, write_text
from besteffort.profile import load_profile
from besteffort.runs.backends import Backend, Local, Ray
from besteffort.runs.config import config_text, from_mapping, to_yaml, write_config
from besteffort.runs.jobs import run_on
from besteffort.runs.processes import Job, JobProgress
from besteffort.runs.trackers import TrackerName, check_trackers
from besteffort.runs.training import CHECKPOINT
from besteffort.simulator.environment import ServingEnvironment
from besteffort.sweep.leaderboard import Entry, Leaderboard, short_names, write_leaderboard
from besteffort.sweep.plan import SEED, SweepPlan, Trial
from besteffort.sweep.program import OUTCOME, discard, read_programs
from besteffort.workload.config import Trace

_HERE = Local()
_INPUTS = "inputs.json"
_ENVIRONMENT = "environment"


@dataclasses.dataclass(frozen=True)
class ProgramProgress:
    """Progress of a program.

    Attributes:
      program: name of the program.
      point, points: log points so far, and of the whole training.
      reward: mean over its trials of the reward per decision, since the previous log point.
      best: the largest over its trials.
      ended: whether the program has ended, successfully or not.
    """

    program: str
    point: int = 0
    points: int = 0
    reward: float = 0.0
    best: float = 0.0
    ended: bool = False


def run_sweep(
    plan: SweepPlan,
    out: str | Path,
    *,
    resume: bool = False,
    on: Backend = _HERE,
    track: Sequence[TrackerName] = (),
    progress: Callable[[ProgramProgress], None] | None = None,
) -> Leaderboard:
    """Trains and evaluates all trials and writes the files of the module's table to `out`.

    Args:
      plan: the sweep.
      out: new directory; with `resume` that of a killed sweep, whose finished trials are kept.
      resume: continue the sweep in `out`.
      on: the backend.
      track: trackers that also receive the metrics.
      progress: called with the progress of each program.

    Raises:
      InputError: if `out` cannot be written or holds another sweep, Ray or a tracker is not installed, no cluster
        answers, or no trial finishes.
    """
    check_trackers(track)
    if isinstance(on, Ray) and on.early is not None:
        _check_early(plan)
        points = max(trial.config.training.config.log_points for trial in plan.trials)
        on = dataclasses.replace(on, early=dataclasses.replace(on.early, points=points))
    out = begin_run(out, "sweep", resume=resume)
    programs = _write_plan(plan, out)
    left = [
        name
        for name, trials in programs.items()
        if not all((out / "trials" / trial / OUTCOME).exists() for trial in trials)
    ]
    failures = _run(out, left, programs, on, track, progress)
    failed = {trial: failures[name] for name, trials in programs.items() if name in failures for trial in trials}
    entries = [_entry(out, trial, failed) for trial in plan.trials]
    if all(entry.status != "finished" for entry in entries):
        worst = entries[0]
        raise InputError(f"{out}: no trial finished; the first one {worst.status}: {worst.reason}.")
    judging = plan.base.evaluation
    lists = "the bursty load" if plan.sweep.judge.lists == "bursts" else "every load of the grid"
    return write_leaderboard(
        entries,
        out,
        title=f"Sweep of {', '.join(short_names(tuple(plan.sweep.axes)).values())}",
        judged_on=(
            f"Judged on {judging.seeds} list(s) of {judging.requests:,} requests of {lists}, which are no training "
            f"draws, in the situation of {'each trial' if plan.sweep.judge.situation == 'own' else 'the base'}; the "
            f"first {judging.warm_up_s:g} s of each do not count."
        ),
        logarithmic=[name for name, axis in plan.sweep.axes.items() if axis.log_uniform is not None],
    )


def _check_early(plan: SweepPlan) -> None:
    for name in plan.sweep.axes:
        if not name.startswith(("training.config", "training.hyper", SEED, "view")):
            raise InputError(
                f"`--early-stopping` compares rewards in training, which the axis `{name}` changes by itself; "
                "leave it out."
            )


def _write_plan(plan: SweepPlan, out: Path) -> dict[str, list[str]]:
    """Writes the sweep, its trials and its programs, and returns the programs.

    A sweep that has begun keeps its programs.
    """
    stated = {"sweep.yaml": to_yaml(plan.sweep), "base.yaml": config_text(out / "base.yaml", plan.base)}
    if not (out / "programs.json").exists():
        for trial in plan.trials:
            with os_errors_as_input_errors(out):
                (out / "trials" / trial.name).mkdir(parents=True, exist_ok=True)
            write_config(out / "trials" / trial.name / "config.yaml", trial.config)
        for name, text in stated.items():
            write_text(out / name, text)
        write_json(out / _INPUTS, {_ENVIRONMENT: ServingEnvironment.version, **_inputs(plan)})
        programs = {f"{index:03d}": [f"{trial:04d}" for trial in trials] for index, trials in enumerate(plan.programs)}
        write_json(out / "programs.json", programs)
    for name, text in stated.items():
        with os_errors_as_input_errors(out / name, "read"):
            begun = (out / name).read_text(encoding="utf-8")
        if begun != text:
            raise InputError(f"{out / name}: another sweep began here; give the same one to resume it.")
    _check_inputs(plan, out)
    return read_programs(out)


def _inputs(plan: SweepPlan) -> dict[str, str]:
    """Digests of profiles, of policies to start from and of traces, by the names that configurations give them."""
    digests: dict[str, str] = {}
    for trial in plan.trials:
        config, training = trial.config, trial.config.training
        hardware = (pool.hardware for pool in config.pools if pool.hardware is not None)
        for profile in (config.profile, *hardware):
            if profile not in digests:
                digests[profile] = load_profile(profile).digest()
        trace = training.workload.path if isinstance(training.workload, Trace) else None
        for path in (training.start, trace):
            if path is not None and str(path) not in digests:
                with os_errors_as_input_errors(path, "read"), path.open("rb") as file:
                    digests[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _check_inputs(plan: SweepPlan, out: Path) -> None:
    """Raises `InputError` if a file that trials depend on, or the environment, is not what it was at the start."""
    if not (out / _INPUTS).exists():  # begun by a version that kept none
        return
    begun = read_json(out / _INPUTS)
    number = begun.get(_ENVIRONMENT) if isinstance(begun, dict) else None
    if number != ServingEnvironment.version:
        raise InputError(
            f"{out / _INPUTS}: the sweep began with version {brief(number)} of the environment, and this is "
            f"{ServingEnvironment.version}, so its trials would not compare; sweep anew in another directory."
        )
    for name, digest in _inputs(plan).items():
        if not isinstance(begun, dict) or begun.get(name, digest) != digest:
            raise InputError(
                f"{name}: this is not what it was when the sweep in {out} began; put it back to resume, or sweep anew "
                "in another directory."
            )


def _run(
    out: Path,
    left: Sequence[str],
    programs: Mapping[str, Sequence[str]],
    on: Backend,
    track: Sequence[TrackerName],
    progress: Callable[[ProgramProgress], None] | None,
) -> dict[str, str]:
    """Runs the programs that are left; returns the reasons of those that failed, by name."""
    jobs = []
    for name in left:
        with os_errors_as_input_errors(out):
            (out / "programs" / name).mkdir(parents=True, exist_ok=True)
        command = (sys.executable, "-m", "besteffort.sweep.program", str(out.resolve()), name, *track)
        jobs.append(Job(name, command, out / "programs" / name / "log.txt"))
    far: dict[str, ProgramProgress] = {}

    def report(one: JobProgress) -> None:
        latest = _program_progress(one)
        if latest is None:
            return
        if not latest.ended:
            far[latest.program] = latest
        if progress is not None:
            progress(latest)

    statuses, failures = run_on(on, jobs, notes=out / "ray", progress=report), {}
    for job in jobs:
        status = statuses[job.name]
        if status is None:
            _conclude_stopped(out, programs[job.name], far.get(job.name, ProgramProgress(job.name)))
            discard(job.log.parent / CHECKPOINT)
        elif status:
            failures[job.name] = _why(job, status)
    return failures


def _conclude_stopped(out: Path, trials: Sequence[str], latest: ProgramProgress) -> None:
    """Marks the trials that are not finished as stopped."""
    for trial in trials:
        path = out / "trials" / trial / OUTCOME
        if not path.exists():
            reason = f"it lagged behind after {latest.point} of {latest.points} log points"
            write_json(path, {"status": "stopped", "reason": reason})


def _program_progress(one: JobProgress) -> ProgramProgress | None:
    """The progress that a program prints as JSON, or its end; None for any other line."""
    if one.line is None:
        return ProgramProgress(one.job.name, ended=True)
    try:
        return ProgramProgress(one.job.name, **json.loads(one.line))
    except (ValueError, TypeError):
        return None


def _why(job: Job, status: int) -> str:
    """Why a job failed: the last line of its log, or the signal that killed it."""
    if status < 0:
        return f"its process was ended by signal {-status} ({signal.strsignal(-status)}), see {job.log}"
    lines = [line for line in job.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    words = lines[-1].strip().rstrip(".") if lines else f"its process ended with status {status}"
    return f"{words}, see {job.log}"


def _entry(out: Path, trial: Trial, failed: Mapping[str, str]) -> Entry:
    """The outcome of a trial from its directory, or the reason why its program failed."""
    entry = Entry(trial.name, trial.setting, trial.config.training.seed, trial.values, "failed")
    path = out / "trials" / trial.name / OUTCOME
    if not path.exists():
        return dataclasses.replace(entry, reason=failed.get(trial.name, "its program wrote no outcome"))
    outcome = from_mapping(_Outcome, read_json(path), str(path))
    return dataclasses.replace(
        entry,
        status=outcome.status,
        reason=outcome.reason,
        performance=np.array(outcome.performance),
        slo_attainment=np.array(outcome.slo_attainment),
    )


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """The file of a trial's outcome."""

    status: Literal["finished", "diverged", "stopped"]
    decisions: int = 0
    reason: str = ""
    performance: tuple[float, ...] = ()
    slo_attainment: tuple[float, ...] = ()
