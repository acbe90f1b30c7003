"""The benchmarks of OPT run, on a tiny model, with PyTorch or without."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from besteffort.opt.config import OPTConfig
from besteffort.opt.weights import random_model

pytestmark = pytest.mark.checkout

HAS_TORCH = importlib.util.find_spec("torch") is not None and importlib.util.find_spec("transformers") is not None
TINY = OPTConfig(vocab=150, hidden=16, layers=1, heads=2, ffn=24, embedding=16, positions=200)


def test_speed(tmp_path: Path) -> None:
    from benchmarks.opt_speed import main

    main(["--size", "tiny", "--rounds", "1", "--out", str(tmp_path / "speed.json")], random_model(TINY))
    result = json.loads((tmp_path / "speed.json").read_text())
    assert list(result["cases"]) == ["decode, batch 1", "decode, batch 8", "prefill, 128 tokens"]
    for case in result["cases"].values():
        assert set(case["median_ms"]) == ({"flax", "pytorch"} if HAS_TORCH else {"flax"})
        assert 0 <= case["share_of_floor"] < 1
        assert case["floor_ms"] > 0
        assert (case["pytorch_over_flax"] is not None) == HAS_TORCH


@pytest.mark.skipif(not HAS_TORCH, reason="compares with PyTorch")
def test_against_torch() -> None:
    import numpy as np

    from benchmarks.opt_against_torch import TOLERANCE, enlarged, generation_of, in_torch, logits_apart, padded
    from besteffort.opt.generation import generate
    from besteffort.opt.runtime import Buckets, Runtime

    model = enlarged(random_model(TINY), 15.0, 0)
    twin = in_torch(model)
    apart, largest = logits_apart(model, twin, *padded(np.random.default_rng(0), 150, 2, 8))
    assert apart < TOLERANCE < 1 < largest
    runtime = Runtime(model, 1, 48, Buckets((1,), (16,), (48,)))
    assert generate(runtime, [[5, 6, 7]], 24) == [generation_of(twin, [5, 6, 7])]
