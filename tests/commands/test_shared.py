from __future__ import annotations

import shlex
from pathlib import Path

from besteffort.commands.options import PartOfLog
from besteffort.commands.shared import next_quickstart


def test_the_next_quickstart_reads_what_this_one_read() -> None:
    """In the same way, too, and whatever the files are called."""
    plain = next_quickstart(Path("first/situation.yaml"), [Path("log.csv")], PartOfLog())
    assert plain == "--config first/situation.yaml --trace log.csv"
    part = PartOfLog(columns=("arrival=at time:ms,prompt=n_in",), limit=100, since=60.0)
    words = shlex.split(next_quickstart(Path("my run/situation.yaml"), [Path("a.csv"), Path("my log.csv")], part))
    assert words == [
        *("--config", "my run/situation.yaml"),
        *("--trace", "a.csv", "--trace", "my log.csv"),
        *("--columns", "arrival=at time:ms,prompt=n_in"),
        *("--limit", "100", "--from", "60.0"),
    ]
