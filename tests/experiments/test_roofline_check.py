from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from besteffort.profile.roofline import quantized
from besteffort.profiling.server_log import read_log

pytestmark = pytest.mark.checkout


def test_the_size_of_opt_175b_is_as_published() -> None:
    from experiments.roofline_check import OPT_175B

    assert OPT_175B.parameters == pytest.approx(175e9, rel=0.01)
    # "approximately 63GB of memory, including the embeddings and the output layer", section 5 of arXiv 2210.17323.
    assert quantized(OPT_175B, 3, 4).weight_bytes / 2**30 == pytest.approx(63, rel=0.02)
    # And "9 GB for the maximum of 2048 tokens" of keys and values.
    assert 2048 * OPT_175B.cache_bytes / 2**30 == pytest.approx(9, rel=0.01)


def test_only_requests_that_were_alone_count(tmp_path: Path) -> None:
    from experiments.roofline_check import alone, of_log

    path = tmp_path / "log.csv"
    rows = [(0.0, 0.05, 0.15), (1.0, 1.05, 1.45), (1.4, 1.5, 1.8), (3.0, 3.1, 3.3), (5.0, 5.05, 5.2)]
    path.write_text(
        "arrival_s,first_token_s,last_token_s,prompt_tokens,output_tokens\n"
        + "".join(f"{a},{f},{last},100,11\n" for a, f, last in rows)
    )
    log = read_log(path)
    np.testing.assert_array_equal(alone(log), [True, False, False, True, True])
    steps, first = of_log(log)
    assert (steps.cases, first.cases) == (3, 3)
    assert steps.measured_s == pytest.approx(0.015)  # of 10, 20 and 15 ms
    assert first.measured_s == pytest.approx(0.05)
    # 105.5 tokens of 512 KiB and 13,214,687,232 bytes at 3.015 TB/s, and 1.66 ms of the host.
    assert steps.modelled_s == pytest.approx(1.66e-3 + (13_214_687_232 + 105.5 * 2**19) / 3.015e12)
    assert steps.error == pytest.approx(steps.modelled_s / 0.015 - 1)


def test_published_times_are_those_of_the_results() -> None:
    from experiments.roofline_check import ROOT, published

    kept = {
        one["what"]: one["modelled_s"]
        for one in json.loads((ROOT / "results/roofline_check.json").read_text())["checks"]
    }
    for check in published():
        assert kept[check.what] == pytest.approx(check.modelled_s)
