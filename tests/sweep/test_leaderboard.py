from __future__ import annotations

from pathlib import Path

import numpy as np

from besteffort.sweep.leaderboard import Entry, write_leaderboard


def test_a_sweep_over_seeds_alone_has_a_table_and_no_picture(tmp_path: Path) -> None:
    drawn = np.array([0.8, 0.9])
    entries = [Entry(f"trial-{seed}", 0, seed, {}, "finished", "", drawn + 0.01 * seed, drawn) for seed in range(3)]
    board = write_leaderboard(entries, tmp_path, title="Seeds", judged_on="Two lists.")
    assert board.picture is None
    assert len(board.table.rows) == 1
    assert "as the base" in board.report.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md", "results.json", "trials.csv"]


def test_an_axis_besides_seeds_has_a_picture(tmp_path: Path) -> None:
    drawn = np.array([0.8, 0.9])
    entries = [Entry(f"trial-{value}", value, 0, {"a.b": value}, "finished", "", drawn, drawn) for value in range(3)]
    board = write_leaderboard(entries, tmp_path, title="Values", judged_on="Two lists.")
    assert board.picture == tmp_path / "what-mattered.png"
    assert board.picture.is_file()
    assert "(what-mattered.png)" in board.report.read_text()
