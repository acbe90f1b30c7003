"""Makes `tiny_opt` importable, wherever the tests are run from, and shares one model."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import pytest

sys.path.append(str(Path(__file__).resolve().parent))

from tiny_opt import TINY

from besteffort.opt.weights import Model, random_model


@pytest.fixture(scope="session")
def model() -> Model:
    """Random weights ten times as large as usual, so that its tokens vary."""
    small = random_model(TINY)
    params = jax.tree.map(lambda x: x if x.ndim == 1 else 10 * x, small.params)
    return Model("tiny", small.config, small.module, params)
