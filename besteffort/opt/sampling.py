"""Sampling of the next token: greedy or random, with temperature, top-k and top-p per row of a batch."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from besteffort.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling settings, in the order of transformers: temperature, then `top_k`, then `top_p` of the rest.

    Attributes:
      temperature: divisor of the logits, at least 0; 0 is greedy.
      top_k: number of likeliest tokens to sample from; 0 for all.
      top_p: total probability of the likeliest tokens to sample from, in (0, 1]; 1 for all.

    Raises:
      InputError: on values out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"`temperature` is {self.temperature:g}; give 0 for greedy choice, or more.")
        if self.top_k < 0:
            raise InputError(f"`top_k` is {self.top_k}; give a number of tokens, or 0 for all.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"`top_p` is {self.top_p:g}; give a probability above 0, up to 1 for all tokens.")


GREEDY = Sampling()


class Rules(NamedTuple):
    """The sampling settings of each row; arrays of shape (batch,), except for the keys.

    Attributes:
      temperature, top_k, top_p: see `Sampling`.
      key_data: (batch, 2) raw data of a key per sequence.
      drawn: number of tokens drawn with that key so far.
    """

    temperature: Any
    top_k: Any
    top_p: Any
    key_data: Any
    drawn: Any


def choose(logits: Float[Array, "vocab batch"], rules: Rules) -> Int[Array, " batch"]:
    """Samples the next token of each row.

    A row's token depends on its own logits, key and number of tokens drawn, not on other rows. It skips work that no
    row needs: noise if all rows are greedy, sorting if none has `top_k` or `top_p`.
    """
    greedy = jnp.argmax(logits, axis=0)
    narrow = (rules.temperature > 0) & ((rules.top_k > 0) | (rules.top_p < 1))
    need = jnp.maximum(jnp.any(rules.temperature > 0).astype(jnp.int32), 2 * jnp.any(narrow).astype(jnp.int32))

    def drawn(limited: bool) -> Array:
        scaled = (logits / jnp.where(rules.temperature > 0, rules.temperature, 1.0)[None]).T
        if limited:
            scaled = jax.vmap(_limited)(scaled, rules.top_k, rules.top_p)
        keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(rules.key_data), rules.drawn)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[:1], logits.dtype))(keys)
        return jnp.where(rules.temperature > 0, jnp.argmax(scaled + noise, axis=1), greedy)

    token = jax.lax.switch(need, [lambda: greedy, lambda: drawn(False), lambda: drawn(True)])
    return token.astype(jnp.int32)


def _limited(logits: Float[Array, " vocab"], top_k: Int[Array, ""], top_p: Float[Array, ""]) -> Float[Array, " vocab"]:
    """Sets the logits of all but the allowed tokens to minus infinity."""
    size = logits.shape[0]
    descending = jnp.sort(logits, descending=True)
    kept = jnp.where(top_k > 0, jnp.minimum(top_k, size), size)
    probabilities = jax.nn.softmax(jnp.where(jnp.arange(size) < kept, descending, -jnp.inf))
    # A token stays while those before it have less than `top_p` together; the first always stays.
    allowed = jnp.sum((jnp.cumsum(probabilities) - probabilities < top_p) & (jnp.arange(size) < kept))
    return jnp.where(logits >= descending[jnp.maximum(allowed, 1) - 1], logits, -jnp.inf)
