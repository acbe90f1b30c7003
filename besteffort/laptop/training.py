"""Trains a model of the laptop tier: AdamW on new cases of all tasks, with the loss on the answers only.

Weights and the optimiser's state are float32, the passes bfloat16, which halves the time of matrix products on CPUs
that support it. The numbers are those of `experiments/laptop_tier.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from besteffort.laptop.tasks import CONTEXT, TASKS
from besteffort.laptop.tokenizer import END, PAD, VOCABULARY, encode
from besteffort.opt.config import OPTConfig
from besteffort.opt.model import OPT, Params, forward
from besteffort.opt.weights import Model, random_model


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model's shape and its training.

    Attributes:
      hidden, layers, heads: width, layers and heads of the model; the feed-forward layer is four times as wide.
      steps: steps of AdamW; the learning rate rises over a twentieth of them, then falls along a cosine to a hundredth.
      batch: cases per step.
      learning_rate: peak learning rate.
      seed: seed of weights and cases.
    """

    hidden: int
    layers: int
    heads: int
    steps: int
    batch: int = 48
    learning_rate: float = 1e-3
    seed: int = 0

    @property
    def config(self) -> OPTConfig:
        return OPTConfig(
            vocab=len(VOCABULARY),
            hidden=self.hidden,
            layers=self.layers,
            heads=self.heads,
            ffn=4 * self.hidden,
            embedding=self.hidden,
            positions=CONTEXT,
            stop_tokens=(END,),
        )


def batches(recipe: Recipe) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(batch, CONTEXT) tokens and (batch,) prompt lengths; tasks take turns, without held-out cases."""
    rng = np.random.default_rng(recipe.seed)
    tasks = list(TASKS.values())
    while True:
        tokens = np.full((recipe.batch, CONTEXT), PAD, np.int32)
        prompts = np.zeros(recipe.batch, np.int32)
        for row in range(recipe.batch):
            case = tasks[row % len(tasks)](rng)
            while case.held_out:
                case = tasks[row % len(tasks)](rng)
            prompt, text = encode(case.prompt), encode(case.prompt + case.answer)
            tokens[row, : len(text) + 1] = [*text, END]
            prompts[row] = len(prompt)
        yield tokens, prompts


def train(recipe: Recipe, progress: Callable[[int, float], None] | None = None, log_every: int = 100) -> Model:
    """Trains a model; the result is the same for the same recipe on the same machine.

    Args:
      recipe: shape and training of the model.
      progress: called with the number of steps done and the mean loss per answer token since the last call.
      log_every: steps between two calls.
    """
    model = random_model(recipe.config, seed=recipe.seed)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, recipe.steps // 20, recipe.steps, recipe.learning_rate / 100
    )
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))
    module = OPT(recipe.config, jnp.dtype(jnp.bfloat16))

    def loss(params: Params, tokens: Int[Array, "batch time"], prompts: Int[Array, " batch"]) -> Float[Array, ""]:
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        logits = forward(module, params, inputs, inputs != PAD)
        counts = _in_answer(targets, prompts)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.sum(jnp.where(counts, losses, 0.0)) / jnp.sum(counts)

    @jax.jit
    def step(params: Params, state: Any, tokens: Array, prompts: Array) -> tuple[Params, Any, Array]:
        value, gradient = jax.value_and_grad(loss)(params, tokens, prompts)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    params, state = model.params, optimiser.init(model.params)
    losses = []
    for number, (tokens, prompts) in zip(range(1, recipe.steps + 1), batches(recipe), strict=False):
        params, state, value = step(params, state, tokens, prompts)
        losses.append(value)
        if progress is not None and (number % log_every == 0 or number == recipe.steps):
            progress(number, float(np.mean(losses)))
            losses = []
    return dataclasses.replace(model, params=params)


def _in_answer(targets: Int[Array, "batch time"], prompts: Int[Array, " batch"]) -> Bool[Array, "batch time"]:
    """Whether each target belongs to the answer, including its end token."""
    return (jnp.arange(targets.shape[1])[None] >= prompts[:, None] - 1) & (targets != PAD)
