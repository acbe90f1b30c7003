"""The benchmark of estimates runs, and what it writes is what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout


def test_it_runs_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.estimates import OFF, ON, SHOWN, main, rows

    main(["--fast", "--out", str(tmp_path / "estimates.json")])
    result = json.loads((tmp_path / "estimates.json").read_text(encoding="utf-8"))
    rows_of = {"live, 3 models", "live, 12 models", "live, 12 pools", "compiled", "training"}
    assert set(result["microseconds"]) == rows_of
    assert set(result["microseconds"]["compiled"]) == {OFF, SHOWN, ON}
    assert set(result["training_per_second"]) == {OFF, ON}
    assert all(cost > 0 for row in result["microseconds"].values() for cost in row.values())
    assert "with harm" in capsys.readouterr().out
    assert all(row.ratio is not None and row.ratio > 0 for row in rows(result))
