"""A cluster, the short form of pools, gives what it gave before there were pools, to the last digit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pytest

from tests.estimates.lists import compiled, draw_list, known, reference
from tests.simulator.cases import Played, draw_case, draw_kinds, play_compiled, simulate_by_reference

KINDS = draw_kinds(22)
PARTS = (
    2.0**30
)  # of a second or of a reward: multiples of a power of two stay whole, and libraries' last bits do not count

# By kind, from the revision before pools: of the compiled simulator and of the reference.
PLAYED = {4: "13dbf34c3e7d275d", 7: "53de82d69e48b01c"}
ESTIMATED = {1: "5199204fdbb87641"}


def digest(columns: Iterable[np.ndarray]) -> str:
    """SHA-256 of numbers, in parts."""
    found = hashlib.sha256()
    for column in columns:
        whole = np.round(np.nan_to_num(np.asarray(column, np.float64), nan=-1.0, posinf=-2.0) * PARTS)
        found.update(whole.astype(np.int64).tobytes())
    return found.hexdigest()[:16]


def marks(index: int) -> list[pytest.MarkDecorator]:
    """Models that slow each other down are played iteration by iteration, which takes longer than to compile."""
    return [pytest.mark.optimised] if "slowdown" in KINDS[index].extras else []


@pytest.mark.parametrize("index", [pytest.param(index, marks=marks(index)) for index in PLAYED])
def test_lists_are_played_as_ever(index: int) -> None:
    cases = [draw_case(KINDS[index], seed) for seed in range(4)]
    assert digest(column for played in play_compiled(cases) for column in played) == PLAYED[index]
    assert digest(column for case in cases for column in Played.of(simulate_by_reference(case))) == PLAYED[index]


@pytest.mark.parametrize("index", ESTIMATED)
def test_estimates_are_made_as_ever(index: int) -> None:
    cases = [draw_list(KINDS[index], seed, streamed=True, limits=True) for seed in range(2)]
    found, models = compiled(cases)
    assert digest([models, *known(found).values()]) == ESTIMATED[index]
    seen = [reference(case) for case in cases]
    by_reference = [np.stack([known(one.estimates)[name] for one in seen]) for name in known(found)]
    assert digest([np.stack([one.models for one in seen]), *by_reference]) == ESTIMATED[index]
