"""Lines of text of bounded length."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from besteffort.errors import InputError

LONGEST_LINE = 2**27
"""Characters of the longest line that is read, and of the largest JSON document; files may be larger."""


class Lines:
    """Lines of a text file with their ends; knows how the last one ended."""

    def __init__(self, path: Path, text: io.TextIOWrapper) -> None:
        self.path, self.text = path, text
        self.number = 0
        self.whole = True

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.text.readline(LONGEST_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        self.whole = line.endswith(("\n", "\r"))
        if not self.whole and len(line) == LONGEST_LINE:
            raise InputError(
                f"{self.path}, line {self.number}: the line is longer than {LONGEST_LINE:,} characters; give a log."
            )
        return line
