"""From a situation to the arrays that the compiled simulator takes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from besteffort.simulator.tables import Tables
from besteffort.simulator.types import EnvParams, EnvShape
from besteffort.situation import Situation


def build(
    situation: Situation,
    workload: Any,
    *,
    history: int,
    horizon: int = 0,
    longest_prompt: int | None = None,
    record: bool = False,
) -> tuple[EnvShape, EnvParams]:
    """Shape and numbers of the environment for `situation`.

    Args:
      situation: what is served, on what.
      workload: a `besteffort.simulator.types.Workload`, or None for callers that feed arrivals themselves.
      history: decisions that the state remembers.
      horizon: decisions per episode; 0 for no end.
      longest_prompt: largest prompt length that may arrive; by default the longest of the situation's tasks.
      record: keep each request's times.

    Returns:
      The static shape, and parameters in the default float type.
    """
    cluster, profile, tasks = situation.cluster, situation.profile, situation.tasks
    if longest_prompt is None:
        longest_prompt = max(task.prompt_tokens[1] for task in tasks)
    tables = Tables.of(profile, cluster.max_batch, longest_prompt)
    shape = EnvShape(
        replicas=cluster.replicas,
        models=len(profile.model_names),
        tasks=len(tasks),
        max_batch=cluster.max_batch,
        queue_capacity=cluster.queue_capacity,
        history=history,
        horizon=horizon,
        slowdown=bool((tables.slowdown != 1).any()),
        context_cost=bool((tables.context_cost_s != 0).any()),
        cache_limit=bool(np.isfinite(tables.cache_tokens).any()),
        record=record,
    )

    def numbers(values: Any) -> Any:
        return jnp.asarray(np.asarray(values, np.float64), dtype=float)

    params = EnvParams(
        decode=numbers(tables.decode),
        prefill=numbers(tables.prefill),
        slowdown=numbers(tables.slowdown),
        context_cost_s=numbers(tables.context_cost_s),
        cache_tokens=numbers(tables.cache_tokens),
        cache_output_share=numbers(tables.cache_output_share),
        quality=numbers(profile.quality_table(situation.task_names)),
        weight=numbers([task.weight for task in tasks]),
        mean_prompt_tokens=numbers(situation.mean_prompt_tokens),
        mean_output_tokens=numbers(situation.mean_output_tokens),
        deadline_base_s=numbers([task.deadline.base_s for task in tasks]),
        deadline_per_token_s=numbers([task.deadline.per_token_s for task in tasks]),
        soft_span=numbers(situation.reward.soft_span),
        miss_penalty=numbers(situation.reward.miss_penalty),
        network_delay_s=numbers(cluster.network_delay_s),
        rate_tau_s=numbers(situation.view.rate_tau_s),
        workload=workload,
    )
    return shape, params
