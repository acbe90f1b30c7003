from __future__ import annotations

import dataclasses
import gzip
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.profile.roofline import (
    A100,
    CALIBRATED,
    GRAPH_ENGINE,
    H100,
    OPT,
    Architecture,
    Device,
    Efficiency,
    HostOverhead,
    Roofline,
)

NO_HOST = HostOverhead(0.0, 0.0, 0.0, 0.0)
IDEAL = Efficiency(memory=1.0, matrix=1.0, link=1.0, hop_s=0.0)


def count_tensors(layers: int, hidden: int, embedding: int) -> int:
    """Tensor by tensor, as the checkpoints list them; the output layer is tied to `embed_tokens`."""
    block = {
        "q_proj, k_proj, v_proj, out_proj": 4 * (hidden * hidden + hidden),
        "self_attn_layer_norm, final_layer_norm": 2 * (hidden + hidden),
        "fc1": hidden * 4 * hidden + 4 * hidden,
        "fc2": 4 * hidden * hidden + hidden,
    }
    total = 50272 * embedding + 2050 * hidden + layers * sum(block.values())
    if embedding != hidden:
        return total + 2 * embedding * hidden  # project_in, project_out; no norm at the end
    return total + hidden + hidden


def test_parameters_are_those_of_the_checkpoints() -> None:
    assert OPT["opt-125m"].parameters == 125_239_296
    assert OPT["opt-1.3b"].parameters == 1_315_758_080
    assert OPT["opt-6.7b"].parameters == 6_658_473_984
    for name, model in OPT.items():
        embedding = 512 if name == "opt-350m" else model.hidden
        assert model.parameters == count_tensors(model.layers, model.hidden, embedding)
        assert model.head_parameters == 50272 * embedding
        assert model.parameters == pytest.approx(float(name[4:-1]) * {"m": 1e6, "b": 1e9}[name[-1]], rel=0.06)
        assert model.hidden % model.heads == 0


