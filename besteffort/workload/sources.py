"""Opens what people log: CSV, JSON lines or one JSON document, plain or gzip-compressed, row by row in bounded memory.

Lines end at line breaks only; U+2028 and the like inside a string are text. Rows are read once and in order, so a pipe
will do. Errors name the file, the line and a remedy.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, cast

from besteffort.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
LONGEST_LINE = LARGEST_DOCUMENT = 2**27
"""Characters of the longest line, and of the largest JSON document; files of many lines may be larger."""
_MOST_GROUPS, _MOST_VALUES = 4_000_000, 16_000_000  # of one JSON text, which take about half a gigabyte
_SPACE = re.compile(r"[ \t\r\n]*")
_SAMPLE = 100
_DEEPEST = 3
_LISTS = ("data", "requests", "records", "observations", "results")

Layout = Literal["csv", "json lines", "json"]


class Row(NamedTuple):
    """One row.

    Attributes:
      number: line on which it begins, or its place in a JSON document, counted from 1.
      cells: cells in the order of the header, or a JSON object.
    """

    number: int
    cells: Any


class Source:
    """A file whose rows are read once.

    Attributes:
      path: the file.
      layout: what it is written in.
      header: names of the columns, or of the fields of the first 100 objects; those of nested objects are dotted.
      document: the object that a JSON document is, where it is not a list of rows.
      sample: the first rows.
      repeated: names that stand twice in one JSON object, and where.
      notes: what a reader has to say of it.
    """

    def __init__(self, path: Path, layout: Layout, rows: Iterable[Row], header: tuple[str, ...] = ()) -> None:
        self.path, self.layout = path, layout
        self.repeated: dict[str, int] = {}
        self.notes: list[str] = []
        self.ends_with_newline = True
        self.document: dict[str, Any] | None = None
        self._rows = iter(rows)
        self.sample = tuple(itertools.islice(self._rows, _SAMPLE))
        self.header = header or tuple(dict.fromkeys(name for row in self.sample for name in _names(row.cells)))

    def rows(self) -> Iterator[Row]:
        """All rows, once."""
        return itertools.chain(self.sample, self._rows)

    def unfold(self, rows: Iterator[Row]) -> None:
        """Puts rows of objects, made of the present ones, in their place."""
        self.sample = tuple(itertools.islice(rows, _SAMPLE))
        self._rows = rows
        self.header = tuple(dict.fromkeys(name for row in self.sample for name in _names(row.cells)))

    def has(self, *names: str) -> bool:
        """Whether the header has all these names."""
        return set(names) <= set(self.header)

    def place(self, number: int) -> str:
        """The file and a row of it, for messages."""
        return f"{self.path}, {'entry' if self.layout == 'json' else 'line'} {number}"

    def refuse(self, number: int, name: str, value: Any, why: str) -> NoReturn:
        """Raises `InputError` about a cell."""
        raise InputError(f"{self.place(number)}: `{name}` is `{shown(value)}`, {why}; mend or remove the line.")


def shown(value: Any, width: int = 80) -> str:
    """A value from a file in one line of a message, without control characters."""
    text = str(value)
    text = text if len(text) <= width else f"{text[:width]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def listed(names: Iterable[str], count: int = 12) -> str:
    """Names from a file in one line of a message."""
    names = list(names)
    text = ", ".join(f"`{shown(name, 40)}`" for name in names[:count])
    return f"{text} and {len(names) - count} more" if len(names) > count else text


@contextlib.contextmanager
def open_source(path: str | Path) -> Iterator[Source]:
    """Opens a file of rows; it is closed at the end of the block.

    Raises:
      InputError: in the block, too, if the file is missing, unreadable, not text, empty, a damaged or cut gzip file,
        or its lines differ in length or are no objects.
    """
    path = Path(path)
    with _readable(path), contextlib.ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        start = raw.peek(2)
        file: io.BufferedIOBase = raw
        if start[:2] == GZIP_MAGIC:
            file = stack.enter_context(gzip.GzipFile(fileobj=raw))
        elif path.suffix == ".gz" and start:
            raise InputError(
                f"{path}: the file is named `.gz` but is not gzip-compressed; rename it, or copy it again."
            )
        # Empty `newline` keeps line breaks as they are, which a CSV reader needs.
        text = stack.enter_context(io.TextIOWrapper(cast(Any, file), encoding="utf-8-sig", newline=""))
        yield _source(path, text)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the path.") from None
    except EOFError:
        raise InputError(f"{path}: the gzip stream ends early, so the file is cut short; copy it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: the gzip stream is damaged ({error}); copy the file again.") from None
    except OSError as error:
        raise InputError(
            f"{path}: the file cannot be read ({error.strerror or error}); check the path and its permissions."
        ) from None
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: the file is not UTF-8 text; give CSV, JSON lines or JSON, plain or gzip-compressed."
        ) from None


class _Lines:
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


def _source(path: Path, text: io.TextIOWrapper) -> Source:
    lines = _Lines(path, text)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise InputError(f"{path}: the file is empty; give a file with a header and at least one request.")
    if first.lstrip().startswith(("{", "[")):
        return _json(path, lines, first)
    return _csv(path, lines, first)


def _csv(path: Path, lines: _Lines, first: str) -> Source:
    header_line = lines.number
    # Of the usual separators, one that stands in the header; the text of prompts comes later.
    delimiter = next((mark for mark in ",\t;" if mark in first), ",")
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)

    def records() -> Iterator[Row]:
        before = 0
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise InputError(
                    f"{path}, line {header_line + before}: the file is not a CSV table from there on ({error}); "
                    "mend the line, in which perhaps a quote is not closed."
                ) from None
            if cells is None:
                return
            if cells:
                yield Row(header_line + before, cells)
            before = reader.line_num

    rows = records()
    header = tuple(name.strip() for name in next(rows).cells)
    if _is_servegen(header):
        rows = itertools.chain([Row(header_line, list(header))], rows)
        header = ("window_start_s", "rate_per_s", "cv", "pattern", "arg1", "arg2")
    source = Source(path, "csv", _equally_long(path, rows, len(header)), header)
    if not source.sample:
        raise InputError(f"{path}: the file has no rows below its header; give a file with at least one request.")
    return _with_end(source, lines)


def _is_servegen(cells: tuple[str, ...]) -> bool:
    """ServeGen's chunks have no header; the fourth of their six cells names a law, or nothing in silent windows."""
    if len(cells) != 6 or cells[3] not in ("Gamma", "Weibull", ""):
        return False
    try:
        return all(float(cells[place]) >= 0 for place in (0, 1))
    except ValueError:
        return False


