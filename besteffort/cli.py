"""The command line: parses, calls, prints. A user's mistake is one sentence on standard error and exit status 2."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from besteffort.errors import InputError
from besteffort.runs.compilation import set_up_compilation

if TYPE_CHECKING:
    from besteffort.learning.train import Progress as TrainingProgress
    from besteffort.policy import Policy
    from besteffort.runs.training import TrainingProblem
    from besteffort.sweep.backends import ProgramProgress

Trackers = Annotated[
    tuple[Literal["mlflow", "wandb"], ...], tyro.conf.arg(metavar="TRACKER"), tyro.conf.UseAppendAction
]
Traces = Annotated[tuple[Path, ...], tyro.conf.arg(name="trace", metavar="FILE"), tyro.conf.UseAppendAction]

_OUTPUT = Console()
_ERRORS = Console(stderr=True)


def quickstart(
    trace: Traces = (),
    out: Path = Path("first-run"),
    profile: str | None = None,
    config: str | None = None,
) -> None:
    """Train a router, compare it with all others on bursty load and on your traces, and draw a picture.

    Args:
      trace: request log to train and judge on, too; may be given several times.
      out: new directory for everything that is written.
      profile: built-in profile or profile file, instead of the configuration's.
      config: configuration to start from: a name or a YAML file; by default the one named like the profile, if there
        is one (`laptop`), or else `quickstart`.
    """
    from besteffort.files import create_run_directory
    from besteffort.runs.config import config_names
    from besteffort.runs.experiment import load_run
    from besteffort.runs.quickstart import make_plan, quickstart

    if config is None:
        config = profile if profile in config_names() else "quickstart"
    plan = make_plan(*load_run(config, profile=profile), trace)
    create_run_directory(out)
    with _bars() as progress:
        outcome = quickstart(plan, out, progress=progress)
    for note in outcome.notes:
        _print(note)
    _OUTPUT.print(outcome.brief.terminal())
    profiled = plan.stages[0][1].situation.profile
    _print(f"Profile {profiled.name}: {profiled.provenance.summary}.")
    _print(f"Picture: {outcome.picture}")
    _print(f"Policy: {', '.join(map(str, outcome.policies))}")
    _print(f"Report: {outcome.report}")


def train(
    config: tyro.conf.Positional[str],
    out: Path,
    seeds: int | None = None,
    resume: bool = False,
    start: Annotated[Path | None, tyro.conf.arg(name="from", metavar="POLICY")] = None,
    trace: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    track: Trackers = (),
) -> None:
    """Train routers for a situation and write their policy files.

    Args:
      config: name of a configuration that comes with the package (`paper`), or a YAML file.
      out: new directory for the run: configuration, metrics per seed, checkpoint, policies.
      seeds: how many to train side by side, instead of the configuration's number.
      resume: continue the run in `--out`, which was killed, with the same settings.
      start: policy file to start from, for fine-tuning.
      trace: train for requests like those of the first half of this request log, at the configured loads.
      track: hand the metrics to `mlflow` or `wandb`, too, which their environment variables set up.
    """
    from besteffort.evaluation.judging import read_halves
    from besteffort.files import create_run_directory
    from besteffort.runs.experiment import load_run
    from besteffort.runs.trackers import check_trackers
    from besteffort.runs.training import make_training_problem, run_training

    check_trackers(track)
    run, situation = load_run(config)
    changes: dict[str, Any] = {"seeds": seeds, "start": start}
    training = dataclasses.replace(run.training, **{k: v for k, v in changes.items() if v is not None})
    if training.seeds < 1:
        raise InputError(f"`--seeds` is {training.seeds}; give at least 1.")
    lengths = None
    if trace is not None:
        (half,) = read_halves([trace], situation, [run.evaluation.seed])
        lengths = half.first[0]
        _print(str(half.info))
    problem = make_training_problem(situation, training, lengths)
    create_run_directory(out, resume=resume)
    with _bars() as progress:
        run_training(run, problem, out, progress=progress(out.name, problem), track=track)
    each = f"; one per seed beside it, {training.seeds} in all" if training.seeds > 1 else ""
    _print(f"Policy: {out / 'policy.safetensors'}{each}")


def sweep(
    file: tyro.conf.Positional[str],
    out: Path,
    resume: bool = False,
    workers: int | None = None,
    together: int = 64,
    backend: Literal["local", "ray"] = "local",
    address: str | None = None,
    cpus: int = 1,
    gpus: float = 0.0,
    early_stopping: bool = False,
    track: Trackers = (),
) -> None:
    """Train and judge routers over any fields of a configuration, and tell which of them mattered.

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
    """
    import jax

    from besteffort.sweep.backends import EarlyStopping, Local, Ray
    from besteffort.sweep.plan import load_sweep, make_plan
    from besteffort.sweep.run import run_sweep

    # This process only plans, and leaves an accelerator to the programs.
    jax.config.update("jax_platforms", "cpu")
    if workers is not None and workers < 1:
        raise InputError(f"`--workers` is {workers}; give at least 1.")
    on: Local | Ray = Local(workers)
    if backend == "ray":
        on = Ray(address, cpus, gpus, EarlyStopping() if early_stopping else None)
    elif address is not None or early_stopping or (cpus, gpus) != (1, 0.0):
        raise InputError(
            "`--address`, `--cpus`, `--gpus` and `--early-stopping` are for a cluster; add `--backend ray` or leave "
            "them out."
        )
    plan = make_plan(load_sweep(file), where=file, together=together)
    with _program_bars(len(plan.programs)) as progress:
        board = run_sweep(plan, out, resume=resume, on=on, track=track, progress=progress)
    _OUTPUT.print(board.brief.terminal())
    if board.unfinished:
        _print(f"{len(board.unfinished)} of {len(plan.trials)} trials did not finish; the report says why.")
    _print(f"Picture: {board.picture}")
    _print(f"Report: {board.report}")


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
    from besteffort.evaluation.judging import read_halves
    from besteffort.evaluation.results import evaluate as evaluate_policy
    from besteffort.files import create_run_directory
    from besteffort.policy import load_policy
    from besteffort.runs.experiment import load_run

    run, situation = load_run(config)
    loaded = load_policy(policy, situation)
    judging = run.evaluation
    if loads is not None:
        judging = dataclasses.replace(judging, loads=loads, trace_loads=loads)
    halves = read_halves(trace, situation, judging.judging_seeds)
    create_run_directory(out)
    for half in halves:
        _print(str(half.info))
    if loaded.profile_digest != situation.profile.digest():
        _print(
            f"The policy was trained on another version of profile {loaded.profile_name}; "
            "the table tells what it is worth on this one."
        )
    with _OUTPUT.status("Judging all routers"):
        outcome = evaluate_policy(loaded, situation, judging, halves, out)
    _OUTPUT.print(outcome.brief.terminal())
    _print(f"Report: {out / 'report.md'}")


def diagnose(
    policy: tyro.conf.Positional[Path],
    out: Path,
    config: str = "paper",
    profile: str | None = None,
    trace: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    load: float = 1.0,
) -> None:
    """Find out where a policy breaks: wrong tables, late views, other loads, bursts and tasks than it knows.

    Args:
      policy: policy file.
      out: new directory for the figures and the report.
      config: situation to diagnose it in: a name or a YAML file.
      profile: built-in profile or profile file, instead of the configuration's.
      trace: request log to judge on (its second half) in place of the bursty load.
      load: mean load of the trace, in multiples of the largest model's capacity.
    """
    from besteffort.diagnosis import diagnose
    from besteffort.evaluation.judging import read_halves
    from besteffort.files import create_run_directory
    from besteffort.policy import load_policy
    from besteffort.runs.experiment import load_run

    run, situation = load_run(config, profile=profile)
    loaded = load_policy(policy, situation)
    judging = run.evaluation
    halves = read_halves([] if trace is None else [trace], situation, judging.judging_seeds)
    create_run_directory(out)
    for half in halves:
        _print(str(half.info))
    with _OUTPUT.status("Diagnosing"):
        done = diagnose.diagnose(loaded, situation, judging, out, trace=halves[0] if halves else None, load=load)
    _OUTPUT.print(done.table.terminal())
    for line in done.lines:
        _print(line)
    _print(f"Report: {done.report}")


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
    from besteffort.files import create_run_directory
    from besteffort.runs.config import load_situation
    from besteffort.runs.playing import read_list, router_named, write_result
    from besteffort.simulator.simulate import simulate as simulate_list

    listed, situation, info = read_list(requests, load_situation(config), seed=seed, load=load)
    chosen = router_named(router, situation, settings)
    create_run_directory(out)
    result = simulate_list(listed, situation, chosen, seed=seed, backend=backend)
    _OUTPUT.print(write_result(result, situation, router, out).terminal())
    _print(str(info))
    _print(f"Per request: {out / 'requests.csv'}")


def reproduce() -> None:
    """Run the experiments behind the paper's claims, and set its figures next to ours. Needs a checkout."""


