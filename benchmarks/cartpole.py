"""gymnax CartPole, the environment that JAX simulators are commonly measured against, as a case to time."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import Case


def cartpole_case(environments: int, steps: int, *, given: bool) -> Case:
    """A rollout under random actions, resets included, as one compiled scan.

    Args:
      environments: how many run side by side.
      steps: of each of them.
      given: actions and keys are drawn before the clock starts, and not in every step as for the simulator.
    """
    import gymnax  # here, because its import starts JAX's backend, after which the number of devices is fixed

    env, params = gymnax.make("CartPole-v1")

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        action_key, step_key = jax.random.split(key)
        actions = jax.random.randint(action_key, (environments,), 0, env.num_actions)
        return actions, jax.random.split(step_key, environments)

    def step(carry: tuple[Any, jax.Array], drawn: Any) -> tuple[tuple[Any, jax.Array], None]:
        state, total = carry
        actions, keys = drawn if given else draw(drawn)
        _, state, reward, *_ = jax.vmap(env.step, in_axes=(0, 0, 0, None))(keys, state, actions, params)
        return (state, total + reward.sum()), None

    _, state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(jax.random.key(0), environments), params)
    keys = jax.random.split(jax.random.key(1), steps)
    drawn = jax.block_until_ready(jax.jit(jax.vmap(draw))(keys)) if given else keys
    lowered = jax.jit(lambda state, drawn: jax.lax.scan(step, (state, jnp.zeros(())), drawn)[0]).lower(state, drawn)
    start = time.perf_counter()
    rollout = lowered.compile()
    compile_s = time.perf_counter() - start

    def run(number: int) -> None:
        del number  # the same actions every time cost the same
        jax.block_until_ready(rollout(state, drawn))

    run(-1)
    row = "gymnax CartPole" + (", actions and keys given" if given else "")
    return Case(row, f"{environments:,}", environments * steps, run, compile_s)
