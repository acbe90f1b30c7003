"""A roofline model of decoder-only transformers: predicts iteration times on a device without measurements.

    decode(b)  = host + sequence x b + max(bytes / attained bandwidth, operations / attained rate) + communication
    prefill(p) = host                + max(bytes / attained bandwidth, operations / attained rate) + communication

with `host = base + layers x per layer`: the time that scheduling, sampling and kernel launches add to the computation.
Bytes are the weights and, in decoding, the key-value cache of all contexts, read once. Operations are two per weight
and token, plus attention. Communication is that of tensor parallelism, two ring all-reduces per layer; on one device it
is 0. The roofline itself: Williams, Waterman, Patterson, CACM 52(4), 2009; its use for transformers: Pope et al.,
"Efficiently Scaling Transformer Inference", MLSys 2023.

`experiments/roofline_calibration.py` calibrates `CALIBRATED` on measured iterations and states the error.
"""

from __future__ import annotations

import dataclasses

_BYTES = 2  # fp16 and bf16


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer.

    Attributes:
      layers: transformer blocks.
      hidden: width of the residual stream.
      heads, kv_heads: attention heads of queries, and of keys and values.
      ffn: width of the feed-forward layer.
      vocab: rows of the embedding.
      parameters: weights that one pass reads; an input embedding that is not the output layer is only looked up.
      head_parameters: weights of the output layer, which a prefill applies to its last token alone.
      saved_bytes: bytes by which weights narrower than 16 bits, with their scales, are smaller; 0 for none.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    parameters: int
    head_parameters: int
    saved_bytes: int = 0

    @property
    def weight_bytes(self) -> int:
        return _BYTES * self.parameters - self.saved_bytes

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * _BYTES * self.layers * self.hidden * self.kv_heads // self.heads


def _opt(layers: int, hidden: int, heads: int, embedding: int | None = None) -> Architecture:
    """An OPT model: biases everywhere, 2,048 learned positions and 2 reserved, output layer tied to the embedding."""
    vocab, ffn = 50272, 4 * hidden
    width = embedding or hidden
    block = 4 * hidden * (hidden + 1) + 2 * hidden * ffn + ffn + hidden + 4 * hidden
    # The 350M model projects in and out of a narrower embedding and has no final layer norm.
    ends = 2 * hidden * width if embedding else 2 * hidden
    parameters = vocab * width + 2050 * hidden + layers * block + ends
    return Architecture(layers, hidden, heads, heads, ffn, vocab, parameters, vocab * width)


# Table 1 of Zhang et al., "OPT: Open Pre-trained Transformer Language Models", arXiv 2205.01068 (layers, width, heads);
# vocabulary and the 350M model's embedding from the configurations on the Hugging Face Hub.
OPT = {
    "opt-125m": _opt(12, 768, 12),
    "opt-350m": _opt(24, 1024, 16, embedding=512),
    "opt-1.3b": _opt(24, 2048, 32),
    "opt-2.7b": _opt(32, 2560, 32),
    "opt-6.7b": _opt(32, 4096, 32),
    "opt-13b": _opt(40, 5120, 40),
    "opt-30b": _opt(48, 7168, 56),
    "opt-66b": _opt(64, 9216, 72),
}


