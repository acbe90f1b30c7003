"""Keys that compile to straight code draw what JAX's own draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.keys import straight

data = jax.random.key_data
DRAWS: dict[str, Callable[[jax.Array], Any]] = {
    "split": lambda key: data(jax.random.split(key)),
    "split to a shape": lambda key: data(jax.random.split(key, (3, 5))),
    "fold in": lambda key: data(jax.random.fold_in(key, 123_456)),
    "fold in side by side": lambda key: data(jax.vmap(jax.random.fold_in)(jax.random.split(key, 4), jnp.arange(4))),
    "uniform": lambda key: jax.random.uniform(key, (7,)),
    "integers": lambda key: jax.random.randint(key, (9,), 0, 17),
    "bytes": lambda key: jax.random.bits(key, (5,), "uint8"),
    "half words": lambda key: jax.random.bits(key, (5,), "uint16"),
    "permutation": lambda key: jax.random.permutation(key, 13),
}


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_the_same(name: str, x64: bool) -> None:
    with jax.enable_x64(x64):
        for seed in (0, 7, 2**31 - 1):
            key = jax.random.key(seed)
            drawn = jax.jit(DRAWS[name])
            np.testing.assert_array_equal(drawn(straight(key)), drawn(key))


def test_old_keys_are_taken_too_and_others_left_alone() -> None:
    key = jax.random.key(3)
    np.testing.assert_array_equal(jax.random.uniform(straight(jax.random.PRNGKey(3))), jax.random.uniform(key))
    assert straight(straight(key)).dtype == straight(key).dtype != key.dtype
    other = jax.random.key(3, impl="rbg")
    assert straight(other) is other


def test_no_loop_is_compiled() -> None:
    def loops(key: jax.Array) -> bool:
        return "while" in jax.jit(jax.random.uniform).lower(key).as_text()

    key = jax.random.key(0)
    assert not loops(straight(key))
    if jax.default_backend() == "cpu":
        assert loops(key)  # else this module may go
