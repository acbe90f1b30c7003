from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.errors import InputError
from besteffort.profile.modelled import MODELS, PLATFORMS, memory_bytes, opt_profile
from besteffort.profile.published import PUBLICATIONS
from besteffort.profile.roofline import A100, H100, L4, OPT, QUANTIZED_OPT, XEON

FASTEST_FIRST = ("h100", "a100", "l4", "cpu")


def test_devices_have_the_figures_of_their_data_sheets() -> None:
    assert [device.memory_bytes_per_s for device in (H100, A100, L4, XEON)] == [3.35e12, 2.039e12, 3e11, 3.072e11]
    assert [device.flops_per_s for device in (H100, A100, L4, XEON)] == [989.4e12, 312e12, 121e12, 114.688e12]
    assert [device.memory_bytes for device in (H100, A100, L4, XEON)] == [80e9, 80e9, 24e9, 256e9]
    assert [device.link_bytes_per_s for device in (H100, A100, L4, XEON)] == [450e9, 300e9, 32e9, 192e9]


# OPT-6.7B. A decode at batch 1 reads 13,316,947,968 bytes of weights and 138 x 524,288 of cache. A prefill of 2,048
# tokens takes 2,048 x (2 x 6,452,559,872 + 2 x 32 x 4,096 x 2,048) operations, and 2 x 205,914,112 of the output layer.
BYTES = 13_389_299_712
OPERATIONS = 27_529_608_691_712


@pytest.mark.parametrize(
    ("platform", "bytes_per_s", "operations_per_s", "decode_ms", "prefill_ms"),
    [
        ("a100", 0.9 * 2.039e12, 0.656 * 312e12, 8.956, 136.146),
        ("h100", 0.9 * 3.35e12, 0.656 * 989.4e12, 6.101, 44.055),
        ("l4", 0.9 * 300e9, 0.656 * 121e12, 51.250, 348.465),
        ("cpu", 0.716 * 307.2e9, 0.289 * 114.688e12, 62.533, 832.225),
    ],
)
def test_both_limits_by_hand(
    platform: str, bytes_per_s: float, operations_per_s: float, decode_ms: float, prefill_ms: float
) -> None:
    assert BYTES == 13_316_947_968 + 138 * 524_288
    assert OPERATIONS == 2048 * (2 * 6_452_559_872 + 2 * 32 * 4096 * 2048) + 2 * 205_914_112
    model = opt_profile("own", platform, ["opt-6.7b"]).models[0]
    decode_s, prefill_s = dict(model.decode)[1], dict(model.prefill)[2048]
    # 1 ms, 20 us for each of 32 layers, and in decoding 20 us for the request.
    assert decode_s == pytest.approx(1e-3 + 640e-6 + 20e-6 + BYTES / bytes_per_s, abs=1e-6)
    assert prefill_s == pytest.approx(1e-3 + 640e-6 + OPERATIONS / operations_per_s, abs=1e-6)
    assert (1e3 * decode_s, 1e3 * prefill_s) == pytest.approx((decode_ms, prefill_ms), abs=1e-3)


def tensors_in_bytes(name: str, bits: int, row_bytes: int) -> int:
    """Tensor by tensor, as checkpoints list them: matrices of blocks in `bits`, everything else in 2 bytes."""
    model = OPT[name]
    width = 512 if name == "opt-350m" else model.hidden
    total = 2 * (50272 * width + 2050 * model.hidden + (2 * width * model.hidden if width != model.hidden else 0))
    total += 0 if width != model.hidden else 2 * 2 * model.hidden
    for _ in range(model.layers):
        for rows, columns in [(model.hidden, model.hidden)] * 4 + [
            (model.ffn, model.hidden),
            (model.hidden, model.ffn),
        ]:
            total += rows * columns * bits // 8 + rows * row_bytes + 2 * rows  # and biases
        total += 2 * 4 * model.hidden  # two norms
    return total


@pytest.mark.parametrize("name", OPT)
def test_bytes_of_weights(name: str) -> None:
    assert OPT[name].weight_bytes == tensors_in_bytes(name, 16, 0)
    assert QUANTIZED_OPT[f"{name}-int8"].weight_bytes == tensors_in_bytes(name, 8, 2)
    assert QUANTIZED_OPT[f"{name}-int4"].weight_bytes == tensors_in_bytes(name, 4, 4)


