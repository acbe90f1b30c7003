"""Traces as requests of a situation: `read_trace` recognises the format, reads the file and adds missing fields."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from besteffort.errors import InputError, brief
from besteffort.situation import Situation
from besteffort.workload.columns import Labels
from besteffort.workload.fields import EARLIEST
from besteffort.workload.readers import MafOptions, ServeGenOptions
from besteffort.workload.reading import ALL, Drawing, Reading, read
from besteffort.workload.records import Records
from besteffort.workload.requests import NO_LIMIT, Requests
from besteffort.workload.rescale import mean_rate

_RATES, _FEW = (0.005, 1000.0), 20  # requests per second, and requests, beyond which a rate says something


@dataclasses.dataclass(frozen=True)
class TraceInfo:
    """Summary of a trace that was read.

    Attributes:
      source: name of the file.
      kind: its format.
      requests: number of requests.
      span_s: seconds from the first to the last arrival.
      mean_rate: requests per second, one over the mean gap; infinite if the span is 0.
      prompt_tokens, output_tokens: smallest, median and largest length.
      units: how times were read.
      context_tokens: what the models take, prompt and answer together; None where the profile states no limit.
      clipped_outputs, clipped_prompts: share of requests whose output or prompt was cut to fit it.
      raised: share of requests with an empty prompt or output, which counts as one token.
      drawn: fields that the file lacks and that were drawn by seed: `tasks`, `lengths`, `arrivals`.
      notes: what was left out, and why.
    """

    source: str
    kind: str
    requests: int
    span_s: float
    mean_rate: float
    prompt_tokens: tuple[float, float, float]
    output_tokens: tuple[float, float, float]
    units: str
    context_tokens: int | None
    clipped_outputs: float
    clipped_prompts: float
    raised: float
    drawn: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rate = f"{self.requests:,} requests over {self.span_s:,.0f} s, {self.mean_rate:.3g}/s"
        said = [
            f"{self.source} ({self.kind}): {rate}",
            f"prompts of {_range(self.prompt_tokens)} and outputs of {_range(self.output_tokens)} tokens",
        ]
        if self.units:
            said.append(f"times are {self.units}")
        if self.context_tokens is not None:
            said.append(
                f"clipped: {self.clipped_outputs:.2%} of outputs, {self.clipped_prompts:.2%} of prompts, to the "
                f"models' {self.context_tokens:,} tokens"
            )
        if self.raised:
            said.append(f"{self.raised:.2%} have an empty prompt or answer, which counts as one token")
        if self.drawn:
            said.append(f"drawn by seed: {', '.join(self.drawn)}")
        return "; ".join([*said, *self.notes])


def _range(lengths: tuple[float, float, float]) -> str:
    low, middle, high = lengths
    return f"{low:,.0f} to {high:,.0f} (median {middle:,.0f})"


@dataclasses.dataclass(frozen=True)
class Trace:
    """A file of requests that was read, whatever tasks it is for.

    Attributes:
      found: its requests, or what draws them.
    """

    found: Records | Drawing

    @property
    def tasks(self) -> dict[str, int]:
        """How many requests the file has of each task that it names, in the order of the file."""
        label = None if isinstance(self.found, Drawing) else self.found.labels.get("task")
        if label is None:
            return {}
        counts = np.bincount(label.index[label.index >= 0], minlength=len(label.names))
        return {name: count for name, count in zip(label.names, counts.tolist(), strict=True) if count}

    def requests(self, situation: Situation, seed: int = 0) -> tuple[Requests, TraceInfo]:
        """The requests, with what the file lacks drawn by seed, and a summary.

        Missing tasks are drawn from the mix, and missing lengths from the ranges of the tasks. Lengths of 0 become 1;
        where the profile states a context, outputs are clipped to half of it and then prompts to what the output
        leaves. Deadlines are the situation's, limits on the output the clients'.

        Raises:
          InputError: if the trace names a task that the situation lacks.
        """
        arrivals_seed, rest_seed = (int(each) for each in np.random.SeedSequence(seed).generate_state(2))
        return _complete(self.found, situation, np.random.default_rng(arrivals_seed), np.random.default_rng(rest_seed))


def open_trace(
    path: str | Path,
    situation: Situation,
    reading: Reading = ALL,
    *,
    kind: str | None = None,
    maf: MafOptions | None = None,
    servegen: ServeGenOptions | None = None,
) -> Trace:
    """Reads a trace of any known format, for a situation with so many tasks.

    Args:
      path: CSV, JSON lines or JSON, plain or gzip-compressed.
      situation: its number of tasks is that over which counts are spread.
      reading: what to read of it.
      kind: the format, a key of `besteffort.workload.readers.READERS`; None to recognise it.
      maf: options of the MAF format, which holds counts instead of requests.
      servegen: options of the ServeGen format, which holds rates instead of requests.

    Raises:
      InputError: on a damaged file or an unknown format.
    """
    options = {"maf": maf, "servegen": servegen}
    return Trace(read(path, reading, kind=kind, tasks=len(situation.tasks), options=options))


def read_trace(
    path: str | Path,
    situation: Situation,
    reading: Reading = ALL,
    *,
    seed: int = 0,
    kind: str | None = None,
    maf: MafOptions | None = None,
    servegen: ServeGenOptions | None = None,
) -> tuple[Requests, TraceInfo]:
    """Reads a trace of any known format as requests of a situation; see `open_trace` and `Trace.requests`.

    Raises:
      InputError: as they do.
    """
    return open_trace(path, situation, reading, kind=kind, maf=maf, servegen=servegen).requests(situation, seed)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What a file says of requests in order of arrival; arrays of shape (n,), None where it says nothing."""

    arrival_s: np.ndarray
    task: np.ndarray | None
    prompt: np.ndarray | None
    output: np.ndarray | None
    limit: np.ndarray | None = None
    origin: np.ndarray | None = None
    cached: np.ndarray | None = None
    tenant: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def _complete(
    found: Records | Drawing, situation: Situation, arrivals: np.random.Generator, rng: np.random.Generator
) -> tuple[Requests, TraceInfo]:
    if isinstance(found, Drawing):
        once = found.draw(arrivals)
        parts = _Parts(once.arrival_s, once.task, once.prompt_tokens, once.output_tokens, notes=found.notes)
    else:
        parts = _parts(found, situation)
    n = len(parts.arrival_s)
    drawn = ["arrivals"] if isinstance(found, Drawing) else []
    if parts.task is None:
        if len(situation.tasks) > 1:
            drawn.append("tasks")
        task = rng.choice(len(situation.tasks), size=n, p=situation.shares)
    else:
        task = parts.task
    if parts.prompt is None or parts.output is None:
        drawn.append("lengths")
        prompts, outputs = (
            rng.integers(bounds[task, 0], bounds[task, 1], endpoint=True).astype(np.float64)
            for bounds in (
                np.array([task.prompt_tokens for task in situation.tasks]),
                np.array([task.output_tokens for task in situation.tasks]),
            )
        )
    else:
        prompts, outputs = parts.prompt, parts.output

    empty = (prompts < 1) | (outputs < 1)
    prompts, outputs = np.maximum(prompts, 1), np.maximum(outputs, 1)
    context = situation.profile.context_tokens
    fitting_outputs = outputs if context is None else np.minimum(outputs, max(context // 2, 1))
    fitting_prompts = prompts if context is None else np.minimum(prompts, np.maximum(context - fitting_outputs, 1))
    limit = parts.limit
    requests = Requests(
        tasks=situation.task_names,
        arrival_s=parts.arrival_s,
        task=task,
        prompt_tokens=fitting_prompts,
        output_tokens=fitting_outputs,
        deadline_s=situation.deadlines(task, fitting_outputs),
        output_limit=None if limit is None else np.where(np.isnan(limit), NO_LIMIT, limit),
        cached_tokens=None if parts.cached is None else np.minimum(parts.cached, fitting_prompts),
        origin=parts.origin,
        origins=() if parts.origin is None else situation.origin_names,
        tenant=parts.tenant,
        tenants=() if parts.tenant is None else situation.tenant_names,
    )
    rate = mean_rate(requests)
    doubt: tuple[str, ...] = ()
    if not isinstance(found, Drawing) and n >= _FEW and np.isfinite(rate) and not _RATES[0] < rate < _RATES[1]:
        doubt = ("an unusual rate: if times are in another unit, state it, as in `--columns arrival=NAME:ms`",)
    info = TraceInfo(
        source=found.path.name,
        kind=found.kind,
        requests=n,
        span_s=float(parts.arrival_s[-1] - parts.arrival_s[0]),
        mean_rate=rate,
        prompt_tokens=_spread(fitting_prompts),
        output_tokens=_spread(fitting_outputs),
        units="" if isinstance(found, Drawing) else found.units,
        context_tokens=context,
        clipped_outputs=float(np.mean(fitting_outputs < outputs)),
        clipped_prompts=float(np.mean(fitting_prompts < prompts)),
        raised=float(empty.mean()),
        drawn=tuple(drawn),
        notes=(*parts.notes, *doubt),
    )
    return requests, info


def _parts(found: Records, situation: Situation) -> _Parts:
    """The requests of a log that were answered, as far as it says; failed ones have no lengths to play."""
    notes = []
    kept = ~found.failed
    for field in ("prompt", "output"):
        if field in found.counts:
            kept &= np.isfinite(found.counts[field])
    if not kept.any():
        raise InputError(f"{found.path}: every request failed or has no lengths; give a log with answered requests.")
    if not kept.all():
        notes.append(f"{(~kept).sum():,} of {len(kept):,} requests failed or were not answered and are left out")
        found = found.part(kept)
    if found.doubt:
        notes.append(f"{found.doubt}, so of its times only arrivals are used")
    arrival_s = found.seconds["arrival"]
    # Times of this package's own lists are kept as they are, unless since 1970; others count from the first arrival.
    if found.kind != "csv" or arrival_s[0] >= EARLIEST:
        arrival_s = arrival_s - arrival_s[0]
    limit, output = found.counts.get("limit"), found.counts.get("output")
    if limit is not None and output is not None:
        low = limit < np.maximum(output, 1)
        if low.any():
            notes.append(f"{low.sum():,} limits on the output are below it and are not used")
            limit = np.where(low, np.nan, limit)
    cached, prompt = found.counts.get("cached"), found.counts.get("prompt")
    if cached is not None:
        cached = np.nan_to_num(cached if prompt is None else np.minimum(cached, prompt))
        if prompt is None or not cached.any():
            cached = None
        else:
            notes.append(f"{cached.sum() / prompt.sum():.0%} of the prompts' tokens were found in a prefix cache")
    label = found.labels.get("task")
    task = None if label is None else _situation_tasks(found.path, label, situation)
    label, origin = found.labels.get("origin"), None
    if label is not None and situation.origins:
        origin = _situation_origins(found.path, label, situation)
    elif label is not None:
        notes.append(f"`{label.name}` is not read, because the situation lists no `origins`")
    elif situation.origins:
        notes.append("it does not say where requests come from, so they have the delay `network_delay_s` of each pool")
    label, tenant = found.labels.get("tenant"), None
    if label is not None and situation.tenants:
        tenant = _indices(found.path, label, situation.tenant_names, "a tenant", "say whose they are")
    elif label is not None:
        notes.append(f"`{label.name}` is not read, because the situation lists no `tenants`")
    elif situation.tenants:
        notes.append("it does not say whose requests they are, so all count the same")
    return _Parts(arrival_s, task, prompt, output, limit, origin, cached, tenant, (*found.notes, *notes))


def _situation_tasks(path: Path, label: Labels, situation: Situation) -> np.ndarray:
    makes = (
        " `besteffort quickstart --trace` takes the log's tasks, and `besteffort profile fit` writes a situation with "
        "them."
    )
    return _indices(path, label, situation.task_names, "a task", "name their tasks", makes)


def _situation_origins(path: Path, label: Labels, situation: Situation) -> np.ndarray:
    return _indices(path, label, situation.origin_names, "an origin", "say where from")


def _indices(
    path: Path, label: Labels, known: tuple[str, ...], what: str, remedy: str, further: str = ""
) -> np.ndarray:
    """(n,) indices into the names that a situation has of `what`; an empty label has its `remedy`."""
    kind = what.split()[1]
    where = path if label.name == kind else f"{path}: `{label.name}`"
    if (label.index < 0).any():
        raise InputError(f"{path}: `{label.name}` is empty for {(label.index < 0).sum():,} requests; {remedy}.")
    for code in np.unique(label.index).tolist():
        if label.names[code] not in known:
            raise InputError(
                f"{where}: {kind} `{brief(label.names[code])}` is not {what} of the situation, which has "
                f"{', '.join(known)}; rename it in the file or add it to the situation.{further}"
            )
    return np.array([known.index(name) if name in known else -1 for name in label.names])[label.index]


def _spread(lengths: np.ndarray) -> tuple[float, float, float]:
    return float(lengths.min()), float(np.median(lengths)), float(lengths.max())
