"""Measures profiles: durations of the engine's iterations on JAX's default device.

Every figure is the time of whole iterations of `besteffort.opt.engine`, from admission until the event loop has the
tokens, including the host's overhead. That overhead occurs once per iteration, however many prompts it reads, so a
prefill in the profile is an iteration that reads one prompt, less an iteration that computes nothing; with
`chunk_tokens` the iterations that read it, less as many. Programs come in buckets, so tables are staircases: a size
costs as much as the bucket that holds it, and both ends of a bucket become points of the profile.

With the clock `processor` it is the engine in virtual time that is measured (`besteffort.opt.virtual`): processor time,
each model on a device of its own. Iterations of all kinds then come in turn, in random order, as they do in service.

Figures are written one by one, as lines of JSON next to the profile, with their spread and the device's floor, so that
a killed run can continue. With the clock `processor` they all come at the end, since their iterations take turns.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from besteffort.device import device_name
from besteffort.errors import InputError
from besteffort.evaluation.report import Column, Table
from besteffort.files import append_jsonl, check_new_file, read_jsonl, write_jsonl
from besteffort.opt.config import PUBLISHED
from besteffort.opt.engine import Answer, Instance
from besteffort.opt.hub import short_name
from besteffort.opt.runtime import Buckets, Runtime
from besteffort.opt.sampling import GREEDY
from besteffort.opt.virtual import VirtualEngine
from besteffort.opt.weights import Model, load_model, random_model
from besteffort.profile.files import load_profile, save_profile
from besteffort.profile.types import ModelProfile, Points, Profile, Provenance, Source, TaskQuality
from besteffort.profiling.floors import Ceilings, decode_floor_s, measure_ceilings, prefill_floor_s
from besteffort.validation import from_json
from besteffort.version import __version__

PUBLISHED_QUALITIES = "opt-a100-all"
"""Built-in profile whose qualities are the default for published sizes."""

_WARM_UP = 2
_PATIENCE_S = 60.0
_FEW_SAMPLES = 4  # that say how a machine keeps its pace
_NOTABLE = 0.1

ProgressCallback = Callable[[str, int, int], None]
"""Called with the current activity, the number of steps done, and the total number of steps."""


@dataclasses.dataclass(frozen=True)
class MeasurementPlan:
    """What to measure.

    Attributes:
      models: published sizes by name (with random weights of their shapes, which are as fast as trained ones), or
        models by directory or hub name; from the smallest to the largest.
      dtype: `float32` or `bfloat16`.
      max_batch: largest batch of a decode step.
      context: longest sequence in tokens, prompt and answer.
      repeats: iterations per figure, which is their median; fewer, but at least 3, if they would take over a minute.
      chunk_tokens: the engine reads prompts in parts, of which an iteration takes so many tokens; None: whole.
      clock: what counts: time that passes (`wall`), or for the engine in virtual time that of the processor, in which
        models do not slow each other down.
      buckets: sizes of the engine's programs; by default those of `Buckets.up_to`.

    Raises:
      InputError: if there is no model or a repeated one, or a number is out of range.
    """

    models: tuple[str, ...]
    dtype: str = "float32"
    max_batch: int = 32
    context: int = 512
    repeats: int = 15
    chunk_tokens: int | None = None
    clock: Literal["wall", "processor"] = "wall"
    buckets: Buckets | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("No model to measure; name at least one, such as `opt-125m`.")
        for name in self.names:
            if self.names.count(name) > 1:
                raise InputError(f"`{name}` is to be measured twice; name it once.")
        if self.repeats < 3:
            raise InputError(f"`repeats` is {self.repeats}; give at least 3, so that there is a median.")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise InputError(f"`chunk_tokens` is {self.chunk_tokens}; give at least 1, or none to read prompts whole.")
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"`dtype` is {self.dtype}; choose float32 or bfloat16.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models in the profile: the last part of their path or hub name."""
        return tuple(map(short_name, self.models))


