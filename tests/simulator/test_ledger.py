from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from besteffort.simulator.ledger import Ledger, Timing, empty, open_slot, write

HISTORY = 4


def opened(indices: range, record: bool = False) -> Ledger:
    """A ledger in which decision `d` was opened with the miss `-d` and due at `10 d`."""
    ledger = empty(HISTORY, record)
    for d in indices:
        ledger = open_slot(ledger, jnp.int32(d), jnp.asarray(-float(d)), jnp.asarray(10.0 * d))
    return ledger


def answer(ledger: Ledger, indices: list[int], valid: list[bool], newest: int, rewards: list[float]) -> Ledger:
    times = jnp.asarray(rewards)
    timing = Timing(times + 1, times + 2, times + 3) if ledger.timing is not None else None
    put = jax.jit(write)
    return put(ledger, jnp.array(indices), jnp.array(valid), jnp.int32(newest), jnp.asarray(rewards), timing)


def test_a_decision_is_a_miss_until_its_answer_comes() -> None:
    ledger = opened(range(3))
    assert ledger.reward.tolist() == [0.0, -1.0, -2.0, 0.0]
    assert ledger.due_s[:3].tolist() == [0.0, 10.0, 20.0]
    ledger = answer(ledger, [1], [True], 2, [0.5])
    assert ledger.reward.tolist() == [0.0, 0.5, -2.0, 0.0]
    assert ledger.due_s[:3].tolist() == [0.0, 10.0, 20.0]


def test_slots_go_round_and_the_oldest_are_forgotten() -> None:
    ledger = answer(opened(range(4)), [0, 1, 2, 3], [True] * 4, 3, [0.25, 0.5, 0.75, 1.0])
    for d in (4, 5):
        ledger = open_slot(ledger, jnp.int32(d), jnp.asarray(-float(d)), jnp.asarray(10.0 * d))
    assert ledger.reward.tolist() == [-4.0, -5.0, 0.75, 1.0]
    assert ledger.due_s.tolist() == [40.0, 50.0, 20.0, 30.0]
    # Decisions 0 and 1 have lost their slots: their late answers are nobody's.
    late = answer(ledger, [0, 1, 2, 5], [True] * 4, 5, [9.0, 9.0, 7.0, 5.0])
    assert late.reward.tolist() == [-4.0, 5.0, 7.0, 1.0]


def test_what_is_not_valid_is_passed_over() -> None:
    ledger = answer(opened(range(4)), [0, -1, 2, 3], [False, False, True, False], 3, [9.0, 9.0, 0.5, 9.0])
    assert ledger.reward.tolist() == [0.0, -1.0, 0.5, -3.0]


def test_times_are_kept_where_asked_for() -> None:
    ledger = answer(opened(range(2), record=True), [1], [True], 1, [0.5])
    assert ledger.timing is not None
    np.testing.assert_array_equal(ledger.timing.wait_s, [np.nan, 1.5, np.nan, np.nan])
    np.testing.assert_array_equal(ledger.timing.first_token_s, [np.nan, 2.5, np.nan, np.nan])
    np.testing.assert_array_equal(ledger.timing.service_s, [np.nan, 3.5, np.nan, np.nan])
    reopened = open_slot(ledger, jnp.int32(1 + HISTORY), jnp.zeros(()), jnp.zeros(()))
    assert reopened.timing is not None
    assert np.isnan(np.stack(reopened.timing)).all()
    assert opened(range(2)).timing is None


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_answers_may_come_in_any_shape(shape: tuple[int, ...]) -> None:
    n = int(np.prod(shape))
    ledger = empty(8, record=False)
    for d in range(8):
        ledger = open_slot(ledger, jnp.int32(d), jnp.zeros(()), jnp.zeros(()))
    indices = jnp.arange(n).reshape(shape)
    ledger = write(ledger, indices, jnp.ones(shape, bool), jnp.int32(7), indices + 1.0, None)
    assert ledger.reward.tolist() == [*range(1, n + 1), *[0.0] * (8 - n)]
