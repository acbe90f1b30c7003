"""OPT in Flax held against Hugging Face transformers in PyTorch, live, on the same random weights.

Small models of random configurations: logits of padded batches, and greedy generation token by token. Then a published
size: logits in float32, and how far bfloat16 is from them. `tests/opt/data` holds such references for the tests, which
need no PyTorch.

    python -m benchmarks.opt_against_torch [--models 50] [--size opt-125m] [--out FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks.opt_speed import ROOT, in_torch
from benchmarks.timing import machine
from besteffort.opt.config import OPTConfig
from besteffort.opt.generation import generate
from besteffort.opt.model import OPT, forward
from besteffort.opt.runtime import Buckets, Runtime
from besteffort.opt.weights import Model, random_model

TOLERANCE = 1e-4
NEW_TOKENS = 24


def random_config(rng: np.random.Generator, norm_first: bool) -> OPTConfig:
    """A small model; half of them have projections as the 350M model has."""
    hidden = int(rng.choice([16, 32, 64]))
    return OPTConfig(
        vocab=int(rng.integers(50, 300)),
        hidden=hidden,
        layers=int(rng.integers(1, 5)),
        heads=int(rng.choice([1, 2, 4])),
        ffn=int(rng.choice([24, 64, 128])),
        embedding=int(rng.choice([hidden, 12])),
        positions=64,
        norm_first=norm_first,
        final_norm=norm_first and bool(rng.random() < 0.8),
    )


def enlarged(model: Model, factor: float, seed: int) -> Model:
    """Weights so large that logits differ clearly, with biases and scales that count."""

    def change(path: Any, leaf: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(str(path).encode()))
        return leaf * factor if leaf.ndim > 1 else leaf + 0.3 * jax.random.normal(key, leaf.shape, leaf.dtype)

    return dataclasses.replace(model, params=jax.tree.map_with_path(change, model.params))


def padded(rng: np.random.Generator, vocab: int, rows: int, time: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of random lengths, padded on the left or on the right."""
    mask = np.zeros((rows, time), bool)
    for row in mask:
        length = rng.integers(1, time + 1)
        row[slice(0, length) if rng.random() < 0.5 else slice(time - length, time)] = True
    return rng.integers(3, vocab, (rows, time)), mask


def logits_apart(model: Model, twin: Any, tokens: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Largest difference of logits, and the largest logit."""
    with torch.inference_mode():
        theirs = twin(torch.tensor(tokens), attention_mask=torch.tensor(mask).long()).logits.numpy()[mask]
    ours = np.asarray(jax.jit(partial(forward, model.module))(model.params, jnp.asarray(tokens), jnp.asarray(mask)))[
        mask
    ]
    return float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())


def generation_of(twin: Any, prompt: Sequence[int]) -> list[int]:
    """What transformers' `generate` appends greedily."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        made = twin.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
    return made[0, len(prompt) :].tolist()


def small_models(count: int, console: Console) -> dict[str, Any]:
    """Random configurations, every other one with layer norms behind its layers."""
    apart, same = [], 0
    for number in track(range(count), "random models", console=console):
        rng = np.random.default_rng(number)
        model = enlarged(random_model(random_config(rng, number % 2 == 0), seed=number), 10.0, number)
        twin = in_torch(model)
        apart.append(logits_apart(model, twin, *padded(rng, model.config.vocab, 4, 12)))
        prompt = rng.integers(3, model.config.vocab, rng.integers(1, 16)).tolist()
        runtime = Runtime(model, 1, 48, Buckets((1,), (16,), (48,)))
        same += generate(runtime, [prompt], NEW_TOKENS) == [generation_of(twin, prompt)]
    return {
        "models": count,
        "logits_apart_at_most": max(difference for difference, _ in apart),
        "largest_logit": max(size for _, size in apart),
        "within": TOLERANCE,
        "same_generation": same,
    }


def published_size(size: str) -> dict[str, Any]:
    """Logits of one padded batch in float32 against PyTorch's, and bfloat16 against float32."""
    model = random_model(size)
    tokens, mask = padded(np.random.default_rng(0), model.config.vocab, 2, 32)
    apart, largest = logits_apart(model, in_torch(model), tokens, mask)
    run = partial(jax.jit(forward, static_argnums=0), tokens=jnp.asarray(tokens), mask=jnp.asarray(mask))
    wide = np.asarray(run(model.module, model.params))[mask]
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    found = np.asarray(run(OPT(model.config, jnp.dtype(jnp.bfloat16)), narrow))[mask]
    return {
        "size": size,
        "logits_apart_at_most": apart,
        "largest_logit": largest,
        "bfloat16_apart_at_most": float(np.abs(found - wide).max()),
        "bfloat16_same_first_token": float((found.argmax(-1) == wide.argmax(-1)).mean()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, compares, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=50, help="random small models to compare")
    parser.add_argument("--size", default="opt-125m", help="published size to compare")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "opt_against_torch.json", help="file to write")
    args = parser.parse_args(arguments)
    console = Console(width=120)
    result = {
        "machine": machine("jax", "jaxlib", "flax", "torch", "transformers"),
        "device": jax.devices()[0].device_kind,
        "small": small_models(args.models, console),
        "published": published_size(args.size),
    }
    console.print_json(json.dumps(result))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    small, large = result["small"], result["published"]
    agree = max(small["logits_apart_at_most"], large["logits_apart_at_most"]) <= TOLERANCE
    if not agree or small["same_generation"] < small["models"]:
        raise SystemExit("The two sides differ.")


if __name__ == "__main__":
    main()
