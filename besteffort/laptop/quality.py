"""Quality of a model: the share of its greedy answers that are correct."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from besteffort.laptop.tasks import CONTEXT, Case
from besteffort.laptop.tokenizer import END, encode
from besteffort.opt.generation import generate
from besteffort.opt.runtime import Runtime


def exact_match(runtime: Runtime, cases: Sequence[Case]) -> Bool[np.ndarray, " cases"]:
    """Whether each case's greedy answer is correct and ends where it should."""
    longest = CONTEXT - max(len(case.prompt) for case in cases)
    answers = generate(runtime, [encode(case.prompt) for case in cases], longest)
    return np.array([answer == right_tokens(case) for answer, case in zip(answers, cases, strict=True)])


def right_tokens(case: Case) -> list[int]:
    """The tokens of the correct answer, including the end token."""
    return [*encode(case.answer)[1:], END]
