"""The shipped checkpoints: small, read by the ordinary code, and as good as their cards say."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.laptop import MODELS, model_directory
from besteffort.laptop.quality import exact_match
from besteffort.laptop.tasks import CONTEXT, TASKS, draw
from besteffort.opt.runtime import Buckets, Runtime
from besteffort.opt.weights import load_model

CASES = 200


def stated(name: str) -> dict[str, tuple[float, float]]:
    """Per task and on average the share of right answers and half its interval, as the card has it."""
    card = (model_directory(name) / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z ]+) \| ([\d.]+) ± ([\d.]+) \|$", card, re.MULTILINE)
    return {task.replace(" ", "_"): (float(mean) / 100, float(half) / 100) for task, mean, half in rows}


def test_they_are_small_and_say_what_they_are() -> None:
    sizes = [load_model(model_directory(name)).config.parameters for name in MODELS]
    assert [round(math.log10(size), 1) for size in sizes] == [5.0, 6.0, 6.7]
    files = [file for name in MODELS for file in model_directory(name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 16e6
    for name in MODELS:
        card = (model_directory(name) / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\nlicense: apache-2.0")
        assert [line for line in card.splitlines() if line.startswith("## ")] == [
            "## Tasks",
            "## Training",
            "## Quality",
            "## Limits",
        ]
    with pytest.raises(InputError, match="`laptop-7b` is no model of the laptop tier"):
        model_directory("laptop-7b")


@pytest.mark.parametrize("name", MODELS)
def test_they_answer_as_well_as_their_cards_say(name: str) -> None:
    """On other cases, within three standard errors of the difference."""
    runtime = Runtime(load_model(model_directory(name)), 16, CONTEXT, Buckets((16,), (16,), (CONTEXT,)))
    for task in TASKS:
        share, half = stated(name)[task]
        found = exact_match(runtime, draw(task, CASES, seed=5, held_out=True)).mean()
        error = math.hypot(math.sqrt(max(share * (1 - share), 0.01) / CASES), half / 1.96)
        assert found == pytest.approx(share, abs=3 * error)


def test_larger_models_are_better_beyond_the_interval_and_none_is_perfect() -> None:
    cards = [stated(name) for name in MODELS]
    assert all(set(card) == {*TASKS, "mean"} for card in cards)
    for smaller, larger in itertools.pairwise(cards):
        beyond = {
            task
            for task, (share, half) in larger.items()
            if share - smaller[task][0] > math.hypot(half, smaller[task][1])
        }
        assert "mean" in beyond
        assert len(beyond & set(TASKS)) >= 3
    assert (np.array([[card[task][0] for task in TASKS] for card in cards]) < 1).all()
