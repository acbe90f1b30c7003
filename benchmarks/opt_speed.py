"""OPT in Flax and Hugging Face transformers in PyTorch: decode and prefill, in one run on one machine.

Both sides have the same random weights of the true shapes, take turns, and count everything that a step needs: calling
the program, choosing the token, handing it to the host. Transformers runs its model as it comes, eagerly and without
the overhead of `generate`. Beside each figure stands the floor: weights and cache through measured memory bandwidth,
operations through measured matrix rate; once at the best rates of the run, and once at those seen just before the case,
for rates of a machine that others use too vary. Without PyTorch only our side is measured.

    python -m benchmarks.opt_speed [--size opt-125m] [--rounds 7] [--out FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.timing import machine
from besteffort.device import cores
from besteffort.opt.config import OPTConfig
from besteffort.opt.runtime import Buckets, Runtime
from besteffort.opt.weights import Model, random_model, to_checkpoint
from besteffort.profiling.floors import Ceilings, decode_floor_s, measure_ceilings, prefill_floor_s

ROOT = Path(__file__).resolve().parent.parent
PROMPT, STEPS, BATCHES = 128, 16, (1, 8)

Timed = Callable[[], float]
"""Does one thing several times and returns the seconds that it took, the median."""


def ours(model: Model) -> dict[str, Timed]:
    """Our side's cases."""
    decodes = {f"decode, batch {batch}": our_decode(model, batch, PROMPT) for batch in BATCHES}
    return {**decodes, f"prefill, {PROMPT} tokens": our_prefill(model, PROMPT)}


def our_decode(model: Model, batch: int, held: int) -> Timed:
    """A decode step of so many rows, which hold so many tokens each at first."""
    context = held + STEPS
    runtime = Runtime(model, batch, context, Buckets((batch,), (held,), (context,)))

    def run() -> float:
        runtime.occupy([held] * batch)
        return median_s(runtime.decode)

    return run


def our_prefill(model: Model, tokens: int) -> Timed:
    """The prefill of a prompt."""
    context = max(2, tokens)
    runtime = Runtime(model, 1, context, Buckets((1,), (tokens,), (context,)))
    prompt = list(range(tokens))

    def run() -> float:
        start = time.perf_counter()
        row, _ = runtime.prefill(prompt)
        took = time.perf_counter() - start
        runtime.release(row)
        return took

    return run


def theirs(twin: Any) -> dict[str, Timed]:
    """The cases of transformers in PyTorch, eager."""
    decodes = {f"decode, batch {batch}": their_decode(twin, batch, PROMPT) for batch in BATCHES}
    return {**decodes, f"prefill, {PROMPT} tokens": their_prefill(twin, PROMPT)}


def their_decode(twin: Any, batch: int, held: int) -> Timed:
    """The same as `our_decode`, on the device of `twin`."""
    import torch

    prompt = torch.arange(held, device=twin.device)[None]
    with torch.inference_mode():
        filled = twin(prompt.repeat(batch, 1), use_cache=True, logits_to_keep=1)

    def run() -> float:
        with torch.inference_mode():
            cache, token = filled.past_key_values, filled.logits[:, -1:].argmax(-1)
            if cache.get_seq_length() > held:
                cache.crop(held - cache.get_seq_length())  # a negative number removes so many tokens

            def step() -> None:
                nonlocal token
                token = twin(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
                token.tolist()

            return median_s(step)

    return run


def their_prefill(twin: Any, tokens: int) -> Timed:
    """The same as `our_prefill`, on the device of `twin`."""
    import torch

    prompt = torch.arange(tokens, device=twin.device)[None]

    def run() -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            twin(prompt, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1).tolist()
            return time.perf_counter() - start

    return run


def median_s(step: Callable[[], object]) -> float:
    """Seconds of a step."""
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def in_torch(model: Model) -> Any:
    """Transformers' OPT with the weights of `model`, in float32."""
    import torch
    from transformers import OPTConfig as TheirConfig
    from transformers import OPTForCausalLM

    with torch.device("meta"):  # without random weights of its own
        twin = OPTForCausalLM(TheirConfig(**to_transformers(model.config)))
    state = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in to_checkpoint(model).items()}
    left = twin.load_state_dict(state, strict=False, assign=True)
    assert not left.unexpected_keys, left
    assert set(left.missing_keys) <= {"lm_head.weight"}, left
    twin.tie_weights()
    return twin.eval()


def to_transformers(config: OPTConfig) -> dict[str, Any]:
    """Settings of transformers' `OPTConfig`."""
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "ffn_dim": config.ffn,
        "word_embed_proj_dim": config.embedding,
        "max_position_embeddings": config.positions,
        "do_layer_norm_before": config.norm_first,
        "_remove_final_layer_norm": config.norm_first and not config.final_norm,
    }


