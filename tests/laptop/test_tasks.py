"""The generated tasks: right answers, found another way than they are made, and no case on both sides."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from besteffort.errors import InputError
from besteffort.laptop.tasks import CONTEXT, TASKS, Case, draw
from besteffort.laptop.tokenizer import decode, encode


def addition(prompt: str) -> str:
    a, b = prompt.rstrip("=").split("+")
    return f"{int(a) + int(b):04}"


def sorting(prompt: str) -> str:
    digits = prompt.rstrip(";")
    return "".join(sorted(digits[i : i + 2] for i in range(0, len(digits), 2)))


def running_sums(prompt: str) -> str:
    modulus, digits = prompt.rstrip("|").split("%")
    return "".join(str(sum(map(int, digits[: i + 1])) % int(modulus)) for i in range(len(digits)))


def brackets(prompt: str) -> str:
    text = prompt.rstrip(":")
    pairs = ("()", "[]", "{}", "<>")
    while any(pair in text for pair in pairs):
        for pair in pairs:
            text = text.replace(pair, "")
    return text[::-1].translate(str.maketrans("([{<", ")]}>"))


@pytest.mark.parametrize(("name", "solve"), [(f.__name__, f) for f in (addition, sorting, running_sums, brackets)])
def test_answers_are_right_and_cases_fit(name: str, solve: Callable[[str], str]) -> None:
    assert set(TASKS) == {"addition", "sorting", "running_sums", "brackets"}
    cases = draw(name, 500, seed=0, held_out=False)
    for case in cases:
        assert case.answer == solve(case.prompt) != ""
        assert len(encode(case.prompt + case.answer)) + 1 <= CONTEXT
        assert decode(encode(case.prompt + case.answer)) == case.prompt + case.answer
    assert len({len(case.answer) for case in cases}) >= {addition: 1, sorting: 2}.get(solve, 4)


@pytest.mark.parametrize("name", TASKS)
def test_what_is_held_out_is_never_trained_on(name: str) -> None:
    kept = draw(name, 300, seed=0, held_out=True)
    assert kept == draw(name, 300, seed=0, held_out=True)
    assert kept != draw(name, 300, seed=1, held_out=True)
    assert not set(kept) & set(draw(name, 3000, seed=0, held_out=False))
    assert all(case.held_out for case in kept)


def test_small_sizes_come_as_often_when_they_are_few() -> None:
    """Of running sums of two digits, about 30 are held out."""
    lengths = [len(case.answer) for case in draw("running_sums", 2000, seed=0, held_out=True)]
    assert min(lengths.count(length) for length in (2, 3, 4, 5)) > 2000 * 0.15


def test_a_tenth_is_held_out() -> None:
    share = sum(Case(f"{number:03}+{1000 - number:03}=", "").held_out for number in range(1000)) / 1000
    assert share == pytest.approx(26 / 256, abs=0.03)


def test_mistakes() -> None:
    with pytest.raises(InputError, match="`division` is no task of the laptop tier; choose from addition, sorting"):
        draw("division", 1, seed=0, held_out=True)
    with pytest.raises(InputError, match="do not know 'a'; they read 0123456789"):
        encode("12a")
