"""Lists of requests whose prompts and right answers are known: held-out cases at given times."""

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
    """A list of requests and the case behind each.

    Attributes:
      requests: prompts as long as the cases', outputs as long as the right answers, the end included.
      cases: one per request.
    """

    requests: Requests
    cases: tuple[Case, ...]

    @property
    def prompts(self) -> list[list[int]]:
        """Tokens of each prompt."""
        return [encode(case.prompt) for case in self.cases]


def with_cases(times: Requests, situation: Situation, *, seed: int) -> CaseList:
    """The arrivals, tasks and deadline factors of a list, with held-out cases of the tasks in place of its lengths.

    Args:
      times: when requests of which task arrive.
      situation: whose deadlines hold.
      seed: of the cases.

    Raises:
      InputError: if a task is none of the laptop tier's.
    """
    counts = np.bincount(times.task, minlength=len(times.tasks)).tolist()
    drawn = [iter(draw(name, count, seed=seed, held_out=True)) for name, count in zip(times.tasks, counts, strict=True)]
    cases = tuple(next(drawn[task]) for task in times.task.tolist())
    outputs = np.array([len(right_tokens(case)) for case in cases])
    prompts = np.array([len(encode(case.prompt)) for case in cases])
    deadlines_s = situation.deadlines(times.task, outputs) * times.deadline_factors
    requests = dataclasses.replace(times, prompt_tokens=prompts, output_tokens=outputs, deadline_s=deadlines_s)
    return CaseList(requests, cases)
