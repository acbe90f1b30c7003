"""Four generated tasks with exact answers: addition, sorting, running sums, closing brackets. NumPy only.

A case is a prompt and its only correct answer. Cases have sizes (digits, list lengths, depths), drawn uniformly, so
tasks range from easy to hard. A hash of the prompt decides whether a case is held out, so no case is used for both
training and evaluation, whatever the seeds. Sizes limit the tokens of a case to `CONTEXT`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from besteffort.errors import InputError

CONTEXT = 18
"""Room for the tokens of any case: `</s>`, prompt, answer, `</s>`."""

ANSWER_TOKENS = 7
"""Of the longest right answer, its end included."""

HELD_OUT = 10
"""One case in `HELD_OUT` is held out."""

_PAIRS = ("()", "[]", "{}", "<>")
_DEEPEST = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """A prompt and its answer, without the tokens that begin and end them."""

    prompt: str
    answer: str

    @property
    def held_out(self) -> bool:
        """Whether the case is reserved for evaluation."""
        return hashlib.sha256(self.prompt.encode()).digest()[0] % HELD_OUT == 0


def addition(rng: np.random.Generator) -> Case:
    """`047+385=` to `0432`: the sum of numbers of 1 to 3 digits; carries must be known in advance."""
    a, b = (int(rng.integers(10 ** int(rng.integers(1, 4)))) for _ in range(2))
    return Case(f"{a:03}+{b:03}=", f"{a + b:04}")


def sorting(rng: np.random.Generator) -> Case:
    """`703125;` to `253170`: 2 or 3 numbers of two digits in ascending order."""
    numbers = rng.integers(100, size=rng.integers(2, 4))
    return Case(_joined(numbers) + ";", _joined(np.sort(numbers)))


def running(rng: np.random.Generator) -> Case:
    """`5%3526|` to `3301`: the sums of the first 1, 2, ... of 2 to 5 digits, modulo a number from 2 to 5."""
    modulus = int(rng.integers(2, 6))
    digits = rng.integers(10, size=rng.integers(2, 6))
    return Case(f"{modulus}%{''.join(map(str, digits))}|", "".join(map(str, np.cumsum(digits) % modulus)))


def brackets(rng: np.random.Generator) -> Case:
    """`([]{:` to `})`: the brackets that close 4 to 10 brackets of four kinds, some of which are closed already."""
    length = int(rng.integers(4, 11))
    text, open_ends = "", ""
    while len(text) < length:
        must_open = not open_ends or (len(text) == length - 1 and len(open_ends) == 1)
        if len(open_ends) == _DEEPEST or (not must_open and rng.random() < 0.45):
            text, open_ends = text + open_ends[-1], open_ends[:-1]
        else:
            pair = _PAIRS[rng.integers(len(_PAIRS))]
            text, open_ends = text + pair[0], open_ends + pair[1]
    return Case(f"{text}:", open_ends[::-1])


def _joined(numbers: np.ndarray) -> str:
    return "".join(f"{number:02}" for number in numbers)


TASKS: dict[str, Callable[[np.random.Generator], Case]] = {
    "addition": addition,
    "sorting": sorting,
    "running_sums": running,
    "brackets": brackets,
}
"""Functions that draw a case, by task name."""


def draw(name: str, count: int, *, seed: int, held_out: bool) -> list[Case]:
    """Draws cases of a task, held out or not; the same for the same seed.

    Cases repeat, as in training: the smallest sizes have few cases, which would run out before those of larger sizes.

    Raises:
      InputError: if there is no such task.
    """
    if name not in TASKS:
        raise InputError(f"`{name}` is no task of the laptop tier; choose from {', '.join(TASKS)}.")
    rng = np.random.default_rng([seed, list(TASKS).index(name)])
    cases: list[Case] = []
    while len(cases) < count:
        case = TASKS[name](rng)
        if case.held_out == held_out:
            cases.append(case)
    return cases
