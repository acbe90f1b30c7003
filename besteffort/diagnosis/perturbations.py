"""Trials: routers on lists of requests in actual situations that are not what the routers were made for."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from besteffort.diagnosis.wrong_profiles import Latency, perturb_latency, perturb_quality
from besteffort.evaluation import metrics
from besteffort.evaluation.rollouts import Rollout, play_rollouts
from besteffort.evaluation.tuning import RouterKind, router_kinds
from besteffort.observation import Observation
from besteffort.profile import Profile
from besteffort.routers.prediction import predict_latency
from besteffort.simulator.build import build
from besteffort.simulator.request import takers
from besteffort.simulator.result import Result
from besteffort.simulator.types import EnvParams, Router
from besteffort.situation import Situation
from besteffort.workload.requests import Requests

SHARES = (0.05, 0.1, 0.2, 0.3)
"""By how much tables are wrong."""

LAGS = (1, 3, 10, 30, 100)
"""Arrivals by which the rate estimate is late."""

REFRESHES_S = (0.01, 0.05, 0.2, 1.0, 5.0)
"""Seconds between two readings of the batch sizes."""

_SPARE = 0.2


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """Lists of requests, and the actual situations in which they are played.

    Attributes:
      family: what is varied.
      name: what is different, as it follows "with" in a sentence; short enough for a table.
      size: how much of it, in a unit of the family's own.
      lists: one list per seed, all of one length.
      actual_situations: the situation in which each list is played.
    """

    family: str
    name: str
    size: float
    lists: tuple[Requests, ...]
    actual_situations: tuple[Situation, ...]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The results of all routers under a perturbation; per router values of shape (seeds,).

    Attributes:
      perturbation: the perturbation.
      kinds: the kind of each router.
      performance: mean reward.
      slo_attainment: share of the requests that were answered in time.
      avoidable_misses: of the routers that were inspected, the share of the requests that were not, see
        `avoidable_misses`.
    """

    perturbation: Perturbation
    kinds: dict[str, RouterKind]
    performance: dict[str, np.ndarray]
    slo_attainment: dict[str, np.ndarray]
    avoidable_misses: dict[str, np.ndarray]


def as_known(situation: Situation, lists: Sequence[Requests]) -> Perturbation:
    """The perturbation in which nothing is different."""
    return Perturbation("as known", "everything as known", 0.0, tuple(lists), (situation,) * len(lists))


