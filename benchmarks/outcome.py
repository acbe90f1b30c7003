"""Files of what benchmarks found."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from besteffort.errors import InputError
from besteffort.files import read_json, write_json

_FAST = "fast"


def check_replaced(parser: argparse.ArgumentParser, out: Path, *, fast: bool) -> None:
    """Checks that what `--fast` finds replaces no measurement: it says whether a benchmark runs, not how fast.

    Raises:
      SystemExit: with status 2, if it would.
    """
    try:
        known = read_json(out) if fast else {}
    except InputError:  # nothing is there that could be lost
        return
    if known and not (isinstance(known, dict) and known.get(_FAST)):
        parser.error(f"{out}: this was measured without `--fast`, which would replace it; name another place, `--out`")


def write_result(out: Path, result: dict[str, Any], *, fast: bool) -> None:
    """Writes plain JSON values, marked where they are of `--fast`.

    Raises:
      InputError: if the file cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {_FAST: True, **result} if fast else result)
