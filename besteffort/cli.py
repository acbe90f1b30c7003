"""The command line: parses, calls, prints. A user's mistake is one sentence on standard error and exit status 2."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import itertools
import os
import re
import shlex
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro
from annotated_types import Interval

from besteffort import interrupts
from besteffort.console import (
    Answer,
    Flag,
    Output,
    exit_statuses,
    program_bars,
    streams_restored,
    training_bars,
)
from besteffort.errors import InputError, brief, printable
from besteffort.files import os_errors_as_input_errors
from besteffort.runs.compilation import set_up_compilation
from besteffort.version import __version__

if TYPE_CHECKING:
    from besteffort.policy import Policy
    from besteffort.profiling.fitted_profile import Outcome as FitOutcome
    from besteffort.profiling.server_log import RequestLog
    from besteffort.situation import Situation
    from besteffort.workload.reading import Reading


def _metavar(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar)


def _optional(metavar: str) -> Any:
    """An option whose help says what holds without it, instead of `(default: None)`."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclasses.dataclass(frozen=True)
class Changes:
    """Changes to the configuration, an option that commands share.

    Attributes:
      set: another value for a field of the configuration, such as `cluster.replicas=2`, `tasks.piqa.weight=2`,
        `tasks.*.share=1` or `training.config.num_envs=64`; the value is YAML.
    """

    set: Annotated[tuple[str, ...], _metavar("FIELD=VALUE"), tyro.conf.UseAppendAction] = ()

    def arguments(self) -> dict[str, Any]:
        """What `load_run`, `load_situation` and `load_sweep` are to be given.

        Raises:
          InputError: on text that is no change.
        """
        from besteffort.runs.config import parse_changes

        return {"changes": parse_changes(self.set), "changes_from": "`--set`"}


@dataclasses.dataclass(frozen=True)
class Columns:
    """How to read a log, an option that commands share.

    Attributes:
      columns: where a log states what, such as `arrival=ts:ms,prompt=n_in,output=n_out`; also `first`, `last`, `ttft`,
        `latency`, `task`, `origin`, `tenant`, `model`, `limit`, `cached`; in place of single columns of a known format,
        or all of an unknown one. A unit is `s`, `ms`, `us` or `ns`.
      limit: read only so many rows of a log.
    """

    columns: Annotated[tuple[str, ...], _metavar("FIELD=COLUMN,..."), tyro.conf.UseAppendAction] = ()
    limit: Annotated[int | None, _optional("N")] = None

    def reading(self) -> Reading:
        """What to read.

        Raises:
          InputError: on numbers out of range.
        """
        from besteffort.workload.reading import Reading

        return Reading(self.columns, self.limit)


@dataclasses.dataclass(frozen=True)
class PartOfLog(Columns):
    """How to read a log, and which part of it, an option that commands share.

    Attributes:
      since: only requests that arrive so many seconds after a log's first, or later.
      until: only requests that arrive earlier than so many seconds after a log's first.
    """

    since: Annotated[float | None, tyro.conf.arg(name="from", metavar="SECONDS", help_behavior_hint="")] = None
    until: Annotated[float | None, tyro.conf.arg(name="to", metavar="SECONDS", help_behavior_hint="")] = None

    def reading(self) -> Reading:
        return dataclasses.replace(super().reading(), start_s=self.since, end_s=self.until)


SharedColumns = Annotated[Columns, tyro.conf.arg(name="")]
SharedPart = Annotated[PartOfLog, tyro.conf.arg(name="")]
SharedOutput = Annotated[Output, tyro.conf.arg(name="")]
SharedChanges = Annotated[Changes, tyro.conf.arg(name="")]

FEW = Interval(ge=1, le=2**16)
PORT = Interval(ge=0, le=65_535)
LOAD = Interval(ge=1e-6, le=1e6)

Trackers = Annotated[tuple[Literal["mlflow", "wandb"], ...], _metavar("TRACKER"), tyro.conf.UseAppendAction]
Traces = Annotated[tuple[Path, ...], tyro.conf.arg(name="trace", metavar="FILE"), tyro.conf.UseAppendAction]
Models = Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL [MODEL ...]", help_behavior_hint="(required)")]
Directory = Annotated[Path, _metavar("DIR")]
NewFile = Annotated[Path, _metavar("FILE")]
Config = Annotated[str, _metavar("CONFIG")]
MaybeConfig = Annotated[str | None, _optional("CONFIG")]
MaybeProfile = Annotated[str | None, _optional("PROFILE")]
MaybeFile = Annotated[Path | None, _optional("FILE")]
MaybeCount = Annotated[int | None, _optional("N"), FEW]
MaybeLoad = Annotated[float | None, _optional("X"), LOAD]
Qualities = Annotated[tuple[str, ...], _metavar("TASK=PERCENT"), tyro.conf.UseAppendAction]
Names = Annotated[tuple[str, ...], _metavar("NAME"), tyro.conf.UseAppendAction]
Logs = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="LOG [LOG ...]", help_behavior_hint="(required)")]
Kind = Literal["configurations", "profiles", "routers", "experiments", "sweeps"]


