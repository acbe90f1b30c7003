"""Pools: replicas of one model on one kind of hardware in one place. NumPy only.

A router picks a pool, the load balancer one of its replicas. Replicas of different pools may share a GPU; slow-downs
between models apply there and nowhere else.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval, Len

from besteffort.errors import InputError, brief
from besteffort.profile import Profile
from besteffort.ranges import Few, NonNegative

Places = Annotated[int, Interval(ge=0, le=2**16)]
_LONGEST_NAME = 200
_NOBODY = 2**30  # requests, more than any instance holds


@dataclasses.dataclass(frozen=True)
class OriginDelay:
    """Network delay of the answers to requests from an origin, in seconds."""

    origin: str
    network_delay_s: NonNegative


@dataclasses.dataclass(frozen=True)
class Pool:
    """Replicas of one model on one kind of hardware in one place.

    Attributes:
      name: its name.
      model: the model that it serves, by which qualities go.
      hardware: name of the profile that has its latency tables; None: the situation's own.
      replicas: instances of the model.
      max_batch: requests that run at once on a replica.
      queue_capacity: requests that may wait at a replica beyond `max_batch`.
      network_delay_s: seconds added to every answer, but for requests from origins that `delays` lists.
      delays: origins that are nearer or farther.
      gpus: number of the GPU that each replica is on, ascending; None: each has a GPU of its own.

    Raises:
      InputError: if there is no replica, a number is negative, or the GPUs are not one for each replica, ascending.
    """

    name: Annotated[str, Len(1, _LONGEST_NAME)]
    model: str
    hardware: str | None = None
    replicas: Few = 1
    max_batch: Few = 32
    queue_capacity: Places = 32
    network_delay_s: NonNegative = 0.0
    gpus: tuple[Places, ...] | None = None
    delays: tuple[OriginDelay, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise InputError(f"`pools` has the name `{brief(self.name)}`; give printable characters.")
        for field, least in (("replicas", 1), ("max_batch", 1), ("queue_capacity", 0), ("network_delay_s", 0)):
            value = getattr(self, field)
            if not least <= value < np.inf:
                raise InputError(f"Pool `{self.name}`: `{field}` is {value:g}; give at least {least}.")
        for delay in self.delays:
            if [each.origin for each in self.delays].count(delay.origin) > 1:
                raise InputError(f"Pool `{self.name}`: `delays` lists `{brief(delay.origin)}` twice; list it once.")
            if not 0 <= delay.network_delay_s < np.inf:
                raise InputError(
                    f"Pool `{self.name}`: the delay from `{brief(delay.origin)}` is {delay.network_delay_s:g}; give at "
                    "least 0."
                )
        if self.gpus is None:
            return
        if len(self.gpus) != self.replicas:
            raise InputError(
                f"Pool `{self.name}`: `gpus` lists {len(self.gpus)} for {self.replicas} replicas; give one for each."
            )
        if any(later <= gpu for gpu, later in itertools.pairwise(self.gpus)):
            raise InputError(f"Pool `{self.name}`: `gpus` is {brief(list(self.gpus))}; list each once, ascending.")

    @property
    def places(self) -> int:
        """Requests that a replica holds, running and waiting."""
        return self.max_batch + self.queue_capacity


@dataclasses.dataclass(frozen=True)
class PoolNumbers:
    """How pools differ that are not uniform, see `Fleet.uniform`; leaves may carry batch axes under `vmap`.

    Attributes:
      max_batch: (pools,) requests that run at once on a replica.
      places: (pools,) requests that a replica holds, running and waiting.
      placed: (rows, pools) where arrays over replicas have one, see `Layout`.
      size: (pools,) rises with the size of the pool's model.
    """

    max_batch: Any
    places: Any
    placed: Any
    size: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Where replicas are: on which GPU, and in which row of arrays of shape (rows, pools).

    A row holds at most one replica of each pool, in the order of their numbers. Those that slow each other down are in
    one row, and no others in a row do.

    Attributes:
      gpus: per pool the number of the GPU that each replica is on.
      rows: per pool the row of each replica.
    """

    gpus: tuple[tuple[int, ...], ...]
    rows: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, pools: Sequence[Pool], slowdown: np.ndarray) -> Layout:
        """The layout of pools with (pools, pools) factors by which they slow each other down on one GPU."""
        free = itertools.count(1 + max((max(pool.gpus) for pool in pools if pool.gpus), default=-1))
        gpus = tuple(
            tuple(next(free) for _ in range(pool.replicas)) if pool.gpus is None else pool.gpus for pool in pools
        )
        on: dict[int, list[int]] = {}
        for index, numbers in enumerate(gpus):
            for gpu in numbers:
                on.setdefault(gpu, []).append(index)
        apart = (slowdown == 1) & (slowdown.T == 1)
        rows: list[list[int]] = [[] for _ in pools]
        held: list[list[int]] = []  # pools by row
        for gpu in sorted(on):
            mine = on[gpu]
            row = 1 + max(rows[pool][-1] if rows[pool] else -1 for pool in mine)
            while row < len(held) and not apart[np.ix_(mine, held[row])].all():
                row += 1
            while len(held) <= row:
                held.append([])
            held[row] += mine
            for pool in mine:
                rows[pool].append(row)
        return cls(gpus, tuple(map(tuple, rows)))

    @functools.cached_property
    def placed(self) -> np.ndarray:
        """(rows, pools) whether there is a replica."""
        placed = np.zeros((1 + max(map(max, self.rows)), len(self.rows)), bool)
        for pool, rows in enumerate(self.rows):
            placed[list(rows), pool] = True
        return placed


