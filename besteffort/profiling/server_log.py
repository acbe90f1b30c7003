"""Reads a server log: for each request its arrival, the times of its first and last token, and its lengths.

Any format that `besteffort.workload.readers` knows will do, if it holds these: the arrival or the entry into the
server's queue, the last token (or the latency), and both lengths. The first token, the start of the iteration that
admitted the request, the model, the task and the replica are optional. So logs of gateways and of benchmarks and the
`requests.csv` of `besteffort simulate` need no conversion. Rows may be in any order. This module does not import JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from besteffort.errors import InputError
from besteffort.workload.doubtful import OTHER_CLOCK_S
from besteffort.workload.reading import ALL, Drawing, Reading, read
from besteffort.workload.records import ROUNDING_S, Records
from besteffort.workload.sources import listed

_JUMP_S, _LONGEST_WAIT_S = 1.0, 60.0
_SLOWEST_TOKEN_S, _FASTEST_TOKEN_S, _DOUBTFUL_TOKEN_S = 10.0, 1e-6, 0.5


@dataclasses.dataclass(frozen=True)
class RequestLog:
    """Answered requests in order of arrival. Arrays of shape (n,); times in seconds since the first arrival.

    Attributes:
      path: the file.
      arrival_s: arrival.
      scheduled_s: start of the iteration that admitted it; nan where the log lacks it.
      first_token_s: first token; nan where the log lacks it.
      last_token_s: last token.
      prompt_tokens, output_tokens: lengths, at least 1.
      model, task, replica: indices into the names.
      models, tasks, replicas: names; a single `""` where the log has no such column.
      notes: rows left out and values corrected, a sentence each.
      kind: the file's format, a key of `besteffort.workload.readers.READERS`.
      units: how its times were read.
      model_column: what the file calls the column that names the models; empty where there is none.
      model_columns: further columns that name models in another sense.
      naming: where the names of the models are from, in a few words.
      cached_tokens: tokens of each prompt that the prefix cache had, fewer than `prompt_tokens`; None where the log
        states none.
    """

    path: Path
    arrival_s: np.ndarray
    scheduled_s: np.ndarray
    first_token_s: np.ndarray
    last_token_s: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    model: np.ndarray
    task: np.ndarray
    replica: np.ndarray
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    replicas: tuple[str, ...]
    notes: tuple[str, ...] = ()
    kind: str = ""
    units: str = ""
    model_column: str = ""
    model_columns: tuple[str, ...] = ()
    naming: str = ""
    cached_tokens: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def latency_s(self) -> np.ndarray:
        """(n,) end-to-end latency."""
        return self.last_token_s - self.arrival_s

    @property
    def ttft_s(self) -> np.ndarray:
        """(n,) time to first token; nan where the log lacks it."""
        return self.first_token_s - self.arrival_s

    def __str__(self) -> str:
        """What was read, in one line."""
        span_s = float(self.arrival_s[-1])
        rate = (len(self) - 1) / span_s if span_s > 0 else np.inf
        lengths = (
            f"{what} of {int(each.min()):,} to {int(each.max()):,} (median {np.median(each):,.0f})"
            for what, each in (("prompts", self.prompt_tokens), ("outputs", self.output_tokens))
        )
        return (
            f"{self.path.name} ({self.kind}): {len(self):,} answered requests over {span_s:,.0f} s, {rate:.3g}/s; "
            f"{' and '.join(lengths)} tokens; times are {self.units}{f'; {self.naming}' if self.naming else ''}"
        )

    def of_model(self, model: int) -> RequestLog:
        """The requests of one model; times stay relative to the whole log's first arrival."""
        return self.part(self.model == model)

    def part(self, rows: np.ndarray | slice) -> RequestLog:
        """Some of the requests; times stay relative to the whole log's first arrival."""
        arrays: dict[str, Any] = {
            name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        return dataclasses.replace(self, **arrays)


def read_logs(paths: Sequence[str | Path], reading: Reading = ALL, names: Sequence[str] = ()) -> tuple[RequestLog, ...]:
    """Server logs, each of other models than the rest, all with names.

    Args:
      paths: the files.
      reading: what to read of each.
      names: names of the models of logs that name none, in the order of these; by default those of their files.

    Raises:
      InputError: as `read_log`; if there are more or fewer names than such logs, or two logs have a model of one name.
    """
    logs = [read_log(path, reading) for path in paths]
    nameless = [log for log in logs if log.models == ("",)]
    if names and not nameless:
        models = ", ".join(model for log in logs for model in log.models)
        raise InputError(
            f"{', '.join(map(str, paths))}: the log names its models ({models}), so `--name` has none to name; "
            "leave it out."
        )
    if names and len(names) != len(nameless):
        raise InputError(
            f"`--name` is given {len(names)} times, and {len(nameless)} logs name no model, "
            f"{', '.join(str(log.path) for log in nameless)}; name one for each of these, in their order."
        )
    given = iter(names)
    named = [_named(log, next(given, None) if log.models == ("",) else None) for log in logs]
    whose: dict[str, RequestLog] = {}
    for log in named:
        for model in log.models:
            if model in whose:
                raise InputError(
                    f"{log.path}: the model `{model}` is in {whose[model].path}, too; give one log for each model, or, "
                    "where logs name none, name them with `--name`, once for each log."
                )
            whose[model] = log
    return tuple(named)


def _named(log: RequestLog, name: str | None) -> RequestLog:
    """The log with names for all of its models, and with words that say where they are from."""
    others = ", ".join(f"`--columns model={column}`" for column in log.model_columns)
    models = tuple(model or name or _stem(log.path) for model in log.models)
    listing = listed(models, 6)
    if log.models != ("",):
        naming = f"models are {listing}, by the column `{log.model_column}`"
        naming += f" (others name them, too: {others})" if others else ""
    elif name is not None:
        naming = f"the model is {listing}, as `--name` says"
    else:
        instead = f"{others} or `--name NAME`" if others else "`--name NAME`, or `--columns model=COLUMN`,"
        naming = f"no column `model`, so the model is called after the file, {listing}; {instead} names it otherwise"
    return dataclasses.replace(log, models=models, naming=naming)


def _stem(path: Path) -> str:
    """The file's name without its endings."""
    name = path.name
    for ending in (".gz", ".csv", ".jsonl", ".json"):
        name = name.removesuffix(ending)
    return name


def read_log(path: str | Path, reading: Reading = ALL) -> RequestLog:
    """Reads a server log, see above.

    Arrivals from another clock than the server's own time stamps (wall clock and monotonic clock) are shifted to the
    server's clock: by the smallest difference to the entry into the queue, so that no request enters before it arrives.

    Raises:
      InputError: if the file is damaged, lacks a column, no request was answered, or many run backwards.
    """
    found = read(path, reading)
    if isinstance(found, Drawing):
        raise InputError(
            f"{found.path}: the file ({found.kind}) holds no times of single requests, so nothing can be fitted to it; "
            "give a log that does, with arrivals and last tokens."
        )
    return log_of(found)


def log_of(found: Records) -> RequestLog:
    """The answered requests of a log that was read.

    Raises:
      InputError: as `read_log`.
    """
    prompt, output, last = _needed(found)
    if found.doubt:
        raise InputError(
            f"{found.path}: {found.doubt}, so units are wrong, durations are taken for times, or columns are swapped "
            "or of different clocks; say what they are, as in `--columns ttft=NAME:ms,latency=NAME:s`, or mend them."
        )
    first, scheduled, queued, arrival = (found.time(field) for field in ("first", "scheduled", "queued", "arrival"))
    answered = np.isfinite(last) & (output >= 1) & ~found.failed
    if not answered.any():
        raise InputError(
            f"{found.path}: no request has a last token and an output of at least one token; "
            "give a log in which requests were answered."
        )
    notes = [f"{note}." for note in found.notes]
    if not answered.all():
        notes.append(
            f"{(~answered).sum():,} of {len(found):,} requests were aborted or unfinished and are left out; "
            "the server's work for them is missing."
        )
    arrival = _arrivals(found, arrival, queued, scheduled, first, last, answered, notes)
    # Gateways write the end into the column of the first token where an answer was not streamed.
    whole = answered & (output > 1) & (first == last)
    if whole.any():
        notes.append(f"{whole.sum():,} first tokens are stated at the end of their answers and count as unknown.")
        first = np.where(whole, np.nan, first)
    first = np.where(np.isnan(first) & (output == 1), last, first)
    if np.isnan(first[answered]).any():
        missing = int(np.isnan(first[answered]).sum())
        notes.append(f"{missing:,} of {int(answered.sum()):,} answered requests have no time of their first token.")
    # Rounding may set a time before an earlier one; what is not known stays so.
    scheduled = np.fmax(scheduled, arrival) + 0.0 * scheduled
    first = np.fmax(first, np.fmax(arrival, scheduled)) + 0.0 * first
    last = np.fmax(last, np.fmax(arrival, np.fmax(scheduled, first))) + 0.0 * last
    begun = np.where(output > 1, np.fmax(first, arrival), arrival)
    per_token_s = float(np.median((last - begun)[answered] / output[answered]))
    if not _FASTEST_TOKEN_S < per_token_s < _SLOWEST_TOKEN_S:
        raise InputError(
            f"{found.path}: a token takes {per_token_s:.3g} s in the median, so times are not in {found.units}; "
            f"state their unit, as in `--columns last={_name(found, 'last')}:ms`."
        )
    if per_token_s > _DOUBTFUL_TOKEN_S:
        notes.append(
            f"a token takes {per_token_s:.3g} s in the median, which is long; if times are in another unit, state "
            f"it, as in `--columns last={_name(found, 'last')}:ms`."
        )
    cached = _cached(found, answered, notes)
    order = np.flatnonzero(answered)
    order = order[np.argsort(arrival[order], kind="stable")]
    start = arrival[order[0]]
    (models, model), (tasks, task), (replicas, replica) = (
        _labels(found, field, order) for field in ("model", "task", "replica")
    )
    return RequestLog(
        path=found.path,
        arrival_s=arrival[order] - start,
        scheduled_s=scheduled[order] - start,
        first_token_s=first[order] - start,
        last_token_s=last[order] - start,
        prompt_tokens=np.maximum(prompt[order], 1).astype(np.int32),
        output_tokens=output[order].astype(np.int32),
        model=model,
        task=task,
        replica=replica,
        models=models,
        tasks=tasks,
        replicas=replicas,
        notes=tuple(notes),
        kind=found.kind,
        units=found.units,
        model_column=found.names.get("model", "") if models != ("",) else "",
        model_columns=found.model_columns,
        cached_tokens=None if cached is None else cached[order],
    )


def _cached(found: Records, answered: np.ndarray, notes: list[str]) -> np.ndarray | None:
    """(n,) tokens of each prompt that the prefix cache had; None where it had none of those answered."""
    cached, prompt = found.counts.get("cached"), np.maximum(found.counts["prompt"], 1)
    if cached is None or not np.nan_to_num(cached[answered]).any():
        return None
    had = np.nan_to_num(np.minimum(cached, prompt))
    share = had[answered].sum() / prompt[answered].sum()
    notes.append(f"{share:.0%} of the prompts' tokens were in the prefix cache, as the log says, and cost no prefill.")
    return np.nan_to_num(np.minimum(had, prompt - 1)).astype(np.int32)


def _needed(found: Records) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts, outputs and last tokens.

    Raises:
      InputError: if the file lacks one of them.
    """
    stated = ", ".join(f"`{name}`" for name in found.names.values())
    for have, what, column in (
        ("prompt" in found.counts, "the prompt length", "prompt_tokens"),
        ("output" in found.counts, "the output length", "output_tokens"),
        ("last" in found.seconds, "the last token or the latency", "last_token_s` or `latency_s"),
    ):
        if not have:
            raise InputError(
                f"{found.path}: no column has {what}; name it `{column}`, or say which one has it with `--columns` "
                f"(read were {stated})."
            )
    return found.counts["prompt"], found.counts["output"], found.seconds["last"]


def _arrivals(
    found: Records,
    arrival: np.ndarray,
    queued: np.ndarray,
    scheduled: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    answered: np.ndarray,
    notes: list[str],
) -> np.ndarray:
    """(n,) arrivals on the clock of the other times."""
    name = _name(found, "arrival")
    if not np.isfinite(queued).any():
        for field, other in (("scheduled", scheduled), ("first", first), ("last", last)):
            seen = answered & np.isfinite(other)
            waits = (other - arrival)[seen]
            if len(waits) and abs(np.median(waits)) > OTHER_CLOCK_S:
                _refuse_drift(found, (name, arrival[seen]), (_name(found, field), other[seen]))
                step_s = _typical_step_s(found, first, last, answered)
                notes.append(
                    f"`{name}` is on another clock than `{_name(found, field)}`; the shortest time between them is "
                    f"assumed to be that of a further token, {step_s:.3g} s, so the part common to all waits stays "
                    "unknown."
                )
                shortest = np.fmin(np.fmin(scheduled, first), last) - arrival
                return arrival + shortest[answered].min() - step_s
            if len(waits):
                return arrival
        return arrival
    queue = _name(found, "queued")
    missing = np.flatnonzero(answered & np.isnan(queued))
    if len(missing):
        raise InputError(
            f"{found.place(int(missing[0]))}: `{queue}` is ``, which is not a number; mend or remove the line."
        )
    waits = (queued - arrival)[answered]
    if np.quantile(waits, 0.95) - waits.min() > _JUMP_S:
        notes.append(f"`{name}` jumps against `{queue}` and is not used.")
        return queued
    if abs(np.median(waits)) > OTHER_CLOCK_S or waits.min() < -ROUNDING_S:
        return arrival + waits.min()
    return arrival


def _typical_step_s(found: Records, first: np.ndarray, last: np.ndarray, answered: np.ndarray) -> float:
    """Median seconds per token after the first, no more than a request takes; 0 where the log has no first tokens."""
    further = found.counts["output"] - 1
    known = answered & (further >= 1) & np.isfinite(first)
    return float(np.median((last - first)[known] / further[known])) if known.any() else 0.0


def _refuse_drift(found: Records, one: tuple[str, np.ndarray], other: tuple[str, np.ndarray]) -> None:
    """Refuses two clocks that no offset reconciles: requests would wait for most of the log.

    Raises:
      InputError: if they do not run alike.
    """
    (name, arrivals), (other_name, others) = one, other
    waits = others - arrivals
    spread, spans = float(np.ptp(waits)), (float(np.ptp(arrivals)), float(np.ptp(others)))
    # Durations, which some call by the names of times, do not grow with the arrivals.
    still = spans[1] < 0.5 * spans[0] and spread > 0.75 * spans[0]
    if still or (spread > _LONGEST_WAIT_S and spread > 0.5 * max(spans)):
        raise InputError(
            f"{found.path}: `{name}` spans {spans[0]:.4g} s and `{other_name}` {spans[1]:.4g} s, so they are of "
            f"different units or clocks that no offset reconciles; state units, as in `--columns arrival={name}:ms`, "
            f"or, if `{other_name}` is how long it took, `--columns latency={other_name}`."
        )


def _name(found: Records, field: str) -> str:
    """What the file calls a field; what this package does where the field was worked out."""
    own = {"arrival": "arrival_s", "first": "first_token_s", "last": "last_token_s"}
    return found.names.get(field, own.get(field, f"{field}_s"))


def _labels(found: Records, field: str, rows: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Names in alphabetical order, and each row's index into them."""
    if field not in found.labels:
        return ("",), np.zeros(len(rows), np.int32)
    label = found.labels[field]
    names, index = np.unique(np.array([*label.names, ""])[label.index[rows]], return_inverse=True)
    return tuple(map(str, names)), index.astype(np.int32)
