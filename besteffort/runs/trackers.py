"""Where the metrics of a training go: to files of its run directory always, and to trackers that somebody asks for.

| where | what |
|---|---|
| `metrics.jsonl` | a line per log point and seed, as they came |
| `metrics.csv` | the same as a table |
| `tensorboard/seed-<seed>/` | the same as TensorBoard's event files, one for each time that the training was started |
| MLflow, Weights & Biases | the same and the configuration; one run per seed, which goes on where a training does |

Which server a tracker talks to, and under which project, its own environment variables say (`MLFLOW_TRACKING_URI`,
`MLFLOW_EXPERIMENT_NAME`, `WANDB_MODE`, `WANDB_PROJECT`).
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from besteffort.errors import InputError
from besteffort.files import (
    append_jsonl,
    append_line,
    os_errors_as_input_errors,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)

TrackerName = Literal["mlflow", "wandb"]

_PROJECT = "besteffort"
_EVERYWHERE = "reward"  # a metric that every point has


class Tracker(Protocol):
    """Takes the points of several seeds, each once.

    Attributes:
      last: by seed the decisions of the last point that it has; 0 if it has none.
    """

    last: dict[int, int]

    def log(self, seed: int, decisions: int, values: Mapping[str, float]) -> None:
        """A point of one seed: a value by name, after so many decisions."""
        ...

    def close(self) -> None:
        """No more points come."""
        ...


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Checks that trackers are installed.

    Raises:
      InputError: naming the one that is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"`--track {name}`: {name} is not installed; `pip install {name}`, or leave it out.")


class MetricsLog:
    """The files of the module's table, and trackers, for one run directory; a context manager.

    Points that the files hold from the first added point on were left behind by a killed run, and are replaced; those
    of an earlier event file stay there, but TensorBoard ignores them. Trackers receive the points of the files that
    they do not have. One that fails later on is dropped with a warning; training continues.

    Args:
      out: the run directory.
      seeds: of the runs that are recorded here.
      models: their names, for the shares of the decisions.
      about: the configuration by field, for trackers.
      track: which trackers.

    Raises:
      InputError: if a tracker is not installed or does not start.
    """

    def __init__(
        self,
        out: Path,
        seeds: Sequence[int],
        models: Sequence[str],
        about: Mapping[str, Any],
        track: Sequence[TrackerName] = (),
    ) -> None:
        check_trackers(track)
        self._out, self._models = out, models
        self._lines, self._table = out / "metrics.jsonl", out / "metrics.csv"
        self._events: dict[int, _EventFile] = {}
        self._trackers: dict[str, Tracker] = {}
        known: dict[TrackerName, Callable[..., Tracker]] = {"mlflow": _MLflow, "wandb": _WeightsAndBiases}
        for name in track:
            try:
                self._trackers[name] = known[name](out, seeds, about)
            except Exception as error:
                raise InputError(
                    f"`--track {name}`: it does not start ({_brief(error)}); mend that or leave it out."
                ) from error
        for record in self._recorded():
            self._tell(record["seed"], record["decisions"], self._values(record))

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for events in self._events.values():
            events.close()
        for name, tracker in list(self._trackers.items()):
            with self._giving_up(name):
                tracker.close()

    def add(self, seed: int, metrics: Mapping[str, Any]) -> None:
        """One point of one seed: `decisions` so far, and numbers by name, of which `actions` are one per model.

        Raises:
          InputError: if a file cannot be written.
        """
        decisions, values = metrics["decisions"], self._values(metrics)
        if not self._events:
            kept = [record for record in self._recorded() if record["decisions"] < decisions]
            write_jsonl(self._lines, kept)
            rows = ([record["decisions"], record["seed"], *self._values(record).values()] for record in kept)
            write_text(self._table, "".join(map(_row, (["decisions", "seed", *values], *rows))))
        append_jsonl(self._lines, {"seed": seed, **metrics})
        append_line(self._table, _row([decisions, seed, *values.values()]))
        if seed not in self._events:
            self._events[seed] = _EventFile(self._out / "tensorboard" / f"seed-{seed}", decisions)
        self._events[seed].add(decisions, values)
        self._tell(seed, decisions, values)

    def _recorded(self) -> list[dict[str, Any]]:
        """The points that the files hold.

        Raises:
          InputError: if a line is not a point.
        """
        records = read_jsonl(self._lines)
        for number, record in enumerate(records, start=1):
            values = [value for name, value in record.items() if name != "actions"]
            shares = record.get("actions", [])
            whole = all(type(record.get(name)) is int for name in ("seed", "decisions"))
            if not (
                whole
                and all(isinstance(value, int | float) for value in values)
                and isinstance(shares, list)
                and len(shares) in (0, len(self._models))
            ):
                raise InputError(
                    f"{self._lines}, line {number}: the line is no point of this training; mend or remove it."
                )
        return records

    def _tell(self, seed: int, decisions: int, values: Mapping[str, float]) -> None:
        for name, tracker in list(self._trackers.items()):
            if decisions > tracker.last[seed]:
                with self._giving_up(name):
                    tracker.log(seed, decisions, values)
                    tracker.last[seed] = decisions

    def _values(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The numbers by name."""
        values = {name: value for name, value in metrics.items() if name not in ("seed", "decisions", "actions")}
        shares = zip(self._models, metrics.get("actions", ()), strict="actions" in metrics)
        return values | {f"actions/{model}": share for model, share in shares}

    @contextlib.contextmanager
    def _giving_up(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            del self._trackers[name]
            warnings.warn(f"{name} failed ({_brief(error)}) and receives no more points of {self._out}.", stacklevel=3)


class _EventFile:
    """A new event file of TensorBoard's; what earlier ones of its directory hold from `step` on counts no more.

    tensorboardX's `SummaryWriter` leaves the writing to a thread, where a kill loses points and a full disk raises
    nothing, so this writes records itself.

    Raises:
      InputError: if it cannot be created.
    """

    def __init__(self, directory: Path, step: int) -> None:
        # Imported here, since tensorboardX imports PyTorch where it is installed, which takes seconds.
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        # TensorBoard reads the files of a directory in the order of their names.
        self._path = directory / f"events.out.tfevents.{time.time_ns()}"
        with os_errors_as_input_errors(self._path):
            directory.mkdir(parents=True, exist_ok=True)
            # Absolute, since a path that begins with `s3:` or `gs:` is a bucket to tensorboardX.
            self._writer = RecordWriter(str(self._path.absolute()))
        self._write(file_version="brain.Event:2")
        # At each start but the first that it meets, TensorBoard drops what it has from this step on.
        self._write(step=step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one value per tag; a kill does not lose them any more.

        Raises:
          InputError: if the disk is full.
        """
        scalars = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        with os_errors_as_input_errors(self._path):
            self._write(step=step, summary=self._summary(value=scalars))
            self._writer.flush()

    def close(self) -> None:
        # What cannot be written `add` has reported.
        with contextlib.suppress(OSError):
            self._writer.close()

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())


class _MLflow:
    def __init__(self, out: Path, seeds: Sequence[int], about: Mapping[str, Any]) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        self._client, self._metric = mlflow.MlflowClient(), Metric
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self._client.get_experiment_by_name(project)
        experiment = known.experiment_id if known else self._client.create_experiment(project)

        def begin(seed: int) -> str:
            run = self._client.create_run(experiment, run_name=_run_name(out, seed)).info.run_id
            params = [Param(name, str(value)) for name, value in {**about, "seed": seed}.items()]
            self._client.log_batch(run, params=params)
            return str(run)

        self._runs = _identities(out, "mlflow", seeds, begin)
        self.last = dict.fromkeys(seeds, 0)
        for seed, run in self._runs.items():
            self._client.update_run(run, status="RUNNING")
            self.last[seed] = max((m.step for m in self._client.get_metric_history(run, _EVERYWHERE)), default=0)

    def log(self, seed: int, decisions: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, decisions) for name, value in values.items()]
        self._client.log_batch(self._runs[seed], metrics=metrics)

    def close(self) -> None:
        for run in self._runs.values():
            self._client.set_terminated(run)


class _WeightsAndBiases:
    def __init__(self, out: Path, seeds: Sequence[int], about: Mapping[str, Any]) -> None:
        import wandb

        identities = _identities(out, "wandb", seeds, lambda _: uuid.uuid4().hex[:16])
        # A killed run leaves little of what it wrote for later; all of it is logged again.
        for identity in identities.values():
            for left in (out / "wandb").glob(f"offline-run-*-{identity}"):
                shutil.rmtree(left)
        self._runs = {
            seed: wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                id=identity,
                name=_run_name(out, seed),
                group=out.resolve().name,
                dir=out,
                config={**about, "seed": seed},
                resume="allow",
                reinit="create_new",
            )
            for seed, identity in identities.items()
        }
        self.last = {seed: run.step - 1 for seed, run in self._runs.items()}

    def log(self, seed: int, decisions: int, values: Mapping[str, float]) -> None:
        self._runs[seed].log(dict(values), step=decisions)

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()


def flat(data: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    return {
        name: value
        for key, inner in data.items()
        for name, value in (
            flat(inner, f"{before}{key}.") if isinstance(inner, Mapping) else {f"{before}{key}": inner}
        ).items()
    }


def _identities(out: Path, tracker: str, seeds: Sequence[int], begin: Callable[[int], str]) -> dict[int, str]:
    """A tracker's own name for each seed's run, kept in the run directory so that a resumed one is found again."""
    path = out / "trackers.json"
    known: Any = read_json(path) if path.exists() else {}
    if not isinstance(known, dict) or not all(isinstance(each, dict) for each in known.values()):
        raise InputError(f"{path}: it holds no runs of trackers by seed; remove it, and new ones begin.")
    mine = known.setdefault(tracker, {})
    for seed in seeds:
        if str(seed) not in mine:
            mine[str(seed)] = begin(seed)
            write_json(path, known)
    return {seed: str(mine[str(seed)]) for seed in seeds}


def _run_name(out: Path, seed: int) -> str:
    return f"{'/'.join(out.resolve().parts[-2:])}, seed {seed}"


def _row(cells: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
