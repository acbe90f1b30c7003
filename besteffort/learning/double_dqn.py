"""Double DQN (van Hasselt, Guez & Silver, AAAI 2016): its loss and one gradient step."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
import rlax
from jaxtyping import Array, Bool, Float, Int

from besteffort.learning.config import DQNConfig, DQNHyperparams
from besteffort.learning.network import Networks, Variables, q_values
from besteffort.learning.replay_buffer import Batch


class Learner(NamedTuple):
    """The state that a gradient step changes.

    Attributes:
      online: variables of the networks that act and learn.
      target: variables of the networks that value the next decision; for a small `DQNHyperparams.tau` an average of
        past online variables.
      optimiser: state of the optimiser.
    """

    online: Variables
    target: Variables
    optimiser: Any


def optimiser(hyper: DQNHyperparams) -> optax.GradientTransformation:
    """Adam on the clipped gradient, at rate 1: the learning rate depends on decisions, which optax does not count."""
    return optax.chain(optax.clip_by_global_norm(hyper.max_grad_norm), optax.scale_by_adam())


def start(online: Variables, hyper: DQNHyperparams) -> Learner:
    """A learner whose target networks are its online networks."""
    return Learner(online, jax.tree.map(jnp.copy, online), optimiser(hyper).init(online))


def loss(
    online: Variables, target: Variables, batch: Batch, networks: Networks, config: DQNConfig, hyper: DQNHyperparams
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted mean loss of the temporal-difference error, and weighted mean Q-value of the decisions taken.

    The error is `returns + discount x Q_target(next, argmax Q_online(next)) - Q_online(features, action)`, over runs of
    one or more decisions. The next action is that of a pool which takes requests, since policies choose no other.

    Returns are rewards less a baseline: the average reward of decisions at the same task and arrival rate, which the
    second network learns. No decision changes tasks and arrivals, so the baseline adds the same to the value of every
    action; without it values would vary far more with the arrival rate than with the router's choices (Mao et al.,
    Variance Reduction for Reinforcement Learning in Input-Driven Environments, ICLR 2019).
    """
    network, baseline = networks
    q = q_values(network, online.q, batch.features)
    valued = q_values(network, target.q, batch.next_features)
    chosen_by = q_values(network, online.q, batch.next_features) if config.double else valued
    if batch.next_open is not None:
        chosen_by = jnp.where(batch.next_open, chosen_by, -jnp.inf)
    error = jax.vmap(rlax.double_q_learning)(q, batch.action, batch.returns, batch.discount, valued, chosen_by)
    cost = optax.losses.huber_loss(error, delta=hyper.huber_delta) if config.loss == "huber" else 0.5 * error**2
    if config.baseline:
        cost = cost + 0.5 * (batch.reward - cast(Array, baseline.apply(online.baseline, batch.features))) ** 2
    taken = jnp.take_along_axis(q, batch.action[:, None], axis=1)[:, 0]
    total = jnp.maximum(batch.weight.sum(), 1.0)
    return (batch.weight * cost).sum() / total, (batch.weight * taken).sum() / total


def step(
    learner: Learner,
    batch: Batch,
    learning_rate: Float[Array, ""],
    sync: Bool[Array, ""],
    networks: Networks,
    config: DQNConfig,
    hyper: DQNHyperparams,
) -> tuple[Learner, tuple[Float[Array, ""], Float[Array, ""]]]:
    """One gradient step on `batch`, then one update of the target network if `sync`; also returns what `loss` does."""
    (cost, taken), gradient = jax.value_and_grad(loss, has_aux=True)(
        learner.online, learner.target, batch, networks, config, hyper
    )
    direction, state = optimiser(hyper).update(gradient, learner.optimiser)
    online = optax.apply_updates(learner.online, jax.tree.map(lambda d: -learning_rate * d, direction))
    share = jnp.where(sync, hyper.tau, 0.0)
    target = jax.tree.map(lambda old, new: ((1 - share) * old + share * new).astype(old.dtype), learner.target, online)
    return Learner(online, target, state), (cost, taken)


def averaged(average: Any, latest: Any, count: Int[Array, ""], power: Float[Array, ""]) -> Any:
    """Adds `latest` to the `average` of `count - 1` trees: polynomial-decay averaging (Shamir & Zhang, ICML 2013).

    The t-th tree has a weight of about `t**power`, so early trees fade however long the training is.
    """
    share = (power + 1) / (power + count)
    return jax.tree.map(lambda old, new: ((1 - share) * old + share * new).astype(old.dtype), average, latest)
