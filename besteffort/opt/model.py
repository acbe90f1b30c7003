"""OPT in Flax linen, and its uses: a full pass, the prefill of one prompt, whole or in parts, a decode step of a batch.

Activations are features x tokens and weights outputs x inputs, so that a layer is `kernel @ x`, as PyTorch stores it.
With few tokens this layout reads the weights row by row, and XLA's matrix products on a CPU are up to three times
faster than with tokens x features; with many tokens there is no difference. Layers are unrolled: `scan` would copy each
layer's weights in every step. Keys and values are rows x heads x length x width of a head, one array per layer, updated
in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from besteffort.opt.config import OPTConfig

_OFFSET = 2  # the first two rows of the position table are reserved
_EPSILON = 1e-5
_HIDDEN = -1e30  # a score that softmax turns into 0; infinity would make a row of padding NaN

Params = Any
"""Variables of `OPT`: `{"params": ...}`."""


class Layer(NamedTuple):
    """Keys and values of one layer."""

    keys: Array
    values: Array


Cache = tuple[Layer, ...]
"""Per layer (rows, heads, length, width of a head) keys and values."""

Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]
"""Attention: from queries, keys, values (hidden, tokens) and its memory to outputs (hidden, tokens) and new memory."""


def _precision(dtype: Any) -> jax.lax.Precision:
    """Keeps float32 exact on accelerators, which would otherwise round it for their matrix units."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


class Linear(nn.Module):
    """`kernel @ x + bias` for columns `x`."""

    outputs: int
    dtype: Any
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "inputs tokens"]) -> Float[Array, "outputs tokens"]:
        shape = (self.outputs, x.shape[0])
        kernel = self.param("kernel", nn.initializers.normal(0.02), shape, self.dtype)
        y = jnp.matmul(kernel, x, precision=_precision(self.dtype))
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.outputs,), self.dtype)[:, None]
        return y


