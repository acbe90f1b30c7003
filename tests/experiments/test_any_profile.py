"""Random situations: what another seed of the scale changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from experiments.any_profile import SEED, _lists, _place
from experiments.lab import FAST, FULL, Lab
from experiments.random_situations import draw_group

pytestmark = pytest.mark.checkout


def test_another_seed_gives_other_lists_and_other_files(tmp_path: Path) -> None:
    labs = [Lab(dataclasses.replace(FAST, seed=seed), tmp_path) for seed in (0, 1)]
    draw = draw_group(SEED, 0, 1)[0]
    first, other = (_lists(lab, draw, 0) for lab in labs)
    for one in first:
        assert not any(np.array_equal(one.arrival_s, each.arrival_s) for each in other)
    assert len({_place(lab, what) for lab in (*labs, Lab(FULL, tmp_path)) for what in ("0-5", "0-5-dqn")}) == 6
