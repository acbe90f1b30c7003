"""Trains the laptop tier, judges it on held-out cases, and measures its profile.

    python -m experiments.laptop_tier train [--models NAME ...]
    python -m experiments.laptop_tier judge
    python -m experiments.laptop_tier measure

`train` writes the checkpoints into the package, `judge` their model cards and results/laptop_tier.json with the share
of right answers per task, `measure` the built-in profile `laptop` with these qualities and this machine's latencies,
and `demo` from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from besteffort.demo.fleet import slowed
from besteffort.device import device_name
from besteffort.evaluation.report import Column, Table
from besteffort.evaluation.statistics import mean_interval
from besteffort.files import write_json, write_text
from besteffort.laptop import MODELS, compute_in_one_thread, model_directory
from besteffort.laptop.files import write_model
from besteffort.laptop.quality import exact_match
from besteffort.laptop.tasks import CONTEXT, HELD_OUT, TASKS, draw
from besteffort.laptop.training import Recipe, train
from besteffort.opt.runtime import Buckets, Runtime
from besteffort.opt.weights import load_model
from besteffort.profile import Source, TaskQuality, load_profile, save_profile
from besteffort.profiling.measure import (
    MeasurementPlan,
    Qualities,
    figures_file,
    measure_profile,
    read_qualities,
    tables,
)
from experiments.lab import exiting

ROOT = Path(__file__).resolve().parent.parent
# Heads are 32 or 64 wide, which vLLM's attention on CPUs can read.
RECIPES = {
    "laptop-100k": Recipe(hidden=64, layers=2, heads=2, steps=1600, learning_rate=3e-3),
    "laptop-1m": Recipe(hidden=128, layers=5, heads=4, steps=1600, learning_rate=2e-3),
    "laptop-5m": Recipe(hidden=320, layers=4, heads=5, steps=2400, learning_rate=1e-3),
}
JUDGED = 2000
"""Held-out cases per task; small ones come more than once."""
JUDGING_SEED = 1
MAX_BATCH = 16
RESULTS = ROOT / "results"
TRAINING = RESULTS / "laptop_training.json"
QUALITIES = RESULTS / "laptop_qualities.json"


def train_models(names: list[str], console: Console) -> None:
    """Trains, one after another, and writes checkpoints, and what it took."""
    known = json.loads(TRAINING.read_text()) if TRAINING.exists() else {}
    for name in names:
        recipe = RECIPES[name]
        began_s, cpu_s = time.perf_counter(), time.process_time()
        losses: dict[int, float] = {}
        model = train(recipe, functools.partial(log_progress, console, name, losses))
        write_model(model, model_directory(name))
        known[name] = {
            "recipe": dataclasses.asdict(recipe),
            "parameters": recipe.config.parameters,
            "seconds": round(time.perf_counter() - began_s),
            "cpu_seconds": round(time.process_time() - cpu_s),
            "device": device_name(),
            "losses": losses,
        }
        write_json(TRAINING, known)


def log_progress(console: Console, name: str, losses: dict[int, float], step: int, loss: float) -> None:
    """Tells of the progress, and keeps it."""
    losses[step] = round(loss, 4)
    console.print(f"{name}: step {step}, loss {loss:.3f}", highlight=False)


def judge_models(console: Console) -> None:
    """Generates for held-out cases, writes figures and model cards."""
    cases = [draw(task, JUDGED, seed=JUDGING_SEED, held_out=True) for task in TASKS]
    right = {}
    for name in MODELS:
        runtime = Runtime(load_model(model_directory(name)), 16, CONTEXT, Buckets((16,), (16,), (CONTEXT,)))
        right[name] = np.stack([exact_match(runtime, kind) for kind in cases])
    training = json.loads(TRAINING.read_text())
    found: dict[str, Any] = {
        "cases_per_task": JUDGED,
        "quality": {
            name: {task: interval(rows[i]) for i, task in enumerate(TASKS)} | {"mean": interval(rows.mean(axis=0))}
            for name, rows in right.items()
        },
        "gain_over_the_next_smaller": {
            name: {task: interval(right[name][i] * 1.0 - right[smaller][i]) for i, task in enumerate(TASKS)}
            | {"mean": interval((right[name] * 1.0 - right[smaller]).mean(axis=0))}
            for smaller, name in itertools.pairwise(MODELS)
        },
        "training": training,
    }
    write_json(RESULTS / "laptop_tier.json", found)
    qualities = Qualities(
        MODELS,
        tuple(
            TaskQuality(
                task,
                metric="exact match of the greedy answer",
                source=", ".join(f"{name} {shown(found['quality'][name][task])}" for name in MODELS),
                quality_percent=tuple(round(100 * found["quality"][name][task][0], 2) for name in MODELS),
            )
            for task in TASKS
        ),
        Source(
            "measured",
            "`python -m experiments.laptop_tier judge`",
            method=f"own greedy generation on {JUDGED:,} held-out cases per task; 95% intervals at each task",
            device=device_name(),
            dtype="float32",
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        ),
    )
    write_json(QUALITIES, dataclasses.asdict(qualities))
    for name in MODELS:
        write_text(model_directory(name) / "README.md", card(name, found))
    columns = tuple(Column(task.replace("_", " "), "text") for task in (*TASKS, "mean"))
    tables = [
        Table(title, "model", columns, tuple((k, tuple(shown(v) for v in row.values())) for k, row in rows.items()))
        for title, rows in (
            (f"Right answers to {JUDGED:,} held-out cases per task, %", found["quality"]),
            ("More than the next smaller model on the same cases, points", found["gain_over_the_next_smaller"]),
        )
    ]
    write_text(RESULTS / "laptop_tier.md", "\n".join(table.markdown() for table in tables))
    for table in tables:
        console.print(table.terminal())
    console.print(status(found["gain_over_the_next_smaller"]), highlight=False)


def status(gains: dict[str, dict[str, list[float]]]) -> str:
    """Whether each larger model is better on the mean and on three tasks, as the tier is meant to be."""
    words = []
    for name, row in gains.items():
        beyond = [task for task, (gain, half) in row.items() if gain > half]
        tasks = sum(task in beyond for task in TASKS)
        words.append(
            f"{name} {'yes' if 'mean' in beyond and tasks >= 3 else 'NO'} "
            f"({'mean' if 'mean' in beyond else 'not the mean'}, {tasks} of {len(TASKS)} tasks)"
        )
    return f"Better beyond the interval, on the mean and on at least three tasks: {', '.join(words)}"


def interval(samples: np.ndarray) -> list[float]:
    """Mean and half the width of its 95% interval."""
    found = mean_interval(samples)
    return [round(float(found.mean), 5), round(float(found.half_width), 5)]


def shown(pair: list[float]) -> str:
    """As percentages."""
    return f"{100 * pair[0]:.1f} ± {100 * pair[1]:.1f}"


def card(name: str, found: dict[str, Any]) -> str:
    """The model card."""
    training = found["training"][name]
    recipe = Recipe(**training["recipe"])
    examples = "\n".join(
        f"- {task.replace('_', ' ')}: {(maker.__doc__ or '').strip()}" for task, maker in TASKS.items()
    )
    rows = "\n".join(f"| {task.replace('_', ' ')} | {shown(pair)} |" for task, pair in found["quality"][name].items())
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# {name}

An OPT of {recipe.config.parameters:,} parameters: {recipe.layers} layers, {recipe.hidden} wide, {recipe.heads} heads.
It was trained from random weights for the laptop tier of besteffort, which needs models that are small, cheap to serve
and unequal. It reads and writes single characters.

## Tasks

{examples}

## Training

{recipe.steps:,} steps of AdamW with {recipe.batch} generated cases each, a quarter per task; highest learning rate
{recipe.learning_rate:g}, cosine; seed {recipe.seed}; loss on answers only. One case in {HELD_OUT} is held out by a hash
of its prompt and never trained on.
It took {training["cpu_seconds"] / 60:.1f} minutes of one core ({training["device"]}).
`python -m experiments.laptop_tier train --models {name}` does it again. Weights are stored in bfloat16.

## Quality

Share of {found["cases_per_task"]:,} held-out cases per task, drawn with repetition, whose greedy answer is right to the
last token, in percent, with 95% intervals:

| task | right |
|---|---:|
{rows}

## Limits

It does these four tasks, in this notation and up to these sizes, and nothing else; no natural language. Prompt and
answer together take {CONTEXT} tokens at most. It is meant for trying out routers, not for arithmetic.
"""


