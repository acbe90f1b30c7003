"""The benchmark of gateways runs, and what it writes is what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the clock of processor time of another process"),
]


def test_it_runs_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.gateway import BARE, CLIENTS, DIRECT, OURS, PLAIN, STREAM, WHOLE, main, rows

    cores = os.sched_getaffinity(0)
    # Without LiteLLM, wherever there is one.
    main(["--fast", "--out", str(tmp_path / "gateway.json"), "--litellm", ""])
    result = json.loads((tmp_path / "gateway.json").read_text(encoding="utf-8"))
    assert list(result["milliseconds"]) == [DIRECT, BARE, OURS, WHOLE]
    for arm, shapes in result["milliseconds"].items():
        assert set(shapes) == ({PLAIN} if arm == WHOLE else {PLAIN, STREAM})
        for cells in shapes.values():
            assert set(cells) == set(map(str, CLIENTS))
            assert all(0 < cell["fastest"] <= cell["median"] <= cell["slowest"] < 1e3 for cell in cells.values())
    assert list(result["latency_milliseconds"]) == [DIRECT, BARE, OURS]
    for found in result["latency_milliseconds"].values():
        first, whole = found["first token"], found["whole"]
        assert 0 < first["p50"] <= first["p99"] < 1e3
        assert 19 < whole["p50"] <= whole["p99"] < 2e3  # the server sleeps a millisecond after each token
        assert first["p50"] < whole["p50"]
    assert "ours, passed whole" in capsys.readouterr().out
    assert all(row.ratio is not None and row.ratio > 0 for row in rows(result))
    assert os.sched_getaffinity(0) == cores


def test_the_clock_is_that_of_the_process() -> None:
    from benchmarks.gateway import processor_s

    before = processor_s(os.getpid())
    used = time.process_time()
    sum(range(2_000_000))
    used = time.process_time() - used
    assert processor_s(os.getpid()) - before == pytest.approx(used, abs=0.05)
    code = "import time; print(sum(range(3_000_000)), time.process_time(), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            said = float(other.stdout.readline().split()[1])
            assert said <= processor_s(other.pid) < said + 1.0
        finally:
            other.kill()
