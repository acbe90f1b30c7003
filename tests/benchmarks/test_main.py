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


def test_figures_of_a_fast_run_replace_no_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default both go where the committed results are."""
    import benchmarks.__main__ as everything
    from benchmarks import sweep
    from benchmarks.outcome import write_result

    out = tmp_path / "sweep.json"
    write_result(out, {"trials": 64}, fast=False)
    for main, place in ((everything.main, tmp_path), (sweep.main, out)):
        with pytest.raises(SystemExit) as leaving:
            main(["--fast", "--out", str(place)])
        assert leaving.value.code == 2
        assert f"{out}: this was measured without `--fast`, which would replace it" in capsys.readouterr().err
    assert json.loads(out.read_text()) == {"trials": 64}


@pytest.mark.parametrize("known", [None, "{", '{"fast": true, "trials": 1}'])
def test_what_says_nothing_may_be_replaced(tmp_path: Path, known: str | None) -> None:
    from argparse import ArgumentParser

    from benchmarks.outcome import check_replaced, write_result

    out = tmp_path / "new" / "sweep.json"
    if known is not None:
        out.parent.mkdir()
        out.write_text(known)
    check_replaced(ArgumentParser(), out, fast=True)
    write_result(out, {"trials": 2}, fast=True)
    assert json.loads(out.read_text()) == {"fast": True, "trials": 2}