@dataclasses.dataclass(frozen=True)
class Point:
    """The conditions of one measurement.

    Attributes:
      model: name of the model.
      kind: `decode`, `prefill`, `host` (an iteration that computes nothing) or `slowdown` (decode steps alone and
        together with other models).
      size: batch size, or prompt tokens.
      context: tokens that attention reads of each request; 0 for a prefill.
      beside: names of the models that iterate at the same time.
    """

    model: str
    kind: Literal["decode", "prefill", "host", "slowdown"]
    size: int
    context: int = 0
    beside: tuple[str, ...] = ()

    def __str__(self) -> str:
        match self.kind:
            case "prefill":
                return f"{self.model}: prefill of {self.size} tokens"
            case "decode":
                return f"{self.model}: decode at batch {self.size}, context {self.context}"
            case "host":
                return f"{self.model}: nothing to compute"
            case _:
                return f"{self.model}: next to {' and '.join(self.beside) or 'no other model'}"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One measured figure, and one line of the file of figures.

    Attributes:
      point: its conditions.
      median_s: median duration of the iterations, seconds.
      quartiles_s: first and third quartile, the uncertainty of the median.
      repeats: number of iterations.
      floor_s: least time that the device needs for the work, seconds.
      mean_s: their mean, where that is what counts: of processor times, which no wait for the processor distorts.
    """

    point: Point
    median_s: float
    quartiles_s: tuple[float, float]
    repeats: int
    floor_s: float
    mean_s: float | None = None

    @property
    def seconds(self) -> float:
        """What the profile says."""
        return self.median_s if self.mean_s is None else self.mean_s


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of a measurement.

    Attributes:
      profile: the profile.
      ceilings: peak rates of the device.
      figures: the measurements that the profile is made from.
      remarks: sentences on how well the serving model's terms describe the figures.
    """

    profile: Profile
    ceilings: Ceilings
    figures: tuple[Measurement, ...]
    remarks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Qualities:
    """Qualities of models on tasks: the content of a file, or a part of a profile.

    Attributes:
      models: names of the models.
      tasks: tasks with a figure for each of these models, in their order.
      source: provenance of the figures.
    """

    models: tuple[str, ...]
    tasks: tuple[TaskQuality, ...]
    source: Source


def read_qualities(names: Sequence[str], file: str | Path | None = None) -> Qualities:
    """Reads qualities of models from a profile or a file of `Qualities`; by default the published ones of OPT.

    Raises:
      InputError: if the file cannot be read, or lacks one of the models.
    """
    where = PUBLISHED_QUALITIES if file is None else str(file)
    found = _qualities(where)
    for name in names:
        if name not in found.models:
            raise InputError(
                f"{where}: there is no quality of `{name}`, only of {', '.join(found.models)}; "
                "name a file that has it with `--qualities`."
            )
    picked = [found.models.index(name) for name in names]
    tasks = []
    for task in found.tasks:
        if len(task.quality_percent) != len(found.models):
            raise InputError(
                f"{where}: task `{task.name}` has {len(task.quality_percent)} values for {len(found.models)} models; "
                "give one per model."
            )
        tasks.append(dataclasses.replace(task, quality_percent=tuple(task.quality_percent[i] for i in picked)))
    return Qualities(tuple(names), tuple(tasks), found.source)


def _qualities(where: str) -> Qualities:
    try:
        content = Path(where).read_bytes()
        if "source" in json.loads(content):
            return from_json(Qualities, content, where)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
    profile = load_profile(where)
    return Qualities(profile.model_names, profile.tasks, profile.provenance.quality)


