"""`besteffort simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from annotated_types import Interval

from besteffort.commands.options import (
    Changes,
    Config,
    Directory,
    MaybeLoad,
    PartOfLog,
    SharedChanges,
    SharedOutput,
    SharedPart,
    metavar,
)
from besteffort.commands.shared import note_tables
from besteffort.console import Answer, Output


def simulate(
    requests: tyro.conf.Positional[Annotated[Path, metavar("REQUESTS")]],
    router: Annotated[str, metavar("ROUTER")],
    out: Directory,
    config: Config = "paper",
    settings: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=X [NAME=X ...]", help_behavior_hint="")] = (),
    load: MaybeLoad = None,
    seed: Annotated[int, metavar("N"), Interval(ge=0, le=2**31 - 1)] = 0,
    backend: Literal["jax", "reference"] = "jax",
    part: SharedPart = PartOfLog(),
    changes: SharedChanges = Changes(),
    output: SharedOutput = Output(),
) -> Answer:
    """Simulate a list of requests with one router, and write every outcome.

    Args:
      requests: log or trace: its format is recognised by its content; see docs/logs.md.
      router: name of a router (`deadline`, `priced`, ...), of a model (all requests go to it), or a policy file.
      out: new directory for `requests.csv` and `summary.json`.
      config: situation: a name or a YAML file.
      settings: the router's numbers, such as `reserve=0.2`, or `thresholds=8,4`.
      load: mean load to scale the list to, in multiples of the largest model's capacity for it; by default as it is.
      seed: of the router's random choices and of tasks that the file does not name.
      backend: the compiled simulator, or the reference in plain Python (slow; gives the same).
      part: options on how to read a log, and which part of it.
      changes: options that change the situation.
      output: options on what is printed.
    """
    from besteffort.files import check_run_directory, create_run_directory
    from besteffort.runs.config import load_situation
    from besteffort.runs.playing import read_list, router_named, write_result
    from besteffort.simulator.simulate import simulate as simulate_list

    check_run_directory(out, "simulate")
    answer = Answer("simulate", output)
    known = load_situation(config, **changes.arguments())
    with answer.status("Reading"):
        listed, situation, info = read_list(requests, known, part.reading([requests]), seed=seed, load=load)
    chosen = router_named(router, situation, settings)
    create_run_directory(out)
    result = simulate_list(listed, situation, chosen, seed=seed, backend=backend)
    for table in write_result(result, situation, router, out):
        answer.table(table)
    answer.note(str(info))
    note_tables(answer, situation)
    answer.file("per_request", out / "requests.csv")
    answer.file("summary", out / "summary.json")
    return answer
