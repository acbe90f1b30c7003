"""Routers on lists of requests: all meet the same lists (common random numbers), in as few programs as pay off.

Routers assume a situation. The actual one of a rollout may have other tables, qualities, deadlines or views.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
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
from besteffort.keys import straight
from besteffort.pytrees import node_types
from besteffort.routers.switch import SwitchRouter
from besteffort.simulator.build import build_alike
from besteffort.simulator.environment import ServingEnvironment
from besteffort.simulator.ledger import Timing
from besteffort.simulator.result import Result
from besteffort.simulator.types import EnvShape, Router, reads_in_flight
from besteffort.situation import Situation
from besteffort.workload.requests import PARTIES, Requests, check_parties
from besteffort.workload.sample import sample_lists
from besteffort.workload.synthetic_workload import spreads_rates, strata
from besteffort.workload.types import Arrival

T = TypeVar("T")

_LANES = 8  # that play together on processors: few, so that there is work for every core
_MOST_LANES = 128  # on other devices
_ROOM = 2**15  # lists of up to so many requests share a program
_MANY = 1_000  # numbers of a router that rollouts which do not follow it should not have to read
_COMPILING = threading.Lock()
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
      placement: pools and replicas, see `besteffort.simulator.environment.Placement`; None unless recorded.
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
    panel: Sequence[Router] = (),
) -> dict[str, Result]:
    """Plays every list with every router, in float32 on many rollouts at once.

    Args:
      situation: what is served, on what, as the routers assume.
      lists: lists of equal length.
      routers: per name one router for each list (repeat it to use the same for all). Routers of one name, and of
        different names alike, may differ in their numbers.
      actual_situations: the situation in which each list is really played; by default `situation`.
      seed: of the routers' random choices, which differ from list to list.
      panel: routers that the programs can play besides: calls with the same panel share their programs.

    Returns:
      Per name a result of shape (lists, n).

    Raises:
      InputError: if the lists differ in length, or the actual situations in more than numbers.
    """
    true = [situation] * len(lists) if actual_situations is None else actual_situations
    rollouts = [
        Rollout(name, row, router, true[row]) for name, each in routers.items() for row, router in enumerate(each)
    ]
    together = _in_order(_play(situation, lists, rollouts, seed, panel, record=True))
    shaped = jax.tree.map(lambda leaf: leaf.reshape(len(routers), len(lists), *leaf.shape[1:]), together)
    stacked = _stack(lists)
    return {
        name: _result(stacked, true, *jax.tree.map(lambda leaf, i=i: leaf[i], shaped)) for i, name in enumerate(routers)
    }


def play_rollouts(
    situation: Situation,
    lists: Sequence[Requests],
    rollouts: Sequence[Rollout],
    *,
    seed: int = 0,
    panel: Sequence[Router] = (),
) -> Iterator[tuple[np.ndarray, Result]]:
    """Plays rollouts block by block, for callers that would not hold all of it; see `play_routers`.

    Yields:
      The indices of a block's rollouts, and the results of their requests, of shape (rollouts, n).

    Raises:
      InputError: if the lists differ in length, or the actual situations in more than numbers.
    """
    stacked = _stack(lists)
    for indices, played in _play(situation, lists, rollouts, seed, panel, record=True):
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
    panel: Sequence[Router] = (),
) -> np.ndarray:
    """(rollouts,) performance of each rollout, weighted where tenants count differently; see `play_routers`.

    Requests that arrive in the first `warm_up_s` seconds of a list do not count.

    Raises:
      InputError: if the lists differ in length, or the actual situations in more than numbers.
    """
    rewards = _in_order(_play(situation, lists, rollouts, seed, panel, record=False)).reward
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
    situation: Situation,
    lists: Sequence[Requests],
    rollouts: Sequence[Rollout],
    seed: int,
    panel: Sequence[Router],
    *,
    record: bool,
) -> Iterator[tuple[np.ndarray, Played]]:
    """What happens in the rollouts, block by block, with the indices of each block's rollouts."""
    mixed = _mixes_lanes()
    for indices in _programs(rollouts, mixed=mixed):
        together = [rollouts[index] for index in indices]
        beside = () if mixed else panel
        for block, played in _play_together(situation, lists, together, seed, beside, record=record, mixed=mixed):
            yield indices[block], played