def measure_models(console: Console, repeats: int) -> None:
    """Measures the models side by side on this machine, and writes the built-in profile and the figures behind it."""
    plan = MeasurementPlan(
        tuple(os.path.relpath(model_directory(name)) for name in MODELS),  # stands in the file of figures
        max_batch=MAX_BATCH,
        context=CONTEXT,
        repeats=repeats,
    )
    out = RESULTS / "laptop.json"
    figures_file(out).unlink(missing_ok=True)
    report = measure_profile(plan, read_qualities(plan.names, QUALITIES), out)
    builtin = ROOT / "besteffort" / "profile" / "builtin"
    out.replace(builtin / "laptop.json")
    save_profile(slowed(load_profile("laptop")), builtin / "demo.json")
    for table in tables(report):
        console.print(table.terminal())
    for remark in report.remarks:
        console.print(remark, highlight=False)


def main() -> None:
    """The command line.

    Raises:
      SystemExit: with status 2 on a user's mistake.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "judge", "measure"))
    parser.add_argument("--repeats", type=int, default=200, help="iterations that each figure is the median of")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="to train; all by default")
    arguments = parser.parse_args()
    compute_in_one_thread()
    console = Console()
    with exiting("laptop_tier"):
        if arguments.what == "train":
            train_models(arguments.models, console)
        elif arguments.what == "judge":
            judge_models(console)
        else:
            measure_models(console, arguments.repeats)


if __name__ == "__main__":
    main()
