"""`besteffort quickstart`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from besteffort import interrupts
from besteffort.commands.options import (
    Changes,
    Directory,
    MaybeConfig,
    MaybeProfile,
    Names,
    PartOfLog,
    Qualities,
    SharedChanges,
    SharedOutput,
    SharedPart,
    Traces,
    metavar,
)
from besteffort.commands.profile import fit_logs
from besteffort.commands.shared import begin_out, check_out, next_quickstart, note_tables
from besteffort.console import Answer, Flag, Output, training_bars
from besteffort.errors import InputError

if TYPE_CHECKING:
    from besteffort.workload.reading import Reading


def quickstart(
    trace: Traces = (),
    out: Directory = Path("first-run"),
    profile: MaybeProfile = None,
    config: MaybeConfig = None,
    fit: Annotated[tuple[Path, ...], metavar("FILE"), tyro.conf.UseAppendAction] = (),
    quality: Qualities = (),
    name: Names = (),
    deadline: Annotated[tuple[str, ...], metavar("[TASK=]S+S"), tyro.conf.UseAppendAction] = (),
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

    check_out(out, "quickstart", resume)
    answer = Answer("quickstart", output)
    reading = part.reading((*trace, *fit))
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
        begin_out(out, "quickstart", resume)
    for note in (*plan.taken, *plan.notes.values()):
        answer.note(note)
    with training_bars(output) as bars:
        outcome = quickstart(plan, out, progress=bars.training, doing=bars.doing)
    for note in outcome.notes:
        answer.note(note)
    answer.table(outcome.table, outcome.brief)
    profiled = plan.situation.profile
    answer.note(f"Profile {profiled.name}: {profiled.provenance.summary}.")
    note_tables(answer, plan.situation)
    answer.file("picture", outcome.picture)
    answer.files("policies", "Policy", outcome.policies)
    if outcome.situation is not None:
        again = next_quickstart(outcome.situation, trace, part)
        answer.file("situation", outcome.situation, f"; set its deadlines, then `{again}`")
    answer.file("report", outcome.report)
    answer.file("results", out / "results.json")
    return answer


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
    begin_out(out, "quickstart", resume)
    made = out / "server.json"
    if resume and all(file.exists() for file in fitted_profile.outcome_files(made)):
        fitted_profile.check_made(made, qualities)
        return made
    again = "the same command with `--resume`"
    outcome = fit_logs(read, made, answer, again, qualities=qualities, deadlines=deadlines)
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
