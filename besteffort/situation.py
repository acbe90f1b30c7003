"""A situation: tasks, cluster, profile and reward. NumPy only.

All classes are immutable dataclasses that a YAML file fills; `besteffort.runs.config` reads it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval, Len

from besteffort.errors import InputError, brief
from besteffort.observation import FEATURES, OBSERVED_SLOWDOWN, ORIGIN, TENANT_WEIGHT
from besteffort.pools import Fleet, Places, Pool
from besteffort.profile import Profile
from besteffort.ranges import Few, NonNegative, Positive, Tokens

MOST_PLACES = 2**20
"""Places of the largest cluster: requests that its instances run and let wait."""

MOST_POOLS = 256

_CAME_LATER = (
    ", slowdown_tau_s=0.0",
    ", gateways=1",
    ", gateway_delay_s=0.0",
    ", pools=()",
    ", hardware=()",
    ", origins=()",
    ", tenants=()",
    ", start_s=None",
    ", events=()",
    ", autoscaler=None",
    ", weights_gb=None",
    ", memory_gb=None",
    ", load_gb_per_s=None",
)
"""Fields that came later, as they are written where they are off."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Machines that all are alike, the short form of pools: one for each model, with replica i of each on GPU i.

    Attributes:
      replicas: GPUs (or machines), each holding every model.
      max_batch: requests that run at once on an instance.
      queue_capacity: requests that may wait at an instance beyond `max_batch`.
      network_delay_s: seconds added to every answer.
    """

    replicas: Few = 4
    max_batch: Few = 32
    queue_capacity: Places = 32
    network_delay_s: NonNegative = 0.0

    def pools(self, models: Sequence[str]) -> tuple[Pool, ...]:
        """What it is short for, with these models; pools are named by their models."""
        return tuple(
            Pool(
                name=model,
                model=model,
                replicas=self.replicas,
                max_batch=self.max_batch,
                queue_capacity=self.queue_capacity,
                network_delay_s=self.network_delay_s,
                gpus=tuple(range(self.replicas)),
            )
            for model in models
        )


@dataclasses.dataclass(frozen=True)
class Deadline:
    """Deadline on a request's end-to-end latency; `deadline_s` says what the numbers mean."""

    base_s: Positive = 0.1
    per_token_s: NonNegative = 0.015


def deadline_s(base_s: Any, per_token_s: Any, output_tokens: Any) -> Any:
    """Deadline on the latency, in seconds, of answers with this many tokens; for NumPy and for JAX.

    Args:
      base_s: seconds that every answer has.
      per_token_s: seconds that each of its tokens adds.
      output_tokens: number of tokens of the answer.
    """
    return base_s + per_token_s * output_tokens


@dataclasses.dataclass(frozen=True)
class Task:
    """A kind of request.

    Attributes:
      name: name of the task in the profile.
      share: weight in the task mix; shares need not sum to one.
      prompt_tokens: smallest and largest prompt length, uniform between, both included.
      output_tokens: smallest and largest output length, uniform between, both included.
      deadline: deadline of its requests.
      weight: factor on its rewards.
      mean_prompt_tokens, mean_output_tokens: expected lengths where they are known and differ from the middle of the
        ranges, as in traces.
      output_quantiles: quantiles of the output lengths of a log, in tokens, at the probabilities `(i + 1/2) / count`
        for i from 0 to count - 1: ascending, within `output_tokens`. None where only range and mean are known. They do
        not replace `mean_output_tokens`.

    Raises:
      InputError: if a range or the quantiles do not ascend, there are no quantiles, or a mean or a quantile is outside
        its range.
    """

    name: str
    share: NonNegative = 1.0
    prompt_tokens: tuple[Tokens, Tokens] = (64, 192)
    output_tokens: tuple[Tokens, Tokens] = (10, 30)
    deadline: Deadline = Deadline()
    weight: Positive = 1.0
    mean_prompt_tokens: Positive | None = None
    mean_output_tokens: Positive | None = None
    output_quantiles: tuple[Positive, ...] | None = None

    def __post_init__(self) -> None:
        for field in ("prompt_tokens", "output_tokens"):
            low, high = getattr(self, field)
            if low > high:
                raise InputError(f"Task `{self.name}`: `{field}` is [{low}, {high}]; put the smaller number first.")
            mean = getattr(self, f"mean_{field}")
            if mean is not None and not low <= mean <= high:
                raise InputError(f"Task `{self.name}`: `mean_{field}` is {mean:g}; give one from {low} to {high}.")
        if self.output_quantiles is not None:
            self._check_quantiles(self.output_quantiles)

    def _check_quantiles(self, quantiles: tuple[float, ...]) -> None:
        where = f"Task `{self.name}`: `output_quantiles`"
        if not quantiles:
            raise InputError(f"{where} is empty; give at least one, or leave it out.")
        low, high = self.output_tokens
        for value in quantiles:
            if not low <= value <= high:
                raise InputError(
                    f"{where} has {value:g}; give lengths from {low} to {high}, the range in `output_tokens`."
                )
        for value, following in itertools.pairwise(quantiles):
            if following < value:
                raise InputError(f"{where} falls from {value:g} to {following:g}; sort them.")