def _equally_long(path: Path, rows: Iterator[Row], length: int) -> Iterator[Row]:
    for row in rows:
        if len(row.cells) != length:
            cut = (
                "; it is the last one, so the file may be cut short: copy it again"
                if next(rows, None) is None
                else "; mend or remove it"
            )
            raise InputError(
                f"{path}, line {row.number}: the line has {len(row.cells)} fields but the header has {length}{cut}."
            )
        yield row


def _with_end(source: Source, lines: _Lines) -> Source:
    """The source, which at its end knows how the last line ended."""

    def watched(rows: Iterator[Row]) -> Iterator[Row]:
        yield from rows
        source.ends_with_newline = lines.whole

    source._rows = watched(source._rows)
    return source


def _json(path: Path, lines: _Lines, first: str) -> Source:
    repeated: dict[str, int] = {}
    decoder = _Decoder(path, repeated)
    value = None
    if first.lstrip().startswith("{"):
        with contextlib.suppress(json.JSONDecodeError, _DeepError):
            value = decoder.decode(first, lines.number)
    if not isinstance(value, dict):
        return _json_document(path, lines, first, decoder)
    source = Source(path, "json lines", _json_lines(path, lines, Row(lines.number, value), decoder))
    source.repeated = repeated
    if len(source.sample) == 1:
        return _document_source(path, "json lines", value, repeated)
    return source


def _document_source(path: Path, layout: Layout, document: dict[str, Any], repeated: dict[str, int]) -> Source:
    """One object; its list of rows, if it has one by a usual name, stands for it."""
    inner = next((document[name] for name in _LISTS if _is_rows(document.get(name))), None)
    if inner is None:
        source = Source(path, layout, [Row(1, document)])
    else:
        source = Source(path, "json", (Row(number, value) for number, value in enumerate(inner, 1)))
    source.repeated, source.document = repeated, document
    return source


def _json_lines(path: Path, lines: _Lines, first: Row, decoder: _Decoder) -> Iterator[Row]:
    yield first
    for line in lines:
        if not line.strip():
            continue
        value = None
        with contextlib.suppress(json.JSONDecodeError, _DeepError):
            value = decoder.decode(line, lines.number)
        if not isinstance(value, dict):
            cut = "" if lines.whole else "; it is the last one, so the file may be cut short: copy it again"
            raise InputError(
                f"{path}, line {lines.number}: the line is not a JSON object{cut or '; mend or remove it'}."
            )
        yield Row(lines.number, value)