def policy(
    action: tyro.conf.Positional[Literal["show", "export"]],
    file: tyro.conf.Positional[Path],
    onnx: Annotated[Path | None, tyro.conf.arg(metavar="OUT")] = None,
) -> None:
    """Tell what is in a policy file, or export it for other languages.

    Args:
      action: `show`, or `export`.
      file: policy file.
      onnx: new ONNX file to export to.
    """
    from besteffort.policy import load_policy

    loaded = load_policy(file)
    if action == "show":
        if onnx is not None:
            raise InputError("`--onnx` names a file to export to, and `show` writes none; leave it out or `export`.")
        _show(loaded)
        return
    if onnx is None:
        raise InputError("`export` needs to know where to; name a new file, `--onnx OUT.onnx`.")
    from besteffort.adapters.onnx import export_onnx

    export_onnx(loaded, onnx)
    _print(f"ONNX: {onnx}")


def _show(loaded: Policy) -> None:
    """What is in a policy file, a line each."""
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
        _print(f"{name:<{width}}  {value}")


def profile_measure(
    models: tyro.conf.Positional[tuple[str, ...]],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_batch: int = 32,
    context: int = 512,
    repeats: int = 15,
    qualities: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None,
    resume: bool = False,
) -> None:
    """Measure what OPT models cost on this device: decode, prefill, and how they slow each other down.

    Args:
      models: published sizes (`opt-125m`; random weights, which take as long), or directories and names on the Hugging
        Face Hub; from the smallest to the largest.
      out: new profile file; the figures behind it are written beside it as they come.
      dtype: number format of weights and cache.
      max_batch: largest batch of a decode step.
      context: longest sequence, prompt and answer.
      repeats: iterations that a figure is the median of.
      qualities: file or profile that says what the models give on tasks; by default what is published of OPT.
      resume: go on with a measurement that was stopped, with the same settings.
    """
    from besteffort.device import device_name
    from besteffort.profiling.measure import MeasurementPlan, figures_file, measure_profile, read_qualities, tables

    plan = MeasurementPlan(models, dtype, max_batch, context, repeats)
    known = read_qualities(plan.names, qualities)
    if out.exists():
        raise InputError(f"{out}: the file exists; name another one or remove it first.")
    _print(f"Device: {device_name()}")
    with _OUTPUT.status("Measuring") as status:
        report = measure_profile(
            plan,
            known,
            out,
            resume=resume,
            progress=lambda what, done, total: status.update(f"{what} ({done} of {total})"),
        )
    for table in tables(report):
        _OUTPUT.print(table.terminal())
    for remark in report.remarks:
        _print(remark)
    _print(f"Profile: {out}")
    _print(f"Figures: {figures_file(out)}")