@dataclasses.dataclass(frozen=True)
class Origin:
    """A place that requests come from.

    Attributes:
      name: its name, by which pools state delays.
      share: weight in the mix of origins of a synthetic workload; shares need not sum to one.
    """

    name: str
    share: NonNegative = 1.0


@dataclasses.dataclass(frozen=True)
class Tenant:
    """Someone whose requests these are: a customer, a team, an application.

    Attributes:
      name: its name, which requests state.
      weight: how much its requests count, compared with those of others: only ratios matter, see
        `Situation.tenant_weights`.
      share: weight in the mix of tenants of a synthetic workload; shares need not sum to one.
    """

    name: str
    weight: Positive = 1.0
    share: NonNegative = 1.0


@dataclasses.dataclass(frozen=True)
class Reward:
    """The reward of an answer: `weight x quality x timeliness`, see `besteffort.estimates.reward`.

    Attributes:
      soft_span: 0 for hard deadlines; `s > 0` lets timeliness fall from 1 at the deadline to 0 at `(1 + s) x deadline`.
      miss_penalty: subtracted (times the task's weight) for a request that misses its deadline or is rejected.
    """

    soft_span: NonNegative = 0.0
    miss_penalty: NonNegative = 0.0


@dataclasses.dataclass(frozen=True)
class View:
    """The router's view of the cluster.

    Attributes:
      features: names from `besteffort.observation.FEATURES`, in the order of the network's input.
      rate_tau_s: time constant of the rate estimate, in seconds.
      rate_lag: lag of the rate estimate in arrivals: a request sees the estimate of the request that many arrivals
        earlier, and 0 where there was none.
      batch_refresh_s: age in seconds from which an arrival reads batch sizes again, as from servers that publish them
        periodically; 0 reads them at every arrival. Load balancers always see the current ones, and so do estimates,
        which are made from what the gateway itself has sent and received.
      streamed: the gateway counts tokens as they come; otherwise an answer shows nothing before its end.
      slowdown_tau_s: time constant in seconds over which observed times are compared with the tables, so that estimates
        hold where models are slower or faster than believed, see `besteffort.estimates.correction`; 0: they are not.
      gateways: requests come through so many gateways, each through one of them at random. The router sees the requests
        in flight that came through the same one as they are, and those of the others late; load balancers see all as
        they are.
      gateway_delay_s: so many seconds late. Of what happened to the requests of others since then nothing is assumed:
        those that have come are not counted yet, those that are done still are, with the tokens that they had. The
        iteration in progress is seen where an own request is among those it works on; elsewhere it is the one of then.
        What is read every `batch_refresh_s` is what the gateway then sees. The estimated rate, and how observed times
        compare with the tables, are those of all gateways together.

    Raises:
      InputError: if a feature is unknown or named twice, or needs the comparison, and there is none.
    """

    features: Annotated[tuple[str, ...], Len(1)] = ("task", "batch_sizes", "arrival_rate")
    rate_tau_s: Positive = 2.0
    rate_lag: Annotated[int, Interval(ge=0, le=2**16)] = 0
    batch_refresh_s: NonNegative = 0.0
    streamed: bool = True
    slowdown_tau_s: NonNegative = 0.0
    gateways: Few = 1
    gateway_delay_s: NonNegative = 0.0

    def __post_init__(self) -> None:
        for name in self.features:
            if name not in FEATURES:
                raise InputError(
                    f"`view.features` names `{brief(name)}`, which is no feature; choose from {', '.join(FEATURES)}."
                )
            if self.features.count(name) > 1:
                raise InputError(f"`view.features` names `{name}` twice; name each feature once.")
        if OBSERVED_SLOWDOWN in self.features and not self.slowdown_tau_s:
            raise InputError(
                f"`view.features` names `{OBSERVED_SLOWDOWN}`, but times are not compared with the tables; set "
                "`view.slowdown_tau_s`, to 2 for instance, or leave the feature out."
            )

    @property
    def others_are_late(self) -> bool:
        """Whether there are requests in flight that a gateway sees late."""
        return self.gateways > 1 and self.gateway_delay_s > 0


