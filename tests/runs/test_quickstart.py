from __future__ import annotations

from pathlib import Path

import pytest

from besteffort.cli import main
from besteffort.policy import load_policy


@pytest.mark.slow
def test_quickstart_with_a_trace(small: Path, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "first"
    assert main(["quickstart", "--config", str(small), "--trace", str(trace), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "log.csv (azure_llm): 120 requests" in told
    assert "clipped: 0.00% of outputs" in told
    assert "upper bound" in told
    assert "Learned is" in told
    policies = [out / "policy.safetensors", out / "policy-log.safetensors"]
    assert [load_policy(path).tasks for path in policies] == [("piqa", "arc_easy")] * 2
    for name in ("dqn", "search", "dqn-log", "search-log"):
        trained = load_policy(out / name / "policy.safetensors")
        assert (trained.rule is not None) == name.startswith("search")
    for path in (out / "quickstart.png", out / "report.md", *policies):
        assert path.is_file()
        assert str(path) in told
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "mean load 2" in report
    assert "Trace log" in report
    assert "Exported (log)" in report


@pytest.mark.slow
def test_without_training_it_judges_the_policy_that_needs_none(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "untrained"
    assert main(["quickstart", "--config", str(small), "--no-training", "--out", str(out)]) == 0
    assert "Learned is untrained" in capsys.readouterr().out
    policy = load_policy(out / "policy.safetensors")
    assert policy.training == {"method": "none"}
    assert not [path for path in out.iterdir() if path.is_dir()]
