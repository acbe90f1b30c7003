"""Prints the part of requirements.lock that a project needs: `locked.py PYPROJECT`.

The lock must be installed in this environment: what a package needs is read from its metadata.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(requirements: list[str]) -> set[str]:
    """Names of the packages that the requirements ask for, and of all that these need in turn."""
    names: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in names or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        names.add(name)
        waiting += importlib.metadata.requires(name) or []
    return names


def main() -> None:
    """Prints whole entries, so that pip evaluates their markers and checks their hashes."""
    names = needed(tomllib.loads(Path(sys.argv[1]).read_text())["project"]["dependencies"])
    lock = (Path(__file__).parent.parent / "requirements.lock").read_text()
    for entry in re.findall(r"^[^\s#].*(?:\n[ \t].*)*", lock, re.MULTILINE):
        if canonicalize_name(entry.partition("==")[0]) in names:
            print(entry)


if __name__ == "__main__":
    main()
