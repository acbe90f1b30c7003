"""Routers on lists of requests: all meet the same lists (common random numbers), in as few programs as pay off.

Routers assume a situation. The actual one of a rollout may have other tables, qualities, deadlines or views.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from besteffort import interrupts
from besteffort.device import cores
from besteffort.errors import InputError
from besteffort.evaluation.metrics import after_warm_up, mean_over
from besteffort.pytrees import node_types
from besteffort.routers.switch import SwitchRouter
from besteffort.simulator.build import build_alike
from besteffort.simulator.environment import Placement, ServingEnvironment
from besteffort.simulator.ledger import Timing
from besteffort.simulator.result import Result
from besteffort.simulator.types import EnvShape, Router, reads_in_flight
from besteffort.situation import Situation
from besteffort.workload.requests import PARTIES, Requests, check_parties
from besteffort.workload.sample import sample_lists
from besteffort.workload.synthetic_workload import spreads_rates, strata
from besteffort.workload.types import Arrival

T = TypeVar("T")

_LANES = {"cpu": 16}  # that play together: on processors few, so that there is work for every core
_MOST_LANES = 128  # on other devices
_MANY = 1_000  # numbers of a router that rollouts which do not follow it should not have to read
_FIELDS = ("task", "prompt_tokens", "output_tokens", "deadline_s")


class Rollout(NamedTuple):
    """A list to play, and with which router.

    Attributes:
      kind: routers of the same kind differ in their numbers only.
      row: which list.
      router: the router.
      actual: the situation in which it is played; None where it is the one that all have in common.
      assumed: the situation that the router takes for granted; None likewise.
    """

    kind: str
    row: int
    router: Router
    actual: Situation | None = None
    assumed: Situation | None = None


class Played(NamedTuple):
    """What happened to the requests; fields of shape (rollouts, n).

    Attributes:
      placement: a `besteffort.simulator.environment.Placement`.
      timing: a `besteffort.simulator.ledger.Timing`; None unless recorded.
      reward: of each request.
    """

    placement: Any
    timing: Any
    reward: Any


def sample_evenly(workload: Any, task_names: tuple[str, ...], n: int, seeds: Sequence[int]) -> list[Requests]:
    """The first `n` requests of a workload for each seed; of one whose rates are spread, each from a part of its own.

    A list has few rates. Drawn from part after part of their range, a handful of lists covers all of it.
    """
    if not spreads_rates(workload):
        return sample_lists([workload], task_names, n, seeds)
    return sample_lists(strata(workload, len(seeds)), task_names, n, seeds[:1])


def play_routers(
    situation: Situation,
    lists: Sequence[Requests],
    routers: Mapping[str, Sequence[Router]],
    *,
    actual_situations: Sequence[Situation] | None = None,
    seed: int = 0,
) -> dict[str, Result]:
    """Plays every list with every router, in float32 on many rollouts at once.

    Args:
      situation: what is served, on what, as the routers assume.
      lists: lists of equal length.
      routers: per name one router for each list (repeat it to use the same for all). Routers of one name, and of
        different names alike, may differ in their numbers.
      actual_situations: the situation in which each list is really played; by default `situation`.
      seed: of the routers' random choices, which differ from list to list.

    Returns:
      Per name a result of shape (lists, n).

    Raises:
      InputError: if the lists differ in length, or the actual situations in more than numbers.
    """
    true = [situation] * len(lists) if actual_situations is None else actual_situations
    rollouts = [
        Rollout(name, row, router, true[row]) for name, each in routers.items() for row, router in enumerate(each)
    ]
    together = _in_order(_play(situation, lists, rollouts, seed, record=True))
    shaped = jax.tree.map(lambda leaf: leaf.reshape(len(routers), len(lists), *leaf.shape[1:]), together)
    stacked = _stack(lists)
    return {
        name: _result(stacked, true, *jax.tree.map(lambda leaf, i=i: leaf[i], shaped)) for i, name in enumerate(routers)
    }


def play_rollouts(
    situation: Situation, lists: Sequence[Requests], rollouts: Sequence[Rollout], *, seed: int = 0
) -> Iterator[tuple[np.ndarray, Result]]:
    """Plays rollouts block by block, for callers that would not hold all of it; see `play_routers`.

    Yields:
      The indices of a block's rollouts, and the results of their requests, of shape (rollouts, n).

    Raises:
      InputError: if the lists differ in length, or the actual situations in more than numbers.
    """
    stacked = _stack(lists)
    for indices, played in _play(situation, lists, rollouts, seed, record=True):
        block = [rollouts[index] for index in indices]
        rows = [rollout.row for rollout in block]
        requests = {name: values[rows] for name, values in stacked.items()}
        yield indices, _result(requests, [rollout.actual or situation for rollout in block], *played)


def mean_rewards(
    situation: Situation,
    lists: Sequence[Requests],
    rollouts: Sequence[Rollout],
    *,
    warm_up_s: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """(rollouts,) performance of each rollout, weighted where tenants count differently; see `play_routers`.

    Requests that arrive in the first `warm_up_s` seconds of a list do not count.

    Raises:
      InputError: if the lists differ in length, or the actual situations in more than numbers.
    """
    rewards = _in_order(_play(situation, lists, rollouts, seed, record=False)).reward
    stacked = _stack(lists)
    rows = [rollout.row for rollout in rollouts]
    counted = after_warm_up(stacked["arrival_s"], warm_up_s)[rows]
    tenant = stacked["tenant"][rows] if "tenant" in stacked else None
    weights = _weights([rollout.actual or situation for rollout in rollouts], tenant)
    means = mean_over(rewards, counted)
    return means if weights is None else np.asarray(means / mean_over(weights, counted))


def _weights(situations: Sequence[Situation], tenant: np.ndarray | None) -> np.ndarray | None:
    """(lanes, n) factor on the reward of each request, of (lanes, n) tenants; None where all count the same."""
    each = [situation.tenant_weights for situation in situations]
    if tenant is None or all(weights is None for weights in each):
        return None
    rows = zip(each, tenant, strict=True)
    return np.stack([np.ones(len(row)) if weights is None else weights[row] for weights, row in rows])


def _play(
    situation: Situation, lists: Sequence[Requests], rollouts: Sequence[Rollout], seed: int, *, record: bool
) -> Iterator[tuple[np.ndarray, Played]]:
    """What happens in the rollouts, block by block, with the indices of each block's rollouts."""
    for indices in _programs(rollouts):
        blocks = _play_together(situation, lists, [rollouts[index] for index in indices], seed, record=record)
        start = 0
        for played in blocks:
            size = len(played.reward)
            yield indices[start : start + size], played
            start += size