def _json_document(path: Path, lines: _Lines, first: str, decoder: _Decoder) -> Source:
    """A list of objects, objects one after another, or one object."""
    text = first + lines.text.read(LARGEST_DOCUMENT)
    if len(text) >= LARGEST_DOCUMENT:
        raise InputError(
            f"{path}: the file is one JSON document of more than {LARGEST_DOCUMENT:,} characters; "
            "write it as JSON lines, one object per line."
        )
    rows = _json_values(path, text, decoder)
    beginning = list(itertools.islice(rows, 2))
    if not beginning:
        raise InputError(f"{path}: the JSON document holds no requests; give a file with at least one.")
    if len(beginning) == 1 and not text.lstrip().startswith("["):
        return _document_source(path, "json", beginning[0].cells, decoder.repeated)
    source = Source(path, "json", itertools.chain(beginning, rows))
    source.repeated = decoder.repeated
    return source


def _json_values(path: Path, text: str, decoder: _Decoder) -> Iterator[Row]:
    """The objects of a text, one at a time."""
    number = 0
    try:
        for number, value in enumerate(decoder.values(text), 1):
            if not isinstance(value, dict):
                raise InputError(
                    f"{path}, entry {number}: `{shown(value, 40)}` is not a JSON object; give one per request."
                )
            yield Row(number, value)
    except (json.JSONDecodeError, _DeepError) as error:
        line = getattr(error, "lineno", None)
        first, _, rest = text.partition("\n")
        if line == 1 and rest.strip() and first.rstrip().endswith("}"):
            raise InputError(f"{path}, line 1: the line is not a JSON object; mend or remove it.") from None
        raise InputError(
            f"{path}{f', line {line}' if line else ''}: the file is neither JSON lines nor a JSON document "
            f"({shown(getattr(error, 'msg', error))}); copy it again, or mend it."
        ) from None


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


class _DeepError(Exception):
    """Raised where JSON is nested too deeply."""


def _as_decode_error(error: ValueError, text: str) -> json.JSONDecodeError:
    """The error, also where a number has too many digits for Python."""
    return error if isinstance(error, json.JSONDecodeError) else json.JSONDecodeError("a number is too long", text, 0)


class _Decoder:
    """JSON whose names that stand twice in one object are noted; what is no finite number stays text."""

    def __init__(self, path: Path, repeated: dict[str, int]) -> None:
        self.path, self.repeated = path, repeated
        self._line = 1
        keep: Callable[[str], Any] = str
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=keep)

    def decode(self, line: str, number: int) -> Any:
        self._line = number
        self._refuse_large(line)
        try:
            return self._json.decode(line)
        except RecursionError:
            raise _DeepError("nested too deeply") from None
        except ValueError as error:
            raise _as_decode_error(error, line) from None

    def _refuse_large(self, text: str) -> None:
        """Refuses a text whose values take many times its own size.

        Raises:
          InputError: if it has too many.
        """
        many = len(text) > _MOST_GROUPS and (
            text.count("{") + text.count("[") > _MOST_GROUPS or text.count(",") > _MOST_VALUES
        )
        if many:
            raise InputError(
                f"{self.path}: one JSON text has more than {_MOST_GROUPS:,} objects and lists or {_MOST_VALUES:,} "
                "values; write it as JSON lines, one object per line."
            )

    def values(self, text: str) -> Iterator[Any]:
        """The entries of the list that a text is, or its values one after another.

        Raises:
          JSONDecodeError: if it is not JSON.
        """
        self._refuse_large(text)
        at = _after_space(text, 0)
        is_list = text[at : at + 1] == "["
        at = _after_space(text, at + is_list)
        if is_list and text[at : at + 1] == "]":
            return
        while at < len(text):
            try:
                value, at = self._json.raw_decode(text, at)
            except RecursionError:
                raise _DeepError("nested too deeply") from None
            except ValueError as error:
                raise _as_decode_error(error, text) from None
            yield value
            at = _after_space(text, at)
            if is_list:
                if text[at : at + 1] == "]" and _after_space(text, at + 1) == len(text):
                    return
                if text[at : at + 1] != ",":
                    raise json.JSONDecodeError("a comma or the end of the list is missing", text, at)
                at = _after_space(text, at + 1)
        if is_list:
            raise json.JSONDecodeError("the list does not end", text, at)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            seen = set()
            for name, _ in pairs:
                if name in seen:
                    self.repeated.setdefault(name, self._line)
                seen.add(name)
        return made


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _names(cells: Any, depth: int = 1) -> Iterator[str]:
    """Names of an object's fields, dotted where they are nested."""
    for name, value in cells.items():
        yield name
        if isinstance(value, dict) and depth < _DEEPEST:
            yield from (f"{name}.{inner}" for inner in _names(value, depth + 1))