def quickstart(
    trace: Traces = (),
    out: Directory = Path("first-run"),
    profile: MaybeProfile = None,
    config: MaybeConfig = None,
    fit: Annotated[tuple[Path, ...], _metavar("FILE"), tyro.conf.UseAppendAction] = (),
    quality: Qualities = (),
    name: Names = (),
    deadline: Annotated[tuple[str, ...], _metavar("[TASK=]S+S"), tyro.conf.UseAppendAction] = (),
    no_training: Flag = False,
    resume: Flag = False,
    part: SharedPart = PartOfLog(),
    changes: SharedChanges = Changes(),
    output: SharedOutput = Output(),
) -> Answer:
    """Train routers, and compare them with all others on bursty load and traces.

    Args:
      trace: trace or log (times of arrival and lengths) to train and judge on, too; tasks that it names are served; may
        be given several times.
      out: new directory for everything that is written.
      profile: built-in profile or profile file, instead of the configuration's.
      config: configuration to start from: a name or a YAML file; by default the one named like the profile, or else
        `quickstart`.
      fit: server log to make the profile of first, as `profile fit` does; without `--trace` it is the trace, too; may
        be given several times, each log of other models.
      quality: of the models of `--fit`, percent that each reaches on a task, `chat=small:60,large:76`.
      name: model of a log of `--fit` without a column `model`; once for each such log, in their order; by default the
        name of the file.
      deadline: seconds, and seconds per output token, that a task has, `chat=0.5+0.02`, or all have, `0.5+0.02`.
      no_training: judge the policy that needs no training, and train none.
      resume: continue the quickstart in `--out`, which was interrupted, with the same settings.
      part: options on how to read a log, and which part of it.
      changes: options that change the configuration.
      output: options on what is printed.
    """
    from besteffort.runs.own_logs import load_quickstart
    from besteffort.runs.quickstart import make_plan, quickstart

    _check(out, "quickstart", resume)
    answer = Answer("quickstart", output)
    reading = part.reading()
    if fit:
        if profile is not None or config is not None:
            raise InputError("`--fit` makes the profile and the situation, so leave `--profile` and `--config` out.")
        stated = {
            name: value for name, value in changes.arguments()["changes"].items() if name.split(".")[0] != "tasks"
        }
        load_quickstart(None, None, changes=stated, changes_from="`--set`")
        profile = str(_fit_first(fit, out, quality, name, deadline, reading, answer, resume))
        trace = trace or fit
    elif quality or name:
        option = "--quality" if quality else "--name"
        raise InputError(f"`{option}` is of the models of `--fit`; name a server log there, or leave it out.")
    given = load_quickstart(config, profile, **changes.arguments())
    with answer.status("Reading"):
        plan = make_plan(given, trace, training=not no_training, reading=reading, deadlines=deadline)
    if not fit:
        _begin(out, "quickstart", resume)
    for note in (*plan.taken, *plan.notes.values()):
        answer.note(note)
    with training_bars(output) as bars:
        outcome = quickstart(plan, out, progress=bars.training, doing=bars.doing)
    for note in outcome.notes:
        answer.note(note)
    answer.table(outcome.table, outcome.brief)
    profiled = plan.situation.profile
    answer.note(f"Profile {profiled.name}: {profiled.provenance.summary}.")
    _note_tables(answer, plan.situation)
    answer.file("picture", outcome.picture)
    answer.files("policies", "Policy", outcome.policies)
    if outcome.situation is not None:
        again = " ".join(f"--trace {path}" for path in trace)
        answer.file("situation", outcome.situation, f"; set its deadlines, then `--config {outcome.situation} {again}`")
    answer.file("report", outcome.report)
    answer.file("results", out / "results.json")
    return answer


def _note_tables(answer: Answer, situation: Situation) -> None:
    """Says what latency tables do not reach."""
    if beyond := situation.beyond_tables():
        answer.note(beyond)


def _fit_first(
    logs: Sequence[Path],
    out: Path,
    quality: Sequence[str],
    names: Sequence[str],
    deadline: Sequence[str],
    reading: Reading,
    answer: Answer,
    resume: bool,
) -> Path:
    """Makes a profile of server logs in a new directory, and returns its file; its situation lies beside it.

    A quickstart that is resumed keeps what it has made.
    """
    from besteffort.profiling import fitted_profile
    from besteffort.profiling.server_log import read_logs
    from besteffort.runs.own_logs import parse_deadlines

    qualities = fitted_profile.parse_qualities(quality)
    with answer.status("Reading"):
        read = read_logs(logs, reading, names)
    models = [model for log in read for model in log.models]
    if len(models) == 1:
        apart = "".join(
            f", or tell its models apart, `--columns model={column}`" for column in read[0].model_columns[:1]
        )
        raise InputError(
            f"{logs[0]}: the log has one model, `{models[0]}`, so there is nothing to route; give the logs of other "
            f"models, too, `--fit {logs[0]} --fit OTHER_LOG`{apart}."
        )
    fitted_profile.check(read, qualities)
    deadlines = parse_deadlines(deadline, tuple(qualities) or fitted_profile.task_names(read))
    _begin(out, "quickstart", resume)
    made = out / "server.json"
    if resume and all(file.exists() for file in fitted_profile.outcome_files(made)):
        fitted_profile.check_made(made, qualities)
        return made
    again = "the same command with `--resume`"
    outcome = _fit(read, made, answer, again, qualities=qualities, deadlines=deadlines)
    interrupts.advise(f"what was written stays in {out}, and {again} goes on from there")
    profile, situation = outcome.files[:2]
    if not deadlines:
        answer.note(
            f"Deadlines are guesses, twice the slowest model's median times; set them in {situation}, or give "
            "`--deadline`."
        )
    answer.file("profile", profile)
    answer.file("situation", situation)
    return profile


def _fit(
    logs: Sequence[RequestLog], out: Path, answer: Answer, again: str = "the same command", **options: Any
) -> FitOutcome:
    """Fits a profile to server logs, and prints what was read and how good it is; options as of `fit_to_file`.

    `again` says what goes on with a fit that was interrupted.
    """
    from besteffort.profiling import fitted_profile
    from besteffort.workload.sources import listed

    for log in logs:
        answer.note(str(log))
    lacking = fitted_profile.tasks_left_out(logs, options["qualities"], options.get("into"))
    if lacking:
        stated = ",".join(f"{model}:PERCENT" for log in logs for model in log.models)
        answer.note(
            f"The log names tasks without a quality, {listed(lacking)}, which the situation leaves out; state it for "
            f"each, `--quality TASK={stated}`."
        )
    kept = fitted_profile.kept_file(out)
    interrupts.advise(f"fits that are finished stay in {kept}, and {again} goes on from there")
    with answer.status("Fitting") as say:
        outcome = fitted_profile.fit_to_file(
            logs,
            out,
            progress=lambda doing, misfit: say(f"Fitting {doing}; misfit {misfit:.3f}"),
            **options,
        )
    for doubt in outcome.doubts:
        answer.note(doubt)
    answer.table(outcome.table)
    for note in outcome.notes:
        answer.note(note)
    return outcome


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

    _check(out, "train", resume)
    answer = Answer("train", output)
    check_trackers(track)
    run, situation = load_run(config, **changes.arguments())
    given: dict[str, Any] = {"seeds": seeds, "start": start}
    training = dataclasses.replace(run.training, **{k: v for k, v in given.items() if v is not None})
    lengths = None
    if trace is not None:
        (half,) = read_halves([trace], situation, [run.evaluation.seed], log.reading())
        lengths = half.first[0]
        answer.note(str(half.info))
    problem = make_training_problem(situation, training, lengths)
    _begin(out, "train", resume)
    _note_tables(answer, situation)
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


