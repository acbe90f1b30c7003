"""Random lists of requests on random clusters, for the compiled simulator and for the reference.

Compiling takes longer than playing, so lists come in kinds: those of one kind share their static shape and are played
side by side. Everything else differs from list to list, tables and router included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from besteffort.observation import Observation
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality
from besteffort.pytrees import node_types
from besteffort.simulator import simulate
from besteffort.simulator.build import build_alike
from besteffort.simulator.result import Result
from besteffort.simulator.simulate import _play
from besteffort.simulator.types import EnvParams, EnvShape, Router
from besteffort.situation import Cluster, Deadline, Reward, Situation, Task, Tenant, View
from besteffort.workload.requests import Party, Requests
from besteffort.workload.types import Arrival

LENGTH = 500
LONGEST_PROMPT = 64
TOLERANCE = 1e-9
BUDGETS = (1, 2, 3, 7, 16, 40, LONGEST_PROMPT, 200, None)
LOADS = (0.1, 5.0)
"""Offered load of the lists, in capacities of the largest model; in half of the lists, of all models together."""

_ASSUMED = Source("modelled", "made up for a test")
_EXTRAS: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            (),
            ("delay",),
            ("context",),
            ("cache",),
            ("slowdown",),
            ("context", "cache", "lag", "stale"),
            ("slowdown", "context"),
            ("context", "delay", "factors"),
            ("slowdown", "context", "cache", "delay", "lag", "stale", "factors"),
            ("slowdown", "cache", "stale"),
            ("lag", "stale"),
        ),
    )
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CuriousRouter:
    """A router whose choice depends on everything that it sees, and on chance, so that no error of state stays hidden.

    Attributes:
      taste: (tasks, models) liking of a task for a model.
      crowd: (models,) weight of the batch sizes.
      places: (replicas, models) weights of the instances' batch sizes.
      rate, deadline, calm: (models,) weights of the arrival rate, the deadline and the time since a change.
      noise: () size of what chance adds.
    """

    taste: Any
    crowd: Any
    places: Any
    rate: Any
    deadline: Any
    calm: Any
    noise: Any

    def scores(self, observation: Observation, noise: Any) -> Any:
        """(models,) what speaks for each model; NumPy or JAX, as the arguments are."""
        return (
            self.taste[observation.task]
            + self.crowd * observation.batch_sizes
            + (self.places * observation.instance_batch_sizes).sum(0)
            + self.rate * observation.arrival_rate
            + self.deadline * observation.deadline_s
            + self.calm * observation.since_change_s
            + self.noise * noise
        )

    def draw(self, key: jax.Array) -> jax.Array:
        """(models,) noise, the same in every float type."""
        return jax.random.gumbel(key, self.crowd.shape, jnp.float32)

    def route(self, observation: Observation, params: EnvParams, key: jax.Array) -> jax.Array:
        return jnp.argmax(self.scores(observation, self.draw(key))).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the lists of a kind have in common.

    Attributes:
      models, replicas, tasks: counts.
      max_batch, queue_capacity: of each instance.
      dyadic: durations, arrivals and deadlines are multiples of a power of two, so that sums are exact and instants
        coincide all the time; otherwise they are continuous.
      extras: those of `slowdown`, `context` (cost), `cache` (limit), (network) `delay`, `lag` (of the rate), `stale`
        (batch sizes), (deadline) `factors`, `chunks` (prompts are read within a budget) and `found` (part of a prompt,
        in a prefix cache) that are on.
    """

    models: int
    replicas: int
    tasks: int
    max_batch: int
    queue_capacity: int
    dyadic: bool
    extras: frozenset[str]

    def __str__(self) -> str:
        numbers = f"{self.models}x{self.replicas}-{self.max_batch}+{self.queue_capacity}"
        return "-".join([numbers, "dyadic" if self.dyadic else "continuous", *sorted(self.extras)])


