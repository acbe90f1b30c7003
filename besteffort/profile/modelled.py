"""Profiles of OPT that need no measurement: latency by the roofline, quality as published.

`python -m experiments.opt_profiles` writes the built-in ones with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from besteffort.errors import InputError, brief
from besteffort.profile.published import PUBLICATIONS
from besteffort.profile.roofline import (
    A100,
    GRAPH_ENGINE,
    H100,
    L4,
    OPT,
    QUANTIZED_OPT,
    XEON,
    XEON_ATTAINED,
    Architecture,
    Roofline,
)
from besteffort.profile.types import ModelProfile, Profile, Provenance, Source, TaskQuality

MODELS: Mapping[str, Architecture] = OPT | QUANTIZED_OPT

BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
PROMPTS = (1, 16, 32, 64, 128, 192, 256, 512, 1024, 2048)
# Tokens that a request of the default situation holds on average while it decodes: a prompt of 128 and half of 20 more.
CONTEXT = 138
# What every model of a replica holds when the default cluster is full: `max_batch` such requests at their ends.
REQUESTS, HELD = 32, 148
# vLLM's default of `gpu_memory_utilization`; activations and the engine take the rest.
USABLE = 0.9


@dataclasses.dataclass(frozen=True)
class Platform:
    """A device with what an engine attains on it.

    Attributes:
      roofline: predicts durations.
      dtype: number format of the arithmetic.
      source: where the attained shares come from.
      engine: the engine that the host overhead is of.
    """

    roofline: Roofline
    dtype: str
    source: str
    engine: str = "an engine that replays captured graphs"


_CALIBRATED = "roofline calibrated on measured A100 and H100 iterations (results/roofline_calibration.json)"

PLATFORMS = {
    "a100": Platform(Roofline(A100, GRAPH_ENGINE), "float16", _CALIBRATED),
    "h100": Platform(Roofline(H100, GRAPH_ENGINE), "float16", _CALIBRATED),
    "l4": Platform(
        Roofline(L4, GRAPH_ENGINE),
        "float16",
        f"{_CALIBRATED}, its attained shares assumed on an L4 without a measurement",
    ),
    "cpu": Platform(
        Roofline(XEON, GRAPH_ENGINE, XEON_ATTAINED),
        "bfloat16",
        "roofline with the shares attained on a Xeon Platinum 8452Y (Chen et al., KTransformers, SOSP 2025), assumed "
        "on an 8480+ without a measurement",
        "an engine on a processor, the same as on a GPU",
    ),
}


def memory_bytes(models: Sequence[str]) -> int:
    """Bytes of a replica with the named models: weights, and keys and values of `REQUESTS` requests per model."""
    return sum(MODELS[name].weight_bytes + REQUESTS * HELD * MODELS[name].cache_bytes for name in models)


def opt_profile(name: str, platform: str, models: Sequence[str]) -> Profile:
    """A profile of OPT: latency modelled, quality published.

    Models named `-int8` and `-int4` have weights of that width and compute in 16 bits: only what is read shrinks. Time
    for dequantisation is not added, since no figure of its own is published. `experiments.roofline_check` shows how
    much a measured kernel of 3 bits falls short of that.

    Args:
      name: name of the profile.
      platform: a name of `PLATFORMS`.
      models: names of `MODELS`, from the smallest to the largest.

    Raises:
      InputError: on an unknown platform or model or no model, on models that no publication compares, and on models
        that do not fit the device's memory together, as every replica holds them all.
    """
    if platform not in PLATFORMS:
        raise InputError(f"There is no device `{brief(platform)}`; choose from {', '.join(PLATFORMS)}.")
    if not models:
        raise InputError("`models` is empty; list at least one.")
    for model in models:
        if model not in MODELS:
            raise InputError(f"There is no model `{brief(model)}`; choose from {', '.join(MODELS)}.")
    chosen = PLATFORMS[platform]
    device = chosen.roofline.device
    if (needed := memory_bytes(models)) > USABLE * device.memory_bytes:
        raise InputError(
            f"{', '.join(models)}: weights and key-value caches ({REQUESTS} requests of {HELD} tokens per model) take "
            f"{needed / 1e9:.1f} GB, and {device.name} has {USABLE * device.memory_bytes / 1e9:.1f} GB for them; leave "
            "the largest out or take another device."
        )
    tasks, quality = _qualities(models)
    return Profile(
        format=1,
        name=name,
        device=device.name,
        models=tuple(_model(chosen.roofline, model) for model in models),
        tasks=tasks,
        provenance=_provenance(chosen, models, quality),
        context_tokens=PROMPTS[-1],
    )


def _qualities(models: Sequence[str]) -> tuple[tuple[TaskQuality, ...], Source]:
    """Tasks on which one publication has every model, and the provenance."""
    widths = {_width(model) for model in models} - {""}
    if len(widths) > 1:
        raise InputError(
            f"{', '.join(models)}: no publication compares int8 with int4 of OPT; give models of one of the two."
        )
    published = PUBLICATIONS[widths.pop() if widths else ""]
    tasks = tuple(
        TaskQuality(task, published.metric, published.source[task], tuple(percent[model] for model in models))
        for task, percent in published.percent.items()
        if all(model in percent for model in models)
    )
    return tasks, published.summary


def _width(model: str) -> str:
    return model.rpartition("-")[2] if model in QUANTIZED_OPT else ""


def _model(roofline: Roofline, model: str) -> ModelProfile:
    return ModelProfile(
        model,
        decode=tuple((b, _rounded(roofline.decode_s(MODELS[model], b, CONTEXT))) for b in BATCHES),
        prefill=tuple((p, _rounded(roofline.prefill_s(MODELS[model], p))) for p in PROMPTS),
    )


def _provenance(platform: Platform, models: Sequence[str], quality: Source) -> Provenance:
    roofline = platform.roofline
    host, attained = roofline.host, roofline.efficiency
    overhead = (
        f"assumed host overhead of {platform.engine}: {host.base_s * 1e3:g} ms per iteration, "
        f"{host.decode_layer_s * 1e6:g} µs per layer"
    )
    shares = f"{attained.memory:g} of the memory bandwidth and {attained.matrix:g} of the matrix rate attained"
    widths = sorted({_width(model) for model in models} - {""})
    weights = "".join(
        f"; {width}: weights of the blocks read in {width[3:]} bits, computed in 16, no time for dequantisation"
        for width in widths
    )
    modelled = Source("modelled", platform.source, device=roofline.device.name, dtype=platform.dtype)
    return Provenance(
        decode=dataclasses.replace(
            modelled,
            method=f"{CONTEXT} tokens of context per request; {shares}; {overhead} and "
            f"{host.sequence_s * 1e6:g} µs per request{weights}",
        ),
        prefill=dataclasses.replace(modelled, method=f"one prompt per pass; {shares}; {overhead}{weights}"),
        slowdown=Source(
            "modelled",
            "assumption: none, after Jha et al., arXiv 2401.07886",
            method="small models beside the large one are taken not to hold it back",
        ),
        quality=quality,
    )


def _rounded(seconds: float) -> float:
    """Whole microseconds."""
    return round(seconds, 6)
