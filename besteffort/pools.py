"""Pools: replicas of one model on one kind of hardware in one place. NumPy only.

A router picks a pool, the load balancer one of its replicas. Replicas of different pools may share a GPU; slow-downs
between models apply there and nowhere else.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import numpy as np
from annotated_types import Interval, Len

from besteffort.autoscaler import Autoscaler, Scaling
from besteffort.errors import InputError, brief
from besteffort.profile import Profile
from besteffort.ranges import Few, NonNegative

Places = Annotated[int, Interval(ge=0, le=2**16)]
_LONGEST_NAME = 200
_NOBODY = 2**30  # requests, more than any instance holds
_MOST_EVENTS = 2**16

What = Literal["start", "drain", "fail"]
START, DRAIN, FAIL = range(len(get_args(What)))
"""Numbers of what happens to replicas, see `ReplicaEvent`."""

_CHANGES_NOTHING = {("start", "start"), ("drain", "drain"), ("fail", "fail"), ("fail", "drain")}


@dataclasses.dataclass(frozen=True)
class ReplicaEvent:
    """What happens to a replica of a pool, and when.

    Attributes:
      time_s: seconds since the start of the list or the episode.
      replica: its number in the pool, from 0.
      what: `start`: it is up after the pool's `start_s`, or at once if it still drains; one whose first event this is
        was down before. `drain`: it takes no new requests, and is down when it has none. `fail`: it is down at once,
        and loses the requests that it has.
    """

    time_s: NonNegative
    replica: Places
    what: What


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
      start_s: seconds from the start of a replica until it is up; None: what loading its weights takes, where the
        profile states that, else 0.
      events: when replicas start, drain and fail; without any, all are up all the time.
      autoscaler: starts and drains replicas.

    Raises:
      InputError: if there is no replica, a number is negative, the GPUs are not one for each replica, ascending, an
        event is of a replica that does not exist, or changes nothing, or there is an autoscaler, too, or that has more
        replicas than there are.
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
    start_s: NonNegative | None = None
    events: Annotated[tuple[ReplicaEvent, ...], Len(0, _MOST_EVENTS)] = ()
    autoscaler: Autoscaler | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise InputError(f"`pools` has the name `{brief(self.name)}`; give printable characters.")
        least_of = {"replicas": 1, "max_batch": 1, "queue_capacity": 0, "network_delay_s": 0, "start_s": 0}
        for field, least in least_of.items():
            value = getattr(self, field)
            if value is not None and not least <= value < np.inf:
                raise InputError(f"Pool `{self.name}`: `{field}` is {value:g}; give at least {least}.")
        self._check_events()
        self._check_autoscaler()
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

    def _check_events(self) -> None:
        where = f"Pool `{self.name}`: `events`"
        before: dict[int, str] = {}
        for event in self.sorted_events:
            if not 0 <= event.time_s < np.inf:
                raise InputError(f"{where} has `time_s` {event.time_s:g}; give at least 0.")
            if not 0 <= event.replica < self.replicas:
                raise InputError(
                    f"{where} names replica {event.replica}; there are {self.replicas}, numbered from 0; name one of "
                    "them or raise `replicas`."
                )
            last = before.get(event.replica)
            if (last, event.what) in _CHANGES_NOTHING:
                raise InputError(
                    f"{where}: at {event.time_s:g} s replica {event.replica} has `{event.what}` after `{last}`, which "
                    "changes nothing; leave it out."
                )
            before[event.replica] = event.what

    def _check_autoscaler(self) -> None:
        if self.autoscaler is None:
            return
        if self.events:
            raise InputError(f"Pool `{self.name}` states both `events` and `autoscaler`; state one of them.")
        for name in ("min_replicas", "max_replicas"):
            value = getattr(self.autoscaler, name)
            if value is not None and value > self.replicas:
                raise InputError(
                    f"Pool `{self.name}`: `autoscaler` has `{name}` {value}, and there are {self.replicas}; raise "
                    "`replicas`."
                )

    @functools.cached_property
    def sorted_events(self) -> tuple[ReplicaEvent, ...]:
        """The events by time, in their order where times are equal."""
        return tuple(sorted(self.events, key=lambda event: event.time_s))

    @functools.cached_property
    def up_first(self) -> tuple[bool, ...]:
        """Whether each replica is up at first: not if the first that happens to it is that it starts.

        With an autoscaler its `min_replicas` are.
        """
        if self.autoscaler is not None:
            return tuple(replica < self.autoscaler.min_replicas for replica in range(self.replicas))
        first = {event.replica: event.what for event in reversed(self.sorted_events)}
        return tuple(first.get(replica) != "start" for replica in range(self.replicas))

    @property
    def places(self) -> int:
        """Requests that a replica holds, running and waiting."""
        return self.max_batch + self.queue_capacity


@dataclasses.dataclass(frozen=True)
class Life:
    """When replicas start, drain and fail; leaves may carry batch axes under `vmap`.

    Attributes:
      time_s: (events,) seconds since the start, ascending; infinite for events that do not happen.
      instance: (events,) number of the replica, `row x pools + pool`, see `Layout`.
      what: (events,) `START`, `DRAIN` or `FAIL`.
      up_first: (rows, pools) which replicas are up at the start.
      start_s: (pools,) seconds from the start of a replica until it is up.
      rounded_s: (events,) what `time_s` lacks because it was rounded; 0 in float64.
      scaling: the autoscalers; None where there are none.
    """

    time_s: Any
    instance: Any
    what: Any
    up_first: Any
    start_s: Any
    rounded_s: Any = 0.0
    scaling: Scaling | None = None


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
      InputError: if a name is given twice or unknown, a GPU is of two kinds or has a model twice, what is loaded on it
        does not fit its memory, or profiles count outputs differently against the cache.
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
        self._check_memory()
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

    def _check_memory(self) -> None:
        """What is loaded on a GPU at any time has to fit; a replica that drains is loaded until it fails."""
        numbers = iter(range(-1, -1 - sum(pool.replicas for pool in self.pools), -1))
        on: dict[int, list[tuple[int, int]]] = {}  # pool and replica by GPU; those of their own have negative numbers
        for index, pool in enumerate(self.pools):
            for replica in range(pool.replicas):
                on.setdefault(next(numbers) if pool.gpus is None else pool.gpus[replica], []).append((index, replica))
        for here in on.values():
            profile = self._profiles[here[0][0]]
            if profile.memory_gb is None:
                continue
            size_gb = dict(zip(profile.model_names, profile.weights_gb.tolist(), strict=True))
            events = sorted(
                (event.time_s, event.what != "fail", place, event.what)
                for place in here
                for event in self.pools[place[0]].sorted_events
                if event.replica == place[1]
            )
            scaled = {place for place in here if self.pools[place[0]].autoscaler is not None}
            loaded = {place for place in here if self.pools[place[0]].up_first[place[1]]} | scaled
            for time_s, _, place, what in [(0.0, False, here[0], ""), *events]:
                if what == "start":
                    loaded.add(place)
                elif what == "fail":
                    loaded.discard(place)
                taken_gb = sum(size_gb[self.pools[index].model] for index, _ in loaded)
                if taken_gb > profile.memory_gb:
                    self._refuse_memory(sorted(loaded), taken_gb, profile, time_s)

    def _refuse_memory(self, loaded: list[tuple[int, int]], taken_gb: float, profile: Profile, time_s: float) -> None:
        pools = [self.pools[index] for index, _ in loaded]
        names = ", ".join(f"`{pool.name}`" for pool in pools)
        when = f" at {time_s:g} s" if time_s else ""
        if len(pools) == 1:
            raise InputError(
                f"Pool {names}: the weights of {pools[0].model} take {taken_gb:g} GB, and a GPU of profile "
                f"`{profile.name}` has {profile.memory_gb:g} GB for them; choose a smaller model or other `hardware`."
            )
        raise InputError(
            f"Pools {names} share a GPU, and their weights take {taken_gb:g} of {profile.memory_gb:g} GB{when}; give "
            "them GPUs of their own, or let one fail before the other starts."
        )

    @functools.cached_property
    def start_s(self) -> np.ndarray:
        """(pools,) seconds from the start of a replica until it is up."""
        load_s = self._of_pools(lambda profile: profile.load_s)
        return np.array(
            [each if pool.start_s is None else pool.start_s for pool, each in zip(self.pools, load_s, strict=True)]
        )

    @functools.cached_property
    def served(self) -> tuple[Pool, ...]:
        """The pools, each with the `start_s` that it has."""
        return tuple(
            dataclasses.replace(pool, start_s=start_s)
            for pool, start_s in zip(self.pools, self.start_s.tolist(), strict=True)
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
        """Whether there is one pool per model, from the smallest to the largest, all alike but for their tables.

        And nothing happens to their replicas.
        """
        alike = (self.replicas, self.max_batch, self.places, self.network_delay_s)
        in_order = bool((np.diff(self.model) > 0).all())
        return (
            not self.alive and in_order and bool(self.layout.placed.all()) and all(np.ptp(each) == 0 for each in alike)
        )

    @functools.cached_property
    def numbers(self) -> PoolNumbers:
        """How the pools differ."""
        return PoolNumbers(self.max_batch, self.places, self.layout.placed, self.model)

    @functools.cached_property
    def alive(self) -> bool:
        """Whether replicas start, drain or fail."""
        return any(self.life_size)

    @functools.cached_property
    def life_size(self) -> tuple[int, int, int]:
        """How many events there are in the life of all replicas, looks in the longest window, steps in a schedule."""
        scalers = [pool.autoscaler for pool in self.pools if pool.autoscaler is not None]
        return (
            sum(len(pool.events) for pool in self.pools),
            max((each.window for each in scalers), default=0),
            max((len(each.schedule) for each in scalers), default=0),
        )

    def _scaling(self, steps: int) -> Scaling:
        """The autoscalers, with room for so many steps."""
        count = len(self.pools)
        found = Scaling(
            interval_s=np.full(count, np.inf),
            least=np.ones(count, np.int64),
            most=self.replicas.copy(),
            target=np.zeros(count),
            beyond=np.zeros(count, np.int64),
            tolerance=np.zeros(count),
            up_window_s=np.zeros(count),
            down_window_s=np.zeros(count),
            step_s=np.full((count, steps), np.inf),
            step=np.zeros((count, steps), np.int64),
        )
        for index, pool in enumerate(self.pools):
            scaler = pool.autoscaler
            if scaler is None:
                continue
            found.interval_s[index] = scaler.interval_s
            found.least[index] = scaler.min_replicas
            found.most[index] = scaler.max_replicas or pool.replicas
            found.target[index] = scaler.in_flight or scaler.waiting or 0.0
            found.beyond[index] = pool.max_batch if scaler.waiting is not None else 0
            found.tolerance[index] = scaler.tolerance
            found.up_window_s[index], found.down_window_s[index] = scaler.up_window_s, scaler.down_window_s
            for number, step in enumerate(scaler.schedule):
                found.step_s[index, number], found.step[index, number] = step.time_s, step.replicas
        return found

    def life(self, size: tuple[int, int, int]) -> Life:
        """When replicas start, drain and fail, as arrays with room for what `life_size` says, or more."""
        count, looks, steps = size
        told = [(event.time_s, pool, event) for pool, one in enumerate(self.pools) for event in one.sorted_events]
        told.sort(key=lambda each: each[:2])
        rows = self.layout.rows
        time_s = np.full(max(count, len(told)), np.inf)
        instance, what = np.zeros((2, len(time_s)), np.int64)
        for number, (at_s, pool, event) in enumerate(told):
            time_s[number] = at_s
            instance[number] = rows[pool][event.replica] * len(self.pools) + pool
            what[number] = get_args(What).index(event.what)
        up_first = np.zeros_like(self.layout.placed)
        for pool, one in enumerate(self.pools):
            up_first[list(rows[pool]), pool] = one.up_first
        scaling = self._scaling(steps) if looks else None
        return Life(time_s, instance, what, up_first, self.start_s, scaling=scaling)

    def decode_table(self) -> np.ndarray:
        """(pools, largest `max_batch` + 1) seconds of a decode by batch size, see `Profile.decode_table`."""
        most = int(self.max_batch.max())
        return self._of_pools(lambda profile: profile.decode_table(most))

    def table_ends(self) -> tuple[np.ndarray, np.ndarray]:
        """(pools,) largest batch size and longest prompt of each pool's tables."""
        return (
            self._of_pools(lambda profile: np.array([model.decode[-1][0] for model in profile.models])),
            self._of_pools(lambda profile: np.array([model.prefill[-1][0] for model in profile.models])),
        )

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


def taking(takes: Any, ready_s: Any, xp: Any = np) -> Any:
    """(rows, pools) between which replicas the load balancer chooses: those up, or else the one that is up first.

    Args:
      takes: (rows, pools) replicas that are up, or are to be.
      ready_s: (rows, pools) seconds until they are up; 0 or less for those that are.
      xp: the array module, `numpy` or `jax.numpy`.
    """
    up = takes & (ready_s <= 0)
    first = xp.where(takes, ready_s, np.inf).argmin(axis=0)
    coming = takes & (xp.arange(takes.shape[0])[:, None] == first[None])
    return xp.where(up.any(axis=0)[None], up, coming)


def shown_among(among: Any, placed: Any, xp: Any = np) -> Any:
    """(rows, pools) replicas of which the one with the smallest batch stands for its pool: if none takes requests, all.

    Args:
      among: (rows, pools) see `taking`.
      placed: (rows, pools) where there are replicas.
      xp: the array module, `numpy` or `jax.numpy`.
    """
    return xp.where(among.any(axis=0)[None], among, placed)


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
