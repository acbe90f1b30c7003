"""The latency benchmark: all three libraries decide alike, and what is written says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.checkout


def test_it_runs_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.decisions import JAX, NUMPY, ONNX, main, random_policy, rows
    from besteffort.policy import save_policy

    save_policy(random_policy((8,)), tmp_path / "mine.safetensors")
    main(["--fast", "--policy", str(tmp_path / "mine.safetensors"), "--out", str(tmp_path / "decisions.json")])
    result = json.loads((tmp_path / "decisions.json").read_text(encoding="utf-8"))
    assert set(result["microseconds"]) == {"mine", "random 64 x 64", "random 256 x 256"}
    for name, found in result["choices"].items():
        assert found["as NumPy"] == dict.fromkeys((NUMPY, ONNX, JAX), found["states"])
        assert all(share > 0.05 for share in found["shares"].values()), name
    assert "mine" in capsys.readouterr().out
    for row in rows(result):
        assert row.ratio is not None
        assert row.ratio > 0


def test_a_policy_that_reads_more_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.decisions import main
    from besteffort.policy import save_policy
    from besteffort.runs.config import load_situation
    from besteffort.runs.untrained import default_policy

    path, out = tmp_path / "rule.safetensors", tmp_path / "decisions.json"
    save_policy(default_policy(load_situation("paper")), path)
    with pytest.raises(SystemExit) as ended:
        main(["--fast", "--policy", str(path), "--out", str(out)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"benchmarks.decisions: {path}: the policy reads `value`; give one on the paper's inputs, ")
    assert said.count("\n") == 1
    assert not out.exists()
