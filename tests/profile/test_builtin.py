from __future__ import annotations

import numpy as np
import pytest

from besteffort.profile import builtin_profiles, load_profile
from besteffort.profile.modelled import MODELS, PLATFORMS, USABLE, memory_bytes
from besteffort.profile.roofline import A100, OPT, Device

TASKS = ("piqa", "arc_easy", "winogrande", "lambada")
DEVICES = ("a100", "cpu", "h100", "l4")
IN_16_BITS = ("opt-a100", "opt-a100-all", "opt-cpu", "opt-h100", "opt-l4")
INT4 = tuple(f"opt-{device}-int4" for device in DEVICES)
INT8 = tuple(f"opt-{device}-int8" for device in DEVICES)
MODELLED = (*IN_16_BITS, *INT4, *INT8)


def device_of(name: str) -> Device:
    return PLATFORMS[name.split("-")[1]].roofline.device


def test_names() -> None:
    assert builtin_profiles() == ("demo", "laptop", *sorted(MODELLED))
    for name in builtin_profiles():
        assert load_profile(name).name == name
    for device in DEVICES:
        assert load_profile(f"opt-{device}").model_names == ("opt-125m", "opt-1.3b", "opt-6.7b")
    for name in MODELLED:
        assert load_profile(name).device == device_of(name).name


def test_tasks_are_those_on_which_one_publication_has_all_models() -> None:
    assert {load_profile(name).task_names for name in IN_16_BITS} == {TASKS}
    assert {load_profile(name).task_names for name in INT4} == {("piqa", "arc_easy", "lambada")}
    assert {load_profile(name).task_names for name in INT8} == {("lambada",)}


def test_published_qualities() -> None:
    # EleutherAI/lm-evaluation-harness, results/opt: piqa, arc_easy, winogrande, lambada_openai; acc, zero-shot.
    percent = np.array([[63.00, 71.71, 76.28], [43.52, 57.03, 65.61], [50.28, 59.75, 65.27], [37.90, 57.93, 67.71]])
    np.testing.assert_array_equal([task.quality_percent for task in load_profile("opt-a100").tasks], percent)
    np.testing.assert_allclose(load_profile("opt-a100").quality_table(TASKS), percent / percent[:, 2:], rtol=1e-15)


def test_the_three_models_are_the_same_in_both() -> None:
    three = load_profile("opt-a100")
    chosen = load_profile("opt-a100-all").select(three.model_names)
    assert (chosen.models, chosen.tasks, chosen.provenance) == (three.models, three.tasks, three.provenance)


def test_published_qualities_of_fewer_bits() -> None:
    # Tables 15, 17 and 13 of arXiv 2210.17323v2; 125M, 1.3B, 6.7B in 4 and 16 bits, 13B in 4 and 16.
    percent = [
        [62.02, 72.36, 76.28, 76.39, 76.61, 76.88],
        [39.69, 50.93, 59.72, 60.14, 61.32, 61.83],
        [39.16, 58.80, 66.37, 68.72, 69.12, 70.23],
    ]
    np.testing.assert_array_equal([task.quality_percent for task in load_profile("opt-a100-int4").tasks], percent)
    on_l4 = [row[:3] + row[4:5] for row in percent]  # without 6.7B and 13B in 16 bits
    np.testing.assert_array_equal([task.quality_percent for task in load_profile("opt-l4-int4").tasks], on_l4)
    # 125M, 1.3B, 6.7B in 8 and 32 bits, 13B in 8.
    assert load_profile("opt-a100-int8").tasks[0].quality_percent == (37.9, 57.89, 68.04, 67.69, 68.14)


@pytest.mark.parametrize("name", MODELLED)
def test_provenance_says_that_latency_is_modelled_and_quality_published(name: str) -> None:
    profile = load_profile(name)
    assert profile.provenance.summary == "decode modelled, prefill modelled, slowdown modelled, quality published"
    assert "tokens of context" in profile.provenance.decode.method
    published = {"int4": "2210.17323", "int8": "2211.10438"}.get(name.split("-")[-1], "lm-evaluation-harness")
    assert all(published in task.source for task in profile.tasks)
    for part in (profile.provenance.decode, profile.provenance.prefill):
        assert ("assumed on" in part.source) == (name.split("-")[1] in ("l4", "cpu"))
        assert part.dtype == ("bfloat16" if "-cpu" in name else "float16")
        assert ("dequantisation" in part.method) == (name in INT4 + INT8)


def test_the_context_of_opt() -> None:
    # OPT has 2,048 learned positions; the laptop's models are judged on their own cases only.
    assert {name: load_profile(name).context_tokens for name in builtin_profiles()} == {
        **dict.fromkeys(MODELLED, 2048),
        "laptop": None,
        "demo": None,
    }


@pytest.mark.parametrize("name", MODELLED)
def test_no_prediction_beats_the_hardware(name: str) -> None:
    profile, device = load_profile(name), device_of(name)
    decode, prefill = profile.decode_table(64), profile.prefill_table(2048)
    tokens = np.arange(1, 2049)
    for row, model in enumerate(profile.model_names):
        weights_once = MODELS[model].weight_bytes / device.memory_bytes_per_s
        assert decode[row, 1:].min() > weights_once
        assert prefill[row].min() > weights_once
        body = MODELS[model].parameters - MODELS[model].head_parameters
        assert np.all(prefill[row, 1:] > 2 * body * tokens / device.flops_per_s)
        assert np.all(decode[row, 1:] > 2 * MODELS[model].parameters * np.arange(1, 65) / device.flops_per_s)


def test_floors_and_ceilings_at_batch_1() -> None:
    # Floors: fp16 weights once through 2.039 TB/s. Ceilings: what an engine with captured graphs is known to need.
    decode_ms = 1e3 * load_profile("opt-a100").decode_table(1)[:, 1]
    assert np.all(decode_ms >= [0.124, 1.31, 6.65])
    assert 1 <= decode_ms[0] <= 3
    assert 8 <= decode_ms[2] <= 10


@pytest.mark.parametrize("name", builtin_profiles())
def test_larger_models_take_longer(name: str) -> None:
    profile = load_profile(name)
    if name in INT4 + INT8:
        profile = profile.select([model for model in profile.model_names if "-int" not in model])
    assert np.all(np.diff(profile.decode_table(64)[:, 1:], axis=0) > 0)
    assert np.all(np.diff(profile.prefill_table(2048), axis=0) > 0)


@pytest.mark.parametrize("name", MODELLED)
def test_every_replica_has_room_for_all_models(name: str) -> None:
    models = load_profile(name).model_names
    assert memory_bytes(models) <= USABLE * device_of(name).memory_bytes
    # Caches of 32 requests of 148 tokens: 2 values of 2 bytes per layer and unit of width.
    caches = sum(32 * 148 * 4 * MODELS[model].layers * MODELS[model].hidden for model in models)
    assert memory_bytes(models) == sum(MODELS[model].weight_bytes for model in models) + caches


def test_an_a100_has_no_room_for_one_model_more() -> None:
    total = sum(OPT[model].weight_bytes for model in load_profile("opt-a100-all").model_names)
    assert total < 0.9 * A100.memory_bytes
    assert total + OPT["opt-30b"].weight_bytes > A100.memory_bytes
