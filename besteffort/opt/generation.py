"""Generates text from prompts, in a batch whose free rows are refilled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import jax

from besteffort.errors import InputError
from besteffort.opt.runtime import NEEDS_KEY, Runtime
from besteffort.opt.sampling import GREEDY, Sampling


def generate(
    runtime: Runtime,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    key: jax.Array | None = None,
    stop_tokens: Sequence[int] | None = None,
    stop: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """Generates the tokens that follow each prompt.

    Args:
      runtime: the model and its cache, with no row in use.
      prompts: tokens of each prompt.
      max_new_tokens: largest number of tokens to generate.
      sampling: sampling settings; greedy by default.
      key: key of random sampling; prompt `i` uses `fold_in(key, i)`, so its tokens do not depend on the others.
      stop_tokens: an answer ends with and includes the first of these; by default the model's own.
      stop: called with the tokens of an answer after each new token; returns whether the answer ends there.

    Raises:
      InputError: on an empty prompt, one that is too long, or an unknown token, before anything is generated.
    """
    if sampling.temperature > 0 and key is None:
        raise InputError(NEEDS_KEY)
    for prompt in prompts:
        runtime.check(prompt, max_new_tokens)
    last = set(runtime.model.config.stop_tokens if stop_tokens is None else stop_tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    waiting = deque(range(len(prompts)))
    running: dict[int, int] = {}

    def take(row: int, token: int) -> None:
        answer = answers[running[row]]
        answer.append(token)
        if len(answer) == max_new_tokens or token in last or (stop is not None and stop(answer)):
            runtime.release(row)
            del running[row]

    while waiting or running:
        while waiting and len(running) < runtime.max_batch:
            index = waiting.popleft()
            own = None if key is None else jax.random.fold_in(key, index)
            row, token = runtime.prefill(prompts[index], sampling, own)
            running[row] = index
            take(row, token)
        for source, target in runtime.compact().items():
            running[target] = running.pop(source)
        for row, token in runtime.decode().items():
            take(row, token)
    return answers
