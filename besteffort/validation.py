"""Parses JSON text into typed, frozen dataclasses, with one clear sentence per error, and writes these as plain data.

This module imports pydantic, so light modules import it only where they read a file.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pydantic

from besteffort.documents import check, parse_json
from besteffort.errors import InputError, brief

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T")

_WORDING = {"a valid array": "a list", "an object": "a mapping", " after validation": ""}


def from_json(cls: type[T], text: str | bytes, where: str) -> T:
    """Fills the dataclass `cls` from JSON text, read from `where`.

    Lists become tuples, objects become dataclasses, and an integer is accepted for a float. There are no other
    conversions, and unknown fields are errors.

    Raises:
      InputError: naming `where`, the field, its expected type and its value; on a number that is not finite, and as
        `besteffort.documents.parse_json`.
    """
    data = parse_json(text, where)
    check(data, where)
    try:
        read: T = _adapter(cls).validate_json(json.dumps(data), strict=True, extra="forbid")
        return read
    except pydantic.ValidationError as error:
        raise InputError(f"{where}: {_sentence(cls, error.errors(include_url=False)[0])}") from error


def as_data(value: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values, every field written out, numbers of float fields as floats.

    `from_json` reads it back to an equal dataclass.
    """
    data: dict[str, Any] = _adapter(type(value)).dump_python(value, mode="json")
    return data


def _adapter(cls: Any) -> Any:
    """The validator of a class, which takes long to make."""
    if cls not in _adapters:
        _adapters[cls] = pydantic.TypeAdapter(cls)
    return _adapters[cls]


_adapters: dict[Any, Any] = {}


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`, did you mean ...?` if one of `known` is similar to `name`, else an empty string."""
    plain = {one.lstrip("-"): one for one in known}  # dashes make any two short options similar
    close = difflib.get_close_matches(name.lstrip("-"), plain, n=1)
    return f", did you mean `{plain[close[0]]}`?" if close else ""


def _sentence(cls: type, error: ErrorDetails) -> str:
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    field = f"`{field}`" if field else "the file"
    match error["type"]:
        case "unexpected_keyword_argument":
            *parents, name = error["loc"]
            known = _fields_at(cls, parents)
            remedy = f"known are {', '.join(known)}" if known else "remove it or correct its spelling"
            return f"{field} is not a known field{did_you_mean(str(name), known)}; {remedy}."
        case "union_tag_invalid":
            context = error["ctx"]
            tag = context["discriminator"].strip("'")
            return f"{field.rstrip('`')}.{tag}` is {brief(context['tag'])}; choose from {context['expected_tags']}."
        case "union_tag_not_found":
            return f"{field.rstrip('`')}.{error['ctx']['discriminator'].strip(chr(39))}` is missing; add it."
        case "int_parsing_size":
            return f"{field} is {brief(json.dumps(error['input']))}, but should be a whole number of fewer digits."
        case "missing":
            return f"{field} is missing; add it."
        case "value_error":
            return str(error["ctx"]["error"])
        case _:
            found = brief(json.dumps(error["input"], default=str))
            should = error["msg"].removeprefix("Input ")
            for pydantics, ours in _WORDING.items():
                should = should.replace(pydantics, ours)
            remedy = "; write it without `_`" if re.fullmatch('"[-+]?[0-9][0-9_]*"', found) and "_" in found else ""
            return f"{field} is {found}, but {should[0].lower()}{should[1:]}{remedy}."


def _fields_at(cls: Any, location: Sequence[str | int]) -> tuple[str, ...]:
    """Names of the fields of the dataclass at `location` inside `cls`; empty where a union leaves several types."""
    for part in location:
        if dataclasses.is_dataclass(cls):
            cls = typing.get_type_hints(cls).get(str(part))
        else:
            cls = typing.get_args(cls)[0 if isinstance(part, int) else -1]
        if typing.get_origin(cls) in (typing.Union, types.UnionType):
            options = [option for option in typing.get_args(cls) if option is not types.NoneType]
            cls = options[0] if len(options) == 1 else None
        if cls is None:
            return ()
    return tuple(field.name for field in dataclasses.fields(cls))
