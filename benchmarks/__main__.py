"""All benchmarks, one after the other, and one table of what they found.

    python -m benchmarks [NAME ...] [--fast] [--out DIR]

Each runs in a process of its own, as `python -m benchmarks.NAME`, and writes `DIR/NAME.json`; a ratio is of one run.
One that needs a package which is not installed, or fails, is reported, and the others go on.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from benchmarks.outcome import check_replaced
from benchmarks.summary import Row, summary_table

ROOT = Path(__file__).resolve().parent.parent
NAMES = tuple(
    name
    for name in ("simulator_speed", "learners", "sweep", "decisions", "estimates", "gateway")
    if find_spec(f"benchmarks.{name}")
)
"""Benchmarks whose module has `main(["--out", FILE, "--fast"])` and `rows(result)`, in the order in which they run."""


def run(name: str, out: Path, *, fast: bool) -> bool:
    """Runs one benchmark as a process; whether it succeeded."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(out), *(["--fast"] if fast else [])]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def rows_of(name: str, out: Path) -> list[Row]:
    """Lines of the table from what a benchmark wrote."""
    return list(importlib.import_module(f"benchmarks.{name}").rows(json.loads(out.read_text(encoding="utf-8"))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line, runs, prints; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"which, by default all: {', '.join(NAMES)}")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="directory for the JSON files and figures")
    parser.add_argument("--fast", action="store_true", help="whether they run, not how fast")
    args = parser.parse_args(arguments)
    for name in args.names:
        if name not in NAMES:
            parser.error(f"there is no benchmark `{name}`; choose from {', '.join(NAMES)}")
    places = {name: args.out.resolve() / f"{name}.json" for name in args.names or NAMES}
    for out in places.values():
        check_replaced(parser, out, fast=args.fast)
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=160)
    found: list[Row] = []
    failed = []
    for name, out in places.items():
        console.rule(name)
        if run(name, out, fast=args.fast):
            found += rows_of(name, out)
        else:
            failed.append(name)
    console.print(summary_table(found))
    for name in failed:
        console.print(f"{name} failed; what it said stands above.", style="bold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
