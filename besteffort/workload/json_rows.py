"""Rows of JSON: an object per line, a list of objects, objects one after another, or one object."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from besteffort.errors import InputError
from besteffort.workload import text_lines
from besteffort.workload.sources import Layout, Row, Source, shown
from besteffort.workload.text_lines import Lines

_MOST_GROUPS, _MOST_VALUES = 4_000_000, 16_000_000  # of one JSON text, which take about half a gigabyte
_SPACE = re.compile(r"[ \t\r\n]*")
_LISTS = ("data", "requests", "records", "observations", "results")


def json_source(path: Path, lines: Lines, first: str) -> Source:
    """Objects, a line each, or those of one document; the `first` line begins it.

    Raises:
      InputError: if it is no JSON, too large, or holds other things than objects.
    """
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
        if _is_table(document):
            raise InputError(
                f"{path}: the JSON document is a table by columns or by index, as pandas writes by default; write an "
                "object per request, as with `to_json(NEW, orient='records', lines=True)`."
            )
        source = Source(path, layout, [Row(1, document)])
    else:
        source = Source(path, "json", (Row(number, value) for number, value in enumerate(inner, 1)))
    source.repeated, source.document = repeated, document
    return source


def _json_lines(path: Path, lines: Lines, first: Row, decoder: _Decoder) -> Iterator[Row]:
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


def _json_document(path: Path, lines: Lines, first: str, decoder: _Decoder) -> Source:
    """A list of objects, objects one after another, or one object."""
    text = first + lines.text.read(text_lines.LONGEST_LINE)
    if len(text) >= text_lines.LONGEST_LINE:
        raise InputError(
            f"{path}: the file is one JSON document of more than {text_lines.LONGEST_LINE:,} characters; "
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


def _is_table(document: dict[str, Any]) -> bool:
    """Whether an object holds columns, as lists or by index, or rows by index, or is split into these."""
    if document.keys() == {"columns", "index", "data"}:
        return True
    values = list(document.values())
    if len(values) < 2:
        return False
    if all(isinstance(each, dict) and each for each in values):
        return all(each.keys() == values[0].keys() for each in values)
    if not all(isinstance(each, list) and each for each in values):
        return False
    return all(len(each) == len(values[0]) and not isinstance(each[0], dict | list) for each in values)


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
