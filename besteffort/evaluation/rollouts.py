"""Routers on lists of requests: all meet the same lists (common random numbers), in one compiled program."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from besteffort.errors import InputError
from besteffort.routers.panel import PanelRouter
from besteffort.simulator.build import build
from besteffort.simulator.environment import Placement, ServingEnvironment
from besteffort.simulator.ledger import Timing
from besteffort.simulator.result import Result
from besteffort.simulator.types import Arrival, EnvParams, EnvShape, Router
from besteffort.situation import Situation
from besteffort.workload.requests import Requests
from besteffort.workload.sample import draw

_LANES = 512
_FIELDS = ("task", "prompt_tokens", "output_tokens", "deadline_s")


def sample_lists(workloads: Sequence[Any], task_names: tuple[str, ...], n: int, seeds: Sequence[int]) -> list[Requests]:
    """The first `n` requests of each workload for each seed, workload by workload.

    Args:
      workloads: of the same kind and static fields, so that their numbers stack.
      task_names: names of the tasks.
      n: requests per list.
      seeds: each workload is drawn with each; lists of different workloads with the same seed share their draws.
    """
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf, _float(leaf)) for leaf in leaves]), *workloads)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    of_seeds = jax.vmap(partial(draw, n=n), in_axes=(None, 0))
    arrivals = jax.device_get(jax.vmap(of_seeds, in_axes=(0, None))(stacked, keys))
    return [
        Requests(
            tasks=task_names,
            arrival_s=np.cumsum(arrivals.gap_s[i, j], dtype=np.float64),
            **{field: getattr(arrivals, field)[i, j] for field in _FIELDS},
        )
        for i, j in itertools.product(range(len(workloads)), range(len(seeds)))
    ]


def play_routers(
    situation: Situation, lists: Sequence[Requests], routers: Mapping[str, Sequence[Router]], *, seed: int = 0
) -> dict[str, Result]:
    """Plays every list with every router, in float32 on many lanes at once.

    Args:
      situation: what is served, on what.
      lists: lists of equal length.
      routers: per name one router for each list (repeat it to use the same for all). Routers of one name, and of
        different names alike, may differ in their numbers.
      seed: of the routers' random choices.

    Returns:
      Per name a result of shape (lists, n).

    Raises:
      InputError: if the lists differ in length.
    """
    lengths = {len(requests) for requests in lists}
    if len(lengths) != 1:
        raise InputError(f"The lists have {sorted(lengths)} requests; give lists of one length, or cut them to one.")
    n = lengths.pop()
    longest = max(int(requests.prompt_tokens.max()) for requests in lists)
    shape, params = build(situation, None, history=n, longest_prompt=longest, record=True)
    stacked = {field: np.stack([getattr(requests, field) for requests in lists]) for field in ("arrival_s", *_FIELDS)}
    gaps = np.diff(stacked["arrival_s"], axis=1, prepend=0.0)
    arrivals: Any = Arrival(*map(jnp.asarray, (gaps.astype(np.float32), *(stacked[field] for field in _FIELDS))))
    names = tuple(routers)
    per_list = [_panel([routers[name][i] for name in names]) for i in range(len(lists))]
    members = jax.tree.map(lambda *leaves: np.stack(leaves), *per_list)

    key = jax.random.key(seed)
    lanes = list(itertools.product(range(len(names)), range(len(lists))))
    width = min(_LANES, len(lanes))
    parts = []
    for start in range(0, len(lanes), width):
        # The last block is filled up, so that one compiled program serves all.
        block = np.array([lanes[lane % len(lanes)] for lane in range(start, start + width)])
        which, row = block[:, 0], block[:, 1]
        panel = PanelRouter(jax.tree.map(lambda leaf, row=row: leaf[row], members), which)
        mine = jax.tree.map(lambda field, row=row: field[row], arrivals)
        parts.append(jax.device_get(_play_lanes(shape, params, panel, mine, key)))
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(lanes)], *parts)
    shaped = jax.tree.map(lambda leaf: leaf.reshape(len(names), len(lists), n), together)
    return {
        name: _result(stacked, params, *jax.tree.map(lambda leaf, i=i: leaf[i], shaped)) for i, name in enumerate(names)
    }


def _float(leaf: Any) -> Any:
    return float if np.issubdtype(np.asarray(leaf).dtype, np.floating) else None


def _panel(members: Sequence[Router]) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf), tuple(members))


@partial(jax.jit, static_argnums=0)
def _play_lanes(
    shape: EnvShape, params: EnvParams, routers: PanelRouter, arrivals: Arrival, key: Array
) -> tuple[Placement, Any, Array]:
    environment = ServingEnvironment(shape)
    by_time = jax.tree.map(lambda field: jnp.swapaxes(jnp.asarray(field), 0, 1), arrivals)

    def decide(state: Any, arrival: Arrival) -> tuple[Any, Placement]:
        def one(state: Any, arrival: Arrival, router: Router) -> tuple[Any, Placement]:
            state, step = environment.arrive(state, arrival, params)
            model = router.route(step.observation, params, jax.random.fold_in(key, step.index))
            return environment.place(state, model, params)

        return jax.vmap(one)(state, arrival, routers)

    state = jax.vmap(environment.start)(jax.tree.map(lambda field: field[0], by_time))
    state, placements = jax.lax.scan(decide, state, by_time)
    ledger = jax.vmap(environment.drain, in_axes=(0, None))(state, params).ledger
    return jax.tree.map(lambda field: jnp.swapaxes(field, 0, 1), placements), ledger.timing, ledger.reward


def _result(
    requests: Mapping[str, np.ndarray], params: EnvParams, placement: Any, timing: Timing, reward: np.ndarray
) -> Result:
    arrival_s = requests["arrival_s"]
    rejected = placement.replica < 0
    latency_s = np.where(rejected, np.inf, timing.service_s + np.float32(params.network_delay_s))
    return Result(
        **requests,
        model=placement.model,
        replica=placement.replica,
        admission_s=arrival_s + timing.wait_s,
        first_token_s=arrival_s + timing.first_token_s,
        completion_s=arrival_s + timing.service_s,
        latency_s=latency_s,
        met=latency_s <= requests["deadline_s"].astype(np.float32),
        reward=reward,
    )
