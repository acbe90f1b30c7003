"""Runs jobs where a backend says, those of sweeps and of reproductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from besteffort.device import cores
from besteffort.runs.backends import Backend, Ray
from besteffort.runs.processes import Job, JobProgress, run_jobs


def run_on(
    backend: Backend,
    jobs: Sequence[Job],
    *,
    notes: Path,
    directory: Path | None = None,
    progress: Callable[[JobProgress], None] | None = None,
) -> dict[str, int | None]:
    """Runs jobs on a backend and waits for all of them.

    On a cluster, a job whose machine dies is started again on another one, so jobs have to go on from what they have
    written.

    Args:
      backend: where.
      jobs: what to run; names differ.
      notes: directory in which Ray may note what it needs, of the run's own.
      directory: where the jobs run; by default here.
      progress: called in this thread with each line that a job prints, as it comes, and when a job has ended.

    Returns:
      The exit status of each job by name, as from `run_jobs`; None where early stopping ended it.

    Raises:
      InputError: as `run_jobs`; if no cluster answers, or one of its machines does not see the jobs' directories.
    """
    if isinstance(backend, Ray):
        from besteffort.runs.on_ray import run_jobs_on_ray

        return run_jobs_on_ray(jobs, backend, notes, directory or Path.cwd(), progress)
    workers = min(backend.workers or cores(), max(1, len(jobs)))
    return {**run_jobs(jobs, workers, directory=directory, progress=progress)}