def profile_quality(
    models: tyro.conf.Positional[tuple[str, ...]],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    task: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME"), tyro.conf.UseAppendAction] = (),
    examples: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE"), tyro.conf.UseAppendAction] = (),
    into: Annotated[str | None, tyro.conf.arg(metavar="PROFILE")] = None,
    metric: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TASK=METRIC"), tyro.conf.UseAppendAction] = (),
    shots: int | None = None,
    limit: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_batch: int = 8,
) -> None:
    """Measure what OPT models give on tasks, with lm-evaluation-harness: accuracy, likelihoods, ROUGE, BLEU.

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
    """
    from besteffort.files import write_json
    from besteffort.profile import load_profile, save_profile
    from besteffort.profiling import quality

    if out.exists() and (into is None or str(out) != into):
        raise InputError(f"{out}: the file exists; name another one or remove it first.")
    own = tuple(quality.read_examples(file) for file in examples)
    plan = quality.QualityPlan(models, task, own, quality.parse_metrics(metric), shots, limit, dtype, max_batch)
    base = None if into is None else load_profile(into)
    if base is not None:
        quality.check_merge(base, plan)
    figures = out.with_name(f"{out.stem}.quality.jsonl")
    if figures.exists():
        raise InputError(f"{figures}: there are figures already; remove the file or name another one.")
    with _ERRORS.status("Measuring") as status:
        found = quality.measure_qualities(
            plan, figures, progress=lambda what, done, total: status.update(f"{what} ({done} of {total})")
        )
    measured = quality.qualities(plan, found)
    if base is None:
        write_json(out, dataclasses.asdict(measured))
    else:
        save_profile(quality.merged(base, measured), out)
    _OUTPUT.print(quality.table(found).terminal())
    _print(f"{'Qualities' if base is None else 'Profile'}: {out}")
    _print(f"Figures: {figures}")