def _in_order(blocks: Iterable[tuple[np.ndarray, Played]]) -> Played:
    """What `_play` yields, in the order of the rollouts."""
    indices, played = zip(*blocks, strict=True)
    order = np.argsort(np.concatenate(indices))
    return cast(Played, jax.tree.map(lambda *parts: np.concatenate(parts)[order], *played))


def _programs(rollouts: Sequence[Rollout]) -> list[np.ndarray]:
    """Indices of the rollouts that one compiled program plays, for each program.

    Every rollout reads the numbers of a router of each kind in its program, and shows the requests in flight if any of
    them reads those. So kinds whose routers differ in many numbers, as networks do, are played apart from those that do
    not, and kinds that read the requests in flight apart from those that do not.
    """
    routers: dict[str, dict[int, Router]] = {}
    for rollout in rollouts:
        routers.setdefault(rollout.kind, {})[id(rollout.router)] = rollout.router
    heavy = {
        kind
        for kind, each in routers.items()
        if len(each) > 1 and sum(map(np.size, jax.tree.leaves(next(iter(each.values()))))) > _MANY
    }
    programs: dict[tuple[bool, bool], list[int]] = {}
    for index, rollout in enumerate(rollouts):
        programs.setdefault((rollout.kind in heavy, reads_in_flight(rollout.router)), []).append(index)
    return [np.array(programs[which]) for which in sorted(programs, reverse=True)]


