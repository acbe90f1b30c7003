"""What a message says is one line of printable characters, whatever it is about."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.errors import InputError, brief, printable


def test_plain_sentences_stay() -> None:
    assert str(InputError("größe.yaml: `é` is 3; give 2.")) == "größe.yaml: `é` is 3; give 2."


@given(st.text(max_size=3000))
def test_messages_are_one_printable_line(text: str) -> None:
    said = str(InputError(text))
    assert said.isprintable()
    assert len(said) <= 1005
    assert str(InputError(said)) == said


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a\nb", r"a\nb"), ("\x1b[2J", r"\x1b[2J"), ("\u202eevil", r"\u202eevil"), ("\x9b31m", r"\x9b31m")],
)
def test_what_controls_a_terminal_is_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert str(InputError(text)) == expected


def test_a_long_sentence_keeps_its_file_and_its_remedy() -> None:
    said = str(InputError(f"here.yaml: `name` is {'x' * 100_000}; give a shorter one."))
    assert said.startswith("here.yaml: `name` is xxx")
    assert said.endswith("xxx; give a shorter one.")


def test_errors_are_copied_whole() -> None:
    error = InputError("a\nb")
    assert str(pickle.loads(pickle.dumps(error))) == str(copy.copy(error)) == str(error)


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "None"), (1.5, "1.5"), ("x" * 61, "x" * 57 + "..."), ("\t", r"\t")]
)
def test_brief(value: object, expected: str) -> None:
    assert brief(value) == expected


def test_brief_of_what_python_would_not_print() -> None:
    assert brief(2**20_000) == "a number of 20001 bits"
