"""OPT as a model of lm-evaluation-harness: likelihoods, rolling likelihoods and generation, without PyTorch.

    model = HarnessOPT(load_model(name), load_tokenizer(name))
    lm_eval.evaluator.simple_evaluate(model, tasks=["piqa"])

Tokens, windows, truncation on the left and stop sequences are those of the harness's own `hf` backend, so figures agree
with it. Sequences are padded to buckets of lengths, a fixed number of tokens at a time, so that a few compiled programs
serve every task.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from besteffort.errors import InputError
from besteffort.opt.generation import generate
from besteffort.opt.model import OPT, Params, forward
from besteffort.opt.runtime import Buckets, Runtime
from besteffort.opt.sampling import GREEDY, Sampling
from besteffort.opt.weights import Model

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import (
        handle_stop_sequences,
        has_bos_prefix,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise InputError(
        "lm-evaluation-harness is not installed; run `pip install '.[quality]'` in a checkout of besteffort to measure "
        "quality."
    ) from error

MAX_NEW_TOKENS = 256
"""Default limit of generated tokens where a task sets none; as in the harness's `hf` backend."""

_TOKENS_AT_ONCE = 2048  # tokens whose logits are in memory at once
_GENERATION = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}

Scored = tuple[float, bool]
"""Log-likelihood of a continuation, and whether greedy decoding yields it."""

Pair = tuple[Any, list[int], list[int]]
"""Identifier of a request, and the tokens of its context and of its continuation."""


