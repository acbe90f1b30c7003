"""Traces as requests of a situation: `read_trace` detects the format, reads the file and adds missing fields."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from besteffort.errors import InputError
from besteffort.situation import Situation
from besteffort.workload.readers import READERS, Drawing, MafOptions, ServeGenOptions, Trace
from besteffort.workload.requests import NO_LIMIT, Requests
from besteffort.workload.rescale import mean_rate
from besteffort.workload.table import Table, read_table

MAX_OUTPUT_TOKENS = 1024
CONTEXT_TOKENS = 2048
"""Context of OPT: an answer has at most half of it, and a prompt and its answer fit into it together."""


@dataclasses.dataclass(frozen=True)
class TraceInfo:
    """Summary of a trace that was read.

    Attributes:
      source: name of the file.
      kind: its format.
      requests: number of requests.
      span_s: seconds from the first to the last arrival.
      mean_rate: requests per second, one over the mean gap; infinite if the span is 0.
      clipped_outputs, clipped_prompts: share of requests whose output or prompt was cut to fit the models' context.
      raised: share of requests with an empty prompt or output, which counts as one token.
      drawn: fields that the file lacks and that were drawn by seed: `tasks`, `lengths`, `arrivals`.
    """

    source: str
    kind: str
    requests: int
    span_s: float
    mean_rate: float
    clipped_outputs: float
    clipped_prompts: float
    raised: float
    drawn: tuple[str, ...]

    def __str__(self) -> str:
        drawn = f"; drawn by seed: {', '.join(self.drawn)}" if self.drawn else ""
        return (
            f"{self.source} ({self.kind}): {self.requests:,} requests over {self.span_s:,.0f} s, "
            f"{self.mean_rate:.3g}/s; "
            f"clipped: {self.clipped_outputs:.2%} of outputs, {self.clipped_prompts:.2%} of prompts; "
            f"raised to one token: {self.raised:.2%}{drawn}"
        )


def read_trace(
    path: str | Path,
    situation: Situation,
    *,
    seed: int = 0,
    kind: str | None = None,
    maf: MafOptions | None = None,
    servegen: ServeGenOptions | None = None,
) -> tuple[Requests, TraceInfo]:
    """Reads a trace of any known format as requests of a situation; also returns a summary of the changes.

    Args:
      path: a CSV file, plain or gzip-compressed.
      situation: the source of tasks, their mix, lengths and deadlines.
      seed: seed of fields that are drawn.
      kind: the format, a key of `besteffort.workload.readers.READERS`; None to detect it from the header.
      maf: options of the MAF format, which holds counts instead of requests.
      servegen: options of the ServeGen format, which holds rates instead of requests.

    Raises:
      InputError: on a damaged file, an unknown format, or a task that the situation lacks.
    """
    return interpret(read_table(path), situation, seed=seed, kind=kind, maf=maf, servegen=servegen)


def interpret(
    table: Table,
    situation: Situation,
    *,
    seed: int = 0,
    kind: str | None = None,
    maf: MafOptions | None = None,
    servegen: ServeGenOptions | None = None,
) -> tuple[Requests, TraceInfo]:
    """Like `read_trace`, for a table already read."""
    if kind is None:
        kind = _detect(table)
    elif kind not in READERS:
        raise InputError(f"{table.path}: unknown trace format `{kind}`; choose from {', '.join(READERS)}.")
    arrivals_seed, rest_seed = np.random.SeedSequence(seed).generate_state(2)
    options = {"maf": maf, "servegen": servegen}.get(kind)
    trace = READERS[kind].read(table, Drawing(len(situation.tasks), int(arrivals_seed), options))
    return complete(trace, situation, int(rest_seed))


def complete(trace: Trace, situation: Situation, seed: int) -> tuple[Requests, TraceInfo]:
    """Turns a trace into requests of a situation.

    Missing tasks are drawn from the mix, and missing lengths from the ranges of the tasks. Lengths of 0 become 1;
    outputs are clipped to 1,024 tokens and then prompts to 2,048 less the output. Deadlines are the situation's, limits
    on the output the clients'.

    Raises:
      InputError: if the trace names a task that the situation lacks.
    """
    rng = np.random.default_rng(seed)
    n = len(trace.arrival_s)
    drawn = ["arrivals"] if READERS[trace.kind].draws else []
    if trace.task is None:
        drawn.append("tasks")
        task = rng.choice(len(situation.tasks), size=n, p=situation.shares)
    elif trace.task_names is None:
        task = trace.task
    else:
        task = _situation_tasks(trace.path, trace.task_names, situation)[trace.task]
    if trace.prompt_tokens is None or trace.output_tokens is None:
        drawn.append("lengths")
        prompts, outputs = (
            rng.integers(bounds[task, 0], bounds[task, 1], endpoint=True).astype(np.float64)
            for bounds in (
                np.array([task.prompt_tokens for task in situation.tasks]),
                np.array([task.output_tokens for task in situation.tasks]),
            )
        )
    else:
        prompts, outputs = trace.prompt_tokens, trace.output_tokens

    empty = (prompts < 1) | (outputs < 1)
    prompts, outputs = np.maximum(prompts, 1), np.maximum(outputs, 1)
    fitting_outputs = np.minimum(outputs, MAX_OUTPUT_TOKENS)
    fitting_prompts = np.minimum(prompts, CONTEXT_TOKENS - fitting_outputs)
    limit = trace.output_limit
    requests = Requests(
        tasks=situation.task_names,
        arrival_s=trace.arrival_s,
        task=task,
        prompt_tokens=fitting_prompts,
        output_tokens=fitting_outputs,
        deadline_s=situation.deadlines(task, fitting_outputs),
        output_limit=None if limit is None else np.where(np.isnan(limit), NO_LIMIT, limit),
    )
    info = TraceInfo(
        source=trace.path.name,
        kind=trace.kind,
        requests=n,
        span_s=float(trace.arrival_s[-1] - trace.arrival_s[0]),
        mean_rate=mean_rate(requests),
        clipped_outputs=float(np.mean(fitting_outputs < outputs)),
        clipped_prompts=float(np.mean(fitting_prompts < prompts)),
        raised=float(empty.mean()),
        drawn=tuple(drawn),
    )
    return requests, info


def _detect(table: Table) -> str:
    for kind, reader in READERS.items():
        if reader.columns <= set(table.header):
            return kind
    raise InputError(
        f"{table.path}: the header `{','.join(table.header)[:80]}` fits no known trace format; "
        "name the columns arrival_s,task,prompt_tokens,output_tokens."
    )


def _situation_tasks(path: Path, names: tuple[str, ...], situation: Situation) -> np.ndarray:
    known = situation.task_names
    for name in names:
        if name not in known:
            raise InputError(
                f"{path}: task `{name}` is not a task of the situation, which has {', '.join(known)}; "
                "rename it in the file or add it to the situation."
            )
    return np.array([known.index(name) for name in names])
