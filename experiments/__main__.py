"""Reproducing: the experiments of a checkout, side by side, and the page that sets the paper's figures next to ours."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from besteffort import interrupts
from besteffort.console import show
from besteffort.errors import InputError
from besteffort.evaluation.report import Column, Table
from besteffort.files import keep_out_others, os_errors_as_input_errors, read_json, write_text
from besteffort.runs.backends import Backend, BackendName, Local, backend_of
from besteffort.runs.jobs import run_on
from besteffort.runs.processes import Job, JobProgress
from besteffort.simulator.environment import ServingEnvironment
from besteffort.validation import did_you_mean
from besteffort.version import __version__
from experiments.lab import FAST, FULL, Claim, Scale, check_replaced, exiting, is_indication

_HERE = Local()

CHECKOUT = Path(__file__).resolve().parent.parent

EXPERIMENTS = (
    "stable_load",
    "unpredictable_load",
    "near_peak",
    "hardware_utility",
    "task_mix_shift",
    "arrival_shift",
    "soft_deadlines",
    "task_deadlines",
    "cheap_router",
    "more_models",
    "paper_recipe",
    "optimal",
    "where_it_pays",
    "rivals",
    "methods",
    "mixed_hardware",
    "any_profile",
    "estimate_quality",
    "ablations",
    "estimate_ablations",
    "robustness",
    "wrong_beliefs",
)
"""Experiments in the order of the page: the paper's claims, then what goes beyond it."""

# Long ones first, so that processes end together, and first of all those that share no training with the others.
_LONG = (
    *(
        "methods",
        "estimate_ablations",
        "any_profile",
        "mixed_hardware",
        "near_peak",
        "where_it_pays",
        "rivals",
        "more_models",
        "task_deadlines",
        "ablations",
        "paper_recipe",
        "wrong_beliefs",
    ),
    "cheap_router",
    *("arrival_shift", "optimal", "stable_load"),
)


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """What came of it.

    Attributes:
      table: the claims, the paper's figures and ours.
      page: the file that shows the same, with all figures.
      failed: experiments that ended with an error, each with its log.
    """

    table: Table
    page: Path
    failed: dict[str, Path]


def plan(names: Sequence[str]) -> tuple[str, ...]:
    """The experiments to run: those named, or all.

    Raises:
      InputError: on an unknown name.
    """
    for name in names:
        if name not in EXPERIMENTS:
            raise InputError(
                f"There is no experiment `{name}`{did_you_mean(name, EXPERIMENTS)}; "
                f"choose from {', '.join(EXPERIMENTS)}."
            )
    return tuple(name for name in EXPERIMENTS if not names or name in names)


def reproduce(
    names: Sequence[str],
    out: Path,
    *,
    fast: bool,
    data: Path | None = None,
    on: Backend = _HERE,
    progress: Callable[[JobProgress], None] | None = None,
) -> Reproduction:
    """Runs experiments that have no result of this scale in `out` yet, and writes `out/claims.md`.

    Args:
      names: experiments, as from `plan`.
      out: directory for results; trainings are kept under `out/work`.
      fast: fewer seeds and decisions, for an indication.
      data: directory with the public traces.
      on: where they run; on a cluster, `out` and the checkout have to be in directories that all machines share.
      progress: called with each line that an experiment prints, and when it has ended.

    Raises:
      InputError: if `data` is no directory, an indication would replace a result of the full scale, nothing can be
        written, or as `run_on`.
    """
    if data is not None and not data.is_dir():
        raise InputError(f"{data}: there is no such directory; give `--data` the one with the traces.")
    scale = FAST if fast else FULL
    logs = out / "work" / "logs"
    with os_errors_as_input_errors(logs):
        logs.mkdir(parents=True, exist_ok=True)
    keep_out_others(out)
    interrupts.advise(f"what was written stays in {out}, and the same command goes on from there")
    command = [
        sys.executable,
        "-m",
        "experiments.{}",
        "--out",
        str(out.resolve()),
        "--work",
        str((out / "work").resolve()),
    ]
    command += ["--fast"] * fast + (["--data", str(data.resolve())] if data is not None else [])
    order = sorted(names, key=lambda name: _LONG.index(name) if name in _LONG else len(_LONG))
    jobs = [
        Job(name, tuple(part.format(name) for part in command), logs / f"{name}.log")
        for name in order
        if not _done(out / f"{name}.json", scale, data is not None)
    ]
    for job in jobs:
        check_replaced(out / f"{job.name}.json", scale)
    statuses = run_on(on, jobs, notes=out / "work" / "ray", directory=CHECKOUT, progress=progress)
    table = claims_table([name for name in EXPERIMENTS if (out / f"{name}.json").is_file()], out)
    page = out / "claims.md"
    write_text(page, claims_page(table, out))
    return Reproduction(table, page, {job.name: job.log for job in jobs if statuses[job.name]})


