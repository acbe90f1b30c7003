"""Run directories, and atomic writing of files.

Every write goes to a temporary file next to its target, is flushed to disk and then renamed over the target, so a kill
or a full disk leaves the previous content.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from besteffort.documents import check, parse_json, read_text
from besteffort.errors import InputError, brief
from besteffort.version import __version__

_REMEDIES = {
    errno.ENOSPC: "free some space and try again",
    errno.EDQUOT: "free some space and try again",
    errno.EFBIG: "raise the limit on file sizes",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
    errno.EROFS: "choose a place that is not mounted read-only",
    errno.ENOTDIR: "choose a path whose parents are directories",
    errno.EISDIR: "choose a name that is not a directory",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def create_run_directory(path: str | Path, *, resume: bool = False) -> Path:
    """Creates the directory for one run's output, with its parents; with `resume` returns the existing one.

    Raises:
      InputError: if it exists and is not empty (or, with `resume`, does not exist), or cannot be created.
    """
    path = Path(path)
    _check_free(path, resume)
    with os_errors_as_input_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def check_run_directory(path: str | Path, kind: str, *, resume: bool = False) -> None:
    """Checks that `begin_run` can begin or resume a run, and writes nothing.

    Raises:
      InputError: as `begin_run`.
    """
    path = Path(path)
    _check_free(path, resume)
    if resume:
        _check_kind(path, kind)
    with os_errors_as_input_errors(path):
        parent = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot write it, {parent} is not writable; {_REMEDIES[errno.EACCES]}.")


def check_new_file(path: str | Path, *, replaces: bool = False) -> None:
    """Checks that a file can be written, before the work that it is to hold.

    Raises:
      InputError: if it exists and is not to be replaced, or its directory is missing or not writable.
    """
    path = Path(path)
    with os_errors_as_input_errors(path):
        if path.is_dir() or (path.exists() and not replaces):
            what = "this is a directory" if path.is_dir() else "the file exists"
            raise InputError(f"{path}: {what}; name another one or remove it first.")
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no directory {path.parent}; make it first or name another place.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot write it, {path.parent} is not writable; {_REMEDIES[errno.EACCES]}.")


def begin_run(path: str | Path, kind: str, *, resume: bool = False) -> Path:
    """Creates the directory for one run's output, or takes one up with `resume`, for this process alone.

    A file in it says which command it belongs to, so that no other one resumes there. Other processes are kept out
    until this one ends or calls `leave_runs`.

    Args:
      path: the directory; with `resume` an empty one, or one that the same kind of run has begun.
      kind: the command.
      resume: go on with what is there.

    Raises:
      InputError: if it exists and is not empty (with `resume`: does not exist, or another command's run is in it), if
        it cannot be created or written, or another process is at work in it.
    """
    path = Path(path)
    check_run_directory(path, kind, resume=resume)
    create_run_directory(path, resume=resume)
    keep_out_others(path)
    _check_free(path, resume)  # another process may have begun a moment ago
    if resume:
        _remove_temporaries(path)
    write_json(path / _RUN, {"command": kind, "version": __version__})
    return path


def leave_runs() -> None:
    """Lets other processes into the directories of all runs that this one has begun."""
    while _held:
        os.close(_held.popitem()[1])


_RUN = "run.json"
_held: dict[Path, int] = {}


def _check_free(path: Path, resume: bool) -> None:
    with os_errors_as_input_errors(path, "read"):
        if resume and not path.is_dir():
            raise InputError(f"{path}: there is no run to resume here; name the directory of one or start anew.")
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: this is a file; name a directory that does not exist yet.")
        if not resume and path.is_dir() and any(path.iterdir()):
            raise InputError(f"{path}: the directory exists and is not empty; name another one or remove it first.")


def _check_kind(path: Path, kind: str) -> None:
    with os_errors_as_input_errors(path, "read"):
        if not any(path.iterdir()):
            return
        begun = (path / _RUN).is_file()
    found = read_json(path / _RUN) if begun else {}
    command = found.get("command") if isinstance(found, dict) else None
    if command != kind:
        other = f"what is there is of `{brief(command)}`" if command else "what is there is no such run"
        raise InputError(
            f"{path}: there is no run of `{kind}` to resume here, {other}; name the directory of one or start anew."
        )


def keep_out_others(path: Path) -> None:
    """Keeps other processes that call this or `begin_run` out of a directory, where its file system can.

    Raises:
      InputError: if another process is at work in it.
    """
    if path.resolve() in _held:
        return
    with os_errors_as_input_errors(path, "read"):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"{path}: another process is at work in this directory; wait for its end or name another one."
        ) from None
    except OSError:  # no locks here
        os.close(descriptor)
    else:
        _held[path.resolve()] = descriptor


def _remove_temporaries(path: Path) -> None:
    """Removes what writes left unfinished when they were killed."""
    for left in path.rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(left.name):
            with contextlib.suppress(OSError):
                left.unlink()


_TEMPORARY = re.compile(r"\..+\.[0-9]+\.tmp")  # see `replacing`


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Yields a file to write to that atomically replaces `path` at the end of the block.

    Raises:
      InputError: if the disk is full or the place is not writable; `path` then keeps its previous content.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os_errors_as_input_errors(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes `content` to `path` atomically.

    Raises:
      InputError: as `replacing`.
    """
    with replacing(path) as file:
        file.write(content)


def write_text(path: str | Path, content: str) -> None:
    """Like `write_bytes`, for text in UTF-8."""
    write_bytes(path, content.encode())


def jsonable(value: Any) -> Any:
    """Arrays, dataclasses, mappings and sequences as plain JSON values; what is not finite becomes null.

    An object with a method `jsonable` says itself what it is.
    """
    if hasattr(value, "jsonable"):
        return jsonable(value.jsonable())
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_json(path: str | Path, content: Any) -> None:
    """Like `write_bytes`, for JSON; numbers must be finite, so that every JSON parser can read the file."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Like `write_bytes`, for one JSON object per line."""
    write_text(path, "".join(_line(record) for record in records))


def append_jsonl(path: str | Path, record: Mapping[str, Any]) -> None:
    """Like `append_line`, for a JSON object."""
    append_line(path, _line(record))


def append_line(path: str | Path, line: str) -> None:
    """Appends a line, including its line break, to a file; first drops a last line that a kill cut short.

    Raises:
      InputError: as `write_bytes`; earlier lines stay.
    """
    path = Path(path)
    with os_errors_as_input_errors(path), path.open("ab+") as file:
        size = whole = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                whole = file.read().rfind(b"\n") + 1
                file.truncate(whole)
        try:
            file.write(line.encode())
            file.flush()
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(whole)
            raise


def read_json(path: str | Path) -> Any:
    """What a JSON file that we have written holds, as plain data.

    Raises:
      InputError: if it is missing, cannot be read, or is damaged.
    """
    data = parse_json(read_text(path), str(path))
    check(data, str(path))
    return data


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Records of a JSON lines file, without a last line that a kill cut short; an empty list if there is no file.

    Raises:
      InputError: if another line is not a JSON object.
    """
    path = Path(path)
    if not path.exists():
        return []
    with os_errors_as_input_errors(path, "read"):
        lines = path.read_bytes().split(b"\n")[:-1]
    return parse_jsonl(path, lines)


def parse_jsonl(path: Path, lines: Iterable[str | bytes]) -> list[dict[str, Any]]:
    """Records of the lines of a JSON lines file; the path is for the message only.

    Raises:
      InputError: if a line is not a JSON object.
    """
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line, str(path))
            check(record, str(path))
        except InputError:
            record = None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number}: the line is not a JSON object; mend or remove it.")
        records.append(record)
    return records


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"


@contextlib.contextmanager
def os_errors_as_input_errors(path: Path, doing: str = "write") -> Iterator[None]:
    """Turns an `OSError` about `path` into one sentence.

    Raises:
      InputError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "mend that or choose another place")
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{path}: cannot {doing} it, {reason}; {remedy}.") from error
