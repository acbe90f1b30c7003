"""The model against PyTorch's, and its three uses against each other."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_opt import REFERENCES, TINY, TINY_350M

from besteffort.opt.model import OPT, decode, empty_cache, extend, forward, move_row, prefill
from besteffort.opt.weights import Model, load_model, random_model


@pytest.mark.parametrize("where", REFERENCES, ids=lambda path: path.name)
def test_logits_are_pytorchs(where: Path) -> None:
    model, reference = load_model(where), np.load(where / "reference.npz")
    found = jax.jit(partial(forward, model.module))(model.params, reference["tokens"], reference["mask"])
    mask = reference["mask"]
    assert np.abs(reference["logits"][mask]).max() > 1
    np.testing.assert_allclose(np.asarray(found)[mask], reference["logits"][mask], atol=1e-4, rtol=0)


@pytest.fixture(scope="module", params=[TINY, TINY_350M], ids=["pre-norm", "post-norm"])
def either(request: pytest.FixtureRequest) -> Model:
    small = random_model(request.param, seed=3)
    return Model("either", small.config, small.module, jax.tree.map(lambda x: 10 * x, small.params))


@pytest.mark.optimised  # the tolerance is for fused multiplications and additions
def test_cached_decoding_is_the_full_pass(either: Model) -> None:
    """Rows of different lengths, decoded side by side, with prompts padded to a bucket."""
    tokens = np.random.default_rng(0).integers(0, TINY.vocab, (3, 20))
    prompts, rows = np.array([1, 7, 12]), 4
    run = jax.jit(partial(forward, either.module))
    whole = np.asarray(run(either.params, jnp.asarray(tokens), jnp.ones((3, 20), bool)))
    read = jax.jit(partial(prefill, either.module))
    step = jax.jit(partial(decode, either.module), static_argnames="length")

    cache = empty_cache(TINY, rows, 24, jnp.float32)
    for row, length in enumerate(prompts):
        padded = np.full(16, 95)
        padded[:length] = tokens[row, :length]
        logits, cache = read(either.params, cache, np.int32(row), padded, np.int32(length))
        np.testing.assert_allclose(logits, whole[row, length - 1], atol=1e-4)
    for done in range(8):
        positions = prompts + done
        logits, cache = step(either.params, cache, tokens[np.arange(3), positions], positions, length=20)
        np.testing.assert_allclose(logits.T, whole[np.arange(3), positions], atol=1e-4)


def test_a_prompt_read_in_parts_is_the_full_pass(either: Model) -> None:
    """Into any row, whatever the padding of a part wrote before and however near the end of the cache it lies."""
    with jax.enable_x64(True):
        wide = OPT(either.config, jnp.float64)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), either.params)
        tokens = np.random.default_rng(2).integers(0, TINY.vocab, (1, 20))
        whole = np.asarray(jax.jit(partial(forward, wide))(params, tokens, np.ones((1, 20), bool)))
        read = jax.jit(partial(extend, wide))
        for part in (1, 5, 12):
            cache = jax.tree.map(lambda x: x + 9.0, empty_cache(TINY, 3, 24, jnp.float64))
            for start in range(0, 20, part):
                count = min(part, 20 - start)
                padded = np.full(12, 95)
                padded[:count] = tokens[0, start : start + count]
                logits, cache = read(params, cache, np.int32(1), padded, np.int32(start), np.int32(count))
                np.testing.assert_allclose(logits, whole[0, start + count - 1], rtol=1e-5, atol=1e-6)
            for kept in jax.tree.leaves(cache):
                assert bool((kept[jnp.array([0, 2])] == 9).all())


def test_what_lies_beyond_the_length_read_or_in_other_rows_does_not_matter(either: Model) -> None:
    """And a row at a position beyond the cache is not written to."""
    step = jax.jit(partial(decode, either.module), static_argnames="length")
    clean = empty_cache(TINY, 3, 24, jnp.float32)
    noisy = jax.tree.map(lambda x: x.at[:, :, 16:].set(9.0).at[2].set(9.0), clean)
    tokens, positions = jnp.array([5, 6, 7]), jnp.array([3, 9, 24])
    first, _ = step(either.params, clean, tokens, positions, length=16)
    second, after = step(either.params, noisy, tokens, positions, length=16)
    np.testing.assert_array_equal(first[:, :2], second[:, :2])
    for layer in after:
        assert bool((layer.keys[2] == 9).all())
        assert bool((layer.keys[0, :, 3] != 0).any())


def test_the_side_of_the_padding_does_not_matter(either: Model) -> None:
    run = jax.jit(partial(forward, either.module))
    tokens = np.random.default_rng(1).integers(0, TINY.vocab, (1, 6))
    padding = np.zeros((1, 4), int)
    left = run(either.params, np.hstack([padding, tokens]), np.hstack([padding == 1, tokens >= 0]))
    right = run(either.params, np.hstack([tokens, padding]), np.hstack([tokens >= 0, padding == 1]))
    np.testing.assert_allclose(left[:, 4:], right[:, :6], atol=1e-5)
    assert bool(jnp.isfinite(left).all())


def test_bfloat16_is_close_to_float32(model: Model) -> None:
    small = random_model(TINY, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(small.params)} == {jnp.dtype(jnp.bfloat16)}
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    tokens, mask = jnp.arange(12)[None], jnp.ones((1, 12), bool)
    wide = jax.jit(partial(forward, model.module))(model.params, tokens, mask)
    found = jax.jit(partial(forward, small.module))(narrow, tokens, mask)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wide, atol=0.05 * float(jnp.abs(wide).max()))
    assert float(jnp.abs(found - wide).max()) > 0


def test_a_row_is_copied_whole() -> None:
    cache = jax.tree.map(lambda x: x + jnp.arange(3.0)[:, None, None, None], empty_cache(TINY, 3, 4, jnp.float32))
    moved = move_row(cache, jnp.int32(2), jnp.int32(0))
    for layer in moved:
        for kept in layer:
            assert [float(row.min()) for row in kept] == [float(row.max()) for row in kept] == [2, 1, 2]