def profile_fit(
    log: tyro.conf.Positional[Path],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    quality: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TASK=PERCENT"), tyro.conf.UseAppendAction] = (),
    into: Annotated[str | None, tyro.conf.arg(metavar="PROFILE")] = None,
    name: str | None = None,
    device: str | None = None,
    max_batch: int | None = None,
) -> None:
    """Find what a server's models cost from its request log, and how far that can be trusted.

    Args:
      log: request log: CSV or JSON lines, plain or `.gz`; columns as in `besteffort.profiling.log`.
      out: new profile file; a situation, the figures and a picture are written beside it.
      quality: percent that the model reaches on a task, `piqa=71.7`, or `piqa=small:63,large:71.7` for several models;
        may be given several times.
      into: profile to put the costs into, built-in or a file; what it says of quality stays.
      name: the model's name, where the log has no column `model`; by default the log's.
      device: what the server runs on, for the record.
      max_batch: the server's largest batch (vLLM: `--max-num-seqs`), where it is known.
    """
    from besteffort.profile import load_profile
    from besteffort.profiling import fitted_profile
    from besteffort.profiling.log import read_log

    if out.exists() and (into is None or str(out) != into):
        raise InputError(f"{out}: the file exists; name another one or remove it first.")
    qualities = fitted_profile.parse_qualities(quality)
    base = None if into is None else load_profile(into)
    requests = read_log(log)
    fitted_profile.check(requests, qualities, base, name)
    with _OUTPUT.status("Fitting") as status:
        models = fitted_profile.fit_log(
            requests,
            name=name,
            max_batch=max_batch,
            share=None if base is None else fitted_profile.share_of_others(base, requests, name),
            progress=lambda doing, misfit: status.update(f"Fitting {doing}; misfit {misfit:.3f}"),
        )
    made = fitted_profile.make_profile(models, name=out.stem, qualities=qualities, into=base, device=device)
    outcome = fitted_profile.write_outcome(models, made, out)
    _OUTPUT.print(outcome.table.terminal())
    for note in outcome.notes:
        _print(note)
    for what, file in zip(("Profile", "Situation", "Figures", "Picture"), outcome.files, strict=True):
        _print(f"{what}: {file}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0, 2 for a user's mistake, 130 if interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "jax" not in sys.modules:
        set_up_compilation()
    try:
        commands: dict[str, Callable[..., None]] = {
            "quickstart": quickstart,
            "train": train,
            "sweep": sweep,
            "evaluate": evaluate,
            "diagnose": diagnose,
            "simulate": simulate,
            "reproduce": _reproduce_command() if given[:1] == ["reproduce"] else reproduce,
            "policy": policy,
            "profile": _group(
                "What models cost and give: measured here, or from a server's request log.",
                {"measure": profile_measure, "quality": profile_quality, "fit": profile_fit},
            ),
        }
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


def _group(description: str, commands: dict[str, Callable[..., None]]) -> Callable[..., None]:
    """A command that does nothing but hold others."""
    options = [Annotated[Any, tyro.conf.subcommand(name=name, constructor=call)] for name, call in commands.items()]
    one_of: Any = Union.__getitem__((*options, Annotated[None, tyro.conf.Suppress]))  # tyro needs two or more

    def group(command: Any) -> None:
        """Whatever it does is done by the command."""

    group.__doc__ = description
    group.__annotations__["command"] = Annotated[one_of, tyro.conf.arg(name="")]
    return group


def _reproduce_command() -> Callable[..., None]:
    """The command of the checkout's `experiments`, which is loaded only where it is asked for."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "experiments" / "__main__.py").is_file():
        raise InputError(
            "`reproduce` runs the files under `experiments/`, which only a checkout has; clone the repository and "
            "install from there with `python -m pip install --no-deps -e .`."
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    command: Callable[..., None] = importlib.import_module("experiments.__main__").run_command
    return command


def _print(text: str) -> None:
    _OUTPUT.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _program_bars(programs: int) -> Iterator[Callable[[ProgramProgress], None]]:
    """Progress bars of a sweep: one for all programs, and one for each that runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_ERRORS) as bars:
        total = bars.add_task("Programs", total=programs, figures="")
        running: dict[str, Any] = {}

        def report(latest: ProgramProgress) -> None:
            if latest.ended:
                bars.update(total, advance=1)
                if latest.program in running:
                    bars.remove_task(running.pop(latest.program))
                return
            if latest.program not in running:
                running[latest.program] = bars.add_task(f"Program {latest.program}", figures="")
            figures = f"mean reward {latest.reward:.3f}"
            bars.update(running[latest.program], completed=latest.point, total=latest.points, figures=figures)

        yield report


@contextmanager
def _bars() -> Iterator[Callable[[str, TrainingProblem], Callable[[TrainingProgress], None]]]:
    """Progress bars of trainings: log points, mean reward (over the seeds), decisions per second."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_ERRORS) as bars:

        def start(name: str, problem: TrainingProblem) -> Callable[[TrainingProgress], None]:
            config = problem.training.config
            per_point = config.decisions_per_log_point * config.ensemble_size * problem.training.seeds
            task = bars.add_task(f"Training ({name})", total=config.log_points, figures="compiling")
            reported_s: list[float] = []

            def report(latest: TrainingProgress) -> None:
                reported_s.append(time.perf_counter())
                figures = f"mean reward {latest.metrics['reward'].mean():.3f}"
                if len(reported_s) > 1:
                    speed = per_point * (len(reported_s) - 1) / (reported_s[-1] - reported_s[0])
                    figures += f", {speed:,.0f} decisions/s"
                bars.update(task, completed=latest.point, figures=figures)

            return report

        yield start


if __name__ == "__main__":
    sys.exit(main())
