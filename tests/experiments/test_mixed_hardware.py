"""The fleet of the experiment is what it says, and a claim holds only where nothing contradicts it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("experiments", reason="needs a checkout")

from besteffort.evaluation.statistics import Interval
from experiments import methods, rivals
from experiments.lab import FAST, Lab
from experiments.mixed_hardware import FAR_S, NEAR_S, claim_of, findings_of, fleet, settings

pytestmark = pytest.mark.checkout

SEEING = dict.fromkeys(rivals.SEEING, 0.6)


def test_the_fleet_is_of_three_kinds_and_every_site_is_near_its_origin() -> None:
    situation = fleet()
    assert {pool.hardware for pool in situation.pools} == {None, "opt-h100", "opt-l4"}
    assert not situation.fleet.uniform
    east = np.array([name.endswith("east") for name in situation.fleet.names])
    np.testing.assert_array_equal(situation.origin_delay_s, np.where([east, ~east], NEAR_S, FAR_S))
    largest = situation.fleet.largest
    assert largest.sum() == 2
    assert east[largest].sum() == 1
    # Bursts and the highest load are beyond the largest model, and within the fleet.
    assert situation.capacity().sum() > 4 * situation.unit_load > situation.capacity()[largest].sum()


def test_settings_have_networks_and_lists_with_origins(tmp_path: Path) -> None:
    lab = Lab(dataclasses.replace(FAST, requests=200, tuning_requests=100, warm_up_s=0.1), tmp_path)
    found = settings(fleet(), rivals.judging(lab))
    assert list(found) == ["bursts", "steady, load 0.5", "steady, load 1.5", "steady, load 4"]
    for setting in found.values():
        made = setting.make()
        assert setting.networks
        assert made.situation == fleet()
        assert all(set(each.origin.tolist()) == {0, 1} for each in (*made.judged[0], *made.tuning))


def test_where_a_policy_is_worst_comes_first() -> None:
    def found(ahead: float) -> dict[str, Any]:
        spread = np.array([-0.01, 0.0, 0.01])
        learned = {"search": 0.9 + spread, "dqn": 0.88 + ahead + spread, "untrained": 0.89 + spread}
        others = {"always a": 0.5, "always b": 0.7, "priced": 0.88, "ladder": 0.8, "marginal": 0.99, **SEEING}
        performance = {name: value + spread for name, value in others.items()}
        return {"learned": learned, "performance": performance, "bound": [0.95, 0.96, 0.97], "tuned": {}}

    findings = findings_of({"good": found(0.01), "bad": found(-0.02)})
    (table,) = findings.tables
    assert [name for name, _ in table.rows] == ["bad", "good"]
    cells = dict(zip([column.title for column in table.columns], dict(table.rows)["bad"], strict=True))
    shown = {title: 100 * float(getattr(cell, "mean", cell)) for title, cell in cells.items()}
    assert shown == pytest.approx(
        {
            "Best rival (%)": 88.0,
            "search, ahead (points)": 2.0,
            "dqn, ahead (points)": -2.0,
            "untrained, ahead (points)": 1.0,
            "Best static pool (%)": 70.0,
            "search, ahead of it (points)": 20.0,
            "dqn, ahead of it (points)": 16.0,
            "untrained, ahead of it (points)": 19.0,
            "Bound (%)": 96.0,
        }
    )
    assert {claim.claim.split("`")[1]: claim.status for claim in findings.claims} == {
        "search": "holds",
        "dqn": "holds in part",
        "untrained": "holds",
    }
    assert list(findings.figures) == [""]


@pytest.mark.parametrize(
    ("ahead", "static", "status"),
    [
        ((0.0, 0.001), (0.1, 0.2), "holds"),
        ((-0.004, 0.001), (0.1, 0.2), "holds in part"),
        ((0.0, 0.001), (-0.1, 0.2), "holds in part"),
    ],
)
def test_a_claim_needs_both_intervals(ahead: tuple[float, float], static: tuple[float, float], status: str) -> None:
    def row(ahead: tuple[float, float], static: tuple[float, float]) -> dict[str, Interval]:
        pairs = {"search": (0.9, 0.9), "search, ahead": ahead, "search, ahead of static": static}
        return {
            name: Interval(np.array((low + high) / 2), np.array((high - low) / 2), 5)
            for name, (low, high) in pairs.items()
        }

    rows = {"a": row((0.01, 0.02), (0.1, 0.2)), "b": row(ahead, static)}
    found = claim_of("search", rows)
    assert found.status == status
    assert found.static == f"ahead beyond the interval in {1 + (static[0] > 0)} of 2 settings"
    assert methods.NOT_BEHIND == -0.002
