from __future__ import annotations

import json
from pathlib import Path

import pytest

from besteffort.errors import InputError

pytestmark = pytest.mark.checkout


def write(path: Path, low: float, claim: str) -> None:
    several = {"mean": [low, 5.0, 7.0], "half_width": [0.1, 1.0, None]}
    data = {"a": {"mean": 1.0, "half_width": 0.5}, "b": [several], "c": 3.0, "d": {"mean": 2.0, "half_width": None}}
    claims = [{"claim": "One", "ours": claim, "status": "holds"}]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"data": data, "claims": claims}), encoding="utf-8")


def test_figures_of_two_seeds_are_set_side_by_side(tmp_path: Path) -> None:
    from experiments.another_seed import compare

    first, second = tmp_path / "first", tmp_path / "second"
    write(first / "one.json", 1.0, "1x")
    write(first / "two.json", 1.0, "1x")
    write(second / "one.json", 1.3, "2x")
    for directory in (first, second):
        (directory / "benchmark.json").write_text('{"seconds": 1.0}', encoding="utf-8")
    counts, claims, apart = compare(first, second)
    assert counts.rows == (("one", (3.0, 2.0, pytest.approx(2 / 3))),)
    assert claims.rows == (("One", ("1x", "holds", "2x", "holds")),)
    assert apart.rows == (("one: b/0[0]", ("1 ± 0.1", "1.3 ± 0.1")),)


def test_what_cannot_be_compared_is_said_in_a_sentence(tmp_path: Path) -> None:
    from experiments.another_seed import compare

    first, second = tmp_path / "first", tmp_path / "second"
    write(first / "one.json", 1.0, "1x")
    write(second / "another.json", 1.0, "1x")
    with pytest.raises(InputError, match="no result of an experiment that is in"):
        compare(first, second)
    (second / "one.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"one\.json: this is no result of an experiment"):
        compare(first, second)
