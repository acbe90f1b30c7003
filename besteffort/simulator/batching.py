"""Makes functions over a batch of environments callable for one environment, under any nesting of `jax.vmap`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


def batched_over_vmap(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function over a leading batch axis callable for a single element.

    `function` takes and returns pytrees of arrays with a leading batch axis, one element per environment. The returned
    function takes and returns the same pytrees without that axis. Nested `vmap`s around a call are flattened into one
    batch axis, so `function` sees all environments together: its loops can run until the last element is done, without
    `vmap`'s select between old and new state in every iteration, and its updates can stay in place.
    """

    @custom_vmap
    def call(*args: Any) -> Any:
        return function(*args)

    @call.def_vmap
    def _(axis_size: int, in_batched: Any, *args: Any) -> Any:
        def flat(x: jax.Array, batched: bool) -> jax.Array:
            x = x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        out = call(*jax.tree.map(flat, args, tuple(in_batched)))
        out = jax.tree.map(lambda x: x.reshape(axis_size, -1, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    def single(*args: Any) -> Any:
        out = call(*jax.tree.map(lambda x: jnp.asarray(x)[None], args))
        return jax.tree.map(lambda x: x[0], out)

    return single
