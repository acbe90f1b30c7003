"""A small cluster with round numbers: three models, two tasks, four slots."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from besteffort.observation import Observation
from besteffort.simulator.types import EnvParams, EnvShape

SHAPE = EnvShape(replicas=2, pools=3, tasks=2, max_batch=4, queue_capacity=4, history=64)

# decode(b) = (1, 2, 4) x (10 + b) ms; prefill(p) = (1, 2, 4) x 0.1 ms x p.
SIZES = np.array([1.0, 2.0, 4.0])
DECODE = SIZES[:, None] * np.array([0.0, 0.011, 0.012, 0.013, 0.014])
PREFILL = SIZES[:, None] * 1e-4 * np.arange(201)


def params(**changes: Any) -> EnvParams:
    """Task 0: 100 prompt and 11 output tokens; task 1: 200 and 21. Hard deadlines."""
    return dataclasses.replace(
        EnvParams(
            decode=jnp.array(DECODE),
            prefill=jnp.array(PREFILL),
            slowdown=jnp.ones((3, 3)),
            context_cost_s=jnp.zeros(3),
            cache_tokens=jnp.full(3, jnp.inf),
            cache_output_share=jnp.array(1.0),
            quality=jnp.array([[0.6, 0.8, 1.0], [0.9, 1.0, 0.95]]),
            weight=jnp.ones(2),
            mean_prompt_tokens=jnp.array([100.0, 200.0]),
            mean_output_tokens=jnp.array([11.0, 21.0]),
            deadline_base_s=jnp.array([0.1, 0.1]),
            deadline_per_token_s=jnp.array([0.02, 0.02]),
            soft_span=jnp.array(0.0),
            miss_penalty=jnp.array(0.0),
            network_delay_s=jnp.array(0.0),
            rate_tau_s=jnp.array(2.0),
            rate_lag=jnp.array(0),
            batch_refresh_s=jnp.array(0.0),
            workload=None,
        ),
        **changes,
    )


def observe(batch: Any, task: int = 0, deadline_s: float = 0.5) -> Observation:
    """What a router sees with `batch`, (replicas, models), in the cluster."""
    batch = jnp.asarray(batch, jnp.int32)
    return Observation(
        task=jnp.int32(task),
        batch_sizes=batch.sum(0),
        arrival_rate=jnp.array(10.0),
        instance_batch_sizes=batch,
        deadline_s=jnp.array(deadline_s),
        since_change_s=jnp.array(0.1),
    )
