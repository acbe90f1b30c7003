"""The fleet of the experiment is what it says, and a claim holds only where nothing contradicts it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("experiments", reason="needs a checkout")

from besteffort.evaluation.statistics import Interval
from experiments import methods, rivals
from experiments.lab import FAST, Lab
from experiments.mixed_hardware import FAR_S, NEAR_S, claim_of, fleet, settings

pytestmark = pytest.mark.checkout


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
