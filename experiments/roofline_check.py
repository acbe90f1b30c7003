"""Holds the roofline against times that others measured.

    python -m experiments.roofline_check --log vllm_otel_Llama-2-7b_general.jsonl.gz [--results DIR]

The log: 282 requests to Llama-2-7B under vLLM 0.11.0 on one GPU of 80 GB, from github.com/inference-sim/inference-sim,
eval/ground_truth/jan21-llama7b-train-1 (Apache-2.0); requests that were alone count. The GPU is not named; it decodes
faster than an A100 can read the weights, so it is compared with an H100. Attained shares were calibrated on none of the
figures; the assumed host overhead was chosen with those of GPT-2 in view. Nothing measured was found for an L4 or the
CPU. Writes results/roofline_check.json.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from rich.console import Console

from besteffort.evaluation.report import Column, Table
from besteffort.files import write_json
from besteffort.profile.roofline import A100, GRAPH_ENGINE, H100, OPT, Architecture, Roofline, quantized
from besteffort.profiling.server_log import RequestLog, read_log
from besteffort.version import __version__
from experiments.lab import exiting

ROOT = Path(__file__).resolve().parent.parent

# Touvron et al., arXiv 2307.09288, and its configuration; the input embedding is only looked up.
LLAMA = Architecture(32, 4096, 32, 32, 11008, 32000, 6_738_415_616 - 32000 * 4096, 32000 * 4096)
GPT2 = dataclasses.replace(OPT["opt-125m"], parameters=124_439_808)
H200 = dataclasses.replace(H100, name="NVIDIA H200-SXM5-141GB", memory_bytes=141e9, memory_bytes_per_s=4.8e12)


def _opt_175b() -> Architecture:
    """OPT-175B (table 1 of arXiv 2205.01068), counted as the other sizes."""
    layers, hidden, vocab = 96, 12288, 50272
    parameters = (vocab + 2050) * hidden + layers * (12 * hidden**2 + 13 * hidden) + 2 * hidden
    return Architecture(layers, hidden, 96, 96, 4 * hidden, vocab, parameters, vocab * hidden)


OPT_175B = _opt_175b()


@dataclasses.dataclass(frozen=True)
class Check:
    """A measured time next to the modelled one.

    Attributes:
      what: what was measured, and where.
      measured_s, modelled_s: seconds.
      error: relative error of the modelled time; over several requests their median.
      cases: requests behind it; 1 for a published mean.
    """

    what: str
    measured_s: float
    modelled_s: float
    error: float
    cases: int


def _published(what: str, measured_s: float, modelled_s: float) -> Check:
    return Check(what, measured_s, modelled_s, modelled_s / measured_s - 1, 1)


def published() -> list[Check]:
    """Mean times per token at batch 1 as published.

    OPT-175B: table 6 of Frantar et al., arXiv 2210.17323v2, 128 tokens, in 16 bits on five A100 of which one works at a
    time, and in 3 bits on one. GPT-2: github.com/deepspeedai/DeepSpeed/pull/8352, 766.6 and 964.6 tokens/s.
    """
    a100, h200 = Roofline(A100, GRAPH_ENGINE), Roofline(H200, GRAPH_ENGINE)
    gpt2_s = h200.decode_s(GPT2, 1, 144)
    return [
        _published("OPT-175B in 16 bits, A100, Hugging Face", 0.230, a100.decode_s(OPT_175B, 1, 64)),
        _published("OPT-175B in 3 bits, A100, GPTQ", 0.071, a100.decode_s(quantized(OPT_175B, 3, 4), 1, 64)),
        _published("GPT-2, H200, vLLM", 1 / 766.6, gpt2_s),
        _published("GPT-2, H200, SGLang", 1 / 964.6, gpt2_s),
    ]


def alone(log: RequestLog) -> np.ndarray:
    """(n,) whether no other request was there at any time between a request's arrival and last token."""
    apart = (log.last_token_s[:, None] <= log.arrival_s) | (log.arrival_s[:, None] >= log.last_token_s)
    np.fill_diagonal(apart, True)
    return np.asarray(apart.all(axis=1))


def of_log(log: RequestLog) -> list[Check]:
    """Steps and waits for the first token of the requests that were alone, against an H100."""
    roofline = Roofline(H100, GRAPH_ENGINE)
    rows = np.flatnonzero(alone(log) & (log.output_tokens > 1))
    prompt, output = log.prompt_tokens[rows], log.output_tokens[rows]
    steps_s = (log.last_token_s - log.first_token_s)[rows] / (output - 1)
    first_s = (log.first_token_s - log.arrival_s)[rows]
    modelled_steps_s = np.array([roofline.decode_s(LLAMA, 1, c) for c in (prompt + output / 2).tolist()])
    modelled_first_s = np.array([roofline.prefill_s(LLAMA, p) for p in prompt.tolist()])
    return [
        Check(
            f"Llama-2-7B, H100 (GPU not named), vLLM: {what}",
            float(np.median(measured)),
            float(np.median(modelled)),
            float(np.median(modelled / measured - 1)),
            len(rows),
        )
        for what, measured, modelled in (
            ("step", steps_s, modelled_steps_s),
            ("first token", first_s, modelled_first_s),
        )
    ]


def main() -> None:
    """The command line.

    Raises:
      SystemExit: with status 2 on a user's mistake.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True, help="the log")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="where figures go")
    arguments = parser.parse_args()
    with exiting("roofline_check"):
        checks = [*of_log(read_log(arguments.log)), *published()]
        content = {
            "version": __version__,
            "log": arguments.log.name,
            "checks": [dataclasses.asdict(check) for check in checks],
        }
        write_json(arguments.results / "roofline_check.json", content)
    table = Table(
        title="Modelled against measured by others",
        head="Time per token or to the first",
        columns=(Column("Measured (ms)", "text"), Column("Modelled (ms)", "text"), Column("Error", "text")),
        rows=tuple(
            (c.what, (f"{1e3 * c.measured_s:.2f}", f"{1e3 * c.modelled_s:.2f}", f"{100 * c.error:+.0f}%"))
            for c in checks
        ),
    )
    Console().print(table.terminal())


if __name__ == "__main__":
    main()
