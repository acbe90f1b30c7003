"""All benchmarks in one call: one table, and one that fails does not stop the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout


def test_one_table_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    import benchmarks.__main__ as everything

    asked = []

    def run(name: str, out: Path, *, fast: bool) -> bool:
        asked.append((name, fast))
        times = {"NumPy": {"median": 4.0}, "ONNX Runtime": {"median": 12.0}, "JAX": {"median": 40.0}}
        out.write_text(json.dumps({"microseconds": {"mine": times}}))
        return name == "decisions"

    monkeypatch.setattr(everything, "run", run)
    assert everything.main(["decisions", "learners", "--fast", "--out", str(tmp_path)]) == 1
    assert asked == [("decisions", True), ("learners", True)]
    said = capsys.readouterr().out
    assert "12.0 μs (ONNX Runtime)" in said
    assert "learners failed; what it said stands above." in said
    assert everything.main(["decisions", "--out", str(tmp_path)]) == 0


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import benchmarks.__main__ as everything

    assert {"simulator_speed", "learners", "decisions"} <= set(everything.NAMES)
    with pytest.raises(SystemExit) as leaving:
        everything.main(["learner"])
    assert leaving.value.code == 2
    assert "there is no benchmark `learner`; choose from simulator_speed" in capsys.readouterr().err