def as_text(value: Any) -> str:
    """`repr` of a situation or a part of it, without what came later and is off: it tells what was done before, too."""
    return re.sub(rf"(?:{'|'.join(map(re.escape, _CAME_LATER))})(?=[,)])", "", repr(value))


def _check_mix(listed: Sequence[Origin | Tenant], kind: str, field: str) -> None:
    """Raises `InputError` if a name cannot be shown or is listed twice, or all shares are 0."""
    names = [each.name for each in listed]
    for name in names:
        if not name.strip() or not name.isprintable():
            raise InputError(
                f"{kind} `{brief(name)}` under `{field}` cannot be shown; give it a name of printable characters."
            )
        if names.count(name) > 1:
            raise InputError(f"{kind} `{brief(name)}` is listed twice under `{field}`; list it once.")
    if listed and sum(each.share for each in listed) <= 0:
        raise InputError(f"Every {kind.lower()} has `share` 0; give at least one a positive share.")


def _mix(listed: Sequence[Origin | Tenant]) -> np.ndarray:
    """Shares that sum to one."""
    shares = np.array([each.share for each in listed], dtype=np.float64)
    return shares / shares.sum()


@dataclasses.dataclass(frozen=True)
class Situation:
    """Profile, cluster, tasks, reward and view: all inputs of a simulation except the requests and the router.

    Attributes:
      profile: the models, from the smallest to the largest, with their qualities and, for all pools that state no other
        hardware, their latency tables.
      cluster: what serves, where all machines are alike; not read where there are pools.
      tasks: what is asked for.
      reward: what counts.
      view: what the router sees.
      pools: what serves; none where that is the cluster.
      hardware: profiles of other devices, which pools name.
      origins: where requests come from; none where that makes no difference.
      tenants: whose requests they are; none where that makes no difference.

    Raises:
      InputError: if a task is listed twice, all shares are zero, the profile lacks a task, pools do not fit the
        profiles (see `Fleet`), or there are places for more than `MOST_PLACES` requests.
    """

    profile: Profile
    cluster: Cluster
    tasks: tuple[Task, ...]
    reward: Reward = Reward()
    view: View = View()
    pools: tuple[Pool, ...] = ()
    hardware: tuple[Profile, ...] = ()
    origins: tuple[Origin, ...] = ()
    tenants: tuple[Tenant, ...] = ()

    def __post_init__(self) -> None:
        if not self.tasks:
            raise InputError("The situation lists no task; give at least one under `tasks`.")
        names = self.task_names
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"Task `{name}` is listed twice under `tasks`; list it once.")
        if sum(task.share for task in self.tasks) <= 0:
            raise InputError("Every task has `share` 0; give at least one task a positive share.")
        self.profile.quality_table(names)
        if self.pools and self.cluster != Cluster():
            raise InputError("The situation states both `cluster` and `pools`; state one of them.")
        if len(self.pools) > MOST_POOLS:
            raise InputError(f"`pools` lists {len(self.pools):,}; list at most {MOST_POOLS}.")
        self._check_origins()
        _check_mix(self.tenants, "Tenant", "tenants")
        if TENANT_WEIGHT in self.view.features and self.tenant_weights is None:
            raise InputError(
                f"`view.features` names `{TENANT_WEIGHT}`, but all requests count the same; list `tenants` whose "
                "`weight` differs, or leave the feature out."
            )
        self._check_places()

    def _check_origins(self) -> None:
        names = self.origin_names
        _check_mix(self.origins, "Origin", "origins")
        if ORIGIN in self.view.features and not names:
            raise InputError(
                f"`view.features` names `{ORIGIN}`, but the situation has no origins; list them under `origins`, or "
                "leave the feature out."
            )
        for pool in self.pools:
            for delay in pool.delays:
                if delay.origin not in names:
                    known = f"choose from {', '.join(names)}" if names else "list it under `origins`"
                    raise InputError(
                        f"Pool `{pool.name}`: `delays` names the origin `{brief(delay.origin)}`, which the situation "
                        f"lacks; {known}."
                    )

    def _check_places(self) -> None:
        rows, pools = self.fleet.layout.placed.shape
        places = rows * pools * int(self.fleet.places.max())
        if places <= MOST_PLACES:
            return
        if self.pools:
            raise InputError(
                f"`pools` take places for {places:,} requests, the most replicas of a pool x {pools} pools x the most "
                f"that a replica holds; lower one of these, to {MOST_PLACES:,} places at most."
            )
        raise InputError(
            f"`cluster` has places for {places:,} requests, `replicas` x {pools} models x (`max_batch` + "
            f"`queue_capacity`); lower one of these, to {MOST_PLACES:,} places at most."
        )

    @functools.cached_property
    def fleet(self) -> Fleet:
        """All pools: those that are stated, or those that the cluster is short for."""
        return Fleet(self.pools or self.cluster.pools(self.profile.model_names), self.profile, self.hardware)

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    @property
    def origin_names(self) -> tuple[str, ...]:
        """Names of the origins."""
        return tuple(origin.name for origin in self.origins)

    @property
    def origin_shares(self) -> np.ndarray:
        """(origins,) the mix of origins, summing to one."""
        return _mix(self.origins)

    @property
    def tenant_names(self) -> tuple[str, ...]:
        """Names of the tenants."""
        return tuple(tenant.name for tenant in self.tenants)

    @property
    def tenant_shares(self) -> np.ndarray:
        """(tenants,) the mix of tenants, summing to one."""
        return _mix(self.tenants)

    @property
    def tenant_weights(self) -> np.ndarray | None:
        """(tenants,) factor on the rewards of each tenant's requests; None where all count the same.

        They are scaled so that their mean over the mix of tenants is 1: prices of what a request takes from others, and
        all else that is in units of rewards, are then right for the mean tenant.
        """
        weights = np.array([tenant.weight for tenant in self.tenants], dtype=np.float64)
        if len(set(weights.tolist())) <= 1:
            return None
        return weights / (self.tenant_shares @ weights)

    @property
    def origin_delay_s(self) -> np.ndarray | None:
        """(origins, pools) network delays; None where there are no origins."""
        return self.fleet.delay_table(self.origin_names) if self.origins else None

    @property
    def least_delay_s(self) -> np.ndarray:
        """(pools,) network delay from the origin that is nearest to each pool, of those that requests come from."""
        table = self.origin_delay_s
        return self.fleet.network_delay_s if table is None else table[self.origin_shares > 0].min(axis=0)

    @property
    def shares(self) -> np.ndarray:
        """(tasks,) the task mix, summing to one."""
        shares = np.array([task.share for task in self.tasks], dtype=np.float64)
        return shares / shares.sum()

    @property
    def weights(self) -> np.ndarray:
        """(tasks,) factor on the rewards of each task."""
        return np.array([task.weight for task in self.tasks], dtype=np.float64)

    @property
    def peak_rewards(self) -> np.ndarray:
        """(tasks,) reward of a request at peak performance: answered in time by the largest model that is served."""
        return self.weights * self.profile.quality_table(self.task_names)[:, self.fleet.model.max()]

    @property
    def quality(self) -> np.ndarray:
        """(tasks, pools) quality of each pool's answers, 1 = best model of the task."""
        return self.fleet.quality_table(self.task_names)

    @property
    def mean_output_tokens(self) -> np.ndarray:
        """(tasks,) expected output length of each task."""
        return np.array([task.mean_output_tokens or sum(task.output_tokens) / 2 for task in self.tasks])

    @property
    def mean_prompt_tokens(self) -> np.ndarray:
        """(tasks,) expected prompt length of each task."""
        return np.array([task.mean_prompt_tokens or sum(task.prompt_tokens) / 2 for task in self.tasks])

    @property
    def visible_deadlines(self) -> np.ndarray:
        """(tasks,) deadline that a router sees at the arrival, in seconds: that of the task's mean output length.

        Where deadlines change with time, routers see this times the factor in force.
        """
        return self.deadlines(np.arange(len(self.tasks)), self.mean_output_tokens)

    def capacity(self) -> np.ndarray:
        """(pools,) requests per second that each pool sustains if it answers all that it is sent, as they come.

        `replicas / (E[prefill(p)] + E[n - 1] decode(max_batch) / max_batch)`, expectations over the task mix. "Load x"
        means x times the capacity of the largest model, see `unit_load`. Where a task states its mean prompt length,
        E[prefill(p)] is the prefill at that length.
        """
        longest = max(task.prompt_tokens[1] for task in self.tasks)
        prefill = self.fleet.prefill_table(longest)
        mean_prefill_s = np.zeros(len(prefill))
        for share, task in zip(self.shares, self.tasks, strict=True):
            low, high = task.prompt_tokens
            if task.mean_prompt_tokens is not None:
                low = high = round(task.mean_prompt_tokens)
            mean_prefill_s += share * prefill[:, low : high + 1].mean(axis=1)
        return self.capacity_at(mean_prefill_s, self.shares @ self.mean_output_tokens)

    def capacity_at(self, mean_prefill_s: np.ndarray, mean_output_tokens: float) -> np.ndarray:
        """(pools,) `capacity` for prefills of (pools,) `mean_prefill_s` and `mean_output_tokens`."""
        fleet = self.fleet
        decodes_s = (mean_output_tokens - 1) * fleet.full_decode_s() / fleet.max_batch
        return np.asarray(fleet.replicas / (mean_prefill_s + decodes_s))

    def beyond_tables(self) -> str:
        """A sentence about batches and prompts that latency tables do not reach; empty where they reach all."""
        fleet, longest = self.fleet, max(task.prompt_tokens[1] for task in self.tasks)
        batches, prompts = fleet.table_ends()
        found = []
        for table, ends, unit, what, needed in (
            ("decode", batches, "requests", "batches", fleet.max_batch),
            ("prefill", prompts, "tokens", "prompts", np.full(len(prompts), longest)),
        ):
            short = np.flatnonzero(needed > ends)
            if len(short):
                pool = short[np.argmin(ends[short])]
                name, end, reached = fleet.names[pool], ends[pool], needed[pool]
                found.append(f"the {table} table of {name} ends at {end:,} {unit}, {what} at {reached:,}")
        if not found:
            return ""
        return f"Profile {self.profile.name}: {'; '.join(found)}; beyond, times go on as between the last two points."

    @property
    def unit_load(self) -> float:
        """Requests per second at load 1: what all pools of the largest model that is served sustain together."""
        return float(self.capacity()[self.fleet.largest].sum())

    def deadlines(self, task: np.ndarray, output_tokens: np.ndarray) -> np.ndarray:
        """(n,) deadline in seconds of requests with the given task indices and output lengths."""
        base = np.array([t.deadline.base_s for t in self.tasks])
        per_token = np.array([t.deadline.per_token_s for t in self.tasks])
        deadlines: np.ndarray = deadline_s(base[task], per_token[task], output_tokens)
        return deadlines
