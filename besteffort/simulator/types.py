"""Types of the environment: its static shape, its numbers, its time steps, and the router protocol.

`EnvShape` is static: counts and switches that shape the compiled program. `EnvParams` holds numbers: a pytree that may
be vmapped, so that one compiled program serves sweeps over rates, deadlines, tables and qualities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from besteffort.autoscaler import Scaling
from besteffort.estimates import reward
from besteffort.estimates.priors import Priors
from besteffort.estimates.rule import Rule
from besteffort.estimates.view import InFlightView, Terms
from besteffort.observation import Observation
from besteffort.pools import Life, PoolNumbers

Array = jax.Array

# Those modules need no JAX, so they cannot do this themselves.
jax.tree_util.register_dataclass(Priors)
jax.tree_util.register_dataclass(Rule)
jax.tree_util.register_dataclass(PoolNumbers)
jax.tree_util.register_dataclass(Life)
jax.tree_util.register_dataclass(Scaling)
jax.tree_util.register_dataclass(
    InFlightView,
    data_fields=[field.name for field in dataclasses.fields(InFlightView) if field.name != "terms"],
    meta_fields=["terms"],
)


LEFT = 64
"""Requests that have left an instance and are kept for gateways that do not know it yet."""


@dataclasses.dataclass(frozen=True)
class EnvShape:
    """Static shape of an environment; hashable.

    Attributes:
      replicas: rows of arrays over replicas, see `besteffort.pools.Layout`: as many as the largest pool has, or more.
      pools: how many there are: what an action chooses between.
      tasks: how many there are.
      max_batch: requests that run at once on an instance; where pools differ, the most.
      queue_capacity: requests that may wait at an instance beyond `max_batch`; where pools differ, so many that both
        together are the most that an instance holds.
      history: decisions whose outcome the state keeps; at least the number of requests that can be in flight.
      horizon: decisions per episode, after which the environment truncates; 0 means never.
      uneven: pools are not uniform, see `besteffort.pools.Fleet` (`EnvParams.pools` applies).
      life: replicas start, drain and fail (`EnvParams.life` applies); only with `uneven`.
      looks: looks in the longest window of an autoscaler; 0 where there is none.
      slowdown: instances on one GPU slow each other down (`EnvParams.slowdown` applies).
      context_cost: iterations take longer the more tokens are held (`EnvParams.context_cost_s` applies).
      cache_limit: admission needs room in the key-value cache (`EnvParams.cache_tokens` applies).
      chunks: prompts are read within a budget of tokens per iteration (`EnvParams.chunk_tokens` applies).
      rate_memory: largest lag of the router's rate estimate, in arrivals (`EnvParams.rate_lag` applies); 0 means that
        it has none.
      stale_sizes: the router sees batch sizes as last read (`EnvParams.batch_refresh_s` applies).
      record: also keep each request's waiting time, time to first token and latency.
      estimates: observations show the requests in flight, for estimates with these terms; None: they do not.
      compare_times: observations show how observed times compare with the tables (`EnvParams.slowdown_tau_s` applies);
        only with `estimates`.
      late_others: requests of other gateways are seen late (`EnvParams.gateways` and `gateway_delay_s` apply).
      workload: types of the nodes of `EnvParams.workload`, see `besteffort.pytrees.node_types`.
      reward_fn: reward of an answer; a function with the signature of `besteffort.estimates.reward.reward`.
    """

    replicas: int
    pools: int
    tasks: int
    max_batch: int
    queue_capacity: int
    history: int
    horizon: int = 0
    uneven: bool = False
    life: bool = False
    looks: int = 0
    slowdown: bool = False
    context_cost: bool = False
    cache_limit: bool = False
    chunks: bool = False
    rate_memory: int = 0
    stale_sizes: bool = False
    record: bool = False
    estimates: Terms | None = None
    compare_times: bool = False
    late_others: bool = False
    workload: tuple[Any, ...] = ()
    reward_fn: Callable[..., Any] = reward.reward

    @property
    def seats(self) -> int:
        """Requests that the state keeps of an instance: all that it holds, and of late those that have left.

        Where others are seen late, so many more; of those that leave within the delay the first are then forgotten.
        """
        return self.max_batch + self.queue_capacity + (LEFT if self.late_others else 0)

    @property
    def stepwise(self) -> bool:
        """Whether time advances iteration by iteration, see `besteffort.simulator.iterative`."""
        return self.slowdown or self.chunks

    @property
    def instances(self) -> int:
        """Instances are numbered `row x pools + pool`, whether there is one or not."""
        return self.replicas * self.pools


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EnvParams:
    """Numbers of an environment. Times in seconds; leaves may carry leading batch axes under `vmap`.

    Attributes:
      decode: (pools, max_batch + 1) duration of a decode iteration by batch size; entry 0 is 0.
      prefill: (pools, longest prompt + 1) duration of a prefill by prompt length; entry 0 is 0.
      slowdown: (pools, pools) factor on an iteration of the row's pool while the column's has one in progress on its
        GPU.
      context_cost_s: (pools,) seconds per token held by the requests that ran before.
      cache_tokens: (pools,) tokens that fit an instance's key-value cache; infinite where unlimited.
      cache_output_share: () share of a request's output counted against the cache at admission.
      quality: (tasks, pools) quality, 1 = best model of the task.
      weight: (tasks,) factor on the rewards of a task.
      mean_prompt_tokens: (tasks,) expected lengths of prompts, which heuristics may use.
      mean_output_tokens: (tasks,) expected lengths of outputs, likewise.
      deadline_base_s: (tasks,) see `besteffort.situation.deadline_s`.
      deadline_per_token_s: (tasks,) likewise, per output token.
      soft_span: () 0 for hard deadlines, see `besteffort.estimates.reward`.
      miss_penalty: () cost of a miss or rejection.
      network_delay_s: () added to every latency; (pools,) where pools are not uniform.
      rate_tau_s: () time constant of the rate estimate.
      rate_lag: () lag of the router's rate estimate in arrivals, an integer up to `EnvShape.rate_memory`.
      batch_refresh_s: () age at which the router's batch sizes are read again.
      priors: what estimates know of requests beforehand; None unless `EnvShape.estimates`.
      chunk_tokens: (pools,) tokens that an iteration works on at most, infinite where prompts are read whole; None
        unless `EnvShape.chunks`.
      workload: a `Workload`, the source of arrivals.
      rule: values models by estimates, for routers that learn on top of it; None for all others.
      assumed: what routers and learners take for granted, where it is not this: `EnvParams` of another situation, of
        which tables, qualities, lengths, deadlines, priors and rule count. What happens follows these parameters, what
        is estimated and decided those of `believed`. None where it is this.
      slowdown_tau_s: () time constant over which observed times are compared with the tables; None unless
        `EnvShape.compare_times`.
      gateways: () how many there are, an integer, see `besteffort.simulator.gateways`; None unless
        `EnvShape.late_others`.
      gateway_delay_s: () how late one sees the requests of the others; None likewise.
      pools: how pools differ; None unless `EnvShape.uneven`.
      origin_delay_s: (origins, pools) added to the latencies of requests from each origin; None where the situation has
        no origins.
      life: when replicas start, drain and fail; None unless `EnvShape.life`.
      tenant_weight: (tenants,) factor on the rewards of each tenant's requests; None where all count the same.
    """

    decode: Array
    prefill: Array
    slowdown: Array
    context_cost_s: Array
    cache_tokens: Array
    cache_output_share: Array
    quality: Array
    weight: Array
    mean_prompt_tokens: Array
    mean_output_tokens: Array
    deadline_base_s: Array
    deadline_per_token_s: Array
    soft_span: Array
    miss_penalty: Array
    network_delay_s: Array
    rate_tau_s: Array
    rate_lag: Array
    batch_refresh_s: Array
    workload: Any
    priors: Priors | None = None
    rule: Rule | None = None
    assumed: EnvParams | None = None
    slowdown_tau_s: Any = None
    gateways: Any = None
    gateway_delay_s: Any = None
    pools: PoolNumbers | None = None
    origin_delay_s: Any = None
    chunk_tokens: Any = None
    life: Life | None = None
    tenant_weight: Any = None

    @property
    def believed(self) -> EnvParams:
        """The parameters that routers and learners take for granted."""
        return self if self.assumed is None else self.assumed


@runtime_checkable
class Router(Protocol):
    """Chooses the pool of a request. A router is a pytree; its numbers (weights, prices) are leaves to be vmapped.

    A router that reads the requests in flight says so by an attribute `estimates` that is True. Only then do
    observations hold `in_flight` and the new request's `prompt_tokens`, `output_limit` and `deadline_factor`, and
    `params` the `priors` of estimates: for all other routers they are None and cost nothing.
    """

    def route(self, observation: Observation, params: EnvParams, key: Array) -> Array:
        """() integer index of the chosen pool. `key` is already folded with the request's index.

        `params` are those that routers take for granted, `EnvParams.believed`.
        """
        ...


def believed(params: Any) -> Any:
    """What learners take for granted: `EnvParams.believed`; of other environments the parameters as they are."""
    return getattr(params, "believed", params)


def reads_in_flight(router: Router) -> bool:
    """Whether a router declares that it reads the requests in flight, see `Router`."""
    return bool(getattr(router, "estimates", False))


def never_ends(env: Any) -> bool:
    """Whether an environment declares that its episodes never end, so that programs need not restart any."""
    return bool(getattr(env, "endless", False))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TimeStep:
    """What `reset` and `step` return in addition to the state, of one environment; `vmap` puts axes in front.

    Attributes:
      observation: the request that waits for a decision, and the state of the cluster before it.
      reward: () sum of the rewards of all requests resolved since the last decision.
      terminated: () always False here; serving has no natural end. Kept for learners that need the distinction.
      truncated: () whether this decision lies beyond the horizon; it then needs no action.
      index: () number of the pending decision in this episode, from 0.
      credit: () change that the last decision made in the planned sum of all requests' rewards, if no other request
        arrives: the reward of its own request, less the loss of the requests in flight that it delays beyond their
        deadlines. Over an episode that is drained, credits and rewards have the same sum, but for what is lost with
        replicas that fail. None where instances are coupled.
      gap_s: () seconds between the last decision and this one; None where the environment has no clock.
    """

    observation: Observation
    reward: Array
    terminated: Array
    truncated: Array
    index: Array
    credit: Array | None = None
    gap_s: Array | None = None


class Outcomes(NamedTuple):
    """Own-request rewards of the remembered decisions; decision `d` is in slot `d % history`.

    Attributes:
      reward: (history,) reward of the decision's own request, 0 while unresolved.
      resolved: (history,) whether that reward is final, see `ServingEnvironment.outcomes`.
    """

    reward: Array
    resolved: Array


@runtime_checkable
class Environment(Protocol):
    """Single-environment functions, to be vmapped; `shape` is static."""

    @property
    def shape(self) -> EnvShape:
        """Static shape; `pools`, `history`."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever behaviour does."""
        ...

    def reset(self, key: Array, params: Any) -> tuple[Any, TimeStep]:
        """First pending decision of an episode."""
        ...

    def step(self, key: Array, state: Any, action: Array, params: Any) -> tuple[Any, TimeStep]:
        """Places the pending request in pool `action`; the next request arrives."""
        ...

    def outcomes(self, state: Any, params: Any) -> Outcomes:
        """Own-request rewards of decisions by index."""
        ...
