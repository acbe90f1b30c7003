"""Routers on lists of requests: all meet the same lists (common random numbers), in one compiled program."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from besteffort.errors import InputError
from besteffort.evaluation.metrics import after_warm_up, mean_over
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


class Lane(NamedTuple):
    """A list to play, and with which router.

    Attributes:
      kind: routers of the same kind differ in their numbers only.
      row: which list.
      router: the router.
    """

    kind: str
    row: int
    router: Router


class Played(NamedTuple):
    """What happened to the requests; fields of shape (lanes, n).

    Attributes:
      placement: a `besteffort.simulator.environment.Placement`.
      timing: a `besteffort.simulator.ledger.Timing`; None unless recorded.
      reward: of each request.
    """

    placement: Any
    timing: Any
    reward: Any


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
      seed: of the routers' random choices, which differ from list to list.

    Returns:
      Per name a result of shape (lists, n).

    Raises:
      InputError: if the lists differ in length.
    """
    lanes = [Lane(name, row, router) for name, each in routers.items() for row, router in enumerate(each)]
    played = list(_play(situation, lists, lanes, seed, record=True))
    together: Played = jax.tree.map(lambda *parts: np.concatenate(parts), *played)
    shaped = jax.tree.map(lambda leaf: leaf.reshape(len(routers), len(lists), *leaf.shape[1:]), together)
    stacked = _stack(lists)
    return {
        name: _result(stacked, situation, *jax.tree.map(lambda leaf, i=i: leaf[i], shaped))
        for i, name in enumerate(routers)
    }


def mean_rewards(
    situation: Situation, lists: Sequence[Requests], lanes: Sequence[Lane], *, warm_up_s: float = 0.0, seed: int = 0
) -> np.ndarray:
    """(lanes,) performance of each lane, all played in one compiled program; see `play_routers`.

    Requests that arrive in the first `warm_up_s` seconds of a list do not count.

    Raises:
      InputError: if the lists differ in length.
    """
    rewards = np.concatenate([played.reward for played in _play(situation, lists, lanes, seed, record=False)])
    counted = after_warm_up(_stack(lists)["arrival_s"], warm_up_s)
    return mean_over(rewards, counted[[lane.row for lane in lanes]])


def _play(
    situation: Situation, lists: Sequence[Requests], lanes: Sequence[Lane], seed: int, *, record: bool
) -> Iterator[Played]:
    """What happens in the lanes, block by block."""
    stacked = _stack(lists)
    n = stacked["arrival_s"].shape[1]
    longest = int(stacked["prompt_tokens"].max())
    shape, params = build(situation, None, history=n, longest_prompt=longest, record=record)
    gaps = np.diff(stacked["arrival_s"], axis=1, prepend=0.0)
    arrivals: Any = Arrival(*map(jnp.asarray, (gaps.astype(np.float32), *(stacked[field] for field in _FIELDS))))
    # Every lane carries a router of each kind and follows its own.
    kinds = list(dict.fromkeys(lane.kind for lane in lanes))
    any_of = {lane.kind: lane.router for lane in lanes}
    of_lanes = [tuple(lane.router if kind == lane.kind else any_of[kind] for kind in kinds) for lane in lanes]
    members = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *of_lanes)
    chosen = np.array([kinds.index(lane.kind) for lane in lanes])
    rows = np.array([lane.row for lane in lanes])

    row_keys = jax.random.split(jax.random.key(seed), len(lists))
    width = min(_LANES, len(lanes))
    for start in range(0, len(lanes), width):
        # The last block is filled up, so that one compiled program serves all.
        block = np.arange(start, start + width) % len(lanes)
        panel = PanelRouter(jax.tree.map(lambda leaf, block=block: leaf[block], members), chosen[block])
        mine = jax.tree.map(lambda field, block=block: field[rows[block]], arrivals)
        played = jax.device_get(_play_lanes(shape, params, panel, mine, row_keys[rows[block]]))
        left = min(width, len(lanes) - start)
        yield jax.tree.map(lambda leaf, left=left: leaf[:left], played)


def _stack(lists: Sequence[Requests]) -> dict[str, np.ndarray]:
    """Fields of shape (lists, n)."""
    lengths = {len(requests) for requests in lists}
    if len(lengths) != 1:
        raise InputError(f"The lists have {sorted(lengths)} requests; give lists of one length, or cut them to one.")
    return {field: np.stack([getattr(requests, field) for requests in lists]) for field in ("arrival_s", *_FIELDS)}


def _float(leaf: Any) -> Any:
    return float if np.issubdtype(np.asarray(leaf).dtype, np.floating) else None


@partial(jax.jit, static_argnums=0)
def _play_lanes(shape: EnvShape, params: EnvParams, routers: PanelRouter, arrivals: Arrival, keys: Array) -> Played:
    environment = ServingEnvironment(shape)
    by_time = jax.tree.map(lambda field: jnp.swapaxes(jnp.asarray(field), 0, 1), arrivals)

    def decide(state: Any, arrival: Arrival) -> tuple[Any, Placement]:
        def one(state: Any, arrival: Arrival, router: Router, key: Array) -> tuple[Any, Placement]:
            state, step = environment.arrive(state, arrival, params)
            model = router.route(step.observation, params, jax.random.fold_in(key, step.index))
            return environment.place(state, model, params)

        return jax.vmap(one)(state, arrival, routers, keys)

    state = jax.vmap(environment.start)(jax.tree.map(lambda field: field[0], by_time))
    state, placements = jax.lax.scan(decide, state, by_time)
    ledger = jax.vmap(environment.drain, in_axes=(0, None))(state, params).ledger
    return Played(jax.tree.map(lambda field: jnp.swapaxes(field, 0, 1), placements), ledger.timing, ledger.reward)


def _result(
    requests: Mapping[str, np.ndarray], situation: Situation, placement: Any, timing: Timing, reward: np.ndarray
) -> Result:
    arrival_s = requests["arrival_s"]
    rejected = placement.replica < 0
    latency_s = np.where(rejected, np.inf, timing.service_s + np.float32(situation.cluster.network_delay_s))
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
