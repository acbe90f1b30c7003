from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.simulator.batching import batched_over_vmap


def recording() -> tuple[Any, list[tuple[int, ...]]]:
    """Doubles `x` until its first element exceeds `limit`, and counts; and the shapes of `x` it was traced with."""
    seen: list[tuple[int, ...]] = []

    @batched_over_vmap
    def double(x: jax.Array, limit: jax.Array) -> dict[str, jax.Array]:
        seen.append(x.shape)

        def short(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
            return jnp.any(carry[0][:, 0] <= limit)

        def turn(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x, turns = carry
            more = x[:, 0] <= limit
            return jnp.where(more[:, None], 2 * x, x), turns + more

        x, turns = jax.lax.while_loop(short, turn, (x, jnp.zeros(x.shape[0], jnp.int32)))
        return {"x": x, "turns": turns}

    return double, seen


def doubled(x: np.ndarray, limit: float) -> tuple[np.ndarray, int]:
    turns = max(0, int(np.floor(np.log2(limit / x[0]))) + 1)
    return x * 2**turns, turns


@pytest.mark.parametrize("compiled", [False, True])
def test_a_single_lane(compiled: bool) -> None:
    double, seen = recording()
    out = (jax.jit(double) if compiled else double)(jnp.array([3.0, 1.0]), jnp.array(20.0))
    assert out["x"].tolist() == [24.0, 8.0]
    assert out["turns"].shape == ()
    assert int(out["turns"]) == 3
    assert set(seen) == {(1, 2)}


def test_nested_lanes_become_one_axis() -> None:
    double, seen = recording()
    x = np.random.default_rng(0).uniform(0.1, 3, (2, 3, 4, 5))
    limit = np.random.default_rng(1).uniform(3, 50, (2, 3, 4))
    out = jax.jit(jax.vmap(jax.vmap(jax.vmap(double))))(x, limit)
    assert seen[-1] == (24, 5)
    for lane in np.ndindex(2, 3, 4):
        wanted, turns = doubled(x[lane], limit[lane])
        np.testing.assert_allclose(out["x"][lane], wanted, rtol=1e-5)
        assert int(out["turns"][lane]) == turns


def test_arguments_may_be_shared_or_have_their_lanes_elsewhere() -> None:
    double, _ = recording()
    x = np.random.default_rng(0).uniform(0.1, 3, (3, 4, 2))
    limit = np.array([4.0, 9.0, 30.0])
    inner = jax.vmap(double, in_axes=(1, None), out_axes={"x": 1, "turns": 0})
    out = jax.vmap(inner)(x.swapaxes(1, 2), limit)
    for i, j in np.ndindex(3, 4):
        wanted, turns = doubled(x[i, j], limit[i])
        np.testing.assert_allclose(out["x"][i, :, j], wanted, rtol=1e-5)
        assert int(out["turns"][i, j]) == turns


def test_lanes_inside_a_scan() -> None:
    double, seen = recording()

    def step(x: jax.Array, limit: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = double(x, limit)
        return out["x"], out["turns"]

    x = jnp.array([[1.0, 1.0], [5.0, 0.0]])
    last, turns = jax.jit(jax.vmap(lambda x: jax.lax.scan(step, x, jnp.array([2.0, 8.0]))))(x)
    assert last.tolist() == [[16.0, 16.0], [10.0, 0.0]]
    assert turns.tolist() == [[2, 2], [0, 1]]
    assert seen[-1] == (2, 2)