def _in_order(blocks: Iterable[tuple[np.ndarray, Played]]) -> Played:
    """What `_play` yields, in the order of the rollouts."""
    indices, played = zip(*blocks, strict=True)
    order = np.argsort(np.concatenate(indices))
    return cast(Played, jax.tree.map(lambda *parts: np.concatenate(parts)[order], *played))


def _mixes_lanes() -> bool:
    """Whether lanes of all kinds play together: it keeps accelerators busy, and processors with what is not used."""
    return jax.default_backend() != "cpu"


def _programs(rollouts: Sequence[Rollout], *, mixed: bool) -> list[np.ndarray]:
    """Indices of the rollouts that one compiled program plays, for each program.

    Rollouts show the requests in flight if any router of their program reads those, so those whose routers do are
    played apart. Where lanes are `mixed`, every rollout also reads the numbers of a router of each kind, so kinds whose
    routers differ in many numbers, as networks do, are played apart from those that do not.
    """
    routers: dict[str, dict[int, Router]] = {}
    for rollout in rollouts:
        routers.setdefault(rollout.kind, {})[id(rollout.router)] = rollout.router
    heavy = {kind for kind, each in routers.items() if mixed and len(each) > 1 and _is_heavy(next(iter(each.values())))}
    programs: dict[tuple[bool, bool], list[int]] = {}
    for index, rollout in enumerate(rollouts):
        programs.setdefault((rollout.kind in heavy, reads_in_flight(rollout.router)), []).append(index)
    return [np.array(programs[which]) for which in sorted(programs, reverse=True)]


def _is_heavy(router: Router) -> bool:
    return sum(map(np.size, jax.tree.leaves(router))) > _MANY


class _Forms:
    """The routers of a program by form: those of one form differ in their numbers only, so one member plays them all.

    Attributes:
      routers: per form its distinct routers.
    """

    def __init__(self) -> None:
        self.routers: list[list[Router]] = []
        self._number: dict[Any, int] = {}
        self._place: dict[int, tuple[int, int]] = {}

    def place(self, router: Router) -> tuple[int, int]:
        """The number of a router's form, and its own among the routers of that form."""
        if id(router) not in self._place:
            leaves, structure = jax.tree.flatten(router)
            alike = (structure, node_types(router), tuple((np.shape(leaf), _kind_of(leaf)) for leaf in leaves))
            number = self._number.setdefault(alike, len(self.routers))
            if number == len(self.routers):
                self.routers.append([])
            self._place[id(router)] = number, len(self.routers[number])
            self.routers[number].append(router)
        return self._place[id(router)]


def _kind_of(leaf: Any) -> str:
    return str(getattr(leaf, "dtype", np.asarray(leaf).dtype).kind)


