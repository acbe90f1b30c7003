"""What `vllm bench serve --save-detailed` and SGLang's `bench_serving --output-details` write: lists of requests.

https://github.com/vllm-project/vllm, vllm/benchmarks/serve.py: one JSON document with `input_lens`, `output_lens`,
`ttfts`, `itls`, `errors` and `start_times` (s, monotonic). A request's last token comes the sum of its `itls` after the
first. https://github.com/sgl-project/sglang, python/sglang/bench_serving.py: JSON lines, one run each, and the same
lists without `start_times`: arrivals are then drawn as the tool draws them, a Poisson process at `request_rate`, or at
the rate reached where that is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from besteffort.errors import InputError
from besteffort.workload.cells import number
from besteffort.workload.columns import MOST_TOKENS
from besteffort.workload.fields import Field
from besteffort.workload.readers.types import Draw, Drawn, Reader, some
from besteffort.workload.sources import Row, Source

_LISTS = ("input_lens", "output_lens", "ttfts")


def _runs(source: Source) -> Iterator[dict[str, Any]]:
    for row in source.rows():
        lists = [row.cells.get(name) for name in _LISTS]
        if not all(isinstance(each, list) for each in lists) or len({len(each) for each in lists}) != 1:
            raise InputError(
                f"{source.place(row.number)}: `input_lens`, `output_lens` and `ttfts` are not lists of one length; "
                "run the benchmark with `--save-detailed` (SGLang: `--output-details`)."
            )
        yield row.cells


def _unfold(source: Source) -> Iterator[Row]:
    number = 0
    for run in _runs(source):
        n = len(run["input_lens"])
        for index in range(n):
            number += 1
            yield Row(
                number,
                {
                    "start_times": _at(run, "start_times", index),
                    "input_lens": run["input_lens"][index],
                    "output_lens": run["output_lens"][index],
                    "ttfts": run["ttfts"][index],
                    "itls": _total(_at(run, "itls", index)),
                    "errors": _at(run, "errors", index),
                    "model_id": run.get("model_id"),
                },
            )


def _at(run: dict[str, Any], name: str, index: int) -> Any:
    values = run.get(name)
    return values[index] if isinstance(values, list) and index < len(values) else None


def _total(gaps: Any) -> float | None:
    """Seconds from the first token to the last; None where gaps are no numbers."""
    if not isinstance(gaps, list) or not all(isinstance(gap, int | float) for gap in gaps):
        return None
    try:
        return float(sum(gaps))
    except OverflowError:
        return None


def _draw(source: Source, tasks: int, options: Any) -> Draw:
    del tasks, options
    prompts: list[float] = []
    outputs: list[float] = []
    rates = []
    for run in _runs(source):
        kept = [
            (prompt, output)
            for prompt, output in zip(run["input_lens"], run["output_lens"], strict=True)
            if isinstance(prompt, int)
            and isinstance(output, int)
            and 0 < output <= MOST_TOKENS
            and 0 <= prompt <= MOST_TOKENS
        ]
        prompts += [prompt for prompt, _ in kept]
        outputs += [output for _, output in kept]
        # A rate that is infinite is none.
        rate, duration = number(run.get("request_rate")) or 0.0, number(run.get("duration")) or 0.0
        if rate <= 0:
            rate = len(kept) / duration if duration > 0 else math.nan
        rates += [rate] * len(kept)
    with np.errstate(over="ignore", divide="ignore"):
        gaps = 1 / np.array(rates)
    if not len(gaps) or not np.isfinite(gaps).all():
        raise InputError(
            f"{source.path}: the benchmark has no answered request, or neither `request_rate` nor `duration`; "
            "give one that has."
        )

    def draw(rng: np.random.Generator) -> Drawn:
        arrival_s = some(source, np.cumsum(rng.exponential(gaps)))
        return Drawn(arrival_s - arrival_s[0], None, np.array(prompts, float), np.array(outputs, float))

    return draw


VLLM = Reader(
    title="vllm bench serve",
    source="https://github.com/vllm-project/vllm",
    fits=lambda source: source.has(*_LISTS, "start_times"),
    fields={
        "arrival": Field(("start_times",), "s"),
        "ttft": Field(("ttfts",), "s"),
        "decode": Field(("itls",), "s"),
        "prompt": Field(("input_lens",)),
        "output": Field(("output_lens",)),
        "failed": Field(("errors",)),
        "model": Field(("model_id",)),
    },
    unfold=_unfold,
)

SGLANG = Reader(
    title="SGLang bench_serving",
    source="https://github.com/sgl-project/sglang",
    fits=lambda source: source.has(*_LISTS),
    draw=_draw,
)
