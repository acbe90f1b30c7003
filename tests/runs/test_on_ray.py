"""Jobs on a local Ray cluster of two workers, one of which is killed midway, beside the same in local processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from besteffort.errors import InputError
from besteffort.runs.backends import Local, Ray
from besteffort.runs.jobs import run_on
from besteffort.runs.processes import Job, JobProgress
from tests import clusters

pytest.importorskip("ray")

pytestmark = clusters.WARNINGS

# Sums squares step by step, keeps how far it is after each, and goes on from there.
RESUMABLE = """
import pathlib, sys, time
out, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2])
with (out / f"starts-{seed}").open("a") as file:
    file.write("x")
kept = out / f"kept-{seed}"
step, total = map(int, kept.read_text().split()) if kept.exists() else (0, seed)
while step < 12:
    step, total = step + 1, (total * 31 + step * step) % 1_000_003
    other = out / f"next-{seed}"
    other.write_text(f"{step} {total}")
    other.rename(kept)
    print(step, flush=True)
    time.sleep(0.1)
(out / f"result-{seed}").write_text(str(total))
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    with clusters.head_alone(monkeypatch, tmp_path) as started:
        yield started


def jobs(out: Path, seeds: int) -> list[Job]:
    out.mkdir()
    return [
        Job(f"job {seed}", (sys.executable, "-c", RESUMABLE, str(out), str(seed)), out / f"{seed}.log")
        for seed in range(seeds)
    ]


def test_jobs_of_a_killed_worker_go_on_elsewhere(cluster: Any, tmp_path: Path) -> None:
    here, there = tmp_path / "local", tmp_path / "ray"
    workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    lines: list[tuple[str, str]] = []
    ended: dict[str, int | None] = {}
    killed: list[str] = []

    def progress(one: JobProgress) -> None:
        if one.line is None:
            ended[one.job.name] = one.status
            return
        lines.append((one.job.name, one.line))
        if one.line == "4" and not killed:
            killed.append(one.job.name)
            cluster.remove_node(workers[0], allow_graceful=False)

    listed = jobs(there, 4)
    on = Ray(address=cluster.address)
    statuses = run_on(on, listed, notes=there / "notes", progress=progress)
    assert statuses == ended == {job.name: 0 for job in listed}
    assert list(statuses) == [job.name for job in listed]
    assert run_on(Local(2), jobs(here, 4), notes=here / "notes") == statuses
    for seed in range(4):
        assert (there / f"result-{seed}").read_text() == (here / f"result-{seed}").read_text()
        assert (there / f"{seed}.log").read_text().endswith("12\n")
    starts = [len((there / f"starts-{seed}").read_text()) for seed in range(4)]
    assert sum(starts) == 5, "one job began anew"
    again = starts.index(2)
    # It went on from what it had kept, and its log is that of its second process.
    told = [int(line) for name, line in lines if name == f"job {again}"]
    assert len(told) <= 13
    assert int((there / f"{again}.log").read_text().split()[0]) > 1


def test_a_job_that_fails_has_its_status_and_leaves_the_others_alone(cluster: Any, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    fails = Job("fails", (sys.executable, "-c", "print('before'); raise SystemExit(3)"), tmp_path / "fails.log")
    works = Job("works", (sys.executable, "-c", "import os; print(os.getcwd())"), tmp_path / "works.log")
    on = Ray(address=cluster.address)
    assert run_on(on, [fails, works], notes=tmp_path / "notes", directory=tmp_path) == {"fails": 3, "works": 0}
    assert fails.log.read_text() == "before\n"
    assert works.log.read_text() == f"{tmp_path}\n"
    lost = Job("lost", (sys.executable, "-c", ""), tmp_path / "nowhere" / "lost.log")
    with pytest.raises(InputError, match=r"nowhere: the machine .* does not see this directory; name one that all"):
        run_on(on, [lost], notes=tmp_path / "notes")
    with pytest.raises(InputError, match="Two jobs have the name `works`"):
        run_on(on, [works, works], notes=tmp_path / "notes")
    assert run_on(on, [], notes=tmp_path / "notes") == {}


def test_an_address_where_no_cluster_answers_is_one_sentence(tmp_path: Path) -> None:
    job = Job("job", (sys.executable, "-c", ""), tmp_path / "job.log")
    with pytest.raises(InputError, match=r"`--address 127.0.0.1:1`: no Ray cluster answers there"):
        run_on(Ray(address="127.0.0.1:1"), [job], notes=tmp_path / "notes")
