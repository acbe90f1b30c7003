"""The request log: a CSV file with a line per request, which `simulate`, `profile fit` and `--trace` read.

It has lengths, times and outcomes, and no prompt, answer or key. To rotate it, move it away: a new file is begun.
"""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import io
import os
from pathlib import Path
from typing import IO

from besteffort.errors import InputError
from besteffort.files import os_errors_as_input_errors
from besteffort.gateway.core import Record

COLUMNS = tuple(field.name for field in dataclasses.fields(Record))

_EVERY = 64  # records between two writes


class RequestLog:
    """Appends records to a file; `flush` writes those that are held back, in one piece.

    Raises:
      InputError: if the file cannot be written, or has other columns.
    """

    def __init__(self, path: Path, *, begun: bool = False) -> None:
        """Opens a file.

        Args:
          path: the file.
          begun: whether it is in order, and others write to it, too.
        """
        self.path = path
        self._rest = b""  # of a line that was begun
        with os_errors_as_input_errors(path):
            self._file = path.open("a+b", buffering=0)
            try:
                if not begun:
                    self._begin(self._file)
                    self._mend()
            except BaseException:
                self._file.close()
                raise
        self._held: list[Record] = []

    def add(self, record: Record) -> None:
        self._held.append(record)
        if len(self._held) >= _EVERY:
            self.flush()

    def flush(self) -> None:
        """Writes what is held back, into a new file if the present one was moved away.

        Raises:
          InputError: if the disk is full, or a new file cannot be had; what was held back is dropped, but for the rest
            of a line that was begun.
        """
        if not self._held and not self._rest:
            return
        held, self._held = self._held, []
        text = "".join(_line([_cell(getattr(record, name)) for name in COLUMNS]) for record in held)
        with os_errors_as_input_errors(self.path):
            if self._moved():
                self._open_again()
            self._write(self._rest + text.encode())

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._file.close()

    def _write(self, content: bytes) -> None:
        written = 0
        try:
            while written < len(content):
                written += self._file.write(content[written:]) or 0
        finally:
            # Whole lines are dropped; half a one would spoil the file for its readers.
            begun = not content[:written].endswith(b"\n") if written else bool(self._rest)
            self._rest = content[written : content.index(b"\n", written) + 1] if begun else b""

    def _moved(self) -> bool:
        """Whether no file, or another one, has the name."""
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return True

    def _open_again(self) -> None:
        file = self.path.open("a+b", buffering=0)
        try:
            # Of several workers the first one writes the header, before any writes a record.
            fcntl.flock(file, fcntl.LOCK_EX)
            self._begin(file)
            fcntl.flock(file, fcntl.LOCK_UN)
        except BaseException:
            file.close()
            raise
        self._file.close()
        self._file, self._rest = file, b""

    def _begin(self, file: IO[bytes]) -> None:
        """Writes the header into a new file.

        Raises:
          InputError: if a file is there that is no request log.
        """
        file.seek(0)
        first = file.readline(2**16)
        header = _line(COLUMNS).encode()
        if first == header:
            return
        if not header.startswith(first):
            raise InputError(f"{self.path}: the file is no request log of this version; name another one.")
        file.truncate(0)
        while header:
            header = header[file.write(header) :]

    def _mend(self) -> None:
        """Drops a last line that a kill cut short."""
        size = self._file.seek(0, 2)
        self._file.seek(max(size - 2**16, 0))
        tail = self._file.read(2**16)
        self._file.truncate(size - (len(tail) - tail.rfind(b"\n") - 1))


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    return f"{value:.6f}" if isinstance(value, float) else value


def _line(cells: tuple[object, ...] | list[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
