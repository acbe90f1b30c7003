"""Texts in pieces are the whole text, whatever the tokens cut, and end before a stop string."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from besteffort.engine.texts import HubTexts, LaptopTexts, Stop, Tail
from besteffort.errors import InputError
from besteffort.laptop import model_directory
from besteffort.laptop.tokenizer import END


class Bytes:
    """A token per byte, so that tokens cut characters."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode(errors="replace")


@given(st.text())
def test_pieces_are_the_text_and_have_no_half_character(text: str) -> None:
    tail, tokens = Tail(Bytes()), Bytes().encode(text)
    pieces = [tail.add(token, last=index == len(tokens) - 1) for index, token in enumerate(tokens)]
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_text_that_ends_within_a_character_says_so() -> None:
    tail = Tail(Bytes())
    assert [tail.add(0xC3), tail.add(0xA9), tail.add(0xC3, last=True)] == ["", "é", "\ufffd"]


def test_half_a_character_is_no_prompt() -> None:
    """JSON may spell one: a client cut a text within a pair of surrogates."""
    pytest.importorskip("transformers", reason="needs the extra `opt`")
    texts = HubTexts(model_directory("laptop-100k"))
    assert texts.decode(texts.encode("12+3=")) == LaptopTexts().decode(LaptopTexts().encode("12+3="))
    with pytest.raises(InputError, match="The prompt has one half of a pair of surrogates; send whole characters"):
        texts.encode("1\ud83d")


def test_special_tokens_add_nothing() -> None:
    tail = Tail(LaptopTexts())
    tokens = LaptopTexts().encode("12=")
    assert [tail.add(token) for token in tokens] == ["", "1", "2", "="]
    assert tail.add(END, last=True) == ""


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 5), min_size=1, max_size=9),
)
@example("bbaa", ["bbaa", "ba"], [3])
@example("bbaa", ["bbaa", "ba"], [4])
def test_a_text_ends_before_the_string_that_is_whole_first(text: str, strings: list[str], sizes: list[int]) -> None:
    stop, shown, at, ended = Stop(tuple(strings)), "", 0, False
    for size in itertools.cycle(sizes):
        if ended or at >= len(text):
            break
        piece, ended = stop.add(text[at : at + size], last=at + size >= len(text))
        shown, at = shown + piece, at + size
    whole = [to for to in range(len(text) + 1) if any(text[:to].endswith(string) for string in strings)]
    assert ended == bool(whole)
    if whole:
        text = text[: whole[0]]
        text = text[: -max(len(string) for string in strings if text.endswith(string))]
    assert shown == text