def _play_together(
    situation: Situation,
    lists: Sequence[Requests],
    rollouts: Sequence[Rollout],
    seed: int,
    panel: Sequence[Router],
    *,
    record: bool,
    mixed: bool,
) -> Iterator[tuple[np.ndarray, Played]]:
    """What happens in rollouts that share a program, block by block, with the indices of each block's rollouts."""
    stacked = _stack(lists)
    n = stacked["arrival_s"].shape[1]
    room = max(_ROOM, 1 << (n - 1).bit_length())
    reading = any(reads_in_flight(rollout.router) for rollout in rollouts)
    panel = [router for router in panel if reads_in_flight(router) == reading]
    actual_situations = [rollout.actual or situation for rollout in rollouts]
    assumed_situations = [rollout.assumed or situation for rollout in rollouts]
    distinct = list({id(one): one for one in (*actual_situations, *assumed_situations)}.values())
    shape, numbers = build_alike(
        distinct,
        history=room,
        longest_prompt=int(stacked["prompt_tokens"].max()),
        record=True,  # times cost little, and programs are shared by who reads them and who does not
        estimates=reading,
    )
    params_of = {id(one): params for one, params in zip(distinct, numbers, strict=True)}

    arrivals = _arrivals(lists, stacked, distinct, room)
    row_keys = _row_keys(seed, len(lists))
    rows = np.array([rollout.row for rollout in rollouts])

    forms = _Forms()
    for router in panel:
        forms.place(router)
    form, which = np.array([forms.place(rollout.router) for rollout in rollouts]).T
    form_of: dict[str, int] = {}
    if any(form_of.setdefault(rollout.kind, number) != number for rollout, number in zip(rollouts, form, strict=True)):
        raise InputError("Routers of one name differ in more than numbers; give each kind a name of its own.")
    heavy = [_is_heavy(each[0]) for each in forms.routers]
    tables = [[np.stack(leaves) for leaves in zip(*map(_leaves, each), strict=True)] for each in forms.routers]
    each_varies = [not many or (mixed and len(own) > 1) for many, own in zip(heavy, forms.routers, strict=True)]

    both = [*zip(map(id, actual_situations), map(id, assumed_situations), strict=True)]
    pairs = {each: number for number, each in enumerate(dict.fromkeys(both))}
    pair = np.array([pairs[each] for each in both])
    worlds = [dataclasses.replace(params_of[actual], assumed=params_of[assumed]) for actual, assumed in pairs]
    columns = [_column(leaves) for leaves in zip(*map(_leaves, worlds), strict=True)]
    members = tuple(each[0] for each in forms.routers)
    structure = jax.tree.structure((worlds[0], members))
    varies = (
        *(vary for _, vary in columns),
        *(vary for vary, table in zip(each_varies, tables, strict=True) for _ in table),
    )

    def inputs(block: np.ndarray) -> tuple[Any, ...]:
        mine = [values[pair[block]] if vary else values for values, vary in columns]
        for number, (vary, table) in enumerate(zip(each_varies, tables, strict=True)):
            own = np.where(form[block] == number, which[block], 0)
            mine += [values[own if vary else own[0]] for values in table]
        chosen = form[block] if mixed else form[block[0]]
        asked = jax.tree.map(lambda field: field[:, rows[block]], arrivals)
        return shape, structure, node_types(members), varies, mine, np.int32(chosen), asked, row_keys[rows[block]], n

    def play(block: np.ndarray) -> Played:
        interrupts.check()
        played = _play_lanes(*inputs(block))
        if not record:
            return Played(None, None, np.asarray(played.reward)[:, :n])
        return cast(Played, jax.tree.map(lambda field: np.asarray(field)[:, :n], played))

    blocks = _blocks(np.zeros_like(form) if mixed else form, np.where(np.array(heavy)[form], which, 0), mixed=mixed)
    with _COMPILING:  # once, before several threads would each compile it
        _play_lanes.lower(*inputs(blocks[0][1])).compile()
    for (mine, _), played in zip(blocks, _side_by_side(play, [full for _, full in blocks]), strict=True):
        size = len(mine)
        yield mine, jax.tree.map(lambda field, size=size: field[:size], played)


def _arrivals(
    lists: Sequence[Requests], stacked: Mapping[str, np.ndarray], situations: Sequence[Situation], room: int
) -> Arrival:
    """Arrivals of the lists, of axes (room, lists); after their last ones, zeros.

    Raises:
      InputError: if the lists have other origins or tenants than the situations.
    """
    fields: dict[str, Any] = {field: stacked[field] for field in _FIELDS}
    fields["gap_s"] = np.diff(stacked["arrival_s"], axis=1, prepend=0.0).astype(np.float32)
    if any(requests.deadline_factor is not None for requests in lists):
        fields["deadline_factor"] = np.stack([requests.deadline_factors for requests in lists])
    if any(requests.output_limit is not None for requests in lists):
        fields["output_limit"] = np.stack([requests.output_limits for requests in lists])
    if any(requests.cached_tokens is not None for requests in lists):
        fields["cached_tokens"] = np.stack([requests.found_tokens for requests in lists])
    for one in situations:
        check_parties(lists[0], one)
    if "origin" in stacked:
        fields["origin"] = stacked["origin"]
    if "tenant" in stacked and any(situation.tenant_weights is not None for situation in situations):
        fields["tenant"] = stacked["tenant"]
    more = ((0, 0), (0, room - len(lists[0])))
    padded: dict[str, Any] = {name: np.pad(values, more).T for name, values in fields.items()}
    return Arrival(**padded)


