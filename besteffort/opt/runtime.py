"""Compiled programs of a model and the cache that they update: prompts are read into rows that decode together.

Shapes come in buckets, so that a fixed set of programs, which `warm_up` compiles, serves every request: a prefill per
prompt length, with `chunk_tokens` one more per length of a prompt's part, a decode step per number of rows and context
length. The cache never leaves the device and is updated in
place. An unused row costs nothing beyond its bucket.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from besteffort.device import check_fits
from besteffort.errors import InputError
from besteffort.opt import model as opt
from besteffort.opt.memory import cache_bytes
from besteffort.opt.sampling import GREEDY, Rules, Sampling, choose
from besteffort.opt.weights import Model

NEEDS_KEY = "Random choice (`temperature` above 0) needs a `key`; give one, such as `jax.random.key(0)`."

_PROMPTS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_LENGTHS = (128, 256, 512, 1024, 2048)
_MOST_KEPT = 2**31 - 1  # tokens to sample from, as far as a program counts them


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Sizes of compiled programs, each ascending; the last ones are the limits of a `Runtime`, and of what it reads.

    Attributes:
      batch: rows of a decode step.
      prompt: tokens of a prefill.
      length: tokens of context that a decode step reads.
    """

    batch: tuple[int, ...]
    prompt: tuple[int, ...]
    length: tuple[int, ...]

    @classmethod
    def up_to(cls, max_batch: int, context: int) -> Buckets:
        """Powers of two for batches and contexts, closer ones for prompts, up to the limits."""
        batch = tuple(2**i for i in range(max_batch.bit_length()) if 2**i < max_batch)
        return cls((*batch, max_batch), _up_to(_PROMPTS, context), _up_to(_LENGTHS, context))


def _up_to(sizes: tuple[int, ...], last: int) -> tuple[int, ...]:
    return (*(size for size in sizes if size < last), last)


@dataclasses.dataclass
class _Row:
    """State of a row of the cache.

    Attributes:
      held: number of tokens whose keys and values are in the cache.
      token: the last generated token, not in the cache yet.
      sampling, key_data: sampling settings and key of its tokens.
      drawn: number of tokens generated.
    """

    held: int
    token: int
    sampling: Sampling
    key_data: np.ndarray
    drawn: int