def claims_table(names: Sequence[str], out: Path) -> Table:
    """The claims of experiments whose results are in `out`."""
    rows = []
    indicative = False
    for name in names:
        record = read_json(out / f"{name}.json")
        try:
            indication = is_indication(record["scale"])
            claims = [Claim(**entry) for entry in record["claims"]]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{out / f'{name}.json'}: it is no result of an experiment; remove it, and the experiment runs again."
            ) from error
        indicative |= indication
        for claim in claims:
            status = f"{claim.status} (indicative)" if indication else claim.status
            cells = (claim.paper, claim.ours, claim.static, claim.heuristic, claim.bound)
            rows.append((claim.claim, (*cells, "" if claim.status == "no claim" else status)))
    headings = ("Paper", "Ours", "Best static", "Best heuristic", "Bound", "Verdict")
    fast = " Fewer seeds, decisions and requests than in full: an indication only." if indicative else ""
    return Table(
        title="The paper's claims, and what goes beyond them",
        head="Claim",
        columns=tuple(Column(heading, "text", brief=True) for heading in headings),
        rows=tuple(rows),
        note="Mean ± half the 95% interval over policies and lists. The best static model and the best heuristic are "
        f"the best in hindsight on the same requests; heuristics are tuned on others.{fast}",
    )


def claims_page(table: Table, out: Path) -> str:
    """The text of `claims.md`: the claims, and the pictures of the experiments whose results are in `out`."""
    return table.markdown() + "\n" + _pictures(out)


def _pictures(out: Path) -> str:
    """Every experiment's figures below its name."""
    parts = []
    for name in EXPERIMENTS:
        figures = sorted(path.name for path in out.glob(f"{name}*.png"))
        if figures:
            heading = name.replace("_", " ").capitalize()
            links = "\n\n".join(f"![{heading}]({figure})" for figure in figures)
            parts.append(
                f"## {heading}\n\n`python -m experiments.{name}`, figures in [{name}.json]({name}.json)\n\n{links}\n"
            )
    return "\n".join(parts)


def _done(path: Path, scale: Scale, traces: bool) -> bool:
    """Whether an experiment's result is there, of this version and scale; one with traces serves without them, too."""
    try:
        record = read_json(path)
    except InputError:
        return False
    if not isinstance(record, dict):
        return False
    known = (record.get("version"), record.get("environment"), record.get("scale"))
    wanted = (__version__, ServingEnvironment.version, dataclasses.asdict(scale))
    return known == wanted and (record.get("traces") or not traces)


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m experiments") -> None:
    """Runs the command line.

    Raises:
      SystemExit: with status 2 on a user's mistake, or if an experiment fails.
    """
    with exiting(prog):
        tyro.cli(run_command, args=arguments, prog=prog)


def _without_default(metavar: str) -> Any:
    """An argument whose help says what holds without it."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def run_command(
    names: tyro.conf.Positional[Annotated[tuple[str, ...], _without_default("[EXPERIMENT ...]")]] = (),
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("reproduced"),
    fast: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False,
    data: Annotated[Path | None, _without_default("DIR")] = None,
    workers: Annotated[int | None, _without_default("N")] = None,
    backend: Annotated[BackendName, tyro.conf.arg(help_behavior_hint="")] = "local",
    address: Annotated[str | None, _without_default("ADDRESS")] = None,
    cpus: Annotated[int, tyro.conf.arg(metavar="N")] = 1,
    gpus: Annotated[float, tyro.conf.arg(metavar="X")] = 0.0,
) -> None:
    """Run the experiments behind the paper's claims, and set its figures next to ours.

    Args:
      names: experiments (`stable_load`, ...); all by default. Those that are done already are not repeated.
      out: directory for results and trainings; an interrupted reproduction goes on there.
      fast: fewer seeds, decisions and requests: an indication in minutes instead of hours.
      data: directory with public traces; without it what needs them is left out.
      workers: local processes at a time, instead of one per core.
      backend: local processes, or a Ray cluster whose machines share `--out` and the checkout.
      address: of the Ray cluster (`auto`, `host:6379`, `ray://...`); without it one is started on this machine.
      cpus: cores of each experiment on a Ray cluster.
      gpus: GPUs of each experiment on a Ray cluster, or a share of one.
    """
    chosen = plan(names)
    on = backend_of(backend, workers=workers, address=address, cpus=cpus, gpus=gpus)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        total = bar.add_task("Experiments", total=len(chosen))

        def report(one: JobProgress) -> None:
            if one.line is None:
                bar.update(total, advance=1)
            else:
                bar.console.print(one.line, highlight=False, markup=False, soft_wrap=True)

        outcome = reproduce(chosen, out, fast=fast, data=data, on=on, progress=report)
        bar.update(total, completed=len(chosen) - len(outcome.failed))
    show(outcome.table)
    print(f"Page: {outcome.page}")
    if outcome.failed:
        failed = ", ".join(f"{name} ({log})" for name, log in outcome.failed.items())
        raise InputError(f"These experiments failed, see their logs: {failed}; run the same command to try them again.")


if __name__ == "__main__":
    main()