def _blocks(form: np.ndarray, router: np.ndarray, *, mixed: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices of the rollouts of each block, and the same filled up to one width, so that one program serves all.

    A block is of one form, and of one router where these differ in many numbers, unless lanes are `mixed`.
    """
    if mixed:
        width = -(-len(form) // -(-len(form) // _MOST_LANES))
        groups = [np.arange(len(form))]
    else:
        width = _LANES
        of_group: dict[tuple[int, int], list[int]] = {}
        for index, key in enumerate(zip(form.tolist(), router.tolist(), strict=True)):
            of_group.setdefault(key, []).append(index)
        groups = [np.array(group) for group in of_group.values()]
    parts = [group[start : start + width] for group in groups for start in range(0, len(group), width)]
    return [(part, np.resize(part, width)) for part in parts]


def _row_keys(seed: int, lists: int) -> np.ndarray:
    """Numbers of the keys of so many lists: the first ones of a few more, so that one program splits most seeds."""
    split = jax.random.split(jax.random.key(seed), -(-lists // _MOST_LANES) * _MOST_LANES)
    return np.asarray(jax.random.key_data(split))


def _leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


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


def _column(leaves: Sequence[np.ndarray]) -> tuple[np.ndarray, bool]:
    """Numbers of all worlds, and True; or the number of the first, and False, if all have the same."""
    if all(leaf is leaves[0] or np.array_equal(leaf, leaves[0]) for leaf in leaves):
        return leaves[0], False
    return np.stack(leaves), True


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
    n: Array,
) -> Played:
    """Plays a block of rollouts.

    `numbers` are the leaves of their parameters, assumed ones included, and of the members of their panels, in the
    `structure` of one rollout, with a leading axis where a leaf `varies`: what all rollouts share, such as a network's
    weights, is kept once. `classes` are those of the members, see `node_types`. The member `chosen` decides, one for
    all rollouts or one for each. `arrivals` have axes (room, rollouts); the first `n` are played, so that one program
    serves lists of any length.
    """
    environment = ServingEnvironment(shape)
    axes = [0 if vary else None for vary in varies]

    def decide(index: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        def one(
            state: Any, arrival: Arrival, chosen: Array, key: Array, numbers: Sequence[Array]
        ) -> tuple[Any, tuple[Array, Array]]:
            params, members = jax.tree.unflatten(structure, numbers)
            state, step = environment.arrive(state, arrival, params)
            router = SwitchRouter(members, chosen)
            key = jax.random.fold_in(straight(jax.random.wrap_key_data(key)), step.index)
            model = router.route(step.observation, params.believed, key)
            state, placement = environment.place(state, model, params)
            return state, (placement.pool, placement.replica)

        state, placements = carry
        arrival = jax.tree.map(partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False), arrivals)
        lanes = jax.vmap(one, in_axes=(0, 0, 0 if chosen.ndim else None, 0, axes))
        state, placed = lanes(state, arrival, chosen, keys, numbers)
        return state, tuple(all_.at[index].set(new) for all_, new in zip(placements, placed, strict=True))

    def drain(state: Any, numbers: Sequence[Array]) -> Any:
        params, _ = jax.tree.unflatten(structure, numbers)
        return environment.drain(state, params)

    state = jax.vmap(environment.start)(jax.tree.map(lambda field: field[0], arrivals))
    nowhere = jnp.full((shape.history, len(keys)), -1, jnp.int32)
    state, placements = jax.lax.fori_loop(0, n, decide, (state, (nowhere, nowhere)))
    ledger = jax.vmap(drain, in_axes=(0, axes))(state, numbers).ledger
    return Played(tuple(field.T for field in placements), ledger.timing, ledger.reward)


def _result(
    requests: Mapping[str, np.ndarray],
    actual_situations: Sequence[Situation],
    placement: tuple[np.ndarray, np.ndarray],
    timing: Timing,
    reward: np.ndarray,
) -> Result:
    arrival_s = requests["arrival_s"]
    weights = _weights(actual_situations, requests.get("tenant"))
    if weights is not None:
        reward = (reward / weights).astype(reward.dtype)
    pool, replica = placement
    delays_s = np.array([actual.fleet.network_delay_s for actual in actual_situations], np.float32)
    delay_s = np.take_along_axis(delays_s, pool, axis=1)
    if "origin" in requests:
        tables = [actual.fleet.delay_table(actual.origin_names) for actual in actual_situations]
        rows = zip(tables, requests["origin"], pool, strict=True)
        delay_s = np.array([table[origin, pool] for table, origin, pool in rows], np.float32)
    return Result.of(
        requests,
        model=pool,
        replica=replica,
        admission_s=arrival_s + timing.wait_s,
        first_token_s=arrival_s + timing.first_token_s,
        completion_s=arrival_s + timing.service_s,
        latency_s=np.asarray(timing.service_s + delay_s),
        reward=reward,
    )