class LayerNorm(nn.Module):
    """Layer norm of columns, computed in float32."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "features tokens"]) -> Float[Array, "features tokens"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[0],), self.dtype).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[0],), self.dtype).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=0, keepdims=True)
        variance = jnp.square(centred).mean(axis=0, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + _EPSILON)
        return (normed * scale[:, None] + bias[:, None]).astype(self.dtype)


class Block(nn.Module):
    """A transformer block."""

    config: OPTConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "hidden tokens"], attend: Attend, memory: Any) -> tuple[Array, Any]:
        config = self.config
        attention_norm = LayerNorm(self.dtype, name="attention_norm")
        mlp_norm = LayerNorm(self.dtype, name="mlp_norm")

        y = attention_norm(x) if config.norm_first else x
        q, k, v = jnp.split(Linear(3 * config.hidden, self.dtype, name="qkv")(y), 3)
        y, memory = attend(q * config.head**-0.5, k, v, memory)
        x += Linear(config.hidden, self.dtype, name="out")(y)
        x = x if config.norm_first else attention_norm(x)

        y = mlp_norm(x) if config.norm_first else x
        y = nn.relu(Linear(config.ffn, self.dtype, name="up")(y))
        x += Linear(config.hidden, self.dtype, name="down")(y)
        return x if config.norm_first else mlp_norm(x), memory


class OPT(nn.Module):
    """The whole model.

    Attributes:
      config: shape of the model.
      dtype: type of weights and activations; norms, softmax and logits are float32.
    """

    config: OPTConfig
    dtype: Any

    def setup(self) -> None:
        config, normal = self.config, nn.initializers.normal(0.02)
        self.tokens = self.param("tokens", normal, (config.vocab, config.embedding), self.dtype)
        self.positions = self.param("positions", normal, (config.positions + _OFFSET, config.hidden), self.dtype)
        if config.projected:
            self.project_in = Linear(config.hidden, self.dtype, bias=False)
            self.project_out = Linear(config.embedding, self.dtype, bias=False)
        self.blocks = [Block(config, self.dtype) for _ in range(config.layers)]
        if config.final_norm:
            self.final_norm = LayerNorm(self.dtype)

    def __call__(
        self,
        tokens: Int[Array, " tokens"],
        positions: Int[Array, " tokens"],
        attend: Attend,
        memory: tuple[Any, ...],
    ) -> tuple[Float[Array, "embedding tokens"], tuple[Any, ...]]:
        """Returns the input of `logits` and the new memory of each layer's attention.

        Args:
          tokens: the tokens of all sequences.
          positions: position of each token in its sequence, from 0.
          attend: the attention, which separates the sequences.
          memory: memory of the attention, per layer.
        """
        x = self.tokens[tokens].T
        if self.config.projected:
            x = self.project_in(x)
        x += self.positions[positions + _OFFSET].T
        kept = []
        for block, remembered in zip(self.blocks, memory, strict=True):
            x, now = block(x, attend, remembered)
            kept.append(now)
        if self.config.final_norm:
            x = self.final_norm(x)
        if self.config.projected:
            x = self.project_out(x)
        return x, tuple(kept)

    def logits(self, x: Float[Array, "embedding tokens"]) -> Float[Array, "vocab tokens"]:
        """Logits in float32; the output layer is the token embedding."""
        return jnp.matmul(self.tokens, x, precision=_precision(self.dtype), preferred_element_type=jnp.float32)


def forward(
    model: OPT, params: Params, tokens: Int[Array, "batch time"], mask: Bool[Array, "batch time"]
) -> Float[Array, "batch time vocab"]:
    """Logits of whole sequences.

    Args:
      model: the model.
      params: its weights.
      tokens: the sequences; arbitrary values in the padding.
      mask: True where there is a token. Sequences may be padded on either side; logits of padding mean nothing.
    """
    batch, time = tokens.shape
    positions = jnp.cumsum(mask, axis=1) * mask - 1  # padding reads a reserved row of the position table
    sees = jnp.tril(jnp.ones((time, time), bool))[None] & mask[:, None]
    attend = _attention_within(model, sees)
    x, _ = _run(model, params, tokens.reshape(-1), positions.reshape(-1), attend, (None,) * model.config.layers)
    return _logits(model, params, x).T.reshape(batch, time, -1)


def prefill(
    model: OPT,
    params: Params,
    cache: Cache,
    row: Int[Array, ""],
    tokens: Int[Array, " time"],
    length: Int[Array, ""],
) -> tuple[Float[Array, " vocab"], Cache]:
    """Reads a prompt into a row of the cache and returns the logits of the token after it.

    Args:
      model: the model.
      params: its weights.
      cache: a cache with rows of at least `time` tokens.
      row: row of the cache.
      tokens: the prompt, then arbitrary padding.
      length: length of the prompt in tokens.
    """
    time = tokens.shape[0]
    within = _attention_within(model, jnp.tril(jnp.ones((1, time, time), bool)))

    def attend(q: Array, k: Array, v: Array, layer: Layer) -> tuple[Array, Layer]:
        y, _ = within(q, k, v, None)
        return y, Layer(*(_write_prompt(kept, new, row) for kept, new in zip(layer, (k, v), strict=True)))

    x, cache = _run(model, params, tokens, jnp.arange(time), attend, cache)
    last = jax.lax.dynamic_slice_in_dim(x, length - 1, 1, axis=1)
    return _logits(model, params, last)[:, 0], cache


def extend(
    model: OPT,
    params: Params,
    cache: Cache,
    row: Int[Array, ""],
    tokens: Int[Array, " time"],
    start: Int[Array, ""],
    length: Int[Array, ""],
) -> tuple[Float[Array, " vocab"], Cache]:
    """Reads the next part of a prompt into a row of the cache and returns the logits of the token after it.

    Args:
      model: the model.
      params: its weights.
      cache: holds keys and values of the prompt's tokens 0 to `start - 1` in the row.
      row: row of the cache.
      tokens: the part, then arbitrary padding.
      start: tokens of the prompt before the part.
      length: length of the part in tokens.
    """
    time, config, precision = tokens.shape[0], model.config, _precision(model.dtype)
    positions = start + jnp.arange(time)
    sees = jnp.arange(cache[0].keys.shape[2])[None] <= positions[:, None]

    def attend(q: Array, k: Array, v: Array, layer: Layer) -> tuple[Array, Layer]:
        q, k, v = (x.reshape(config.heads, config.head, time) for x in (q, k, v))
        layer = Layer(
            *(
                kept.at[row, :, positions].set(new.transpose(2, 0, 1), mode="drop")
                for kept, new in zip(layer, (k, v), strict=True)
            )
        )
        keys, values = (jax.lax.dynamic_index_in_dim(kept, row, keepdims=False) for kept in layer)
        scores = jnp.einsum("hdq,hkd->hqk", q, keys, precision=precision, preferred_element_type=jnp.float32)
        y = jnp.einsum("hqk,hkd->hdq", _weights(scores, sees[None], model.dtype), values, precision=precision)
        return y.reshape(config.hidden, time), layer

    x, cache = _run(model, params, tokens, jnp.minimum(positions, config.positions - 1), attend, cache)
    last = jax.lax.dynamic_slice_in_dim(x, length - 1, 1, axis=1)
    return _logits(model, params, last)[:, 0], cache


def decode(
    model: OPT,
    params: Params,
    cache: Cache,
    tokens: Int[Array, " batch"],
    positions: Int[Array, " batch"],
    length: int,
) -> tuple[Float[Array, "vocab batch"], Cache]:
    """One more token for the first `batch` rows of the cache.

    Args:
      model: the model.
      params: its weights.
      cache: holds keys and values of positions 0 to `positions - 1`; those of `tokens` are added.
      tokens: the last token of each row.
      positions: position of that token in its sequence. A row whose position lies beyond the cache is not changed, and
        its logits mean nothing.
      length: tokens of the cache that attention reads; larger than every position inside the cache.
    """
    batch = tokens.shape[0]
    config = model.config
    sees = (jnp.arange(length)[None] <= positions[:, None])[:, None]

    def attend(q: Array, k: Array, v: Array, layer: Layer) -> tuple[Array, Layer]:
        q, k, v = (x.T.reshape(batch, config.heads, config.head) for x in (q, k, v))
        layer = Layer(
            *(
                kept.at[jnp.arange(batch), :, positions].set(new, mode="drop")
                for kept, new in zip(layer, (k, v), strict=True)
            )
        )
        keys, values = (kept[:batch, :, :length] for kept in layer)
        precision = _precision(model.dtype)
        scores = jnp.einsum("bhd,bhld->bhl", q, keys, precision=precision, preferred_element_type=jnp.float32)
        y = jnp.einsum("bhl,bhld->bhd", _weights(scores, sees, model.dtype), values, precision=precision)
        return y.reshape(batch, config.hidden).T, layer

    inside = jnp.minimum(positions, config.positions - 1)
    x, cache = _run(model, params, tokens, inside, attend, cache)
    return _logits(model, params, x), cache


def empty_cache(config: OPTConfig, rows: int, length: int, dtype: Any) -> Cache:
    """A cache for `rows` sequences of up to `length` tokens."""
    shape = (rows, config.heads, length, config.head)
    return tuple(Layer(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.layers))


def move_row(cache: Cache, source: Int[Array, ""], target: Int[Array, ""]) -> Cache:
    """Copies one row of the cache over another."""

    def moved(kept: Array) -> Array:
        row = jax.lax.dynamic_slice_in_dim(kept, source, 1)
        return jax.lax.dynamic_update_slice_in_dim(kept, row, target, 0)

    return tuple(Layer(moved(layer.keys), moved(layer.values)) for layer in cache)


def _run(
    model: OPT, params: Params, tokens: Array, positions: Array, attend: Attend, memory: tuple[Any, ...]
) -> tuple[Array, tuple[Any, ...]]:
    return cast(Any, model.apply(params, tokens, positions, attend, memory))


def _logits(model: OPT, params: Params, x: Array) -> Array:
    return cast(Array, model.apply(params, x, method="logits"))


def _attention_within(model: OPT, sees: Bool[Array, "batch time time"]) -> Attend:
    """Attention among the tokens of each sequence, without memory."""
    batch, time = sees.shape[:2]
    config, precision = model.config, _precision(model.dtype)

    def attend(q: Array, k: Array, v: Array, memory: None) -> tuple[Array, None]:
        q, k, v = (x.reshape(config.heads, config.head, batch, time) for x in (q, k, v))
        scores = jnp.einsum("hdbq,hdbk->bhqk", q, k, precision=precision, preferred_element_type=jnp.float32)
        weights = _weights(scores, sees[:, None], model.dtype)
        y = jnp.einsum("bhqk,hdbk->hdbq", weights, v, precision=precision)
        return y.reshape(config.hidden, batch * time), memory

    return attend


def _weights(scores: Array, sees: Array, dtype: Any) -> Array:
    """Softmax over the last axis where `sees`, which is broadcast over the heads."""
    return nn.softmax(jnp.where(jnp.broadcast_to(sees, scores.shape), scores, _HIDDEN)).astype(dtype)


def _write_prompt(kept: Array, new: Array, row: Array) -> Array:
    """Writes keys or values (hidden, time) to the beginning of a row."""
    _, heads, _, head = kept.shape
    new = new.reshape(heads, head, -1).transpose(0, 2, 1)[None]
    return jax.lax.dynamic_update_slice(kept, new, (row, 0, 0, 0))