def _play_together(
    situation: Situation, lists: Sequence[Requests], rollouts: Sequence[Rollout], seed: int, *, record: bool
) -> Iterator[Played]:
    """What happens in rollouts that share a program, block by block."""
    stacked = _stack(lists)
    n = stacked["arrival_s"].shape[1]
    actual_situations = [rollout.actual or situation for rollout in rollouts]
    assumed_situations = [rollout.assumed or situation for rollout in rollouts]
    distinct = list({id(one): one for one in (*actual_situations, *assumed_situations)}.values())
    shape, numbers = build_alike(
        distinct,
        history=n,
        longest_prompt=int(stacked["prompt_tokens"].max()),
        record=record,
        estimates=any(reads_in_flight(rollout.router) for rollout in rollouts),
    )
    params_of = {id(one): params for one, params in zip(distinct, numbers, strict=True)}

    fields: dict[str, Any] = {field: stacked[field] for field in _FIELDS}
    fields["gap_s"] = np.diff(stacked["arrival_s"], axis=1, prepend=0.0).astype(np.float32)
    if any(requests.deadline_factor is not None for requests in lists):
        fields["deadline_factor"] = np.stack([requests.deadline_factors for requests in lists])
    if any(requests.output_limit is not None for requests in lists):
        fields["output_limit"] = np.stack([requests.output_limits for requests in lists])
    if any(requests.cached_tokens is not None for requests in lists):
        fields["cached_tokens"] = np.stack([requests.found_tokens for requests in lists])
    for one in distinct:
        check_parties(lists[0], one)
    if "origin" in stacked:
        fields["origin"] = stacked["origin"]
    if "tenant" in stacked and any(params.tenant_weight is not None for params in numbers):
        fields["tenant"] = stacked["tenant"]
    arrivals = jax.tree.map(jnp.asarray, Arrival(**fields))
    # Every rollout carries a router of each kind and follows its own.
    kinds = list(dict.fromkeys(rollout.kind for rollout in rollouts))
    any_of = {rollout.kind: rollout.router for rollout in rollouts}
    members = [
        tuple(rollout.router if kind == rollout.kind else any_of[kind] for kind in kinds) for rollout in rollouts
    ]
    chosen = np.array([kinds.index(rollout.kind) for rollout in rollouts])
    flat = [
        jax.tree.flatten((dataclasses.replace(params_of[id(actual)], assumed=params_of[id(assumed)]), mine))
        for actual, assumed, mine in zip(actual_situations, assumed_situations, members, strict=True)
    ]
    structure: Any = flat[0][1]
    classes = node_types(members[0])
    if any(other != structure for _, other in flat) or any(node_types(mine) != classes for mine in members):
        raise InputError("Routers of one name differ in more than numbers; give each kind a name of its own.")
    columns = [_column(leaves) for leaves in zip(*(leaves for leaves, _ in flat), strict=True)]
    varies = tuple(vary for _, vary in columns)
    rows = np.array([rollout.row for rollout in rollouts])

    row_keys = jax.random.split(jax.random.key(seed), len(lists))
    count = -(-len(rollouts) // _LANES.get(jax.default_backend(), _MOST_LANES))
    width = -(-len(rollouts) // count)
    # The last block is filled up, so that one compiled program serves all.
    blocks = [np.arange(start, start + width) % len(rollouts) for start in range(0, len(rollouts), width)]

    def inputs(block: np.ndarray) -> tuple[Any, ...]:
        mine = [leaf[block] if vary else leaf for leaf, vary in columns]
        asked = jax.tree.map(lambda field: field[rows[block]], arrivals)
        return shape, structure, classes, varies, mine, chosen[block], asked, row_keys[rows[block]]

    def play(block: np.ndarray) -> Played:
        interrupts.check()
        return cast(Played, jax.device_get(_play_lanes(*inputs(block))))

    if len(blocks) > 1:
        _play_lanes.lower(*inputs(blocks[0])).compile()  # once, before several threads would each compile it
    left = len(rollouts)
    for played in _side_by_side(play, blocks):
        yield jax.tree.map(lambda leaf, left=left: leaf[:left], played)
        left -= width


def _side_by_side(function: Callable[[Any], T], items: Sequence[Any]) -> Iterator[T]:
    """What a function gives for each item, in order, on all cores; no more is held than that many results."""
    workers = min(cores(), len(items))
    pool = ThreadPoolExecutor(workers)
    try:
        waiting: collections.deque[Future[T]] = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Where one fails, nobody waits for the others.
        pool.shutdown(wait=False, cancel_futures=True)


def _column(leaves: Sequence[Any]) -> tuple[np.ndarray, bool]:
    """Numbers of all rollouts, and True; or the number of the first, and False, if all have the same."""
    first = np.asarray(leaves[0])
    if all(leaf is leaves[0] or np.array_equal(leaf, first) for leaf in leaves):
        return first, False
    return np.stack([np.asarray(leaf) for leaf in leaves]), True


def _stack(lists: Sequence[Requests]) -> dict[str, np.ndarray]:
    """Fields of shape (lists, n)."""
    lengths = {len(requests) for requests in lists}
    if len(lengths) != 1:
        raise InputError(f"The lists have {sorted(lengths)} requests; give lists of one length, or cut them to one.")
    fields = {field: np.stack([getattr(requests, field) for requests in lists]) for field in ("arrival_s", *_FIELDS)}
    for party in PARTIES:
        each = [getattr(requests, party) for requests in lists]
        names = {getattr(requests, f"{party}s") for requests in lists}
        if len(names) > 1 or len({values is None for values in each}) > 1:
            raise InputError(f"The lists differ in their `{party}s`; give lists with the same, or without.")
        if each[0] is not None:
            fields[party] = np.stack(each)
    return fields


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _play_lanes(
    shape: EnvShape,
    structure: Any,
    classes: tuple[Any, ...],
    varies: tuple[bool, ...],
    numbers: Sequence[Array],
    chosen: Array,
    arrivals: Arrival,
    keys: Array,
) -> Played:
    """Plays a block of rollouts.

    `numbers` are the leaves of their parameters, assumed ones included, and of the members of their panels, in the
    `structure` of one rollout, with a leading axis where a leaf `varies`: what all rollouts share, such as a network's
    weights, is kept once. `classes` are those of the members, see `node_types`.
    """
    environment = ServingEnvironment(shape)
    by_time = jax.tree.map(lambda field: jnp.swapaxes(jnp.asarray(field), 0, 1), arrivals)
    axes = [0 if vary else None for vary in varies]

    def decide(state: Any, arrival: Arrival) -> tuple[Any, Placement]:
        def one(
            state: Any, arrival: Arrival, chosen: Array, key: Array, numbers: Sequence[Array]
        ) -> tuple[Any, Placement]:
            params, members = jax.tree.unflatten(structure, numbers)
            state, step = environment.arrive(state, arrival, params)
            router = SwitchRouter(members, chosen)
            model = router.route(step.observation, params.believed, jax.random.fold_in(key, step.index))
            return environment.place(state, model, params)

        return jax.vmap(one, in_axes=(0, 0, 0, 0, axes))(state, arrival, chosen, keys, numbers)

    def drain(state: Any, numbers: Sequence[Array]) -> Any:
        params, _ = jax.tree.unflatten(structure, numbers)
        return environment.drain(state, params)

    state = jax.vmap(environment.start)(jax.tree.map(lambda field: field[0], by_time))
    state, placements = jax.lax.scan(decide, state, by_time)
    ledger = jax.vmap(drain, in_axes=(0, axes))(state, numbers).ledger
    return Played(jax.tree.map(lambda field: jnp.swapaxes(field, 0, 1), placements), ledger.timing, ledger.reward)


def _result(
    requests: Mapping[str, np.ndarray],
    actual_situations: Sequence[Situation],
    placement: Any,
    timing: Timing,
    reward: np.ndarray,
) -> Result:
    arrival_s = requests["arrival_s"]
    weights = _weights(actual_situations, requests.get("tenant"))
    if weights is not None:
        reward = (reward / weights).astype(reward.dtype)
    delays_s = np.array([actual.fleet.network_delay_s for actual in actual_situations], np.float32)
    delay_s = np.take_along_axis(delays_s, placement.pool, axis=1)
    if "origin" in requests:
        tables = [actual.fleet.delay_table(actual.origin_names) for actual in actual_situations]
        rows = zip(tables, requests["origin"], placement.pool, strict=True)
        delay_s = np.array([table[origin, pool] for table, origin, pool in rows], np.float32)
    return Result.of(
        requests,
        model=placement.pool,
        replica=placement.replica,
        admission_s=arrival_s + timing.wait_s,
        first_token_s=arrival_s + timing.first_token_s,
        completion_s=arrival_s + timing.service_s,
        latency_s=np.asarray(timing.service_s + delay_s),
        reward=reward,
    )
