"""Plain data from JSON and YAML: what each word means, and what has no end or two meanings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from besteffort.documents import MOST_DEPTH, MOST_YAML_BYTES, check, parse_json, parse_yaml, read_text
from besteffort.errors import InputError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # The core schema of YAML 1.2.2, section 10.3.2, and what YAML 1.1 read otherwise.
        ("1e3", 1000.0),
        ("-1.5E-3", -0.0015),
        ("+.5", 0.5),
        ("12.", 12.0),
        ("0o17", 15),
        ("0x1F", 31),
        ("+7", 7),
        ("-0", 0),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("yes", "yes"),
        ("Off", "Off"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("Null", None),
        ("nUll", "nUll"),
        ("1e", "1e"),
        (".", "."),
        ("'1'", "1"),
        ("=", "="),
        ("{a: &x {b: 1}, c: *x}", {"a": {"b": 1}, "c": {"b": 1}}),
        ("{a: &x {b: 1}, c: {<<: *x, d: 2}}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
    ],
)
def test_words_of_yaml(text: str, value: Any) -> None:
    found = parse_yaml(text, "here")
    assert found == value
    assert type(found) is type(value)


@given(st.floats(allow_nan=False))
def test_every_number_that_yaml_or_json_writes_is_read_back(number: float) -> None:
    assert parse_yaml(yaml.safe_dump(number), "here") == number
    assert parse_json(json.dumps(number), "here") == number


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(_VALUES)
def test_json_there_and_back(value: Any) -> None:
    assert parse_json(json.dumps(value), "here") == value
    assert parse_yaml(json.dumps(json.dumps(value)), "here") == json.dumps(value)


def exploding(levels: int) -> str:
    """Ten aliases of ten aliases of ...: 10 to the power of `levels` values."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [*a]", "line 1: the alias `*a` stands within what it names; mend the YAML."),
        ("a: &a {b: {c: *a}}", "line 1: the alias `*a` stands within what it names"),
        (exploding(9), "line 5: it holds more than 100,000 values, aliases counted"),
        ("[" * 800 + "]" * 800, "line 1: it is nested more than 64 deep"),
        ("{a: " * 800 + "1" + "}" * 800, "line 1: it is nested more than 64 deep"),
        ("a: " + "9" * 5000, "line 1: a number has 5,000 digits"),
        ("a: 010", "line 1: the number `010` begins with 0, which means different things"),
        ("{1: a, '1': b}", "line 1: the key `1` is no text, quote it"),
        ("true: a", "line 1: the key `true` is no text, quote it"),
        ("? [a]\n: b", "line 1: a key is a list or a mapping"),
        ("a: 1\na: 2", "line 2: the key `a` stands twice"),
        ("a: !!set {b, c}", "line 1: could not determine a constructor for the tag 'tag:yaml.org,2002:set'"),
        ("a: !!binary aGk=", "line 1: could not determine a constructor"),
        ("a: !!timestamp 2024-01-01", "line 1: could not determine a constructor"),
        ("a: *b", "line 1: found undefined alias 'b'"),
        ("<<: 3", "line 1: expected a mapping or list of mappings for merging"),
        ("a: b\n--- \nc: d", "line 2: but found another document"),
        ("'\x1b[31m'", "special characters are not allowed"),
    ],
)
def test_yaml_that_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        parse_yaml(text, "here")
    assert words in str(error.value)
    assert str(error.value).startswith("here")
    assert str(error.value).endswith("; mend the YAML.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "the key `a` stands twice in a mapping; leave one of them out."),
        ('{"b": [{"\\u001b[2J": 1, "\\u001b[2J": 2}]}', r"the key `\x1b[2J` stands twice in a mapping"),
        ("[" * 100_000, "more than 64 deep within each other; flatten them."),
        ("9" * 5000, "a number has 5,000 digits; give one of 300 at most."),
        ("[1,", "not valid JSON (expecting value at line 1 column 4); complete or repair the file."),
        ("", "not valid JSON (expecting value at line 1 column 1)"),
        ("{'a': 1}", "not valid JSON (expecting property name enclosed in double quotes at line 1 column 2)"),
        (b"\xff\xfe{\x00", "cannot read it as text (byte 1 is not UTF-8); name the right file or save it as UTF-8."),
    ],
)
def test_json_that_is_refused(text: str | bytes, words: str) -> None:
    with pytest.raises(InputError) as error:
        parse_json(text, "here")
    assert str(error.value).startswith("here: ")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"a": [1.0, math.nan]}, "here: `a[1]` is NaN, but should be a finite number."),
        ({"a": {"b": -math.inf}}, "here: `a.b` is -Infinity, but should be a finite number."),
        (math.inf, "here: the value is Infinity, but should be a finite number."),
    ],
)
def test_numbers_are_finite(data: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        check(data, "here")
    assert str(error.value) == words


def test_depth_is_limited() -> None:
    deep: Any = 1
    for _ in range(MOST_DEPTH):
        deep = [deep]
    check(deep, "here")
    for wrap in (lambda inner: [inner], lambda inner: {"a": inner}):
        with pytest.raises(InputError, match="more than 64 deep"):
            check(wrap(deep), "here")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("none.yaml", "there is no such file; check the path."),
        (".", "this is a directory; name a file."),
        ("x" * 300, "cannot read it, file name too long; check the path and its permissions."),
        ("a\0b", "cannot read it, embedded null byte; check the path"),
        ("/dev/zero", "the file has more than 262,144 bytes; name the right file or shorten it."),
    ],
)
def test_files_that_cannot_be_read(path: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        read_text(path, MOST_YAML_BYTES)
    assert words in str(error.value)


def test_a_mark_in_front_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf{}")
    assert read_text(tmp_path / "a") == "{}"
