"""Runs jobs on a Ray cluster, each as one trial of Ray Tune.

Ray places the jobs, and starts a job again on another machine if its machine dies; the job then continues from what it
has written. All machines must share the run's directory and have this package installed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from besteffort.errors import InputError
from besteffort.runs.backends import EarlyStopping, Ray
from besteffort.runs.processes import Job, JobProgress, check_jobs, run_jobs

_STARTS_ANEW = 5
_CONNECT_S = 10.0
_ENDED = "status"


def run_jobs_on_ray(
    jobs: Sequence[Job],
    cluster: Ray,
    notes: Path,
    directory: Path,
    progress: Callable[[JobProgress], None] | None,
) -> dict[str, int | None]:
    """Runs jobs on a cluster; arguments, returns and errors as of `besteffort.runs.jobs.run_on`.

    A job that has lost its machine too often has status 1, and its log says why.
    """
    check_jobs(jobs)
    if not jobs:
        return {}
    # Tune's own files would only repeat the logs of the jobs.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    ours = not ray.is_initialized()
    if ours:
        try:
            _look(cluster.address)
            ray.init(address=cluster.address, include_dashboard=False, log_to_driver=False, logging_level="error")
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(
                f"`--address {cluster.address}`: no Ray cluster answers there ({reason}); start one with `ray start`, "
                "or leave the address out to use this machine."
            ) from error
    named = {job.name: dataclasses.replace(job, log=job.log.resolve()) for job in jobs}
    settings = {
        "jobs": named,
        "python": sys.executable,
        "directory": directory.resolve(),
        "cpus": cluster.cpus,
        "gpus": cluster.gpus,
    }
    early = cluster.early
    try:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_run, settings=settings), {"cpu": cluster.cpus, "gpu": cluster.gpus}
            ),
            param_space={"job": tune.grid_search(list(named))},
            tune_config=tune.TuneConfig() if early is None else _stopping_early(early),
            run_config=tune.RunConfig(
                storage_path=str(notes.resolve()),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=_STARTS_ANEW),
                callbacks=[] if progress is None else [_ProgressCallback(named, progress)],
            ),
        )
        results = tuner.fit()
    finally:
        if ours:
            ray.shutdown()
    statuses: dict[str, int | None] = {}
    for result in results:
        job, said = named[result.config["job"]], result.metrics or {}
        if "refused" in said:
            raise InputError(said["refused"])
        statuses[job.name] = said.get(_ENDED)
        if result.error is not None:
            statuses[job.name] = 1
            with job.log.open("a", encoding="utf-8") as log:
                log.write(f"\n{str(result.error).strip().splitlines()[-1]}\n")
    return {name: statuses[name] for name in named}


def _look(address: str | None) -> None:
    """Raises `OSError` where nothing listens at `host:port`, for which Ray would wait minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()


def _stopping_early(early: EarlyStopping) -> Any:
    scheduler = ASHAScheduler(
        time_attr="point",
        max_t=early.points,
        grace_period=min(early.grace, early.points),
        reduction_factor=early.factor,
        stop_last_trials=False,
    )
    return tune.TuneConfig(metric="best", mode="max", scheduler=scheduler)


def _run(config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Runs a job on a machine of the cluster, in a process of its own, and reports each line that it prints."""
    job: Job = settings["jobs"][config["job"]]
    os.environ.setdefault("NPROC", str(settings["cpus"]))
    if 0 < settings["gpus"] < 1:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    far: dict[str, Any] = {"point": 0, "points": 0, "best": 0.0}

    def report(one: JobProgress) -> None:
        if one.line is None:
            return
        said = _numbers(one.line)
        # The last point counts with the job's end, so that nothing is stopped that only has to be written.
        if said.get("point", 0) < said.get("points", 0):
            far.update(said)
        tune.report({**far, "line": one.line})

    for place in (job.log.parent, settings["directory"]):
        if not place.is_dir():
            tune.report(
                {
                    **far,
                    "refused": f"{place}: the machine {socket.gethostname()} of the cluster does not see this "
                    "directory; name one that all machines share.",
                }
            )
            return
    program, *arguments = job.command
    here = sys.executable if program == settings["python"] else program
    one = dataclasses.replace(job, command=(here, *arguments))
    statuses = run_jobs([one], 1, directory=settings["directory"], progress=report)
    tune.report({**far, _ENDED: statuses[job.name]})


def _numbers(line: str) -> dict[str, Any]:
    """The figures of a line that says how far a job is; none of any other line."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) and {"point", "points", "best"} <= said.keys() else {}


def _ignore(latest: JobProgress) -> None:
    del latest


class _ProgressCallback(tune.Callback):
    """Forwards what jobs print, and that they have ended."""

    def __init__(self, jobs: Mapping[str, Job], progress: Callable[[JobProgress], None]) -> None:
        self._jobs, self._progress = jobs, progress

    def __deepcopy__(self, memo: dict[int, Any]) -> _ProgressCallback:
        return self

    def __reduce__(self) -> Any:
        """Pickles without the callback: Tune's stored copy reports nothing."""
        return _ProgressCallback, (self._jobs, _ignore)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any) -> None:
        if "line" in result:
            self._progress(JobProgress(self._jobs[trial.config["job"]], line=result["line"]))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        status = (trial.last_result or {}).get(_ENDED)
        self._progress(JobProgress(self._jobs[trial.config["job"]], status=status))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._progress(JobProgress(self._jobs[trial.config["job"]], status=1))
