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
from besteffort.pools import Fleet, Life, PoolNumbers
from besteffort.pytrees import node_types
from besteffort.simulator.environment import ServingEnvironment
from besteffort.simulator.types import EnvParams, EnvShape
from besteffort.situation import Situation

_NOT_LATE = (
    "`view.gateways` and `view.gateway_delay_s` are simulated only where models do not slow each other down and "
    "prompts are read whole; set `view.gateways` to 1, or take a profile without `slowdown` and `chunk_tokens`."
)
_NO_EVENTS = {
    "slowdown": "models do not slow each other down; give the pools GPUs of their own",
    "chunks": "prompts are read whole; take a profile without `chunk_tokens`",
    "late_others": "there is one gateway; set `view.gateways` to 1",
    "compare_times": "times are not compared with the tables; set `view.slowdown_tau_s` to 0",
}


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
    assumed: Situation | None = None,
    uneven: bool | None = None,
    life: tuple[int, int, int] | None = None,
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
      assumed: what routers and learners take for granted, if it is not `situation`: see `EnvParams.assumed`.
      uneven: whether pools may differ in what the program reads as numbers; by default where they are not uniform.
      life: room for what `Fleet.life_size` says; by default of the situation's own.

    Returns:
      The static shape, and parameters in the default float type.

    Raises:
      InputError: if the assumed situation differs from the actual one in more than numbers, other gateways are seen
        late where models slow each other down or prompts are read in chunks, or replicas have events where any of
        this is so.
    """
    if assumed is not None:
        shape, (params, believed) = build_alike(
            [situation, assumed],
            history=history,
            longest_prompt=longest_prompt,
            record=record,
            estimates=estimates,
            longest_output=longest_output,
            rule=rule,
        )
        shape = dataclasses.replace(shape, horizon=horizon, workload=node_types(workload))
        return shape, dataclasses.replace(params, workload=workload, assumed=believed)
    fleet, tasks = situation.fleet, situation.tasks
    uneven = not fleet.uniform if uneven is None else uneven
    life = fleet.life_size if life is None else life
    if estimates is None:
        estimates = needs_in_flight(situation.view.features)
    if longest_prompt is None:
        longest_prompt = max(task.prompt_tokens[1] for task in tasks)
    tables = Tables.of(fleet, longest_prompt)
    shape = EnvShape(
        replicas=len(fleet.layout.placed),
        pools=len(fleet.pools),
        tasks=len(tasks),
        max_batch=int(fleet.max_batch.max()),
        queue_capacity=int(fleet.places.max() - fleet.max_batch.max()),
        history=history,
        horizon=horizon,
        uneven=uneven,
        life=any(life),
        looks=life[1],
        slowdown=bool((tables.slowdown != 1).any()),
        context_cost=bool((tables.context_cost_s != 0).any()),
        cache_limit=bool(np.isfinite(tables.cache_tokens).any()),
        chunks=tables.chunk_tokens is not None,
        rate_memory=situation.view.rate_lag,
        stale_sizes=situation.view.batch_refresh_s > 0,
        record=record,
        estimates=Terms.of(situation) if estimates else None,
        late_others=situation.view.others_are_late,
        compare_times=bool(estimates) and situation.view.slowdown_tau_s > 0,
        workload=node_types(workload),
    )

    _check(shape)

    def numbers(values: Any) -> Any:
        return jnp.asarray(np.asarray(values, np.float64), dtype=float)

    params = EnvParams(
        decode=numbers(tables.decode),
        prefill=numbers(tables.prefill),
        slowdown=numbers(tables.slowdown),
        context_cost_s=numbers(tables.context_cost_s),
        cache_tokens=numbers(tables.cache_tokens),
        cache_output_share=numbers(tables.cache_output_share),
        quality=numbers(situation.quality),
        weight=numbers(situation.weights),
        mean_prompt_tokens=numbers(situation.mean_prompt_tokens),
        mean_output_tokens=numbers(situation.mean_output_tokens),
        deadline_base_s=numbers([task.deadline.base_s for task in tasks]),
        deadline_per_token_s=numbers([task.deadline.per_token_s for task in tasks]),
        soft_span=numbers(situation.reward.soft_span),
        miss_penalty=numbers(situation.reward.miss_penalty),
        network_delay_s=numbers(fleet.network_delay_s if uneven else fleet.network_delay_s[0]),
        rate_tau_s=numbers(situation.view.rate_tau_s),
        rate_lag=jnp.asarray(situation.view.rate_lag, jnp.int32),
        batch_refresh_s=numbers(situation.view.batch_refresh_s),
        workload=workload,
        priors=jax.tree.map(numbers, Priors.of(situation, longest_output, uniform=not uneven)) if estimates else None,
        rule=None if rule is None else jax.tree.map(numbers, rule),
        pools=_differences(fleet) if uneven else None,
        origin_delay_s=None if situation.origin_delay_s is None else numbers(situation.origin_delay_s),
        life=_life(fleet, life) if any(life) else None,
        tenant_weight=None if situation.tenant_weights is None else numbers(situation.tenant_weights),
    )
    return shape, _with_switches(params, shape, situation)


def _check(shape: EnvShape) -> None:
    """Raises `InputError` if a shape has switches that exclude each other."""
    if shape.stepwise and shape.late_others:
        raise InputError(_NOT_LATE)
    for name, reason in _NO_EVENTS.items():
        if shape.life and getattr(shape, name):
            raise InputError(
                f"`events` and `autoscaler` of pools are simulated only where {reason}, or leave `events` and "
                "`autoscaler` out."
            )


def _life(fleet: Fleet, size: tuple[int, int, int]) -> Life:
    """What happens to the replicas, as arrays with room for that much."""
    life, kind = fleet.life(size), jnp.asarray(0.0, float).dtype

    def number(values: Any) -> Any:
        return jnp.asarray(values, kind if np.issubdtype(values.dtype, np.floating) else jnp.int32)

    time_s = np.asarray(life.time_s, kind)
    lacking_s = np.subtract(life.time_s, time_s, out=np.zeros(len(time_s)), where=np.isfinite(time_s))
    return Life(
        time_s=jnp.asarray(time_s),
        instance=jnp.asarray(life.instance, jnp.int32),
        what=jnp.asarray(life.what, jnp.int32),
        up_first=jnp.asarray(life.up_first),
        start_s=jnp.asarray(life.start_s, kind),
        rounded_s=jnp.asarray(lacking_s, kind),
        scaling=jax.tree.map(number, life.scaling),
    )


def _differences(fleet: Fleet) -> PoolNumbers:
    """How the pools differ, as arrays."""
    apart = fleet.numbers
    return PoolNumbers(
        max_batch=jnp.asarray(apart.max_batch, jnp.int32),
        places=jnp.asarray(apart.places, jnp.int32),
        placed=jnp.asarray(apart.placed),
        size=jnp.asarray(apart.size, jnp.int32),
    )


def _with_switches(params: EnvParams, shape: EnvShape, situation: Situation) -> EnvParams:
    """The parameters with the numbers of what is on in the program, be it off in the situation."""
    view = situation.view
    if shape.chunks:
        params = dataclasses.replace(params, chunk_tokens=jnp.asarray(situation.fleet.chunk_tokens, float))
    if shape.compare_times:
        # Over infinitely long, nothing is observed.
        params = dataclasses.replace(params, slowdown_tau_s=jnp.asarray(view.slowdown_tau_s or np.inf, float))
    if shape.late_others:
        params = dataclasses.replace(
            params,
            gateways=jnp.asarray(view.gateways, jnp.int32),
            gateway_delay_s=jnp.asarray(view.gateway_delay_s, float),
        )
    return params


def build_alike(
    situations: Sequence[Situation],
    *,
    history: int,
    longest_prompt: int | None = None,
    record: bool = False,
    estimates: bool | None = None,
    longest_output: int | None = None,
    rule: Rule | None = None,
) -> tuple[EnvShape, list[EnvParams]]:
    """Returns one shape for situations that differ in numbers only, and the parameters of each situation.

    One compiled program can then simulate them together. A switch that any situation turns on is on for all of them;
    the others have numbers that make it a no-op. If one situation has slow-downs or chunks, all advance iteration by
    iteration.

    Args:
      situations: at least one.
      history: as `build`.
      longest_prompt: as `build`; by default the longest of all situations' tasks.
      record: as `build`.
      estimates: as `build`; by default where any of the situations needs them.
      longest_output: as `build`; by default the longest of all situations' tasks.
      rule: as `build`.

    Raises:
      InputError: if they differ in the number of pools, tasks or replicas, or in what an instance holds, or other
        gateways are seen late in one of them while models slow each other down, or prompts are read in chunks, in one.
    """
    if longest_prompt is None:
        longest_prompt = max(task.prompt_tokens[1] for situation in situations for task in situation.tasks)
    if estimates is None:
        estimates = any(needs_in_flight(situation.view.features) for situation in situations)
    longest = max(task.output_tokens[1] for situation in situations for task in situation.tasks)
    uneven = not all(situation.fleet.uniform for situation in situations)
    sizes = zip(*(situation.fleet.life_size for situation in situations), strict=True)
    events, looks, steps = map(max, sizes)
    built = [
        build(
            situation,
            None,
            history=history,
            longest_prompt=longest_prompt,
            record=record,
            estimates=estimates,
            longest_output=longest_output or longest,
            rule=rule,
            uneven=uneven,
            life=(events, looks, steps),
        )
        for situation in situations
    ]
    shapes = [shape for shape, _ in built]
    switches = (
        *("slowdown", "context_cost", "cache_limit", "chunks"),
        *("rate_memory", "stale_sizes", "compare_times", "late_others"),
    )
    widest: dict[str, Any] = {name: max(getattr(shape, name) for shape in shapes) for name in switches}
    if estimates:
        widest["estimates"] = Terms.together(situations)
    alike = {dataclasses.replace(shape, **widest) for shape in shapes}
    if len(alike) > 1:
        raise InputError(
            "The situations to be played side by side differ in the number of models, pools, tasks or replicas, "
            "`max_batch` or `queue_capacity`; give situations that differ in numbers only."
        )
    shape = alike.pop()
    _check(shape)
    each = [_with_switches(params, shape, situation) for situation, (_, params) in zip(situations, built, strict=True)]
    return shape, _weighed_alike(situations, each)


def _weighed_alike(situations: Sequence[Situation], each: list[EnvParams]) -> list[EnvParams]:
    """Parameters that all have weights of tenants, if any have: where all count the same, these are ones."""
    if all(params.tenant_weight is None for params in each):
        return each
    if len({situation.tenant_names for situation in situations}) > 1:
        raise InputError("The situations to be played side by side differ in their `tenants`; give the same names.")
    ones = jnp.ones(len(situations[0].tenants))
    return [
        params if params.tenant_weight is not None else dataclasses.replace(params, tenant_weight=ones)
        for params in each
    ]


def make_env(
    situation: Situation,
    workload: Any,
    *,
    history: int = 1024,
    horizon: int = 0,
    estimates: bool | None = None,
    rule: Rule | None = None,
    assumed: Situation | None = None,
) -> tuple[ServingEnvironment, EnvParams]:
    """Returns the compiled environment of a situation, and its parameters.

    Args:
      situation: the models, tasks and cluster.
      workload: the source of arrivals, a `besteffort.workload.types.Workload`.
      history: decisions whose outcome the state keeps; more than the requests in flight at any time.
      horizon: decisions per episode, after which it truncates; 0 means that episodes do not end.
      estimates: show routers the requests in flight; by default where a feature in `view.features` needs them.
      rule: values models, for the feature `value`.
      assumed: what routers and learners take for granted, if it is not `situation`: wrong tables, for instance.

    Returns:
      The environment, whose `reset` and `step` take the state of a single environment and support `vmap`, and
      parameters in the default float type, any of which may be vmapped over.
    """
    shape, params = build(
        situation, workload, history=history, horizon=horizon, estimates=estimates, rule=rule, assumed=assumed
    )
    return ServingEnvironment(shape), params
