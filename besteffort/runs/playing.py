"""One list of requests, one router: what `besteffort simulate` reads and writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from besteffort.errors import InputError, brief
from besteffort.evaluation.report import Table, comparison_table, party_table
from besteffort.evaluation.statistics import Interval
from besteffort.evaluation.tuning import maker
from besteffort.files import jsonable, os_errors_as_input_errors, write_json, write_text
from besteffort.policy import load_policy
from besteffort.routers.learned import learned_router
from besteffort.routers.registry import ROUTERS
from besteffort.simulator.result import Result
from besteffort.simulator.types import Router
from besteffort.situation import Situation
from besteffort.validation import did_you_mean
from besteffort.workload import rescale
from besteffort.workload.reading import ALL, Reading
from besteffort.workload.requests import PARTIES, Party, Requests
from besteffort.workload.resample import with_lengths_of
from besteffort.workload.traces import TraceInfo, read_trace

_LARGEST = 1e9  # of a setting
_PER_REQUEST = ("arrival_s", "admission_s", "first_token_s", "completion_s", "latency_s", "deadline_s", "reward")


def read_list(
    path: Path, situation: Situation, reading: Reading = ALL, *, seed: int, load: float | None = None
) -> tuple[Requests, Situation, TraceInfo]:
    """The requests of a file, scaled to a mean load if one is given, and the situation with their lengths.

    Raises:
      InputError: on a damaged file, a load that is not positive, or a negative seed.
    """
    if not 0 <= seed < 2**31:
        raise InputError(f"The seed is {brief(seed)}; give a whole number from 0 to {2**31 - 1:,}.")
    requests, info = read_trace(path, situation, reading, seed=seed)
    situation = with_lengths_of(situation, requests)
    return requests if load is None else rescale.to_load(requests, situation, load), situation, info


def router_named(name: str, situation: Situation, settings: Sequence[str] = ()) -> Router:
    """The router that a name means: a router's, a model's (all requests go to it), or a policy file.

    Args:
      name: a key of `besteffort.routers.ROUTERS`, a model of the situation, or a pool where it states them, or a
        path.
      situation: what is served.
      settings: the router's numbers, each `name=number` or `name=number,number`.

    Raises:
      InputError: on an unknown name, settings that the router does not take, or a policy that does not fit.
    """
    numbers: dict[str, Any] = {}
    for setting in settings:
        key, value = _number(setting)
        if key in numbers:
            raise InputError(f"`--settings` gives `{brief(key)}` twice; leave one of them out.")
        numbers[key] = value
    pools = situation.fleet.names
    kind, where = ("pool", "configuration") if situation.pools else ("model", "profile")
    if name in pools and name in ROUTERS:
        raise InputError(
            f"`{name}` is a {kind} of the {where} and a router; rename the {kind} in the {where} to tell them apart."
        )
    make = maker(situation)
    if name in pools:
        if numbers:
            raise InputError(
                f"A {kind} takes no settings, but `{name}` was given {', '.join(numbers)}; leave them out."
            )
        return make("static", model=pools.index(name))
    if name in ROUTERS:
        try:
            return make(name, **numbers)
        except InputError as error:
            raise InputError(f"`--settings`: {error}") from error
    path = Path(name)
    with os_errors_as_input_errors(path, "read"):
        there = path.exists()
    if not (path.suffix or there):
        known = (*ROUTERS, *pools)
        raise InputError(
            f"Unknown router `{brief(name)}`{did_you_mean(name, known)}; choose from {', '.join(known)} or give a "
            "policy file."
        )
    policy = load_policy(path, situation)
    if numbers:
        raise InputError(f"{path}: a policy takes no settings, but was given {', '.join(numbers)}; leave them out.")
    return learned_router(policy)


def write_result(result: Result, situation: Situation, name: str, out: Path) -> list[Table]:
    """Writes `requests.csv` and `summary.json` to `out` and returns the summary, and that by origin and by tenant.

    Figures of `summary.json` are shares or in SI units, under the names of `besteffort.evaluation.report.Column.name`.

    Raises:
      InputError: if a file cannot be written.
    """
    fleet = situation.fleet
    pools = (*fleet.names, "")
    models = (*(pool.model for pool in fleet.pools), "")
    columns: dict[str, Any] = {
        "task": [situation.task_names[task] for task in result.task.tolist()],
        **{party: _names_of(result, situation, party) for party in PARTIES if getattr(result, party) is not None},
        "prompt_tokens": result.prompt_tokens.tolist(),
        "output_tokens": result.output_tokens.tolist(),
        "model": [models[pool] for pool in result.model.tolist()],
        **({"pool": [pools[pool] for pool in result.model.tolist()]} if situation.pools else {}),
        "replica": result.replica.tolist(),
        "met": result.met.astype(int).tolist(),
        **({"lost": result.lost.astype(int).tolist()} if fleet.alive else {}),
        **{field: getattr(result, field).tolist() for field in _PER_REQUEST},
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_text(out / "requests.csv", text.getvalue())
    title, each = f"{len(result.arrival_s):,} requests", {name: result.lanes(None)}
    table = comparison_table(title, each, situation, width_s=1.0)
    parties = {party: party_table(title, each, situation, party) for party in PARTIES}
    stated = {party: one for party, one in parties.items() if one is not None}
    figures = _figures(table)[name] | {f"{party}s": _figures(one) for party, one in stated.items()}
    write_json(out / "summary.json", jsonable({"router": name, **figures}))
    return [table, *stated.values()]


def _names_of(result: Result, situation: Situation, party: Party) -> list[str]:
    names: tuple[str, ...] = getattr(situation, f"{party}_names")
    return [names[index] for index in getattr(result, party).tolist()]


def _figures(table: Table) -> dict[str, dict[str, float]]:
    """The figures of each row by name, without intervals."""
    return {
        name: {
            column.name: float(cell.mean)
            for column, cell in zip(table.columns, cells, strict=True)
            if isinstance(cell, Interval)
        }
        for name, cells in table.rows
    }


def _number(setting: str) -> tuple[str, Any]:
    name, _, text = setting.partition("=")
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"Setting `{brief(setting)}` is not a number by name; write it like `price=0.1`.") from None
    if not all(abs(value) <= _LARGEST for value in values):
        raise InputError(f"Setting `{brief(setting)}` is out of range; give numbers up to {_LARGEST:g}.")
    if name == "thresholds":
        return name, values
    if len(values) > 1:
        raise InputError(f"Setting `{setting}` has {len(values)} numbers; `{name}` takes one.")
    return name, values[0]
