"""Runs the programs of a sweep on a Ray cluster, each as one trial of Ray Tune.

Ray places the programs, and restarts a program on another machine if its machine dies; the program then continues from
its own checkpoint. All machines must share the sweep's directory and have this package installed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from besteffort.errors import InputError
from besteffort.files import write_json
from besteffort.learning.train import Progress
from besteffort.runs.compilation import set_up_compilation
from besteffort.runs.trackers import TrackerName
from besteffort.runs.training import CHECKPOINT
from besteffort.sweep.backends import ProgramProgress, Ray
from besteffort.sweep.program import OUTCOME, read_programs, run_program

_STARTS_ANEW = 5


def run_on_ray(
    out: Path,
    programs: Sequence[str],
    points: int,
    cluster: Ray,
    track: Sequence[TrackerName],
    progress: Callable[[ProgramProgress], None] | None,
) -> dict[str, str]:
    """Runs programs of the sweep in `out` on a cluster; returns the reasons of those that failed, by name.

    Args:
      out: directory of the sweep.
      programs: names of the programs.
      points: log points of the longest program.
      cluster: the cluster and the resources of each program.
      track: trackers that also receive the metrics.
      progress: called with the progress of each program.

    Raises:
      InputError: if no cluster answers.
    """
    if not programs:
        return {}
    out = out.resolve()
    # Tune's own files would only repeat the files of the trials.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=cluster.address, include_dashboard=False, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(
                f"`--address {cluster.address}`: no Ray cluster answers there ({reason}); start one with `ray start`, "
                "or leave the address out to use this machine."
            ) from error
    try:
        settings = {"out": str(out), "directory": str(Path.cwd()), "track": tuple(track), "cpus": cluster.cpus}
        trainable = tune.with_parameters(_train, settings=settings)
        early = cluster.early
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": cluster.cpus, "gpu": cluster.gpus}),
            param_space={"program": tune.grid_search(list(programs))},
            tune_config=tune.TuneConfig(
                metric="best",
                mode="max",
                scheduler=None
                if early is None
                else ASHAScheduler(
                    time_attr="point",
                    max_t=points,
                    grace_period=min(early.grace, points),
                    reduction_factor=early.factor,
                    stop_last_trials=False,
                ),
            ),
            run_config=tune.RunConfig(
                storage_path=str(out / "ray"),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=_STARTS_ANEW),
                callbacks=[_ProgressCallback(progress)] if progress is not None else [],
            ),
        )
        results = tuner.fit()
    finally:
        if ours:
            ray.shutdown()
    trials = read_programs(out)
    failures: dict[str, str] = {}
    for result in results:
        program, said = result.config["program"], result.metrics or {}
        if result.error is not None:
            failures[program] = f"{str(result.error).strip().splitlines()[-1]}, see {result.path}"
        elif "failed" in said:
            failures[program] = said["failed"]
        else:
            _conclude_stopped(out, program, trials[program], said)
    return failures


def _conclude_stopped(out: Path, program: str, trials: Sequence[str], said: Mapping[str, Any]) -> None:
    """Marks the trials that are not finished as stopped."""
    for trial in trials:
        path = out / "trials" / trial / OUTCOME
        if not path.exists():
            reason = f"it lagged behind after {said['point']} of {said['points']} log points"
            write_json(path, {"status": "stopped", "reason": reason})
    (out / "programs" / program / CHECKPOINT).unlink(missing_ok=True)


def _train(config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Runs a program on a machine of the cluster; reports the last point after all files, so that it is not stopped."""
    out, program = Path(settings["out"]), config["program"]
    os.environ.setdefault("NPROC", str(settings["cpus"]))  # JAX has not started yet
    set_up_compilation()
    last: dict[str, Any] = {"point": 0, "points": 0, "reward": 0.0, "best": 0.0}

    def report(latest: Progress) -> None:
        reward = latest.metrics["reward"]
        last.update(point=latest.point, points=latest.points, reward=float(reward.mean()), best=float(reward.max()))
        if latest.point < latest.points:
            tune.report(dict(last))

    try:
        if not (out / "programs.json").exists():
            raise InputError(
                f"{out}: the machine {socket.gethostname()} of the cluster does not see this directory; "
                "name one that all machines share."
            )
        os.chdir(settings["directory"])
        (out / "programs" / program).mkdir(parents=True, exist_ok=True)
        run_program(out, program, track=settings["track"], progress=report)
    except InputError as error:
        last["failed"] = str(error).rstrip(".")  # a restart would fail again
    tune.report(dict(last))


def _ignore(latest: ProgramProgress) -> None:
    del latest


class _ProgressCallback(tune.Callback):
    """Forwards the progress of programs."""

    def __init__(self, progress: Callable[[ProgramProgress], None]) -> None:
        self._progress = progress

    def __deepcopy__(self, memo: dict[int, Any]) -> _ProgressCallback:
        return self

    def __reduce__(self) -> Any:
        """Pickles without the callback: Tune's stored copy reports nothing."""
        return _ProgressCallback, (_ignore,)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any) -> None:
        self._progress(ProgramProgress(trial.config["program"], result["point"], result["points"], result["reward"]))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._progress(ProgramProgress(trial.config["program"], ended=True))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._progress(ProgramProgress(trial.config["program"], ended=True))
