"""A reproduction on a Ray cluster of two workers, one of which is killed midway, and the same in local processes.

    python -m tests.killed_worker [EXPERIMENT ...] [--after 30]

It needs the extra `ray`. Both write the same files, but for what tells of times and places: experiments that measure
time, such as `cheap_router`, differ by nature.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pytest

from besteffort.runs.backends import Local, Ray
from besteffort.runs.processes import JobProgress
from experiments.__main__ import plan, reproduce
from tests import clusters
from tests.interrupts import differing, tell


def main() -> int:
    """The command line; the status is 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=["stable_load", "hardware_utility"])
    parser.add_argument("--after", type=float, default=30.0, help="seconds after which a worker is killed")
    given = parser.parse_args()
    names = plan(given.experiments)
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        here, there = Path(directory) / "local", Path(directory) / "ray"
        with clusters.head_alone(patch, Path(directory)) as cluster:
            workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
            cluster.wait_for_nodes()
            killed: list[str] = []

            def progress(one: JobProgress) -> None:
                if one.line is not None:
                    tell(f"{one.job.name}: {one.line}")
                if one.line is not None and not killed and time.monotonic() - began > given.after:
                    cluster.remove_node(workers[0], allow_graceful=False)
                    killed.append(one.job.name)
                    tell(f"a worker killed after {time.monotonic() - began:.0f} s")

            began = time.monotonic()
            failed = reproduce(names, there, fast=True, on=Ray(address=cluster.address), progress=progress).failed
            tell(f"on the cluster: {time.monotonic() - began:.0f} s")
        began = time.monotonic()
        failed |= reproduce(names, here, fast=True, on=Local(2)).failed
        tell(f"in local processes: {time.monotonic() - began:.0f} s")
        differ = differing(here, there)
    tell(f"failed: {', '.join(failed) or 'none'}; files that differ: {', '.join(differ) or 'none'}")
    return int(not killed or bool(failed) or bool(differ))


if __name__ == "__main__":
    sys.exit(main())
