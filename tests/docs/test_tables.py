"""Figures in README and docs are those of the files in results/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout

CHECKOUT = Path(__file__).resolve().parent.parent.parent
README = CHECKOUT / "README.md"


def test_tables_are_as_in_the_results() -> None:
    from experiments import tables

    assert not list(tables.differences())


def test_the_page_of_claims_that_lacks_a_claim_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import tables

    page = (tables.RESULTS / "claims.md").read_text("utf-8")
    claim = next(line for line in page.splitlines() if line.startswith("| A searched rule that does not see the harm"))
    monkeypatch.setattr(tables, "claims_page", lambda *_: page.replace(f"{claim}\n", ""))
    assert f"-{claim}" in list(tables.differences())


def test_every_table_stands_on_a_page() -> None:
    from experiments import tables

    text = "".join(page.read_text("utf-8") for page in tables.pages())
    assert sorted(re.findall(r"<!-- table: (\w+) -->", text)) == sorted(tables.TABLES)
    assert text.count("<!-- table: ") == text.count("<!-- end -->")


def test_the_check_finds_a_figure_that_differs() -> None:
    from experiments import tables

    text = README.read_text("utf-8")
    start = text.index("<!-- table: headline -->")
    place = re.compile(r"\d\.\d").search(text, start)
    assert place is not None
    other = text[: place.start()] + "0.0" + text[place.end() :]
    assert tables.filled(other) == text != other


def test_decisions_need_no_trained_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m benchmarks` names none."""
    from experiments import tables

    found = {"random 64 x 64": {"NumPy": {"median": 6.3}, "JAX": {"median": 86.0}}}
    monkeypatch.setattr(tables, "read", lambda name: {"microseconds": found})
    assert "| random 64 x 64 | 6.3 µs | 86 µs |" in tables.decisions()


def test_the_readme_says_how_often_the_router_wins_and_loses() -> None:
    from experiments import tables

    settings = tables.read("where_it_pays")["data"].values()
    loads = tables.read("stable_load")["data"]["loads"]
    behind = [one for one in settings if sum(one["ahead_of_heuristic"].values()) < 0]
    searched = tables.searched_in_sixteen_settings().values()
    static = [one["search, ahead of static"] for one in searched]
    ahead = [100 * one["mean"] for one in static if one["mean"] > one["half_width"]]
    gains = []
    for load in loads:
        learned, *others = (one["mean"] for one in load["performance"].values())
        gains.append(100 * (learned - max(others)))
    text = README.read_text("utf-8")
    assert f"in {len(ahead)} of {len(settings)} settings, by {min(ahead):.0f} to {max(ahead):.0f} points" in text
    assert f"by up to {max(gains):.1f} points" in text
    assert f"in {len(behind)} of {len(settings)} settings" in text
    assert f"at load {loads[-1]['load']:g}, by {-gains[-1]:.0f} points" in text


def test_sentences_have_the_figures_of_the_results() -> None:
    from experiments import tables

    learned = {one["perturbation"]: 100 * one["learned"]["mean"] for one in tables.read("robustness")["data"]}
    cost = learned["everything as known"] - learned["batch sizes up to 50 ms old"]
    assert f"50 ms cost {cost:.1f} of its own" in README.read_text("utf-8")
    assert f"50 ms cost {cost:.1f} of its own" in (CHECKOUT / "docs" / "gotchas.md").read_text("utf-8")

    claims = tables.read("unpredictable_load")["claims"]
    bounded = [one for one in claims if "clairvoyant" in one["claim"] and "code" not in one["claim"]]
    below = [100 - float(one["ours"].split(" ")[0]) for one in bounded]
    results = (CHECKOUT / "docs" / "results.md").read_text("utf-8")
    assert f"is {min(below):.1f} to {max(below):.1f}% below the clairvoyant bound" in results
    near = [one for one in claims if "mean load 1:" in one["claim"] and "how often" in one["claim"]]
    least, most = sorted(float(one["static"].split(" ")[0]) for one in near)
    assert f"{least:.0f} to {most:.0f}% of the time" in results

    stays = {
        name: sum(seconds is not None for seconds in one["seconds_to_stay_above"]["each"])
        for name, one in tables.read("learners")["learners"].items()
        if "seconds_to_stay_above" in one
    }
    assert stays == {
        "ours": 2,
        "gymnax loop": 1,
        "Stable-Baselines3, tuned": 1,
        "Stable-Baselines3, as it comes": 0,
    }, "docs/benchmarks.md says how many trainings stay above the line"


def test_the_page_on_research_says_what_experiments_took() -> None:
    from experiments import tables
    from experiments.__main__ import EXPERIMENTS

    seconds = {name: tables.read(name)["seconds"] for name in EXPERIMENTS}
    longest = max(seconds, key=lambda name: float(seconds[name]))
    text = (CHECKOUT / "docs" / "research.md").read_text("utf-8")
    assert f"is `{longest}`, {seconds[longest] / 3600:.1f} hours" in text
    assert f"`rivals` and `methods` ({seconds['rivals']:.0f} and {seconds['methods']:.0f} s)" in text


def test_the_readme_is_short() -> None:
    text = README.read_text("utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text) <= 9_000
