"""Random keys whose draws compile to straight code, also on processors."""

from __future__ import annotations

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl

Array = jax.Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_NAME = "threefry2x32"


def straight(keys: Array) -> Array:
    """The same keys, whose draws are the same, bit for bit, but compile without loops.

    On processors JAX draws by a loop of five rounds, each a dozen little programs. For a few hundred numbers that takes
    several times as long as the draws themselves, and longer to compile. Keys of other generators, and of other
    settings of JAX, are returned as they are.

    Args:
      keys: new-style keys or, of shape (..., 2), old-style ones.
    """
    settings: Any = jax.config
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        if settings.jax_default_prng_impl != _NAME:
            return keys
        keys = jax.random.wrap_key_data(keys)
    if str(jax.random.key_impl(keys)) != _NAME or not settings.jax_threefry_partitionable:
        return keys
    return jax.random.wrap_key_data(jax.random.key_data(keys), impl=_STRAIGHT)


def _hashed(key: Array, counts: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds of the numbers (0, counts) (Salmon et al., SC 2011)."""
    first, second = key[0], key[1]
    schedule = (first, second, first ^ second ^ jnp.uint32(_PARITY))
    left, right = jnp.broadcast_to(schedule[0], counts.shape), counts + schedule[1]
    for turn in range(5):
        for rotation in _ROTATIONS[turn % 2]:
            left = left + right
            right = left ^ (right << rotation | right >> 32 - rotation)
        left = left + schedule[(turn + 1) % 3]
        right = right + schedule[(turn + 2) % 3] + jnp.uint32(turn + 1)
    return left, right


def _counts(shape: tuple[int, ...]) -> Array:
    """Numbers of the elements. A count of 2^32 or more would need their upper halves, which are 0 here."""
    if prod(shape) >= 2**32:
        raise NotImplementedError(f"Too many draws at once: {prod(shape)}.")
    return jax.lax.iota(jnp.uint32, prod(shape)).reshape(shape)


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.stack(_hashed(key, _counts(shape)), axis=-1)


def _random_bits(key: Array, width: int, shape: tuple[int, ...]) -> Array:
    left, right = _hashed(key, _counts(shape))
    if width == 64:
        return left.astype(jnp.uint64) << 32 | right.astype(jnp.uint64)
    return (left ^ right).astype(f"uint{width}")


def _fold_in(key: Array, data: Any) -> Array:
    return jnp.stack(_hashed(key, jnp.asarray(data, jnp.uint32)), axis=-1)


def _seed(seed: Array) -> Array:
    return jax.random.key_data(jax.random.key(seed, impl=_NAME))


_STRAIGHT: Any = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="straight threefry2x32",
    tag="stf",
)
