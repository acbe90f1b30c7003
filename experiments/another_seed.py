"""Another seed: do experiments that were run twice, with other networks and other lists, give the same figures?

    python -m experiments.hardware_utility --seed 1 --out results/seed-1      # and others likewise
    python -m experiments.another_seed results results/seed-1

Compares every figure with an interval that two directories of results share, and writes `another_seed.md` to the second
one: how many intervals overlap, which do not, and the claims side by side.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from besteffort.errors import InputError
from besteffort.evaluation.report import Column, Table
from besteffort.files import os_errors_as_input_errors, write_text
from experiments.lab import exiting


class Figure(NamedTuple):
    """A mean and half its 95% interval."""

    mean: float
    half_width: float

    def agrees(self, other: Figure) -> bool:
        """Whether the intervals overlap."""
        return abs(self.mean - other.mean) <= self.half_width + other.half_width

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.half_width:.2g}"


def figures(data: Any, path: str = "") -> Iterator[tuple[str, Figure]]:
    """Figures with finite intervals in an experiment's data, by where they stand."""
    if isinstance(data, dict) and data.keys() == {"mean", "half_width"}:
        several = isinstance(data["mean"], list)
        pair = data["mean"], data["half_width"]
        pairs = zip(*pair, strict=True) if several else [pair]
        for index, (mean, half_width) in enumerate(pairs):
            if mean is not None and half_width is not None:
                yield f"{path}[{index}]" if several else path, Figure(mean, half_width)
    elif isinstance(data, dict | list):
        entries = data.items() if isinstance(data, dict) else enumerate(data)
        for key, entry in entries:
            yield from figures(entry, f"{path}/{key}" if path else str(key))


def compare(first: Path, second: Path) -> list[Table]:
    """Tables of what agrees, of what does not, and of the claims.

    Raises:
      InputError: if the directories share no experiment, or a file is damaged.
    """
    counts, apart, claims = [], [], []
    for path in sorted(second.glob("*.json")):
        if not (first / path.name).is_file():
            continue
        one, other = (_read(directory / path.name) for directory in (first, second))
        if not all("claims" in record for record in (one, other)):  # a benchmark's
            continue
        theirs = dict(figures(other["data"]))
        pairs = [(name, mine, theirs[name]) for name, mine in figures(one["data"]) if name in theirs]
        differ = [pair for pair in pairs if not pair[1].agrees(pair[2])]
        agreeing = float(len(pairs) - len(differ))
        counts.append((path.stem, (float(len(pairs)), agreeing, agreeing / len(pairs) if pairs else math.nan)))
        apart += [(f"{path.stem}: {name}", (str(mine), str(its))) for name, mine, its in differ]
        claimed = {its["claim"]: its for its in other["claims"]}  # without traces there are fewer
        claims += [
            (mine["claim"], (mine["ours"], mine["status"], its["ours"], its["status"]))
            for mine in one["claims"]
            if (its := claimed.get(mine["claim"])) is not None
        ]
    if not counts:
        raise InputError(f"{second}: no result of an experiment that is in {first}, too; run one with `--seed 1`.")
    both = (Column("first seed", "text", brief=True), Column("other seed", "text", brief=True))
    columns = tuple(
        Column(f"{seed}, {what}", "text", brief=True)
        for seed in ("First seed", "other seed")
        for what in ("figure", "verdict")
    )
    return [
        Table(
            "Two seeds: figures whose 95% intervals overlap",
            "Experiment",
            (
                Column("Compared", "number", 0, brief=True),
                Column("Overlap", "number", 0, brief=True),
                Column("Share (%)", digits=1, brief=True),
            ),
            tuple(counts),
        ),
        Table("Claims with two seeds", "Claim", columns, tuple(claims)),
        Table("Figures whose intervals do not overlap", "Figure", both, tuple(apart)),
    ]


def _read(path: Path) -> Any:
    with os_errors_as_input_errors(path, "read"):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(
                f"{path}: this is no result of an experiment ({error}); run the experiment again."
            ) from error


def main() -> None:
    """The command line.

    Raises:
      SystemExit: with status 2 on a user's mistake.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="directory of results")
    parser.add_argument("second", type=Path, help="directory of results of the same experiments with another seed")
    arguments = parser.parse_args()
    with exiting("another_seed"):
        tables = compare(arguments.first, arguments.second)
        write_text(arguments.second / "another_seed.md", "\n".join(table.markdown() for table in tables))
    for table in tables:
        Console().print(table.terminal())


if __name__ == "__main__":
    main()
