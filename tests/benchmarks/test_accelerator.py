"""The script for accelerators runs at a tiny size on any device, and says what was cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout


def test_parts_report_line_by_line() -> None:
    from benchmarks.accelerator import FAST, PARTS

    lines = []
    PARTS["logits"][0](FAST, lines.append)
    (found,) = lines
    # bfloat16 has 8 bits of precision; logits of a random model are near 0, so their spread is the scale.
    assert 0 < found["largest_difference"] < found["standard_deviation"] / 8
    assert found["mean_difference"] <= found["largest_difference"]

    lines = []
    PARTS["opt"][0](FAST, lines.append)
    timed = [line for line in lines if line["what"] == "iteration"]
    assert [(line["kind"], line["size"]) for line in timed] == [("decode", 1), ("decode", 2), ("prefill", 8)]
    assert all(min(line["seconds"]) > line["floor_s"] > 0 for line in timed)
    assert [line["beside"] for line in lines if line["what"] == "together"] == [[], ["tiny-1"], [], ["tiny-0"]]


def test_a_part_that_is_cut_off_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import accelerator

    monkeypatch.setitem(accelerator.PARTS, "logits", (accelerator.logits, 0.01))
    out = tmp_path / "found.json"
    assert accelerator.main(["logits", "--fast", "--out", str(out)]) == 1
    part = json.loads(out.read_text())["parts"]["logits"]
    assert part["ended"] == "cut off after 0.01 s"
    assert part["lines"] == []


def test_unknown_parts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.accelerator import main

    with pytest.raises(SystemExit) as leaving:
        main(["logit"])
    assert leaving.value.code == 2
    assert "there is no part `logit`; choose from opt" in capsys.readouterr().err


def test_all_parts_end_within_ten_minutes() -> None:
    from benchmarks.accelerator import PARTS

    assert sum(limit_s for _, limit_s in PARTS.values()) < 600