@dataclasses.dataclass(frozen=True)
class Case:
    """A list of requests, where it is played, and who routes; the leaves of `router` are NumPy arrays.

    What is assumed is None where it is the situation.
    """

    requests: Requests
    situation: Situation
    router: Router
    seed: int
    assumed: Situation | None = None


class Played(NamedTuple):
    """What became of the requests of a list: (n,) arrays; seconds since each request's arrival, nan if rejected."""

    model: np.ndarray
    replica: np.ndarray
    wait_s: np.ndarray
    first_token_s: np.ndarray
    service_s: np.ndarray
    reward: np.ndarray

    @classmethod
    def of(cls, result: Result) -> Played:
        seconds = (x - result.arrival_s for x in (result.admission_s, result.first_token_s, result.completion_s))
        return cls(result.model, result.replica, *seconds, result.reward)


class Difference(NamedTuple):
    """How two plays of a list differ.

    Attributes:
      outcomes: requests with another model, replica or rejection.
      time: largest difference of a time, in horizons (the moment of the last arrival or departure).
      reward: largest difference of a reward.
    """

    outcomes: int
    time: float
    reward: float


def lone_requests(party: Party, index: list[int] | None, names: tuple[str, ...]) -> Requests:
    """Requests of `task0` that meet no other, each a prefill, of these origins or tenants; four of none."""
    n = 4 if index is None else len(index)
    stated = {} if index is None else {party: np.array(index), f"{party}s": names}
    return Requests(
        tasks=("task0",),
        arrival_s=10.0 * np.arange(n),
        task=np.zeros(n),
        prompt_tokens=np.ones(n),
        output_tokens=np.ones(n),
        deadline_s=np.full(n, 2.0),
        **stated,
    )


def make_profile(
    decode: np.ndarray,
    prefill: np.ndarray,
    *,
    quality_percent: np.ndarray | None = None,
    slowdown: np.ndarray | None = None,
    context_cost_s: np.ndarray | None = None,
    cache_tokens: Sequence[int | None] | None = None,
    cache_output_share: float = 1.0,
) -> Profile:
    """A profile from (models, largest batch) and (models, longest prompt) durations, from batch size and prompt 1 on.

    Tasks are called `task0`, `task1`, ...; by default there is one, on which all models are equally good.
    """
    models = len(decode)
    quality_percent = np.full((1, models), 50.0) if quality_percent is None else quality_percent
    slowdown = np.ones((models, models)) if slowdown is None else slowdown
    context_cost_s = np.zeros(models) if context_cost_s is None else context_cost_s
    cache_tokens = [None] * models if cache_tokens is None else cache_tokens
    return Profile(
        format=1,
        name="made up",
        device="none",
        models=tuple(
            ModelProfile(
                name=f"model{m}",
                decode=tuple(enumerate(decode[m].tolist(), start=1)),
                prefill=tuple(enumerate(prefill[m].tolist(), start=1)),
                slowdown=tuple(slowdown[m].tolist()),
                context_cost_s=float(context_cost_s[m]),
                cache_tokens=cache_tokens[m],
            )
            for m in range(models)
        ),
        tasks=tuple(
            TaskQuality(f"task{k}", "none", "none", tuple(row.tolist())) for k, row in enumerate(quality_percent)
        ),
        provenance=Provenance(_ASSUMED, _ASSUMED, _ASSUMED, _ASSUMED),
        cache_output_share=cache_output_share,
    )