def sweep(
    file: tyro.conf.Positional[Annotated[str, _metavar("SWEEP")]],
    out: Directory,
    resume: Flag = False,
    workers: MaybeCount = None,
    together: Annotated[int, _metavar("N"), FEW] = 64,
    backend: Literal["local", "ray"] = "local",
    address: Annotated[str | None, _optional("ADDRESS")] = None,
    cpus: Annotated[int, _metavar("N"), FEW] = 1,
    gpus: Annotated[float, _metavar("X"), Interval(ge=0, le=1024.0)] = 0.0,
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

    _check(out, "sweep", resume)
    answer = Answer("sweep", output)
    # This process only plans, and leaves an accelerator to the programs.
    jax.config.update("jax_platforms", "cpu")
    early = EarlyStopping() if early_stopping else None
    on = backend_of(backend, workers=workers, address=address, cpus=cpus, gpus=gpus, early=early)
    plan = make_plan(load_sweep(file, **changes.arguments()), where=file, together=together)
    _begin(out, "sweep", resume)
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


def evaluate(
    policy: tyro.conf.Positional[Annotated[Path, _metavar("POLICY")]],
    out: Directory,
    config: Config = "paper",
    trace: Traces = (),
    loads: Annotated[tuple[float, ...] | None, _optional("X [X ...]"), LOAD] = None,
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

    _check(out, "evaluate", resume)
    answer = Answer("evaluate", output)
    run, situation = load_run(config, **changes.arguments())
    loaded = load_policy(policy, situation)
    judging = run.evaluation
    if loads is not None:
        judging = dataclasses.replace(judging, loads=loads, trace_loads=loads)
    halves = read_halves(trace, situation, judging.judging_seeds, part.reading())
    _begin(out, "evaluate", resume)
    _note_tables(answer, situation)
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


def diagnose(
    policy: tyro.conf.Positional[Annotated[Path, _metavar("POLICY")]],
    out: Directory,
    config: Config = "paper",
    profile: MaybeProfile = None,
    trace: MaybeFile = None,
    load: Annotated[float, _metavar("X"), LOAD] = 1.0,
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
      load: mean load of the trace, in multiples of the largest model's capacity.
      resume: continue the diagnosis in `--out`, which was interrupted; what was tuned is not tuned again.
      part: options on how to read a log, and which part of it.
      changes: options that change the configuration.
      output: options on what is printed.
    """
    from besteffort.diagnosis import diagnose
    from besteffort.evaluation.judging import read_halves
    from besteffort.policy import load_policy
    from besteffort.runs.experiment import load_run

    _check(out, "diagnose", resume)
    answer = Answer("diagnose", output)
    run, situation = load_run(config, profile=profile, **changes.arguments())
    loaded = load_policy(policy, situation)
    judging = run.evaluation
    halves = read_halves([] if trace is None else [trace], situation, judging.judging_seeds, part.reading())
    _begin(out, "diagnose", resume)
    _note_tables(answer, situation)
    for half in halves:
        answer.note(str(half.info))
    with answer.status("Diagnosing"):
        done = diagnose.diagnose(loaded, situation, judging, out, trace=halves[0] if halves else None, load=load)
    answer.table(done.table)
    answer.data(findings=[dataclasses.asdict(finding) for finding in done.findings], checked=done.checked)
    for line in done.lines:
        answer.line(line)
    answer.file("report", done.report)
    answer.file("results", out / "results.json")
    return answer


def simulate(
    requests: tyro.conf.Positional[Annotated[Path, _metavar("REQUESTS")]],
    router: Annotated[str, _metavar("ROUTER")],
    out: Directory,
    config: Config = "paper",
    settings: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=X [NAME=X ...]", help_behavior_hint="")] = (),
    load: MaybeLoad = None,
    seed: Annotated[int, _metavar("N"), Interval(ge=0, le=2**31 - 1)] = 0,
    backend: Literal["jax", "reference"] = "jax",
    part: SharedPart = PartOfLog(),
    changes: SharedChanges = Changes(),
    output: SharedOutput = Output(),
) -> Answer:
    """Simulate a list of requests with one router, and write every outcome.

    Args:
      requests: log or trace: its format is recognised by its content; see docs/logs.md.
      router: name of a router (`deadline`, `priced`, ...), of a model (all requests go to it), or a policy file.
      out: new directory for `requests.csv` and `summary.json`.
      config: situation: a name or a YAML file.
      settings: the router's numbers, such as `reserve=0.2`, or `thresholds=8,4`.
      load: mean load to scale the list to, in multiples of the largest model's capacity for it; by default as it is.
      seed: of the router's random choices and of tasks that the file does not name.
      backend: the compiled simulator, or the reference in plain Python (slow; gives the same).
      part: options on how to read a log, and which part of it.
      changes: options that change the situation.
      output: options on what is printed.
    """
    from besteffort.files import check_run_directory, create_run_directory
    from besteffort.runs.config import load_situation
    from besteffort.runs.playing import read_list, router_named, write_result
    from besteffort.simulator.simulate import simulate as simulate_list

    check_run_directory(out, "simulate")
    answer = Answer("simulate", output)
    known = load_situation(config, **changes.arguments())
    with answer.status("Reading"):
        listed, situation, info = read_list(requests, known, part.reading(), seed=seed, load=load)
    chosen = router_named(router, situation, settings)
    create_run_directory(out)
    result = simulate_list(listed, situation, chosen, seed=seed, backend=backend)
    for table in write_result(result, situation, router, out):
        answer.table(table)
    answer.note(str(info))
    _note_tables(answer, situation)
    answer.file("per_request", out / "requests.csv")
    answer.file("summary", out / "summary.json")
    return answer


def reproduce() -> None:
    """Run the experiments behind the paper's claims; needs a checkout."""


def list_names(
    kinds: tyro.conf.Positional[Annotated[tuple[Kind, ...], _optional("[KIND ...]")]] = (),
    output: SharedOutput = Output(),
) -> Answer:
    """List configurations, profiles, routers, experiments and sweeps by name.

    Args:
      kinds: what to list: `configurations`, `profiles`, `routers`, `experiments` (in a checkout) or `sweeps`; all by
        default. With `--quiet` only the names are printed.
      output: options on what is printed.
    """
    from besteffort.listing import entries

    answer = Answer("list", output)
    found = entries(kinds)
    for kind, rows in found.items():
        answer.rows(rows, heading=kind.capitalize() if len(found) > 1 else "")
    answer.data(**{kind: [{"name": name, "description": text} for name, text in rows] for kind, rows in found.items()})
    return answer


def policy_show(
    file: tyro.conf.Positional[Annotated[Path, _metavar("POLICY")]], output: SharedOutput = Output()
) -> Answer:
    """Show what a policy file holds.

    Args:
      file: policy file.
      output: options on what is printed.
    """
    from besteffort.policy import load_policy

    answer = Answer("policy show", output)
    _show(load_policy(file), answer)
    return answer


def policy_export(
    file: tyro.conf.Positional[Annotated[Path, _metavar("POLICY")]], onnx: NewFile, output: SharedOutput = Output()
) -> Answer:
    """Export a policy file for other languages.

    Args:
      file: policy file.
      onnx: new ONNX file to export to.
      output: options on what is printed.
    """
    from besteffort.files import check_new_file
    from besteffort.policy import load_policy

    check_new_file(onnx)
    answer = Answer("policy export", output)
    loaded = load_policy(file)
    from besteffort.adapters.onnx import export_onnx

    export_onnx(loaded, onnx)
    answer.files("onnx", "ONNX", [onnx])
    return answer


def _show(loaded: Policy, answer: Answer) -> None:
    """What is in a policy file, a line each."""
    layers = [kernel.shape[0] for kernel, _ in loaded.weights] + [len(loaded.models)]
    situation = loaded.situation
    profile, cluster, tenants = situation.profile, situation.cluster, situation.tenants
    scales = {f.name: f"{f.scale:g}" if isinstance(f.scale, float) else "of each pool" for f in loaded.features}
    lines = {
        "models": ", ".join(loaded.models),
        "tasks": ", ".join(loaded.tasks),
        "features": ", ".join(f"{f.name} ({f.size}, {f.transform}, scale {scales[f.name]})" for f in loaded.features),
        "network": " x ".join(map(str, layers)),
        "decides by": _decides_by(loaded),
        "deadlines": "; ".join(
            f"{1000 * task.deadline.base_s:g} ms + {1000 * task.deadline.per_token_s:g} ms per token"
            for task in situation.tasks
        ),
        **(
            {
                f"pool {pool.name}": f"{pool.model}, {pool.replicas} replicas, `max_batch` {pool.max_batch}, "
                f"`queue_capacity` {pool.queue_capacity}"
                for pool in situation.pools
            }
            or {
                "cluster": f"{cluster.replicas} replicas, `max_batch` {cluster.max_batch}, `queue_capacity` "
                f"{cluster.queue_capacity}"
            }
        ),
        **({"origins": ", ".join(situation.origin_names)} if situation.origins else {}),
        **({"tenants": ", ".join(f"{each.name} (weight {each.weight:g})" for each in tenants)} if tenants else {}),
        "rate estimate": f"over {loaded.rate_tau_s:g} s",
        "profile": f"{profile.name} ({profile.digest()})",
        "written by": f"besteffort {loaded.version}",
        **{f"training.{name}": str(value) for name, value in loaded.training.items()},
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        answer.line(printable(f"{name:<{width}}  {value if len(value) < _LONGEST else f'{value[:_LONGEST]}...'}"))
    answer.data(
        models=loaded.models,
        tasks=loaded.tasks,
        features=[dataclasses.asdict(feature) for feature in loaded.features],
        layers=layers,
        decides_by=_decides_by(loaded),
        deadlines={task.name: dataclasses.asdict(task.deadline) for task in situation.tasks},
        **(
            {"pools": [dataclasses.asdict(pool) for pool in situation.pools]}
            if situation.pools
            else {"cluster": dataclasses.asdict(cluster)}
        ),
        **({"origins": situation.origin_names} if situation.origins else {}),
        **({"tenants": [dataclasses.asdict(each) for each in tenants]} if tenants else {}),
        rate_tau_s=loaded.rate_tau_s,
        profile={"name": profile.name, "digest": profile.digest()},
        written_by=loaded.version,
        training=loaded.training,
    )


def _decides_by(loaded: Policy) -> str:
    """Whether the rule of a policy decides, its networks, or both."""
    if loaded.rule is None:
        return "its networks"
    if loaded.is_rule:
        return "its rule"
    # Training keeps the share of what networks have learned that did best, which may be none.
    nothing = loaded.training.get("added") == 0
    return "its rule, to which its networks add nothing" if nothing else "its rule and networks"


def profile_measure(
    models: tyro.conf.Positional[Models],
    out: NewFile,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_batch: Annotated[int, _metavar("N"), FEW] = 32,
    context: Annotated[int, _metavar("N"), Interval(ge=1, le=2**22)] = 512,
    repeats: Annotated[int, _metavar("N"), FEW] = 15,
    chunk_tokens: Annotated[int | None, _optional("N")] = None,
    clock: Literal["wall", "processor"] = "wall",
    qualities: Annotated[str | None, _optional("FILE")] = None,
    resume: Flag = False,
    output: SharedOutput = Output(),
) -> Answer:
    """Measure what OPT models cost on this device, alone and side by side.

    Args:
      models: published sizes (`opt-125m`; random weights, which take as long), or directories and names on the Hugging
        Face Hub; from the smallest to the largest.
      out: new profile file; the figures behind it are written beside it as they come.
      dtype: number format of weights and cache.
      max_batch: largest batch of a decode step.
      context: longest sequence, prompt and answer.
      repeats: iterations that a figure is the median of.
      chunk_tokens: read prompts in parts, so that an iteration works on so many tokens at most.
      clock: `processor` counts the processor's time of each model alone, as the engine in virtual time does.
      qualities: file or profile that says what the models give on tasks; by default what is published of OPT.
      resume: go on with a measurement that was stopped, with the same settings.
      output: options on what is printed.
    """
    from besteffort.device import device_name
    from besteffort.files import check_new_file
    from besteffort.profiling.measure import MeasurementPlan, figures_file, measure_profile, read_qualities, tables

    check_new_file(out)
    answer = Answer("profile measure", output)
    plan = MeasurementPlan(models, dtype, max_batch, context, repeats, chunk_tokens, clock)
    known = read_qualities(plan.names, qualities)
    interrupts.advise("the figures so far stay, and the same command with `--resume` goes on")
    answer.note(f"Device: {device_name()}")
    with answer.status("Measuring") as say:
        report = measure_profile(
            plan,
            known,
            out,
            resume=resume,
            progress=lambda what, done, total: say(f"{what} ({done} of {total})"),
        )
    for table in tables(report):
        answer.table(table)
    for remark in report.remarks:
        answer.note(remark)
    answer.file("profile", out)
    answer.file("figures", figures_file(out))
    return answer


def profile_quality(
    models: tyro.conf.Positional[Models],
    out: NewFile,
    task: Annotated[tuple[str, ...], _metavar("NAME"), tyro.conf.UseAppendAction] = (),
    examples: Annotated[tuple[Path, ...], _metavar("FILE"), tyro.conf.UseAppendAction] = (),
    into: MaybeProfile = None,
    metric: Annotated[tuple[str, ...], _metavar("TASK=METRIC"), tyro.conf.UseAppendAction] = (),
    shots: Annotated[int | None, _optional("N"), Interval(ge=0, le=2**16)] = None,
    limit: Annotated[int | None, _optional("N"), Interval(ge=1, le=2**31 - 1)] = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_batch: Annotated[int, _metavar("N"), FEW] = 8,
    resume: Flag = False,
    output: SharedOutput = Output(),
) -> Answer:
    """Measure what OPT models give on tasks, with lm-evaluation-harness.

    Args:
      models: directories with weights and tokenizer, names on the Hugging Face Hub, or published sizes (`opt-125m`);
        from the smallest to the largest.
      out: new file: the qualities, for `profile measure --qualities`, or with `--into` a profile. Every metric is
        written beside it as it comes.
      task: task of the harness, such as `piqa`; may be given several times.
      examples: task of your own: JSON lines of `prompt` and `answer`, with `choices` to choose from, or of `text`; see
        `besteffort.profiling.quality`. May be given several times.
      into: profile to put the qualities into, built-in or a file; what it says of costs stays.
      metric: which metric is a task's quality, such as `piqa=acc_norm`; may be given several times.
      shots: examples in the prompts of the harness's tasks, instead of each task's own number.
      limit: only so many examples of each task.
      dtype: number format of weights and cache.
      max_batch: sequences at a time.
      resume: go on with a measurement that was stopped, with the same settings; what is measured is not measured again.
      output: options on what is printed.
    """
    from besteffort.files import check_new_file, write_json
    from besteffort.profile import load_profile, save_profile
    from besteffort.profiling import quality

    check_new_file(out, replaces=into is not None and str(out) == into)
    answer = Answer("profile quality", output)
    own = tuple(quality.read_examples(file) for file in examples)
    plan = quality.QualityPlan(models, task, own, quality.parse_metrics(metric), shots, limit, dtype, max_batch)
    base = None if into is None else load_profile(into)
    if base is not None:
        quality.check_merge(base, plan)
    figures = out.with_name(f"{out.name.removesuffix('.json')}.quality.jsonl")
    interrupts.advise(f"the figures so far stay in {figures}, and the same command with `--resume` goes on")
    with answer.status("Measuring") as say:
        found = quality.measure_qualities(
            plan, figures, progress=lambda what, done, total: say(f"{what} ({done} of {total})"), resume=resume
        )
    measured = quality.qualities(plan, found)
    if base is None:
        write_json(out, dataclasses.asdict(measured))
    else:
        save_profile(quality.merged(base, measured), out)
    answer.table(quality.table(found))
    answer.file("qualities" if base is None else "profile", out)
    answer.file("figures", figures)
    return answer


def profile_fit(
    log: tyro.conf.Positional[Logs],
    out: NewFile,
    quality: Qualities = (),
    into: MaybeProfile = None,
    name: Names = (),
    device: Annotated[str | None, _optional("TEXT")] = None,
    max_batch: MaybeCount = None,
    part: SharedPart = PartOfLog(),
    output: SharedOutput = Output(),
) -> Answer:
    """Find what a server's models cost from its log.

    Args:
      log: server log (requests with what they took), plain or `.gz`; its format is recognised by its content, see
        docs/logs.md. Several are fitted together, each of other models.
      out: new profile file; a situation, the figures and a picture are written beside it.
      quality: percent that the model reaches on a task, `piqa=71.7`, or of several models `piqa=small:63,large:71.7`.
      into: profile to put the costs into, built-in or a file; what it says of quality stays.
      name: model of a log without a column `model`; once for each such log, in their order; by default the name of the
        file.
      device: what the server runs on, for the record.
      max_batch: the server's largest batch (vLLM: `--max-num-seqs`), where it is known.
      part: options on how to read a log, and which part of it.
      output: options on what is printed.
    """
    from besteffort.files import check_new_file
    from besteffort.profile import load_profile
    from besteffort.profiling import fitted_profile
    from besteffort.profiling.server_log import read_logs

    for file in fitted_profile.outcome_files(out):
        check_new_file(file, replaces=into is not None and str(out) == into)
    answer = Answer("profile fit", output)
    qualities = fitted_profile.parse_qualities(quality)
    base = None if into is None else load_profile(into)
    with answer.status("Reading"):
        logs = read_logs(log, part.reading(), name)
    fitted_profile.check(logs, qualities, base)
    alone = base is None and sum(len(each.models) for each in logs) == 1
    if alone:
        answer.note(
            "One model leaves nothing to route. To route, fit the logs of several together, `besteffort profile fit "
            f"{log[0]} OTHER_LOG`, or put this one into the profile of the others, `--into PROFILE`."
        )
    outcome = _fit(logs, out, answer, qualities=qualities, into=base, device=device, max_batch=max_batch)
    for what, file in zip(("profile", "situation", "figures", "picture"), outcome.files, strict=True):
        answer.file(what, file)
    situation = outcome.files[1]
    if not alone:
        read = [*(f"--trace {path}" for path in log), *(f"--columns {shlex.quote(text)}" for text in part.columns)]
        answer.note(
            f"Next: set the deadlines in {situation}, then `besteffort quickstart --config {situation} "
            f"{' '.join(read)} --out first-run`."
        )
    return answer


def serve(
    config: tyro.conf.Positional[Annotated[str | None, _optional("CONFIG")]] = None,
    check: Flag = False,
    demo: Flag = False,
    port: Annotated[int | None, _optional("N"), PORT] = None,
    workers: int = 1,
    output: SharedOutput = Output(),
) -> Answer | None:
    """Serve OpenAI's API, and let a policy choose which of your servers answers each request.

    Args:
      config: YAML file that names pools of servers, a policy, and where to listen.
      check: read and check everything, and end.
      demo: serve three small models that come with the package, in the same process; no configuration is needed.
      port: port of the demo, 8080 unless given; its engine listens on the next one.
      workers: processes that share the work on this host.
      output: options on what is printed.
    """
    from besteffort.gateway import command

    answer = Answer("serve", output)
    if demo:
        if config is not None or check or workers != 1:
            raise InputError("`serve --demo` needs no configuration; leave it, `--check` and `--workers` out.")
        _serve_demo(answer, port)
        return None
    if config is None:
        raise InputError("`serve` needs a configuration, `besteffort serve gateway.yaml`, or `--demo`.")
    if port is not None:
        raise InputError("`--port` is of the demo; set `listen.port` in the configuration.")
    if check:
        answer.line(command.check(config))
        return answer
    command.serve(config, answer.line, workers)
    return None


def _serve_demo(answer: Answer, port: int | None) -> None:
    from besteffort.gateway.command import needs_extra

    with needs_extra("serve --demo"):
        from besteffort.demo import serve as demo
    with contextlib.ExitStack() as starting:
        say = starting.enter_context(answer.status("Starting"))

        def ready(address: str, engine: str) -> None:
            starting.close()
            answer.line(f"Listening on {address}, with three models behind it on {engine}.")
            answer.line("In another shell: `besteffort load --demo`.")

        demo.run(demo.PORT if port is None else port, say, ready)


def engine(
    models: tyro.conf.Positional[Models],
    host: Annotated[str, _metavar("ADDRESS")] = "127.0.0.1",
    port: Annotated[int, _metavar("N"), PORT] = 8000,
    api_key_env: Annotated[str | None, _optional("VARIABLE")] = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_batch: Annotated[int, _metavar("N"), FEW] = 16,
    queue_capacity: Annotated[int, _metavar("N"), Interval(ge=0, le=2**16)] = 64,
    context: MaybeCount = None,
    output: SharedOutput = Output(),
) -> None:
    """Serve OPT models with OpenAI's API on this device, all in one process.

    Args:
      models: models of the laptop tier (`laptop-1m`), directories with weights and tokenizer, or names on the Hugging
        Face Hub.
      host: address to listen on; any other than of this machine needs `--api-key-env`.
      port: port to listen on; 0 takes a free one.
      api_key_env: environment variable with a key that clients need.
      dtype: number format of weights and cache.
      max_batch: requests of a model that run at once.
      queue_capacity: requests of a model that may wait beyond these; further ones are refused.
      context: longest sequence in tokens, prompt and answer; by default each model's limit.
      output: options on what is printed.
    """
    from besteffort.engine import command
    from besteffort.gateway.command import needs_extra

    with needs_extra("engine"):
        import aiohttp  # noqa: F401
    answer = Answer("engine", output)
    listen, keys = command.check_listen(host, port, api_key_env)
    with contextlib.ExitStack() as starting:
        say = starting.enter_context(answer.status("Loading"))
        loaded = command.load_models(models, dtype)

        def ready(address: str) -> None:
            starting.close()
            answer.line(f"Listening on {address}: models {', '.join(loaded.models)}.")

        command.serve(
            loaded,
            listen,
            keys,
            max_batch=max_batch,
            queue_capacity=queue_capacity,
            context=context,
            status=say,
            ready=ready,
        )


def load(
    url: tyro.conf.Positional[Annotated[str | None, _optional("URL")]] = None,
    requests: tyro.conf.Positional[Annotated[Path | None, _optional("REQUESTS")]] = None,
    out: Annotated[Path | None, _optional("DIR")] = None,
    demo: Flag = False,
    config: Config = "paper",
    model: Annotated[str, _metavar("MODEL")] = "besteffort",
    api_key_env: Annotated[str | None, _optional("VARIABLE")] = None,
    plain: Flag = False,
    load: MaybeLoad = None,
    seed: Annotated[int, _metavar("N"), Interval(ge=0, le=2**31 - 1)] = 0,
    part: SharedPart = PartOfLog(),
    changes: SharedChanges = Changes(),
    output: SharedOutput = Output(),
) -> Answer:
    """Play a list of requests to a gateway or server in real time, and measure what comes back.

    Args:
      url: address of a server with OpenAI's API, up to and including `/v1`.
      requests: log or trace: its format is recognised by its content; see docs/logs.md.
      out: new directory for `requests.csv` and `summary.json`, as of `simulate`.
      demo: ask `besteffort serve --demo` for answers that are known, in bursts, and count the right ones in time; then
        ask each model alone.
      config: situation, which says what answers are worth: a name or a YAML file.
      model: what to ask the server for.
      api_key_env: environment variable that holds the server's key.
      plain: ask for whole answers instead of streams.
      load: mean load to scale the list to, in multiples of the largest model's capacity for it; by default as it is.
      seed: of tasks that the file does not name.
      part: options on how to read a log, and which part of it.
      changes: options that change the situation.
      output: options on what is printed.
    """
    from besteffort.files import check_run_directory, create_run_directory
    from besteffort.gateway.command import needs_extra
    from besteffort.runs.config import load_situation
    from besteffort.runs.playing import read_list, write_result

    with needs_extra("load"):
        from besteffort.gateway.config import secret_of
        from besteffort.load.play import Target, play
    answer = Answer("load", output)
    if demo:
        if requests is not None or out is not None:
            raise InputError(
                "`load --demo` has its own requests and writes no files; leave `REQUESTS` and `--out` out."
            )
        return _load_demo(answer, url, seed)
    if url is None or requests is None or out is None:
        raise InputError(
            "`load` needs an address, a log or trace, and `--out`: "
            "`besteffort load http://127.0.0.1:8080/v1 my_log.csv --out played`; or `--demo`."
        )
    check_run_directory(out, "load")
    known = load_situation(config, **changes.arguments())
    key = None if api_key_env is None else secret_of("`--api-key-env`", api_key_env)
    with answer.status("Reading"):
        listed, situation, info = read_list(requests, known, part.reading(), seed=seed, load=load)
    create_run_directory(out)
    with answer.status("Playing") as say:
        played = play(
            listed,
            situation,
            Target(url.rstrip("/"), model, key, not plain),
            lambda sent, done: say(f"Playing; {sent:,} of {len(listed.task):,} sent, {done:,} ended"),
        )
    for table in write_result(played.result, situation, model, out):
        answer.table(table)
    answer.note(str(info))
    for reason, count in played.failures.most_common():
        answer.note(f"{count:,} of {len(listed.task):,} requests failed: {reason}.")
    answer.note(f"Requests were sent at most {1e3 * played.late_s:.0f} ms after their times.")
    answer.file("per_request", out / "requests.csv")
    answer.file("summary", out / "summary.json")
    return answer


def _load_demo(answer: Answer, url: str | None, seed: int) -> Answer:
    from besteffort.demo import play as demo

    asked = demo.ask(seed)
    played = {}
    with answer.status("Playing") as say:
        for name, target in demo.targets(url or demo.URL).items():

            def progress(sent: int, done: int, name: str = name) -> None:
                say(f"Asking {name}; {sent:,} of {len(asked.in_burst):,} sent, {done:,} ended")

            played[name] = demo.play_demo(asked, target, progress)
    answer.table(demo.table(asked, played))
    for name, each in played.items():
        for reason, count in each.failures.most_common():
            answer.note(f"{name}: {count:,} requests failed, {reason}.")
    return answer


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, and a line that shows how it is called.

    Attributes:
      call: what it does; tyro reads its options from the signature and its help from the docstring.
      example: a line that can be copied.
    """

    call: Callable[..., Answer | None]
    example: str


COMMANDS: dict[str, Command] = {
    "quickstart": Command(quickstart, "besteffort quickstart --trace my_log.csv --out first-run"),
    "train": Command(train, "besteffort train paper --set cluster.replicas=2 --out two-replicas"),
    "sweep": Command(sweep, "besteffort sweep learning_rate --set training.config.num_envs=64 --out rates"),
    "evaluate": Command(evaluate, "besteffort evaluate first-run/policy.safetensors --out judged"),
    "diagnose": Command(diagnose, "besteffort diagnose first-run/policy.safetensors --out diagnosis"),
    "simulate": Command(simulate, "besteffort simulate my_log.csv --router deadline --load 2 --out replay"),
    "serve": Command(serve, "besteffort serve gateway.yaml"),
    "engine": Command(engine, "besteffort engine laptop-1m laptop-5m"),
    "load": Command(load, "besteffort load http://127.0.0.1:8080/v1 my_log.csv --load 2 --out played"),
    "reproduce": Command(reproduce, "besteffort reproduce stable_load --fast --out reproduced"),
    "list": Command(list_names, "besteffort list configurations"),
    "policy show": Command(policy_show, "besteffort policy show first-run/policy.safetensors"),
    "policy export": Command(policy_export, "besteffort policy export first-run/policy.safetensors --onnx policy.onnx"),
    "profile measure": Command(profile_measure, "besteffort profile measure opt-125m opt-350m --out my_device.json"),
    "profile quality": Command(profile_quality, "besteffort profile quality opt-125m --task piqa --out qualities.json"),
    "profile fit": Command(profile_fit, "besteffort profile fit my_log.jsonl --quality piqa=71.7 --out server.json"),
}
"""All commands; those of two words make groups."""

GROUPS = {
    "policy": "What a policy file holds, shown or exported for other languages.",
    "profile": "What models cost and give: measured here, or read off a server log.",
}

_DESCRIPTION = "Best-effort LLM serving: learn in simulation which model answers which request."
_CLOSING = """\
`besteffort COMMAND --help` explains a command, and `besteffort --version` names
the version. README.md, docs/ and ARCHITECTURE.md in the repository say more.
"""
_LONGEST = 500  # characters of a value that `policy show` shows
_SHELLS = ("bash", "zsh", "tcsh", "fish")


def _check(out: Path, kind: str, resume: bool) -> None:
    """Checks a run's directory before any work is done; errors as `begin_run`."""
    from besteffort.files import check_run_directory

    check_run_directory(out, kind, resume=resume)


def _begin(out: Path, kind: str, resume: bool) -> None:
    """Begins or resumes a run, and says what an interrupt leaves; errors as `begin_run`."""
    from besteffort.files import begin_run

    begin_run(out, kind, resume=resume)
    interrupts.advise(f"what was written stays in {out}, and the same command with `--resume` goes on from there")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0, 2 for a user's mistake, 130 if interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with _runs_left(), exit_statuses("besteffort") as ended:
        if given == ["--version"]:
            print(f"besteffort {__version__}")
        else:
            _answer(given)
        # Here, where a reader that has left still counts.
        sys.stdout.flush()
    return ended.status


def _answer(given: Sequence[str]) -> None:
    """Runs the command and prints its answer."""
    if "jax" not in sys.modules:
        set_up_compilation()
    with streams_restored():
        if given and given[0] in ("--tyro-print-completion", "--tyro-write-completion"):
            _print_completion(given)
        elif {"-h", "--help"} & set(given):
            _print_help(given)
        else:
            answer = _run(given)
            if answer is not None:
                answer.finish()


@contextlib.contextmanager
def _runs_left() -> Iterator[None]:
    """Lets other processes into the directories of the command's runs at its end."""
    try:
        yield
    finally:
        if "besteffort.files" in sys.modules:
            sys.modules["besteffort.files"].leave_runs()


def _run(given: Sequence[str]) -> Answer | None:
    """Parses the arguments and calls the command; exits where help or completions are asked for, or on other words."""
    calls: dict[str, Callable[..., Any]] = {}
    for name, command in COMMANDS.items():
        group, _, _ = name.rpartition(" ")
        if not group:
            calls[name] = command.call
        elif group not in calls:
            members = {n.removeprefix(f"{group} "): c.call for n, c in COMMANDS.items() if n.startswith(f"{group} ")}
            calls[group] = _group(GROUPS[group], members)
    if given[:1] == ["reproduce"]:
        calls["reproduce"] = _reproduce_command()
    shared = (Changes, Columns, PartOfLog, Output)
    for documented in (*calls.values(), *(command.call for command in COMMANDS.values()), *shared):
        _join_lines(documented)
    told = io.StringIO()
    try:
        helps = {"-h", "--help"} & set(given)
        with contextlib.redirect_stderr(told), contextlib.nullcontext() if helps else _wide():
            todo: Callable[[], Answer | None] = tyro.extras.subcommand_cli_from_dict(
                {name: _later(call) for name, call in calls.items()},
                prog="besteffort",
                description=_DESCRIPTION,
                args=given,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as leaving:
        if leaving.code == 2:
            raise InputError(_mistake(told.getvalue(), given)) from None
        sys.stderr.write(told.getvalue())
        raise
    return todo()


def _later(call: Callable[..., Any]) -> Callable[..., Any]:
    """What parses as `call` does, and returns a function that checks the numbers of the options and then calls it."""
    if getattr(call, "group", False):
        return call

    @functools.wraps(call)
    def parsed(*values: Any, **options: Any) -> Callable[[], Any]:
        def run() -> Any:
            _check_numbers(call, options)
            return call(*values, **options)

        return run

    return parsed


def _check_numbers(call: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Checks options against the intervals of their annotations.

    Raises:
      InputError: naming the option and its interval.
    """
    for name, hint in typing.get_type_hints(call, include_extras=True).items():
        for interval in (each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Interval)):
            given = options.get(name)
            for number in given if isinstance(given, tuple) else () if given is None else (given,):
                if not interval.ge <= number <= interval.le:
                    option = f"--{name.replace('_', '-')}"
                    low, high = (
                        f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (interval.ge, interval.le)
                    )
                    raise InputError(f"`{option}` is {brief(number)}; give a number from {low} to {high}.")


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """Lets tyro write its messages without breaking lines."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _mistake(box: str, given: Sequence[str]) -> str:
    """The sentence in place of tyro's box about words that do not parse."""
    from besteffort.validation import did_you_mean

    inside = [line.strip("│|+╭╮╰╯ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    # The heading stands in the first rule or above it, remarks below the next one.
    rules = [index for index, line in enumerate(inside) if line.endswith(("──", "--"))]
    lines = inside[rules[0] + 1 : rules[1] if len(rules) > 1 else None] if rules else inside
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), given))
    name = next((name for name in (" ".join(words[:2]), " ".join(words[:1])) if name in (*COMMANDS, *GROUPS)), "")
    command = f"besteffort {name}".strip()
    text = " ".join(line for line in lines if line)
    remedy = f"`{command} --help` says what there is"
    if found := re.match(r"Unrecognized (?:or misplaced )?options: (.*)", text):
        unknown = re.split(r", | \(applied to", found[1])[0]
        known = [*COMMANDS] if not name else sorted(_options_of(name))
        if name in GROUPS:
            known = [one.removeprefix(f"{name} ") for one in COMMANDS if one.startswith(f"{name} ")]
        what = "command" if name in ("", *GROUPS) else "option"
        return f"There is no {what} `{brief(unknown)}`{did_you_mean(unknown, known)}; {remedy}."
    if text.startswith("Expected one of"):
        return f"`{command}` lacks a command of its own; add it, {remedy}."
    if text.startswith("Missing from"):
        lacking = [line.split("  ")[0].strip() for line in lines if re.match(r"(--[\w-]+|[A-Z]{2,}|\{)", line)]
        return f"`{command}` lacks {' and '.join(map(brief, lacking)) or 'a command'}; add it, {remedy}."
    if found := re.match(r"Error parsing ([^:]+): .*?(?:from \[(.*?)\]|(?:base 10|to float): (.*))", text):
        kind = "a whole number" if "int" in text else "a number"
        return f"`{found[1]}` is {brief(found[2] or found[3])}, but should be {kind}; {remedy}."
    return f"{text.rstrip('.')}; {remedy}."


def _options_of(name: str) -> list[str]:
    """The options of a command, as they are written."""
    known = COMMANDS.get(name)
    return [f"--{each.replace('_', '-')}" for each in inspect.signature(known.call).parameters] if known else []


def _join_lines(documented: Any) -> None:
    """Puts each argument's text in a docstring on one line, because tyro keeps its line breaks."""
    documented.__doc__ = re.sub(r"\n {4,}(?=\S)", " ", inspect.cleandoc(documented.__doc__ or ""))


def _group(description: str, commands: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """A command that does nothing but hold others."""
    options = [
        Annotated[Any, tyro.conf.subcommand(name=name, constructor=_later(call))] for name, call in commands.items()
    ]
    one_of: Any = Union.__getitem__((*options, Annotated[None, tyro.conf.Suppress]))  # tyro needs two or more

    def group(command: Any) -> Any:
        return command

    group.group = True  # type: ignore[attr-defined]
    group.__doc__ = description
    group.__annotations__["command"] = Annotated[one_of, tyro.conf.arg(name="")]
    return group


def _reproduce_command() -> Callable[..., Any]:
    """The command of the checkout's `experiments`, which is loaded only where it is asked for."""
    from besteffort.listing import CHECKOUT, has_experiments

    if not has_experiments():
        raise InputError(
            "`reproduce` runs the files under `experiments/`, which only a checkout has; clone the repository and "
            "install from there with `python -m pip install --no-deps -e .`."
        )
    if str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    command: Callable[..., Any] = importlib.import_module("experiments.__main__").run_command
    return command


class _Captured(io.StringIO):
    """Takes what is printed but passes for standard output, so that tyro draws boxes and colours as it would there."""

    def __init__(self) -> None:
        super().__init__()
        self._behind = sys.stdout

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._behind.encoding

    def isatty(self) -> bool:
        return self._behind.isatty()


def _print_help(given: Sequence[str]) -> None:
    """Prints tyro's help, its long lines wrapped between words, with an example at its end; then exits."""
    status: Any = 0
    with contextlib.redirect_stdout(_Captured()) as captured:
        try:
            _run(given)
        except SystemExit as leaving:
            status = leaving.code
    text = captured.getvalue()
    if text:
        words = list(itertools.takewhile(lambda word: not word.startswith("-"), given))
        print(_wrapped(text), *([] if words else [_CLOSING]), f"Example:\n  {_example(words)}", sep="\n", flush=True)
    sys.exit(status)


def _example(words: Sequence[str]) -> str:
    """The example of the command that begins with these words, of a group the one of its first command."""
    for begun in (" ".join(words[:2]), " ".join(words[:1])):
        for name, command in COMMANDS.items():
            if name == begun or name.startswith(f"{begun} "):
                return command.example
    return next(iter(COMMANDS.values())).example


def _wrapped(text: str) -> str:
    """Text whose lines outside boxes are no longer than the terminal is wide."""
    width = shutil.get_terminal_size().columns
    lines = []
    for line in text.rstrip().splitlines():
        if line.startswith("╭") or len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= width:
            lines.append(line)
        else:
            # The box below lists the commands.
            short = re.sub(r"\{[\w,-]+\}$", "COMMAND", line)
            indent = "  " if short.startswith("usage:") else ""
            lines += textwrap.wrap(
                short, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
            )
    return "\n".join([*lines, ""])


def _print_completion(given: Sequence[str]) -> None:
    """Prints or writes a shell's completion script, with tyro's options for this; then exits."""
    option, *words = given
    if not words or words[0] not in _SHELLS:
        raise InputError(
            f"`{option}` is followed by {words[0] if words else 'nothing'}; name one of {', '.join(_SHELLS)}."
        )
    if option == "--tyro-write-completion" and len(words) != 2:
        raise InputError(f"`{option} {words[0]}` needs one file to write to; name it.")
    with os_errors_as_input_errors(Path(words[-1])):
        _run(given)


if __name__ == "__main__":
    sys.exit(main())