def test_what_fewer_bits_save_by_hand() -> None:
    # 32 layers x (12 x 4096^2 weights x 1.5 bytes - 9 x 4096 rows x 4 bytes) fewer than 13,316,947,968.
    assert QUANTIZED_OPT["opt-6.7b-int4"].weight_bytes == 3_657_990_144
    # Decoding at batch 1 on an A100: 3,657,990,144 + 72,351,744 bytes at 1.8351 TB/s, and 1.66 ms of the host.
    model = opt_profile("own", "a100", ["opt-6.7b-int4"]).models[0]
    assert model.decode[0] == (1, pytest.approx(0.003693, abs=1e-6))


@given(
    size=st.sampled_from(sorted(OPT)),
    platform=st.sampled_from(FASTEST_FIRST),
    batch=st.integers(1, 64),
    context=st.integers(0, 2047),
    tokens=st.integers(1, 2048),
)
def test_fewer_bits_never_take_longer(size: str, platform: str, batch: int, context: int, tokens: int) -> None:
    roofline = PLATFORMS[platform].roofline
    models = [MODELS[f"{size}{suffix}"] for suffix in ("-int4", "-int8", "")]
    decodes = [roofline.decode_s(model, batch, context) for model in models]
    prefills = [roofline.prefill_s(model, tokens) for model in models]
    assert decodes == sorted(decodes)
    assert prefills == sorted(prefills)
    alone = [roofline.decode_s(model, 1, context) for model in models]
    assert alone[0] < alone[1] < alone[2]  # bound by memory
    long = [roofline.prefill_s(model, 2048) for model in models]
    assert long[0] == long[1] == long[2]  # bound by operations, which stay


@given(name=st.sampled_from(sorted(MODELS)), batch=st.integers(1, 64), tokens=st.integers(1, 2048))
def test_faster_devices_never_take_longer(name: str, batch: int, tokens: int) -> None:
    rooflines = [PLATFORMS[platform].roofline for platform in FASTEST_FIRST]
    for faster, slower in itertools.pairwise(rooflines):
        assert faster.decode_s(MODELS[name], batch, 138) < slower.decode_s(MODELS[name], batch, 138)
        assert faster.prefill_s(MODELS[name], tokens) < slower.prefill_s(MODELS[name], tokens)


def test_what_is_published_is_of_models_that_there_are() -> None:
    for width, published in PUBLICATIONS.items():
        assert published.summary.kind == "published"
        assert published.source.keys() == published.percent.keys()
        for percent in published.percent.values():
            assert set(OPT) <= set(percent) <= set(MODELS)
            assert {name.rpartition("-")[2] for name in set(percent) - set(OPT)} == ({width} - {""})
            assert all(25 < value < 100 for value in percent.values())
    # Published, but 9 points above the same model in 16 bits.
    assert "opt-1.3b-int4" not in PUBLICATIONS["int4"].percent["arc_easy"]


def test_tasks_without_a_figure_for_a_model_are_left_out() -> None:
    assert opt_profile("own", "h100", ["opt-1.3b-int4", "opt-13b"]).task_names == ("piqa", "lambada")


@pytest.mark.parametrize(
    ("platform", "models", "words"),
    [
        ("tpu", ["opt-125m"], "There is no device `tpu`; choose from a100, h100, l4, cpu."),
        ("a100", ["opt-7b"], "There is no model `opt-7b`; choose from opt-125m, opt-350m"),
        ("l4", ["opt-13b"], "take 29.6 GB, and NVIDIA L4 has 21.6 GB for them; leave the largest out or take another"),
        ("h100", ["opt-66b"], "NVIDIA H100-SXM5-80GB has 72.0 GB"),
        (
            "a100",
            ["opt-13b", "opt-30b-int4", "opt-30b"],
            "opt-13b, opt-30b-int4, opt-30b: weights and key-value caches",
        ),
        ("cpu", ["opt-125m-int4", "opt-125m-int8"], "no publication compares int8 with int4"),
        ("cpu", ["opt-125m", "opt-125m"], "`models` lists `opt-125m` twice"),
        ("cpu", [], "`models` is empty"),
    ],
)
def test_one_sentence_for_each_mistake(platform: str, models: list[str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        opt_profile("own", platform, models)
    message = str(caught.value)
    assert words in message
    assert message.endswith(".")
    assert "\n" not in message


def test_what_just_fits_is_taken() -> None:
    assert memory_bytes(["opt-30b"]) < 72e9 < memory_bytes(["opt-30b", "opt-13b-int4"])
    assert opt_profile("own", "h100", ["opt-30b"]).model_names == ("opt-30b",)
    assert opt_profile("own", "l4", ["opt-13b-int8"]).model_names == ("opt-13b-int8",)
