from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout
exactness = pytest.importorskip("experiments.exactness", reason="needs the checkout's experiments/")

RESULTS = Path(__file__).resolve().parents[2] / "results" / "exactness.json"


def test_a_small_run_writes_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactness, "KINDS", 2)
    out = tmp_path / "new" / "exactness.json"
    exactness.main(["--lists", "3", "--paper-lists", "0", "--seed", "7", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["seed"] == 7
    assert set(found["versions"]) == {"python", "besteffort", "jax", "jaxlib", "numpy"}
    assert found["random_lists"]["float64"]["lists"] == 4
    assert found["random_lists"]["float64"]["requests_with_another_model_replica_or_rejection"] == 0
    assert {name: part["lists"] for name, part in found["random_lists"]["float32"].items()} == {
        "dyadic": 2,
        "continuous": 2,
    }
    assert "default_situation" not in found


def test_figures_are_what_the_rows_say() -> None:
    rows = [
        exactness.Row(outcomes=3, deadlines=1, time=1e-12, reward=0.0, points=0.5),
        exactness.Row(outcomes=0, deadlines=0, time=3e-12, reward=1e-9, points=-0.1),
    ]
    exact, rough = exactness.exactly(rows), exactness.roughly(rows)
    assert exact["requests"] == 1000
    assert exact["requests_with_another_model_replica_or_rejection"] == 3
    assert exact["largest_time_error_in_horizons"] == 3e-12
    assert rough["share_of_lists_with_another_outcome"] == 0.5
    assert rough["share_of_requests_with_another_outcome"] == 0.003
    assert rough["performance_difference_points"] == pytest.approx(
        {"mean": 0.2, "mean_absolute": 0.3, "largest_absolute": 0.5}
    )


def test_the_committed_results_show_exactness() -> None:
    found = json.loads(RESULTS.read_text())
    assert found["random_lists"]["float64"]["lists"] >= 300
    for part in (found["random_lists"], found["default_situation"]):
        assert part["float64"]["requests_with_another_model_replica_or_rejection"] == 0
        assert part["float64"]["largest_time_error_in_horizons"] <= 1e-9
        for float32 in part["float32"].values():
            assert float32["performance_difference_points"]["mean_absolute"] <= 0.1
