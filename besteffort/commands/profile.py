"""`besteffort profile measure`, `besteffort profile quality` and `besteffort profile fit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from annotated_types import Interval

from besteffort import interrupts
from besteffort.commands.options import (
    FEW,
    MaybeCount,
    MaybeProfile,
    Models,
    Names,
    NewFile,
    PartOfLog,
    Qualities,
    SharedOutput,
    SharedPart,
    metavar,
    optional,
)
from besteffort.commands.shared import next_quickstart
from besteffort.console import Answer, Flag, Output

if TYPE_CHECKING:
    from besteffort.profiling.fitted_profile import Outcome as FitOutcome
    from besteffort.profiling.server_log import RequestLog

Logs = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="LOG [LOG ...]", help_behavior_hint="(required)")]


def profile_measure(
    models: tyro.conf.Positional[Models],
    out: NewFile,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_batch: Annotated[int, metavar("N"), FEW] = 32,
    context: Annotated[int, metavar("N"), Interval(ge=1, le=2**22)] = 512,
    repeats: Annotated[int, metavar("N"), FEW] = 15,
    chunk_tokens: Annotated[int | None, optional("N")] = None,
    clock: Literal["wall", "processor"] = "wall",
    qualities: Annotated[str | None, optional("FILE")] = None,
    resume: Flag = False,
    output: SharedOutput = Output(),
) -> Answer:
    """Measure what OPT models cost on this device, alone and side by side.

    Args:
      models: published sizes (`opt-125m`; random weights, which take as long), or directories and names on the Hugging
        Face Hub; from the smallest to the largest.
      out: new profile file; the figures behind it are written beside it as they come, with `--clock processor` at the
        end.
      dtype: number format of weights and cache.
      max_batch: largest batch of a decode step.
      context: longest sequence, prompt and answer.
      repeats: iterations that a figure is the median of.
      chunk_tokens: read prompts in parts, so that an iteration works on so many tokens at most.
      clock: `processor` counts the processor's time of each model alone, as the engine in virtual time does; only where
        the processor computes.
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
    if clock == "wall":
        interrupts.advise("the figures so far stay, and the same command with `--resume` goes on")
    else:
        interrupts.advise("there are no figures yet, and the same command with `--resume` begins again")
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
    task: Annotated[tuple[str, ...], metavar("NAME"), tyro.conf.UseAppendAction] = (),
    examples: Annotated[tuple[Path, ...], metavar("FILE"), tyro.conf.UseAppendAction] = (),
    into: MaybeProfile = None,
    metric: Annotated[tuple[str, ...], metavar("TASK=METRIC"), tyro.conf.UseAppendAction] = (),
    shots: Annotated[int | None, optional("N"), Interval(ge=0, le=2**16)] = None,
    limit: Annotated[int | None, optional("N"), Interval(ge=1, le=2**31 - 1)] = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_batch: Annotated[int, metavar("N"), FEW] = 8,
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
    device: Annotated[str | None, optional("TEXT")] = None,
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
        logs = read_logs(log, part.reading(log), name)
    fitted_profile.check(logs, qualities, base)
    alone = base is None and sum(len(each.models) for each in logs) == 1
    if alone:
        answer.note(
            "One model leaves nothing to route. To route, fit the logs of several together, `besteffort profile fit "
            f"{log[0]} OTHER_LOG`, or put this one into the profile of the others, `--into PROFILE`."
        )
    outcome = fit_logs(logs, out, answer, qualities=qualities, into=base, device=device, max_batch=max_batch)
    for what, file in zip(("profile", "situation", "figures", "picture"), outcome.files, strict=True):
        answer.file(what, file)
    situation = outcome.files[1]
    if not alone:
        answer.note(
            f"Next: set the deadlines in {situation}, then `besteffort quickstart "
            f"{next_quickstart(situation, log, part)} --out first-run`."
        )
    return answer


def fit_logs(
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
