from __future__ import annotations

import numpy as np
import pytest

from besteffort.profile import builtin_profiles, load_profile
from besteffort.profile.roofline import A100, OPT

TASKS = ("piqa", "arc_easy", "winogrande", "lambada")
MODELLED = ("opt-a100", "opt-a100-all")


def test_names() -> None:
    assert builtin_profiles() == ("laptop", *MODELLED)
    assert load_profile("opt-a100").model_names == ("opt-125m", "opt-1.3b", "opt-6.7b")
    for name in builtin_profiles():
        assert load_profile(name).name == name
    for name in MODELLED:
        assert load_profile(name).task_names == TASKS


def test_published_qualities() -> None:
    # EleutherAI/lm-evaluation-harness, results/opt: piqa, arc_easy, winogrande, lambada_openai; acc, zero-shot.
    percent = np.array([[63.00, 71.71, 76.28], [43.52, 57.03, 65.61], [50.28, 59.75, 65.27], [37.90, 57.93, 67.71]])
    np.testing.assert_array_equal([task.quality_percent for task in load_profile("opt-a100").tasks], percent)
    np.testing.assert_allclose(load_profile("opt-a100").quality_table(TASKS), percent / percent[:, 2:], rtol=1e-15)


def test_the_three_models_are_the_same_in_both() -> None:
    three = load_profile("opt-a100")
    chosen = load_profile("opt-a100-all").select(three.model_names)
    assert (chosen.models, chosen.tasks, chosen.provenance) == (three.models, three.tasks, three.provenance)


@pytest.mark.parametrize("name", MODELLED)
def test_provenance_says_that_latency_is_modelled_and_quality_published(name: str) -> None:
    profile = load_profile(name)
    assert profile.provenance.summary == "decode modelled, prefill modelled, slowdown modelled, quality published"
    assert "tokens of context" in profile.provenance.decode.method
    assert all("lm-evaluation-harness" in task.source for task in profile.tasks)


def test_the_context_of_opt() -> None:
    # OPT has 2,048 learned positions; the laptop's models are judged on their own cases only.
    assert {name: load_profile(name).context_tokens for name in builtin_profiles()} == {
        **dict.fromkeys(MODELLED, 2048),
        "laptop": None,
    }


@pytest.mark.parametrize("name", MODELLED)
def test_no_prediction_beats_the_hardware(name: str) -> None:
    profile = load_profile(name)
    decode, prefill = profile.decode_table(64), profile.prefill_table(2048)
    tokens = np.arange(1, 2049)
    for row, model in enumerate(profile.model_names):
        weights_once = OPT[model].weight_bytes / A100.memory_bytes_per_s
        assert decode[row, 1:].min() > weights_once
        assert prefill[row].min() > weights_once
        body = OPT[model].parameters - OPT[model].head_parameters
        assert np.all(prefill[row, 1:] > 2 * body * tokens / A100.flops_per_s)
        assert np.all(decode[row, 1:] > 2 * OPT[model].parameters * np.arange(1, 65) / A100.flops_per_s)


def test_floors_and_ceilings_at_batch_1() -> None:
    # Floors: fp16 weights once through 2.039 TB/s. Ceilings: what an engine with captured graphs is known to need.
    decode_ms = 1e3 * load_profile("opt-a100").decode_table(1)[:, 1]
    assert np.all(decode_ms >= [0.124, 1.31, 6.65])
    assert 1 <= decode_ms[0] <= 3
    assert 8 <= decode_ms[2] <= 10


@pytest.mark.parametrize("name", builtin_profiles())
def test_larger_models_take_longer(name: str) -> None:
    profile = load_profile(name)
    assert np.all(np.diff(profile.decode_table(64)[:, 1:], axis=0) > 0)
    assert np.all(np.diff(profile.prefill_table(2048), axis=0) > 0)


def test_every_replica_has_room_for_all_models() -> None:
    total = sum(OPT[model].weight_bytes for model in load_profile("opt-a100-all").model_names)
    assert total < 0.9 * A100.memory_bytes
    assert total + OPT["opt-30b"].weight_bytes > A100.memory_bytes