def standard_perturbations(
    situation: Situation,
    lists: Sequence[Requests],
    *,
    shares: Sequence[float] = SHARES,
    common_shares: Sequence[float] = SHARES,
    lags: Sequence[int] = LAGS,
    refreshes_s: Sequence[float] = REFRESHES_S,
    seed: int = 0,
) -> list[Perturbation]:
    """The same lists in actual situations with other tables, and with views that are late.

    Args:
      situation: what the routers assume.
      lists: one per seed.
      shares: by how much qualities are wrong, and latencies, up or down by chance, which falls anew for each list.
      common_shares: by how much all models are slower, or all faster.
      lags: arrivals by which rate estimates are late.
      refreshes_s: seconds between two readings of the batch sizes.
      seed: of the chances.
    """
    view = situation.view
    draws = range(seed, seed + len(lists))

    def perturbation(family: str, name: str, size: float, actual_situations: Sequence[Situation]) -> Perturbation:
        return Perturbation(
            family, name, size, tuple(lists), tuple(actual_situations) * (len(lists) // len(actual_situations))
        )

    perturbations = []
    for share in shares:
        actual_situations = [
            dataclasses.replace(situation, profile=perturb_quality(situation.profile, share, draw)) for draw in draws
        ]
        perturbations.append(perturbation("quality table", f"qualities {share:.0%} off", share, actual_situations))
    for share in shares:
        actual_situations = [
            _with_tables(situation, functools.partial(perturb_latency, share=share, seed=draw)) for draw in draws
        ]
        perturbations.append(perturbation("latency table", f"latencies {share:.0%} off", share, actual_situations))
    ways: tuple[Latency, ...] = ("slower", "faster")
    for how in ways:
        for share in common_shares:
            actual = _with_tables(situation, functools.partial(perturb_latency, share=share, how=how))
            perturbations.append(perturbation(f"{how} models", f"all models {share:.0%} {how}", share, [actual]))
    for lag in lags:
        actual = dataclasses.replace(situation, view=dataclasses.replace(view, rate_lag=lag))
        late = f"rates {lag} arrival{'s' if lag > 1 else ''} late"
        perturbations.append(perturbation("rate estimate", late, float(lag), [actual]))
    for refresh_s in refreshes_s:
        actual = dataclasses.replace(situation, view=dataclasses.replace(view, batch_refresh_s=refresh_s))
        age = f"{1000 * refresh_s:g} ms" if refresh_s < 1 else f"{refresh_s:g} s"
        perturbations.append(perturbation("batch sizes", f"batch sizes up to {age} old", refresh_s, [actual]))
    return perturbations


def _with_tables(situation: Situation, change: Callable[[Profile], Profile]) -> Situation:
    """The situation with all profiles changed."""
    hardware = tuple(map(change, situation.hardware))
    return dataclasses.replace(situation, profile=change(situation.profile), hardware=hardware)


def judge_perturbations(
    situation: Situation,
    perturbations: Sequence[Perturbation],
    routers: Sequence[Mapping[str, Sequence[Router]]],
    *,
    inspect: Sequence[str] = (),
    warm_up_s: float = 0.0,
    seed: int = 0,
) -> list[Outcome]:
    """Plays all perturbations, those with lists of one length together.

    Args:
      situation: what the routers assume.
      perturbations: the perturbations.
      routers: for each perturbation routers by name, which take its lists in turns.
      inspect: names of the learned routers, whose misses are inspected, see `avoidable_misses`.
      warm_up_s: seconds from the first arrival of each list that do not count.
      seed: of the routers' random choices.

    Raises:
      InputError: if the lists of a perturbation differ in length, or actual situations in more than numbers.
    """
    figures: dict[tuple[int, str, str], dict[int, float]] = {}
    for length in dict.fromkeys(len(perturbation.lists[0]) for perturbation in perturbations):
        lists: dict[int, Requests] = {}
        rollouts: list[tuple[int, Rollout]] = []
        for index, perturbation in enumerate(perturbations):
            if len(perturbation.lists[0]) != length:
                continue
            lists |= {id(requests): requests for requests in perturbation.lists}
            rows = [list(lists).index(id(requests)) for requests in perturbation.lists]
            for name, each in routers[index].items():
                own = itertools.islice(itertools.cycle(each), len(rows))
                rollouts += [
                    (index, Rollout(name, *one)) for one in zip(rows, own, perturbation.actual_situations, strict=True)
                ]
        for indices, result in play_rollouts(
            situation, tuple(lists.values()), [rollout for _, rollout in rollouts], seed=seed
        ):
            performance = metrics.performance(result, warm_up_s=warm_up_s)
            attainment = metrics.slo_attainment(result, warm_up_s=warm_up_s)
            for row, number in enumerate(indices.tolist()):
                index, rollout = rollouts[number]
                values = {"performance": performance[row], "slo_attainment": attainment[row]}
                if rollout.kind in inspect:
                    requests = tuple(lists.values())[rollout.row]
                    missed = avoidable_misses(result.lanes(row), rollout.actual or situation, requests.deadline_factors)
                    counted = metrics.after_warm_up(requests.arrival_s, warm_up_s)
                    values["avoidable_misses"] = metrics.mean_over(missed, counted)
                for measure, value in values.items():
                    figures.setdefault((index, rollout.kind, measure), {})[number] = float(value)

    def of(index: int, measure: str) -> dict[str, np.ndarray]:
        found = {name: figures.get((index, name, measure)) for name in routers[index]}
        return {
            name: np.array([values[number] for number in sorted(values)])
            for name, values in found.items()
            if values is not None
        }

    return [
        Outcome(
            perturbation,
            router_kinds(situation, routers[index], inspect),
            of(index, "performance"),
            of(index, "slo_attainment"),
            of(index, "avoidable_misses"),
        )
        for index, perturbation in enumerate(perturbations)
    ]


def avoidable_misses(result: Result, actual: Situation, factors: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which requests were late or rejected although a smaller model was predicted to be in time, with time to spare.

    In hindsight: from the batch sizes that each request really found and the tables of the actual, by
    `besteffort.routers.predict_latency`, for the mean lengths of its task; a fifth of its deadline has to be left.

    Args:
      result: of a list, arrays of shape (n,).
      actual: where.
      factors: factor in force on each deadline.
    """
    _, params = build(actual, None, history=1)
    fleet = actual.fleet
    sizes = metrics.batch_sizes_found(result, fleet.layout)
    latency_s = np.asarray(_predicted(params, jnp.asarray(result.task), jnp.asarray(sizes, jnp.int32)))
    in_time = latency_s <= (1 - _SPARE) * (actual.visible_deadlines[result.task] * factors)[:, None]
    smaller = fleet.model < fleet.model[result.model][:, None]
    return np.asarray(~result.met & (in_time & smaller).any(axis=1))


@jax.jit
def _predicted(params: EnvParams, task: Int[Array, " n"], sizes: Int[Array, "n rows pools"]) -> Float[Array, "n pools"]:
    """Predicted latency of every request in every pool."""
    zero = jnp.zeros(())

    def one(task: Array, sizes: Array) -> Array:
        return predict_latency(
            Observation(task, sizes.sum(0), zero, sizes, zero, zero, takes=takers(params, None)), params
        )

    return jax.vmap(one)(task, sizes)