def test_cache_per_token() -> None:
    assert [OPT[f"opt-{size}"].cache_bytes // 1024 for size in ("125m", "1.3b", "6.7b")] == [36, 192, 512]
    grouped = dataclasses.replace(OPT["opt-6.7b"], kv_heads=8)
    assert grouped.cache_bytes == OPT["opt-6.7b"].cache_bytes / 4


def test_floors() -> None:
    for device, floors_ms in ((A100, (0.123, 1.29, 6.53)), (H100, (0.0747, 0.785, 3.975))):
        ideal = Roofline(device, NO_HOST, IDEAL)
        for size, floor in zip(("125m", "1.3b", "6.7b"), floors_ms, strict=True):
            assert ideal.decode_s(OPT[f"opt-{size}"], 1, 0) * 1e3 == pytest.approx(floor, rel=5e-3)


# One layer, round figures: everything below can be checked by hand.
TINY = Architecture(layers=1, hidden=10, heads=2, kv_heads=2, ffn=40, vocab=100, parameters=2000, head_parameters=1000)
SLOW = Device("slow", memory_bytes=1e6, memory_bytes_per_s=1000.0, flops_per_s=1e4, link_bytes_per_s=10.0)


def test_decode_by_hand() -> None:
    host = HostOverhead(base_s=1.0, decode_layer_s=0.5, prefill_layer_s=99.0, sequence_s=0.25)
    roofline = Roofline(SLOW, host, Efficiency(memory=0.5, matrix=0.8, link=1.0, hop_s=0.0))
    # Bytes: weights 4,000 + 2 x 5 x 40 of cache = 4,400 at 500 per s; operations: 2 x (4,000 + 200) at 8,000 per s.
    assert roofline.decode_s(TINY, batch=2, context=5) == pytest.approx(1 + 0.5 + 2 * 0.25 + 4400 / 500)
    # Bytes 4,000 + 30 x 200 at 500 per s against operations 30 x 4,200 at 8,000 per s: 20 s against 15.75.
    assert roofline.decode_s(TINY, batch=30, context=5) == pytest.approx(1.5 + 7.5 + 20)
    fast = dataclasses.replace(roofline, device=dataclasses.replace(SLOW, memory_bytes_per_s=1e5))
    assert fast.decode_s(TINY, batch=30, context=5) == pytest.approx(1.5 + 7.5 + 15.75)


def test_prefill_by_hand() -> None:
    host = HostOverhead(base_s=1.0, decode_layer_s=99.0, prefill_layer_s=0.5, sequence_s=99.0)
    roofline = Roofline(SLOW, host, IDEAL)
    # One token: 2 x 2,000 operations and 20 of attention against 4,000 bytes at 1,000 per s.
    assert roofline.prefill_s(TINY, 1) == pytest.approx(1.5 + 4)
    # 100 tokens: 100 x 2 x 1,000 + 2 x 1,000 for the output layer + attention 2 x 10 x 100 x 100.
    assert roofline.prefill_s(TINY, 100) == pytest.approx(1.5 + (200_000 + 2_000 + 200_000) / 1e4)
    # Three prompts do not attend to each other.
    assert roofline.prefill_s(TINY, 100, prompts=3) == pytest.approx(1.5 + 3 * (200_000 + 2_000 + 200_000) / 1e4)


def test_communication_by_hand() -> None:
    roofline = Roofline(SLOW, NO_HOST, Efficiency(memory=1.0, matrix=1.0, link=0.5, hop_s=0.125))
    alone = roofline.decode_s(TINY, batch=1, context=0)
    # Two all-reduces of 2 x 3 steps; 20 bytes in 4 pieces at 5 per s.
    expected = alone / 4 + 2 * 6 * (0.125 + 20 / 4 / 5)
    assert roofline.decode_s(TINY, batch=1, context=0, devices=4) == pytest.approx(expected)


@given(
    name=st.sampled_from(sorted(OPT)),
    batch=st.integers(1, 255),
    context=st.integers(0, 2047),
    tokens=st.integers(1, 2047),
)
def test_more_work_takes_longer(name: str, batch: int, context: int, tokens: int) -> None:
    roofline = Roofline(A100, GRAPH_ENGINE)
    model = OPT[name]
    decode = roofline.decode_s(model, batch, context)
    assert decode < roofline.decode_s(model, batch + 1, context)
    assert decode <= roofline.decode_s(model, batch, context + 1)
    assert roofline.prefill_s(model, tokens) <= roofline.prefill_s(model, tokens + 1)
    assert decode > Roofline(A100, GRAPH_ENGINE, IDEAL).decode_s(model, batch, context)


def test_an_engine_with_captured_graphs_as_published() -> None:
    # GPT-2 on an H200 at batch 1: vLLM 766.6 tokens/s, SGLang 964.6 tokens/s.
    h200 = dataclasses.replace(H100, name="H200", memory_bytes_per_s=4.8e12)
    gpt2 = dataclasses.replace(OPT["opt-125m"], parameters=124_439_808)
    assert 1 / 964.6 < Roofline(h200, GRAPH_ENGINE).decode_s(gpt2, 1, 144) < 1.05 / 766.6


ROOT = Path(__file__).resolve().parents[2]


def write_measurements(folder: Path, truth: Roofline, host_by_hardware: dict[str, HostOverhead]) -> Path:
    """A file of the schema of the measured rows, filled by a known roofline."""
    from experiments.roofline_calibration import DEVICES, MODELS

    lines = ["model,hardware,prompt_size,batch_size,token_size,prompt_time,token_time,tensor_parallel"]
    for hardware, host in host_by_hardware.items():
        known = dataclasses.replace(truth, device=DEVICES[hardware], host=host)
        for model, degrees in (("llama2-70b", (2, 4, 8)), ("bloom-176b", (8,))):
            for devices in degrees:
                for prompt, batch in [
                    (128, 1),
                    (256, 1),
                    (512, 1),
                    (512, 2),
                    (512, 4),
                    (2048, 1),
                    (128, 16),
                    (128, 32),
                ]:
                    prefill = 1e3 * known.prefill_s(MODELS[model], prompt, batch, devices)
                    decode = 1e3 * known.decode_s(MODELS[model], batch, prompt + 64, devices)
                    lines.append(f"{model},{hardware},{prompt},{batch},128,{prefill},{decode},{devices}")
        lines.append(f"llama2-70b,{hardware},512,64,128,1.0,1.0,2")
    lines.append("llama2-70b,h100-80gb-pcap,512,1,128,1.0,1.0,2")
    path = folder / "rows.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


@pytest.mark.checkout
def test_the_fit_recovers_a_known_roofline(tmp_path: Path) -> None:
    from experiments.roofline_calibration import errors, fit, read_rows

    truth = Efficiency(memory=0.75, matrix=0.55, link=0.4, hop_s=7e-6)
    hosts = {
        "a100-80gb": HostOverhead(0.0, 3e-4, 4e-4, 1e-4),
        "h100-80gb": HostOverhead(0.0, 1e-4, 2e-4, 1e-4),
    }
    rows = read_rows(write_measurements(tmp_path, Roofline(A100, NO_HOST, truth), hosts))
    assert len(rows) == 2 * 2 * 4 * 8
    fitted = fit([row for row in rows if not row.beyond])
    for field, value in dataclasses.asdict(truth).items():
        assert math.isclose(getattr(fitted.efficiency, field), value, rel_tol=0.02), field
    for name, host in hosts.items():
        assert fitted.hosts[name].decode_layer_s == pytest.approx(host.decode_layer_s, rel=0.02)
    assert all(phase["largest"] < 0.01 for phase in errors(fitted, rows).values())


@pytest.mark.checkout
def test_the_calibration_in_use_is_the_one_that_was_reported() -> None:
    report = json.loads((ROOT / "results" / "roofline_calibration.json").read_text())
    assert Efficiency(**report["efficiency"]) == CALIBRATED
    assert report["error"]["fitted"]["decode"]["median"] < 0.05
    assert report["error"]["fitted"]["prefill"]["median"] < 0.10
