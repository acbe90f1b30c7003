from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.opt.sampling import GREEDY, Rules, Sampling, choose

LOGITS = np.log(np.array([0.05, 0.4, 0.3, 0.15, 0.1], np.float32))
DRAWS = 4000
chosen = jax.jit(choose)


def rules(sampling: Sampling, rows: int, seed: int = 0) -> Rules:
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(rows))
    return Rules(
        np.full(rows, sampling.temperature, np.float32),
        np.full(rows, sampling.top_k, np.int32),
        np.full(rows, sampling.top_p, np.float32),
        np.asarray(jax.random.key_data(keys)),
        np.zeros(rows, np.int32),
    )


def shares(sampling: Sampling) -> np.ndarray:
    logits = jnp.broadcast_to(jnp.asarray(LOGITS)[:, None], (5, DRAWS))
    return np.bincount(np.asarray(chosen(logits, rules(sampling, DRAWS))), minlength=5) / DRAWS


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), [0.05, 0.4, 0.3, 0.15, 0.1]),
        (Sampling(0.5), [0.0088, 0.5614, 0.3158, 0.0789, 0.0351]),
        (Sampling(1.0, top_k=2), [0, 0.5714, 0.4286, 0, 0]),
        (Sampling(1.0, top_p=0.6), [0, 0.5714, 0.4286, 0, 0]),
        (Sampling(1.0, top_p=0.75), [0, 0.4706, 0.3529, 0.1765, 0]),
        (Sampling(1.0, top_k=3, top_p=0.5), [0, 0.5714, 0.4286, 0, 0]),  # 0.47 of the three is less than 0.5
        (Sampling(1.0, top_p=0.01), [0, 1, 0, 0, 0]),
        (Sampling(1.0, top_k=9), [0.05, 0.4, 0.3, 0.15, 0.1]),
        (GREEDY, [0, 1, 0, 0, 0]),
    ],
)
def test_shares_are_the_probabilities(sampling: Sampling, expected: list[float]) -> None:
    found = shares(sampling)
    assert np.array_equal(found > 0, np.array(expected) > 0)
    np.testing.assert_allclose(found, expected, atol=4 * 0.5 / DRAWS**0.5)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    mixed = [GREEDY, Sampling(1.0), Sampling(2.0, top_k=3), Sampling(0.7, top_p=0.8)]
    logits = jax.random.normal(jax.random.key(5), (50, 4))
    each = [rules(sampling, 1, seed) for seed, sampling in enumerate(mixed)]
    together = chosen(logits, Rules(*(np.concatenate(field) for field in zip(*each, strict=True))))
    alone = [int(chosen(logits[:, i : i + 1], own)[0]) for i, own in enumerate(each)]
    assert together.tolist() == alone


def test_another_key_or_another_draw_is_another_token() -> None:
    logits = jnp.zeros((1000, 1))
    first = rules(Sampling(1.0), 1)
    tokens = {
        int(chosen(logits, own)[0])
        for own in (first, first._replace(drawn=np.ones(1, np.int32)), rules(Sampling(1.0), 1, 1))
    }
    assert len(tokens) == 3
    assert int(chosen(logits, first)[0]) in tokens


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -1.0}, "`temperature` is -1; give 0"),
        ({"temperature": float("nan")}, "`temperature` is nan"),
        ({"top_k": -1}, "`top_k` is -1"),
        ({"top_p": 0.0}, "`top_p` is 0; give a probability above 0"),
        ({"top_p": 1.5}, "`top_p` is 1.5"),
    ],
)
def test_values_out_of_range(settings: dict, words: str) -> None:
    with pytest.raises(InputError) as caught:
        Sampling(**settings)
    assert words in str(caught.value)