def draw_kinds(count: int, seed: int = 0) -> list[Kind]:
    """Kinds that go through one to seven models, one to eight replicas, and combinations of extras on both grids."""
    rng = np.random.default_rng(seed)
    kinds = []
    for i in range(count):
        extras = _EXTRAS[i % len(_EXTRAS)]
        kind = Kind(
            models=max(1 + i % 7, 2 if "slowdown" in extras else 1),
            replicas=1 + 3 * i % 8,
            tasks=1 + i % 3,
            max_batch=int(rng.choice([1, 2, 3, 4, 8, 16])),
            queue_capacity=(0, 1, 2, 5, 16)[i % 5],
            dyadic=(i + i // len(_EXTRAS)) % 2 == 0,
            extras=extras,
        )
        kinds.append(kind)
    return kinds


def draw_case(kind: Kind, seed: int) -> Case:
    """A list of `LENGTH` requests of the given kind, with its own load, tables, qualities, rewards and router."""
    rng = np.random.default_rng(seed)
    most_tokens = int(rng.choice([1, 3, 20, 60]))
    tasks = tuple(
        Task(
            f"task{k}",
            share=float(rng.uniform(0.5, 2)),
            prompt_tokens=(1, LONGEST_PROMPT),
            output_tokens=(1, most_tokens),
            deadline=Deadline(float(rng.integers(1, 64)) / 64, float(rng.integers(0, 8)) / 128),
            weight=float(rng.integers(1, 4)) / 2,
        )
        for k in range(kind.tasks)
    )
    situation = Situation(
        profile=_draw_profile(rng, kind),
        cluster=Cluster(
            replicas=kind.replicas,
            max_batch=kind.max_batch,
            queue_capacity=kind.queue_capacity,
            network_delay_s=3 / 64 if "delay" in kind.extras else 0.0,
        ),
        tasks=tasks,
        reward=Reward(float(rng.choice([0, 0.5, 1])), float(rng.choice([0, 0.25]))),
        view=View(rate_tau_s=float(rng.uniform(0.5, 4))),
    )
    capacity = situation.capacity()
    low, high = np.log(LOADS)
    rate = np.exp(rng.uniform(low, high)) * rng.choice([capacity[-1], capacity.sum()])
    gaps = rng.exponential(1 / rate, LENGTH)
    if rng.random() < 0.3:  # bursts at one instant
        gaps *= rng.choice([0, 1, 2], LENGTH)
    arrival_s = np.cumsum(gaps)
    if kind.dyadic:
        arrival_s = np.round(arrival_s * 128) / 128
    deadline_s = rng.integers(1, 200, LENGTH) / 64 if kind.dyadic else rng.uniform(0.01, 3, LENGTH)
    requests = Requests(
        tasks=situation.task_names,
        arrival_s=arrival_s,
        task=rng.choice(kind.tasks, LENGTH, p=situation.shares),
        prompt_tokens=rng.integers(1, LONGEST_PROMPT + 1, LENGTH),
        output_tokens=rng.integers(1, most_tokens + 1, LENGTH),
        deadline_s=deadline_s,
    )
    router = _draw_router(rng, kind, rate)
    if "factors" in kind.extras:
        requests = dataclasses.replace(requests, deadline_factor=rng.choice([0.5, 1.0, 1.3], LENGTH))
    situation = dataclasses.replace(situation, view=_draw_view(rng, kind, rate, situation.view))
    if "chunks" in kind.extras:
        situation = with_budgets(situation, rng.choice(np.array(BUDGETS, object), kind.models).tolist())
    if "found" in kind.extras:
        found = rng.integers(0, requests.prompt_tokens + 1) * rng.integers(0, 2, LENGTH)
        requests = dataclasses.replace(requests, cached_tokens=found)
    return Case(requests, situation, router, seed)


def with_budgets(situation: Situation, tokens: Sequence[int | None]) -> Situation:
    """The situation with the models' `chunk_tokens`."""
    profile = situation.profile
    pairs = zip(profile.models, tokens, strict=True)
    models = tuple(dataclasses.replace(model, chunk_tokens=budget) for model, budget in pairs)
    return dataclasses.replace(situation, profile=dataclasses.replace(profile, models=models))


def play_compiled(cases: Sequence[Case], x64: bool = True, **static: Any) -> list[Played]:
    """Plays cases of one shape side by side with the compiled simulator, in float64 or in float32.

    `static` replaces fields of the shape.
    """
    with jax.enable_x64(x64):
        shape, params = stacked_params(cases)
        shape = dataclasses.replace(shape, **static)
        arrivals, routers, keys = stacked_lists(cases)
        placement, timing, reward = jax.vmap(partial(_play, shape, node_types(routers)))(
            params, routers, arrivals, keys
        )
        columns = [np.asarray(x) for x in (placement.pool, placement.replica, *timing, reward)]
    return [Played(*(column[lane] for column in columns)) for lane in range(len(cases))]


def with_tenants(case: Case, tenants: int = 3) -> Case:
    """The case with so many tenants whose weights differ, one of whom has no requests if there are more than one."""
    rng = np.random.default_rng((case.seed, 2))
    listed = tuple(Tenant(f"tenant{k}", float(2.0**k), float(rng.uniform(0.5, 2))) for k in range(tenants))
    whose = rng.integers(0, max(tenants - 1, 1), len(case.requests))
    requests = dataclasses.replace(case.requests, tenant=whose, tenants=tuple(one.name for one in listed))
    situation = dataclasses.replace(case.situation, tenants=listed)
    assumed = case.assumed and dataclasses.replace(case.assumed, tenants=listed)
    return dataclasses.replace(case, requests=requests, situation=situation, assumed=assumed)


def stacked_lists(cases: Sequence[Case]) -> tuple[Arrival, Router, jax.Array]:
    """Arrivals, routers and keys of all cases with a leading axis, in the present float type."""
    arrivals = [
        Arrival(
            np.diff(r.arrival_s, prepend=0.0),
            r.task,
            r.prompt_tokens,
            r.output_tokens,
            r.deadline_s,
            r.deadline_factor,
            r.output_limit,
            r.origin,
            r.cached_tokens,
            r.tenant,
        )
        for r in (case.requests for case in cases)
    ]
    arrivals, routers = (
        jax.tree.map(lambda *leaves: _number(np.stack(leaves)), *trees)
        for trees in (arrivals, [case.router for case in cases])
    )
    keys = jnp.stack([jax.random.key(case.seed) for case in cases])
    return arrivals, routers, keys


def stacked_params(cases: Sequence[Case], *, estimates: bool = False) -> tuple[EnvShape, EnvParams]:
    """The static shape that all cases share, and their parameters with a leading axis, in the present float type."""
    longest = max(int(case.requests.prompt_tokens.max()) for case in cases)
    history = max(len(case.requests) for case in cases)
    situations = [case.situation for case in cases]
    believed = [case.assumed for case in cases if case.assumed is not None]
    shape, params = build_alike(
        situations + believed, history=history, longest_prompt=longest, record=True, estimates=estimates
    )
    if believed:
        pairs = zip(params, params[len(cases) :], strict=False)
        params = [dataclasses.replace(actual, assumed=assumed) for actual, assumed in pairs]
    return shape, jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)


