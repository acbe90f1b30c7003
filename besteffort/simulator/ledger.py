"""Outcomes of decisions: a ring buffer over decision indices, which the dynamics write as requests depart."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Timing(NamedTuple):
    """Seconds from a request's arrival to three moments; each field has the same shape.

    Attributes:
      wait_s: to the start of the iteration that admits it.
      first_token_s: to the end of the iteration that reads the last token of its prompt, by default that one.
      service_s: to the end of its last iteration, network delay not included.
    """

    wait_s: Array
    first_token_s: Array
    service_s: Array


class Ledger(NamedTuple):
    """Outcomes of the last `history` decisions; decision `d` is in slot `d % history`.

    Attributes:
      reward: (history,) own-request reward; that of a miss until the answer is recorded.
      due_s: (history,) when the request can earn nothing more, on the environment's clock.
      timing: fields of shape (history,), nan until the answer is recorded; None unless `EnvShape.record`.
    """

    reward: Array
    due_s: Array
    timing: Timing | None


def empty(history: int, record: bool) -> Ledger:
    """A ledger without decisions."""
    unknown = jnp.full(history, jnp.nan)
    timing = Timing(unknown, unknown, unknown) if record else None
    return Ledger(jnp.zeros(history), jnp.full(history, jnp.inf), timing)


def open_slot(ledger: Ledger, index: Array, miss: Array, due_s: Array) -> Ledger:
    """Gives the slot of decision `index - history` to decision `index`, which earns `miss` if it gets no answer."""
    slot = index % ledger.reward.shape[0]
    return Ledger(
        reward=ledger.reward.at[slot].set(miss),
        due_s=ledger.due_s.at[slot].set(due_s),
        timing=jax.tree.map(lambda times: times.at[slot].set(jnp.nan), ledger.timing),
    )


def write(ledger: Ledger, index: Array, valid: Array, newest: Array, reward: Array, timing: Timing | None) -> Ledger:
    """Records the answers to decisions `index` (any shape) where `valid`.

    Decisions up to `newest - history` have lost their slot and are skipped.
    """
    history = ledger.reward.shape[0]
    slot = jnp.where(valid & (index > newest - history), index % history, history)

    def put(array: Array, value: Array) -> Array:
        return array.at[slot].set(value, mode="drop")

    kept = None
    if ledger.timing is not None and timing is not None:
        kept = Timing(*map(put, ledger.timing, timing))
    return ledger._replace(reward=put(ledger.reward, reward), timing=kept)
