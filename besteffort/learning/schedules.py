"""Schedules over decisions, independent of how many environments step together."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def linear(
    start: Array | float, end: Array | float, duration: Array | int, decisions: Int[Array, "*n"]
) -> Float[Array, "*n"]:
    """Linear from `start` at 0 decisions to `end` at `duration` decisions, then constant."""
    progress = jnp.clip(decisions / duration, 0.0, 1.0)
    return start + (end - start) * progress


def spread(epsilon: Float[Array, " n"], share: Array | float, envs: int) -> Float[Array, "n envs"]:
    """Probability of a random decision in each environment: `epsilon ** (1 - share x i / (envs - 1))` in environment i.

    Some environments thus keep exploring when `epsilon` is small, and the replay buffer keeps the congested states that
    a good policy avoids; without them the network forgets why. After Ape-X (Horgan et al., ICLR 2018).
    """
    exponent = 1 - share * jnp.arange(envs) / max(envs - 1, 1)
    return epsilon[:, None] ** exponent[None, :]


def crossed(interval: Array | int, before: Int[Array, "*n"], after: Int[Array, "*n"]) -> Bool[Array, "*n"]:
    """Whether a multiple of `interval` lies in (before, after]."""
    return after // interval > before // interval


def decisions_at(updates: int, decisions_per_rollout: int, before: Int[Array, ""]) -> Int[Array, " times"]:
    """Decisions that count as made before the first and after each of the updates that follow a rollout.

    The rollout's decisions are spread evenly over its updates; entry 0 is `before`, the last is
    `before + decisions_per_rollout`.
    """
    return before + jnp.array([i * decisions_per_rollout // updates for i in range(updates + 1)])
