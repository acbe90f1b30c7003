"""The measured profile of the laptop tier, and the configuration that goes with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from besteffort.laptop import MODELS
from besteffort.laptop.requests import with_cases
from besteffort.laptop.tasks import TASKS
from besteffort.profile import load_profile, save_profile
from besteffort.runs.config import load_situation
from besteffort.workload.requests import Requests


def test_the_profile_is_measured_and_its_tiers_cost_unequally(tmp_path: Path) -> None:
    profile = load_profile("laptop")
    assert profile.model_names == MODELS
    assert profile.task_names == tuple(TASKS) == load_situation("laptop").task_names
    assert profile.provenance.summary == "decode measured, prefill measured, slowdown measured, quality measured"
    decode = profile.decode_table(16)
    assert (decode[1:, 1:] > 1.2 * decode[:-1, 1:]).all()
    save_profile(profile, tmp_path / "again.json")
    assert load_profile(tmp_path / "again.json") == profile


def test_the_configuration_allows_for_every_case() -> None:
    situation = load_situation("laptop")
    task = np.arange(400) % 4
    times = Requests(situation.task_names, np.arange(400) / 10, task, np.ones(400), np.ones(400), np.ones(400))
    listed = with_cases(times, situation, seed=0)
    for index, known in enumerate(situation.tasks):
        for name in ("prompt_tokens", "output_tokens"):
            low, high = getattr(known, name)
            found = getattr(listed.requests, name)[task == index]
            assert low <= found.min() <= found.max() <= high
