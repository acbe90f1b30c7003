"""The command line: parses, calls, prints. A user's mistake is one sentence on standard error and exit status 2."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from besteffort.errors import InputError

if TYPE_CHECKING:
    from besteffort.learning.train import Progress as News
    from besteffort.runs.training import Course

Traces = Annotated[tuple[Path, ...], tyro.conf.arg(name="trace", metavar="FILE"), tyro.conf.UseAppendAction]

_OUTPUT = Console()
_ERRORS = Console(stderr=True)


def quickstart(
    trace: Traces = (),
    out: Path = Path("first-run"),
    profile: str | None = None,
    config: str = "quickstart",
) -> None:
    """Train a router, compare it with all others on bursty load and on your traces, and draw a picture.

    Args:
      trace: request log to train and judge on, too; may be given several times.
      out: new directory for everything that is written.
      profile: built-in profile or profile file, instead of the configuration's.
      config: configuration to start from: a name or a YAML file.
    """
    from besteffort.runs.directory import create_run_directory
    from besteffort.runs.experiment import load_run
    from besteffort.runs.quickstart import make_plan, quickstart

    plan = make_plan(*load_run(config, profile=profile), trace)
    create_run_directory(out)
    with _bars() as watch:
        outcome = quickstart(plan, out, watch=watch)
    for note in outcome.notes:
        _say(note)
    _OUTPUT.print(outcome.table.terminal())
    profiled = plan.stages[0][1].situation.profile
    _say(f"Profile {profiled.name}: {profiled.provenance.summary}.")
    _say(f"Picture: {outcome.picture}")
    _say(f"Policy: {', '.join(map(str, outcome.policies))}")
    _say(f"Report: {outcome.report}")


def train(
    config: tyro.conf.Positional[str],
    out: Path,
    seeds: int | None = None,
    resume: bool = False,
    start: Annotated[Path | None, tyro.conf.arg(name="from", metavar="POLICY")] = None,
    trace: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """Train routers for a situation and write their policy files.

    Args:
      config: name of a configuration that comes with the package (`paper`), or a YAML file.
      out: new directory for the run: configuration, metrics per seed, checkpoint, policies.
      seeds: how many to train side by side, instead of the configuration's number.
      resume: continue the run in `--out`, which was killed, with the same settings.
      start: policy file to start from, for fine-tuning.
      trace: train for requests like those of the first half of this request log, at the configured loads.
    """
    from besteffort.runs.directory import create_run_directory
    from besteffort.runs.evaluation import read_halves
    from besteffort.runs.experiment import load_run
    from besteffort.runs.training import make_course, run_training

    run, situation = load_run(config)
    changes: dict[str, Any] = {"seeds": seeds, "start": start}
    training = dataclasses.replace(run.training, **{k: v for k, v in changes.items() if v is not None})
    if training.seeds < 1:
        raise InputError(f"`--seeds` is {training.seeds}; give at least 1.")
    lengths = None
    if trace is not None:
        (half,) = read_halves([trace], situation, [run.evaluation.seed])
        lengths = half.first[0]
        _say(str(half.info))
    course = make_course(situation, training, lengths)
    create_run_directory(out, resume=resume)
    with _bars() as watch:
        run_training(run, course, out, progress=watch(out.name, course))
    each = f"; one per seed beside it, {training.seeds} in all" if training.seeds > 1 else ""
    _say(f"Policy: {out / 'policy.safetensors'}{each}")


def evaluate(
    policy: tyro.conf.Positional[Path],
    out: Path,
    config: str = "paper",
    trace: Traces = (),
    loads: tuple[float, ...] | None = None,
) -> None:
    """Judge a policy beside all other routers: on a grid of loads and bursts, or on traces.

    Args:
      policy: policy file.
      out: new directory for tables, figures and the report.
      config: situation to judge in, and how: a name or a YAML file.
      trace: request log to judge on (its second half) in place of synthetic load; may be given several times.
      loads: mean loads, in multiples of the largest model's capacity, instead of the configuration's.
    """
    from besteffort.policy import load_policy
    from besteffort.runs import evaluation
    from besteffort.runs.directory import create_run_directory
    from besteffort.runs.experiment import load_run
    from besteffort.runs.training import check_policy

    run, situation = load_run(config)
    loaded = load_policy(policy)
    check_policy(loaded, situation, policy)
    judging = run.evaluation
    if loads is not None:
        judging = dataclasses.replace(judging, loads=loads, trace_loads=loads)
    halves = evaluation.read_halves(trace, situation, judging.judging_seeds)
    create_run_directory(out)
    for half in halves:
        _say(str(half.info))
    if loaded.profile_digest != situation.profile.digest():
        _say(
            f"The policy was trained on another version of profile {loaded.profile_name}; "
            "the table tells what it is worth on this one."
        )
    with _OUTPUT.status("Judging all routers"):
        table = evaluation.evaluate(loaded, situation, judging, halves, out)
    _OUTPUT.print(table.terminal())
    _say(f"Report: {out / 'report.md'}")


def simulate(
    requests: tyro.conf.Positional[Path],
    router: str,
    out: Path,
    config: str = "paper",
    settings: tuple[str, ...] = (),
    load: float | None = None,
    seed: int = 0,
    backend: Literal["jax", "reference"] = "jax",
) -> None:
    """Play a list of requests with one router and tell what became of each.

    Args:
      requests: a CSV file with the columns arrival_s,task,prompt_tokens,output_tokens, or a trace of a known format.
      router: name of a router (`deadline`, `priced`, ...), of a model (all requests go to it), or a policy file.
      out: new directory for `requests.csv` and `summary.json`.
      config: situation: a name or a YAML file.
      settings: the router's numbers, such as `price=0.1 reserve=0.2`, or `thresholds=8,4`.
      load: mean load to scale the list to, in multiples of the largest model's capacity for it; by default as it is.
      seed: of the router's random choices and of tasks that the file does not name.
      backend: the compiled simulator, or the reference in plain Python (slow; gives the same).
    """
    from besteffort.runs.config import load_situation
    from besteffort.runs.directory import create_run_directory
    from besteffort.runs.playing import play, read_list, router_named, write_result

    listed, situation, info = read_list(requests, load_situation(config), seed=seed, load=load)
    chosen = router_named(router, situation, settings)
    create_run_directory(out)
    result = play(listed, situation, chosen, seed=seed, backend=backend)
    _OUTPUT.print(write_result(result, situation, router, out).terminal())
    _say(str(info))
    _say(f"Per request: {out / 'requests.csv'}")


def policy(action: tyro.conf.Positional[Literal["show"]], file: tyro.conf.Positional[Path]) -> None:
    """Tell what is in a policy file.

    Args:
      action: what to do.
      file: policy file.
    """
    from besteffort.policy import load_policy

    loaded = load_policy(file)
    layers = [kernel.shape[0] for kernel, _ in loaded.weights] + [len(loaded.models)]
    cluster = loaded.cluster
    lines = {
        "models": ", ".join(loaded.models),
        "tasks": ", ".join(loaded.tasks),
        "features": ", ".join(f"{f.name} ({f.size}, {f.transform}, scale {f.scale:g})" for f in loaded.features),
        "network": " x ".join(map(str, layers)),
        "deadlines": "; ".join(
            f"{1000 * d.base_s:g} ms + {1000 * d.per_token_s:g} ms per token" for d in loaded.deadlines
        ),
        "cluster": (
            f"{cluster.replicas} replicas, `max_batch` {cluster.max_batch}, `queue_capacity` {cluster.queue_capacity}"
        ),
        "rate estimate": f"over {loaded.rate_tau_s:g} s",
        "profile": f"{loaded.profile_name} ({loaded.profile_digest})",
        "written by": f"besteffort {loaded.version}",
        **{f"training.{name}": str(value) for name, value in loaded.training.items()},
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        _say(f"{name:<{width}}  {value}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0, 2 for a user's mistake, 130 if interrupted."""
    commands: dict[str, Callable[..., None]] = {
        "quickstart": quickstart,
        "train": train,
        "evaluate": evaluate,
        "simulate": simulate,
        "policy": policy,
    }
    _cache_compilations()
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="besteffort",
            description="Best-effort LLM serving: learn, in simulation, which model shall answer which request.",
            args=arguments,
        )
    except InputError as error:
        print(f"besteffort: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("besteffort: interrupted; what was written stays.", file=sys.stderr)
        return 130
    return 0


def _say(text: str) -> None:
    _OUTPUT.print(text, highlight=False, markup=False, soft_wrap=True)


def _cache_compilations() -> None:
    """Lets JAX, unless it runs already, keep compiled programs between calls in the user's cache."""
    if "jax" in sys.modules:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "besteffort" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


@contextmanager
def _bars() -> Iterator[Callable[[str, Course], Callable[[News], None]]]:
    """Progress bars of trainings: log points, mean reward (over the seeds), decisions per second."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_ERRORS) as progress:

        def watch(name: str, course: Course) -> Callable[[News], None]:
            config = course.training.config
            per_point = config.decisions_per_log_point * course.training.seeds
            task = progress.add_task(f"Training ({name})", total=config.log_points, figures="compiling")
            heard_s: list[float] = []

            def hear(news: News) -> None:
                heard_s.append(time.perf_counter())
                figures = f"mean reward {news.metrics['reward'].mean():.3f}"
                if len(heard_s) > 1:
                    speed = per_point * (len(heard_s) - 1) / (heard_s[-1] - heard_s[0])
                    figures += f", {speed:,.0f} decisions/s"
                progress.update(task, completed=news.point, figures=figures)

            return hear

        yield watch


if __name__ == "__main__":
    sys.exit(main())
