"""Simulates an explicit list of requests, with the compiled simulator or the reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from besteffort.errors import InputError
from besteffort.estimates.params import ServingParams
from besteffort.estimates.tables import Tables
from besteffort.estimates.view import Terms
from besteffort.observation import Observation
from besteffort.pytrees import node_types
from besteffort.simulator import reference
from besteffort.simulator.build import build
from besteffort.simulator.environment import Placement, ServingEnvironment
from besteffort.simulator.result import Result
from besteffort.simulator.types import EnvParams, EnvShape, Router, reads_in_flight
from besteffort.situation import Deadline, Situation, Task
from besteffort.workload.requests import Requests, check_parties, weight_of_each
from besteffort.workload.types import Arrival

Array = jax.Array


def simulate(
    requests: Requests,
    situation: Situation,
    router: Router,
    *,
    assumed: Situation | None = None,
    seed: int = 0,
    backend: Literal["jax", "reference"] = "jax",
) -> Result:
    """Simulates a list of requests in float64.

    Args:
      requests: the list.
      situation: the cluster, latencies and qualities of the models, the reward, the router's view, and what the router
        may know of the tasks; for a list without a situation, `tasks_of` returns the tasks.
      router: chooses the pool of each request.
      assumed: what the router takes for granted, if it is not `situation`: tables, qualities, lengths, deadlines.
      seed: seed of the router's random choices.
      backend: the compiled simulator, or the reference in plain Python (slow; the authority). Both return the same.

    Returns:
      Arrays of shape (n,).

    Raises:
      InputError: if the tasks of the situation are not the list's, the backend is unknown, or the assumed situation
        differs in more than numbers.
    """
    if situation.task_names != requests.tasks:
        raise InputError(
            f"The list's tasks are {', '.join(requests.tasks)}, the situation's {', '.join(situation.task_names)}; "
            "give the same names in the same order."
        )
    check_parties(requests, situation)
    if backend not in ("jax", "reference"):
        raise InputError(f"Unknown backend `{backend}`; choose `jax` or `reference`.")
    with jax.enable_x64(True):
        longest = int(requests.prompt_tokens.max())
        estimates = reads_in_flight(router) or None  # where the router does not ask, the view decides
        shape, params = build(
            situation,
            None,
            history=len(requests),
            longest_prompt=longest,
            record=True,
            estimates=estimates,
            assumed=assumed,
        )
        router = jax.tree.map(_widened, router)
        key = jax.random.key(seed)
        if backend == "jax":
            return simulate_arrays(requests, shape, params, router, key)

    kinds = node_types(router)

    def route(index: int, observation: Observation) -> int:
        with jax.enable_x64(True):
            return int(_route(kinds, router, observation, params, key, index))

    return simulate_by_reference(requests, situation, route, terms=shape.estimates, assumed=assumed)


def simulate_by_reference(
    requests: Requests,
    situation: Situation,
    route: Callable[[int, Observation], int],
    tables: Tables | None = None,
    *,
    terms: Terms | None = None,
    listener: reference.Listener | None = None,
    assumed: Situation | None = None,
) -> Result:
    """Runs the reference in a situation, see `reference.simulate_reference`; several lists may share `tables`."""
    longest = int(requests.prompt_tokens.max())
    if tables is None:
        tables = Tables.of(situation.fleet, longest)
    believed = situation if assumed is None else assumed
    by_tables = None
    if situation.view.slowdown_tau_s and terms is not None:
        by_tables = ServingParams.of(believed, longest)
    return reference.simulate_reference(
        requests,
        tables,
        situation.fleet.served,
        route,
        quality=situation.quality,
        weight=situation.weights,
        visible_deadline_s=situation.visible_deadlines,
        by_tables=by_tables,
        reward=situation.reward,
        view=situation.view,
        terms=terms,
        listener=listener,
        tenant_weight=weight_of_each(requests, situation),
    )


def simulate_arrays(requests: Requests, shape: EnvShape, params: EnvParams, router: Router, key: Array) -> Result:
    """Runs the compiled simulator on a list, in the float type of `params`; see `simulate`.

    `shape` must record times, and its history must cover the whole list.
    """
    gaps = np.diff(requests.arrival_s, prepend=0.0)
    factor = requests.deadline_factor
    arrivals = Arrival(
        gap_s=jnp.asarray(gaps, params.decode.dtype),
        task=jnp.asarray(requests.task),
        prompt_tokens=jnp.asarray(requests.prompt_tokens),
        output_tokens=jnp.asarray(requests.output_tokens),
        deadline_s=jnp.asarray(requests.deadline_s, params.decode.dtype),
        deadline_factor=None if factor is None else jnp.asarray(factor, params.decode.dtype),
        output_limit=None if requests.output_limit is None else jnp.asarray(requests.output_limit),
        origin=None if requests.origin is None else jnp.asarray(requests.origin),
        cached_tokens=None if requests.cached_tokens is None else jnp.asarray(requests.cached_tokens),
        tenant=None if requests.tenant is None or params.tenant_weight is None else jnp.asarray(requests.tenant),
    )
    played = _play(shape, node_types(router), params, router, arrivals, key)
    placement, timing, reward = jax.tree.map(np.asarray, played)
    delay_s = np.asarray(params.network_delay_s)
    of_pool_s = delay_s[placement.pool] if shape.uneven else delay_s
    if requests.origin is not None:
        of_pool_s = np.asarray(params.origin_delay_s)[requests.origin, placement.pool]
    if requests.tenant is not None and params.tenant_weight is not None:
        reward = reward / np.asarray(params.tenant_weight)[requests.tenant]
    return Result.of(
        requests.columns,
        model=placement.pool,
        replica=placement.replica,
        admission_s=requests.arrival_s + timing.wait_s,
        first_token_s=requests.arrival_s + timing.first_token_s,
        completion_s=requests.arrival_s + timing.service_s,
        latency_s=timing.service_s + np.asarray(of_pool_s, np.float64),
        reward=reward,
    )


@partial(jax.jit, static_argnums=(0, 1))
def _play(
    shape: EnvShape, kinds: tuple[Any, ...], params: EnvParams, router: Router, arrivals: Arrival, key: Array
) -> tuple[Placement, Any, Array]:
    environment = ServingEnvironment(shape)

    def decide(state: Any, arrival: Arrival) -> tuple[Any, Placement]:
        state, step = environment.arrive(state, arrival, params)
        pool = _route(kinds, router, step.observation, params, key, step.index)
        return environment.place(state, pool, params)

    state = environment.start(jax.tree.map(lambda x: x[0], arrivals))
    state, placements = jax.lax.scan(decide, state, arrivals)
    ledger = environment.drain(state, params).ledger
    return placements, ledger.timing, ledger.reward


@partial(jax.jit, static_argnums=0)
def _route(
    kinds: tuple[Any, ...], router: Router, observation: Observation, params: EnvParams, key: Array, index: Array
) -> Array:
    return router.route(observation, params.believed, jax.random.fold_in(key, index))


def _widened(leaf: Any) -> Any:
    """A router's numbers in float64, so that both backends make the same decisions."""
    leaf = np.asarray(leaf)
    return jnp.asarray(leaf.astype(np.float64) if np.issubdtype(leaf.dtype, np.floating) else leaf)


def tasks_of(requests: Requests) -> tuple[Task, ...]:
    """Infers tasks from a list of requests: shares, ranges of lengths, and a deadline fitted to the lengths."""
    tasks = []
    unchanged_s = requests.deadline_s / requests.deadline_factors
    for k, name in enumerate(requests.tasks):
        mine = requests.task == k
        if not mine.any():
            tasks.append(Task(name, share=0.0))
            continue
        prompts, outputs, deadlines = (x[mine] for x in (requests.prompt_tokens, requests.output_tokens, unchanged_s))
        slope, base = np.polyfit(outputs, deadlines, 1) if np.ptp(outputs) > 0 else (0.0, deadlines.mean())
        if base <= 0 or slope < 0:
            slope, base = 0.0, deadlines.mean()
        task = Task(
            name,
            share=float(mine.mean()),
            prompt_tokens=(int(prompts.min()), int(prompts.max())),
            output_tokens=(int(outputs.min()), int(outputs.max())),
            deadline=Deadline(float(base), float(slope)),
        )
        tasks.append(task)
    return tuple(tasks)
