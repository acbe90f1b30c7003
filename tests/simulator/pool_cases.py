"""Random lists on random pools, in the kinds of `tests.simulator.cases`: those of a kind share their static shape."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import numpy as np

from besteffort.autoscaler import Autoscaler, Step
from besteffort.observation import Observation
from besteffort.pools import OriginDelay, Pool, ReplicaEvent, What
from besteffort.profile import Profile
from besteffort.simulator.result import Result
from besteffort.situation import Cluster, Origin, Situation
from tests.simulator.cases import (
    LENGTH,
    Case,
    CuriousRouter,
    Kind,
    _draw_profile,
    _draw_router,
    draw_case,
    simulate_by_reference,
)

DEVICES = (None, "other", "third")
_EXTRAS: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            ("delay",),
            ("slowdown",),
            ("context", "delay", "origins"),
            ("cache", "delay", "lag", "stale", "origins"),
            ("slowdown", "context", "cache", "delay", "factors", "origins"),
            (),
        ),
    )
)
_LIVES: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            ("life", "delay"),
            ("life", "context", "delay", "origins"),
            ("life", "cache", "lag", "stale"),
            ("life", "factors"),
        ),
    )
)
_SCALED: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            ("scaled", "delay"),
            ("scaled", "life", "context", "origins"),
            ("scaled", "cache", "lag", "stale"),
            ("scaled", "life", "factors"),
        ),
    )
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WatchfulRouter(CuriousRouter):
    """A curious router whose choice also depends on which replicas take requests.

    Attributes:
      there: (rows, pools) weights of these.
    """

    there: Any = None

    def scores(self, observation: Observation, noise: Any) -> Any:
        there = self.there if observation.takes is None else self.there * observation.takes
        return super().scores(observation, noise) + there.sum(0)


@dataclasses.dataclass(frozen=True)
class PoolKind:
    """What the lists of a kind have in common.

    Attributes:
      kind: tables, tasks and extras; its `replicas`, `max_batch` and `queue_capacity` are the most that a pool has.
      pools: how many there are.
    """

    kind: Kind
    pools: int

    def __str__(self) -> str:
        return f"{self.pools}of{self.kind}"


def draw_pool_kinds(count: int) -> list[PoolKind]:
    """Kinds with two to nine pools of one to four models, with combinations of extras on both grids."""
    return _draw_kinds(count, _EXTRAS, seed=5)


def draw_life_kinds(count: int) -> list[PoolKind]:
    """The same where replicas start, drain and fail."""
    return _draw_kinds(count, _LIVES, seed=6)


def draw_scaled_kinds(count: int) -> list[PoolKind]:
    """The same with autoscalers, and in some kinds pools with events next to them."""
    return _draw_kinds(count, _SCALED, seed=7)


def _draw_kinds(count: int, extras: Sequence[frozenset[str]], seed: int) -> list[PoolKind]:
    rng = np.random.default_rng(seed)
    return [
        PoolKind(
            Kind(
                models=max(1 + i % 4, 2 if "slowdown" in extras[i % len(extras)] else 1),
                replicas=2 + i % 3,
                tasks=1 + i % 3,
                max_batch=int(rng.choice([2, 3, 4, 8])),
                queue_capacity=(1, 0, 5, 2, 16)[i % 5],
                dyadic=(i + i // len(extras)) % 2 == 0,
                extras=extras[i % len(extras)],
            ),
            pools=(5, 4, 9, 3, 6, 2)[i % 6],
        )
        for i in range(count)
    ]


@cache
def judged_cases(kind: PoolKind, seed: int, count: int, length: int = LENGTH) -> tuple[tuple[Case, Result], ...]:
    """So many lists of a kind, from that seed on, each with what the reference makes of it."""
    cases = (draw_pool_case(kind, seed + k, length) for k in range(count))
    return tuple((case, simulate_by_reference(case)) for case in cases)


def draw_pool_case(kind: PoolKind, seed: int, length: int = LENGTH) -> Case:
    """A list of requests on pools with their own models, hardware, sizes, limits and delays."""
    base = kind.kind
    plain = draw_case(base, seed)
    rng = np.random.default_rng((seed, 1))
    profile = plain.situation.profile
    hardware = tuple(
        dataclasses.replace(_draw_profile(rng, base), name=name, cache_output_share=profile.cache_output_share)
        for name in DEVICES[1:]
    )
    pools = draw_pools(kind, profile, rng)
    situation = dataclasses.replace(plain.situation, cluster=Cluster(), pools=pools, hardware=hardware)
    requests = plain.requests.part(slice(0, length), 0.0)
    if "origins" in base.extras:
        names = ("east", "west", "north")
        origin = rng.integers(0, len(names), len(requests))
        requests = dataclasses.replace(requests, origin=origin, origins=names)
        delays = [
            tuple(OriginDelay(name, float(rng.integers(0, 16)) / 64) for name in names if rng.random() < 0.7)
            for _ in pools
        ]
        situation = dataclasses.replace(
            situation,
            origins=tuple(map(Origin, names)),
            pools=tuple(dataclasses.replace(pool, delays=each) for pool, each in zip(pools, delays, strict=True)),
        )
    rows = len(situation.fleet.layout.placed)
    rate = len(plain.requests) / (float(plain.requests.arrival_s[-1]) + 1e-3)
    router = _draw_router(rng, dataclasses.replace(base, models=kind.pools, replicas=rows), rate)
    if base.extras & {"life", "scaled"}:
        last_s = float(requests.arrival_s[-1])
        pools = tuple(_alive(pool, last_s, base.dyadic, rng) for pool in situation.pools)
        if "scaled" in base.extras:
            both = "life" in base.extras
            pools = tuple(
                pool if both and index % 2 else _scaled(pool, last_s, base.dyadic, rng)
                for index, pool in enumerate(pools)
            )
        situation = dataclasses.replace(situation, pools=pools)
        router = WatchfulRouter(**vars(router), there=rng.normal(0, 0.3, router.places.shape))
    return Case(requests, situation, router, seed)


def _alive(pool: Pool, last_s: float, dyadic: bool, rng: np.random.Generator) -> Pool:
    """The pool with random events, some of them after the last arrival, some at one instant."""
    follows: dict[str | None, tuple[What, ...]] = {
        None: ("start", "drain", "fail"),
        "start": ("drain", "fail"),
        "drain": ("start", "fail"),
        "fail": ("start",),
    }
    unit_s = 1 / 128 if dyadic else 1e-9
    events = []
    for replica in range(pool.replicas):
        times_s = np.sort(rng.uniform(0, 1.1 * last_s, int(rng.integers(0, 8))))
        if len(times_s) and rng.random() < 0.3:
            times_s[1:] = np.where(rng.random(len(times_s) - 1) < 0.3, times_s[:-1], times_s[1:])
        what: What | None = None
        for time_s in np.sort(np.round(times_s / unit_s) * unit_s).tolist():
            what = follows[what][int(rng.integers(len(follows[what])))]
            events.append(ReplicaEvent(time_s, replica, what))
    start_s = round(float(rng.choice([0, 0.02, 0.1, 0.3])) * last_s * 128) / 128
    order = sorted(events, key=lambda event: (event.replica % 2, event.time_s))  # no order that matters
    return dataclasses.replace(pool, start_s=start_s, events=tuple(order))


def _scaled(pool: Pool, last_s: float, dyadic: bool, rng: np.random.Generator) -> Pool:
    """The pool with an autoscaler in place of events, which looks between ten and two hundred times."""
    unit_s = 1 / 128 if dyadic else 1e-9
    interval_s = max(round(float(last_s / rng.integers(10, 200)) / unit_s), 1) * unit_s
    least = int(rng.integers(1, pool.replicas + 1))
    kind = int(rng.integers(3))
    times_s = np.unique(np.round(rng.uniform(0, last_s, 5) / unit_s) * unit_s).tolist()
    steps = tuple(Step(time_s, int(rng.integers(1, pool.replicas + 2))) for time_s in times_s)
    scaler = Autoscaler(
        interval_s=interval_s,
        min_replicas=least if rng.random() < 0.3 else 1,
        max_replicas=None if rng.random() < 0.7 else max(least, pool.replicas - 1),
        in_flight=float(rng.choice([0.5, 1, 2, 3.7])) if kind == 0 else None,
        waiting=float(rng.choice([0.25, 0.5, 1])) if kind == 1 else None,
        schedule=steps if kind == 2 else (),
        tolerance=float(rng.choice([0, 0.1, 0.5])),
        up_window_s=interval_s * int(rng.choice([0, 0, 3])),
        down_window_s=interval_s * int(rng.choice([0, 2, 7])),
    )
    return dataclasses.replace(pool, events=(), autoscaler=scaler)


def draw_pools(kind: PoolKind, profile: Profile, rng: np.random.Generator) -> tuple[Pool, ...]:
    """Random pools; the first has the most of everything, and what gives arrays their shape is that of the kind."""
    base, names = kind.kind, profile.model_names
    # Models slow each other down on shared GPUs, so these decide how many rows there are.
    fixed = np.random.default_rng(zlib.crc32(str(kind).encode()))
    shared = "slowdown" in base.extras
    places: list[tuple[str, str | None, int, tuple[int, ...] | None]] = []
    taken: set[tuple[int, str]] = set()
    for index in range(kind.pools):
        source = fixed if shared else rng
        model, device = str(source.choice(names)), int(source.integers(2 if shared else len(DEVICES)))
        replicas = base.replicas if index == 0 else int(source.integers(1, base.replicas + 1))
        gpus = None
        if shared:
            # Each device has so many GPUs that there is one without the model for every replica.
            free = [gpu for gpu in range(100 * device, 100 * device + 40) if (gpu, model) not in taken]
            gpus = tuple(sorted(source.choice(free[: replicas + 2], replicas, replace=False).tolist()))
            if index == 1:  # on GPUs of the first, so that there is something to slow down
                ((other, on, most, those),) = places
                assert those is not None
                model, device = next(name for name in names if name != other), DEVICES.index(on)
                replicas = min(replicas, most)
                gpus = those[:replicas]
            taken |= {(gpu, model) for gpu in gpus}
        places.append((model, DEVICES[device], replicas, gpus))
    return tuple(
        Pool(
            name=f"pool{index}",
            model=model,
            hardware=device,
            replicas=replicas,
            max_batch=base.max_batch if index == 0 else int(rng.integers(1, base.max_batch + 1)),
            queue_capacity=base.queue_capacity if index == 0 else int(rng.integers(0, base.queue_capacity + 1)),
            network_delay_s=float(rng.integers(0, 8)) / 64 if "delay" in base.extras else 0.0,
            gpus=gpus,
        )
        for index, (model, device, replicas, gpus) in enumerate(places)
    )


def situations_of(cases: Sequence[Case]) -> list[Situation]:
    """The situation of each case."""
    return [case.situation for case in cases]