class Runtime:
    """A model with a cache of `max_batch` rows of up to `context` tokens. Not thread-safe.

    Attributes:
      model: the model.
      max_batch, context: the limits.
      buckets: sizes of compiled programs.
      chunk_tokens: prompts are read in parts of so many tokens at most; None: whole.
      compilations: programs compiled so far.
    """

    def __init__(
        self,
        model: Model,
        max_batch: int,
        context: int | None = None,
        buckets: Buckets | None = None,
        chunk_tokens: int | None = None,
    ) -> None:
        """Makes the cache.

        Args:
          model: the model.
          max_batch: number of rows.
          context: tokens of a row, prompt and output; by default the model's limit.
          buckets: sizes to compile for, by default `Buckets.up_to` the limits.
          chunk_tokens: the longest part of a prompt that is read at a time; by default prompts are read whole.

        Raises:
          InputError: if `max_batch`, `context` or `chunk_tokens` is out of range, `buckets` do not end at them, or the
            cache does not fit in memory.
        """
        context = model.config.positions if context is None else context
        if max_batch < 1:
            raise InputError(f"`max_batch` is {max_batch}; give at least 1.")
        if not 2 <= context <= model.config.positions:
            raise InputError(
                f"`context` is {context}; {model.name} takes from 2 to {model.config.positions} tokens, "
                "prompt and output together."
            )
        if chunk_tokens is not None and chunk_tokens < 1:
            raise InputError(f"`chunk_tokens` is {chunk_tokens}; give at least 1, or none to read prompts whole.")
        self.model = model
        self.max_batch = max_batch
        self.context = context
        self.chunk_tokens = chunk_tokens
        self.buckets = Buckets.up_to(max_batch, context) if buckets is None else buckets
        ends = self.buckets.batch[-1], self.buckets.length[-1]
        if ends != (max_batch, context) or self.buckets.prompt[-1] > context:
            raise InputError(
                f"`buckets` end at {ends[0]} rows, prompts of {self.buckets.prompt[-1]} tokens and {ends[1]} tokens of "
                f"context; end rows at `max_batch`, {max_batch}, the last at `context`, {context}, prompts within it."
            )
        self.compilations = 0
        # XLA would drop the first axis of a cache of one row, and copy the cache in every step.
        rows = max(2, max_batch)
        check_fits(
            f"The key-value cache of {model.name} for {max_batch} x {context} tokens",
            cache_bytes(model.config, rows, context, model.dtype),
            "lower `max_batch` or `context`",
        )
        self._cache: opt.Cache = opt.empty_cache(model.config, rows, context, model.dtype)
        self._rows: dict[int, _Row] = {}
        self._begun: set[int] = set()  # rows whose prompts are read in part
        self._programs: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def twin(self) -> Runtime:
        """Another runtime of the same model with a cache of its own; what one compiles, the other has, too."""
        other = Runtime(self.model, self.max_batch, self.context, self.buckets, self.chunk_tokens)
        other._programs = self._programs
        return other

    @property
    def used(self) -> tuple[int, ...]:
        """Rows in use, ascending."""
        return tuple(sorted({*self._rows, *self._begun}))

    def warm_up(self) -> Iterator[tuple[int, int]]:
        """Compiles all programs and runs each once; yields the number done and the total. Clears all rows."""
        self._rows.clear()
        self._begun.clear()
        parts = [] if self.chunk_tokens is None else self._parts(min(self.chunk_tokens, self.context))
        steps = list(itertools.product(self.buckets.batch, self.buckets.length))
        total = len(self.buckets.prompt) + len(parts) + len(steps) + 1
        done = itertools.count(1)
        self._move(0, 0)
        yield next(done), total
        for size in self.buckets.prompt:
            self._prefill(0, np.zeros(size, np.int32), size, GREEDY, np.zeros(2, np.uint32))
            yield next(done), total
        for size in parts:
            self._extend(0, np.zeros(size, np.int32), 0, size, GREEDY, np.zeros(2, np.uint32))
            yield next(done), total
        for batch, length in steps:
            self._decode(length, [None] * batch)
            yield next(done), total

    def check(self, prompt: Sequence[int], max_new_tokens: int) -> None:
        """Raises `InputError` if this runtime cannot serve a request."""
        check_prompt(prompt, self.model.config.vocab)
        if max_new_tokens < 1:
            raise InputError(f"`max_new_tokens` is {max_new_tokens}; ask for at least 1.")
        if len(prompt) + max_new_tokens - 1 > self.context:
            raise InputError(
                f"A prompt of {len(prompt)} tokens and {max_new_tokens} more exceed the context of {self.context} "
                "tokens; shorten the prompt, ask for fewer, or raise `context`."
            )
        part, longest = min(len(prompt), self.chunk_tokens or len(prompt)), self.buckets.prompt[-1]
        if part > longest:
            raise InputError(
                f"{part} tokens of a prompt are to be read at a time, and `buckets` end at {longest}; shorten the "
                "prompt or give a larger bucket."
            )

    def prefill(
        self, prompt: Sequence[int], sampling: Sampling = GREEDY, key: jax.Array | None = None
    ) -> tuple[int, int]:
        """Reads a prompt into the lowest free row; returns that row and the first token after the prompt.

        Args:
          prompt: tokens, which must pass `check`.
          sampling: sampling settings of this request.
          key: key of random sampling; a request's tokens depend on it but not on the other requests in the batch.

        Raises:
          InputError: if all rows are in use, or random sampling has no key.
        """
        free, key_data = self._free(), _key_data(sampling, key)
        bucket = _bucket(self.buckets.prompt, len(prompt))
        tokens = np.zeros(bucket, np.int32)
        tokens[: len(prompt)] = prompt
        token = self._prefill(free, tokens, len(prompt), sampling, key_data)
        self._rows[free] = _Row(len(prompt), token, sampling, key_data, 1)
        return free, token

    def read(
        self,
        prompt: Sequence[int],
        start: int,
        count: int,
        row: int | None = None,
        sampling: Sampling = GREEDY,
        key: jax.Array | None = None,
    ) -> tuple[int, int | None]:
        """Reads a part of a prompt; returns its row and, with the last part, the first token after the prompt.

        Args:
          prompt: all of its tokens, which must pass `check`.
          start: tokens that were read before.
          count: tokens to be read now.
          row: the row that has what was read before; None with the first part, which takes the lowest free row.
          sampling: as in `prefill`.
          key: as in `prefill`.

        Raises:
          InputError: as `prefill`.
        """
        if start == 0 and count == len(prompt):
            return self.prefill(prompt, sampling, key)
        key_data = _key_data(sampling, key)
        row = self._free() if row is None else row
        tokens = np.zeros(_bucket(self.buckets.prompt, count), np.int32)
        tokens[:count] = prompt[start : start + count]
        token = self._extend(row, tokens, start, count, sampling, key_data)
        self._begun.add(row)
        if start + count < len(prompt):
            return row, None
        self._begun.remove(row)
        self._rows[row] = _Row(len(prompt), token, sampling, key_data, 1)
        return row, token

    def occupy(self, held: Sequence[int]) -> tuple[int, ...]:
        """Marks the first rows as used, with prompts of `held` tokens; for timing. Returns the rows."""
        self._begun.clear()
        self._rows = {row: _Row(tokens, 0, GREEDY, np.zeros(2, np.uint32), 1) for row, tokens in enumerate(held)}
        return self.used

    def decode(self) -> dict[int, int]:
        """Decodes one more token for every row in use; returns the tokens by row."""
        if not self._rows:
            return {}
        batch = _bucket(self.buckets.batch, max(self._rows) + 1)
        length = _bucket(self.buckets.length, 1 + max(row.held for row in self._rows.values()))
        chosen = self._decode(length, [self._rows.get(number) for number in range(batch)])
        for number, row in self._rows.items():
            row.held += 1
            row.token = int(chosen[number])
            row.drawn += 1
        return {number: row.token for number, row in self._rows.items()}

    def touch(self) -> None:
        """A decode step of no request, which changes nothing but what the processor's caches hold."""
        self._decode(self.buckets.length[0], [None] * self.buckets.batch[0])

    def release(self, row: int) -> None:
        """Frees a row."""
        if row in self._begun:
            self._begun.remove(row)
        else:
            del self._rows[row]

    def compact(self) -> dict[int, int]:
        """Moves rows down while that makes the next decode step smaller; returns the new place of each moved row."""
        moved = {}
        while self._rows and _bucket(self.buckets.batch, len(self._rows)) < _bucket(
            self.buckets.batch, max(self._rows) + 1
        ):
            last = max(self._rows)
            free = next((row for row in range(last) if row not in self._rows and row not in self._begun), None)
            if free is None:
                break
            self._move(last, free)
            self._rows[free] = self._rows.pop(last)
            moved[last] = free
        return moved

    def _prefill(self, row: int, tokens: np.ndarray, length: int, sampling: Sampling, key_data: np.ndarray) -> int:
        rules = _rules([_Row(0, 0, sampling, key_data, 0)])

        def program(params: Any, cache: opt.Cache, row: Any, tokens: Any, length: Any, rules: Rules) -> Any:
            logits, cache = opt.prefill(self.model.module, params, cache, row, tokens, length)
            return choose(logits[:, None], rules)[0], cache

        return int(self._run(("prefill", len(tokens)), program, np.int32(row), tokens, np.int32(length), rules))

    def _extend(
        self, row: int, tokens: np.ndarray, start: int, length: int, sampling: Sampling, key_data: np.ndarray
    ) -> int:
        rules = _rules([_Row(0, 0, sampling, key_data, 0)])

        def program(params: Any, cache: opt.Cache, row: Any, tokens: Any, start: Any, length: Any, rules: Rules) -> Any:
            logits, cache = opt.extend(self.model.module, params, cache, row, tokens, start, length)
            return choose(logits[:, None], rules)[0], cache

        arguments = (np.int32(row), tokens, np.int32(start), np.int32(length), rules)
        return int(self._run(("extend", len(tokens)), program, *arguments))

    def _free(self) -> int:
        """The lowest free row.

        Raises:
          InputError: if all are in use.
        """
        for row in range(self.max_batch):
            if row not in self._rows and row not in self._begun:
                return row
        raise InputError(f"All {self.max_batch} rows are in use; release one or raise `max_batch`.")

    def _parts(self, longest: int) -> list[int]:
        """Sizes of programs for parts of up to `longest` tokens."""
        last = _bucket(self.buckets.prompt, min(longest, self.buckets.prompt[-1]))
        return [size for size in self.buckets.prompt if size <= last]

    def _decode(self, length: int, rows: Sequence[_Row | None]) -> np.ndarray:
        """A decode step of the first rows of the cache, some of which may be unused."""
        tokens = np.array([row.token if row else 0 for row in rows], np.int32)
        positions = np.array([row.held if row else self.context for row in rows], np.int32)  # the end: never written

        def program(params: Any, cache: opt.Cache, tokens: Any, positions: Any, rules: Rules) -> Any:
            logits, cache = opt.decode(self.model.module, params, cache, tokens, positions, length)
            return choose(logits, rules), cache

        return np.asarray(self._run(("decode", len(tokens), length), program, tokens, positions, _rules(rows)))

    def _move(self, source: int, target: int) -> None:
        def program(params: Any, cache: opt.Cache, source: Any, target: Any) -> Any:
            return source, opt.move_row(cache, source, target)

        self._run(("move",), program, np.int32(source), np.int32(target))

    def _run(self, name: tuple[Any, ...], program: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a program on the cache, which it replaces; compiles it on first use."""
        arguments = (self.model.params, self._cache, *arguments)
        if name not in self._programs:
            self._programs[name] = jax.jit(program, donate_argnums=1).lower(*arguments).compile()
            self.compilations += 1
        result, self._cache = self._programs[name](*arguments)
        return result


def _key_data(sampling: Sampling, key: jax.Array | None) -> np.ndarray:
    """Data of a request's key.

    Raises:
      InputError: if random sampling has none.
    """
    if sampling.temperature > 0 and key is None:
        raise InputError(NEEDS_KEY)
    return np.zeros(2, np.uint32) if key is None else np.asarray(jax.random.key_data(key))


def check_prompt(prompt: Sequence[int], vocab: int) -> None:
    """Raises `InputError` if a prompt is empty or has a token that the model lacks."""
    if len(prompt) == 0:
        raise InputError("The prompt is empty; give at least one token, such as the tokenizer's `</s>`.")
    for token in prompt:
        if not 0 <= token < vocab:
            raise InputError(f"The prompt has the token {token}; this model's run from 0 to {vocab - 1}.")


def _rules(rows: Sequence[_Row | None]) -> Rules:
    sampling = [row.sampling if row else GREEDY for row in rows]
    return Rules(
        temperature=np.array([s.temperature for s in sampling], np.float32),
        top_k=np.array([min(s.top_k, _MOST_KEPT) for s in sampling], np.int32),
        top_p=np.array([s.top_p for s in sampling], np.float32),
        key_data=np.array([row.key_data if row else (0, 0) for row in rows], np.uint32),
        drawn=np.array([row.drawn if row else 0 for row in rows], np.int32),
    )


def _bucket(sizes: tuple[int, ...], needed: int) -> int:
    """The smallest bucket that holds `needed`."""
    return sizes[bisect.bisect_left(sizes, needed)]