class HarnessOPT(TemplateLM):
    """A model with its tokenizer, with the interface of the harness.

    Attributes:
      opt: the model.
      tokenizer: its tokenizer, from transformers.
      truncated: number of requests so far whose context did not fit and was cut on the left.
    """

    def __init__(self, opt: Model, tokenizer: Any, max_batch: int = 8, seed: int = 0) -> None:
        """Does not compile yet.

        Args:
          opt: the model.
          tokenizer: a tokenizer of transformers with an end-of-text token.
          max_batch: sequences at a time, fewer where they are long.
          seed: seed of sampling, for tasks that require it.

        Raises:
          InputError: if the tokenizer does not match the model.
        """
        super().__init__()
        if tokenizer.eos_token_id is None:
            raise InputError(f"{opt.name}: its tokenizer has no token that ends a text; set `eos_token` in its files.")
        largest = max(tokenizer.get_vocab().values())
        if largest >= opt.config.vocab:
            raise InputError(
                f"{opt.name}: its tokenizer has the token {largest}, but the model's run from 0 to "
                f"{opt.config.vocab - 1}; use the tokenizer that goes with the model."
            )
        self.opt = opt
        self.tokenizer = tokenizer
        self.truncated = 0
        self._max_batch = max_batch
        self._key = jax.random.key(seed)
        self._lengths = Buckets.up_to(1, self.max_length).prompt
        self._score = jax.jit(score, static_argnums=0)

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    @property
    def max_length(self) -> int:
        """Length of the longest sequence, in tokens."""
        return self.opt.config.positions

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text, after a `</s>` if the tokenizer adds one and the text does not begin with it."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens, verbose=False))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Scored]:
        """Log-likelihood of each (context, continuation)."""
        found: list[Scored] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of each whole text, in windows as long as the context."""
        windows = [
            [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(
                    self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
                )
            ]
            for (text,) in (request.args for request in requests)
        ]
        scored = iter(self._loglikelihood_tokens([(None, *window) for text in windows for window in text]))
        found = [sum(likelihood for likelihood, _ in itertools.islice(scored, len(text))) for text in windows]
        for request, likelihood in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, likelihood)
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Pair], disable_tqdm: bool = True, **_: Any) -> list[Scored]:
        found: list[Scored] = [(0.0, True)] * len(requests)
        for length, indices in self._batches([len(context) + len(rest) - 1 for _, context, rest in requests]):
            sequences = [self._cut(*requests[index][1:]) for index in indices]
            rows = self._rows(length)
            tokens, targets = np.zeros((2, rows, length), np.int32)
            lengths, counts = np.zeros((2, rows), np.int32)
            for row, (whole, scored) in enumerate(sequences):
                lengths[row], counts[row] = len(whole) - 1, scored
                tokens[row, : lengths[row]], targets[row, : lengths[row]] = whole[:-1], whole[1:]
            answers = self._score(self.opt.module, self.opt.params, tokens, targets, lengths, counts)
            likelihood, greedy = map(np.asarray, answers)
            for row, index in enumerate(indices):
                found[index] = float(likelihood[row]), bool(greedy[row])
        for (request, *_tokens), answer in zip(requests, found, strict=True):
            if request is not None:  # None marks a window of a longer text
                self.cache_hook.add_partial("loglikelihood", request, answer)
        return found

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], int]:
        """The end of a sequence that fits, and the number of its tokens to score."""
        if len(continuation) > self.max_length:
            raise InputError(
                f"A continuation of {len(continuation)} tokens exceeds the context of {self.opt.name}, "
                f"{self.max_length} tokens; shorten it."
            )
        self.truncated += len(context) + len(continuation) > self.max_length + 1
        return (context + continuation)[-self.max_length - 1 :], len(continuation)

    def _batches(self, sizes: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Bucket length and indices of sequences that share a batch, the longest first."""
        order = sorted(range(len(sizes)), key=lambda index: -sizes[index])
        for length, group in itertools.groupby(order, key=lambda index: self._bucket(sizes[index])):
            while batch := list(itertools.islice(group, self._rows(length))):
                yield length, batch

    def _bucket(self, size: int) -> int:
        return next((length for length in self._lengths if length >= size), self._lengths[-1])

    def _rows(self, length: int) -> int:
        return max(1, min(self._max_batch, _TOKENS_AT_ONCE // length))

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """A continuation of each context, up to and excluding the first stop sequence.

        Raises:
          InputError: if a task asks for so many tokens that no context fits, or for unsupported generation settings.
        """
        found = [""] * len(requests)
        by_settings = sorted(range(len(requests)), key=lambda index: repr(requests[index].args[1]))
        for _, group in itertools.groupby(by_settings, key=lambda index: repr(requests[index].args[1])):
            alike = list(group)
            texts = self._continued([requests[index].args[0] for index in alike], requests[alike[0]].args[1])
            for index, text in zip(alike, texts, strict=True):
                found[index] = text
                self.cache_hook.add_partial("generate_until", requests[index].args, text)
        return found

    def _continued(self, contexts: Sequence[str], settings: dict[str, Any]) -> list[str]:
        """Continuations with the same settings."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(settings, MAX_NEW_TOKENS))
        unknown = sorted(set(options) - _GENERATION)
        if unknown:
            raise InputError(f"A task sets `{unknown[0]}` for generation; known are {', '.join(sorted(_GENERATION))}.")
        count = options["max_gen_toks"]
        if not 1 <= count < self.max_length:
            raise InputError(
                f"A task asks for {count} new tokens, but the context of {self.opt.name} is {self.max_length} tokens, "
                "prompt included; lower its `max_gen_toks`."
            )
        stops = handle_stop_sequences(options["until"], self.tokenizer.decode(self.eot_token_id))

        def text_of(tokens: Sequence[int]) -> str:
            return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

        prompts = [self.tok_encode(context) or [self.prefix_token_id] for context in contexts]
        room = self.max_length - count
        self.truncated += sum(len(prompt) > room for prompt in prompts)
        sampling = _sampling(options)
        answers = generate(
            self._runtime,
            [prompt[-room:] for prompt in prompts],
            count,
            sampling,
            self._key if sampling.temperature > 0 else None,
            stop_tokens=(self.eot_token_id,),
            stop=lambda tokens: any(stop and stop in text_of(tokens) for stop in stops),
        )
        return [postprocess_generated_text(text_of(answer), stops, None) for answer in answers]

    @functools.cached_property
    def _runtime(self) -> Runtime:
        """A runtime with one batch size, to compile few programs."""
        buckets = Buckets.up_to(self._max_batch, self.max_length)
        return Runtime(
            self.opt, self._max_batch, self.max_length, Buckets((self._max_batch,), buckets.prompt, buckets.length)
        )


def score(
    model: OPT,
    params: Params,
    tokens: Int[Array, "rows time"],
    targets: Int[Array, "rows time"],
    length: Int[Array, " rows"],
    scored: Int[Array, " rows"],
) -> tuple[Float[Array, " rows"], Bool[Array, " rows"]]:
    """Log-likelihood of the last `scored` of `length` targets, and whether each is the likeliest token.

    Args:
      model: the model.
      params: its weights.
      tokens: sequences, padded on the right.
      targets: the token after each token.
      length: tokens of a sequence without the padding; 0 for an unused row.
      scored: number of its targets that count.
    """
    time = jnp.arange(tokens.shape[1])[None]
    inside = time < length[:, None]
    counted = inside & (time >= (length - scored)[:, None])
    logits = forward(model, params, tokens, inside)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    likelihood = jnp.where(counted, chosen - jax.nn.logsumexp(logits, axis=-1), 0.0).sum(axis=1)
    return likelihood, jnp.all((jnp.argmax(logits, axis=-1) == targets) | ~counted, axis=1)


def _sampling(options: dict[str, Any]) -> Sampling:
    """Sampling settings from those of the harness."""
    if not options["do_sample"]:
        return GREEDY
    return Sampling(options.get("temperature") or 1.0, options.get("top_k", 0), options.get("top_p", 1.0))
