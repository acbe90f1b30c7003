"""JSON and YAML as plain data, read strictly: what could be meant in two ways, or takes no end, is refused.

JSON is that of RFC 8259, with NaN and infinities for whoever reports them by name (`check`). Plain words in YAML mean
what they mean in the core schema of YAML 1.2.2 (section 10.3.2): `1e3` and `0o17` are numbers, `1:30`, `1_000`, `yes`
and dates are text. Aliases are expanded, within limits.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from besteffort.errors import InputError, brief

MOST_BYTES = 16 * 2**20
"""Size of the largest JSON text that is read."""

MOST_YAML_BYTES = 2**18
"""Size of the largest YAML text that is read."""

MOST_DEPTH = 64
"""Lists and mappings within each other."""

_MOST_DIGITS = 300  # longer integers fit no float
_MOST_VALUES = 100_000  # of a YAML document whose aliases are expanded


def read_text(path: str | Path, most_bytes: int = MOST_BYTES) -> str:
    """The text of a file.

    Raises:
      InputError: if there is no such file, it cannot be read, is too large, or no text in UTF-8.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; check the path.") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: this is a directory; name a file.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot read it, {reason.lower()}; check the path and its permissions.") from error
    if len(content) > most_bytes:
        raise InputError(f"{path}: the file has more than {most_bytes:,} bytes; name the right file or shorten it.")
    return decoded(content, str(path))


def decoded(content: bytes, where: str) -> str:
    """Bytes in UTF-8, with or without a mark in front, as text.

    Raises:
      InputError: if they are something else.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: cannot read it as text (byte {error.start + 1} is not UTF-8); name the right file or save it as "
            "UTF-8."
        ) from error


def parse_json(text: str | bytes, where: str) -> Any:
    """What a JSON text holds.

    Raises:
      InputError: naming `where`, if it is no JSON, repeats a key, is nested too deep, or has a number of too many
        digits.
    """
    if isinstance(text, bytes):
        text = decoded(text, where)

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(found)
        if len(mapping) < len(found):
            names = [name for name, _ in found]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{where}: the key `{brief(twice)}` stands twice in a mapping; leave one of them out.")
        return mapping

    def integer(digits: str) -> int:
        if len(digits) > _MOST_DIGITS:
            raise InputError(f"{where}: a number has {len(digits):,} digits; give one of {_MOST_DIGITS} at most.")
        return int(digits)

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_int=integer)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise InputError(
            f"{where}: not valid JSON ({error.msg.lower().rstrip(':')} at {place}); complete or repair the file."
        ) from error
    except RecursionError:
        raise _too_deep(where) from None


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text holds.

    Raises:
      InputError: naming `where` and the line, if it is no YAML, repeats a key, or is nested too deep; if an alias
        stands within what it names or aliases make it too large; or if it has a tag, or a number of too many digits.
    """
    # Imported where it is needed, since light modules read JSON only.
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{where}{line}: {error.problem}; mend the YAML.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{where}: {' '.join(str(error).split())}; mend the YAML.") from error
    except RecursionError:
        raise _too_deep(where) from None


def check(data: Any, where: str) -> None:
    """Checks that plain data can be worked with: depth, and that every number is finite.

    Raises:
      InputError: naming `where` and the field.
    """
    for field, value, depth in _walk(data):
        if depth > MOST_DEPTH:
            raise _too_deep(where)
        if isinstance(value, float) and not math.isfinite(value):
            shown = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
            name = f"`{field}`" if field else "the value"
            raise InputError(f"{where}: {name} is {shown}, but should be a finite number.")


