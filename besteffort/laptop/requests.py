"""Lists of requests with known prompts and correct answers: held-out cases at given times."""

from __future__ import annotations

import dataclasses

import numpy as np

from besteffort.laptop.quality import right_tokens
from besteffort.laptop.tasks import Case, draw
from besteffort.laptop.tokenizer import encode
from besteffort.situation import Situation
from besteffort.workload.requests import Requests


@dataclasses.dataclass(frozen=True)
class CaseList:
    """A list of requests and the case of each.

    Attributes:
      requests: requests with the lengths of the cases' prompts and of the correct answers, including the end token.
      cases: one per request.
    """

    requests: Requests
    cases: tuple[Case, ...]

    @property
    def prompts(self) -> list[list[int]]:
        """Tokens of each prompt."""
        return [encode(case.prompt) for case in self.cases]


def with_cases(times: Requests, situation: Situation, *, seed: int) -> CaseList:
    """Replaces the lengths of a list by held-out cases of its tasks; keeps arrivals, tasks and deadline factors.

    Limits on the output belong to the lengths that are replaced, so the new list has none.

    Args:
      times: the list with arrival times and tasks.
      situation: the situation with the deadlines.
      seed: seed of the cases.

    Raises:
      InputError: if a task is not one of the laptop tier.
    """
    counts = np.bincount(times.task, minlength=len(times.tasks)).tolist()
    drawn = [iter(draw(name, count, seed=seed, held_out=True)) for name, count in zip(times.tasks, counts, strict=True)]
    cases = tuple(next(drawn[task]) for task in times.task.tolist())
    outputs = np.array([len(right_tokens(case)) for case in cases])
    prompts = np.array([len(encode(case.prompt)) for case in cases])
    deadlines_s = situation.deadlines(times.task, outputs) * times.deadline_factors
    requests = dataclasses.replace(
        times,
        prompt_tokens=prompts,
        output_tokens=outputs,
        deadline_s=deadlines_s,
        output_limit=None,
        cached_tokens=None,
    )
    return CaseList(requests, cases)
