from __future__ import annotations

import csv
import importlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

import besteffort
from besteffort.cli import main
from besteffort.errors import InputError
from besteffort.files import read_jsonl
from besteffort.runs.trackers import MetricsLog

MODELS = ("small", "large")


def point(decisions: int, reward: float = 0.5) -> dict[str, Any]:
    return {"decisions": decisions, "reward": reward, "loss": 1.0, "actions": [0.25, 0.75]}


def log(out: Path, track: tuple[Any, ...] = ()) -> MetricsLog:
    return MetricsLog(out, (0, 1), MODELS, {"training.hyper.discount": 0.9}, track)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def shown(directory: Path) -> list[tuple[int, dict[str, Any]]]:
    """Steps and values that TensorBoard shows of the event files of one seed.

    It reads each to the first record that is cut short or damaged. Where it meets another start, it drops what it has
    from the start's step on.
    """
    points: list[tuple[int, dict[str, Any]]] = []
    for number, path in enumerate(sorted(directory.iterdir())):
        data, events = path.read_bytes(), []
        while len(data) > 12:
            (length,) = struct.unpack("<Q", data[:8])
            assert data[8:12] == struct.pack("<I", masked_crc32c(data[:8]))
            record, data = data[12 : 12 + length], data[12 + length :]
            if data[:4] != struct.pack("<I", masked_crc32c(record)):
                break
            data = data[4:]
            events.append(Event.FromString(record))
            assert abs(events[-1].wall_time - time.time()) < 3600
        version, start, *scalars = events
        assert version.file_version == "brain.Event:2"
        assert start.session_log.status == SessionLog.START
        if number:
            points = [point for point in points if point[0] < start.step]
        points += [(e.step, {v.tag: pytest.approx(v.simple_value) for v in e.summary.value}) for e in scalars]
    return points


def test_table_has_what_the_lines_have(tmp_path: Path) -> None:
    with log(tmp_path) as to:
        for decisions in (100, 200):
            for seed in (0, 1):
                to.add(seed, point(decisions, reward=decisions / 1000 + seed))
    records = read_jsonl(tmp_path / "metrics.jsonl")
    assert [(record["decisions"], record["seed"]) for record in records] == [(100, 0), (100, 1), (200, 0), (200, 1)]
    table = rows(tmp_path)
    assert list(table[0]) == ["decisions", "seed", "reward", "loss", "actions/small", "actions/large"]
    for row, record in zip(table, records, strict=True):
        assert (int(row["decisions"]), int(row["seed"])) == (record["decisions"], record["seed"])
        assert (float(row["reward"]), float(row["actions/large"])) == (record["reward"], record["actions"][1])


