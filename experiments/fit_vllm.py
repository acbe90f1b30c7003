"""How well a profile that is fitted to half of a real server's log predicts the other half.

    python -m experiments.fit_vllm --log vllm_RTX4090_Llama-3.1-8B_requests.jsonl.gz [--also LOG ...] [--results DIR]

The log: 300 requests to Llama-3.1-8B under vLLM 0.19.0 on one RTX 4090, from github.com/casys-kaist/LLMServingSim,
bench/examples (MIT). The terms are fitted to the times of the first 150 requests; all 300 are then simulated by
`besteffort.simulate` in float64, and the second 150 scored. Beside it what others publish of their simulators. Writes
results/fit_vllm.json and the picture. Logs of other servers (`--also`) are fitted and scored in the same way.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from besteffort import simulate
from besteffort.evaluation import plots
from besteffort.evaluation.report import Column, Table
from besteffort.files import write_json
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality
from besteffort.profiling.fit import Fitted, fit
from besteffort.profiling.fitted_profile import MEASURES, PERCENTILES, HeldOut
from besteffort.profiling.server_log import RequestLog, read_log
from besteffort.routers import make_router
from besteffort.simulator.build import build
from besteffort.simulator.result import Result
from besteffort.situation import Cluster, Situation, Task
from besteffort.version import __version__
from besteffort.workload.requests import Requests
from experiments.lab import exiting

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = {
    "LLMServingSim, this set-up (its best of four; worst P50: 2.0%)": "P50 +0.9%, P95 +0.3%, P99 +0.4%",
    "BLIS": "end to end 6.7% in the median",
    "LLM-Emu": "end to end 5.3% or less, first token 10.4% or less",
    "AgentServeSim": "mean job completion time 5.5%",
    "Vidur": "less than 9%",
}
"""End-to-end errors as their authors state them, each on its own servers; LLMServingSim's on the very same log."""


def replayed(log: RequestLog, found: Fitted) -> Result:
    """The whole log, played by the public simulator with the fitted terms."""
    known = Source("measured", f"fitted to {log.path.name}")
    profile = Profile(
        format=1,
        name="fitted",
        device="unknown",
        models=(
            ModelProfile(
                "model",
                found.decode,
                found.prefill,
                context_cost_s=found.context_cost_s,
                cache_tokens=found.cache_tokens,
                chunk_tokens=found.chunk_tokens,
            ),
        ),
        tasks=(TaskQuality("requests", "none", "none", (100.0,)),),
        provenance=Provenance(known, known, known, known),
        cache_output_share=found.cache_output_share,
    )
    cluster = Cluster(1, found.max_batch, queue_capacity=len(log), network_delay_s=found.delay_s)
    n = len(log)
    requests = Requests(
        *(("requests",), log.arrival_s, np.zeros(n), log.prompt_tokens, log.output_tokens, np.full(n, 1e3)),
        cached_tokens=log.cached_tokens,
    )
    situation = Situation(profile, cluster, (Task("requests"),))
    shape, _ = build(situation, None, history=1)
    return simulate(requests, situation, make_router("static", shape, model=0))


def judged(path: Path, console: Console) -> tuple[dict[str, Any], Fitted, HeldOut]:
    """Fits to the first half of a log and scores the second: the figures, the fit, and the predictions."""
    log = read_log(path)
    half = len(log) // 2
    started = time.process_time()
    with console.status("Fitting") as status:

        def say(doing: str, misfit: float) -> None:
            status.update(f"Fitting: {doing}; misfit {misfit:.3f}")

        found = fit(log, np.arange(len(log)) < half, progress=say)
    seconds = time.process_time() - started
    result = replayed(log, found)
    held_out = HeldOut(
        {"ttft_s": log.ttft_s[half:], "latency_s": log.latency_s[half:]},
        {"ttft_s": (result.first_token_s - result.arrival_s)[half:], "latency_s": result.latency_s[half:]},
    )
    figures = {
        "log": path.name,
        "requests": len(log),
        "fitted_to_the_first": half,
        "processor_seconds_of_the_fit": round(seconds, 1),
        "terms": {
            "decode": found.decode,
            "prefill": found.prefill,
            "context_cost_s": found.context_cost_s,
            "cache_tokens": found.cache_tokens,
            "cache_output_share": found.cache_output_share,
            "chunk_tokens": found.chunk_tokens,
            "shared_tokens": found.shared_tokens,
            "delay_s": found.delay_s,
        },
        "predict_as_well": [str(each) for each in found.alike],
        "said": [{"determined": term.determined, "text": term.text} for term in found.terms],
        "held_out": {
            words: {
                "measured_s": held_out.percentiles(measure)[0].tolist(),
                "predicted_s": held_out.percentiles(measure)[1].tolist(),
                "relative_error": held_out.errors(measure).tolist(),
            }
            for measure, words in MEASURES.items()
        },
    }
    return figures, found, held_out


@exiting("fit_vllm")
def main() -> None:
    """The command line.

    Raises:
      SystemExit: with status 2 on a user's mistake.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True, help="the log")
    parser.add_argument("--also", type=Path, nargs="*", default=(), help="logs of other servers")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="where figures go")
    arguments = parser.parse_args()
    console = Console()
    figures, found, held_out = judged(arguments.log, console)
    others = {path: judged(path, console) for path in arguments.also}
    write_json(
        arguments.results / "fit_vllm.json",
        {
            "version": __version__,
            **figures,
            "percentiles": PERCENTILES,
            "published_by_others": PUBLISHED,
            "others": [other for other, _, _ in others.values()],
        },
    )
    figure = plots.plot_prediction(
        {("", words): (held_out.measured[measure], held_out.predicted[measure]) for measure, words in MEASURES.items()}
    )
    plots.save_figure(figure, arguments.results / "fit_vllm")
    scored = {"besteffort": held_out, **{f"besteffort, {path.name}": each for path, (_, _, each) in others.items()}}
    rows = tuple(
        (
            f"{name}, {words}",
            (", ".join(f"P{p} {100 * e:+.1f}%" for p, e in zip(PERCENTILES, each.errors(measure), strict=True)),),
        )
        for name, each in scored.items()
        for measure, words in MEASURES.items()
    )
    table = Table(
        title="Errors on the second half of the log; others: as published",
        head="Simulator",
        columns=(Column("Error", "text"),),
        rows=(*rows, *((name, (said,)) for name, said in PUBLISHED.items())),
    )
    console.print(table.terminal())
    for name, terms in ((arguments.log.name, found.terms), *((p.name, f.terms) for p, (_, f, _) in others.items())):
        for term in terms:
            said = f"{name}: {'' if term.determined else 'Not determined: '}{term.text}"
            console.print(said, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