def simulate_by_reference(case: Case) -> Result:
    """Plays a case with the reference; the `CuriousRouter` of the case is evaluated by NumPy."""
    requests, router = case.requests, case.router
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(case.seed)))(np.arange(len(requests)))
    noise = np.asarray(jax.vmap(router.draw)(keys), np.float64)
    return simulate.simulate_by_reference(
        requests,
        case.situation,
        lambda index, observation: int(np.argmax(router.scores(observation, noise[index]))),
    )


def horizon_s(result: Result) -> float:
    """The moment of the last arrival or departure."""
    return float(np.nanmax(np.append(result.completion_s, result.arrival_s[-1])))


def agree(cases: Sequence[Case], truths: Sequence[Result]) -> None:
    """Checks that the compiled simulator plays cases of one shape as the reference did, in float64."""
    for played, truth in zip(play_compiled(cases), truths, strict=True):
        difference = compare(played, truth)
        assert difference.outcomes == 0
        assert difference.time <= TOLERANCE
        assert difference.reward <= TOLERANCE


def compare(played: Played, truth: Result) -> Difference:
    """`played` against `truth`; an answer where the other has none is an infinite difference."""
    wanted = Played.of(truth)
    other = (played.model != wanted.model) | (played.replica != wanted.replica)
    seconds = np.array([played.wait_s, played.first_token_s, played.service_s])
    wanted_seconds = np.array([wanted.wait_s, wanted.first_token_s, wanted.service_s])
    neither = np.isnan(seconds) & np.isnan(wanted_seconds)
    apart = np.where(neither, 0.0, np.nan_to_num(np.abs(seconds - wanted_seconds), nan=np.inf))
    return Difference(
        outcomes=int(other.sum()),
        time=float(apart.max()) / horizon_s(truth),
        reward=float(np.abs(played.reward - wanted.reward).max()),
    )