def test_points_that_come_again_are_there_once(tmp_path: Path) -> None:
    """As if killed after the second point, and gone on from a checkpoint before it."""
    with log(tmp_path) as to:
        for decisions in (100, 200):
            for seed in (0, 1):
                to.add(seed, point(decisions))
    with (tmp_path / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("300,0,0.")
    with log(tmp_path) as to:
        for decisions in (200, 300):
            for seed in (0, 1):
                to.add(seed, point(decisions))
    wanted = [(decisions, seed) for decisions in (100, 200, 300) for seed in (0, 1)]
    assert [(record["decisions"], record["seed"]) for record in read_jsonl(tmp_path / "metrics.jsonl")] == wanted
    assert [(int(row["decisions"]), int(row["seed"])) for row in rows(tmp_path)] == wanted
    for seed in (0, 1):
        assert [step for step, _ in shown(tmp_path / "tensorboard" / f"seed-{seed}")] == [100, 200, 300]


def test_event_files_have_every_point_at_once(tmp_path: Path) -> None:
    with log(tmp_path) as to:
        for decisions, reward in ((128, 0.5), (5_767_168, -0.25)):
            to.add(1, point(decisions, reward))
            values = {"reward": reward, "loss": 1.0, "actions/small": 0.25, "actions/large": 0.75}
            assert shown(tmp_path / "tensorboard" / "seed-1")[-1] == (decisions, values)
    assert [step for step, _ in shown(tmp_path / "tensorboard" / "seed-1")] == [128, 5_767_168]


def test_a_killed_training_has_every_point_once(tmp_path: Path) -> None:
    told(tmp_path, "", "killed", 100, 200)
    told(tmp_path, "", "killed", 200, 300)
    told(tmp_path, "", "ended", 200, 300, 400)
    for seed in (0, 1):
        points = shown(tmp_path / "tensorboard" / f"seed-{seed}")
        assert [(step, values["reward"]) for step, values in points] == [
            (100, 0.1),
            (200, 0.2),
            (300, 0.3),
            (400, 0.4),
        ]


def interrupted(out: Path, cut: int) -> Path:
    """Event files of a seed that was killed while it wrote, and resumed from a checkpoint before that."""
    with log(out) as to:
        for decisions in (10, 200, 300_000):
            to.add(0, point(decisions))
    directory = out / "tensorboard" / "seed-0"
    (path,) = directory.iterdir()
    path.write_bytes(path.read_bytes()[: -cut or None])
    with log(out) as to:
        to.add(0, point(300_000, 7.0))
    return directory


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_an_event_file_that_was_cut_short_does_not_hinder_the_next(tmp_path: Path, cut: int) -> None:
    points = shown(interrupted(tmp_path, cut))
    assert [(step, values["reward"]) for step, values in points] == [(10, 0.5), (200, 0.5), (300_000, 7.0)]


def test_damage_to_an_event_file_does_not_hinder_the_next(tmp_path: Path) -> None:
    with log(tmp_path) as to:
        for decisions in (1, 2, 3):
            to.add(0, point(decisions))
    directory = tmp_path / "tensorboard" / "seed-0"
    (path,) = directory.iterdir()
    damaged = bytearray(path.read_bytes())
    damaged[-len(damaged) // 3] ^= 0xFF  # in the second point
    path.write_bytes(bytes(damaged))
    with log(tmp_path) as to:
        to.add(0, point(4))
    assert [step for step, _ in shown(directory)] == [1, 4]


@pytest.mark.parametrize("cut", [0, 1, 20])
@pytest.mark.parametrize("kind", ["event_accumulator", "plugin_event_accumulator"])
def test_tensorboard_shows_every_point_once(tmp_path: Path, kind: str, cut: int) -> None:
    """The first kind is for others to read with, the second what TensorBoard's own pages show."""
    pytest.importorskip("tensorboard")
    from tensorboard.util.tensor_util import make_ndarray

    module = importlib.import_module(f"tensorboard.backend.event_processing.{kind}")
    accumulator = module.EventAccumulator(str(interrupted(tmp_path, cut)))
    accumulator.Reload()
    if kind == "event_accumulator":
        points = [(event.step, event.value) for event in accumulator.Scalars("reward")]
    else:
        points = [(event.step, float(make_ndarray(event.tensor_proto))) for event in accumulator.Tensors("reward")]
    assert points == [(10, 0.5), (200, 0.5), (300_000, 7.0)]


def test_an_event_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "seed-0").touch()
    with log(tmp_path) as to, pytest.raises(InputError, match=r"tfevents.*: cannot write it, file exists"):
        to.add(0, point(100))


FULL = """
import resource, sys
from pathlib import Path
from besteffort.errors import InputError
from besteffort.runs.trackers import MetricsLog
out = Path(sys.argv[1])
try:
    with MetricsLog(out, (0,), ("small", "large"), {}) as log:
        for decisions in range(1, 9):
            log.add(0, {"decisions": decisions, "reward": 0.5, "loss": 1.0, "actions": [0.25, 0.75]})
            (path,) = out.glob("tensorboard/seed-0/*")
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, resource.RLIM_INFINITY))
except InputError as error:
    print(error)
"""


def test_an_event_file_that_cannot_grow_is_one_sentence(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk; nothing is said when the file is closed, either."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", FULL, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(besteffort.__file__).parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "tfevents" in done.stdout
    assert done.stdout.endswith(": cannot write it, file too large; raise the limit on file sizes.\n")
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_a_tracker_that_is_not_there_stops_before_anything_is_written(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["train", str(small), "--track", "mlflow", "--out", str(tmp_path / "out")]) == 2
    assert "`--track mlflow`: mlflow is not installed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Recorder:
    """A tracker that remembers what it is told, and fails if it is told to."""

    def __init__(self, fails: bool = False) -> None:
        self.heard: list[tuple[int, int]] = []
        self.last = {0: 0, 1: 0}
        self.fails = fails

    def log(self, seed: int, decisions: int, values: dict[str, float]) -> None:
        if self.fails:
            raise ConnectionError("the server is gone")
        self.heard.append((decisions, seed))

    def close(self) -> None:
        self.heard.append((0, 0))


def test_trackers_are_told_once_and_given_up_if_they_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("besteffort.runs.trackers.check_trackers", lambda names: None)
    monkeypatch.setattr("besteffort.runs.trackers._MLflow", lambda out, seeds, about: recorder)
    with log(tmp_path, ("mlflow",)) as to:
        to.add(0, point(100))
        recorder.fails = True
        with pytest.warns(UserWarning, match=r"mlflow failed \(the server is gone\) and receives no more"):
            to.add(0, point(200))
        to.add(0, point(300))
    recorder.fails = False
    with log(tmp_path, ("mlflow",)) as to:
        assert recorder.heard == [(100, 0), (200, 0), (300, 0)]  # what it has missed
        to.add(0, point(300))
        to.add(0, point(400))
    assert recorder.heard == [(100, 0), (200, 0), (300, 0), (400, 0), (0, 0)]
    assert [record["decisions"] for record in read_jsonl(tmp_path / "metrics.jsonl")] == [100, 200, 300, 400]


def test_a_tracker_that_does_not_start_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("besteffort.runs.trackers.check_trackers", lambda names: None)
    monkeypatch.setattr("besteffort.runs.trackers._WeightsAndBiases", fail)
    with pytest.raises(InputError, match=r"`--track wandb`: it does not start \(no route to host\); mend that"):
        log(tmp_path, ("wandb",))


KILLED = """
import os, sys
from pathlib import Path
from besteffort.runs.trackers import MetricsLog
log = MetricsLog(Path(sys.argv[1]), (0, 1), ("small", "large"), {"training.hyper.discount": 0.9}, sys.argv[2].split())
for decisions in map(int, sys.argv[4:]):
    for seed in (0, 1):
        log.add(seed, {"decisions": decisions, "reward": decisions / 1000, "loss": 1.0, "actions": [0.25, 0.75]})
if sys.argv[3] == "killed":
    os.kill(os.getpid(), 9)
log.__exit__(None, None, None)
"""


def told(out: Path, tracker: str, end: str, *decisions: int) -> None:
    """In a process of its own, which trackers that stay in the background need."""
    package = str(Path(besteffort.__file__).parent.parent)
    command = [sys.executable, "-c", KILLED, str(out), tracker, end, *map(str, decisions)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": package}, capture_output=True, text=True, check=False
    )
    assert done.returncode == (-signal.SIGKILL if end == "killed" else 0), done.stderr


@pytest.mark.slow
def test_mlflow_has_every_point_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    out = tmp_path / "run"
    out.mkdir()
    told(out, "mlflow", "killed", 100, 200)
    told(out, "mlflow", "ended", 200, 300)
    script = (
        "import json, sys, mlflow; client = mlflow.MlflowClient()\n"
        "runs = client.search_runs([client.get_experiment_by_name('besteffort').experiment_id])\n"
        "print(json.dumps([[run.info.status, run.data.params, [[m.step, m.value] for m in "
        "client.get_metric_history(run.info.run_id, 'reward')]] for run in runs]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    runs = json.loads(done.stdout.splitlines()[-1])
    assert {run[1]["seed"] for run in runs} == {"0", "1"}
    for status, params, history in runs:
        assert status == "FINISHED"
        assert params["training.hyper.discount"] == "0.9"
        assert sorted(history) == [[100, 0.1], [200, 0.2], [300, 0.3]]


@pytest.mark.slow
def test_weights_and_biases_has_every_point_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "run"
    out.mkdir()
    told(out, "wandb", "killed", 100, 200)
    told(out, "wandb", "ended", 200, 300)
    script = (
        "import json, pathlib, struct, sys\n"
        "from wandb.proto import wandb_internal_pb2\n"
        "steps = {}\n"
        "for path in pathlib.Path(sys.argv[1]).glob('wandb/offline-run-*/*.wandb'):\n"
        "    data, at, record = path.read_bytes(), 7, b''\n"  # LevelDB's log format, in blocks of 32 KiB
        "    while at + 7 <= len(data):\n"
        "        if 32768 - at % 32768 < 7:\n"
        "            at += 32768 - at % 32768\n"
        "            continue\n"
        "        _, length, kind = struct.unpack_from('<IHB', data, at)\n"
        "        record, at = record + data[at + 7 : at + 7 + length], at + 7 + length\n"
        "        if kind in (1, 4):\n"
        "            message, record = wandb_internal_pb2.Record.FromString(record), b''\n"
        "            if message.WhichOneof('record_type') == 'history':\n"
        "                steps.setdefault(path.stem, []).append(message.history.step.num)\n"
        "print(json.dumps(steps))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(out)], capture_output=True, text=True, check=True)
    steps = json.loads(done.stdout.splitlines()[-1])
    runs = json.loads((out / "trackers.json").read_text())["wandb"].values()
    assert steps == {f"run-{run}": [100, 200, 300] for run in runs}
