"""Operations on rows of seats, in the forms that XLA for CPUs (jaxlib 0.10.2) compiles to vector instructions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def count(which: Array) -> Array:
    """How many are true along the last axis.

    In two steps: XLA adds up the second axis from the right in vector registers, but the last element by element.
    Between them a change of type, so that it does not make one step of the two.
    """
    parts = 4
    if which.shape[-1] % parts:
        return jnp.sum(which, axis=-1, dtype=jnp.int32)
    halves = which.reshape(*which.shape[:-1], parts, -1)
    return jnp.sum(jnp.sum(halves, axis=-2, dtype=jnp.int8).astype(jnp.int32), axis=-1, dtype=jnp.int32)


def count_and_total(which: Array, values: Array) -> tuple[Array, Array]:
    """How many are true along the last axis, and () the sum of all values, of as many numbers.

    In one pass over memory, in two steps as in `count`: XLA would pass over it twice, and keep the values in between.
    """
    parts = 8
    if which.shape[-1] % parts:
        return count(which), jnp.sum(values)
    halves = [field.reshape(*field.shape[:-1], parts, -1) for field in (which.astype(jnp.int32), values)]
    zeros = [jnp.zeros((), field.dtype) for field in halves]
    counts, totals = jax.lax.reduce(halves, zeros, lambda a, b: [a[0] + b[0], a[1] + b[1]], (which.ndim - 1,))
    return jnp.sum(counts.astype(jnp.int8), axis=-1, dtype=jnp.int32), jnp.sum(totals)


def largest(whole: Array) -> Array:
    """The largest along the last axis, in two steps as in `count`: the second is a minimum, so that they stay two."""
    parts = 4
    if whole.shape[-1] % parts:
        return jnp.max(whole, axis=-1)
    halves = whole.reshape(*whole.shape[:-1], parts, -1)
    return -jnp.min(-jnp.max(halves, axis=-2), axis=-1)


def least(whole: Array) -> Array:
    """The least along the last axis; opposites of all numbers have to be numbers."""
    return -largest(-whole)


def pick(field: Array, which: Array) -> Array:
    """Rows `which`, one or several, of a field of shape (instances, ...).

    In parts of a vector register: XLA copies a longer row element by element.
    """
    width = 8
    parts = field
    if field.ndim > 1 and field.shape[-1] % width == 0:
        parts = field.reshape(*field.shape[:-1], -1, width)
    return parts.at[which].get(mode="promise_in_bounds").reshape(*which.shape, *field.shape[1:])


def seat(field: Array, number: Array) -> Array:
    """The field of one seat of a row, of any seat if there is no such seat."""
    return field.at[jnp.clip(number, 0, field.shape[0] - 1)].get(mode="promise_in_bounds")


def once(field: Array) -> Array:
    """The same numbers, worked out once.

    XLA works out anew, in every loop that reads them, whatever is neither costly nor a reduction. So this is one: of
    their bits with none.
    """
    if jnp.issubdtype(field.dtype, jnp.floating):
        bits = jax.lax.bitcast_convert_type(field, f"int{8 * field.dtype.itemsize}")
        return jax.lax.bitcast_convert_type(once(bits), field.dtype)
    first = jnp.arange(2).reshape(2, *[1] * field.ndim) == 0
    return jax.lax.reduce_or(jnp.where(first, field, jnp.zeros_like(field)), axes=(0,))