def _draw_profile(rng: np.random.Generator, kind: Kind) -> Profile:
    models, extras = kind.models, kind.extras

    def table(columns: int, unit: int, low: float, high: float) -> np.ndarray:
        """(models, columns) rising durations."""
        size = (models, columns)
        steps = rng.integers(1, 4, size) / unit if kind.dyadic else rng.uniform(low, high, size)
        return np.cumsum(steps, axis=1)

    decode = table(kind.max_batch, 64, 0.001, 0.01)
    prefill = table(LONGEST_PROMPT, 128, 0.0005, 0.002)
    slowdown = np.ones((models, models))
    if "slowdown" in extras:
        slowdown += rng.integers(0, 3, slowdown.shape) / 2 if kind.dyadic else rng.uniform(0, 1, slowdown.shape)
        slowdown[0, 1] = 1.5
        np.fill_diagonal(slowdown, 1.0)
    context_cost_s = np.zeros(models)
    if "context" in extras:
        context_cost_s = rng.integers(0, 3, models) / 1024 if kind.dyadic else rng.uniform(0, 1e-4, models)
        context_cost_s[-1] = 1 / 1024
    cache_tokens = rng.integers(40, 300, models).tolist() if "cache" in extras else [None] * models
    return make_profile(
        decode,
        prefill,
        quality_percent=np.sort(rng.uniform(20, 90, (kind.tasks, models)), axis=1),
        slowdown=slowdown,
        context_cost_s=context_cost_s,
        cache_tokens=cache_tokens,
        cache_output_share=float(rng.choice([0, 0.37, 0.5, 1])),
    )


def _draw_view(rng: np.random.Generator, kind: Kind, rate: float, view: View) -> View:
    """`view`, late where the kind says so: in some lists by nothing, in others by many arrivals at the given rate."""
    if "lag" in kind.extras:
        view = dataclasses.replace(view, rate_lag=int(rng.choice([0, 1, 10, 100])))
    if "stale" in kind.extras:
        refresh_s = float(rng.choice([0, 0.5, 4, 40]) / rate)
        refresh_s = round(refresh_s * 128) / 128 if kind.dyadic else refresh_s
        view = dataclasses.replace(view, batch_refresh_s=refresh_s)
    return view


def _draw_router(rng: np.random.Generator, kind: Kind, rate: float) -> CuriousRouter:
    one = (kind.models,)
    return CuriousRouter(
        taste=rng.exponential(2) * rng.normal(size=(kind.tasks, kind.models)),
        crowd=-rng.uniform(0, 0.5) * rng.uniform(0, 1, one),
        places=rng.normal(0, 0.1, (kind.replicas, kind.models)),
        rate=rng.normal(0, 0.5, one) / rate,
        deadline=rng.normal(0, 0.5, one),
        calm=rng.normal(0, 0.5, one) * rate,
        noise=np.asarray(rng.choice([0.0, 1.0, 3.0])),
    )


def _number(values: np.ndarray) -> jax.Array:
    """An array in the present float type, or in int32."""
    return jnp.asarray(values, float if np.issubdtype(values.dtype, np.floating) else jnp.int32)
