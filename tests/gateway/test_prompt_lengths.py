"""Characters per token are learned from usage, and stay within what can be."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.gateway.prompt_lengths import CharactersPerToken


def test_starts_with_english_and_learns_the_first_answer_in_full() -> None:
    lengths = CharactersPerToken()
    assert lengths.tokens(400) == 100
    lengths.learn(300, 200)
    assert lengths.ratio == pytest.approx(1.5)
    assert lengths.tokens(300) == 200


def test_follows_a_change() -> None:
    lengths = CharactersPerToken()
    for _ in range(500):
        lengths.learn(400, 100)
    for _ in range(500):
        lengths.learn(200, 100)
    assert lengths.ratio == pytest.approx(2.0, rel=1e-3)


@given(st.lists(st.tuples(st.integers(-5, 10**9), st.integers(-5, 10**9))), st.integers(0, 10**9))
def test_whatever_servers_say_an_estimate_is_a_number_of_tokens(said: list[tuple[int, int]], characters: int) -> None:
    lengths = CharactersPerToken()
    for given_characters, tokens in said:
        lengths.learn(given_characters, tokens)
    assert math.isfinite(lengths.ratio)
    assert 1 <= lengths.tokens(characters) <= 2**22