def quantized(model: Architecture, bits: int, row_bytes: int) -> Architecture:
    """An OPT model whose blocks hold matrices of `bits` per weight and `row_bytes` of scales per row.

    The rest stays in 16 bits: embeddings, output layer, biases, norms, keys and values. So does the arithmetic.

    Args:
      model: the model in 16 bits.
      bits: bits of a weight.
      row_bytes: bytes of the scale, and zero point if there is one, of a row of a matrix.
    """
    weights = 4 * model.hidden**2 + 2 * model.hidden * model.ffn
    rows = 4 * model.hidden + model.ffn + model.hidden
    return dataclasses.replace(model, saved_bytes=model.layers * (weights * (16 - bits) // 8 - rows * row_bytes))


# One scale of 16 bits per row of int8, symmetric (Xiao et al., arXiv 2211.10438); a scale and a zero point of 16 bits
# each per row of int4, asymmetric, embeddings and output layer in 16 bits (Frantar et al., arXiv 2210.17323, 5).
QUANTIZED_OPT = {f"{name}-int8": quantized(model, 8, 2) for name, model in OPT.items()} | {
    f"{name}-int4": quantized(model, 4, 4) for name, model in OPT.items()
}


@dataclasses.dataclass(frozen=True)
class Device:
    """Peak figures of an accelerator or processor, from its data sheet.

    Attributes:
      name: product name.
      memory_bytes: size of its memory.
      memory_bytes_per_s: bandwidth of its memory.
      flops_per_s: dense fp16 or bf16 matrix operations per second.
      link_bytes_per_s: bandwidth to its peers, in one direction.
    """

    name: str
    memory_bytes: float
    memory_bytes_per_s: float
    flops_per_s: float
    link_bytes_per_s: float


# NVIDIA data sheets of A100 (June 2021) and H100: SXM modules, dense rates, half of the bidirectional NVLink figure.
A100 = Device("NVIDIA A100-SXM4-80GB", 80e9, 2.039e12, 312e12, 300e9)
H100 = Device("NVIDIA H100-SXM5-80GB", 80e9, 3.35e12, 989.4e12, 450e9)

# NVIDIA data sheet of L4 (2023): 242 TFLOP/s of fp16 with sparsity, half of it dense; half of the 64 GB/s of PCIe 4.0.
L4 = Device("NVIDIA L4", 24e9, 300e9, 121e12, 32e9)

# One socket of Sapphire Rapids, the generation of AWS m7i (Xeon 8488C) and Google C3 (8481C), of which no data sheet is
# public. Intel's product specifications of the Xeon Platinum 8480+: 56 cores of 2.0 GHz, eight channels of DDR5-4800,
# four links of 16 GT/s (24 lanes each: Intel at Hot Chips 33, 2021). AMX: 1,024 bf16 operations per cycle and core
# (Intel 64 and IA-32 optimization reference manual). Size of memory, an assumption: eight modules of 32 GB.
XEON = Device("Intel Xeon Platinum 8480+", 256e9, 8 * 4800e6 * 8, 56 * 1024 * 2.0e9, 4 * 24 * 16e9 / 8)


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """Shares of a device's peak figures that real kernels attain.

    Attributes:
      memory, matrix, link: attained shares of memory bandwidth, matrix rate and link bandwidth.
      hop_s: latency of one step of a ring all-reduce in seconds, in addition to the transfer of its bytes.
    """

    memory: float
    matrix: float
    link: float
    hop_s: float


@dataclasses.dataclass(frozen=True)
class HostOverhead:
    """Time that an engine on its host adds to an iteration, in seconds.

    Attributes:
      base_s: time per iteration.
      decode_layer_s, prefill_layer_s: time per layer.
      sequence_s: time per request in a decode iteration.
    """

    base_s: float
    decode_layer_s: float
    prefill_layer_s: float
    sequence_s: float


# Fitted by experiments/roofline_calibration.py; results/roofline_calibration.json has the same figures and their error.
CALIBRATED = Efficiency(memory=0.9, matrix=0.656, link=0.515, hop_s=5.4e-06)

# On another processor of that generation, a Xeon Platinum 8452Y of 36 cores and 2.0 GHz: 220 of 307.2 GB/s, read in one
# socket, and 21.3 of 73.7 TFLOP/s, of kernels written for AMX (Chen et al., "KTransformers", SOSP 2025). PyTorch's
# attain 7% there. The link is unused on one socket and taken to be as for `CALIBRATED`.
XEON_ATTAINED = Efficiency(memory=0.716, matrix=0.289, link=0.515, hop_s=5.4e-06)

# An engine that replays captured graphs. An assumption: the calibration rows come from an engine that launches every
# kernel from Python, 0.15 to 0.34 ms per layer. With it a 12-layer model of 124M parameters decodes in 1.3 ms on an
# H200; published for GPT-2 there: vLLM 1.30 ms, SGLang 1.04 ms (github.com/deepspeedai/DeepSpeed/pull/8352).
GRAPH_ENGINE = HostOverhead(base_s=1e-3, decode_layer_s=20e-6, prefill_layer_s=20e-6, sequence_s=20e-6)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Durations of iterations on one kind of device.

    Attributes:
      device: peak figures of the device.
      host: time that the engine adds.
      efficiency: attained shares of the peak figures.
    """

    device: Device
    host: HostOverhead
    efficiency: Efficiency = CALIBRATED

    def decode_s(self, model: Architecture, batch: int, context: int | float, devices: int = 1) -> float:
        """Seconds of a decode iteration.

        Args:
          model: the model.
          batch: requests that decode.
          context: mean tokens that each request holds.
          devices: degree of tensor parallelism.
        """
        attention = 4 * model.layers * model.hidden * context
        busy = self._busy_s(
            transferred=model.weight_bytes + batch * context * model.cache_bytes,
            operations=batch * (2 * model.parameters + attention),
            devices=devices,
        )
        host = self.host.base_s + model.layers * self.host.decode_layer_s + batch * self.host.sequence_s
        return host + busy + self._communication_s(model, batch, devices)

    def prefill_s(self, model: Architecture, tokens: int, prompts: int = 1, devices: int = 1) -> float:
        """Seconds of the prefill of `prompts` prompts of `tokens` tokens each, in one pass."""
        total = tokens * prompts
        attention = 2 * model.layers * model.hidden * tokens  # causal: half of the pairs
        operations = total * (2 * (model.parameters - model.head_parameters) + attention)
        busy = self._busy_s(
            transferred=model.weight_bytes,
            operations=operations + 2 * prompts * model.head_parameters,
            devices=devices,
        )
        host = self.host.base_s + model.layers * self.host.prefill_layer_s
        return host + busy + self._communication_s(model, total, devices)

    def _busy_s(self, transferred: int | float, operations: int | float, devices: int) -> float:
        memory_s = transferred / (self.device.memory_bytes_per_s * self.efficiency.memory)
        matrix_s = operations / (self.device.flops_per_s * self.efficiency.matrix)
        return max(memory_s, matrix_s) / devices

    def _communication_s(self, model: Architecture, tokens: int, devices: int) -> float:
        """Two ring all-reduces per layer: each takes `2 (devices - 1)` steps of `1 / devices` of the activations."""
        steps = 2 * 2 * model.layers * (devices - 1)
        step_bytes = _BYTES * tokens * model.hidden / devices
        return steps * (self.efficiency.hop_s + step_bytes / (self.device.link_bytes_per_s * self.efficiency.link))