def measure_profile(
    plan: MeasurementPlan,
    qualities: Qualities,
    out: Path,
    *,
    resume: bool = False,
    progress: ProgressCallback | None = None,
) -> Report:
    """Measures models on JAX's default device and writes their profile.

    Args:
      plan: what to measure.
      qualities: qualities of the same models, in the same order.
      out: the profile's file; the figures go to `figures_file(out)`.
      resume: continue with the existing figures.
      progress: called with the current activity, the number of steps done and the total.

    Raises:
      InputError: if a model cannot be loaded or does not fit, if there are figures already and `resume` is off, or they
        are of another plan or device, or a file cannot be written; if the clock is the processor's and another device
        computes.
    """
    if plan.clock == "processor" and jax.default_backend() != "cpu":
        raise InputError(
            f"`clock` is `processor`, but {device_name()} computes, whose time the processor's clock does not count; "
            "choose `wall`."
        )
    check_new_file(out, replaces=True)
    progress = progress or (lambda what, done, total: None)
    file = figures_file(out)
    stated = {name: value for name, value in dataclasses.asdict(plan).items() if value is not None}
    about = {"plan": stated, "device": device_name(), "libraries": _libraries()}
    about = json.loads(json.dumps(about))  # in the form that reading the file returns
    known = _known_figures(about, file, resume)
    with ExitStack() as stack:
        rigs = []
        for name, model in zip(plan.names, plan.models, strict=True):
            progress(f"{name}: loading", 0, 1)
            loaded = _load(model, plan.dtype)
            context = min(plan.context, loaded.config.positions)
            runtime = Runtime(loaded, plan.max_batch, context, plan.buckets, plan.chunk_tokens)
            rigs.append(_TimedModel(name, Instance(runtime, plan.max_batch)))
            stack.callback(rigs[-1].instance.close)
        if not file.exists():
            write_jsonl(file, [about])
        ceilings = _ceilings(plan, file, progress)
        if plan.clock == "processor":
            figures = _in_turn(rigs, known, ceilings, plan.repeats, file, progress)
        else:
            figures = asyncio.run(_measure_all(plan, rigs, known, ceilings, file, progress))
    rates = f"{ceilings.bytes_per_s / 1e9:.3g} GB/s and computes {ceilings.flops_per_s / 1e9:.4g} GFLOP/s"
    remarks = [f"The device reads {rates} of matrix products; floors are what these allow."]
    profile = Profile(
        format=1,
        name=out.stem,
        device=device_name(),
        models=tuple(_model_profile(rig, plan.names, figures, remarks) for rig in rigs),
        tasks=qualities.tasks,
        provenance=_provenance(plan, qualities.source),
    )
    remarks += [*interference_remarks(profile, figures), end_remark(profile)]
    save_profile(profile, out)
    return Report(profile, ceilings, tuple(figures), tuple(remarks))


class Sampler:
    """Measures an engine in virtual time, and then while it plays tells how the machine keeps its pace.

    It has caches of its own, so that it may measure between any two iterations of the engine. As with the clock
    `processor`, iterations of all kinds come in turn, in random order, and what counts is their mean.

    Attributes:
      usual: the figures that were taken for the usual pace.
      factors: what `gauge` said, by model.
    """

    def __init__(self, engine: VirtualEngine, *, every: int = 2, memory_s: float = 0.5, seed: int = 0) -> None:
        """Nothing measured; before `gauge` is asked, `take` tells the usual pace.

        Args:
          engine: has compiled.
          every: iterations of a model from one that `gauge` measures to the next.
          memory_s: seconds of the machine's clock after which what was measured counts 1/e for `gauge`.
          seed: of the order.
        """
        self._rigs = {
            name: _TimedModel(name, Instance(instance.runtime.twin(), instance.capacity))
            for name, instance in engine.instances.items()
        }
        self._every, self._memory_s = every, memory_s
        self._rng = np.random.default_rng(seed)
        self._turns: dict[str, list[Point]] = {name: [] for name in self._rigs}
        self.usual: tuple[Measurement, ...] = ()
        self._mean_s: dict[Point, float] = {}
        self._asked = dict.fromkeys(self._rigs, 0)
        self._latest_s = dict.fromkeys(self._rigs, -math.inf)
        self._took_s, self._usual_s, self._samples = (dict.fromkeys(self._rigs, 0.0) for _ in range(3))
        self.factors: dict[str, list[float]] = {name: [] for name in self._rigs}

    def measure(self, rounds: int) -> tuple[Measurement, ...]:
        """Measures every kind of iteration so often."""
        found: dict[Point, list[float]] = {}
        for _ in range(rounds):
            for name, rig in self._rigs.items():
                for point in self._shuffled(name):
                    found.setdefault(point, []).append(rig.compute(point))
        return tuple(_figure(point, times_s, 0.0, mean=True) for point, times_s in found.items())

    def take(self, figures: Sequence[Measurement]) -> tuple[ModelProfile, ...]:
        """Takes figures for the usual pace; returns the tables, as a profile has them."""
        self.usual = tuple(figures)
        self._mean_s = {figure.point: figure.seconds for figure in figures}
        return tuple(_model_profile(rig, (), figures, []) for rig in self._rigs.values())

    def gauge(self, model: str) -> float:
        """The factor by which iterations of a model take longer just now than when they were measured."""
        if self._asked[model] % self._every == 0:
            # As when they were measured, an iteration of the same model comes before the one that counts.
            self._rigs[model].compute(self._next(model))
            self._look(model)
        self._asked[model] += 1
        # Where an iteration takes longer than what was measured counts, there are never as many.
        for _ in range(_FEW_SAMPLES):
            if self._samples[model] < _FEW_SAMPLES:
                self._look(model)
        factor = self._took_s[model] / self._usual_s[model]
        self.factors[model].append(factor)
        return factor

    def _look(self, model: str) -> None:
        point = self._next(model)
        took_s, now = self._rigs[model].compute(point), time.monotonic()
        kept = math.exp((self._latest_s[model] - now) / self._memory_s)
        self._latest_s[model] = now
        self._took_s[model] = kept * self._took_s[model] + took_s
        self._usual_s[model] = kept * self._usual_s[model] + self._mean_s[point]
        self._samples[model] = kept * self._samples[model] + 1.0

    def _next(self, model: str) -> Point:
        if not self._turns[model]:
            self._turns[model] = [point for point in self._shuffled(model) if point.kind != "host"]
        return self._turns[model].pop()

    def _shuffled(self, model: str) -> list[Point]:
        points = self._rigs[model].points(())
        return [points[index] for index in self._rng.permutation(len(points))]


