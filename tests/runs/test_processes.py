from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import besteffort
from besteffort.device import cores
from besteffort.errors import InputError
from besteffort.runs.processes import Job, JobProgress, run_jobs


def job(name: str, script: str, tmp_path: Path) -> Job:
    return Job(name, (sys.executable, "-c", script), tmp_path / f"{name}.log")


def test_one_that_fails_or_is_killed_leaves_the_others_alone(tmp_path: Path) -> None:
    jobs = [
        job("fails", "print('before'); raise SystemExit(3)", tmp_path),
        job("killed", "import os; os.kill(os.getpid(), 9)", tmp_path),
        job("aborts", "import os; os.abort()", tmp_path),
        Job("missing", ("no-such-command",), tmp_path / "missing.log"),
        job("works", "import sys; print('out'); print('err', file=sys.stderr); sys.stdout.write('no end')", tmp_path),
    ]
    reported: list[JobProgress] = []
    statuses = run_jobs(jobs, 2, progress=reported.append)
    ended = [(one.job.name, one.status) for one in reported if one.status is not None]
    assert statuses == {
        "fails": 3,
        "killed": -signal.SIGKILL,
        "aborts": -signal.SIGABRT,
        "missing": 127,
        "works": 0,
    }
    assert list(statuses) == [each.name for each in jobs]
    assert dict(ended) == statuses
    assert len(ended) == len(jobs)
    assert [one.line for one in reported if one.job.name == "works" and one.status is None] == ["out", "err", "no end"]
    assert jobs[-1].log.read_text() == "out\nerr\nno end"
    assert jobs[0].log.read_text() == "before\n"
    assert jobs[3].log.read_text() == "no-such-command: No such file or directory\n"


def test_lines_come_while_the_job_runs_and_in_the_callers_thread(tmp_path: Path) -> None:
    """The job waits for a file that the report of its first line creates."""
    sign = tmp_path / "sign"
    script = (
        "import pathlib, time\n"
        "print('ready')\n"
        f"while not pathlib.Path({str(sign)!r}).exists(): time.sleep(0.01)\n"
        "print('seen')"
    )
    lines: list[str] = []

    def report(one: JobProgress) -> None:
        assert threading.current_thread() is threading.main_thread()
        if one.line is not None:
            lines.append(one.line)
        sign.touch()

    assert run_jobs([job("one", script, tmp_path)], 1, progress=report) == {"one": 0}
    assert lines == ["ready", "seen"]


def test_no_more_than_so_many_run_at_a_time_and_in_order(tmp_path: Path) -> None:
    script = "import time; begin = time.time(); time.sleep(0.3); print(begin, time.time())"
    jobs = [job(f"{index}", script, tmp_path) for index in range(5)]
    reported: list[JobProgress] = []
    run_jobs(jobs, 2, progress=reported.append)
    ended = [one.job.name for one in reported if one.status is not None]
    begins, ends = zip(*(map(float, each.log.read_text().split()) for each in jobs), strict=True)
    together = [sum(b <= begin < e for b, e in zip(begins, ends, strict=True)) for begin in begins]
    assert max(together) <= 2
    assert begins[4] > max(begins[:3])
    assert set(ended) == {each.name for each in jobs}


def test_cores_are_shared_and_the_users_settings_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os; print(os.environ.get('NPROC'), os.environ.get('XLA_FLAGS'))"
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")

    def printed(names: str, workers: int) -> set[str]:
        jobs = [job(name, script, tmp_path) for name in names]
        run_jobs(jobs, workers)
        return {each.log.read_text().strip() for each in jobs}

    assert printed("ab", 2) == {f"{max(1, cores() // 2)} --xla_cpu_enable_fast_math=false"}
    assert printed("a", 2) == {"None --xla_cpu_enable_fast_math=false"}
    monkeypatch.setenv("NPROC", "7")
    assert printed("ab", 2) == {"7 --xla_cpu_enable_fast_math=false"}


# Has a child of its own and does not listen to SIGTERM.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # nobody waits for orphans in some containers


def soon_gone(pid: int) -> bool:
    until = time.monotonic() + 10
    while not gone(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return gone(pid)


def test_an_interrupt_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("besteffort.runs.processes._GRACE_S", 0.3)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background processes lack
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    pids: list[int] = []

    def interrupt(one: JobProgress) -> None:
        pids.extend(map(int, (one.line or "").split()))
        if len(pids) == 4:
            os.kill(os.getpid(), signal.SIGINT)  # the keyboard
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        run_jobs([job(name, STUBBORN, tmp_path) for name in "abc"], 2, progress=interrupt)
    assert len(pids) == 4
    assert all(map(soon_gone, pids))
    assert not (tmp_path / "c.log").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_a_killed_parent_takes_its_jobs_along(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from besteffort.runs.processes import Job, JobProgress, run_jobs\n"
        f"job = Job('job', (sys.executable, '-c', {STUBBORN!r}), Path(sys.argv[1]))\n"
        "run_jobs([job], 1, progress=lambda one: print(one.line, flush=True))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "job.log")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(besteffort.__file__).parent.parent)},
    )
    assert parent.stdout is not None
    child, grandchild = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert soon_gone(child)
    os.kill(grandchild, signal.SIGKILL)


def test_jobs_that_cannot_be_run_are_refused(tmp_path: Path) -> None:
    one = job("one", "pass", tmp_path)
    with pytest.raises(InputError, match="Two jobs have the name `one`"):
        run_jobs([one, one], 1)
    with pytest.raises(InputError, match="give at least 1"):
        run_jobs([one], 0)
    with pytest.raises(InputError, match="no such file or directory"):
        run_jobs([Job("one", ("true",), tmp_path / "nowhere" / "one.log")], 1)
    assert run_jobs([], 2) == {}
