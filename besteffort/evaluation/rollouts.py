"""Routers on lists of requests: all meet the same lists (common random numbers), in one compiled program or two.

Routers believe a situation. Lanes may be played in another one, whose tables, qualities, deadlines or view differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from besteffort.errors import InputError
from besteffort.evaluation.metrics import after_warm_up, mean_over
from besteffort.routers.believing import BelievingRouter
from besteffort.routers.panel import PanelRouter
from besteffort.simulator.build import build_alike
from besteffort.simulator.environment import Placement, ServingEnvironment
from besteffort.simulator.ledger import Timing
from besteffort.simulator.result import Result
from besteffort.simulator.types import EnvParams, EnvShape, Router
from besteffort.situation import Situation
from besteffort.workload.requests import Requests
from besteffort.workload.sample import draw
from besteffort.workload.types import Arrival

_LANES = 128  # what they hold fits the cache of a core
_MANY = 1_000  # numbers of a router that lanes which do not follow it should not have to read
_FIELDS = ("task", "prompt_tokens", "output_tokens", "deadline_s")


class Lane(NamedTuple):
    """A list to play, and with which router.

    Attributes:
      kind: routers of the same kind differ in their numbers only.
      row: which list.
      router: the router.
      world: the situation in which it is played; None where it is as the routers believe.
    """

    kind: str
    row: int
    router: Router
    world: Situation | None = None


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
            deadline_factor=None if arrivals.deadline_factor is None else arrivals.deadline_factor[i, j],
        )
        for i, j in itertools.product(range(len(workloads)), range(len(seeds)))
    ]


def play_routers(
    situation: Situation,
    lists: Sequence[Requests],
    routers: Mapping[str, Sequence[Router]],
    *,
    worlds: Sequence[Situation] | None = None,
    seed: int = 0,
) -> dict[str, Result]:
    """Plays every list with every router, in float32 on many lanes at once.

    Args:
      situation: what is served, on what, as the routers believe.
      lists: lists of equal length.
      routers: per name one router for each list (repeat it to use the same for all). Routers of one name, and of
        different names alike, may differ in their numbers.
      worlds: the situation in which each list is really played; by default `situation`.
      seed: of the routers' random choices, which differ from list to list.

    Returns:
      Per name a result of shape (lists, n).

    Raises:
      InputError: if the lists differ in length, or the worlds in more than numbers.
    """
    true = [situation] * len(lists) if worlds is None else worlds
    lanes = [Lane(name, row, router, true[row]) for name, each in routers.items() for row, router in enumerate(each)]
    together = _in_order(_play(situation, lists, lanes, seed, record=True))
    shaped = jax.tree.map(lambda leaf: leaf.reshape(len(routers), len(lists), *leaf.shape[1:]), together)
    stacked = _stack(lists)
    return {
        name: _result(stacked, true, *jax.tree.map(lambda leaf, i=i: leaf[i], shaped)) for i, name in enumerate(routers)
    }


def play_lanes(
    situation: Situation, lists: Sequence[Requests], lanes: Sequence[Lane], *, seed: int = 0
) -> Iterator[tuple[Sequence[Lane], Result]]:
    """Plays lanes block by block, for callers that would not hold all of it; see `play_routers`.

    Yields:
      The lanes of a block, in order within their program, and what became of their requests, of shape (lanes, n).

    Raises:
      InputError: if the lists differ in length, or the worlds in more than numbers.
    """
    stacked = _stack(lists)
    for indices, played in _play(situation, lists, lanes, seed, record=True):
        block = [lanes[index] for index in indices]
        rows = [lane.row for lane in block]
        requests = {name: values[rows] for name, values in stacked.items()}
        yield block, _result(requests, [lane.world or situation for lane in block], *played)


def mean_rewards(
    situation: Situation, lists: Sequence[Requests], lanes: Sequence[Lane], *, warm_up_s: float = 0.0, seed: int = 0
) -> np.ndarray:
    """(lanes,) performance of each lane; see `play_routers`.

    Requests that arrive in the first `warm_up_s` seconds of a list do not count.

    Raises:
      InputError: if the lists differ in length, or the worlds in more than numbers.
    """
    rewards = _in_order(_play(situation, lists, lanes, seed, record=False)).reward
    counted = after_warm_up(_stack(lists)["arrival_s"], warm_up_s)
    return mean_over(rewards, counted[[lane.row for lane in lanes]])


def _play(
    situation: Situation, lists: Sequence[Requests], lanes: Sequence[Lane], seed: int, *, record: bool
) -> Iterator[tuple[np.ndarray, Played]]:
    """What happens in the lanes, block by block, with the indices of each block's lanes."""
    for indices in _programs(lanes):
        blocks = _play_together(situation, lists, [lanes[index] for index in indices], seed, record=record)
        start = 0
        for played in blocks:
            size = len(played.reward)
            yield indices[start : start + size], played
            start += size