def figures_file(out: Path) -> Path:
    """The file of a profile's figures: `profile.figures.jsonl` next to `profile.json`."""
    return out.with_name(f"{out.name.removesuffix('.json')}.figures.jsonl")


def tables(report: Report) -> list[Table]:
    """One table per model: the median, both quartiles and the floor of each figure."""
    columns = (
        Column("median ms", "milliseconds", 3),
        Column("quarter", "milliseconds", 3, key="quarter_s"),
        Column("3 quarters", "milliseconds", 3, key="three_quarters_s"),
        Column("floor ms", "milliseconds", 3),
        Column("floor %", "percent", 0, key="floor_share"),
    )
    found = []
    for name in report.profile.model_names:
        rows = []
        for figure in report.figures:
            if figure.point.model == name:
                attained = figure.floor_s / figure.median_s
                row = (figure.median_s, *figure.quartiles_s, figure.floor_s, attained)
                rows.append((str(figure.point).partition(": ")[2], row))
        found.append(Table(name, "iteration", columns, tuple(rows)))
    return found


class _TimedModel:
    """A model in an instance of the engine, whose iterations can be timed.

    Attributes:
      name: name of the model.
      runtime, instance: its engine.
      companion: the decode step that it repeats while another model is timed.
    """

    def __init__(self, name: str, instance: Instance) -> None:
        self.name = name
        self.instance = instance
        self.runtime = instance.runtime
        buckets = self.runtime.buckets
        batch, length = buckets.batch[len(buckets.batch) // 2], buckets.length[len(buckets.length) // 2]
        self.companion = Point(name, "decode", batch, length)

    def points(self, others: Sequence[str]) -> list[Point]:
        """Conditions of all figures of the model; those with `others` come last."""
        buckets = self.runtime.buckets
        points = [Point(self.name, "decode", b, c) for b, c in itertools.product(buckets.batch, buckets.length)]
        points += [Point(self.name, "prefill", tokens) for tokens in buckets.prompt]
        points.append(Point(self.name, "host", 0))
        groups = [(), *((other,) for other in others), *([tuple(others)] if len(others) > 1 else [])]
        size, context = self.companion.size, self.companion.context
        return points + [Point(self.name, "slowdown", size, context, beside) for beside in groups if others]

    def floor_s(self, point: Point, ceilings: Ceilings) -> float:
        config, itemsize = self.runtime.model.config, jnp.dtype(self.runtime.model.dtype).itemsize
        if point.kind == "host":
            return 0.0
        if point.kind == "prefill":
            return prefill_floor_s(config, point.size, itemsize, ceilings)
        return decode_floor_s(config, point.size, point.context, itemsize, ceilings)

    def set_up(self, point: Point) -> None:
        """Puts the instance where the next iteration is that of the point."""
        if point.kind == "host":
            self.instance.adopt([], 0)
        elif point.kind == "prefill":
            self.instance.adopt([], 0)
            self.instance.place(_request(self.name, point.size, 1))
        else:
            endless = [_request(self.name, 1, 1 << 30) for _ in range(point.size)]
            self.instance.adopt(endless, point.context - 1)  # with the token of this step the bucket is full

    def compute(self, point: Point) -> float:
        """As `iterate`, as the engine in virtual time does it."""
        self.set_up(point)
        took_s = self._compute_one()
        while point.kind == "prefill" and self.instance.batch_size:
            took_s += self._compute_one()
        return took_s

    def _compute_one(self) -> float:
        self.runtime.touch()
        found, took_s = self.instance.begin(time.process_time)
        self.instance.end(found, 0.0)
        return took_s

    async def iterate(self, point: Point) -> float:
        """Seconds of one iteration, or of all that read a prompt."""
        self.set_up(point)
        start = time.perf_counter()
        await self.instance.iterate()
        while point.kind == "prefill" and self.instance.batch_size:
            await self.instance.iterate()
        return time.perf_counter() - start

    async def keep_busy(self) -> None:
        """Repeats decode steps until cancelled."""
        while True:
            await self.iterate(self.companion)


def _request(model: str, prompt: int, tokens: int) -> Answer:
    return Answer(model, (0,) * prompt, tokens, GREEDY, None, frozenset())


def _figure(point: Point, times_s: Sequence[float], floor_s: float, *, mean: bool = False) -> Measurement:
    low, median, high = statistics.quantiles(times_s, n=4, method="inclusive")
    mean_s = statistics.mean(times_s) if mean else None
    return Measurement(point, median, (low, high), len(times_s), floor_s, mean_s)


def _load(model: str, dtype: str) -> Model:
    return random_model(model, dtype) if model in PUBLISHED else load_model(model, dtype)


def _known_figures(about: Mapping[str, Any], file: Path, resume: bool) -> dict[Point, Measurement]:
    """The existing figures, if they are `about` the same plan, device and libraries."""
    lines = read_jsonl(file)
    if not lines:
        return {}
    if not resume:
        raise InputError(f"{file}: there are figures already; continue them with `--resume`, or remove the file.")
    if lines[0] != about:
        raise InputError(
            f"{file}: these figures are of another plan, device or version; remove the file or name another."
        )
    figures = [from_json(Measurement, json.dumps(line), str(file)) for line in lines[1:] if "point" in line]
    return {figure.point: figure for figure in figures}


def _ceilings(plan: MeasurementPlan, file: Path, progress: ProgressCallback) -> Ceilings:
    """Reads the peak rates from the file, or measures them."""
    for line in read_jsonl(file):
        if "ceilings" in line:
            return Ceilings(**line["ceilings"])
    progress("memory bandwidth and matrix rate", 0, 1)
    found = measure_ceilings(plan.dtype)
    append_jsonl(file, {"ceilings": dataclasses.asdict(found)})
    return found


async def _measure_all(
    plan: MeasurementPlan,
    rigs: Sequence[_TimedModel],
    known: dict[Point, Measurement],
    ceilings: Ceilings,
    file: Path,
    progress: ProgressCallback,
) -> list[Measurement]:
    """Returns every figure; measures and writes the missing ones."""
    points = [(rig, point) for rig in rigs for point in rig.points([o.name for o in rigs if o is not rig])]
    points.sort(key=lambda job: job[1].kind == "slowdown")  # last, when all models are compiled
    figures = []
    for done, (rig, point) in enumerate(points):
        progress(str(point), done, len(points))
        if point not in known:
            times_s = await _times_s(rig, point, [o for o in rigs if o.name in point.beside], plan.repeats)
            known[point] = _figure(point, times_s, rig.floor_s(point, ceilings))
            append_jsonl(file, dataclasses.asdict(known[point]))
        figures.append(known[point])
    progress("done", len(points), len(points))
    return figures


def _in_turn(
    rigs: Sequence[_TimedModel],
    known: dict[Point, Measurement],
    ceilings: Ceilings,
    repeats: int,
    file: Path,
    progress: ProgressCallback,
) -> list[Measurement]:
    """Returns every figure in processor time; measures and writes the missing ones, which come in turn."""
    points = [(rig, point) for rig in rigs for point in rig.points(())]
    missing = [(rig, point) for rig, point in points if point not in known]
    times_s: dict[Point, list[float]] = {point: [] for _, point in missing}
    rng = np.random.default_rng(0)
    for turn in range(-_WARM_UP, repeats):
        progress("iterations of all kinds in turn", max(turn, 0), repeats)
        for index in rng.permutation(len(missing)).tolist():
            rig, point = missing[index]
            took_s = rig.compute(point)
            if turn >= 0:
                times_s[point].append(took_s)
    for rig, point in missing:
        known[point] = _figure(point, times_s[point], rig.floor_s(point, ceilings), mean=True)
        append_jsonl(file, dataclasses.asdict(known[point]))
    progress("done", repeats, repeats)
    return [known[point] for _, point in points]


async def _times_s(rig: _TimedModel, point: Point, beside: Sequence[_TimedModel], repeats: int) -> list[float]:
    """Durations of iterations while the models `beside` iterate, too; warm-up iterations do not count."""
    for other in beside:
        await other.iterate(other.companion)  # before the timing, because it may compile
    companions = [asyncio.create_task(other.keep_busy()) for other in beside]
    try:
        for _ in range(_WARM_UP):
            await rig.iterate(point)
        times_s: list[float] = []
        while len(times_s) < 3 or (len(times_s) < repeats and sum(times_s) < _PATIENCE_S):
            times_s.append(await rig.iterate(point))
        return times_s
    finally:
        for task in companions:
            task.cancel()
        await asyncio.gather(*companions, return_exceptions=True)


def _model_profile(
    rig: _TimedModel, names: Sequence[str], figures: Sequence[Measurement], remarks: list[str]
) -> ModelProfile:
    """The serving model's terms of one model; adds remarks where they do not describe the figures well."""
    own = {figure.point: figure.seconds for figure in figures if figure.point.model == rig.name}
    buckets = rig.runtime.buckets
    # A bucket of contexts represents the middle of the contexts that it serves.
    middle = {size: (low + size) / 2 for low, size in itertools.pairwise((0, *buckets.length))}
    steps = {(p.size, middle[p.context]): seconds for p, seconds in own.items() if p.kind == "decode"}
    cost_s = context_cost_s(steps)
    decode = {
        batch: statistics.mean(s - cost_s * b * context for (b, context), s in steps.items() if b == batch)
        for batch in buckets.batch
    }
    host_s = own[Point(rig.name, "host", 0)]
    part = rig.runtime.chunk_tokens or rig.runtime.context
    reads = {p.size: (s, math.ceil(p.size / part)) for p, s in own.items() if p.kind == "prefill"}
    prefill = {size: max(s - number * host_s, 0.1 * s) for size, (s, number) in reads.items()}  # despite noise
    misses = [abs(decode[b] + cost_s * b * context - s) / s for (b, context), s in steps.items()]
    if max(misses) > _NOTABLE:
        remarks.append(
            f"{rig.name}: `decode` and `context_cost_s` miss measured steps by up to {max(misses):.0%} "
            f"({statistics.mean(misses):.0%} on average)."
        )
    alone_s = next((s for p, s in own.items() if p.kind == "slowdown" and not p.beside), 1.0)
    beside_s = {p.beside[0]: s for p, s in own.items() if p.kind == "slowdown" and len(p.beside) == 1}
    factors = tuple(max(1.0, beside_s.get(name, alone_s) / alone_s) for name in names)
    return ModelProfile(
        name=rig.name,
        decode=staircase(decode),
        prefill=staircase(prefill),
        slowdown=factors if beside_s else (),
        context_cost_s=cost_s,
        chunk_tokens=rig.runtime.chunk_tokens,
    )


def context_cost_s(steps: dict[tuple[int, float], float]) -> float:
    """Seconds per token held, from the seconds of decode steps by batch size and context.

    Least squares with one intercept per batch size; at least 0, and small enough that every intercept is positive.
    """
    rows = [(batch, batch * context, seconds) for (batch, context), seconds in steps.items()]
    covariance = variance = 0.0
    limit = math.inf
    for batch in {row[0] for row in rows}:
        held, seconds = np.array([row[1:] for row in rows if row[0] == batch]).T
        covariance += float((held - held.mean()) @ (seconds - seconds.mean()))
        variance += float((held - held.mean()) @ (held - held.mean()))
        limit = min(limit, 0.9 * float(seconds.mean() / held.mean()))
    return min(max(covariance / variance, 0.0), limit) if variance > 0 else 0.0


def staircase(seconds: dict[int, float]) -> Points:
    """Points of a table whose values hold for all sizes above the previous one; decreases from noise are removed."""
    points: list[tuple[int, float]] = []
    highest = 0.0
    for low, size in itertools.pairwise((0, *sorted(seconds))):
        highest = max(highest, seconds[size])
        points += [(x, highest) for x in sorted({low + 1, size})]
    return tuple(points)


def interference_remarks(profile: Profile, figures: Sequence[Measurement]) -> list[str]:
    """Whether the slow-downs by several models multiply, as the serving model assumes."""
    times_s = {(f.point.model, f.point.beside): f.median_s for f in figures if f.point.kind == "slowdown"}
    remarks = []
    for (name, beside), seconds in times_s.items():
        if len(beside) > 1:
            row = profile.slowdown[profile.model_names.index(name)]
            product = math.prod(row[profile.model_names.index(other)] for other in beside)
            found = seconds / times_s[name, ()]
            remarks.append(
                f"{name}: next to {' and '.join(beside)} it takes {found:.2f} times as long; the product of its "
                f"factors is {product:.2f}."
            )
    return remarks


def end_remark(profile: Profile) -> str:
    """Where measured tables end. Beyond, most staircases are flat, so that more work would cost nothing."""
    batch, tokens = (min(getattr(model, field)[-1][0] for model in profile.models) for field in ("decode", "prefill"))
    return (
        f"The tables end at a batch size of {batch:,} and a prompt of {tokens:,} tokens. Beyond, they follow their "
        "last two points, which are mostly equal, so more would cost nothing: keep `cluster.max_batch` and prompts "
        "within, or measure further with `--max-batch` and `--context`."
    )


def _provenance(plan: MeasurementPlan, quality: Source) -> Provenance:
    flags = os.environ.get("XLA_FLAGS", "")  # may set the number of threads

    def measured(method: str) -> Source:
        return Source(
            kind="measured",
            source=f"`besteffort profile measure`, besteffort {__version__}",
            method=f"{method}; {'mean processor time' if plan.clock == 'processor' else 'median'} of {plan.repeats} "
            "iterations of the engine" + (f"; XLA_FLAGS {flags}" if flags else ""),
            device=device_name(),
            dtype=plan.dtype,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            libraries=_libraries(),
        )

    return Provenance(
        decode=measured(
            f"decode steps at batch sizes up to {plan.max_batch} and contexts up to {plan.context}, host included"
        ),
        prefill=measured(
            f"one prompt of up to {plan.context} tokens, host included, less an iteration with nothing to compute"
        ),
        slowdown=measured(
            "one model"
            if len(plan.models) == 1
            else "each model on a device of its own"
            if plan.clock == "processor"
            else "decode steps while another model decodes without a break"
        ),
        quality=quality,
    )


def _libraries() -> tuple[str, ...]:
    return tuple(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax"))