@dataclasses.dataclass(frozen=True, eq=False)
class Fleet:
    """Pools with the profiles that their models are in.

    Attributes:
      pools: the pools, in the order in which routers number them.
      profile: has the qualities, and the models from the smallest to the largest.
      hardware: profiles of other devices.

    Raises:
      InputError: if a name is given twice or unknown, a GPU is of two kinds or has a model twice, or profiles count
        outputs differently against the cache.
    """

    pools: tuple[Pool, ...]
    profile: Profile
    hardware: tuple[Profile, ...] = ()

    def __post_init__(self) -> None:
        profiles = [self.profile.name, *(profile.name for profile in self.hardware)]
        for what, names in (("Pool", self.names), ("The hardware profile", profiles)):
            for name in names:
                if names.count(name) > 1:
                    raise InputError(f"{what} `{brief(name)}` is listed twice; give each a name of its own.")
        known = dict(zip(profiles, (self.profile, *self.hardware), strict=True))
        for pool in self.pools:
            if pool.hardware is not None and pool.hardware not in known:
                raise InputError(
                    f"Pool `{pool.name}`: there is no hardware profile `{brief(pool.hardware)}`; choose from "
                    f"{', '.join(known)}."
                )
            for profile in {id(one): one for one in (self.profile, known[pool.hardware or profiles[0]])}.values():
                if pool.model not in profile.model_names:
                    raise InputError(
                        f"Pool `{pool.name}`: profile `{profile.name}` has no model `{brief(pool.model)}`; choose from "
                        f"{', '.join(profile.model_names)}."
                    )
        self._check_gpus()
        shares = {profile.cache_output_share for profile in self._profiles if np.isfinite(profile.cache_tokens).any()}
        if len(shares) > 1:
            raise InputError(
                "The profiles of the pools differ in `cache_output_share`; give them the same, for a router that "
                "reckons with all of them."
            )

    def _check_gpus(self) -> None:
        on: dict[int, list[int]] = {}
        for index, pool in enumerate(self.pools):
            for gpu in pool.gpus or ():
                on.setdefault(gpu, []).append(index)
        for gpu, here in on.items():
            first, *others = (self.pools[index] for index in here)
            for other in others:
                if self._profiles[here[0]] is not self._profiles[self.pools.index(other)]:
                    raise InputError(
                        f"Pools `{first.name}` and `{other.name}` share GPU {gpu}, but differ in `hardware`; give them "
                        "GPUs of their own."
                    )
            models = [self.pools[index].model for index in here]
            for model in models:
                if models.count(model) > 1:
                    raise InputError(
                        f"GPU {gpu} has model `{brief(model)}` twice, of {len(here)} pools; put each replica of a "
                        "model on a GPU of its own."
                    )

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the pools."""
        return tuple(pool.name for pool in self.pools)

    @functools.cached_property
    def _profiles(self) -> tuple[Profile, ...]:
        """Of each pool the profile that has its tables."""
        known = {profile.name: profile for profile in (self.profile, *self.hardware)}
        return tuple(known[pool.hardware or self.profile.name] for pool in self.pools)

    @functools.cached_property
    def model(self) -> np.ndarray:
        """(pools,) index of each pool's model in the profile, where models ascend in size."""
        return np.array([self.profile.model_names.index(pool.model) for pool in self.pools])

    @functools.cached_property
    def largest(self) -> np.ndarray:
        """(pools,) whether a pool serves the largest of the models that are served."""
        return np.asarray(self.model == self.model.max())

    @functools.cached_property
    def replicas(self) -> np.ndarray:
        """(pools,) replicas of each pool."""
        return np.array([pool.replicas for pool in self.pools])

    @functools.cached_property
    def max_batch(self) -> np.ndarray:
        """(pools,) requests that run at once on a replica."""
        return np.array([pool.max_batch for pool in self.pools])

    @functools.cached_property
    def places(self) -> np.ndarray:
        """(pools,) requests that a replica holds, running and waiting."""
        return np.array([pool.places for pool in self.pools])

    @functools.cached_property
    def network_delay_s(self) -> np.ndarray:
        """(pools,) seconds added to every answer."""
        return np.array([pool.network_delay_s for pool in self.pools])

    def delay_table(self, origins: Sequence[str]) -> np.ndarray:
        """(origins, pools) seconds added to the answer to a request from each origin."""
        return np.array(
            [
                [
                    {delay.origin: delay.network_delay_s for delay in pool.delays}.get(origin, pool.network_delay_s)
                    for pool in self.pools
                ]
                for origin in origins
            ]
        ).reshape(len(origins), len(self.pools))

    @functools.cached_property
    def layout(self) -> Layout:
        """Where the replicas are."""
        return Layout.of(self.pools, self.slowdown)

    @functools.cached_property
    def gpus(self) -> int:
        """How many GPUs there are."""
        return len({gpu for numbers in self.layout.gpus for gpu in numbers})

    @functools.cached_property
    def uniform(self) -> bool:
        """Whether there is one pool per model, from the smallest to the largest, all alike but for their tables."""
        alike = (self.replicas, self.max_batch, self.places, self.network_delay_s)
        in_order = bool((np.diff(self.model) > 0).all())
        return in_order and bool(self.layout.placed.all()) and all(np.ptp(each) == 0 for each in alike)

    @functools.cached_property
    def numbers(self) -> PoolNumbers:
        """How the pools differ."""
        return PoolNumbers(self.max_batch, self.places, self.layout.placed, self.model)

    def decode_table(self) -> np.ndarray:
        """(pools, largest `max_batch` + 1) seconds of a decode by batch size, see `Profile.decode_table`."""
        most = int(self.max_batch.max())
        return self._of_pools(lambda profile: profile.decode_table(most))

    def full_decode_s(self) -> np.ndarray:
        """(pools,) seconds of a decode of `max_batch` requests."""
        return self.decode_table()[np.arange(len(self.pools)), self.max_batch]

    def prefill_table(self, max_tokens: int) -> np.ndarray:
        """(pools, max_tokens + 1) seconds of a prefill by prompt tokens, see `Profile.prefill_table`."""
        return self._of_pools(lambda profile: profile.prefill_table(max_tokens))

    @property
    def context_cost_s(self) -> np.ndarray:
        """(pools,) seconds per token held by the requests that ran before."""
        return self._of_pools(lambda profile: profile.context_cost_s)

    @property
    def cache_tokens(self) -> np.ndarray:
        """(pools,) tokens that fit a replica's key-value cache; infinite where unlimited."""
        return self._of_pools(lambda profile: profile.cache_tokens)

    @property
    def chunk_tokens(self) -> np.ndarray:
        """(pools,) tokens that an iteration works on at most; infinite where prompts are read whole."""
        return self._of_pools(lambda profile: profile.chunk_tokens)

    @property
    def cache_output_share(self) -> float:
        """Share of a request's output tokens counted against the cache at admission, the same for all pools."""
        limited = (profile for profile in self._profiles if np.isfinite(profile.cache_tokens).any())
        return next(limited, self._profiles[0]).cache_output_share

    @functools.cached_property
    def slowdown(self) -> np.ndarray:
        """(pools, pools) factor on an iteration of the row's pool while the column's has one in progress on its GPU.

        It is 1 where they share no GPU.
        """
        count = len(self.pools)
        factor = np.ones((count, count))
        for m, k in itertools.permutations(range(count), 2):
            if set(self.pools[m].gpus or ()) & set(self.pools[k].gpus or ()):
                names = self._profiles[m].model_names
                factor[m, k] = self._profiles[m].slowdown[
                    names.index(self.pools[m].model), names.index(self.pools[k].model)
                ]
        return factor

    def quality_table(self, task_names: Sequence[str]) -> np.ndarray:
        """(tasks, pools) quality of the named tasks by each pool's model, see `Profile.quality_table`."""
        return np.ascontiguousarray(self.profile.quality_table(task_names)[:, self.model])

    def of_models(self, values: np.ndarray) -> np.ndarray:
        """(models,) sums over the pools of each model of the profile, of (pools,) values."""
        return np.bincount(self.model, values, len(self.profile.models))

    def _of_pools(self, table: Callable[[Profile], np.ndarray]) -> np.ndarray:
        """One row of each pool's profile."""
        tables: Mapping[str, np.ndarray] = {
            profile.name: table(profile) for profile in {one.name: one for one in self._profiles}.values()
        }
        return np.stack(
            [
                tables[profile.name][profile.model_names.index(pool.model)]
                for pool, profile in zip(self.pools, self._profiles, strict=True)
            ]
        )


def least_loaded(sizes: Any, placed: Any = None, xp: Any = np) -> Any:
    """(pools,) row of the replica of each pool with the smallest batch, the first on a tie.

    Args:
      sizes: (rows, pools) batch sizes.
      placed: (rows, pools) where there is a replica; None where there is one everywhere.
      xp: the array module, `numpy` or `jax.numpy`.
    """
    return (sizes if placed is None else xp.where(placed, sizes, _NOBODY)).argmin(axis=0)


def smallest(sizes: Any, placed: Any = None, xp: Any = np) -> Any:
    """(pools,) batch size of that replica; arguments as of `least_loaded`."""
    return (sizes if placed is None else xp.where(placed, sizes, _NOBODY)).min(axis=0)