def _walk(data: Any) -> Iterator[tuple[str, Any, int]]:
    """Dotted name, value and depth of everything in plain data, in no certain order."""
    left: list[tuple[str, Any, int]] = [("", data, 0)]
    while left:
        field, value, depth = left.pop()
        yield field, value, depth
        if isinstance(value, dict):
            left += [(f"{field}.{key}" if field else str(key), inner, depth + 1) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            left += [(f"{field}[{index}]", inner, depth + 1) for index, inner in enumerate(value)]


def _too_deep(where: str) -> InputError:
    return InputError(f"{where}: lists or mappings stand more than {MOST_DEPTH} deep within each other; flatten them.")


def _loader() -> Any:
    global _LOADER
    if _LOADER is None:
        _LOADER = _make_loader()
    return _LOADER


_LOADER: Any = None


def _make_loader() -> Any:
    """The class that reads YAML; made once, where YAML is read."""
    import yaml

    base: Any = yaml.SafeLoader
    error = yaml.composer.ComposerError

    class Loader(base):
        """YAML 1.2's core schema without tags, with limits, and with keys that are words and stand once."""

        yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}
        yaml_constructors: ClassVar[dict[Any, Any]] = {}

        def __init__(self, stream: Any) -> None:
            super().__init__(stream)
            self._depth = self._values = 0
            self._open: set[str] = set()
            self._sizes: dict[int, int] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            alias = isinstance(event, yaml.AliasEvent)
            if alias and event.anchor in self._open:
                raise error(
                    None, None, f"the alias `*{brief(event.anchor)}` stands within what it names", event.start_mark
                )
            if not alias and event.anchor is not None:
                self._open.add(event.anchor)
            self._depth += 1
            if self._depth > MOST_DEPTH + 1:
                raise error(None, None, f"it is nested more than {MOST_DEPTH} deep", event.start_mark)
            before = self._values
            node = super().compose_node(parent, index)
            self._depth -= 1
            self._open.discard(event.anchor)
            self._values += self._sizes[id(node)] if alias else 1
            self._sizes[id(node)] = self._values - before
            if self._values > _MOST_VALUES:
                raise error(
                    None, None, f"it holds more than {_MOST_VALUES:,} values, aliases counted", event.start_mark
                )
            return node

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen: set[Hashable] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise error(None, None, "a key is a list or a mapping", key.start_mark)
                if key.tag not in (_STR, _MERGE):
                    raise error(None, None, f"the key `{brief(key.value)}` is no text, quote it", key.start_mark)
                if key.value in seen:
                    raise error(None, None, f"the key `{brief(key.value)}` stands twice", key.start_mark)
                seen.add(key.value)
            return node

    def number(loader: Any, node: Any) -> int:
        text, problem = node.value, None
        if len(text) > _MOST_DIGITS:
            problem = f"a number has {len(text):,} digits"
        elif re.fullmatch("[-+]?0[0-9]+", text):
            problem = f"the number `{text}` begins with 0, which means different things"
        if problem is not None:
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def real(loader: Any, node: Any) -> float:
        return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))

    meanings = {
        _NULL: (r"~|null|Null|NULL|", "~nN", lambda loader, node: None),
        "tag:yaml.org,2002:bool": ("true|True|TRUE|false|False|FALSE", "tTfF", lambda _, node: node.value[0] in "tT"),
        "tag:yaml.org,2002:int": ("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789", number),
        "tag:yaml.org,2002:float": (
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
            "-+.0123456789",
            real,
        ),
        _MERGE: ("<<", "<", Loader.construct_undefined),
    }
    for tag, (pattern, first, construct) in meanings.items():
        Loader.add_implicit_resolver(tag, re.compile(f"^(?:{pattern})$"), [*first, *([""] if tag == _NULL else [])])
        Loader.add_constructor(tag, construct)
    Loader.add_constructor(_STR, Loader.construct_yaml_str)
    Loader.add_constructor("tag:yaml.org,2002:seq", Loader.construct_yaml_seq)
    Loader.add_constructor("tag:yaml.org,2002:map", Loader.construct_yaml_map)
    Loader.add_constructor(None, Loader.construct_undefined)
    return Loader


_STR = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"