def measure(
    cases: dict[str, dict[str, Timed]], rounds: int, console: Console
) -> tuple[dict[str, dict[str, list[float]]], dict[str, list[Ceilings]]]:
    """Per case the seconds of each side, taken in turns, and what the device attains just before; a round warms up."""
    times: dict[str, dict[str, list[float]]] = {case: {side: [] for side in sides} for case, sides in cases.items()}
    ceilings: dict[str, list[Ceilings]] = {case: [] for case in cases}
    for number in track(range(rounds + 1), "timing", console=console):
        for case, sides in cases.items():
            if number > 0:
                ceilings[case].append(measure_ceilings(jnp.float32, repeats=3))
            for side, run in sorted(sides.items(), reverse=number % 2 == 0):
                took = run()
                if number > 0:
                    times[case][side].append(took)
    return times, ceilings


def floors_s(config: OPTConfig) -> dict[str, Callable[..., float]]:
    """Per case its floor as a function of the ceilings."""
    mean = PROMPT + (STEPS + 1) / 2
    decodes = {
        f"decode, batch {batch}": lambda ceilings, batch=batch: decode_floor_s(config, batch, mean, 4, ceilings)
        for batch in BATCHES
    }
    return {**decodes, f"prefill, {PROMPT} tokens": lambda ceilings: prefill_floor_s(config, PROMPT, 4, ceilings)}


def main(arguments: Sequence[str] | None = None, model: Model | None = None) -> None:
    """Reads the command line, measures (`model`, or the size named there), prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="opt-125m", help="published size whose shapes are used")
    parser.add_argument("--rounds", type=int, default=7, help="times that each case is measured")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "opt_speed.json", help="file to write")
    args = parser.parse_args(arguments)
    console = Console(width=160)
    began = os.getloadavg()[0]
    model = random_model(args.size) if model is None else model
    cases = {case: {"flax": run} for case, run in ours(model).items()}
    packages = ["jax", "jaxlib", "flax"]
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        import torch

        packages += ["torch", "transformers"]
        torch.set_num_threads(cores())
        for case, run in theirs(in_torch(model)).items():
            cases[case]["pytorch"] = run
    else:
        console.print("PyTorch or transformers is not installed; only our side is measured.")
    times, ceilings = measure(cases, args.rounds, console)
    every = [attained for found in ceilings.values() for attained in found]
    best = Ceilings(max(c.bytes_per_s for c in every), max(c.flops_per_s for c in every))
    floors = floors_s(model.config)

    table = Table(title=f"{args.size}, float32, milliseconds: median (fastest - slowest) of {args.rounds}")
    for heading in (
        "case",
        *next(iter(cases.values())),
        "floor",
        "share (at that time)",
        "pytorch / flax",
    ):
        table.add_column(heading)
    rows = {}
    for case, sides in times.items():
        floor_s = floors[case](best)
        median = {side: statistics.median(found) for side, found in sides.items()}
        shares = [floors[case](c) / took for c, took in zip(ceilings[case], sides["flax"], strict=True)]
        ratio = [other / own for own, other in zip(sides["flax"], sides.get("pytorch", []), strict=False)]
        rows[case] = {
            "ms": {side: [round(1e3 * value, 3) for value in found] for side, found in sides.items()},
            "median_ms": {side: round(1e3 * value, 3) for side, value in median.items()},
            "floor_ms": round(1e3 * floor_s, 3),
            "share_of_floor": round(floor_s / median["flax"], 3),
            "share_of_floor_at_that_time": round(statistics.median(shares), 3),
            "pytorch_over_flax": round(statistics.median(ratio), 2) if ratio else None,
        }
        cells = [
            f"{1e3 * median[side]:.2f} ({1e3 * min(found):.2f} - {1e3 * max(found):.2f})"
            for side, found in sides.items()
        ]
        row = rows[case]
        table.add_row(
            case,
            *cells,
            f"{row['floor_ms']:.2f}",
            f"{row['share_of_floor']:.0%} ({row['share_of_floor_at_that_time']:.0%})",
            str(row["pytorch_over_flax"] or ""),
        )
    console.print(table)
    console.print(
        f"{jax.devices()[0].device_kind}: {best.bytes_per_s / 1e9:.1f} GB/s read, "
        f"{best.flops_per_s / 1e9:.0f} GFLOP/s float32; load average before {began:.1f}"
    )
    result = {
        "machine": machine(*packages),
        "device": jax.devices()[0].device_kind,
        "load_average_before": round(began, 2),
        "size": args.size,
        "read_gb_per_s": [round(c.bytes_per_s / 1e9, 2) for c in every],
        "matrix_gflop_per_s": [round(c.flops_per_s / 1e9, 1) for c in every],
        "cases": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