def _in_order(blocks: Iterable[tuple[np.ndarray, Played]]) -> Played:
    """What `_play` yields, in the order of the lanes."""
    indices, played = zip(*blocks, strict=True)
    order = np.argsort(np.concatenate(indices))
    return cast(Played, jax.tree.map(lambda *parts: np.concatenate(parts)[order], *played))


def _programs(lanes: Sequence[Lane]) -> list[np.ndarray]:
    """Indices of the lanes that one compiled program plays, for each program.

    Every lane reads the numbers of a router of each kind in its program. Kinds whose routers differ in many numbers, as
    networks do, are played apart from those that do not.
    """
    routers: dict[str, dict[int, Router]] = {}
    for lane in lanes:
        routers.setdefault(lane.kind, {})[id(lane.router)] = lane.router
    heavy = {
        kind
        for kind, each in routers.items()
        if len(each) > 1 and sum(map(np.size, jax.tree.leaves(next(iter(each.values()))))) > _MANY
    }
    apart = np.array([lane.kind in heavy for lane in lanes], bool)
    return [indices for indices in (np.flatnonzero(apart), np.flatnonzero(~apart)) if indices.size]


def _play_together(
    situation: Situation, lists: Sequence[Requests], lanes: Sequence[Lane], seed: int, *, record: bool
) -> Iterator[Played]:
    """What happens in lanes that share a program, block by block."""
    stacked = _stack(lists)
    n = stacked["arrival_s"].shape[1]
    worlds = [lane.world or situation for lane in lanes]
    distinct = list({id(world): world for world in worlds}.values())
    shape, (belief, *numbers) = build_alike(
        [situation, *distinct], history=n, longest_prompt=int(stacked["prompt_tokens"].max()), record=record
    )
    params_of = {id(world): params for world, params in zip(distinct, numbers, strict=True)}

    fields: dict[str, Any] = {field: stacked[field] for field in _FIELDS}
    fields["gap_s"] = np.diff(stacked["arrival_s"], axis=1, prepend=0.0).astype(np.float32)
    if any(requests.deadline_factor is not None for requests in lists):
        fields["deadline_factor"] = np.stack([requests.deadline_factors for requests in lists])
    arrivals = jax.tree.map(jnp.asarray, Arrival(**fields))
    # Every lane carries a router of each kind and follows its own.
    kinds = list(dict.fromkeys(lane.kind for lane in lanes))
    any_of = {lane.kind: lane.router for lane in lanes}
    members = [tuple(lane.router if kind == lane.kind else any_of[kind] for kind in kinds) for lane in lanes]
    chosen = np.array([kinds.index(lane.kind) for lane in lanes])
    flat = [jax.tree.flatten((params_of[id(world)], mine)) for world, mine in zip(worlds, members, strict=True)]
    structure: Any = flat[0][1]
    if any(other != structure for _, other in flat):
        raise InputError("Routers of one name differ in more than numbers; give each kind a name of its own.")
    columns = [_column(leaves) for leaves in zip(*(leaves for leaves, _ in flat), strict=True)]
    varies = tuple(vary for _, vary in columns)
    rows = np.array([lane.row for lane in lanes])

    row_keys = jax.random.split(jax.random.key(seed), len(lists))
    width = -(-len(lanes) // -(-len(lanes) // _LANES))
    for start in range(0, len(lanes), width):
        # The last block is filled up, so that one compiled program serves all.
        block = np.arange(start, start + width) % len(lanes)
        mine = [leaf[block] if vary else leaf for leaf, vary in columns]
        asked = jax.tree.map(lambda field, block=block: field[rows[block]], arrivals)
        played = jax.device_get(
            _play_lanes(shape, structure, varies, belief, mine, chosen[block], asked, row_keys[rows[block]])
        )
        left = min(width, len(lanes) - start)
        yield jax.tree.map(lambda leaf, left=left: leaf[:left], played)


def _column(leaves: Sequence[Any]) -> tuple[np.ndarray, bool]:
    """Numbers of all lanes, and True; or the number of the first, and False, if all have the same."""
    first = np.asarray(leaves[0])
    if all(leaf is leaves[0] or np.array_equal(leaf, first) for leaf in leaves):
        return first, False
    return np.stack([np.asarray(leaf) for leaf in leaves]), True


def _stack(lists: Sequence[Requests]) -> dict[str, np.ndarray]:
    """Fields of shape (lists, n)."""
    lengths = {len(requests) for requests in lists}
    if len(lengths) != 1:
        raise InputError(f"The lists have {sorted(lengths)} requests; give lists of one length, or cut them to one.")
    return {field: np.stack([getattr(requests, field) for requests in lists]) for field in ("arrival_s", *_FIELDS)}


def _float(leaf: Any) -> Any:
    return float if np.issubdtype(np.asarray(leaf).dtype, np.floating) else None


@partial(jax.jit, static_argnums=(0, 1, 2))
def _play_lanes(
    shape: EnvShape,
    structure: Any,
    varies: tuple[bool, ...],
    belief: EnvParams,
    numbers: Sequence[Array],
    chosen: Array,
    arrivals: Arrival,
    keys: Array,
) -> Played:
    """Plays a block of lanes.

    `numbers` are the leaves of their worlds and of the members of their panels, in the `structure` of one lane, with a
    leading axis where a leaf `varies`: what all lanes share, such as a network's weights, is kept once.
    """
    environment = ServingEnvironment(shape)
    by_time = jax.tree.map(lambda field: jnp.swapaxes(jnp.asarray(field), 0, 1), arrivals)
    axes = [0 if vary else None for vary in varies]

    def decide(state: Any, arrival: Arrival) -> tuple[Any, Placement]:
        def one(
            state: Any, arrival: Arrival, chosen: Array, key: Array, numbers: Sequence[Array]
        ) -> tuple[Any, Placement]:
            world, members = jax.tree.unflatten(structure, numbers)
            state, step = environment.arrive(state, arrival, world)
            router = BelievingRouter(PanelRouter(members, chosen), belief)
            model = router.route(step.observation, world, jax.random.fold_in(key, step.index))
            return environment.place(state, model, world)

        return jax.vmap(one, in_axes=(0, 0, 0, 0, axes))(state, arrival, chosen, keys, numbers)

    def drain(state: Any, numbers: Sequence[Array]) -> Any:
        world, _ = jax.tree.unflatten(structure, numbers)
        return environment.drain(state, world)

    state = jax.vmap(environment.start)(jax.tree.map(lambda field: field[0], by_time))
    state, placements = jax.lax.scan(decide, state, by_time)
    ledger = jax.vmap(drain, in_axes=(0, axes))(state, numbers).ledger
    return Played(jax.tree.map(lambda field: jnp.swapaxes(field, 0, 1), placements), ledger.timing, ledger.reward)


def _result(
    requests: Mapping[str, np.ndarray], worlds: Sequence[Situation], placement: Any, timing: Timing, reward: np.ndarray
) -> Result:
    arrival_s = requests["arrival_s"]
    rejected = placement.replica < 0
    delay_s = np.array([world.cluster.network_delay_s for world in worlds], np.float32)
    latency_s = np.where(rejected, np.inf, timing.service_s + delay_s[:, None])
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
