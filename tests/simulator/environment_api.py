"""What every environment owes a learner, whatever it simulates: `check_environment`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from besteffort.simulator.types import Environment, Outcomes, TimeStep


def check_environment(environment: Environment, params: Any, steps: int = 12) -> None:
    """Asserts the protocol `besteffort.simulator.types.Environment`, in the present float type.

    Shapes and types of reset and step; that they are stable, so that one trace serves all steps, and under `jit`,
    `vmap` and `scan`; that keys, and keys alone, decide; that decisions are numbered.
    """
    shape = environment.shape
    reset, step, outcomes = jax.jit(environment.reset), _traced_once(environment.step), jax.jit(environment.outcomes)
    actions = jnp.arange(steps, dtype=jnp.int32) % shape.pools

    state, timestep = reset(jax.random.key(0), params)
    _check_timestep(environment, timestep)
    assert (int(timestep.index), float(timestep.reward), bool(timestep.truncated)) == (0, 0.0, False)
    kinds = _kinds((state, timestep))
    timesteps = [timestep]
    for k, action in enumerate(actions):
        state, timestep = step(jax.random.fold_in(jax.random.key(1), k), state, action, params)
        _check_timestep(environment, timestep)
        assert int(timestep.index) == k + 1
        assert _kinds((state, timestep)) == kinds
        _check_outcomes(environment, outcomes(state, params))
        timesteps.append(timestep)

    def rollout(reset_key: jax.Array, step_key: jax.Array) -> TimeStep:
        def one(state: Any, k: jax.Array) -> tuple[Any, TimeStep]:
            return environment.step(jax.random.fold_in(step_key, k), state, actions[k], params)

        state, first = environment.reset(reset_key, params)
        _, rest = jax.lax.scan(one, state, jnp.arange(steps))
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)

    def close(one: TimeStep, other: TimeStep) -> None:
        chex.assert_trees_all_close(one, other, rtol=1e-5, atol=1e-6)

    stepped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *timesteps)
    close(jax.jit(rollout)(jax.random.key(0), jax.random.key(1)), stepped)
    keys = (jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32)) for seeds in ((0, 0, 2), (1, 3, 1)))
    lanes = jax.jit(jax.vmap(rollout))(*keys)
    close(jax.tree.map(lambda x: x[0], lanes), stepped)
    first, other_steps, other_reset = ([leaf[k] for leaf in jax.tree.leaves(lanes)] for k in range(3))
    for other in (other_steps, other_reset):
        assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def _check_timestep(environment: Environment, timestep: TimeStep) -> None:
    shape, real, whole = environment.shape, jnp.zeros(()).dtype, jnp.integer
    observation = timestep.observation
    wanted = {
        "task": ((), whole),
        "batch_sizes": ((shape.pools,), whole),
        "arrival_rate": ((), real),
        "instance_batch_sizes": ((shape.replicas, shape.pools), whole),
        "deadline_s": ((), real),
        "since_change_s": ((), real),
    }
    # The others are there for routers that estimate only.
    assert {name for name in observation._fields if getattr(observation, name) is not None} == set(wanted)
    for name, (size, dtype) in wanted.items():
        value = getattr(observation, name)
        assert value.shape == size, name
        assert jnp.issubdtype(value.dtype, dtype), name
        assert np.isfinite(np.asarray(value, float)).all(), name
    assert 0 <= int(observation.task) < shape.tasks
    np.testing.assert_array_equal(observation.batch_sizes, observation.instance_batch_sizes.sum(axis=0))
    scalars = [timestep.reward, timestep.terminated, timestep.truncated, timestep.index]
    chex.assert_shape(scalars, ())
    chex.assert_type(scalars, [real, bool, bool, int])
    assert np.isfinite(timestep.reward)
    for optional in (timestep.credit, timestep.gap_s):
        if optional is not None:
            chex.assert_shape(optional, ())
            chex.assert_type(optional, real)
            assert np.isfinite(optional)


def _check_outcomes(environment: Environment, outcomes: Outcomes) -> None:
    chex.assert_shape([outcomes.reward, outcomes.resolved], (environment.shape.history,))
    chex.assert_type([outcomes.reward, outcomes.resolved], [jnp.zeros(()).dtype, bool])
    assert (np.asarray(outcomes.reward)[~np.asarray(outcomes.resolved)] == 0).all()


def _traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled; a second trace fails."""
    chex.clear_trace_counter()
    return jax.jit(chex.assert_max_traces(function, n=1))


def _kinds(tree: Any) -> tuple[Any, ...]:
    """Structure, shapes, types and weakness of the leaves; any change of them would make JAX trace again."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, *((leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves)
