"""Builds the arrays that the compiled simulator takes from a situation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from besteffort.errors import InputError
from besteffort.estimates.priors import Priors
from besteffort.estimates.rule import Rule
from besteffort.estimates.tables import Tables
from besteffort.estimates.view import Terms
from besteffort.observation import needs_in_flight
from besteffort.pytrees import node_types
from besteffort.simulator.environment import ServingEnvironment
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
    estimates: bool | None = None,
    longest_output: int | None = None,
    rule: Rule | None = None,
) -> tuple[EnvShape, EnvParams]:
    """Returns the static shape and the numeric parameters of the environment for `situation`.

    Args:
      situation: the models, tasks and cluster.
      workload: a `besteffort.workload.types.Workload`, or None for callers that feed arrivals themselves.
      history: decisions whose outcome the state keeps.
      horizon: decisions per episode; 0 means that episodes do not end.
      longest_prompt: largest prompt length that may arrive, in tokens; by default the longest of the situation's tasks.
      record: keep each request's times.
      estimates: show routers the requests in flight; by default where a feature in `view.features` needs them.
      longest_output: where the laws of output lengths end, in tokens; by default with the tasks' longest output.
      rule: values models, for the feature `value`.

    Returns:
      The static shape, and parameters in the default float type.
    """
    cluster, profile, tasks = situation.cluster, situation.profile, situation.tasks
    if estimates is None:
        estimates = needs_in_flight(situation.view.features)
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
        rate_memory=situation.view.rate_lag,
        stale_sizes=situation.view.batch_refresh_s > 0,
        record=record,
        estimates=Terms.of(situation) if estimates else None,
        workload=node_types(workload),
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
        weight=numbers(situation.weights),
        mean_prompt_tokens=numbers(situation.mean_prompt_tokens),
        mean_output_tokens=numbers(situation.mean_output_tokens),
        deadline_base_s=numbers([task.deadline.base_s for task in tasks]),
        deadline_per_token_s=numbers([task.deadline.per_token_s for task in tasks]),
        soft_span=numbers(situation.reward.soft_span),
        miss_penalty=numbers(situation.reward.miss_penalty),
        network_delay_s=numbers(cluster.network_delay_s),
        rate_tau_s=numbers(situation.view.rate_tau_s),
        rate_lag=jnp.asarray(situation.view.rate_lag, jnp.int32),
        batch_refresh_s=numbers(situation.view.batch_refresh_s),
        workload=workload,
        priors=jax.tree.map(numbers, Priors.of(situation, longest_output)) if estimates else None,
        rule=None if rule is None else jax.tree.map(numbers, rule),
    )
    return shape, params


def build_alike(
    situations: Sequence[Situation],
    *,
    history: int,
    longest_prompt: int | None = None,
    record: bool = False,
    estimates: bool | None = None,
) -> tuple[EnvShape, list[EnvParams]]:
    """Returns one shape for situations that differ in numbers only, and the parameters of each situation.

    One compiled program can then simulate them together. A switch that any situation turns on is on for all of them;
    the others have numbers that make it a no-op. If one situation has slow-downs, all advance iteration by iteration.

    Args:
      situations: at least one.
      history: as `build`.
      longest_prompt: as `build`; by default the longest of all situations' tasks.
      record: as `build`.
      estimates: as `build`; by default where any of the situations needs them.

    Raises:
      InputError: if they differ in the number of models, tasks or replicas, or in what an instance holds.
    """
    if longest_prompt is None:
        longest_prompt = max(task.prompt_tokens[1] for situation in situations for task in situation.tasks)
    if estimates is None:
        estimates = any(needs_in_flight(situation.view.features) for situation in situations)
    longest_output = max(task.output_tokens[1] for situation in situations for task in situation.tasks)
    built = [
        build(
            situation,
            None,
            history=history,
            longest_prompt=longest_prompt,
            record=record,
            estimates=estimates,
            longest_output=longest_output,
        )
        for situation in situations
    ]
    shapes = [shape for shape, _ in built]
    switches = ("slowdown", "context_cost", "cache_limit", "rate_memory", "stale_sizes")
    widest: dict[str, Any] = {name: max(getattr(shape, name) for shape in shapes) for name in switches}
    if estimates:
        widest["estimates"] = Terms.together(situations)
    alike = {dataclasses.replace(shape, **widest) for shape in shapes}
    if len(alike) > 1:
        raise InputError(
            "The situations to be played side by side differ in the number of models, tasks or replicas, `max_batch` "
            "or `queue_capacity`; give situations that differ in numbers only."
        )
    return alike.pop(), [params for _, params in built]


def make_env(
    situation: Situation,
    workload: Any,
    *,
    history: int = 1024,
    horizon: int = 0,
    estimates: bool | None = None,
    rule: Rule | None = None,
) -> tuple[ServingEnvironment, EnvParams]:
    """Returns the compiled environment of a situation, and its parameters.

    Args:
      situation: the models, tasks and cluster.
      workload: the source of arrivals, a `besteffort.workload.types.Workload`.
      history: decisions whose outcome the state keeps; more than the requests in flight at any time.
      horizon: decisions per episode, after which it truncates; 0 means that episodes do not end.
      estimates: show routers the requests in flight; by default where a feature in `view.features` needs them.
      rule: values models, for the feature `value`.

    Returns:
      The environment, whose `reset` and `step` take the state of a single environment and support `vmap`, and
      parameters in the default float type, any of which may be vmapped over.
    """
    shape, params = build(situation, workload, history=history, horizon=horizon, estimates=estimates, rule=rule)
    return ServingEnvironment(shape), params
