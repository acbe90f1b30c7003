"""The replay buffer: the last decisions of every environment, in order of time, with their rewards.

Arrays are time-major. All environments step together, so a decision's row is its time modulo the length of the buffer,
and the observation that follows it is in the next row. A rollout is written at once and never wraps, because the length
is a multiple of the rollout's. `steps` is the number of decisions per environment written so far; it is the same for
all runs of a `vmap`, so it is an argument, not part of the state. Ages count rows back in time: the newest has age 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from besteffort.keys import straight
from besteffort.simulator.types import Outcomes

_FEW_ROWS = 32
"""Rows of a buffer per sampled decision up to which runs are worked out for all rows: in order they are read in vector
registers, where samples are read number by number."""


class Rows(NamedTuple):
    """Consecutive decisions of all environments.

    Attributes:
      features: (time, envs, features) input of the network.
      action: (time, envs) index of the chosen model.
      discount: (time, envs) 0 where the episode terminated with this decision, else the factor on the next decision's
        value for the time up to it.
      explored: (time, envs) whether the choice was random and differs from the greedy one.
      baseline: (time, envs) average reward of decisions in such circumstances; see `double_dqn.loss`.
      valid: (time, envs) whether the decision may be learned from: its episode had not ended before it, and the next
        row holds the observation that follows it or the episode terminated (neither is true across a truncation).
      open: (time, envs, pools) which pools take requests; None where all do.
    """

    features: Array
    action: Array
    discount: Array
    explored: Array
    baseline: Array
    valid: Array
    open: Array | None = None


class ReplayBuffer(NamedTuple):
    """The last `length` decisions of every environment.

    Attributes:
      rows: `Rows` of `length` times.
      reward: (length, envs) credit of the decision, see `DQNConfig.credit`; 0 while unresolved.
      resolved: (length, envs) whether that credit is known.
    """

    rows: Rows
    reward: Array
    resolved: Array

    @property
    def length(self) -> int:
        return self.resolved.shape[0]


class Batch(NamedTuple):
    """Sampled decisions; the leading axes are those of the sample.

    Attributes:
      features, next_features: (..., features) input of the network before the first decision and after the last.
      action: (...) the first decision's choice.
      reward: (...) credit of that decision.
      baseline: (...) average reward of decisions in its circumstances.
      returns: (...) discounted sum of the credits of all decisions less their baselines.
      discount: (...) factor on the value after the last decision; 0 after termination.
      weight: (...) 1 if the decisions may be learned from and their rewards are known, else 0.
      next_open: (..., pools) which pools take requests after the last decision; None where all do.
    """

    features: Array
    next_features: Array
    action: Array
    reward: Array
    baseline: Array
    returns: Array
    discount: Array
    weight: Array
    next_open: Array | None = None


def empty(length: int, like: Rows, reward_dtype: Any) -> ReplayBuffer:
    """An empty buffer of `length` for rows like `like`, whose leading axis is ignored."""
    rows = jax.tree.map(lambda array: jnp.zeros((length, *array.shape[1:]), array.dtype), like)
    return ReplayBuffer(rows, jnp.zeros(rows.action.shape, reward_dtype), jnp.zeros(rows.action.shape, bool))


def append(
    buffer: ReplayBuffer, steps: Int[Array, ""], rows: Rows, reward: Float[Array, "time envs"] | None = None
) -> ReplayBuffer:
    """Overwrites the oldest decisions with `rows`; without `reward` their rewards are not known yet."""
    start = steps % buffer.length

    def put(array: Array, values: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(array, values, start, axis=0)

    known = jnp.full(rows.action.shape, reward is not None)
    values = jnp.zeros(rows.action.shape) if reward is None else reward
    return ReplayBuffer(
        rows=jax.tree.map(put, buffer.rows, rows),
        reward=put(buffer.reward, values.astype(buffer.reward.dtype)),
        resolved=put(buffer.resolved, known),
    )


def lost(buffer: ReplayBuffer, steps: Int[Array, ""], rollout_length: int) -> Float[Array, ""]:
    """Share of unresolved decisions among the valid ones that the next rollout overwrites; 0 if there are none."""
    start = steps % buffer.length
    valid = jax.lax.dynamic_slice_in_dim(buffer.rows.valid, start, rollout_length)
    resolved = jax.lax.dynamic_slice_in_dim(buffer.resolved, start, rollout_length)
    return (valid & ~resolved).sum() / jnp.maximum(valid.sum(), 1)


def join(buffer: ReplayBuffer, steps: Int[Array, ""], outcomes: Outcomes, index: Int[Array, " envs"]) -> ReplayBuffer:
    """Fills in the rewards that are known by now.

    Args:
      buffer: holds decisions up to the one before the pending decision.
      steps: decisions per environment written, including the last rollout.
      outcomes: (envs, history) fields; a decision `history` or more before the pending one is no longer in them.
      index: number of the pending decision in each environment's episode. A row older than that is from an earlier
        episode.
    """
    history = outcomes.resolved.shape[1]
    age = jnp.arange(min(history, buffer.length + 1) - 1, 0, -1)[:, None]
    row = (steps - age[:, 0]) % buffer.length
    decision = index[None, :] - age
    slot = decision % history
    known = (decision >= 0) & jnp.take_along_axis(outcomes.resolved.T, slot, axis=0)
    reward = jnp.take_along_axis(outcomes.reward.T, slot, axis=0).astype(buffer.reward.dtype)
    return buffer._replace(
        reward=buffer.reward.at[row].set(jnp.where(known, reward, buffer.reward[row])),
        resolved=buffer.resolved.at[row].set(buffer.resolved[row] | known),
    )


def sample(
    buffer: ReplayBuffer,
    steps: Int[Array, ""],
    key: Key[Array, ""],
    shape: tuple[int, ...],
    discount: Float[Array, ""] | float = 1.0,
    length: int = 1,
    min_age: int = 0,
) -> Batch:
    """Samples runs of up to `length` decisions, with starts uniform, with replacement, over all old enough decisions.

    A decision is old enough if it has `length` successors in the buffer and is older than `min_age` rows. A run ends
    with its episode and before its next random choice, so all but its first decision are greedy (Watkins, 1989).
    Decisions that may not be learned from are drawn too and get weight 0.
    """
    age_key, env_key = jax.random.split(straight(key))
    filled = jnp.minimum(steps, buffer.length)
    youngest = max(min_age, length) + 1
    age = jax.random.randint(age_key, shape, youngest, jnp.maximum(filled, youngest) + 1)
    env = jax.random.randint(env_key, shape, 0, buffer.resolved.shape[1])
    start = (steps - age) % buffer.length
    everywhere = buffer.resolved.size <= _FEW_ROWS * start.size

    def following(field: Array) -> list[Array]:
        """A field of the first decision of each run, of the second, and so on."""
        if not everywhere:
            return [field[(start + number) % buffer.length, env] for number in range(length)]
        around = jnp.concatenate([field, field[:length]])
        return [around[number : number + buffer.length] for number in range(length)]

    rows = buffer.rows
    runs = _runs(
        following(buffer.reward - rows.baseline),
        following(rows.discount),
        following(rows.explored),
        following(rows.valid & buffer.resolved),
        discount,
    )
    returns, after, known, taken = (field[start, env] for field in runs) if everywhere else runs
    end = (start + taken) % buffer.length
    return Batch(
        features=rows.features[start, env],
        next_features=rows.features[end, env],
        action=rows.action[start, env],
        reward=buffer.reward[start, env],
        baseline=rows.baseline[start, env],
        returns=returns,
        discount=after,
        weight=(known & (age <= filled)).astype(buffer.reward.dtype),
        next_open=None if rows.open is None else rows.open[end, env],
    )


def _runs(
    earned: list[Array], step: list[Array], explored: list[Array], known: list[Array], discount: Array | float
) -> tuple[Array, Array, Array, Array]:
    """What runs come to, of the fields of their decisions in order; a decision's `step` is its own discount.

    Returns:
      Discounted sums of what was earned, factors on the value after the last decision, whether all is known, and how
      many decisions there are.
    """
    inside = jnp.ones(explored[0].shape, bool)
    returns, after = jnp.zeros_like(earned[0]), jnp.ones_like(step[0])
    all_known, taken = inside, jnp.zeros(inside.shape, jnp.int32)
    for number in range(len(earned)):
        if number:
            inside &= ~(explored[number] | (step[number - 1] == 0))
        returns = jnp.where(inside, returns + after * earned[number], returns)
        after = jnp.where(inside, after * (discount * step[number]), after)
        all_known &= known[number] | ~inside
        taken += inside
    return returns, after, all_known, taken
