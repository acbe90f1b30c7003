from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from besteffort.evaluation.statistics import mean_interval, paired_difference, ratio_interval
from besteffort.workload.requests import Requests
from experiments import near_peak, rivals


def requests(arrival_s: list[float]) -> Requests:
    ones = np.ones(len(arrival_s))
    return Requests(
        tasks=("one",),
        arrival_s=np.array(arrival_s),
        task=np.zeros(len(arrival_s), np.int32),
        prompt_tokens=ones.astype(np.int32),
        output_tokens=ones.astype(np.int32),
        deadline_s=ones,
    )


def test_windows_follow_each_other_from_the_end_of_the_warm_up() -> None:
    counts = near_peak._arrivals(requests([5.0, 5.9, 7.0, 7.5, 7.99, 8.0, 10.2]), warm_up_s=2.0)
    assert counts.tolist() == [3, 1, 1]  # none arrive from 9 to 10


def test_lists_are_cut_to_the_shortest() -> None:
    cut = rivals.cut_alike([requests([1.0, 2.0, 3.0]), requests([4.0, 6.0])])
    assert [each.arrival_s.tolist() for each in cut] == [[1.0, 2.0], [4.0, 6.0]]
    assert rivals.cut_alike([]) == ()


@pytest.mark.parametrize(
    ("static", "searched", "status", "often"),
    [
        ([0.1, 0.1, 0.1], [0.6, 0.6, 0.6], "holds", "6.0 ± 0.0x"),
        ([0.2, 0.2, 0.2], [0.6, 0.6, 0.6], "holds in part", "3.0 ± 0.0x"),
        ([0.4, 0.4, 0.4], [0.9, 0.9, 0.9], "no claim", "2.2 ± 0.0x"),  # all windows would be 2.5 times as many
        ([0.0, 0.0, 0.0], [0.6, 0.6, 0.6], "no claim", "no static model ever is"),
    ],
)
def test_a_multiple_counts_where_there_is_room_for_it(
    static: list[float], searched: list[float], status: str, often: str
) -> None:
    alone, ours = np.array(static), np.array(searched)
    row: dict[str, Any] = {
        "searched": mean_interval(ours),
        "rule": mean_interval(alone),
        "static": mean_interval(alone),
        "ahead": paired_difference(ours, alone),
        "ratio": ratio_interval(ours, alone) if alone.any() else None,
        "ceiling": 1 / alone.mean() if alone.any() else None,
        "best": {"rule": "ladder", "static": "always large"},
    }
    claim = near_peak._claim("bursts", 0.96, row)
    assert claim.status == status
    assert claim.ours.startswith(often)
